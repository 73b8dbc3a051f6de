"""Budgets and estimates: by hand, and from the command line to where a run ends."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pipelines.infer_traces import STAGE, main
from pipelines.rate_items import STAGE as RATING
from pipelines.rate_items import main as rate_items
from raters.budgets import Budget, Use, estimate
from tests.scripted_server import Answer, Fault, ScriptedServer
from tests.small_corpora import ORDINAL_5, ScriptedModel, rating, small_corpus, start_run, write_corpus
from tests.stage_runs import Record, Run, calls_of, leave_the_user, read, refused_line, run_alone, strict

WORST = Use(1, 4096, 0.02)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    leave_the_user(tmp_path, monkeypatch)
    return calls_of(STAGE, main, monkeypatch, capsys)


# By hand


def test_a_draw_begins_if_it_fits_in_beside_those_in_flight() -> None:
    budget = Budget(1.0, None, WORST)
    used = Use(80, 80_000, 0.8)  # a cent each
    assert budget.refusal(used, 0) == budget.refusal(used, 19) == ""
    refusal = budget.refusal(used, 20)
    assert (
        refusal
        == "--max-cost 1.0: $0.8 are spent, and a draw takes about $0.01; give more, and the same command, to go on"
    )
    assert budget.refusal(Use(80, 80_000, 0.8, untold=10), 9) == ""
    assert budget.refusal(Use(80, 80_000, 0.8, untold=10), 10)
    assert Budget(1.0, None, WORST, draws_of_a_request=4).refusal(used, 4) == ""
    assert Budget(1.0, None, WORST, draws_of_a_request=4).refusal(used, 5)


def test_tokens_are_held_alike() -> None:
    budget = Budget(None, 100_000, WORST)
    assert budget.refusal(Use(90, 90_000, 0.0), 9) == ""
    assert "--max-total-tokens 100000: 90,000 tokens are spent" in budget.refusal(Use(90, 90_000, 0.0), 10)


def test_before_the_first_answer_a_draw_counts_as_the_longest() -> None:
    budget = Budget(None, 10_000, WORST)
    nothing = Use(0, 0, 0.0)
    assert [bool(budget.refusal(nothing, running)) for running in range(4)] == [False, False, True, True]
    # One is made in any case, or nobody would know; unless there is nothing to spend.
    assert Budget(None, 10, WORST).refusal(nothing, 0) == ""
    assert Budget(None, 0, WORST).refusal(nothing, 0)


def test_a_server_that_counts_no_tokens_is_no_server_for_a_budget() -> None:
    assert "counts no tokens" in Budget(1.0, None, WORST).refusal(Use(0, 0, 0.0, untold=3), 2)


def test_an_estimate_is_what_the_first_items_needed(tmp_path: Path) -> None:
    """Items 0 .. 9 in the order of work need 1 and 4 draws by turns: 2.5 on average, with a spread of 1.58."""
    corpus = small_corpus(tmp_path, {f"item{number}": {"a": 1} for number in range(100)}, ORDINAL_5)
    run = start_run(corpus, tmp_path / "c.jsonl", ScriptedModel(lambda prompt, seed: rating(1)), k=4)
    for row in range(10):
        run.ledger.matched_draw[row] = 0 if row % 2 == 0 else 3
    used = Use(25, 5_000, 0.5)
    found = estimate(run.ledger, 10, 0, 1, used, usd_known=True)
    error = 1.96 * np.std([1, 4], ddof=0) * np.sqrt(10 / 9) / np.sqrt(10)
    assert (found.draws, found.low, found.high) == pytest.approx((250, 250 - 100 * error, 250 + 100 * error))
    assert (found.most, found.tokens, found.usd) == (400, 200, 0.02)
    assert (
        str(found)
        == "250 draws (152 to 348, 400 at the most), 50,000 tokens, $5.00 ($3.04 to $6.96, $8.00 at the most)"
    )
    # Items that get all their draws are known to.
    assert str(estimate(run.ledger, 10, 100, 1, used, usd_known=True)) == "400 draws, 80,000 tokens, $8.00"
    assert estimate(run.ledger, 10, 40, 1, used, usd_known=True).draws == 40 * 4 + 60 * 2.5
    assert estimate(run.ledger, 10, 0, 4, used, usd_known=True).draws == 400
    assert estimate(run.ledger, 10, 0, 1, used, usd_known=False).usd is None


# From the command line


def answer(body: Record, count: int) -> Answer:
    return Answer(rating(1 + body["seed"] % 5), prompt_tokens=60, completion_tokens=40)


def corpus_of(folder: Path, items: int) -> Path:
    return write_corpus(folder, {f"i{number}": {"a": 1 + number % 5} for number in range(items)}, ORDINAL_5)


def command(tmp_path: Path, server: ScriptedServer, items: int = 60) -> list[object]:
    corpus = tmp_path / "corpus"
    if not corpus.exists():
        corpus_of(corpus, items)
    where = ["--corpus", corpus, "--split", "all", "--k", 8, "--null-items", 0, "--concurrency", 4, "--no-ahead"]
    return [*where, "--model", "openai/mine", "--base-url", server.base_url, "--out", tmp_path / "run"]


def test_an_estimate_is_told_before_other_items_begin(tmp_path: Path, run: Run) -> None:
    with ScriptedServer(answer) as server:
        asked = command(tmp_path, server)
        outcome = run(*asked, "--input-price", 1000, "--output-price", 10_000)
        told = re.search(
            r"estimate from the first 10 items: ([\d,]+) draws \(([\d,]+) to ([\d,]+), 480 at the most\)", outcome.err
        )
        assert told is not None, outcome.err
        draws, low, high = (int(number.replace(",", "")) for number in told.groups())
        made = strict(tmp_path / "run" / "summary.json")["draws"]["first"]
        assert low <= made <= high
        assert f"{100 * draws:,} tokens" in outcome.err or f"{100 * (draws + 1):,} tokens" in outcome.err
        # Whatever is asked about the first ten items is asked before anything else.
        items = [re.search(r"text of (i\d+)", body["messages"][-1]["content"])[1] for body in server.requests]  # type: ignore[index]
        first = set(list(dict.fromkeys(items))[:10])
        last = max(place for place, item in enumerate(items) if item in first)
        assert set(items[: last + 1]) == first
        # Finished, or gone on with, it is not told again.
        assert "estimate from" not in run(*asked).err


def test_a_budget_ends_a_run_with_all_it_has_and_more_of_it_goes_on(tmp_path: Path, run: Run) -> None:
    with ScriptedServer(answer) as server:
        asked = command(tmp_path, server)
        priced = ["--input-price", 1000, "--output-price", 1000]  # 10 cents a draw
        outcome = run(*asked, *priced, "--max-cost", 5, status=1)
        folder = tmp_path / "run"
        lines = outcome.err.strip().splitlines()
        assert lines[-1].startswith(
            "infer_traces: --max-cost 5.0: $5 are spent, and a draw takes about $0.1; give more"
        )
        assert any(line.startswith("50 draws are kept in") for line in lines)
        assert "over --max-cost 5.0, so the run will end there" in outcome.err
        assert len(server.requests) == len(read(folder / "candidates.jsonl")) == 50
        manifest = strict(folder / "manifest.json")
        assert manifest["status"] == "stopped"
        assert manifest["cost_usd"] == pytest.approx(5.0)
        # The same again asks for nothing.
        run(*asked, *priced, "--max-cost", 5, status=1)
        assert len(server.requests) == 50
        run(*asked, *priced, "--max-total-tokens", 7_000, status=1)
        assert len(server.requests) == 70
        run(*asked, *priced, "--max-cost", 1000)
        kept = [{**record, "seconds": 0} for record in read(folder / "traces.jsonl")]
        run(*command(tmp_path, server)[:-1], tmp_path / "at_once")
        assert kept == [{**record, "seconds": 0} for record in read(tmp_path / "at_once" / "traces.jsonl")]


def test_a_budget_is_held_to_a_few_draws_when_they_differ(tmp_path: Path, run: Run) -> None:
    def varied(body: Record, count: int) -> Answer:
        return Answer(rating(1 + body["seed"] % 5), prompt_tokens=60, completion_tokens=10 + body["seed"] % 500)

    with ScriptedServer(varied) as server:
        run(*command(tmp_path, server), "--max-total-tokens", 20_000, status=1)
    manifest = strict(tmp_path / "run" / "manifest.json")
    used = manifest["prompt_tokens"] + manifest["completion_tokens"]
    # What four draws in flight may differ from the mean, and what was left since no further one fitted in.
    assert 20_000 - 570 <= used <= 20_000 + 4 * 260


def test_a_budget_that_is_just_enough_is_enough(tmp_path: Path, run: Run) -> None:
    with ScriptedServer(answer) as server:
        run(*command(tmp_path, server)[:-1], tmp_path / "whole")
        manifest = strict(tmp_path / "whole" / "manifest.json")
        tokens = manifest["prompt_tokens"] + manifest["completion_tokens"]
        run(*command(tmp_path, server), "--max-total-tokens", tokens - 1, status=1)
        run(*command(tmp_path, server)[:-1], tmp_path / "enough", "--max-total-tokens", tokens)
        assert strict(tmp_path / "enough" / "manifest.json")["status"] == "complete"


def test_prices_come_from_files_by_model(tmp_path: Path, run: Run) -> None:
    def script(body: Record, count: int) -> Answer:
        return Answer(rating(1), prompt_tokens=60, completion_tokens=40)

    table = tmp_path / "mine.yaml"
    table.write_text(
        "openai/mine: {input: 1000, output: 2000, as_of: 2025-06-30, source: a test}\n"
        "openai/bigger: {input: 10000, output: 20000, as_of: 2025-06-30}\n"
    )
    with ScriptedServer(script) as server:
        asked = [*command(tmp_path, server, items=5), "--escalate", "openai/bigger", "--second-k", 2]
        run(*asked, "--prices", table)
    manifest = strict(tmp_path / "run" / "manifest.json")
    draws = manifest["draws"]
    assert draws == {"first": 1 + 4 * 8, "escalated": 4 * 2}
    each = (60 * 1000 + 40 * 2000) / 1e6
    assert manifest["cost_usd"] == pytest.approx(each * (draws["first"] + 10 * draws["escalated"]))
    assert manifest["prices"]["first"] == {"input": 1000.0, "output": 2000.0, "as_of": "2025-06-30", "source": "a test"}


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["--model", "openai/mine", "--max-cost", 5], ["--max-cost 5.0", "openai/mine", "--input-price", "--prices"]),
        (["--max-cost", 5], ["--max-cost 5.0", "leave it out"]),
        (["--prices", "none.yaml"], ["--prices none.yaml", "no such file"]),
        (["--max-cost", -1], ["--max-cost", "-1"]),
    ],
)
def test_budgets_that_cannot_be_held_are_refused(
    tmp_path: Path, run: Run, given: list[object], names: list[str]
) -> None:
    base = ["--base-url", "http://127.0.0.1:9/v1"] if "openai/mine" in given else []
    refused_line(run, tmp_path, *given, *base, names=names)


def test_tokens_that_nobody_counts_end_a_run_with_a_budget(tmp_path: Path, run: Run) -> None:
    with ScriptedServer(lambda body, count: Answer(rating(1), usage=False)) as server:
        outcome = run(*command(tmp_path, server), "--max-total-tokens", 10**6, status=1)
        assert "the server counts no tokens" in outcome.err.splitlines()[-1]
        assert len(server.requests) <= 4
        assert len(read(tmp_path / "run" / "candidates.jsonl")) == len(server.requests)


def test_what_was_refused_is_free(tmp_path: Path, run: Run) -> None:
    def script(body: Record, count: int) -> Answer | Fault:
        return answer(body, count) if count % 2 == 0 else Fault(400, "filtered", "invalid_request_error")

    with ScriptedServer(script) as server:
        run(*command(tmp_path, server), "--max-total-tokens", 5_000, status=1)
    manifest = strict(tmp_path / "run" / "manifest.json")
    assert manifest["prompt_tokens"] + manifest["completion_tokens"] == 5_000


def test_ratings_have_estimate_and_budget_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_the_user(tmp_path, monkeypatch)
    rate = calls_of(RATING, rate_items, monkeypatch, capsys)
    table = tmp_path / "mine.yaml"
    table.write_text("openai/mine: {input: 1000, output: 1000, as_of: 2025-06-30}\n")  # 10 cents a draw
    with ScriptedServer(answer) as server:
        asked = ["--corpus", corpus_of(tmp_path / "corpus", 30), "--split", "all", "--draws", 2, "--concurrency", 4]
        asked += ["--model", "openai/mine", "--base-url", server.base_url, "--out", tmp_path / "run"]
        refused_line(rate, tmp_path, *asked, "--max-cost", 2, names=["--max-cost 2.0", "openai/mine", "--prices"])
        outcome = rate(*asked, "--prices", table, "--max-cost", 2, status=1)
        assert "estimate from the first 10 items: 60 draws, 6,000 tokens, $6.00; over --max-cost 2.0" in outcome.err
        assert outcome.err.strip().splitlines()[-1].startswith("rate_items: --max-cost 2.0: $2 are spent")
        assert len(server.requests) == len(read(tmp_path / "run" / "ratings.jsonl")) == 20
        manifest = strict(tmp_path / "run" / "manifest.json")
        assert (manifest["status"], manifest["price"]["as_of"]) == ("stopped", "2025-06-30")
        outcome = rate(*asked, "--prices", table)
        assert "estimate from" not in outcome.err
        assert "$6.00" in outcome.out
        assert len(server.requests) == 60


def test_a_budget_of_a_process_of_its_own_says_how_to_go_on(tmp_path: Path) -> None:
    with ScriptedServer(answer) as server:
        done = run_alone(STAGE, *command(tmp_path, server), "--max-total-tokens", 3_000)
    assert done.status == 1
    assert "30 draws are kept" in done.err
