"""What `import raters` offers: the stages' work as calls, in a notebook's loop too, with errors in a caller's words."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import raters
from pipelines.infer_traces import main as infer_stage
from pipelines.rate_items import main as rate_stage
from pipelines.refine_guideline import main as refine_stage
from pipelines.score_agreement import main as score_stage
from raters import infer_traces, load_corpus, load_rater, refine_guideline, score_agreement
from raters.inference_options import InferTracesOptions
from raters.models.embedded import EmbeddedModel
from raters.plain_raters import plain_rater
from raters.records import BudgetError, ConfigError, DataError, ModelError
from raters.refinement_calls import RefinementArguments
from raters.refinement_options import RefineGuidelineOptions
from raters.trace_calls import InferenceArguments
from raters.waiting import waited_for
from tests.places import CHECKOUT
from tests.small_corpora import INTERVAL, ORDINAL_3, PAIRWISE, write_corpus
from tests.stage_runs import read

QUICK: Any = {"strategy": "fixed", "k": 4, "limit": 20}


def readme_example() -> str:
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## From Python\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return str(block)


def without_seconds(run: Path) -> list[dict[str, Any]]:
    return [{**line, "seconds": None} for line in read(run / "traces.jsonl")]


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", readme_example()],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The same figures as the demo's, which the stages make.
    assert done.stdout.splitlines()[-1] == "0.377 [0.165, 0.528] 0.581 [0.432, 0.681]"
    assert not list(tmp_path.iterdir())


def test_importing_it_is_light() -> None:
    script = (
        "import raters, sys; dir(raters); print(sorted(set(sys.modules) & set('numpy torch pydantic openai'.split())))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_name_is_there() -> None:
    assert {"load_corpus", "load_rater", "infer_traces", "refine_guideline", "score_agreement"} < set(raters.__all__)
    for name in raters.__all__:
        assert getattr(raters, name).__doc__, name
        assert name in dir(raters)
    with pytest.raises(AttributeError, match="has no attribute 'infer'"):
        raters.infer  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "options"),
    [(InferenceArguments, InferTracesOptions), (RefinementArguments, RefineGuidelineOptions)],
)
def test_arguments_are_the_stages_options(arguments: type, options: Any) -> None:
    for name, hint in get_type_hints(arguments).items():
        assert get_type_hints(options)[name] == hint, name
        assert f"        {name}: " in (arguments.__doc__ or "").replace("\n    ", "\n        "), name


@pytest.mark.slow
def test_the_surface_is_typed(tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text(readme_example() + "\nreveal_type(traces)\nreveal_type(agreement)\nreveal_type(ratings)\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", str(CHECKOUT / "pyproject.toml"), str(script)],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert found == [
        "raters.trace_calls.Traces", "raters.verdict_scores.Agreement", "dict[str, raters.rating.Rating]",
    ]  # fmt: skip
    assert done.returncode == 0, done.stdout
    script.write_text("from raters import infer_traces\ninfer_traces('demo', temprature=1.0)\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", str(CHECKOUT / "pyproject.toml"), str(script)],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert 'Unexpected keyword argument "temprature"' in done.stdout


# --- inferring --------------------------------------------------------------------------------------------


def test_a_call_leaves_what_the_stage_leaves(tmp_path: Path) -> None:
    traces = infer_traces("demo", out=tmp_path / "call", **QUICK)
    asked = ["--strategy", "fixed", "--k", "4", "--limit", "20"]
    assert infer_stage([*asked, "--out", str(tmp_path / "stage")]) == 0
    for name in ("unmatched.jsonl", "summary.json", "rater.yaml", "split.json"):
        call, stage = (tmp_path / who / name for who in ("call", "stage"))
        assert call.read_bytes() == stage.read_bytes(), name
    assert without_seconds(tmp_path / "call") == without_seconds(tmp_path / "stage")
    kept = read(tmp_path / "call" / "traces.jsonl")
    assert len(traces) == len(kept) == len(list(traces))
    first = next(iter(traces))
    assert (first.item_id, first.label, first.verdict, first.reasoning) == tuple(
        kept[0][name] for name in ("item_id", "label", "verdict", "trace")
    )
    assert traces.coverage == len({line["item_id"] for line in kept}) / 20
    assert "Kept" in str(traces)
    with pytest.raises(AttributeError):
        traces.folder = tmp_path  # type: ignore[misc]
    # Either goes on with the other's run.
    assert infer_stage([*asked, "--limit", "25", "--out", str(tmp_path / "call")]) == 0
    assert len(read(tmp_path / "call" / "candidates.jsonl")) == 100
    again = infer_traces(load_corpus("demo"), out=tmp_path / "call", **{**QUICK, "limit": 30})
    assert len(read(again.folder / "candidates.jsonl")) == 120


def test_without_a_folder_the_files_go_with_the_result() -> None:
    traces = infer_traces("demo", **QUICK)
    folder = traces.folder
    assert (folder / "candidates.jsonl").exists()
    del traces
    gc.collect()
    assert not folder.exists()


def test_in_a_loop_that_runs_already_and_awaited(tmp_path: Path) -> None:
    async def notebook() -> None:
        here = infer_traces("demo", out=tmp_path / "a", **QUICK)  # a cell that does not await
        there = await raters.infer_traces_async("demo", out=tmp_path / "b", **QUICK)
        assert list(here) == list(there)
        options: Any = {"max_proposals": 1, "resamples": 200, "draws": 1, "dev_limit": 20, "test": False}
        # Traces of 20 items need not have every label; those of 60 do.
        more = await raters.infer_traces_async("demo", out=tmp_path / "a", **{**QUICK, "limit": 60})
        refined = await raters.refine_guideline_async(more, out=tmp_path / "c", **options)
        async with load_rater(refined.raters["embedded"]) as rater:
            ratings = await rater.rate_corpus_async(load_corpus("demo"), "dev", draws=2)
            assert ratings == rater.rate_corpus(load_corpus("demo"), "dev", draws=2)
            inputs = load_corpus("demo").item(0).inputs
            assert await rater.rate_async(inputs) == rater.rate(inputs)
            assert await rater.rate_many_async([inputs] * 2) == rater.rate_many([inputs] * 2)
        one = score_agreement("demo", {"a": ratings}, resamples=200)
        assert one == await raters.score_agreement_async("demo", {"a": ratings}, resamples=200)

    asyncio.run(notebook())


def test_cancelled_it_keeps_what_was_drawn_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = EmbeddedModel.complete
    calls = 0

    async def slow(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 30:
            await asyncio.sleep(60)
        return await whole(self, *arguments)

    monkeypatch.setattr(EmbeddedModel, "complete", slow)

    async def interrupted() -> None:
        task = asyncio.create_task(raters.infer_traces_async("demo", out=tmp_path / "run", concurrency=4, **QUICK))
        while calls <= 30:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    drawn = len(read(tmp_path / "run" / "candidates.jsonl"))
    assert manifest["status"] == "stopped"
    assert 20 < drawn <= 30
    monkeypatch.setattr(EmbeddedModel, "complete", whole)
    infer_traces("demo", out=tmp_path / "run", **QUICK)
    assert infer_stage(["--strategy", "fixed", "--k", "4", "--limit", "20", "--out", str(tmp_path / "other")]) == 0
    assert without_seconds(tmp_path / "run") == without_seconds(tmp_path / "other")


def test_an_interrupted_wait_ends_its_work() -> None:
    ended = threading.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)  # what it does to clean up is waited for
            ended.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            waited_for(work())
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.is_set()


def test_progress_is_told_in_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raters.trace_calls._SECONDS_BETWEEN_LINES", 0.0)
    lines: list[str] = []
    infer_traces("demo", progress=lines.append, **QUICK)
    assert re.fullmatch(r"20 of 20 items, accepted [\d.]+ % of labels, [\d,]+ tokens, \$0\.00", lines[-1])


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"k": 0}, ConfigError, "k 0: must be greater than or equal to 1"),
        ({"temprature": 1.0}, ConfigError, "argument temprature: unknown; did you mean temperature?"),
        ({"top_p": True}, ConfigError, "top_p True: must be a number"),
        ({"strategy": "slow"}, ConfigError, "strategy 'slow': must be 'adaptive' or 'fixed'"),
        ({"keep": "all", "strategy": "adaptive"}, ConfigError, "give strategy fixed"),
        ({"model": "gpt-5"}, ConfigError, "model 'gpt-5'"),
        ({"dimension": "tone"}, ConfigError, "dimension tone: not in corpus demo"),
        ({"corpus": "nowhere"}, DataError, "corpus nowhere: no such folder"),
        ({"base_url": "http://localhost:1/v1"}, ConfigError, "base_url http://localhost:1/v1: is for openai/<name>"),
        ({"max_total_tokens": 1}, BudgetError, "max_total_tokens 1"),
        ({"model": "openai/x", "base_url": "http://127.0.0.1:9/v1", "max_retries": 0}, ModelError, "127.0.0.1:9"),
    ],
)
def test_errors_are_in_the_words_of_a_call(
    arguments: dict[str, Any], error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as found:
        infer_traces(**{"corpus": "demo", **arguments})
    assert said in str(found.value)
    assert "--" not in str(found.value)
    assert isinstance(found.value, raters.JudgeseyeError)


def test_a_notebook_shows_a_line_of_what_it_has(tmp_path: Path) -> None:
    corpus = load_corpus(write_corpus(tmp_path, {"i0": {"ann": 1, "bob": 2}, "i1": {"ann": 3}}, ORDINAL_3))
    assert repr(corpus) == "<Corpus small: 2 items, 2 annotators; quality on 1..3>"
    path = tmp_path / "rater.yaml"
    plain_rater("embedded", corpus, corpus.dimension(None), None).write(path)
    with load_rater(path) as rater:
        assert repr(rater) == "<Rater of quality on 1..3: embedded>"
        with pytest.raises(ConfigError, match="split 'tset': give one of train, dev, test, all"):
            rater.rate_corpus(corpus, "tset")  # type: ignore[arg-type]


# --- refining ---------------------------------------------------------------------------------------------


def test_refining_leaves_what_the_stage_leaves(tmp_path: Path) -> None:
    traces = infer_traces("demo", out=tmp_path / "traces", strategy="fixed", k=16)
    lines: list[str] = []
    few: Any = {"max_proposals": 2, "resamples": 200, "draws": 2, "dev_limit": 30}
    refined = refine_guideline(traces, out=tmp_path / "call", progress=lines.append, **few)
    asked = "--max-proposals 2 --resamples 200 --draws 2 --dev-limit 30".split()
    assert refine_stage(["--traces", str(tmp_path / "traces"), *asked, "--out", str(tmp_path / "stage")]) == 0
    for name in (
        "guideline.md",
        "diff.md",
        "provenance.jsonl",
        "proposals.jsonl",
        "summary.json",
        "raters/embedded.yaml",
    ):
        assert (tmp_path / "call" / name).read_bytes() == (tmp_path / "stage" / name).read_bytes(), name
    assert refined.guideline == (tmp_path / "stage" / "guideline.md").read_text()
    assert refined.changed == (refined.guideline != refined.original)
    assert [line for line in lines if line.startswith("proposal 1 ")]
    assert "proposals:" in str(refined)
    assert list(refined.raters) == ["embedded"]
    again = refine_guideline(tmp_path / "traces", raters=[refined.raters["embedded"]], **few)
    assert again.original == refined.original
    with pytest.raises(ConfigError, match=r"^rater: none; give a model"):
        refine_guideline(traces, raters=[])
    with pytest.raises(ConfigError, match="writer embedded: is a rater and cannot write"):
        refine_guideline(traces, writer="embedded")
    with pytest.raises(DataError, match="traces nowhere: holds no manifest"):
        refine_guideline("nowhere")


# --- scoring ----------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_stages(tmp_path: Path) -> None:
    rated = ["--model", "embedded", "--draws", "3", "--split", "dev", "--out", str(tmp_path / "rated")]
    assert rate_stage(rated) == 0
    path = tmp_path / "rated" / "ratings.jsonl"
    assert score_stage(["--ratings", str(path), "--resamples", "200", "--out", str(tmp_path / "scores")]) == 0
    stage = json.loads((tmp_path / "scores" / "scores.json").read_text())
    corpus = load_corpus("demo")
    with load_rater(tmp_path / "rated" / "rater.yaml") as rater:
        ratings = rater.rate_corpus(corpus, "dev")
    lines: dict[str, list[Any]] = {}
    for record in read(path):
        lines.setdefault(record["item_id"], []).append((record["draw"], record["verdict"]))
    verdicts = {item_id: [verdict for _, verdict in sorted(draws)] for item_id, draws in lines.items()}
    for said in (ratings, verdicts, path, str(path)):
        assert score_agreement(corpus, {"rated": said}, resamples=200).scores == stage
    found = score_agreement("demo", {"a": ratings, "b": dict.fromkeys(ratings, 3)}, resamples=200)
    tau = stage["raters"][0]["agreement"]["kendall_tau_b"]
    assert found.raters == ("a", "b")
    figure = found.figure("kendall_tau_b", "a")
    assert (figure.value, figure.low, figure.high) == (tau["value"], tau["low"], tau["high"])
    assert str(found.figure("kendall_tau_b", "b")) == "-"
    assert found.ceiling("kendall_tau_b").value == stage["human"]["ceiling"]["kendall_tau_b"]["value"]
    found.write_report(tmp_path / "report.html")
    assert "Kendall" in (tmp_path / "report.html").read_text()
    for wrong in (lambda: found.figure("tau", "a"), lambda: found.figure("kendall_tau_b"), lambda: found.ceiling("x")):
        with pytest.raises(ConfigError):
            wrong()


def test_a_pair_tells_its_order(tmp_path: Path) -> None:
    inputs = {f"i{n}": {"left": f"Left text {n} is longer, I think.", "right": f"Right {n}."} for n in range(60)}
    corpus = load_corpus(write_corpus(tmp_path, {one: {"ann": "AB"[n % 2]} for n, one in enumerate(inputs)}, PAIRWISE,
                                      inputs=inputs))  # fmt: skip
    assert rate_stage(["--corpus", str(tmp_path), "--model", "embedded", "--draws", "4", "--split", "all", "--out",
                       str(tmp_path / "rated")]) == 0  # fmt: skip
    with load_rater(tmp_path / "rated" / "rater.yaml") as rater:
        ratings = rater.rate_corpus(corpus, "all")
    call = score_agreement(corpus, {"rated": ratings}, resamples=200).scores
    stage = score_agreement(corpus, {"rated": tmp_path / "rated" / "ratings.jsonl"}, resamples=200).scores
    assert call == stage
    assert call["raters"][0]["position"]["decisions"] > 0


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "rater x: no verdicts"),
        (3, "rater x: 3 is no mapping"),
        ([1, 2], "rater x: [1, 2] is no mapping"),
        ({"gone": 1}, "rater x: item 'gone' is not in corpus small"),
        ({"i0": 7}, "rater x: item 'i0': verdict 7 is not on scale 1..3"),
        ({"i0": []}, "rater x: item 'i0': 0 verdicts"),
        ({"i0": True}, "rater x: item 'i0': verdict True is no label"),
        ({"i0": {"a": 1}}, "rater x: item 'i0': verdict {'a': 1} is no label"),
    ],
)
def test_verdicts_that_are_none(tmp_path: Path, said: Any, message: str) -> None:
    write_corpus(tmp_path, {f"i{n}": {"ann": 1 + n % 3, "bob": 1 + n % 2} for n in range(9)}, ORDINAL_3)
    with pytest.raises(DataError) as error:
        score_agreement(tmp_path, {"x": said})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"labels": "meen"}, "labels 'meen': must be 'median', 'majority', 'mean' or 'paper'"),
        ({"aggregate": "meen"}, "aggregate 'meen': must be 'mean', 'median' or 'majority'"),
        ({"resamples": -3}, "resamples -3: must be greater than or equal to 200"),
        ({"seed": -1}, "seed -1: must be greater than or equal to 0"),
    ],
)
def test_scoring_is_asked_within_bounds(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    write_corpus(tmp_path, {f"i{n}": {"ann": 1 + n % 3, "bob": 1 + n % 2} for n in range(9)}, ORDINAL_3)
    with pytest.raises(ConfigError, match=re.escape(said)):
        score_agreement(tmp_path, {"x": {"i0": 1, "i1": 2}}, **arguments)


def test_scoring_needs_raters_of_the_same_items(tmp_path: Path) -> None:
    corpus = load_corpus(write_corpus(tmp_path, {f"i{n}": {"ann": 10 * n} for n in range(9)}, INTERVAL))
    with pytest.raises(ConfigError, match="raters: none"):
        score_agreement(corpus, {})
    with pytest.raises(DataError, match="rated different items"):
        score_agreement(corpus, {"a": {"i0": 1.0}, "b": {"i1": 1.0}})
    found = score_agreement(corpus, {"a": {f"i{n}": 10.0 * n + 1 if n else None for n in range(9)}}, resamples=200)
    assert found.scores["raters"][0]["coverage"] == pytest.approx(8 / 9)
    assert found.figure("mae").value == pytest.approx(1.0)
