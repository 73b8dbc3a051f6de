"""The rater as a function."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from raters.exports.judge import JudgeError, Rating, load

__all__ = ["JUDGE", "JudgeError", "Rating", "rate"]
JUDGE = load(Path(__file__).parent)


def rate(inputs: Mapping[str, str]) -> Rating:
    """Return the rating of an item's text fields.

    Raises:
        JudgeError: If a field is missing, or the rater's model does not answer.
    """
    return JUDGE.rate(inputs)
