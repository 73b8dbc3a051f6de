"""Write what was understood as a corpus: to a folder beside the one that is wanted, moved when all of it is there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raters.corpora import Corpus
from raters.gold import ImportGold, gold_labels
from raters.importers.draft import Draft
from raters.journal import read_lines, to_line, write_atomically
from raters.records import ConfigError, DataError, Label, shown
from raters.runs import set_aside
from raters.scales import AnyScale

_PEOPLE_SAID = ("items.jsonl", "annotations.jsonl", "rationales.jsonl", "corpus.yaml")


@dataclass(frozen=True, slots=True)
class DraftDimension:
    """A dimension as it will be written.

    Attributes:
        scale: Its scale.
        guideline: How to label.
        labels: On the scale, in the order of the draft's.
    """

    scale: AnyScale
    guideline: str
    labels: list[Label]


def write_corpus(
    folder: Path, name: str, group_by: str | None, draft: Draft, dimensions: Mapping[str, DraftDimension]
) -> None:
    """Write the files of a corpus into a folder that is there.

    Args:
        folder: Where.
        name: Of the corpus.
        group_by: Path of the field whose items stay together in a split.
        draft: Items and labels.
        dimensions: Its dimensions.

    Raises:
        DataError: If an item lacks the field to group by.
        StorageError: If a file cannot be written.
    """
    files = _guideline_files(dimensions)
    settings: dict[str, Any] = {"name": name}
    if group_by is not None:
        settings["group_by"] = group_by
    settings["dimensions"] = {
        name: {
            "scale": {"type": dimension.scale.type, **dimension.scale.model_dump(mode="json")},
            "guideline": files[name],
        }
        for name, dimension in dimensions.items()
    }
    (folder / "guidelines").mkdir()
    for name, dimension in dimensions.items():
        write_atomically(folder / files[name], dimension.guideline.strip() + "\n")
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)
    write_atomically(folder / "corpus.yaml", text)
    write_atomically(folder / "items.jsonl", _items(draft, group_by))
    write_atomically(folder / "annotations.jsonl", _annotations(draft, dimensions))
    if any(label.rationale for labels in draft.labels.values() for label in labels.values()):
        write_atomically(folder / "rationales.jsonl", _rationales(draft, dimensions))


def _guideline_files(dimensions: Mapping[str, DraftDimension]) -> dict[str, str]:
    """Return a file for each dimension, safe as a name, no two the same on any file system."""
    files: dict[str, str] = {}
    for name in dimensions:
        stem = re.sub(r"[^\w-]+", "_", name).strip("_")[:80] or "dimension"
        taken = {file.casefold() for file in files.values()}
        file, number = f"guidelines/{stem}.md", 1
        while file.casefold() in taken:
            number += 1
            file = f"guidelines/{stem}_{number}.md"
        files[name] = file
    return files


def _items(draft: Draft, group_by: str | None) -> Iterator[bytes]:
    field, _, group = (group_by or "").partition(".")
    for item_id, item in draft.items.items():
        metadata = {name: _plain(value) for name, value in item.metadata.items()}
        if group_by is not None and (item.inputs if field == "inputs" else metadata).get(group) is None:
            raise DataError(
                f"{item.place}: item {shown(item_id)} has no {group} to group by; fill it in, or leave out --group-by"
            )
        yield to_line({"item_id": item_id, "inputs": item.inputs, "metadata": metadata})


def _plain(value: object) -> object:
    """Return a value as JSON has it: dates and whatever else it lacks as text."""
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=str))
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _annotations(draft: Draft, dimensions: Mapping[str, DraftDimension]) -> Iterator[bytes]:
    for name, dimension in dimensions.items():
        for (item_id, annotator_id), label in zip(draft.labels[name], dimension.labels, strict=True):
            yield to_line({"item_id": item_id, "annotator_id": annotator_id, "dimension": name, "label": label})


def _rationales(draft: Draft, dimensions: Mapping[str, DraftDimension]) -> Iterator[bytes]:
    for name in dimensions:
        for (item_id, annotator_id), label in draft.labels[name].items():
            if label.rationale:
                yield to_line({"item_id": item_id, "annotator_id": annotator_id, "dimension": name,
                               "rationale": label.rationale})  # fmt: skip


def aggregate(folder: Path, corpus: Corpus, method: ImportGold) -> dict[str, dict[str, int]]:
    """Leave one gold label for each item in a corpus's folder, and no item that has none on any dimension.

    Args:
        folder: Of the corpus.
        corpus: As it was loaded from there.
        method: How several people's labels become one.

    Returns:
        By dimension, why items have no gold label and how many.

    Raises:
        ConfigError: If the method does not go with a scale.
    """
    try:
        gold = {name: gold_labels(corpus, name, method) for name in corpus.dimensions}
    except ConfigError as error:
        raise ConfigError(str(error).replace("--labels", "--gold")) from error
    kept = {int(item) for table in gold.values() for item in table.items}
    lines = [
        to_line(
            {
                "item_id": corpus.item_ids[item],
                "annotator_id": f"gold-{method}",
                "dimension": name,
                "label": corpus.dimensions[name].scale.label(number),
            }
        )
        for name, table in gold.items()
        for item, number in zip(table.items.tolist(), table.numbers.tolist(), strict=True)
    ]
    if not lines:
        raise DataError(f"--gold {method}: leaves no item a label; give another, or per-annotator")
    items = [
        to_line(record) for place, (_, _, record) in enumerate(read_lines(folder / "items.jsonl")) if place in kept
    ]
    write_atomically(folder / "items.jsonl", items)
    write_atomically(folder / "annotations.jsonl", lines)
    return {name: dict(table.dropped) for name, table in gold.items()}


@contextlib.contextmanager
def scratch_folder(out: Path | None) -> Iterator[Path]:
    """Make a folder that is gone when the block ends, whatever happens: beside `out`, or where the system has them.

    Raises:
        ConfigError: If another process is importing to the same place, or nothing can be written there.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="judgeseye-") as temporary:
            yield Path(temporary)
        return
    place = out.resolve()
    folder = place.parent / f".{place.name}.importing"
    missing = [parent for parent in place.parents if not parent.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror}); give another --out") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(held)
        raise ConfigError(f"--out {out}: another process is importing to it; wait for it, or give another") from error
    try:
        _empty(folder)  # what an import that was killed has left
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)
        with contextlib.suppress(OSError):  # not empty: the corpus is there
            for parent in missing:
                parent.rmdir()


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def check_out(out: Path) -> None:
    """Refuse a place that cannot take a corpus, before anything is read.

    Raises:
        ConfigError: If it is a file, or a folder of something else.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / "corpus.yaml").is_file():
        raise ConfigError(f"--out {out}: holds files but no corpus; give another --out")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; give a folder")


def move_into_place(folder: Path, out: Path, *, new: bool = False) -> bool:
    """Move a whole corpus to where it is wanted; return False if the same one is there already.

    Args:
        folder: The corpus, on the same file system.
        out: Where it is wanted.
        new: Keep another corpus that stands there beside it, under another name.

    Raises:
        ConfigError: If another corpus is there, and `new` is False.
    """
    if out.is_dir() and any(out.iterdir()):
        differing = _differing(folder, out)
        if not differing:
            return False
        if not new:
            raise ConfigError(
                f"--out {out}: holds another corpus ({', '.join(differing)} differ); give another --out, or --new to "
                "keep that one beside it"
            )
        set_aside(out)
    try:
        folder.rename(out)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be put there ({error.strerror}); give a folder of its own") from error
    return True


def _differing(folder: Path, out: Path) -> list[str]:
    """Return the files of a corpus that are not the same in two folders."""
    guidelines = {path.relative_to(place).as_posix() for place in (folder, out) for path in place.glob("guidelines/*")}
    return [name for name in (*_PEOPLE_SAID, *sorted(guidelines)) if _bytes(folder / name) != _bytes(out / name)]


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
