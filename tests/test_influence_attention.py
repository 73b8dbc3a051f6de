"""Attention in closed form, held to numerical derivatives and to what autograd makes of transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call

from raters.influence import attention
from raters.influence.attention import NAME, attend, make_twice_differentiable
from tests.tiny_models import make_model

IDS = torch.tensor([[5, 9, 7, 30, 12, 8, 41, 6], [3, 8, 8, 11, 25, 40, 17, 9], [31, 6, 9, 9, 13, 22, 5, 14]])


@pytest.fixture(params=[512, 2**19])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few heads at a time, which do not go evenly into all, and all."""
    monkeypatch.setattr(attention, "_BYTES_IN_A_CACHE", request.param)


def causal(rows: int, tokens: int, padded: int = 0) -> torch.Tensor:
    mask = torch.full((tokens, tokens), -torch.inf, dtype=torch.double).triu(1).repeat(rows, 1, 1, 1)
    if padded:
        mask[-1, :, padded:, :padded] = -torch.inf
    return mask


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_both_derivatives_are_those_of_differences(pieces: None, rows: int) -> None:
    """Masks of none, of all rows together, and of each row with one padded."""
    chance = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, 2, 4, 3, dtype=torch.double, generator=chance).requires_grad_() for _ in ("q", "k", "v")]
    mask = causal(rows, 4, padded=1 if rows == 3 else 0) if rows else None
    wanted = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask, scale=1.0)
    torch.testing.assert_close(attend(*tensors, mask), wanted)
    assert torch.autograd.gradcheck(lambda *given: attend(*given, mask), tensors)
    assert torch.autograd.gradgradcheck(lambda *given: attend(*given, mask), tensors)


def products(model: Any, mask: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Return the loss, its gradient by all weights, and the product of its Hessian with a fixed vector."""
    weights = {name: weight.detach().requires_grad_() for name, weight in model.named_parameters()}
    given = {"input_ids": IDS, "labels": IDS, "attention_mask": mask, "use_cache": False}
    loss = functional_call(model, weights, (), given).loss
    gradient = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    flat = torch.cat([part.flatten() for part in gradient])
    vector = torch.randn(len(flat), generator=torch.Generator().manual_seed(1))
    along = torch.autograd.grad(flat @ vector, list(weights.values()))
    return loss.detach(), flat.detach(), torch.cat([part.flatten() for part in along])


@pytest.mark.parametrize("padded", [False, True])
def test_a_model_has_the_hessian_that_it_has_with_plain_attention(tmp_path: Path, pieces: None, padded: bool) -> None:
    """With keys and values shared by two heads, and rows padded on the left."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(make_model(tmp_path), dtype=torch.float32).eval()
    assert model.config.num_attention_heads > model.config.num_key_value_heads
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    model.set_attn_implementation("eager")
    wanted = products(model, mask if padded else None)
    make_twice_differentiable(model, IDS)
    assert model.config._attn_implementation == NAME
    found = products(model, mask if padded else None)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()) + 1e-7)
    assert float(wanted[2].abs().max()) > 1e-3


def test_half_precision_stays_close(tmp_path: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(make_model(tmp_path), dtype=torch.bfloat16).eval()
    make_twice_differentiable(model, IDS)
    assert model.config._attn_implementation == NAME


SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 2, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 6, "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 2, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 16,
}  # fmt: skip


def random_model(config: Any) -> Any:
    """Return a model whose weights are wide enough that a token's place in a window shows."""
    import transformers

    chance = torch.Generator().manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=chance))
    return model


@pytest.mark.parametrize(
    ("kind", "more"),
    [("Mistral", {}), ("Qwen2", {"use_sliding_window": True, "max_window_layers": 1}), ("Gemma3Text", {})],
)
def test_windows_shorter_than_a_row(kind: str, more: dict[str, Any]) -> None:
    """Also where some rows of the mask say nothing at all, as padding on the left leaves them."""
    import transformers

    model = random_model(getattr(transformers, f"{kind}Config")(**SIZES, sliding_window=3, **more))
    mask = torch.ones_like(IDS)
    mask[1, :4] = 0
    model.set_attn_implementation("eager")
    wanted = products(model, mask)
    make_twice_differentiable(model, IDS)
    assert model.config._attn_implementation == NAME
    for one, other in zip(products(model, mask), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def test_a_model_within_another_one_is_reached() -> None:
    """Gemma 3 with eyes: its text model has a configuration of its own."""
    import transformers

    text = {**SIZES, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
    eyes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    places = {"image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62, "mm_tokens_per_image": 4}
    whole = {"text_config": text, "vision_config": {**eyes, "image_size": 28, "patch_size": 14}, **places}
    model = random_model(transformers.Gemma3Config(**whole))
    model.set_attn_implementation("eager")
    wanted = model(input_ids=IDS, use_cache=False).logits
    make_twice_differentiable(model, IDS)
    assert model.config.get_text_config()._attn_implementation == NAME
    torch.testing.assert_close(model(input_ids=IDS, use_cache=False).logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "more"),
    [("Gemma2", {}), ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1}), ("DeepseekV32", LATENT)],
)
def test_attention_of_another_kind_is_left_as_it_is(kind: str, more: dict[str, Any]) -> None:
    """Gemma 2 bends its products, gpt-oss has sinks, DeepSeek 3.2 reads few keys: none would be what the model is.

    The last one reads 16, so in a row of 8 tokens nothing shows.
    """
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **more})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    make_twice_differentiable(model, IDS)
    assert model.config._attn_implementation == "eager"
    assert torch.isfinite(model(input_ids=IDS).logits).all()
