"""Making draws: many at once, until done, stopped, or failed, with refusals held back until they can be told apart.

Whoever draws (rejection sampling, rating) says what to ask and what to do with an answer; how requests run side by
side and how they end is here.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True)
class Asked:
    """A completion with the seed it was asked for with, and the wall time of its request in seconds."""

    completion: Completion
    seed: int
    seconds: float


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
        refusal: From the number of jobs that run to why no further one may begin beside them; empty if it may. If none
            runs, the work ends.

    Attributes:
        stopping: Set it to end after the draws that are in flight.
        ended: Why the work ended early, if `refusal` ended it.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        concurrency: int,
        answered: set[str],
        refusal: Callable[[int], str] = lambda running: "",
    ) -> None:
        """Prepare; nothing runs yet."""
        self.stopping = False
        self.ended = ""
        self._refusal = refusal
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        # By spec of a server; a request that was refused for good says nothing of it.
        self._returns_several: dict[str, bool] = {}
        self._probing: dict[str, asyncio.Lock] = {}
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

    async def work(self, jobs: Iterator[Job | None]) -> None:
        """Run jobs until there are none.

        Args:
            jobs: None among them if nothing may begin before a job that runs is done.

        Raises:
            JudgeseyeError: What the first failed job raised; so for OSError.
        """

        async def worker() -> None:
            while not self.ending and (job := await self._next(jobs)) is not None:
                self._running += 1
                try:
                    await job()
                except (JudgeseyeError, OSError) as error:
                    self._failure = self._failure or error
                finally:
                    self._running -= 1
                    self._wake(everyone=self.ending)
                await asyncio.sleep(0)  # lets signals through where a model never waits
            self._wake(everyone=True)

        await asyncio.gather(*(worker() for _ in range(self._concurrency)))
        if self._failure is not None:
            raise self._failure

    async def _next(self, jobs: Iterator[Job | None]) -> Job | None:
        """Return the next job, as soon as one may begin; None if there is none, or the work ends."""
        while not self.ending:
            reason = self._refusal(self._running)
            if not reason or not self._running:  # what is refused with nothing in flight may also be done
                try:
                    job = next(jobs)
                except StopIteration:
                    return None
                if job is not None and reason:
                    self.stopping, self.ended = True, reason
                    return None
                if job is not None:
                    self._wake()  # there may be another one
                    return job
                if not self._running:
                    return None
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        return None

    def _wake(self, everyone: bool = False) -> None:
        """Let a worker that waits look for a job again, or all of them."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                if not everyone:
                    return

    async def ask(self, source: Source, messages: list[Message], seed: int) -> tuple[Completion, float]:
        """Return one completion and its wall time in seconds; a request refused for good is one with its reason."""
        began = time.monotonic()
        try:
            (completion,) = await source.model.complete(messages, [seed], self._settings)
        except ModelRequestError as error:
            completion = Completion(str(error), "", REFUSED, None, None)
        return completion, time.monotonic() - began

    async def ask_together(
        self, source: Source, messages: list[Message], seeds: Sequence[int], wanted: Sequence[int]
    ) -> dict[int, Asked]:
        """Return completions of several draws of an item, in one request where that is possible.

        A model with a seed for each completion is asked for those that are wanted. A server takes one seed and returns
        n samples, or ignores n, or refuses it: one request of a session finds out, and others wait for what it comes
        to. What a server does not return at once is asked for one by one, each with its own seed.

        Args:
            source: Who is asked.
            messages: What.
            seeds: Of all draws of the request; a server is given the first one, whatever is wanted.
            wanted: Places among them that are still missing.

        Returns:
            What came, by place, for all that are wanted.
        """
        if not getattr(source.model, "samples_share_a_seed", False):
            began, asked = time.monotonic(), [seeds[place] for place in wanted]
            try:
                completions = await source.model.complete(messages, asked, self._settings)
            except ModelRequestError as error:
                completions = [Completion(str(error), "", REFUSED, None, None) for _ in asked]
            seconds = time.monotonic() - began
            together = zip(wanted, completions, asked, strict=True)
            return {place: Asked(completion, seed, seconds) for place, completion, seed in together}
        samples = await self._samples(source, messages, seeds) if len(seeds) > 1 else []
        by_place = dict(enumerate(samples))
        for place in wanted:
            if place not in by_place:
                completion, seconds = await self.ask(source, messages, seeds[place])
                by_place[place] = Asked(completion, seeds[place], seconds)
        return {place: by_place[place] for place in wanted}

    async def _samples(self, source: Source, messages: list[Message], seeds: Sequence[int]) -> list[Asked]:
        """Return what a server returns of so many samples at once; nothing if it is known not to."""
        spec = source.model.spec
        if spec in self._returns_several:
            return await self._samples_at_once(source, messages, seeds) if self._returns_several[spec] else []
        async with self._probing.setdefault(spec, asyncio.Lock()):
            if spec not in self._returns_several:
                samples = await self._samples_at_once(source, messages, seeds)
                if not samples:  # was it the number that was refused?
                    completion, seconds = await self.ask(source, messages, seeds[0])
                    samples = [Asked(completion, seeds[0], seconds)]
                if samples[0].completion.finish_reason != REFUSED:
                    self._returns_several[spec] = len(samples) > 1
                return samples
        return await self._samples(source, messages, seeds)

    async def _samples_at_once(self, source: Source, messages: list[Message], seeds: Sequence[int]) -> list[Asked]:
        began, settings = time.monotonic(), replace(self._settings, samples=len(seeds))
        try:
            (first,) = await source.model.complete(messages, seeds[:1], settings)
        except ModelRequestError:
            return []
        seconds, samples = time.monotonic() - began, [replace(first, siblings=()), *first.siblings]
        return [Asked(sample, seeds[0], seconds) for sample in samples[: len(seeds)]]

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
