"""What the scripts of evidence rest on: a figure of items that the rater has not seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.rate_items import main as rate_items
from raters.influence.adamw import AdamWStep
from raters.influence.trajectory import RecordedStep
from tests.evidence.arms import figure_of
from tests.evidence.influence import at_random, some_rows
from tests.places import DEMO


def test_no_figure_of_items_that_were_seen(tmp_path: Path) -> None:
    given = ["--corpus", str(DEMO), "--limit", "12"]
    assert rate_items(["--model", "embedded", *given, "--out", str(tmp_path / "o")]) == 0
    assert -1 <= figure_of(DEMO, "helpfulness", tmp_path / "o" / "ratings.jsonl") <= 1
    again = ["--rater", str(tmp_path / "o" / "rater.yaml"), "--split-seed", "1", "--out", str(tmp_path / "p")]
    assert rate_items([*given, *again]) == 0
    with pytest.raises(ValueError, match="were seen in making the rater"):
        figure_of(DEMO, "helpfulness", tmp_path / "p" / "ratings.jsonl")


def test_the_random_control_chooses_rows_anew_at_every_step() -> None:
    """As many of each step, and of all steps together nearly all: of 16 rows by halves one in 65,536 is never drawn."""
    settings, chosen = AdamWStep(1, 1e-3, 0.9, 0.999, 1e-8, None, 1.0), []
    for number in range(1, 17):
        step = RecordedStep(replace(settings, number=number), list(range(8)), [1 / 8] * 8)
        weights = some_rows(at_random(0), 0.5)(step)
        assert sorted(weights.tolist()) == [0.0] * 4 + [2.0] * 4  # those left average: 2 x 1/8 x 4 = 1
        chosen.append(tuple(weights.nonzero().flatten().tolist()))
        again = some_rows(at_random(0), 0.5)(step)
        assert again.tolist() == weights.tolist()
    assert {place for places in chosen for place in places} == set(range(8))
    assert len(set(chosen)) > 8
