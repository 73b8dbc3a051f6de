"""How many requests a server gets at once, and when: adaptive concurrency under optional limits a minute.

The window of requests in flight grows by a fixed amount for each window of answers and is halved when the server says
that it is overloaded (additive increase, multiplicative decrease: Chiu & Jain 1989, "Analysis of the increase and
decrease algorithms for congestion avoidance in computer networks"; one cut for all that was in flight together:
Jacobson 1988, "Congestion avoidance and control"). Unlike TCP it begins fully open, because a run may have hundreds of
slots on a server of its own, and a server that has fewer says so within one round.

`Pacer` only decides: it is told the time and never waits, so that a test can run it on a clock of its own. `Gate`
makes tasks wait for what it decides.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

DECREASE = 0.5
"""What an overload leaves of the window, as in Jacobson 1988."""
ROUNDS_TO_REGROW = 16
"""Windows of answers in which a halved window is whole again: probing slower would waste a server that recovered."""
MINUTE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class EndpointLimits:
    """How a served model may be asked, whichever it is.

    Attributes:
        requests_per_minute: Most requests in any 60 seconds; None for no limit.
        tokens_per_minute: Most tokens, read and written, in any 60 seconds; None for no limit.
        max_retries: Tries of a request after the first.
        request_timeout_seconds: Longest silence of the server during one request.
        connect_timeout_seconds: Longest wait for a connection.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_retries: int = 10
    request_timeout_seconds: float = 600.0
    connect_timeout_seconds: float = 10.0


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that was let through.

    Attributes:
        number: How many were let through before it.
        began: When, in seconds on the caller's clock.
        tokens: What it counts for under a limit of tokens: an upper bound until it is answered, then what it used.
    """

    number: int
    began: float
    tokens: int


class Pacer:
    """Decides whether one more request may go now. All times are seconds on one monotonic clock.

    Attributes:
        window: Most requests in flight now, between 1 and the most there may ever be; a whole number of them go.
        in_flight: Requests that were let through and have not ended.
    """

    def __init__(
        self,
        most_in_flight: int,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> None:
        """Begin with the window fully open.

        Args:
            most_in_flight: Upper bound of the window.
            requests_per_minute: Most requests sent in any 60 seconds, failed ones included.
            tokens_per_minute: Most tokens, read and written, of the requests sent in any 60 seconds. A request that is
                not answered yet counts as much as it may use at most, as it does with OpenAI's own limiter. One that
                could use more than a whole minute's tokens counts as a whole minute's.
        """
        self.window = float(most_in_flight)
        self.in_flight = 0
        self._most = most_in_flight
        self._increase = max(1.0, most_in_flight * (1.0 - DECREASE) / ROUNDS_TO_REGROW)
        self._requests_per_minute, self._tokens_per_minute = requests_per_minute, tokens_per_minute
        self._count = 0
        self._count_at_decrease = 0
        self._not_before = float("-inf")
        self._last_minute: deque[Ticket] = deque()
        self._recent_tokens = 0

    def wait_seconds(self, now: float, tokens: int) -> float | None:
        """Return how long the next request has to wait: 0 if it may go, None until another one ends.

        Args:
            now: The time.
            tokens: Most tokens that it may use.
        """
        if self.in_flight >= int(self.window):
            return None
        wait = max(0.0, self._not_before - now)
        if self._requests_per_minute is None and self._tokens_per_minute is None:
            return wait
        recent = self._last_minute
        while recent and recent[0].began + MINUTE_SECONDS <= now:
            self._recent_tokens -= recent.popleft().tokens
        if self._requests_per_minute is not None and len(recent) >= self._requests_per_minute:
            leaving = recent[len(recent) - self._requests_per_minute]
            wait = max(wait, leaving.began + MINUTE_SECONDS - now)
        if self._tokens_per_minute is not None:
            left = self._tokens_per_minute - self._recent_tokens - self._counted(tokens)
            for ticket in recent:
                if left >= 0:
                    break
                left += ticket.tokens
                wait = max(wait, ticket.began + MINUTE_SECONDS - now)
        return wait

    def begin(self, now: float, tokens: int) -> Ticket:
        """Count a request as sent; call it only when `wait_seconds` was 0."""
        ticket = Ticket(self._count, now, self._counted(tokens))
        self._count += 1
        self.in_flight += 1
        if self._requests_per_minute is not None or self._tokens_per_minute is not None:
            self._last_minute.append(ticket)
            self._recent_tokens += ticket.tokens
        return ticket

    def answered(self, ticket: Ticket, tokens: int | None) -> None:
        """Count a request as answered, and open the window a little.

        Args:
            ticket: The request.
            tokens: What it used; None if the server does not say, and then the upper bound goes on to count.
        """
        self.in_flight -= 1
        self.window = min(float(self._most), self.window + self._increase / self.window)
        if tokens is not None:
            self._settle(ticket, tokens)

    def refused(self, ticket: Ticket) -> None:
        """Count a request as ended by an answer that used no tokens and says nothing of the server's load."""
        self.in_flight -= 1
        self._settle(ticket, 0)

    def lost(self, ticket: Ticket) -> None:
        """Count a request as ended without an answer; what it may have used goes on to count."""
        self.in_flight -= 1

    def overloaded(self, now: float, ticket: Ticket, retry_after_seconds: float | None) -> None:
        """Count a request as refused because there were too many, and close the window by half.

        Refusals of requests that were already under way at the last cut belong to that same overload, and cut nothing.

        Args:
            now: The time.
            ticket: The request.
            retry_after_seconds: How long the server wants no request at all; None if it does not say.
        """
        if ticket.number >= self._count_at_decrease:
            self.window = max(1.0, min(self.window, float(self.in_flight)) * DECREASE)
            self._count_at_decrease = self._count
        self.refused(ticket)
        if retry_after_seconds is not None:
            self._not_before = max(self._not_before, now + retry_after_seconds)

    def _settle(self, ticket: Ticket, tokens: int) -> None:
        recent = self._last_minute
        if recent and ticket.number >= recent[0].number:
            self._recent_tokens += tokens - ticket.tokens
            ticket.tokens = tokens

    def _counted(self, tokens: int) -> int:
        return tokens if self._tokens_per_minute is None else min(tokens, self._tokens_per_minute)


class Gate:
    """Makes the tasks of one event loop wait, first come first served, until a pacer lets them through."""

    def __init__(self, pacer: Pacer, clock: Callable[[], float]) -> None:
        """Take a pacer, and the clock of the event loop."""
        self.pacer, self.clock = pacer, clock
        self._waiting: deque[tuple[asyncio.Future[Ticket], int]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, tokens: int) -> Ticket:
        """Return the ticket of a request once it may go; whoever has it must end it, and then call `admit`."""
        if not self._waiting and self.pacer.wait_seconds(now := self.clock(), tokens) == 0.0:
            return self.pacer.begin(now, tokens)
        turn: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, tokens))
        self.admit()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # let through and given up in the same moment
                self.pacer.refused(turn.result())
                self.admit()
            raise

    def admit(self) -> None:
        """Let through whatever may go now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            turn, tokens = self._waiting[0]
            if turn.done():  # given up
                self._waiting.popleft()
                continue
            wait = self.pacer.wait_seconds(now := self.clock(), tokens)
            if wait is None:
                return
            if wait > 0.0:
                self._timer = asyncio.get_running_loop().call_later(wait, self.admit)
                return
            self._waiting.popleft()
            turn.set_result(self.pacer.begin(now, tokens))
