"""An optimizer for `judge.align`: labels without written reasons become reasons, and those a clearer guideline.

The traces carry people's ratings. A model infers the reasoning behind them (`infer_traces`), and edits of the guideline
that follow from it are kept where people's labels of other traces say so (`refine_guideline`). It runs judgeseye, which
has to be installed beside MLflow; everything it did stays in the folder that it is given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from mlflow.entities import Trace
from mlflow.exceptions import MlflowException
from mlflow.genai.judges import AlignmentOptimizer, Judge

from raters.exports.harness.mlflow_scorer import JUDGE, guideline_judge


class TraceOptimizer(AlignmentOptimizer):
    """Aligns a judge with people's labels by way of inferred reasoning.

    Attributes:
        summary: What the last alignment came to, as refine_guideline wrote it.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        model: str | None = None,
        infer_options: Sequence[str] = (),
        refine_options: Sequence[str] = (),
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            folder: Where corpus, traces and guideline go; the same folder goes on where it was left.
            model: That infers reasoning, writes and rates, as judgeseye names it (`openai/gpt-5`); the rater's own by
                default.
            infer_options: Further ones of `python -m pipelines.infer_traces`, such as `["--k", "8"]`.
            refine_options: Further ones of `python -m pipelines.refine_guideline`.
        """
        self.folder = Path(folder).resolve()
        self.model = model or JUDGE.record["spec"]
        self._infer_options, self._refine_options = list(infer_options), list(refine_options)
        self.summary: Mapping[str, Any] = {}

    def align(self, judge: Judge, traces: list[Trace]) -> Judge:
        """Return the judge under a guideline that agrees better with the traces' labels.

        Args:
            judge: As `guideline_judge` makes it.
            traces: With people's labels, under the judge's name, on the rater's scale.

        Raises:
            MlflowException: If the traces hold too few labels, or a stage fails; the message is its own.
        """
        corpus = self._write_corpus(judge.name, traces)
        common = ["--corpus", str(corpus)]
        inferred, refined = self.folder / "traces", self.folder / "refined"
        self._run("infer_traces", *common, "--model", self.model, "--out", str(inferred), *self._infer_options)
        asked = self.model == "embedded" or any(one == "--writer" for one in self._refine_options)
        writer = [] if asked else ["--writer", self.model]
        options = [
            *common,
            "--traces",
            str(inferred),
            "--rater",
            self.model,
            *writer,
            "--out",
            str(refined),
            *self._refine_options,
        ]
        self._run("refine_guideline", *options)
        self.summary = json.loads((refined / "summary.json").read_text(encoding="utf-8"))
        guideline = (refined / "guideline.md").read_text(encoding="utf-8")
        return guideline_judge(getattr(judge, "model", None), guideline)

    def _write_corpus(self, name: str, traces: Sequence[Trace]) -> Path:
        """Write traces as a corpus of judgeseye and return its folder."""
        items, annotations = [], []
        for trace in traces:
            labels = list(_labels(trace, name))
            if not labels:
                continue
            inputs = _item(trace)
            items.append({"item_id": trace.info.trace_id, "inputs": inputs, "metadata": {}})
            for place, (annotator, label) in enumerate(labels):
                annotations.append(
                    {
                        "item_id": trace.info.trace_id,
                        "annotator_id": annotator or f"person {place}",
                        "dimension": JUDGE.record["dimension"],
                        "label": label,
                    }
                )
        if not items:
            raise MlflowException(
                f"{name}: no trace has a label of that name by a person; log feedback with HUMAN source"
            )
        corpus = self.folder / "corpus"
        (corpus / "guidelines").mkdir(parents=True, exist_ok=True)
        entry = {"scale": JUDGE.record["scale"], "guideline": "guidelines/guideline.md"}
        settings = {"name": JUDGE.name, "dimensions": {JUDGE.record["dimension"]: entry}}
        # JSON is YAML, but for characters beyond U+FFFF as JSON escapes them.
        (corpus / "corpus.yaml").write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
        (corpus / "guidelines" / "guideline.md").write_text(JUDGE.guideline, encoding="utf-8")
        for path, records in (("items.jsonl", items), ("annotations.jsonl", annotations)):
            text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            (corpus / path).write_text(text, encoding="utf-8")
        return corpus

    def _run(self, stage: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"pipelines.{stage}", *arguments]
        base_url = os.environ.get("JUDGE_BASE_URL"), os.environ.get("JUDGE_API_KEY")
        given = zip(("OPENAI_BASE_URL", "OPENAI_API_KEY"), base_url, strict=True)
        environment = {**os.environ, **{name: value for name, value in given if value}}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder, env=environment)
        (self.folder / f"{stage}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            problem = lines[-1] if lines else f"{stage} ended with status {done.returncode}"
            if "No module named" in problem:
                problem = "judgeseye is not installed beside MLflow; pip install it (see README.md)"
            raise MlflowException(problem)


def _labels(trace: Trace, name: str) -> list[tuple[str | None, Any]]:
    """Return (person, label) of each label that a person gave a trace."""
    found = []
    for assessment in trace.info.assessments or ():
        source = assessment.source
        value = getattr(assessment, "value", None)
        if assessment.name == name and source.source_type == "HUMAN" and value is not None:
            found.append((source.source_id, value))
    return found


def _item(trace: Trace) -> dict[str, str]:
    """Return a trace's text fields as the rater reads them."""
    request, response = json.loads(trace.data.request or "null"), json.loads(trace.data.response or "null")
    known: dict[str, Any] = {}
    for given in (request, response):
        known |= given if isinstance(given, dict) else {}
    written = response if isinstance(response, str) else None
    return JUDGE.item(known, written, request if isinstance(request, str) else None)
