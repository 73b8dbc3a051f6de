"""Models run in this process with transformers, from a folder or from the Hugging Face hub.

Draws that wait are collected into batches: one goes as soon as the model is free, led by the draw that has
waited longest, with others of the same settings, as many as the device's memory holds (see `batch_size`). A draw's
completion does not depend on the batch it gets into (see `generation`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Self

from raters.models.batch_size import ROWS_WITHOUT_A_GPU, BatchMemory, BatchSize, batch_memory, is_out_of_memory
from raters.models.generation import LoadedModel, Prompt, generate, load_model, render
from raters.models.protocol import Completion, Message, SamplingSettings, one_line
from raters.records import ModelAccessError, ModelError, ModelRequestError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Draw:
    """A completion somebody waits for."""

    messages: tuple[Message, ...]
    seed: int
    settings: SamplingSettings
    result: Future[Completion] = field(default_factory=Future)

    def settle(self, result: Completion | ModelError) -> None:
        """Hand over the result, unless nobody waits any more."""
        with contextlib.suppress(InvalidStateError):
            if isinstance(result, Completion):
                self.result.set_result(result)
            else:
                self.result.set_exception(result)


_Row = tuple[_Draw, Prompt]


class HFModel:
    """A model of this process; loaded with the first request, on a thread of its own.

    Attributes:
        spec: As records name it.
        batch_size: Most rows in a batch; shrinks when memory does not hold as many. On a GPU whose memory says how many
            rows a batch has, that alone counts.
    """

    def __init__(
        self,
        name: str,
        *,
        adapter: str | Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: BatchSize = "auto",
        concurrency: int | None = None,
        spec: str | None = None,
    ) -> None:
        """Note what to load; nothing is read yet.

        Args:
            name: Folder or hub id of a causal language model with a chat template.
            adapter: Folder of a PEFT adapter to put on it; its tokenizer, if it has one, is the one it was
                trained with and is used.
            device: Torch device; default `cuda` if there is one, else `cpu`.
            dtype: Torch dtype by name; default `bfloat16` on cuda, `float32` elsewhere.
            batch_size: Most rows in a batch; see `BatchSize`.
            concurrency: Most draws that are asked for at once, if that is known; a GPU that could take twice as many
                is told of.
            spec: As records name it; `hf/NAME` if None.
        """
        self.spec = spec or f"hf/{name}"
        self.batch_size = ROWS_WITHOUT_A_GPU if batch_size == "auto" else batch_size
        self._asks_memory = batch_size == "auto"
        self._memory: BatchMemory | None = None
        self._concurrency = concurrency
        self._said_idle = self._said_halved = False
        self._name = name
        self._adapter = None if adapter is None else Path(adapter)
        self._device = device
        self._dtype = dtype
        self._loaded: LoadedModel | None = None
        self._no_access: str | None = None
        self._waiting: deque[_Draw] = deque()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self.spec)

    @classmethod
    def of(cls, loaded: LoadedModel, *, batch_size: BatchSize = "auto") -> Self:
        """Return a model that is in memory already, one that is being trained say; closing leaves it there.

        Nothing else may use it while completions are awaited.
        """
        model = cls(loaded.spec.partition("/")[2], batch_size=batch_size, spec=loaded.spec)
        model._loaded = loaded
        return model

    async def complete(
        self, messages: Sequence[Message], seeds: Sequence[int], settings: SamplingSettings
    ) -> list[Completion]:
        """Return one completion per seed, in the order of `seeds`; see `protocol.Model`.

        Raises:
            ModelAccessError: The model cannot be loaded, or has no chat template.
            ModelRequestError: The prompt does not fit the model's context, or its template refuses it.
            ModelError: The model failed.
        """
        if self._closed.is_set():
            raise self._gone()
        draws = [_Draw(tuple(messages), seed, settings) for seed in seeds]
        with self._lock:
            self._waiting.extend(draws)
        for _ in draws:
            # One turn of the worker per draw; a turn that finds its draw served already takes the next ones.
            self._worker.submit(self._serve)
        try:
            return list(await asyncio.gather(*(asyncio.wrap_future(draw.result) for draw in draws)))
        finally:
            for draw in draws:
                draw.result.cancel()

    async def close(self) -> None:
        """Stop what is being written and give back the memory."""
        self._closed.set()
        with self._lock:
            while self._waiting:
                self._waiting.popleft().settle(self._gone())
        await asyncio.to_thread(self._worker.shutdown)
        on_cuda = self._loaded is not None and self._loaded.model.device.type == "cuda"
        self._loaded = None
        if on_cuda:
            import torch

            torch.cuda.empty_cache()

    def _serve(self) -> None:
        """Write one batch: the draw that has waited longest, and others like it."""
        taken = self._alike()
        if not taken:
            return
        try:
            loaded = self._load()
            taken = self._alike()  # more have come while it loaded
            rows = self._batch(loaded, taken)
            taken = [draw for draw, _ in rows]
            self._take(taken)
            # Rotary positions go on past the context; learned ones end there, so such rows go by room left.
            groups: dict[int, list[_Row]] = {}
            for draw, prompt in rows:
                groups.setdefault(0 if loaded.rotary else prompt.max_tokens, []).append((draw, prompt))
            for some in groups.values():
                self._write(loaded, some)
        except ModelError as error:
            self._fail(taken, error)
        except Exception as error:
            failure = ModelError(
                f"{self.spec}: failed while writing ({type(error).__name__}: {one_line(str(error), 200)}); "
                "check the model's files, and that the installed transformers knows its architecture"
            )
            failure.__cause__ = error
            self._fail(taken, failure)

    def _alike(self) -> list[_Draw]:
        """Return the draw that has waited longest, and others of its settings in their order."""
        with self._lock:
            self._waiting = deque(draw for draw in self._waiting if not draw.result.done())
            return [draw for draw in self._waiting if draw.settings == self._waiting[0].settings]

    def _batch(self, loaded: LoadedModel, alike: Sequence[_Draw]) -> list[_Row]:
        """Return the first of some draws, as many as are written at once, with their prompts."""
        rendered = self._rendered(loaded, alike)
        if self._memory is None:
            return list(islice(rendered, self.batch_size))
        rows: list[_Row] = []

        def lengths() -> Iterator[tuple[tuple[int, ...], int]]:
            for row in rendered:
                rows.append(row)
                yield _length(row)

        fitting = self._memory.rows_that_fit(lengths())
        if not self._said_idle and self._concurrency is not None and fitting >= max(self._concurrency, len(alike)):
            possible = self._memory.rows_that_fit(cycle([_length(row) for row in rows]))
            if possible >= 2 * fitting:
                self._said_idle = True
                _LOG.warning(
                    "%s: GPU memory holds some %d such draws at once, and %d wait; with a higher --concurrency the "
                    "same draws come sooner",
                    self.spec,
                    possible,
                    fitting,
                )
        return rows[:fitting]

    def _rendered(self, loaded: LoadedModel, draws: Sequence[_Draw]) -> Iterator[_Row]:
        """Yield draws with their prompts; those that have none are told so."""
        for draw in draws:
            try:
                prompt = render(loaded, draw.messages, draw.settings.max_tokens)
            except ModelError as error:
                draw.settle(error)
            else:
                yield draw, prompt

    def _take(self, draws: Sequence[_Draw]) -> None:
        """Take draws out of those that wait."""
        taken = {id(draw) for draw in draws}
        with self._lock:
            self._waiting = deque(draw for draw in self._waiting if id(draw) not in taken)

    def _fail(self, draws: Sequence[_Draw], error: ModelError) -> None:
        self._take(draws)
        for draw in draws:
            draw.settle(error)

    def _gone(self) -> ModelError:
        return ModelError(f"{self.spec}: was closed before it was done; make a new model")

    def _load(self) -> LoadedModel:
        if self._no_access is not None:
            raise ModelAccessError(self._no_access)
        if self._loaded is None:
            try:
                self._loaded = load_model(self.spec, self._name, self._adapter, self._device, self._dtype)
            except ModelAccessError as error:
                self._no_access = str(error)
                raise
        if self._asks_memory:
            self._asks_memory = False
            self._memory = batch_memory(self._loaded.model)
        return self._loaded

    def _write(self, loaded: LoadedModel, rows: Sequence[_Row]) -> None:
        """Write some draws at once, or in as few parts as memory holds."""
        at_once = len(rows)
        while rows:
            some = rows[:at_once]
            if self._written(loaded, some):
                rows = rows[at_once:]
                continue
            if loaded.model.device.type == "cuda":
                import torch

                torch.cuda.empty_cache()
            if len(some) == 1:
                ((draw, prompt),) = some
                # Others may be shorter, so this is no failure of the model.
                draw.settle(
                    ModelRequestError(
                        f"{self.spec}: memory does not hold a prompt of {len(prompt.token_ids)} tokens and "
                        f"{prompt.max_tokens} more; lower max_tokens, or use a smaller model or a bigger GPU"
                    )
                )
                rows = rows[1:]
                continue
            if not self._said_halved:
                self._said_halved = True
                _LOG.warning(
                    "%s: memory does not hold %d draws at once; they are made in parts, and later batches are smaller",
                    self.spec,
                    len(some),
                )
            at_once = len(some) // 2
            if self._memory is None:
                self.batch_size = max(1, min(self.batch_size, at_once))
            else:
                self._memory.failed([_length(row) for row in some])

    def _written(self, loaded: LoadedModel, rows: Sequence[_Row]) -> bool:
        """Write one batch and hand it over; return False if memory does not hold it."""
        draws = [draw for draw, _ in rows]
        try:
            completions = generate(
                loaded,
                [prompt for _, prompt in rows],
                [draw.seed for draw in draws],
                draws[0].settings,
                lambda row: self._closed.is_set() or draws[row].result.cancelled(),
            )
        except Exception as error:
            if is_out_of_memory(error):
                return False  # to where no exception holds the failed batch's tensors
            raise
        for draw, completion in zip(draws, completions, strict=True):
            # What close() cut off is no completion, though it looks like one that met its limit.
            draw.settle(self._gone() if self._closed.is_set() else completion)
        return True


def _length(row: _Row) -> tuple[tuple[int, ...], int]:
    """Return what a row takes in memory: the tokens of its prompt, and how many may follow."""
    return tuple(row[1].token_ids), row[1].max_tokens
