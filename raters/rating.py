"""Apply a rater to items, from users' own programs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np

from raters.corpora import Corpus
from raters.drawing import DrawPool, Source
from raters.gold import nearest_label
from raters.label_probabilities import (
    joined_draws,
    mean_probabilities,
)
from raters.ledger import UNREADABLE
from raters.models import open_model
from raters.models.batch_size import BatchSize
from raters.models.protocol import Model
from raters.rater_files import RaterSpec, read_rater
from raters.rating_runs import Draw, ask_once
from raters.records import ConfigError, DataError, Item, Label, ModelError, is_utf8, shown
from raters.scales import PairwiseScale, listed_labels
from raters.splits import SplitName, split_corpus


@dataclass(frozen=True, slots=True)
class Rating:
    """What a rater says about one item.

    Attributes:
        verdict: The label nearest to what its draws say together; None if none of them could be read.
        value: That as a quantity: the mean of 3 and 4 is 3.5; the expected value over labels if the model told their
            probabilities; None if none could be read.
        verdicts: What each draw said, None where unreadable.
        reasoning: The thinking of each draw.
        label_probabilities: Mean over draws of each label's probability; None if not every readable draw has them.
        swapped: Of a pair, True for each draw that was shown its texts in exchanged order.
    """

    verdict: Label | None
    value: float | None
    verdicts: tuple[Label | None, ...]
    reasoning: tuple[str, ...]
    label_probabilities: Mapping[Label, float] | None = field(default=None, hash=False)
    swapped: tuple[bool, ...] = ()


class Rater:
    """A rater that is ready to rate. Use it in a `with` block, or `close` it.

    Attributes:
        spec: What it is.
    """

    def __init__(self, spec: RaterSpec, model: Model, concurrency: int = 32) -> None:
        """Take the model as it is; it is closed with the rater."""
        self.spec, self._model, self._concurrency = spec, model, concurrency
        # One loop on a thread of its own, so that it works inside a notebook's loop as well.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rater", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        """Return what it is in a line, as a notebook shows it."""
        return f"<Rater of {self.spec.dimension.name} on {self.spec.dimension.scale}: {self.spec.model}>"

    def rate(self, inputs: Mapping[str, str]) -> Rating:
        """Return the rating of one item's text fields; see `rate_many`."""
        return self.rate_many([inputs])[0]

    def rate_many(self, many_inputs: Iterable[Mapping[str, str]], *, draws: int | None = None) -> list[Rating]:
        """Return the ratings of items in their order.

        Args:
            many_inputs: Text fields of each item, named as in the corpus the rater was made for.
            draws: Draws for an item, if not as many as the rater has by default.

        Raises:
            ConfigError: If `draws` is below 1.
            DataError: If an input is not text, or lacks a field that the rater reads.
            ModelError: If the model fails, or the rater is closed.
        """
        return _result(self._begun(self._items(many_inputs), draws))

    async def rate_async(self, inputs: Mapping[str, str]) -> Rating:
        """Return what `rate` returns, awaited."""
        return (await self.rate_many_async([inputs]))[0]

    async def rate_many_async(
        self, many_inputs: Iterable[Mapping[str, str]], *, draws: int | None = None
    ) -> list[Rating]:
        """Return what `rate_many` returns, awaited; cancelling it ends after the requests in flight."""
        return await asyncio.wrap_future(self._begun(self._items(many_inputs), draws))

    def rate_corpus(
        self,
        corpus: Corpus,
        split: SplitName | Literal["all"] = "test",
        *,
        split_seed: int = 0,
        draws: int | None = None,
    ) -> dict[str, Rating]:
        """Return the ratings of a part of a corpus by item id, draw for draw those of `rate_items`.

        Args:
            corpus: Its items have the fields that the rater reads.
            split: Which part.
            split_seed: Seed of the split.
            draws: Draws for an item, if not as many as the rater has by default.

        Raises:
            ConfigError: If `draws` is below 1, there is no such split, or the corpus has too few groups for one.
            DataError: If an item lacks a field that the rater reads.
            ModelError: If the model fails, or the rater is closed.
        """
        items = self._items_of(corpus, split, split_seed)
        ratings = _result(self._begun(items, draws))
        return {item.item_id: rating for item, rating in zip(items, ratings, strict=True)}

    async def rate_corpus_async(
        self,
        corpus: Corpus,
        split: SplitName | Literal["all"] = "test",
        *,
        split_seed: int = 0,
        draws: int | None = None,
    ) -> dict[str, Rating]:
        """Return what `rate_corpus` returns, awaited."""
        items = self._items_of(corpus, split, split_seed)
        ratings = await asyncio.wrap_future(self._begun(items, draws))
        return {item.item_id: rating for item, rating in zip(items, ratings, strict=True)}

    def _items(self, many_inputs: Iterable[Mapping[str, str]]) -> list[Item]:
        return [_checked(inputs, place, self.spec) for place, inputs in enumerate(many_inputs)]

    def _items_of(self, corpus: Corpus, split: SplitName | Literal["all"], split_seed: int) -> list[Item]:
        if split not in (known := get_args(SplitName)):
            raise ConfigError(f"split {shown(split)}: give one of {', '.join(known)}")
        chosen = range(len(corpus.item_ids)) if split == "all" else split_corpus(corpus, split_seed).indices(split)
        items = [corpus.item(int(place)) for place in chosen]
        for item in items:
            check_fields(item.inputs, self.spec, f"corpus {corpus.name}: item {item.item_id}")
        return items

    def _begun(self, items: Sequence[Item], draws: int | None) -> Future[list[Rating]]:
        """Begin to rate items on the rater's own thread."""
        if draws is not None and draws < 1:
            raise ConfigError(f"draws {draws}: must be at least 1")
        if not self._thread.is_alive():
            raise ModelError("the rater is closed; load it again")
        return asyncio.run_coroutine_threadsafe(self._rate(items, draws or self.spec.draws), self._loop)

    def close(self) -> None:
        """Give back the model's connections and memory."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._model.close(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: object) -> None:
        await asyncio.to_thread(self.close)

    async def _rate(self, items: Sequence[Item], draws: int) -> list[Rating]:
        pool = DrawPool(self.spec.asked_settings, self._concurrency, set())
        source = Source(self._model, self.spec.question)
        made: dict[tuple[int, int], Draw] = {}

        async def draw(place: int, number: int) -> None:
            made[place, number] = await ask_once(pool, source, self.spec, items[place], number)

        await pool.work(partial(draw, place, number) for place in range(len(items)) for number in range(draws))
        return [_joined([made[place, number] for number in range(draws)], self.spec) for place in range(len(items))]


def _result(work: Future[list[Rating]]) -> list[Rating]:
    try:
        return work.result()
    except BaseException:
        work.cancel()  # or an interrupted call would go on asking, and paying, in the background
        raise


def load_rater(
    path: str | Path, *, base_url: str | None = None, batch_size: BatchSize = "auto", concurrency: int = 32
) -> Rater:
    """Return the rater of a rater.yaml, ready to rate.

    Args:
        path: The file.
        base_url: Endpoint of `openai/...`; OPENAI_BASE_URL if None.
        batch_size: Most rows that `hf/...` generates at once; `auto` for what a GPU's memory holds, 16 without one.
        concurrency: Most requests at once.

    Raises:
        DataError: If the file is not a rater.
        ModelAccessError: If its model cannot be used.
    """
    spec = read_rater(Path(path))
    model = open_model(
        spec.model, base_url=base_url, adapter=spec.adapter, batch_size=batch_size, concurrency=concurrency
    )
    return Rater(spec, model, concurrency)


def _checked(inputs: Mapping[str, str], place: int, spec: RaterSpec) -> Item:
    if not isinstance(inputs, Mapping) or not inputs:
        raise DataError(f"item {place}: {shown(inputs)} is no mapping of text fields; give {{name: text}}")
    for name, text in inputs.items():
        is_text = isinstance(name, str) and isinstance(text, str) and text.strip()
        if not is_text or not (is_utf8(name) and is_utf8(text)):
            raise DataError(f"item {place}: field {shown(name)} holds {shown(text)}, which is no text; fill it in")
    check_fields(inputs, spec, f"item {place}")
    # Without an id of its own an item is known by its texts, so that the same texts get the same draws.
    return Item("\0".join(f"{name}\0{inputs[name]}" for name in sorted(inputs)), inputs, {})


def check_fields(inputs: Mapping[str, str], spec: RaterSpec, where: str) -> None:
    """Refuse an item that lacks a field which the rater reads.

    Raises:
        DataError: If it does.
    """
    scale, question = spec.dimension.scale, spec.question
    observed = question.observations.fields if question.observations and question.needs_observations else ()
    for name in scale.fields if isinstance(scale, PairwiseScale) else observed:
        if name not in inputs:
            fields = ", ".join(map(shown, inputs))
            raise DataError(f"{where}: no field {name}, which the rater reads; the fields are {fields}")


def _joined(draws: Sequence[Draw], spec: RaterSpec) -> Rating:
    scale = spec.dimension.scale
    numbers = np.array([UNREADABLE if draw.verdict is None else scale.number(draw.verdict) for draw in draws])
    labels = listed_labels(scale)
    told = np.full((len(draws), len(labels)), np.nan)
    for row, draw in enumerate(draws):
        if draw.probabilities is not None:
            told[row] = draw.probabilities
    value = joined_draws(numbers, told, spec.aggregate, scale)
    together = mean_probabilities(numbers, told)
    return Rating(
        verdict=None if value is None else nearest_label(value, scale),
        value=value,
        verdicts=tuple(draw.verdict for draw in draws),
        reasoning=tuple(draw.trace for draw in draws),
        label_probabilities=None if together is None else dict(zip(labels, together.tolist(), strict=True)),
        swapped=tuple(draw.swapped for draw in draws) if isinstance(scale, PairwiseScale) else (),
    )
