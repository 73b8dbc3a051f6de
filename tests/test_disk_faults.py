"""Full disks, read-only folders, two processes, clocks, Ctrl-C: one clear line, and a journal that can be gone on with.

What holds for both stages that draw; `test_infer_traces` and `test_rate_items` have more of each.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.scripted_server import Answer, ScriptedServer
from tests.small_corpora import ORDINAL_3, rating, write_corpus
from tests.stage_runs import (
    INTERRUPTED,
    Outcome,
    Record,
    environment,
    give_up_roots_privilege,
    read,
    run_alone,
    run_here,
    snapshot,
    started,
    strict,
    wait_for_lines,
    wait_until,
)

ITEMS, DRAWS = 12, 4
DAY_SECONDS = 86_400


class Script:
    """Answers by the draw's seed, the first `fast` of them at once and the rest when the gate opens."""

    def __init__(self) -> None:
        self.fast, self.gate = 10**6, threading.Event()

    def __call__(self, body: Record, count: int) -> Answer:
        assert count < self.fast or self.gate.wait(60)
        return Answer(rating(1 + body["seed"] % 3), reasoning="It is of the usual kind. " * 10)


@dataclass(frozen=True)
class Stage:
    """A stage, a corpus and a server; `out` is where its run is."""

    name: str
    journal: Path
    result: Path
    arguments: tuple[object, ...]
    server: ScriptedServer
    script: Script

    @property
    def out(self) -> Path:
        return self.journal.parent

    def __call__(self, *more: object, **options: Any) -> Outcome:
        run = run_alone if options else run_here
        return run(self.name, *self.arguments, *more, **options)

    def check_complete(self, before: bytes) -> None:
        """Check that the run is done, that nothing of before was lost, and that no draw stands twice."""
        content = self.journal.read_bytes()
        assert content.startswith(before)
        counts = Counter((line["item_id"], line["draw"]) for line in read(self.journal))
        assert counts == Counter((f"i{item}", draw) for item in range(ITEMS) for draw in range(DRAWS))
        assert strict(self.out / "manifest.json")["status"] == "complete"
        assert len(read(self.result)) <= ITEMS


# infer_traces has quick tests of most of this of its own.
@pytest.fixture(params=[pytest.param("infer_traces", marks=pytest.mark.slow), "rate_items"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    labels = {f"i{number}": {"ann": 1 + number % 3} for number in range(ITEMS)}
    corpus = write_corpus(tmp_path / "corpus", labels, ORDINAL_3)
    name, script, out = request.param, Script(), tmp_path / "run"
    drawn = ("--strategy", "fixed", "--k", DRAWS) if name == "infer_traces" else ("--draws", DRAWS)
    files = ("candidates.jsonl", "traces.jsonl") if name == "infer_traces" else ("ratings.jsonl", "verdicts.jsonl")
    with ScriptedServer(script) as server:
        arguments = (
            "--corpus", corpus, "--split", "all", *drawn, "--model", "openai/scripted", "--base-url", server.base_url,
            "--concurrency", 2, "--out", out,
        )  # fmt: skip
        yield Stage(name, out / files[0], out / files[1], arguments, server, script)
        script.gate.set()


def one_line(outcome: Outcome, status: int, *names: object) -> None:
    """Check how a run ended, and that its last line says what is wrong."""
    assert outcome.status == status, outcome.err
    assert "Traceback" not in outcome.err
    assert "Exception" not in outcome.err
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith(f"{outcome.stage}: ")
    for name in names:
        assert str(name) in last, last


def largest_file(size: int) -> Any:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def spoilt(stage: Stage, spoil: str, *arguments: str) -> Outcome:
    """Run a stage in a process in which some lines of Python with arguments of their own come first."""
    program = f"import importlib, sys\n{spoil}\n" + (
        "from pipelines.command import run_command\n"
        "name = sys.argv.pop(1)\n"
        "sys.exit(run_command(name, importlib.import_module('pipelines.' + name).main))\n"
    )
    command = [sys.executable, "-c", program, *arguments, stage.name, *map(str, stage.arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    return Outcome(stage.name, done.returncode, done.stdout, done.stderr)


# --- a full disk ------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_before_the_first_draw(stage: Stage) -> None:
    one_line(stage(preexec_fn=largest_file(64)), 1, stage.out, "File too large")
    assert not stage.journal.exists()
    # What was in flight when the first answer could not be kept is all that it cost.
    assert len(stage.server.requests) <= 2
    assert stage().status == 0
    stage.check_complete(b"")


def test_a_disk_that_fills_up_while_draws_are_kept(stage: Stage) -> None:
    one_line(stage(preexec_fn=largest_file(9_000)), 1, stage.journal, "File too large")
    before = stage.journal.read_bytes()
    assert before.endswith(b"\n")
    kept = before.count(b"\n")
    assert 0 < kept < ITEMS * DRAWS
    assert strict(stage.out / "manifest.json")["status"] == "failed"
    assert len(stage.server.requests) <= kept + 2
    asked = len(stage.server.requests)
    assert stage().status == 0
    assert len(stage.server.requests) == asked + ITEMS * DRAWS - kept
    stage.check_complete(before)


FULL = """
import errno
import os
full, sync = sys.argv.pop(1), os.fsync
def fail(descriptor):
    if full in os.readlink(f"/proc/self/fd/{descriptor}"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    sync(descriptor)
os.fsync = fail
"""


@pytest.mark.parametrize("file", ["result", "manifest.json", "journal"])
def test_a_disk_that_is_full_when_something_is_to_reach_it(stage: Stage, file: str) -> None:
    """A system may take what is written and only say at the end that there was no room."""
    name = {"result": stage.result.name, "journal": stage.journal.name}.get(file, file)
    outcome = spoilt(stage, FULL, name)
    one_line(outcome, 1, name, "No space left on device")
    assert outcome.out == ""
    assert not stage.result.exists() or file == "manifest.json"
    before = stage.journal.read_bytes() if stage.journal.exists() else b""
    kept, asked = before.count(b"\n"), len(stage.server.requests)
    assert stage().status == 0
    assert len(stage.server.requests) == asked + ITEMS * DRAWS - kept
    assert kept == ITEMS * DRAWS or file == "manifest.json"
    stage.check_complete(before)


# --- folders that cannot be written -----------------------------------------------------------------------


def half_done(stage: Stage) -> bytes:
    """Make the first draws of a run that is then killed; return its journal."""
    stage.script.fast = 10
    with started(stage.name, *stage.arguments) as process:
        wait_for_lines(stage.journal, 10, process)
    stage.script.fast = 10**6
    stage.script.gate.set()
    return stage.journal.read_bytes()


@pytest.mark.parametrize("what", ["folder", "journal"])
def test_a_run_that_has_become_read_only_is_left_alone_before_anything_is_paid_for(stage: Stage, what: str) -> None:
    before, asked = half_done(stage), len(stage.server.requests)
    files = snapshot(stage.out)
    place, mode = (stage.out, 0o555) if what == "folder" else (stage.journal, 0o444)
    writable = place.stat().st_mode
    place.chmod(mode)
    try:
        outcome = stage(preexec_fn=give_up_roots_privilege)
    finally:
        place.chmod(writable)
    one_line(outcome, 2 if what == "folder" else 1, place, "cannot be written")
    assert len(stage.server.requests) == asked
    assert snapshot(stage.out) == files
    assert stage().status == 0
    stage.check_complete(before)


def test_a_second_process_is_refused(stage: Stage) -> None:
    stage.script.fast = 10
    with started(stage.name, *stage.arguments) as process:
        wait_for_lines(stage.journal, 10, process)
        before = stage.journal.read_bytes()
        for more in ((), ("--new",)):
            one_line(stage(*more), 2, stage.out, "another process is writing it")
        assert stage.journal.read_bytes() == before
        stage.script.gate.set()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert len(stage.server.requests) == ITEMS * DRAWS
    stage.check_complete(before)


# --- clocks -----------------------------------------------------------------------------------------------

CLOCK_BACK = """
import time
now, begun = time.time, time.time()
time.time = lambda: begun - 3600 * (now() - begun)  # it runs backwards, an hour a second
time.time_ns = lambda: int(time.time() * 1e9)
"""


def test_a_clock_that_is_set_back_changes_nothing(stage: Stage) -> None:
    before = half_done(stage)
    seconds = strict(stage.out / "manifest.json")["seconds"]
    tomorrow = time.time() + DAY_SECONDS
    for path in stage.out.iterdir():
        os.utime(path, (tomorrow, tomorrow))
    outcome = spoilt(stage, CLOCK_BACK)
    assert outcome.status == 0, outcome.err
    stage.check_complete(before)
    assert seconds <= strict(stage.out / "manifest.json")["seconds"] < 60
    assert all(0 <= line["seconds"] < 60 for line in read(stage.journal))


# --- Ctrl-C -----------------------------------------------------------------------------------------------


def test_ctrl_c_waits_for_the_draws_in_flight_and_keeps_them(stage: Stage) -> None:
    stage.script.fast = 10
    with started(stage.name, *stage.arguments) as process:
        wait_until(lambda: len(stage.server.requests) == 12, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        stage.script.gate.set()
        out, err = process.communicate(timeout=30)
    one_line_about_going_on(stage, process, out, err, 12)
    assert strict(stage.out / "manifest.json")["status"] == "stopped"
    before = stage.journal.read_bytes()
    assert stage().status == 0
    assert len(stage.server.requests) == ITEMS * DRAWS
    stage.check_complete(before)


def test_ctrl_c_twice_leaves_at_once(stage: Stage) -> None:
    stage.script.fast = 10
    with started(stage.name, *stage.arguments) as process:
        wait_until(lambda: len(stage.server.requests) == 12, process)
        wait_for_lines(stage.journal, 10, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    one_line_about_going_on(stage, process, out, err, 10)
    stage.script.gate.set()
    before = stage.journal.read_bytes()
    assert before.count(b"\n") == 10
    assert stage().status == 0
    # The two that were left are the only ones asked for again.
    assert len(stage.server.requests) == ITEMS * DRAWS + 2
    stage.check_complete(before)


def one_line_about_going_on(stage: Stage, process: subprocess.Popen[str], out: str, err: str, kept: int) -> None:
    assert process.returncode == INTERRUPTED, err
    assert "Traceback" not in err
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last == f"{kept} draws are kept in {stage.out}; give the same command again to go on"
