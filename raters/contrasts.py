"""What accepted draws do differently from rejected ones: the evidence from which a clearer guideline is made.

The embedded rater guesses rules independently of the label. A rule that people go by is therefore guessed in the
right direction more often among accepted draws. Draws of one item are not independent, so the test sums over
each item first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raters.models.embedded import read_steps

SIGNIFICANT_Z = 3.0
"""Least |z| of a rule that may enter a guideline: with shuffled labels it lets next to nothing through."""


@dataclass(frozen=True, slots=True)
class RuleContrast:
    """How much more often draws are accepted when they guess that an observation helps than that it hurts.

    Attributes:
        observation: Name of the statistic.
        z: Item-clustered z; positive if guessing `helps` goes with acceptance.
        draws: Draws that guessed a rule about it with an effect on their rating.
        items: Items those draws belong to.
    """

    observation: str
    z: float
    draws: int
    items: int

    def __str__(self) -> str:
        """Return the better supported direction in words."""
        return f"{self.observation} {'helps' if self.z > 0 else 'hurts'}"


def contrast_rules(draws: Iterable[tuple[int, str, bool, float]], items: int) -> list[RuleContrast]:
    """Return the contrast of each guessed observation, strongest first.

    With s = +1 or -1 for the guessed direction, a = 1 or 0 for acceptance and e the chance of acceptance that the
    draw's verdict has anyway (how frequent its label is), an item contributes d_i = sum of s (a - e) over its draws
    that guessed the observation, and z = sum d_i / sqrt(sum d_i^2), the cluster-robust score test (Liang and Zeger
    1986) of no association. Without e, a rule that pushes verdicts towards a frequent label would seem to be true.

    Args:
        draws: (place of the item, trace, accepted, e) of each draw; traces in other words have no rules.
        items: How many places there are.
    """
    contributions: dict[str, NDArray[np.float32]] = {}
    seen: dict[str, NDArray[np.bool_]] = {}
    counts: dict[str, int] = {}
    for place, trace, accepted, expected in draws:
        for step in read_steps(trace):
            name = step.rule.observation
            if not step.rule.guessed or step.change == 0:
                continue
            if name not in counts:
                contributions[name], seen[name] = np.zeros(items, np.float32), np.zeros(items, bool)
                counts[name] = 0
            contributions[name][place] += step.rule.sign * (accepted - expected)
            seen[name][place] = True
            counts[name] += 1
    contrasts = []
    for name, count in counts.items():
        values = contributions[name].astype(np.float64)
        spread = float(np.sqrt(np.square(values).sum()))
        z = float(values.sum()) / spread if spread else 0.0
        contrasts.append(RuleContrast(name, z, count, int(seen[name].sum())))
    return sorted(contrasts, key=lambda contrast: (-abs(contrast.z), contrast.observation))


def contrast_presence(items: NDArray[np.int64], present: NDArray[np.bool_], accepted: NDArray[np.bool_]) -> float:
    """Return how much more often something stands in accepted draws than in rejected ones, as an item-clustered z.

    With x = 1 where a draw contains it and a = 1 where it is accepted, an item contributes
    d_i = sum over its draws of (x - mean x)(a - mean a), and z = sum d_i / sqrt(sum d_i^2): the score test of no
    association with variance clustered by item (Liang and Zeger 1986). 0 where everything or nothing contains it, or
    all draws are accepted or none.

    Args:
        items: (draws,) item of each draw; all with the same verdict, so that its frequency plays no part.
        present: (draws,) True where the draw contains it.
        accepted: (draws,) True where the draw agrees with the label.
    """
    _, codes = np.unique(items, return_inverse=True)
    both = (present - present.mean()) * (accepted - accepted.mean())
    by_item = np.bincount(codes, both)
    spread = float(np.sqrt(np.square(by_item).sum()))
    return float(by_item.sum()) / spread if spread else 0.0
