"""The ledger of a sampling run: which draws were made, what their verdicts were, which labels they matched.

It holds numbers only, no texts, so that a run over a hundred thousand items stays small, and it can be rebuilt
from the journal at any time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raters.corpora import Corpus
from raters.corpus_files import Dimension
from raters.gold import AGGREGATED, LabelTable
from raters.journal import Record
from raters.records import Chance, DataError, shown
from raters.scales import listed_labels

UNDRAWN = -np.inf
"""In `Ledger.numbers`: this draw was not made."""
UNREADABLE = np.nan
"""In `Ledger.numbers`: this draw's verdict could not be read."""
CHANCES: tuple[Chance, ...] = ("first", "escalated", "rationalized")
_COUNTERS = ("draws", "finish_reasons", "read_by_chance", "written_by_chance")
_MATCHES = ("matched_draw", "matched_chance", "matched_offset")


@dataclass
class Totals:
    """Running totals, over this session and the ones before it.

    Attributes:
        draws: By chance.
        unreadable: Draws whose verdict could not be read.
        finish_reasons: How many draws ended in which way.
        prompt_tokens: Read, as far as the models count.
        completion_tokens: Written, as far as the models count.
        uncounted: Draws whose tokens the model did not count.
        read_by_chance: As `prompt_tokens`, by chance, since chances may have models of other prices.
        written_by_chance: As `completion_tokens`.
    """

    draws: Counter[Chance] = field(default_factory=Counter)
    unreadable: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    read_by_chance: Counter[Chance] = field(default_factory=Counter)
    written_by_chance: Counter[Chance] = field(default_factory=Counter)


class Ledger:
    """Rows, units, and what was drawn for them.

    A *row* is an item with at least one label, a *unit* is one label. With aggregated labels a row has one unit;
    per annotator it has one for each of them, and its draws are shared.

    Attributes:
        rows: (rows,) corpus index of each row's item, in the order of work.
        unit_rows: (units,) row of each unit; units of a row stand together.
        unit_numbers: (units,) label as the scale's number.
        unit_annotators: (units,) index of the annotator, AGGREGATED if none.
        human_agreement: (units,) share of the item's annotators who gave the unit's label.
        numbers: By chance: (rows, draws) verdict as the scale's number, UNDRAWN or UNREADABLE; for
            `rationalized` (units, draws).
        matched_draw: (units,) draw of the kept candidate, -1 if none agreed.
        matched_chance: (units,) its chance, a place in CHANCES.
        matched_offset: (units,) where its line begins in the journal.
        given_up: (rows,) True for a row that gets no further first draw although a unit of it is open; see `giving_up`.
        accepted: By unit, (draw, offset) of every accepted first draw, if `keep_all` was asked for.
    """

    def __init__(
        self,
        corpus: Corpus,
        dimension: Dimension,
        labels: LabelTable,
        order: NDArray[np.int64],
        draws: dict[Chance, int],
        *,
        keep_all: bool = False,
    ) -> None:
        """Lay out an empty ledger.

        Args:
            corpus: Where the items are.
            dimension: What was asked.
            labels: The labels to match.
            order: Corpus indices of the items to work on, in the order of work.
            draws: Most draws of each chance that is in use.
            keep_all: Remember every acceptance, not the first alone.
        """
        self.corpus, self.dimension, self.totals = corpus, dimension, Totals()
        self.rows = order
        row_of_item = np.full(len(corpus.item_ids), -1, np.int64)
        row_of_item[order] = np.arange(len(order))
        rows = row_of_item[labels.items]
        chosen = np.argsort(rows, kind="stable")[np.count_nonzero(rows < 0) :]
        self.unit_rows, self.unit_numbers = rows[chosen], labels.numbers[chosen]
        self.unit_annotators, self.human_agreement = labels.annotators[chosen], labels.human_agreement[chosen]
        self._starts = np.searchsorted(self.unit_rows, np.arange(len(order) + 1))
        # The number of a listed label is its place, which a smaller float holds as well.
        precision: Any = np.float32 if listed_labels(dimension.scale) else np.float64
        self.numbers: dict[Chance, np.ndarray[tuple[int, int], np.dtype[np.float64]]] = {
            chance: np.full((len(chosen) if chance == "rationalized" else len(order), count), UNDRAWN, precision)
            for chance, count in draws.items()
        }
        self.matched_draw = np.full(len(chosen), -1, np.int64)
        self.matched_chance = np.zeros(len(chosen), np.int64)
        self.matched_offset = np.full(len(chosen), -1, np.int64)
        self.given_up = np.zeros(len(order), bool)
        self.accepted: dict[int, list[tuple[int, int]]] | None = {} if keep_all else None

    def units(self, row: int) -> range:
        """Return the units of a row."""
        return range(int(self._starts[row]), int(self._starts[row + 1]))

    def unmatched(self, row: int) -> list[int]:
        """Return the units of a row that no draw has agreed with yet."""
        return [unit for unit in self.units(row) if self.matched_draw[unit] < 0]

    def draws_needed(self, row: int, chance: Chance, full_rows: int = 0) -> int:
        """Return how many draws of a chance bring each unit of a row to its first acceptance; all if one has none.

        A unit that an earlier chance has matched needs none, one that only a later chance has matched needs all.
        The first `full_rows` rows need all first draws.
        """
        rank, most = CHANCES.index(chance), self.numbers[chance].shape[1]
        if rank == 0 and row < full_rows:
            return most
        return max(
            most
            if self.matched_draw[unit] < 0 or self.matched_chance[unit] > rank
            else int(self.matched_draw[unit]) + 1
            if self.matched_chance[unit] == rank
            else 0
            for unit in self.units(row)
        )

    def missing(self, chance: Chance, place: int) -> list[int]:
        """Return the draws of a row (of a unit, if rationalized) that were not made yet, ascending."""
        return [int(draw) for draw in np.flatnonzero(self.numbers[chance][place] == UNDRAWN)]

    def rows_done(self, full_rows: int) -> int:
        """Return the number of rows that need no further first draw, the first `full_rows` of them needing all."""
        undrawn = self.numbers["first"] == UNDRAWN
        most = undrawn.shape[1]
        if not most:
            return len(self.rows)
        made = np.where(undrawn.any(axis=1), undrawn.argmax(axis=1), most)
        by_unit = np.where((self.matched_draw >= 0) & (self.matched_chance == 0), self.matched_draw + 1, most)
        needed = np.maximum.reduceat(by_unit, self._starts[:-1])
        needed[:full_rows] = most
        return int(((made >= needed) | self.given_up).sum())

    def has_work(self, full_rows: int) -> bool:
        """Return True if a draw is still to be made, of any chance."""
        if self.rows_done(full_rows) < len(self.rows):
            return True
        open_units = self.matched_draw < 0
        return any(
            bool((self.numbers[chance][places] == UNDRAWN).any())
            for chance, places in (("escalated", self.unit_rows[open_units]), ("rationalized", open_units))
            if chance in self.numbers
        )

    def annotator_id(self, unit: int) -> str | None:
        """Return whose label a unit is; None if it is aggregated."""
        annotator = int(self.unit_annotators[unit])
        return None if annotator == AGGREGATED else self.corpus.annotator_ids[annotator]

    def enter(self, record: Record, place: int, unit: int, offset: int) -> None:
        """Enter a candidate that stands in the journal.

        Args:
            record: The line of the journal.
            place: Its row, or its unit if rationalized.
            unit: The unit it was held against.
            offset: Where the line begins.
        """
        chance, draw = record["chance"], record["draw"]
        numbers = self.numbers[chance]
        if numbers[place, draw] == UNDRAWN:
            self._count(record)
            verdict = record["verdict"]
            numbers[place, draw] = UNREADABLE if verdict is None else self.dimension.scale.number(verdict)
        if not record["accepted"]:
            return
        rank = CHANCES.index(chance)
        if self.accepted is not None and chance == "first":
            self.accepted.setdefault(unit, []).append((draw, offset))
        if self.matched_draw[unit] < 0 or (rank, draw) < (self.matched_chance[unit], self.matched_draw[unit]):
            self.matched_draw[unit], self.matched_chance[unit] = draw, rank
            self.matched_offset[unit] = offset

    def replay(self, lines: Iterable[tuple[int, int, Record]]) -> Record | None:
        """Enter what an earlier session left, as far as it belongs to this ledger, and return the last line.

        Args:
            lines: (line number, offset, record) of every line of the journal.

        Raises:
            DataError: If a line is not a candidate of this dimension.
        """
        rows: dict[str, int] = {}
        last: Record | None = None
        for line_number, offset, record in lines:
            rows = rows or {self.corpus.item_ids[item]: row for row, item in enumerate(self.rows)}
            last = record
            try:
                self._reenter(record, rows.get(record["item_id"]), offset)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise DataError(
                    f"candidates.jsonl line {line_number}: {shown(record)} is not a candidate of this run "
                    f"({type(error).__name__}: {error}); remove the line"
                ) from error
        return last

    def _reenter(self, record: Record, row: int | None, offset: int) -> None:
        chance, draw = record["chance"], record["draw"]
        if chance not in CHANCES or type(draw) is not int or draw < 0 or type(record["accepted"]) is not bool:
            raise ValueError(f"chance {chance!r}, draw {draw!r}, accepted {record['accepted']!r}")
        if not all(isinstance(record[name], str) for name in ("trace", "answer", "finish_reason")):
            raise TypeError("trace, answer or finish_reason is not text")
        if row is None or chance not in self.numbers or draw >= self.numbers[chance].shape[1]:
            return
        scale = self.dimension.scale
        if record["verdict"] is not None:
            scale.canonical(record["verdict"])
        for unit in self.units(row):
            if self.annotator_id(unit) == record["annotator_id"]:
                if scale.number(scale.canonical(record["label"])) != self.unit_numbers[unit]:
                    raise ValueError(f"label {record['label']!r} is not the corpus's")
                self.enter(record, unit if chance == "rationalized" else row, unit, offset)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return all that was entered; see `checkpoints.Counted`."""
        arrays: dict[str, NDArray[Any]] = {
            f"{chance} {draw}": numbers[:, draw]
            for chance, numbers in self.numbers.items()
            for draw in range(numbers.shape[1])
        }
        arrays |= {name: getattr(self, name) for name in _MATCHES}
        if self.accepted is not None:
            found = [(unit, draw, offset) for unit, kept in self.accepted.items() for draw, offset in kept]
            arrays["accepted"] = np.array(found, np.int64).reshape(-1, 3)
        asked = self._asked(len(self.rows), len(self.unit_rows))
        draws = {chance: numbers.shape[1] for chance, numbers in self.numbers.items()}
        return arrays, {"asked": asked, "draws": draws, "totals": dict(vars(self.totals))}

    def restore(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> bool:
        """Take over what `state` returned, of this ledger or one with fewer rows or draws; False if of another one."""
        asked = facts["asked"]
        if asked != self._asked(asked["rows"], asked["units"]):
            return False
        draws: dict[Chance, int] = facts["draws"]
        if any(draws[chance] > numbers.shape[1] for chance, numbers in self.numbers.items()):
            return False
        for chance, numbers in self.numbers.items():
            for draw in range(draws[chance]):  # one by one, so that little more than the ledger is in memory
                column = arrays[f"{chance} {draw}"]
                numbers[: len(column), draw] = column
        for name in _MATCHES:
            getattr(self, name)[: asked["units"]] = arrays[name]
        if self.accepted is not None:
            for unit, draw, offset in arrays["accepted"].tolist():
                self.accepted.setdefault(unit, []).append((draw, offset))
        totals = facts["totals"]
        self.totals = Totals(**{**totals, **{name: Counter(totals[name]) for name in _COUNTERS}})
        return True

    def part(self, rows: slice) -> dict[str, NDArray[Any]]:
        """Return the arrays of `state` for some rows alone: what a ledger of them takes over with `restore`."""
        arrays, _ = self.state()
        chosen = np.isin(self.unit_rows, np.arange(len(self.rows))[rows])
        by_unit = ("rationalized", *_MATCHES)
        return {
            name: array[chosen] if name.split()[0] in by_unit else array[rows]
            for name, array in arrays.items()
            if name != "accepted"
        } | {"accepted": np.empty((0, 3), np.int64)}

    def _asked(self, rows: int, units: int) -> dict[str, Any]:
        """Return what makes two ledgers the same in their first rows."""
        digest = hashlib.sha256()
        for array in (
            self.rows[:rows],
            self.unit_rows[:units],
            self.unit_numbers[:units],
            self.unit_annotators[:units],
        ):
            digest.update(np.ascontiguousarray(array).tobytes())
        chances: list[str] = list(self.numbers)
        first = {"rows": rows, "units": units, "sha256": digest.hexdigest()}
        return {**first, "chances": chances, "keep_all": self.accepted is not None}

    def _count(self, record: Record) -> None:
        totals = self.totals
        totals.draws[record["chance"]] += 1
        totals.unreadable += record["verdict"] is None
        totals.finish_reasons[record["finish_reason"]] += 1
        totals.prompt_tokens += record["prompt_tokens"] or 0
        totals.completion_tokens += record["completion_tokens"] or 0
        totals.read_by_chance[record["chance"]] += record["prompt_tokens"] or 0
        totals.written_by_chance[record["chance"]] += record["completion_tokens"] or 0
        totals.uncounted += record["completion_tokens"] is None
