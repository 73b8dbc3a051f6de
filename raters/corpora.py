"""Read and check a corpus: items, annotations, scales and guidelines in one folder.

Item texts stay on disk and are read when they are needed, and annotations are kept as arrays, so that a corpus
of a million annotations fits in little memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raters.corpus_files import (
    AnnotationTable,
    Dimension,
    read_annotations,
    read_corpus_yaml,
    read_guideline,
    read_items,
)
from raters.journal import Record, parse_line
from raters.records import ConfigError, DataError, Item
from raters.resources import resource_folder

DEMO = "demo"


@dataclass(frozen=True)
class Corpus:
    """A checked corpus.

    Attributes:
        folder: Where its files are.
        name: As corpus.yaml names it.
        group_by: Path of the field whose items stay together in a split; None if items stand alone.
        dimensions: By name.
        item_ids: In the order of items.jsonl; an item's index is its place here.
        groups: (items,) code of the item's group; items with the same inputs share one.
        content: (items,) hash of the item's inputs; the same for the same texts in any corpus.
        annotator_ids: Everybody who labelled.
        sha256: Hash of each file read, by name.
    """

    folder: Path
    name: str
    group_by: str | None
    dimensions: Mapping[str, Dimension]
    item_ids: list[str]
    groups: NDArray[np.int64]
    content: NDArray[np.int64]
    annotator_ids: list[str]
    sha256: Mapping[str, str]
    _offsets: NDArray[np.int64]
    _tables: Mapping[str, AnnotationTable]
    _file: _ItemFile = field(repr=False)

    def __repr__(self) -> str:
        """Return what it is in a line, as a notebook shows it."""
        of = ", ".join(f"{name} on {dimension.scale}" for name, dimension in self.dimensions.items())
        return f"<Corpus {self.name}: {len(self.item_ids):,} items, {len(self.annotator_ids):,} annotators; {of}>"

    def item(self, index: int) -> Item:
        """Return the item at an index of `item_ids`."""
        record = self._file.record_at(int(self._offsets[index]))
        return Item(record["item_id"], record["inputs"], record.get("metadata", {}))

    def annotations(self, dimension: str) -> AnnotationTable:
        """Return the labels of a dimension."""
        return self._tables[dimension]

    def dimension(self, name: str | None) -> Dimension:
        """Return a dimension by name, or the only one if no name is given.

        Raises:
            ConfigError: If there is no such dimension, or several and none named.
        """
        known = ", ".join(self.dimensions)
        if name is None and len(self.dimensions) == 1:
            return next(iter(self.dimensions.values()))
        if name is None:
            raise ConfigError(f"corpus {self.name} has several dimensions; give --dimension, one of: {known}")
        if name not in self.dimensions:
            raise ConfigError(f"--dimension {name}: not in corpus {self.name}; give one of: {known}")
        return self.dimensions[name]


class _ItemFile:
    """Reads single lines of items.jsonl; the file must stay what it was when it was checked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")

    def __del__(self) -> None:
        self._file.close()

    def record_at(self, offset: int) -> Record:
        self._file.seek(offset)
        return parse_line(self._file.readline(), f"{self._path} at byte {offset}")


def find_corpus(name: str) -> Path:
    """Return the folder of a corpus; `demo` is the one that ships with the project.

    Raises:
        DataError: If there is no such folder.
    """
    folder = Path(name)
    if name == DEMO and not (folder / "corpus.yaml").exists():
        return resource_folder("data") / DEMO
    if not folder.is_dir():
        raise DataError(f"corpus {name}: no such folder; give one that holds corpus.yaml, or {DEMO!r}")
    return folder


def load_corpus(folder: str | Path) -> Corpus:
    """Read and check every line of a corpus.

    Args:
        folder: Where it is; as text also `demo`, for the simulated one that ships with the project.

    Raises:
        DataError: On the first thing that is not as the format says: which file and line, what value, and
            what to do.
    """
    if isinstance(folder, str):
        folder = find_corpus(folder)
    settings, settings_sha256 = read_corpus_yaml(folder)
    where = f"corpus {settings.name}"
    dimensions = {
        name: Dimension(name, entry.scale, read_guideline(folder, entry.guideline, f"{where}: {name}"))
        for name, entry in settings.dimensions.items()
    }
    items_path, annotations_path = folder / "items.jsonl", folder / "annotations.jsonl"
    items = read_items(items_path, settings, dimensions)
    annotator_ids, tables, annotations_sha256 = read_annotations(
        annotations_path, settings.name, dimensions, items.index
    )
    content = np.array(items.content, np.int64)
    return Corpus(
        folder=folder,
        name=settings.name,
        group_by=settings.group_by,
        dimensions=dimensions,
        item_ids=list(items.index),
        groups=_join_groups(np.array(items.groups, np.int64), content),
        content=content,
        annotator_ids=annotator_ids,
        sha256={
            "corpus.yaml": settings_sha256,
            "items.jsonl": items.sha256,
            "annotations.jsonl": annotations_sha256,
        },
        _offsets=np.array(items.offsets, dtype=np.int64),
        _tables=tables,
        _file=_ItemFile(items_path),
    )


def _join_groups(codes: NDArray[np.int64], content: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a group code per item; groups that share an item with the same inputs become one.

    Args:
        codes: (items,) group of each item, counted from 0.
        content: (items,) hash of each item's inputs.
    """
    parent = np.arange(codes.max() + 1)

    def root(code: int) -> int:
        while parent[code] != code:
            parent[code] = parent[parent[code]]
            code = int(parent[code])
        return code

    order = np.argsort(content, kind="stable")
    for place in np.flatnonzero(content[order][1:] == content[order][:-1]):
        parent[root(int(codes[order[place + 1]]))] = root(int(codes[order[place]]))
    roots = np.array([root(code) for code in range(len(parent))])
    return np.unique(roots[codes], return_inverse=True)[1].astype(np.int64)
