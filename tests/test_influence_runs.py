"""Recording in the trainer, the examples' losses, and the queries, on a tiny language model."""

from __future__ import annotations

import re
import resource
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raters.influence.answers import AnswerBatch
from raters.influence.dev_queries import DevQueries, agreements, dev_queries, read_dev_draws
from raters.influence.losses import products, step_gradient
from raters.influence.recording import Recorder, check_arguments, read_examples
from raters.influence.trajectory import TrajectoryWriter
from raters.influence.tuned_runs import TunedRun, write_adapter
from raters.model_selection import DevSplit
from raters.rater_files import read_rater
from raters.records import ConfigError, DataError, ModelError, StorageError
from raters.scales import SCALE_ADAPTER
from raters.trace_runs import TraceRun
from raters.training_data import Encoder, first_tokens
from tests.influence_problems import Setting, network_problem
from tests.small_corpora import INTERVAL, NOMINAL, ORDINAL_3, PAIRWISE, write_jsonl
from tests.small_training import finetune, write_trace_run
from tests.stage_runs import kill, run_alone, started, wait_for_lines
from tests.tiny_models import make_model

STEPS = ("--steps", "5", "--batch", "6", "--micro-batch", "2", "--eval-steps", "5", "--lr", "1e-2", "--warmup", "2")
_NUMBERS = (".bin", ".safetensors")
RECORD = ("--record-trajectory", "--rank", "2", *STEPS)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raters.training_report.plot_curves", lambda *arguments: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "m", special_tags=False, context_tokens=2048)


def recorded(folder: Path, base: Path, scale: Any = ORDINAL_3, *more: str) -> tuple[Path, TunedRun, Any]:
    run = write_trace_run(folder, scale)
    said = finetune(run, base, folder / "o", *RECORD, *more)
    assert said.status == 0, said.error
    assert said.summary["seeds"]["0"]["sft"]["replay_error"] == 0
    assert "recording 5 steps in" in said.log
    return run, TunedRun.open(folder / "o", folder / "o" / "adapter", rows_at_once=4), said


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[Path, TunedRun, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raters.training_report.plot_curves", lambda *arguments: None)
        return recorded(tmp_path_factory.mktemp("plain"), base)


def check_gradients(tuned: TunedRun) -> None:
    """Hold what the losses come to against what the trainer had, at every step."""
    for moment in tuned.trajectory.moments(1, len(tuned.trajectory)):
        _, gradient = step_gradient(tuned.losses, moment.before.parameters, moment.step)
        had = moment.clipped / moment.step.settings.clip_factor
        assert float((gradient - had).abs().max() / had.abs().max()) < 1e-4
        assert float(gradient.norm()) == pytest.approx(moment.step.settings.norm, rel=1e-4)
        assert sum(moment.step.weights) == pytest.approx(1)


def test_what_is_recorded_is_the_gradient_of_our_losses(plain: tuple[Path, TunedRun, Any]) -> None:
    _, tuned, said = plain
    check_gradients(tuned)
    assert [step.settings.lr for step in tuned.trajectory.steps[:3]] == [0, 0.005, 0.01]
    first = said.summary["seeds"]["0"]["sft"]
    assert first["steps"] == 5
    point = tuned.trajectory.steps[0]
    assert len(point.examples) == 6
    learned = [tuned.learned[place] for place in point.examples]
    assert point.weights == pytest.approx([count / sum(learned) for count in learned])


def test_with_the_ordinal_term(tmp_path: Path, base: Path) -> None:
    _, tuned, _ = recorded(tmp_path, base, ORDINAL_3, "--ordinal", "2.5")
    check_gradients(tuned)


def test_products_through_the_language_model(plain: tuple[Path, TunedRun, Any]) -> None:
    """Against central differences of the step's gradient, in double precision."""
    _, tuned, _ = plain
    tuned.losses.model.double()
    try:
        moment = tuned.trajectory.moments(4, 4)[0]
        point = moment.before.parameters.double()
        vector = torch.randn(len(point), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found = products(tuned.losses, point, moment.step, vector[None])
        ends = [step_gradient(tuned.losses, point + sign * 1e-4 * vector, moment.step) for sign in (1, -1)]
        wanted = (ends[0][1] - ends[1][1]) / 2e-4
        # The losses are float32 behind the logits, so differences keep few digits.
        assert float((found.curvature[0] - wanted).norm() / wanted.norm()) < 2e-2
        slope = (ends[0][0] - ends[1][0]) / 2e-4
        assert float(found.rows.sum()) == pytest.approx(slope, rel=2e-2)
    finally:
        tuned.losses.model.float()


@pytest.mark.slow
def test_a_killed_recording_goes_on_to_the_same_bytes(tmp_path: Path, base: Path) -> None:
    run = write_trace_run(tmp_path)
    arguments = ["--traces", run, "--base", f"hf/{base}", "--dev-limit", 4, "--dev-draws", 1, "--dev-max-tokens", 4]
    arguments += ["--record-trajectory", "--rank", 2, "--steps", 12, "--batch", 6, "--eval-steps", 3, "--lr", 1e-2]
    arguments += ["--patience", 30]
    assert run_alone("finetune_rater", *arguments, "--out", tmp_path / "whole").status == 0
    with started("finetune_rater", *arguments, "--out", tmp_path / "cut") as process:
        wait_for_lines(tmp_path / "cut" / "trajectory" / "steps.jsonl", 7, process)
        kill(process)
    assert run_alone("finetune_rater", *arguments, "--out", tmp_path / "cut").status == 0
    names = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "trajectory").rglob("*.*")}
    assert len(names) >= 8
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--dropout", "0.1"), "with dropout no step can be had again"),
        (("--method", "dpo"), "sft alone is recorded"),
        (("--load-4bit",), "has no second derivatives"),
    ],
)
def test_what_cannot_be_recorded_is_refused(tmp_path: Path, base: Path, more: tuple[str, ...], says: str) -> None:
    said = finetune(write_trace_run(tmp_path), base, tmp_path / "o", "--record-trajectory", *more)
    assert said.status == 2
    assert says in said.error
    assert not (tmp_path / "o").exists()


def test_several_processes_are_refused(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = finetune(write_trace_run(tmp_path), base, tmp_path / "o", "--record-trajectory")
    assert said.status == 2
    assert "one process is recorded, and 2 share this run" in said.error


def test_a_base_with_dropout_of_its_own_and_a_full_disk_are_refused(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    run = write_trace_run(tmp_path)
    shutil.copytree(base, tmp_path / "dropping")
    config = json.loads((tmp_path / "dropping" / "config.json").read_text())
    for name in ("attention_dropout", "dropout", "router_jitter_noise"):
        (tmp_path / "dropping" / "config.json").write_text(json.dumps({**config, name: 0.1}))
        said = finetune(run, tmp_path / "dropping", tmp_path / "o", *RECORD)
        assert said.status == 2
        assert f"has dropout ({name})" in said.error
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    said = finetune(run, base, tmp_path / "o2", *RECORD)
    assert said.status == 2
    assert "where 1.0 kB are free" in said.error


def test_disk_is_asked_for_all_seeds_before_the_first_one(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, more = write_trace_run(tmp_path), (*RECORD, "--seeds", "3")
    said = finetune(run, base, tmp_path / "o", *more)
    assert said.status == 0, said.error
    announced = [line.split(": up to ")[1] for line in said.log.splitlines() if "recording" in line]
    files = [path for path in (tmp_path / "o" / "seed-0" / "trajectory").rglob("*") if path.suffix in _NUMBERS]
    size = sum(path.stat().st_size for path in files)
    wanted = [[float(found) for found in re.findall(r"([\d.]+) kB", line)] for line in announced]
    alone = wanted[2][0]
    assert alone == pytest.approx(size / 1000, rel=0.05)  # but for headers
    assert wanted == [[alone, pytest.approx(3 * alone, abs=0.2)], [alone, pytest.approx(2 * alone, abs=0.2)], [alone]]
    free = int(2500 * alone)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    said = finetune(run, base, tmp_path / "o2", *more)
    assert said.status == 2
    assert "5 steps under each of 3 seeds take " in said.error
    assert "fewer --seeds" in said.error


def test_a_run_is_recorded_from_its_beginning_or_not_at_all(tmp_path: Path, base: Path) -> None:
    """One that has ended without being recorded is no recorded one because it is asked for again."""
    run = write_trace_run(tmp_path)
    plain = [argument for argument in RECORD if argument != "--record-trajectory"]
    for name, first, then, says in (
        ("plain", plain, RECORD, "record_trajectory was false, now true"),
        ("recorded", RECORD, plain, "record_trajectory was true, now false"),
    ):
        assert finetune(run, base, tmp_path / name, *first).status == 0
        said = finetune(run, base, tmp_path / name, *then)
        assert said.status == 2
        assert says in said.error
        assert "give another --out, or --new" in said.error


def test_other_optimizers_and_packing_are_refused() -> None:
    """Options of finetune_rater lead to neither; who builds a trainer by hand may ask for them."""
    import trl

    library: Any = trl
    common = {"output_dir": "unused", "use_cpu": True, "bf16": False}
    for optimizer in ("adamw_torch", "adamw_torch_fused"):
        check_arguments(library.SFTConfig(**common, optim=optimizer))
    for optimizer in ("adamw_8bit", "paged_adamw_8bit", "sgd", "adafactor"):
        with pytest.raises(ConfigError, match=f"{optimizer}.* is not torch's AdamW"):
            check_arguments(library.SFTConfig(**common, optim=optimizer))
    with pytest.raises(ConfigError, match="packing puts several examples into a row"):
        check_arguments(library.SFTConfig(**common, optim="adamw_torch", packing=True))


def test_examples_are_read_in_little_memory_whatever_their_names(tmp_path: Path) -> None:
    """10,000 examples of 1,000 tokens are 80 MB of numbers of 4 bytes."""
    tokens = [place * 37 % 30_000 for place in range(1000)]
    labels = [-100] * 900 + tokens[900:]
    rows = [{"example_id": f"i\u2028{n}\x85/0", "input_ids": tokens, "labels": labels} for n in range(200)]
    write_jsonl(tmp_path / "examples.jsonl", rows)
    tracemalloc.start()
    try:
        found = read_examples(tmp_path)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.5 * 200 * 2 * 1000 * 4
    assert [row["example_id"] for row in found] == [row["example_id"] for row in rows]
    assert (list(found[7]["input_ids"]), list(found[7]["labels"])) == (tokens, labels)
    with pytest.raises(DataError, match=r"examples\.jsonl: no such file"):
        read_examples(tmp_path / "none")


def test_a_gradient_that_is_no_number_ends_in_one_line(tmp_path: Path, base: Path) -> None:
    said = finetune(write_trace_run(tmp_path), base, tmp_path / "o", *RECORD, "--lr", "1e30", "--warmup", "0")
    assert said.status == 1
    assert "is nan; give a lower learning rate" in said.error


def test_a_recording_that_is_gone_on_with_leaves_what_one_in_one_go_does(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where little more than its own size is free, of which it has taken half already."""
    run, more = write_trace_run(tmp_path), (*RECORD, "--steps", "7", "--eval-steps", "3", "--patience", "30")
    assert finetune(run, base, tmp_path / "whole", *more).status == 0
    whole = tmp_path / "whole" / "trajectory"
    size = sum(path.stat().st_size for path in whole.rglob("*.*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))
    write, written = Recorder.write, 0

    def stopped(self: Recorder, number: int, *more: Any) -> None:
        nonlocal written
        write(self, number, *more)
        written += 1
        if written == 4:
            raise ModelError("stopped here")

    monkeypatch.setattr(Recorder, "write", stopped)
    assert finetune(run, base, tmp_path / "cut", *more).status == 1
    monkeypatch.setattr(Recorder, "write", write)
    there = sum(path.stat().st_size for path in (tmp_path / "cut" / "trajectory").rglob("*.*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size - there + 2000))
    said = finetune(run, base, tmp_path / "cut", *more)
    assert said.status == 0, said.error
    assert "going on from step 3" in said.log
    for name in ("", "states"):
        files = {path.name: path.read_bytes() for path in (whole / name).iterdir() if path.is_file()}
        cut = tmp_path / "cut" / "trajectory" / name
        assert {path.name: path.read_bytes() for path in cut.iterdir() if path.is_file()} == files


def test_a_disk_that_fills_up_is_said_in_one_line(tmp_path: Path) -> None:
    problem, _ = network_problem(Setting())
    trajectory = problem.train(tmp_path / "t")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = TrajectoryWriter(tmp_path / "full", trajectory.header)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"00000000\.safetensors: cannot be written"):
            writer.state(0, trajectory.stored_state(0))
        writer.step(trajectory.steps[0], trajectory.clipped(1))
        with pytest.raises(StorageError, match=r"gradients\.bin: cannot be written"):
            writer.step(trajectory.steps[1], trajectory.clipped(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_parameters_become_an_adapter_that_loads(plain: tuple[Path, TunedRun, Any], tmp_path: Path) -> None:
    _, tuned, _ = plain
    folder = tuned.trajectory.folder.parent
    write_adapter(tuned, tuned.trajectory.last_state().parameters, tmp_path / "adapter")
    wanted = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == wanted
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        path.name for path in (folder / "adapter").iterdir()
    } | {"README.md"} - ({"README.md"} if not (tmp_path / "adapter" / "README.md").exists() else set())


# --- queries --------------------------------------------------------------------------------------------------------


def dev_records(run: TraceRun, dev: DevSplit, shift: int = 0) -> list[dict[str, Any]]:
    """Return two draws of each dev item: one says its label, or one `shift` labels on, the other the next one."""
    scale, found = run.dimension.scale, []
    labels = list(getattr(scale, "labels", [0.0, 5.0, 10.0]))
    for at, item in enumerate(dev.items.tolist()):
        own = run.corpus.annotations(run.dimension.name)
        numbers = own.numbers[own.items == item]
        place = labels.index(scale.label(float(numbers[0])))
        for number, step in enumerate((shift, shift + 1)):
            record = {"item_id": run.corpus.item_ids[item], "draw": number, "trace": f"Because {at} {number}."}
            verdict = labels[(place + step) % len(labels)]
            swapped = bool(at % 2) and scale.type == "pairwise"
            shown = scale.swapped(verdict) if swapped else verdict
            answer = f"<rating>{shown:g}</rating>" if isinstance(shown, float) else f"<rating>{shown}</rating>"
            found.append({**record, "answer": answer, "verdict": verdict, "swapped": swapped})
    return found


def asked(name: Any, where: tuple[Path, TunedRun, Any], folds: int = 2, **more: Any) -> tuple[DevQueries, Any, Any]:
    run_folder, tuned, _ = where
    run = TraceRun.read(run_folder)
    spec = read_rater(tuned.trajectory.folder.parent / "rater.yaml")
    dev = DevSplit.of(run, None)
    encoder = Encoder(tuned.loaded, run, spec.question, more.get("target", "trace"), None)
    records = more.get("records") or dev_records(run, dev)
    pad = tuned.loaded.generation.pad_token_id
    return dev_queries(name, tuned.losses, encoder, run, dev, records, folds, pad), run, dev


def test_the_label_query_is_the_cross_entropy_of_labels(plain: tuple[Path, TunedRun, Any]) -> None:
    """Against the base's own forward pass with the adapter that training left."""
    queries, run, dev = asked("label", plain, folds=3)
    _, tuned, _ = plain
    parameters = tuned.trajectory.last_state().parameters
    model, tokenizer = tuned.losses.model, tuned.loaded.tokenizer
    named = tuned.trajectory.header.named(parameters)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in named:
                parameter.copy_(named[name])
    by_item: dict[int, list[float]] = {}
    for record in dev_records(run, dev):
        item = run.corpus.item_ids.index(record["item_id"])
        label = run.corpus.annotations("quality").numbers[run.corpus.annotations("quality").items == item][0]
        label = run.dimension.scale.label(float(label))
        messages = read_rater(tuned.trajectory.folder.parent / "rater.yaml").question.about(run.corpus.item(item))(
            False
        )
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        before = f"<think>\n{record['trace']}\n</think>\n\n<rating>"
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        head = ids + tokenizer(before, add_special_tokens=False).input_ids
        whole = ids + tokenizer(f"{before}{label}</rating><|im_end|>", add_special_tokens=False).input_ids
        assert whole[: len(head)] == head
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        lost = -sum(float(logits[place - 1, whole[place]]) for place in range(len(head), len(whole)))
        by_item.setdefault(item, []).append(lost)
    wanted = np.mean([np.mean(lost) for lost in by_item.values()])
    values = queries.values(parameters)
    assert len(values) == 3
    assert float(values.double() @ torch.tensor(queries.shares)) == pytest.approx(wanted, rel=1e-4)
    assert queries.items == len(dev.items)


@pytest.mark.parametrize("name", ["label", "agreement"])
def test_gradients_are_those_of_the_values(name: str, plain: tuple[Path, TunedRun, Any]) -> None:
    queries, _, _ = asked(name, plain)
    model = plain[1].losses.model.double()
    try:
        parameters = plain[1].trajectory.last_state().parameters.double()
        vector = torch.randn(len(parameters), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        slope = queries.gradients(parameters) @ vector
        ends = [queries.values(parameters + sign * 3e-4 * vector) for sign in (1, -1)]
        torch.testing.assert_close(slope, (ends[0] - ends[1]) / 6e-4, rtol=2e-2, atol=2e-3)
    finally:
        model.float()


def test_the_agreement_query_is_an_expected_value(plain: tuple[Path, TunedRun, Any]) -> None:
    queries, _, _ = asked("agreement", plain)
    tuned = plain[1]
    parameters = tuned.trajectory.last_state().parameters
    tokens = first_tokens(tuned.loaded, SCALE_ADAPTER.validate_python(dict(ORDINAL_3)), "--query")
    wanted = torch.zeros(2)
    for row in queries._rows:
        batch = AnswerBatch.of([row.row], 0)
        logits = tuned.losses.logits(parameters, batch.input_ids, row.row["verdict_at"])[0, 0]
        chances = torch.stack([logits[token] for token in tokens]).softmax(0)
        assert row.gains is not None
        assert sorted(row.gains) in ([0, 0.5, 1], [0.5, 0.5, 1])
        wanted[row.fold] -= row.weight * float((chances * torch.tensor(row.gains)).sum().detach())
    torch.testing.assert_close(queries.values(parameters), wanted, rtol=1e-4, atol=1e-5)


def test_the_draws_query_weighs_likelihoods_by_how_much_better_a_draw_agrees(plain: tuple[Path, TunedRun, Any]) -> None:
    queries, _, dev = asked("draws", plain, folds=1)
    parameters = plain[1].trajectory.last_state().parameters
    # One draw says the label (agreement 1), the other one the next label: .5 below, or 0 from the last to the first.
    advantages = sorted(round(row.weight * len(dev.items) * 2, 6) for row in queries._rows)
    assert set(advantages) <= {0.5, -0.5, 1.0, -1.0}
    assert sum(advantages) == pytest.approx(0)
    wanted = torch.zeros_like(parameters)
    for row in queries._rows:
        point = parameters.clone().requires_grad_()
        batch = AnswerBatch.of([row.row], 0)
        lost = plain[1].losses.log_losses(point, batch).sum()
        wanted += row.weight * torch.autograd.grad(lost, point)[0]
    torch.testing.assert_close(queries.gradients(parameters)[0], wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("target", ["trace", "label", "label-after-trace", "verdict-first"])
def test_what_is_asked_is_the_same_whatever_the_target_learns(target: str, tmp_path: Path, base: Path) -> None:
    """The verdict's tokens are its label's and the rating's end, wherever reasoning stands; a draw is all of it."""
    where = recorded(tmp_path, base, ORDINAL_3, "--target", target)
    tokenizer = where[1].loaded.tokenizer

    def asked_about(name: str, part: str | None = None) -> set[str]:
        queries, *_ = asked(name, where, target=target)
        found = set()
        for row in queries._rows:
            batch = AnswerBatch.of([row.row], 0)
            wanted = batch.labels[0] != -100
            if part is not None:
                places = torch.arange(len(wanted))
                is_verdict = (places >= batch.verdict_at) & (places < batch.verdict_end)
                wanted = wanted & (is_verdict if part == "verdict" else ~is_verdict)
            found.add(tokenizer.decode(batch.input_ids[0][wanted]))
        return found

    end = "" if target == "verdict-first" else "<|im_end|>"
    verdicts = {f"{label}</rating>{end}" for label in (1, 2, 3)}
    for name, part in (("label", None), ("agreement", None), ("draws", "verdict")):
        assert {text.replace("\n", "") for text in asked_about(name, part)} == verdicts, name
    reasons = "" if target == "label" else "Because 0 0."
    begins = "<rating>" if target in ("label", "verdict-first") else "<think>"
    drawn = asked_about("draws")
    assert all(text.startswith(begins) and text.endswith("<|im_end|>") for text in drawn)
    assert any(reasons in text for text in drawn)
    # Of what training learned, the same split: it adds up to the loss, and only a verdict stands under it.
    for row in where[1].losses._rows:
        batch = AnswerBatch.of([row], 0)
        verdict = tokenizer.decode(batch.input_ids[0][batch.verdict_at[0] : batch.verdict_end[0]])
        assert verdict.replace("\n", "") in verdicts


def test_pairs_are_asked_in_the_order_they_were_shown_in(tmp_path: Path, base: Path) -> None:
    where = recorded(tmp_path, base, PAIRWISE)
    queries, run, dev = asked("label", where)
    tokenizer = where[1].loaded.tokenizer
    own = run.corpus.annotations(run.dimension.name)
    swapped_rows = 0
    for record in dev_records(run, dev):
        item = run.corpus.item_ids.index(record["item_id"])
        label = run.dimension.scale.label(float(own.numbers[own.items == item][0]))
        shown = run.dimension.scale.swapped(label) if record["swapped"] else label
        ending = f"{record['trace']}\n</think>\n\n<rating>{shown}</rating><|im_end|>"
        texts = [tokenizer.decode(row.row["input_ids"]) for row in queries._rows]
        assert sum(text.endswith(ending) for text in texts) >= 1
        swapped_rows += record["swapped"] and shown != label
    assert swapped_rows


def test_an_item_whose_draws_agree_equally_well_counts_in_the_mean(plain: tuple[Path, TunedRun, Any]) -> None:
    """Nothing is to be had from it, so that its share of the mean is 0."""
    everything, run, dev = asked("draws", plain, folds=1)
    records = dev_records(run, dev)
    first = run.corpus.item_ids[dev.items.tolist()[0]]
    for record in records:
        if record["item_id"] == first:
            record |= {"verdict": 1, "answer": "<rating>1</rating>"}
    queries, _, _ = asked("draws", plain, folds=1, records=records)
    assert queries.items == len(dev.items)
    assert [row.weight for row in queries._rows] == [row.weight for row in everything._rows[2:]]


def test_numbers_are_asked_about_as_the_rater_writes_them(tmp_path: Path, base: Path) -> None:
    where = recorded(tmp_path, base, {**INTERVAL, "labels": [0.0, 5.0, 10.0], "min": 0, "max": 10})
    run = TraceRun.read(where[0])
    dev = DevSplit.of(run, None)

    def ratings(name: str, records: list[dict[str, Any]]) -> set[str]:
        queries, _, _ = asked(name, where, records=records)
        texts = [where[1].loaded.tokenizer.decode(row.row["input_ids"]) for row in queries._rows]
        assert texts
        return {text.rpartition("<rating>")[2].partition("</rating>")[0] for text in texts}

    records = dev_records(run, dev)
    assert ratings("label", records) <= {"0", "5", "10"}
    assert ratings("draws", records) <= {"0", "5", "10"}
    written = [{**record, "answer": record["answer"].replace("</", ".0</")} for record in records]
    assert ratings("label", written) <= {"0.0", "5.0", "10.0"}
    assert ratings("draws", written) <= {"0.0", "5.0", "10.0"}
    # Of a draw that was read from elsewhere, the verdict itself.
    elsewhere = [{**record, "answer": "none"} for record in records]
    assert ratings("draws", elsewhere) <= {"0", "5", "10"}


def test_a_label_in_the_decimals_of_a_rater() -> None:
    from raters.influence.dev_queries import _decimals, _written

    scale = SCALE_ADAPTER.validate_python({"type": "interval", "min": -1.5, "max": 4.6})
    assert [_written(scale, 10 / 3, decimals) for decimals in (0, 1, 2)] == ["3", "3.3", "3.33"]
    assert _written(scale, 4.6, 0) == "4.6"  # 5 is not on the scale
    assert _written(SCALE_ADAPTER.validate_python(dict(ORDINAL_3)), 2, 1) == "2"
    answers = ["<rating>3</rating>", "<rating>-1.5</rating>", "So <rating>2.5</rating>", "<rating>much</rating>", ""]
    draws: list[dict[str, Any]] = [{"answer": answer, "verdict": 1.0} for answer in answers]
    assert _decimals(draws) == 1
    assert _decimals([{"answer": "<rating>2.25</rating>", "verdict": None}]) == 0


def test_scales_and_draws_that_cannot_be_asked_about(tmp_path: Path, base: Path) -> None:
    where = recorded(tmp_path / "i", base, {**INTERVAL, "labels": [0.0, 5.0, 10.0], "min": 0, "max": 10})
    with pytest.raises(ConfigError, match="lists no labels to expect over"):
        asked("agreement", where)
    queries, run, dev = asked("label", where)
    assert queries.items == len(dev.items)
    unreadable = [{**record, "verdict": None} for record in dev_records(run, dev)]
    with pytest.raises(DataError, match="none of"):
        asked("label", where, records=unreadable)
    with pytest.raises(DataError, match="no such file"):
        read_dev_draws(tmp_path, 3)


def test_folds_keep_groups_together_and_are_about_as_large() -> None:
    from raters.influence.dev_queries import _folds

    groups = np.array([0, 0, 0, 1, 1, 2, 3, 4, 5, 5])
    folds = _folds(groups, 3)
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    assert sorted(np.bincount(folds)) == [3, 3, 4]
    assert len(set(_folds(groups[:3], 5))) == 1


def test_agreement_of_labels() -> None:
    ordinal = SCALE_ADAPTER.validate_python({"type": "ordinal", "labels": [1, 2, 3, 4, 5]})
    assert agreements(ordinal, 2, [1, 2, 5, None]) == [0.75, 1, 0.25, 0]
    nominal = SCALE_ADAPTER.validate_python(dict(NOMINAL))
    first, second = nominal.labels[:2]
    assert agreements(nominal, first, [first, second]) == [1, 0]
    interval = SCALE_ADAPTER.validate_python({"type": "interval", "min": 0, "max": 10})
    assert agreements(interval, 2.0, [2.0, 7.0]) == [1, 0.5]
