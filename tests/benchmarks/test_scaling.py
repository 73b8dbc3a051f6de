"""What an item costs among many, what a second worker brings, how a long journal is resumed; run with -m benchmark -s.

FULL=1 in the environment makes it the full size, up to 100,000 items and a journal of 1.6 million draws.

What grows with the items beside the draws themselves: reading the corpus, the ledger, the journal, the results. So the
figure is the processor time of all a run does for each further item, which a start of two seconds does not dilute.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import raters.checkpoints as checkpoints
from raters.checkpoints import Checkpoint
from raters.corpora import load_corpus
from raters.gold import gold_labels
from raters.journal import Journal, to_line
from raters.ledger import Ledger
from tests.benchmarks.test_throughput import write_corpus
from tests.places import CHECKOUT
from tests.small_corpora import ScriptedModel, rating, small_corpus, start_run

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

FULL = os.environ.get("FULL") == "1"
ITEMS = (1_000, 10_000, 100_000) if FULL else (1_000, 5_000, 25_000)
DRAWS = 4
MOST_GROWTH = 1.5
"""Of what a further item costs, where the aim is 1.1; other programs on the machine add to some of the runs alone."""
MOST_COST_OF_A_SECOND_WORKER = 0.5
"""In processor time: reading the corpus once more, and the merged journal. Wall time depends on what else runs."""
FULL_ITEMS, FULL_DRAWS, MOST_RESUME_SECONDS = 1_000_000, 16, 60.0


def run(corpus: Path, out: Path, workers: int = 1, draws: int = DRAWS) -> tuple[float, float]:
    """Make every draw of a corpus with the embedded model; return (processor seconds, wall seconds)."""
    command = [sys.executable, "-m", "pipelines.infer_traces", "--corpus", str(corpus), "--split", "all"]
    command += ["--strategy", "fixed", "--k", str(draws), "--out", str(out), "--workers", str(workers)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds


def test_an_item_costs_the_same_among_many(tmp_path: Path) -> None:
    corpora = {items: write_corpus(tmp_path / f"corpus{items}", items) for items in ITEMS}
    # The least of some, since a busy machine only ever adds.
    seconds = {
        items: min(run(corpora[items], tmp_path / f"run{items}.{turn}")[0] for turn in range(tries))
        for items, tries in zip(ITEMS, (5, 3, 2), strict=True)
    }
    costs = [(seconds[more] - seconds[fewer]) / (more - fewer) for fewer, more in pairwise(ITEMS)]
    for items in ITEMS:
        print(
            f"\n{items:>7,} items: {seconds[items]:.1f} s of CPU, {items * DRAWS / seconds[items]:,.0f} draws/s of CPU"
        )
    shown = ", ".join(f"{1000 * cost:.2f} ms" for cost in costs)
    print(f"a further item costs {shown}: {costs[1] / costs[0]:.2f} x beyond {ITEMS[1]:,}")
    assert costs[1] <= costs[0] * MOST_GROWTH


def test_a_second_worker(tmp_path: Path) -> None:
    items, draws = 5_000, 16
    corpus = write_corpus(tmp_path / "corpus", items)
    cpu, wall = {}, {}
    for workers in (1, 2):
        tries = [run(corpus, tmp_path / f"run{workers}.{turn}", workers, draws) for turn in range(2)]
        cpu[workers], wall[workers] = (min(seconds) for seconds in zip(*tries, strict=True))
        rate = items * draws / wall[workers]
        print(f"\n{workers} worker(s): {rate:,.0f} draws/s, {cpu[workers]:.1f} s of CPU in {wall[workers]:.1f} s")
    print(
        f"2 workers: {wall[1] / wall[2]:.2f} x the draws/s of 1 on {os.cpu_count()} cores, for {cpu[2] / cpu[1]:.2f} x "
        "the CPU; start, merge and results included"
    )
    assert cpu[2] <= (1 + MOST_COST_OF_A_SECOND_WORKER) * cpu[1]


def test_a_resume_of_a_long_journal(tmp_path: Path) -> None:
    """A part of a million items with 16 draws each; both ways are linear, and what all of them would take is said."""
    sample = small_corpus(tmp_path / "sample", {"i0": {"a": 3}})
    drawn = start_run(sample, tmp_path / "sample.jsonl", ScriptedModel(lambda prompt, seed: rating(3)), k=1)
    drawn.draw()
    (record,) = drawn.records()
    items = FULL_ITEMS // (10 if FULL else 50)
    times = FULL_ITEMS // items
    corpus = load_corpus(write_corpus(tmp_path / "corpus", items))
    labels = gold_labels(corpus, "quality", "median")
    path = tmp_path / "candidates.jsonl"
    with path.open("wb") as file:
        for item in range(items):
            label = int(labels.numbers[item]) + 1
            fixed = {**record, "item_id": corpus.item_ids[item], "dimension": "quality", "label": label}
            file.writelines(
                to_line({**fixed, "draw": draw, "verdict": draw % 5 + 1, "accepted": draw % 5 + 1 == label})
                for draw in range(FULL_DRAWS)
            )

    def resumed() -> tuple[Ledger, Checkpoint, float]:
        ledger = Ledger(corpus, corpus.dimension(None), labels, np.arange(items), {"first": FULL_DRAWS})
        checkpoint = Checkpoint(Journal(path), ledger)
        began = time.monotonic()
        ledger.replay(checkpoint.recover())
        return ledger, checkpoint, time.monotonic() - began

    read, checkpoint, by_lines = resumed()
    assert path.stat().st_size > checkpoints.LEAST_BYTES
    checkpoint.close()
    restored, _, by_checkpoint = resumed()
    assert restored.totals == read.totals
    for name in ("matched_draw", "matched_offset"):
        np.testing.assert_array_equal(getattr(restored, name), getattr(read, name))
    held = sum(array.nbytes for array in restored.state()[0].values())
    memory = times * held / 2**20
    print(
        f"\n{items * FULL_DRAWS:,} draws in {path.stat().st_size / 1e9:.1f} GB: read in {by_lines:.1f} s, from the "
        f"checkpoint in {by_checkpoint:.2f} s, {by_lines / by_checkpoint:,.0f} x as fast; for {FULL_ITEMS:,} items "
        f"that is {times * by_lines:.0f} s and {times * by_checkpoint:.1f} s, and {memory:.0f} MiB of ledger"
    )
    assert times * by_checkpoint <= MOST_RESUME_SECONDS
