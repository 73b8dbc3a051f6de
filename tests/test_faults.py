"""Runs of infer_traces against a server that misbehaves on purpose: each ends with every draw accounted for."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

import raters.models.failures as failures
from pipelines import rate_items
from pipelines.infer_traces import STAGE, main
from tests.local_servers import free_port
from tests.scripted_server import Answer, Fault, ScriptedServer
from tests.small_corpora import write_corpus
from tests.stage_runs import Outcome, Record, Run, calls_of, leave_the_user, read, run_alone, snapshot, strict

ITEMS, K = 24, 4
SHARE_OF_FAULTS = 0.3
TIMEOUT_SECONDS = 0.4
KEY = "sk-a-key-that-no-file-may-hold"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_the_user(tmp_path, monkeypatch)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return calls_of(STAGE, main, monkeypatch, capsys)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return small_corpus(tmp_path / "corpus")


def small_corpus(folder: Path) -> Path:
    return write_corpus(folder, {f"i{number}": {"a": 1 + number % 5} for number in range(ITEMS)})


@pytest.fixture
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(failures, "LONGEST_BACKOFF_SECONDS", 0.1)


# --- the ways to misbehave --------------------------------------------------------------------------------

HTML = Fault(200, body=b"<html><body>Log in first</body></html>", headers={"Content-Type": "text/html"})
PASSING: dict[str, Fault | Answer] = {
    "429 without Retry-After": Fault(429, "Rate limit reached.", "requests", "rate_limit_exceeded"),
    "429 with Retry-After": Fault(429, "Rate limit reached.", "requests", headers={"Retry-After": "0.05"}),
    "429 with Retry-After as a date": Fault(429, "Rate limit reached.", headers={"Retry-After": formatdate(0)}),
    "500": Fault(500),
    "503": Fault(503, "The model is loading."),
    "503 overloaded": Fault(503, "The engine is currently overloaded."),
    "529": Fault(529, "Overloaded", "overloaded_error"),
    "cut before an answer": Fault(drop=True),
    "reset in mid-body": Fault(reset=True),
    "hang past the timeout": Answer("<rating>5</rating>", delay_seconds=3 * TIMEOUT_SECONDS),
    "truncated JSON": Fault(200, body=b'{"id": "chatcmpl-1", "choices": [{"index": 0, "mess'),
    "HTML in place of JSON": HTML,
    "no choices": Answer(choices=False),
    "overload in a 200": Fault(200, body=b'{"error": {"message": "Too many requests", "code": 429}}'),
}
"""What a later try does not meet: the run has to be the one that an undisturbed server gives."""
LASTING: dict[str, tuple[Fault | Answer, Record]] = {
    "reasoning only": (
        Answer(None, reasoning="I wonder", completion_tokens=9),
        {"finish_reason": "stop", "verdict": None, "trace": "I wonder", "completion_tokens": 9},
    ),
    "length": (
        Answer("<think>I wonder, and go on to", finish_reason="length"),
        {"finish_reason": "length", "verdict": None, "completion_tokens": 7},
    ),
    "content filter": (
        Answer("", finish_reason="content_filter"),
        {"finish_reason": "content_filter", "verdict": None, "trace": ""},
    ),
    "content filter as a refusal": (
        Fault(400, "The prompt was filtered.", "invalid_request_error", "content_filter"),
        {"finish_reason": "refused", "verdict": None, "completion_tokens": None},
    ),
}
"""What is an answer, and stands in the record of its draw as it came."""


def good(seed: int) -> Answer:
    return Answer(f"<rating>{1 + seed % 5}</rating>", reasoning=f"It is of kind {seed % 97}.")


class Misbehaving:
    """A script that meets a share of the requests with one of some faults; drawn from seed and try alone."""

    def __init__(self, faults: Sequence[Fault | Answer], share: float = SHARE_OF_FAULTS) -> None:
        self.faults, self.share = faults, share
        self.lock = threading.Lock()
        self.tries: Counter[int] = Counter()
        self.last: dict[int, Fault | Answer | None] = {}
        self.met = 0

    def __call__(self, body: dict[str, Any], count: int) -> Answer | Fault:
        seed = body["seed"]
        with self.lock:
            chance = random.Random(f"{seed} {self.tries[seed]}")
            self.tries[seed] += 1
            self.last[seed] = chance.choice(self.faults) if chance.random() < self.share else None
            self.met += self.last[seed] is not None
            return self.last[seed] or good(seed)


def arguments(corpus: Path, out: str, base_url: str, *more: object) -> list[object]:
    return [
        "--corpus", corpus, "--split", "all", "--out", out, "--model", "openai/scripted", "--base-url", base_url,
        "--k", K, "--strategy", "fixed", "--concurrency", 16, *more,
    ]  # fmt: skip


def draws_of(folder: Path) -> dict[tuple[str, int], Record]:
    """Return the records of a run by item and draw, less their time, after checking that each is there once."""
    records = read(folder / "candidates.jsonl")
    found = {(record["item_id"], record["draw"]): {**record, "seconds": None} for record in records}
    assert len(records) == len(found)
    assert set(found) == {(f"i{number}", draw) for number in range(ITEMS) for draw in range(K)}
    summary = strict(folder / "summary.json")
    assert summary["draws"]["first"] == ITEMS * K
    assert strict(folder / "manifest.json")["status"] == "complete"
    return found


def traces_of(folder: Path) -> list[Record]:
    """Return the kept traces of a run, less the time of their draws."""
    return [{**record, "seconds": None} for record in read(folder / "traces.jsonl")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that a server without faults gives."""
    folder = tmp_path_factory.mktemp("undisturbed")
    corpus = small_corpus(folder / "corpus")
    with ScriptedServer(lambda body, count: good(body["seed"])) as server:
        done = run_alone(STAGE, *arguments(corpus, "run", server.base_url), folder=folder, NO_PROXY="127.0.0.1")
    assert done.status == 0, done.err
    return folder / "run"


# --- each in turn, and all --------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_leaves_no_trace_in_the_run(
    fault: Fault | Answer, corpus: Path, run: Run, quick_backoff: None, undisturbed: Path
) -> None:
    script = Misbehaving([fault])
    with ScriptedServer(script) as server:
        run(*arguments(corpus, "run", server.base_url, "--request-timeout", TIMEOUT_SECONDS))
    assert script.met > 0.2 * ITEMS * K
    assert draws_of(Path("run")) == draws_of(undisturbed)
    assert traces_of(Path("run")) == traces_of(undisturbed)


@pytest.mark.parametrize(("fault", "recorded"), LASTING.values(), ids=LASTING)
def test_an_answer_without_verdict_is_recorded_as_it_came(
    fault: Fault | Answer, recorded: Record, corpus: Path, run: Run, undisturbed: Path
) -> None:
    script = Misbehaving([fault])
    with ScriptedServer(script) as server:
        run(*arguments(corpus, "run", server.base_url))
    assert script.met > 0.2 * ITEMS * K
    assert set(script.tries.values()) == {1}
    clean = draws_of(undisturbed)
    for key, record in draws_of(Path("run")).items():
        if script.last[record["seed"]] is None:
            assert record == clean[key]
        else:
            assert {name: record[name] for name in recorded} == recorded
            assert not record["accepted"]


def test_all_faults_mixed(corpus: Path, run: Run, quick_backoff: None, undisturbed: Path) -> None:
    lasting = [fault for fault, _ in LASTING.values()]
    script = Misbehaving([*PASSING.values(), *lasting])
    with ScriptedServer(script) as server:
        run(*arguments(corpus, "run", server.base_url, "--request-timeout", TIMEOUT_SECONDS))
    check_mixed(script, draws_of(Path("run")), draws_of(undisturbed))


def check_mixed(
    script: Misbehaving, found: dict[tuple[str, int], Record], clean: dict[tuple[str, int], Record]
) -> None:
    """Check that each record is what the server sent last for its draw."""
    ended = Counter(script.last[record["seed"]] is None for record in found.values())
    assert ended[True] > ended[False] > 0
    for key, record in found.items():
        last = script.last[record["seed"]]
        if last is None:
            assert record == clean[key]
        else:
            recorded = next(recorded for fault, recorded in LASTING.values() if fault is last)
            assert {name: record[name] for name in recorded} == recorded


# --- a server that goes away ------------------------------------------------------------------------------


@contextlib.contextmanager
def going_away(script: Misbehaving, after_requests: int, seconds: float) -> Iterator[str]:
    """Serve, vanish once so many requests have come, with what is in flight, and return after a while."""
    port, leave = free_port(), threading.Event()

    def watched(body: dict[str, Any], count: int) -> Answer | Fault:
        if count >= after_requests:
            leave.set()
        return script(body, count)

    def serve() -> None:
        with ScriptedServer(watched, port=port):
            up.set()
            leave.wait(60)
        time.sleep(seconds)
        with ScriptedServer(script, port=port):
            done.wait(120)

    up, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert up.wait(10)
        yield f"http://127.0.0.1:{port}/v1"
        assert leave.is_set(), "the run ended before the server could leave"
    finally:
        leave.set()
        done.set()
        thread.join()


def test_a_server_that_goes_away_and_returns(
    corpus: Path, run: Run, monkeypatch: pytest.MonkeyPatch, undisturbed: Path
) -> None:
    # A twentieth of the time in everything: waits between tries as well.
    monkeypatch.setattr(failures, "FIRST_BACKOFF_SECONDS", 0.5 / 20)
    monkeypatch.setattr(failures, "LONGEST_BACKOFF_SECONDS", 30.0 / 20)
    with going_away(Misbehaving([Fault(500)], share=0.0), ITEMS * K // 3, 20.0 / 20) as url:
        run(*arguments(corpus, "run", url))
    assert draws_of(Path("run")) == draws_of(undisturbed)


@pytest.mark.slow
def test_a_server_that_goes_away_for_20_s_and_misbehaves_before_and_after(
    corpus: Path, run: Run, undisturbed: Path
) -> None:
    lasting = [fault for fault, _ in LASTING.values()]
    script = Misbehaving([*PASSING.values(), *lasting])
    with going_away(script, ITEMS * K // 3, 20.0) as url:
        run(*arguments(corpus, "run", url, "--request-timeout", TIMEOUT_SECONDS))
    check_mixed(script, draws_of(Path("run")), draws_of(undisturbed))


# --- what does not pass -----------------------------------------------------------------------------------


def test_a_request_that_always_fails_does_not_hold_up_the_others(corpus: Path, run: Run, quick_backoff: None) -> None:
    def script(body: dict[str, Any], count: int) -> Answer | Fault:
        spoilt = any("text of i7." in message["content"] for message in body["messages"])
        return Fault(500, "The tokenizer crashed.") if spoilt else replace(good(body["seed"]), delay_seconds=0.01)

    with ScriptedServer(script) as server:
        run(*arguments(corpus, "run", server.base_url, "--max-retries", 2))
    for (item_id, _), record in draws_of(Path("run")).items():
        assert (record["finish_reason"] == "refused") == (item_id == "i7")
        if item_id == "i7":
            assert "failed 3 times on this request while it answered" in record["answer"]


def test_a_server_that_fails_on_everything_ends_the_run_and_it_goes_on_later(
    corpus: Path, run: Run, quick_backoff: None, undisturbed: Path
) -> None:
    def script(body: dict[str, Any], count: int) -> Answer | Fault:
        return Fault(500) if broken and count >= 20 else good(body["seed"])

    broken = True
    with ScriptedServer(script) as server:
        given = arguments(corpus, "run", server.base_url, "--max-retries", 2)
        outcome = run(*given, status=1)
        assert "failed 3 times, the last time with: 500" in outcome.err.splitlines()[-1]
        kept = len(read(Path("run/candidates.jsonl")))
        assert kept >= 20
        broken = False
        before = len(server.requests)
        run(*given)
        assert len(server.requests) - before == ITEMS * K - kept
    assert draws_of(Path("run")) == draws_of(undisturbed)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(401, "Incorrect API key provided.", code="invalid_api_key"),
        Fault(403, "Not in your country."),
        Fault(404, "The model does not exist.", code="model_not_found"),
        Fault(429, "You exceeded your quota.", code="insufficient_quota"),
    ],
    ids=["401", "403", "unknown model", "quota"],
)
def test_what_cannot_heal_ends_the_run_at_once(fault: Fault, corpus: Path, run: Run) -> None:
    with ScriptedServer(lambda body, count: good(body["seed"]) if count < 20 else fault) as server:
        outcome = run(*arguments(corpus, "run", server.base_url), status=2)
        assert len(server.requests) <= 20 + 16, "draws went on after the first refusal"
    assert str(fault.status) in outcome.err.splitlines()[-1]
    assert len(read(Path("run/candidates.jsonl"))) == 20


# --- limits -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_requests_per_minute_hold_for_a_run(tmp_path: Path, run: Run) -> None:
    corpus = write_corpus(tmp_path / "few", {f"i{number}": {"a": 1} for number in range(10)})
    with ScriptedServer(lambda body, count: good(body["seed"])) as server:
        run(*arguments(corpus, "run", server.base_url, "--k", 2, "--requests-per-minute", 15))
    assert len(server.times) == 20
    gaps = [later - earlier for earlier, later in zip(server.times, server.times[15:], strict=False)]
    assert min(gaps) >= 59.9  # less what a request may take on its way


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--model", "embedded", "--requests-per-minute", 5], "--requests-per-minute 5: is for openai/<name>"),
        (["--model", "embedded", "--max-retries", 3], "--max-retries 3: is for openai/<name>"),
        (
            ["--model", "openai/m", "--tokens-per-minute", 0],
            "--tokens-per-minute 0: must be greater than or equal to 1",
        ),
        (["--model", "openai/m", "--request-timeout", "inf"], "--request-timeout inf: must be"),
        (["--model", "openai/m", "--base-url", f"http://me:{KEY}@localhost/v1"], "--base-url: holds a user, password"),
        (["--model", "openai/m", "--base-url", f"http://localhost/v1?key={KEY}"], "--base-url: holds a user, password"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given: list[object], told: str, run: Run) -> None:
    outcome = run("--out", "run", *given, status=2)
    assert told in outcome.error_line
    assert KEY not in outcome.err
    assert not Path("run").exists()


# --- secrets ----------------------------------------------------------------------------------------------


def assert_no_key(folder: Path, *outcomes: Outcome) -> None:
    """Check that neither files, nor their names, nor what was printed hold the key."""
    files = snapshot(folder)
    assert len(files) > 3
    for path, content in files.items():
        assert KEY not in path
        assert KEY.encode() not in (content or b""), path
    for outcome in outcomes:
        assert KEY not in outcome.out + outcome.err


@pytest.mark.parametrize("stage", [STAGE, rate_items.STAGE])
def test_no_file_and_no_log_holds_the_key(stage: str, corpus: Path, tmp_path: Path) -> None:
    def script(body: dict[str, Any], count: int) -> Answer | Fault:
        # Servers and models that repeat it: both may know it from what the user sent them.
        if expired and count >= 10:
            return Fault(401, f"Incorrect API key provided: {KEY}.", code="invalid_api_key")
        if count == 5:
            return Fault(400, f"Not allowed for {KEY}.", "invalid_request_error")
        return Fault(500, f"Crashed while serving {KEY}.") if count == 3 else good(body["seed"])

    given = ["--corpus", corpus, "--split", "all", "--model", "openai/scripted", "--concurrency", 2]
    logged = {"OPENAI_API_KEY": KEY, "OPENAI_LOG": "debug"}
    with ScriptedServer(script, KEY) as server:
        given += ["--base-url", server.base_url]
        expired = True
        failed = run_alone(stage, *given, "--out", "failed", folder=tmp_path, **logged)
        assert failed.status == 2
        assert "refused the key (401 Incorrect API key provided: [key].)" in failed.err
        expired = False
        done = run_alone(stage, *given, "--out", "done", folder=tmp_path, **logged)
        assert done.status == 0, done.err
    with ScriptedServer(script, "another key") as server:
        given[-1] = server.base_url
        refused = run_alone(stage, *given, "--out", "refused", folder=tmp_path, **logged)
        assert refused.status == 2
        assert "refused the key (401 Incorrect API key provided: [key].)" in refused.err
    assert_no_key(tmp_path, failed, done, refused)
