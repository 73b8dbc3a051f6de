"""How fast draws are written: by our loop and by transformers' own on a CPU, and against the hardware on a GPU."""

from __future__ import annotations

import json
import random
import sys
import time

import pytest

from data.student.tasks import exercise
from raters.models import generation
from raters.models.protocol import SamplingSettings
from raters.resources import resource_folder
from tests.benchmarks.decoding_speed import SIZES, Batches, bytes_of_writing, loaded_model, main, measure

ITEMS, DRAWS, ROUNDS = 8, 16, 3
LEAST_RATIO = 1.3


@pytest.mark.benchmark
def test_many_draws_of_few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(resource_folder("data") / "student")
    loaded = generation.load_model("student", folder, None, "cpu", "float32")
    chance = random.Random(0)
    settings = SamplingSettings(max_tokens=320)
    asked = [[{"role": "user", "content": exercise(chance, "few").prompt}] for _ in range(ITEMS)]
    prompts = [generation.render(loaded, messages, settings.max_tokens) for messages in asked for _ in range(DRAWS)]
    best, said = {True: 0.0, False: 0.0}, {}
    for _ in range(ROUNDS):
        for ours in best:
            monkeypatch.setattr(generation, "can_decode", lambda model, ours=ours: ours)
            began = time.monotonic()
            said[ours] = generation.generate(loaded, prompts, range(len(prompts)), settings, lambda row: False)
            best[ours] = max(best[ours], len(prompts) / (time.monotonic() - began))
    print(
        f"\n{DRAWS} draws of each of {ITEMS} prompts: ours {best[True]:.0f}, transformers' generate {best[False]:.0f} "
        f"draws/s, {best[True] / best[False]:.2f} x (best of {ROUNDS})"
    )
    assert said[True] == said[False]
    assert best[True] >= LEAST_RATIO * best[False]


@pytest.mark.gpu
@pytest.mark.parametrize("size", ["8b", "1.7b"])
def test_a_gpu_writes(size: str) -> None:
    found = measure(size, "cuda")
    print(json.dumps(found, indent=2))
    for lengths in ("equal_prompts", "mixed_prompts"):
        assert 0 < found[lengths]["share_of_ceiling"] < 1
        assert max(found[lengths]["rows_of_batches"]) > 16, "memory was not asked"


def test_the_gpu_benchmark_runs_at_a_tiny_size() -> None:
    found = measure("tiny", "cpu")
    for lengths in ("equal_prompts", "mixed_prompts"):
        assert found[lengths]["rows_of_batches"] == [16]
        assert found[lengths]["tokens_per_second"] > 0
        assert 0 < found[lengths]["share_of_ceiling"] < found[lengths]["share_while_writing"] < 1


def test_bytes_by_hand() -> None:
    # a layer: attention 32 x (32 + 2 x 16) + 32 x 32, feed-forward 3 x 32 x 64, norms 2 x 32 + 2 x 16; two of them,
    # a norm of 32 and the head 32 x 320; four bytes each. A token's keys and values: 2 x 2 layers x 16, likewise.
    weights = 4 * (2 * (3072 + 6144 + 96) + 32 + 10_240)
    kept = 4 * 2 * 2 * 16
    # three tokens take two passes, over 5 + 1 and 5 + 2 tokens in one row, 7 + 1 and 7 + 2 in the other
    found = Batches([[5, 7]], [3], [1.0])
    assert bytes_of_writing(loaded_model(SIZES["tiny"], "cpu"), SIZES["tiny"], found) == 2 * weights + kept * 30


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["decoding_speed"])
    main()
    assert "no GPU here: nothing measured" in capsys.readouterr().out
