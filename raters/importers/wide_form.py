"""Wide tables of several dimensions: a column for what each annotator said on each, told by the names of the columns.

`clarity_rater1`, `tone_rater1`, `clarity_rater2`, `tone_rater2` are the dimensions clarity and tone of two annotators.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from raters.importers.source_items import in_short
from raters.records import ConfigError, shown

SLOT = "{}"
"""Stands for the dimension in an annotator's columns: `{}_rater1`."""
_BETWEEN = " _.:/|()[]-"
_PERSON = r"(?:annotator|rater|worker|coder|judge|expert|annot|ann)[ _.-]?(?:\d{1,3}|[a-z])"
_NAMES = (
    re.compile(rf"(?P<dimension>.+?)[ _.-]+(?P<annotator>{_PERSON})", re.IGNORECASE),
    re.compile(rf"(?P<annotator>{_PERSON})[ _.-]+(?P<dimension>.+)", re.IGNORECASE),
)


class LabelColumn(NamedTuple):
    """A column of what one annotator said on one dimension."""

    column: str
    annotator: str
    dimension: str


def columns_of(patterns: Sequence[str], names: Sequence[str], where: str) -> tuple[LabelColumn, ...]:
    """Return the columns that patterns stand for, one pattern an annotator.

    Args:
        patterns: With the slot for the dimension in each.
        names: Of all columns.
        where: The table, for errors.

    Raises:
        ConfigError: If a pattern has no slot, names nobody or no column, or a column is of two annotators.
    """
    found: dict[str, LabelColumn] = {}
    for pattern in patterns:
        head, slot, tail = pattern.partition(SLOT)
        annotator = f"{head.rstrip(_BETWEEN)} {tail.lstrip(_BETWEEN)}".strip(_BETWEEN)
        if not slot or SLOT in tail or not annotator:
            raise ConfigError(
                f"--annotators {pattern}: must have {SLOT} once for the dimension and the annotator beside it, such as "
                f"{SLOT}_rater1; or name every column in full"
            )
        fitting = [
            LabelColumn(name, annotator, dimension)
            for name in names
            if name.startswith(head) and name.endswith(tail) and (dimension := _between(name, head, tail))
        ]
        if not fitting:
            listed = in_short([shown(name) for name in names if name])
            raise ConfigError(f"--annotators {pattern}: {where} has no such column; it has {listed}")
        for one in fitting:
            if found.setdefault(one.column, one) != one:
                raise ConfigError(
                    f"--annotators {pattern}: column {shown(one.column)} would be {found[one.column].annotator}'s as "
                    "well; write more of the name"
                )
    return tuple(found.values())


def guessed(names: Sequence[str]) -> tuple[LabelColumn, ...]:
    """Return columns that are numbered annotators' on named dimensions; none if any is missing or names tell two ways.

    Args:
        names: Of columns that may hold labels.
    """
    ways = []
    for form in _NAMES:
        matches = [(name, match) for name in names if (match := form.fullmatch(name))]
        found = tuple(LabelColumn(name, match["annotator"], match["dimension"]) for name, match in matches)
        annotators, dimensions = {one.annotator for one in found}, {one.dimension for one in found}
        if len(annotators) > 1 and len(annotators) * len(dimensions) == len(found):
            ways.append(found)
    return ways[0] if len(ways) == 1 else ()


def _between(name: str, head: str, tail: str) -> str:
    """Return what stands for the dimension in a name; empty if head and tail overlap."""
    return name[len(head) : len(name) - len(tail)].strip(_BETWEEN)
