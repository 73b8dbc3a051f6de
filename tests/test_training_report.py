"""What several seeds came to, by hand, and curves of two phases on one axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raters.training_report import plot_curves, seeds_summary


def phase(before: float, after: float) -> dict[str, Any]:
    return {
        "dev_before": {"value": before, "figure": "kendall_tau_b", "items": 9},
        "dev": {"value": after, "figure": "kendall_tau_b", "items": 9},
    }


def test_mean_and_spread_over_seeds_by_hand() -> None:
    found = seeds_summary({3: {"sft": phase(0.1, 0.2)}, 4: {"sft": phase(0.1, 0.5)}, 5: {"sft": phase(0.4, 0.5)}})
    assert found["dev"] == {"mean": pytest.approx(0.4), "sd": pytest.approx(0.03**0.5), "values": [0.2, 0.5, 0.5]}
    assert found["dev_before"]["mean"] == pytest.approx(0.2)
    assert found["best_seed"] == 4  # of equals the first
    assert (found["figure"], found["items"]) == ("kendall_tau_b", 9)


def test_one_seed_has_no_spread() -> None:
    assert seeds_summary({0: {"sft": phase(0.1, 0.2)}})["dev"]["sd"] is None


def test_two_phases_are_compared_from_before_the_first_to_behind_the_last() -> None:
    found = seeds_summary({0: {"sft": phase(0.1, 0.2), "dpo": phase(0.2, 0.3)}})
    assert (found["dev_before"]["mean"], found["dev"]["mean"]) == (0.1, 0.3)


def test_curves_of_two_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        "raters.training_report._plot", lambda curves, label, path, title, marker: drawn.update({path.name: curves})
    )
    lines = [
        {"phase": "sft", "step": 0, "dev": {"value": 0.1}},
        {"phase": "sft", "step": 1, "loss": 5.0},
        {"phase": "sft", "step": 2, "loss": 4.0},
        {"phase": "sft", "step": 2, "dev": {"value": 0.2}},
        {"phase": "dpo", "step": 0, "dev": {"value": 0.2}},
        {"phase": "dpo", "step": 1, "loss": 0.7},
        {"phase": "dpo", "step": 1, "dev": {"value": 0.3}},
    ]
    plot_curves({0: lines}, "tau", tmp_path, "title")
    assert drawn["loss.svg"] == {0: [(1, 5.0), (2, 4.0), (3, 0.7)]}
    assert drawn["dev.svg"] == {0: [(0, 0.1), (2, 0.2), (2, 0.2), (3, 0.3)]}


def test_curves_are_files_that_do_not_change(tmp_path: Path) -> None:
    lines = [{"phase": "sft", "step": 1, "loss": 5.0}, {"phase": "sft", "step": 1, "dev": {"value": 0.2}}]
    contents = []
    for _ in range(2):
        plot_curves({0: lines, 1: lines}, "tau", tmp_path, "a $title$")
        contents.append((tmp_path / "loss.svg").read_bytes())
    assert contents[0] == contents[1]
    assert b"<svg" in contents[0]
