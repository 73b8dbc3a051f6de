"""Which draws each label of a run has: offsets and counts alone, so that a run of a million draws can be paged through.

Texts are read from candidates.jsonl and the corpus when a label is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from raters.journal import Record, read_at, read_lines
from raters.records import DataError, Label, shown
from raters.report_markup import visible
from raters.reviews import LabelKey, Review
from raters.trace_runs import TraceRun

Show = Literal["all", "open", "reviewed", "unmatched", "flagged"]
PAGE_ROWS, CARDS = 50, 12
_TRACE_KEYS = ("chance", "draw", "model", "verdict", "trace", "answer", "flags", "swapped", "finish_reason")


@dataclass(frozen=True)
class LabelIndex:
    """The labels of a run that draws were held against, in the order of the corpus.

    Attributes:
        run: Whose.
        keys: (labels,) item and annotator.
        labels: (labels,) what the person said.
        starts: (labels + 1,) where each label's draws begin in `offsets`.
        offsets: (draws,) of lines in candidates.jsonl, by label, then accepted before rejected, then as drawn.
        accepted: (labels,) how many draws agree.
        flagged: (labels,) True where an accepted draw has a flag.
        kept: By label, the (chance, draw) that the run kept.
    """

    run: TraceRun
    keys: list[LabelKey]
    labels: list[Label]
    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    accepted: NDArray[np.int64]
    flagged: NDArray[np.bool_]
    kept: Mapping[LabelKey, frozenset[tuple[str, int]]]

    def __len__(self) -> int:
        """Return how many labels there are."""
        return len(self.keys)

    @classmethod
    def of(cls, run: TraceRun, on_draws: Callable[[int], None] = lambda draws: None) -> LabelIndex:
        """Read a run's draws once.

        Args:
            run: A finished run.
            on_draws: Called now and then with how many were read.

        Raises:
            DataError: If a line is no candidate of the run.
        """
        path = run.folder / "candidates.jsonl"
        known: dict[LabelKey, int] = {}
        labels: list[Label] = []
        places: list[int] = []
        columns: list[tuple[int, int, bool, bool]] = []
        for line_number, offset, record in read_lines(path):
            try:
                key = record["item_id"], record["annotator_id"]
                if key not in known:
                    known[key] = len(known)
                    places.append(run.place_of(key[0]))
                    labels.append(record["label"])
                accepted = record["accepted"] is True
                columns.append((known[key], offset, accepted, accepted and bool(record["flags"])))
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"{path} line {line_number}: {shown(record)} is no candidate ({type(error).__name__}: {error}); "
                    "give the folder of a run of infer_traces"
                ) from error
            if line_number % 10_000 == 0:
                on_draws(line_number)
        units, offsets, accepted_draws, flags = (np.array(column) for column in zip(*columns, strict=True))
        by_corpus = np.lexsort((np.arange(len(places)), np.array(places)))
        rank = np.empty_like(by_corpus)
        rank[by_corpus] = np.arange(len(by_corpus))
        units = rank[units]
        order = np.lexsort((offsets, ~accepted_draws, units))
        keys = list(known)
        return cls(
            run=run,
            keys=[keys[place] for place in by_corpus],
            labels=[labels[place] for place in by_corpus],
            starts=np.searchsorted(units[order], np.arange(len(keys) + 1)),
            offsets=offsets[order],
            accepted=np.bincount(units, accepted_draws, len(keys)).astype(np.int64),
            flagged=np.bincount(units, flags, len(keys)) > 0,
            kept=_kept(run),
        )

    def rows(
        self,
        reviews: Mapping[LabelKey, Review],
        *,
        show: Show = "all",
        find: str = "",
        after: int = -1,
        before: int | None = None,
    ) -> dict[str, Any]:
        """Return a page of labels, and how many there are of each kind.

        Args:
            reviews: As they stand.
            show: Which labels.
            find: Part of the item's id.
            after: Labels behind this place.
            before: Labels before this place, the nearest ones, instead.
        """
        wanted = self._kinds(reviews)[show]
        if find:
            wanted = wanted & np.array([find.casefold() in key[0].casefold() for key in self.keys], bool)
        places = np.flatnonzero(wanted)
        found = places[places > after][:PAGE_ROWS] if before is None else places[places < before][-PAGE_ROWS:]
        return {
            "counts": self.counts(reviews),
            "found": len(places),
            "rank": int(np.searchsorted(places, found[0])) if len(found) else 0,
            "rows": [self.row(place, reviews) for place in found.tolist()],
        }

    def counts(self, reviews: Mapping[LabelKey, Review]) -> dict[str, int]:
        """Return how many labels there are of each kind."""
        return {name: int(mask.sum()) for name, mask in self._kinds(reviews).items()}

    def _kinds(self, reviews: Mapping[LabelKey, Review]) -> dict[Show, NDArray[np.bool_]]:
        reviewed = np.array([key in reviews for key in self.keys], bool)
        return {
            "all": np.ones(len(self), bool),
            "open": ~reviewed,
            "reviewed": reviewed,
            "unmatched": self.accepted == 0,
            "flagged": self.flagged,
        }

    def row(self, place: int, reviews: Mapping[LabelKey, Review]) -> dict[str, Any]:
        """Return what a list says of a label."""
        item_id, annotator_id = self.keys[place]
        review = reviews.get(self.keys[place])
        return {
            "place": place,
            "item_id": visible(item_id),
            "annotator_id": None if annotator_id is None else visible(annotator_id),
            "label": visible(str(self.labels[place])),
            "accepted": int(self.accepted[place]),
            "draws": int(self.starts[place + 1] - self.starts[place]),
            "review": None if review is None else review.action,
        }

    def label(
        self, place: int, reviews: Mapping[LabelKey, Review], accepted_from: int = 0, rejected_from: int = 0
    ) -> dict[str, Any]:
        """Return all that is read about a label: its item, and some of its accepted and rejected draws."""
        key = self.keys[place]
        item = self.run.corpus.item(self.run.place_of(key[0]))
        count, review = int(self.accepted[place]), reviews.get(key)
        offsets = self.offsets[self.starts[place] : self.starts[place + 1]]
        parts = {"accepted": offsets[:count][accepted_from:], "rejected": offsets[count:][rejected_from:]}
        return {
            **self.row(place, reviews),
            "of": len(self),
            "dimension": visible(self.run.dimension.name),
            "scale": visible(str(self.run.dimension.scale)),
            "inputs": [[visible(name), visible(text)] for name, text in item.inputs.items()],
            **{name: list(self._cards(key, part[:CARDS], review)) for name, part in parts.items()},
            "more": {name: max(0, len(part) - CARDS) for name, part in parts.items()},
            "corrected": None if review is None or review.trace is None else visible(review.trace),
        }

    def find(self, place: int, chance: str, draw: int) -> tuple[int, Record] | None:
        """Return the offset and the candidate of a draw of a label; None if it has no such draw."""
        offsets = self.offsets[self.starts[place] : self.starts[place + 1]].tolist()
        records = read_at(self.run.folder / "candidates.jsonl", offsets)
        for offset, record in zip(offsets, records, strict=True):
            if (record["chance"], record["draw"]) == (chance, draw):
                return int(offset), record
        return None

    def _cards(self, key: LabelKey, offsets: NDArray[np.int64], review: Review | None) -> Iterator[dict[str, Any]]:
        for record in read_at(self.run.folder / "candidates.jsonl", offsets.tolist()):
            shown_ = {name: record.get(name) for name in _TRACE_KEYS}
            yield {
                **{name: visible(value) if isinstance(value, str) else value for name, value in shown_.items()},
                "verdict": None if record["verdict"] is None else visible(str(record["verdict"])),
                "kept": (record["chance"], record["draw"]) in self.kept.get(key, ()),
                "chosen": review is not None and review.takes(record),
            }


def _kept(run: TraceRun) -> dict[LabelKey, frozenset[tuple[str, int]]]:
    found: dict[LabelKey, frozenset[tuple[str, int]]] = {}
    if run.kept.exists() and run.kept.stat().st_size:
        for _, _, record in read_lines(run.kept):
            key = record["item_id"], record["annotator_id"]
            found[key] = found.get(key, frozenset()) | {(record["chance"], record["draw"])}
    return found


def as_show(text: str) -> Show:
    """Return which labels a text asks for.

    Raises:
        ValueError: If it names none.
    """
    for name in get_args(Show):
        if text == name:
            return name  # type: ignore[no-any-return]
    raise ValueError(f"show {shown(text)}; one of {', '.join(get_args(Show))}")
