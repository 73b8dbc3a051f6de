"""Corpora of 60 items, and scripted raters of them, for tests of what is said about raters."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from raters.corpora import Corpus
from raters.rater_draws import RaterDraws
from tests.small_corpora import small_corpus

ITEMS = 60
NAN = float("nan")


def corpus_of(folder: Path, scale: dict[str, Any], labels: list[Any], people: int = 3) -> Corpus:
    """Return 60 items in 30 groups, each labelled by some people who agree now and then."""
    chance = random.Random(1)
    given = {}
    for number in range(ITEMS):
        true = chance.randrange(len(labels))
        given[f"i{number:02}"] = {
            f"ann{who}": labels[true if chance.random() < 0.6 else chance.randrange(len(labels))]
            for who in range(people)
        }
    inputs = None
    if scale["type"] == "pairwise":
        inputs = {
            name: {"left": f"{name} " + "word " * chance.randrange(1, 30), "right": "some words"} for name in given
        }
    groups = {name: f"g{number // 2}" for number, name in enumerate(given)}
    return small_corpus(folder, given, scale, inputs=inputs, groups=groups)


def rater(name: str, numbers: Any, aggregate: Any = "mean", swapped: Any = None) -> RaterDraws:
    """Return a rater of the first items by the numbers of its draws, (items, draws)."""
    numbers = np.array(numbers, float)
    exchanged = np.zeros(numbers.shape, bool) if swapped is None else np.array(swapped)
    drawn = np.full(len(numbers), numbers.shape[1])
    return RaterDraws(name, np.arange(len(numbers)), numbers, drawn, exchanged, aggregate)


def random_numbers(seed: int, labels: int, draws: int = 1) -> Any:
    """Return (items, draws) numbers of listed labels."""
    return np.random.default_rng(seed).integers(0, labels, (ITEMS, draws)).astype(float)
