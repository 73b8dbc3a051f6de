"""Writing completions token by token with a transformers model, for many draws of few prompts.

A prompt that several rows of a batch share is read once, and a row that has ended leaves the batch, where transformers'
own `generate` reads every row and goes on with all of them until the last has ended. Keys and values stand in buffers
with room to grow, where a concatenation for every token would copy all that was read so far.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Choose = Callable[["torch.Tensor", "Sequence[int]"], "torch.Tensor"]
"""Takes logits, (rows, vocabulary) in float32, and which rows of the batch they are for; returns (rows,) tokens."""

_ROOM_TOKENS = 64
_LEAVE_SHARE = 8
"""Rows leave when one in so many has ended: taking rows out copies what the others have read."""


def can_decode(model: Any) -> bool:
    """Return True if a model is one that `decode` knows how to ask: attention, whose past may be picked row by row."""
    base = _base_of(model)
    wanted = {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
    if not wanted <= set(inspect.signature(base.forward).parameters):
        return False
    if getattr(base.config, "is_encoder_decoder", False):
        return False
    layers, plain = _plain_layers(base), _roomy_layer().__base__
    return bool(layers) and all(type(layer) is plain for layer in layers)


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return prompts as (rows, tokens) ids that end together, and the mask that tells tokens from padding."""
    import torch

    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for index, prompt in enumerate(prompts):
        input_ids[index, width - len(prompt) :] = torch.tensor(prompt)
        mask[index, width - len(prompt) :] = 1
    return input_ids, mask


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    end_ids: frozenset[int],
    pad_id: int,
    choose: Choose,
    is_unwanted: Callable[[int], bool],
) -> list[list[int]]:
    """Return the tokens written for each prompt, the one that ended it included.

    Args:
        model: A causal language model for which `can_decode` is true.
        prompts: (rows,) tokens of each, one at least.
        limits: (rows,) most tokens to write.
        end_ids: Tokens that end a row.
        pad_id: Fills up prompts shorter than the longest.
        choose: Takes the next token of each row from its logits.
        is_unwanted: Asked with a row after every token; a row answered with True is left as it is.
    """
    import torch

    device = model.device
    different = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    place = {prompt: index for index, prompt in enumerate(different)}
    source = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=device)
    input_ids, mask = (tensor.to(device) for tensor in left_padded(different, pad_id))
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    written: list[list[int]] = [[] for _ in prompts]
    with torch.inference_mode():
        past = _roomy_cache(model, input_ids.shape[1] + max(limits))
        logits = _logits(model, input_ids, mask, positions, past)[source]
        if len(different) < len(prompts):
            past.batch_select_indices(source)
        mask, positions = mask[source], positions[source, -1:]
        rows = list(range(len(prompts)))
        ended: set[int] = set()
        while True:
            tokens = choose(logits, rows)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if row not in ended:
                    written[row].append(token)
                    if token in end_ids or len(written[row]) >= limits[row] or is_unwanted(row):
                        ended.add(row)
            gone = sum(row in ended for row in rows)
            if gone == len(rows):
                return written
            if gone * _LEAVE_SHARE >= len(rows):
                stay = [index for index, row in enumerate(rows) if row not in ended]
                kept = torch.tensor(stay, device=device)
                past.batch_select_indices(kept)
                mask, positions, tokens = mask[kept], positions[kept], tokens[kept]
                rows = [rows[index] for index in stay]
            mask = torch.cat([mask, mask.new_ones((len(rows), 1))], dim=1)
            positions = positions + 1
            logits = _logits(model, tokens[:, None], mask, positions, past)


def _logits(model: Any, input_ids: Any, mask: Any, positions: Any, past: Any) -> torch.Tensor:
    """Return the logits after the last token of each row, (rows, vocabulary), in float32."""
    output = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=past,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: torch.Tensor = output.logits[:, -1].float()
    return logits


def _base_of(model: Any) -> Any:
    """Return a model without its adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _plain_layers(base: Any) -> list[Any]:
    """Return the layers of the cache that transformers would make for a model."""
    import transformers

    library: Any = transformers
    layers: list[Any] = library.DynamicCache(config=base.config.get_text_config()).layers
    return layers


def _roomy_cache(model: Any, most_tokens: int) -> Any:
    """Return an empty cache whose layers have room to grow, to that many tokens."""
    import transformers

    library: Any = transformers
    return library.cache_utils.Cache(layers=[_roomy_layer()(most_tokens) for _ in _plain_layers(_base_of(model))])


@cache
def _roomy_layer() -> type[Any]:
    """Return the class of such a layer; transformers, which it derives from, is imported when it is needed."""
    import transformers

    library: Any = transformers

    class RoomyLayer(library.cache_utils.DynamicLayer):  # type: ignore[misc]
        """Keys and values, (rows, heads, tokens, size), as views of buffers that double when they are full.

        Args:
            most_tokens: That will ever stand here, so that the last doubling takes no memory for nothing.
        """

        keys: Any
        values: Any

        def __init__(self, most_tokens: int) -> None:
            super().__init__()
            self._most_tokens = most_tokens

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            """Add some tokens; return all."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            before, more = self.get_seq_length(), key_states.shape[-2]
            if before == 0:
                self._buffers: tuple[Any, ...] = ()
            if not self._buffers or before + more > self._buffers[0].shape[-2]:
                room = min(max(before + more + _ROOM_TOKENS, 2 * before), max(before + more, self._most_tokens))
                buffers = []
                for states, old in ((key_states, self.keys), (value_states, self.values)):
                    buffer = states.new_empty((*states.shape[:-2], room, states.shape[-1]))
                    if before:
                        buffer[..., :before, :] = old
                    buffers.append(buffer)
                self._buffers = tuple(buffers)
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[..., before : before + more, :] = states
            self.keys, self.values = (buffer[..., : before + more, :] for buffer in self._buffers)
            return self.keys, self.values

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            """Keep some rows, in a given order, as often as they are named."""
            if self.get_seq_length() > 0:
                tokens = self.keys.shape[-2]
                self._buffers = tuple(buffer[indices] for buffer in self._buffers)
                self.keys, self.values = (buffer[..., :tokens, :] for buffer in self._buffers)

    return RoomyLayer
