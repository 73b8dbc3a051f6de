"""Run in deepeval's environment, in the exported folder: rate its items, and write what deepeval says to a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, ".")

from deepeval import evaluate
from deepeval.evaluate.configs import AsyncConfig, DisplayConfig, ErrorConfig
from deepeval.test_case import LLMTestCase
from metric import RaterMetric, geval_metric

items = [json.loads(line) for line in Path("items.jsonl").read_bytes().splitlines()]  # as text, U+2028 would cut one
cases = [
    LLMTestCase(input=item["inputs"]["question"], actual_output=item["inputs"]["reply"], name=item["item_id"])
    for item in items
]
found = evaluate(
    cases,
    [RaterMetric(native_threshold=4)],
    display_config=DisplayConfig(show_indicator=False, print_results=False),
    async_config=AsyncConfig(run_async=True),
    error_config=ErrorConfig(ignore_errors=True),
)
results = {}
for result in found.test_results:
    (data,) = result.metrics_data
    results[result.name] = {"share": data.score, "success": data.success, "error": data.error, "name": data.name}
for item, case in zip(items, cases, strict=True):
    metric = RaterMetric()
    try:
        metric.measure(case)
    except RuntimeError as error:
        results[item["item_id"]]["raised"] = str(error)
    results[item["item_id"]] |= {"breakdown": metric.score_breakdown, "reason": metric.reason}
geval = geval_metric() if "--geval" in sys.argv else None
if geval is not None:
    geval.measure(cases[1])
    ranges = [[*rubric.score_range, rubric.expected_outcome] for rubric in geval.rubric or []]
    results["geval"] = {"score": geval.score, "rubric": ranges}
Path(sys.argv[1]).write_text(json.dumps(results), encoding="utf-8")
