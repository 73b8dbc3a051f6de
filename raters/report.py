"""The scores of raters as one HTML page that needs no network and no script.

Rater names, labels and reasons are texts of others. Markup escapes whatever is put into it, so that nothing of theirs
can become an element; the page's own policy forbids scripts and requests besides.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

FIGURE_NAMES: Mapping[str, str] = {
    "kendall_tau_b": "Kendall tau-b",
    "spearman_rho": "Spearman rho",
    "icc3_1": "ICC(3,1)",
    "icc3_k": "ICC(3,k)",
    "mse": "MSE",
    "mae": "MAE",
    "exact_agreement": "exact agreement",
    "within_one_step": "within one step",
    "cohen_kappa": "Cohen kappa",
    "quadratic_kappa": "quadratic kappa",
    "krippendorff_alpha": "Krippendorff alpha",
}
_ERRORS = ("mse", "mae")
_WIDTH = 360
"""Of every plot, in its own units: about a phone's, so that text is not shrunk there."""
_LEFT, _RIGHT = 14, 346
_COLOURS = 6
_LONGEST_NAME = 28

_STYLE = Markup("""\
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--mute:#57606a;--line:#d5dae0;--soft:#f3f5f7;--band:#cdebd5;
--ceiling:#1a7f37;--floor:#6e7781;--people:#1b1f24;--bad:#b42318;
--c0:#0b66c3;--c1:#b4480f;--c2:#7a3fb8;--c3:#0f766e;--c4:#a8256b;--c5:#7a5c00}
@media (prefers-color-scheme:dark){:root{--bg:#12161b;--fg:#e6eaef;--mute:#9aa5b1;--line:#343c46;--soft:#1b2128;
--band:#1d3d29;--ceiling:#56d37a;--floor:#9aa5b1;--people:#e6eaef;--bad:#ff8a80;
--c0:#62b0ff;--c1:#ff9e64;--c2:#c79bff;--c3:#4fd1c5;--c4:#ff8ac0;--c5:#e3c04d}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:68rem;background:var(--bg);color:var(--fg);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .4rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}p,dl,ol{max-width:46rem}
dl.facts{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.15rem 1rem}
dt{color:var(--mute)}dd small{margin-left:.5em;color:var(--mute)}dd{margin:0}
dl.read dt{color:inherit;font-weight:600;margin-top:.5rem}
.scroll{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
td,thead th{white-space:nowrap}thead th{white-space:normal;min-width:7rem;max-width:16rem;border-bottom-width:2px}
th[scope=row],thead th:first-child{text-align:left;font-weight:500;white-space:normal;max-width:12rem;min-width:5.5rem;
position:sticky;left:0;background:var(--bg);overflow-wrap:break-word}
table.pairs th[scope=row]{max-width:18rem;min-width:9rem;overflow-wrap:anywhere}
td small,th small{display:block;color:var(--mute);font-weight:400}
.floor{background:var(--soft)}.human{border-left:2px solid var(--ceiling)}
table.flat td{text-align:left;white-space:normal;max-width:34rem;min-width:10rem}
table.flat th[scope=row]{min-width:9rem;overflow-wrap:anywhere}
@media (max-width:30rem){dl.facts{display:block}dl.facts dd{margin-bottom:.4rem}th,td{padding:.3rem .45rem}}
.notes{color:var(--mute);font-size:.88rem}.bad{color:var(--bad)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:1.5rem}
figure{margin:.6rem 0;max-width:32rem;min-width:0}figcaption{font-size:.9rem;color:var(--mute)}
figcaption b{color:var(--fg)}
svg{display:block;width:100%;max-width:100%;height:auto}svg text{font-size:11.5px;fill:var(--fg)}
svg text.m{fill:var(--mute);font-size:10.5px}
.grid{stroke:var(--line);stroke-width:1}.zero{stroke:var(--mute);stroke-width:1}
.band{fill:var(--band)}.bare{fill:var(--bg)}.null{fill:var(--line)}.ceiling{stroke:var(--ceiling);stroke-width:1.5}
.line{fill:none;stroke:var(--c);stroke-width:2}.dash{stroke-dasharray:5 4}.dot{fill:var(--c);stroke:var(--c)}
.hollow{fill:var(--bg);stroke:var(--c);stroke-width:1.5}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:0;margin:.3rem 0;list-style:none;font-size:.9rem}
.key i{display:inline-block;width:.8em;height:.8em;margin-right:.4em;border:1.5px solid var(--c);background:var(--c)}
.key i.hollow{background:none}
.people{--c:var(--people)}.chance{--c:var(--floor)}.f{--c:var(--floor)}
""" + "".join(f".c{place}{{--c:var(--c{place})}}" for place in range(_COLOURS)))  # fmt: skip

_PAGE = Markup("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
""")

_READ = {
    "readable items": "The share of rated items whose verdict could be read; figures above are of these alone.",
    "unreadable": "Items without any readable verdict, and single draws that could not be read.",
    "alpha, worst case": "Alpha if every unreadable verdict had been the label farthest from people's; far below the "
    "alpha above, it says that unreadable items could change the picture.",
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
        *(_Column(rater, f"c{place % _COLOURS}", False) for place, rater in enumerate(scores["raters"])),
        *(_Column(floor, "f", True) for floor in scores.get("floors", ())),
    ]
    parts = [
        _head(scores),
        _agreement(scores, columns),
        _plots(scores, columns),
        _beside(columns),
        _distributions(columns),
        _between(scores),
        _utilisation(utilisation) if utilisation is not None else Markup(),
        _certificates(certificates),
    ]
    title = f"{scores['corpus']}, {scores['dimension']}: agreement of raters with people"
    page = _PAGE.format(title=title, style=_STYLE, body=_join(parts, "\n"))
    # A control character could turn the direction of what stands around it, or end the page.
    return "".join(
        character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}" for character in page
    )


@dataclass(frozen=True)
class _Column:
    """A rater or floor: its scores, the class that colours it, and whether it is a floor."""

    scores: Mapping[str, Any]
    colour: str
    floor: bool

    @property
    def name(self) -> str:
        return str(self.scores["rater"])


@dataclass
class _Notes:
    """Reasons that stand below a table, each once."""

    reasons: list[str] = field(default_factory=list)

    def mark(self, reason: object) -> Markup:
        """Return the mark of a reason; nothing for an empty one."""
        text = str(reason or "")
        if not text:
            return Markup()
        if text not in self.reasons:
            self.reasons.append(text)
        return _m("<sup>{}</sup>", self.reasons.index(text) + 1)

    def list(self) -> Markup:
        """Return the reasons as a list."""
        if not self.reasons:
            return Markup()
        rows = _join(_m("<li>{}</li>", reason) for reason in self.reasons)
        return _m('<ol class="notes">{}</ol>', rows)


def _m(template: str, *values: object) -> Markup:
    """Return a template of this module with values escaped into it, unless they are markup themselves."""
    return Markup(template).format(*values)


def _join(parts: Iterable[Markup], between: str = "") -> Markup:
    return Markup(between).join(parts)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _ends(figure: Mapping[str, Any]) -> str:
    return "" if figure["low"] is None else f"[{figure['low']:.3f}, {figure['high']:.3f}]"


def _cell(figure: Mapping[str, Any], notes: _Notes) -> Markup:
    """Return a figure over its interval, or `-`, with the mark of its reason."""
    ends = _ends(figure) if figure["value"] is not None else ""
    below = _m("<small>{}</small>", ends) if ends else Markup()
    return _m("{}{}{}", _number(figure["value"]), notes.mark(figure["reason"]), below)


def _table(heads: Sequence[object], rows: Iterable[tuple[object, Sequence[object]]], classes: Sequence[str] = (),
           kind: str = "") -> Markup:  # fmt: skip
    """Return a table that scrolls in its own box; the first head is that of the rows' names.

    Args:
        heads: Of all columns.
        rows: Name and cells of each.
        classes: Of the columns after the first.
        kind: Class of the table.
    """
    classes = list(classes) or [""] * (len(heads) - 1)
    first = _m('<th scope="col">{}</th>', heads[0])
    head = first + _join(
        _m('<th scope="col" class="{}">{}</th>', name, text) for text, name in zip(heads[1:], classes, strict=True)
    )
    body = _join(
        (
            _m(
                '<tr><th scope="row">{}</th>{}</tr>',
                name,
                _join(_m('<td class="{}">{}</td>', kind_, cell) for cell, kind_ in zip(cells, classes, strict=True)),
            )
            for name, cells in rows
        ),
        "\n",
    )
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="table: {}">'
        '<table class="{}"><thead><tr>{}</tr></thead>\n<tbody>{}</tbody></table></div>'
    ).format(heads[0], kind, head, body)


def _head(scores: Mapping[str, Any]) -> Markup:
    notes = _Notes()
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
        ("alpha among people", _cell(scores["human"]["alpha"], notes)),
        ("intervals", f"95 %, {scores['interval_method']}; {scores['resamples']:,} resamples of "
         f"{scores['resampled_count']:,} {scores['resampled']}{few}"),
        ("tests", scores["test_method"]),
    ]  # fmt: skip
    rows = _join((_m("<dt>{}</dt><dd>{}</dd>", name, value) for name, value in facts), "\n")
    partial = scores.get("partial") or ()
    warning = _m('<p class="bad">Not complete, scored as far as it is: {}</p>', ", ".join(partial))
    return _m(
        '<h1>{}, {}: agreement of raters with people</h1>\n{}<dl class="facts">{}</dl>{}',
        scores["corpus"],
        scores["dimension"],
        warning if partial else Markup(),
        rows,
        notes.list(),
    )


def _rater_heads(columns: Sequence[_Column]) -> tuple[list[Markup], list[str]]:
    """Return head and class of each rater's column."""
    heads = []
    for column in columns:
        draws = column.scores["draws_per_item"]
        how = f"{column.scores['aggregate']} of {draws} draws" if draws > 1 else "1 draw"
        heads.append(_m("{}<small>{}</small>", column.name, how))
    return heads, ["floor" if column.floor else "" for column in columns]


def _figures(
    names: Sequence[str], columns: Sequence[_Column], kind: str, notes: _Notes, human: Mapping[str, Any] | None = None
) -> Markup:
    """Return the table of all figures of one kind, with people in the last column if they are given."""
    heads, classes = _rater_heads(columns)
    if human:
        pooled = "all in one table" if human["ceiling_pooled"] else "each with the others"
        heads, classes = [*heads, _m("people<small>{}</small>", pooled)], [*classes, "human"]
    rows = []
    for name in names:
        found = [column.scores[kind][name] for column in columns] + ([human["ceiling"][name]] if human else [])
        below = _m("{}<small>{}</small>", FIGURE_NAMES.get(name, name), "lower is better" if name in _ERRORS else "")
        rows.append((below, [_cell(figure, notes) for figure in found]))
    return _table(["figure", *heads], rows, classes)


def _agreement(scores: Mapping[str, Any], columns: Sequence[_Column]) -> Markup:
    notes = _Notes()
    table = _figures(list(scores["human"]["ceiling"]), columns, "agreement", notes, scores["human"])
    floors = " Columns on grey are floors: simple readers that a rater should beat." if any(
        column.floor for column in columns) else ""  # fmt: skip
    pooled = " Annotators have too few labels to be scored one by one." if scores["human"]["ceiling_pooled"] else ""
    return Markup(
        "<h2>Agreement with people's gold label</h2>\n<p>Each figure with its 95 % interval. The last column is the "
        "human ceiling: one person's labels against the gold label of the others.{}{}</p>\n{}{}"
    ).format(pooled, floors, table, notes.list())


def _short(name: str) -> str:
    """Return a name that fits above a row of a plot."""
    width, kept = 0, ""
    for character in name:
        width += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width > _LONGEST_NAME:
            return kept + "…"
        kept += character
    return name


def _svg(height: float, label: str, parts: Iterable[Markup]) -> Markup:
    return _m(
        '<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">\n{}\n</svg>',
        _WIDTH,
        height,
        label,
        _join(parts, "\n"),
    )


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return _m('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>', kind, x1, y1, x2, y2)


def _words(x: float, y: float, text: object, anchor: str = "start", kind: str = "") -> Markup:
    return _m('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>', kind, x, y, anchor, text)


def _plots(scores: Mapping[str, Any], columns: Sequence[_Column]) -> Markup:
    names = list(scores["human"]["ceiling"])
    order = "kendall_tau_b" if "kendall_tau_b" in names else "cohen_kappa"
    plots = [_dots(name, scores, columns) for name in (order, "krippendorff_alpha") if name in names]
    return _m('<div class="plots">{}</div>', _join(plots, "\n"))


def _dots(name: str, scores: Mapping[str, Any], columns: Sequence[_Column]) -> Markup:
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
            _m(
                '<rect class="band" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>',
                x(ceiling["low"]),
                top,
                x(ceiling["high"]) - x(ceiling["low"]),
                bottom - top,
            )
        )
    ticks = [tick * step for tick in range(math.ceil(low / step), round(1 / step) + 1)]
    for tick in ticks:
        parts.append(_segment("grid" if tick else "zero", x(tick), top, x(tick), bottom))
        parts.append(_words(x(tick), bottom + 14, f"{tick:g}", "middle", "m"))
    if ceiling["value"] is not None:
        parts.append(_segment("ceiling", x(ceiling["value"]), top, x(ceiling["value"]), bottom))
    for place, column in enumerate(columns):
        figure, y = column.scores["agreement"][name], top + 34 * place
        value = "-" if figure["value"] is None else f"{figure['value']:.3f} {_ends(figure)}"
        parts += [
            _m("<g><title>{}: {} {}</title>", column.name, value, figure["reason"]),
            _m('<rect class="bare" x="0" y="{:.1f}" width="{}" height="17"/>', y, _WIDTH),
            _words(_LEFT, y + 14, _short(column.name)),
            _words(_RIGHT, y + 14, value, "end", "m"),
        ]
        if figure["value"] is not None and figure["low"] is not None:
            parts.append(_segment(f"line {column.colour}", x(figure["low"]), y + 24, x(figure["high"]), y + 24))
        if figure["value"] is not None:
            parts.append(
                _m(
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
        people = f"Green: people, {ceiling['value']:.3f} {_ends(ceiling)}"
    hollow = "; hollow dots: floors" if any(column.floor for column in columns) else ""
    label = f"{title} of each rater with its interval. {people}"
    return _m(
        "<figure><figcaption><b>{}</b> of raters with people. {}{}.</figcaption>{}</figure>",
        title,
        people.rstrip("."),
        hollow,
        _svg(bottom + 20, label, parts),
    )


def _beside(columns: Sequence[_Column]) -> Markup:
    """Return what should be known beside agreement, with how to read each row."""
    notes, found = _Notes(), [column.scores for column in columns]
    tests = [one["alternative_annotator_test"] for one in found]
    rows: list[tuple[str, list[object]]] = [
        ("readable items", [_percent(one["coverage"]) for one in found]),
        ("unreadable", [f"{one['unreadable_items']:,} items, {one['unreadable_draws']:,} draws" for one in found]),
        ("alpha, worst case", [_cell(one["worst_case"]["krippendorff_alpha"], notes) for one in found]),
        ("draws agree", [_percent(one["self_agreement"]) for one in found]),
    ]
    if any(one["length_correlation"] for one in found):
        rhos = [one["length_correlation"] or {"spearman_rho": None, "reason": ""} for one in found]
        cells: list[object] = [_number(rho["spearman_rho"]) + notes.mark(rho["reason"]) for rho in rhos]
        rows.append(("rho with length", cells))
    if any(one["position"] for one in found):
        for name, share, count, of in (
            ("chose first shown", "chose_first_shown", "decisions", "decisions"),
            ("same in both orders", "consistent", "items_in_both_orders", "items in both orders"),
        ):
            shares = [one["position"] for one in found]
            below = [_m("<small>{:,} {}</small>", one[count], of) if one else "" for one in shares]
            cells = [_percent(one and one[share]) + text for one, text in zip(shares, below, strict=True)]
            rows.append((name, cells))
    verdicts: list[object] = []
    for test in tests:
        tested = f"{test['annotators_tested']:,} tested, {test['left_out']:,} left out"
        if test["winning_rate"] is None:
            answer = "-" + notes.mark(test["reason"])
        else:
            answer = _m("{}, wins {:.0f} %", "yes" if test["passed"] else "no", 100 * test["winning_rate"])
            answer += notes.mark(test["reason"])
        verdicts.append(_m("{}<small>{}</small>", answer, tested))
    rows.append(("replaces people", verdicts))
    granted = [_m("{}<small>{}, epsilon {:g}</small>", 
        _number(test["advantage"]), test["score"], test["epsilon"]) for test in tests]  # fmt: skip
    rows.append(("advantage", list(granted)))
    heads, classes = _rater_heads(columns)
    read = _join(_m("<dt>{}</dt><dd>{}</dd>", name, _READ[name]) for name, _ in rows)
    worst_notes = _Notes()
    worst = _figures(list(columns[0].scores["worst_case"]), columns, "worst_case", worst_notes)
    return Markup(
        "<h2>What to know beside agreement</h2>\n{}{}\n<details open><summary>How to read these rows</summary>"
        '<dl class="read">{}</dl></details>\n<details><summary>Every figure in the worst case</summary>{}{}</details>'
    ).format(_table(["", *heads], rows, classes), notes.list(), read, worst, worst_notes.list())


def _distributions(columns: Sequence[_Column]) -> Markup:
    """Return bars of people's labels and of everyone's verdicts, grouped by label."""
    labels = list(columns[0].scores["label_shares"])
    series = [("people's labels", "people", False, columns[0].scores["label_shares"])]
    series += [(column.name, column.colour, column.floor, column.scores["verdict_shares"]) for column in columns]
    most = max([0.01, *(shares[label] for *_, shares in series for label in labels)])
    y, parts = 4.0, []
    for label in labels:
        parts.append(_words(0, y + 12, _short(label)))
        y += 17
        for name, colour, hollow, shares in series:
            width = 300 * shares[label] / most
            parts.append(
                Markup('<g><title>{}, {}: {}</title><rect class="{} {}" x="1" y="{:.1f}" width="{:.1f}" height="8"/>'
                       "{}</g>").format(name, label, _percent(shares[label]), "hollow" if hollow else "dot", colour,
                                        y, max(width, 0.1), _words(6 + width, y + 8.5, _percent(shares[label]),
                                                                   kind="m"))
            )  # fmt: skip
            y += 12
        y += 8
    key = _join(
        _m('<li><i class="{} {}"></i>{}</li>', colour, "hollow" if hollow else "", name)
        for name, colour, hollow, _ in series
    )
    return Markup(
        "<h2>Labels and verdicts</h2>\n<p>A rater that uses the scale as people do has bars as long as theirs, which "
        'says nothing of agreement item by item.</p>\n<ul class="key">{}</ul>\n<figure>{}</figure>'
    ).format(key, _svg(y, "Share of each label among people's labels and each rater's verdicts", parts))


def _between(scores: Mapping[str, Any]) -> Markup:
    """Return how raters agree with each other, and the differences between them; nothing for one rater."""
    between = scores["between_raters"]
    if not between:
        return Markup()
    notes = _Notes()
    whole = [name for name in ("krippendorff_alpha", "icc3_1", "icc3_k") if name in between]
    together = _table(
        [f"all {len(scores['raters'])} raters", "figure"],
        [(FIGURE_NAMES[name], [_cell(between[name], notes)]) for name in whole],
    )
    figures = [name for name in between["pairs"][0] if name != "raters"]
    pairs = _table(
        ["pair", *(FIGURE_NAMES.get(name, name) for name in figures)],
        [(" and ".join(pair["raters"]), [_cell(pair[name], notes) for name in figures]) for pair in between["pairs"]],
        kind="pairs",
    )
    rows = [
        (_m("{}<small>{}</small>", FIGURE_NAMES.get(one["figure"], one["figure"]),
                                              " minus ".join(one["raters"])),
         [_cell(one, notes), _number(one["p"]), _number(one.get("p_holm"))])
        for one in scores["differences"]
    ]  # fmt: skip
    differences = _table(["first minus second", "difference", "p", "p, Holm"], rows, kind="pairs")
    return Markup(
        "<h2>Raters among each other</h2>\n{}{}\n<h3>Differences in agreement with people</h3>\n<p>Paired: on the same "
        "resamples of the items that both could be read on. Holm's correction is over the pairs of raters.</p>\n{}{}"
    ).format(together, pairs, differences, notes.list())


def _utilisation(summary: Mapping[str, Any]) -> Markup:
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
        parts.append(_segment("grid" if tick else "zero", 40, y(tick), 340, y(tick)))
        parts.append(_words(34, y(tick) + 4, f"{tick:.0%}", "end", "m"))
    parts += [_words(x(point), bottom + 15, point["k"], "middle", "m") for point in points]
    parts.append(_words(190, bottom + 31, "draws for an item", "middle", "m"))
    ends = [[(point, point["null"] + sign * 1.96 * (point["null_sd"] or 0.0)) for point in known] for sign in (1, -1)]
    band = path([*ends[0], *reversed(ends[1])])
    parts.append(_m('<polygon class="null" points="{}"/>', band))
    for kind, found in (
        ("line dash chance", [(point, point["null"]) for point in known]),
        ("line c0", [(point, point["share"]) for point in points]),
    ):
        parts.append(_m('<polyline class="{}" points="{}"/>', kind, path(found)))
        colour = kind.split()[-1]
        parts += [
            _m('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>', colour, x(point), y(share))
            for point, share in found
        ]
    rows = [(point["k"], [_percent(point["share"]), _percent(point["null"]),
                          _percent(None if point["null_sd"] is None else 1.96 * point["null_sd"])])
            for point in points]  # fmt: skip
    label = "Share of labels with an accepted draw by number of draws, beside permuted labels"
    return Markup(
        "<h2>Utilisation of inferring traces</h2>\n<p>The share of people's labels that some draw of the model reached "
        "({}, {}), beside what permuted labels would have had. Where the curve is in the band, chance explains it.</p>"
        '\n<ul class="key"><li><i class="c0"></i>people\'s labels</li><li><i class="chance hollow"></i>permuted labels '
        '(band: ± 1.96 sd)</li></ul>\n<div class="plots"><figure>{}</figure>{}</div>'
    ).format(summary.get("model", "-"), summary.get("corpus", "-"), _svg(bottom + 38, label, parts),
             _table(["draws", "labels reached", "permuted", "±"], rows))  # fmt: skip


def _flat(name: str, value: Any, notes: _Notes) -> Iterable[tuple[str, object]]:
    """Yield a record's leaves with their path; a figure with its interval is one leaf."""
    if isinstance(value, Mapping) and {"value", "low", "high", "reason"} <= value.keys():
        yield name, _cell(value, notes)
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
        notes = _Notes()
        rows = [(name, [value]) for name, value in _flat("", certificate, notes)]
        verdict = "certified" if certificate["certified"] else f"no certificate: {certificate.get('reason', '')}"
        parts.append(
            _m(
                "<h3>{}: {}</h3>\n<details><summary>All that it says</summary>{}{}</details>",
                certificate["rater"],
                verdict,
                _table(["field", "value"], rows, kind="flat"),
                notes.list(),
            )
        )
    return _m("<h2>Certificates</h2>\n{}", _join(parts, "\n")) if parts else Markup()
