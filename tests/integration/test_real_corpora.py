"""infer_traces on three real corpora, which are not part of the project; run with `-m real_corpora`.

The folder that holds ukpconvarg1, realsumm and argquality_novice is $JUDGESEYE_CORPORA, or ../shared/data beside the
project. A missing folder is a failure, not a skip: who asks for these tests wants them run.
"""

import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raters.contrasts import SIGNIFICANT_Z, RuleContrast, contrast_rules

pytestmark = [pytest.mark.real_corpora, pytest.mark.timeout(900)]

CORPORA = Path(os.environ.get("JUDGESEYE_CORPORA", Path(__file__).parents[3] / "shared" / "data"))
DIMENSIONS = {"ukpconvarg1": "more_convincing", "realsumm": "present", "argquality_novice": "clarity"}
SEEDS = (0, 1, 2)
PERMUTATIONS = 10
MOST_SECONDS = 30.0


def infer(corpus: str, out: Path, *flags: str) -> dict[str, Any]:
    """Run the stage as a user does and return its summary, with its `seconds` and what it printed."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pipelines.infer_traces", "--corpus", str(CORPORA / corpus)]
    command += ["--dimension", DIMENSIONS[corpus], "--k", "16", "--out", str(out), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return {**summary, "seconds": time.monotonic() - began, "printed": done.stdout}


@cache
def all_draws(folder: Path, corpus: str, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return (candidates, summary) of a run with all 16 draws of every training item."""
    out = folder / f"{corpus}_{seed}"
    summary = infer(corpus, out, "--strategy", "fixed", "--seed", str(seed), "--split-seed", str(seed))
    with (out / "candidates.jsonl").open() as lines:
        return [json.loads(line) for line in lines], summary


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


def rules(candidates: list[dict[str, Any]], permutation_seed: int | None = None) -> list[RuleContrast]:
    """Return the significant rules, with labels exchanged among items if a permutation is asked for."""
    labels = {record["item_id"]: record["label"] for record in candidates}
    places = {item_id: place for place, item_id in enumerate(labels)}
    values = list(labels.values())
    if permutation_seed is not None:
        order = np.random.default_rng(permutation_seed).permutation(len(values))
        values = [values[place] for place in order]
    frequency = {label: values.count(label) / len(values) for label in values}
    draws = (
        (place, record["trace"], record["verdict"] == values[place], frequency.get(record["verdict"], 0.0))
        for record in candidates
        for place in [places[record["item_id"]]]
    )
    return [rule for rule in contrast_rules(draws, len(places)) if abs(rule.z) > SIGNIFICANT_Z]


@pytest.mark.parametrize("corpus", DIMENSIONS)
def test_a_corpus_takes_seconds_and_prints_utilisation_beside_its_null(corpus: str, tmp_path: Path) -> None:
    summary = infer(corpus, tmp_path / "run")
    assert summary["seconds"] < MOST_SECONDS
    assert "permuted labels" in summary["printed"]
    assert [point["k"] for point in summary["utilisation"]] == [1, 2, 4, 8, 16]
    # Two or three labels and 16 guesses: nearly every label is matched, and nearly every permuted one too.
    assert summary["utilisation"][-1]["share"] > 0.95
    assert summary["utilisation"][-1]["null"] > 0.95
    assert summary["unreadable"] == 0


@pytest.mark.parametrize("corpus", DIMENSIONS)
def test_the_null_of_an_adaptive_run_is_that_of_all_draws(corpus: str, folder: Path, tmp_path: Path) -> None:
    _, fixed = all_draws(folder, corpus, 0)
    adaptive = infer(corpus, tmp_path / "run", "--seed", "0", "--split-seed", "0")
    assert adaptive["null_items"] == 50
    for point, counted in zip(adaptive["utilisation"], fixed["utilisation"], strict=True):
        assert point["share"] == counted["share"]
        # 15 comparisons in all: three standard deviations of the estimate let one in 25 such tests fail.
        assert abs(point["null"] - counted["null"]) <= 3 * point["null_sd"]


@pytest.mark.parametrize(
    ("corpus", "wanted"),
    [("ukpconvarg1", {"length helps", "richness helps"}), ("realsumm", {"bigram_overlap helps", "overlap helps"})],
)
def test_accepted_draws_tell_what_people_go_by(corpus: str, wanted: set[str], folder: Path) -> None:
    for seed in SEEDS:
        found = rules(all_draws(folder, corpus, seed)[0])
        assert wanted <= {str(rule) for rule in found}, f"seed {seed}: {[(str(r), round(r.z, 1)) for r in found]}"


@pytest.mark.parametrize("corpus", DIMENSIONS)
def test_permuted_labels_tell_nothing(corpus: str, folder: Path) -> None:
    runs = [rules(all_draws(folder, corpus, seed)[0], p) for seed in SEEDS for p in range(PERMUTATIONS)]
    false_rules = [rule for run in runs for rule in run]
    # 30 runs of 20 statistics with P(|z| > 3) = 0.0027 let 1.6 through on average; 6 or more have a chance of 0.6 %.
    assert len(false_rules) < 6, [(str(rule), round(rule.z, 1)) for rule in false_rules]
    assert all(abs(rule.z) < 4.5 for rule in false_rules)
