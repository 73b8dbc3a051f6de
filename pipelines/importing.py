"""From a source to a corpus in a scratch folder, and what is said about it: the plan and the lines of import_corpus."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.screen import say
from raters.importers.source_items import in_short
from raters.records import ConfigError, DataError
from raters.scales import IntervalScale
from raters.trace_text import percent, printable

if TYPE_CHECKING:
    from raters.corpora import Corpus
    from raters.gold import ImportGold
    from raters.importers.corpus_folder import DraftDimension
    from raters.importers.draft import Draft
    from raters.importers.formats import Reading
    from raters.importers.source_items import SourceItem

_SAY_SECONDS = 10.0
_LONGEST_NAME = 40
_STUB = """\
# {name}

Read the item and rate its {name}. Give one of these labels:

{labels}
"""


@dataclass(frozen=True)
class Understood:
    """A source as it was understood.

    Attributes:
        name: Of the corpus.
        group_by: As in corpus.yaml.
        reading: What kind of source it is.
        draft: Items and labels.
        dimensions: With scales, guidelines and labels.
        notes: What was guessed, and what to do about it.
        stubs: Dimensions whose guideline we had to make up.
    """

    name: str
    group_by: str | None
    reading: Reading
    draft: Draft
    dimensions: Mapping[str, DraftDimension]
    notes: Sequence[str]
    stubs: Sequence[str]


def understand(
    reading: Reading,
    draft: Draft,
    *,
    name: str,
    scales: Mapping[str | None, Mapping[str, Any]],
    guidelines: Mapping[str | None, str],
    pair: tuple[str, str] | None,
    group_by: str | None,
) -> Understood:
    """Find the scale of each dimension and put its labels on it.

    Args:
        reading: What kind of source it is.
        draft: Items and labels.
        name: Of the corpus.
        scales: That the user gives, by dimension; None for the only one.
        guidelines: Texts, likewise.
        pair: Texts that are compared, as the user says.
        group_by: Column or field that the user names.

    Raises:
        ConfigError: If scales or guidelines are of other dimensions.
        DataError: On a label that is on no scale.
    """
    from raters.importers.columns import pair_of
    from raters.importers.corpus_folder import DraftDimension
    from raters.importers.label_scales import scale_of

    names = list(draft.labels)
    _check_names("--scale", scales, names)
    _check_names("--guideline", guidelines, names)
    texts = list(dict.fromkeys(text for item in draft.items.values() for text in item.inputs))
    for text in pair or ():
        if text not in texts:
            raise ConfigError(f"--pair {text}: no such text; there is {', '.join(texts)}")
    compared = pair or pair_of(texts)
    published, notes, stubs = reading.published, list(reading.notes), []
    dimensions = {}
    for dimension in names:
        given = scales[dimension] if dimension in scales else scales.get(None)
        if given is None and published is not None:
            given = published.scale_record()
        labelled = [(label.value, label.place) for label in draft.labels[dimension].values()]
        scale, labels, note = scale_of(dimension, labelled, given, compared)
        if note:
            notes.append(f"scale of {dimension}: {scale.type} {scale}, {note}")
        if (guideline := guidelines[dimension] if dimension in guidelines else guidelines.get(None)) is None:
            if published is not None:
                guideline = published.guideline(dimension)
            else:
                stubs.append(dimension)
                guideline = _STUB.format(name=dimension, labels=_stub_labels(scale))
        dimensions[dimension] = DraftDimension(scale, guideline, labels)
    if compared is not None and any(each.scale.type == "pairwise" for each in dimensions.values()):
        _check_pairs(draft, compared)
    path = _group_path(draft, group_by) if group_by else published.group_by if published else None
    return Understood(name, path, reading, draft, dimensions, notes, stubs)


def counted(items: Iterator[SourceItem]) -> Iterator[SourceItem]:
    """Yield items, and say every ten seconds how many rows were read."""
    due = time.monotonic() + _SAY_SECONDS
    for number, item in enumerate(items, start=1):
        yield item
        if number % 1000 == 0 and time.monotonic() > due:
            say(f"{number:,} rows read")
            due = time.monotonic() + _SAY_SECONDS


def _check_names(option: str, given: Mapping[str | None, object], names: Sequence[str]) -> None:
    for dimension in given:
        if dimension is None and len(names) > 1:
            raise ConfigError(
                f"{option}: there are several dimensions ({', '.join(names)}); write DIMENSION=… for each"
            )
        if dimension is not None and dimension not in names:
            raise ConfigError(f"{option} {dimension}=…: no such dimension; there is {', '.join(names)}")


def _check_pairs(draft: Draft, pair: tuple[str, str]) -> None:
    for item_id, item in draft.items.items():
        if missing := [text for text in pair if text not in item.inputs]:
            raise DataError(
                f"{item.place}: item {item_id!r} has no {missing[0]} to compare; fill it in or remove the row"
            )


def _group_path(draft: Draft, column: str) -> str:
    """Return the path of the field to group by; a dot in its name would make it another path."""
    field = column.removeprefix("inputs.").removeprefix("metadata.")
    if any(field in item.inputs for item in draft.items.values()):
        if "." in field:
            raise ConfigError(f"--group-by {column}: has a dot in its name, which stands for a path; rename the column")
        return f"inputs.{field}"
    plain = field.replace(".", "_")
    for item in draft.items.values():
        if field in item.metadata:
            item.metadata[plain] = item.metadata.pop(field)
    return f"metadata.{plain}"


def _stub_labels(scale: Any) -> str:
    if scale.type == "interval":
        return f"- a number from `{scale.min}` (least) to `{scale.max}` (most)"
    ends = {0: " (lowest)", len(scale.labels) - 1: " (highest)"} if scale.type == "ordinal" else {}
    if scale.type == "pairwise":
        ends = {0: f": {scale.fields[0]} is ahead", 1: f": {scale.fields[1]} is ahead", 2: ": neither is ahead"}
    return "\n".join(f"- `{label}`{ends.get(place, '')}" for place, label in enumerate(scale.labels))


def build(folder: Path, understood: Understood, gold: ImportGold) -> tuple[Corpus, dict[str, Any]]:
    """Write a corpus into a folder and return (the corpus as it loads from there, summary).

    Raises:
        ConfigError: If the rule for gold labels does not go with a scale.
        DataError: If an item lacks what it needs.
    """
    from raters.corpora import load_corpus
    from raters.importers.corpus_folder import aggregate, write_corpus
    from raters.label_quality import label_quality

    write_corpus(folder, understood.name, understood.group_by, understood.draft, understood.dimensions)
    corpus = load_corpus(folder)
    quality = label_quality(corpus)
    notes = list(understood.notes)
    if (item := understood.reading.columns.item) and 2 * quality["duplicates"] > quality["items"]:
        notes.append(f"most items share their texts: if {item} numbers rows and not items, give --item another column")
    without: dict[str, dict[str, int]] = {}
    if gold != "per-annotator":
        without = aggregate(folder, corpus, gold)
        corpus = load_corpus(folder)
    summary = {
        "corpus": understood.name,
        "source": "",
        "format": understood.reading.format,
        "gold": gold,
        "without_gold": without,
        "written": {"items": len(corpus.item_ids), "labels": _count_labels(corpus)},
        "facts": list(facts(understood, gold, without, corpus)),
        "notes": notes,
        "stubs": list(understood.stubs),
        "quality": quality,
    }
    return corpus, summary


def _count_labels(corpus: Corpus) -> int:
    return sum(len(corpus.annotations(name).items) for name in corpus.dimensions)


def facts(
    understood: Understood, gold: str, without: Mapping[str, Mapping[str, int]], corpus: Corpus
) -> Iterator[tuple[str, str]]:
    """Yield (name, what was found) of a source, for terminal and page alike."""
    draft = understood.draft
    texts = dict.fromkeys(text for item in draft.items.values() for text in item.inputs)
    unlabelled = len(draft.items) - len({item for labels in draft.labels.values() for item, _ in labels})
    rest = f", {unlabelled:,} of them without any label" if unlabelled else ""
    yield "items", f"{len(draft.items):,} of {', '.join(texts)}{rest}"
    people = [_cut(annotator) for annotator in draft.annotators]
    yield "annotators", f"{len(people):,}: {in_short(people)}"
    yield "labels", f"{draft.num_labels:,} on {', '.join(draft.labels)}"
    if understood.group_by:
        yield "groups", f"{len(set(corpus.groups.tolist())):,} by {understood.group_by}"
    missing = ", ".join(f"{count:,} on {name}" for name, count in draft.missing.items())
    yield "missing labels", missing or "none"
    if blank := ", ".join(f"{name} in {count:,} items" for name, count in draft.blank_texts.items()):
        yield "missing texts", blank
    repeated = [f"labels that stood there twice, kept once: {draft.repeated:,}"] if draft.repeated else []
    if draft.overruled:
        repeated.append(f"labels that lost to another of the same person (--duplicates): {draft.overruled:,}")
    yield "duplicates", "; ".join(repeated) or "no label stands there twice"
    if draft.metadata_differs:
        yield "metadata", f"differ from the item's first in {draft.metadata_differs:,} places; the first are kept"
    if draft.formula_texts:
        yield "formulas", f"{draft.formula_texts:,} texts begin as formulas of a spreadsheet do; they are kept as texts"
    if gold != "per-annotator":
        lost = "; ".join(
            f"{name}: {', '.join(f'{count:,} {reason}' for reason, count in reasons.items())}"
            for name, reasons in without.items()
            if reasons
        )
        kept = f"{gold}, {len(corpus.item_ids):,} items and {_count_labels(corpus):,} labels are left"
        yield "gold labels", kept + (f"; without one: {lost}" if lost else "")


def summary_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was understood, for the terminal."""
    yield printable(f"{summary['corpus']}: {summary['source']}, read as {summary['format']}")
    for name, value in summary["facts"]:
        yield printable(f"  {name:<15} {value}")
    quality = summary["quality"]
    copies = f"{quality['duplicates']:,} share their texts with another one" if quality["duplicates"] else "none"
    yield f"  {'same texts':<15} {copies}"
    for each in quality["dimensions"]:
        yield ""
        yield printable(f"{each['dimension']} ({each['scale_type']} {each['scale']})")
        alpha = each["alpha"]["value"]
        alone = f"{each['items_with_one_annotator']:,} of {each['items_labelled']:,} items have one annotator"
        agreement = f"{alpha:.3f}" if alpha is not None else f"undefined, {each['alpha']['reason']}"
        yield printable(f"  {alone}; alpha among people {agreement}")
        shares = "  ".join(f"{_cut(label)}: {percent(share)}" for label, share in each["histogram"].items())
        yield printable(f"  {shares}")
        if never := [_cut(one["annotator"]) for one in each["annotators"] if one["never_varies"]]:
            yield printable(f"  annotators who never vary ({len(never):,}): {in_short(never)}")
        if different := each["duplicates"]["with_different_labels"]:
            yield f"  texts that stand there several times with different labels: {different:,}"
        rules = ", ".join(f"{one['method']} {one['labels']:,}" for one in each["gold"])
        yield f"  items with a gold label: {rules}"
    if summary["notes"]:
        yield ""
        yield "Guessed; the option behind each changes it"
        for note in summary["notes"]:
            yield printable(f"  {note}")
    if summary["stubs"]:
        names = ", ".join(summary["stubs"])
        yield ""
        yield printable(f"No guideline given for {names}: a stub is written. Put there what annotators were told, or")
        yield "give it as --guideline FILE: a rater reads nothing else about the task."
    yield ""


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def next_command(out: str, understood: Understood) -> str:
    """Return the command that draws for a few items of the corpus."""
    parts = ["python", "-m", "pipelines.infer_traces", "--corpus", out]
    name, dimension = next(iter(understood.dimensions.items()))
    if len(understood.dimensions) > 1:
        parts += ["--dimension", name]
    if isinstance(scale := dimension.scale, IntervalScale):
        parts += ["--tolerance", f"{(scale.max - scale.min) / 20:g}"]
    return shlex.join([*parts, "--limit", "20", "--show", "3"])


def sha256_of_files(paths: Sequence[Path]) -> dict[str, str]:
    """Return the hash of each file that was read."""
    found = {}
    for path in paths:
        with path.open("rb") as file:
            found[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
