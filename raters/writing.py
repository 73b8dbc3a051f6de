"""Asking a language model to write: one request at a time into a journal, read strictly, asked again within a bound.

A writer's answer is untrusted like any model's. What is wanted stands between tags, once; anything else is unusable,
is asked for again with the reason, and after a few attempts the step is skipped and logged. An answer that was paid for
stands in the journal by the hash of what was asked, so that no session asks for it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from raters.journal import Journal, Record
from raters.models.protocol import Message, Model, SamplingSettings, one_line
from raters.prompts import Prompt, load_prompt
from raters.records import ConfigError, DataError, ModelError, ModelRequestError, shown
from raters.trials import Spending

Read = TypeVar("Read")
MOST_ATTEMPTS = 3
MOST_ANSWER_TOKENS = 4096
_SLOTS = {
    "instructions": frozenset({"dimension", "labels", "guideline", "traces"}),
    "critiques": frozenset({"dimension", "labels", "label", "trace"}),
    "criteria": frozenset({"dimension", "labels", "guideline", "critiques"}),
    "edit": frozenset({"dimension", "labels", "guideline", "cases", "tried"}),
}
"""Slots of each prompt of prompts/writer/, all and no others."""


class UnusableAnswerError(ValueError):
    """A writer's answer that is not what was asked for. The message says why."""


@dataclass
class Scribe:
    """A model that writes, its prompts, and the journal of what it wrote.

    Attributes:
        model: That writes.
        path: The journal.
        spending: Counts every answer.
        seed: Of its answers.
        concurrency: Most requests at once.
        log: Called with a line for every answer that cannot be used.
    """

    model: Model
    path: Path
    spending: Spending
    seed: int = 0
    concurrency: int = 32
    temperature: float = 1.0
    log: Callable[[str], None] = lambda line: None
    _answers: dict[str, Record] = field(default_factory=dict)
    _journal: Journal | None = None
    _slots: asyncio.Semaphore | None = None
    _asked: dict[str, asyncio.Lock] = field(default_factory=dict)
    _in_flight: int = 0
    _failure: ModelError | None = None

    def recover(self) -> None:
        """Read what earlier sessions were answered."""
        self._journal = Journal(self.path, prepare=lambda: self.path.parent.mkdir(parents=True, exist_ok=True))
        for line_number, _, record in self._journal.recover():
            if not isinstance(record.get("key"), str) or not isinstance(record.get("answer"), str):
                raise DataError(f"{self.path} line {line_number}: {shown(record)} is not an answer; remove the line")
            self._answers[record["key"]] = record
            self.spending.count(record)

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._journal is not None:
            self._journal.close()

    async def write(self, purpose: str, read: Callable[[str], Read], **values: Any) -> Read | None:
        """Return what the writer wrote for a purpose, read; None if no attempt was usable.

        Args:
            purpose: Name of a prompt in prompts/writer/.
            read: From the answer to what is wanted of it; raises UnusableAnswerError or another ValueError.
            **values: What fills the prompt's slots.

        Raises:
            WorkEnds: If the budget is spent, or the user stops.
            ModelError: If the model fails.
        """
        asked = prompt_for(purpose).fill(**values)
        reason = ""
        for attempt in range(MOST_ATTEMPTS):
            again = f"\nYour answer could not be used: {reason}. Answer again as asked for.\n" if attempt else ""
            record = await self._answer(purpose, [{"role": "user", "content": asked + again}], attempt)
            reason = _unfinished(record)
            if not reason:
                try:
                    return read(record["answer"])
                except ValueError as error:
                    reason = one_line(str(error))
            self.log(f"writer: {purpose}: attempt {attempt + 1} of {MOST_ATTEMPTS} cannot be used: {reason}")
        return None

    async def _answer(self, purpose: str, messages: Sequence[Message], attempt: int) -> Record:
        """Return the answer to a request, from the journal if it is there."""
        settings = SamplingSettings(self.temperature, 1.0, MOST_ANSWER_TOKENS)
        asked = "\0".join([self.model.spec, messages[0]["content"], str(self.seed), str(attempt), repr(settings)])
        key = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()
        assert self._journal is not None
        self._slots = self._slots or asyncio.Semaphore(self.concurrency)
        # Traces may be alike, and then so are their requests: the second one waits for the first one's answer.
        async with self._asked.setdefault(key, asyncio.Lock()):
            if key in self._answers:
                return self._answers[key]
            async with self._slots:
                if self._failure is not None:
                    raise self._failure
                self.spending.check(1 + self._in_flight)
                self._in_flight += 1
                try:
                    record = {"key": key, "purpose": purpose, "attempt": attempt, "model": self.model.spec}
                    record |= await self._completion(messages, asked, settings)
                finally:
                    self._in_flight -= 1
                self._journal.append([record])
                self.spending.count(record)
            self._answers[key] = record
            return record

    async def _completion(self, messages: Sequence[Message], asked: str, settings: SamplingSettings) -> Record:
        """Return what the model answers, as its part of a record; also that it refuses to."""
        seed = int.from_bytes(hashlib.blake2b(asked.encode("utf-8", "replace"), digest_size=4).digest(), "big") >> 1
        try:
            (made,) = await self.model.complete(messages, [seed], settings)
        except ModelRequestError as error:
            return {"answer": "", "reasoning": "", "finish_reason": "refused", "error": one_line(str(error))}
        except ModelError as error:
            self._failure = error
            raise
        return {
            "seed": seed,
            "answer": made.text,
            "reasoning": made.reasoning,
            "finish_reason": made.finish_reason,
            "prompt_tokens": made.prompt_tokens,
            "completion_tokens": made.completion_tokens,
        }


def prompt_for(purpose: str) -> Prompt:
    """Return a prompt of prompts/writer/.

    Raises:
        ConfigError: If its slots are not those that are filled.
    """
    prompt = load_prompt(f"writer/{purpose}")
    if prompt.slots != _SLOTS[purpose]:
        raise ConfigError(
            f"prompt writer/{purpose}: has slots {', '.join(sorted(prompt.slots))}; "
            f"filled are {', '.join(sorted(_SLOTS[purpose]))}"
        )
    return prompt


def _unfinished(record: Record) -> str:
    """Return why an answer is none at all; empty if it is one."""
    if record["finish_reason"] == "refused":
        return f"the model refused it ({record.get('error', '')})"
    if record["finish_reason"] == "length":
        return "it was cut off for its length"
    if record["finish_reason"] == "content_filter":
        return "a content filter cut it off"
    if not record["answer"].strip():
        return f"it is empty (finish reason {record['finish_reason']})"
    return ""


def tagged(answer: str, tag: str) -> str:
    """Return what stands between a pair of tags.

    Raises:
        UnusableAnswerError: If the pair is missing, stands more than once, or another pair stands in its place.
    """
    found = re.findall(rf"<{tag}>((?:(?!</?{tag}>).)*)</{tag}>", answer, re.DOTALL | re.IGNORECASE)
    opened = len(re.findall(rf"<{tag}>", answer, re.IGNORECASE))
    if not found:
        other = re.search(r"<(instructions|criteria|critiques|edit|guideline)>", answer, re.IGNORECASE)
        part = f"; it has <{other[1].lower()}> instead" if other and other[1].lower() != tag else ""
        raise UnusableAnswerError(f"it has no <{tag}>...</{tag}>{part}")
    if len(found) > 1 or opened > 1:
        raise UnusableAnswerError(f"it has <{tag}> {max(len(found), opened)} times; once is wanted")
    return str(found[0]).strip("\r\n")


def lines_of(text: str, most: int) -> list[str]:
    """Return the lines of a block that say something, without outer blanks.

    Raises:
        UnusableAnswerError: If there are none, or more than `most`.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UnusableAnswerError("nothing stands between the tags")
    if len(lines) > most:
        raise UnusableAnswerError(f"{len(lines)} lines stand between the tags; at most {most} are wanted")
    return lines
