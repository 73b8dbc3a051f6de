"""What a rater said of each item: read from its ratings, or made for comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raters.corpora import Corpus
from raters.corpus_files import Dimension
from raters.gold import AggregateMethod, aggregate_draws, nearest_label
from raters.journal import read_lines
from raters.label_probabilities import Probabilities, from_record, joined_draws
from raters.records import DataError, shown
from raters.scales import AnyScale, listed_labels


@dataclass(frozen=True)
class RaterDraws:
    """What one rater said of each item.

    Attributes:
        name: For tables.
        items: (rows,) corpus index of each rated item, ascending.
        numbers: (rows, draws) verdicts as the scale's numbers, nan if unreadable or not drawn.
        drawn: (rows,) how many draws were made.
        swapped: (rows, draws) True where a pair's texts were shown in exchanged order.
        aggregate: How draws become one verdict.
        quantities: (rows,) what it says as a quantity, if its verdicts do not tell it: a prediction, or the expected
            value over labels.
    """

    name: str
    items: NDArray[np.int64]
    numbers: NDArray[np.float64]
    drawn: NDArray[np.int64]
    swapped: NDArray[np.bool_]
    aggregate: AggregateMethod
    quantities: NDArray[np.float64] | None = None

    def values(self, scale: AnyScale) -> NDArray[np.float64]:
        """Return (rows,) what the draws of each item say together, as a quantity; nan if nothing can be read."""
        if self.quantities is not None:
            return self.quantities
        found = [aggregate_draws(row, self.aggregate, scale) for row in self.numbers]
        return np.array([np.nan if value is None else value for value in found])

    def verdicts(self, scale: AnyScale) -> NDArray[np.float64]:
        """Return (rows,) the same as the number of the nearest label."""
        values = self.values(scale)
        readable = np.isfinite(values)
        numbers = np.full(len(values), np.nan)
        numbers[readable] = [scale.number(nearest_label(value, scale)) for value in values[readable].tolist()]
        return numbers


def read_draws(path: Path, name: str, corpus: Corpus, dimension: Dimension, aggregate: AggregateMethod) -> RaterDraws:
    """Return the ratings of a ratings.jsonl.

    Args:
        path: A line a draw: item_id, dimension, verdict, and draw (0 if there is none); label_probabilities if the
            model told them, so that the item is rated by them instead of by the verdicts drawn.
        name: Of the rater, for tables.
        corpus: Where the items are.
        dimension: What was rated.
        aggregate: How draws become one verdict.

    Raises:
        DataError: If a line is of an unknown item, another dimension, a verdict off the scale, a draw made before, or
            probabilities that are none.
    """
    index = {item_id: place for place, item_id in enumerate(corpus.item_ids)}
    found: dict[int, dict[int, tuple[float, bool]]] = {}
    told: dict[tuple[int, int], Probabilities] = {}
    for line_number, _, record in read_lines(path):
        where = f"{path} line {line_number}"
        for key in ("item_id", "dimension", "verdict"):
            if key not in record:
                raise DataError(f"{where}: no {key}; give the ratings.jsonl of rate_items")
        if record["dimension"] != dimension.name:
            wanted = f"scored is {dimension.name}; give ratings of one dimension"
            raise DataError(f"{where}: dimension {shown(record['dimension'])}, and {wanted}")
        if record["item_id"] not in index:
            raise DataError(f"{where}: item_id {shown(record['item_id'])} is not in corpus {corpus.name}; give its own")
        draw = record.get("draw", 0)
        if type(draw) is not int or draw < 0:
            raise DataError(f"{where}: draw {shown(draw)} is no number from 0; mend the line")
        number = np.nan
        if record["verdict"] is not None:
            try:
                number = dimension.scale.number(dimension.scale.canonical(record["verdict"]))
            except ValueError as error:
                raise DataError(f"{where}: {str(error).replace('label', 'verdict', 1)}; mend the line") from error
        draws = found.setdefault(index[record["item_id"]], {})
        if draw in draws:
            raise DataError(f"{where}: draw {draw} of item {shown(record['item_id'])} stands twice; keep one of them")
        draws[draw] = (float(number), record.get("swapped") is True)
        if record.get("label_probabilities") is not None:
            try:
                told[index[record["item_id"]], draw] = from_record(record["label_probabilities"], dimension.scale)
            except ValueError as error:
                raise DataError(f"{where}: {error}; mend the line") from error
    items = np.array(sorted(found), np.int64)
    width = 1 + max(max(draws) for draws in found.values())
    numbers, swapped = np.full((len(items), width), np.nan), np.zeros((len(items), width), bool)
    for row, item in enumerate(items.tolist()):
        for draw, (number, exchanged) in found[item].items():
            numbers[row, draw], swapped[row, draw] = number, exchanged
    drawn = np.array([len(found[item]) for item in items.tolist()], np.int64)
    quantities = _quantities(items, numbers, told, aggregate, dimension.scale) if told else None
    return RaterDraws(name, items, numbers, drawn, swapped, aggregate, quantities)


def _quantities(
    items: NDArray[np.int64],
    numbers: NDArray[np.float64],
    told: Mapping[tuple[int, int], Probabilities],
    aggregate: AggregateMethod,
    scale: AnyScale,
) -> NDArray[np.float64]:
    """Return (rows,) what the draws of each item say together where some have told probabilities by (item, draw)."""
    quantities = np.full(len(items), np.nan)
    probabilities = np.full((numbers.shape[1], len(listed_labels(scale))), np.nan)
    for row, item in enumerate(items.tolist()):
        probabilities[:] = np.nan
        for draw in range(numbers.shape[1]):
            if (item, draw) in told:
                probabilities[draw] = told[item, draw]
        value = joined_draws(numbers[row], probabilities, aggregate, scale)
        quantities[row] = np.nan if value is None else value
    return quantities
