"""The reviews of a run as they are made: each is on the disk before the page hears that it is saved."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, get_args

from raters.journal import Journal
from raters.records import DataError, shown
from raters.review_page.label_index import LabelIndex
from raters.reviews import REVIEWS, Action, LabelKey, Review, keep_last, read_reviews, trace_problem


class ReviewBook:
    """Reviews of one run, from several threads. `runs.hold` sees to it that one process writes them at a time.

    Attributes:
        index: The labels.
        reviews: The one that counts for each label.
        made: Reviews of this session.
    """

    def __init__(self, index: LabelIndex) -> None:
        """Read what earlier sessions have left; half a line, of one that was killed, is cut off."""
        path = index.run.folder / REVIEWS
        self.index, self.made = index, 0
        self._journal, self._lock = Journal(path), threading.Lock()
        for _ in self._journal.recover():
            pass
        self.reviews: dict[LabelKey, Review] = read_reviews(path, index.run.dimension.name)

    def snapshot(self) -> Mapping[LabelKey, Review]:
        """Return the reviews as they stand now."""
        with self._lock:
            return dict(self.reviews)

    def add(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Write a review down and return the row of its label, and how many labels there are of each kind now.

        Args:
            asked: `place` and `action`; `chance` and `draw` of what is chosen or corrected; `trace`, as corrected.

        Raises:
            DataError: If it is no review: what is wrong with it.
            StorageError: If it cannot be written.
        """
        place, action = asked.get("place"), _action(asked.get("action"))
        if type(place) is not int or not 0 <= place < len(self.index):
            raise DataError(f"place {shown(place)}: there are {len(self.index):,} labels")
        item_id, annotator_id = self.index.keys[place]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        chosen = self._chosen(place, action, asked) if action in ("choose", "correct") else {}
        review = Review(item_id, self.index.run.dimension.name, annotator_id, action, reviewed_at=now, **chosen)
        with self._lock:
            self._journal.append([review.as_record()])
            self._journal.close()
            keep_last(self.reviews, review)
            self.made += 1
            return {"row": self.index.row(place, self.reviews), "counts": self.index.counts(self.reviews)}

    def _chosen(self, place: int, action: Action, asked: Mapping[str, Any]) -> dict[str, Any]:
        chance, draw, trace = asked.get("chance"), asked.get("draw"), asked.get("trace")
        found = self.index.find(place, str(chance), draw) if type(draw) is int else None
        if found is None:
            raise DataError(f"draw {shown(draw)}: the label has no such draw")
        offset, record = found
        if action == "choose":
            if record["accepted"] is not True:
                raise DataError(f"draw {draw}: its verdict is not the person's label; correct it, or choose another")
            return {"chance": chance, "draw": draw, "offset": offset}
        if not isinstance(trace, str):
            raise DataError(f"trace {shown(trace)}: is no text")
        if problem := trace_problem(trace):
            raise DataError(f"the trace {problem}")
        return {"chance": chance, "draw": draw, "offset": offset, "trace": trace.strip()}


def _action(given: object) -> Action:
    for action in get_args(Action):
        if given == action:
            return action  # type: ignore[no-any-return]
    raise DataError(f"action {shown(given)}: one of {', '.join(get_args(Action))}")
