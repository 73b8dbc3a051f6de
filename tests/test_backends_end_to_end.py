"""The same corpus through every backend: records of one shape, and no draw lost or doubled by kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.local_servers import serving_transformers
from tests.small_corpora import DIMENSION, ORDINAL_3, SHORT_PROMPT, write_corpus
from tests.stage_runs import run_here
from tests.tiny_models import make_rater

ITEMS = 12
DRAWS = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {f"i{number}": {"a": 1 + number % 3, "b": 1 + number % 3} for number in range(ITEMS)}
    return write_corpus(tmp_path_factory.mktemp("corpus") / "small", labels, ORDINAL_3)


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompt") / "short.md"
    path.write_text(SHORT_PROMPT)
    return path


@pytest.fixture(scope="module")
def rater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    asked = [
        f"Say how good the text is.\nLabels: 1, 2, 3 (from lowest to highest)\ntext: This is the text of i{number}.\n"
        for number in range(ITEMS)
    ]
    return make_rater(tmp_path_factory.mktemp("model") / "rater", asked, [1, 2, 3])


@pytest.fixture(scope="module")
def server(rater: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_transformers(rater, tmp_path_factory.mktemp("serve") / "log.txt") as url:
        yield url


def command(corpus: Path, out: Path, *flags: str) -> list[str]:
    shared = ["--corpus", str(corpus), "--split", "all", "--strategy", "fixed", "--k", str(DRAWS), "--out", str(out)]
    return [sys.executable, "-m", "pipelines.infer_traces", *shared, *flags]


def run(arguments: list[str]) -> None:
    """Run such a command in this process, where torch is loaded already."""
    done = run_here("infer_traces", *arguments[3:])
    assert done.status == 0, done.err


def run_until_killed(arguments: list[str], journal: Path, lines: int) -> bytes:
    """Kill -9 a run once its journal has a number of lines; return what the journal held then."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": ""}
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return journal.read_bytes()


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def kinds(record: dict[str, Any]) -> dict[str, str]:
    """Return the type of every field, with those that may be missing by design taken out."""
    return {name: type(value).__name__ for name, value in record.items() if name != "verdict"}


@pytest.mark.parametrize("backend", ["hf", pytest.param("openai", marks=pytest.mark.slow)])
def test_records_have_one_shape_and_a_killed_run_goes_on(
    backend: str, corpus: Path, prompt: Path, rater: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    flags = ["--prompt", str(prompt), "--max-tokens", "48", "--concurrency", "2"]
    if backend == "hf":
        flags += ["--model", f"hf/{rater}", "--batch-size", "2"]
    else:
        flags += ["--model", f"openai/{rater}", "--base-url", request.getfixturevalue("server")]
    out = tmp_path / "run"
    before = run_until_killed(command(corpus, out, *flags), out / "candidates.jsonl", lines=6)
    assert before.count(b"\n") < ITEMS * DRAWS, "killed too late to show anything"

    run(command(corpus, out, *flags))
    after = (out / "candidates.jsonl").read_bytes()
    whole_lines = before[: before.rfind(b"\n") + 1]
    assert after.startswith(whole_lines)
    drawn = records(out / "candidates.jsonl")
    pairs = [(record["item_id"], record["draw"]) for record in drawn]
    assert sorted(pairs) == sorted((f"i{item}", draw) for item in range(ITEMS) for draw in range(DRAWS))

    # The tiny rater has learned the form of an answer, so nearly every verdict can be read, and chance accepts 1 in 3.
    readable = [record for record in drawn if record["verdict"] is not None]
    assert len(readable) > 0.8 * len(drawn)
    kept = records(out / "traces.jsonl")
    assert kept
    learned = [record["trace"].strip() in {"The argument names a reason.", "The text leaves out the main point."}
               for record in kept]  # fmt: skip
    assert sum(learned) >= 0.5 * len(kept)  # it samples: now and then it garbles a sentence
    for record in kept:
        assert record["trace"].strip()
        assert record["verdict"] == record["label"] == 1 + int(record["item_id"][1:]) % 3
        assert record["completion"][0]["content"].endswith(f"<rating>{record['label']}</rating>")

    run(command(corpus, tmp_path / "embedded"))
    reference = records(tmp_path / "embedded" / "candidates.jsonl")[0]
    assert reference["dimension"] == DIMENSION
    assert all(list(record) == list(reference) for record in drawn)
    assert all(kinds(record) == kinds(reference) for record in drawn)
    (traced,) = {tuple(record) for record in records(tmp_path / "embedded" / "traces.jsonl")}
    assert all(tuple(record) == traced for record in kept)


@pytest.mark.slow
def test_a_killed_run_of_hf_keeps_what_an_unharmed_run_keeps(
    corpus: Path, prompt: Path, rater: Path, tmp_path: Path
) -> None:
    flags = ["--prompt", str(prompt), "--max-tokens", "48", "--model", f"hf/{rater}"]
    killed, unharmed = tmp_path / "killed", tmp_path / "unharmed"
    run_until_killed(command(corpus, killed, *flags, "--batch-size", "3"), killed / "candidates.jsonl", lines=6)
    run(command(corpus, killed, *flags, "--batch-size", "3"))
    run(command(corpus, unharmed, *flags, "--batch-size", "16"))
    # Batches differ, seeds do not: the same traces but for how long they took.
    untimed = [
        [{**record, "seconds": None} for record in records(folder / "traces.jsonl")] for folder in (killed, unharmed)
    ]
    assert untimed[0] == untimed[1]
