"""A recorded run again with some of its examples weighted otherwise: the truth that influence predicts.

The same batches in the same order at the same learning rates; what changes is the gradient. With all weights 1 it comes
to the recorded parameters, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from raters.influence.adamw import AdamWState, advance
from raters.influence.losses import ExampleLosses, step_gradient
from raters.influence.trajectory import Moment, RecordedStep, Trajectory
from raters.records import ModelError

_MOST_GRADIENT_ERROR = {"float32": 0.01, "bfloat16": 0.2}
"""Largest distance of a step's gradient from the recorded one, as a share of its norm: rounding, and no more."""
Weights = Callable[[RecordedStep], torch.Tensor]
"""Returns (rows,) what the shares of a step's rows are multiplied by."""


def without(examples: set[int], *, renormalize: bool = False) -> Weights:
    """Return the weights of a run that some examples were removed from.

    Args:
        examples: By place.
        renormalize: True if a step averages over those left; a step with none left has no gradient.
    """

    def weights(step: RecordedStep) -> torch.Tensor:
        kept = torch.tensor([place not in examples for place in step.examples], dtype=torch.float64)
        if renormalize:
            left = float(kept @ torch.tensor(step.weights, dtype=torch.float64))
            kept = kept / left if left > 0 else kept
        return kept

    return weights


def retrain(trajectory: Trajectory, losses: ExampleLosses, weights: Weights, begin: int = 0) -> AdamWState:
    """Return the state that a run comes to under other weights of its examples.

    Args:
        trajectory: The run.
        losses: Its model.
        weights: Of each step's rows.
        begin: A step after which the state is stored, if nothing differs up to there.
    """
    state = trajectory.stored_state(begin)
    for step in trajectory.steps[begin:]:
        state = moment_of(trajectory, losses, state, step, weights(step)).after
    return state


def moment_of(
    trajectory: Trajectory,
    losses: ExampleLosses,
    state: AdamWState,
    step: RecordedStep,
    weights: torch.Tensor | None = None,
) -> Moment:
    """Return a step as it is taken from some state, its rows' shares times weights (rows,), if given."""
    if weights is not None:
        weights = weights.to(state.parameters.dtype)
    _, gradient = step_gradient(losses, state.parameters, step, weights)
    settings = replace(step.settings, norm=float(gradient.norm()))
    clipped = settings.clip_factor * gradient
    after = advance(state, clipped, trajectory.header.decay(), settings)
    return Moment(replace(step, settings=settings), state, after, clipped)


def left_out(trajectory: Trajectory, losses: ExampleLosses, example: int, *, renormalize: bool = False) -> AdamWState:
    """Return the state that a run comes to without one example; steps before its first one are not run again."""
    first = next(step.settings.number for step in trajectory.steps if example in step.examples)
    begin = max(number for number in trajectory.stored() if number < first)
    return retrain(trajectory, losses, without({example}, renormalize=renormalize), begin)


def check_gradient(trajectory: Trajectory, losses: ExampleLosses) -> float:
    """Return how far the last step's gradient, taken again, is from the recorded one, as a share of its norm.

    Replaying shows that the optimizer is the recorded one; this shows that model, examples and loss are.

    Raises:
        ModelError: If it is farther than rounding has it.
    """
    (moment,) = trajectory.moments(len(trajectory), len(trajectory))
    _, gradient = step_gradient(losses, moment.before.parameters, moment.step)
    wanted = moment.clipped / moment.step.settings.clip_factor
    error = float((gradient - wanted).norm() / wanted.norm().clamp(min=1e-30))
    if not error <= _MOST_GRADIENT_ERROR[trajectory.header.about["dtype"]]:
        raise ModelError(
            f"{trajectory.folder}: the gradient of step {len(trajectory)}, taken again, is off by {error:.1e} of the "
            "recorded one, so base, chat template or examples are not those of the run; put them back, or record again"
        )
    return error
