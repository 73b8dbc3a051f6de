"""Run in MLflow's environment, with this project in it: align a judge with labels that people gave without reasons."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, ".")

import mlflow
from mlflow.entities import AssessmentSource
from mlflow_scorer import JUDGE, guideline_judge
from optimizer import TraceOptimizer

out, items_file = Path(sys.argv[1]), Path(sys.argv[2])
mlflow.set_tracking_uri(f"sqlite:///{out.parent / 'align.db'}")
mlflow.set_experiment("align")
labels = {}
for line in items_file.read_bytes().splitlines():
    item = json.loads(line)
    with mlflow.start_span(name="answer") as span:
        span.set_inputs({"question": item["inputs"]["question"]})
        span.set_outputs(item["inputs"]["reply"])
    labels[span.trace_id] = item["labels"]
mlflow.flush_trace_async_logging()
for trace_id, given in labels.items():
    for person, label in given.items():
        source = AssessmentSource(source_type="HUMAN", source_id=person)
        mlflow.log_feedback(trace_id=trace_id, name=JUDGE.name, value=label, source=source)
traces = mlflow.search_traces(return_type="list", max_results=1000)
optimizer = TraceOptimizer(
    out.parent / "work",
    model="embedded",
    infer_options=["--strategy", "fixed", "--k", "32"],
    refine_options=["--rounds", "2"],
)
judge = guideline_judge(model="openai:/any")
aligned = judge.align(traces, optimizer)
results = {
    "traces": len(traces),
    "before": judge.instructions,
    "after": aligned.instructions,
    "model": aligned.model,
    "summary": optimizer.summary,
}
few = traces[:5]
try:
    judge.align(few, TraceOptimizer(out.parent / "few", model="embedded"))
except mlflow.exceptions.MlflowException as error:
    results["few"] = str(error)
unlabelled = traces[5:8]
for trace in unlabelled:
    trace.info.assessments = []
try:
    judge.align(unlabelled, TraceOptimizer(out.parent / "none", model="embedded"))
except mlflow.exceptions.MlflowException as error:
    results["none"] = str(error)
out.write_text(json.dumps(results), encoding="utf-8")
