"""How every stage is called: one clear line and an exit status instead of a traceback."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence

from pipelines.screen import say
from raters.records import JudgeseyeError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells expect it."""


def run_command(stage: str, main: Callable[[Sequence[str]], int]) -> int:
    """Run a stage on the command line's arguments and return its exit status.

    Args:
        stage: Its name, for error lines.
        main: Takes the arguments and returns the status. What it raises on purpose becomes one line.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character is no reason to stop
    try:
        return main(sys.argv[1:])
    except JudgeseyeError as error:
        say(f"{stage}: {' '.join(str(error).split())}")
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); nothing is left to say, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        say(f"{stage}: {error.filename or 'system'}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        say(f"{stage}: interrupted")
        return INTERRUPTED
