"""Preferences: accepted against rejected draws of one label, and how much each pair weighs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from raters.records import DataError
from raters.trace_runs import TraceRun
from raters.training_data import Encoder, Example, Lesson, example_id


@dataclass(frozen=True, slots=True)
class Pair:
    """An accepted and a rejected answer to one prompt.

    Attributes:
        chosen: The accepted one.
        rejected: The rejected one.
        weight: Of its loss; 1 on average over a corpus.
    """

    chosen: Example
    rejected: Example
    weight: float

    @property
    def example_id(self) -> str:
        """Ids of both draws."""
        return f"{self.chosen.example_id} > {self.rejected.example_id}"


def rejected_draws(run: TraceRun, lessons: Sequence[Lesson], most: int) -> Iterator[tuple[Lesson, Lesson, float]]:
    """Yield (kept trace, rejected draw of the same label, distance of its verdict from the label).

    A rejected draw has a readable verdict that does not agree, and of a pair of texts it saw the same order. The first
    `most` of a label's are taken, in the order of draws.

    Args:
        run: Whose draws.
        lessons: The kept traces.
        most: Rejected draws for a kept trace.
    """
    draws, scale = run.draws, run.dimension.scale
    rejected = np.flatnonzero(~draws.accepted & np.isfinite(draws.numbers))
    places = {item_id: place for place, item_id in enumerate(run.corpus.item_ids)}
    by_key: dict[tuple[str, str | None, bool], list[tuple[int, Lesson, float]]] = {}
    for record in draws.records(rejected):
        swapped = record["swapped"] is True
        verdict, label = scale.canonical(record["verdict"]), scale.canonical(record["label"])
        lesson = Lesson(
            example_id=example_id(record),
            key=(record["item_id"], record["annotator_id"]),
            item=places[record["item_id"]],
            swapped=swapped,
            label=scale.swapped(verdict) if swapped else verdict,
            trace=record["trace"].strip(),
            rating=str(scale.swapped(verdict) if swapped else verdict),
        )
        by_key.setdefault((*lesson.key, swapped), []).append((record["draw"], lesson, scale.distance(verdict, label)))
    for kept in lessons:
        against = sorted(by_key.get((*kept.key, kept.swapped), ()), key=lambda found: found[0])
        for _, lesson, distance in against[:most]:
            yield kept, lesson, distance


def pair_weights(distances: Sequence[float]) -> list[float]:
    """Return the weight of each pair: the distance of its rejected verdict, divided by the mean over all pairs.

    On a scale without order every distance is 1, and so is every weight.
    """
    mean = sum(distances) / max(len(distances), 1)
    return [distance / mean if mean else 1.0 for distance in distances]


def encode_pairs(encoder: Encoder, run: TraceRun, lessons: Sequence[Lesson], most: int) -> list[Pair]:
    """Return the pairs whose both answers fit the context.

    Raises:
        DataError: If there are none.
    """
    found = [
        (chosen, rejected, distance)
        for kept, other, distance in rejected_draws(run, lessons, most)
        if (chosen := encoder.encode(kept)) is not None and (rejected := encoder.encode(other)) is not None
    ]
    if not found:
        raise DataError(
            f"--traces {run.folder}: no kept trace has a rejected draw of the same label beside it, so there is "
            "nothing to prefer; infer with --strategy fixed, or use --method sft"
        )
    weights = pair_weights([distance for _, _, distance in found])
    return [Pair(chosen, rejected, weight) for (chosen, rejected, _), weight in zip(found, weights, strict=True)]
