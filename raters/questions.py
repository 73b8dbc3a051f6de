"""What a rater is asked about an item: prompt, guideline, scale and item put together.

A prompt says with its slots what it needs. There are two families: prompts that show the item's text to a language
model, and prompts in the controlled English of the embedded rater and the student, which show observations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raters.corpora import Corpus
from raters.corpus_files import Dimension
from raters.models.embedded import render_ladder, rule_lines
from raters.models.protocol import Message
from raters.observations import Observations, fit_observations, render_levels, sampled
from raters.prompts import Prompt, harmless
from raters.records import ConfigError, Item, Label
from raters.scales import AnyScale, PairwiseScale

Purpose = Literal["rate", "rationalize", "recover"]
_TEXT = frozenset({"guideline", "labels", "fields"})
_OBSERVED = frozenset({"rules", "ladder", "subject", "observations"})
_SLOTS: Mapping[Purpose, tuple[frozenset[str], ...]] = {
    "rate": (_TEXT, _OBSERVED),
    "rationalize": (_TEXT | {"label"}, _OBSERVED | {"label"}),
    "recover": (frozenset({"guideline", "labels", "reasoning"}), frozenset({"rules", "ladder", "reasoning"})),
}
"""Slots that a prompt for a purpose has, all and no others: for language models, or for the rule reader."""


def fit_to_corpus(corpus: Corpus, scale: AnyScale, items: NDArray[np.int64]) -> Observations:
    """Return observations fitted on items of a corpus, by index; on an evenly spaced sample if they are many."""
    pair = scale.fields if isinstance(scale, PairwiseScale) else None
    return fit_observations([corpus.item(int(items[place])).inputs for place in sampled(len(items))], pair)


@dataclass(frozen=True)
class Question:
    """How one dimension is asked about.

    Attributes:
        dimension: Scale and guideline.
        prompt: The template.
        observations: Fitted observations, for prompts that show them.
        purpose: Only `rationalize` shows the label.

    Raises:
        ConfigError: If the prompt lacks a slot that its purpose needs, or has one that nobody fills.
    """

    dimension: Dimension
    prompt: Prompt
    observations: Observations | None = None
    purpose: Purpose = "rate"

    def __post_init__(self) -> None:
        """Check the prompt's slots."""
        slots = self.prompt.slots
        if slots not in _SLOTS[self.purpose]:
            nearest = max(_SLOTS[self.purpose], key=lambda family: len(family & slots) - len(family - slots))
            problems = [f"slot {name} is missing" for name in sorted(nearest - slots)]
            problems += [f"slot {name} is unknown" for name in sorted(slots - nearest)]
            raise ConfigError(
                f"prompt {self.prompt.name}: {'; '.join(problems)}; to {self.purpose}, "
                f"the slots are {', '.join(sorted(nearest))}"
            )

    @property
    def needs_observations(self) -> bool:
        """True if the prompt shows observations instead of text."""
        return "observations" in self.prompt.slots

    def about(self, item: Item) -> Callable[..., list[Message]]:
        """Return a function from (swapped, label) to the messages that ask about an item.

        What both orders of a pair share is worked out once.
        """
        levels = None
        if self.needs_observations:
            assert self.observations is not None
            levels = self.observations.levels(item.inputs)

        def messages(swapped: bool = False, label: Label | None = None) -> list[Message]:
            values: dict[str, Any] = {"label": label}
            if levels is not None:
                values |= {"observations": render_levels(levels, swapped=swapped)}
            elif "fields" in self.prompt.slots:
                inputs = self._shown(item.inputs, swapped)
                values |= {"fields": [(harmless(name), harmless(text)) for name, text in inputs.items()]}
            return self._fill(values)

        return messages

    def about_reasoning(self, reasoning: str) -> list[Message]:
        """Return the messages that ask which label a reasoning leads to, without the item."""
        return self._fill({"reasoning": harmless(reasoning)})

    def _fill(self, values: Mapping[str, Any]) -> list[Message]:
        known = {**self.constants, **values}
        return [{"role": "user", "content": self.prompt.fill(**{name: known[name] for name in self.prompt.slots})}]

    @cached_property
    def constants(self) -> Mapping[str, Any]:
        """Values that are the same for every item."""
        scale = self.dimension.scale
        pair = scale.labels[:2] if isinstance(scale, PairwiseScale) else None
        return {
            "guideline": self.dimension.guideline,
            "labels": scale.describe(),
            "rules": rule_lines(self.dimension.guideline),
            "ladder": render_ladder(scale),
            "subject": "Text" if pair is None else f"{pair[0]} against {pair[1]}",
        }

    def _shown(self, inputs: Mapping[str, str], swapped: bool) -> Mapping[str, str]:
        scale = self.dimension.scale
        if not swapped or not isinstance(scale, PairwiseScale):
            return inputs
        first, second = scale.fields
        exchange = {first: inputs[second], second: inputs[first]}
        return {name: exchange.get(name, text) for name, text in inputs.items()}
