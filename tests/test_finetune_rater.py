"""The stage: what every path leaves, what rates afterwards, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import raters
from pipelines.rate_items import main as rate_items
from raters.models.bases import base_fingerprint
from raters.models.hf import HFModel
from raters.models.protocol import SamplingSettings
from raters.rater_files import SeenItems, read_rater
from raters.records import ConfigError, DataError, ModelAccessError
from tests.places import CHECKOUT
from tests.small_corpora import INTERVAL, NOMINAL, ORDINAL_5
from tests.small_training import Said, finetune, losses, write_pair_run, write_trace_run
from tests.test_training_data import DROPS_THINKING
from tests.tiny_models import CHAT_TEMPLATE, make_adapter, make_model

TWO_STEPS = ("--steps", "2", "--batch", "4", "--eval-steps", "2", "--lr", "1e-2")


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Curves take as long as the steps; one test here draws them."""
    if "curves" not in request.node.name:
        monkeypatch.setattr("raters.training_report.plot_curves", lambda *arguments: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "m", special_tags=False, context_tokens=2048)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace_run(tmp_path_factory.mktemp("run"))


def done(said: Said) -> Said:
    assert said.status == 0, said.error
    return said


@pytest.mark.parametrize(
    ("target", "prompt", "reasoning"),
    [
        ("trace", "short", True),
        ("label", "rate_at_once", False),
        ("label-after-trace", "short", True),
        ("verdict-first", "rate_first", True),
    ],
)
def test_the_rater_of_a_target_rates_as_it_was_trained(
    run: Path, base: Path, tmp_path: Path, target: str, prompt: str, reasoning: bool
) -> None:
    said = done(finetune(run, base, tmp_path / "o", *TWO_STEPS, "--target", target))
    record = yaml.safe_load((tmp_path / "o" / "rater.yaml").read_text())
    assert record["adapter"] == "adapter"
    assert record["model"] == f"hf/{base}"
    assert Path(record["prompt"]["name"]).stem == prompt
    assert record["sampling"]["reasoning"] is reasoning
    spec = read_rater(tmp_path / "o" / "rater.yaml")
    assert spec.adapter == str(tmp_path / "o" / "adapter")
    corpus = raters.corpora.load_corpus(run.parent / "corpus")
    split = raters.splits.split_corpus(corpus, 0)
    trained_on = [int(item) for part in ("train", "dev") for item in split.indices(part)]
    assert set(spec.seen.hashes.tolist()) == set(corpus.content[trained_on].tolist())
    assert not len(spec.seen.touched(corpus, split.indices("test")))
    assert said.summary["best_seed"] == 0
    arguments = ["--rater", str(tmp_path / "o" / "rater.yaml"), "--corpus", str(run.parent / "corpus")]
    assert rate_items([*arguments, "--split", "test", "--limit", "2", "--out", str(tmp_path / "r")]) == 0
    assert len((tmp_path / "r" / "ratings.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_curves_are_drawn(run: Path, base: Path, tmp_path: Path) -> None:
    done(finetune(run, base, tmp_path / "o", *TWO_STEPS))
    for name in ("loss.svg", "dev.svg"):
        assert (tmp_path / "o" / name).read_text().startswith("<?xml")


def test_ratings_that_nobody_can_read_are_said(run: Path, base: Path, tmp_path: Path) -> None:
    said = done(finetune(run, base, tmp_path / "o", *TWO_STEPS))
    assert "4 of 4 draws of the chosen checkpoint cannot be read" in said.out


@pytest.mark.slow
def test_same_items_and_steps_for_every_target(run: Path, base: Path, tmp_path: Path) -> None:
    seen = set()
    for target in ("trace", "label"):
        done(finetune(run, base, tmp_path / target, *TWO_STEPS, "--target", target))
        lines = [json.loads(line) for line in (tmp_path / target / "metrics.jsonl").read_text().splitlines()]
        seen.add(json.dumps([line["examples"] for line in lines if "examples" in line]))
    assert len(seen) == 1


def test_the_adapter_is_what_was_trained(run: Path, base: Path, tmp_path: Path) -> None:
    """The hf backend with the adapter says what the base alone does not."""
    import asyncio

    done(finetune(run, base, tmp_path / "o", *TWO_STEPS))

    def written(adapter: Path | None) -> str:
        model = HFModel(str(base), adapter=adapter)
        settings = SamplingSettings(temperature=0, max_tokens=8)
        messages = [{"role": "user", "content": "Is it good?"}]
        (completion,) = asyncio.run(model.complete(messages, [0], settings))  # type: ignore[arg-type]
        asyncio.run(model.close())
        return completion.reasoning + completion.text

    assert written(tmp_path / "o" / "adapter") != written(None)
    config = json.loads((tmp_path / "o" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0)
    layers = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
    # every linear layer but the head
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == set(layers.split())
    assert config["base_model_name_or_path"] == str(base)


@pytest.mark.slow
def test_several_seeds(run: Path, base: Path, tmp_path: Path) -> None:
    said = done(finetune(run, base, tmp_path / "o", *TWO_STEPS, "--seeds", "2", "--seed", "5"))
    assert losses(tmp_path / "o" / "seed-5") != losses(tmp_path / "o" / "seed-6")
    figures = said.summary["dev"]["values"]
    assert len(figures) == 2
    assert said.summary["dev"]["mean"] == pytest.approx(sum(figures) / 2)
    assert said.summary["dev"]["sd"] == pytest.approx(abs(figures[0] - figures[1]) / 2**0.5)
    best = said.summary["best_seed"]
    assert yaml.safe_load((tmp_path / "o" / "rater.yaml").read_text())["adapter"] == f"seed-{best}/adapter"
    for seed in (5, 6):
        assert read_rater(tmp_path / "o" / f"seed-{seed}" / "rater.yaml").adapter_sha256
    # a seed trained by itself is the same one
    done(finetune(run, base, tmp_path / "alone", *TWO_STEPS, "--seed", "6"))
    assert losses(tmp_path / "alone") == losses(tmp_path / "o" / "seed-6")


def test_merged(run: Path, base: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    said = done(finetune(run, base, tmp_path / "o", *TWO_STEPS, "--merge"))
    assert said.summary["merge"]["largest_difference"] < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "o" / "merged", dtype=torch.float32)
    apart = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    alone = apart(input_ids=ids).logits
    apart = PeftModel.from_pretrained(apart, tmp_path / "o" / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, apart(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone, apart(input_ids=ids).logits, atol=1e-2)
    arguments = ["--model", f"hf/{tmp_path / 'o' / 'merged'}", "--corpus", str(run.parent / "corpus"), "--limit", "1"]
    assert rate_items([*arguments, "--max-tokens", "3", "--out", str(tmp_path / "r")]) == 0


def test_another_guideline_in_the_prompt(run: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("Look at the words alone.\n")
    done(finetune(run, base, tmp_path / "o", *TWO_STEPS, "--prompt-guideline", str(tmp_path / "other.md")))
    assert read_rater(tmp_path / "o" / "rater.yaml").dimension.guideline == "Look at the words alone."


def test_the_original_guideline_in_the_prompt_of_traces_under_a_refined_one(base: Path, tmp_path: Path) -> None:
    folder = write_trace_run(tmp_path / "run", guideline="Is it good?")
    record = (folder / "rater.yaml").read_text()
    manifest = json.loads((folder / "manifest.json").read_text())
    refined = "Good words make it good."
    from raters.journal import sha256_of

    changed = record.replace("guideline: Is it good?", f"guideline: {refined}")
    (folder / "rater.yaml").write_text(changed.replace(manifest["identity"]["guideline"], sha256_of(refined)))
    manifest["identity"]["guideline"] = sha256_of(refined)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done(finetune(folder, base, tmp_path / "refined", *TWO_STEPS))
    assert read_rater(tmp_path / "refined" / "rater.yaml").dimension.guideline == refined
    done(finetune(folder, base, tmp_path / "original", *TWO_STEPS, "--prompt-guideline", "original"))
    assert read_rater(tmp_path / "original" / "rater.yaml").dimension.guideline == "Is it good?"


def test_an_adapter_to_begin_with(run: Path, base: Path, tmp_path: Path) -> None:
    done(finetune(run, base, tmp_path / "first", *TWO_STEPS))
    more = (*TWO_STEPS, "--adapter", str(tmp_path / "first" / "adapter"))
    done(finetune(run, base, tmp_path / "second", *more))
    # the same examples in the same order, by an adapter that has seen them
    assert losses(tmp_path / "second")[0] < losses(tmp_path / "first")[0]
    # trained again in its place, it is another one
    done(finetune(run, base, tmp_path / "first", *TWO_STEPS, "--seed", "7", "--new"))
    assert "adapter_sha256 was" in finetune(run, base, tmp_path / "second", *more).error


def test_a_rater_has_also_seen_what_it_began_with_and_who_drew_its_traces(base: Path, tmp_path: Path) -> None:
    folder = write_trace_run(tmp_path / "run")
    done(finetune(folder, base, tmp_path / "first", *TWO_STEPS))
    adapter = tmp_path / "first" / "adapter"
    path, generator = tmp_path / "first" / "rater.yaml", folder / "rater.yaml"
    spec = read_rater(path)
    replace(spec, seen=SeenItems(np.array([1, 2]))).write(path)
    replace(read_rater(generator), seen=SeenItems(np.array([2, 3]))).write(generator)
    done(finetune(folder, base, tmp_path / "second", *TWO_STEPS, "--adapter", str(adapter)))
    seen = read_rater(tmp_path / "second" / "rater.yaml").seen.hashes.tolist()
    assert seen == sorted({1, 2, 3, *spec.seen.hashes.tolist()})


def says_of_dev(folder: Path, value: float) -> None:
    """Have a finished run say another dev figure of its rater."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["summary"]["dev"]["mean"] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_round_that_is_not_better_on_dev_leaves_the_rater_before(run: Path, base: Path, tmp_path: Path) -> None:
    first = done(finetune(run, base, tmp_path / "1", *TWO_STEPS))
    value = first.summary["dev"]["mean"]
    # The same run again is as good, and so not better.
    said = done(finetune(run, base, tmp_path / "2", *TWO_STEPS, "--gate", str(tmp_path / "1")))
    assert said.summary["gate"] == {"run": str(tmp_path / "1"), "value": value, "passed": False}
    assert "not better, so that one stays" in said.out
    stands = read_rater(tmp_path / "1" / "rater.yaml")
    kept = read_rater(tmp_path / "2" / "rater.yaml")
    assert (kept.sha256, kept.adapter) == (stands.sha256, str((tmp_path / "1" / "adapter").resolve()))
    # The third round is held against the first, whose rater stands, and not against the second.
    says_of_dev(tmp_path / "2", value - 0.5)
    third = ("--seed", "3", "--gate", str(tmp_path / "2"))
    said = done(finetune(run, base, tmp_path / "3", *TWO_STEPS, *third))
    assert said.summary["gate"]["value"] == value
    says_of_dev(tmp_path / "1", value - 0.5)
    said = done(finetune(run, base, tmp_path / "4", *TWO_STEPS, "--seed", "3", "--gate", str(tmp_path / "1")))
    assert said.summary["gate"]["passed"]
    assert "better, and takes its place" in said.out
    assert read_rater(tmp_path / "4" / "rater.yaml").adapter == str(tmp_path / "4" / "adapter")


def test_rounds_that_cannot_be_compared(run: Path, base: Path, tmp_path: Path) -> None:
    gate = ("--gate", str(tmp_path / "1"))
    assert "holds no finished run of finetune_rater" in refused(run, base, tmp_path, *gate)
    assert "a run of infer_traces" in refused(run, base, tmp_path, "--gate", str(run))
    done(finetune(run, base, tmp_path / "1", *TWO_STEPS))
    for more, named in ((("--dev-draws", "2"), "another dev_draws (1, now 2)"), (("--dev-limit", "5"), "dev_items")):
        assert named in refused(run, base, tmp_path, *gate, *more)
    assert "--merge: is about this run's rater" in refused(run, base, tmp_path, *gate, "--merge")


@pytest.mark.parametrize("scale", [NOMINAL, ORDINAL_5], ids=["nominal", "ordinal"])
def test_other_scales(base: Path, tmp_path: Path, scale: dict[str, Any]) -> None:
    folder = write_trace_run(tmp_path / "run", scale)
    done(finetune(folder, base, tmp_path / "o", *TWO_STEPS, "--method", "sft+dpo", "--dpo-epochs", "0.1", dev_limit=8))


def test_pairs_of_texts(base: Path, tmp_path: Path) -> None:
    done(finetune(write_pair_run(tmp_path / "run"), base, tmp_path / "o", *TWO_STEPS))


def test_bfloat16(run: Path, base: Path, tmp_path: Path) -> None:
    done(finetune(run, base, tmp_path / "o", *TWO_STEPS, "--dtype", "bfloat16"))
    assert losses(tmp_path / "o")[0] == pytest.approx(6.6, abs=0.6)


def test_the_same_command_again_changes_nothing(run: Path, base: Path, tmp_path: Path) -> None:
    first = done(finetune(run, base, tmp_path / "o", *TWO_STEPS))
    files = {path: path.read_bytes() for path in (tmp_path / "o").rglob("*.*") if path.name != "manifest.json"}
    assert done(finetune(run, base, tmp_path / "o", *TWO_STEPS)).summary == first.summary
    again = {path: path.read_bytes() for path in (tmp_path / "o").rglob("*.*") if path.name != "manifest.json"}
    assert again == files


def test_another_command_in_the_same_folder_is_refused(run: Path, base: Path, tmp_path: Path) -> None:
    done(finetune(run, base, tmp_path / "o", *TWO_STEPS))
    said = finetune(run, base, tmp_path / "o", *TWO_STEPS, "--target", "label")
    assert said.status == 2
    assert "target was" in said.error


def refused(run: Path, base: Path | str, tmp_path: Path, *more: str) -> str:
    """Return the one line of a refusal, after a check that nothing was written."""
    out = tmp_path / "refused"
    said = finetune(run, base, out, *TWO_STEPS, *more)  # type: ignore[arg-type]
    assert said.status == 2
    assert "\n" not in said.error
    assert not out.exists()
    return said.error


def test_a_base_without_a_chat_template(run: Path, tmp_path: Path) -> None:
    mute = make_model(tmp_path / "mute", chat_template=None)
    assert "has no chat template" in refused(run, mute, tmp_path)


def test_a_template_of_ones_own(run: Path, tmp_path: Path) -> None:
    drops = make_model(tmp_path / "m", DROPS_THINKING, special_tags=False, context_tokens=2048)
    assert "drops the thinking of an answer; give --chat-template" in refused(run, drops, tmp_path)
    (tmp_path / "keeps.jinja").write_text(CHAT_TEMPLATE)
    done(finetune(run, drops, tmp_path / "o", *TWO_STEPS, "--chat-template", str(tmp_path / "keeps.jinja")))
    assert (tmp_path / "o" / "adapter" / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert "--chat-template nowhere: cannot be read" in refused(run, drops, tmp_path, "--chat-template", "nowhere")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--base", "hf//nowhere/at/all"), "there is no such folder"),
        (("--base", "nonsense"), "not a model"),
        (("--base", "embedded"), "its weights are not here to be trained; give student or hf/<path or id>"),
        (("--base", "openai/gpt"), "its weights are not here to be trained"),
        (("--traces", "/nowhere"), "holds no manifest.json"),
        (("--prompt-guideline", "/nowhere.md"), "--prompt-guideline"),
        (("--adapter", "/nowhere"), "has no adapter_config.json"),
        (("--load-4bit",), "--load-4bit: needs"),
        (("--load-4bit", "--merge"), "cannot be merged"),
        (("--ordinal", "1", "--method", "dpo"), "is a term of sft"),
        (("--method", "dpo", "--target", "label-after-trace"), "a preference is between whole answers"),
        (("--max-length", "5"), "34 of 34 traces are longer than 5 tokens"),
        (("--batch", "0"), "--batch 0"),
        (("--lr", "-1"), "--lr -1"),
        (("--target", "vibes"), "one of trace, label, label-after-trace, verdict-first"),
    ],
)
def test_bad_options(run: Path, base: Path, tmp_path: Path, arguments: tuple[str, ...], wanted: str) -> None:
    assert wanted in refused(run, base, tmp_path, *arguments)


def test_missing_options(tmp_path: Path) -> None:
    from pipelines.finetune_rater import main

    with pytest.raises(ConfigError, match="--traces: missing"):
        main([])
    with pytest.raises(ConfigError, match="--base: missing"):
        main(["--traces", "x"])


def test_no_accepted_traces(base: Path, tmp_path: Path) -> None:
    folder = write_trace_run(tmp_path / "run")
    (folder / "traces.jsonl").write_text("")
    assert "no accepted traces" in refused(folder, base, tmp_path)


def test_labels_that_begin_alike_have_no_expected_value(base: Path, tmp_path: Path) -> None:
    folder = write_trace_run(tmp_path / "run", {"type": "ordinal", "labels": [1, 5, 10]})
    assert "labels 1 and 10 begin with the same token" in refused(folder, base, tmp_path, "--ordinal", "1")


def test_an_adapter_of_another_base(run: Path, base: Path, tmp_path: Path) -> None:
    done(finetune(run, base, tmp_path / "o", *TWO_STEPS))
    adapter = tmp_path / "o" / "adapter"
    other = make_model(tmp_path / "other", seed=1, special_tags=False, context_tokens=2048)
    assert "was trained on another base" in refused(run, other, tmp_path, "--adapter", str(adapter))
    # also where it rates
    from raters.models.generation import load_model

    with pytest.raises(ModelAccessError, match="was trained on another base"):
        load_model("hf/other", str(other), adapter, None, None)
    assert load_model("hf/base", str(base), adapter, None, None)
    # one that says nothing of its base passes if its shapes fit, as PEFT has it
    foreign = make_adapter(base, tmp_path / "foreign")
    done(finetune(run, base, tmp_path / "p", *TWO_STEPS, "--adapter", str(foreign)))
    config = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps({**config, "r": 2}))
    assert f"--adapter {foreign}: does not fit" in refused(run, base, tmp_path, "--adapter", str(foreign))


def test_a_base_is_known_by_its_weights_in_either_precision(base: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    full = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    half = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    other = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "o", seed=1), dtype=torch.float32)
    assert base_fingerprint(full) == base_fingerprint(half) != base_fingerprint(other)


@pytest.mark.slow
def test_an_adapter_that_was_exchanged(run: Path, base: Path, tmp_path: Path) -> None:
    done(finetune(run, base, tmp_path / "o", *TWO_STEPS))
    before = read_rater(tmp_path / "o" / "rater.yaml")
    (tmp_path / "o").rename(tmp_path / "moved")
    moved = read_rater(tmp_path / "moved" / "rater.yaml")
    assert moved.adapter == str(tmp_path / "moved" / "adapter")
    assert moved.sha256 == before.sha256  # wherever it lies, it is the same rater
    weights = tmp_path / "moved" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(DataError, match="is not the one the file was written with"):
        read_rater(tmp_path / "moved" / "rater.yaml")


def test_a_loss_that_is_no_number_ends_in_one_line(run: Path, base: Path, tmp_path: Path) -> None:
    said = finetune(run, base, tmp_path / "o", "--steps", "6", "--batch", "4", "--lr", "1e30", "--eval-steps", "6")
    assert said.status == 1
    assert "the loss is nan; give a lower learning rate" in said.error


def test_too_long_traces_are_reported(run: Path, base: Path, tmp_path: Path) -> None:
    from tests.test_training import examples_of

    longest = max(len(example.input_ids) for example in examples_of(run, base))
    said = done(finetune(run, base, tmp_path / "o", *TWO_STEPS, "--max-length", str(longest - 1)))
    left = said.summary["too_long"]
    assert left > 0
    assert said.summary["examples"] == said.summary["traces"] - left
    assert f"left out {left} traces that are longer than {longest - 1} tokens" in said.log
    assert f"{left} left out as too long" in said.out


@pytest.mark.slow
def test_numbers_without_end_are_learned_too(base: Path, tmp_path: Path) -> None:
    """An interval scale lists no labels: its values are learned as they are written."""
    labels = [0.0, 50.0, 100.0]
    folder = write_trace_run(tmp_path / "run", {**INTERVAL, "labels": labels})
    done(finetune(folder, base, tmp_path / "o", *TWO_STEPS, "--target", "label"))


@pytest.mark.slow
def test_two_processes_train_as_one(run: Path, base: Path, tmp_path: Path) -> None:
    said = done(finetune(run, base, tmp_path / "one", *TWO_STEPS, "--micro-batch", "2"))
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m",
        "pipelines.finetune_rater", "--traces", str(run), "--base", f"hf/{base}", "--out", str(tmp_path / "two"),
        "--dev-limit", "4", "--dev-draws", "1", "--dev-max-tokens", "4", "--micro-batch", "2", *TWO_STEPS,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert found.stdout.count("Written to") == 1
    assert found.stderr.count("sft step 2 of 2") == 1
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["dev"] == said.summary["dev"]
