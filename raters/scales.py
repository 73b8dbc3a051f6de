"""Scales: which values are valid, when a verdict agrees with a label, and reading a verdict from text.

Four scales: ordinal, nominal, interval, and pairwise. All speak through the same few methods, so that no
caller asks which one it holds. Inside arrays a label is a *number*: its place in the scale's list of labels
counted from 0, or on an interval scale its value.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, TypeAdapter, model_validator

from raters.records import Label, shown

_RATING = re.compile(r"<rating>((?:(?!<rating>).)*?)</rating>", re.IGNORECASE | re.DOTALL)
_OPENED = re.compile("<rating>", re.IGNORECASE)
_DECORATION = " \t\r\n`'\"*_"
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")
_ROUNDING = 1e-9
"""Slack for comparing interval values that were read from decimal text."""


def rating_text(text: str) -> str | None:
    """Return what stands in the last `<rating>...</rating>` of an answer; None if there is none."""
    found = _RATING.findall(text)
    return str(found[-1]).strip() if found else None


def rating_start(text: str) -> int | None:
    """Return where the rating of an answer begins: behind the tag of `rating_text`, or behind one left open.

    None if there is no `<rating>` at all.
    """
    closed = [found.start(1) for found in _RATING.finditer(text)]
    places = closed or [found.end() for found in _OPENED.finditer(text)]
    return places[-1] if places else None


def listed_label(text: str, labels: Sequence[Label]) -> Label | None:
    """Return the one of some labels that a text states and nothing else; None if it states none."""
    for form in (_fold(text), _fold(_undecorated(text))):
        for label in labels:
            if form == _fold(str(label)):
                return label
        if _NUMBER.fullmatch(form):
            for label in labels:
                if not isinstance(label, str) and float(form) == label:
                    return label
    return None


def number_between(text: str, least: float, most: float) -> float | None:
    """Return the number from `least` to `most` that a text states and nothing else; None if it states none."""
    form = _undecorated(text)
    if not _NUMBER.fullmatch(form) or not least <= float(form) <= most:
        return None
    return float(form)


class _Scale(BaseModel, ABC):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @property
    def tolerance_unit(self) -> str | None:
        """What `--tolerance` counts on this scale; None if verdicts agree exactly or not at all."""
        return None

    @abstractmethod
    def canonical(self, value: object) -> Label:
        """Return the scale's own form of a label (3 for 3.0).

        Raises:
            ValueError: If the value is not on the scale; the message says value and scale.
        """

    @abstractmethod
    def number(self, label: Label) -> float:
        """Return the label's number: its place on the scale from 0, or its value on an interval scale."""

    @abstractmethod
    def label(self, number: float) -> Label:
        """Return the label of a number; the inverse of `number`."""

    def value(self, label: Label) -> float:
        """Return the label as a quantity for means and deviations: itself if numeric, else its place."""
        return float(label) if not isinstance(label, str) else self.number(label)

    @abstractmethod
    def parse(self, text: str) -> Label | None:
        """Return the label that a text states and nothing else; None if it states none."""

    def read_verdict(self, answer: str) -> Label | None:
        """Return the verdict in the last `<rating>` tag of an answer; None if it cannot be read.

        Never guessed: a missing tag, a value off the scale, or a sentence inside the tag is None.
        """
        text = rating_text(answer)
        return None if text is None else self.parse(text)

    def distance(self, verdict: Label, label: Label) -> float:
        """Return how far apart two labels are: steps, units of an interval scale, or 0/1 if unordered."""
        return abs(self.number(verdict) - self.number(label))

    def agrees(self, verdict: Label | None, label: Label | None, tolerance: float = 0.0) -> bool:
        """Return True if verdict and label are the same, or within `tolerance` (see `tolerance_unit`)."""
        if verdict is None or label is None:
            return False
        return self.distance(verdict, label) <= tolerance + _ROUNDING

    def swapped(self, label: Label) -> Label:
        """Return what a label becomes when the two texts of a pair change places."""
        return label

    @abstractmethod
    def describe(self) -> str:
        """Return the allowed answers as a line of a prompt."""

    @abstractmethod
    def __str__(self) -> str:
        """Return the scale for an error message: `1..3`, `A/B/tie`, `0..100`."""


class _Listed(_Scale):
    """A scale that lists its labels."""

    labels: tuple[StrictInt | StrictFloat | StrictStr, ...] = Field(min_length=2)

    @model_validator(mode="before")
    @classmethod
    def _no_yaml_booleans(cls, data: object) -> object:
        labels = data.get("labels") if isinstance(data, dict) else None
        for label in labels if isinstance(labels, list) else []:
            if isinstance(label, bool):
                raise ValueError(f"label {label} is a YAML boolean; put quotes around yes, no, true, false")
        return data

    @model_validator(mode="after")
    def _labels_can_be_told_apart(self) -> _Listed:
        seen: set[str] = set()
        for label in self.labels:
            # 2 and 2.0 are one label.
            text = _fold(label if isinstance(label, str) else f"{label:.12g}")
            if not text or re.search(r"[<>\n\r]", str(label)):
                raise ValueError(f"label {label!r} is blank or holds <, > or a line break; rename it")
            if text in seen:
                raise ValueError(f"label {label!r} stands twice (case does not count); rename or remove one")
            seen.add(text)
        return self

    def canonical(self, value: object) -> Label:
        if not isinstance(value, bool):
            for label in self.labels:
                if isinstance(value, str) == isinstance(label, str) and value == label:
                    return label
        kind = " (text, not a number)" if isinstance(value, str) and self.parse(value) is not None else ""
        raise ValueError(f"label {shown(value)}{kind} is not on scale {self}")

    def number(self, label: Label) -> float:
        return float(self.labels.index(label))

    def label(self, number: float) -> Label:
        return self.labels[round(number)]

    def distance(self, verdict: Label, label: Label) -> float:
        return float(verdict != label)

    def parse(self, text: str) -> Label | None:
        return listed_label(text, self.labels)

    def describe(self) -> str:
        return ", ".join(str(label) for label in self.labels)

    def __str__(self) -> str:
        return "/".join(str(label) for label in self.labels)


class OrdinalScale(_Listed):
    """Labels from lowest to highest."""

    type: Literal["ordinal"] = "ordinal"

    @model_validator(mode="after")
    def _from_lowest_to_highest(self) -> OrdinalScale:
        numeric = [label for label in self.labels if not isinstance(label, str)]
        if numeric and len(numeric) < len(self.labels):
            raise ValueError(f"labels {list(self.labels)} mix numbers and text; use one of them")
        if numeric != sorted(numeric):
            raise ValueError(f"labels {list(self.labels)} must go from lowest to highest")
        return self

    @property
    def tolerance_unit(self) -> str:
        return "steps"

    def distance(self, verdict: Label, label: Label) -> float:
        return abs(self.number(verdict) - self.number(label))

    def describe(self) -> str:
        return f"{super().describe()} (from lowest to highest)"

    def __str__(self) -> str:
        numeric = all(isinstance(label, int) for label in self.labels)
        if numeric and list(self.labels) == list(range(int(self.labels[0]), int(self.labels[-1]) + 1)):
            return f"{self.labels[0]}..{self.labels[-1]}"
        return super().__str__()


class NominalScale(_Listed):
    """Labels without an order."""

    type: Literal["nominal"] = "nominal"


class PairwiseScale(_Listed):
    """Which of two texts; the first two labels belong to `fields` in order, a third is the tie."""

    type: Literal["pairwise"] = "pairwise"
    labels: tuple[StrictInt | StrictFloat | StrictStr, ...] = Field(min_length=2, max_length=3)
    fields: tuple[StrictStr, StrictStr]

    @model_validator(mode="after")
    def _two_fields(self) -> PairwiseScale:
        if self.fields[0] == self.fields[1]:
            raise ValueError(f"fields {list(self.fields)} must name two different fields")
        return self

    def swapped(self, label: Label) -> Label:
        place = self.labels.index(label)
        return self.labels[1 - place] if place < 2 else label

    def describe(self) -> str:
        first, second = self.labels[:2]
        text = f"{first} (for {self.fields[0]}), {second} (for {self.fields[1]})"
        return text + (f", {self.labels[2]} (neither is ahead)" if len(self.labels) == 3 else "")


class IntervalScale(_Scale):
    """Any number from `min` to `max`."""

    type: Literal["interval"] = "interval"
    min: StrictInt | StrictFloat
    max: StrictInt | StrictFloat

    @model_validator(mode="after")
    def _min_below_max(self) -> IntervalScale:
        if not (math.isfinite(self.min) and math.isfinite(self.max) and self.min < self.max):
            raise ValueError(f"min {self.min} must be below max {self.max}")
        return self

    @property
    def tolerance_unit(self) -> str:
        return "units of the scale"

    def canonical(self, value: object) -> Label:
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.min <= value <= self.max:
            raise ValueError(f"label {shown(value)} is not on scale {self}")
        return float(value)

    def number(self, label: Label) -> float:
        return float(label)

    def label(self, number: float) -> Label:
        return float(number)

    def parse(self, text: str) -> Label | None:
        return number_between(text, self.min, self.max)

    def describe(self) -> str:
        return f"a number from {self.min} to {self.max}"

    def __str__(self) -> str:
        return f"{self.min}..{self.max}"


AnyScale = OrdinalScale | NominalScale | PairwiseScale | IntervalScale
Scale = Annotated[OrdinalScale | NominalScale | PairwiseScale | IntervalScale, Field(discriminator="type")]

SCALE_TYPES = ("ordinal", "nominal", "interval", "pairwise")
SCALE_ADAPTER: TypeAdapter[OrdinalScale | NominalScale | PairwiseScale | IntervalScale] = TypeAdapter(Scale)


def listed_labels(scale: _Scale) -> Sequence[Label]:
    """Return the labels of a scale that lists them; an empty list for an interval scale."""
    return scale.labels if isinstance(scale, _Listed) else ()


def _undecorated(text: str) -> str:
    """Return a text without quotes and emphasis around it, and without a full stop behind it."""
    return text.strip(_DECORATION).rstrip("." + _DECORATION)


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())
