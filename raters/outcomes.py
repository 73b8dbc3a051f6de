"""What a sampling run leaves behind: kept traces, labels that nothing matched, rules that tell the two apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raters.contrasts import SIGNIFICANT_Z, contrast_rules
from raters.journal import Record, read_at, read_lines
from raters.ledger import UNDRAWN, Ledger
from raters.questions import Question
from raters.records import Label
from raters.traces import most_different, training_record
from raters.utilisation import nearest_verdict

Keep = Literal["first", "all"] | int


def kept_traces(ledger: Ledger, candidates: Path, question: Question, keep: Keep) -> Iterator[Record]:
    """Yield the kept candidates in the order of the corpus, ready to train on.

    Args:
        ledger: What was matched by which draw.
        candidates: The journal that the ledger's offsets are of.
        question: What a rater is asked; the prompt of the training form.
        keep: The first accepted draw of a label, all of them, or so many of the most different ones.
    """
    scale = ledger.dimension.scale
    kept = np.flatnonzero(ledger.matched_draw >= 0)
    kept = kept[np.argsort(ledger.rows[ledger.unit_rows[kept]], kind="stable")]
    for unit in kept.tolist():
        item = ledger.corpus.item(int(ledger.rows[ledger.unit_rows[unit]]))
        accepted = sorted((ledger.accepted or {}).get(unit, []))
        offsets = [offset for _, offset in accepted] or [int(ledger.matched_offset[unit])]
        records = list(read_at(candidates, offsets))
        if isinstance(keep, int):
            chosen = most_different([record["trace"] for record in records], keep)
            records = [records[place] for place in chosen]
        for record in records:
            prompt = question.about(item)(record["swapped"])
            rating = scale.swapped(record["verdict"]) if record["swapped"] else record["verdict"]
            yield training_record(record, prompt, rating)


def unmatched_labels(ledger: Ledger) -> Iterator[Record]:
    """Yield the labels that no draw agreed with, and how near the draws came."""
    scale = ledger.dimension.scale
    for unit in np.flatnonzero(ledger.matched_draw < 0).tolist():
        row = int(ledger.unit_rows[unit])
        numbers = ledger.numbers["first"][row]
        drawn = numbers[numbers != UNDRAWN]
        verdicts = Counter("unreadable" if np.isnan(number) else str(scale.label(number)) for number in drawn)
        nearest = nearest_verdict(ledger, unit)
        yield {
            "item_id": ledger.corpus.item_ids[ledger.rows[row]],
            "dimension": ledger.dimension.name,
            "annotator_id": ledger.annotator_id(unit),
            "label": scale.label(float(ledger.unit_numbers[unit])),
            "human_agreement": float(ledger.human_agreement[unit]),
            "draws": len(drawn),
            "verdicts": dict(verdicts.most_common()),
            "nearest_verdict": None if nearest is None else scale.label(nearest[0]),
            "distance": None if nearest is None else nearest[1],
        }


def telling_rules(ledger: Ledger, candidates: Path, tolerance: float) -> list[dict[str, Any]]:
    """Return the guessed rules that tell accepted first draws from rejected ones, if traces are in that grammar."""
    scale = ledger.dimension.scale
    places = {ledger.corpus.item_ids[item]: row for row, item in enumerate(ledger.rows)}

    @cache
    def expected(verdict: Label | None) -> float:
        """Return how frequent labels are that a verdict would agree with."""
        if verdict is None:
            return 0.0
        return float((np.abs(ledger.unit_numbers - scale.number(verdict)) <= tolerance + 1e-9).mean())

    draws = (
        (places[record["item_id"]], record["trace"], record["accepted"], expected(record["verdict"]))
        for _, _, record in read_lines(candidates)
        if record["chance"] == "first" and record["item_id"] in places
    )
    return [
        {"rule": str(contrast), "z": contrast.z, "draws": contrast.draws, "items": contrast.items}
        for contrast in contrast_rules(draws, len(places))
        if abs(contrast.z) > SIGNIFICANT_Z
    ]
