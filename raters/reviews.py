"""What people made of a run's traces: which one they chose, how they corrected one, or that none is any good.

A review is about one label, and stands in `reviews.jsonl` beside the draws it chooses among. A later one of the same
label takes its place. Whoever learns from the run goes by reviews: `learned_from` for training, `TraceRun.draws` for
guidelines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from raters.journal import Record, read_at, read_lines, sha256_of
from raters.records import Chance, DataError, is_utf8, shown
from raters.traces import trace_flags, training_record

if TYPE_CHECKING:
    from raters.trace_runs import TraceRun

REVIEWS = "reviews.jsonl"
MOST_CHARACTERS = 200_000
Action = Literal["choose", "correct", "reject", "undo"]
LabelKey = tuple[str, str | None]
"""Item and annotator; None if the label is aggregated."""
_TAGS = ("<think>", "</think>", "<rating>", "</rating>")


@dataclass(frozen=True, slots=True)
class Review:
    """What a person decided about the traces of one label.

    Attributes:
        item_id: Of the label.
        dimension: Of the label.
        annotator_id: Whose label; None if it is aggregated.
        action: `choose` this draw's trace, `correct` it, `reject` every trace of the label, or `undo`: what the run
            kept is good after all.
        chance: Of the draw that is chosen or corrected; None otherwise.
        draw: Its number; None likewise.
        offset: Byte offset of its line in candidates.jsonl; None likewise.
        trace: As it is corrected; None otherwise.
        reviewed_at: When, in UTC, as ISO 8601 writes it.
    """

    item_id: str
    dimension: str
    annotator_id: str | None
    action: Action
    chance: Chance | None = None
    draw: int | None = None
    offset: int | None = None
    trace: str | None = None
    reviewed_at: str = ""

    @property
    def key(self) -> LabelKey:
        """Which label."""
        return self.item_id, self.annotator_id

    def takes(self, candidate: Mapping[str, Any]) -> bool:
        """Return True for the draw that is chosen or corrected, among those of the label."""
        return self.draw is not None and (candidate["chance"], candidate["draw"]) == (self.chance, self.draw)

    def as_record(self) -> Record:
        """Return the review as it stands on a line of reviews.jsonl."""
        return asdict(self)


def trace_problem(trace: str) -> str:
    """Return why a text can be no trace; empty if it can."""
    if not trace.strip():
        return "is blank; write the reasoning, or reject all"
    if len(trace) > MOST_CHARACTERS:
        return f"has {len(trace):,} characters; {MOST_CHARACTERS:,} are the most"
    if not is_utf8(trace):
        return "holds half a character; type it again"
    for tag in _TAGS:
        if tag in trace.lower():
            return f"holds {tag}, which is where a trace begins or ends; leave it out"
    return ""


def corrected(candidate: Mapping[str, Any], trace: str) -> Record:
    """Return what a correction changes of a draw: its text, and with that its verdict is the person's label.

    An accepted verdict stays as it is: on scales with a tolerance it may differ from the label.
    """
    verdict = candidate["verdict"] if candidate["accepted"] else candidate["label"]
    return {"trace": trace, "verdict": verdict, "accepted": True, "flags": list(trace_flags(trace))}


def read_reviews(path: Path, dimension: str) -> dict[LabelKey, Review]:
    """Return the review that counts for each label; none if nobody has reviewed the run.

    Raises:
        DataError: If a line is not a review of the dimension.
    """
    if not path.exists() or not path.stat().st_size:
        return {}
    found: dict[LabelKey, Review] = {}
    for line_number, _, record in read_lines(path, pass_over_torn=True):
        try:
            keep_last(found, _checked(record, dimension))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} line {line_number}: {shown(record)} is no review ({error}); remove the line, or give the file "
                "as `review` left it"
            ) from error
    return found


def keep_last(reviews: dict[LabelKey, Review], review: Review) -> None:
    """Put a review in the place of the last one of its label; `undo` leaves none."""
    reviews.pop(review.key, None)
    if review.action != "undo":
        reviews[review.key] = review


def _checked(record: Record, dimension: str) -> Review:
    review = Review(**record)
    if review.dimension != dimension:
        raise ValueError(f"dimension {shown(review.dimension)}, and the run is of {dimension}")
    if not isinstance(review.item_id, str) or not isinstance(review.annotator_id, str | None):
        raise ValueError("item_id and annotator_id are text")
    if review.action not in get_args(Action):
        raise ValueError(f"action {shown(review.action)}")
    if review.action in ("choose", "correct"):
        if review.chance not in get_args(Chance) or type(review.draw) is not int or type(review.offset) is not int:
            raise ValueError(f"{review.action} without a draw")
        if review.action == "correct" and (not isinstance(review.trace, str) or trace_problem(review.trace)):
            raise ValueError(f"trace {shown(review.trace)}")
    return review


def reviewed_sha256(kept: Path, reviews: Mapping[LabelKey, Review]) -> str:
    """Return a hash of what is learned from: of kept traces alone as long as nobody has reviewed them."""
    text = kept.read_text(encoding="utf-8")
    if not reviews:
        return sha256_of(text)
    decided = sorted(
        json.dumps([review.item_id, review.annotator_id, review.action, review.chance, review.draw, review.trace])
        for review in reviews.values()
    )
    return sha256_of(text + "\n".join(decided))


def learned_from(run: TraceRun) -> Iterator[Record]:
    """Yield the traces of a run to learn from: those kept, as far as reviews say nothing else.

    A chosen or corrected trace stands in the place of all that were kept for its label, `reviewed` saying so. A label
    for which the run kept none gets it at the end; one that select_traces has left out stays out.

    Raises:
        DataError: If a kept line is no trace, or a review is of a draw that is not there.
    """
    waiting = dict(run.reviews)
    done: set[LabelKey] = set()
    if run.kept.exists() and run.kept.stat().st_size:
        for line_number, _, record in read_lines(run.kept):
            try:
                key = record["item_id"], record["annotator_id"]
                review = run.reviews.get(key)
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"{run.kept} line {line_number}: {shown(record)} is no trace of corpus {run.corpus.name} "
                    f"({type(error).__name__}: {error}); give the folder of a run of infer_traces"
                ) from error
            if review is None:
                yield record
            elif key not in done:
                done.add(key)
                waiting.pop(key)
                if review.action != "reject":
                    yield reviewed_trace(run, review)
    if not run.is_selected:
        for review in waiting.values():
            if review.action != "reject":
                yield reviewed_trace(run, review)


def reviewed_trace(run: TraceRun, review: Review) -> Record:
    """Return the trace that a review chose or corrected, ready to train on.

    Raises:
        DataError: If its draw is not where it was.
    """
    candidate = _candidate(run, review)
    changes = {} if review.trace is None else corrected(candidate, review.trace)
    candidate = {**candidate, **changes, "reviewed": "chosen" if review.trace is None else "corrected"}
    scale, swapped = run.dimension.scale, candidate["swapped"] is True
    prompt = run.generator.question.about(run.corpus.item(run.place_of(review.item_id)))(swapped)
    verdict = scale.canonical(candidate["verdict"])
    return training_record(candidate, prompt, scale.swapped(verdict) if swapped else verdict)


def _candidate(run: TraceRun, review: Review) -> Record:
    path = run.folder / "candidates.jsonl"
    assert review.offset is not None
    try:
        (candidate,) = read_at(path, [review.offset])
        same = (candidate["item_id"], candidate["annotator_id"]) == review.key and review.takes(candidate)
        if same and (review.action == "correct" or candidate["accepted"] is True):
            return candidate
    except (DataError, KeyError, OSError, ValueError):
        pass
    raise DataError(
        f"{run.folder / REVIEWS}: draw {review.draw} of item {shown(review.item_id)} is not in candidates.jsonl as it "
        "was reviewed; give the folder as the run left it, or review that item again"
    )
