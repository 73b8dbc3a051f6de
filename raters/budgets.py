"""The most that a run may use, and what it is likely to use, told from its own first items.

A draw's tokens are known when it is back. So what is in flight counts as much as a draw has cost on average, and
another one begins only if it fits in as well: a run ends within what its last few draws differ from the average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raters.ledger import Ledger

FIRST_ITEMS = 10
"""What an estimate is made from; more than the refusals that end a run, or some could be held back beyond them."""


@dataclass(frozen=True, slots=True)
class Use:
    """What draws have used, earlier sessions included.

    Attributes:
        draws: Draws whose tokens were counted.
        tokens: Read and written.
        usd: What they cost.
        untold: Draws that were made and whose tokens nobody counted.
    """

    draws: int
    tokens: int
    usd: float
    untold: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a run may use; None for no limit.

    Attributes:
        usd: As --max-cost.
        tokens: As --max-total-tokens; read and written.
        worst: What a draw may use at the most, while none has come back.
        draws_of_a_request: How many.
    """

    usd: float | None
    tokens: int | None
    worst: Use
    draws_of_a_request: int = 1

    def refusal(self, used: Use, running: int) -> str:
        """Return why no further request may begin; empty if it may.

        Args:
            used: So far.
            running: Requests in flight.
        """
        limits = [
            (self.usd, used.usd, self.worst.usd, f"--max-cost {self.usd}", "${:,.4g}"),
            (self.tokens, used.tokens, self.worst.tokens, f"--max-total-tokens {self.tokens}", "{:,.0f} tokens"),
        ]
        for most, spent, worst, option, unit in limits:
            if most is None:
                continue
            if not used.draws and used.untold:
                return f"{option}: the server counts no tokens, so nobody knows what is spent; leave it out"
            each = spent / used.draws if used.draws else worst
            begun = (running + 1) * self.draws_of_a_request + used.untold
            # The very first draw has to be made to know what one costs.
            if spent + begun * each > most and (used.draws or running or most == 0):
                about = f", and a draw takes about {unit.format(each)}" if used.draws else ""
                return f"{option}: {unit.format(spent)} are spent{about}; give more, and the same command, to go on"
        return ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run's first draws of all items come to, those that were made among them.

    Attributes:
        draws: How many are likely.
        low: Not many fewer than that (95 %, over items).
        high: Not many more (95 %, over items).
        most: If no draw were ever accepted.
        tokens: Of a draw, on average.
        usd: Of a draw, on average; None if unknown.
    """

    draws: float
    low: float
    high: float
    most: int
    tokens: float
    usd: float | None

    def __str__(self) -> str:
        """Return it in words."""
        known = self.low == self.most
        spread = "" if known else f" ({self.low:,.0f} to {self.high:,.0f}, {self.most:,} at the most)"
        whole = f"{self.draws:,.0f} draws{spread}, {self.draws * self.tokens:,.0f} tokens"
        if self.usd is None:
            return f"{whole}, cost unknown"
        low, high, most = (f"${count * self.usd:,.2f}" for count in (self.low, self.high, self.most))
        return f"{whole}, ${self.draws * self.usd:,.2f}" + ("" if known else f" ({low} to {high}, {most} at the most)")


def estimate(ledger: Ledger, first: int, full_rows: int, together: int, used: Use, usd_known: bool) -> Estimate:
    """Return what a run will use, from its first rows, which have all the draws that they need.

    Args:
        ledger: What was drawn.
        first: How many rows to go by, at least 2.
        full_rows: First rows that get all their draws.
        together: Draws of a request.
        used: By the draws so far.
        usd_known: False if nobody knows what tokens cost.
    """
    rows, most = ledger.numbers["first"].shape
    needed = np.array([ledger.draws_needed(row, "first") for row in range(first)])
    needed = np.minimum(-(-needed // together) * together, most)
    mean, error = float(needed.mean()), 1.96 * float(needed.std(ddof=1)) / np.sqrt(first)
    open_rows = rows - full_rows
    likely, low, high = (
        full_rows * most + open_rows * min(max(draws, 1.0), float(most)) for draws in (mean, mean - error, mean + error)
    )
    draws = max(used.draws, 1)
    return Estimate(likely, low, high, rows * most, used.tokens / draws, used.usd / draws if usd_known else None)
