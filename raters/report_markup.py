"""Pieces of the report: markup with everything of others escaped into it, tables, and what a column stands for."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from raters.score_text import ends

COLOURS = 6
"""Of raters; the seventh has that of the first."""


_KEPT_UNPRINTABLE = "\n\t\u200c\u200d"
"""Of what is not printable, what scripts need to join letters and what separates lines and words."""


@dataclass(frozen=True)
class Column:
    """A rater or floor: its scores, the class that colours it, and whether it is a floor."""

    scores: Mapping[str, Any]
    colour: str
    floor: bool

    @property
    def name(self) -> str:
        """The rater's."""
        return str(self.scores["rater"])


@dataclass
class Notes:
    """Reasons that stand below a table, each once."""

    reasons: list[str] = field(default_factory=list)

    def mark(self, reason: object) -> Markup:
        """Return the mark of a reason; nothing for an empty one."""
        text = str(reason or "")
        if not text:
            return Markup()
        if text not in self.reasons:
            self.reasons.append(text)
        return markup("<sup>{}</sup>", self.reasons.index(text) + 1)

    def list(self) -> Markup:
        """Return the reasons as a list."""
        if not self.reasons:
            return Markup()
        rows = join(markup("<li>{}</li>", reason) for reason in self.reasons)
        return markup('<ol class="notes">{}</ol>', rows)


def markup(template: str, *values: object) -> Markup:
    """Return a template with values escaped into it, unless they are markup themselves."""
    return Markup(template).format(*values)


def join(parts: Iterable[Markup], between: str = "") -> Markup:
    """Return pieces of markup as one."""
    return Markup(between).join(parts)


def number(value: float | None, digits: int = 3) -> str:
    """Return a number; a dash if there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def figure_cell(figure: Mapping[str, Any], notes: Notes) -> Markup:
    """Return a figure over its interval, or `-`, with the mark of its reason."""
    interval = ends(figure) if figure["value"] is not None else ""
    below = markup("<small>{}</small>", interval) if interval else Markup()
    return markup("{}{}{}", number(figure["value"]), notes.mark(figure["reason"]), below)


def table(heads: Sequence[object], rows: Iterable[tuple[object, Sequence[object]]], classes: Sequence[str] = (),
           kind: str = "") -> Markup:  # fmt: skip
    """Return a table that scrolls in its own box; the first head is that of the rows' names.

    Args:
        heads: Of all columns.
        rows: Name and cells of each.
        classes: Of the columns after the first.
        kind: Class of the table.
    """
    classes = list(classes) or [""] * (len(heads) - 1)
    first = markup('<th scope="col">{}</th>', heads[0])
    head = first + join(
        markup('<th scope="col" class="{}">{}</th>', name, text) for text, name in zip(heads[1:], classes, strict=True)
    )
    body = join(
        (
            markup(
                '<tr><th scope="row">{}</th>{}</tr>',
                name,
                join(markup('<td class="{}">{}</td>', kind_, cell) for cell, kind_ in zip(cells, classes, strict=True)),
            )
            for name, cells in rows
        ),
        "\n",
    )
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="table: {}">'
        '<table class="{}"><thead><tr>{}</tr></thead>\n<tbody>{}</tbody></table></div>'
    ).format(heads[0], kind, head, body)


def rater_heads(columns: Sequence[Column]) -> tuple[list[Markup], list[str]]:
    """Return head and class of each rater's column."""
    heads = []
    for column in columns:
        draws = column.scores["draws_per_item"]
        how = f"{column.scores['aggregate']} of {draws} draws" if draws > 1 else "1 draw"
        if by := column.scores["items_by_probabilities"]:
            how += f", label probabilities of {by:,} items"
        heads.append(markup("{}<small>{}</small>", column.name, how))
    return heads, ["floor" if column.floor else "" for column in columns]


def segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """Return a line of a drawing."""
    return markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>', kind, x1, y1, x2, y2)


def words(x: float, y: float, text: object, anchor: str = "start", kind: str = "") -> Markup:
    """Return a text of a drawing."""
    return markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>', kind, x, y, anchor, text)


def visible(page: str) -> str:
    """Return a page without characters that control it unseen; spaces of all widths and joiners stay."""
    return "".join(
        character
        if character.isprintable() or character in _KEPT_UNPRINTABLE or unicodedata.category(character) == "Zs"
        else "\N{REPLACEMENT CHARACTER}"
        for character in page.replace("\r\n", "\n")
    )
