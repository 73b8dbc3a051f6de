"""Drawing again under another guideline, or with the label shown: once, within the budget."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.infer_traces import main as infer
from raters.models.embedded import EmbeddedModel
from raters.models.protocol import Completion
from raters.records import ModelError
from raters.rounds import Redrawing
from raters.trace_runs import Draws, TraceRun
from raters.trials import Spending, WorkEnds
from tests.small_corpora import ORDINAL_3, ScriptedModel, varied_texts, write_corpus

EMBEDDED = EmbeddedModel()
RULES = "Count.\n- length helps twice.\n- start at five.\n- rest ignored."


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TraceRun]:
    folder = tmp_path_factory.mktemp("runs")
    texts = varied_texts(24)
    labels = {item_id: {"ann": 1 + n % 3, "bob": 1 + n // 2 % 3} for n, item_id in enumerate(texts)}
    write_corpus(folder / "corpus", labels, ORDINAL_3, inputs=texts)
    found = {}
    for name, options in {
        "fixed": ["--strategy", "fixed", "--k", "4"],
        "adaptive": ["--k", "6", "--null-items", "0"],
        "people": ["--strategy", "fixed", "--k", "3", "--labels", "per-annotator"],
    }.items():
        assert infer(["--corpus", str(folder / "corpus"), "--out", str(folder / name), *options]) == 0
        found[name] = TraceRun.read(folder / name)
    return found


class CountingModel:
    """The rule reader, with a count of its answers."""

    spec = "embedded"

    def __init__(self) -> None:
        self.asked = 0

    async def complete(self, messages: Any, seeds: Any, settings: Any) -> list[Completion]:
        self.asked += 1
        return await EMBEDDED.complete(messages, seeds, settings)

    async def close(self) -> None:
        return


def redrawing(run: TraceRun, folder: Path, spending: Spending | None = None, **options: Any) -> Redrawing:
    return Redrawing(run, folder / "rounds", spending or Spending(), 4, **options)


def under(again: Redrawing, model: Any, guideline: str = RULES, round_number: int = 2) -> Draws:
    return asyncio.run(again.under(guideline, model, round_number))


def explained(again: Redrawing, model: Any, recover: Any = EMBEDDED, per_level: int = 3, k: int = 4) -> Draws:
    families = ("embedded/", "embedded/")
    return asyncio.run(again.explained("Say how good.", model, recover, families, per_level, k))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted((folder / "rounds").glob("*.jsonl"))
            for line in path.read_text().splitlines()]  # fmt: skip


# --- under another guideline ------------------------------------------------------------------------------


def test_the_same_items_under_the_other_guideline(tmp_path: Path, runs: dict[str, TraceRun]) -> None:
    run = runs["fixed"]
    draws = under(redrawing(run, tmp_path), EMBEDDED)
    assert sorted(draws.items.tolist()) == sorted(run.draws.items.tolist())
    assert {record["guideline_sha256"] for record in lines(tmp_path)} != {run.dimension.guideline_sha256}
    for record in draws.records(range(len(draws))):
        assert "length helps twice" in record["trace"]
        assert "maybe" not in record["trace"]
    # People's labels are the same: of every item as in the run.
    assert dict(zip(draws.items.tolist(), draws.labels.tolist(), strict=True)) == dict(
        zip(run.draws.items.tolist(), run.draws.labels.tolist(), strict=True)
    )


def test_the_first_round_over_again_draws_what_the_run_drew(tmp_path: Path, runs: dict[str, TraceRun]) -> None:
    run = runs["fixed"]
    draws = under(redrawing(run, tmp_path), EMBEDDED, run.dimension.guideline, 1)
    seen = [{(one["item_id"], one["draw"]): one["trace"] for one in found.records(range(len(found)))}
            for found in (draws, run.draws)]  # fmt: skip
    assert seen[0] == seen[1]
    later = under(redrawing(run, tmp_path), EMBEDDED, run.dimension.guideline, 2)
    assert {one["trace"] for one in later.records(range(96 * 2 // 3))} != set(seen[0].values())


def test_adaptive_runs_stop_at_the_first_acceptance_again(tmp_path: Path, runs: dict[str, TraceRun]) -> None:
    draws = under(redrawing(runs["adaptive"], tmp_path), EMBEDDED, "Guess.")
    for item in np.unique(draws.items):
        accepted = draws.accepted[draws.items == item]
        assert accepted.sum() <= 1
        assert len(accepted) == 6 or accepted[-1]


def test_nothing_is_drawn_twice(tmp_path: Path, runs: dict[str, TraceRun]) -> None:
    model, spending = CountingModel(), Spending()
    for _ in range(2):
        under(redrawing(runs["fixed"], tmp_path, spending), model)
    assert model.asked == len(runs["fixed"].draws) == spending.requests
    under(redrawing(runs["fixed"], tmp_path, spending), model, "Another.")
    assert model.asked == 2 * len(runs["fixed"].draws)


@pytest.mark.parametrize("kept", [0, 1, 7, 20])
def test_a_crash_costs_nothing_that_was_drawn(tmp_path: Path, runs: dict[str, TraceRun], kept: int) -> None:
    whole = under(redrawing(runs["people"], tmp_path / "whole"), EMBEDDED)
    under(redrawing(runs["people"], tmp_path), EMBEDDED)
    (path,) = (tmp_path / "rounds").glob("*.jsonl")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]) + b'{"item')
    model = CountingModel()
    again = under(redrawing(runs["people"], tmp_path), model)
    # Two people's labels stand on a line each; the draw is one.
    assert model.asked == len(whole) // 2 - (kept + 1) // 2
    names = ("item_id", "draw", "annotator_id", "trace")
    seen = [{tuple(one[name] for name in names) for one in found.records(range(len(found)))}
            for found in (again, whole)]  # fmt: skip
    assert seen[0] == seen[1]
    assert len(again) == len(whole)


def test_recount_counts_draws_as_the_session_did(tmp_path: Path, runs: dict[str, TraceRun]) -> None:
    for name in ("fixed", "people"):
        spending, later = Spending(), Spending()
        under(redrawing(runs[name], tmp_path / name, spending), EMBEDDED)
        explained(redrawing(runs[name], tmp_path / name, spending), EMBEDDED)
        redrawing(runs[name], tmp_path / name, later).recount()
        assert (later.requests, later.prompt_tokens, later.completion_tokens) == (
            spending.requests, spending.prompt_tokens, spending.completion_tokens
        )  # fmt: skip


# --- budget and stopping ----------------------------------------------------------------------------------


def test_a_budget_ends_the_draws_and_a_larger_one_goes_on(tmp_path: Path, runs: dict[str, TraceRun]) -> None:
    run, model = runs["fixed"], CountingModel()
    with pytest.raises(WorkEnds, match="over the budget of 10"):
        under(redrawing(run, tmp_path, Spending(most_requests=10)), model)
    assert 10 <= model.asked <= 10 + 3  # what was in flight is kept
    assert len(lines(tmp_path)) == model.asked
    again = redrawing(run, tmp_path, Spending(most_requests=len(run.draws)))
    again.recount()
    assert len(under(again, model)) == len(run.draws)
    assert model.asked == len(run.draws)


def test_what_is_there_needs_no_budget(tmp_path: Path, runs: dict[str, TraceRun]) -> None:
    """Or a run that ended by its budget would come out otherwise when it is called again."""
    for name, draw in {"under": under, "explained": explained}.items():
        first = draw(redrawing(runs["fixed"], tmp_path / name), EMBEDDED)
        again = redrawing(runs["fixed"], tmp_path / name, Spending(most_requests=1))
        again.recount()
        assert len(draw(again, EMBEDDED)) == len(first)


def test_no_budget_no_draw(tmp_path: Path, runs: dict[str, TraceRun]) -> None:
    model = CountingModel()
    for draw in (under, explained):
        with pytest.raises(WorkEnds):
            draw(redrawing(runs["fixed"], tmp_path, Spending(most_requests=0)), model)
    assert model.asked == 0
    assert not (tmp_path / "rounds").exists()


def test_tokens_end_the_draws_too(tmp_path: Path, runs: dict[str, TraceRun]) -> None:
    model = CountingModel()
    with pytest.raises(WorkEnds, match="tokens are used, of at most 500"):
        under(redrawing(runs["fixed"], tmp_path, Spending(most_tokens=500)), model)
    assert 0 < model.asked < 30


def stop_after(count: int) -> tuple[Callable[[], None], list[Redrawing]]:
    made: list[int] = []
    holder: list[Redrawing] = []

    def on_draw() -> None:
        made.append(1)
        if len(made) == count:
            holder[0].stop()

    return on_draw, holder


def test_stopping_keeps_what_was_drawn(tmp_path: Path, runs: dict[str, TraceRun]) -> None:
    on_draw, holder = stop_after(5)
    holder.append(redrawing(runs["fixed"], tmp_path, on_draw=on_draw))
    model = CountingModel()
    with pytest.raises(WorkEnds, match="stopped"):
        under(holder[0], model)
    assert 5 <= model.asked <= 8
    under(redrawing(runs["fixed"], tmp_path), model)
    assert model.asked == len(runs["fixed"].draws)


def test_a_model_that_fails_keeps_what_came(tmp_path: Path, runs: dict[str, TraceRun]) -> None:
    answers = [1] * 6

    def answer(prompt: str, seed: int) -> Completion:
        if not answers:
            raise ModelError("overloaded")
        answers.pop()
        return Completion("<rating>2</rating>", "- start at five.", "stop", 9, 4)

    spending = Spending()
    with pytest.raises(ModelError, match="overloaded"):
        under(redrawing(runs["fixed"], tmp_path, spending), ScriptedModel(answer, "embedded"))
    assert len(lines(tmp_path)) == spending.requests == 6


# --- explanations of labels that are shown ----------------------------------------------------------------


def test_explanations_of_some_labels_of_each_kind(tmp_path: Path, runs: dict[str, TraceRun]) -> None:
    draws = explained(redrawing(runs["fixed"], tmp_path), EMBEDDED)
    levels = [set(draws.items[draws.labels == level].tolist()) for level in range(3)]
    assert [len(items) for items in levels] == [3, 3, 3]
    train = set(runs["fixed"].split.indices("train").tolist())
    assert set().union(*levels) <= train
    for record in draws.records(range(len(draws))):
        assert (record["chance"], record["mode"]) == ("rationalized", "rationalize")
        assert "<rating>" not in record["trace"]
    for items in levels:
        for item in items:
            accepted = draws.accepted[draws.items == item]
            assert len(accepted) <= 4
            assert not accepted[:-1].any()


def test_an_explanation_that_does_not_give_the_label_back_is_rejected(
    tmp_path: Path, runs: dict[str, TraceRun]
) -> None:
    def explain(prompt: str, seed: int) -> Completion:
        return Completion("<rating>1</rating>", "It has words. The rating is 1. They are many.", "stop", 9, 4)

    asked = []

    def recover(prompt: str, seed: int) -> Completion:
        asked.append(prompt)
        return Completion("<rating>2</rating>", "", "stop", 9, 4)

    draws = explained(
        redrawing(runs["fixed"], tmp_path), ScriptedModel(explain, "a/b"), ScriptedModel(recover, "c/d"), k=2
    )
    assert draws.accepted.tolist() == (draws.labels == 1).tolist()
    assert draws.accepted.sum() == 3
    assert len(draws) == 3 + 2 * 6
    traces = {record["trace"] for record in draws.records(range(len(draws)))}
    assert traces == {"It has words. They are many."}
    assert all("The rating is 1" not in prompt for prompt in asked)


def test_explanations_are_paid_for_once(tmp_path: Path, runs: dict[str, TraceRun]) -> None:
    model = CountingModel()
    explained(redrawing(runs["fixed"], tmp_path), model)
    asked = model.asked
    explained(redrawing(runs["fixed"], tmp_path), model)
    assert model.asked == asked
