"""The rater as a Python assertion of promptfoo; an item's other fields are the test's variables.

promptfoo counts from 0 to 1: `score` is the place on the scale, and `namedScores` has the rater's own. With
`config: {threshold: 4}` beside the assertion, ratings from 4 pass; without, all that can be read.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from raters.exports.judge import load

JUDGE = load(Path(__file__).parent)


def get_assert(output: str, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return what promptfoo asks of an assertion."""
    known = context.get("vars") or {}
    rating = JUDGE.rate(JUDGE.item(known, output))
    value, threshold = JUDGE.number(rating), (context.get("config") or {}).get("threshold")
    reasons = "\n\n".join(rating.reasoning)
    if value is None:
        return {"pass": False, "score": 0.0, "reason": f"not rated, its answer cannot be read: {reasons}"}
    return {
        "pass": threshold is None or value >= threshold,
        "score": JUDGE.share(rating),
        "reason": f"{rating.verdict}: {reasons}",
        "namedScores": {JUDGE.name: value},
    }
