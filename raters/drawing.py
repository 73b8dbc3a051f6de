"""Making draws: many at once, until done, stopped, or failed, with refusals held back until they can be told apart.

Whoever draws (rejection sampling, rating) says what to ask and what to do with an answer; how requests run side by
side and how they end is here.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from raters.corpora import Corpus
from raters.models.protocol import Completion, Message, Model, SamplingSettings
from raters.questions import Question
from raters.records import Chance, JudgeseyeError, ModelAccessError, ModelRequestError

Job = Callable[[], Awaitable[None]]
REFUSED = "refused"
"""Finish reason of a draw that the model will never make (prompt too long, content filter)."""

_SEED_BITS = 31
"""Seeds stay below 2**31: servers disagree on anything larger."""
_REFUSALS_THAT_MEAN_A_WRONG_SETTING = 8


@dataclass(frozen=True, slots=True)
class Source:
    """A model and the question it is asked."""

    model: Model
    question: Question


def draw_seed(run_seed: int, item_id: str, dimension: str, draw: int, chance: Chance = "first") -> int:
    """Return the seed of one draw: a hash of what the draw is, below 2**31."""
    name = "" if chance == "first" else f"\0{chance}"
    key = f"{run_seed}\0{item_id}\0{dimension}\0{draw}{name}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> (64 - _SEED_BITS)


def is_swapped(run_seed: int, item_id: str, dimension: str, draw: int) -> bool:
    """Return True if a draw for a pairwise item sees the two texts exchanged: every second draw of an item."""
    return (draw_seed(run_seed, item_id, dimension, 0) + draw) % 2 == 1


def work_order(corpus: Corpus, dimension: str, items: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return items in an order drawn from the seed, so that any first part of it is a fair sample."""
    keys = np.array([draw_seed(seed, corpus.item_ids[item], dimension, -1) for item in items], np.int64)
    return items[np.argsort(keys, kind="stable")]


class DrawPool:
    """Runs jobs side by side; the first failure, or `stopping`, ends all of them after what is in flight.

    Args:
        settings: Sampling settings of every request.
        concurrency: Most jobs at once.
        answered: Specs of models that have answered in an earlier session.

    Attributes:
        stopping: Set it to end after the draws that are in flight.
    """

    def __init__(self, settings: SamplingSettings, concurrency: int, answered: set[str]) -> None:
        """Prepare; nothing runs yet."""
        self.stopping = False
        self._settings, self._concurrency = settings, concurrency
        self._failure: JudgeseyeError | OSError | None = None
        # A server that refuses everything is set up wrongly: refusals count only once something was answered.
        self._answered = answered
        self._refusals: dict[str, list[Callable[[], None]]] = {}
        self._refused_with = ""

    @property
    def ending(self) -> bool:
        """True if no further draw is to begin."""
        return self.stopping or self._failure is not None

    async def work(self, jobs: Iterator[Job]) -> None:
        """Run jobs until there are none.

        Raises:
            JudgeseyeError: What the first failed job raised; so for OSError.
        """

        async def worker() -> None:
            for job in jobs:
                if self.ending:
                    return
                try:
                    await job()
                except (JudgeseyeError, OSError) as error:
                    self._failure = self._failure or error
                await asyncio.sleep(0)  # lets signals through where a model never waits

        await asyncio.gather(*(worker() for _ in range(self._concurrency)))
        if self._failure is not None:
            raise self._failure

    async def ask(self, source: Source, messages: list[Message], seed: int) -> tuple[Completion, float]:
        """Return one completion and its wall time in seconds; a request refused for good is one with its reason."""
        began = time.monotonic()
        try:
            (completion,) = await source.model.complete(messages, [seed], self._settings)
        except ModelRequestError as error:
            completion = Completion(str(error), "", REFUSED, None, None)
        return completion, time.monotonic() - began

    def keep(self, source: Source, completion: Completion, write: Callable[[], None]) -> None:
        """Call `write` for a draw now, or, if it was refused, once its model has answered anything at all.

        Raises:
            ModelAccessError: If the model has refused the first requests, all of them.
        """
        spec = source.model.spec
        if spec not in self._answered:
            if completion.finish_reason == REFUSED:
                waiting = self._refusals.setdefault(spec, [])
                waiting.append(write)
                self._refused_with = completion.text
                if len(waiting) >= _REFUSALS_THAT_MEAN_A_WRONG_SETTING:
                    raise self._all_refused(spec)
                return
            self._answered.add(spec)
            for held_back in self._refusals.pop(spec, []):
                held_back()
        write()

    def settle(self, any_answer: bool) -> None:
        """Write what is still held back at the end of the work.

        Args:
            any_answer: True if the run has a draw of any model.

        Raises:
            ModelAccessError: If it has none, and requests were refused.
        """
        if self._refusals and not self.stopping:
            if not any_answer:
                raise self._all_refused(next(iter(self._refusals)))
            for write in chain.from_iterable(self._refusals.values()):
                write()
            self._refusals.clear()

    def _all_refused(self, spec: str) -> ModelAccessError:
        count = len(self._refusals[spec])
        return ModelAccessError(f"{self._refused_with} (so for the first {count} requests, all of them)")
