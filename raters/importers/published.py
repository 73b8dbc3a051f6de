"""The five data sets of Zhang et al. 2026 from the files that their owners publish.

Each is known by its columns, and comes with its scale, with what keeps its items together in a split, and with a
guideline for each dimension, written by us from the published scale (data/paper/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raters.importers.source_items import Place, SourceItem, SourceLabel, as_id, as_text, is_missing
from raters.importers.tables import Row
from raters.records import DataError
from raters.resources import resource_folder

SUPPLIED = "supplied"
"""Whose a label is that comes without those of the people behind it."""


@dataclass(frozen=True, slots=True)
class Published:
    """A published data set.

    Attributes:
        name: Of its format and its corpus.
        columns: By which it is known: all of them are there.
        dimensions: The questions that people answered, by the name of the column.
        scale: Lowest and highest label of all of them.
        group_by: As in corpus.yaml.
        quotes: False if its cells are never quoted.
        item: Row -> (id, texts, metadata).
        labels: Row -> (annotator, dimension as in the file, label) of each label.
    """

    name: str
    columns: tuple[str, ...]
    dimensions: Mapping[str, str]
    scale: tuple[int, int]
    group_by: str | None
    item: Callable[[Mapping[str, Any], Place], tuple[str, dict[str, str], dict[str, Any]]]
    labels: Callable[[Published, Mapping[str, Any], Place], Iterator[tuple[str, str, object]]]
    quotes: bool = True

    def guideline(self, dimension: str) -> str:
        """Return how people were told to label, in our words."""
        return (resource_folder("data") / "paper" / self.name / f"{dimension}.md").read_text(encoding="utf-8")

    def scale_record(self) -> dict[str, Any]:
        """Return the scale as corpus.yaml has it."""
        return {"type": "ordinal", "labels": list(range(self.scale[0], self.scale[1] + 1))}

    def items(self, rows: Iterator[Row]) -> Iterator[SourceItem]:
        """Yield what each row says.

        Raises:
            DataError: If a row lacks a column, or a text is blank.
        """
        for place, row in rows:
            for column in self.columns:
                if column not in row:
                    raise DataError(f"{place}: has no {column}, so it is no row of {self.name}; give another --format")
            item_id, inputs, metadata = self.item(row, place)
            for name, text in inputs.items():
                if not text.strip():
                    raise DataError(f"{place}: {name} is blank; fill it in or remove the row")
            labels = [
                SourceLabel(who, self.dimensions[column], label) for who, column, label in self.labels(self, row, place)
            ]
            yield SourceItem(place, item_id, inputs, metadata, labels)


def _text(row: Mapping[str, Any], column: str, place: Place) -> str:
    return "" if is_missing(row[column]) else as_text(row[column], column, place)


def _by_columns(source: Published, row: Mapping[str, Any], place: Place, who: str) -> Iterator[tuple[str, str, object]]:
    for column in source.dimensions:
        yield who, column, row.get(column)


def _hanna_item(row: Mapping[str, Any], place: Place) -> tuple[str, dict[str, str], dict[str, Any]]:
    inputs = {"prompt": _text(row, "Prompt", place), "story": _text(row, "Story", place)}
    return as_id(row["Story ID"], "Story ID", place), inputs, {"model": row["Model"]}


def _hanna_labels(source: Published, row: Mapping[str, Any], place: Place) -> Iterator[tuple[str, str, object]]:
    return _by_columns(source, row, place, as_id(row["Worker ID"], "Worker ID", place))


def _summeval_item(row: Mapping[str, Any], place: Place) -> tuple[str, dict[str, str], dict[str, Any]]:
    if "text" not in row:
        raise DataError(
            f"{place}: has no article; pair the annotations with the articles first, as their owners describe"
        )
    inputs = {"article": _text(row, "text", place), "summary": _text(row, "decoded", place)}
    document, model = as_id(row["id"], "id", place), as_id(row["model_id"], "model_id", place)
    return f"{document}-{model}", inputs, {"document": document, "model": model}


def _summeval_labels(source: Published, row: Mapping[str, Any], place: Place) -> Iterator[tuple[str, str, object]]:
    experts = row["expert_annotations"]
    if not isinstance(experts, list) or not all(isinstance(expert, dict) for expert in experts):
        raise DataError(f"{place}: expert_annotations is no list of objects; take the file as it is published")
    # Experts have no names; their order is the same in every record.
    for number, expert in enumerate(experts, start=1):
        yield from _by_columns(source, expert, place, f"expert_{number}")


def _aes2_item(row: Mapping[str, Any], place: Place) -> tuple[str, dict[str, str], dict[str, Any]]:
    return as_id(row["essay_id"], "essay_id", place), {"essay": _text(row, "full_text", place)}, {}


def _wmt20_item(row: Mapping[str, Any], place: Place) -> tuple[str, dict[str, str], dict[str, Any]]:
    document, segment = as_id(row["doc"], "doc", place), as_id(row["seg_id"], "seg_id", place)
    system = as_id(row["system"], "system", place)
    inputs = {"source": _text(row, "source", place), "translation": _text(row, "target", place)}
    metadata = {"document": document, "system": system, "segment": segment}
    return f"{system}-{document}-{as_id(row['doc_id'], 'doc_id', place)}-{segment}", inputs, metadata


def _wmt20_labels(source: Published, row: Mapping[str, Any], place: Place) -> Iterator[tuple[str, str, object]]:
    return _by_columns(source, row, place, as_id(row["rater"], "rater", place))


def _helpsteer2_item(row: Mapping[str, Any], place: Place) -> tuple[str, dict[str, str], dict[str, Any]]:
    # Rows have no ids, so an item is named by its part of the data set and its row there.
    part = Path(place.file.split()[-1]).name.split(".")[0]
    inputs = {"prompt": _text(row, "prompt", place), "response": _text(row, "response", place)}
    return f"{part}-{place.number}", inputs, {}


def _supplied_labels(source: Published, row: Mapping[str, Any], place: Place) -> Iterator[tuple[str, str, object]]:
    return _by_columns(source, row, place, SUPPLIED)


_HANNA = ("Relevance", "Coherence", "Empathy", "Surprise", "Engagement", "Complexity")
_SUMMEVAL = ("coherence", "consistency", "fluency", "relevance")
_HELPSTEER2 = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")

PUBLISHED = (
    Published("hanna", ("Story ID", "Prompt", "Story", "Model", *_HANNA, "Worker ID"),
              {name: name.lower() for name in _HANNA}, (1, 5), "inputs.prompt", _hanna_item, _hanna_labels),
    Published("summeval", ("id", "decoded", "model_id", "expert_annotations"), {name: name for name in _SUMMEVAL},
              (1, 5), "metadata.document", _summeval_item, _summeval_labels),
    Published("aes2", ("essay_id", "full_text", "score"), {"score": "holistic"}, (1, 6), None, _aes2_item,
              _supplied_labels),
    Published("wmt20-sqm", ("system", "doc", "doc_id", "seg_id", "rater", "source", "target", "score"),
              {"score": "quality"}, (0, 6), "metadata.document", _wmt20_item, _wmt20_labels, quotes=False),
    Published("helpsteer2", ("prompt", "response", *_HELPSTEER2), {name: name for name in _HELPSTEER2}, (0, 4),
              "inputs.prompt", _helpsteer2_item, _supplied_labels),
)  # fmt: skip


def published_as(record: Mapping[str, Any]) -> Published | None:
    """Return the data set that a row or record is one of; None if it is of none."""
    return next((each for each in PUBLISHED if all(column in record for column in each.columns)), None)
