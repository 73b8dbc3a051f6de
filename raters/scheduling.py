"""Which draw is made next: one at a time for an item while there are others, more only where slots would idle.

A draw of an item is wasted if an earlier one of it is accepted, so while items are left none is made before the last
one has come back. When fewer items are open than slots are free, the next draws of an open item are made ahead: the
run ends sooner, for a few draws more: only such are made as are more likely needed than not. What is kept stays the
same, since the first accepted draw counts and not the one that arrives first.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from raters.drawing import Job
from raters.giving_up import GivingUp

_ACCEPTANCE = (0.22, 0.36)
"""Acceptance of a draw is about Beta(a, b) over items: the mean of what fits the five utilisation curves of Zhang et
al. 2026. It only decides what is made ahead, so a run's own figures would gain little."""
_LEAST_CHANCE_OF_NEED = 0.5


@dataclass(slots=True, eq=False)
class _Open:
    """A row in work.

    Attributes:
        row: Which.
        requests: Draws that it still misses, those of one request together.
        in_flight: Requests that have not come back.
        begun: Requests that were begun.
    """

    row: int
    requests: deque[Sequence[int]]
    in_flight: int = 0
    begun: int = 0

    def chance_of_need(self, together: int) -> float:
        """Return the chance that all draws in flight fail, as those that came back did, so that one more is needed."""
        (a, b), came_back = _ACCEPTANCE, self.begun - self.in_flight
        draws = range(came_back * together, self.begun * together)
        return math.prod((b + failed) / (a + b + failed) for failed in draws)


class Schedule(Iterator[Job | None]):
    """Jobs in the order in which they begin; None where nothing may begin before a draw in flight has come back.

    Args:
        rows: Rows to draw for, in the order of work.
        missing: From a row to the draws that it misses, ascending.
        needed: From a row to how many draws it needs, as far as is known.
        needs_all: From a row to True if it gets all draws, whatever they say.
        draw: Makes some draws of a row, in one request where that is possible.
        together: Draws of one request: draw d is in request d // together.
        ahead: Make draws of an open row ahead when slots would idle.
        giving_up: Decides which rows are given up, if any are.
    """

    def __init__(
        self,
        rows: Iterable[int],
        *,
        missing: Callable[[int], Sequence[int]],
        needed: Callable[[int], int],
        needs_all: Callable[[int], bool],
        draw: Callable[[int, Sequence[int]], Awaitable[None]],
        together: int = 1,
        ahead: bool = False,
        giving_up: GivingUp | None = None,
    ) -> None:
        """Prepare; nothing begins yet."""
        self._rows = iter(rows)
        self._missing, self._needed, self._needs_all, self._draw = missing, needed, needs_all, draw
        self._together, self._ahead, self._giving_up = together, ahead, giving_up
        self._full_row: _Open | None = None
        self._ready: deque[_Open] = deque()
        self._waiting: list[_Open] = []
        self._working: set[_Open] = set()
        self._next_ahead: list[tuple[int, int, int, _Open]] | None = None

    def __next__(self) -> Job | None:
        """Return what begins next.

        Raises:
            StopIteration: If everything is done.
        """
        while self._ready:
            if job := self._begin(self._ready.popleft()):
                return job
        while (started := self._start()) is not None:
            if job := self._begin(started):
                return job
        if self._ahead and (job := self._begin_ahead()):
            return job
        if self._working:
            return None
        raise StopIteration

    def _start(self) -> _Open | None:
        """Return the next row that needs a draw, in work; None if there is none. A full row comes once a request."""
        if self._full_row is not None and self._full_row.requests:
            return self._full_row
        for row in self._rows:
            missing = self._missing(row)
            requests: deque[Sequence[int]] = deque(
                list(draws) for _, draws in groupby(missing, lambda draw: draw // self._together)
            )
            opened = _Open(row, requests)
            if self._needs_all(row):
                if requests:
                    self._full_row = opened
                    return opened
            elif missing and missing[0] < self._needed(row) and not self._gave_up(row):
                if self._giving_up is not None and missing[0] > 0 and self._giving_up.undecided(row):
                    self._waiting.append(opened)
                    continue
                return opened
        return None

    def _begin(self, opened: _Open) -> Job | None:
        """Return the job of a row's next request; None if it needs none."""
        if not opened.requests or not (self._needs_all(opened.row) or opened.requests[0][0] < self._needed(opened.row)):
            return None
        draws = opened.requests.popleft()
        opened.in_flight += 1
        opened.begun += 1
        self._working.add(opened)
        self._offer_ahead(opened)
        return partial(self._work, opened, draws)

    def _begin_ahead(self) -> Job | None:
        """Return the job that is least likely to be wasted: few requests of its row in flight, and many failures."""
        if self._next_ahead is None:
            self._next_ahead = []
            for opened in self._working:
                self._offer_ahead(opened)
        while self._next_ahead:
            in_flight, negative_begun, row, opened = heapq.heappop(self._next_ahead)
            if (opened.in_flight, -opened.begun) != (in_flight, negative_begun) or opened not in self._working:
                continue  # it was offered again since
            # A draw made ahead could come after the one at which its row is given up, or not, as time has it.
            may_be_given_up = self._giving_up is not None and self._giving_up.decides(row)
            likely = opened.chance_of_need(self._together) >= _LEAST_CHANCE_OF_NEED
            if likely and not may_be_given_up and (job := self._begin(opened)):
                return job
        return None

    def _offer_ahead(self, opened: _Open) -> None:
        if self._next_ahead is not None and opened.requests and opened.in_flight:
            heapq.heappush(self._next_ahead, (opened.in_flight, -opened.begun, opened.row, opened))

    async def _work(self, opened: _Open, draws: Sequence[int]) -> None:
        try:
            await self._draw(opened.row, draws)
        finally:
            opened.in_flight -= 1
            if not opened.in_flight:
                self._working.discard(opened)
        if opened.in_flight:
            self._offer_ahead(opened)
        elif not self._needs_all(opened.row):
            self._queue(opened)
        while self._giving_up is not None and self._giving_up.advance():
            waiting, self._waiting = self._waiting, []
            for other in waiting:
                self._queue(other)

    def _queue(self, opened: _Open) -> None:
        """Put a row whose draws have all come back where it goes on, if it does."""
        if self._gave_up(opened.row):
            return
        waits = self._giving_up is not None and self._giving_up.undecided(opened.row)
        (self._waiting if waits else self._ready).append(opened)

    def _gave_up(self, row: int) -> bool:
        return self._giving_up is not None and self._giving_up.consider(row)
