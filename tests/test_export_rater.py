"""The stage export_rater: what it writes for each harness, and what it refuses."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.export_rater import main
from raters.corpora import load_corpus
from raters.journal import read_lines
from raters.rater_files import read_rater
from tests.harness_items import GUIDELINE, INPUTS, UNREADABLE, answers, expected, write_rater
from tests.scripted_server import ScriptedServer
from tests.small_corpora import PAIRWISE, small_corpus
from tests.stage_runs import Run, calls_of, leave_the_user, refused_line

TARGETS = ("inspect", "lm-eval", "promptfoo", "deepeval", "mlflow", "openai-batch", "python")
EXPECTED = {
    "inspect": {"pyproject.toml", "rater_quality/scorer.py", "rater_quality/_registry.py", "rater_quality/__init__.py"},
    "lm-eval": {"quality.yaml", "utils.py"},
    "promptfoo": {"promptfooconfig.yaml", "promptfooconfig.rubric.yaml", "assertion.py"},
    "deepeval": {"metric.py"},
    "mlflow": {"mlflow_scorer.py", "optimizer.py"},
    "openai-batch": {"requests-1.jsonl", "read_answers.py"},
    "python": {"__init__.py"},
}
CORE = {"judge_quality.py", "rater.json", "rater.yaml", "certificate.json", "guideline.md", "items.jsonl"}


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    leave_the_user(tmp_path, monkeypatch)
    write_rater(tmp_path)
    return calls_of("export_rater", main, monkeypatch, capsys)


def core_folder(folder: Path, target: str) -> Path:
    return folder / "rater_quality" if target == "inspect" else folder


@pytest.mark.parametrize("target", TARGETS)
def test_each_harness_gets_its_folder(export: Run, tmp_path: Path, target: str) -> None:
    outcome = export("rater.yaml", "--to", target, "--corpus", "items", "--split", "all", "--out", "out")
    folder = tmp_path / "out"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {".lock"}
    inside = core_folder(folder, target)
    core = {str((inside / name).relative_to(folder)) for name in CORE}
    assert found == EXPECTED[target] | core | {"README.md", "manifest.json"}
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) == 3
    assert outcome.out.endswith(f"\n\n{readme}")
    assert outcome.err.startswith("not certified: score_agreement has not measured this rater")
    assert json.loads((inside / "certificate.json").read_text())["certified"] is False
    assert read_rater(inside / "rater.yaml").sha256 == read_rater(tmp_path / "rater.yaml").sha256
    assert json.loads((folder / "manifest.json").read_text())["status"] == "complete"
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        compile(text, str(path), "exec")
        assert not re.search(r"^(from|import) (raters|tests)\b", text, re.MULTILINE), path
    items = [record for _, _, record in read_lines(inside / "items.jsonl")]
    assert {item["item_id"]: tuple(item["inputs"].values()) for item in items} == INPUTS
    assert [item["label"] for item in items] == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("target", "with_items", "without"),
    [
        ("inspect", "held_out --model none` rates the items of the export", "held_out -T items=FILE --model none`"),
        ("promptfoo", "Put your model in place of NAME in", "in place of NAME, and your texts in place of …, in"),
    ],
)
def test_the_readme_is_of_the_items_that_are_there(
    export: Run, tmp_path: Path, target: str, with_items: str, without: str
) -> None:
    export("rater.yaml", "--to", target, "--corpus", "items", "--split", "all", "--out", "with")
    export("rater.yaml", "--to", target, "--fields", "question", "reply", "--out", "without")
    for folder, said in (("with", with_items), ("without", without)):
        assert said in (tmp_path / folder / "README.md").read_text(encoding="utf-8")


def test_the_certificate_goes_along(export: Run, tmp_path: Path) -> None:
    spec = read_rater(tmp_path / "rater.yaml")
    certificate = {"certified": True, "rater_sha256": spec.sha256, "agreement": {"kendall_tau_b": 0.5}}
    spec.certified(certificate).write(tmp_path / "certified.yaml")
    outcome = export("certified.yaml", "--to", "deepeval", "--fields", "question", "reply", "--out", "out")
    assert json.loads((tmp_path / "out" / "certificate.json").read_text()) == certificate
    assert read_rater(tmp_path / "out" / "rater.yaml").certificate == certificate
    assert json.loads((tmp_path / "out" / "rater.json").read_text())["certified"] is True
    assert "(certified, see certificate.json)" in outcome.out
    assert outcome.err == ""


def test_templates_of_a_harness_hold_no_text_of_people(export: Run, tmp_path: Path) -> None:
    """Items stand in JSON files alone, and the guideline in promptfoo's template has nothing that it could fill."""
    for target in ("lm-eval", "promptfoo"):
        export("rater.yaml", "--to", target, "--corpus", "items", "--split", "all", "--out", target)
    task = (tmp_path / "lm-eval" / "quality.yaml").read_text(encoding="utf-8")
    for text in (*GUIDELINE.splitlines()[2:], *(text for pair in INPUTS.values() for text in pair)):
        assert text not in task
    settings = yaml.safe_load((tmp_path / "promptfoo" / "promptfooconfig.yaml").read_text(encoding="utf-8"))
    assert settings["tests"] == [{"vars": {"item_id": name}} for name in INPUTS]
    rubric = yaml.safe_load((tmp_path / "promptfoo" / "promptfooconfig.rubric.yaml").read_text(encoding="utf-8"))
    prompt = rubric["defaultTest"]["options"]["rubricPrompt"]
    assert re.findall(r"\{\{.*?\}\}|\{[%#]|[%#]\}", prompt) == ["{{ output }}", "{{ rubric }}"]
    assert prompt.replace(" ", "").startswith(GUIDELINE.strip().replace(" ", ""))


def test_a_function_in_a_folder(export: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export("rater.yaml", "--to", "python", "--fields", "question", "reply", "--out", "my_rater")
    monkeypatch.syspath_prepend(str(tmp_path))
    module: Any = importlib.import_module("my_rater")
    try:
        with ScriptedServer(answers) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
            rated = {
                name: module.rate({"question": question, "reply": reply}) for name, (question, reply) in INPUTS.items()
            }
        assert {name: one.value for name, one in rated.items()} == {
            name: expected(pair) for name, pair in INPUTS.items()
        }
    finally:
        for name in ("my_rater", "my_rater.judge_quality"):
            sys.modules.pop(name)


def batch(folder: Path) -> list[dict[str, Any]]:
    """Answer the requests of a folder as a provider does, last one first."""
    records = []
    for _, _, request in read_lines(folder / "requests-1.jsonl"):
        answer = answers(request["body"], 0)
        message = {"role": "assistant", "content": answer.content, "reasoning": answer.reasoning}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        response = {"status_code": 200, "request_id": "r", "body": body}
        records.append({"id": "b", "custom_id": request["custom_id"], "response": response, "error": None})
    return records[::-1]


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("promptfoo", "import assertion; found = assertion._known({'vars': {'item_id': 'lines'}})"),
        ("lm-eval", "import utils; found = {one['item_id']: one['inputs'] for one in utils.items()['test']}['lines']"),
    ],
)
def test_a_text_may_hold_what_breaks_lines_elsewhere(export: Run, tmp_path: Path, target: str, code: str) -> None:
    """`str.splitlines` would cut a record at a line separator, which JSON holds as it is."""
    export("rater.yaml", "--to", target, "--corpus", "items", "--split", "all", "--out", "out")
    command = [sys.executable, "-c", f"import json; {code}; print(json.dumps([found['question'], found['reply']]))"]
    done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert tuple(json.loads(done.stdout)) == INPUTS["lines"]


def test_answers_of_a_batch_become_verdicts(export: Run, tmp_path: Path) -> None:
    export("rater.yaml", "--to", "openai-batch", "--corpus", "items", "--split", "all", "--out", "out")
    records = batch(tmp_path / "out")
    records[0] |= {"response": None, "error": {"code": "expired", "message": "late"}}
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def read(*names: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", str(tmp_path / "out" / "read_answers.py"), *names]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = read("answers.jsonl")
    assert done.stderr == ""
    assert done.stdout == "10 items: 1 unreadable, 1 of 20 answers missing; verdicts.jsonl\n"
    values = {record["item_id"]: record["value"] for _, _, record in read_lines(tmp_path / "verdicts.jsonl")}
    whole = {name: expected(pair) for name, pair in INPUTS.items() if name != "object"}
    assert {name: values[name] for name in whole} == whole
    assert values[UNREADABLE] is None
    (tmp_path / "torn.jsonl").write_text('{"custom_id": "0-0"}\n{"cust')
    assert (read().returncode, read("none.jsonl").returncode, read("torn.jsonl").returncode) == (2, 2, 2)
    assert read("none.jsonl").stderr == "none.jsonl: No such file or directory; give the file of answers\n"
    assert read("torn.jsonl").stderr == "torn.jsonl line 2: is no answer of a batch; give the file of answers\n"


def test_the_same_command_writes_the_same_and_another_is_refused(export: Run, tmp_path: Path) -> None:
    command = ["rater.yaml", "--to", "deepeval", "--corpus", "items", "--split", "all", "--out", "out"]
    export(*command)
    first = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "metric.py").unlink()
    export(*command)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    command[2] = "mlflow"
    assert 'to was "deepeval", now "mlflow"' in refused_line(export, tmp_path, *command)
    export(*command, "--new")
    assert (tmp_path / "out.old-1" / "metric.py").exists()
    assert (tmp_path / "out" / "optimizer.py").exists()


def test_items_that_the_rater_has_seen_do_not_go_along(export: Run, tmp_path: Path) -> None:
    seen = read_rater(tmp_path / "rater.yaml")
    from dataclasses import replace

    import numpy as np

    from raters.rater_files import SeenItems

    corpus = load_corpus(tmp_path / "items")
    replace(seen, seen=SeenItems.of(corpus, np.array([3]))).write(tmp_path / "seen.yaml")
    command = ["seen.yaml", "--to", "lm-eval", "--corpus", "items", "--split", "all", "--out", "out"]
    refused_line(export, tmp_path, *command, names=["1 of the 10 items of the all split", "--split-seed"])


def test_a_corpus_without_the_dimension_gives_items_alone(export: Run, tmp_path: Path) -> None:
    settings = yaml.safe_load((tmp_path / "items" / "corpus.yaml").read_text())
    settings["dimensions"]["other"] = settings["dimensions"].pop("quality")
    (tmp_path / "items" / "corpus.yaml").write_text(yaml.safe_dump(settings))
    lines = (tmp_path / "items" / "annotations.jsonl").read_text().replace('"quality"', '"other"')
    (tmp_path / "items" / "annotations.jsonl").write_text(lines)
    outcome = export("rater.yaml", "--to", "inspect", "--corpus", "items", "--split", "all", "--out", "out")
    assert "corpus small: has no labels of quality on 1..5; its items go without\n" in outcome.err
    items = [record for _, _, record in read_lines(tmp_path / "out" / "rater_quality" / "items.jsonl")]
    assert {item["label"] for item in items} == {None}


BAD = {
    "no rater": (["--to", "python", "--out", "o"], ["RATER: missing"]),
    "no harness": (["rater.yaml", "--out", "o"], ["--to: missing"]),
    "no folder": (["rater.yaml", "--to", "python"], ["--out: missing"]),
    "unknown harness": (["rater.yaml", "--to", "ragas", "--out", "o"], ["--to ragas: must be one of inspect, lm-eval"]),
    "no such rater": (["none.yaml", "--to", "python", "--out", "o"], ["none.yaml: no such file"]),
    "a folder": (["items", "--to", "python", "--out", "o"], ["items: is a folder", "give the rater.yaml in it"]),
    "not a rater": (["items/corpus.yaml", "--to", "python", "--out", "o"], ["items/corpus.yaml: format"]),
    "no such corpus": (["rater.yaml", "--to", "lm-eval", "--corpus", "x", "--out", "o"], ["x"]),
    "unknown fields": (["rater.yaml", "--to", "deepeval", "--out", "o"], ["--fields: missing"]),
    "needs items": (
        ["rater.yaml", "--to", "lm-eval", "--fields", "a", "b", "--out", "o"],
        ["--to lm-eval: needs items"],
    ),
    "batch needs items": (["rater.yaml", "--to", "openai-batch", "--fields", "a", "b", "--out", "o"], ["needs items"]),
    "field not in corpus": (
        ["rater.yaml", "--to", "mlflow", "--corpus", "items", "--split", "all", "--fields", "x", "--out", "o"],
        ["item plain has no field x"],
    ),
    "output no field": (
        ["rater.yaml", "--to", "mlflow", "--fields", "a", "b", "--output-field", "c", "--out", "o"],
        ["--output-field 'c'"],
    ),
    "no module name": (["rater.yaml", "--to", "python", "--fields", "a", "b", "--out", "my-rater"], ["--out my-rater"]),
    "a keyword": (["rater.yaml", "--to", "python", "--fields", "a", "b", "--out", "class"], ["--out class"]),
    "a file in its place": (
        ["rater.yaml", "--to", "mlflow", "--fields", "a", "--out", "rater.yaml"],
        ["--out rater.yaml"],
    ),
    "another folder": (
        ["rater.yaml", "--to", "mlflow", "--fields", "a", "--out", "items"],
        ["--out items: holds files"],
    ),
    "a second file": (["rater.yaml", "other.yaml", "--to", "mlflow", "--out", "o"], ["other.yaml"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(export: Run, tmp_path: Path, case: str) -> None:
    arguments, names = BAD[case]
    refused_line(export, tmp_path, *arguments, names=names)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model": "student"}, ["model student", "--served-model"]),
        ({"model": "hf/org/name", "adapter": "lost"}, ["adapter", "lost", "no such folder"]),
        ({"reasoning": False}, ["rates without reasoning"]),
    ],
)
def test_raters_that_cannot_leave(export: Run, tmp_path: Path, changes: dict[str, Any], names: list[str]) -> None:
    from dataclasses import replace

    replace(read_rater(tmp_path / "rater.yaml"), **changes).write(tmp_path / "other.yaml")
    for target in TARGETS:
        command = ["other.yaml", "--to", target, "--corpus", "items", "--split", "all", "--out", "out"]
        refused_line(export, tmp_path, *command, names=names)


def test_the_rule_reader_answers_no_batch(export: Run, tmp_path: Path) -> None:
    from raters.plain_raters import plain_rater

    corpus = small_corpus(tmp_path / "pairs", {"a": {"ann": "A"}}, PAIRWISE, inputs={"a": {"left": "x", "right": "y"}})
    plain_rater("embedded", corpus, corpus.dimension(None), None).write(tmp_path / "rules.yaml")
    from dataclasses import replace

    from raters.rater_files import SeenItems

    spec = replace(read_rater(tmp_path / "rules.yaml"), seen=SeenItems.none())
    spec.write(tmp_path / "rules.yaml")
    command = ["rules.yaml", "--corpus", "pairs", "--split", "all", "--out", "out"]
    refused_line(export, tmp_path, *command, "--to", "openai-batch", names=["embedded is no model"])
    export(*command, "--to", "promptfoo")
    assert not (tmp_path / "out" / "promptfooconfig.rubric.yaml").exists()
    said = export("rules.yaml", "--corpus", "pairs", "--split", "all", "--to", "mlflow", "--out", "mlflow").out
    assert "`guideline_judge('openai:/NAME').align(" in said  # without a model it has none to ask


MLFLOW = {
    "__init__.py": "",
    "entities.py": "AssessmentError = AssessmentSource = Feedback = Trace = object\n",
    "exceptions.py": "class MlflowException(Exception): ...\n",
    "genai/__init__.py": "",
    "genai/judges.py": "AlignmentOptimizer = Judge = object\nmake_judge = None\n",
    "genai/scorers.py": "def scorer(name):\n    return lambda function: function\n",
}
"""What the exported files import of MLflow; `-m harness` runs them in MLflow itself."""
ALIGNED = """
import json
from types import SimpleNamespace as Some
from optimizer import TraceOptimizer
person = Some(name="mood", value="\U0001f44e", source=Some(source_type="HUMAN", source_id="eva"))
data = Some(request=json.dumps({"question": "Why?"}), response=json.dumps("So."))
trace = Some(info=Some(trace_id="t1", assessments=[person]), data=data)
print(TraceOptimizer("work")._write_corpus("mood", [trace]))
"""


def test_mlflows_traces_become_a_corpus_of_any_labels(export: Run, tmp_path: Path) -> None:
    from raters.plain_raters import plain_rater

    thumbs = {"type": "nominal", "labels": ["\U0001f44d", "\U0001f44e"]}
    inputs = {"a": {"question": "What?", "reply": "That."}}
    corpus = small_corpus(tmp_path / "thumbs", {"a": {"ann": "\U0001f44d"}}, thumbs, inputs=inputs)
    plain_rater("openai/x", corpus, corpus.dimension(None), None).write(tmp_path / "thumbs.yaml")
    export("thumbs.yaml", "--to", "mlflow", "--fields", "question", "reply", "--name", "mood", "--out", "out")
    for name, text in MLFLOW.items():
        path = tmp_path / "out" / "mlflow" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [sys.executable, "-c", ALIGNED]
    done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert done.stderr == ""
    written = load_corpus(Path(done.stdout.strip()))
    table = written.annotations("quality")
    scale = written.dimension(None).scale
    assert list(scale.model_dump()["labels"]) == thumbs["labels"]
    assert scale.label(float(table.numbers[0])) == "\U0001f44e"
    assert dict(written.item(0).inputs) == {"question": "Why?", "reply": "So."}


def test_odd_item_ids_are_not_given_to_promptfoo(export: Run, tmp_path: Path) -> None:
    text = (tmp_path / "items" / "items.jsonl").read_text().replace('"item_id": "jinja"', '"item_id": "{{ 7*7 }}"')
    (tmp_path / "items" / "items.jsonl").write_text(text)
    text = (tmp_path / "items" / "annotations.jsonl").read_text().replace('"jinja"', '"{{ 7*7 }}"')
    (tmp_path / "items" / "annotations.jsonl").write_text(text)
    command = ["rater.yaml", "--corpus", "items", "--split", "all", "--out", "out"]
    refused_line(export, tmp_path, *command, "--to", "promptfoo", names=["item_id '{{ 7*7 }}'"])
    export(*command, "--to", "lm-eval")
