"""The student: what it is trained on, how it is measured, and that what ships is what its page says."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.student import gates, train
from data.student.fields import measure
from data.student.gates import GATES
from data.student.tasks import ORACLE_RULES, Exercise, Kind, exercise, oracle_exercise
from data.student.tokenizer import make_tokenizer, pieces
from raters.models import check_spec, open_model, prompt_family
from raters.models.embedded import answer
from raters.models.protocol import SamplingSettings, split_reasoning
from raters.records import ConfigError
from raters.resources import resource_folder
from tests.places import CHECKOUT

FOLDER = resource_folder("data") / "student"
KINDS: tuple[Kind, ...] = (
    "restate",
    "look-up",
    "read-off",
    "spell",
    "many",
    "few",
    "sparse",
    "scarce",
    "at-once",
    "rate-first",
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def exercises(count: int, kinds: Sequence[Kind] = ("many", "few"), seed: int = 1) -> list[Exercise]:
    chance = random.Random(seed)
    return [exercise(chance, kind) for kind in kinds for _ in range(count)]


# --- tokenizer --------------------------------------------------------------------------------------------


def test_every_piece_is_one_token_and_any_text_can_be_written(tokenizer: Any) -> None:
    ids = [tokenizer(piece, add_special_tokens=False).input_ids for piece in pieces()]
    assert {len(one) for one in ids} == {1}
    assert len({one[0] for one in ids}) == len(pieces())
    for text in ("", "Ünïcode, 日本 and\ttabs\n\n", "length is highly is highest.", "<think>\n- start", "\x00\x7f"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_a_name_is_the_same_token_in_guideline_and_trace(tokenizer: Any) -> None:
    def tokens(text: str) -> list[str]:
        return [tokenizer.decode([token]) for token in tokenizer(text, add_special_tokens=False).input_ids]

    trace = "<think>\n- length is high length helps twice +2 seven.\n- total seven 4.\n</think>\n\n<rating>4</rating>"
    assert tokens("Guideline:\n- length helps twice.\nScale: zero 1. one 1.")[:5] == [
        "Guideline:", "\n-", " length", " helps", " twice"
    ]  # fmt: skip
    assert tokens("Text: length is high. sentence_length is low.\n")[1:3] == [
        " length is high.",
        " sentence_length is low.",
    ]
    assert tokens(trace)[:7] == ["<think>\n-", " length", " is high", " length", " helps", " twice", " +2"]
    assert tokens(trace)[-3:] == ["<rating>", "4", "</rating>"]


# --- exercises --------------------------------------------------------------------------------------------


def test_exercises_are_the_same_in_every_process() -> None:
    """Nothing may hang on the order of a set, which differs from process to process."""
    code = (
        "import random; from data.student.tasks import exercise; chance = random.Random(3); "
        "print([exercise(chance, kind).prompt for kind in ('spell', 'many', 'scarce') for _ in range(40)])"
    )

    def printed(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True).stdout

    assert printed("1") == printed("2")


@pytest.mark.parametrize("kind", KINDS)
def test_exercises_differ_and_come_again_with_their_seed(kind: Kind) -> None:
    first, again = (exercises(20, (kind,), seed=4) for _ in range(2))
    assert first == again
    assert len({(one.prompt, one.answer) for one in first}) == 20
    assert all(one.kind == kind for one in first)


def test_labels_of_the_rungs_are_those_of_the_prompt() -> None:
    for one in exercises(200):
        scale = next(line for line in one.prompt.splitlines() if line.startswith("Scale: "))
        rungs = "zero one two three four five six seven eight nine".split()
        assert scale == "Scale: " + " ".join(f"{rung} {label}." for rung, label in zip(rungs, one.labels, strict=True))


def test_the_oracle_says_nothing_of_its_rules_in_the_prompt() -> None:
    one = oracle_exercise(random.Random(1))
    assert one.prompt.startswith("Guideline:\nScale: ")
    shown = one.prompt.replace("Guideline:\n", "Guideline:\n" + "".join(f"- {rule}.\n" for rule in ORACLE_RULES))
    said = answer(shown, 5, SamplingSettings())
    assert one.answer == f"<think>\n{said.reasoning}\n</think>\n\n{said.text}"


# --- fields -----------------------------------------------------------------------------------------------


def drawn(one: Exercise) -> tuple[Exercise, str, str]:
    return (one, *split_reasoning(one.answer))


def test_the_rule_reader_is_right_in_every_field() -> None:
    shares = measure(drawn(one) for one in exercises(150))
    assert shares == dict.fromkeys(("format", "observation", "level", "tally", "verdict", "guideline"), 1.0)


@pytest.fixture
def simple() -> tuple[Exercise, str, str]:
    levels = {"length": 3, "overlap": 0}
    labels = ("1", "1", "2", "2", "3", "3", "4", "4", "5", "5")
    rules = ("length helps twice", "start at five", "rest ignored")
    one = Exercise("many", "", "", rules, levels, labels)
    return one, "- start five.\n- length is high length helps twice +2 seven.\n- total seven 4.", "<rating>4</rating>"


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("- total seven 4.", "- total seven.", {"format"}),
        ("helps twice +2", "is helpful +2", {"format"}),
        ("length is high length", "overlap is lowest length", {"observation", "guideline", "tally"}),
        ("length is high length", "commas is high commas", {"observation", "level", "guideline"}),
        ("is high", "is low", {"level", "tally"}),
        ("+2", "+3", {"tally"}),
        ("+2 seven", "+2 eight", {"tally"}),
        ("total seven 4", "total eight 5", {"tally", "verdict"}),
        ("total seven 4", "total seven 5", {"verdict"}),
        ("start five", "start six", {"tally", "guideline"}),
        ("start five", "start maybe five", {"guideline"}),
        ("helps twice", "helps maybe twice", {"guideline"}),
        ("helps twice +2 seven", "hurts twice -2 three", {"tally", "guideline"}),
    ],
)
def test_a_mistake_counts_in_its_field(simple: tuple[Exercise, str, str], old: str, new: str, wrong: set[str]) -> None:
    one, reasoning, rating = simple
    assert measure([simple])["guideline"] == 1.0
    shares = measure([(one, reasoning.replace(old, new), rating)])
    assert {field for field, share in shares.items() if share < 1} == wrong


def test_what_cannot_be_read_is_wrong_in_format(simple: tuple[Exercise, str, str]) -> None:
    one, reasoning, _ = simple
    for said in ((reasoning, ""), ("", "<rating>4</rating>"), ("garbage", "garbage")):
        assert measure([(one, *said)]) == {"format": 0.0}
    assert measure([(one, reasoning, "<rating>5</rating>")])["verdict"] == 0.0


# --- training ---------------------------------------------------------------------------------------------


def test_a_student_that_misses_a_gate_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gates, "MOST_TOKENS", 8)  # enough to see that it has not learned the form
    assert train.main(["--out", str(tmp_path), "--steps", "8", "--batch", "2"]) == 1
    assert "not saved: format: 0.0000, below 1; " in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_training_goes_on_from_its_checkpoint_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    import torch

    monkeypatch.setattr(train, "SAVE_STEPS", train.BLOCK)
    monkeypatch.setattr(train, "TOLD_DRAWS", 2)
    monkeypatch.setattr(gates, "MOST_TOKENS", 8)

    def trained(checkpoint: Path, stop_at: int | None = None) -> Any:
        model = train.new_model(tokenizer, 3)
        checkpoint.parent.mkdir(exist_ok=True)
        if stop_at is not None:
            real = train.rate_at

            def killed(step: int, steps: int) -> float:
                if step == stop_at:
                    raise KeyboardInterrupt
                return real(step, steps)

            with monkeypatch.context() as patch:
                patch.setattr(train, "rate_at", killed)
                with pytest.raises(KeyboardInterrupt):
                    train.train(model, tokenizer, 3, 2 * train.BLOCK, 2, checkpoint)
            model = train.new_model(tokenizer, 3)
        train.train(model, tokenizer, 3, 2 * train.BLOCK, 2, checkpoint)
        return model

    whole = trained(tmp_path / "a" / "checkpoint.pt")
    resumed = trained(tmp_path / "b" / "checkpoint.pt", stop_at=train.BLOCK + 3)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_observation_begins_as_its_name_and_level(tokenizer: Any) -> None:
    weights = train.new_model(tokenizer, 0).get_input_embeddings().weight
    whole, name, level = (
        weights[tokenizer.convert_tokens_to_ids(piece)] for piece in (" commas is low.", " commas", " is low")
    )
    assert (whole * 2**0.5 - name - level).abs().max() < 1e-6


# --- what ships -------------------------------------------------------------------------------------------


def test_the_weights_that_ship_are_small_and_reached_every_gate() -> None:
    about = json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
    assert set(about["figures"]) == set(GATES)
    assert not gates.missed(about["figures"])
    assert (FOLDER / "model.safetensors").stat().st_size < 10 * 2**20
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert about["command"] in page
    for figure in about["figures"].values():
        assert f"{figure:.4f}" in page


def test_the_student_writes_as_it_was_measured() -> None:
    """A sample of the measurement at its saving, on other exercises, and so a little below the gates."""
    found = gates.field_shares(FOLDER, seed=12345, draws=100)
    assert found["format"] >= 0.94
    assert all(found[field] >= 0.95 for field in ("observation", "level", "tally", "verdict"))
    assert found["guideline"] >= 0.88


def test_the_tokenizer_that_ships_is_the_one_of_the_script(tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    shipped = AutoTokenizer.from_pretrained(FOLDER)
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert shipped.chat_template == tokenizer.chat_template


def test_its_name_is_a_model_of_this_process(tmp_path: Path) -> None:
    assert check_spec("student") == ("hf", str(FOLDER))
    assert prompt_family("student") == "embedded/"
    assert open_model("student").spec == "student"
    with pytest.raises(ConfigError, match="not a model"):
        check_spec("student/2")


def test_a_run_of_the_student_names_it_and_no_path(tmp_path: Path) -> None:
    from pipelines.infer_traces import main

    arguments = ["--model", "student", "--limit", "6", "--k", "2", "--null-items", "0", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "candidates.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) >= 6
    assert {line["model"] for line in lines} == {"student"}
    assert all(line["verdict"] is not None for line in lines)
    assert str(FOLDER) not in (tmp_path / "run" / "manifest.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("stage", "arguments", "told"),
    [
        ("infer_traces", ["--rationalize", "student"], "--rationalize student: it has learned to rate alone"),
        ("infer_traces", ["--model", "student", "--prompt", "rate"], "student reads observations"),
        ("rate_items", ["--model", "student", "--prompt", "rate"], "student reads observations"),
    ],
)
def test_what_it_has_not_learned_is_refused(stage: str, arguments: list[str], told: str, tmp_path: Path) -> None:
    import importlib

    with pytest.raises(ConfigError, match=told):
        importlib.import_module(f"pipelines.{stage}").main([*arguments, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_fields_do_not_depend_on_an_exercise_of_another_kind(simple: tuple[Exercise, str, str]) -> None:
    one, reasoning, rating = simple
    assert measure([(replace(one, kind="few"), reasoning, rating)]) == measure([simple])
