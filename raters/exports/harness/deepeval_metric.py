"""The rater as metrics of deepeval.

`RaterMetric` asks as the rater was measured; deepeval counts from 0 to 1, and the rater's own scale is kept in
`score_breakdown`. `geval_metric` has deepeval ask in its own words by the rater's guideline, which nobody measured.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from deepeval.metrics import BaseMetric, GEval
from deepeval.metrics.g_eval import Rubric
from deepeval.test_case import LLMTestCase, SingleTurnParams

from raters.exports.judge import JudgeError, load

JUDGE = load(Path(__file__).parent)
_MOST = 10
"""GEval's ranges end there."""


class RaterMetric(BaseMetric):
    """The rater; an item's fields are a test case's input, actual output, and metadata by name.

    Args:
        threshold: Least place on the scale that passes, from 0 to 1; all that can be read do by default.
        native_threshold: The same as a rating on the rater's own scale.
        async_mode: As deepeval has it.
    """

    async_mode = True
    include_reason = True
    evaluation_model = JUDGE.model

    def __init__(self, threshold: float = 0.0, native_threshold: float | None = None, async_mode: bool = True) -> None:
        """Ask nothing yet."""
        # deepeval copies a metric by calling this with the attributes of the same names.
        self.async_mode, self.native_threshold = async_mode, native_threshold
        self.threshold = threshold if native_threshold is None else JUDGE.share_of(native_threshold)
        self.score: float | None = None
        self.success: bool | None = None
        self.reason: str | None = None
        self.error: str | None = None
        self.score_breakdown: dict[str, Any] | None = None

    @property
    def __name__(self) -> str:
        """What deepeval calls it."""
        return JUDGE.name

    def measure(self, test_case: LLMTestCase, *_: Any, **__: Any) -> float | None:
        """Return the place on the scale, from 0 to 1; None if the rater's answer cannot be read.

        Raises:
            JudgeError: If the rater's answer cannot be read: deepeval has no other way to leave a test case unscored.
        """
        self.score = self.success = self.score_breakdown = None
        inputs = JUDGE.item(test_case.metadata or {}, test_case.actual_output, test_case.input)
        rating = JUDGE.rate(inputs)
        self.reason = "\n\n".join(rating.reasoning)
        self.score_breakdown = {JUDGE.name: JUDGE.native(rating), **JUDGE.told(rating)}
        if rating.value is None:
            self.error = "not rated: its answer cannot be read"
            raise JudgeError(f"{JUDGE.name}: {self.error}")
        self.score = JUDGE.share(rating)
        self.success = self.score is not None and self.score >= self.threshold
        return self.score

    async def a_measure(self, test_case: LLMTestCase, *_: Any, **__: Any) -> float | None:
        """Return what `measure` does, without holding up others."""
        return await asyncio.to_thread(self.measure, test_case)

    def is_successful(self) -> bool:
        """Return whether the last test case passed."""
        return bool(self.success)


def geval_metric(model: Any = None) -> GEval:
    """Return deepeval's own way of asking with the rater's guideline.

    Args:
        model: As GEval takes it; the rater's own by default.

    Raises:
        JudgeError: If the rater is no language model.
    """
    if JUDGE.rates_here and model is None:
        raise JudgeError(f"{JUDGE.name}: the rater is no language model; give geval_metric(model=…)")
    return GEval(
        name=JUDGE.name,
        criteria=JUDGE.guideline,
        evaluation_steps=[f"Follow this guideline: {JUDGE.guideline}", "Rate the actual output by it."],
        evaluation_params=[SingleTurnParams.INPUT, SingleTurnParams.ACTUAL_OUTPUT],
        rubric=_rubric(),
        model=model or JUDGE.model,
    )


def _rubric() -> list[Rubric] | None:
    """Return a range of 0 to 10 for each label, from least to most; None where there are none, or too many."""
    labels = list(JUDGE.labels)
    kind = JUDGE.record["scale"]["type"]
    if kind == "pairwise" or not 2 <= len(labels) <= _MOST + 1:
        return None
    if kind == "nominal":
        labels.reverse()  # the label named first is the most
    edges = [round(place * (_MOST + 1) / len(labels)) for place in range(len(labels) + 1)]
    return [
        Rubric(score_range=(start, end - 1), expected_outcome=f"{JUDGE.record['dimension']}: {label}")
        for label, start, end in zip(labels, edges, edges[1:], strict=False)
    ]
