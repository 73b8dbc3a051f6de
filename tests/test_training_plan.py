"""Schedules by hand, and an order of examples that others can draw again."""

from __future__ import annotations

import numpy as np
import pytest

from raters.records import ConfigError
from raters.training_plan import Schedule, data_order, ids_of_step, micro_batches, scaled_down, schedule


def test_a_large_corpus_gets_the_papers_numbers() -> None:
    plan = schedule(10_000, 3)
    assert plan == Schedule(10_000, batch=128, steps=235, warmup=23, eval_steps=20, patience=100)
    # 235 = 30,000 / 128 rounded up; a tenth of it is below the paper's 100 steps of warm-up
    assert schedule(60_000, 3).warmup == 100
    assert scaled_down(schedule(60_000, 3)) == ""


@pytest.mark.parametrize(
    ("examples", "epochs", "wanted"),
    [
        (272, 3, Schedule(272, batch=32, steps=26, warmup=2, eval_steps=2, patience=14)),
        # 272 / 8 = 34, so batches of 32; 816 / 32 = 25.5; half of 26 steps is 13, seven evaluations of two steps
        (34, 3, Schedule(34, batch=4, steps=26, warmup=2, eval_steps=2, patience=14)),
        (5, 1, Schedule(5, batch=1, steps=5, warmup=0, eval_steps=1, patience=3)),
        (1023, 1, Schedule(1023, batch=64, steps=16, warmup=1, eval_steps=1, patience=8)),
        (1024, 1, Schedule(1024, batch=128, steps=8, warmup=0, eval_steps=1, patience=4)),
    ],
)
def test_a_small_corpus_gets_less(examples: int, epochs: float, wanted: Schedule) -> None:
    plan = schedule(examples, epochs)
    assert plan == wanted
    assert plan.warmup * 10 <= plan.steps
    assert plan.batch * 8 <= max(examples, 8)


def test_what_is_scaled_down_is_said() -> None:
    line = scaled_down(schedule(272, 3))
    assert line == (
        "272 examples are few for the paper's schedule: batch 32 instead of 128, warm-up 2 instead of 100, patience 14 "
        "instead of 100"
    )


def test_what_is_given_stands() -> None:
    plan = schedule(50, 3, batch=10, steps=7, warmup=3, eval_steps=4, patience=9)
    assert plan == Schedule(50, 10, 7, 3, 4, 9)
    assert [step for step in range(1, 8) if plan.is_rated(step)] == [4, 7]


def test_every_example_is_seen_once_before_any_is_seen_again() -> None:
    plan = Schedule(examples=10, batch=4, steps=6, warmup=0, eval_steps=1, patience=1)
    order = data_order(plan, seed=3)
    assert len(order) == 24
    assert sorted(order[:10]) == list(range(10))
    assert sorted(order[10:20]) == list(range(10))
    assert list(order[:10]) != list(order[10:20])
    # as the docstring promises to later stages
    first = np.random.Generator(np.random.Philox([3, 0])).permutation(10)
    assert list(order[:10]) == list(first)
    assert list(data_order(plan, seed=4)) != list(order)


def test_the_ids_of_a_step_are_those_at_its_places() -> None:
    plan = Schedule(examples=4, batch=2, steps=2, warmup=0, eval_steps=1, patience=1)
    order = np.array([2, 0, 3, 1])
    assert ids_of_step("abcd", order, plan, 1) == ["c", "a"]
    assert ids_of_step("abcd", order, plan, 2) == ["d", "b"]


@pytest.mark.parametrize(
    ("batch", "processes", "most", "wanted"),
    [(128, 1, 8, (8, 16)), (128, 4, 8, (8, 4)), (6, 1, 4, (3, 2)), (7, 1, 4, (1, 7))],
)
def test_a_step_is_shared_evenly(batch: int, processes: int, most: int, wanted: tuple[int, int]) -> None:
    size, times = micro_batches(batch, processes, most)
    assert (size, times) == wanted
    assert size * times * processes == batch


def test_processes_that_cannot_share_a_step_are_refused() -> None:
    with pytest.raises(ConfigError, match="--batch 6: cannot be shared by 4 processes; give a multiple of 4"):
        micro_batches(6, 4, 8)
