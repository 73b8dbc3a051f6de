"""What refine_guideline prints once everything is rated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raters.trace_text import printable


def summary_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield what came out, for a reader."""
    yield printable(f"{summary['corpus']}, {summary['dimension']} ({summary['scale']}): {summary['method']}")
    counts = summary["proposals"]
    made = sum(counts.values())
    yield (
        f"  {made} proposals: {counts['kept']} kept, {counts['gate']} without a sure gain on dev, "
        f"{counts['lint']} refused by the lint" + (f"; {summary['ended']}" if summary["ended"] else "")
    )
    yield ""
    if not summary["changed"]:
        yield f"The guideline stays as it was: {'no proposal was kept' if made else 'nothing was proposed'}."
    else:
        yield "New or changed lines of the guideline, with the dev figure before and after the edit that brought them"
        for line in summary["lines"]:
            figures = "" if line["before"] is None else f"   {line['before']:.3f} to {line['after']:.3f}"
            yield printable(f"  {line['line']:>3}  {line['text'][:90]}{figures}")
    for part in ("dev", "test"):
        if part in summary:
            yield ""
            yield from _part_lines(part, summary[part], summary["figure"], summary["method"] != "paper")


def _part_lines(part: str, found: Mapping[str, Any], figure: str, gated: bool) -> Iterable[str]:
    from raters.score_text import FIGURE_NAMES

    decided = " (these items decided what was kept)" if gated else " (kept whatever they say)"
    again = decided if part == "dev" else " (rated once)"
    yield f"{part} split, {found['items']:,} items{again}: {FIGURE_NAMES[figure]} with people's label"
    changes = found["changes"]
    for name, change in changes.items():
        if name == "mean" and len(changes) == 2:
            continue
        interval = "" if change["low"] is None else f" [{change['low']:+.3f}, {change['high']:+.3f}]"
        p = "-" if change["p"] is None else f"{change['p']:.4f}"
        gain = change["after"] - change["before"]
        yield printable(
            f"  {name:<24} original {change['before']:.3f}   refined {change['after']:.3f}   "
            f"difference {gain:+.3f}{interval}, one-sided p {p}"
        )
    if between := found["between_raters"]:
        for name in between["before"]:
            cells = [between[when][name] for when in ("before", "after")]
            shown = ["-" if cell is None else f"{cell:.3f}" for cell in cells]
            yield f"  raters with each other, {FIGURE_NAMES[name]}: original {shown[0]}, refined {shown[1]}"
