"""Dev figures of a refinement: as text, and drawn over the proposals that were kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from raters.journal import Record
from raters.report_markup import COLOURS, join, markup, segment, table, words


def is_known(*values: float | None) -> bool:
    """Return True if all values are there and finite."""
    return all(value is not None and math.isfinite(value) for value in values)


def number_text(value: float | None, form: str = "z.3f") -> str:
    """Return a number, or a dash for one that is None or not finite."""
    return format(value, form) if value is not None and math.isfinite(value) else "-"


def p_text(value: float | None) -> str:
    """Return a p-value."""
    return "< 0.0001" if value is not None and 0 <= value < 0.00005 else number_text(value, ".4f")


def difference_text(change: Mapping[str, Any]) -> str:
    """Return what a change did, with its interval: `+0.354 [+0.225, +0.483]`."""
    if not is_known(change["before"], change["after"]):
        return "-"
    interval = f" [{change['low']:+z.3f}, {change['high']:+z.3f}]" if is_known(change["low"], change["high"]) else ""
    return f"{change['after'] - change['before']:+z.3f}{interval}"


def path_of(kept: Sequence[Record], raters: Sequence[str], figure: str, *, ungated: bool) -> Markup:
    """Return the dev figure over the kept proposals, drawn and as a table; nothing if none was kept."""
    if not kept:
        return Markup()
    several = len(raters) > 1
    changes: list[tuple[str, str, str, list[Mapping[str, Any]]]] = []
    if several:
        changes.append(("mean of the raters", "people", "mean", list(kept)))
    for place, name in enumerate(raters):
        own = [record.get("raters", {}).get(name, {}) if several else record for record in kept]
        changes.append((name, f"c{place % COLOURS}", str(place + 1) if several else "", own))
    series = [
        (name, colour, mark, [one[0].get("before"), *(change.get("after") for change in one)])
        for name, colour, mark, one in changes
    ]
    numbers = [record["proposal"] for record in kept]
    key = join(
        markup('<li><i class="{}"></i>{}</li>', colour, f"{mark}: {name}" if mark.isdigit() else name)
        for name, colour, mark, _ in series
    )
    heads = ["proposal", "before", "after", "difference", "one-sided p"]
    heads += [f"after, {name}" for name in raters] if several else []
    rows = [
        (
            record["proposal"],
            [
                number_text(record["before"]),
                number_text(record["after"]),
                difference_text(record),
                p_text(record["p"]),
                *([number_text(values[place]) for *_, values in series[1:]] if several else []),
            ],
        )
        for place, record in enumerate(kept, start=1)
    ]
    return markup(
        "<h2>{} on dev over the kept proposals</h2>\n<p>Upright bars: the 95 % interval of a proposal's rise{}, set on "
        "the figure before it. {}</p>\n"
        '<ul class="key">{}</ul>\n<figure>{}</figure>\n{}',
        figure,
        " in the mean" if several else "",
        "" if ungated else "These items decided what was kept, so the figures flatter.",
        key,
        _drawing(series, kept, numbers, figure),
        table(heads, rows, [""] * 4 + ["wide"] * (len(heads) - 5)),
    )


def _drawing(
    series: Sequence[tuple[str, str, str, Sequence[float | None]]],
    kept: Sequence[Record],
    numbers: Sequence[int],
    figure: str,
) -> Markup:
    """Return a line for each series over the kept proposals; the first has the intervals."""
    left, right, top, bottom = 44.0, 314.0, 10.0, 190.0
    intervals = [
        (place, record["before"] + record["low"], record["before"] + record["high"])
        for place, record in enumerate(kept, start=1)
        if is_known(record["before"], record["low"], record["high"])
    ]
    known = [value for *_, values in series for value in values if value is not None and math.isfinite(value)]
    known += [end for _, *ends in intervals for end in ends]
    if not known:
        return Markup("<figcaption>No figure is known.</figcaption>")
    spread = max(known) - min(known)
    step = next((step for step in (0.02, 0.05, 0.1, 0.2, 0.25) if spread <= 6 * step), 0.5)
    low, high = math.floor(min(known) / step), max(math.ceil(max(known) / step), math.floor(min(known) / step) + 1)

    def x(place: int) -> float:
        return left + (right - left) * place / len(kept)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value / step - low) / (high - low)

    parts = []
    for tick in range(low, high + 1):
        parts.append(segment("grid" if tick else "zero", left - 4, y(tick * step), right, y(tick * step)))
        parts.append(words(left - 8, y(tick * step) + 4, f"{tick * step:.2f}", "end", "m"))
    every = math.ceil(len(kept) / 10)
    for place, name in enumerate(("original", *map(str, numbers))):
        if place % every == 0:
            parts.append(words(x(place), bottom + 17, name, "middle", "m"))
    parts.append(words((left + right) / 2, bottom + 33, "after proposal", "middle", "m"))
    parts += [
        segment(f"line {series[0][1]}", x(place), y(first), x(place), y(last)) for place, first, last in intervals
    ]
    marks = []
    for name, colour, mark, values in reversed(series):
        points = [(x(place), y(value)) for place, value in enumerate(values) if value is not None and is_known(value)]
        drawn = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        parts.append(markup('<g><title>{}</title><polyline class="line {}" points="{}"/>', name, colour, drawn))
        parts += [
            markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>', colour, across, down)
            for across, down in points
        ]
        parts.append(Markup("</g>"))
        marks += [(points[-1][1] + 4, mark)] if points and mark else []
    lowest = -math.inf
    for down, mark in sorted(marks):
        lowest = max(down, lowest + 11)
        parts.append(words(right + 8, lowest, mark))
    path = ", ".join(
        f"{name} {number_text(value)}"
        for name, value in zip(
            ("original", *(f"after proposal {number}" for number in numbers)), series[0][3], strict=True
        )
    )
    return markup(
        '<svg viewBox="0 0 360 {:.0f}" role="img" aria-labelledby="path-title path-desc"><title id="path-title">{} on '
        'dev over the kept proposals</title>\n<desc id="path-desc">{}: {}. All figures are in the table below.</desc>\n'
        "{}\n</svg>",
        max(bottom + 40, lowest + 6),
        figure,
        series[0][0],
        path,
        join(parts, "\n"),
    )
