"""Traces and the summary of a run of infer_traces as lines for a reader. Texts of others are printed harmlessly."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any


def printable(text: str) -> str:
    """Return a text without control characters, which could move the cursor or recolour a terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}"
        for character in text.expandtabs(2).replace("\r\n", "\n")
    )


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as a percentage; a dash if it is not defined."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def trace_lines(trace: Mapping[str, Any], inputs: Mapping[str, str]) -> Iterable[str]:
    """Yield a kept trace beside its item."""
    width = min(shutil.get_terminal_size().columns, 110)
    who = "" if trace["annotator_id"] is None else f" by {trace['annotator_id']}"
    yield printable(f"== {trace['item_id']}, {trace['dimension']}: label {trace['label']}{who}")
    swapped = " (the model saw the two texts exchanged)" if trace["swapped"] else ""
    for name, text in inputs.items():
        yield textwrap.fill(f"{printable(name)}: {printable(text)}", width, subsequent_indent="    ")
    yield printable(f"-- {trace['model']}, draw {trace['draw']}{swapped}, verdict {trace['verdict']}")
    for line in printable(trace["trace"]).splitlines():
        yield textwrap.fill(line, width, initial_indent="  ", subsequent_indent="  ")
    if trace["flags"]:
        yield f"  flagged: {', '.join(trace['flags'])}"
    yield ""


def summary_lines(summary: Mapping[str, Any]) -> Iterable[str]:
    """Yield the summary of infer_traces for a reader."""
    points, kept, labels = summary["utilisation"], summary["kept"], summary["labels"]
    yield printable(f"{summary['corpus']}, {summary['dimension']} ({summary['scale']}), {summary['split']} split")
    yield printable(f"  model {summary['model']}, {summary['strategy']} draws, labels: {summary['label_method']}")
    yield ""
    yield "Labels with an accepted draw, beside what permuted labels would get by chance (± 95 %)"
    yield row("draws for an item", [str(point["k"]) for point in points])
    yield row("people's labels", [percent(point["share"]) for point in points])
    yield row("permuted labels", [_null_cell(point) for point in points])
    if 0 < summary["null_items"] < summary["items"]:
        rows = f"{summary['null_items']:,} items that got all {summary['k']}"
        yield f"  (beyond one draw from the {rows}; see --null-items)"
    yield ""
    yield f"Kept {summary['traces']:,} traces for {kept:,} of {labels:,} labels ({percent(kept / labels)})"
    by_chance = summary["kept_by_chance"]
    if len(by_chance) > 1:
        yield "  " + ", ".join(f"{chance}: {count:,}" for chance, count in by_chance.items())
    per_trace, fixed = summary["first_draws_per_kept_trace"], summary["fixed_k_draws_per_kept_trace"]
    if per_trace is not None:
        yield f"  {per_trace:.1f} draws a label matched, against {fixed:.1f} if every item had all {summary['k']}"
    if (given_up := summary["given_up"]) is not None:
        lost = given_up["expected_matches_lost"]
        yield (
            f"  gave up {given_up['items']:,} items whose chance was below {percent(given_up['below'])}, up to "
            f"{given_up['draws_left_out']:,} draws: it costs about {lost:.1f} labels ({percent(lost / labels, 2)})"
        )
    made = sum(summary["draws"].values())
    yield f"  unreadable verdicts: {percent(summary['unreadable_share'], 2)} of {made:,} draws"
    agreement = summary["self_agreement"]
    if agreement["share"] is not None:
        rows = f"{agreement['items']:,} items with all draws"
        yield f"  two draws of one item agree: {percent(agreement['share'])} ({rows})"
    if (position := summary["position"]) and position["chose_first_shown"] is not None:
        yield (
            f"  chose the text shown first: {percent(position['chose_first_shown'])} "
            f"± {100 * position['half_width_95']:.1f} of {position['decisions']:,} decisions"
        )
    flags = ", ".join(f"{name} {count:,}" for name, count in summary["flagged"].items()) or "none"
    yield f"  doubtful traces (flagged, kept): {flags}"
    yield ""
    yield "Coverage, and whether kept traces are distributed as the labels are"
    yield row("label", [entry["label"] for entry in summary["coverage_by_label"]])
    yield row("labels", [f"{entry['labels']:,}" for entry in summary["coverage_by_label"]])
    yield row("of them kept", [percent(entry["coverage"]) for entry in summary["coverage_by_label"]])
    yield row("share of labels", [percent(entry["share_of_labels"]) for entry in summary["coverage_by_label"]])
    yield row("share of traces", [percent(entry["share_of_kept"]) for entry in summary["coverage_by_label"]])
    if bands := summary["coverage_by_human_agreement"]:
        yield row("annotators", [entry["annotators"] for entry in bands])
        yield row("labels", [f"{entry['labels']:,}" for entry in bands])
        yield row("of them kept", [percent(entry["coverage"]) for entry in bands])
    unmatched = summary["unmatched"]
    if unmatched["labels"]:
        by_distance = unmatched["by_distance_of_nearest_verdict"]
        distances = ", ".join(f"{name} ({count:,})" for name, count in by_distance.items())
        yield ""
        yield f"Never matched: {unmatched['labels']:,} labels; distance of the nearest verdict (labels): {distances}"
        yield "  label noise, or something the guideline does not say; they are listed in unmatched.jsonl"
    if (rules := summary.get("rules")) is not None:
        yield ""
        yield "Rules that accepted draws guess more often than rejected ones (item-clustered |z| above 3)"
        yield "  " + (", ".join(f"{rule['rule']} (z {rule['z']:+.1f})" for rule in rules) or "none")


def _null_cell(point: Mapping[str, Any]) -> str:
    return "-" if point["null"] is None else f"{100 * point['null']:.1f} ± {196 * point['null_sd']:.1f}"


def row(name: str, cells: list[str]) -> str:
    """Return a line of a table: its name, and a cell a column."""
    return printable(f"  {name:<18}" + "".join(f"{cell:>16}" for cell in cells))
