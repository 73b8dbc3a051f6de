"""The one small protocol behind which every model stands, and how reasoning is told from the answer.

A model takes messages, one seed per wanted completion, and sampling settings; it returns one completion per
seed, in the same order. The seed decides a completion together with messages and settings: never the
number of completions asked for, nor what else the model is busy with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Literal, Protocol, TypedDict

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How a completion is sampled.

    Attributes:
        temperature: 0 for the most likely continuation; 1 samples the model's own distribution.
        top_p: Nucleus: the smallest set of tokens with at least this much probability.
        max_tokens: Most tokens a completion may have, reasoning included.
        label_logprobs: Labels, as text, whose log-probabilities are wanted; None for none.
        samples: Completions wanted of one request with one seed, from a model with `samples_share_a_seed`. It returns
            the first of them, with as many others as it made as `Completion.siblings`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 4096
    label_logprobs: tuple[str, ...] | None = None
    samples: int = 1


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote for one seed.

    Attributes:
        text: The answer, without the reasoning; empty if the model never got to one.
        reasoning: The thinking before the answer; empty if the model showed none.
        finish_reason: `stop`, `length`, or the server's own word (`content_filter`, ...).
        prompt_tokens: Tokens of the rendered prompt; None if the server does not say.
        completion_tokens: Tokens written, reasoning included; None if the server does not say.
        label_logprobs: Natural log-probability of each wanted label as what follows the answer's `<rating>`, before
            temperature and nucleus if the server does as OpenAI's; labels that it did not report are missing. None
            if none were wanted, or the model has none to give.
        siblings: Further samples of the same request, if it asked for several.
    """

    text: str
    reasoning: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    label_logprobs: Mapping[str, float] | None = field(default=None, hash=False)
    siblings: tuple[Completion, ...] = ()


class Model(Protocol):
    """A way to get completions. Implementations live beside this file, one per provider.

    Attributes:
        spec: `provider/name`, as records name the model.

    A model may also say `samples_share_a_seed = True`: it takes one seed a request, and `SamplingSettings.samples`.
    """

    spec: str

    async def complete(
        self, messages: Sequence[Message], seeds: Sequence[int], settings: SamplingSettings
    ) -> list[Completion]:
        """Return one completion per seed, in the order of `seeds`.

        Raises:
            ModelAccessError: The model cannot be used at all (unreachable, wrong key, unknown name).
            ModelRequestError: The model will never answer this request; others may go through.
            ModelError: The model failed on this request after retries.
        """
        ...

    async def close(self) -> None:
        """Give back connections and memory; no call follows."""
        ...


def with_siblings(samples: Sequence[Completion]) -> Completion:
    """Return the first of several samples of one request, with the others as its siblings.

    Servers count the tokens of the whole request: what was read is the first sample's, and what was written is shared
    out by length of text, so that the sum stays what was paid for.

    Args:
        samples: At least one, each with the token counts of the whole request.
    """
    read, written = samples[0].prompt_tokens, samples[0].completion_tokens
    lengths = [len(sample.text) + len(sample.reasoning) + 1 for sample in samples]
    before = [0, *accumulate(lengths)]
    shares: list[int | None] = [None] * len(samples)
    if written is not None:
        ends = [written * length // before[-1] for length in before]
        shares = [end - start for start, end in pairwise(ends)]
    first, *others = (
        replace(sample, prompt_tokens=read if not place else None if read is None else 0, completion_tokens=share)
        for place, (sample, share) in enumerate(zip(samples, shares, strict=True))
    )
    return replace(first, siblings=tuple(others))


def one_line(text: str, limit: int = 300) -> str:
    """Return untrusted text as one printable line of at most `limit` characters.

    Control, formatting and separator characters (terminal escapes, bidirectional overrides) become blanks.
    """
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def split_reasoning(text: str, reasoning: str | None = None) -> tuple[str, str]:
    """Return (reasoning, answer) of a model's raw text.

    Everything before the last `</think>` is reasoning, also when the opening tag was part of the prompt.
    A block that was never closed is reasoning too: a model cut off while thinking has given no answer.

    Args:
        text: What came as the message's content.
        reasoning: What came in a field of its own (`reasoning`, `reasoning_content`), if any.
    """
    before, _, after = text.rpartition(THINK_CLOSE)
    answer, _, unfinished = after.partition(THINK_OPEN)
    thought = before.replace(THINK_OPEN, "").replace(THINK_CLOSE, "")
    apart = (reasoning or "").replace(THINK_OPEN, "").replace(THINK_CLOSE, "")
    parts = [part.strip() for part in (apart, thought, unfinished)]
    return "\n".join(part for part in parts if part), answer.strip()
