"""What the scripts of evidence rest on: a figure of items that the rater has not seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.rate_items import main as rate_items
from tests.evidence.arms import figure_of
from tests.places import DEMO


def test_no_figure_of_items_that_were_seen(tmp_path: Path) -> None:
    given = ["--corpus", str(DEMO), "--limit", "12"]
    assert rate_items(["--model", "embedded", *given, "--out", str(tmp_path / "o")]) == 0
    assert -1 <= figure_of(DEMO, "helpfulness", tmp_path / "o" / "ratings.jsonl") <= 1
    again = ["--rater", str(tmp_path / "o" / "rater.yaml"), "--split-seed", "1", "--out", str(tmp_path / "p")]
    assert rate_items([*given, *again]) == 0
    with pytest.raises(ValueError, match="were seen in making the rater"):
        figure_of(DEMO, "helpfulness", tmp_path / "p" / "ratings.jsonl")
