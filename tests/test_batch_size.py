"""How many rows a batch has where a GPU's memory says so, on a CPU whose memory is said to be one's."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import raters.models.hf as hf_module
from raters.models import batch_size, generation
from raters.models.batch_size import MOST_ROWS, BatchMemory, RowBytes, batch_memory, row_bytes
from raters.models.hf import HFModel
from raters.models.protocol import Completion, Message, SamplingSettings
from raters.records import ModelRequestError
from tests.tiny_models import make_adapter, make_model

SETTINGS = SamplingSettings(temperature=0.9, top_p=0.95, max_tokens=20)
ONE_BYTE = RowBytes(kept=1, read=1, written=0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


def asked(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def expected(tiny: Path) -> Any:
    """What is drawn of TEXTS one by one."""
    return drawn(HFModel(str(tiny), device="cpu", batch_size=1))


TEXTS = [asked(text) for text in ("Short.", "Some more words than that, and then some.", "x" * 90, "Middling, say.")]


def drawn(model: HFModel, texts: Sequence[list[Message]] = TEXTS, seeds: Sequence[int] = range(6)) -> Any:
    """Return completions or errors of each text, all asked for at once."""

    async def all_draws() -> Any:
        calls = [model.complete(text, [seed], SETTINGS) for text in texts for seed in seeds]
        found = await asyncio.gather(*calls, return_exceptions=True)
        await model.close()
        return found

    return asyncio.run(all_draws())


class Memory:
    """A device that holds so many rows; notes the batches that it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int, error: BaseException | None = None) -> None:
        self.rows, self.error = rows, error
        self.tried: list[int] = []
        self.wrote: list[tuple[tuple[int, ...], int]] = []
        self._real = generation.generate
        monkeypatch.setattr(hf_module, "generate", self)

    def __call__(self, loaded: Any, prompts: Any, seeds: Any, *rest: Any) -> list[Completion]:
        import torch

        self.tried.append(len(prompts))
        if len(prompts) > self.rows:
            raise self.error or torch.OutOfMemoryError("CUDA out of memory")
        completions = self._real(loaded, prompts, seeds, *rest)
        self.wrote += [(tuple(prompt.token_ids), seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return completions


def with_memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(batch_size, "free_bytes", lambda device: free)


def test_what_a_row_takes_by_hand() -> None:
    # Qwen3-8B as published: 36 layers of 8 key-value heads of 128, in two bytes: 147,456 bytes a token; one layer
    # more while it grows, and 4 for 32 query heads.
    config = SimpleNamespace(
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        hidden_size=4096,
        intermediate_size=12288,
        vocab_size=151_936,
    )
    config.get_text_config = lambda: config
    found = row_bytes(SimpleNamespace(config=config, dtype=SimpleNamespace(itemsize=2)))
    assert found is not None
    assert found.kept == 147_456 + 5 * 4096
    assert found.read == found.kept + 3 * 12288 * 2 + 10 * 4096 * 4
    assert found.written == 8 * 4 * 151_936


@pytest.mark.parametrize("under_adapter", [False, True])
def test_keys_and_values_are_as_large_as_those_that_decoding_keeps(
    tiny: Path, tmp_path: Path, under_adapter: bool
) -> None:
    import torch

    from raters.models.decoding import _roomy_cache

    adapter = make_adapter(tiny, tmp_path / "adapter") if under_adapter else None
    model = generation.load_model("hf/tiny", str(tiny), adapter, "cpu", None).model
    past = _roomy_cache(model, 100)
    with torch.inference_mode():
        model(input_ids=torch.ones((3, 100), dtype=torch.long), past_key_values=past, use_cache=True)
    kept = sum(buffer.nbytes for layer in past.layers for buffer in layer._buffers)
    layers, groups = 2, 2  # of query heads on the one head of keys
    found = row_bytes(model)
    assert found is not None
    assert found.kept * 3 * 100 == kept * (layers + 1 + groups) / layers


def test_no_estimate_without_a_gpu_or_for_unknown_attention(tiny: Path) -> None:
    loaded = generation.load_model("hf/tiny", str(tiny), None, "cpu", None)
    assert batch_memory(loaded.model) is None
    config = SimpleNamespace(num_hidden_layers=2, hidden_size=32)
    config.get_text_config = lambda: config
    assert row_bytes(SimpleNamespace(config=config)) is None


def test_a_batch_is_padded_to_its_longest_and_reads_a_shared_prompt_once() -> None:
    taken = RowBytes(kept=3, read=100, written=7)
    # two rows of 5 tokens read once: 500 bytes; written: 2 rows of 5 + 20 tokens, 150 bytes; the more counts
    assert taken.of_batch([(5, 10), (5, 20)], 1) == 500 + 14
    assert taken.of_batch([(5, 10), (50, 200)], 2) == 2 * 50 * 100 + 14
    assert RowBytes(3, 1, 7).of_batch([(5, 10), (50, 200)], 2) == 2 * 250 * 3 + 14


def test_rows_are_taken_in_their_order_until_memory_is_full() -> None:
    memory = BatchMemory(ONE_BYTE, lambda: 1000)  # of which 850 count
    short, long = ((1,) * 10, 90), ((1,) * 200, 90)
    assert memory.rows_that_fit([short] * 20) == 8
    assert memory.rows_that_fit([short] * 3) == 3
    # a long one widens all: 2 x 290 fit, 3 x 290 do not
    assert memory.rows_that_fit([short, long, short]) == 2
    assert memory.rows_that_fit([((1,) * 5000, 1), short]) == 1
    assert BatchMemory(ONE_BYTE, lambda: 10**9).rows_that_fit([short] * 2000) == MOST_ROWS
    memory.failed([short] * 8)  # thought to take 800
    assert memory.rows_that_fit([short] * 20) == 4
    assert memory.rows_that_fit([((1,) * 10, 40)] * 20) == 8


@pytest.mark.parametrize("free", [300_000, 600_000, 10**9])
def test_draws_do_not_depend_on_the_memory(
    tiny: Path, expected: Any, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    device = Memory(monkeypatch, 10**6)
    with_memory(monkeypatch, free)
    assert drawn(HFModel(str(tiny), device="cpu")) == expected
    assert sum(device.tried) == len(set(device.wrote)) == 24
    taken = row_bytes(generation.load_model("hf/tiny", str(tiny), None, "cpu", None).model)
    assert taken is not None
    prompts = iter([prompt for prompt, _ in device.wrote])
    for rows in device.tried:
        batch = [next(prompts) for _ in range(rows)]
        assert rows == 1 or taken.of_batch([(len(prompt), 20) for prompt in batch], len(set(batch))) <= 0.85 * free
    assert max(device.tried) > 1
    assert (len(device.tried) > 1) == (free < 10**9)


@pytest.mark.parametrize("holds", [1, 3, 11])
def test_a_batch_that_memory_does_not_hold_is_made_in_parts(
    tiny: Path, expected: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, holds: int
) -> None:
    device = Memory(monkeypatch, holds)
    with_memory(monkeypatch, 10**9)
    model = HFModel(str(tiny), device="cpu")
    with caplog.at_level(logging.WARNING):
        assert drawn(model) == expected
    assert len(device.wrote) == len(set(device.wrote)) == 24
    [told] = caplog.messages
    assert told.startswith(f"hf/{tiny}: memory does not hold ")
    assert max(device.tried[-3:]) <= holds


def test_later_batches_stay_within_what_memory_held(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Memory(monkeypatch, 5)
    with_memory(monkeypatch, 10**9)
    model = HFModel(str(tiny), device="cpu")

    async def twice() -> None:
        await model.complete(TEXTS[0], range(16), SETTINGS)
        device.tried.clear()
        await model.complete(TEXTS[0], range(16), SETTINGS)
        await model.close()

    asyncio.run(twice())
    assert device.tried == [4, 4, 4, 4]


def test_a_draw_that_does_not_fit_alone_leaves_the_others(
    tiny: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*TEXTS, asked("y" * 200)]
    real = generation.generate

    def small(loaded: Any, prompts: Any, *rest: Any) -> list[Completion]:
        import torch

        if max(len(prompt.token_ids) for prompt in prompts) > 150:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(loaded, prompts, *rest)

    monkeypatch.setattr(hf_module, "generate", small)
    found = drawn(HFModel(str(tiny), device="cpu", batch_size=8), texts)
    assert found[:24] == expected
    for error in found[24:]:
        assert isinstance(error, ModelRequestError)
        assert "memory does not hold a prompt of" in str(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_other_words_for_no_memory(
    tiny: Path, expected: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    Memory(monkeypatch, 4, error)
    assert drawn(HFModel(str(tiny), device="cpu")) == expected


def test_without_a_gpu_a_batch_has_16_rows(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Memory(monkeypatch, 10**6)
    drawn(HFModel(str(tiny), device="cpu"))
    assert device.tried == [16, 8]


def test_a_number_is_kept_to_whatever_memory_holds(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Memory(monkeypatch, 10**6)
    with_memory(monkeypatch, 300_000)
    drawn(HFModel(str(tiny), device="cpu", batch_size=20))
    assert device.tried == [20, 4]


@pytest.mark.parametrize(("concurrency", "told"), [(24, True), (25, False), (None, False)])
def test_a_gpu_that_idles_for_want_of_draws_is_told_of(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, concurrency: int | None, told: bool
) -> None:
    with_memory(monkeypatch, 10**9)
    drawn(HFModel(str(tiny), device="cpu", concurrency=concurrency))
    said = [message for message in caplog.messages if "512 such draws at once, and 24 wait" in message]
    assert len(said) == int(told)


def test_many_random_batches_are_drawn_once_each(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance, made = random.Random(0), list[int]()
    loaded = generation.load_model("hf/tiny", str(tiny), None, "cpu", None)

    def said(loaded: Any, prompts: Any, seeds: Any, *rest: Any) -> list[Completion]:
        import torch

        # memory that others use too: what it holds changes all the time
        if len(prompts) > chance.randint(1, 12):
            raise torch.OutOfMemoryError("CUDA out of memory")
        made.extend(seeds)
        return [Completion(str(seed), "", "stop", 1, 1) for seed in seeds]

    monkeypatch.setattr(hf_module, "generate", said)
    for _ in range(20):
        made.clear()
        with_memory(monkeypatch, chance.choice([10**5, 10**6, 10**9]))
        texts, seeds = TEXTS[: chance.randint(1, 4)], range(chance.randint(1, 30))
        model = HFModel.of(replace(loaded), batch_size=chance.choice(["auto", 1, 7, 64]))
        found = [one.text for [one] in drawn(model, texts, seeds)]
        assert found == [str(seed) for seed in seeds] * len(texts)
        assert sorted(made) == sorted(list(seeds) * len(texts))


@pytest.mark.gpu
def test_a_gpu_that_others_fill_makes_the_same_draws(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    settings = SamplingSettings(temperature=0.9, max_tokens=400)

    def all_draws(batch_size: batch_size.BatchSize) -> list[Completion]:
        model = HFModel(str(tiny), dtype="float32", batch_size=batch_size)
        found = asyncio.run(model.complete(TEXTS[2], range(256), settings))
        asyncio.run(model.close())
        return found

    expected = all_draws(8)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:
        # Keys and values of all 256 take 34 MB. The driver calls the rest free, so only torch refuses them.
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**25) / total)
        assert all_draws("auto") == expected
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("memory does not hold 256 draws at once" in message for message in caplog.messages)
