"""Models run in this process with transformers, from a folder or from the Hugging Face hub.

Draws that wait are collected into batches: one goes as soon as the model is free, led by the draw that has
waited longest, with others of the same settings. A draw's completion does not depend on the batch it gets
into (see `generation`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from raters.models.generation import LoadedModel, Prompt, generate, load_model, render
from raters.models.protocol import Completion, Message, SamplingSettings, one_line
from raters.records import ModelAccessError, ModelError


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


class HFModel:
    """A model of this process; loaded with the first request, on a thread of its own.

    Attributes:
        spec: As records name it.
        batch_size: Most rows in a batch; shrinks when the GPU's memory does not hold as many.
    """

    def __init__(
        self,
        name: str,
        *,
        adapter: str | Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int = 16,
        spec: str | None = None,
    ) -> None:
        """Note what to load; nothing is read yet.

        Args:
            name: Folder or hub id of a causal language model with a chat template.
            adapter: Folder of a PEFT adapter to put on it; its tokenizer, if it has one, is the one it was
                trained with and is used.
            device: Torch device; default `cuda` if there is one, else `cpu`.
            dtype: Torch dtype by name; default `bfloat16` on cuda, `float32` elsewhere.
            batch_size: Most rows in a batch.
            spec: As records name it; `hf/NAME` if None.
        """
        self.spec = spec or f"hf/{name}"
        self.batch_size = batch_size
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
    def of(cls, loaded: LoadedModel, *, batch_size: int = 16) -> Self:
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
        with self._lock:
            waiting = [draw for draw in self._waiting if not draw.result.cancelled()]
            alike = [draw for draw in waiting if draw.settings == waiting[0].settings][: self.batch_size]
            taken = {id(draw) for draw in alike}
            self._waiting = deque(draw for draw in waiting if id(draw) not in taken)
        if not alike:
            return
        try:
            loaded = self._load()
            # Rotary positions go on past the context; learned ones end there, so such rows go by room left.
            groups: dict[int, list[tuple[_Draw, Prompt]]] = {}
            for draw in alike:
                try:
                    prompt = render(loaded, draw.messages, draw.settings.max_tokens)
                except ModelError as error:
                    draw.settle(error)
                else:
                    groups.setdefault(0 if loaded.rotary else prompt.max_tokens, []).append((draw, prompt))
            for rows in groups.values():
                self._write(loaded, rows)
        except ModelError as error:
            for draw in alike:
                draw.settle(error)
        except Exception as error:
            failure = ModelError(
                f"{self.spec}: failed while writing ({type(error).__name__}: {one_line(str(error), 200)}); "
                "check the model's files, and that the installed transformers knows its architecture"
            )
            failure.__cause__ = error
            for draw in alike:
                draw.settle(failure)

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
        return self._loaded

    def _write(self, loaded: LoadedModel, rows: list[tuple[_Draw, Prompt]]) -> None:
        import torch

        draws = [draw for draw, _ in rows]
        prompts = [prompt for _, prompt in rows]
        try:
            completions = generate(
                loaded,
                prompts,
                [draw.seed for draw in draws],
                draws[0].settings,
                lambda row: self._closed.is_set() or draws[row].result.cancelled(),
            )
        except torch.OutOfMemoryError:
            completions = None  # retried below, where no exception holds the failed batch's tensors
        if completions is not None:
            for draw, completion in zip(draws, completions, strict=True):
                # What close() cut off is no completion, though it looks like one that met its limit.
                draw.settle(self._gone() if self._closed.is_set() else completion)
            return
        torch.cuda.empty_cache()
        if len(rows) == 1:
            raise ModelError(
                f"{self.spec}: GPU memory does not hold a prompt of {len(prompts[0].token_ids)} tokens and "
                f"{prompts[0].max_tokens} more; lower max_tokens, or use a smaller model or a bigger GPU"
            )
        half = len(rows) // 2
        self.batch_size = max(1, min(self.batch_size, half))
        self._write(loaded, rows[:half])
        self._write(loaded, rows[half:])
