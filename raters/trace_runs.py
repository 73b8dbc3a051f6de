"""A finished run of infer_traces as the stages after it read it: its corpus, its question, and its draws.

Texts stay in candidates.jsonl and are read when they are needed; what is kept in memory of a draw is a few numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raters.corpora import Corpus, find_corpus, load_corpus
from raters.corpus_files import Dimension
from raters.drawing import work_order
from raters.gold import GoldMethod, LabelTable, default_method, gold_labels
from raters.journal import Record, read_at, read_lines
from raters.models.protocol import SamplingSettings
from raters.observations import Observations
from raters.questions import Question, fit_to_corpus
from raters.rater_files import RaterSpec, read_rater
from raters.records import Chance, ConfigError, DataError, shown
from raters.reviews import REVIEWS, LabelKey, Review, corrected, read_reviews, reviewed_sha256
from raters.splits import Split, split_corpus

STAGE, SELECTION = "infer_traces", "select_traces"
_OPTIONS = frozenset(
    "corpus split split_seed model adapter prompt temperature top_p max_tokens tolerance strategy keep k seed limit "
    "null_items".split()
)
_IDENTITY = frozenset({"dimension", "guideline", "prompt", "labels"})


@dataclass(frozen=True)
class Draws:
    """Draws of a run, held against labels: numbers only.

    Attributes:
        path: The candidates.jsonl they stand in.
        items: (draws,) corpus index of each draw's item.
        numbers: (draws,) verdict as the scale's number, nan if unreadable.
        labels: (draws,) label it was held against.
        accepted: (draws,) True where both agree.
        doubtful: (draws,) True where the trace has a flag.
        offsets: (draws,) where the line begins.
        corrected: What a person has changed of the draw at an offset.
    """

    path: Path
    items: NDArray[np.int64]
    numbers: NDArray[np.float64]
    labels: NDArray[np.float64]
    accepted: NDArray[np.bool_]
    doubtful: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    corrected: Mapping[int, Record] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return how many draws there are."""
        return len(self.items)

    def records(self, chosen: Sequence[int] | NDArray[np.int64]) -> Iterator[Record]:
        """Yield the candidates at some places, in that order."""
        offsets = [int(self.offsets[place]) for place in chosen]
        for offset, record in zip(offsets, read_at(self.path, offsets), strict=True):
            yield {**record, **self.corrected[offset]} if offset in self.corrected else record


def read_draws_of(
    path: Path,
    corpus: Corpus,
    dimension: Dimension,
    chance: Chance = "first",
    reviews: Mapping[LabelKey, Review] | None = None,
) -> Draws:
    """Return the draws of one chance in a candidates.jsonl; only those of `rationalized` have seen the label.

    Of a label that was reviewed, accepted draws other than the one that was chosen are left out: they reach the
    person's label, and a person did not want them. They count neither as accepted nor as rejected.

    Args:
        path: The file.
        corpus: Where the items are.
        dimension: What was asked.
        chance: Whose draws.
        reviews: Of the run.

    Raises:
        DataError: If a line is not a candidate of the corpus.
    """
    index = {item_id: place for place, item_id in enumerate(corpus.item_ids)}
    columns: list[tuple[int, float, float, bool, bool, int]] = []
    scale = dimension.scale
    changed: dict[int, Record] = {}
    for line_number, offset, record in read_lines(path):
        try:
            if record["dimension"] != dimension.name or not isinstance(record["trace"], str):
                raise ValueError(f"dimension {shown(record['dimension'])}")
            if record["chance"] != chance:
                continue
            if reviews and (review := reviews.get((record["item_id"], record["annotator_id"]))) is not None:
                if review.takes(record):
                    if review.trace is not None:
                        changed[offset] = corrected(record, review.trace)
                    record = {**record, **changed.get(offset, {}), "flags": []}  # a person has read it
                elif record["accepted"] is True:
                    continue
            verdict = record["verdict"]
            number = np.nan if verdict is None else scale.number(scale.canonical(verdict))
            label = scale.number(scale.canonical(record["label"]))
            flags = bool(record["flags"])
            columns.append((index[record["item_id"]], number, label, record["accepted"] is True, flags, offset))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} line {line_number}: {shown(record)} is not a candidate on {dimension.name} of corpus "
                f"{corpus.name} ({type(error).__name__}: {error}); give the folder of a run of {STAGE}"
            ) from error
    items, numbers, labels, accepted, doubtful, offsets = zip(*columns, strict=True) if columns else [()] * 6
    return Draws(
        path,
        np.array(items, np.int64),
        np.array(numbers, np.float64),
        np.array(labels, np.float64),
        np.array(accepted, bool),
        np.array(doubtful, bool),
        np.array(offsets, np.int64),
        changed,
    )


@dataclass(frozen=True)
class TraceRun:
    """A finished run of infer_traces.

    Attributes:
        folder: Where it is.
        manifest: What it says of itself.
        corpus: Its corpus, unchanged since.
        generator: What made its first draws, under the guideline they were made under.
        split: Of the corpus.
        method: How several people's labels became one.
        kept: The traces.jsonl that was kept: its own, or what select_traces left of it. What to learn from is
            `reviews.learned_from`.
        reviews: What people decided about its traces, by label.
    """

    folder: Path
    manifest: dict[str, Any]
    corpus: Corpus
    generator: RaterSpec
    split: Split
    method: GoldMethod
    kept: Path
    reviews: Mapping[LabelKey, Review] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, corpus_folder: str | None = None) -> TraceRun:
        """Read a run's folder.

        Args:
            folder: Of the run, or of a run of select_traces on what it kept.
            corpus_folder: Where its corpus is now, if not where the run found it.

        Raises:
            DataError: If it is no finished run, or its corpus has changed since.
            ConfigError: If its draws were made on the whole corpus, so that nothing is held out.
        """
        kept = folder / "traces.jsonl"
        folder = _selected_from(folder)
        manifest = _manifest(folder)
        options, identity = manifest["options"], manifest["identity"]
        corpus = load_corpus(find_corpus(corpus_folder or options["corpus"]))
        for name, then in manifest["inputs_sha256"].items():
            if name in corpus.sha256 and corpus.sha256[name] != then:
                raise DataError(
                    f"--traces {folder}: {name} of corpus {corpus.name} is not the file that its traces were inferred "
                    f"from (sha256 {corpus.sha256[name][:12]}…, then {then[:12]}…); infer again, or give that corpus"
                )
        if options["split"] != "train":
            raise ConfigError(
                f"--traces {folder}: was inferred on the {options['split']} split, so its items are not apart from "
                "those that decide; give a run on the train split"
            )
        generator = read_rater(folder / "rater.yaml")
        if generator.dimension.guideline_sha256 != identity["guideline"]:
            raise DataError(f"--traces {folder}: its rater.yaml is not the one the traces are of; undo the change")
        corpus.dimension(generator.dimension.name)
        return cls(
            folder=folder,
            manifest=manifest,
            corpus=corpus,
            generator=generator,
            split=split_corpus(corpus, options["split_seed"]),
            method=identity["labels"],
            kept=kept,
            reviews=read_reviews(folder / REVIEWS, generator.dimension.name),
        )

    @property
    def is_selected(self) -> bool:
        """True if select_traces has said which labels to learn from."""
        return self.kept.parent != self.folder

    @property
    def learned_sha256(self) -> str:
        """Hash of what is learned from: kept traces, and reviews if there are any."""
        return reviewed_sha256(self.kept, self.reviews)

    @cached_property
    def _places(self) -> Mapping[str, int]:
        return {item_id: place for place, item_id in enumerate(self.corpus.item_ids)}

    def place_of(self, item_id: str) -> int:
        """Return the corpus index of an item.

        Raises:
            DataError: If it is none of the corpus.
        """
        if item_id not in self._places:
            raise DataError(f"--traces {self.folder}: item {shown(item_id)} is not in corpus {self.corpus.name}")
        return self._places[item_id]

    @property
    def options(self) -> dict[str, Any]:
        """What the run was asked for."""
        return dict(self.manifest["options"])

    @property
    def settings(self) -> SamplingSettings:
        """How its draws were sampled."""
        return self.generator.settings

    @property
    def dimension(self) -> Dimension:
        """What was asked, with the guideline the draws were made under."""
        return self.generator.dimension

    @property
    def tolerance(self) -> float:
        """How far a verdict may be from a label that it agrees with."""
        return float(self.options["tolerance"] or 0.0)

    @cached_property
    def observations(self) -> Observations:
        """Observations as the run fitted them on the train split."""
        known = self.generator.question.observations
        return known or fit_to_corpus(self.corpus, self.dimension.scale, self.split.indices("train"))

    @cached_property
    def draws(self) -> Draws:
        """Its first draws."""
        path = self.folder / "candidates.jsonl"
        draws = read_draws_of(path, self.corpus, self.dimension, reviews=self.reviews)
        held_out = np.setdiff1d(draws.items, self.split.indices("train"))
        if len(held_out):
            raise DataError(
                f"{path}: has draws of item {shown(self.corpus.item_ids[int(held_out[0])])}, which is not in the train "
                "split; give the folder as the run left it"
            )
        return draws

    @property
    def gold_method(self) -> GoldMethod:
        """How people's labels of an item become the one a rater is held against."""
        return default_method(self.dimension.scale) if self.method == "per-annotator" else self.method

    @cached_property
    def labels(self) -> LabelTable:
        """The labels that its draws are held against."""
        return gold_labels(self.corpus, self.dimension.name, self.method, self.split.indices("train"))

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Its items, in the order of work."""
        labelled = np.unique(self.labels.items)
        return work_order(self.corpus, self.dimension.name, labelled, self.options["seed"])[: self.options["limit"]]

    def question(self, guideline: str) -> Question:
        """Return what its model is asked, under another guideline."""
        question = self.generator.question
        return replace(question, dimension=replace(question.dimension, guideline=guideline))


def _selected_from(folder: Path) -> Path:
    """Return the folder of the run that a run of select_traces has selected from; any other folder as it is."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["stage"] != SELECTION:
            return folder
        if manifest["status"] != "complete":
            raise DataError(
                f"--traces {folder}: its {SELECTION} is not finished ({manifest['status']}); give its command again"
            )
        return _selected_from(Path(manifest["traces"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        return folder  # what is wrong with it is said when it is read


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        stage, status = manifest["stage"], manifest["status"]
        if stage == STAGE and {"options", "identity", "inputs_sha256"} <= manifest.keys():
            if status != "complete":
                raise DataError(f"--traces {folder}: its run is {shown(status)}; finish it with the same command first")
            _check_keys(manifest)
            return dict(manifest)
    except FileNotFoundError as error:
        raise DataError(f"--traces {folder}: holds no manifest.json; give the folder of a run of {STAGE}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({shown(str(error))}); give the folder of a run of {STAGE}") from error
    raise DataError(f"--traces {folder}: is a run of {shown(stage)}; give the folder of a run of {STAGE}")


def _check_keys(manifest: dict[str, Any]) -> None:
    """Raise a ValueError for what a manifest of this version holds and this one lacks."""
    for part, names in (("options", _OPTIONS), ("identity", _IDENTITY)):
        if missing := names - manifest[part].keys():
            raise ValueError(f"{part} without {', '.join(sorted(missing))}")
    if not all(isinstance(then, str) for then in manifest["inputs_sha256"].values()):
        raise ValueError("inputs_sha256 without hashes")
