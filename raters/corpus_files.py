"""Read and check the files of a corpus, line by line. `corpora` puts them together."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError

from raters.journal import Record, read_lines, sha256_of
from raters.models.protocol import one_line
from raters.records import DataError, shown
from raters.scales import SCALE_TYPES, IntervalScale, NominalScale, OrdinalScale, PairwiseScale, Scale

_ITEM_KEYS = frozenset({"item_id", "inputs", "metadata"})
_ANNOTATION_KEYS = frozenset({"item_id", "annotator_id", "dimension", "label"})


class DimensionEntry(BaseModel):
    """A dimension as corpus.yaml has it."""

    model_config = ConfigDict(extra="forbid")
    scale: Scale
    guideline: StrictStr


class CorpusFile(BaseModel):
    """What corpus.yaml holds."""

    model_config = ConfigDict(extra="forbid")
    name: StrictStr = Field(pattern=r"\S")
    group_by: StrictStr | None = None
    dimensions: dict[StrictStr, DimensionEntry]


@dataclass(frozen=True, slots=True)
class Dimension:
    """One question that people answered about items.

    Attributes:
        name: As annotations name it.
        scale: The labels it allows.
        guideline: The text that tells a rater how to label.
    """

    name: str
    scale: OrdinalScale | NominalScale | PairwiseScale | IntervalScale
    guideline: str

    @property
    def guideline_sha256(self) -> str:
        """Hash of the guideline's text."""
        return sha256_of(self.guideline)


@dataclass(frozen=True, slots=True)
class AnnotationTable:
    """All labels of one dimension, a row each, in the order of the file.

    Attributes:
        items: (rows,) index of the item in the corpus.
        annotators: (rows,) index into `Corpus.annotator_ids`.
        numbers: (rows,) label as the scale's number.
    """

    items: NDArray[np.int64]
    annotators: NDArray[np.int64]
    numbers: NDArray[np.float64]


def read_corpus_yaml(folder: Path) -> tuple[CorpusFile, str]:
    """Return the settings of a corpus and the hash of their file.

    Raises:
        DataError: If the file is missing or says something it may not.
    """
    path = folder / "corpus.yaml"
    try:
        content = path.read_bytes()
        raw = yaml.safe_load(content.decode("utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; a corpus needs one") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({_one_line(error)}); mend the file") from error
    if not isinstance(raw, dict):
        raise DataError(f"{path}: holds no settings; write name, dimensions and group_by")
    try:
        settings = CorpusFile.model_validate(raw)
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}; mend the file") from error
    if not settings.dimensions:
        raise DataError(f"{path}: dimensions: empty; name at least one with its scale and guideline")
    return settings, hashlib.sha256(content).hexdigest()


def first_problem(error: ValidationError) -> str:
    """Return where the first problem of a validated file is, what is wrong, and the value, in one line."""
    detail = error.errors()[0]
    place = one_line(".".join(str(part) for part in detail["loc"])) or "top level"
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"{place}: {shown(detail['input'])} is no mapping of settings"
    if detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
        tag = detail.get("ctx", {}).get("tag")
        return f"{place}: type {'is missing' if tag is None else shown(tag)}; give one of {', '.join(SCALE_TYPES)}"
    if detail["type"] == "extra_forbidden":
        return f"{place}: unknown key"
    if detail["type"] == "missing":
        return f"{place}: missing"
    message = detail["msg"].removeprefix("Value error, ")
    value = "" if isinstance(detail["input"], dict | list) else f" (is {shown(detail['input'])})"
    return f"{place}: {_one_line(message)}{value}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def read_guideline(folder: Path, name: str, where: str) -> str:
    """Return the text of a guideline inside the corpus's folder.

    Raises:
        DataError: If it is outside, cannot be read, or is empty.
    """
    path = folder / name
    if "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{where}: guideline {shown(name)} lies outside the corpus; move it into the folder")
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = _one_line(error)
        raise DataError(f"{where}: guideline {path} cannot be read ({problem}); mend corpus.yaml") from error
    if not text:
        raise DataError(f"{where}: guideline {path} is empty; write how to label")
    return text


@dataclass(slots=True)
class ItemColumns:
    """What the pass over items.jsonl leaves in memory: ids in order, offsets, groups, hashes of inputs."""

    index: dict[str, int] = field(default_factory=dict)
    offsets: array[int] = field(default_factory=lambda: array("q"))
    groups: array[int] = field(default_factory=lambda: array("q"))
    content: array[int] = field(default_factory=lambda: array("q"))
    sha256: str = ""


def read_items(path: Path, settings: CorpusFile, dimensions: Mapping[str, Dimension]) -> ItemColumns:
    """Return what stays in memory of the items, each checked.

    Raises:
        DataError: On the first line that is not an item of this corpus.
    """
    items, digest = ItemColumns(), hashlib.sha256()
    group_codes: dict[str, int] = {}
    needed = {
        name: dimension.scale.fields
        for name, dimension in dimensions.items()
        if isinstance(dimension.scale, PairwiseScale)
    }
    pairs = list(needed.values())
    for line_number, offset, record in read_lines(path, digest):
        where = f"corpus {settings.name}: items.jsonl line {line_number}"
        _check_keys(record, _ITEM_KEYS, _ITEM_KEYS - {"metadata"}, where)
        item_id = _text(record["item_id"], "item_id", where)
        if item_id in items.index:
            raise DataError(f"{where}: item_id {shown(item_id)} stands twice; give every item its own id")
        inputs = record["inputs"]
        if not isinstance(inputs, dict) or not inputs:
            raise DataError(f"{where}: inputs {shown(inputs)} is not an object of text fields; write {{name: text}}")
        for name, text in inputs.items():
            _text(name, f"the name {shown(name)} of a field of inputs", where)
            _text(text, f"inputs.{name}", where)
        if not isinstance(record.get("metadata", {}), dict):
            raise DataError(
                f"{where}: metadata {shown(record['metadata'])} is not an object; write {{}} if there is none"
            )
        for dimension, fields in needed.items():
            for name in fields:
                if name not in inputs:
                    raise DataError(f"{where}: no field inputs.{name}, which dimension {dimension} compares; add it")
        group = item_id if settings.group_by is None else _group(record, settings.group_by, where)
        items.groups.append(group_codes.setdefault(group, len(group_codes)))
        items.index[item_id] = len(items.index)
        items.offsets.append(offset)
        content = json.dumps(_content(inputs, pairs), sort_keys=True).encode()
        items.content.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True))
    items.sha256 = digest.hexdigest()
    return items


def _content(inputs: Mapping[str, str], pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Return the texts of an item up to white space, and up to the order of the two texts of a pair."""
    content = {name: " ".join(text.split()) for name, text in inputs.items()}
    for first, second in pairs:
        content[first], content[second] = sorted((content[first], content[second]))
    return content


def _group(record: Record, path: str, where: str) -> str:
    value: Any = record
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None or isinstance(value, dict | list):
        raise DataError(f"{where}: group_by field {path} is missing; add it, or change group_by in corpus.yaml")
    return str(value)


@dataclass(slots=True)
class _Columns:
    items: array[int] = field(default_factory=lambda: array("q"))
    annotators: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[float] = field(default_factory=lambda: array("d"))
    lines: array[int] = field(default_factory=lambda: array("q"))


def read_annotations(
    path: Path, corpus: str, dimensions: Mapping[str, Dimension], item_index: Mapping[str, int]
) -> tuple[list[str], dict[str, AnnotationTable], str]:
    """Return (annotator ids, labels by dimension, hash of the file), each line checked.

    Raises:
        DataError: On the first line that is not a label of this corpus, or a label given twice.
    """
    digest = hashlib.sha256()
    annotators: dict[str, int] = {}
    columns = {name: _Columns() for name in dimensions}
    file = f"corpus {corpus}: annotations.jsonl"
    for line_number, _, record in read_lines(path, digest):
        where = f"{file} line {line_number}"
        _check_keys(record, _ANNOTATION_KEYS, _ANNOTATION_KEYS, where)
        item_id = _text(record["item_id"], "item_id", where)
        annotator_id = _text(record["annotator_id"], "annotator_id", where)
        name = _text(record["dimension"], "dimension", where)
        if name not in dimensions:
            known = ", ".join(dimensions)
            raise DataError(f"{where}: dimension {shown(name)} is not in corpus.yaml ({known}); mend one of them")
        if item_id not in item_index:
            raise DataError(f"{where}: item_id {shown(item_id)} is not in items.jsonl; add the item or remove the line")
        scale = dimensions[name].scale
        try:
            number = scale.number(scale.canonical(record["label"]))
        except ValueError as error:
            raise DataError(f"{where}: {error}; fix the line or the scale in corpus.yaml") from error
        columns[name].items.append(item_index[item_id])
        columns[name].annotators.append(annotators.setdefault(annotator_id, len(annotators)))
        columns[name].numbers.append(number)
        columns[name].lines.append(line_number)
    tables = {
        name: AnnotationTable(
            np.array(column.items, np.int64),
            np.array(column.annotators, np.int64),
            np.array(column.numbers, np.float64),
        )
        for name, column in columns.items()
    }
    for name, table in tables.items():
        if (pair := _first_repeat(table)) is not None:
            line, earlier = columns[name].lines[pair[1]], columns[name].lines[pair[0]]
            who, item_id = list(annotators)[table.annotators[pair[1]]], list(item_index)[table.items[pair[1]]]
            raise DataError(
                f"{file} line {line}: annotator {who!r} labelled item {item_id!r} on {name} before, "
                f"in line {earlier}; keep one of them"
            )
    return list(annotators), tables, digest.hexdigest()


def _first_repeat(table: AnnotationTable) -> tuple[int, int] | None:
    """Return the rows of the first two labels by one annotator for one item; None if there are none."""
    order = np.lexsort((table.items, table.annotators))
    items, annotators = table.items[order], table.annotators[order]
    repeats = np.flatnonzero((items[1:] == items[:-1]) & (annotators[1:] == annotators[:-1]))
    if not len(repeats):
        return None
    first = min(repeats, key=lambda place: order[place + 1])
    return int(order[first]), int(order[first + 1])


def _check_keys(record: Record, known: frozenset[str], needed: frozenset[str], where: str) -> None:
    if unknown := sorted(record.keys() - known):
        raise DataError(f"{where}: unknown key {shown(unknown[0])}; the keys are {', '.join(sorted(known))}")
    if missing := sorted(needed - record.keys()):
        raise DataError(f"{where}: no {missing[0]}; add it")


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} {shown(value)} is not text; put it in quotes")
    if not value.strip():
        raise DataError(f"{where}: {name} is blank; fill it in or remove the line")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        problem = f"holds half a surrogate pair at character {error.start + 1}"
        raise DataError(f"{where}: {name} {problem}; remove it") from error
    return value


def read_guideline_file(path: Path, option: str) -> str:
    """Return the guideline in a file that an option names.

    Raises:
        DataError: If it is missing, empty, or no text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{option} {path}: no such file; check the name") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{option} {path}: is not text in UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{option} {path}: cannot be read ({error.strerror}); check its permissions") from error
    if not text.strip() or "\0" in text:
        what = "is empty" if not text.strip() else "holds zero bytes, so it is no text"
        raise DataError(f"{option} {path}: {what}; give the guideline as Markdown")
    return text.strip()
