"""What a rater said of each item: read from its ratings, or made for comparison."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raters.corpora import Corpus
from raters.corpus_files import Dimension
from raters.gold import AggregateMethod, aggregate_draws, nearest_label
from raters.journal import read_lines
from raters.label_probabilities import Probabilities, from_record, joined_draws, mean_probabilities
from raters.records import MOST_DRAWS, DataError, shown
from raters.scales import AnyScale, listed_labels

_LONGEST_FILE_NAME = 60
"""In characters, of up to four bytes each: what every file system takes, with an ending."""


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
        by_probabilities: How many items are rated by the labels' probabilities, not by the verdicts drawn.
        made_by: Hashes of the raters that made the ratings, as their lines say; empty if it was not read from a file.
        sha256: Hash of what was read; empty likewise.
    """

    name: str
    items: NDArray[np.int64]
    numbers: NDArray[np.float64]
    drawn: NDArray[np.int64]
    swapped: NDArray[np.bool_]
    aggregate: AggregateMethod
    quantities: NDArray[np.float64] | None = None
    by_probabilities: int = 0
    made_by: frozenset[str] = frozenset()
    sha256: str = ""

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


def rated_dimension(path: Path, *, complete: bool = True) -> str:
    """Return which dimension the first line of a ratings.jsonl rates.

    Args:
        path: The file.
        complete: False if its run was killed or goes on, so that its last line may be torn.

    Raises:
        DataError: If there is no line, or it names no dimension.
    """
    _, _, first = next(read_lines(path, pass_over_torn=not complete))
    if "dimension" not in first:
        raise DataError(f"{path} line 1: no dimension; give the ratings.jsonl of rate_items")
    if not isinstance(first["dimension"], str):
        raise DataError(f"{path} line 1: dimension {shown(first['dimension'])} is not text; mend the line")
    return str(first["dimension"])


def read_draws(
    path: Path, name: str, corpus: Corpus, dimension: Dimension, aggregate: AggregateMethod, *, complete: bool = True
) -> RaterDraws:
    """Return the ratings of a ratings.jsonl.

    Args:
        path: A line a draw: item_id, dimension, verdict, and draw (0 if there is none); label_probabilities if the
            model told them, so that the item is rated by them instead of by the verdicts drawn.
        name: Of the rater, for tables.
        corpus: Where the items are.
        dimension: What was rated.
        aggregate: How draws become one verdict.
        complete: False if its run was killed or goes on: a last line without a line break is passed over.

    Raises:
        DataError: If a line is of an unknown item, another dimension, a verdict off the scale, a draw made before, or
            probabilities that are none.
    """
    index = {item_id: place for place, item_id in enumerate(corpus.item_ids)}
    found: dict[int, dict[int, tuple[float, bool]]] = {}
    told: dict[tuple[int, int], Probabilities] = {}
    digest, made_by = hashlib.sha256(), set[str]()
    for line_number, _, record in read_lines(path, digest, pass_over_torn=not complete):
        where = f"{path} line {line_number}"
        for key in ("item_id", "dimension", "verdict"):
            if key not in record:
                raise DataError(f"{where}: no {key}; give the ratings.jsonl of rate_items")
        if record["dimension"] != dimension.name:
            wanted = f"scored is {dimension.name}; give ratings of one dimension"
            raise DataError(f"{where}: dimension {shown(record['dimension'])}, and {wanted}")
        item_id = record["item_id"]
        if not isinstance(item_id, str) or item_id not in index:
            raise DataError(f"{where}: item_id {shown(item_id)} is not in corpus {corpus.name}; give its own ratings")
        draw = record.get("draw", 0)
        if type(draw) is not int or not 0 <= draw < MOST_DRAWS:
            raise DataError(f"{where}: draw {shown(draw)} is no number from 0 to {MOST_DRAWS - 1}; mend the line")
        number = np.nan
        if record["verdict"] is not None:
            try:
                number = dimension.scale.number(dimension.scale.canonical(record["verdict"]))
            except ValueError as error:
                raise DataError(f"{where}: {str(error).replace('label', 'verdict', 1)}; mend the line") from error
        draws = found.setdefault(index[item_id], {})
        if draw in draws:
            raise DataError(f"{where}: draw {draw} of item {shown(item_id)} stands twice; keep one of them")
        draws[draw] = (float(number), record.get("swapped") is True)
        if record.get("label_probabilities") is not None:
            try:
                told[index[item_id], draw] = from_record(record["label_probabilities"], dimension.scale)
            except ValueError as error:
                raise DataError(f"{where}: {error}; mend the line") from error
        made_by.add(str(record.get("rater_sha256")))
    items = np.array(sorted(found), np.int64)
    width = 1 + max(max(draws) for draws in found.values())
    numbers, swapped = np.full((len(items), width), np.nan), np.zeros((len(items), width), bool)
    for row, item in enumerate(items.tolist()):
        for draw, (number, exchanged) in found[item].items():
            numbers[row, draw], swapped[row, draw] = number, exchanged
    drawn = np.array([len(found[item]) for item in items.tolist()], np.int64)
    quantities, by_probabilities = None, 0
    if told:
        quantities, by_probabilities = _quantities(items, numbers, told, aggregate, dimension.scale)
    return RaterDraws(
        name,
        items,
        numbers,
        drawn,
        swapped,
        aggregate,
        quantities,
        by_probabilities,
        made_by=frozenset(made_by),
        sha256=digest.hexdigest(),
    )


def _quantities(
    items: NDArray[np.int64],
    numbers: NDArray[np.float64],
    told: Mapping[tuple[int, int], Probabilities],
    aggregate: AggregateMethod,
    scale: AnyScale,
) -> tuple[NDArray[np.float64], int]:
    """Return what the draws of each item say together where some have told probabilities by (item, draw).

    Returns:
        (rows,) the quantities, and of how many items probabilities decide.
    """
    quantities, by_probabilities = np.full(len(items), np.nan), 0
    probabilities = np.full((numbers.shape[1], len(listed_labels(scale))), np.nan)
    for row, item in enumerate(items.tolist()):
        probabilities[:] = np.nan
        for draw in range(numbers.shape[1]):
            if (item, draw) in told:
                probabilities[draw] = told[item, draw]
        value = joined_draws(numbers[row], probabilities, aggregate, scale)
        quantities[row] = np.nan if value is None else value
        by_probabilities += mean_probabilities(numbers[row], probabilities) is not None
    return quantities, by_probabilities


def rater_names(ratings: Sequence[Path]) -> list[str]:
    """Return a name for the rater of each ratings file, no two of which give one file name.

    It is the name of the file's folder, with as many of the folders above as it takes to tell it from the others, the
    file's own name if a folder holds several, and a number if nothing else helps. Characters that could move a
    terminal's cursor are replaced.

    Args:
        ratings: The files, by any path.
    """
    folders = [path.parent.resolve() for path in ratings]
    shared = [folders.count(folder) > 1 for folder in folders]
    parts = [
        (*folder.parts[1:], *([path.stem] if several else []))
        for path, folder, several in zip(ratings, folders, shared, strict=True)
    ]
    depths = [1 + several for several in shared]
    while True:
        names = [in_one_line("/".join(each[-depth:])) or "rater" for each, depth in zip(parts, depths, strict=True)]
        keys = [_file_key(name) for name in names]
        above = [each[:-depth] for each, depth in zip(parts, depths, strict=True)]
        # Folders above tell raters apart only if they differ, and only as long as they fit into a file's name.
        unclear = [
            bool(own)
            and len(name) < _LONGEST_FILE_NAME
            and len({other for other, same in zip(above, keys, strict=True) if same == key}) > 1
            for own, name, key in zip(above, names, keys, strict=True)
        ]
        if not any(unclear):
            break
        depths = [depth + more for depth, more in zip(depths, unclear, strict=True)]
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        numbered, number = name, 1
        while _file_key(numbered) in taken or (number > 1 and _file_key(numbered) in keys):
            number += 1
            numbered = f"{name} {number}"
        taken.add(_file_key(numbered))
        found.append(numbered)
    return found


def file_name(name: str) -> str:
    """Return a rater's name as that of a file, without its ending."""
    kept = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name))
    return kept[-_LONGEST_FILE_NAME:].lstrip(".") or "rater"


def _file_key(name: str) -> str:
    """Return what two names have in common if a file system could take their files for one."""
    return file_name(name).casefold()


def in_one_line(text: str) -> str:
    """Return a text without line breaks and other control characters: a folder's name may hold any."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
