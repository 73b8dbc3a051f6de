"""Speed and memory of intervals for a million ratings. Each prints its figures; run with `-m benchmark -s`."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import krippendorff
import numpy as np
import pytest
from numpy.typing import NDArray

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

ITEMS, ANNOTATORS, RESAMPLES = 200_000, 5, 2000
MOST_SECONDS = 60.0
MOST_MEMORY = 2 * 1024**3
LEAST_RATIO = 50.0

SCRIPT = """
import json, re, sys, time
import numpy as np
from raters.bootstrap import agreement_sums, bootstrap
from raters.corpus_files import AnnotationTable
from raters.reliability import alpha_sums
from tests.benchmarks.test_scoring import ITEMS, ANNOTATORS, RESAMPLES, million_ratings

scale_type, num_groups = sys.argv[1], int(sys.argv[2])
ratings, verdicts = million_ratings(scale_type)
gold = np.sort(ratings, axis=1)[:, ANNOTATORS // 2]
items, annotators = np.repeat(np.arange(ITEMS), ANNOTATORS), np.tile(np.arange(ANNOTATORS), ITEMS)
groups = np.arange(ITEMS) % num_groups
began = time.monotonic()
table = AnnotationTable(items, annotators, ratings.ravel())
sums = {
    "rater": agreement_sums(gold, verdicts, groups, scale_type),
    "people": alpha_sums(table, groups, scale_type),
}
found = bootstrap(sums, RESAMPLES)
wanted = [("people", "krippendorff_alpha"), ("rater", "kendall_tau_b"), ("rater", "icc3_1"), ("rater", "mse")]
intervals = {" ".join(key): [getattr(found.interval(*key), end) for end in ("value", "low", "high")] for key in wanted}
seconds = time.monotonic() - began
# Not ru_maxrss, which begins with what the process that forked this one had.
memory = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps({"seconds": seconds, "memory": memory, "intervals": intervals}))
"""


def million_ratings(scale_type: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (items, annotators) labels and (items,) verdicts, of five labels or of 0 to 100."""
    chance = np.random.default_rng(0)
    common = chance.normal(size=ITEMS)
    ratings = common[:, None] + chance.normal(size=(ITEMS, ANNOTATORS))
    verdicts = common + chance.normal(size=ITEMS)
    if scale_type == "ordinal":
        cuts = [-1.2, -0.4, 0.4, 1.2]
        return np.digitize(ratings, cuts).astype(float), np.digitize(verdicts, cuts).astype(float)
    return np.clip(np.round(50 + 15 * ratings), 0, 100), np.clip(np.round(50 + 15 * verdicts), 0, 100)


def seconds_of_the_loop() -> float:
    """Return how long the krippendorff package takes for alpha, and nothing else, of one resample: best of three."""
    ratings, _ = million_ratings("ordinal")
    chance = np.random.default_rng(0)
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        krippendorff.alpha(ratings[chance.integers(ITEMS, size=ITEMS)].T, level_of_measurement="ordinal")
        seconds.append(time.monotonic() - began)
    return min(seconds)


@pytest.mark.parametrize(
    ("scale_type", "num_groups"), [("ordinal", ITEMS), ("ordinal", 1000), ("interval", ITEMS), ("interval", 1000)]
)
def test_a_million_ratings(scale_type: str, num_groups: int) -> None:
    """Alpha, tau-b, ICC and MSE with intervals; with five labels beside a loop over resampled matrices."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, scale_type, str(num_groups)], capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout)
    print(
        f"\n{scale_type}, {ITEMS * ANNOTATORS:,} ratings in {num_groups:,} groups, {RESAMPLES:,} resamples: "
        f"{measured['seconds']:.1f} s, peak {measured['memory'] / 1e6:.0f} MB"
    )
    for name, (value, low, high) in measured["intervals"].items():
        print(f"  {name}: {value:.4f} [{low:.4f}, {high:.4f}]")
        assert low < value < high
    assert measured["seconds"] < MOST_SECONDS
    assert measured["memory"] < MOST_MEMORY
    if scale_type == "ordinal":
        seconds = seconds_of_the_loop()
        ratio = seconds * RESAMPLES / measured["seconds"]
        print(f"  the loop takes {seconds:.2f} s a resample, for all {RESAMPLES:,} {ratio:.0f} times as long")
        assert ratio >= LEAST_RATIO
