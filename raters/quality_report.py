"""The quality of people's labels as one HTML page that needs no network and no script.

Texts, ids and labels are of others: markup escapes whatever is put into it, the page's own policy forbids scripts and
requests besides, and no character is left that could turn what stands around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from raters.report_markup import join, markup, number, table, visible
from raters.report_page import PAGE, STYLE
from raters.report_plots import label_histogram
from raters.score_text import FIGURE_NAMES, percent

_LONGEST_TEXT = 160
_MOST_ANNOTATORS = 200


def quality_report_html(summary: Mapping[str, Any]) -> str:
    """Return the page of an import, the same for the same summary.

    Args:
        summary: As `import_corpus` writes it to summary.json.
    """
    quality = summary["quality"]
    title = f"{quality['corpus']}: the quality of its labels"
    parts = [_head(summary, title)]
    parts += [_dimension(dimension) for dimension in quality["dimensions"]]
    return visible(PAGE.format(title=title, style=STYLE, body=join(parts, "\n")))


def _head(summary: Mapping[str, Any], title: str) -> Markup:
    quality = summary["quality"]
    facts = [("source", f"{summary['source']}, read as {summary['format']}"), *summary["facts"]]
    rows = join(markup("<dt>{}</dt><dd>{}</dd>", name, value) for name, value in facts)
    notes = join(markup("<li>{}</li>", note) for note in summary["notes"])
    guessed = markup("<h2>What was guessed</h2>\n<ul>{}</ul>", notes) if notes else Markup()
    heads = ["dimension", "scale", "labels", "items", "one annotator", "alpha"]
    overview = table(
        heads,
        (
            (
                each["dimension"],
                [
                    each["scale"],
                    f"{each['labels']:,}",
                    f"{each['items_labelled']:,}",
                    f"{each['items_with_one_annotator']:,}",
                    number(each["alpha"]["value"]) if each["alpha"]["value"] is not None else each["alpha"]["reason"],
                ],
            )
            for each in quality["dimensions"]
        ),
    )
    return markup(
        '<h1>{}</h1>\n<dl class="facts">{}</dl>\n{}\n{}\n<p class="notes">Alpha is Krippendorff\'s, among people: 1 if '
        "they agree, 0 if as much as by chance.</p>",
        title,
        rows,
        guessed,
        overview,
    )


def _dimension(dimension: Mapping[str, Any]) -> Markup:
    per_item = ", ".join(f"{count:,} with {n}" for n, count in dimension["items_by_annotators"].items())
    return markup(
        '<h2>{}</h2>\n<p>Scale {}. Items by number of annotators: {}.</p>\n<div class="plots">{}{}</div>\n{}\n{}',
        dimension["dimension"],
        dimension["scale"],
        per_item or "none",
        label_histogram(dimension),
        _gold(dimension),
        _annotators(dimension),
        _duplicates(dimension),
    )


def _gold(dimension: Mapping[str, Any]) -> Markup:
    rows = [
        (
            markup(
                "{}{}", each["method"], markup("<small>what stages take by default</small>") if each["default"] else ""
            ),
            [
                f"{each['labels']:,}",
                "; ".join(f"{count:,} {reason}" for reason, count in each["dropped"].items()) or "none",
            ],
        )
        for each in dimension["gold"]
    ]
    return markup(
        "<figure><figcaption><b>Gold labels</b> that each rule would leave.</figcaption>{}</figure>",
        table(["rule", "items", "without"], rows),
    )


def _annotators(dimension: Mapping[str, Any]) -> Markup:
    people: Sequence[Mapping[str, Any]] = dimension["annotators"]
    never = [each["annotator"] for each in people if each["never_varies"]]
    figure = FIGURE_NAMES.get(people[0]["figure"], people[0]["figure"]) if people else ""
    rows = [
        (
            each["annotator"],
            [
                f"{each['labels']:,}",
                number(each["agreement"]),
                percent(each["exact"]),
                f"{each['most_frequent']} ({percent(each['most_frequent_share'], 0)})",
                markup('<span class="bad">never varies</span>') if each["never_varies"] else "",
            ],
        )
        for each in people[:_MOST_ANNOTATORS]
    ]
    rest = len(people) - len(rows)
    more = markup('<p class="notes">{:,} more, with fewer labels, stand in summary.json.</p>', rest) if rest > 0 else ""
    said = (
        markup('<p class="bad">Never vary (the same label each time): {}.</p>', ", ".join(never[:20]))
        if never
        else markup("<p>Nobody with five labels or more gives the same one each time.</p>")
    )
    heads = ["annotator", "labels", f"{figure} with the others", "same label", "most frequent", "note"]
    return markup("<h3>Annotators</h3>\n{}\n{}\n{}", said, table(heads, rows), more)


def _duplicates(dimension: Mapping[str, Any]) -> Markup:
    found = dimension["duplicates"]
    if not found["groups"]:
        return markup("<h3>Duplicates</h3>\n<p>No two items have the same texts.</p>")
    rows = [
        (
            _cut(group["text"]),
            [join((markup("{}: {}", item["item"], ", ".join(item["labels"])) for item in group["items"]), "; ")],
        )
        for group in found["listed"]
    ]
    shown = table(["text", "items with it, and their labels"], rows, kind="flat") if rows else Markup()
    return markup(
        "<h3>Duplicates</h3>\n<p>Texts of several items: {:,}; with different labels: {:,}. They stay on one side of "
        "every split.</p>\n{}",
        found["groups"],
        found["with_different_labels"],
        shown,
    )


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
