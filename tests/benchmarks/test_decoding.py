"""Draws of the student by our loop and by transformers' own, in one run; run with `-m benchmark -s`."""

from __future__ import annotations

import random
import time

import pytest

from data.student.tasks import exercise
from raters.models import generation
from raters.models.protocol import SamplingSettings
from raters.resources import resource_folder

pytestmark = pytest.mark.benchmark

ITEMS, DRAWS, ROUNDS = 8, 16, 3
LEAST_RATIO = 1.3


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
