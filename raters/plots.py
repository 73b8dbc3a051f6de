"""Plots as SVG files: the same look, and the same bytes for the same data."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from raters.journal import write_atomically
from raters.models.protocol import one_line

_MARGINS_OF_PERCENTAGES = {"left": 0.13, "right": 0.975, "bottom": 0.135, "top": 0.915}
"""Shares of the page that leave room for title, labels and three digits."""


def new_plot(title: str, *, percentages: bool = False) -> tuple[Any, Any]:
    """Return matplotlib's figure and axes for a plot of a page's width.

    Args:
        title: Above it.
        percentages: True if that is what stands on its upright axis; so its margins are known, for which others are
            drawn twice.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "judgeseye"
    figure, axes = pyplot.subplots(figsize=(5.6, 3.6), layout=None if percentages else "constrained")
    if percentages:
        figure.subplots_adjust(**_MARGINS_OF_PERCENTAGES)
    axes.set_title(one_line(title, 80).replace("$", r"\$"))
    axes.grid(color="0.92")
    return figure, axes


def save_plot(figure: Any, path: Path) -> None:
    """Write a plot and give its memory back.

    Raises:
        StorageError: If it cannot be written.
    """
    from matplotlib import pyplot

    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes, which is no news for a terminal.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawing = io.BytesIO()
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    write_atomically(path, drawing.getvalue())
    pyplot.close(figure)
