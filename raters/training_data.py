"""What a rater is trained on: kept traces as tokens, with a mask of what it is to learn.

Four targets share the same items, so that what the traces add can be told from what the labels add:

    trace              reasoning, then the rating; all of it is learned
    label              the rating alone, under the prompt that asks for it at once
    label-after-trace  reasoning, then the rating; the rating alone is learned
    verdict-first      the rating, then the reasoning

The conversation is written by the base's own chat template, as at inference: the tokens of the prompt are exactly those
that the rater will be asked with, and the answer is what the template adds to them. Each example is decoded again, and
refused if its loss lacks what is to be learned, as with templates that drop the thinking of earlier answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raters.journal import Record
from raters.models.generation import LoadedModel, conversation_text, harmless_text
from raters.models.protocol import THINK_CLOSE, THINK_OPEN, Message
from raters.prompts import load_prompt
from raters.questions import Question
from raters.records import ConfigError, DataError, shown
from raters.reviews import learned_from
from raters.scales import AnyScale, OrdinalScale, listed_labels, rating_text
from raters.trace_runs import TraceRun

Target = Literal["trace", "label", "label-after-trace", "verdict-first"]
IGNORED = -100
"""Label of a token that is not learned, as torch's cross-entropy has it."""
_RATING, _RATED = "<rating>", "</rating>"


@dataclass(frozen=True, slots=True)
class Lesson:
    """A kept trace, before it is text.

    Attributes:
        example_id: Item, annotator and draw.
        key: (item_id, annotator_id) of the label.
        item: Corpus index.
        swapped: True if a pair's texts are shown in exchanged order.
        label: The person's label on the scale, in the order shown.
        trace: The reasoning.
        rating: The rating it ends in, in the order shown.
    """

    example_id: str
    key: tuple[str, str | None]
    item: int
    swapped: bool
    label: Any
    trace: str
    rating: str


def read_lessons(run: TraceRun) -> list[Lesson]:
    """Return the traces of a run to learn from: those kept, and what reviews made of them.

    Raises:
        DataError: If there are none, they have fewer than two labels, or a line is not a trace of the run's dimension.
    """
    path, name, scale = run.kept, run.dimension.name, run.dimension.scale
    places = {item_id: place for place, item_id in enumerate(run.corpus.item_ids)}
    lessons: list[Lesson] = []
    if not path.exists():
        raise DataError(f"{path}: no such file; check the folder's name")
    for number, record in enumerate(learned_from(run), start=1):
        where = f"{path} trace {number}" if run.reviews else f"{path} line {number}"
        try:
            if record["dimension"] != name:
                raise DataError(
                    f"{where}: a trace of dimension {shown(record['dimension'])} among those of {name}; give traces "
                    "of one dimension"
                )
            lessons.append(_lesson(record, places, scale))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{where}: {shown(record)} is no trace of corpus {run.corpus.name} ({type(error).__name__}: {error}); "
                "give the folder of a run of infer_traces"
            ) from error
    if not lessons:
        why = "reviews leave no trace" if run.reviews and path.stat().st_size else "no accepted traces"
        raise DataError(f"{path}: {why}, so there is nothing to learn from; infer with a larger --k")
    labels = {lesson.label for lesson in lessons}
    if len(labels) < 2:
        raise DataError(
            f"{path}: its {len(lessons)} traces all have label {labels.pop()}, and a rater learns from at least two "
            "labels; infer more traces (a larger --k), or label more items"
        )
    return lessons


def _lesson(record: Record, places: Mapping[str, int], scale: AnyScale) -> Lesson:
    label = scale.canonical(record["label"])
    swapped = record["swapped"] is True
    rating = rating_text(record["completion"][-1]["content"])
    if rating is None or scale.parse(rating) is None:
        raise ValueError("its completion has no rating on the scale")
    if not isinstance(record["trace"], str):
        raise TypeError("its trace is no text")
    return Lesson(
        example_id=example_id(record),
        key=(record["item_id"], record["annotator_id"]),
        item=places[record["item_id"]],
        swapped=swapped,
        label=scale.swapped(label) if swapped else label,
        trace=record["trace"].strip(),
        rating=rating,
    )


def example_id(record: Mapping[str, Any]) -> str:
    """Return what metrics.jsonl calls a draw: item, annotator if there is one, draw, and its chance if second.

    No two draws of a run share one, whatever items and annotators are called: all of a run have an annotator or none,
    and read from its end the parts are told apart. A draw that a person has corrected has another text, and so another
    name.
    """
    annotator = record["annotator_id"]
    who = "" if annotator is None else "/" + annotator.replace("%", "%25").replace("/", "%2F")
    chance = "" if record["chance"] == "first" else f"/{record['chance']}"
    corrected = "/corrected" if record.get("reviewed") == "corrected" else ""
    return f"{record['item_id']}{who}/{record['draw']}{chance}{corrected}"


def question_for(run: TraceRun, target: Target, guideline: str) -> Question:
    """Return what a rater of a target is asked, in the family of prompts that its traces were inferred with."""
    question = run.question(guideline)
    family = "embedded/" if question.needs_observations else ""
    if target in ("label", "verdict-first"):
        name = "rate_at_once" if target == "label" else "rate_first"
        question = replace(question, prompt=load_prompt(family + name))
    return replace(question, observations=run.observations if question.needs_observations else None)


def answer_of(lesson: Lesson, target: Target, *, thinking_is_open: bool) -> str:
    """Return the answer that a rater is to learn, as an assistant's message.

    Args:
        lesson: The trace.
        target: What is learned.
        thinking_is_open: True if the chat template opens the thinking itself: answers without any close it at once.
    """
    if target == "label":
        return _no_thinking(thinking_is_open) + f"{_RATING}{lesson.label}{_RATED}"
    if target == "verdict-first":
        # The last rating of an answer is the one that counts, so the reasons may not hold one.
        reasons = re.sub(r"</?(?:rating|think)>", "", lesson.trace, flags=re.IGNORECASE)
        return _no_thinking(thinking_is_open) + f"{_RATING}{lesson.rating}{_RATED}\n\n{reasons}"
    return f"{THINK_OPEN}\n{lesson.trace}\n{THINK_CLOSE}\n\n{_RATING}{lesson.rating}{_RATED}"


def _no_thinking(thinking_is_open: bool) -> str:
    return f"{THINK_OPEN}\n\n{THINK_CLOSE}\n\n" if thinking_is_open else ""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation as tokens.

    Attributes:
        example_id: See `Lesson`.
        prompt_tokens: How many of them the prompt has.
        input_ids: All tokens, up to and including the end of the answer.
        labels: The same, `IGNORED` where nothing is learned.
        verdict_at: Place of the first token of the rating's label.
        verdict_end: Place behind the rating, where it is not the answer's end: of `verdict-first`, the reasoning's.
        verdict: Its label, on the scale.
    """

    example_id: str
    prompt_tokens: int
    input_ids: list[int]
    labels: list[int]
    verdict_at: int
    verdict_end: int
    verdict: Any

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return sum(label != IGNORED for label in self.labels)


class Encoder:
    """Turns traces into examples of one base, question and target.

    Attributes:
        loaded: The base.
        too_long: How many were left out because the context does not hold them.
    """

    def __init__(self, loaded: LoadedModel, run: TraceRun, question: Question, target: Target, most: int | None):
        """Take what examples are made of.

        Args:
            loaded: The base.
            run: Whose items are asked about.
            question: What is asked.
            target: What is learned.
            most: Most tokens of an example, if fewer than the base's context.
        """
        self.loaded, self._run, self._question, self._target = loaded, run, question, target
        limits = [limit for limit in (most, loaded.context_tokens) if limit is not None]
        self.most_tokens = min(limits) if limits else None
        self.too_long = 0

    def encode(self, lesson: Lesson) -> Example | None:
        """Return an example; None, counted, if it is too long.

        Raises:
            ConfigError: If the base's chat template loses what is to be learned.
        """
        example = self._example(lesson)
        if self.most_tokens is not None and len(example.input_ids) > self.most_tokens:
            self.too_long += 1
            return None
        return example

    def _example(self, lesson: Lesson) -> Example:
        loaded, tokenizer = self.loaded, self.loaded.tokenizer
        messages = self._question.about(self._run.corpus.item(lesson.item))(lesson.swapped)
        asked = conversation_text(loaded, messages)
        opened = asked.rstrip().endswith(THINK_OPEN)
        content = answer_of(lesson, self._target, thinking_is_open=opened)
        answer: Message = {"role": "assistant", "content": content}
        whole = conversation_text(loaded, [*messages, answer], ask=False)
        trace = harmless_text(lesson.trace, loaded.special_tokens)
        if self._target != "label" and _squashed(_untagged(trace)) not in _squashed(_untagged(whole)):
            raise self._refusal("drops the thinking of an answer")
        if not whole.startswith(asked):
            raise self._refusal("does not write an answer behind the prompt that it asks with")
        written = whole[len(asked) :]
        prompt_ids = list(tokenizer(asked, add_special_tokens=False).input_ids)
        encoded = tokenizer(written, add_special_tokens=False, return_offsets_mapping=True)
        ids, spans = list(encoded.input_ids), list(encoded.offset_mapping)
        ids = self._ended(ids)
        begin = written.rfind(THINK_CLOSE) + len(THINK_CLOSE) if self._target == "label-after-trace" else 0
        learned = [
            IGNORED if place < len(spans) and spans[place][0] < begin else token for place, token in enumerate(ids)
        ]
        label_at = written.rfind(_RATING) + len(_RATING)
        verdict_at = next((at for at, (start, end) in enumerate(spans) if start <= label_at < end), None)
        if verdict_at is None or verdict_at >= len(ids):
            raise self._refusal("drops the rating of an answer")
        verdict_end = len(ids)
        if self._target == "verdict-first":
            reasons_at = written.find(_RATED, label_at) + len(_RATED)
            verdict_end = next((at for at, (start, _) in enumerate(spans) if start >= reasons_at), len(ids))
        self._check_loss(lesson, learned, trace)
        scale = self._question.dimension.scale
        return Example(
            example_id=lesson.example_id,
            prompt_tokens=len(prompt_ids),
            input_ids=prompt_ids + ids,
            labels=[IGNORED] * len(prompt_ids) + learned,
            verdict_at=len(prompt_ids) + verdict_at,
            verdict_end=len(prompt_ids) + verdict_end,
            verdict=lesson.label if self._target == "label" else scale.parse(lesson.rating),
        )

    def _ended(self, ids: list[int]) -> list[int]:
        """Return the tokens of an answer up to the one that ends it, added if the template writes none."""
        ends = [place for place, token in enumerate(ids) if token in self.loaded.end_ids]
        if ends:
            return ids[: ends[-1] + 1]
        end = self.loaded.tokenizer.eos_token_id
        if end is None:
            raise self._refusal("ends an answer with no token that ends a text, and the tokenizer has none")
        return [*ids, end]

    def _check_loss(self, lesson: Lesson, learned: Sequence[int], trace: str) -> None:
        """Refuse an example whose loss lacks what is to be learned."""
        text = self.loaded.tokenizer.decode(
            [token for token in learned if token != IGNORED],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        rating = str(lesson.label) if self._target == "label" else lesson.rating
        if _squashed(f"{_RATING}{rating}{_RATED}") not in _squashed(text):
            raise self._refusal("leaves the rating out of what is learned")
        if self._target in ("trace", "verdict-first") and _squashed(_untagged(trace)) not in _squashed(_untagged(text)):
            raise self._refusal("leaves the thinking out of what is learned")

    def _refusal(self, what: str) -> ConfigError:
        return ConfigError(
            f"--base {self.loaded.spec}: its chat template {what}; give --chat-template the file of one that keeps it"
        )


def _untagged(text: str) -> str:
    return re.sub(r"</?(?:rating|think)>", "", text, flags=re.IGNORECASE)


def _squashed(text: str) -> str:
    return "".join(text.split())


def label_tokens(loaded: LoadedModel, scale: AnyScale) -> tuple[list[int], list[float]]:
    """Return (first token of each label behind `<rating>`, each label as a quantity).

    Raises:
        ConfigError: If the scale has no order of listed labels, or two labels begin with the same token.
    """
    if not isinstance(scale, OrdinalScale):
        raise ConfigError(f"--ordinal: labels {scale} are no list with an order; leave it out")
    return first_tokens(loaded, scale, "--ordinal"), [scale.value(label) for label in scale.labels]


def first_tokens(loaded: LoadedModel, scale: AnyScale, where: str) -> list[int]:
    """Return the first token of each label of a scale behind `<rating>`.

    Args:
        loaded: Whose tokens.
        scale: Lists its labels.
        where: The option that needs them, for the error.

    Raises:
        ConfigError: If two labels begin with the same token.
    """
    found: dict[int, Any] = {}
    for label in listed_labels(scale):
        text = f"{_RATING}{label}{_RATED}"
        encoded = loaded.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        token = next(
            token
            for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True)
            if start <= len(_RATING) < end
        )
        if token in found:
            raise ConfigError(
                f"{where}: labels {found[token]} and {label} begin with the same token of {loaded.spec}, so that it "
                "does not tell them apart; leave it out, or rename them"
            )
        found[token] = label
    return list(found)


def encode_lessons(encoder: Encoder, lessons: Sequence[Lesson], folder: Path) -> list[Example]:
    """Return the examples that fit the context.

    Raises:
        DataError: If too few are left to learn from.
    """
    examples = [example for lesson in lessons if (example := encoder.encode(lesson)) is not None]
    if len({str(example.verdict) for example in examples}) < 2:
        raise DataError(
            f"--traces {folder}: {encoder.too_long} of {len(lessons)} traces are longer than {encoder.most_tokens} "
            "tokens with their prompt, and what is left has fewer than two labels; give a base with a longer context, "
            "or a larger --max-length"
        )
    return examples


def numbers_of(examples: Sequence[Example], scale: AnyScale) -> list[int]:
    """Return the place of each example's verdict on a scale that lists its labels."""
    labels = list(listed_labels(scale))
    return [labels.index(example.verdict) for example in examples]
