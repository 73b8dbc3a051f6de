"""Which examples help and which harm: scores that have the same sign over the folds of the dev split.

An example's score is the predicted change of the loss on all dev items if it is removed. Its interval is Student's t
over its scores by fold, so it says how far the sign hangs on which items were asked, not how far the linearisation is
off: that is what the error proxy is for. An example is harmful if its interval lies below 0 and the proxy is smaller
than its score; helpful likewise above 0. At 95 % one trace in forty without any effect is called harmful by chance.

The score is the mean of those by fold, weighted by their shares w of the items. Its variance is taken to be the sum of
w (by fold - mean) ** 2, over folds - 1: that of the analysis of variance, exact for normal scores of items, and the
squared standard error where folds are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MOST_SUM_OF_RATES = 4.0
"""Up to this sum of learning rates the proxy was seen to be about as large as the true error; beyond it the error comes
out of what a removal does to later steps, which the proxy does not see (data/results/influence.md, the last table)."""

_MOST_MODIFIED_Z = 3.5


@dataclass(frozen=True)
class Influence:
    """What removing each example does to the loss on the dev split; below 0: the example is harmful.

    Attributes:
        scores: (examples,) predicted change of the loss.
        low: (examples,) lower end of the interval over folds; nan with fewer than two folds.
        high: (examples,) upper end.
        parts: (examples, parts) the score by part of the example's own loss; one if the scores do not tell them.
        folds: (examples, folds) the score on each fold.
        proxy: (examples,) of the score's error; nan if there is none.
        harmful: (examples,)
        helpful: (examples,)
    """

    scores: Floats
    low: Floats
    high: Floats
    parts: Floats
    folds: Floats
    proxy: Floats
    harmful: NDArray[np.bool_]
    helpful: NDArray[np.bool_]


def influence_of(
    folds: Floats, overall: Floats, proxy: Floats | None, shares: Floats, confidence: float = 0.95
) -> Influence:
    """Return the influence of examples from their scores.

    Args:
        folds: (examples, folds, parts).
        overall: (examples, parts) on all items.
        proxy: (examples,) of the overall score's error; None if there is none.
        shares: (folds,) each one's share of the items.
        confidence: Of the intervals.
    """
    from scipy.stats import t

    by_fold, scores = folds.sum(-1), overall.sum(-1)
    count = by_fold.shape[1]
    if count > 1:
        squares = (by_fold - (by_fold @ shares)[:, None]) ** 2
        half = t.ppf((1 + confidence) / 2, count - 1) * np.sqrt(squares @ shares / (count - 1))
    else:
        half = np.full(len(scores), np.nan)
    errors = np.full(len(scores), np.nan) if proxy is None else proxy
    trusted = np.ones(len(scores), bool) if proxy is None else errors < np.abs(scores)
    low, high = scores - half, scores + half
    return Influence(scores, low, high, overall, by_fold, errors, trusted & (high < 0), trusted & (low > 0))


def unexpected_of(own_losses: Sequence[float]) -> NDArray[np.bool_]:
    """Return (examples,) True for those that cost the rater far more before training than others did.

    The modified z of Iglewicz and Hoaglin (1993, "How to detect and handle outliers"), .6745 (x - median) / MAD with
    the median absolute deviation from the median, is above 3.5. Nothing is far off where half of the losses are equal.

    Args:
        own_losses: (examples,) mean loss a token.
    """
    losses = np.asarray(own_losses, dtype=float)
    distances = losses - np.median(losses)
    spread = np.median(np.abs(distances))
    return np.asarray(0.6745 * distances > _MOST_MODIFIED_Z * spread) & bool(spread > 0)


def doubt_of(summary: Mapping[str, Any]) -> str:
    """Return why the scores of a run may say little, in a sentence; empty if nothing speaks against them."""
    mend = "train for fewer steps, at a lower rate, or look fewer steps ahead (--horizon)"
    ratio, rates = summary["proxy_over_score"], summary["sum_of_learning_rates"]
    if ratio is not None and ratio >= 1:
        return f"the proxy of the scores' error is larger than the scores, so they say little; {mend}"
    if rates > MOST_SUM_OF_RATES and summary["horizon"] is None:
        return (
            f"the learning rates of the run add up to {rates:.1f}; beyond {MOST_SUM_OF_RATES:g} scores were seen to "
            f"be off by more than the proxy says; {mend}"
        )
    return ""


def weights_remark(summary: Mapping[str, Any]) -> str:
    """Return which weights the scores are about, where the run's rater has others; empty if it has the same."""
    if summary["chosen_step"] == summary["steps"] or summary["online"]:
        return ""
    return (
        f"scores are of the weights after step {summary['steps']:,}, the last one; the run's rater has those of step "
        f"{summary['chosen_step']:,}, which agreed better on dev"
    )
