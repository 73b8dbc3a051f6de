"""Running a stage in a test, in this process or in one of its own, and reading what it says and leaves."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.command import run_command
from tests.places import CHECKOUT

INTERRUPTED = 130
LONGEST_ERROR_LINE = 1000
PROGRESS = re.compile(r"corpus .*: [\d,]+ items(; | of )|continuing |\s*\d+%\||  [\d,]+ of [\d,]+ \w+s \(")
# Linux: prctl's PR_CAPBSET_DROP, and the capabilities that let root pass over permission bits.
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
Record = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a stage's run came to: its exit status and what it printed."""

    stage: str
    status: object
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """The one line of error, after checking that it is one, and the last, and fit for a terminal."""
        lines = [line for line in re.split(r"[\n\r]+", self.err) if line.strip()]
        errors = [line for line in lines if not PROGRESS.match(line)]
        assert len(errors) == 1, self.err
        assert lines[-1] == errors[0], self.err
        assert errors[0].startswith(f"{self.stage}: ")
        assert errors[0].isprintable()
        assert len(errors[0]) <= LONGEST_ERROR_LINE
        return errors[0]


Run = Callable[..., Outcome]
"""Takes a stage's arguments, and as `status` the exit status that there has to be: 0 unless given, None for any."""


# --- in this process --------------------------------------------------------------------------------------


def leave_the_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in another folder, without the user's settings of a server."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def calls_of(
    stage: str,
    main: Callable[[Sequence[str]], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Return a function that calls a stage in this process, as the command line calls it."""

    def call(*arguments: object, status: int | None = 0) -> Outcome:
        monkeypatch.setattr(sys, "argv", [stage, *map(str, arguments)])
        capsys.readouterr()
        found = run_command(stage, main)
        captured = capsys.readouterr()
        assert status is None or found == status, captured.err
        return Outcome(stage, found, captured.out, captured.err)

    return call


def run_here(stage: str, *arguments: object) -> Outcome:
    """Run a stage in this process, to its end, where a test has no `Run`: what it logs is not part of the outcome."""
    main = importlib.import_module(f"pipelines.{stage}").main
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", [stage, *map(str, arguments)])
        status = run_command(stage, main)
    return Outcome(stage, status, out.getvalue(), err.getvalue())


def refused_line(run: Run, folder: Path, *arguments: object, names: Sequence[str] = ()) -> str:
    """Return the error line of a run, after checking that it refuses its input and leaves a folder as it was.

    Args:
        run: Calls the stage.
        folder: What is looked at before and after.
        arguments: Of the stage.
        names: What the line has to name.
    """
    before = snapshot(folder)
    outcome = run(*arguments, status=2)
    line = outcome.error_line
    for name in names:
        assert name in line, (name, line)
    assert re.search("; |must be | say ", line), f"says no mend: {line}"
    assert outcome.out == ""
    assert snapshot(folder) == before
    return line


# --- in a process of its own ------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment, in which the project can be imported from any folder, and more."""
    return {**os.environ, "PYTHONPATH": str(CHECKOUT), **more}


def command(stage: str, *arguments: object) -> list[str]:
    """Return the command line of a stage."""
    return [sys.executable, "-m", f"pipelines.{stage}", *map(str, arguments)]


def run_alone(
    stage: str,
    *arguments: object,
    folder: Path | None = None,
    preexec_fn: Callable[[], None] | None = None,
    **more: str,
) -> Outcome:
    """Run a stage in a process of its own, to its end.

    Args:
        stage: Its name.
        arguments: Its own.
        folder: Where it runs.
        preexec_fn: Called in the new process before the stage.
        more: Of its environment.
    """
    done = subprocess.run(
        command(stage, *arguments),
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=preexec_fn,
    )
    return Outcome(stage, done.returncode, done.stdout, done.stderr)


def give_up_roots_privilege() -> None:
    """Make permission bits hold for root too; for `preexec_fn`."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "prctl")


@contextmanager
def started(stage: str, *arguments: object, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Start a stage in a process of its own, with more in its environment; it ends with the block at the latest."""
    line = command(stage, *arguments)
    with subprocess.Popen(
        line, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Wait for something that a run in another process brings about, which must not have ended by then."""
    deadline = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, f"the run ended before it could be stopped: {process.communicate()[1]}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Wait until a run in another process has written that many lines."""
    wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count, process, seconds)


def settled(count: Callable[[], int], seconds: float = 0.3) -> int:
    """Return a count once it has stood still for a while: what a killed run has sent may still be on its way."""
    last, since = count(), time.monotonic()
    while time.monotonic() < since + seconds:
        time.sleep(0.01)
        if (now := count()) != last:
            last, since = now, time.monotonic()
    return last


def kill(process: subprocess.Popen[str]) -> None:
    """Kill -9 a run in another process, which must not have ended by then."""
    process.kill()
    assert process.wait() == -signal.SIGKILL


def interrupt(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> str:
    """Send a run in another process a signal to stop; return its last line, after checking that it stops in order."""
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED, err
    assert "Traceback" not in err
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert "same command again" in last
    return last


# --- what it leaves ---------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return every file's bytes and every folder, by path."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def strict(path: Path) -> Any:
    """Return a file's JSON; NaN and Infinity, which Python alone reads, are errors."""
    return _parsed(path.read_bytes(), path)


def read(path: Path) -> list[Record]:
    """Return the JSON of every line of a file, as strictly."""
    return [_parsed(line, path) for line in path.read_bytes().splitlines()]


def timeless(path: Path) -> list[Record]:
    """Return the records of a file without the one field that differs from run to run."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in read(path)]


def _parsed(text: bytes, path: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{path}: {name}")

    return json.loads(text, parse_constant=refuse)
