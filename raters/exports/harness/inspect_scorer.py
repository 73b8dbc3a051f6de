"""The rater as a scorer of inspect_ai, and a task that rates texts again that people have rated.

`--model-role grader=…` says which model rates; without it the rater's own is asked. What cannot be read stays unscored.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, GenerateConfig, Model, ModelOutput, get_model
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, mean, metric, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import collect

from raters.exports.judge import Completion, JudgeError, completion_from, load

HERE = Path(__file__).parent
JUDGE = load(HERE)


@metric
def label_shares() -> Metric:
    """Return how often each label was given."""

    def shares(scores: list[SampleScore]) -> Value:
        given = [str(score.score.value) for score in scores]
        return {str(label): given.count(str(label)) / max(len(given), 1) for label in JUDGE.labels}

    return shares


@metric
def agreement() -> Metric:
    """Return the share of ratings that are the very label people gave, among items that have one."""

    def agree(scores: list[SampleScore]) -> Value:
        told = [score.score.metadata or {} for score in scores]
        same = [one["verdict"] == one["label"] for one in told if one.get("label")]
        return sum(same) / len(same) if same else float("nan")

    return agree


OF_SCORES = [mean(), stderr()] if JUDGE.is_numeric else [label_shares()]


@scorer(metrics=OF_SCORES, name=JUDGE.name)
def rater() -> Scorer:
    """Rate the output of a sample, whose other fields stand in its metadata, or in `inputs` there."""

    async def score(state: TaskState, target: Target) -> Score:
        known = {**state.metadata, **(state.metadata.get("inputs") or {})}
        inputs = JUDGE.item(known, state.output.completion, state.input_text)
        model = None if JUDGE.rates_here else _grader()
        if model is None:
            rating = await asyncio.to_thread(JUDGE.rate, inputs)
        else:
            drawn = await collect(*(_draw(model, inputs, draw) for draw in range(JUDGE.draws)))
            rating = JUDGE.joined(inputs, drawn)
        told = {"model": str(model or JUDGE.model), "verdict": str(rating.verdict), "label": target.text}
        told |= JUDGE.told(rating)
        told["certified"] &= model is None or str(model).endswith(f"/{JUDGE.model}")  # another model is another rater
        explanation = "\n\n".join(rating.reasoning)
        value = JUDGE.native(rating)
        if value is None:
            return Score.unscored(reason="unreadable", explanation=explanation, metadata=told)
        return Score(value=value, answer=str(rating.verdict), explanation=explanation, metadata=told)

    return score


@solver
def as_written() -> Solver:
    """Take what stands in an item for the output; nothing is generated."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        written = state.metadata["inputs"][JUDGE.output]
        state.output = ModelOutput.from_content(model="as written", content=written)
        return state

    return solve


@task
def held_out(items: str | None = None) -> Task:
    """Rate items again that people have rated, and tell how often both say the same.

    Args:
        items: File of `{"item_id", "inputs", "label"}`, one a line; the items of the export by default.
    """
    path = Path(items) if items else HERE / "items.jsonl"
    if not path.is_file():
        raise JudgeError(f"{path}: no such file; give -T items=FILE, or export the rater with --corpus")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    samples = [
        Sample(
            id=record["item_id"],
            input="\n\n".join(text for name, text in record["inputs"].items() if name != JUDGE.output) or "-",
            target="" if record.get("label") is None else str(record["label"]),
            metadata={"inputs": record["inputs"]},
        )
        for record in records
    ]
    return Task(MemoryDataset(samples), solver=as_written(), scorer=rater(), metrics=[*OF_SCORES, agreement()])


def _grader() -> Model:
    own = "openai-api/judge" if "JUDGE_BASE_URL" in os.environ else "openai"
    return get_model(role="grader", default=f"{own}/{JUDGE.model}")


async def _draw(model: Model, inputs: dict[str, str], draw: int) -> Completion:
    body = JUDGE.body(inputs, draw)
    config = GenerateConfig(
        temperature=body["temperature"], top_p=body.get("top_p"), max_tokens=body["max_tokens"], seed=body["seed"]
    )
    output = await model.generate([ChatMessageUser(content=body["messages"][0]["content"])], config=config)
    content = output.message.content if output.choices else ""
    parts = [] if isinstance(content, str) else content
    thought = "\n".join(part.reasoning for part in parts if part.type == "reasoning")
    return completion_from(output.completion, thought, str(output.stop_reason))
