"""The scores of raters as one HTML page that needs no network and no script.

Rater names, labels and reasons are texts of others. Markup escapes whatever is put into it, so that nothing of theirs
can become an element; the page's own policy forbids scripts and requests besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from raters.report_markup import COLOURS, Column, Notes, figure_cell, join, markup, number, rater_heads, table
from raters.report_page import PAGE, STYLE
from raters.report_plots import agreement_plot, confusions, distributions, utilisation_plot
from raters.score_text import FIGURE_NAMES, percent, progress_text

_ERRORS = ("mse", "mae")
_READ = {
    "readable items": "The share of rated items whose verdict could be read; figures above are of these alone.",
    "unreadable": "Items without any readable verdict, and single draws that could not be read.",
    "alpha, worst case": "Alpha if every unreadable verdict had been the label farthest from people's, item by item "
    "(an alpha could be lower still); far below the alpha above, it says that unreadable items could change the "
    "picture.",
    "draws agree": "The share of pairs of draws of one item with the same verdict; low means that one draw tells "
    "little. Undefined for one draw an item.",
    "rho with length": "Spearman's rank correlation of verdicts with length in words; far from 0, the rater may be "
    "rating length.",
    "chose first shown": "The share of decisions for the text shown first; about 50 % without position bias.",
    "same in both orders": "The share of items shown in both orders whose most frequent verdict was the same in both.",
    "replaces people": "The alternative annotator test (Calderon et al. 2025): yes if the rater is at least as near "
    "to the other people, less epsilon, as at least half of the annotators are.",
    "advantage": "Mean share of items on which the rater is at least as near to the other people as the annotator "
    "left out; the figure to compare raters by.",
}


def report_html(
    scores: Mapping[str, Any],
    *,
    utilisation: Mapping[str, Any] | None = None,
    certificates: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the page, the same for the same scores.

    Args:
        scores: What `scoring.score` returns; `floors` and `partial` may be missing.
        utilisation: summary.json of a run of infer_traces, for its curve.
        certificates: What `certificates.certificate_of` returns for each rater.
    """
    columns = [
        *(Column(rater, f"c{place % COLOURS}", False) for place, rater in enumerate(scores["raters"])),
        *(Column(floor, "f", True) for floor in scores.get("floors", ())),
    ]
    parts = [
        _head(scores),
        _agreement(scores, columns),
        _plots(scores, columns),
        _beside(columns),
        distributions(columns),
        confusions(columns),
        _between(scores),
        utilisation_plot(utilisation) if utilisation is not None else Markup(),
        _certificates(certificates),
    ]
    title = f"{scores['corpus']}, {scores['dimension']}: agreement of raters with people"
    page = PAGE.format(title=title, style=STYLE, body=join(parts, "\n"))
    # A control character could turn the direction of what stands around it, or end the page.
    return "".join(
        character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}" for character in page
    )


def _head(scores: Mapping[str, Any]) -> Markup:
    notes = Notes()
    dropped = "; ".join(f"{count:,} without a label: {reason}" for reason, count in scores["dropped_items"].items())
    few = "" if scores["resampled"] == "groups" else ", there being too few groups to resample those"
    facts: list[tuple[str, object]] = [
        ("corpus", scores["corpus"]),
        ("dimension", scores["dimension"]),
        ("scale", scores["scale"]),
        ("items", f"{scores['items']:,} rated, {scores['items_with_label']:,} with a label"
         + (f" ({dropped})" if dropped else "")),
        ("gold label", f"{scores['label_method']} of people's labels"),
        ("annotators", f"{scores['annotators']:,}"),
        ("alpha among people", figure_cell(scores["human"]["alpha"], notes)),
        ("intervals", f"95 %, {scores['interval_method']}; {scores['resamples']:,} resamples of "
         f"{scores['resampled_count']:,} {scores['resampled']}{few}"),
        ("tests", scores["test_method"]),
    ]  # fmt: skip
    rows = join((markup("<dt>{}</dt><dd>{}</dd>", name, value) for name, value in facts), "\n")
    partial = scores.get("partial") or ()
    warning = markup(
        '<p class="bad">Not complete, scored as far as it is: {}</p>', ", ".join(map(progress_text, partial))
    )
    return markup(
        '<h1>{}, {}: agreement of raters with people</h1>\n{}<dl class="facts">{}</dl>{}',
        scores["corpus"],
        scores["dimension"],
        warning if partial else Markup(),
        rows,
        notes.list(),
    )


def _figures(
    names: Sequence[str], columns: Sequence[Column], kind: str, notes: Notes, human: Mapping[str, Any] | None = None
) -> Markup:
    """Return the table of all figures of one kind, with people in the last column if they are given."""
    heads, classes = rater_heads(columns)
    if human:
        pooled = "all in one table" if human["ceiling_pooled"] else "each with the others"
        heads, classes = [*heads, markup("people<small>{}</small>", pooled)], [*classes, "human"]
    rows = []
    for name in names:
        found = [column.scores[kind][name] for column in columns] + ([human["ceiling"][name]] if human else [])
        below = markup(
            "{}<small>{}</small>", FIGURE_NAMES.get(name, name), "lower is better" if name in _ERRORS else ""
        )
        rows.append((below, [figure_cell(figure, notes) for figure in found]))
    return table(["figure", *heads], rows, classes)


def _agreement(scores: Mapping[str, Any], columns: Sequence[Column]) -> Markup:
    notes = Notes()
    figures = _figures(list(scores["human"]["ceiling"]), columns, "agreement", notes, scores["human"])
    floors = " Columns on grey are floors: simple readers that a rater should beat." if any(
        column.floor for column in columns) else ""  # fmt: skip
    pooled = " Annotators have too few labels to be scored one by one." if scores["human"]["ceiling_pooled"] else ""
    return Markup(
        "<h2>Agreement with people's gold label</h2>\n<p>Each figure with its 95 % interval. The last column is the "
        "human ceiling: one person's labels against the gold label of the others.{}{}</p>\n{}{}"
    ).format(pooled, floors, figures, notes.list())


def _plots(scores: Mapping[str, Any], columns: Sequence[Column]) -> Markup:
    names = list(scores["human"]["ceiling"])
    order = "kendall_tau_b" if "kendall_tau_b" in names else "cohen_kappa"
    plots = [agreement_plot(name, scores, columns) for name in (order, "krippendorff_alpha") if name in names]
    return markup('<div class="plots">{}</div>', join(plots, "\n"))


def _beside(columns: Sequence[Column]) -> Markup:
    """Return what should be known beside agreement, with how to read each row."""
    notes, found = Notes(), [column.scores for column in columns]
    tests = [one["alternative_annotator_test"] for one in found]
    rows: list[tuple[str, list[object]]] = [
        ("readable items", [percent(one["coverage"]) for one in found]),
        ("unreadable", [f"{one['unreadable_items']:,} items, {one['unreadable_draws']:,} draws" for one in found]),
        ("alpha, worst case", [figure_cell(one["worst_case"]["krippendorff_alpha"], notes) for one in found]),
        ("draws agree", [percent(one["self_agreement"]) for one in found]),
    ]
    if any(one["length_correlation"] for one in found):
        rhos = [one["length_correlation"] or {"spearman_rho": None, "reason": ""} for one in found]
        cells: list[object] = [number(rho["spearman_rho"]) + notes.mark(rho["reason"]) for rho in rhos]
        rows.append(("rho with length", cells))
    if any(one["position"] for one in found):
        for name, share, count, of in (
            ("chose first shown", "chose_first_shown", "decisions", "decisions"),
            ("same in both orders", "consistent", "items_in_both_orders", "items in both orders"),
        ):
            shares = [one["position"] for one in found]
            below = [markup("<small>{:,} {}</small>", one[count], of) if one else "" for one in shares]
            cells = [percent(one and one[share]) + text for one, text in zip(shares, below, strict=True)]
            rows.append((name, cells))
    verdicts: list[object] = []
    for test in tests:
        tested = f"{test['annotators_tested']:,} tested, {test['left_out']:,} left out"
        if test["winning_rate"] is None:
            answer = "-" + notes.mark(test["reason"])
        else:
            answer = markup("{}, wins {:.0f} %", "yes" if test["passed"] else "no", 100 * test["winning_rate"])
            answer += notes.mark(test["reason"])
        verdicts.append(markup("{}<small>{}</small>", answer, tested))
    rows.append(("replaces people", verdicts))
    granted = [markup("{}<small>{}, epsilon {:g}</small>", 
        number(test["advantage"]), test["score"], test["epsilon"]) for test in tests]  # fmt: skip
    rows.append(("advantage", list(granted)))
    heads, classes = rater_heads(columns)
    read = join(markup("<dt>{}</dt><dd>{}</dd>", name, _READ[name]) for name, _ in rows)
    worst_notes = Notes()
    worst = _figures(list(columns[0].scores["worst_case"]), columns, "worst_case", worst_notes)
    return Markup(
        "<h2>What to know beside agreement</h2>\n{}{}\n<details open><summary>How to read these rows</summary>"
        '<dl class="read">{}</dl></details>\n<details><summary>Every figure in the worst case</summary>{}{}</details>'
    ).format(table(["", *heads], rows, classes), notes.list(), read, worst, worst_notes.list())


def _between(scores: Mapping[str, Any]) -> Markup:
    """Return how raters agree with each other, and the differences between them; nothing for one rater."""
    between = scores["between_raters"]
    if not between:
        return Markup()
    notes = Notes()
    whole = [name for name in ("krippendorff_alpha", "icc3_1", "icc3_k") if name in between]
    together = table(
        [f"all {len(scores['raters'])} raters", "figure"],
        [(FIGURE_NAMES[name], [figure_cell(between[name], notes)]) for name in whole],
    )
    figures = [name for name in between["pairs"][0] if name != "raters"]
    pairs = table(
        ["pair", *(FIGURE_NAMES.get(name, name) for name in figures)],
        [
            (" and ".join(pair["raters"]), [figure_cell(pair[name], notes) for name in figures])
            for pair in between["pairs"]
        ],
        kind="pairs",
    )
    rows = [
        (markup("{}<small>{}</small>", FIGURE_NAMES.get(one["figure"], one["figure"]),
                                              " minus ".join(one["raters"])),
         [figure_cell(one, notes), number(one["p"]), number(one["p_holm"])])
        for one in scores["differences"]
    ]  # fmt: skip
    differences = table(["first minus second", "difference", "p", "p, Holm"], rows, kind="pairs")
    return Markup(
        "<h2>Raters among each other</h2>\n{}{}\n<h3>Differences in agreement with people</h3>\n<p>Paired: on the same "
        "resamples of the items that both could be read on. Holm's correction is over {}.</p>\n{}{}"
    ).format(together, pairs, scores["holm_over"], differences, notes.list())


def _flat(name: str, value: Any, notes: Notes) -> Iterable[tuple[str, object]]:
    """Yield a record's leaves with their path; a figure with its interval is one leaf."""
    if isinstance(value, Mapping) and {"value", "low", "high", "reason"} <= value.keys():
        yield name, figure_cell(value, notes)
    elif isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from _flat(f"{name}: {key}" if name else str(key), one, notes)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield name, ", ".join(map(str, value)) or "-"
    elif isinstance(value, bool):
        yield name, "yes" if value else "no"
    elif isinstance(value, float):
        yield name, f"{value:.4g}"
    else:
        yield name, "-" if value in (None, {}) else str(value)


def _certificates(certificates: Sequence[Mapping[str, Any]]) -> Markup:
    parts = []
    for certificate in certificates:
        notes = Notes()
        rows = [(name, [value]) for name, value in _flat("", certificate, notes)]
        verdict = "certified" if certificate["certified"] else f"no certificate: {certificate.get('reason', '')}"
        parts.append(
            markup(
                "<h3>{}: {}</h3>\n<details><summary>All that it says</summary>{}{}</details>",
                certificate["rater"],
                verdict,
                table(["field", "value"], rows, kind="flat"),
                notes.list(),
            )
        )
    return markup("<h2>Certificates</h2>\n{}", join(parts, "\n")) if parts else Markup()
