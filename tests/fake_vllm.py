"""A stand-in for vLLM 0.32 where it cannot be installed: its names, its fields, its errors, on a model of transformers.

What the engine takes and gives is written after vLLM's own source (`v1/engine/async_llm.py`, `outputs.py`,
`sampling_params.py`): a request is drawn token by token from a generator of its own seed, outputs come in the three
kinds that a request may ask for, cancelling a request aborts it, and a dead engine raises for every request.
"""

from __future__ import annotations

import asyncio
import enum
import sys
import types
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class RequestOutputKind(enum.Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class VLLMError(Exception):
    pass


class VLLMClientError(VLLMError):
    pass


class VLLMServerError(VLLMError):
    pass


class VLLMValidationError(VLLMClientError):
    def __init__(self, message: str, *, parameter: str | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.parameter, self.value = parameter, value

    def __str__(self) -> str:
        extras = [f"{name}={what}" for name, what in vars(self).items() if what is not None]
        return f"{self.args[0]} ({', '.join(extras)})" if extras else str(self.args[0])


class EngineGenerateError(VLLMServerError):
    pass


class EngineDeadError(VLLMServerError):
    def __init__(self, *args: Any, suppress_context: bool = False) -> None:
        super().__init__(DEAD, *args)
        self.__suppress_context__ = suppress_context


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    routed_experts: Any = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: Any = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: Any
    outputs: list[CompletionOutput]
    finished: bool
    metrics: Any = None
    lora_request: Any = None
    num_cached_tokens: int | None = None


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise VLLMValidationError(f"top_p must be in (0, 1], got {self.top_p}.", parameter="top_p")
        if len(self.logprob_token_ids or ()) > 128:
            raise VLLMValidationError(
                f"Requested logprob_token_ids of length {len(self.logprob_token_ids or ())}, which is greater than max "
                "allowed: 128",
                parameter="logprob_token_ids",
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise VLLMValidationError(f"max_tokens must be at least 1, got {self.max_tokens}.", parameter="max_tokens")


@dataclass
class AsyncEngineArgs:
    model: str = "Qwen/Qwen3-0.6B"
    tokenizer: str | None = None
    trust_remote_code: bool = False
    load_format: str = "auto"
    generation_config: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.92
    enforce_eager: bool = False
    enable_prefix_caching: bool | None = None
    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    disable_log_stats: bool = False


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError(f"id must be > 0, got {self.lora_int_id}")
        assert self.lora_path, "lora_path cannot be empty"


@dataclass
class FakeVLLM:
    """What a test sees of the engines, and what it makes them do.

    Attributes:
        engines: All that were started.
        fail_to_start: Raised in place of an engine.
        fault: Called with a request's number before each of its tokens; may raise as vLLM would, or wait.
        end_with: Finish reason in place of the true one.
        context_tokens: What memory there is for, if less than the model's context.
    """

    engines: list[AsyncLLM] = field(default_factory=list)
    fail_to_start: Exception | None = None
    fault: Any = None
    end_with: str | None = None
    context_tokens: int | None = None

    @property
    def engine(self) -> AsyncLLM:
        """The engine that was started last."""
        return self.engines[-1]


_NOW: list[FakeVLLM] = []


class AsyncLLM:
    def __init__(self, engine_args: AsyncEngineArgs) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.owner = _NOW[-1]
        if self.owner.fail_to_start is not None:
            raise self.owner.fail_to_start
        asyncio.get_running_loop()
        self.args = engine_args
        self.model = AutoModelForCausalLM.from_pretrained(engine_args.model, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(engine_args.tokenizer or engine_args.model)
        context = self.model.config.max_position_embeddings
        if engine_args.max_model_len == -1:
            context = min(context, self.owner.context_tokens or context)
        self.model_config = types.SimpleNamespace(max_model_len=context)
        self.errored = self.is_shut_down = False
        self.requests: list[tuple[list[int], SamplingParams]] = []
        self.aborted: list[str] = []
        self.at_once = self.most_at_once = 0
        self.loras: list[LoRARequest] = []
        self.tuned: Any = None
        self.owner.engines.append(self)

    @classmethod
    def from_engine_args(cls, engine_args: AsyncEngineArgs, start_engine_loop: bool = True) -> AsyncLLM:
        return cls(engine_args)

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        from peft import PeftConfig, PeftModel
        from transformers import AutoModelForCausalLM

        assert self.args.enable_lora
        rank = PeftConfig.from_pretrained(lora_request.lora_path).r
        if rank > self.args.max_lora_rank:
            raise ValueError(f"LoRA rank {rank} is greater than max_lora_rank {self.args.max_lora_rank}.")
        base = AutoModelForCausalLM.from_pretrained(self.args.model)
        self.tuned = PeftModel.from_pretrained(base, lora_request.lora_path).eval()
        self.loras.append(lora_request)
        return True

    async def abort(self, request_id: str, internal: bool = False) -> None:
        self.aborted.append(request_id)

    def shutdown(self, timeout: float | None = None) -> None:
        self.is_shut_down = True

    async def generate(
        self,
        prompt: dict[str, Any],
        sampling_params: SamplingParams,
        request_id: str,
        *,
        lora_request: LoRARequest | None = None,
    ) -> AsyncIterator[RequestOutput]:
        try:
            if self.errored or self.is_shut_down:
                raise EngineDeadError()
            token_ids = prompt["prompt_token_ids"]
            if len(token_ids) + 1 > self.model_config.max_model_len:
                raise VLLMValidationError(
                    f"The decoder prompt (length {len(token_ids)}) is longer than the maximum model length of "
                    f"{self.model_config.max_model_len}.",
                    parameter="input_tokens",
                )
            self.requests.append((list(token_ids), sampling_params))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                async for output in self._written(list(token_ids), sampling_params, request_id, lora_request):
                    yield output
            finally:
                self.at_once -= 1
        except (asyncio.CancelledError, GeneratorExit):
            await self.abort(request_id, internal=True)
            raise
        except EngineDeadError:
            self.errored = True
            raise
        except VLLMClientError:
            raise
        except Exception as error:
            await self.abort(request_id, internal=True)
            raise EngineGenerateError() from error

    async def _written(
        self, asked: list[int], params: SamplingParams, request_id: str, lora: LoRARequest | None
    ) -> AsyncIterator[RequestOutput]:
        import torch

        generator = torch.Generator().manual_seed(params.seed or 0)
        model = self.model if lora is None else self.tuned
        ends = {self.tokenizer.eos_token_id, *(params.stop_token_ids or ())}
        written: list[int] = []
        logprobs: list[dict[int, Logprob]] = []
        reason: str | None = None
        sent = 0
        while reason is None:
            await asyncio.sleep(0)
            if self.owner.fault is not None:
                waited = self.owner.fault(int(request_id))
                if waited is not None:
                    await waited
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([[*asked, *written]])).logits[0, -1].float()
            token = _chosen(logits, params, generator)
            written.append(token)
            if params.logprob_token_ids:
                raw = logits.log_softmax(-1)
                wanted = {*params.logprob_token_ids, token}
                logprobs.append({one: Logprob(float(raw[one]), int((raw > raw[one]).sum()) + 1) for one in wanted})
            if token in ends:
                reason = "stop"
            elif len(written) == params.max_tokens or len(asked) + len(written) == self.model_config.max_model_len:
                reason = "length"
            if reason is not None:
                reason = self.owner.end_with or reason
            if params.output_kind is RequestOutputKind.FINAL_ONLY and reason is None:
                continue
            part = written[sent:] if params.output_kind is RequestOutputKind.DELTA else written
            sent = len(written)
            shown = part[:-1] if reason == "stop" else part
            text = self.tokenizer.decode(shown, skip_special_tokens=params.skip_special_tokens)
            yield RequestOutput(
                request_id=request_id,
                prompt=None,
                prompt_token_ids=asked,
                prompt_logprobs=None,
                outputs=[
                    CompletionOutput(
                        index=0,
                        text=text if params.detokenize else "",
                        token_ids=list(part),
                        cumulative_logprob=None,
                        logprobs=logprobs or None,
                        finish_reason=reason,
                        lora_request=lora,
                    )
                ],
                finished=reason is not None,
                lora_request=lora,
                num_cached_tokens=0,
            )


def _chosen(logits: Any, params: SamplingParams, generator: Any) -> int:
    if params.temperature == 0:
        return int(logits.argmax())
    probabilities = (logits / params.temperature).softmax(-1)
    ranked, order = probabilities.sort(descending=True)
    ranked[ranked.cumsum(-1) - ranked >= params.top_p] = 0
    return int(order[ranked.multinomial(1, generator=generator)])


def tokens_prompt(prompt_token_ids: list[int]) -> dict[str, Any]:
    return {"prompt_token_ids": prompt_token_ids}


@contextmanager
def fake_vllm() -> Iterator[FakeVLLM]:
    """Let `import vllm` find this stand-in, and give what controls it."""
    contents: dict[str, dict[str, Any]] = {
        "vllm": {
            "AsyncEngineArgs": AsyncEngineArgs,
            "SamplingParams": SamplingParams,
            "TokensPrompt": tokens_prompt,
        },
        "vllm.exceptions": {"VLLMClientError": VLLMClientError, "VLLMValidationError": VLLMValidationError},
        "vllm.sampling_params": {"SamplingParams": SamplingParams, "RequestOutputKind": RequestOutputKind},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
        "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError, "EngineGenerateError": EngineGenerateError},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, members in contents.items():
            module = types.ModuleType(name)
            vars(module).update(members)
            patch.setitem(sys.modules, name, module)
        _NOW.append(FakeVLLM())
        try:
            yield _NOW[-1]
        finally:
            _NOW.pop()
