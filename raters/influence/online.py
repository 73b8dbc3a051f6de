"""Selection while training: at every step, those examples of the batch that a look-ahead calls harmful are left out.

From the state before step t the recorded batches t .. t + K - 1 are run ahead, the query's gradient is taken where that
ends, and a sweep back to step t scores its examples. Those whose removal would lower the loss are dropped, the step is
taken by the others, and what was run ahead is forgotten. Each step asks the next fold of the dev split in turn, as a
mini-batch of it. A step costs about 4 K steps of training, and the fold's gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from raters.influence.adamw import AdamWState, Adjoint
from raters.influence.dev_queries import DevQueries
from raters.influence.kept import Kept
from raters.influence.losses import ExampleLosses
from raters.influence.retraining import moment_of
from raters.influence.trajectory import Trajectory
from raters.influence.unrolling import AdamWInfluence, Scores

_STATE = ("parameters", "first", "second")


@dataclass(frozen=True)
class OnlineRun:
    """What training with selection came to.

    Attributes:
        state: After the last step.
        seen: (examples,) steps whose batch had the example.
        kept: (examples,) those of them that learned from it.
        scores: (examples,) sums of its scores, each as its step saw it.
    """

    state: AdamWState
    seen: torch.Tensor
    kept: torch.Tensor
    scores: torch.Tensor


def select_online(
    trajectory: Trajectory,
    losses: ExampleLosses,
    queries: DevQueries,
    horizon: int,
    on_step: Callable[[], None] = lambda: None,
    keep: Path | None = None,
) -> OnlineRun:
    """Train again with the batches of a recorded run, leaving out what harms.

    Args:
        trajectory: Whose batches, learning rates and start.
        losses: Its model.
        queries: Whose folds are asked in turn.
        horizon: K, at least 1.
        on_step: Called after every step.
        keep: File that says how far it has come, every sqrt(T) steps; it is gone on from there.
    """
    influence = AdamWInfluence(losses, renormalize=True)
    influence.cache(trajectory)
    state, count, begun = trajectory.stored_state(0), trajectory.num_examples, 0
    seen, kept = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
    total = torch.zeros(count, dtype=state.parameters.dtype)
    if (earlier := Kept.read(keep)) is not None:
        begun, tensors = earlier.step, earlier.tensors
        state = AdamWState(*(tensors[name] for name in _STATE))
        seen, kept, total = tensors["seen"], tensors["kept"], tensors["scores"]
    for number, step in enumerate(trajectory.steps[begun:], start=begun + 1):
        ahead, at = [], state
        for later in trajectory.steps[number - 1 : number - 1 + horizon]:
            ahead.append(moment_of(trajectory, losses, at, later))
            at = ahead[-1].after
        gradient = queries.gradient(at.parameters, number % len(queries))
        scores = Scores(torch.zeros((count, 1, len(losses.parts)), dtype=total.dtype))
        influence.sweep(ahead, Adjoint.of(gradient[None]), scores, only=number)
        found = scores.total[:, 0]
        stays = torch.tensor([bool(found[place] >= 0) for place in step.examples])
        if not stays.any():
            stays[:] = True  # a step without examples would go on by momentum alone
        alphas = torch.tensor(step.weights, dtype=total.dtype)
        state = moment_of(trajectory, losses, state, step, stays / alphas[stays].sum()).after
        places = torch.tensor(step.examples)
        seen.index_add_(0, places, torch.ones(len(places), dtype=torch.long))
        kept.index_add_(0, places, stays.long())
        total += found
        on_step()
        if number % trajectory.header.state_every == 0 or number == len(trajectory):
            tensors = {name: getattr(state, name) for name in _STATE}
            Kept(number, number, {**tensors, "seen": seen, "kept": kept, "scores": total}).write(keep)
    return OnlineRun(state, seen, kept, total)
