"""What the library passes around: items, candidates, and the errors it raises.

The words are those of the project's vocabulary: a *label* is a person's value on a scale, a *verdict*
a model's; a *candidate* is the record of one draw; the reasoning of an accepted candidate is a *trace*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Label = int | float | str
"""A value on a scale: a person's label or a model's verdict."""

MOST_DRAWS = 1024
"""Of an item, in any stage."""

_MOST_SHOWN = 80
Mode = Literal["infer", "rationalize"]
Chance = Literal["first", "escalated", "rationalized"]
Strategy = Literal["adaptive", "fixed"]


class JudgeseyeError(Exception):
    """Anything that ends a stage with one line instead of a traceback.

    Attributes:
        exit_code: Exit status of the stage: 2 for what the user can mend, 1 for a failure at run time.
    """

    exit_code = 1


class DataError(JudgeseyeError, ValueError):
    """A file or a record is not what it should be. The message names place, value and mend."""

    exit_code = 2


class ConfigError(JudgeseyeError, ValueError):
    """An option or a combination of options cannot be used."""

    exit_code = 2


class StorageError(JudgeseyeError, OSError):
    """A file could not be written (a full disk, lost permissions)."""

    def __str__(self) -> str:
        """Return the message alone; OSError would put its number before it."""
        return str(self.args[0])


class BudgetError(JudgeseyeError):
    """A run has used what it may. What it has is kept."""


class ModelError(JudgeseyeError, RuntimeError):
    """A model failed while it was being used (overload, a broken answer, a lost connection)."""


class ModelRequestError(ModelError):
    """A model will never answer this one request (too long, refused by a filter); others may go through."""


class ModelAccessError(ModelError):
    """A model cannot be used at all: unreachable, wrong key, unknown name, no chat template."""

    exit_code = 2


def shown(value: object) -> str:
    """Return a value for an error line: as Python writes it, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + "…"


def is_utf8(text: str) -> bool:
    """Return False for a text with half a surrogate pair, which no file in UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Item:
    """What is rated.

    Attributes:
        item_id: Unique within its corpus.
        inputs: Named text fields, shown to people and raters alike.
        metadata: What a rater never sees (source, system, document).
    """

    item_id: str
    inputs: Mapping[str, str]
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One draw of a model for an item: its reasoning, and the verdict it reached.

    Attributes:
        item_id: Rated item, unique within its corpus.
        dimension: Which question about the item was asked.
        annotator_id: Whose label it was compared with; None if the label is aggregated.
        draw: Which draw for the item this was, counted from 0 within its chance.
        chance: `first` for rejection sampling as published; `escalated` and `rationalized` mark the
            second chance of items that no first draw matched.
        mode: `infer` if the label was hidden from the model, `rationalize` if it was shown.
        model: `provider/name` of the model that wrote it.
        prompt_sha256: Hash of the prompt template.
        guideline_sha256: Hash of the guideline's text.
        seed: Seed of this draw alone.
        temperature: Sampling temperature.
        swapped: True if the model saw the two texts of a pairwise item in exchanged order; verdict and
            label are always those of the original order, the trace speaks of the order seen.
        trace: Model's reasoning before the verdict; empty if it gave none.
        answer: What the model said after its reasoning, as it came.
        verdict: Label the model reached, on the dimension's scale; None if unreadable.
        label: The person's label on the same scale; None if the item has none.
        accepted: True if verdict and label agree.
        flags: What makes the trace doubtful although its verdict agrees (see traces.trace_flags).
        finish_reason: `stop`, `length`, or what the model's server said.
        prompt_tokens: Tokens read; None if the server does not count.
        completion_tokens: Tokens written, reasoning included; None if the server does not count.
        seconds: Wall time of the request that brought it; 0 if a batch did.
    """

    item_id: str
    dimension: str
    annotator_id: str | None
    draw: int
    chance: Chance
    mode: Mode
    model: str
    prompt_sha256: str
    guideline_sha256: str
    seed: int
    temperature: float
    swapped: bool
    trace: str
    answer: str
    verdict: Label | None
    label: Label | None
    accepted: bool
    flags: tuple[str, ...]
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float

    def as_record(self) -> dict[str, Any]:
        """Return the candidate as it stands on a line of `candidates.jsonl`."""
        return {name: getattr(self, name) for name in _CANDIDATE_KEYS}


_CANDIDATE_KEYS = tuple(field.name for field in fields(Candidate))
