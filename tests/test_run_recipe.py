"""run_recipe: steps in their order, each once, again only when something it depends on has changed."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.run_recipe import Step, _outputs_sha256, _state, main, read_recipe
from raters.records import ConfigError, JudgeseyeError
from tests.places import CHECKOUT, DEMO
from tests.stage_runs import read

TWO_STEPS = """\
steps:
  rated: {stage: rate_items, corpus: demo, model: embedded, draws: 2}
  scores: {stage: score_agreement, corpus: demo, ratings: ["${rated}/ratings.jsonl"], resamples: 200}
"""


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def ran(captured: str) -> list[str]:
    """Return the names of the steps that a call has run, from what it says."""
    return [line.split()[1] for line in captured.splitlines() if line.startswith("[") and line.endswith(": running")]


def test_the_recipe_of_the_readme_goes_from_a_table_to_a_certified_rater(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```yaml\n(steps:\n.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    texts = {record["item_id"]: record["inputs"] for record in read(DEMO / "items.jsonl")}
    with Path("labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["item_id", "question", "reply", "annotator", "label"])
        for one in read(DEMO / "annotations.jsonl"):
            table.writerow([one["item_id"], *texts[one["item_id"]].values(), one["annotator_id"], one["label"]])
    Path("told.md").write_text("Rate how helpful the reply is.\n")
    Path("my_recipe.yaml").write_text(recipe)
    assert main(["my_recipe.yaml"]) == 0
    certificate = json.loads(Path("runs/my_recipe/export/rater_label/certificate.json").read_text())
    assert certificate["certified"] is True
    assert set(certificate["agreement"]) >= {"kendall_tau_b", "krippendorff_alpha"}


def test_steps_run_once_and_again_only_after_a_change(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe, out = write_recipe(tmp_path, TWO_STEPS), tmp_path / "out"
    assert main([str(recipe), "--out", str(out)]) == 0
    assert ran(capfd.readouterr().err) == ["rated", "scores"]
    scores = json.loads((out / "scores" / "scores.json").read_text())
    assert [rater["rater"] for rater in scores["raters"]] == ["rated"]
    assert scores["items"] == 56
    assert main([str(recipe), "--out", str(out)]) == 0
    assert ran(capfd.readouterr().err) == []

    # Another option of the last step alone: only that step runs.
    write_recipe(tmp_path, TWO_STEPS.replace("resamples: 200", "resamples: 300"))
    assert main([str(recipe), "--out", str(out)]) == 0
    assert ran(capfd.readouterr().err) == ["scores"]
    assert json.loads((out / "scores" / "scores.json").read_text())["resamples"] == 300

    # More draws of the first: both, since the second reads what the first writes.
    write_recipe(tmp_path, TWO_STEPS.replace("draws: 2", "draws: 3"))
    assert main([str(recipe), "--out", str(out)]) == 0
    assert ran(capfd.readouterr().err) == ["rated", "scores"]

    # Somebody has changed an output of the first.
    ratings = out / "rated" / "ratings.jsonl"
    ratings.write_text(ratings.read_text().replace('"seconds": 0.', '"seconds": 1.', 1))
    write_recipe(tmp_path, TWO_STEPS.replace("draws: 2", "draws: 3"))
    assert main([str(recipe), "--out", str(out)]) == 0
    assert ran(capfd.readouterr().err) == ["scores"]


def test_another_bound_sets_no_run_aside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bounds = "draws: 2, input_price: 1, output_price: 4, batch_size: 8"
    out, priced = tmp_path / "out", TWO_STEPS.replace("draws: 2", bounds)
    assert main([str(write_recipe(tmp_path, TWO_STEPS)), "--out", str(out)]) == 0
    ratings = (out / "rated" / "ratings.jsonl").read_bytes()
    assert main([str(write_recipe(tmp_path, priced)), "--out", str(out)]) == 0
    assert "rated" in ran(capfd.readouterr().err)
    assert not (out / "rated.old-1").exists()
    assert (out / "rated" / "ratings.jsonl").read_bytes() == ratings
    assert main([str(write_recipe(tmp_path, priced)), "--out", str(out)]) == 0
    assert "rated" not in ran(capfd.readouterr().err)


def test_a_corpus_that_is_given_by_name_is_an_input_and_a_long_value_is_none(tmp_path: Path) -> None:
    given = {"corpus": "demo", "model": "x" * 5000, "adapter": ""}
    state = _state(Step("rated", "rate_items", given, ()), given, tmp_path)
    assert state is not None
    assert list(state["inputs"]) == ["corpus demo"]


def test_list_runs_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([str(write_recipe(tmp_path, TWO_STEPS)), "--out", str(out), "--list"]) == 0
    assert capfd.readouterr().err.count("to run") == 2
    assert not out.exists()


def test_a_failing_step_ends_the_recipe_with_its_status(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, TWO_STEPS.replace("model: embedded", "model: nothing"))
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.run_recipe", str(recipe), "--out", str(tmp_path / "out")],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert lines[-2].startswith("rate_items: model 'nothing'")
    assert lines[-1].startswith("run_recipe: step rated ended with status 2")
    assert not (tmp_path / "out" / "scores").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no steps"),
        ("steps: {}", "holds no steps"),
        ("steps: [1]", "holds no steps"),
        ("name: x\nother: 1\nsteps: {a: {stage: rate_items}}", "unknown key 'other'"),
        ("steps: {a: {stage: cook}}", "stage 'cook'; give one of"),
        ("steps: {a: rate_items}", "stage 'rate_items'; give one of"),
        ("steps: {../a: {stage: rate_items}}", "no name of a folder"),
        ("steps: {1: {stage: rate_items}}", "no name of a folder"),
        ("steps: {a: {stage: rate_items, out: x}}", "out is the recipe's to give"),
        ("steps: {a: {stage: rate_items, rater: '${b}/rater.yaml'}}", "${b} is no earlier step"),
        ("steps: {a: {stage: rate_items, rater: '${a}/rater.yaml'}}", "${a} is no earlier step"),
        ("steps: {a: [", "cannot be read"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = write_recipe(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        read_recipe(path)
    message = str(error.value)
    assert said in message
    assert str(path) in message
    assert "\n" not in message


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file"):
        read_recipe(tmp_path / "gone.yaml")


def test_the_recipe_that_ships_can_be_read() -> None:
    name, steps = read_recipe(CHECKOUT / "data" / "demo" / "recipe.yaml")
    assert name == "demo"
    assert steps[0].stage == "infer_traces"
    assert steps[-1].stage == "score_agreement"
    assert set(steps[-1].needs) <= {step.name for step in steps}


def test_a_step_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    text = "steps:\n  rated: {stage: rate_items, corpus: demo, model: embedded, split: all, draws: 400}\n"
    command = [sys.executable, "-m", "pipelines.run_recipe", str(write_recipe(tmp_path, text))]
    command += ["--out", str(tmp_path / "out")]
    ratings = tmp_path / "out" / "rated" / "ratings.jsonl"
    process = subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not ratings.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    kept = ratings.read_bytes()
    assert 0 < kept.count(b"\n") < 384 * 400
    process = subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while ratings.stat().st_size <= len(kept) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert "continuing" in said
    assert ratings.read_bytes().startswith(kept)


def test_a_table_is_imported_by_the_first_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """SOURCE stands in the step as `source`; a changed table or guideline is imported anew, the old corpus kept."""
    rows = [f"i{number},This is text {number}.,ann,{1 + number % 3}\n" for number in range(40)]
    (tmp_path / "labels.csv").write_text("id,text,who,mark\n" + "".join(rows))
    (tmp_path / "told.md").write_text("Say how good it is.\n")
    text = """\
    steps:
      corpus: {stage: import_corpus, source: "${recipe}/labels.csv", item: id, text: [text], annotator: who,
               label: [mark], guideline: ["mark=${recipe}/told.md"]}
      rated: {stage: rate_items, corpus: "${corpus}", model: embedded, draws: 2}
    """
    recipe, out = write_recipe(tmp_path, text), tmp_path / "out"
    assert main([str(recipe), "--out", str(out)]) == 0
    assert ran(capfd.readouterr().err) == ["corpus", "rated"]
    assert (out / "corpus" / "guidelines" / "mark.md").read_text() == "Say how good it is.\n"
    assert main([str(recipe), "--out", str(out)]) == 0
    assert ran(capfd.readouterr().err) == []

    (tmp_path / "told.md").write_text("Say how clear it is.\n")
    assert main([str(recipe), "--out", str(out)]) == 0
    assert ran(capfd.readouterr().err) == ["corpus", "rated"]
    assert (out / "corpus" / "guidelines" / "mark.md").read_text() == "Say how clear it is.\n"
    assert (out / "corpus.old-1" / "guidelines" / "mark.md").read_text() == "Say how good it is.\n"

    (tmp_path / "labels.csv").write_text("id,text,who,mark\n" + "".join(rows[:-1]))
    assert main([str(recipe), "--out", str(out)]) == 0
    assert len((out / "corpus" / "items.jsonl").read_text().splitlines()) == 39
    assert (out / "corpus.old-2").is_dir()


def test_a_review_is_an_output_and_looking_is_none(tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_text("{}\n")
    before = _outputs_sha256(tmp_path)
    (tmp_path / ".reviews.lock").write_text("")
    assert _outputs_sha256(tmp_path) == before
    (tmp_path / "reviews.jsonl").write_text("{}\n")
    assert _outputs_sha256(tmp_path) != before


def test_a_step_without_its_source_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, "steps: {corpus: {stage: import_corpus, item: id}}\n")
    with pytest.raises(JudgeseyeError) as error:
        main([str(recipe), "--out", str(tmp_path / "out")])
    assert error.value.exit_code == 2
    assert "SOURCE: missing" in capfd.readouterr().err
