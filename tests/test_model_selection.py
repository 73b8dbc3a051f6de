"""Which checkpoint is kept: by hand, and against scipy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from raters.model_selection import DevRater, DevSplit, Selection, replayed
from raters.plain_raters import plain_rater
from raters.rater_files import RaterSpec
from raters.rating_runs import RatingSheet
from raters.records import DataError
from raters.trace_runs import TraceRun
from tests.small_corpora import NOMINAL, ScriptedModel, rating
from tests.small_training import WORDS, write_trace_run


def test_the_best_is_kept_and_of_equals_the_first() -> None:
    selection = Selection(patience=30)
    assert [selection.enter(step, figure) for step, figure in ((10, 0.1), (20, 0.3), (30, 0.3), (40, 0.2))] == [
        True, True, False, False,
    ]  # fmt: skip
    assert (selection.best_step, selection.best) == (20, 0.3)


def test_training_ends_when_patience_has_run_out() -> None:
    selection = Selection(patience=20)
    ended = []
    for step, figure in ((10, 0.2), (20, 0.1), (30, 0.2), (40, 0.9)):
        selection.enter(step, figure)
        ended.append(selection.exhausted)
    # at 30 the best is 20 steps back; a later rise would have set it back
    assert ended == [False, False, True, False]
    assert not Selection(patience=1).exhausted


def test_even_a_bad_first_checkpoint_is_one() -> None:
    selection = Selection(patience=5)
    assert selection.enter(5, -1.0)
    assert selection.best_step == 5


def test_a_selection_is_replayed_from_metrics_without_what_was_before_training() -> None:
    lines = [
        {"step": 0, "dev": {"value": 0.9}},
        {"step": 1, "loss": 2.0},
        {"step": 2, "dev": {"value": 0.1}},
        {"step": 4, "dev": {"value": 0.2}},
        {"step": 6, "dev": {"value": 0.0}},
    ]
    assert replayed(2, lines) == Selection(patience=2, best_step=4, best=0.2, last_step=6)
    assert replayed(2, lines).exhausted


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TraceRun:
    return TraceRun.read(write_trace_run(tmp_path_factory.mktemp("run")))


def rater(run: TraceRun, draws: int = 1) -> RaterSpec:
    from dataclasses import replace

    prompt = str(run.folder.parent / "short.md")
    return replace(plain_rater("hf/x", run.corpus, run.dimension, run.split, prompt=prompt), draws=draws)


def label_in(prompt: str) -> int:
    return next(place for place, word in enumerate(WORDS, start=1) if f"{word} text" in prompt)


def test_the_figure_is_kendalls_tau_of_the_mean_of_draws(run: TraceRun, tmp_path: Path) -> None:
    dev, spec = DevSplit.of(run, None), rater(run, draws=3)
    chance = np.random.default_rng(0)
    said: dict[str, list[int]] = {}

    def answer(prompt: str, seed: int) -> str:
        verdict = int(np.clip(label_in(prompt) + chance.integers(-1, 2), 1, 3))
        said.setdefault(prompt, []).append(verdict)
        return rating(verdict)

    found = DevRater(dev, spec, tmp_path).rate("step", lambda: ScriptedModel(answer))
    assert found is not None
    labels = [label_in(prompt) for prompt in said]
    wanted = stats.kendalltau([np.mean(verdicts) for verdicts in said.values()], labels).statistic
    assert found["value"] == pytest.approx(wanted)
    assert 0 < wanted < 1
    assert (found["items"], found["draws"], found["unreadable"]) == (len(dev.items), 3 * len(dev.items), 0)


def test_ratings_are_made_once(run: TraceRun, tmp_path: Path) -> None:
    dev, spec = DevSplit.of(run, None), rater(run)
    model = ScriptedModel(lambda prompt, seed: rating(label_in(prompt)))
    first = DevRater(dev, spec, tmp_path).rate("step", lambda: model)
    assert first is not None
    assert first["value"] == pytest.approx(1)

    def no_model() -> ScriptedModel:
        raise AssertionError("asked again")

    assert DevRater(dev, spec, tmp_path).rate("step", no_model) == first
    lines = (tmp_path / "step.jsonl").read_text().splitlines()
    (tmp_path / "step.jsonl").write_text("\n".join(lines[:2]) + "\n" + lines[2][:40])  # torn by a crash
    again = ScriptedModel(lambda prompt, seed: rating(label_in(prompt)))
    assert DevRater(dev, spec, tmp_path).rate("step", lambda: again) == first
    assert len(again.prompts) == len(dev.items) - 2


def test_a_stopped_rating_has_no_figure(run: TraceRun, tmp_path: Path) -> None:
    dev = DevRater(DevSplit.of(run, None), rater(run), tmp_path)
    dev.stop()
    assert dev.rate("step", lambda: ScriptedModel(lambda prompt, seed: rating(1))) is None


def test_expected_values_are_held_against_labels_where_a_rater_tells_them(run: TraceRun) -> None:
    from dataclasses import replace

    dev, spec = DevSplit.of(run, None), replace(rater(run), reasoning=False)
    sheet = RatingSheet.empty(run.corpus, spec, dev.items, 1)
    chance = np.random.default_rng(1)
    sheet.numbers[:] = chance.integers(0, 3, sheet.numbers.shape)
    sheet.probabilities[:] = chance.dirichlet([1, 1, 1], sheet.numbers.shape)
    sheet.with_probabilities = sheet.numbers.size
    expected = sheet.probabilities[:, 0] @ [1, 2, 3]
    wanted = stats.kendalltau(expected, dev.labels.gold).statistic
    assert dev.figure(sheet) == pytest.approx(wanted)


def test_a_limit_takes_a_fair_part(run: TraceRun) -> None:
    every, some = DevSplit.of(run, None), DevSplit.of(run, 4)
    assert len(some.items) == 4
    assert set(some.items) < set(every.items)
    assert list(some.items) == sorted(some.items)
    assert len(some.labels.gold) == 4


def test_an_empty_dev_split(tmp_path: Path) -> None:
    folder = write_trace_run(tmp_path)
    run = TraceRun.read(folder)
    path = run.corpus.folder / "annotations.jsonl"
    dev = {run.corpus.item_ids[item] for item in run.split.indices("dev")}
    lines = [line for line in path.read_text().splitlines() if not any(f'"{item}"' in line for item in dev)]
    path.write_text("\n".join(lines) + "\n")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["inputs_sha256"]["annotations.jsonl"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"the dev split has no item with a label on quality.*--split-seed"):
        DevSplit.of(TraceRun.read(folder), None)


def test_a_dev_split_of_one_label(run: TraceRun) -> None:
    with pytest.raises(DataError, match=r"dev split: its 1 labelled items all have quality \d, so that no checkpoint"):
        DevSplit.of(run, 1)


def test_probable_labels_without_quantities_are_held_against_labels(tmp_path: Path) -> None:
    """Of two labels the first is 1 and the second 0, as `dev_gate.quantities` has it."""
    from dataclasses import replace

    run = TraceRun.read(write_trace_run(tmp_path, NOMINAL))
    dev = DevSplit.of(run, None)
    spec = replace(rater(run), reasoning=False)
    sheet = RatingSheet.empty(run.corpus, spec, dev.items, 1)
    sheet.numbers[:] = 0
    sheet.probabilities[:, 0, 0] = 0.2 + 0.6 * dev.labels.gold  # most probable is the person's label
    sheet.probabilities[:, 0, 1] = 1 - sheet.probabilities[:, 0, 0]
    sheet.with_probabilities = sheet.numbers.size
    assert dev.figure(sheet) == pytest.approx(1)
    sheet.probabilities[:] = sheet.probabilities[:, :, ::-1].copy()
    assert dev.figure(sheet) == pytest.approx(-1)
