"""Splits by group: train feeds traces, dev gates choices, test is rated once.

The split is made before any draw, over all items of the corpus, from the seed and the groups alone, so that
every dimension and every stage of the same seed sees the same one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raters.corpora import Corpus
from raters.records import ConfigError

SplitName = Literal["train", "dev", "test", "all"]
PARTS: tuple[SplitName, ...] = ("train", "dev", "test")
SHARES = (0.70, 0.15, 0.15)


@dataclass(frozen=True, slots=True)
class Split:
    """Which part of the split each item is in.

    Attributes:
        seed: What the split was made from, beside the groups.
        parts: (items,) 0 for train, 1 for dev, 2 for test.
    """

    seed: int
    parts: NDArray[np.int8]

    def indices(self, name: SplitName) -> NDArray[np.int64]:
        """Return the corpus indices of the items in a part, ascending; of all items for `all`."""
        if name == "all":
            return np.arange(len(self.parts))
        return np.flatnonzero(self.parts == PARTS.index(name)).astype(np.int64)

    def as_record(self, corpus: Corpus) -> dict[str, Any]:
        """Return the split for a file: seed, shares, and the item ids of each part."""
        ids: dict[str, Any] = {part: [corpus.item_ids[index] for index in self.indices(part)] for part in PARTS}
        return {"corpus": corpus.name, "split_seed": self.seed, "shares": list(SHARES), **ids}

    def hashes(self, corpus: Corpus) -> dict[str, str]:
        """Return a hash of the item ids of each part, for manifests."""
        return {part: ids_sha256([corpus.item_ids[index] for index in self.indices(part)]) for part in PARTS}


def ids_sha256(item_ids: list[str]) -> str:
    """Return a hash of a set of item ids that does not depend on their order."""
    return hashlib.sha256("\n".join(sorted(item_ids)).encode()).hexdigest()


def split_corpus(corpus: Corpus, seed: int) -> Split:
    """Return the split of a corpus: 70/15/15 of its items as nearly as whole groups allow.

    Groups are taken in an order drawn from the seed; each goes to the part that is furthest below its share.

    Raises:
        ConfigError: If a part would be empty.
    """
    sizes = np.bincount(corpus.groups)
    if len(sizes) < len(PARTS):
        raise ConfigError(
            f"corpus {corpus.name}: group_by {corpus.group_by or 'none'} makes {len(sizes)} group(s) of "
            f"{len(corpus.item_ids)} item(s), those with the same inputs together; train, dev and test need one each, "
            "so a split would be empty; add items, change group_by, or give --split all"
        )
    names: dict[int, str] = {}
    for item_id, code in zip(corpus.item_ids, corpus.groups.tolist(), strict=True):
        names[code] = min(names.get(code, item_id), item_id)
    order = sorted(range(len(sizes)), key=lambda code: _draw(seed, names[code]))
    missing = [share * sizes.sum() for share in SHARES]
    part_of_group = np.empty(len(sizes), np.int8)
    for place, code in enumerate(order):
        empty = [part for part in range(len(PARTS)) if missing[part] == SHARES[part] * sizes.sum()]
        must_fill = len(empty) >= len(order) - place
        part = max(empty if must_fill else range(len(PARTS)), key=lambda part: missing[part])
        part_of_group[code] = part
        missing[part] -= sizes[code]
    return Split(seed, part_of_group[corpus.groups])


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()
