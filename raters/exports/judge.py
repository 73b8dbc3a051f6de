"""A rater outside this project: the same messages, draws and verdicts, from the standard library alone.

`one_file` copies what stands here, with all that it uses from other modules, into the file of an exported folder that
rates. So this module may import from the project only what rests on the standard library, and nothing is parsed by two
pieces of code. What a rater is stands beside it in `rater.json` (see `portable`), where the prompt is in pieces: no
template language is left that an item could speak.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from raters.drawing import draw_seed, is_swapped
from raters.exports.asking import JudgeError, Server, completion_from, completion_of
from raters.models.protocol import Completion, Message, one_line
from raters.prompts import harmless
from raters.rating import Rating
from raters.records import Label
from raters.scales import listed_label, number_between, rating_text
from raters.traces import trace_of

__all__ = ["Completion", "Judge", "JudgeError", "Rating", "completion_from", "completion_of", "load"]
_NEAR = 1e-9


class Judge:
    """A rater.

    Attributes:
        record: What stands in rater.json.
        folder: Where it stands, with guideline and certificate.
        name: What scores are called.
        fields: Names of an item's text fields, in the order that the rater sees them.
        output: The one of them that an evaluated system writes.
        draws: How often an item is rated.
    """

    def __init__(self, record: Mapping[str, Any], folder: Path) -> None:
        """Take over what was read; nothing is asked yet."""
        self.record, self.folder = record, folder
        self.name: str = record["name"]
        self.fields: tuple[str, ...] = tuple(record["fields"])
        self.output: str = record["output"]
        self._scale: Mapping[str, Any] = record["scale"]
        self._sampling: Mapping[str, Any] = record["sampling"]
        self.draws: int = self._sampling["draws"]
        self._server = Server()

    # --- what is told of it -------------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """The model's name as its server knows it."""
        return str(self.record["model"])

    @property
    def rates_here(self) -> bool:
        """True if no model has to be asked."""
        return False

    @property
    def labels(self) -> tuple[Label, ...]:
        """The scale's labels; none on a scale of numbers in between."""
        return tuple(self._scale.get("labels", ()))

    @property
    def is_numeric(self) -> bool:
        """True if what it says are numbers."""
        return not any(isinstance(label, str) for label in self.labels)

    @property
    def guideline(self) -> str:
        """What tells the rater how to rate."""
        return str(self.record["guideline"])

    def told(self, rating: Rating) -> dict[str, Any]:
        """Return what stands beside a score in a harness's log."""
        return {
            "verdicts": list(rating.verdicts),
            "value": rating.value,
            "share": self.share(rating),
            "rater_sha256": self.record["rater_sha256"],
            "certified": self.record["certified"],
        }

    @property
    def certificate(self) -> Mapping[str, Any]:
        """What was measured of it, or why nothing was."""
        return dict(json.loads((self.folder / "certificate.json").read_text(encoding="utf-8")))

    # --- asking -------------------------------------------------------------------------------------------

    def item(self, known: Mapping[str, Any], output: str | None = None, asked: str | None = None) -> dict[str, str]:
        """Return an item's text fields in the rater's order.

        Args:
            known: What a harness knows of the item by name; what the rater does not read is left out.
            output: What the evaluated system wrote, if that does not stand in `known`.
            asked: What it was asked, which is the only field besides if that does not stand in `known`.

        Raises:
            JudgeError: If a field is missing or is no text.
        """
        values = dict(known) if output is None else {**known, self.output: output}
        others = [name for name in self.fields if name != self.output]
        if len(others) == 1 and asked is not None:
            values.setdefault(others[0], asked)
        for name in self.fields:
            if not isinstance(values.get(name), str):
                shown = one_line(", ".join(map(repr, values)) or "none")
                raise JudgeError(f"{self.name}: no text field {name!r}, which the rater reads; the fields are: {shown}")
        return {name: values[name] for name in self.fields}

    def messages(self, inputs: Mapping[str, str], draw: int = 0) -> list[Message]:
        """Return what the rater's model is asked about an item.

        Args:
            inputs: Text fields, as `item` returns them.
            draw: Which draw, from 0: of a pair every second one sees the texts exchanged.
        """
        swapped = self._swapped(inputs, draw)
        shown = dict(inputs)
        if swapped:
            first, second = self._scale["fields"]
            shown |= {first: inputs[second], second: inputs[first]}
        lines = "".join(
            _filled(self.record["field"], {"name": harmless(name), "text": harmless(text)})
            for name, text in shown.items()
        )
        slots = {"fields": lines, "observations": self._observations(inputs, swapped)}
        return [{"role": "user", "content": _filled(self.record["message"], slots)}]

    def seed(self, inputs: Mapping[str, str], draw: int = 0) -> int:
        """Return the seed of a draw; an item is known by its texts."""
        return draw_seed(self._sampling["seed"], _known_by(inputs), self.record["dimension"], draw)

    def body(self, inputs: Mapping[str, str], draw: int = 0) -> dict[str, Any]:
        """Return the request of a draw in the form of `/v1/chat/completions`."""
        body = {
            "model": self.model,
            "messages": self.messages(inputs, draw),
            "seed": self.seed(inputs, draw),
            "temperature": self._sampling["temperature"],
            "max_tokens": self._sampling["max_tokens"],
        }
        return body if self._sampling["top_p"] == 1.0 else {**body, "top_p": self._sampling["top_p"]}

    # --- reading ------------------------------------------------------------------------------------------

    def joined(self, inputs: Mapping[str, str], completions: Sequence[Completion]) -> Rating:
        """Return what the draws of an item say together.

        Args:
            inputs: The item.
            completions: Of draw 0, 1, ….
        """
        verdicts = tuple(self._verdict(inputs, draw, completion) for draw, completion in enumerate(completions))
        value = self._value([verdict for verdict in verdicts if verdict is not None])
        return Rating(
            verdict=None if value is None else self._nearest(value),
            value=value,
            verdicts=verdicts,
            reasoning=tuple(trace_of(completion) for completion in completions),
        )

    def native(self, rating: Rating) -> Label | None:
        """Return a rating on the rater's own scale: the quantity, or a label that is no number; None if unreadable."""
        return rating.verdict if isinstance(rating.verdict, str) else rating.value

    def number(self, rating: Rating) -> float | None:
        """Return a rating as a number that can be averaged: as `native`, or as `share` on scales without order."""
        return self.share(rating) if self._scale["type"] in ("nominal", "pairwise") else rating.value

    def share(self, rating: Rating) -> float | None:
        """Return a rating from 0 (least) to 1 (most), for harnesses that know no other scale; None if unreadable.

        Without an order the label named first is 1 and any other 0. Of a pair it is how far the evaluated text wins.
        """
        if rating.value is None:
            return None
        kind = self._scale["type"]
        if kind in ("ordinal", "interval"):
            return self.share_of(rating.value)
        place = self.labels.index(rating.verdict) if rating.verdict is not None else 0
        if kind == "nominal":
            return float(place == 0)
        evaluated = 1 if self.output == self._scale["fields"][1] else 0
        return 0.5 if place == 2 else float(place == evaluated)

    def share_of(self, number: float) -> float:
        """Return where a number, as `number` has it, stands from 0 (least) to 1 (most)."""
        kind, labels = self._scale["type"], self.labels
        if kind in ("nominal", "pairwise"):
            return number
        ends = (self._scale["min"], self._scale["max"]) if kind == "interval" else (labels[0], labels[-1])
        least, most = self._quantity(ends[0]), self._quantity(ends[1])
        return (number - least) / (most - least)

    # --- rating -------------------------------------------------------------------------------------------

    def rate(self, inputs: Mapping[str, str]) -> Rating:
        """Return the rating of one item; see `rate_many`."""
        return self.rate_many([inputs])[0]

    def rate_many(self, items: Iterable[Mapping[str, str]], concurrency: int = 8) -> list[Rating]:
        """Return the ratings of items in their order.

        The server is the one at JUDGE_BASE_URL with the key JUDGE_API_KEY, or else at OPENAI_BASE_URL with
        OPENAI_API_KEY.

        Args:
            items: Text fields of each.
            concurrency: Most requests at once.

        Raises:
            JudgeError: If a field is missing, or the server does not answer.
        """
        chosen = [self.item(inputs) for inputs in items]
        pool = ThreadPoolExecutor(concurrency)
        try:
            asked = [[pool.submit(self.complete, inputs, draw) for draw in range(self.draws)] for inputs in chosen]
            return [
                self.joined(inputs, [one.result() for one in draws])
                for inputs, draws in zip(chosen, asked, strict=True)
            ]
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure nothing more is asked, and paid for

    def complete(self, inputs: Mapping[str, str], draw: int = 0) -> Completion:
        """Return one draw of the rater's model.

        Raises:
            JudgeError: If the server refuses the request, or does not answer after all tries.
        """
        return self._server.complete(self.body(inputs, draw), self.name)

    # --- the scale ----------------------------------------------------------------------------------------

    def _verdict(self, inputs: Mapping[str, str], draw: int, completion: Completion) -> Label | None:
        text = rating_text(completion.text)
        if text is None:
            return None
        if self._scale["type"] == "interval":
            return number_between(text, self._scale["min"], self._scale["max"])
        label = listed_label(text, self.labels)
        if label is not None and self._swapped(inputs, draw) and (place := self.labels.index(label)) < 2:
            return self.labels[1 - place]
        return label

    def _value(self, verdicts: Sequence[Label]) -> float | None:
        """Return readable verdicts, in the order drawn, as one quantity; None if there are none."""
        if not verdicts:
            return None
        how = self._sampling["aggregate"]
        if how == "majority":
            most = max(verdicts.count(label) for label in verdicts)
            return self._quantity(next(label for label in verdicts if verdicts.count(label) == most))
        values = [self._quantity(label) for label in verdicts]
        return sum(values) / len(values) if how == "mean" else float(statistics.median(values))

    def _quantity(self, label: Label) -> float:
        if self._scale["type"] in ("nominal", "pairwise") or isinstance(label, str):
            return float(self.labels.index(label))
        return float(label)

    def _nearest(self, value: float) -> Label:
        """Return the label nearest to a quantity, the higher one of two as near."""
        if self._scale["type"] == "interval":
            return float(min(max(value, self._scale["min"]), self._scale["max"]))
        if self._scale["type"] in ("nominal", "pairwise"):
            return self.labels[round(value)]
        distances = [abs(self._quantity(label) - value) for label in self.labels]
        near = [place for place, distance in enumerate(distances) if distance <= min(distances) + _NEAR]
        return self.labels[near[-1]]

    def _swapped(self, inputs: Mapping[str, str], draw: int) -> bool:
        if self._scale["type"] != "pairwise":
            return False
        return is_swapped(self._sampling["seed"], _known_by(inputs), self.record["dimension"], draw)

    def _observations(self, inputs: Mapping[str, str], swapped: bool) -> str:
        return ""


def load(folder: str | Path) -> Judge:
    """Return the rater of an exported folder.

    Raises:
        OSError: If it lacks its rater.json.
    """
    record = json.loads((Path(folder) / "rater.json").read_text(encoding="utf-8"))
    return Judge(record, Path(folder))


def _filled(pieces: Sequence[str], slots: Mapping[str, str]) -> str:
    """Return pieces of a prompt joined, every second one being the name of what stands there."""
    return "".join(slots[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def _known_by(inputs: Mapping[str, str]) -> str:
    return "\0".join(f"{name}\0{inputs[name]}" for name in sorted(inputs))
