"""Influence by unrolling a recorded run backwards: what removing an example from it does to a query's loss.

A query is a function of the parameters that a run ends with. The reverse sweep carries its derivative by the state of
the optimizer from the last step to the first; at every step it gives, for the step's examples, the first-order change
of the query if an example had not been there. With the optimizer's own map that is AdamW-influence; with plain SGD's it
is what trajectory-based attribution took for granted before (Hara et al. 2019, "Data cleansing for models trained with
SGD"; Bae et al. 2024, "Training data attribution via approximate unrolling").

Signs and units: a score is the predicted change of the query's loss, in its units, if the example is removed from all
steps. Negative: removing it lowers the loss, so it is harmful. Positive: it helps.

Cost: one query takes about the forward and backward passes of the run twice over, and each further one about as much
again where arithmetic dominates, much less where a model is so small that calls do. The sweep is linear in the query's
gradient, so that any weighted sum of queries, such as a bootstrap resample of folds, has the same sum of scores, free.
Memory, as measured: 14 Q P numbers at the peak of a step for Q queries, of which 3 Q P stay between steps; 4 P sqrt(T)
for the one segment that is replayed (with a horizon of K steps, 4 P K); a batch's second-order graph; and, for removals
that are taken exactly, about 60 P.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from raters.influence.adamw import Adjoint, pull_back, removal_effects, through_clipping
from raters.influence.kept import Kept
from raters.influence.losses import ExampleLosses, products, some_row_gradients
from raters.influence.trajectory import Moment, RecordedStep, Trajectory

_ADJOINT = ("parameters", "first", "second")
_ROWS = 8
"""Rows of a step whose removal is taken exactly at once."""


class Queries(Protocol):
    """Losses that influence is asked about."""

    def __len__(self) -> int:
        """Q."""
        ...

    def gradients(self, parameters: torch.Tensor) -> torch.Tensor:
        """Return (Q, P) the gradient of each by the parameters (P,)."""
        ...


@dataclass(frozen=True)
class Scores:
    """What removing each example does to each query.

    Attributes:
        parts: (examples, M, parts) predicted change of each query's loss, by part of the example's own loss.
        error_proxy: (examples, M) sum over steps of |the step taken exactly - the step linearised|, the rest of the run
            linear in both; None if it was not asked for, or the attributor has none.
    """

    parts: torch.Tensor
    error_proxy: torch.Tensor | None = None

    @property
    def total(self) -> torch.Tensor:
        """(examples, M) the parts' sum."""
        return self.parts.sum(-1)


class Attributor(Protocol):
    """A way to score examples: `cache` what does not depend on queries, then `attribute`."""

    def cache(self, trajectory: Trajectory) -> None:
        """Take a recorded run."""
        ...

    def attribute(self, queries: Queries, mixtures: torch.Tensor | None = None) -> Scores:
        """Return its examples' scores for mixtures (M, Q) of queries, or for each query by itself."""
        ...


@dataclass
class Unrolling(ABC):
    """What unrollings of a run share.

    Attributes:
        losses: The model.
        horizon: K: the sweep for step t starts at the state after step t + K - 1, with the query's gradient there. 1 is
            what online selection sees; None is the whole run.
        renormalize: A step that lacks an example averages over those left (True), or the example's term is dropped and
            the others' weights stay (False). The term for ordered labels, a mean over examples, is averaged by loss
            weights too, which is not exact where examples are of unequal length.
        fisher: Take the empirical Fisher matrix for the Hessian.
        on_step: Called after every step of a sweep.
        keep: File that says how far it has come, every sqrt(T) steps, or with a horizon every step; it is gone on from
            there.
    """

    losses: ExampleLosses
    horizon: int | None = None
    renormalize: bool = False
    fisher: bool = False
    on_step: Callable[[], None] = lambda: None
    keep: Path | None = None
    _trajectory: Trajectory | None = field(default=None, repr=False)
    _mixtures: torch.Tensor | None = field(default=None, repr=False)

    def cache(self, trajectory: Trajectory) -> None:
        """Take a recorded run; everything it holds stays on disk until a sweep comes to it."""
        self._trajectory = trajectory

    def attribute(self, queries: Queries, mixtures: torch.Tensor | None = None) -> Scores:
        """Return the scores of all examples.

        Args:
            queries: Q losses, a sweep for each.
            mixtures: (M, Q) the weights of each query in what scores are given for; each query by itself if None.
        """
        assert self._trajectory is not None, "call cache() first"
        trajectory = self._trajectory
        dtype = trajectory.last_state().parameters.dtype
        self._mixtures = None if mixtures is None else mixtures.to(dtype)
        count = len(queries) if mixtures is None else len(mixtures)
        parts = torch.zeros((trajectory.num_examples, count, len(self.losses.parts)), dtype=dtype)
        proxy = torch.zeros(parts.shape[:2], dtype=dtype) if self._has_proxy else None
        scores = Scores(parts, proxy)
        kept = Kept.read(self.keep)
        if kept is not None:
            for name, into in self._named(scores).items():
                into.copy_(kept.tensors[name])
        if self.horizon is None:
            self._through_the_run(queries, scores, kept)
        else:
            self._ahead_of_each_step(queries, scores, kept, self.horizon)
        return scores

    def _through_the_run(self, queries: Queries, scores: Scores, kept: Kept | None) -> None:
        """Add to the scores what one sweep from the end of the run comes to."""
        assert self._trajectory is not None
        trajectory, total = self._trajectory, len(self._trajectory)
        if kept is None:
            begun, adjoint = total, Adjoint.of(queries.gradients(trajectory.last_state().parameters))
        else:
            begun, adjoint = kept.step - 1, Adjoint(*(kept.tensors[name] for name in _ADJOINT))
        for moments in trajectory.segments_backwards(begun):
            adjoint = self.sweep(moments, adjoint, scores)
            first = moments[0].step.settings.number
            tensors = {name: getattr(adjoint, name) for name in _ADJOINT} | self._named(scores)
            Kept(first, total + 1 - first, tensors).write(self.keep)
            del moments  # or the segment would still be there while the one before it is replayed

    def _ahead_of_each_step(self, queries: Queries, scores: Scores, kept: Kept | None, horizon: int) -> None:
        """Add to the scores what a sweep for each step comes to, from so many steps ahead of it."""
        assert self._trajectory is not None
        trajectory, total = self._trajectory, len(self._trajectory)
        begun, done = (0, 0) if kept is None else (kept.step, kept.done)
        for number in range(begun + 1, total + 1):
            moments = trajectory.moments(number, min(number + horizon - 1, total))
            adjoint = Adjoint.of(queries.gradients(moments[-1].after.parameters))
            self.sweep(moments, adjoint, scores, only=number)
            done += len(moments)
            Kept(number, done, self._named(scores)).write(self.keep)
            del moments

    def sweep(self, moments: Sequence[Moment], adjoint: Adjoint, scores: Scores, only: int | None = None) -> Adjoint:
        """Go backwards through steps and add to the scores what comes out, of all of them or of one alone.

        Args:
            moments: In their order.
            adjoint: By the state after the last of them.
            scores: What is added to.
            only: The step whose examples are scored.

        Returns:
            The adjoint by the state before the first of them.
        """
        assert self._trajectory is not None, "call cache() first"
        decay = self._trajectory.header.decay()
        for moment in reversed(moments):
            before, pushed = self._pull_back(adjoint, moment, decay)
            found = products(self.losses, moment.before.parameters, moment.step, pushed, fisher=self.fisher)
            if only in (None, moment.step.settings.number):
                self._enter(scores, moment, adjoint, self._changes(moment.step, -found.rows), decay)
            adjoint = Adjoint(before.parameters + found.curvature, before.first, before.second)
            self.on_step()
        return adjoint

    @staticmethod
    def _named(scores: Scores) -> dict[str, torch.Tensor]:
        proxy = {} if scores.error_proxy is None else {"error_proxy": scores.error_proxy}
        return {"parts": scores.parts, **proxy}

    @property
    def _has_proxy(self) -> bool:
        return False

    @abstractmethod
    def _pull_back(self, adjoint: Adjoint, moment: Moment, decay: torch.Tensor) -> tuple[Adjoint, torch.Tensor]:
        """Return the adjoint before a step, without what goes through the gradient, and p (Q, P)."""

    def _enter(
        self, scores: Scores, moment: Moment, adjoint: Adjoint, changes: torch.Tensor, decay: torch.Tensor
    ) -> None:
        """Add the changes (Q, rows, parts) that a step's rows make."""
        mixed = changes.transpose(0, 1)
        if self._mixtures is not None:
            mixed = torch.einsum("mq,qrp->rmp", self._mixtures, changes)
        scores.parts.index_add_(0, torch.tensor(moment.step.examples), mixed)

    def _changes(self, step: RecordedStep, dropped: torch.Tensor) -> torch.Tensor:
        """Return (Q, rows, parts) the changes by removal, from those by dropping each row's term alone.

        An example that is all there is of a step leaves none to average over: its term is dropped.
        """
        if not self.renormalize:
            return dropped
        weights, left = _weights(step, dropped)[:, None], _left(step, dropped)[:, None]
        alone = left == 0
        found = (dropped - weights * dropped.sum(1, keepdim=True)) / left.masked_fill(alone, 1)
        return torch.where(alone, dropped, found)


@dataclass
class SGDUnrolling(Unrolling):
    """Unrolling as if every step had been plain gradient descent at its learning rate, with its clipping and decay."""

    def _pull_back(self, adjoint: Adjoint, moment: Moment, decay: torch.Tensor) -> tuple[Adjoint, torch.Tensor]:
        settings = moment.step.settings
        pushed = through_clipping(-settings.lr * adjoint.parameters, moment.clipped, settings)
        return replace(adjoint, parameters=(1 - settings.lr * decay) * adjoint.parameters), pushed


@dataclass
class AdamWInfluence(Unrolling):
    """AdamW-influence: the adjoint of the optimizer that was really used (`adamw`).

    Attributes:
        finite: Take each removal's own step exactly, and only what follows linearly. It repairs the first steps, where
            AdamW's update is little else than a sign. Takes each example's gradient.
        error_proxy: Also give the proxy of the error; takes each example's gradient too.
    """

    finite: bool = False
    error_proxy: bool = False

    @property
    def _has_proxy(self) -> bool:
        return self.error_proxy

    def _pull_back(self, adjoint: Adjoint, moment: Moment, decay: torch.Tensor) -> tuple[Adjoint, torch.Tensor]:
        return pull_back(adjoint, moment.after, moment.clipped, decay, moment.step.settings)

    def _enter(
        self, scores: Scores, moment: Moment, adjoint: Adjoint, changes: torch.Tensor, decay: torch.Tensor
    ) -> None:
        if self.finite or self.error_proxy:
            step = moment.step
            errors = self._removals(moment, adjoint, decay) - changes.sum(-1)  # (Q, rows)
            if scores.error_proxy is not None:
                mixed = (errors if self._mixtures is None else self._mixtures @ errors).abs()
                scores.error_proxy.index_add_(0, torch.tensor(step.examples), mixed.T)
            if self.finite:
                changes = changes + _shared_out(errors, changes)
        super()._enter(scores, moment, adjoint, changes, decay)

    def _removals(self, moment: Moment, adjoint: Adjoint, decay: torch.Tensor) -> torch.Tensor:
        """Return (Q, rows) what removing each row's example does by this step taken exactly.

        A few rows at a time: each needs all P numbers of a step. Of an example that stands several times in the step,
        each row gets its share of what removing all of them does.
        """
        step, settings, found = moment.step, moment.step.settings, []
        whole = moment.clipped / settings.clip_factor
        left = _left(step, whole)
        for place, own in some_row_gradients(self.losses, moment.before.parameters, step, _ROWS):
            counts = [step.examples.count(example) for example in step.examples[place]]
            times, rest = torch.tensor(counts, dtype=own.dtype)[:, None], left[place, None]
            others = (whole - times * own) / (rest if self.renormalize else 1)  # (rows, P)
            others = torch.where(rest > 0, others, 0)  # without its only example a step has rounding left, and no more
            effects = removal_effects(adjoint, moment.before, moment.after, others, decay, settings)
            found.append(effects / times.T)
        return torch.cat(found, dim=1)


def _left(step: RecordedStep, like: torch.Tensor) -> torch.Tensor:
    """Return (rows,) the weight in a step of all but each row's example; exactly 0 if there is no other."""
    gone = dict.fromkeys(step.examples, 0.0)
    for example, weight in zip(step.examples, step.weights, strict=True):
        gone[example] += weight
    left = [1 - gone[example] if len(gone) > 1 else 0.0 for example in step.examples]
    return torch.tensor(left, dtype=like.dtype, device=like.device)


def _weights(step: RecordedStep, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(step.weights, dtype=like.dtype, device=like.device)


def _shared_out(errors: torch.Tensor, changes: torch.Tensor) -> torch.Tensor:
    """Return (Q, rows, parts) errors (Q, rows) shared out over parts, as large as these are."""
    sizes = changes.abs()
    whole = sizes.sum(-1, keepdim=True)
    shares = torch.where(whole > 0, sizes / whole, torch.full_like(sizes, 1 / sizes.shape[-1]))
    return errors[..., None] * shares
