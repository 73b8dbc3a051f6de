"""Models run by vLLM's engine, from a folder or from the Hugging Face hub: the fast way to draw on a GPU of one's own.

Every draw is a request of its own, with its own seed. The engine batches whatever is in flight from one token to the
next (Yu et al. 2022, "Orca"), and reads a prompt that several draws share once (Kwon et al. 2023, "Efficient Memory
Management for Large Language Model Serving with PagedAttention"). Its work is done in processes of its own; what talks
to them here has an event loop on a thread of its own, so that it outlives the loops of those who ask.

Conversations are written, and completions read, as `hf` does it, so both draw from the same model in the same way.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from raters.models.bases import check_base, fingerprint_of_files
from raters.models.generation import (
    Prompt,
    Written,
    as_completion,
    check_places,
    decoded,
    load_tokenizer,
    not_loaded,
    render,
    special_tokens_of,
    tokenizer_place,
)
from raters.models.label_scoring import answer_up_to_rating, label_endings
from raters.models.protocol import Completion, Message, SamplingSettings, one_line
from raters.records import ModelAccessError, ModelError, ModelRequestError

_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # a stage's results are on stdout
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process with threads may hang
    "VLLM_NO_USAGE_STATS": "1",
}
"""What vLLM is told unless the user has told it otherwise."""
_WATCH = """
import os, signal, sys
pids = sys.stdin.read().split()  # ends with the process that writes here, however it ends
for pid in [] if "left" in pids else pids:
    try:
        os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""
"""A program that ends the engine's processes if ours is killed: they would keep the GPU's memory from the next run."""
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM has room for; an adapter of another rank takes the next."""
_MOST_TOKENS_SCORED = 100
"""In one request; vLLM takes 128."""
_ENDED = ("stop", "length")


@dataclass(frozen=True, slots=True)
class _Running:
    """What has to be known to ask an engine.

    Attributes:
        spec: For messages.
        tokenizer: Its tokenizer, with a chat template.
        context_tokens: Longest text the model can take, in the memory there is.
        special_tokens: Strings that become control tokens, longest first.
        lora: vLLM's request for the adapter; None if there is none.
    """

    spec: str
    tokenizer: Any
    context_tokens: int | None
    special_tokens: tuple[str, ...]
    lora: Any


class VLLMModel:
    """A model in an engine of vLLM; started with the first request.

    Attributes:
        spec: `vllm/NAME`.
    """

    def __init__(
        self, name: str, *, adapter: str | Path | None = None, engine_options: Mapping[str, Any] | None = None
    ) -> None:
        """Note what to start; nothing is read yet.

        Args:
            name: Folder or hub id of a causal language model with a chat template.
            adapter: Folder of a LoRA adapter of PEFT to put on it; its tokenizer, if it has one, is the one it was
                trained with and is used.
            engine_options: Of vLLM's `AsyncEngineArgs`, in place of our own.
        """
        self.spec = f"vllm/{name}"
        self._name = name
        self._adapter = None if adapter is None else Path(adapter)
        self._engine_options = dict(engine_options or {})
        self._numbers = itertools.count()
        self._closed = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        # What follows is touched on the engine's thread alone.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work: set[asyncio.Task[Any]] = set()
        self._left = asyncio.Event()
        self._loading: asyncio.Task[_Running] | None = None
        # vLLM's `AsyncLLM`, held nowhere else: what frames and tracebacks hold, no close() gives back.
        self._engine: Any = None
        self._watch: subprocess.Popen[str] | None = None

    async def complete(
        self, messages: Sequence[Message], seeds: Sequence[int], settings: SamplingSettings
    ) -> list[Completion]:
        """Return one completion per seed, in the order of `seeds`; see `protocol.Model`.

        Raises:
            ModelAccessError: vLLM is not installed, the model cannot be loaded, or has no chat template.
            ModelRequestError: The prompt does not fit the model's context, or its template or vLLM refuses it.
            ModelError: The engine failed.
        """
        loop = self._own_loop()
        work = self._watched(tuple(messages), tuple(seeds), settings)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))

    async def close(self) -> None:
        """Leave what is being written, and end the engine with its processes."""
        with self._starting:
            self._closed.set()
            thread, loop = self._thread, self._loop
        if thread is not None and loop is not None:
            if thread.is_alive():
                loop.call_soon_threadsafe(self._left.set)
            await asyncio.to_thread(thread.join)

    # --- the engine's thread ------------------------------------------------------------------------------

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop on the engine's thread, which begins with the first use."""
        with self._starting:
            if self._closed.is_set():
                raise self._gone()
            if self._loop is None:
                begun = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(begun,), name=self.spec, daemon=True)
                self._thread.start()
                begun.wait()
            assert self._loop is not None
            return self._loop

    def _run(self, begun: threading.Event) -> None:
        # Inherited by the engine's processes: a terminal's Ctrl-C goes to all of them, and only the stage is to take
        # it, which has draws in flight to wait for. Python's resource tracker, as it starts, lets the signal through.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        asyncio.run(self._serve(begun))

    async def _serve(self, begun: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        begun.set()
        await self._left.wait()
        waiting = [*self._work, *filter(None, [self._loading])]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        self._end_engine()

    async def _watched(
        self, messages: Sequence[Message], seeds: Sequence[int], settings: SamplingSettings
    ) -> list[Completion]:
        """Return the completions, unless the engine is left before they are done."""
        task = asyncio.ensure_future(self._complete(messages, seeds, settings))
        self._work.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._closed.is_set():
                raise self._gone() from None
            raise
        finally:
            self._work.discard(task)

    def _end_engine(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None
            if self._watch is not None:
                self._watch.communicate("left\n")
                self._watch = None
            gc.collect()  # or what is left of it complains when the interpreter ends

    def _gone(self) -> ModelError:
        return ModelError(f"{self.spec}: was closed before it was done; make a new model")

    # --- loading ------------------------------------------------------------------------------------------

    async def _started(self) -> _Running:
        """Return the engine that is started once, whoever leaves while it does."""
        if self._loading is None:
            self._loading = asyncio.ensure_future(self._start())
        try:
            return await asyncio.shield(self._loading)
        except ModelAccessError as error:
            raise ModelAccessError(str(error)) from error

    async def _start(self) -> _Running:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from vllm import AsyncEngineArgs
            from vllm.lora.request import LoRARequest
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            needed = "pip install 'judgeseye[vllm]'"
            raise ModelAccessError(f"{self.spec}: needs vllm ({one_line(str(error), 100)}); {needed}") from error
        check_places(self.spec, self._name, self._adapter)
        place = tokenizer_place(self._name, self._adapter)
        options: dict[str, Any] = {
            "model": self._name,
            "tokenizer": place,
            "trust_remote_code": False,
            "load_format": "safetensors",  # other weights are pickles, which may run anything
            "generation_config": "vllm",  # nothing of what was saved with a model (top_k, penalties)
            "max_model_len": -1,  # as much of the context as the memory holds
            "enable_prefix_caching": True,
            "disable_log_stats": True,
        }
        if self._adapter is not None:
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(self.spec, self._adapter)}
        lora = None
        try:
            tokenizer = load_tokenizer(self.spec, place)
            before = set(multiprocessing.active_children())
            self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**{**options, **self._engine_options}))
            self._watch = _watching(set(multiprocessing.active_children()) - before)
            if self._adapter is not None:
                check_base(partial(fingerprint_of_files, self._name), self._adapter, self.spec)
                lora = LoRARequest(self._adapter.name or "adapter", 1, str(self._adapter.resolve()))
                # Now, or what is wrong with it would end the engine in the middle of a draw.
                await self._engine.add_lora(lora)
        except Exception as error:  # transformers and vLLM raise anything from OSError to KeyError here
            self._end_engine()
            if isinstance(error, ModelAccessError):
                raise
            raise not_loaded(self.spec, error) from error
        return _Running(
            spec=self.spec,
            tokenizer=tokenizer,
            context_tokens=self._engine.model_config.max_model_len,
            special_tokens=special_tokens_of(tokenizer),
            lora=lora,
        )

    # --- drawing ------------------------------------------------------------------------------------------

    async def _complete(
        self, messages: Sequence[Message], seeds: Sequence[int], settings: SamplingSettings
    ) -> list[Completion]:
        running = await self._started()
        prompt = render(running, messages, settings.max_tokens)
        tasks = [asyncio.ensure_future(self._draw(running, prompt, seed, settings)) for seed in seeds]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _draw(self, running: _Running, prompt: Prompt, seed: int, settings: SamplingSettings) -> Completion:
        wanted = {"temperature": settings.temperature, "top_p": settings.top_p, "seed": seed}
        output = await self._ask(running, prompt.token_ids, max_tokens=prompt.max_tokens, **wanted)
        token_ids = list(output.token_ids)
        # Nothing but a token that ends a text can stop one, and it is the last.
        text = decoded(running.tokenizer, token_ids, token_ids[-1:] if output.finish_reason == "stop" else ())
        written = Written(prompt.opened + text, output.finish_reason, len(token_ids))
        begun = answer_up_to_rating(written.text) if settings.label_logprobs else None
        scores = None
        if begun is not None and settings.label_logprobs:
            begun = begun.removeprefix(prompt.opened)
            scores = await self._score_labels(running, prompt.token_ids, begun, settings.label_logprobs)
        return as_completion(prompt, written, scores)

    async def _score_labels(
        self, running: _Running, prompt_ids: Sequence[int], begun: str, labels: Sequence[str]
    ) -> dict[str, float] | None:
        """Return the log-probability of each label and the closing tag behind it, as `label_scoring.score_labels` does.

        Asked for is one token behind every beginning that an ending has, with the probabilities of what the endings
        go on with there. All that stands before it is in the engine's cache.
        """
        endings, given = label_endings(running, begun, labels)
        longest = max(map(len, endings.values()))
        if running.context_tokens is not None and len(prompt_ids) + longest > running.context_tokens:
            return None
        going_on: dict[tuple[int, ...], set[int]] = {}
        for ending in endings.values():
            for place in range(given, len(ending)):
                going_on.setdefault(tuple(ending[:place]), set()).add(ending[place])

        known: dict[tuple[int, ...], dict[int, float]] = {beginning: {} for beginning in going_on}

        async def learn(beginning: tuple[int, ...], asked: list[int]) -> None:
            wanted = {"temperature": 0.0, "logprob_token_ids": asked}
            output = await self._ask(running, [*prompt_ids, *beginning], max_tokens=1, **wanted)
            found = output.logprobs[0]
            known[beginning] |= {token: float(found[token].logprob) for token in asked}

        tasks = [
            asyncio.ensure_future(learn(beginning, some))
            for beginning, tokens in going_on.items()
            for some in _batches(sorted(tokens))
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return {
            label: sum(known[tuple(ending[:place])][ending[place]] for place in range(given, len(ending)))
            for label, ending in endings.items()
        }

    async def _ask(self, running: _Running, token_ids: Sequence[int], **wanted: Any) -> Any:
        """Return what the engine writes behind some tokens: vLLM's `CompletionOutput`, finished.

        Raises:
            ModelRequestError: vLLM refuses the request.
            ModelError: The engine failed, or left the request unfinished.
        """
        from vllm import SamplingParams, TokensPrompt
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            # Only whole completions are wanted, and their text is made from the tokens here.
            settings = SamplingParams(**wanted, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
            prompt, number = TokensPrompt(prompt_token_ids=list(token_ids)), str(next(self._numbers))
            last = None
            async for output in self._engine.generate(prompt, settings, number, lora_request=running.lora):
                last = output
        except EngineDeadError as error:
            raise ModelError(
                f"{self.spec}: the engine has died ({one_line(str(error), 200)}); what vLLM says above tells why"
            ) from error
        except (VLLMClientError, ValueError) as error:
            raise ModelRequestError(
                f"{self.spec}: vLLM refuses the request ({one_line(str(error), 200)}); check the sampling settings and "
                "the prompt's length"
            ) from error
        except Exception as error:  # of the engine: a subclass of its own, with what happened as the cause
            cause = error.__cause__ or error
            raise ModelError(
                f"{self.spec}: failed while writing ({type(cause).__name__}: {one_line(str(cause), 200)}); "
                "the same command goes on from here"
            ) from error
        reason = last.outputs[0].finish_reason if last is not None and last.finished and last.outputs else None
        if last is None or reason not in _ENDED:
            raise ModelError(
                f"{self.spec}: the engine left a request unfinished ({reason}); the same command goes on from here"
            )
        return last.outputs[0]


def _watching(processes: Collection[BaseProcess]) -> subprocess.Popen[str] | None:
    """Return what ends processes if ours is killed; None if there are none. A process that they made goes with them."""
    if not processes:
        return None
    watch = subprocess.Popen([sys.executable, "-c", _WATCH], stdin=subprocess.PIPE, text=True, start_new_session=True)
    assert watch.stdin is not None
    watch.stdin.write("".join(f"{process.pid}\n" for process in processes))
    watch.stdin.flush()
    return watch


def _batches(tokens: Sequence[int]) -> Iterator[list[int]]:
    for first in range(0, len(tokens), _MOST_TOKENS_SCORED):
        yield list(tokens[first : first + _MOST_TOKENS_SCORED])


def _lora_rank(spec: str, adapter: Path) -> int:
    """Return the least rank of vLLM's that holds an adapter.

    Raises:
        ModelAccessError: If none does, or the adapter does not say its own.
    """
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelAccessError(f"{spec}: adapter {adapter} is not a LoRA adapter ({error}); give one") from error
    room = next((room for room in _LORA_RANKS if room >= rank), None)
    if room is None:
        raise ModelAccessError(f"{spec}: adapter {adapter} has rank {rank}, vLLM takes {_LORA_RANKS[-1]}; merge it")
    return room
