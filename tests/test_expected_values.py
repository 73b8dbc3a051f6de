"""Rating without reasoning, by the probabilities of labels: from each backend to ratings, raters and scores."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import score_agreement
from pipelines.command import run_command
from pipelines.rate_items import STAGE, main
from raters.corpora import load_corpus
from raters.drawing import is_swapped
from raters.label_probabilities import label_texts
from raters.models.protocol import Completion, Message, SamplingSettings
from raters.prompts import load_prompt
from raters.questions import Question
from raters.rater_draws import read_draws
from raters.rater_files import RaterSpec, default_aggregate, read_rater
from raters.rating import Rater, load_rater
from raters.records import DataError
from tests.local_servers import serving_transformers
from tests.places import CHECKOUT
from tests.scripted_server import Answer, Fault, ScriptedServer, token_entry
from tests.small_corpora import (
    DIMENSION,
    INTERVAL,
    NOMINAL,
    ORDINAL_3,
    PAIRWISE,
    SHORT_PROMPT,
    ScriptedModel,
    dimension_of,
    rating,
    shown_fields,
    write_corpus,
    write_jsonl,
)
from tests.test_label_scoring import expected_logprobs, plain
from tests.tiny_models import make_rater

Record = dict[str, Any]
ITEMS = 8


def read(path: Path) -> list[Record]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def manifest_of(folder: Path) -> Record:
    found: Record = json.loads((folder / "manifest.json").read_text())
    return found


def timeless(folder: Path) -> list[Record]:
    records = [{**record, "seconds": None} for record in read(folder / "ratings.jsonl")]
    return sorted(records, key=lambda record: (record["item_id"], record["draw"]))


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


# --- one rater, several draws -----------------------------------------------------------------------------


class Telling(ScriptedModel):
    """Answers what it is told to, with these probabilities, to whoever wants them."""

    def __init__(self, answer: Callable[[str, int], tuple[str, Mapping[str, float] | None]]) -> None:
        super().__init__(lambda prompt, seed: answer(prompt, seed)[0])
        self._told = answer
        self.wanted: list[tuple[str, ...] | None] = []

    async def complete(self, messages: Any, seeds: Any, settings: SamplingSettings) -> list[Completion]:
        self.wanted.append(settings.label_logprobs)
        found = []
        for seed in seeds:
            self.prompts.append(messages[-1]["content"])
            text, told = self._told(messages[-1]["content"], seed)
            logs = None if told is None else {label: math.log(mass) for label, mass in told.items()}
            found.append(Completion(text, "", "stop", 10, 5, logs if settings.label_logprobs else None))
        return found


def rater_of(
    model: Telling, scale: Mapping[str, Any] = ORDINAL_3, draws: int = 1, reasoning: bool = False, aggregate: Any = None
) -> Rater:
    dimension = dimension_of(scale)
    spec = RaterSpec(
        model="scripted/model",
        question=Question(dimension, load_prompt("rate_at_once")),
        draws=draws,
        aggregate=aggregate or default_aggregate(dimension.scale),
        reasoning=reasoning,
    )
    return Rater(spec, model, concurrency=1)


def in_turn(*answers: tuple[str, Mapping[str, float] | None]) -> Telling:
    left = iter(answers)
    return Telling(lambda prompt, seed: next(left))


def test_a_rating_is_the_expected_value() -> None:
    model = in_turn((rating(3), {"1": 0.2, "2": 0.3, "3": 0.3}))
    with rater_of(model) as rater:
        found = rater.rate({"text": "Some text."})
    assert model.wanted == [("1", "2", "3")]
    assert found.value == pytest.approx((0.2 * 1 + 0.3 * 2 + 0.3 * 3) / 0.8)  # 2.125
    assert (found.verdict, found.verdicts) == (2, (3,))
    assert found.label_probabilities == pytest.approx({1: 0.25, 2: 0.375, 3: 0.375})


def test_probabilities_are_wanted_only_without_reasoning_and_of_listed_labels() -> None:
    for scale, reasoning, wanted in (
        (ORDINAL_3, True, None), (INTERVAL, False, None), (NOMINAL, False, ("present", "not_present")),
    ):  # fmt: skip
        model = Telling(lambda *_: (rating(50), {"1": 1.0}))
        with rater_of(model, scale, reasoning=reasoning) as rater:
            assert rater.rate({"text": "Some text."}).label_probabilities is None
        assert model.wanted == [wanted]


def test_an_answer_that_cannot_be_read_is_rated_by_the_probabilities() -> None:
    with rater_of(in_turn(("I would", {"1": 0.1, "2": 0.2, "3": 0.6}))) as rater:
        found = rater.rate({"text": "Some text."})
    assert (found.verdict, found.verdicts) == (3, (3,))
    assert found.value == pytest.approx((0.1 + 0.4 + 1.8) / 0.9)


def test_labels_that_hold_too_little_rate_nothing() -> None:
    with rater_of(in_turn(("I would", {"1": 0.1, "2": 0.2, "3": 0.1}))) as rater:
        found = rater.rate({"text": "Some text."})
    assert (found.verdict, found.value, found.label_probabilities) == (None, None, None)
    with rater_of(in_turn((rating(1), {"3": 0.3}))) as rater:
        assert rater.rate({"text": "Some text."}).value == 1.0  # by what it wrote


def test_one_draw_without_probabilities_among_others_rates_by_the_verdicts() -> None:
    with rater_of(in_turn((rating(1), {"1": 0.6, "3": 0.4}), (rating(2), None)), draws=2) as rater:
        found = rater.rate({"text": "Some text."})
    assert (found.value, found.label_probabilities) == (1.5, None)
    with rater_of(in_turn((rating(1), {"1": 0.6, "3": 0.4}), ("no", None)), draws=2) as rater:
        assert rater.rate({"text": "Some text."}).value == pytest.approx(1.8)  # the other draw says nothing


def test_other_ways_of_joining_are_those_of_the_distribution() -> None:
    told = {"1": 0.45, "2": 0.15, "3": 0.4}
    for aggregate, value in (("mean", 1.95), ("median", 2.0), ("majority", 1.0)):
        with rater_of(in_turn((rating(3), told)), aggregate=aggregate) as rater:
            assert rater.rate({"text": "Some text."}).value == pytest.approx(value)


def test_nominal_takes_the_most_probable_label() -> None:
    with rater_of(in_turn((rating("present"), {"present": 0.3, "not_present": 0.6})), NOMINAL) as rater:
        found = rater.rate({"text": "Some text."})
    assert (found.verdict, found.verdicts) == ("not_present", ("present",))


def test_exchanged_pairs_have_their_probabilities_turned_back() -> None:
    """A model that likes the longer text, and a little more so if it is shown first, said in labels as shown."""

    def longer(prompt: str, seed: int) -> tuple[str, Mapping[str, float]]:
        first, second = shown_fields(prompt).values()
        if len(first) > len(second):
            return rating("A"), {"A": 0.8, "B": 0.1, "tie": 0.1}
        return rating("B"), {"A": 0.3, "B": 0.6, "tie": 0.1}

    for longest, verdict in (("left", "A"), ("right", "B")):
        model = Telling(longer)
        inputs = {"left": "Few words.", "right": "Few words."}
        inputs[longest] += " And many more of them."
        with rater_of(model, PAIRWISE, draws=2) as rater:
            found = rater.rate(inputs)
        assert {next(iter(shown_fields(prompt).values())) for prompt in model.prompts} == set(inputs.values())
        assert (found.verdict, set(found.verdicts)) == (verdict, {verdict})
        other = "B" if verdict == "A" else "A"
        assert found.label_probabilities == pytest.approx({verdict: 0.7, other: 0.2, "tie": 0.1})


# --- openai, from the command line to the scores ----------------------------------------------------------


def number_of(body: Record) -> int:
    return int(shown_fields(body["messages"][-1]["content"])["text"].split()[1])


def told_of(number: int) -> dict[str, float]:
    """Return what a model expects of an item: the higher its number the higher the label."""
    high = number / ITEMS
    return {"1": 0.9 * (1 - high) ** 2, "2": 1.8 * high * (1 - high), "3": 0.9 * high**2}


def value_of(number: int) -> float:
    """Return its expected value: 1 and twice the mean of a binomial share."""
    return 1 + 2 * number / ITEMS


def telling(body: Record, count: int) -> Answer:
    """Answer one of the labels by the seed, with the probabilities of all."""
    told = told_of(number_of(body))
    likely = [label for label, mass in told.items() if mass > 0]
    label = likely[body["seed"] % len(likely)]
    logs = {token: math.log(mass) for token, mass in {**told, "The": 0.1}.items() if mass > 0}
    entries = [
        token_entry(piece, -0.001, {piece: -0.001}) for piece in ("<", "rating", ">", label, "</", "rating", ">")
    ]
    entries[3] = token_entry(label, logs[label], logs)
    return Answer(rating(label), logprobs=entries)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {f"i{n}": {"a": 1 + (n * 3) // (ITEMS + 1), "b": 1 + (n * 3) // (ITEMS + 1)} for n in range(ITEMS)}
    inputs = {f"i{n}": {"text": f"Number {n} of the texts."} for n in range(ITEMS)}
    return write_corpus(tmp_path_factory.mktemp("corpus") / "small", labels, ORDINAL_3, inputs=inputs)


def flags(corpus: Path, server: ScriptedServer, out: Path, *more: object) -> list[str]:
    given = ["--model", "openai/scripted", "--base-url", server.base_url, "--no-reasoning", "--split", "all"]
    return [*given, "--corpus", str(corpus), "--out", str(out), *map(str, more)]


def check_ratings(out: Path, draws: int) -> None:
    records = timeless(out)
    assert len(records) == ITEMS * draws
    for record in records:
        number = int(record["item_id"][1:])
        assert record["expected"] == pytest.approx(value_of(number))
        told = {label: mass / 0.9 for label, mass in told_of(number).items()}
        assert record["label_probabilities"] == pytest.approx(told)
        assert record["verdict_from"] == "answer"
        assert record["answer"] == rating(record["verdict"])
    for record in read(out / "verdicts.jsonl"):
        value = value_of(int(record["item_id"][1:]))
        assert record["value"] == pytest.approx(value)
        assert record["verdict"] == math.floor(value + 0.5 + 1e-9)


def test_openai_from_command_line_to_scores(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer(telling) as server:
        assert main(flags(corpus, server, tmp_path / "run")) == 0
        assert all(body["logprobs"] is True and body["top_logprobs"] == 20 for body in server.requests)
        assert f"rated by the expected value over the labels' probabilities in {ITEMS} of {ITEMS} draws\n" in (
            capsys.readouterr().out
        )
        check_ratings(tmp_path / "run", 1)
        manifest = manifest_of(tmp_path / "run")
        assert (manifest["draws_with_probabilities"], manifest["verdicts_from_probabilities"]) == (ITEMS, 0)

        # The rater that was written rates alike, from a user's own program and by the command line.
        with load_rater(tmp_path / "run" / "rater.yaml", base_url=server.base_url) as rater:
            found = rater.rate_many([{"text": f"Number {n} of the texts."} for n in range(ITEMS)])
        assert [one.value for one in found] == pytest.approx([value_of(n) for n in range(ITEMS)])
        again = ["--rater", str(tmp_path / "run" / "rater.yaml"), "--base-url", server.base_url, "--split", "all"]
        assert main([*again, "--corpus", str(corpus), "--out", str(tmp_path / "again")]) == 0
        assert timeless(tmp_path / "again") == timeless(tmp_path / "run")

        # So do more draws, whatever they write.
        assert main(flags(corpus, server, tmp_path / "run", "--draws", 4)) == 0
        check_ratings(tmp_path / "run", 4)
        assert len({record["verdict"] for record in timeless(tmp_path / "run") if record["item_id"] == "i4"}) > 1


def test_scores_are_of_the_expected_values(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer(telling) as server:
        assert main(flags(corpus, server, tmp_path / "run")) == 0
    ratings = tmp_path / "run" / "ratings.jsonl"
    loaded = load_corpus(corpus)
    draws = read_draws(ratings, "run", loaded, loaded.dimension(None), "mean")
    values = [value_of(int(loaded.item_ids[item][1:])) for item in draws.items]
    assert draws.values(loaded.dimension(None).scale) == pytest.approx(values)
    arguments = ["--corpus", str(corpus), "--ratings", str(ratings), "--resamples", "200"]
    assert score_agreement.main([*arguments, "--out", str(tmp_path / "scores")]) == 0
    [scored] = json.loads((tmp_path / "scores" / "scores.json").read_text())["raters"]
    gold = np.array([1 + (n * 3) // (ITEMS + 1) for n in range(ITEMS)])
    by_hand = np.array([value_of(n) for n in range(ITEMS)])
    assert scored["agreement"]["mse"]["value"] == pytest.approx(((gold - by_hand) ** 2).mean())
    assert scored["agreement"]["mae"]["value"] == pytest.approx(np.abs(gold - by_hand).mean())
    rounded = np.floor(by_hand + 0.5)
    assert scored["agreement"]["exact_agreement"]["value"] == pytest.approx((gold == rounded).mean())
    # and what they are of is said wherever they are
    assert scored["items_by_probabilities"] == ITEMS
    assert f"run: rated by the labels' probabilities, {ITEMS} of {ITEMS} items" in capsys.readouterr().out
    assert f"label probabilities of {ITEMS} items" in (tmp_path / "scores" / "report.html").read_text("utf-8")


def test_ratings_with_bad_probabilities_are_refused_in_one_line(tmp_path: Path) -> None:
    corpus = load_corpus(write_corpus(tmp_path / "c", {"a": {"ann": 1}, "b": {"ann": 2}}, ORDINAL_3))
    good = {"item_id": "a", "dimension": DIMENSION, "verdict": 1, "label_probabilities": {"1": 0.5, "2": 0.5, "3": 0.0}}
    for bad in ({"1": 0.5, "2": 0.5}, {"1": 0.5, "2": 0.9, "3": 0.0}, {"1": "x", "2": 0, "3": 1}, [1, 0, 0]):
        write_jsonl(tmp_path / "r.jsonl", [good, {**good, "item_id": "b", "label_probabilities": bad}])
        with pytest.raises(DataError, match=r"r\.jsonl line 2: label_probabilities .*; mend the line") as caught:
            read_draws(tmp_path / "r.jsonl", "r", corpus, corpus.dimension(None), "mean")
        assert "\n" not in str(caught.value)
    # An item whose draws do not all tell their probabilities is rated by its verdicts.
    write_jsonl(
        tmp_path / "r.jsonl",
        [good, {**good, "draw": 1, "verdict": 3, "label_probabilities": None}, {**good, "item_id": "b"}],
    )
    draws = read_draws(tmp_path / "r.jsonl", "r", corpus, corpus.dimension(None), "mean")
    assert draws.values(corpus.dimension(None).scale).tolist() == [2.0, 1.5]
    assert draws.by_probabilities == 1
    # Ratings of a part of the corpus.
    write_jsonl(tmp_path / "r.jsonl", [{**good, "item_id": "b"}])
    draws = read_draws(tmp_path / "r.jsonl", "r", corpus, corpus.dimension(None), "mean")
    assert (draws.items.tolist(), draws.values(corpus.dimension(None).scale).tolist()) == ([1], [1.5])


def test_a_run_whose_ratings_hold_bad_probabilities_does_not_go_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(telling) as server:
        given = flags(corpus, server, tmp_path / "run")
        assert main(given) == 0
        path = tmp_path / "run" / "ratings.jsonl"
        lines = path.read_text().splitlines()
        lines[2] = json.dumps({**json.loads(lines[2]), "label_probabilities": {"1": 2.0, "2": 0.0, "3": 0.0}})
        path.write_text("\n".join(lines) + "\n")
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [STAGE, *given])
        assert run_command(STAGE, main) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{STAGE}: ratings.jsonl line 3: ")
    assert "label_probabilities" in last


def test_openai_killed_run_keeps_expected_values(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(telling) as server:
        assert main(flags(corpus, server, tmp_path / "whole", "--draws", 2)) == 0
        made = 5

        def slow(body: Record, count: int) -> Answer:
            answer = telling(body, count)
            return Answer(answer.content, logprobs=answer.logprobs, delay_seconds=0 if count < first + made else 30)

        first, server.script = len(server.requests), slow
        folder = tmp_path / "killed"
        given = flags(corpus, server, folder, "--draws", 2)
        command = [sys.executable, "-m", f"pipelines.{STAGE}", *given]
        with subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while not ((folder / "ratings.jsonl").exists() and len(read(folder / "ratings.jsonl")) >= made):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        before = (folder / "ratings.jsonl").read_bytes()
        server.script = telling
        capsys.readouterr()
        assert main(given) == 0
        assert f"{made} draws are there already" in capsys.readouterr().err
    assert (folder / "ratings.jsonl").read_bytes().startswith(before)
    check_ratings(folder, 2)
    assert timeless(folder) == timeless(tmp_path / "whole")
    assert (folder / "verdicts.jsonl").read_bytes() == (tmp_path / "whole" / "verdicts.jsonl").read_bytes()
    assert manifest_of(folder)["draws_with_probabilities"] == 2 * ITEMS


@pytest.mark.parametrize("how", ["null", "refused"])
def test_a_server_without_log_probabilities_is_rated_by_its_answers_and_said_so(
    how: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def without(body: Record, count: int) -> Answer | Fault:
        if how == "refused" and "logprobs" in body:
            return Fault(400, "This model does not support the 'logprobs' parameter.", param="logprobs")
        return Answer(telling(body, count).content)

    with ScriptedServer(without) as server:
        assert main(flags(corpus, server, tmp_path / "run", "--concurrency", 1)) == 0
        assert len(server.requests) == ITEMS + (2 if how == "refused" else 0)
    assert "told no probabilities of the labels: rated by the verdicts it wrote" in capsys.readouterr().out
    assert len(caplog.records) == 1
    assert manifest_of(tmp_path / "run")["draws_with_probabilities"] == 0
    for record in read(tmp_path / "run" / "ratings.jsonl"):
        assert (record["expected"], record["label_probabilities"]) == (None, None)
        assert record["verdict_from"] == "answer"
    for record in read(tmp_path / "run" / "verdicts.jsonl"):
        assert record["value"] == record["verdict"]


def test_answers_cut_off_before_their_end_are_counted(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(body: Record, count: int) -> Answer:
        whole = telling(body, count)
        assert whole.logprobs is not None
        assert whole.content is not None
        if number_of(body) % 2:
            return Answer(whole.content[:9], finish_reason="length", logprobs=whole.logprobs[:4])
        return whole

    with ScriptedServer(cut) as server:
        assert main(flags(corpus, server, tmp_path / "run")) == 0
    half = ITEMS // 2
    assert f"{ITEMS} of {ITEMS} draws, {half} of them with an answer that cannot be read" in capsys.readouterr().out
    assert manifest_of(tmp_path / "run")["verdicts_from_probabilities"] == half
    for record in read(tmp_path / "run" / "ratings.jsonl"):
        number = int(record["item_id"][1:])
        told = told_of(number)
        if number % 2:
            assert record["verdict_from"] == "probabilities"
            assert record["verdict"] == int(max(told, key=lambda label: told[label]))
        assert record["expected"] == pytest.approx(value_of(number))


def test_pairs_over_http_are_turned_back(tmp_path: Path) -> None:
    """A server that holds the text shown first ahead, whatever it is: both orders together say that neither is."""
    labels = {f"i{n}": {"ann": "A"} for n in range(6)}
    inputs = {f"i{n}": {"left": f"Left {n}.", "right": f"Right {n}."} for n in range(6)}
    corpus = write_corpus(tmp_path / "c", labels, PAIRWISE, inputs=inputs)
    told = {"A": 0.7, "B": 0.2, "tie": 0.1}

    def first(body: Record, count: int) -> Answer:
        logs = {label: math.log(mass) for label, mass in told.items()}
        entries = [token_entry("<rating>", 0.0), token_entry("A", logs["A"], logs), token_entry("</rating>", 0.0)]
        return Answer(rating("A"), logprobs=entries)

    with ScriptedServer(first) as server:
        assert main(flags(corpus, server, tmp_path / "run", "--draws", 2)) == 0
    for record in read(tmp_path / "run" / "ratings.jsonl"):
        swapped = is_swapped(0, record["item_id"], DIMENSION, record["draw"])
        expected = {"A": 0.2, "B": 0.7, "tie": 0.1} if swapped else told
        assert record["swapped"] == swapped
        assert record["label_probabilities"] == pytest.approx(expected)
        assert record["expected"] is None
        assert record["verdict"] == ("B" if swapped else "A")
    loaded = load_corpus(corpus)
    draws = read_draws(tmp_path / "run" / "ratings.jsonl", "r", loaded, loaded.dimension(None), "majority")
    assert draws.verdicts(loaded.dimension(None).scale).tolist() == [0.0] * 6  # .45 each: the one named first


# --- models of this machine -------------------------------------------------------------------------------


def asked_of(number: int) -> str:
    text = f"Number {number} of the texts."
    return f"Say how good the text is.\nLabels: 1, 2, 3 (from lowest to highest)\n\ntext: {text}\n\n"


@pytest.fixture(scope="module")
def tiny_rater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that answers with 1, 2 or 3 at once."""
    asked = [asked_of(number) for number in range(ITEMS)]
    return make_rater(tmp_path_factory.mktemp("model") / "rater", asked, [1, 2, 3], steps=80, at_once=True)


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompt") / "short.md"
    path.write_text(SHORT_PROMPT)
    return path


def hf_flags(corpus: Path, prompt: Path, out: Path, *more: object) -> list[str]:
    given = ["--no-reasoning", "--prompt", str(prompt), "--max-tokens", "12", "--split", "all"]
    return [*given, "--corpus", str(corpus), "--out", str(out), *map(str, more)]


def test_hf_expected_values_are_those_of_plain_transformers(
    corpus: Path, prompt: Path, tiny_rater: Path, tmp_path: Path
) -> None:
    model = ["--model", f"hf/{tiny_rater}", "--batch-size", "3"]
    out = {temperature: tmp_path / str(temperature) for temperature in (0, 1)}
    for temperature, folder in out.items():
        assert main(hf_flags(corpus, prompt, folder, *model, "--temperature", temperature)) == 0
    loaded, spec = load_corpus(corpus), read_rater(out[0] / "rater.yaml")
    parts = plain(tiny_rater)
    expected = {}
    for number in range(ITEMS):
        messages: list[Message] = spec.question.about(loaded.item(loaded.item_ids.index(f"i{number}")))()
        masses = {
            label: math.exp(value)
            for label, value in expected_logprobs(*parts, messages, "", label_texts(spec.dimension.scale)).items()
        }
        assert sum(masses.values()) > 0.8, "it has learned to answer with a label"
        expected[f"i{number}"] = sum(int(label) * mass for label, mass in masses.items()) / sum(masses.values())
    assert len({round(value, 3) for value in expected.values()}) > 1
    at_once = 0
    for folder in out.values():
        for record in read(folder / "ratings.jsonl"):
            if record["answer"].startswith("<rating>") or not record["trace"]:
                at_once += 1
                assert record["expected"] == pytest.approx(expected[record["item_id"]], abs=1e-4)
    assert at_once >= 2 * ITEMS - 1
    for record in read(out[0] / "verdicts.jsonl"):
        assert record["value"] == pytest.approx(expected[record["item_id"]], abs=1e-4)

    with load_rater(out[0] / "rater.yaml") as rater:
        found = rater.rate({"text": "Number 3 of the texts."})
    assert found.value == pytest.approx(expected["i3"], abs=1e-4)
    assert found.label_probabilities is not None


def test_hf_killed_run_keeps_expected_values(corpus: Path, prompt: Path, tiny_rater: Path, tmp_path: Path) -> None:
    model = ["--model", f"hf/{tiny_rater}", "--batch-size", "2", "--concurrency", "2", "--draws", "3"]
    folder = tmp_path / "killed"
    given = hf_flags(corpus, prompt, folder, *model)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", f"pipelines.{STAGE}", *given]
    with subprocess.Popen(command, cwd=CHECKOUT, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not ((folder / "ratings.jsonl").exists() and (folder / "ratings.jsonl").read_bytes().count(b"\n") >= 4):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    before = (folder / "ratings.jsonl").read_bytes()
    assert before.count(b"\n") < 3 * ITEMS, "killed too late to show anything"
    assert main(given) == 0
    assert main(hf_flags(corpus, prompt, tmp_path / "whole", *model)) == 0
    assert (folder / "ratings.jsonl").read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    for one, other in zip(timeless(folder), timeless(tmp_path / "whole"), strict=True):
        # A batch of another shape may change a last bit.
        assert one.pop("expected") == pytest.approx(other.pop("expected"), abs=1e-5)
        assert one.pop("label_probabilities") == pytest.approx(other.pop("label_probabilities"), abs=1e-5)
        assert one == other


@pytest.mark.slow
def test_a_real_server_that_ignores_the_wish(
    corpus: Path, prompt: Path, tiny_rater: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_transformers(tiny_rater, tmp_path / "log.txt") as url:
        model = ["--model", f"openai/{tiny_rater}", "--base-url", url, "--concurrency", "1", "--limit", "3"]
        assert main(hf_flags(corpus, prompt, tmp_path / "run", *model)) == 0
    assert [record.getMessage().endswith("is rated without them") for record in caplog.records if "openai/" in
            record.getMessage()] == [True]  # fmt: skip
    records = read(tmp_path / "run" / "ratings.jsonl")
    assert len(records) == 3
    assert all(record["expected"] is None for record in records)
    assert sum(record["verdict"] is not None for record in records) >= 2


def test_embedded_tells_no_probabilities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", "embedded", "--no-reasoning", "--prompt", "embedded/rate", "--limit", "4"]
    assert main([*given, "--out", str(tmp_path / "run")]) == 0
    assert "told no probabilities" in capsys.readouterr().out
    assert all(record["expected"] is None for record in read(tmp_path / "run" / "ratings.jsonl"))
