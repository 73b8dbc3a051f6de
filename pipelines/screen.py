"""What a stage shows on the terminal while it works. Texts of others are printed harmlessly."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from raters.trace_text import printable

_REFRESH_SECONDS = 0.2
_REFRESH_SECONDS_IN_A_LOG = 10.0


def say(line: str) -> None:
    """Print one line about what the stage is doing, apart from its results."""
    print(printable(line), file=sys.stderr, flush=True)


class ProgressBar:
    """Items done, and whatever a stage can say beside them, refreshed a few times a second.

    Args:
        total: How many items there are.
        state: Returns how many are done and a text for beside the bar.
        unit: What is counted.
    """

    def __init__(self, total: int, state: Callable[[], tuple[int, str]], unit: str = "item") -> None:
        """Show the bar as things stand."""
        self._state = state
        self._interval = _REFRESH_SECONDS if sys.stderr.isatty() else _REFRESH_SECONDS_IN_A_LOG
        self._due = time.monotonic() + self._interval
        done, text = state()
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
        self._bar.close()

    def _refresh(self) -> None:
        done, text = self._state()
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.n = done
        self._bar.refresh()
        self._due = time.monotonic() + self._interval
