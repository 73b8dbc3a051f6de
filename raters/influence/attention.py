"""Attention whose first and second derivatives are taken in closed form, a few heads at a time.

Kernels of fused attention have no second derivative, and what autograd makes of a plain one reads and writes some
twenty arrays of tokens x tokens a layer for every Hessian-vector product. Here it is half of them, in pieces that stay
in a processor's cache: on the student sweeps take a fifth less time. With S = Q K' + mask, P = softmax(S) and O = P V
(a prime transposes), the backward pass is

    dP = dO V',  dS = P * (dP - r(P * dP)),  dQ = dS K,  dK = dS' Q,  dV = P' dO,

r the sum of a row. Of the product of (dQ, dK, dV) with (a, b, c), with G = a K' + Q b' and G0 = G - r(P * G), the
derivatives are

    by dO:  P c + (P * G0) V          by V:  (P * G0)' dO
    by Q:   dS b + T K                by K:  dS' a + T' Q,      T = U - P * r(U),  U = P * (dO c') + dS * G0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

NAME = "judgeseye_twice"
"""Under which transformers knows it."""
_IN_THE_MASK_OR_THE_CACHE = {"sliding_window", "is_causal", "position_ids", "use_cache", "output_attentions"}
"""What models tell their attention and this one need not know. All else, such as sinks, a bend of the products or which
keys are read, changes what attention is, perhaps only in rows longer than the one that it was tried on."""
_BYTES_IN_A_CACHE, _BYTES_ON_A_GPU = 2**19, 2**28
_MOST_DIFFERENCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Of logits, as a share of the largest one: rounding, and no more. The plain one never has more than single precision.
"""


def make_twice_differentiable(model: Any, input_ids: torch.Tensor) -> None:
    """Give a model this attention if it then says what it says with transformers' plain one, or else that one.

    Args:
        model: Of transformers, where it is to run.
        input_ids: (rows, tokens) what it is tried on: the longest there is, since a window shows in no shorter row.
    """
    _register()
    wanted = _logits(model, "eager", input_ids)
    try:
        found = _logits(model, NAME, input_ids)
    except (RuntimeError, AttributeError, LookupError, TypeError, ValueError):  # another kind of model
        found = torch.full_like(wanted, torch.nan)
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    if not difference <= _MOST_DIFFERENCE[model.dtype]:
        model.set_attn_implementation("eager")


@torch.no_grad()
def _logits(model: Any, attention: str, input_ids: torch.Tensor) -> torch.Tensor:
    model.set_attn_implementation(attention)
    logits: torch.Tensor = model(input_ids=input_ids.to(model.device), use_cache=False).logits
    return logits.float()


def _register() -> None:
    """Make the attention known to transformers, with the masks of its plain one."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(NAME, _for_transformers)
    AttentionMaskInterface.register(NAME, eager_mask)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return (rows, heads, tokens, width) attention, twice differentiable.

    Args:
        query: (rows, heads, tokens, width), scaled.
        key: (rows, heads, keys, width).
        value: (rows, heads, keys, width).
        mask: (rows or 1, 1, tokens, keys) what is added to the products; None for nothing.
    """
    whole: Any = _Attention
    flat: torch.Tensor = whole.apply(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), mask)
    return flat.view(*query.shape[:2], *flat.shape[1:])


def _for_transformers(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Return (rows, tokens, heads, width), as transformers asks for it; sliding windows are in the mask.

    Raises:
        NotImplementedError: If the model's attention is of another kind.
    """
    other = [name for name in more if more[name] is not None and name not in _IN_THE_MASK_OR_THE_CACHE]
    other += ["dropout"] * (dropout > 0)
    if other:
        raise NotImplementedError(f"attention with {', '.join(other)}")
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    return attend(query * scaling, key, value, attention_mask).transpose(1, 2).contiguous(), None


def _pieces(weights: torch.Tensor) -> Iterator[slice]:
    """Yield which heads of (heads of all rows, tokens, keys) are taken at once."""
    most = _BYTES_ON_A_GPU if weights.is_cuda else _BYTES_IN_A_CACHE
    size = max(most // (weights.shape[1] * weights.shape[2] * weights.element_size()), 1)
    for begin in range(0, len(weights), size):
        yield slice(begin, min(begin + size, len(weights)))


def _joined(found: Sequence[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


class _Attention(torch.autograd.Function):
    """Attention of (heads of all rows, tokens, width); softmax in single precision at least."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        heads, exact = len(query), torch.promote_types(query.dtype, torch.float32)
        weights = query.new_empty((heads, query.shape[1], key.shape[1]), dtype=exact)
        found = []
        for at in _pieces(weights):
            scores = query[at] @ key[at].mT
            if mask is not None:
                rows = torch.arange(at.start, at.stop, device=mask.device) * len(mask) // heads
                scores += mask[rows, 0]
            weights[at] = torch.softmax(scores, -1, dtype=exact)
            found.append(weights[at].to(value.dtype) @ value[at])
        ctx.save_for_backward(query, key, value, weights)
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, by_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        backward: Any = _Backward
        by_query, by_key, by_value = backward.apply(by_output, *ctx.saved_tensors)
        return by_query, by_key, by_value, None


class _Backward(torch.autograd.Function):
    """The backward pass as a function of what comes into it; weights are those of query and key, no input."""

    @staticmethod
    def forward(
        ctx: Any,
        by_output: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        weights: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        by_scores, found = [], []
        for at in _pieces(weights):
            here, low = weights[at], weights[at].to(value.dtype)
            pushed = (by_output[at] @ value[at].mT).to(here.dtype)
            pushed = pushed - (here * pushed).sum(-1, keepdim=True)
            by_scores.append((here * pushed).to(query.dtype))
            found.append((by_scores[-1] @ key[at], by_scores[-1].mT @ query[at], low.mT @ by_output[at]))
        ctx.save_for_backward(by_output, query, key, value, weights, torch.cat(by_scores))
        return _joined(found)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, along_query: torch.Tensor, along_key: torch.Tensor, along_value: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        found = []
        whole = (*ctx.saved_tensors, along_query, along_key, along_value)
        for at in _pieces(ctx.saved_tensors[4]):
            by_output, query, key, value, weights, by_scores, a, b, c = (tensor[at] for tensor in whole)
            low = weights.to(value.dtype)
            pushed = torch.baddbmm(query @ b.mT, a, key.mT).to(weights.dtype)
            pushed -= (weights * pushed).sum(-1, keepdim=True)
            onto = (weights * pushed).to(value.dtype)
            again = (by_output @ c.mT).to(weights.dtype)
            again *= weights
            again.addcmul_(by_scores.to(weights.dtype), pushed)
            again.addcmul_(weights, again.sum(-1, keepdim=True), value=-1)
            again = again.to(query.dtype)
            found.append((
                torch.baddbmm(low @ c, onto, value),
                torch.baddbmm(by_scores @ b, again, key),
                torch.baddbmm(by_scores.mT @ a, again.mT, query),
                onto.mT @ by_output,
            ))  # fmt: skip
        return *_joined(found), None
