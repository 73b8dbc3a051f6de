"""Scores from gradients at stored states alone, without unrolling: what influence is held against.

TracInCP (Pruthi et al. 2020, "Estimating training data influence by tracing gradient descent", equation 3): the sum
over checkpoints of the learning rate times the product of an example's gradient with the query's.

LESS (Xia et al. 2024, "LESS: selecting influential data for targeted instruction tuning", section 4): the sum over
checkpoints of the mean learning rate times the cosine of the query's gradient with the step that Adam would make for
the example alone. Adapters are small enough that nothing is projected here.

Signs are those of `unrolling`, units are not: only the order of examples means something.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from raters.influence.adamw import AdamWState, AdamWStep
from raters.influence.kept import Kept
from raters.influence.losses import ExampleLosses, row_gradients
from raters.influence.trajectory import RecordedStep, Trajectory
from raters.influence.unrolling import Queries, Scores

_ROWS = 8
"""Examples whose gradients, P numbers each, are held at once."""


def checkpoints(trajectory: Trajectory) -> dict[int, float]:
    """Return after which steps gradients are taken, and the mean learning rate of the steps up to each.

    Where states are stored, but for the first one, and where the run ends.
    """
    numbers = sorted({*trajectory.stored(), len(trajectory)})
    rates = [step.settings.lr for step in trajectory.steps]
    return {end: sum(rates[begin:end]) / (end - begin) for begin, end in pairwise(numbers)}


@dataclass
class CheckpointScores(ABC):
    """What the scores of this module share.

    Attributes:
        losses: The model.
        on_examples: Called with a number of examples that are done at a checkpoint.
        keep: File that says after how many checkpoints which scores were come to; it is gone on from there.
    """

    losses: ExampleLosses
    on_examples: Callable[[int], None] = lambda count: None
    keep: Path | None = None
    _trajectory: Trajectory | None = None

    def cache(self, trajectory: Trajectory) -> None:
        """Take a recorded run."""
        self._trajectory = trajectory

    def attribute(self, queries: Queries, mixtures: torch.Tensor | None = None) -> Scores:
        """Return the scores of all examples in one part; LESS takes the cosine with the mixture itself."""
        assert self._trajectory is not None, "call cache() first"
        trajectory, kept = self._trajectory, Kept.read(self.keep)
        begun, done = (0, 0) if kept is None else (kept.step, kept.done)
        total = None if kept is None else kept.tensors["scores"]
        for number, lr in checkpoints(trajectory).items():
            if number <= begun:
                continue
            state, settings = trajectory.state(number), trajectory.steps[number - 1].settings
            against = queries.gradients(state.parameters)
            if mixtures is not None:
                against = mixtures.to(against.dtype) @ against
            found = torch.cat([
                self._scores(gradients, against, state, settings) for gradients in self._gradients(state.parameters)
            ])  # fmt: skip
            total = lr * found if total is None else total + lr * found
            done += len(found)
            Kept(number, done, {"scores": total}).write(self.keep)
        assert total is not None
        return Scores(total[..., None])

    def _gradients(self, parameters: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield (rows, P) gradients of examples' own mean losses."""
        assert self._trajectory is not None
        examples, settings = self._trajectory.num_examples, self._trajectory.steps[0].settings
        for begin in range(0, examples, _ROWS):
            places = range(begin, min(begin + _ROWS, examples))
            # Each is a step of its own, so that its loss is the mean over its own tokens.
            yield torch.cat([
                row_gradients(self.losses, parameters, RecordedStep(settings, [place], [1.0])) for place in places
            ])  # fmt: skip
            self.on_examples(len(places))

    @abstractmethod
    def _scores(
        self, gradients: torch.Tensor, queries: torch.Tensor, state: AdamWState, settings: AdamWStep
    ) -> torch.Tensor:
        """Return (rows, Q) scores at one checkpoint."""


@dataclass
class TracIn(CheckpointScores):
    """TracInCP."""

    def _scores(
        self, gradients: torch.Tensor, queries: torch.Tensor, state: AdamWState, settings: AdamWStep
    ) -> torch.Tensor:
        return gradients @ queries.T


@dataclass
class Less(CheckpointScores):
    """LESS."""

    def _scores(
        self, gradients: torch.Tensor, queries: torch.Tensor, state: AdamWState, settings: AdamWStep
    ) -> torch.Tensor:
        b1, b2 = settings.corrections
        first = state.first.lerp(gradients, 1 - settings.beta1) / b1
        second = (settings.beta2 * state.second + (1 - settings.beta2) * gradients**2) / b2
        steps = first / (second.sqrt() + settings.eps)
        return torch.nn.functional.normalize(steps, dim=1) @ torch.nn.functional.normalize(queries, dim=1).T
