"""Load a causal language model with transformers, and write one batch of completions with it.

A completion does not depend on the batch it shares, since every row draws from a seed of its own (`choosing`). What
remains is rounding: a batch of another shape may change a logit in its last bits, which float32 practically never lets
through to a token and bfloat16 now and then does.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raters.models.bases import base_fingerprint, check_base
from raters.models.choosing import Chooser, GumbelNoise, warpers
from raters.models.decoding import can_decode, decode, left_padded
from raters.models.label_scoring import answer_up_to_rating, score_labels
from raters.models.protocol import (
    THINK_CLOSE,
    THINK_OPEN,
    Completion,
    Message,
    SamplingSettings,
    one_line,
    split_reasoning,
)
from raters.records import ModelAccessError, ModelRequestError

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)
_OWN_TAGS = frozenset({THINK_OPEN, THINK_CLOSE, "<rating>", "</rating>"})
"""Special tokens of some tokenizers that our own prompts need whole; prompts make them harmless in items."""


class Reader(Protocol):
    """What has to be known of a model to write a conversation as it reads it; see `LoadedModel`."""

    @property
    def spec(self) -> str:
        """For messages."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, with a chat template."""
        ...

    @property
    def context_tokens(self) -> int | None:
        """Longest text it can take."""
        ...

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Strings that become control tokens."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, and what has to be known to use it.

    Attributes:
        spec: `hf/PATH_OR_ID`, for messages.
        model: transformers' model, under its adapter if there is one.
        tokenizer: Its tokenizer, with a chat template.
        generation: transformers' configuration of greedy decoding, free of what was saved with the model.
        end_ids: Tokens that end a completion.
        context_tokens: Longest text the model can take; None if it does not say.
        rotary: True if positions past the context are garbage but no error.
        special_tokens: Strings that become control tokens, longest first.
    """

    spec: str
    model: Any
    tokenizer: Any
    generation: Any
    end_ids: frozenset[int]
    context_tokens: int | None
    rotary: bool
    special_tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as the model reads it.

    Attributes:
        token_ids: The rendered conversation.
        max_tokens: Most tokens to write: what was asked for, cut down to the room left in the context.
        opened: `<think>` if the conversation ends by opening it, as some chat templates do; else empty.
    """

    token_ids: list[int]
    max_tokens: int
    opened: str


def check_adapter_weights(adapter: Path | None, spec: str) -> None:
    """Refuse an adapter whose weights are not safetensors, where PEFT would take a pickle, which may run anything.

    Raises:
        ModelAccessError: If it is one.
    """
    if adapter is not None and not (adapter / "adapter_model.safetensors").is_file():
        raise ModelAccessError(
            f"{spec}: adapter {adapter} has no adapter_model.safetensors, and other weights are not loaded; save it as "
            "safetensors"
        )


def load_model(
    spec: str,
    name: str,
    adapter: Path | None,
    device: str | None,
    dtype: str | None,
    *,
    chat_template: str | None = None,
    quantization: Any = None,
) -> LoadedModel:
    """Return the model in memory.

    Args:
        spec: As records name it.
        name: Folder or hub id.
        adapter: Folder of a PEFT adapter.
        device: See `hf.HFModel`.
        dtype: Likewise.
        chat_template: In place of the tokenizer's own.
        quantization: transformers' quantization config; the model then goes to the device as it is loaded.

    Raises:
        ModelAccessError: Libraries, files or the chat template are missing, or do not fit.
    """
    try:
        import torch
        import transformers

        if adapter is not None:
            import peft
    except ImportError as error:
        raise ModelAccessError(f"{spec}: needs torch, transformers and peft; pip install 'judgeseye[train]'") from error
    check_places(spec, name, adapter)
    library: Any = transformers  # annotated in part only
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    try:
        with _quiet(library.utils.logging):
            tokenizer = load_tokenizer(spec, tokenizer_place(name, adapter), chat_template)
            placed = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": device}}
            model, info = library.AutoModelForCausalLM.from_pretrained(
                name,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=True,  # other weights are pickles, which may run anything
                **placed,
            )
            saved = model.generation_config
            ends = saved.eos_token_id if isinstance(saved.eos_token_id, list) else [saved.eos_token_id]
            end_ids = sorted({end for end in [*ends, tokenizer.eos_token_id] if end is not None})
            pads = [tokenizer.pad_token_id, saved.pad_token_id, *end_ids, 0]
            # generate() fills gaps from the configuration saved with a model (top_k, penalties): leave none.
            model.generation_config = library.GenerationConfig(
                do_sample=False,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=end_ids or None,
                pad_token_id=next(pad for pad in pads if pad is not None),
            )
            generation = model.generation_config
            config = model.config.get_text_config()
            if adapter is not None:
                check_base(partial(base_fingerprint, model), adapter, spec)
                model = peft.PeftModel.from_pretrained(model, str(adapter))
            model = (model if quantization is not None else model.to(device)).eval()
    except ModelAccessError:
        raise
    except Exception as error:  # the libraries raise anything from OSError to KeyError here
        raise not_loaded(spec, error) from error
    if missing := sorted(info["missing_keys"]):
        _LOG.warning("%s: %d weights are not saved and start random: %s", spec, len(missing), missing[0])
    return LoadedModel(
        spec=spec,
        model=model,
        tokenizer=tokenizer,
        generation=generation,
        end_ids=frozenset(end_ids),
        context_tokens=getattr(config, "max_position_embeddings", None),
        rotary=any(getattr(config, key, None) for key in ("rope_parameters", "rope_theta")),
        special_tokens=special_tokens_of(tokenizer),
    )


def special_tokens_of(tokenizer: Any) -> tuple[str, ...]:
    """Return the strings that a tokenizer makes control tokens of, longest first; not the tags of our own prompts."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted({*added, *tokenizer.all_special_tokens} - _OWN_TAGS, key=len, reverse=True))


def tokenizer_place(name: str, adapter: Path | None) -> str:
    """Return where the tokenizer is: an adapter's folder, if it has the one that it was trained with."""
    own = adapter is not None and (adapter / "tokenizer_config.json").is_file()
    return str(adapter) if own else name


def load_tokenizer(spec: str, place: str, chat_template: str | None = None) -> Any:
    """Return a tokenizer with a chat template.

    Args:
        spec: For messages.
        place: Folder or hub id.
        chat_template: In place of its own.

    Raises:
        ModelAccessError: If it has no chat template; transformers raises anything from OSError to KeyError besides.
    """
    import transformers

    library: Any = transformers
    # Without the word, transformers asks the user whether to run what came with a model.
    tokenizer = library.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise ModelAccessError(
            f"{spec}: has no chat template; use a model tuned for chat, or put a chat_template.jinja into its folder"
        )
    return tokenizer


def check_places(spec: str, name: str, adapter: Path | None) -> None:
    """Refuse folders that are none, and adapters that could run anything.

    Raises:
        ModelAccessError: If one is.
    """
    if adapter is not None and not (adapter / "adapter_config.json").is_file():
        raise ModelAccessError(f"{spec}: adapter {adapter} has no adapter_config.json; give the folder PEFT saved")
    check_adapter_weights(adapter, spec)
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise ModelAccessError(f"{spec}: there is no such folder; check the path")


def not_loaded(spec: str, error: BaseException) -> ModelAccessError:
    """Return what to raise for whatever a library raised while it loaded a model."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return ModelAccessError(
        f"{spec}: cannot be loaded ({type(error).__name__}: {one_line(first, 200)}); "
        "check the folder or hub id, the adapter, and the device"
    )


def conversation_text(loaded: Reader, messages: Sequence[Message], *, ask: bool = True) -> str:
    """Return a conversation as the model's chat template writes it, special tokens in its texts made harmless.

    Args:
        loaded: The model.
        messages: Its turns.
        ask: True to end where the model's answer begins; False if the last turn is that answer.

    Raises:
        ModelRequestError: The chat template refuses the roles.
    """
    turns = [
        {"role": message["role"], "content": harmless_text(message["content"], loaded.special_tokens)}
        for message in messages
    ]
    try:
        text: str = loaded.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
    except Exception as error:  # jinja2's TemplateError, or what a template does to surprise itself
        raise ModelRequestError(
            f"{loaded.spec}: its chat template refuses the roles {[turn['role'] for turn in turns]} "
            f"({one_line(str(error), 200)}); use a prompt with roles it knows"
        ) from error
    return text


def render(loaded: Reader, messages: Sequence[Message], max_tokens: int) -> Prompt:
    """Return the conversation in tokens, ready for an answer of at most `max_tokens`.

    Raises:
        ModelRequestError: The chat template refuses the roles, or the context has no room for an answer.
    """
    text = conversation_text(loaded, messages)
    token_ids = list(loaded.tokenizer(text, add_special_tokens=False).input_ids)
    room = max_tokens if loaded.context_tokens is None else loaded.context_tokens - len(token_ids)
    if room < 1:
        raise ModelRequestError(
            f"{loaded.spec}: a prompt of {len(token_ids)} tokens leaves no room in a context of "
            f"{loaded.context_tokens}; shorten item or guideline, or use a model with a longer context"
        )
    return Prompt(token_ids, min(max_tokens, room), THINK_OPEN if text.rstrip().endswith(THINK_OPEN) else "")


def generate(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    settings: SamplingSettings,
    is_unwanted: Callable[[int], bool],
) -> list[Completion]:
    """Return one completion per prompt, written in one batch.

    Args:
        loaded: The model.
        prompts: Rows of the batch.
        seeds: One per prompt; unused at temperature 0.
        settings: Temperature, nucleus, and labels to score; `max_tokens` is that of the prompts.
        is_unwanted: Asked with a row's index after every token; a row answered with True is left as it is.
    """
    limits = [prompt.max_tokens for prompt in prompts]
    asked = [prompt.token_ids for prompt in prompts]
    if can_decode(loaded.model):
        pad_id = loaded.generation.pad_token_id
        choose = Chooser(seeds, settings, loaded.model.device)
        output = decode(loaded.model, asked, limits, loaded.end_ids, pad_id, choose, is_unwanted)
    else:
        output = _generate(loaded, asked, limits, seeds, settings, is_unwanted)
    written = [_written(loaded, prompt, ids) for prompt, ids in zip(prompts, output, strict=True)]
    return [
        as_completion(prompt, one, scores)
        for prompt, one, scores in zip(prompts, written, _label_scores(loaded, prompts, written, settings), strict=True)
    ]


def harmless_text(text: str, special_tokens: Sequence[str]) -> str:
    """Return text in which no special token is whole, so that a text cannot open a turn of its own."""
    for token in special_tokens:
        if token.strip():
            text = text.replace(token, f"{token[0]}\u200b{token[1:]}" if len(token) > 1 else "\ufffd")
    return text


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote for a prompt: raw text, how it ended, and how many tokens it took."""

    text: str
    finish_reason: str
    tokens: int


def _written(loaded: LoadedModel, prompt: Prompt, token_ids: list[int]) -> Written:
    written = token_ids[: prompt.max_tokens]
    end = next((index for index, token in enumerate(written) if token in loaded.end_ids), None)
    if end is not None:
        written = written[: end + 1]
    text = decoded(loaded.tokenizer, written, loaded.end_ids)
    return Written(prompt.opened + text, "length" if end is None else "stop", len(written))


def decoded(tokenizer: Any, token_ids: Sequence[int], end_ids: Collection[int]) -> str:
    """Return tokens as text, without those that end a text or fill a gap."""
    silent = {*end_ids, tokenizer.pad_token_id, tokenizer.bos_token_id}
    # Other special tokens stay in the text: with some tokenizers <think> is one.
    text: str = tokenizer.decode(
        [token for token in token_ids if token not in silent],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    return text


def _label_scores(
    loaded: LoadedModel, prompts: Sequence[Prompt], written: Sequence[Written], settings: SamplingSettings
) -> Iterator[Mapping[str, float] | None]:
    """Yield the log-probabilities of the wanted labels behind each answer's `<rating>`, None where there are none."""
    known: dict[tuple[tuple[int, ...], str], Mapping[str, float] | None] = {}
    for prompt, one in zip(prompts, written, strict=True):
        begun = answer_up_to_rating(one.text) if settings.label_logprobs else None
        if begun is None or not settings.label_logprobs:
            yield None
            continue
        begun = begun.removeprefix(prompt.opened)
        key = (tuple(prompt.token_ids), begun)  # draws of one item mostly begin alike
        if key not in known:
            known[key] = score_labels(loaded, prompt.token_ids, begun, settings.label_logprobs)
        yield known[key]


def as_completion(prompt: Prompt, written: Written, label_logprobs: Mapping[str, float] | None) -> Completion:
    """Return what a model wrote for a prompt with its reasoning told from its answer."""
    reasoning, answer = split_reasoning(written.text)
    return Completion(
        text=answer,
        reasoning=reasoning,
        finish_reason=written.finish_reason,
        prompt_tokens=len(prompt.token_ids),
        completion_tokens=written.tokens,
        label_logprobs=label_logprobs,
    )


def _generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings,
    is_unwanted: Callable[[int], bool],
) -> list[list[int]]:
    """Return what each row wrote, for models that only transformers' own loop knows how to ask."""
    import torch
    import transformers

    library: Any = transformers
    device = loaded.model.device
    input_ids, attention_mask = left_padded(prompts, loaded.generation.pad_token_id)
    width = input_ids.shape[1]
    processors = library.LogitsProcessorList(warpers(settings))
    if settings.temperature > 0:
        processors.append(GumbelNoise(seeds, device))
    generation = copy.copy(loaded.generation)
    generation.max_new_tokens = max(limits)
    with torch.inference_mode():
        output = loaded.model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=generation,
            logits_processor=processors,
            stopping_criteria=library.StoppingCriteriaList([_OwnEnd(limits, width, is_unwanted)]),
        )
    rows: list[list[int]] = output[:, width:].tolist()
    return rows


class _OwnEnd:
    """Stopping criterion: each row ends at its own limit, or as soon as nobody wants it any more."""

    def __init__(self, limits: Sequence[int], width: int, is_unwanted: Callable[[int], bool]) -> None:
        self._limits = limits
        self._width = width
        self._is_unwanted = is_unwanted

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return which rows are done, as (rows,) booleans."""
        import torch

        num_written = input_ids.shape[1] - self._width
        done = [num_written >= limit or self._is_unwanted(row) for row, limit in enumerate(self._limits)]
        return torch.tensor(done, device=input_ids.device)


@contextlib.contextmanager
def _quiet(chatter: Any) -> Iterator[None]:
    """Keep progress bars and chatter of transformers, its hub client and PEFT off the terminal for a while."""
    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(logging.ERROR)
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by a name that will go
            yield
    finally:
        chatter.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            chatter.enable_progress_bar()
