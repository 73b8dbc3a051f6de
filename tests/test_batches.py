"""Draws by way of a batch API: rounds, faults, and kills between any two steps, against a server like OpenAI's."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import raters.batch_rounds as rounds_module
import raters.models.failures as failures
from pipelines.infer_traces import main
from raters.models.batch_api import BatchEndpoint
from tests.batch_server import BatchServer, Lines, Lost
from tests.scripted_server import Answer, Fault, ScriptedServer
from tests.small_corpora import ORDINAL_3, PAIRWISE, write_corpus
from tests.stage_runs import (
    INTERRUPTED,
    Outcome,
    Run,
    calls_of,
    leave_the_user,
    read,
    started,
    strict,
    wait_until,
)

ITEMS, DRAWS = 12, 6
FLAGS = ["--corpus", "small", "--split", "all", "--model", "openai/scripted", "--k", DRAWS, "--null-items", 2]
FIELDS_THAT_DIFFER = ("seconds",)


def rater(body: dict[str, Any], count: int) -> Answer:
    """Answer as a model does: at random, yet decided by seed and messages."""
    key = hashlib.sha256(json.dumps([body["seed"], body["messages"]]).encode()).digest()
    return Answer(content=f"<rating>{1 + key[0] % 3}</rating>", reasoning=f"It names {key.hex()[:6]} reasons.")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    leave_the_user(tmp_path, monkeypatch)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(failures, "FIRST_BACKOFF_SECONDS", 0.01)
    labels = {f"i{number}": {"a": 1 + number % 3, "b": 1 + number % 3} for number in range(ITEMS)}
    write_corpus(tmp_path / "small", labels, ORDINAL_3)
    return calls_of("infer_traces", main, monkeypatch, capsys)


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer(rater) as serving:
        yield serving


def records(out: Path) -> dict[tuple[str, int, str | None], dict[str, Any]]:
    """Return the draws of a run by item, draw and annotator, without what depends on the way they came."""
    found = {}
    for record in read(out / "candidates.jsonl"):
        key = record["item_id"], record["draw"], record["annotator_id"]
        assert key not in found, f"{key} was drawn twice"
        found[key] = {name: value for name, value in record.items() if name not in FIELDS_THAT_DIFFER}
    return found


def kept(out: Path) -> list[dict[str, Any]]:
    traces = [{**trace, "seconds": None} for trace in read(out / "traces.jsonl")]
    return sorted(traces, key=lambda trace: str(trace["item_id"]))


def step(run: Run, server: BatchServer, action: str, *more: object, status: int | None = 0) -> Outcome:
    return run(*FLAGS, "--base-url", server.base_url, "--batch", action, "--out", "run", *more, status=status)


def all_rounds(run: Run, server: BatchServer, *more: object) -> int:
    """Submit and collect until the run is complete; return how many rounds that took."""
    for number in range(1, 20):
        step(run, server, "submit", *more)
        if "Kept" in step(run, server, "collect", *more).out:
            return number
    raise AssertionError("the run does not end")


@pytest.fixture
def direct(run: Run, tmp_path: Path) -> Path:
    """The same run, drawn one request after the other."""
    with ScriptedServer(rater) as serving:
        run(*FLAGS, "--no-ahead", "--base-url", serving.base_url, "--out", "direct")
    return tmp_path / "direct"


# --- rounds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at_once", "rounds"), [(1, DRAWS), (2, 3), (DRAWS, 1)])
def test_rounds_keep_what_single_requests_keep(
    run: Run, server: BatchServer, direct: Path, tmp_path: Path, at_once: int, rounds: int
) -> None:
    assert all_rounds(run, server, "--batch-draws", at_once) <= rounds
    assert kept(tmp_path / "run") == kept(direct)
    found, expected = records(tmp_path / "run"), records(direct)
    assert expected.items() <= found.items()  # and draws behind an acceptance, which were paid for
    assert len(found) == len(server.paid) == len(set(server.paid))
    if at_once == 1:
        assert found == expected
    assert strict(tmp_path / "run" / "manifest.json")["draws"] == {"first": len(found)}


def test_only_items_without_an_acceptance_go_into_the_next_batch(run: Run, server: BatchServer, tmp_path: Path) -> None:
    step(run, server, "submit", "--batch-draws", 1, "--null-items", 0)
    step(run, server, "collect", "--batch-draws", 1, "--null-items", 0)
    open_items = {record["item_id"] for record in read(tmp_path / "run" / "candidates.jsonl") if not record["accepted"]}
    assert 0 < len(open_items) < ITEMS
    before = len(server.paid)
    step(run, server, "submit", "--batch-draws", 1, "--null-items", 0)
    step(run, server, "collect", "--batch-draws", 1, "--null-items", 0)
    assert {custom_id.split("/")[0] for custom_id in server.paid[before:]} == open_items


def test_a_request_is_what_a_single_one_asks_and_says_whose_it_is(
    run: Run, server: BatchServer, tmp_path: Path
) -> None:
    step(run, server, "submit", "--temperature", 0.7, "--top-p", 0.9, "--max-tokens", 50)
    with ScriptedServer(rater) as serving:
        flags = ["--temperature", 0.7, "--top-p", 0.9, "--max-tokens", 50, "--strategy", "fixed"]
        run(*FLAGS, *flags, "--base-url", serving.base_url, "--out", "direct")
        single = {(body["seed"], body["messages"][-1]["content"]): body for body in serving.requests}
    lines = [json.loads(line) for line in server.files["file-0000"].splitlines()]
    assert {line["custom_id"] for line in lines} >= {"i0/quality/0", "i11/quality/3"}
    for line in lines:
        assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
        body = line["body"]
        expected = single[body["seed"], body["messages"][-1]["content"]]
        assert {**expected, "max_completion_tokens": expected["max_tokens"]} == {**body, "max_tokens": 50}
    assert server.purposes["file-0000"] == "batch"
    [batch] = server.batches
    assert (batch["endpoint"], batch["completion_window"]) == ("/v1/chat/completions", "24h")


def test_a_round_goes_on_without_a_batch_once_it_is_collected(
    run: Run, server: BatchServer, direct: Path, tmp_path: Path
) -> None:
    with ScriptedServer(rater) as serving:
        alone = [*FLAGS, "--base-url", serving.base_url, "--out", "run"]
        step(run, server, "submit", "--batch-draws", 1)
        line = run(*alone, status=2).error_line
        assert "batch_0000 is under way" in line
        assert not serving.requests
        step(run, server, "collect", "--batch-draws", 1)
        run(*alone)
    assert kept(tmp_path / "run") == kept(direct)


def test_exchanged_texts_of_pairs_come_back_in_order(
    run: Run, server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {f"p{number}": {"a": "AB"[number % 2]} for number in range(6)}
    texts = {item: {"left": f"left of {item}", "right": f"right of {item}"} for item in labels}
    write_corpus(tmp_path / "pairs", labels, PAIRWISE, inputs=texts)

    def chooser(body: dict[str, Any], count: int) -> Answer:
        return Answer(content=f"<rating>{'AB'[hashlib.sha256(str(body['seed']).encode()).digest()[0] % 2]}</rating>")

    server.script = chooser
    flags = [*FLAGS, "--corpus", "pairs", "--strategy", "fixed"]
    run(*flags, "--base-url", server.base_url, "--batch", "submit", "--out", "run")
    run(*flags, "--base-url", server.base_url, "--batch", "collect", "--out", "run")
    with ScriptedServer(chooser) as serving:
        run(*flags, "--base-url", serving.base_url, "--out", "direct")
    assert records(tmp_path / "run") == records(tmp_path / "direct")


def test_every_annotator_has_a_line_of_every_draw(run: Run, server: BatchServer, direct: Path, tmp_path: Path) -> None:
    labels = {f"i{number}": {"a": 1 + number % 3, "b": 1 + (number + 1) % 3} for number in range(ITEMS)}
    write_corpus(tmp_path / "small", labels, ORDINAL_3)
    all_rounds(run, server, "--labels", "per-annotator", "--batch-draws", 3)
    with ScriptedServer(rater) as serving:
        run(*FLAGS, "--labels", "per-annotator", "--base-url", serving.base_url, "--out", "direct2")
    assert kept(tmp_path / "run") == kept(tmp_path / "direct2")


def test_items_with_any_name_are_told_apart(run: Run, server: BatchServer, tmp_path: Path) -> None:
    names = ["a/b", "a/b/0", "a\nb", "ü" * 300, "x" * 300, "x" * 301, "~", "a b"]
    write_corpus(tmp_path / "small", {name: {"a": 1 + number % 3} for number, name in enumerate(names)}, ORDINAL_3)
    step(run, server, "submit", "--strategy", "fixed")
    step(run, server, "collect", "--strategy", "fixed")
    assert len(records(tmp_path / "run")) == len(names) * DRAWS
    assert all(len(custom_id) <= 64 and custom_id.isascii() for custom_id in server.paid)


# --- files elsewhere ------------------------------------------------------------------------------------------


def answered_elsewhere(requests: Path, answers: Path, script: Callable[[dict[str, Any], int], Answer]) -> None:
    """Answer a file of requests as `vllm run-batch` does."""
    from tests.scripted_server import completion_body

    lines = []
    for number, request in enumerate(read(requests)):
        body = json.loads(completion_body(script(request["body"], number), request["body"], number))
        response = {"status_code": 200, "request_id": f"vllm-batch-{number}", "body": body}
        lines.append({"id": f"vllm-{number}", "custom_id": request["custom_id"], "response": response, "error": None})
    refused = {"status_code": 400, "request_id": "vllm-batch-x", "body": None}
    lines.append({"id": "vllm-x", "custom_id": "of/another/1", "response": refused, "error": "no such thing"})
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_file_is_written_and_read_without_a_server(run: Run, direct: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--out", "run"]
    for number in range(DRAWS):
        asked, answers = f"asked{number}.jsonl", f"answers{number}.jsonl"
        run(*flags, "--batch", "submit", "--batch-file", asked)
        first = (tmp_path / asked).read_bytes()
        run(*flags, "--batch", "submit", "--batch-file", asked)  # the same once more, not another round
        assert (tmp_path / asked).read_bytes() == first
        answered_elsewhere(tmp_path / asked, tmp_path / answers, rater)
        if "Kept" in run(*flags, "--batch", "collect", "--batch-file", answers).out:
            break
    assert kept(tmp_path / "run") == kept(direct)


def test_a_round_is_not_both_handed_out_and_submitted(run: Run, server: BatchServer, tmp_path: Path) -> None:
    def line(action: str, *more: object) -> str:
        return step(run, server, action, *more, status=2).err.strip().splitlines()[-1]

    step(run, server, "submit", "--batch-file", "asked.jsonl")
    assert "written with --batch-file" in line("submit")
    assert "give --batch-file with its answers" in line("collect")
    assert not server.batches
    (tmp_path / "other.jsonl").write_text('{"custom_id": "a", "response": null, "error": null}\n')
    assert "holds no answer to this round" in line("collect", "--batch-file", "other.jsonl")
    assert "no such file" in line("collect", "--batch-file", "nowhere.jsonl")
    answered_elsewhere(tmp_path / "asked.jsonl", tmp_path / "answers.jsonl", rater)
    step(run, server, "collect", "--batch-file", "answers.jsonl")
    step(run, server, "submit")
    assert "would be paid for twice" in line("submit", "--batch-file", "asked.jsonl")
    assert "was not written with it" in line("collect", "--batch-file", "answers.jsonl")


# --- what fails -----------------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_refused(run: Run, server: BatchServer, tmp_path: Path) -> None:
    def line(*flags: object) -> str:
        outcome = run(*FLAGS, "--base-url", server.base_url, "--out", "run", *flags, status=2)
        assert not (tmp_path / "run").exists()
        return outcome.error_line

    assert "OPENAI_API_KEY" in run(*FLAGS, "--out", "run", "--batch", "submit", status=2).error_line
    assert "there is no run" in line("--batch", "collect")
    assert "--batch-file x.jsonl: is for --batch" in line("--batch-file", "x.jsonl")
    assert "give it without --batch" in line("--batch", "submit", "--escalate", "embedded")
    assert "the provider does the work" in line("--batch", "submit", "--workers", 2)
    refused = run("--corpus", "small", "--batch", "submit", "--out", "run", status=2)
    assert "is for openai/<name>, and --model is embedded" in refused.error_line


def test_submitting_again_submits_nothing(run: Run, server: BatchServer) -> None:
    step(run, server, "submit")
    for _ in range(3):
        assert "under way already" in step(run, server, "submit").err
    assert len(server.batches) == 1


def test_collecting_waits_until_a_batch_is_done(run: Run, server: BatchServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.looks = 4
    step(run, server, "submit")
    said = step(run, server, "collect", "--batch-poll", 0.01).err
    for status in ("validating", "in_progress", "finalizing"):
        assert f"batch_0000: {status}, 0 of" in said
    assert "answered" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_waiting_can_be_left_and_taken_up_again(
    run: Run, server: BatchServer, direct: Path, tmp_path: Path, number: signal.Signals
) -> None:
    server.looks = 10**6
    all_at_once = ["--batch-draws", DRAWS]
    step(run, server, "submit", *all_at_once)
    flags = [*FLAGS, "--base-url", server.base_url, "--batch", "collect", "--out", "run", *all_at_once]
    with started("infer_traces", *flags, "--batch-poll", 0.01) as process:
        wait_until(lambda: len(server.calls) > 20, process)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert process.returncode == INTERRUPTED
        assert "same command again" in err
    server.looks = 0
    assert "Kept" in step(run, server, "collect", *all_at_once).out
    assert kept(tmp_path / "run") == kept(direct)
    assert len(server.batches) == 1


@pytest.mark.parametrize("outcome", ["expired", "cancelled"])
def test_what_a_batch_did_not_get_to_is_asked_again(
    run: Run, server: BatchServer, direct: Path, tmp_path: Path, outcome: Any
) -> None:
    server.outcome = outcome
    step(run, server, "submit")
    said = step(run, server, "collect").err
    half = len(server.paid)
    assert f"batch_0000: {outcome}" in said
    assert f"{half} answered" in said
    assert len(records(tmp_path / "run")) == half
    server.outcome = "completed"
    all_rounds(run, server)
    assert kept(tmp_path / "run") == kept(direct)
    assert len(server.paid) == len(set(server.paid))


def test_a_batch_that_fails_says_why_and_is_made_again(
    run: Run, server: BatchServer, direct: Path, tmp_path: Path
) -> None:
    server.outcome = "failed"
    step(run, server, "submit")
    line = step(run, server, "collect", status=1).err.strip().splitlines()[-1]
    assert "batch_0000 failed (Enqueued token limit reached for scripted.); mend that" in line
    server.outcome = "completed"
    all_rounds(run, server)
    assert kept(tmp_path / "run") == kept(direct)


def test_lines_of_every_kind(run: Run, server: BatchServer, direct: Path, tmp_path: Path) -> None:
    faults = {
        1: Fault(status=500),
        2: Fault(status=400, message="This prompt is flagged.", type="invalid_request_error"),
        3: Fault(status=429, message="Rate limit reached.", type="rate_limit_error"),
        4: Answer(choices=False),
        5: Answer(content=None),
    }

    def edited(kind: str, lines: Lines) -> Lines:
        if kind == "errors":
            return lines
        stranger = json.dumps({"id": "x", "custom_id": "stranger", "response": None, "error": None}).encode() + b"\n"
        return [*lines[3:], lines[5], b'{"id": "batch_req\n', stranger, b"\n", b'{"custom_id": 7}\n']

    server.script = lambda body, count: faults.get(count) or rater(body, count)
    server.edit = edited
    step(run, server, "submit", "--strategy", "fixed")
    said = step(run, server, "collect", "--strategy", "fixed").err
    drawn = records(tmp_path / "run")
    total = ITEMS * DRAWS
    answered = sum(record["finish_reason"] != "refused" for record in drawn.values())
    assert total - 7 <= answered <= total - 4  # three lines are gone, which may be of those with faults
    assert "1 refused for good" in said
    assert "without a line" in said
    assert "2 lines of other requests passed over" in said
    assert "1 lines cannot be read" in said
    [refused] = [record for record in drawn.values() if record["finish_reason"] == "refused"]
    assert "400 This prompt is flagged." in refused["answer"]
    server.script, server.edit = rater, None
    all_rounds(run, server, "--strategy", "fixed")
    assert len(records(tmp_path / "run")) == total


def test_a_provider_that_refuses_everything_is_set_up_wrongly(run: Run, server: BatchServer, tmp_path: Path) -> None:
    server.script = lambda body, count: Fault(status=400, message="Unsupported parameter: 'seed'.")
    step(run, server, "submit")
    line = step(run, server, "collect", status=2).err.strip().splitlines()[-1]
    assert "Unsupported parameter: 'seed'." in line
    assert "all of them" in line
    assert not (tmp_path / "run" / "candidates.jsonl").exists()
    server.script = lambda body, count: Fault(status=404, message="The model does not exist.", code="model_not_found")
    step(run, server, "submit")
    assert "The model does not exist." in step(run, server, "collect", status=2).err.strip().splitlines()[-1]


def test_files_keep_to_what_a_provider_takes(
    run: Run, server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = rounds_module.write_round

    def small(*arguments: Any, **limits: Any) -> Any:
        return written(*arguments, **{"most_requests": 10, "most_bytes": 2**40, **limits})

    monkeypatch.setattr(rounds_module, "write_round", small)
    step(run, server, "submit", "--strategy", "fixed")
    assert [len(server.files[batch["input_file_id"]].splitlines()) for batch in server.batches] == [10] * 7 + [2]
    step(run, server, "collect", "--strategy", "fixed")
    assert len(records(tmp_path / "run")) == ITEMS * DRAWS
    assert len(server.paid) == ITEMS * DRAWS


def test_files_keep_to_a_number_of_bytes(run: Run, server: BatchServer, monkeypatch: pytest.MonkeyPatch) -> None:
    written = rounds_module.write_round
    monkeypatch.setattr(rounds_module, "write_round", lambda *args, **_: written(*args, most_bytes=5000))
    step(run, server, "submit", "--strategy", "fixed")
    sizes = [len(server.files[batch["input_file_id"]]) for batch in server.batches]
    assert max(sizes) <= 5000
    assert sum(len(content.splitlines()) for content in server.files.values()) == ITEMS * DRAWS


def test_calls_that_fail_are_made_again(run: Run, server: BatchServer, direct: Path, tmp_path: Path) -> None:
    def fault(method: str, path: str, before: int) -> Fault | Lost | None:
        return (Fault(status=503), Lost(), Fault(status=429), Fault(status=200, body=b"<html>"), None)[min(before, 4)]

    server.fault = fault
    all_rounds(run, server)
    assert kept(tmp_path / "run") == kept(direct)
    assert len(server.paid) == len(set(server.paid))


def test_a_server_without_batches_or_with_another_key_is_told_of(
    run: Run, server: BatchServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ours")
    server.key = "sk-theirs"
    line = step(run, server, "submit", status=2).err.strip().splitlines()[-1]
    assert "refused the key" in line
    assert "sk-ours" not in line
    server.key = None
    server.fault = lambda method, path, before: Fault(status=404, message="Not Found") if "files" in path else None
    line = step(run, server, "submit", status=2).err.strip().splitlines()[-1]
    assert "does not know the file" in line
    assert "--batch-file" in line
    server.fault = None
    step(run, server, "submit")
    assert len(server.batches) == 1


def test_answers_that_the_provider_no_longer_has_are_asked_again(
    run: Run, server: BatchServer, direct: Path, tmp_path: Path
) -> None:
    gone = Fault(status=404, message="No such File object", type="invalid_request_error")
    server.fault = lambda method, path, before: gone if path.endswith("/content") else None
    step(run, server, "submit")
    said = step(run, server, "collect").err
    assert "has its answers no longer" in said
    server.fault = None
    all_rounds(run, server)
    assert kept(tmp_path / "run") == kept(direct)


# --- kills ----------------------------------------------------------------------------------------------------


class KilledError(BaseException):
    """Stands for kill -9: nothing of the stage's sees it coming."""


STEPS = (
    (rounds_module, "write_atomically"),
    (rounds_module, "take_answers"),
    (BatchEndpoint, "_once"),
    (BatchEndpoint, "upload"),
    (BatchEndpoint, "look"),
    (BatchEndpoint, "download"),
)
"""Whatever a round does to the disk or to the provider goes through one of these."""


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_step_pays_nothing_twice(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, every: int
) -> None:
    """Every step of a run, or every fifth, is cut off once, before or after it is taken, until there is none left."""
    flags = [*FLAGS, "--limit", 5, "--k", 2, "--batch-draws", 1, "--null-items", 0]
    with ScriptedServer(rater) as serving:
        run(*flags, "--base-url", serving.base_url, "--out", "direct")
    expected = kept(tmp_path / "direct")
    for fatal in range(1, 100, every):
        out = tmp_path / f"run{fatal}"
        with BatchServer(rater) as server, monkeypatch.context() as patch:
            killed = kill_at(patch, fatal, when)
            for _ in range(20):
                for action in ("submit", "collect"):
                    with contextlib.suppress(KilledError):
                        run(*flags, "--base-url", server.base_url, "--batch", action, "--out", out, status=None)
                if (out / "traces.jsonl").exists():
                    break
            assert kept(out) == expected
            assert len(server.paid) == len(set(server.paid)), f"paid twice after a kill at step {fatal}"
            assert {custom_id.split("/")[0] for custom_id in server.paid} == {key[0] for key in records(out)}
            tokens = [batch["metadata"]["judgeseye"] for batch in server.batches]
            assert len(tokens) == len(set(tokens)), f"submitted twice after a kill at step {fatal}"
        if not killed():
            break
    assert 20 < fatal < 99, "there are two rounds, of more than ten steps each"


def kill_at(patch: pytest.MonkeyPatch, fatal: int, when: str) -> Callable[[], bool]:
    """Have one step cut off; return what says whether it came to that."""
    taken = 0

    def dies() -> bool:
        nonlocal taken
        taken += 1
        return taken == fatal

    def killing(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            die = dies()
            if die and when == "before":
                raise KilledError
            result = real(*arguments, **options)
            if die:
                raise KilledError
            return result

        async def call_async(*arguments: Any, **options: Any) -> Any:
            die = dies()
            if die and when == "before":
                raise KilledError
            result = await real(*arguments, **options)
            if die:
                raise KilledError
            return result

        return call_async if inspect.iscoroutinefunction(real) else call

    for owner, name in STEPS:
        patch.setattr(owner, name, killing(getattr(owner, name)))
    return lambda: taken >= fatal
