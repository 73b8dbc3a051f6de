"""Raters on trial: no draw is paid for twice, and a budget holds."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raters.corpora import Corpus
from raters.guidelines import with_guideline
from raters.models.protocol import Completion
from raters.plain_raters import plain_rater
from raters.rater_draws import RaterDraws
from raters.rater_files import RaterSpec
from raters.records import DataError, ModelAccessError, ModelRequestError
from raters.trials import Spending, Trials, WorkEnds
from tests.small_corpora import ORDINAL_3, ScriptedModel, rating, shown_fields, small_corpus

ITEMS = 10


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return small_corpus(tmp_path / "corpus", {f"item{n}": {"ann": 1 + n % 3} for n in range(ITEMS)}, ORDINAL_3)


@pytest.fixture
def spec(corpus: Corpus) -> RaterSpec:
    return plain_rater("openai/scripted", corpus, corpus.dimension(None), None)


def by_item(prompt: str, seed: int) -> str:
    """Rate an item by the digit in its text: 1, 2, 3, 1, ..."""
    return rating(1 + int(shown_fields(prompt)["text"].rstrip(".")[-1]) % 3)


def trials_of(
    folder: Path,
    corpus: Corpus,
    answer: Callable[[str, int], Completion | str] = by_item,
    spending: Spending | None = None,
    **options: Any,
) -> tuple[Trials, ScriptedModel]:
    model = ScriptedModel(answer, "openai/scripted")
    models = {("openai/scripted", None): model}
    return Trials(folder / "trials", corpus, models, 4, spending or Spending(), **options), model


def rate(trials: Trials, spec: RaterSpec, items: list[int], draws: int = 2) -> RaterDraws:
    return asyncio.run(trials.rate(spec, "name", np.array(items, np.int64), draws))


def test_what_a_rater_says(tmp_path: Path, corpus: Corpus, spec: RaterSpec) -> None:
    trials, model = trials_of(tmp_path, corpus)
    found = rate(trials, spec, [7, 2, 4])
    assert found.name == "name"
    assert found.items.tolist() == [2, 4, 7]
    assert found.numbers.tolist() == [[2, 2], [1, 1], [1, 1]]  # the texts' digits 2, 4, 7 are labels 3, 2, 2
    assert found.drawn.tolist() == [2, 2, 2]
    assert found.aggregate == spec.aggregate
    assert len(model.prompts) == 6
    assert len(set(model.seeds)) == 6


def test_no_draw_is_made_twice(tmp_path: Path, corpus: Corpus, spec: RaterSpec) -> None:
    trials, model = trials_of(tmp_path, corpus)
    first = rate(trials, spec, [0, 1, 2])
    again = rate(trials, spec, [2, 1, 0])
    assert again.numbers.tolist() == first.numbers.tolist()
    assert len(model.prompts) == 6
    rate(trials, spec, [1, 2, 3])
    assert len(model.prompts) == 8
    rate(trials, spec, [0, 1, 2, 3], 3)
    assert len(model.prompts) == 12
    assert len(set(zip(model.prompts, model.seeds, strict=True))) == 12
    assert trials.spending.requests == 12


def test_a_later_session_goes_on_from_the_journal(tmp_path: Path, corpus: Corpus, spec: RaterSpec) -> None:
    trials, _ = trials_of(tmp_path, corpus)
    first = rate(trials, spec, [0, 1, 2])
    trials, model = trials_of(tmp_path, corpus)
    trials.recount()
    spent = trials.spending
    assert (spent.requests, spent.prompt_tokens, spent.completion_tokens) == (6, 60, 30)
    assert rate(trials, spec, [0, 1, 2]).numbers.tolist() == first.numbers.tolist()
    assert model.prompts == []
    rate(trials, spec, [0, 1, 2, 3])
    assert len(model.prompts) == 2
    assert spent.requests == 8


def test_another_guideline_is_another_rater(tmp_path: Path, corpus: Corpus, spec: RaterSpec) -> None:
    trials, model = trials_of(tmp_path, corpus)
    rate(trials, spec, [0])
    other = with_guideline(spec, "Count the reasons.")
    assert other.sha256 != spec.sha256
    rate(trials, other, [0])
    assert len(model.prompts) == 4
    assert "Count the reasons." in model.prompts[2]
    assert len(list((tmp_path / "trials").glob("*.jsonl"))) == 2


@pytest.mark.parametrize("blanks", ["{}\n", "\n{}", "  {}\n\n"])
def test_blanks_around_a_guideline_make_no_other_rater(corpus: Corpus, spec: RaterSpec, blanks: str) -> None:
    """Or what was rated under a corpus's guideline would not be found under its lines."""
    assert with_guideline(spec, blanks.format(spec.dimension.guideline)).sha256 == spec.sha256


def test_how_many_draws_make_no_other_rater(tmp_path: Path, corpus: Corpus, spec: RaterSpec) -> None:
    trials, model = trials_of(tmp_path, corpus)
    rate(trials, spec, [0], 2)
    rate(trials, dataclasses.replace(spec, draws=9), [0], 2)
    assert len(model.prompts) == 2


def test_a_torn_line_is_drawn_again(tmp_path: Path, corpus: Corpus, spec: RaterSpec) -> None:
    trials, _ = trials_of(tmp_path, corpus)
    first = rate(trials, spec, [0, 1, 2])
    path = trials.path(spec)
    path.write_bytes(path.read_bytes()[:-10])
    trials, model = trials_of(tmp_path, corpus)
    assert rate(trials, spec, [0, 1, 2]).numbers.tolist() == first.numbers.tolist()
    assert len(model.prompts) == 1


def test_a_journal_of_another_rater_is_refused(tmp_path: Path, corpus: Corpus, spec: RaterSpec) -> None:
    trials, _ = trials_of(tmp_path, corpus)
    rate(trials, spec, [0])
    path = trials.path(spec)
    record = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps({**record, "rater_sha256": "0" * 64}) + "\n")
    trials, _ = trials_of(tmp_path, corpus)
    with pytest.raises(DataError, match="another rater's"):
        rate(trials, spec, [0])


def test_unreadable_draws_are_made_once_too(tmp_path: Path, corpus: Corpus, spec: RaterSpec) -> None:
    trials, model = trials_of(tmp_path, corpus, lambda prompt, seed: "I cannot tell.")
    found = rate(trials, spec, [0, 1])
    assert np.isnan(found.numbers).all()
    assert found.drawn.tolist() == [2, 2]
    trials, model = trials_of(tmp_path, corpus)
    rate(trials, spec, [0, 1])
    assert model.prompts == []


# --- budget -----------------------------------------------------------------------------------------------


def test_what_would_exceed_the_requests_is_not_begun(tmp_path: Path, corpus: Corpus, spec: RaterSpec) -> None:
    trials, model = trials_of(tmp_path, corpus, spending=Spending(most_requests=7))
    rate(trials, spec, [0, 1, 2])
    with pytest.raises(WorkEnds, match="2 more requests are over the budget of 7"):
        rate(trials, spec, [3])
    assert len(model.prompts) == 6
    rate(trials, spec, [3], 1)
    assert len(model.prompts) == 7
    rate(trials, spec, [0, 1, 2])  # what was drawn costs nothing
    with pytest.raises(WorkEnds):
        rate(trials, spec, [4], 1)


def test_tokens_and_cost_are_known_afterwards(tmp_path: Path, corpus: Corpus, spec: RaterSpec) -> None:
    trials, model = trials_of(tmp_path, corpus, spending=Spending(most_tokens=30))
    rate(trials, spec, [0])  # 2 answers of 15 tokens
    with pytest.raises(WorkEnds, match="30 tokens are used, of at most 30"):
        rate(trials, spec, [1])
    assert len(model.prompts) == 2
    price = Spending(most_usd=0.01, price=lambda read, written: read * 1e-3)
    trials, model = trials_of(tmp_path / "other", corpus, spending=price)
    rate(trials, spec, [0])
    with pytest.raises(WorkEnds, match=r"\$0\.02 are used, of at most \$0\.01"):
        rate(trials, spec, [1])


def test_the_budget_counts_earlier_sessions(tmp_path: Path, corpus: Corpus, spec: RaterSpec) -> None:
    trials, _ = trials_of(tmp_path, corpus)
    rate(trials, spec, [0, 1, 2])
    trials, model = trials_of(tmp_path, corpus, spending=Spending(most_requests=6))
    trials.recount()
    rate(trials, spec, [0, 1, 2])
    with pytest.raises(WorkEnds):
        rate(trials, spec, [3])
    assert model.prompts == []


def test_unknown_cost_is_no_limit() -> None:
    Spending(most_usd=0.0, price=lambda read, written: None).check(1)


# --- ends -------------------------------------------------------------------------------------------------


def test_stopping_ends_after_what_is_in_flight(tmp_path: Path, corpus: Corpus, spec: RaterSpec) -> None:
    drawn = []

    def on_draw() -> None:
        drawn.append(1)
        if len(drawn) == 3:
            trials.stop()

    trials, model = trials_of(tmp_path, corpus, on_draw=on_draw)
    with pytest.raises(WorkEnds, match="stopped"):
        rate(trials, spec, list(range(ITEMS)))
    assert 3 <= len(model.prompts) < 10
    assert trials.spending.requests == len(model.prompts) == len(trials.path(spec).read_text().splitlines())
    more, rest = trials_of(tmp_path, corpus)
    rate(more, spec, list(range(ITEMS)))
    assert len(model.prompts) + len(rest.prompts) == 2 * ITEMS


def test_a_model_that_fails_keeps_what_came(tmp_path: Path, corpus: Corpus, spec: RaterSpec) -> None:
    answers = [rating(2)] * 5

    def answer(prompt: str, seed: int) -> str:
        if not answers:
            raise ModelAccessError("gone; start it")
        return answers.pop()

    trials, _ = trials_of(tmp_path, corpus, answer)
    with pytest.raises(ModelAccessError, match="gone"):
        rate(trials, spec, list(range(ITEMS)))
    assert trials.spending.requests == 5
    more, rest = trials_of(tmp_path, corpus)
    rate(more, spec, list(range(ITEMS)))
    assert len(rest.prompts) == 2 * ITEMS - 5


def test_a_model_that_refuses_everything_is_set_up_wrongly(tmp_path: Path, corpus: Corpus, spec: RaterSpec) -> None:
    def answer(prompt: str, seed: int) -> str:
        raise ModelRequestError("too long")

    trials, _ = trials_of(tmp_path, corpus, answer)
    with pytest.raises(ModelAccessError, match="all of them"):
        rate(trials, spec, list(range(ITEMS)))
    assert not trials.path(spec).exists()
