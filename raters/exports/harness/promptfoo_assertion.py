"""The rater as a Python assertion of promptfoo; an item's other fields are the test's variables.

Of the items of this export a test has the id alone: promptfoo reads a variable's text as a template, as the name of a
file where it begins with `file://`, and a prompt that is JSON as messages.

promptfoo counts from 0 to 1: `score` is the place on the scale, and `namedScores` has the rater's own. With
`config: {threshold: 4}` beside the assertion, ratings from 4 pass; without, all that can be read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from raters.exports.judge import load

HERE = Path(__file__).parent
JUDGE = load(HERE)


def asked(context: Mapping[str, Any]) -> str:
    """Return what the evaluated model is asked: an item's other fields. Change it to what yours should be asked."""
    known = _known(context)
    others = [name for name in JUDGE.fields if name != JUDGE.output]
    texts = [str(known[name]) if len(others) == 1 else f"{name}:\n{known[name]}" for name in others]
    # promptfoo fills what comes back as a template once more.
    content = "\n\n".join(texts).replace("{", "\0").replace("\0", "{{ '{' }}")
    return json.dumps([{"role": "user", "content": content}])


def get_assert(output: Any, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return what promptfoo asks of an assertion."""
    rating = JUDGE.rate(JUDGE.item(_known(context), output if isinstance(output, str) else json.dumps(output)))
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


def _known(context: Mapping[str, Any]) -> dict[str, Any]:
    known = dict(context.get("vars") or {})
    if "item_id" in known and (HERE / "items.jsonl").is_file():
        for line in (HERE / "items.jsonl").read_text(encoding="utf-8").split("\n"):
            if line and (item := json.loads(line))["item_id"] == known["item_id"]:
                return {**known, **item["inputs"]}
    return known
