"""The stage: recorded run in, influence, kept traces and page out, with the student on the demo corpus."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.finetune_rater import main as finetune_rater
from pipelines.infer_traces import main as infer_traces
from pipelines.rate_items import main as rate_items
from pipelines.select_traces import main as select_traces
from raters.influence.harm import doubt_of, influence_of, unexpected_of, weights_remark
from raters.influence.recording import FOLDER, read_examples
from raters.influence.report import influence_report_html
from raters.influence.tuned_runs import TunedRun
from raters.records import StorageError
from raters.training_models import load_base
from tests.stage_runs import calls_of, environment, kill, read, refused_line, run_alone, started, wait_until

TRAIN = "--steps 6 --batch 6 --eval-steps 3 --lr 2e-3 --dev-limit 12 --dev-draws 2 --rating-batch 64 --rank 4".split()


NONSENSE = "zq xv jj kw 90% vz qx zzx jq wv pk zf qq xj"


def spoil(path: Path) -> None:
    """Put nonsense for the reasoning of a run's third trace."""
    records = read(path)
    reasoning, tag, rating = records[2]["completion"][-1]["content"].rpartition("<rating>")
    assert records[2]["trace"].strip() in reasoning
    message = {**records[2]["completion"][-1], "content": f"{NONSENSE}\n{tag}{rating}"}
    records[2] |= {"trace": NONSENSE, "completion": [message]}
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of infer_traces and a recorded one of finetune_rater on it; a trace says nonsense."""
    folder = tmp_path_factory.mktemp("demo")
    assert infer_traces(["--limit", "16", "--null-items", "0", "--k", "16", "--out", str(folder / "traces")]) == 0
    spoil(folder / "traces" / "traces.jsonl")
    recorded = [*TRAIN, "--record-trajectory", "--out", str(folder / "tuned")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raters.training_report.plot_curves", lambda *arguments: None)
        assert finetune_rater(["--traces", str(folder / "traces"), "--base", "student", *recorded]) == 0
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return calls_of("select_traces", select_traces, monkeypatch, capsys)


def test_what_it_leaves_and_what_is_trained_on_it(place: Path, run: Any, tmp_path: Path) -> None:
    out = tmp_path / "selected"
    said = run("--run", place / "tuned", "--out", out, "--confidence", 0.6)
    records, traces = read(out / "influence.jsonl"), read(place / "traces" / "traces.jsonl")
    summary = json.loads((out / "summary.json").read_text())
    assert len(records) == len(traces) == summary["traces"]
    scores = [record["score"] for record in records]
    assert scores == sorted(scores)
    for record in records:
        assert record["score"] == pytest.approx(record["reasoning"] + record["verdict"], rel=1e-4, abs=1e-9)
        assert record["low"] <= record["score"] <= record["high"]
        assert record["harmful"] == (record["high"] < 0 and record["error_proxy"] < -record["score"])
        assert record["dropped"] == record["harmful"]
        assert len(record["by_fold"]) == 5
        assert record["tokens"] > 5
    lines = (place / "traces" / "traces.jsonl").read_bytes().splitlines()
    kept = (out / "traces.jsonl").read_bytes().splitlines()
    harmful = {(record["item_id"], record["draw"]) for record in records if record["harmful"]}
    assert harmful
    assert kept == [line for line in lines if (json.loads(line)["item_id"], json.loads(line)["draw"]) not in harmful]
    assert f"harmful {len(harmful)}" in said.out
    met = sum(record["score"] != 0 for record in records)  # others no step has seen
    assert summary["expected_by_chance"] == pytest.approx(met * 0.2)
    assert not (out / "sweep.safetensors").exists()
    said_of = {f"{trace['item_id']}/{trace['draw']}": trace["trace"] for trace in traces}
    sections = re.findall(r"<h3>(.*?)</h3>.*?<pre>(.*?)</pre>", (out / "report.html").read_text(), re.DOTALL)
    assert sections[0][0] == records[0]["example_id"]
    assert len(sections) >= 6
    assert all(said_of[name] == html.unescape(trace) for name, trace in sections)
    first = said_of[records[0]["example_id"]].splitlines()[0]
    assert f"{records[0]['example_id']}: label" in said.out
    assert said.out.index(first) > said.out.index(records[0]["example_id"])
    for record in records[:3]:
        if record["score"] < 0:
            line = next(line for line in said.out.splitlines() if line.startswith(f"  {record['example_id']}: "))
            assert line.endswith("sign not certain") == (not record["harmful"])
    arguments = ["--traces", str(out), "--base", "student", *TRAIN, "--out", str(tmp_path / "again")]
    assert finetune_rater(arguments) == 0
    again = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert again["traces"] == len(kept)
    asked = ["--run", str(tmp_path / "again"), "--out", str(tmp_path / "o")]
    assert "was trained without --record-trajectory" in run(*asked, status=2).err


def test_attention_is_tried_on_the_longest_trace(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window would show in no shorter one."""
    rows = sorted(read_examples(place / "tuned" / FOLDER), key=lambda row: len(row["input_ids"]))
    assert len(rows[0]["input_ids"]) < len(rows[-1]["input_ids"])
    monkeypatch.setattr("raters.influence.tuned_runs.read_examples", lambda folder: rows)
    tried = []
    monkeypatch.setattr(
        "raters.influence.tuned_runs.make_twice_differentiable", lambda model, ids: tried.append(ids.shape)
    )
    TunedRun.open(place / "tuned", place / "tuned" / "adapter")
    assert tried == [(1, len(rows[-1]["input_ids"]))]


def test_own_losses_are_those_of_the_base_before_training(place: Path, run: Any, tmp_path: Path) -> None:
    """Against the mean that transformers takes of the same labels, a trace at a time and without an adapter."""
    out = tmp_path / "o"
    run("--run", place / "tuned", "--out", out, "--attributor", "sgd", "--folds", 1, "--micro-batch", 5)
    found = {record["example_id"]: record["own_loss"] for record in read(out / "influence.jsonl")}
    examples = read_examples(place / "tuned" / FOLDER)
    model = load_base("student", "float32", four_bit=False, chat_template=None).model.eval()
    with torch.no_grad():
        wanted = {
            one["example_id"]: float(
                model(input_ids=torch.tensor([one["input_ids"]]), labels=torch.tensor([one["labels"]])).loss
            )
            for one in examples
        }
    assert found == pytest.approx(wanted, rel=1e-5)
    assert len({round(loss, 3) for loss in found.values()}) > len(found) / 2
    section = (out / "report.html").read_text().split("<h2>Least expected</h2>")[1]
    assert re.findall("<h3>(.*?)</h3>", section) == sorted(found, key=lambda name: -found[name])[:10]


def test_what_no_rater_would_have_said_is_pointed_out_and_left_out_if_asked(
    place: Path, run: Any, tmp_path: Path
) -> None:
    traces = read(place / "traces" / "traces.jsonl")
    (odd,) = [f"{trace['item_id']}/{trace['draw']}" for trace in traces if trace["trace"] == NONSENSE]
    quickly = ("--run", place / "tuned", "--attributor", "sgd", "--folds", 1)  # with one fold nothing is harmful
    said = run(*quickly, "--out", tmp_path / "o")
    records = read(tmp_path / "o" / "influence.jsonl")
    assert [record["example_id"] for record in records if record["unexpected"]] == [odd]
    assert not any(record["dropped"] for record in records)
    assert "unexpected 1: own losses before training far above" in said.out
    assert f"{odd} (" in said.out
    assert len(read(tmp_path / "o" / "traces.jsonl")) == len(traces)
    said = run(*quickly, "--out", tmp_path / "without", "--drop-unexpected")
    kept = read(tmp_path / "without" / "traces.jsonl")
    assert kept == [trace for trace in traces if trace["trace"] != NONSENSE]
    assert "left out too" in said.out
    assert "--drop-unexpected" in run(*quickly[:2], "--online", 2, "--drop-unexpected", status=2).err


def test_unexpected_losses_by_hand() -> None:
    """Median 1.025, distances .025 .075 .125 .025 .075 1.975, their median .075: the last one has a z of 17.8."""
    assert unexpected_of([1, 1.1, 0.9, 1.05, 0.95, 3]).tolist() == [False] * 5 + [True]
    assert not unexpected_of([1, 1.1, 0.9, 1.05, 0.95, -3]).any()  # far below is no reason to doubt
    just = 3.5 * 1 / 0.6745  # median 0, median distance 1
    assert not unexpected_of([-2, -1, 0, 1, just - 1e-9]).any()
    assert unexpected_of([-2, -1, 0, 1, just + 1e-9]).tolist() == [False] * 4 + [True]
    assert not unexpected_of([1, 1, 1, 5]).any()
    assert not unexpected_of([2]).any()


@pytest.mark.parametrize(
    "more",
    ["--attributor less", "--query label --folds 1 --no-error-proxy",
     *(pytest.param(more, marks=pytest.mark.slow) for more in (
         "--attributor sgd", "--attributor fisher --no-error-proxy", "--attributor tracin",
         "--query agreement --no-renormalize", "--horizon 2"))],
)  # fmt: skip
def test_every_way_to_score(place: Path, run: Any, tmp_path: Path, more: str) -> None:
    said = run("--run", place / "tuned", "--out", tmp_path / "o", *more.split())
    records = read(tmp_path / "o" / "influence.jsonl")
    assert len({record["score"] for record in records}) > 5
    has_proxy = not any(name in more for name in ("sgd", "--no-error-proxy", "tracin", "less"))
    assert all((record["error_proxy"] is not None) == has_proxy for record in records)
    assert all((record["low"] is None) == ("--folds 1" in more) for record in records)
    page = (tmp_path / "o" / "report.html").read_text()
    chance = json.loads((tmp_path / "o" / "summary.json").read_text())["expected_by_chance"]
    if "--folds 1" in more:  # no sign can be certain
        assert not any(record["harmful"] or record["helpful"] for record in records)
        assert chance == 0
        assert "on a single fold no sign is certain" in said.out
        assert "On a single fold no sign is certain" in page
        assert "would be called so" not in said.out + page
    else:
        assert chance == pytest.approx(0.025 * sum(record["score"] != 0 for record in records))
        assert ("the proxy of its error is smaller" in page) == has_proxy
    tells_parts = "less" not in more and "tracin" not in more
    assert ("predicted change of that loss" in page) == tells_parts  # of the others only the order means something
    assert all(
        (record["reasoning"] is not None) == (record["verdict"] is not None) == tells_parts for record in records
    )


def test_selecting_while_training_leaves_a_rater(place: Path, run: Any, tmp_path: Path) -> None:
    out = tmp_path / "online"
    run("--run", place / "tuned", "--out", out, "--online", 2, "--at", "last")
    records = read(out / "influence.jsonl")
    assert sum(record["seen"] for record in records) == 36
    assert 0 < sum(record["kept"] for record in records) < 36
    assert {record["reasoning"] for record in records} == {record["verdict"] for record in records} == {None}
    for record in records:
        assert record["dropped"] == (record["seen"] > 0 and 2 * record["kept"] < record["seen"])
    page = (out / "report.html").read_text()
    assert "more than half of the steps" in page
    assert "harmful / helpful" not in page  # neither is said where training itself selects
    assert "would be called so" not in page
    rated = ["--rater", str(out / "rater.yaml"), "--limit", "4", "--draws", "1", "--out", str(tmp_path / "rated")]
    assert rate_items(rated) == 0
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() != (
        place / "tuned" / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


def test_a_sweep_is_kept_until_all_is_written(
    place: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--run", place / "tuned", "--out", tmp_path / "o", "--no-error-proxy", "--attributor", "sgd")

    def full(*given: Any) -> str:
        raise StorageError("report.html: cannot be written (No space left on device); mend that and try again")

    with monkeypatch.context() as patch:
        patch.setattr("raters.influence.report.influence_report_html", full)
        run(*arguments, status=1)
    assert (tmp_path / "o" / "sweep.safetensors").exists()
    monkeypatch.setattr("raters.influence.unrolling.products", None)  # nothing is swept again
    run(*arguments)
    assert (tmp_path / "o" / "report.html").exists()
    assert not (tmp_path / "o" / "sweep.safetensors").exists()


def test_a_finished_run_is_seen_at_once_and_another_question_needs_another_folder(
    place: Path, run: Any, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    run("--run", place / "tuned", "--out", out, "--attributor", "sgd")
    before = (out / "influence.jsonl").read_bytes()
    arguments = ["--run", str(place / "tuned"), "--out", str(out), "--attributor", "sgd"]
    code = f"import sys\nfrom pipelines.select_traces import main\nmain({arguments})\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing is left to do" in done.stderr
    said = run("--run", place / "tuned", "--out", out, "--attributor", "sgd", "--query", "agreement", status=2)
    assert 'query was "draws", now "agreement"' in said.err
    assert (out / "influence.jsonl").read_bytes() == before


@pytest.mark.parametrize("more", ["--horizon 2 --attributor sgd", "--attributor tracin", "--online 1 --folds 2"])
def test_what_was_stopped_goes_on_and_the_bar_with_it(
    place: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    """A sweep of 6 steps whose states are stored every second one; ended where four fifths of the work are done."""
    begins: list[int] = []

    class Bar:
        stops = True

        def __init__(self, total: int, state: Any, unit: str) -> None:
            self.total, self.state = total, state
            begins.append(state()[0])

        def update(self) -> None:
            if self.stops and self.state()[0] > 0.8 * self.total:
                raise KeyboardInterrupt

        def close(self) -> None:
            assert self.state()[0] == self.total

    monkeypatch.setattr("pipelines.select_traces.ProgressBar", Bar)
    arguments = ("--run", place / "tuned", "--at", "last", *more.split())
    run(*arguments, "--out", tmp_path / "cut", status=130)
    assert not (tmp_path / "cut" / "influence.jsonl").exists()
    Bar.stops = False
    run(*arguments, "--out", tmp_path / "cut")
    assert begins[0] == 0 < begins[1]
    run(*arguments, "--out", tmp_path / "whole")
    names = ["influence.jsonl", "traces.jsonl"]
    names += ["adapter/adapter_model.safetensors", "rater.yaml"] if "online" in more else []
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (tmp_path / "cut" / "sweep.safetensors").exists()


@pytest.mark.slow
def test_a_killed_sweep_goes_on(place: Path, tmp_path: Path) -> None:
    arguments = ["--run", place / "tuned", "--micro-batch", 1]
    assert run_alone("select_traces", *arguments, "--out", tmp_path / "whole").status == 0
    with started("select_traces", *arguments, "--out", tmp_path / "cut") as process:
        wait_until((tmp_path / "cut" / "sweep.safetensors").exists, process)
        kill(process)
    assert run_alone("select_traces", *arguments, "--out", tmp_path / "cut").status == 0
    wanted, found = (read(tmp_path / name / "influence.jsonl") for name in ("whole", "cut"))
    assert {r["example_id"]: pytest.approx(r["score"], rel=1e-4, abs=1e-8) for r in wanted} == {
        r["example_id"]: r["score"] for r in found
    }


def test_refusals(place: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = place / "tuned"
    monkeypatch.chdir(tmp_path)
    refused_line(run, tmp_path, names=["--run"])
    refused_line(run, tmp_path, "--run", tmp_path, names=["holds no run"])
    refused_line(run, tmp_path, "--run", place / "traces", names=["is a run of infer_traces"])
    refused_line(run, tmp_path, "--run", tuned, "--online", 2, "--horizon", 3, names=["leave out --horizon"])
    refused_line(run, tmp_path, "--run", tuned, "--horizon", 3, "--attributor", "less", names=["unrolls nothing"])
    refused_line(run, tmp_path, "--run", tuned, "--split", "test", names=["split"])
    copy = tmp_path / "copy"
    shutil.copytree(tuned, copy)
    shutil.rmtree(copy / "trajectory" / "states")
    refused_line(run, tmp_path, "--run", copy, names=["does not come to its end"])
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "status": "stopped"}))
    refused_line(run, tmp_path, "--run", copy, names=["is stopped, not complete"])
    other = tmp_path / "traces"
    shutil.copytree(place / "traces", other)
    lines = (other / "traces.jsonl").read_bytes().splitlines(keepends=True)
    (other / "traces.jsonl").write_bytes(b"".join(lines[1:]))
    asked = {**manifest, "options": {**manifest["options"], "traces": str(other)}}
    shutil.copytree(tuned, tmp_path / "third")
    (tmp_path / "third" / "manifest.json").write_text(json.dumps(asked))
    refused_line(run, tmp_path, "--run", tmp_path / "third", names=["lacks trace"])


def test_traces_and_template_that_have_gone(place: Path, run: Any, tmp_path: Path) -> None:
    """The traces are where --traces says, and the template is the one that the adapter has."""
    tuned, traces = tmp_path / "tuned", tmp_path / "traces"
    shutil.copytree(place / "tuned", tuned)
    shutil.copytree(place / "traces", traces)
    manifest = json.loads((tuned / "manifest.json").read_text())
    manifest["options"] |= {"traces": str(tmp_path / "gone"), "chat_template": str(tmp_path / "gone.jinja")}
    (tuned / "manifest.json").write_text(json.dumps(manifest))
    arguments = ("--run", tuned, "--attributor", "sgd", "--folds", "1", "--out", tmp_path / "o")
    assert "--traces" in run(*arguments, status=2).err
    run(*arguments, "--traces", traces)
    assert len(read(tmp_path / "o" / "influence.jsonl")) == len(read(traces / "traces.jsonl"))


def test_another_model_than_the_one_that_was_trained_is_refused(place: Path, run: Any, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(place / "tuned", tuned)
    examples = read(tuned / "trajectory" / "examples.jsonl")
    for example in examples:
        example["labels"] = [label if label == -100 else 7 for label in example["labels"]]
    (tuned / "trajectory" / "examples.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    said = run("--run", tuned, "--out", tmp_path / "o", status=1)
    assert "base, chat template or examples are not those of the run" in said.err


def test_who_is_harmful() -> None:
    folds = np.array([[-1.0, -1.1, -0.9], [-1.0, 1.0, -1.0], [1.0, 1.2, 1.1], [-1.0, -1.1, -0.9]])
    parts = np.stack([folds, np.zeros_like(folds)], axis=-1)
    overall = parts.mean(axis=1)
    equal = np.full(3, 1 / 3)
    found = influence_of(parts, overall, np.array([0.1, 0.1, 0.1, 5.0]), equal, 0.95)
    assert found.harmful.tolist() == [True, False, False, False]  # the last one's score is all error
    assert found.helpful.tolist() == [False, False, True, False]
    # t(.975, 2) = 4.3027; sd of (-1, -1.1, -.9) is .1
    assert found.high[0] == pytest.approx(-1 + 4.30265 * 0.1 / 3**0.5, rel=1e-5)
    alone = influence_of(parts[:, :1], parts[:, 0], None, np.ones(1))
    assert not alone.harmful.any()
    assert np.isnan(alone.low).all()


def test_the_interval_holds_what_it_says_where_folds_are_unequal() -> None:
    """Of 20,000 traces whose score on an item is normal around -1, nineteen in twenty intervals have -1 in them."""
    sizes = np.array([60, 20, 10, 5, 5])
    chance, shares = np.random.default_rng(0), sizes / sizes.sum()
    folds = chance.normal(-1, 1 / np.sqrt(sizes), (20_000, 5))
    found = influence_of(folds[..., None], (folds @ shares)[:, None], None, shares)
    held = np.mean((found.low <= -1) & (found.high >= -1))
    assert held == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 20_000) ** 0.5)


def test_where_scores_may_say_little() -> None:
    fine = {"proxy_over_score": 0.2, "sum_of_learning_rates": 3.9, "horizon": None}
    assert doubt_of(fine) == ""
    assert "add up to 4.5" in doubt_of({**fine, "sum_of_learning_rates": 4.5})
    assert doubt_of({**fine, "sum_of_learning_rates": 4.5, "horizon": 8}) == ""
    assert "larger than the scores" in doubt_of({**fine, "proxy_over_score": 1.0})
    assert doubt_of({**fine, "proxy_over_score": None}) == ""
    whole = {"steps": 40, "chosen_step": 40, "online": False}
    assert weights_remark(whole) == ""
    assert "has those of step 20" in weights_remark({**whole, "chosen_step": 20})


@pytest.mark.slow
def test_a_recipe_selects_and_trains_again(tmp_path: Path) -> None:
    trained = {"stage": "finetune_rater", "base": "student", "steps": 4, "batch": 4, "eval_steps": 4, "dev_limit": 6}
    trained |= {"dev_draws": 1, "rank": 2, "lr": 0.002}
    steps = {
        "traces": {"stage": "infer_traces", "corpus": "demo", "limit": 12, "null_items": 0, "k": 16},
        "tuned": {**trained, "traces": "${traces}", "record_trajectory": True},
        "selected": {"stage": "select_traces", "run": "${tuned}", "confidence": 0.6},
        "again": {**trained, "traces": "${selected}"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps({"name": "r", "steps": steps}))
    done = run_alone("run_recipe", tmp_path / "recipe.yaml", "--out", tmp_path / "o")
    assert done.status == 0, done.err
    assert (tmp_path / "o" / "again" / "rater.yaml").exists()
    again = run_alone("run_recipe", tmp_path / "recipe.yaml", "--out", tmp_path / "o")
    assert again.err.count("unchanged, passed over") == 4


def test_the_page_shows_texts_of_others_harmlessly() -> None:
    hostile = "</pre><script>alert(1)</script>\u202eabc\x07"
    record = {
        "example_id": f"i<b>/{hostile}", "item_id": "i", "label": 3, "score": -0.5, "low": -0.6, "high": -0.4,
        "reasoning": -0.3, "verdict": -0.2, "error_proxy": 0.01, "tokens": 12, "own_loss": 1.5, "unexpected": True,
        "harmful": True, "helpful": False, "dropped": True,
    }  # fmt: skip
    summary = {
        "corpus": "<i>", "dimension": "q", "query": "label", "attributor": "adamw", "horizon": None, "online": False,
        "traces": 1, "dropped": 1, "harmful": 1, "helpful": 0, "steps": 4, "chosen_step": 2, "dev_items": 9, "folds": 3,
        "confidence": 0.95, "expected_by_chance": 0.1, "proxy_over_score": 1.5, "median_own_loss": 1.2, "unexpected": 1,
        "sum_of_learning_rates": 0.1,
    }  # fmt: skip
    traces = {record["example_id"]: {"trace": hostile, "swapped": False}}
    page = influence_report_html(summary, [record], traces, {"i": {"te<xt": hostile}})
    assert "<script" not in page
    assert "alert(1)" in page
    assert not re.search("[\u202e\x07]", page)
    assert "larger than the scores, so they say little" in page
    assert "No trace has a score above 0." in page
    assert "own loss 1.50, unexpected<" in page
    assert "1 is far above the others" in page
    assert "the run&#39;s rater has those of step 2" in page
