"""Rejection sampling: which draws are made, which are kept, and that nothing paid for is lost."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raters.corpora import Corpus
from raters.drawing import draw_seed, is_swapped, work_order
from raters.gold import GoldMethod
from raters.models.embedded import EmbeddedModel
from raters.models.protocol import Completion, Message, SamplingSettings
from raters.records import ModelAccessError, ModelError, ModelRequestError
from raters.sampling import SamplingOptions
from raters.utilisation import summarise
from tests.small_corpora import (
    DIMENSION,
    INTERVAL,
    NOMINAL,
    ORDINAL_3,
    ORDINAL_5,
    PAIRWISE,
    Run,
    ScriptedModel,
    rating,
    shown_fields,
    small_corpus,
    start_run,
    varied_texts,
)

FIXED = SamplingOptions(strategy="fixed")
ADAPTIVE = SamplingOptions(strategy="adaptive")
ONE_AT_A_TIME = SamplingOptions(concurrency=1)


def varied_corpus(folder: Path, count: int = 24, annotators: Sequence[str] = ("ann",)) -> Corpus:
    """Return items with different texts and labels from 1 to 5 that have nothing to do with them."""
    chooser = np.random.default_rng(1)
    inputs = varied_texts(count)
    labels = {item_id: {name: int(chooser.integers(1, 6)) for name in annotators} for item_id in inputs}
    return small_corpus(folder, labels, ORDINAL_5, inputs=inputs)


def make_run(folder: Path, corpus: Corpus, model: Any, **options: Any) -> Run:
    run = start_run(corpus, folder / "candidates.jsonl", model, **options)
    run.draw()
    return run


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(
        ({name: value for name, value in record.items() if name != "seconds"} for record in records),
        key=lambda record: json.dumps(record, sort_keys=True),
    )


def folder_of(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


class Answers:
    """Rates each item by its own list of labels, in the order in which its draws are asked for."""

    def __init__(self, labels: dict[str, list[Any]]) -> None:
        self.left = {text: list(given) for text, given in labels.items()}

    def __call__(self, prompt: str, seed: int) -> str:
        text = shown_fields(prompt)["text"]
        return rating(self.left[text.removeprefix("This is the text of ").rstrip(".")].pop(0))


# Seeds


def test_a_draws_seed_is_a_hash_of_what_the_draw_is() -> None:
    seed = draw_seed(7, "item", "quality", 3)
    assert seed == draw_seed(7, "item", "quality", 3)
    assert 0 <= seed < 2**31
    others = [
        draw_seed(8, "item", "quality", 3),
        draw_seed(7, "item2", "quality", 3),
        draw_seed(7, "item", "tone", 3),
        draw_seed(7, "item", "quality", 2),
        draw_seed(7, "item", "quality", 3, "escalated"),
        draw_seed(7, "item", "quality", 3, "rationalized"),
        draw_seed(71, "tem", "quality", 3),
    ]
    assert len({seed, *others}) == 8
    many = {draw_seed(0, f"item{number}", "quality", draw) for number in range(1_000) for draw in range(4)}
    assert len(many) > 3_990  # of 2**31 seeds about 0.004 of 4,000 would fall together


def test_seeds_of_a_run_are_those_of_its_draws_and_depend_on_nothing_else(tmp_path: Path) -> None:
    corpus = varied_corpus(tmp_path / "corpus")
    first = make_run(folder_of(tmp_path / "a"), corpus, EmbeddedModel(), options=FIXED)
    for record in first.records():
        assert record["seed"] == draw_seed(0, record["item_id"], DIMENSION, record["draw"])
    alone = make_run(folder_of(tmp_path / "b"), corpus, EmbeddedModel(), options=replace(FIXED, concurrency=1), limit=5)
    by_draw = {(record["item_id"], record["draw"]): record for record in without_time(first.records())}
    assert len(alone.records()) == 20
    for record in without_time(alone.records()):
        assert record == by_draw[record["item_id"], record["draw"]]


def test_the_order_of_work_is_drawn_from_the_seed(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {f"item{number}": {"ann": 1} for number in range(50)})
    items = np.arange(50)
    orders = [work_order(corpus, DIMENSION, items, seed).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(50))
    # A part of the items keeps its order, so that a larger limit only adds.
    assert work_order(corpus, DIMENSION, items[::2], 0).tolist() == [item for item in orders[0] if item % 2 == 0]


# Strategies


@pytest.mark.parametrize("method", ["median", "per-annotator"])
@pytest.mark.parametrize("seed", range(4))
def test_adaptive_keeps_the_very_draws_that_fixed_keeps(tmp_path: Path, seed: int, method: GoldMethod) -> None:
    corpus = varied_corpus(tmp_path / "corpus", annotators=("ann", "bob", "cyd"))
    runs = {}
    for options in (replace(ADAPTIVE, seed=seed), replace(FIXED, seed=seed, concurrency=5)):
        folder = folder_of(tmp_path / options.strategy)
        runs[options.strategy] = make_run(folder, corpus, EmbeddedModel(), k=6, method=method, options=options)
    assert runs["adaptive"].kept() == runs["fixed"].kept()
    units = len(runs["fixed"].ledger.unit_rows)
    assert 0 < len(runs["fixed"].kept()) < units
    assert runs["fixed"].ledger.totals.draws["first"] == 24 * 6
    assert runs["adaptive"].ledger.totals.draws["first"] < 24 * 6


def test_an_item_stops_at_its_first_acceptance_or_after_k_draws(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {"a": {"ann": 2}, "b": {"ann": 1}, "c": {"ann": 3}}, ORDINAL_3)
    model = ScriptedModel(Answers({"a": [2, 1, 1], "b": [3, 1, 3], "c": [1, 1, 2]}))
    run = make_run(tmp_path, corpus, model, k=3)
    made = {item_id: [r["verdict"] for r in run.records() if r["item_id"] == item_id] for item_id in "abc"}
    assert made == {"a": [2], "b": [3, 1], "c": [1, 1, 2]}
    assert {key[0]: record["draw"] for key, record in run.kept().items()} == {"a": 0, "b": 1}
    assert run.draws_seen == list(range(6))


def test_fixed_makes_all_draws_and_keeps_the_first(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {"a": {"ann": 2}}, ORDINAL_3)
    run = make_run(
        tmp_path,
        corpus,
        ScriptedModel(Answers({"a": [1, 2, 3, 2]})),
        options=replace(FIXED, concurrency=1),
        keep_all=True,
    )
    assert [record["accepted"] for record in run.records()] == [False, True, False, True]
    assert run.kept()["a", None]["draw"] == 1
    assert [draw for draw, _ in (run.ledger.accepted or {})[0]] == [1, 3]


def test_a_tolerance_accepts_near_verdicts(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {"a": {"ann": 50}}, INTERVAL)
    model = ScriptedModel(Answers({"a": [44.9, 45, 50]}))
    run = make_run(tmp_path, corpus, model, options=replace(ADAPTIVE, tolerance=5.0))
    assert [(record["verdict"], record["accepted"]) for record in run.records()] == [(44.9, False), (45, True)]


# What a candidate says


def test_a_candidate_says_all_about_its_draw(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {"a": {"ann": 2}}, ORDINAL_3)
    answer = Completion("So.\n<rating>2</rating>", "The gold label is near.", "stop", 11, 7)
    settings = SamplingSettings(temperature=0.7, max_tokens=99)
    run = make_run(tmp_path, corpus, ScriptedModel(lambda *_: answer), options=replace(ADAPTIVE, settings=settings))
    (record,) = run.records()
    assert record.pop("seconds") >= 0
    question = run.sampler.source.question
    assert record == {
        "item_id": "a",
        "dimension": DIMENSION,
        "annotator_id": None,
        "draw": 0,
        "chance": "first",
        "mode": "infer",
        "model": "scripted/model",
        "prompt_sha256": question.prompt.sha256,
        "guideline_sha256": question.dimension.guideline_sha256,
        "seed": draw_seed(0, "a", DIMENSION, 0),
        "temperature": 0.7,
        "swapped": False,
        "trace": "The gold label is near.",
        "answer": "So.\n<rating>2</rating>",
        "verdict": 2,
        "label": 2,
        "accepted": True,
        "flags": ["mentions_known_label"],
        "finish_reason": "stop",
        "prompt_tokens": 11,
        "completion_tokens": 7,
    }


def test_what_cannot_be_read_is_null_and_counted(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {"a": {"ann": 2}}, ORDINAL_3)
    answers = iter(["2", "<rating>two</rating>", "<rating>7</rating>", ""])
    run = make_run(tmp_path, corpus, ScriptedModel(lambda *_: next(answers)))
    assert [record["verdict"] for record in run.records()] == [None] * 4
    assert not any(record["accepted"] or record["flags"] for record in run.records())
    assert run.ledger.totals.unreadable == 4
    assert run.kept() == {}


# The label is hidden


def test_no_prompt_of_an_inference_depends_on_labels_or_metadata(tmp_path: Path) -> None:
    """The same items under other labels, other people and other metadata are asked about in the same words."""
    asked = []
    for name, label, group in (("ann", 37.25, "secret-one"), ("zoe", 81.5, "secret-two")):
        groups = dict.fromkeys("abcdef", group)
        labels = {item_id: {name: label} for item_id in "abcdef"}
        corpus = small_corpus(tmp_path / name, labels, INTERVAL, groups=groups)
        spies = [ScriptedModel(lambda *_: rating(5), spec=f"spy/{number}") for number in range(2)]
        make_run(tmp_path / name, corpus, spies[0], escalate=spies[1])
        prompts = [prompt for spy in spies for prompt in spy.prompts]
        assert len(prompts) == 6 * (4 + 2)
        for prompt in prompts:
            assert not any(secret in prompt for secret in ("37.25", "81.5", "secret", "ann", "zoe"))
        asked.append(sorted(prompts))
    assert asked[0] == asked[1]


def test_no_prompt_of_the_rule_reader_depends_on_labels(tmp_path: Path) -> None:
    class Spy(EmbeddedModel):
        def __init__(self) -> None:
            self.asked: list[str] = []

        async def complete(
            self, messages: Sequence[Message], seeds: Sequence[int], settings: SamplingSettings
        ) -> list[Completion]:
            self.asked.append(messages[-1]["content"])
            return await super().complete(messages, seeds, settings)

    inputs, asked = varied_texts(8), []
    for label in (1, 5):
        corpus = small_corpus(tmp_path / str(label), {item_id: {"ann": label} for item_id in inputs}, inputs=inputs)
        spy = Spy()
        make_run(tmp_path / str(label), corpus, spy, options=FIXED)
        asked.append(sorted(spy.asked))
    assert asked[0] == asked[1]
    assert "Known rating" not in "".join(asked[0])


# Pairs


def pairs(folder: Path, label: str = "A", count: int = 20) -> Corpus:
    """Return pairs of which the left text is the longer one in every second item."""
    texts = ("A long text of many words.", "A short text.")
    inputs = {
        f"pair{number}": {"topic": f"Topic {number}.", "left": texts[number % 2], "right": texts[1 - number % 2]}
        for number in range(count)
    }
    return small_corpus(folder, {item_id: {"ann": label} for item_id in inputs}, PAIRWISE, inputs=inputs)


def prefers_longer(prompt: str, seed: int) -> str:
    fields = shown_fields(prompt)
    return rating("A" if len(fields["left"]) > len(fields["right"]) else "B")


def test_every_second_draw_of_a_pair_is_swapped_and_verdicts_are_mapped_back(tmp_path: Path) -> None:
    corpus = pairs(tmp_path)
    run = make_run(tmp_path, corpus, ScriptedModel(prefers_longer), k=6, options=FIXED)
    by_item = defaultdict(dict)
    for record in run.records():
        by_item[record["item_id"]][record["draw"]] = record
    for item_id, draws in by_item.items():
        swapped = [draws[draw]["swapped"] for draw in range(6)]
        assert swapped in ([False, True] * 3, [True, False] * 3)
        assert swapped == [is_swapped(0, item_id, DIMENSION, draw) for draw in range(6)]
        longer = "A" if int(item_id[4:]) % 2 == 0 else "B"
        assert {record["verdict"] for record in draws.values()} == {longer}
        shown = {(record["swapped"], record["answer"]) for record in draws.values()}
        assert len(shown) == 2  # the model itself said A in one order and B in the other
        assert all(record["accepted"] == (longer == "A") for record in draws.values())
    assert {draws[0]["swapped"] for draws in by_item.values()} == {False, True}
    position = summarise(run.ledger, FIXED)["position"]
    assert position == {"chose_first_shown": 0.5, "decisions": 120, "half_width_95": pytest.approx(0)}


@pytest.mark.parametrize(("options", "decisions"), [(FIXED, 80), (ADAPTIVE, 20)])
def test_a_model_that_always_takes_the_first_shown_is_found_out(
    tmp_path: Path, options: SamplingOptions, decisions: int
) -> None:
    run = make_run(tmp_path, pairs(tmp_path), ScriptedModel(lambda *_: rating("A")), options=options)
    for record in run.records():
        assert record["verdict"] == ("B" if record["swapped"] else "A")
    position = summarise(run.ledger, options)["position"]
    assert position == {"chose_first_shown": 1.0, "decisions": decisions, "half_width_95": 0.0}
    last = make_run(folder_of(tmp_path / "b"), pairs(tmp_path), ScriptedModel(lambda *_: rating("B")), options=options)
    assert summarise(last.ledger, options)["position"]["chose_first_shown"] == 0.0


def test_ties_stay_ties_and_are_no_decisions(tmp_path: Path) -> None:
    run = make_run(tmp_path, pairs(tmp_path, "tie"), ScriptedModel(lambda *_: rating("tie")), options=FIXED)
    assert {(record["verdict"], record["accepted"]) for record in run.records()} == {("tie", True)}
    position = summarise(run.ledger, FIXED)["position"]
    assert position == {"chose_first_shown": None, "decisions": 0, "half_width_95": None}


def test_the_rule_reader_says_the_same_of_a_pair_in_both_orders(tmp_path: Path) -> None:
    """It is told that length helps and nothing else: the longer text wins, in whichever order it is shown."""
    inputs = {
        f"pair{number}": {"left": "word " * (number % 7 + 1), "right": "word " * (number * 5 % 11 + 1)}
        for number in range(40)
    }
    guideline = "- start at five.\n- length helps thrice.\n- rest ignored."
    corpus = small_corpus(
        tmp_path, {item_id: {"ann": "A"} for item_id in inputs}, PAIRWISE, inputs=inputs, guideline=guideline
    )
    run = make_run(tmp_path, corpus, EmbeddedModel(), options=FIXED)
    found = defaultdict(set)
    for record in run.records():
        found[record["item_id"]].add(record["verdict"])
    assert {verdict for verdicts in found.values() for verdict in verdicts} == {"A", "B", "tie"}
    wrong = {item_id for item_id, verdicts in found.items() if len(verdicts) != 1}
    assert not wrong
    for item_id, (verdict,) in found.items():
        left, right = (len(inputs[item_id][side].split()) for side in ("left", "right"))
        assert verdict == "tie" or verdict == ("A" if left > right else "B")


def test_other_scales_are_never_swapped(tmp_path: Path) -> None:
    inputs = {"a": {"left": "One.", "right": "Two."}}
    corpus = small_corpus(tmp_path, {"a": {"ann": "present"}}, NOMINAL, inputs=inputs)
    run = make_run(tmp_path, corpus, ScriptedModel(lambda *_: rating("not_present")))
    assert [record["swapped"] for record in run.records()] == [False] * 4
    assert summarise(run.ledger, ADAPTIVE)["position"] is None


# Several annotators


def test_people_share_the_draws_of_an_item(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {"a": {"ann": 1, "bob": 3, "cyd": 3}, "b": {"ann": 2}}, ORDINAL_3)
    model = ScriptedModel(Answers({"a": [3, 2, 1, 3], "b": [2]}))
    run = make_run(tmp_path, corpus, model, method="per-annotator")
    assert len(model.prompts) == 4  # three for a, one for b
    of_a = [record for record in run.records() if record["item_id"] == "a"]
    assert [(r["annotator_id"], r["draw"], r["label"], r["verdict"], r["accepted"]) for r in of_a] == [
        ("ann", 0, 1, 3, False),
        ("bob", 0, 3, 3, True),
        ("cyd", 0, 3, 3, True),
        ("ann", 1, 1, 2, False),  # bob and cyd have theirs
        ("ann", 2, 1, 1, True),
    ]
    assert len({record["seed"] for record in of_a if record["draw"] == 0}) == 1
    assert run.ledger.totals.draws == {"first": 4}
    assert {key: record["draw"] for key, record in run.kept().items()} == {
        ("a", "ann"): 2,
        ("a", "bob"): 0,
        ("a", "cyd"): 0,
        ("b", "ann"): 0,
    }


# Second chances


def test_a_second_model_is_asked_about_unmatched_items_alone(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {name: {"ann": 1 + place % 3} for place, name in enumerate("abcdef")}, ORDINAL_3)
    first = ScriptedModel(lambda *_: rating(1), spec="scripted/first")
    second = ScriptedModel(lambda *_: rating(2), spec="scripted/second")
    run = make_run(tmp_path, corpus, first, escalate=second, k=3, second_k=2)
    records = run.records()
    escalated = [record for record in records if record["chance"] == "escalated"]
    assert {record["model"] for record in records if record["chance"] == "first"} == {"scripted/first"}
    assert {record["model"] for record in escalated} == {"scripted/second"}
    assert {record["mode"] for record in records} == {"infer"}
    # b and e are labelled 2 and matched at once; c and f are labelled 3 and have both draws; a and d are done.
    assert Counter(record["item_id"] for record in escalated) == {"b": 1, "e": 1, "c": 2, "f": 2}
    assert {(item_id, record["chance"]) for (item_id, _), record in run.kept().items()} == {
        ("a", "first"),
        ("d", "first"),
        ("b", "escalated"),
        ("e", "escalated"),
    }
    for record in escalated:
        assert record["seed"] == draw_seed(0, record["item_id"], DIMENSION, record["draw"], "escalated")


def test_per_annotator_only_unmatched_labels_are_held_against_a_second_model(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {"a": {"ann": 1, "bob": 2}}, ORDINAL_3)
    second = ScriptedModel(lambda *_: rating(2), spec="scripted/second")
    run = make_run(
        tmp_path,
        corpus,
        ScriptedModel(lambda *_: rating(1)),
        escalate=second,
        k=1,
        method="per-annotator",
        options=FIXED,
    )
    assert [(r["annotator_id"], r["chance"], r["accepted"]) for r in run.records()] == [
        ("ann", "first", True),
        ("bob", "first", False),
        ("bob", "escalated", True),
    ]


EXPLANATION = "The text names a reason. My rating is 2 because it is short. <rating>2</rating>"


def rationalized(
    folder: Path, explain: Callable[[str, int], Any], recover: Callable[[str, int], Any], **options: Any
) -> tuple[Run, ScriptedModel, ScriptedModel]:
    corpus = small_corpus(folder, {"a": {"ann": 2}, "b": {"ann": 1}}, ORDINAL_3)
    explainer, recoverer = ScriptedModel(explain, "scripted/explain"), ScriptedModel(recover, "scripted/recover")
    first = ScriptedModel(lambda *_: rating(1), "scripted/first")
    run = make_run(folder, corpus, first, k=2, explain=explainer, recover=recoverer, **options)
    return run, explainer, recoverer


def test_an_explanation_is_kept_if_its_label_is_recovered_from_it_alone(tmp_path: Path) -> None:
    run, explainer, recoverer = rationalized(
        tmp_path,
        lambda *_: Completion(EXPLANATION, "", "stop", 100, 20),
        lambda *_: Completion(rating(2), "", "stop", 30, 4),
    )
    (shown,) = explainer.prompts
    assert "label was 2" in shown
    assert "This is the text of a." in shown
    (asked,) = recoverer.prompts
    assert "The text names a reason." in asked
    assert "This is the text of a." not in asked
    assert "rating is 2" not in asked
    assert rating(2) not in asked
    (record,) = [record for record in run.records() if record["chance"] == "rationalized"]
    assert (record["item_id"], record["mode"], record["model"]) == ("a", "rationalize", "scripted/explain")
    assert (record["verdict"], record["label"], record["accepted"]) == (2, 2, True)
    assert record["trace"] == "The text names a reason."
    assert (record["prompt_tokens"], record["completion_tokens"]) == (130, 24)
    assert run.kept()["a", None]["chance"] == "rationalized"
    assert run.kept()["b", None]["chance"] == "first"


@pytest.mark.parametrize("answer", [rating(1), rating(3), "It may be 2.", "", "<rating></rating>"])
def test_an_explanation_that_leads_elsewhere_is_not_kept(tmp_path: Path, answer: str) -> None:
    run, explainer, recoverer = rationalized(tmp_path, lambda *_: EXPLANATION, lambda *_: answer)
    assert len(explainer.prompts) == len(recoverer.prompts) == 2
    assert ("a", None) not in run.kept()
    assert [r["accepted"] for r in run.records() if r["chance"] == "rationalized"] == [False, False]


def test_an_explanation_of_nothing_but_the_label_is_not_asked_about(tmp_path: Path) -> None:
    nothing = Completion(rating(2), "", "stop", 100, 20)
    run, _, recoverer = rationalized(tmp_path, lambda *_: nothing, lambda *_: rating(2))
    assert recoverer.prompts == []
    assert ("a", None) not in run.kept()


def test_an_explanation_that_was_refused_is_not_kept(tmp_path: Path) -> None:
    """The words of the refusal are no trace, whatever the other model makes of them."""

    def refuse(prompt: str, seed: int) -> str:
        raise ModelRequestError("scripted/explain: refused by a filter")

    run, _, recoverer = rationalized(tmp_path, refuse, lambda *_: rating(2))
    assert ("a", None) not in run.kept()
    assert recoverer.prompts == []
    refused = [record for record in run.records() if record["chance"] == "rationalized"]
    assert [(r["verdict"], r["accepted"], r["finish_reason"]) for r in refused] == [(None, False, "refused")] * 2


def test_each_annotators_label_is_explained_for_itself(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {"a": {"ann": 2, "bob": 3, "cyd": 1}}, ORDINAL_3)
    explainer = ScriptedModel(lambda *_: "Some reasons of its own.")
    recoverer = ScriptedModel(lambda *_: rating(3))
    run = make_run(
        tmp_path,
        corpus,
        ScriptedModel(lambda *_: rating(1)),
        k=1,
        method="per-annotator",
        explain=explainer,
        recover=recoverer,
    )
    second = [record for record in run.records() if record["chance"] == "rationalized"]
    assert Counter(record["annotator_id"] for record in second) == {"ann": 2, "bob": 1}
    assert len({record["seed"] for record in second}) == 3
    assert {key[1] for key in run.kept()} == {"bob", "cyd"}


def test_the_rule_reader_explains_and_recovers_labels(tmp_path: Path) -> None:
    corpus = varied_corpus(tmp_path)
    run = make_run(tmp_path, corpus, EmbeddedModel(), k=1, explain=EmbeddedModel(), recover=EmbeddedModel())
    second = [record for record in run.records() if record["chance"] == "rationalized"]
    assert len(second) > 10
    assert sum(record["accepted"] for record in second) > len(second) / 2
    for record in second:
        if record["accepted"]:
            assert not record["trace"].endswith(f" {record['label']}.")


# Going on


def state_of(run: Run) -> tuple[Any, ...]:
    ledger = run.ledger
    arrays = {chance: np.nan_to_num(numbers, nan=-7.0).tolist() for chance, numbers in ledger.numbers.items()}
    accepted = {unit: sorted(found) for unit, found in (ledger.accepted or {}).items()}
    return (
        arrays,
        ledger.matched_draw.tolist(),
        ledger.matched_chance.tolist(),
        ledger.matched_offset.tolist(),
        ledger.totals,
        accepted,
    )


@pytest.mark.parametrize("method", ["median", "per-annotator"])
@pytest.mark.parametrize("options", [ADAPTIVE, replace(FIXED, concurrency=7)])
def test_a_replayed_ledger_is_the_live_one(tmp_path: Path, options: SamplingOptions, method: GoldMethod) -> None:
    corpus = varied_corpus(tmp_path, annotators=("ann", "bob"))
    models = {"explain": EmbeddedModel(), "escalate": EmbeddedModel(), "keep_all": options is not ADAPTIVE}
    live = make_run(tmp_path, corpus, EmbeddedModel(), k=3, method=method, options=options, **models)
    assert {record["chance"] for record in live.records()} == {"first", "escalated", "rationalized"}
    again = start_run(corpus, live.journal.path, EmbeddedModel(), k=3, method=method, options=options, **models)
    again.journal.close()
    assert state_of(again) == state_of(live)
    assert not again.ledger.has_work(options.full_rows(len(again.ledger.rows)))
    assert again.kept() == live.kept()


@pytest.mark.parametrize("method", ["median", "per-annotator"])
@pytest.mark.parametrize("options", [replace(ADAPTIVE, concurrency=3), replace(FIXED, concurrency=3)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_going_on_makes_exactly_the_missing_draws(
    tmp_path: Path, options: SamplingOptions, method: GoldMethod, share: float
) -> None:
    corpus = varied_corpus(tmp_path, 12, annotators=("ann", "bob"))

    def by_seed(prompt: str, seed: int) -> str:
        return rating(1 + seed % 5)

    def models() -> dict[str, ScriptedModel]:
        return {"model": ScriptedModel(by_seed), "escalate": ScriptedModel(by_seed, "scripted/second")}

    whole = make_run(tmp_path, corpus, **models(), method=method, options=options)
    lines = whole.journal.path.read_bytes().splitlines(keepends=True)
    cut = int(share * len(lines))
    folder = folder_of(tmp_path / "again")
    (folder / "candidates.jsonl").write_bytes(b"".join(lines[:cut]) + b'{"item_id": "it')
    counted = models()
    again = make_run(folder, corpus, **counted, method=method, options=options)
    there = {(r["item_id"], r["chance"], r["draw"]) for r in map(json.loads, lines[:cut])}
    needed = {(r["item_id"], r["chance"], r["draw"]) for r in whole.records()} - there
    assert len(counted["model"].seeds) + len(counted["escalate"].seeds) == len(needed)
    assert without_time(again.records()) == without_time(whole.records())
    assert again.kept() == whole.kept()


@pytest.mark.parametrize("options", [replace(ADAPTIVE, concurrency=1), replace(FIXED, concurrency=1)])
def test_a_torn_group_is_completed_without_a_new_draw(tmp_path: Path, options: SamplingOptions) -> None:
    """A crash may cut a draw that three people share after any of its lines, and within one."""
    labels = {f"item{number}": {"ann": 1, "bob": 2, "cyd": 3} for number in range(3)}
    corpus = small_corpus(tmp_path, labels, ORDINAL_3)

    def run_in(folder: Path) -> tuple[Run, ScriptedModel]:
        flagged = "The gold label is near."
        model = ScriptedModel(lambda _, seed: Completion(rating(1 + seed % 3), flagged, "stop", 9, 5))
        run = start_run(corpus, folder / "candidates.jsonl", model, method="per-annotator", options=options)
        return run, model

    whole, _ = run_in(tmp_path)
    whole.draw()
    lines = whole.journal.path.read_bytes().splitlines(keepends=True)
    torn = 0
    for cut in range(1, len(lines)):
        here, after = json.loads(lines[cut - 1]), json.loads(lines[cut])
        if (here["item_id"], here["draw"]) != (after["item_id"], after["draw"]):
            continue  # between two draws
        torn += 1
        folder = folder_of(tmp_path / str(cut))
        (folder / "candidates.jsonl").write_bytes(b"".join(lines[:cut]) + lines[cut][:-9])
        again, counted = run_in(folder)
        assert again.draws_seen == []
        assert counted.prompts == []
        group = [r for r in again.records() if (r["item_id"], r["draw"]) == (here["item_id"], here["draw"])]
        original = [r for r in whole.records() if (r["item_id"], r["draw"]) == (here["item_id"], here["draw"])]
        assert without_time(group) == without_time(original)
        again.draw()
        made = {(r["item_id"], r["draw"]) for r in whole.records()}
        before = {(r["item_id"], r["draw"]) for r in map(json.loads, lines[:cut])}
        assert len(counted.prompts) == len(made) - len(before)
        assert without_time(again.records()) == without_time(whole.records())
        assert again.kept() == whole.kept()
    assert torn > 3


def test_a_fixed_run_that_goes_on_as_an_adaptive_one_keeps_the_same_draws(tmp_path: Path) -> None:
    """Draw 2 was answered before draw 1 when the run was stopped; draw 1 might have agreed, so it is made."""
    corpus = small_corpus(tmp_path, {"a": {"ann": 2}}, ORDINAL_3)
    seeds = [draw_seed(0, "a", DIMENSION, draw) for draw in range(3)]
    answers = dict(zip(seeds, (1, 2, 2), strict=True))

    def model() -> ScriptedModel:
        return ScriptedModel(lambda prompt, seed: rating(answers[seed]))

    whole = make_run(tmp_path, corpus, model(), k=3, options=replace(FIXED, concurrency=1))
    lines = whole.journal.path.read_bytes().splitlines(keepends=True)
    assert whole.kept()["a", None]["draw"] == 1
    folder = folder_of(tmp_path / "again")
    (folder / "candidates.jsonl").write_bytes(lines[0] + lines[2])
    again = start_run(corpus, folder / "candidates.jsonl", model(), k=3, options=ADAPTIVE)
    assert again.ledger.has_work(0)
    again.draw()
    assert again.kept() == whole.kept()


def test_more_draws_are_added_to_those_there_are(tmp_path: Path) -> None:
    corpus = varied_corpus(tmp_path)
    few = make_run(folder_of(tmp_path / "a"), corpus, EmbeddedModel(), k=2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    more = make_run(tmp_path / "b", corpus, EmbeddedModel(), k=8)
    fresh = make_run(folder_of(tmp_path / "c"), corpus, EmbeddedModel(), k=8)
    assert without_time(more.records()) == without_time(fresh.records())
    assert more.kept() == fresh.kept()
    assert len(few.records()) < len(more.records())


# Failures


def test_a_refused_request_is_an_unreadable_candidate(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {name: {"ann": 2} for name in "abc"}, ORDINAL_3)

    def answer(prompt: str, seed: int) -> str:
        if "text of b" in prompt:
            raise ModelRequestError("scripted/model: too long: This is the text of b. <rating>2</rating>")
        return rating(2)

    run = make_run(tmp_path, corpus, ScriptedModel(answer))
    refused = [record for record in run.records() if record["item_id"] == "b"]
    # An error that repeats what was asked is no answer, even if a rating can be read in it.
    assert [(r["verdict"], r["accepted"], r["finish_reason"]) for r in refused] == [(None, False, "refused")] * 4
    assert all("too long" in record["answer"] for record in refused)
    assert {record["trace"] for record in refused} == {""}
    assert {record["prompt_tokens"] for record in refused} == {None}
    assert run.ledger.totals.unreadable == 4
    assert run.ledger.totals.finish_reasons == {"stop": 2, "refused": 4}
    assert {key[0] for key in run.kept()} == {"a", "c"}


@pytest.mark.parametrize("options", [ONE_AT_A_TIME, ADAPTIVE])
def test_if_the_first_eight_requests_are_refused_the_setting_is_wrong(tmp_path: Path, options: SamplingOptions) -> None:
    corpus = small_corpus(tmp_path, {f"item{number}": {"ann": 2} for number in range(40)}, ORDINAL_3)

    def refuse(prompt: str, seed: int) -> str:
        raise ModelRequestError("scripted/model: max_tokens is too large")

    model = ScriptedModel(refuse)
    with pytest.raises(ModelAccessError, match=r"max_tokens is too large .*first 8 requests, all of them"):
        make_run(tmp_path, corpus, model, options=options)
    assert len(model.prompts) <= 7 + options.concurrency
    # With the setting mended, every draw is still to be made.
    assert not (tmp_path / "candidates.jsonl").exists()


def test_seven_refusals_and_an_answer_are_no_wrong_setting(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {f"item{number}": {"ann": 2} for number in range(12)}, ORDINAL_3)
    count = iter(range(100))

    def answer(prompt: str, seed: int) -> str:
        if next(count) != 7:
            raise ModelRequestError("scripted/model: refused by a filter")
        return rating(2)

    run = make_run(tmp_path, corpus, ScriptedModel(answer), k=1, options=ONE_AT_A_TIME)
    assert run.ledger.totals.finish_reasons == {"refused": 11, "stop": 1}
    assert Counter(record["finish_reason"] for record in run.records()) == {"refused": 11, "stop": 1}
    assert len({record["item_id"] for record in run.records()}) == 12


class FailsOnce(ScriptedModel):
    """Fails for one item at once, while the others take their time."""

    async def complete(
        self, messages: Sequence[Message], seeds: Sequence[int], settings: SamplingSettings
    ) -> list[Completion]:
        if "text of bad" in messages[-1]["content"]:
            raise ModelError("scripted/model: the server is overloaded")
        await asyncio.sleep(0.05)
        return await super().complete(messages, seeds, settings)


@pytest.mark.parametrize("options", [replace(ADAPTIVE, concurrency=4), replace(FIXED, concurrency=4)])
def test_a_failure_ends_the_run_but_what_is_in_flight_is_kept(tmp_path: Path, options: SamplingOptions) -> None:
    """Every item is in the first four or after them; the bad one is put first, so three are in flight with it."""
    names = ["bad", *(f"item{number}" for number in range(20))]
    corpus = small_corpus(tmp_path, {name: {"ann": 2} for name in names}, ORDINAL_3)
    place = [corpus.item_ids[item] for item in work_order(corpus, DIMENSION, np.arange(21), 0)].index("bad")
    model = FailsOnce(lambda *_: rating(1))
    run = start_run(corpus, tmp_path / "candidates.jsonl", model, k=1, options=options)
    with pytest.raises(ModelError, match="the server is overloaded"):
        run.draw()
    # Rounds of four: those before the bad one, and the rest of its own round.
    written = run.records()
    assert len(written) == len(model.prompts)
    assert place <= len(written) <= place + 3
    assert run.ledger.totals.draws["first"] == len(written)
    again = start_run(corpus, tmp_path / "candidates.jsonl", ScriptedModel(lambda *_: rating(1)), k=1, options=options)
    again.draw()
    assert len(again.records()) == 21


@pytest.mark.parametrize("options", [ONE_AT_A_TIME, replace(FIXED, concurrency=1)])
def test_stopping_ends_after_the_draw_in_flight_and_asks_no_second_model(
    tmp_path: Path, options: SamplingOptions
) -> None:
    corpus = small_corpus(tmp_path, {f"item{number}": {"ann": 2} for number in range(6)}, ORDINAL_3)
    model, second = ScriptedModel(lambda *_: rating(1)), ScriptedModel(lambda *_: rating(2), "scripted/second")
    path = tmp_path / "candidates.jsonl"
    run = start_run(corpus, path, model, escalate=second, explain=second, options=options)

    def stop_after_three() -> None:
        run.sampler.pool.stopping = run.ledger.totals.draws["first"] >= 3

    run.sampler._on_draw = stop_after_three
    run.draw()
    assert len(run.records()) == len(model.prompts) == 3
    assert second.prompts == []
    again = start_run(corpus, path, model, escalate=second, options=options)
    assert again.ledger.has_work(options.full_rows(len(again.ledger.rows)))
    again.draw()
    assert len(model.prompts) == 6 * 4
    assert len(second.prompts) == 6
    assert len(again.kept()) == 6


def test_stopping_leaves_what_is_in_flight_to_arrive(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {f"item{number}": {"ann": 2} for number in range(30)}, ORDINAL_3)
    options = replace(FIXED, concurrency=5)

    class Slow(ScriptedModel):
        async def complete(
            self, messages: Sequence[Message], seeds: Sequence[int], settings: SamplingSettings
        ) -> list[Completion]:
            answers = await super().complete(messages, seeds, settings)
            await asyncio.sleep(0.01)
            run.sampler.pool.stopping = True
            return answers

    model = Slow(lambda *_: rating(1))
    run = start_run(corpus, tmp_path / "candidates.jsonl", model, options=options)
    run.draw()
    assert len(run.records()) == len(model.prompts) == 5
