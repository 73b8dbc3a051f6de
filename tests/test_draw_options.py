"""--give-up, --ahead and --samples-per-request from the command line to the files of a run."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from pipelines.infer_traces import STAGE, main
from tests.scripted_server import Answer, ScriptedServer
from tests.small_corpora import ORDINAL_5, rating, write_corpus
from tests.stage_runs import Record, Run, calls_of, leave_the_user, read, refused_line, strict


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    leave_the_user(tmp_path, monkeypatch)
    return calls_of(STAGE, main, monkeypatch, capsys)


def corpus_of(folder: Path, items: int) -> Path:
    return write_corpus(folder, {f"i{number}": {"a": 1 + number % 5} for number in range(items)}, ORDINAL_5)


def off_by_the_item(body: Record, count: int) -> Answer:
    """Answer near a value that is the item's own, so that labels far from it are hopeless."""
    number = int(re.search(r"text of i(\d+)", body["messages"][-1]["content"])[1])  # type: ignore[index]
    verdict = 1 + (number // 5 % 5 + body["seed"] % 2) % 5
    return Answer(rating(verdict), reasoning=f"It is number {body['seed']} of its kind.")


def first_sample(body: Record, count: int) -> Answer:
    first, *others = [Answer(rating(1 + (body["seed"] + place) % 5)) for place in range(body.get("n", 1))]
    return Answer(first.content, siblings=others)


# --give-up


def test_hopeless_items_are_given_up_and_the_summary_says_what_it_costs(tmp_path: Path, run: Run) -> None:
    corpus = corpus_of(tmp_path / "corpus", 120)
    with ScriptedServer(off_by_the_item) as server:
        where = ["--corpus", corpus, "--split", "all", "--k", 16, "--null-items", 10]
        where += ["--model", "openai/scripted", "--base-url", server.base_url]
        whole = run(*where, "--out", "whole")
        outcome = run(*where, "--give-up", 0.05, "--out", "given_up")
        asked = len(server.requests)
        summaries = [strict(Path(out) / "summary.json") for out in ("whole", "given_up")]
        given_up = summaries[1]["given_up"]
        assert summaries[0]["given_up"] is None
        assert "gave up" not in whole.out
        assert given_up["items"] > 10
        assert given_up["below"] == 0.05
        assert f"gave up {given_up['items']} items whose chance was below 5.0 %" in outcome.out
        assert f"up to {given_up['draws_left_out']:,} draws" in outcome.out
        assert summaries[1]["draws"]["first"] < summaries[0]["draws"]["first"]
        unmatched = read(Path("given_up") / "unmatched.jsonl")
        assert sum(record["draws"] < 16 for record in unmatched) == given_up["items"]
        # The same command again has nothing to do, and comes to the same.
        assert run(*where, "--give-up", 0.05, "--out", "given_up").out == outcome.out
        assert len(server.requests) == asked
        # Without it the items that were given up get the rest of their draws.
        run(*where, "--give-up", 0, "--no-ahead", "--out", "given_up")
        assert [record["item_id"] for record in read(Path("given_up") / "traces.jsonl")] == [
            record["item_id"] for record in read(Path("whole") / "traces.jsonl")
        ]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["--strategy", "fixed"], ["--give-up 0.1", "leave it out"]),
        (["--keep", "all"], ["--give-up 0.1", "leave it out"]),
        (["--workers", 2], ["--give-up 0.1", "--workers"]),
    ],
)
def test_what_giving_up_does_not_go_with_is_refused(
    tmp_path: Path, run: Run, given: list[object], names: list[str]
) -> None:
    refused_line(run, tmp_path, "--corpus", "demo", "--give-up", 0.1, *given, names=names)


@pytest.mark.parametrize("value", ["1", "-0.1", "nan"])
def test_a_chance_is_below_one(tmp_path: Path, run: Run, value: str) -> None:
    refused_line(run, tmp_path, "--corpus", "demo", "--give-up", value, names=["--give-up", value])


# --ahead


def test_slots_that_idle_draw_ahead_unless_told_not_to(tmp_path: Path, run: Run) -> None:
    corpus = corpus_of(tmp_path / "corpus", 4)
    kept, made = {}, {}
    for flag in ("--ahead", "--no-ahead"):
        with ScriptedServer(
            lambda body, count: Answer(first_sample(body, count).content, delay_seconds=0.02)
        ) as server:
            where = ["--corpus", corpus, "--split", "all", "--null-items", 0, "--model", "openai/scripted"]
            run(*where, "--base-url", server.base_url, flag, "--out", f"run{flag}")
            assert (server.most_at_once > 4) == (flag == "--ahead")
            kept[flag] = [{**record, "seconds": 0} for record in read(Path(f"run{flag}") / "traces.jsonl")]
            made[flag] = len(server.requests)
    assert kept["--ahead"] == kept["--no-ahead"]
    assert len(kept["--ahead"]) == 4
    assert made["--ahead"] > made["--no-ahead"]


def test_the_rule_reader_draws_nothing_ahead(run: Run) -> None:
    run("--corpus", "demo", "--limit", 5, "--null-items", 0, "--out", "plain")
    run("--corpus", "demo", "--limit", 5, "--null-items", 0, "--no-ahead", "--out", "not_ahead")
    draws = [strict(Path(out) / "summary.json")["draws"] for out in ("plain", "not_ahead")]
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("--give-up", 0.1), ("--samples-per-request", 4), ("--max-cost", 5.0), ("--max-total-tokens", 500)],
)
def test_a_round_of_a_batch_is_sent_as_a_whole(tmp_path: Path, run: Run, name: str, value: float) -> None:
    where = ["--model", "openai/mine", "--base-url", "http://127.0.0.1:9/v1", "--batch", "submit"]
    refused_line(run, tmp_path, *where, name, value, names=["--batch submit", f"{name} {value}"])


# --samples-per-request


def test_several_draws_come_in_one_request(tmp_path: Path, run: Run) -> None:
    corpus = corpus_of(tmp_path / "corpus", 6)
    with ScriptedServer(first_sample) as server:
        where = ["--corpus", corpus, "--split", "all", "--strategy", "fixed", "--model", "openai/scripted"]
        where += ["--base-url", server.base_url, "--out", "run"]
        run(*where, "--samples-per-request", 8)
        assert Counter(body["n"] for body in server.requests) == {8: 12}
        assert len(read(Path("run") / "candidates.jsonl")) == 96
        manifest = strict(Path("run") / "manifest.json")
        assert (manifest["prompt_tokens"], manifest["completion_tokens"]) == (12 * 11, 12 * 7)
        # Other groups would be other draws.
        refused_line(run, tmp_path, *where, "--samples-per-request", 4, names=["samples_per_request", "--new"])
        refused_line(run, tmp_path, *where, names=["samples_per_request", "--new"])


def test_samples_are_for_served_models(tmp_path: Path, run: Run) -> None:
    refused_line(run, tmp_path, "--samples-per-request", 4, names=["--samples-per-request 4", "openai/"])
