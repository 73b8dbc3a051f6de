"""Run in MLflow's environment, in the exported folder: rate its items, and write what MLflow says to a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, ".")

import mlflow
from mlflow_scorer import guideline_judge, rater

out = Path(sys.argv[1])
mlflow.set_tracking_uri(f"sqlite:///{out.parent / 'mlflow.db'}")
mlflow.set_experiment("export")
items = [json.loads(line) for line in Path("items.jsonl").read_bytes().splitlines()]  # as text, U+2028 would cut one
data = [{"inputs": {"question": item["inputs"]["question"]}, "outputs": item["inputs"]["reply"]} for item in items]
done = mlflow.genai.evaluate(data=data, scorers=[rater])
results = {"metrics": done.metrics}
by_question = {item["inputs"]["question"]: item["item_id"] for item in items}
for trace in mlflow.search_traces(return_type="list", max_results=100):
    question = json.loads(trace.data.request)["question"]
    (assessment,) = [one for one in trace.info.assessments if one.name == rater.name]
    error = assessment.feedback.error if assessment.feedback else None
    results[by_question[question]] = {
        "value": assessment.feedback.value,
        "error": None if error is None else error.error_code,
        "rationale": assessment.rationale,
        "source": assessment.source.source_id,
    }
if "--judge" in sys.argv:
    judge = guideline_judge()
    one = judge(inputs={"question": "What is {{ 7*7 }}?"}, outputs="It is {{ inputs }}")
    results["judge"] = {"value": one.value, "error": str(one.error), "type": str(judge.feedback_value_type)}
out.write_text(json.dumps(results), encoding="utf-8")
