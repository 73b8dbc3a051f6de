"""The scores of raters as lines for a terminal. Names and labels are texts of others: no line holds what ends one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from raters.rater_draws import in_one_line

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
_LONGEST_HEAD = 28
_MOST_RATERS = 5
"""Of one table, people among them: more are wider than a terminal."""
_GAP = "  "


def score_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    """Yield the scores for a reader, a line each.

    Args:
        scores: What `scoring.score` returns, with `partial`.
    """
    yield from map(in_one_line, _lines(scores))


def progress_text(one: Mapping[str, Any]) -> str:
    """Return how much of a run that is not complete was scored."""

    def of(name: str) -> str:
        whole = one[f"of_{name}"]
        return f"{one[name]:,} {name}" if whole is None else f"{one[name]:,} of {whole:,} {name}"

    return f"{one['rater']} ({of('items')}, {of('draws')})"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as a percentage; a dash if it is not defined."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def ends(figure: Mapping[str, Any]) -> str:
    """Return a figure's interval; nothing if it has none."""
    return "" if figure["low"] is None else f"[{figure['low']:.3f}, {figure['high']:.3f}]"


def figure_text(figure: Mapping[str, Any]) -> str:
    """Return a figure with its interval; a dash if it is undefined."""
    return "-" if figure["value"] is None else f"{figure['value']:.3f} {ends(figure)}".rstrip()


def _lines(scores: Mapping[str, Any]) -> Iterator[str]:
    human, columns = scores["human"], [*scores["raters"], *scores["floors"]]
    yield f"{scores['corpus']}, {scores['dimension']} ({scores['scale']}), labels: {scores['label_method']}"
    yield (
        f"  {scores['items']:,} rated items, {scores['items_with_label']:,} with a label; {scores['annotators']:,} "
        f"annotators, alpha among them {figure_text(human['alpha'])}"
    )
    few = "" if scores["resampled"] == "groups" else ", there being fewer than 20 groups"
    count = f"{scores['resampled_count']:,} {scores['resampled']}"
    yield f"  95 % intervals: {scores['resamples']:,} resamples of {count}{few}"
    for rater in scores["raters"]:
        if by := rater["items_by_probabilities"]:
            yield f"  {rater['rater']}: rated by the labels' probabilities, {by:,} of {scores['items']:,} items"
    if scores["partial"]:
        yield f"  not complete: {', '.join(map(progress_text, scores['partial']))}"
    yield ""
    yield "Agreement with people's gold label; in the last column, of one person with the gold label of the others"
    yield from _agreement(columns, human)
    yield ""
    yield from _shares(columns)
    yield from _reasons(scores)
    if scores["between_raters"]:
        yield ""
        yield from _between(scores)


def _agreement(columns: Sequence[Mapping[str, Any]], human: Mapping[str, Any]) -> Iterator[str]:
    def row(name: str, cell: Callable[[Mapping[str, Any]], str]) -> tuple[str, list[str]]:
        return name, [*map(cell, columns), ""]

    rows: list[tuple[str, list[str]]] = []
    for name, ceiling in human["ceiling"].items():
        found = [figure_text(rater["agreement"][name]) for rater in columns]
        rows.append((FIGURE_NAMES[name], [*found, figure_text(ceiling)]))
    rows += [
        row("readable items", lambda rater: percent(rater["coverage"])),
        row("alpha, worst case", lambda rater: figure_text(rater["worst_case"]["krippendorff_alpha"])),
        row("draws agree", lambda rater: percent(rater["self_agreement"])),
        row("rho with length", lambda rater: _rho(rater["length_correlation"])),
        row("replaces people", lambda rater: _verdict(rater["alternative_annotator_test"])),
    ]
    if any(rater["position"] for rater in columns):
        for name, key in (("chose first shown", "chose_first_shown"), ("same in both orders", "consistent")):
            rows.append((name, [*(percent((rater["position"] or {}).get(key)) for rater in columns), ""]))
    people = "people, one table" if human["ceiling_pooled"] else "people, each"
    yield from _table("figure", [*(rater["rater"] for rater in columns), people], rows, _MOST_RATERS)


def _shares(columns: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    labels = list(columns[0]["label_shares"])
    rows = [("people's labels", [percent(columns[0]["label_shares"][label]) for label in labels])]
    names = _told_apart([rater["rater"] for rater in columns], _LONGEST_HEAD)
    for name, rater in zip(names, columns, strict=True):
        rows.append((name, [percent(rater["verdict_shares"][label]) for label in labels]))
    yield from _table("share of", labels, rows)


def _between(scores: Mapping[str, Any]) -> Iterator[str]:
    between = scores["between_raters"]
    icc = f", ICC(3,1) {figure_text(between['icc3_1'])}" if "icc3_1" in between else ""
    yield f"Raters among each other: alpha {figure_text(between['krippendorff_alpha'])}{icc}"
    for difference in scores["differences"]:
        if difference["figure"] in ("kendall_tau_b", "krippendorff_alpha"):
            p = difference["p_holm"]
            name, pair = FIGURE_NAMES[difference["figure"]], " minus ".join(difference["raters"])
            why = f"  ({difference['reason']})" if difference["reason"] else ""
            yield f"  {name}: {pair} = {figure_text(difference)}, p {'-' if p is None else f'{p:.3f}'} (Holm){why}"


def _reasons(scores: Mapping[str, Any]) -> Iterator[str]:
    """Yield why figures, intervals or tests are missing, each reason once with all whom it concerns."""
    human, columns = scores["human"], [*scores["raters"], *scores["floors"]]
    blocks = [("people", {"alpha among them": human["alpha"], **human["ceiling"]})]
    blocks += [(rater["rater"], rater["agreement"]) for rater in columns]
    found: dict[tuple[str, str], list[str]] = {}
    for who, block in blocks:
        by_reason: dict[str, list[str]] = {}
        for name, figure in block.items():
            if figure["reason"]:
                by_reason.setdefault(figure["reason"], []).append(FIGURE_NAMES.get(name, name))
        for reason, names in by_reason.items():
            which = "any figure" if len(names) == len(block) else ", ".join(names)
            found.setdefault((f"no value or interval of {which}", reason), []).append(who)
    for rater in columns:
        if reason := rater["alternative_annotator_test"]["reason"]:
            found.setdefault(("cannot be tested for replacing people", reason), []).append(rater["rater"])
    for (what, reason), whom in found.items():
        yield f"  {what} ({', '.join(whom)}): {reason}"


def _table(
    corner: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], most: int | None = None
) -> Iterator[str]:
    """Yield a table, or several below each other with no more than `most` columns; long heads lose their middle."""
    heads = _told_apart(heads, _LONGEST_HEAD)
    tables = 1 if most is None else -(-len(heads) // most)
    for place in range(tables):
        part = slice(place * len(heads) // tables, (place + 1) * len(heads) // tables)
        if place:
            yield ""
        yield from _narrow_table([[corner, *heads[part]], *([name, *cells[part]] for name, cells in rows)])


def _narrow_table(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table whose columns are as wide as their widest cell."""
    table = [[in_one_line(cell) for cell in line] for line in lines]
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    for first, *cells in table:
        aligned = (" " * (width - _width(cell)) + cell for cell, width in zip(cells, widths[1:], strict=True))
        padding = " " * (widths[0] - _width(first))
        yield f"{_GAP}{first}{padding}{_GAP}{_GAP.join(aligned)}".rstrip()


def _told_apart(names: Iterable[str], longest: int) -> list[str]:
    """Return names without their middle if they are long, but those whole that would not be told apart."""
    whole = [in_one_line(name) for name in names]
    short = [without_middle(name, longest) for name in whole]
    return [one if short.count(one) == 1 else name for name, one in zip(whole, short, strict=True)]


def without_middle(name: str, longest: int) -> str:
    """Return a name as it is if it fits, else as much of its beginning and end as does."""
    if _width(name) <= longest:
        return name
    begin = end = ""
    for front, back in zip(name, reversed(name), strict=True):
        if _width(begin + front + end) >= longest:
            break
        begin += front
        if _width(begin + back + end) >= longest:
            break
        end = back + end
    return f"{begin}…{end}"


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _rho(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None or found["spearman_rho"] is None else f"{found['spearman_rho']:.3f}"


def _verdict(test: Mapping[str, Any]) -> str:
    if test["winning_rate"] is None:
        return "cannot be tested"
    return f"{'yes' if test['passed'] else 'no'} (wins against {percent(test['winning_rate'], 0)})"
