"""Several workers: their shards make the run that one worker makes, whoever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import raters.shards as shards_module
from pipelines.rate_items import RateItemsOptions
from pipelines.workers import share_of
from raters.budgets import Use
from raters.records import ConfigError
from raters.shards import Shard, Shards, clear_up, unfinished
from tests.scripted_server import Answer, Fault, ScriptedServer
from tests.small_corpora import ORDINAL_5, rating, write_corpus
from tests.stage_runs import (
    INTERRUPTED,
    Outcome,
    Record,
    kill,
    read,
    run_alone,
    run_here,
    settled,
    snapshot,
    started,
    strict,
    timeless,
    wait_until,
)

ITEMS = 13
RAY = [pytest.mark.ray, pytest.mark.timeout(600)]


def slow(*values: object) -> Any:
    """Return a case that is left for `-m slow`: each worker is a process of its own, which takes a second to begin."""
    return pytest.param(*values, marks=pytest.mark.slow)


class Script:
    """Answers by the draw's seed; from the `fast`-th on when the gate opens."""

    def __init__(self) -> None:
        self.fast, self.gate = 10**6, threading.Event()
        self.fault: Fault | None = None

    def __call__(self, body: Record, count: int) -> Answer | Fault:
        assert count < self.fast or self.gate.wait(120)
        if self.fault is not None:
            return self.fault
        return Answer(rating(1 + body["seed"] % 5), reasoning=f"It is number {body['seed']} of its kind.")


@dataclass(frozen=True)
class Job:
    """A stage over a small corpus behind a server; `out` is where its run with several workers is."""

    stage: str
    arguments: tuple[object, ...]
    journal: str
    results: tuple[str, ...]
    out: Path
    server: ScriptedServer
    script: Script

    def command(self, *more: object, out: Path | None = None) -> tuple[object, ...]:
        return (*self.arguments, "--out", out or self.out, *more)

    def __call__(self, *more: object, out: Path | None = None) -> Outcome:
        run = run_alone if "ray" in more else run_here  # Ray stays in the process that has started it
        return run(self.stage, *self.command(*more, out=out))

    def seeds_asked(self) -> Counter[int]:
        return Counter(body["seed"] for body in self.server.requests)

    def files(self, out: Path | None = None) -> dict[str, Any]:
        """Return what a finished run holds, without times and the order in which draws arrived."""
        folder = out or self.out
        manifest = strict(folder / "manifest.json")
        assert manifest["status"] == "complete"
        assert not (folder / "shards").exists()
        found: dict[str, Any] = {name: timeless(folder / name) for name in self.results}
        found[self.journal] = sorted(map(repr, timeless(folder / self.journal)))
        if (folder / "summary.json").exists():
            found["summary"] = strict(folder / "summary.json")
        return {**found, "counts": {name: manifest[name] for name in ("draws", "unreadable", "completion_tokens")}}

    def shard_lines(self) -> int:
        return sum(path.read_bytes().count(b"\n") for path in self.out.glob("shards/*.jsonl"))


KINDS: dict[str, tuple[str, tuple[object, ...]]] = {
    "infer_traces": ("infer_traces", ("--k", 6, "--null-items", 5, "--no-ahead")),
    "per annotator": ("infer_traces", ("--k", 6, "--null-items", 3, "--labels", "per-annotator", "--no-ahead")),
    "second chances": (
        "infer_traces",
        ("--k", 1, "--null-items", 0, "--escalate", "openai/bigger", "--rationalize", "openai/scripted", "--no-ahead"),
    ),
    "rate_items": ("rate_items", ("--draws", 4)),
}  # fmt: skip


@pytest.fixture
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Job]:
    stage, given = KINDS[getattr(request, "param", "infer_traces")]
    labels = {f"i{number}": {"ann": 1 + number % 5, "bob": 1 + number * 3 % 5} for number in range(ITEMS)}
    corpus = write_corpus(tmp_path / "corpus", labels, ORDINAL_5)
    script = Script()
    journal, results = ("candidates.jsonl", ("traces.jsonl", "unmatched.jsonl"))
    if stage == "rate_items":
        journal, results = "ratings.jsonl", ("verdicts.jsonl",)
    with ScriptedServer(script) as server:
        arguments = (
            "--corpus", corpus, "--split", "all", "--model", "openai/scripted", "--base-url", server.base_url,
            "--concurrency", 2, *given,
        )  # fmt: skip
        yield Job(stage, arguments, journal, results, tmp_path / "run", server, script)
        script.gate.set()


def workers(count: int, engine: str = "local") -> tuple[object, ...]:
    return ("--workers", count, "--engine", engine)


def done(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.err


# --- the same run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "engine", "count"),
    [
        slow("infer_traces", "local", 3),
        slow("per annotator", "local", 3),
        ("second chances", "local", 3),
        ("rate_items", "local", 3),
        *(pytest.param(kind, "ray", 2, marks=RAY) for kind in KINDS),
    ],
    indirect=["job"],
)
def test_several_workers_make_the_run_that_one_makes(job: Job, engine: str, count: int, tmp_path: Path) -> None:
    done(job(out=tmp_path / "alone"))
    asked = job.seeds_asked()
    job.server.requests.clear()
    done(job(*workers(count, engine)))
    assert job.files() == job.files(tmp_path / "alone")
    assert job.seeds_asked() == asked


@pytest.mark.parametrize("job", ["infer_traces", slow("rate_items")], indirect=True)
def test_a_finished_run_goes_on_with_more_draws_by_any_number_of_workers(job: Job, tmp_path: Path) -> None:
    flag = "--k" if job.stage == "infer_traces" else "--draws"
    done(job(flag, 8, out=tmp_path / "alone"))
    job.server.requests.clear()
    done(job(flag, 2, "--limit", 7, *workers(2)))
    done(job(flag, 4, *workers(3)))
    done(job(flag, 8))
    assert job.files() == job.files(tmp_path / "alone")
    assert max(job.seeds_asked().values()) == 1
    asked = len(job.server.requests)
    done(job(flag, 8, *workers(5)))
    assert len(job.server.requests) == asked, "nothing is left to draw"


def test_more_workers_than_items_are_no_harm(job: Job, tmp_path: Path) -> None:
    done(job("--limit", 2, out=tmp_path / "alone"))
    done(job("--limit", 2, *workers(4)))
    assert job.files() == job.files(tmp_path / "alone")


@pytest.mark.parametrize("rows", [1, 7, 12])
def test_shards_share_rows_and_keep_the_first_ones_first(rows: int, tmp_path: Path) -> None:
    shards = [Shard(tmp_path, place, 5) for place in range(5)]
    shared = [list(range(rows))[shard.rows(rows)] for shard in shards]
    assert sorted(chain.from_iterable(shared)) == list(range(rows))
    for first in range(rows + 1):
        for shard, mine in zip(shards, shared, strict=True):
            assert [row for row in mine if row < first] == mine[: shard.first_rows(first)]


# --- what goes wrong --------------------------------------------------------------------------------------


def children(process: Any) -> list[int]:
    """Return the workers of a run in another process: what has the shards' logs as its standard error."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                target, parent = (
                    os.readlink(entry / "fd" / "2"),
                    (entry / "stat").read_text().rsplit(")")[-1].split()[1],
                )
            except OSError:
                continue
            if target.endswith(".log") and int(parent) == process.pid:
                found.append(int(entry.name))
    return found


def gone(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")")[-1].split()[0] == "Z"
    except OSError:
        return True


def kill_with_workers(process: Any) -> None:
    """Kill -9 a run in another process, and wait until its workers are gone, which nobody kills."""
    at_work = children(process)
    kill(process)
    deadline = time.monotonic() + 10
    while not all(map(gone, at_work)):
        assert time.monotonic() < deadline, "a worker goes on without anybody"
        time.sleep(0.01)


def after_some_draws(job: Job, process: Any, lines: int = 6) -> None:
    """Wait for draws, and for both workers: one of them may be long under way when the other starts."""

    def under_way() -> bool:
        return job.shard_lines() >= lines and len(job.server.requests) >= lines + 2 and len(children(process)) == 2

    wait_until(under_way, process)


def goes_on(job: Job, lost: int, alone: Path, *more: object) -> None:
    """Check that the run comes to the end that it would have had, and what was paid for twice."""
    job.script.fast = 10**6
    job.script.gate.set()
    done(job(*more))
    assert sum(job.seeds_asked().values()) <= len(job.seeds_asked()) + lost
    asked = len(job.server.requests)
    done(job(out=alone))
    assert job.files() == job.files(alone)
    assert len(job.server.requests) - asked == len(job.seeds_asked())


@pytest.mark.parametrize("job", ["per annotator", slow("rate_items")], indirect=True)
def test_a_killed_run_takes_its_workers_along_and_goes_on(job: Job, tmp_path: Path) -> None:
    job.script.fast = 8
    with started(job.stage, *job.command(*workers(2))) as process:
        after_some_draws(job, process)
        assert len(children(process)) == 2
        kill_with_workers(process)
    assert unfinished(job.out) == 2
    goes_on(job, 4, tmp_path / "alone", *workers(2))


def test_a_killed_worker_is_told_and_its_draws_are_kept(job: Job, tmp_path: Path) -> None:
    job.script.fast = 8
    with started(job.stage, *job.command(*workers(2))) as process:
        after_some_draws(job, process)
        os.kill(children(process)[0], signal.SIGKILL)
        job.script.gate.set()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    lines = err.strip().splitlines()
    assert lines[-1] == "infer_traces: a worker was killed; give the same command again to go on"
    assert lines[-2] == f"{job.shard_lines()} draws are kept in {job.out}; give the same command again to go on"
    assert strict(job.out / "manifest.json")["status"] in ("running", "failed")
    goes_on(job, 2, tmp_path / "alone", *workers(2))


def test_ctrl_c_waits_for_the_draws_of_all_workers(job: Job, tmp_path: Path) -> None:
    job.script.fast = 8
    with started(job.stage, *job.command(*workers(2))) as process:
        wait_until(lambda: len(job.server.requests) == 12, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        job.script.gate.set()
        out, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, err
    assert out == ""
    assert err.strip().splitlines()[-1] == f"12 draws are kept in {job.out}; give the same command again to go on"
    assert strict(job.out / "manifest.json")["status"] == "stopped"
    goes_on(job, 0, tmp_path / "alone", *workers(2))


def test_ctrl_c_twice_leaves_the_draws_of_all_workers(job: Job, tmp_path: Path) -> None:
    job.script.fast = 8
    with started(job.stage, *job.command(*workers(2))) as process:
        wait_until(lambda: len(job.server.requests) == 12 and job.shard_lines() == 8, process)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        _, err = process.communicate(timeout=20)
    assert process.returncode == INTERRUPTED, err
    assert err.strip().splitlines()[-1].startswith("8 draws are kept")
    goes_on(job, 4, tmp_path / "alone", *workers(2))


@pytest.mark.parametrize(
    ("job", "engine"),
    [
        slow("infer_traces", "local"),
        ("rate_items", "local"),
        *(pytest.param(kind, "ray", marks=RAY) for kind in ("infer_traces", "rate_items")),
    ],
    indirect=["job"],
)
def test_what_a_worker_cannot_do_is_one_line(job: Job, engine: str, tmp_path: Path) -> None:
    job.script.fault = Fault(401, "Your key has expired.", "invalid_request_error", "invalid_api_key")
    outcome = job(*workers(2, engine))
    assert outcome.status == 2, outcome.err
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith(f"{job.stage}: openai/scripted: ")
    assert "Your key has expired" in last
    assert "Traceback" not in outcome.err
    job.script.fault = None
    job.server.requests.clear()
    goes_on(job, 0, tmp_path / "alone", *workers(2, engine))


# --- what holds for all of a run ------------------------------------------------------------------------------


TOKENS_OF_A_DRAW = 18  # of a `scripted_server.Answer`


@pytest.mark.parametrize(("job", "draws"), [("infer_traces", 13 * 6), ("rate_items", 13 * 4)], indirect=["job"])
def test_workers_share_a_budget(job: Job, draws: int, tmp_path: Path) -> None:
    more = ("--strategy", "fixed") if job.stage == "infer_traces" else ()
    budget = 25 * TOKENS_OF_A_DRAW  # 12 draws and a half for each of them
    outcome = job(*more, *workers(2), "--max-total-tokens", budget)
    assert outcome.status == 1, outcome.err
    assert job.shard_lines() == 24
    lines = outcome.err.strip().splitlines()
    assert lines[-2] == f"24 draws are kept in {job.out}; give the same command again to go on"
    assert lines[-1].startswith(
        f"{job.stage}: one of 2 equal shares of the budget is used up: --max-total-tokens {budget // 2}: 216 tokens"
    )
    assert strict(job.out / "manifest.json")["status"] == "stopped"
    # With more the same run goes on, by a budget that counts what it has used already.
    assert job(*more, *workers(2), "--max-total-tokens", 31 * TOKENS_OF_A_DRAW).status == 1
    assert job.shard_lines() == 30
    done(job(*more, *workers(2), "--max-total-tokens", 2 * draws * TOKENS_OF_A_DRAW))
    assert len(job.server.requests) == len(job.seeds_asked()) == draws
    done(job(*more, out=tmp_path / "alone"))
    assert job.files() == job.files(tmp_path / "alone")


def test_a_worker_gets_an_equal_share_of_what_holds_for_the_run() -> None:
    limits = {"requests_per_minute": 10, "tokens_per_minute": 1001, "max_cost": 7.0, "max_total_tokens": 1000}
    options = RateItemsOptions(model="openai/x", workers=4, **limits)  # type: ignore[arg-type]
    share = share_of(options, 4, Use(draws=3, tokens=100, usd=1.0))
    assert {name: share[name] for name in limits} == {
        "requests_per_minute": 2, "tokens_per_minute": 250, "max_cost": 1.5, "max_total_tokens": 225,
    }  # fmt: skip
    assert share["model"] == "openai/x"
    assert share_of(options, 4, Use(draws=3, tokens=2000, usd=9.0))["max_cost"] == 0.0
    plain = RateItemsOptions(model="openai/x", workers=4)
    assert share_of(plain, 4, Use(draws=3, tokens=100, usd=1.0)) == plain.model_dump()


# --- one journal in the end -------------------------------------------------------------------------------


def half_done(job: Job) -> None:
    job.script.fast = 8
    with started(job.stage, *job.command(*workers(2))) as process:
        after_some_draws(job, process)
        kill_with_workers(process)
    job.script.fast = 10**6
    job.script.gate.set()


@pytest.mark.parametrize("more", [(), slow(("--workers", 1)), ("--workers", 3)])
def test_a_run_that_is_shared_out_is_gone_on_with_as_it_was(job: Job, more: tuple[object, ...]) -> None:
    half_done(job)
    before, asked = snapshot(job.out), settled(lambda: len(job.server.requests))
    outcome = job(*more)
    assert outcome.status == 2
    assert "was begun by 2 workers; give --workers 2" in outcome.err.strip().splitlines()[-1]
    assert snapshot(job.out) == before
    assert len(job.server.requests) == asked
    done(job("--new", *more))
    assert (job.out.parent / "run.old-1" / "shards").is_dir()


def shared_out(folder: Path, base: bytes, shards: list[bytes]) -> Shards:
    """Return shards with journals, of a run with a journal."""
    (folder / "run.jsonl").write_bytes(base)
    found = Shards(folder / "run.jsonl", len(shards))
    found.begin(lambda shard: {})
    for shard, content in zip(found.all, shards, strict=True):
        shard.journal.write_bytes(content)
    return found


def test_a_merge_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    shards = shared_out(tmp_path, b'{"n": 0}\n', [b'{"n": 1}\n{"n": 2}\n', b'{"n": 3}\n'])
    journal.write_bytes(journal.read_bytes() + b'{"n": 1}\n{"n"')
    assert unfinished(tmp_path) == 2
    clear_up(journal)
    assert journal.read_bytes() == b'{"n": 0}\n'
    assert shards.draws() == 3
    Shards(journal, 2).merge()
    assert [record["n"] for record in read(journal)] == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl"]


def test_shards_that_are_merged_are_not_merged_again(tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    shared_out(tmp_path, b'{"n": 0}\n', [b'{"n": 1}\n', b'{"n": 2}\n'])
    about = json.loads((tmp_path / "shards" / "shards.json").read_text())
    (tmp_path / "shards" / "shards.json").write_text(json.dumps({**about, "merged": True}))
    journal.write_bytes(b'{"n": 0}\n{"n": 1}\n{"n": 2}\n')
    assert unfinished(tmp_path) is None
    clear_up(journal)
    assert [record["n"] for record in read(journal)] == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl"]


def test_a_broken_note_of_shards_is_named(tmp_path: Path) -> None:
    shared_out(tmp_path, b"", [b"", b""])
    (tmp_path / "shards" / "shards.json").write_text("[")
    with pytest.raises(ConfigError, match=r"shards\.json: cannot be read"):
        unfinished(tmp_path)


# --- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--workers", 0), "--workers 0"),
        (("--engine", "spark"), "--engine spark"),
        (("--ray-address", "auto"), "--ray-address auto: is for --engine ray"),
        (("--requests-per-minute", 3, "--workers", 4), "--requests-per-minute 3 --workers 4: leaves nothing for one"),
    ],
)
@pytest.mark.parametrize("job", ["infer_traces", "rate_items"], indirect=True)
def test_options_that_cannot_be_used(job: Job, given: tuple[object, ...], named: str) -> None:
    outcome = run_here(job.stage, *job.command(*given))
    assert outcome.status == 2
    assert named in outcome.error_line
    assert not job.out.exists()


def test_ray_that_is_not_installed_is_told_before_anything_is_made(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.infer_traces import main

    monkeypatch.setattr(shards_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--engine ray: needs ray; pip install"):
        main([str(argument) for argument in job.command("--engine", "ray")])
    assert not job.out.exists()


# --- actors of Ray ----------------------------------------------------------------------------------------


def actors() -> list[int]:
    """Return the processes of workers that are Ray's."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"MapWorker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize("job", ["infer_traces", "rate_items"], indirect=True)
def test_an_actor_that_is_killed_is_replaced_and_nothing_is_lost(job: Job, tmp_path: Path) -> None:
    before = set(actors())
    job.script.fast = 8
    with started(job.stage, *job.command(*workers(2, "ray"))) as process:
        wait_until(lambda: job.shard_lines() >= 6 and len(job.server.requests) >= 8, process, seconds=120)
        mine = sorted(set(actors()) - before)
        assert len(mine) == 2
        os.kill(mine[0], signal.SIGKILL)
        time.sleep(1)
        job.script.gate.set()
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert sum(job.seeds_asked().values()) <= len(job.seeds_asked()) + 2
    done(job(out=tmp_path / "alone"))
    assert job.files() == job.files(tmp_path / "alone")


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_killed_run_on_ray_goes_on(job: Job, tmp_path: Path) -> None:
    job.script.fast = 8
    with started(job.stage, *job.command(*workers(2, "ray"))) as process:
        wait_until(lambda: job.shard_lines() >= 6 and len(job.server.requests) >= 8, process, seconds=120)
        kill(process)
    time.sleep(5)  # Ray ends actors whose owner has gone
    goes_on(job, 4, tmp_path / "alone", *workers(2, "ray"))


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_cluster_that_does_not_answer_is_one_line(job: Job) -> None:
    outcome = job(*workers(2, "ray"), "--ray-address", "127.0.0.1:1")
    assert outcome.status == 2, outcome.err
    assert "--ray-address 127.0.0.1:1: no cluster answers" in outcome.err.strip().splitlines()[-1]
