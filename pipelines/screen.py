"""What a stage shows on the terminal while it works. Texts of others are printed harmlessly."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from raters.pace import time_left
from raters.trace_text import printable

if TYPE_CHECKING:
    from tqdm import tqdm

_REFRESH_SECONDS = 0.2
_REFRESH_SECONDS_IN_A_LOG = 10.0


def say(line: str) -> None:
    """Print one line about what the stage is doing, apart from its results."""
    print(printable(line), file=sys.stderr, flush=True)


class ProgressBar:
    """Items done, whatever a stage can say beside them, and the time left: a bar, or without a terminal a line a time.

    Args:
        total: How many items there are.
        state: Returns how many are done and a text for beside the bar.
        unit: What is counted.
    """

    def __init__(self, total: int, state: Callable[[], tuple[int, str]], unit: str = "item") -> None:
        """Show the bar as things stand."""
        self._state, self._total, self._unit = state, total, unit
        self._bar: tqdm[NoReturn] | None = None
        self._interval = _REFRESH_SECONDS if sys.stderr.isatty() else _REFRESH_SECONDS_IN_A_LOG
        self._began = time.monotonic()
        self._due = self._began + self._interval
        done, text = state()
        self._before = done
        if not sys.stderr.isatty():
            return
        from tqdm import tqdm

        # Its own would be one for processes too, which a worker that is killed leaves behind, and Python then says so.
        tqdm.set_lock(threading.RLock())
        self._bar = tqdm(total=total, initial=done, unit=unit, postfix=text, dynamic_ncols=True, mininterval=0)

    def update(self) -> None:
        """Refresh the bar if it is time."""
        if time.monotonic() >= self._due:
            self._refresh()

    def close(self) -> None:
        """Show the last state and end the line."""
        self._refresh()
        if self._bar is not None:
            self._bar.close()

    def _refresh(self) -> None:
        done, text = self._state()
        if self._bar is None:
            left = time_left(done - self._before, self._total - self._before, time.monotonic() - self._began)
            share = 100 * done / max(self._total, 1)
            parts = [f"{done:,} of {self._total:,} {self._unit}s ({share:.0f} %)", text, left]
            say("  " + ", ".join(filter(None, parts)))
            self._due = time.monotonic() + self._interval
            return
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.n = done
        self._bar.refresh()
        self._due = time.monotonic() + self._interval
