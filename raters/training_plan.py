"""How long, in which batches and in which order a rater is trained: numbers alone, without torch.

The defaults are the paper's (Zhang et al. 2026, section on fine-tuning): batches of 128, 100 steps of warm-up, a
patience of 100 steps. They are made for thousands of traces. With fewer they are scaled down by one rule, so that an
epoch has at least 8 optimizer steps, warm-up takes at most a tenth of a run, and a run is rated on dev at least about
ten times:

    batch      the largest power of two that is at most 128 and at most traces / 8
    warm-up    min(100, steps / 10)
    eval steps min(20, steps / 10)
    patience   min(100, steps / 2), rounded up to whole evaluations

A batch that holds most of the corpus would take a handful of steps, all of them in the warm-up. The learning rate is
left alone: AdamW's step does not grow with the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raters.records import ConfigError

PAPER_BATCH, PAPER_WARMUP, PAPER_PATIENCE, EVAL_STEPS = 128, 100, 100, 20
_LEAST_STEPS_PER_EPOCH, _LEAST_EVALUATIONS = 8, 10


@dataclass(frozen=True, slots=True)
class Schedule:
    """One phase of training, in numbers.

    Attributes:
        examples: How many there are.
        batch: Examples of one optimizer step, over all processes.
        steps: Optimizer steps.
        warmup: Of them with a rising learning rate.
        eval_steps: Steps between two ratings of the dev split.
        patience: Steps without a better rating after which training ends.
    """

    examples: int
    batch: int
    steps: int
    warmup: int
    eval_steps: int
    patience: int

    def is_rated(self, step: int) -> bool:
        """Return True if the dev split is rated after a step."""
        return step % self.eval_steps == 0 or step == self.steps


def schedule(
    examples: int,
    epochs: float,
    *,
    batch: int | None = None,
    steps: int | None = None,
    warmup: int | None = None,
    eval_steps: int | None = None,
    patience: int | None = None,
) -> Schedule:
    """Return the schedule of a phase: what is given, the paper's numbers for the rest, scaled down if need be.

    Args:
        examples: At least one.
        epochs: Passes over them; unused if `steps` is given.
        batch: See `Schedule`, as all that follows.
        steps: Likewise.
        warmup: Likewise.
        eval_steps: Likewise.
        patience: Likewise.
    """
    if batch is None:
        batch = min(PAPER_BATCH, 1 << max(examples // _LEAST_STEPS_PER_EPOCH, 1).bit_length() - 1)
    if steps is None:
        steps = max(1, math.ceil(epochs * examples / batch))
    if warmup is None:
        warmup = min(PAPER_WARMUP, steps // 10)
    if eval_steps is None:
        eval_steps = max(1, min(EVAL_STEPS, steps // _LEAST_EVALUATIONS))
    if patience is None:
        patience = min(PAPER_PATIENCE, math.ceil(steps / 2 / eval_steps) * eval_steps)
    return Schedule(examples, batch, steps, warmup, eval_steps, patience)


def scaled_down(plan: Schedule) -> str:
    """Return a line that says where a schedule stays below the paper's numbers; empty if nowhere."""
    papers = (
        ("batch", plan.batch, PAPER_BATCH),
        ("warm-up", plan.warmup, PAPER_WARMUP),
        ("patience", plan.patience, PAPER_PATIENCE),
    )
    changed = [f"{name} {now} instead of {then}" for name, now, then in papers if now < then]
    if not changed:
        return ""
    return f"{plan.examples:,} examples are few for the paper's schedule: {', '.join(changed)}"


def data_order(plan: Schedule, seed: int) -> NDArray[np.int64]:
    """Return (steps * batch,) which example is seen when: one permutation after another, cut where training ends.

    Step s sees the examples at s * batch up to (s + 1) * batch, however many processes share them. Permutations are
    those of numpy's Philox generator seeded with (seed, epoch), so that any later stage can draw them again.
    """
    wanted = plan.steps * plan.batch
    parts = [
        np.random.Generator(np.random.Philox([seed, epoch])).permutation(plan.examples)
        for epoch in range(math.ceil(wanted / plan.examples))
    ]
    return np.concatenate(parts)[:wanted].astype(np.int64)


def micro_batches(batch: int, processes: int, most: int) -> tuple[int, int]:
    """Return (examples a process reads at once, times it does so before a step).

    Args:
        batch: Examples of a step.
        processes: That share it.
        most: Examples that a process reads at once, at most.

    Raises:
        ConfigError: If the processes cannot share a step evenly.
    """
    if batch % processes:
        raise ConfigError(f"--batch {batch}: cannot be shared by {processes} processes; give a multiple of {processes}")
    share = batch // processes
    size = max(part for part in range(1, min(share, most) + 1) if share % part == 0)
    return size, share // size


def ids_of_step(ids: Sequence[str], order: NDArray[np.int64], plan: Schedule, step: int) -> list[str]:
    """Return the ids of the examples that optimizer step `step`, counted from 1, has seen."""
    return [ids[place] for place in order[(step - 1) * plan.batch : step * plan.batch].tolist()]
