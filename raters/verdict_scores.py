"""`score_agreement` for programs and notebooks: whoever gave verdicts, held against people."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from raters.corpora import Corpus, load_corpus
from raters.corpus_files import Dimension
from raters.floor import floors
from raters.gold import AggregateMethod, GoldMethod, aggregate_draws, default_method
from raters.journal import write_atomically
from raters.library_errors import checked, in_words_of_a_call
from raters.options import StageOptions
from raters.rater_draws import RaterDraws, rated_dimension, read_draws
from raters.rater_files import default_aggregate, read_rater
from raters.rating import Rating
from raters.records import MOST_DRAWS, ConfigError, DataError, Label, shown
from raters.report import report_html
from raters.score_text import score_lines
from raters.scoring import score
from raters.splits import split_corpus

Verdicts = Mapping[str, "Label | Sequence[Label | None] | Rating | None"]
"""By item id: a verdict, several draws of one, or what a `Rater` said; None where it could not be read."""


class _Arguments(StageOptions):
    """What can be asked of `score_agreement`, within the bounds of the stage."""

    dimension: str | None
    labels: Literal["median", "majority", "mean", "paper"] | None
    aggregate: AggregateMethod | None
    split_seed: int
    resamples: int = Field(ge=200, le=100_000)
    seed: int = Field(ge=0)


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of agreement with its 95 % interval.

    Attributes:
        value: None where it is not defined.
        low: Lower end; None where there is no interval.
        high: Upper end.
    """

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        return f"{self.value:.3f}" + ("" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]")


@dataclass(frozen=True)
class Agreement:
    """How raters agree with people, and people with each other. `print` shows the tables.

    Attributes:
        scores: All figures, as scores.json has them.
    """

    scores: Mapping[str, Any] = field(repr=False)

    def __str__(self) -> str:
        return "\n".join(score_lines(self.scores))

    @property
    def raters(self) -> tuple[str, ...]:
        """Names of the raters, in their order."""
        return tuple(one["rater"] for one in self.scores["raters"])

    def figure(self, name: str, rater: str | None = None) -> Figure:
        """Return a figure of a rater, the only one if none is named.

        Args:
            name: As in scores.json: `kendall_tau_b`, `quadratic_kappa`, `exact_agreement`, ...
            rater: Which one.

        Raises:
            ConfigError: If there is no such rater or figure.
        """
        if rater is None and len(self.raters) == 1:
            rater = self.raters[0]
        for one in self.scores["raters"]:
            if one["rater"] == rater:
                return _figure(one["agreement"], name)
        raise ConfigError(f"rater {shown(rater)}: not scored; one of {', '.join(self.raters)}")

    def ceiling(self, name: str) -> Figure:
        """Return the same figure of one person against the gold label of the others.

        Raises:
            ConfigError: If there is no such figure.
        """
        return _figure(self.scores["human"]["ceiling"], name)

    def write_report(self, path: str | Path) -> None:
        """Write all of it as one HTML page.

        Raises:
            StorageError: If it cannot be written.
        """
        write_atomically(Path(path), report_html(self.scores))


def _figure(figures: Mapping[str, Mapping[str, Any]], name: str) -> Figure:
    if name not in figures:
        raise ConfigError(f"figure {shown(name)}: not one of this scale's; one of {', '.join(figures)}")
    return Figure(figures[name]["value"], figures[name]["low"], figures[name]["high"])


def score_agreement(
    corpus: Corpus | str | Path,
    raters: Mapping[str, Verdicts | str | Path],
    *,
    dimension: str | None = None,
    labels: GoldMethod | None = None,
    aggregate: AggregateMethod | None = None,
    split_seed: int = 0,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Return how raters agree with people on the items they rated, beside the human ceiling and two floors.

    Args:
        corpus: From `load_corpus`, or its folder, or `demo`.
        raters: By name, what each said of the same items: verdicts by item id, or the ratings.jsonl of a run.
        dimension: Which question; needed if the corpus has several.
        labels: How several people's labels become one; by scale if None.
        aggregate: How several draws become one verdict; by scale if None.
        split_seed: Seed of the split whose train part the floors are fitted on.
        resamples: Of the bootstrap.
        seed: Of the resamples.

    Raises:
        ConfigError: If arguments do not go together.
        DataError: If a verdict is off the scale, an item is not in the corpus, or raters rated different items.
    """
    with in_words_of_a_call():
        given_options = {"dimension": dimension, "labels": labels, "aggregate": aggregate, "split_seed": split_seed}
        checked(_Arguments, {**given_options, "resamples": resamples, "seed": seed})
        corpus = corpus if isinstance(corpus, Corpus) else load_corpus(corpus)
        if not raters or not isinstance(raters, Mapping):
            raise ConfigError("raters: none; give a name and its verdicts by item id")
        question = corpus.dimension(dimension or _rated(raters))
        method = labels or default_method(question.scale)
        given = [_draws(name, said, corpus, question, aggregate) for name, said in raters.items()]
        try:
            training = split_corpus(corpus, split_seed).indices("train")
        except ConfigError:  # too few groups for a split
            training = np.arange(len(corpus.item_ids))
        compared = floors(corpus, question, method, given[0].items, training)
        scores = score(corpus, question, method, given, floors=compared, resamples=resamples, seed=seed)
        return Agreement({**scores, "partial": []})


async def score_agreement_async(
    corpus: Corpus | str | Path,
    raters: Mapping[str, Verdicts | str | Path],
    *,
    dimension: str | None = None,
    labels: GoldMethod | None = None,
    aggregate: AggregateMethod | None = None,
    split_seed: int = 0,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Return what `score_agreement` returns, worked out on another thread."""
    return await asyncio.to_thread(
        score_agreement,
        corpus,
        raters,
        dimension=dimension,
        labels=labels,
        aggregate=aggregate,
        split_seed=split_seed,
        resamples=resamples,
        seed=seed,
    )


def _rated(raters: Mapping[str, Verdicts | str | Path]) -> str | None:
    """Return which dimension the first ratings file rates; None if there is none."""
    paths = [Path(said) for said in raters.values() if isinstance(said, str | Path)]
    return rated_dimension(paths[0]) if paths else None


def _draws(
    name: str, said: Verdicts | str | Path, corpus: Corpus, dimension: Dimension, aggregate: AggregateMethod | None
) -> RaterDraws:
    """Return what a rater said, from a file or from a mapping."""
    scale = dimension.scale
    if isinstance(said, str | Path):
        beside = Path(said).parent / "rater.yaml"
        own = read_rater(beside).aggregate if aggregate is None and beside.exists() else None
        how = aggregate or own or default_aggregate(scale)
        aggregate_draws(np.array([]), how, scale)  # raises if the scale lacks the order
        return read_draws(Path(said), name, corpus, dimension, how)
    if not isinstance(said, Mapping):
        raise DataError(f"rater {name}: {shown(said)} is no mapping; give verdicts by item id, or a ratings.jsonl")
    how = aggregate or default_aggregate(scale)
    aggregate_draws(np.array([]), how, scale)
    index = {item_id: place for place, item_id in enumerate(corpus.item_ids)}
    ratings = {item_id: _as_rating(given, f"rater {name}: item {shown(item_id)}") for item_id, given in said.items()}
    if not ratings:
        raise DataError(f"rater {name}: no verdicts; give one for each item by its id")
    if unknown := [item_id for item_id in ratings if item_id not in index]:
        raise DataError(f"rater {name}: item {shown(unknown[0])} is not in corpus {corpus.name}; give its own item ids")
    rows = sorted(ratings, key=lambda item_id: index[item_id])
    width = max(1, *(len(rating.verdicts) for rating in ratings.values()))
    numbers, swapped = np.full((len(rows), width), np.nan), np.zeros((len(rows), width), bool)
    for row, item_id in enumerate(rows):
        rating = ratings[item_id]
        for draw, verdict in enumerate(rating.verdicts):
            if verdict is not None:
                try:
                    numbers[row, draw] = scale.number(scale.canonical(verdict))
                except ValueError as error:
                    what = str(error).replace("label", "verdict", 1)
                    raise DataError(f"rater {name}: item {shown(item_id)}: {what}; give labels of the scale") from error
        swapped[row, : len(rating.swapped)] = rating.swapped
    told = [ratings[item_id] for item_id in rows]
    quantities, by_probabilities = None, 0
    if aggregate is None and any(rating.label_probabilities is not None for rating in told):
        quantities = np.array([np.nan if rating.value is None else rating.value for rating in told])
        by_probabilities = sum(rating.label_probabilities is not None for rating in told)
    return RaterDraws(
        name=name,
        items=np.array([index[item_id] for item_id in rows], np.int64),
        numbers=numbers,
        drawn=np.array([len(rating.verdicts) for rating in told], np.int64),
        swapped=swapped,
        aggregate=how,
        quantities=quantities,
        by_probabilities=by_probabilities,
    )


def _as_rating(given: object, where: str) -> Rating:
    """Return what was given for an item as a rating."""
    if isinstance(given, Rating):
        return given
    verdicts = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    if not 0 < len(verdicts) <= MOST_DRAWS:
        raise DataError(f"{where}: {len(verdicts):,} verdicts; give 1 to {MOST_DRAWS:,}")
    for verdict in verdicts:
        if verdict is not None and (isinstance(verdict, bool) or not isinstance(verdict, int | float | str)):
            raise DataError(f"{where}: verdict {shown(verdict)} is no label; give a number, a text or None")
    return Rating(verdict=None, value=None, verdicts=verdicts, reasoning=())
