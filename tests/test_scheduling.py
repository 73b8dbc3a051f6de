"""Which draw is made next, and that what is kept does not depend on it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raters.drawing import DrawPool
from raters.gold import GoldMethod
from raters.models.protocol import Completion, Message, SamplingSettings
from raters.sampling import SamplingOptions
from raters.scheduling import Schedule
from tests.small_corpora import ORDINAL_5, Run, rating, small_corpus, start_run

K = 16


class Rows:
    """Rows with a first accepted draw each, drawn for by a real pool; each draw takes some turns of the event loop.

    Attributes:
        begun: (row, draw) in the order in which they began.
        at_once: By row, the most requests that were in flight together.
        untouched: For each draw that began beside another one of its row, how many rows had not begun.
    """

    def __init__(self, accepted: Sequence[int], turns: tuple[int, int] = (1, 9)) -> None:
        self.accepted = accepted
        self.begun: list[tuple[int, int]] = []
        self.at_once: Counter[int] = Counter()
        self.untouched: list[int] = []
        self._made: set[tuple[int, int]] = set()
        self._in_flight: Counter[int] = Counter()
        self._turns, self._chance = turns, random.Random(0)

    def needed(self, row: int) -> int:
        return self.accepted[row] + 1 if (row, self.accepted[row]) in self._made else K

    async def draw(self, row: int, draws: Sequence[int]) -> None:
        self.begun += [(row, draw) for draw in draws]
        self._in_flight[row] += 1
        self.at_once[row] = max(self.at_once[row], self._in_flight[row])
        if self._in_flight[row] > 1:
            self.untouched.append(len(self.accepted) - len({begun for begun, _ in self.begun}))
        for _ in range(self._chance.randint(*self._turns)):
            await asyncio.sleep(0)
        self._in_flight[row] -= 1
        self._made |= {(row, draw) for draw in draws}

    def work(self, slots: int, *, full: int = 0, together: int = 1, ahead: bool = True) -> None:
        schedule = Schedule(
            range(len(self.accepted)),
            missing=lambda row: range(K),
            needed=self.needed,
            needs_all=lambda row: row < full,
            draw=self.draw,
            together=together,
            ahead=ahead,
        )
        asyncio.run(DrawPool(SamplingSettings(), slots, set()).work(schedule))


NEVER = K


def test_an_item_has_one_draw_in_flight_while_there_are_others() -> None:
    chance = random.Random(1)
    rows = Rows([chance.choice([0, 0, 1, 4, 12, NEVER]) for _ in range(60)])
    rows.work(8)
    assert len(rows.begun) == len(set(rows.begun))
    assert rows.untouched  # at the end slots would have idled
    assert set(rows.untouched) == {0}


def test_all_draws_that_are_needed_are_made_and_without_ahead_no_other() -> None:
    accepted = [0, 3, NEVER, 15, 1]
    needed = {(row, draw) for row, first in enumerate(accepted) for draw in range(min(first + 1, K))}
    for slots in (1, 3, 64):
        rows = Rows(accepted)
        rows.work(slots, ahead=False)
        assert set(rows.begun) == needed
        assert len(rows.begun) == len(needed)
        assert max(rows.at_once.values()) == 1
        rows = Rows(accepted)
        rows.work(slots)
        assert needed <= set(rows.begun)
        assert len(rows.begun) == len(set(rows.begun))


def test_slots_that_would_idle_draw_ahead_while_a_draw_is_more_likely_needed_than_not() -> None:
    """Beta(.22, .36): that 1, 2, 3 fresh draws all fail has a chance of .62, .53, .49, so up to 3 are made at once."""
    rows = Rows([0], turns=(99, 99))
    rows.work(64)
    assert rows.begun == [(0, 0), (0, 1), (0, 2)]
    # Behind failures a further one is likely: .86 after one, .98 after ten.
    hopeless = Rows([NEVER])
    hopeless.work(64)
    assert hopeless.at_once[0] > 3
    assert hopeless.begun == [(0, draw) for draw in range(K)]


def test_rows_that_need_all_their_draws_get_them_side_by_side() -> None:
    rows = Rows([0, 0, 0])
    rows.work(64, full=2, ahead=False)
    assert sorted(rows.begun) == [(row, draw) for row in range(2) for draw in range(K)] + [(2, 0)]
    assert rows.at_once[0] == rows.at_once[1] == K


def test_draws_of_a_request_are_made_together() -> None:
    rows = Rows([4, 0, NEVER])
    rows.work(2, together=5, ahead=False)
    made = Counter(row for row, _ in rows.begun)
    assert made == {0: 5, 1: 5, 2: K}  # 4 is in the first request of five
    assert rows.begun[:10] == [(row, draw) for row in (0, 1) for draw in range(5)]


def test_what_fails_ends_the_work_with_its_error() -> None:
    from raters.records import ModelError

    async def fail(row: int, draws: Sequence[int]) -> None:
        await asyncio.sleep(0)
        raise ModelError("lost")

    schedule = Schedule(
        range(9), missing=lambda row: range(4), needed=lambda row: 4, needs_all=lambda row: False, draw=fail, ahead=True
    )
    with pytest.raises(ModelError, match="lost"):
        asyncio.run(DrawPool(SamplingSettings(), 3, set()).work(schedule))


# What is kept


class Slow:
    """Answers by the seed alone, in an order that has nothing to do with that of the requests."""

    spec = "scripted/slow"

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.asked = 0

    async def complete(
        self, messages: Sequence[Message], seeds: Sequence[int], settings: SamplingSettings
    ) -> list[Completion]:
        self.asked += 1
        for _ in range(self._chance.randint(1, 30)):
            await asyncio.sleep(0)
        return [Completion(rating(1 + seed % 5), f"Reason {seed}.", "stop", 10, 5) for seed in seeds]

    async def close(self) -> None:
        return


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    chooser = np.random.default_rng(3)
    names = ("ann", "bob", "cyd")
    labels = {f"item{number}": {name: int(chooser.integers(1, 6)) for name in names} for number in range(30)}
    return small_corpus(tmp_path_factory.mktemp("corpus"), labels, ORDINAL_5)


def draw(run: Run, stop_after: int | None = None) -> None:
    if stop_after is not None:
        run.sampler._on_draw = lambda: setattr(run.sampler.pool, "stopping", len(run.records()) >= stop_after)
    run.draw()


@pytest.mark.parametrize("method", ["median", "per-annotator"])
def test_the_same_traces_are_kept_whatever_was_made_ahead(corpus, tmp_path: Path, method: GoldMethod) -> None:  # type: ignore[no-untyped-def]
    plain = SamplingOptions(concurrency=1)
    wanted = start_run(corpus, tmp_path / "plain.jsonl", Slow(0), k=6, method=method, options=plain)
    wanted.draw()
    assert len(wanted.kept()) > 10
    needed = {(record["item_id"], record["draw"]) for record in wanted.records()}
    for turn, concurrency in enumerate((2, 7, 100)):
        options = replace(plain, concurrency=concurrency, ahead=True)
        run = start_run(corpus, tmp_path / f"{turn}.jsonl", Slow(turn), k=6, method=method, options=options)
        run.draw()
        assert run.kept() == wanted.kept()
        made = {(record["item_id"], record["draw"]) for record in run.records()}
        assert needed <= made
        # Every draw that was paid for is on record, a draw without use too.
        assert run.sampler.source.model.asked == len(made) == run.ledger.totals.draws["first"]  # type: ignore[attr-defined]
        keys = [(record["item_id"], record["annotator_id"], record["draw"]) for record in run.records()]
        assert len(keys) == len(set(keys))


@pytest.mark.parametrize("method", ["median", "per-annotator"])
@pytest.mark.parametrize("together", [1, 4])
def test_the_same_traces_are_kept_after_interruptions(
    corpus, tmp_path: Path, method: GoldMethod, together: int
) -> None:  # type: ignore[no-untyped-def]
    options = SamplingOptions(concurrency=20, ahead=True, together=together)
    wanted = start_run(corpus, tmp_path / "plain.jsonl", Slow(0), k=6, method=method, options=options)
    wanted.draw()
    path = tmp_path / "cut.jsonl"
    for turn in range(1, 20):
        run = start_run(corpus, path, Slow(turn), k=6, method=method, options=options)
        draw(run, stop_after=12 * turn)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) - turn % 3 * 40])  # a kill tears the last line
    last = start_run(corpus, path, Slow(99), k=6, method=method, options=options)
    last.draw()
    assert last.kept() == wanted.kept()
    keys = [(record["item_id"], record["annotator_id"], record["draw"]) for record in last.records()]
    assert len(keys) == len(set(keys))
