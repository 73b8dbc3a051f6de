"""Plots of the report, as SVG, and the tables of labels against verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from raters.report_markup import Column, join, markup, segment, table, words
from raters.score_text import FIGURE_NAMES, figure_text, percent, without_middle

_WIDTH = 360
"""Of every plot, in its own units: about a phone's, so that text is not shrunk there."""
_LEFT, _RIGHT = 14, 346
_LONGEST_NAME = 28
_SHADES = 5
"""Of the cells of a confusion matrix, from the second on; the page's style has a class for each."""


def _svg(height: float, label: str, parts: Iterable[Markup]) -> Markup:
    return markup(
        '<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">\n{}\n</svg>',
        _WIDTH,
        height,
        label,
        join(parts, "\n"),
    )


def agreement_plot(name: str, scores: Mapping[str, Any], columns: Sequence[Column]) -> Markup:
    """Return a plot of one figure: a dot and an interval for each rater and floor, and the human ceiling as a band."""
    ceiling = scores["human"]["ceiling"][name]
    found = [ceiling, *(column.scores["agreement"][name] for column in columns)]
    known: list[float] = [figure[key] for figure in found for key in ("value", "low") if figure[key] is not None]
    low = math.floor(4 * min([0.0, *known])) / 4
    step = 0.25 if low >= -0.25 else 0.5
    top, bottom = 6.0, 10.0 + 34 * len(columns)

    def x(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (min(value, 1.0) - low) / (1 - low)

    parts = []
    if ceiling["low"] is not None and ceiling["value"] is not None:
        parts.append(
            markup(
                '<rect class="band" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>',
                x(ceiling["low"]),
                top,
                x(ceiling["high"]) - x(ceiling["low"]),
                bottom - top,
            )
        )
    ticks = [tick * step for tick in range(math.ceil(low / step), round(1 / step) + 1)]
    for tick in ticks:
        parts.append(segment("grid" if tick else "zero", x(tick), top, x(tick), bottom))
        parts.append(words(x(tick), bottom + 14, f"{tick:g}", "middle", "m"))
    if ceiling["value"] is not None:
        parts.append(segment("ceiling", x(ceiling["value"]), top, x(ceiling["value"]), bottom))
    for place, column in enumerate(columns):
        figure, y = column.scores["agreement"][name], top + 34 * place
        value = figure_text(figure)
        parts += [
            markup("<g><title>{}: {} {}</title>", column.name, value, figure["reason"]),
            markup('<rect class="bare" x="0" y="{:.1f}" width="{}" height="17"/>', y, _WIDTH),
            words(_LEFT, y + 14, without_middle(column.name, _LONGEST_NAME)),
            words(_RIGHT, y + 14, value, "end", "m"),
        ]
        if figure["value"] is not None and figure["low"] is not None:
            parts.append(segment(f"line {column.colour}", x(figure["low"]), y + 24, x(figure["high"]), y + 24))
        if figure["value"] is not None:
            parts.append(
                markup(
                    '<circle class="{} {}" cx="{:.1f}" cy="{:.1f}" r="4.5"/>',
                    "hollow" if column.floor else "dot",
                    column.colour,
                    x(figure["value"]),
                    y + 24,
                )
            )
        parts.append(Markup("</g>"))
    title = FIGURE_NAMES.get(name, name)
    if ceiling["value"] is None:
        people = f"No band for people: {ceiling['reason']}"
    else:
        people = f"Green: people, {figure_text(ceiling)}"
    hollow = "; hollow dots: floors" if any(column.floor for column in columns) else ""
    label = f"{title} of each rater with its interval. {people}"
    return markup(
        "<figure><figcaption><b>{}</b> of raters with people. {}{}.</figcaption>{}</figure>",
        title,
        people.rstrip("."),
        hollow,
        _svg(bottom + 20, label, parts),
    )


def distributions(columns: Sequence[Column]) -> Markup:
    """Return bars of people's labels and of everyone's verdicts, grouped by label."""
    labels = list(columns[0].scores["label_shares"])
    series = [("people's labels", "people", False, columns[0].scores["label_shares"])]
    series += [(column.name, column.colour, column.floor, column.scores["verdict_shares"]) for column in columns]
    most = max([0.01, *(shares[label] or 0.0 for *_, shares in series for label in labels)])
    y, parts = 4.0, []
    for label in labels:
        parts.append(words(0, y + 12, without_middle(label, _LONGEST_NAME)))
        y += 17
        for name, colour, hollow, shares in series:
            width = 300 * (shares[label] or 0.0) / most
            parts.append(
                Markup('<g><title>{}, {}: {}</title><rect class="{} {}" x="1" y="{:.1f}" width="{:.1f}" height="8"/>'
                       "{}</g>").format(name, label, percent(shares[label]), "hollow" if hollow else "dot", colour,
                                        y, max(width, 0.1), words(6 + width, y + 8.5, percent(shares[label]),
                                                                   kind="m"))
            )  # fmt: skip
            y += 12
        y += 8
    key = join(
        markup('<li><i class="{} {}"></i>{}</li>', colour, "hollow" if hollow else "", name)
        for name, colour, hollow, _ in series
    )
    return Markup(
        "<h2>Labels and verdicts</h2>\n<p>A rater that uses the scale as people do has bars as long as theirs, which "
        'says nothing of agreement item by item.</p>\n<ul class="key">{}</ul>\n<figure>{}</figure>'
    ).format(key, _svg(y, "Share of each label among people's labels and each rater's verdicts", parts))


def label_histogram(dimension: Mapping[str, Any]) -> Markup:
    """Return bars of how often people gave each label of a dimension (a record of `label_quality`)."""
    histogram: Mapping[str, float | None] = dimension["histogram"]
    most = max([0.01, *(share or 0.0 for share in histogram.values())])
    y, parts = 4.0, []
    for label, share in histogram.items():
        parts.append(words(0, y + 12, without_middle(label, _LONGEST_NAME)))
        parts.append(
            Markup('<g><title>{}: {}</title><rect class="dot people" x="1" y="{:.1f}" width="{:.1f}" height="10"/>'
                   "{}</g>").format(label, percent(share), y + 17, max(280 * (share or 0.0) / most, 0.1),
                                    words(8 + 280 * (share or 0.0) / most, y + 26, percent(share), kind="m"))
        )  # fmt: skip
        y += 36
    name = f"How often people gave each label of {dimension['dimension']}"
    return markup("<figure><figcaption><b>Labels</b> of people, {:,} in all.</figcaption>{}</figure>",
                  dimension["labels"], _svg(y, name, parts))  # fmt: skip


def confusions(columns: Sequence[Column]) -> Markup:
    """Return how often each label met each verdict, a table for each rater, cells coloured by share of their row."""
    found = [
        markup(
            "<figure><figcaption><b>{}</b></figcaption>{}</figure>",
            column.name,
            _confusion(column.name, column.scores["confusion"]),
        )
        for column in columns
    ]
    return markup(
        "<h3>Labels against verdicts</h3>\n<p>Rows are people's gold labels, columns verdicts, numbers items. The more "
        "of its row a cell holds, the deeper its colour; where the verdict is the label it is framed.</p>\n"
        '<div class="plots wide">{}</div>',
        join(found, "\n"),
    )


def _confusion(name: str, record: Mapping[str, Any]) -> Markup:
    labels, unreadable = record["labels"], any(record["unreadable"])
    heads = [*labels, *(["unreadable"] if unreadable else [])]
    head = join(markup('<th scope="col">{}</th>', label) for label in heads)
    rows = []
    for place, (label, counts, lost) in enumerate(zip(labels, record["counts"], record["unreadable"], strict=True)):
        row = [*counts, *([lost] if unreadable else [])]
        cells = join(
            markup(
                '<td class="s{}{}" title="{}, {}: {}">{:,}</td>',
                math.ceil(_SHADES * count / max(sum(row), 1)),
                " same" if column == place else "",
                label,
                heads[column],
                percent(count / sum(row) if count else 0.0),
                count,
            )
            for column, count in enumerate(row)
        )
        rows.append(markup('<tr><th scope="row">{}</th>{}</tr>', label, cells))
    return markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="labels against verdicts of {}">'
        '<table class="confusion"><thead><tr><th scope="col">label</th>{}</tr></thead>\n'
        "<tbody>{}</tbody></table></div>",
        name,
        head,
        join(rows, "\n"),
    )


def utilisation_plot(summary: Mapping[str, Any]) -> Markup:
    """Return the share of labels with an accepted draw over the number of draws, beside what permuted labels give."""
    points = summary["utilisation"]
    known = [point for point in points if point["null"] is not None]
    last = max(math.log2(point["k"]) for point in points) or 1.0
    top, bottom = 10.0, 200.0

    def x(point: Mapping[str, Any]) -> float:
        return 40 + 300 * math.log2(int(point["k"])) / last

    def y(share: float) -> float:
        return bottom - (bottom - top) * min(max(share, 0.0), 1.0)

    def path(found: Sequence[tuple[Mapping[str, Any], float]]) -> str:
        return " ".join(f"{x(point):.1f},{y(share):.1f}" for point, share in found)

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(segment("grid" if tick else "zero", 40, y(tick), 340, y(tick)))
        parts.append(words(34, y(tick) + 4, f"{tick:.0%}", "end", "m"))
    parts += [words(x(point), bottom + 15, point["k"], "middle", "m") for point in points]
    parts.append(words(190, bottom + 31, "draws for an item", "middle", "m"))
    edges = [[(point, point["null"] + sign * 1.96 * (point["null_sd"] or 0.0)) for point in known] for sign in (1, -1)]
    band = path([*edges[0], *reversed(edges[1])])
    parts.append(markup('<polygon class="null" points="{}"/>', band))
    for kind, found in (
        ("line dash chance", [(point, point["null"]) for point in known]),
        ("line c0", [(point, point["share"]) for point in points]),
    ):
        parts.append(markup('<polyline class="{}" points="{}"/>', kind, path(found)))
        colour = kind.split()[-1]
        parts += [
            markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>', colour, x(point), y(share))
            for point, share in found
        ]
    rows = [(point["k"], [percent(point["share"]), percent(point["null"]),
                          percent(None if point["null_sd"] is None else 1.96 * point["null_sd"])])
            for point in points]  # fmt: skip
    label = "Share of labels with an accepted draw by number of draws, beside permuted labels"
    return Markup(
        "<h2>Utilisation of inferring traces</h2>\n<p>The share of people's labels that some draw of the model reached "
        "({}, {}), beside what permuted labels would have had. Where the curve is in the band, chance explains it.</p>"
        '\n<ul class="key"><li><i class="c0"></i>people\'s labels</li><li><i class="chance hollow"></i>permuted labels '
        '(band: ± 1.96 sd)</li></ul>\n<div class="plots"><figure>{}</figure>{}</div>'
    ).format(summary.get("model", "-"), summary.get("corpus", "-"), _svg(bottom + 38, label, parts),
             table(["draws", "labels reached", "permuted", "±"], rows))  # fmt: skip
