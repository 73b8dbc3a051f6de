"""Pacing on a clock of its own, then the gate that makes tasks wait for it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from raters.models.pacing import ROUNDS_TO_REGROW, Gate, Pacer, Ticket


@dataclass
class Served:
    """What a simulated server was sent and what it did."""

    sent: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    most_in_flight: int = 0


def simulate(
    pacer: Pacer,
    seconds: float,
    slots: Callable[[float], int],
    *,
    latency: float = 1.0,
    tokens: int = 100,
    most_tokens: int = 100,
    retry_after: float | None = None,
) -> Served:
    """Run endless work against a server that refuses at once whatever exceeds its slots, on a clock of its own."""
    served, now, order = Served(), 0.0, 0
    ends: list[tuple[float, int, Ticket, bool]] = []
    busy = 0
    while now < seconds:
        while (wait := pacer.wait_seconds(now, most_tokens)) == 0.0:
            ticket = pacer.begin(now, most_tokens)
            served.sent.append(now)
            served.most_in_flight = max(served.most_in_flight, pacer.in_flight)
            fits = busy < slots(now)
            busy += fits
            order += 1
            heapq.heappush(ends, (now + (latency if fits else 0.01), order, ticket, fits))
        if wait is not None and (not ends or now + wait < ends[0][0]):
            now += wait
            continue
        now, _, ticket, fits = heapq.heappop(ends)
        if fits:
            busy -= 1
            served.answered.append(now)
            pacer.answered(ticket, tokens)
        else:
            served.refused.append(now)
            pacer.overloaded(now, ticket, retry_after)
    return served


def within(times: list[float], start: float, end: float) -> int:
    return sum(start <= time < end for time in times)


def most_in_a_minute(times: list[float]) -> int:
    """Return the most times that any half-open window of 60 s holds; one of them starts at a time."""
    return max(within(times, start, start + 60.0) for start in times)


# --- the window -------------------------------------------------------------------------------------------


def test_opens_fully_at_once_where_the_server_has_room() -> None:
    served = simulate(Pacer(64), 10.5, lambda now: 1000)
    assert within(served.sent, 0.0, 0.001) == 64
    assert within(served.answered, 0.0, 10.5) == 64 * 10
    assert served.most_in_flight == 64
    assert not served.refused


def test_finds_the_slots_of_a_smaller_server_and_keeps_them_busy() -> None:
    served = simulate(Pacer(200), 200.0, lambda now: 40)
    busy = within(served.answered, 50.0, 200.0) / (40 * 150)
    wasted = within(served.refused, 50.0, 200.0) / within(served.sent, 50.0, 200.0)
    # A window between W/2 and W, W just above the slots, is 3/4 of them in the mean (Chiu & Jain's sawtooth).
    assert busy >= 0.70
    assert wasted <= 0.10


def test_takes_back_what_a_server_has_lost_and_found_again() -> None:
    served = simulate(Pacer(100), 160.0, lambda now: 10 if 20 <= now < 40 else 1000)
    assert within(served.answered, 10.0, 20.0) == 1000
    assert within(served.answered, 25.0, 40.0) <= 10 * 15
    # From one request to all 100 is two times the half that is regrown in so many rounds.
    whole_again = 40 + 2 * ROUNDS_TO_REGROW + 5
    assert within(served.answered, whole_again, whole_again + 10) >= 990


def test_one_overload_is_one_cut_however_many_were_refused() -> None:
    pacer = Pacer(64)
    first = [pacer.begin(0.0, 1) for _ in range(64)]
    for ticket in first:
        pacer.overloaded(0.1, ticket, None)
    assert pacer.window == 32.0
    later = [pacer.begin(0.2, 1) for _ in range(32)]
    pacer.overloaded(0.3, later[0], None)
    assert pacer.window == 16.0
    assert pacer.in_flight == 31


def test_a_cut_is_of_what_was_in_flight_and_leaves_one() -> None:
    pacer = Pacer(512)
    tickets = [pacer.begin(0.0, 1) for _ in range(8)]
    pacer.overloaded(0.0, tickets[0], None)
    assert pacer.window == 4.0
    alone = Pacer(1)
    for _ in range(5):
        alone.overloaded(0.0, alone.begin(0.0, 1), None)
    assert alone.window == 1.0
    assert alone.wait_seconds(0.0, 1) == 0.0


def test_failures_that_are_no_overload_leave_the_window() -> None:
    pacer = Pacer(8)
    for _ in range(100):
        pacer.refused(pacer.begin(0.0, 1))
        pacer.lost(pacer.begin(0.0, 1))
    assert pacer.window == 8.0
    assert pacer.in_flight == 0


def test_growth_is_by_the_same_amount_each_round() -> None:
    pacer = Pacer(320)
    for ticket in [pacer.begin(0.0, 1) for _ in range(320)]:
        pacer.overloaded(0.0, ticket, None)
    grown = [pacer.window]
    for _ in range(4):
        for ticket in [pacer.begin(0.0, 1) for _ in range(int(pacer.window))]:
            pacer.answered(ticket, None)
        grown.append(pacer.window)
    steps = [after - before for before, after in itertools.pairwise(grown)]
    assert steps == pytest.approx([320 / 2 / ROUNDS_TO_REGROW] * 4, rel=0.05)


def test_retry_after_holds_every_request_back() -> None:
    pacer = Pacer(4)
    held, other = pacer.begin(10.0, 1), pacer.begin(10.0, 1)
    pacer.overloaded(11.0, held, 7.0)
    pacer.overloaded(11.5, other, 2.0)  # the longer wait stands
    assert pacer.wait_seconds(12.0, 1) == 6.0
    assert pacer.wait_seconds(18.0, 1) == 0.0
    served = simulate(Pacer(50), 60.0, lambda now: 20, retry_after=3.0)
    for refused in served.refused:
        assert within(served.sent, refused + 0.011, refused + 2.9) == 0


# --- limits a minute --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 90, 600])
def test_requests_per_minute_hold_in_every_minute_and_are_used(limit: int) -> None:
    served = simulate(Pacer(64, requests_per_minute=limit), 300.0, lambda now: 1000, latency=2.0)
    assert most_in_a_minute(served.sent) == limit
    assert len(served.sent) == limit * 5


def test_refused_requests_count_as_requests() -> None:
    pacer = Pacer(64, requests_per_minute=60)
    served = simulate(pacer, 120.0, lambda now: 2)
    assert served.refused
    assert most_in_a_minute(served.sent) <= 60


def test_tokens_per_minute_hold_and_are_what_was_used() -> None:
    # Each may use 5,000 and uses 1,000: the limit is held with the first and filled with the second.
    served = simulate(
        Pacer(64, tokens_per_minute=100_000), 300.0, lambda now: 1000, tokens=1000, most_tokens=5000, latency=2.0
    )
    assert most_in_a_minute(served.sent) <= 100
    assert within(served.sent, 0.0, 0.001) == 20
    assert len(served.sent) >= 0.9 * 100 * 5


def test_a_request_larger_than_a_minute_goes_alone() -> None:
    pacer = Pacer(8, tokens_per_minute=1000)
    pacer.answered(pacer.begin(0.0, 5000), None)
    assert pacer.wait_seconds(1.0, 5000) == 59.0
    assert pacer.wait_seconds(60.0, 5000) == 0.0


def test_what_a_lost_request_may_have_used_goes_on_to_count() -> None:
    pacer = Pacer(8, tokens_per_minute=1000)
    pacer.lost(pacer.begin(0.0, 600))
    assert pacer.wait_seconds(1.0, 600) == 59.0
    pacer = Pacer(8, tokens_per_minute=1000)
    pacer.refused(pacer.begin(0.0, 600))
    assert pacer.wait_seconds(1.0, 600) == 0.0


def test_an_answer_after_more_than_a_minute_settles_nothing_twice() -> None:
    pacer = Pacer(8, tokens_per_minute=1000)
    slow = pacer.begin(0.0, 900)
    assert pacer.wait_seconds(70.0, 1000) == 0.0
    fresh = pacer.begin(70.0, 400)
    pacer.answered(slow, 10)
    assert pacer.wait_seconds(70.0, 601) == 60.0
    assert pacer.wait_seconds(70.0, 600) == 0.0
    pacer.answered(fresh, 400)


# --- the gate ---------------------------------------------------------------------------------------------


def test_gate_lets_through_in_order_and_never_more_than_the_window() -> None:
    async def run() -> tuple[list[int], int]:
        gate, order, most = Gate(Pacer(3), time.monotonic), [], 0

        async def one(number: int) -> None:
            nonlocal most
            ticket = await gate.enter(1)
            order.append(number)
            most = max(most, gate.pacer.in_flight)
            await asyncio.sleep(0.001)
            gate.pacer.answered(ticket, None)
            gate.admit()

        await asyncio.gather(*(one(number) for number in range(40)))
        assert gate.pacer.in_flight == 0
        return order, most

    order, most = asyncio.run(run())
    assert order == list(range(40))
    assert most == 3


def test_gate_forgets_whoever_gives_up() -> None:
    async def run() -> None:
        gate = Gate(Pacer(2), time.monotonic)
        held = [await gate.enter(1), await gate.enter(1)]
        waiting = [asyncio.ensure_future(gate.enter(1)) for _ in range(6)]
        await asyncio.sleep(0)
        for task in random.Random(0).sample(waiting[:5], 4):
            task.cancel()
        await asyncio.sleep(0)
        for ticket in held:
            gate.pacer.answered(ticket, None)
        gate.admit()
        waiting[0].cancel()  # in the same moment in which it may have been let through
        ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 2)
        through = [ticket for ticket in ended if isinstance(ticket, Ticket)]
        assert waiting[5].result() in through
        assert gate.pacer.in_flight == len(through)

    asyncio.run(run())


def test_gate_wakes_by_itself_when_a_wait_is_over() -> None:
    async def run() -> float:
        gate = Gate(Pacer(2), time.monotonic)
        gate.pacer.overloaded(gate.clock(), await gate.enter(1), 0.15)
        began = time.monotonic()
        await asyncio.wait_for(gate.enter(1), 2)
        return time.monotonic() - began

    assert 0.14 <= asyncio.run(run()) < 1.0
