"""What a training run came to: its summary over seeds, and its curves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raters.journal import Record
from raters.plots import new_plot, save_plot


def seeds_summary(results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and spread over seeds of the dev figure, before training and of the chosen checkpoint.

    Args:
        results: By seed, what each phase came to, in their order.

    Returns:
        `best_seed`, of equals the first one; `dev` and `dev_before` with mean, and sd over seeds (None for one seed).
    """
    last = {seed: list(phases.values())[-1] for seed, phases in results.items()}
    first = {seed: next(iter(phases.values())) for seed, phases in results.items()}
    after = {seed: phase["dev"]["value"] for seed, phase in last.items()}
    return {
        "figure": next(iter(last.values()))["dev"]["figure"],
        "items": next(iter(last.values()))["dev"]["items"],
        "best_seed": max(after, key=lambda seed: after[seed]),
        "dev_before": _spread([phase["dev_before"]["value"] for phase in first.values()]),
        "dev": _spread(list(after.values())),
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "values": list(values),
    }


def plot_curves(runs: Mapping[int, Sequence[Record]], figure: str, folder: Path, title: str) -> None:
    """Draw loss and dev agreement over the steps of each seed, as `loss.svg` and `dev.svg`.

    Args:
        runs: Lines of metrics.jsonl by seed; the phases follow each other on the axis.
        figure: Name of the dev figure, for the axis.
        folder: Where to write.
        title: Of both.
    """
    loss = {seed: [(at, line["loss"]) for at, line in _placed(lines) if "loss" in line] for seed, lines in runs.items()}
    dev = {
        seed: [(at, line["dev"]["value"]) for at, line in _placed(lines) if "dev" in line]
        for seed, lines in runs.items()
    }
    _plot(loss, "loss of a step", folder / "loss.svg", title, marker=None)
    _plot(dev, f"dev {figure}", folder / "dev.svg", title, marker="o")


def _placed(lines: Sequence[Record]) -> list[tuple[int, Record]]:
    """Return the lines with their places on an axis on which a phase begins where the one before it ended."""
    begins: dict[str, int] = {}
    found: list[tuple[int, Record]] = []
    for line in lines:
        begin = begins.setdefault(line["phase"], max((at for at, _ in found), default=0))
        found.append((begin + line["step"], line))
    return found


def _plot(curves: Mapping[int, Sequence[tuple[int, float]]], label: str, path: Path, title: str, marker: Any) -> None:
    figure, axes = new_plot(title)
    for place, (seed, points) in enumerate(curves.items()):
        axes.plot(*zip(*points, strict=True), color=f"C{place % 10}", marker=marker, markersize=3, label=f"seed {seed}")
    axes.set(xlabel="optimizer step", ylabel=label)
    if len(curves) > 1:
        axes.legend(frameon=False)
    save_plot(figure, path)
