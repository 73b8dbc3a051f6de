"""The loop that reads a shared prompt once, against transformers' own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raters.models import choosing, decoding, generation
from raters.models.generation import LoadedModel, Prompt
from raters.models.protocol import SamplingSettings
from tests.tiny_models import make_model

ARCHITECTURES = ("Qwen3", "Llama", "GPT2", "GPTNeoX")


def never(row: int) -> bool:
    return False


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = make_model(tmp_path_factory.mktemp("tiny"))
    return generation.load_model("hf/tiny", str(folder), None, "cpu", None)


def of_architecture(loaded: LoadedModel, name: str, **more: Any) -> LoadedModel:
    """Return a random model of another architecture with the same tokenizer."""
    import torch
    import transformers

    library: Any = transformers
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if name in ("Qwen3", "Mistral"):
        sizes["num_key_value_heads"] = 1
    config = getattr(library, f"{name}Config")(vocab_size=len(loaded.tokenizer), **sizes, **more)
    model = library.AutoModelForCausalLM.from_config(config).eval()
    for weights in model.parameters():  # or all it says is one token
        weights.data.normal_(0, 0.2)
    return replace(loaded, model=model, generation=library.GenerationConfig(pad_token_id=0, eos_token_id=2))


def prompts_of(loaded: LoadedModel, limits: Sequence[int]) -> list[Prompt]:
    texts = ["Short.", "A text of some more words than that.", "Short.", "Short."]
    conversations = [
        generation.render(loaded, [{"role": "user", "content": text}], limit)
        for text, limit in zip(texts, limits, strict=True)
    ]
    return conversations


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_writes_what_transformers_writes(loaded: LoadedModel, architecture: str, temperature: float) -> None:
    model = of_architecture(loaded, architecture)
    assert decoding.can_decode(model.model)
    prompts, seeds = prompts_of(model, [30, 12, 25, 30]), [5, 6, 7, 8]
    settings = SamplingSettings(temperature=temperature, top_p=0.95, max_tokens=30)
    asked, limits = [prompt.token_ids for prompt in prompts], [prompt.max_tokens for prompt in prompts]
    theirs = generation._generate(model, asked, limits, seeds, settings, never)
    expected = [generation._written(model, prompt, ids) for prompt, ids in zip(prompts, theirs, strict=True)]
    choose = choosing.Chooser(seeds, settings, model.model.device)
    pad_id = model.generation.pad_token_id
    ours = decoding.decode(model.model, asked, limits, model.end_ids, pad_id, choose, never)
    assert [generation._written(model, prompt, ids) for prompt, ids in zip(prompts, ours, strict=True)] == expected
    assert any(one.finish_reason == "length" for one in expected)


def test_a_shared_prompt_is_read_once_and_rows_leave_as_they_end(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(loaded, [4, 6, 9, 9])
    shapes: list[tuple[int, ...]] = []
    real = decoding._logits

    def watched(model: Any, input_ids: Any, *more: Any) -> Any:
        shapes.append(tuple(input_ids.shape))
        return real(model, input_ids, *more)

    monkeypatch.setattr(decoding, "_logits", watched)
    settings = SamplingSettings(temperature=0.0)
    pinned = replace(loaded, end_ids=frozenset())
    texts = generation.generate(pinned, prompts, [1, 2, 3, 4], settings, never)
    assert [one.completion_tokens for one in texts] == [4, 6, 9, 9]
    width = max(len(prompt.token_ids) for prompt in prompts)
    assert shapes == [(2, width), *[(4, 1)] * 3, *[(3, 1)] * 2, *[(2, 1)] * 3]


def test_a_row_that_nobody_wants_is_left(loaded: LoadedModel) -> None:
    pinned = replace(loaded, end_ids=frozenset())
    prompts = prompts_of(loaded, [50, 8, 8, 8])
    texts = generation.generate(pinned, prompts, [1, 2, 3, 4], SamplingSettings(), lambda row: row == 0)
    assert [one.completion_tokens for one in texts] == [1, 8, 8, 8]


def test_what_was_read_grows_past_its_room(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = replace(loaded, end_ids=frozenset())
    prompts, settings = prompts_of(loaded, [60, 60, 60, 60]), SamplingSettings(max_tokens=60)
    roomy = generation.generate(pinned, prompts, [1, 2, 3, 4], settings, never)
    monkeypatch.setattr(decoding, "_ROOM_TOKENS", 0)
    assert generation.generate(pinned, prompts, [1, 2, 3, 4], settings, never) == roomy


def test_what_was_read_takes_no_more_room_than_the_rows_may_need(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = replace(loaded, end_ids=frozenset())
    prompts = prompts_of(loaded, [100] * 4)
    most = max(len(prompt.token_ids) for prompt in prompts) + 100
    rooms: set[int] = set()
    real = decoding._logits

    def watched(model: Any, input_ids: Any, mask: Any, positions: Any, past: Any) -> Any:
        logits = real(model, input_ids, mask, positions, past)
        rooms.update(buffer.shape[-2] for layer in past.layers for buffer in layer._buffers)
        return logits

    monkeypatch.setattr(decoding, "_logits", watched)
    monkeypatch.setattr(decoding, "_ROOM_TOKENS", most // 3)
    generation.generate(pinned, prompts, [1, 2, 3, 4], SamplingSettings(max_tokens=100), never)
    assert len(rooms) > 1
    assert max(rooms) == most


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("Mistral", {"sliding_window": 8}), ("Mamba", {})],
)
def test_models_with_another_memory_are_left_to_transformers(
    loaded: LoadedModel, architecture: str, options: dict[str, Any]
) -> None:
    model = of_architecture(loaded, architecture, **options)
    assert not decoding.can_decode(model.model)
    (completion,) = generation.generate(model, prompts_of(model, [9] * 4)[:1], [1], SamplingSettings(), never)
    assert 1 <= (completion.completion_tokens or 0) <= 9


def test_a_model_under_an_adapter(loaded: LoadedModel, tmp_path: Path) -> None:
    import peft

    model = of_architecture(loaded, "Qwen3")
    adapted = replace(model, model=peft.get_peft_model(model.model, peft.LoraConfig(target_modules="all-linear")))
    assert decoding.can_decode(adapted.model)
    prompts, settings = prompts_of(model, [9] * 4), SamplingSettings(max_tokens=9)
    fresh = generation.generate(adapted, prompts, [1, 2, 3, 4], settings, never)
    assert fresh == generation.generate(model, prompts, [1, 2, 3, 4], settings, never)  # fresh LoRA changes nothing
