"""What influence is asked about: differentiable losses of agreement with people's labels on the dev split.

The reasoning is that of the rater itself: its draws for the dev items, as its last rating of them left them. People's
label stands behind it in the rater's form: a mean of 3.333 is asked about as 3.3 of a rater that writes one decimal.
Three losses, means over draws of an item and then over items:

    label      cross-entropy of the tokens of people's label, behind the reasoning
    agreement  minus the expected agreement of the verdict behind the reasoning: the sum over labels of their
               probability times 1 - distance from people's label / longest distance (without order: 1 if equal, or 0)
    draws      minus the expected agreement of whole draws, reasoning included; its gradient is that of REINFORCE
               (Williams 1992) over the draws, each held against the mean of the item's others

The first two hold the reasoning fixed, so they see what an example does to the step from reasoning to verdict: where
the reasoning says what will be rated, an example that ties the two together raises `label` for every wrong draw. The
third also sees what an example does to the reasoning, at the price of the draws' noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from raters.gold import gold_labels
from raters.influence.answers import IGNORED, AnswerBatch, AnswerLosses
from raters.journal import Record, read_lines
from raters.model_selection import DevSplit
from raters.records import ConfigError, DataError, Label
from raters.scales import AnyScale, IntervalScale, listed_labels, rating_text
from raters.trace_runs import TraceRun
from raters.training_data import Encoder, Lesson, first_tokens

QueryName = Literal["label", "agreement", "draws"]


@dataclass(frozen=True)
class QueryRow:
    """One draw of one dev item, as a loss.

    Attributes:
        row: input_ids, labels, verdict_at and verdict_end, as of a training example.
        fold: Of its item.
        weight: In the fold's mean.
        gains: (labels,) agreement of each label with people's, for `agreement`; None for a log-likelihood.
    """

    row: Mapping[str, Any]
    fold: int
    weight: float
    gains: Sequence[float] | None = None


class DevQueries:
    """One loss on each of several folds of the dev split (see `unrolling.Queries`).

    Attributes:
        shares: (folds,) each one's share of the items: the mixture that is the loss on all of them.
        items: How many items there are.
    """

    def __init__(
        self,
        losses: AnswerLosses,
        rows: Sequence[QueryRow],
        counts: Sequence[int],
        pad: int,
        tokens: Sequence[int] = (),
        rows_at_once: int = 8,
    ) -> None:
        """Take what is asked.

        Args:
            losses: The model.
            rows: Of all folds.
            counts: (folds,) items of each.
            pad: Token that pads.
            tokens: (labels,) first token of each label, for `agreement`.
            rows_at_once: Rows that are read at once.
        """
        self._losses, self._rows = losses, rows
        self.items = sum(counts)
        self.shares = np.array(counts, np.float64) / self.items
        self._pad, self._tokens, self._most = pad, list(tokens), rows_at_once

    def __len__(self) -> int:
        """How many folds."""
        return len(self.shares)

    def gradients(self, parameters: torch.Tensor) -> torch.Tensor:
        """Return (folds, P) the gradient of each fold's loss."""
        return torch.stack([self.gradient(parameters, fold) for fold in range(len(self))])

    def gradient(self, parameters: torch.Tensor, fold: int) -> torch.Tensor:
        """Return (P,) the gradient of one fold's loss."""
        found = torch.zeros_like(parameters)
        for rows in self._batches(fold):
            point = parameters.detach().requires_grad_()
            found += torch.autograd.grad(self._loss(point, rows), point)[0]
        return found

    def values(self, parameters: torch.Tensor) -> torch.Tensor:
        """Return (folds,) each fold's loss; of `draws` it is a surrogate, whose gradient alone means something."""
        found = torch.zeros(len(self), dtype=parameters.dtype)
        with torch.no_grad():
            for fold in range(len(self)):
                found[fold] = sum(float(self._loss(parameters, rows)) for rows in self._batches(fold))
        return found

    def _batches(self, fold: int) -> Iterator[Sequence[QueryRow]]:
        # Rows of like length share a batch, so that little is padding.
        rows = sorted((row for row in self._rows if row.fold == fold), key=lambda row: len(row.row["input_ids"]))
        for begin in range(0, len(rows), self._most):
            yield rows[begin : begin + self._most]

    def _loss(self, parameters: torch.Tensor, rows: Sequence[QueryRow]) -> torch.Tensor:
        """Return () the weighted sum of rows."""
        batch = AnswerBatch.of([row.row for row in rows], self._pad)
        weights = torch.tensor([row.weight for row in rows], dtype=parameters.dtype)
        if rows[0].gains is None:
            return (weights * self._losses.log_losses(parameters, batch).sum(1)).sum()
        first = int(batch.verdict_at.min())
        logits = self._losses.logits(parameters, batch.input_ids, first)
        at_labels = logits[torch.arange(len(rows)), batch.verdict_at - first][:, self._tokens]  # (rows, labels)
        gains = torch.tensor([row.gains for row in rows], dtype=parameters.dtype)
        return -(weights * (at_labels.softmax(-1) * gains).sum(1)).sum()


def agreements(scale: AnyScale, label: Label, verdicts: Sequence[Label | None]) -> list[float]:
    """Return the agreement of verdicts with a label, in [0, 1]: 1 - distance / longest distance; unreadable is 0."""
    if isinstance(scale, IntervalScale):
        longest = float(scale.max - scale.min)
    else:
        labels = listed_labels(scale)
        longest = max(scale.distance(one, other) for one in labels for other in labels)
    return [0.0 if verdict is None else 1 - scale.distance(verdict, label) / longest for verdict in verdicts]


def read_dev_draws(folder: Path, step: int) -> list[Record]:
    """Return the draws that a seed's folder holds of the dev split at a step.

    Raises:
        DataError: If there are none.
    """
    path = folder / "dev" / f"sft-{step:06}.jsonl"
    if not path.exists():
        raise DataError(
            f"{path}: no such file, so the rater's last draws on the dev split are not there; give the folder of a "
            "finished run of finetune_rater --record-trajectory"
        )
    return [record for _, _, record in read_lines(path)]


def dev_queries(
    name: QueryName,
    losses: AnswerLosses,
    encoder: Encoder,
    run: TraceRun,
    dev: DevSplit,
    draws: Sequence[Record],
    folds: int,
    pad: int,
) -> DevQueries:
    """Return a loss on each fold of the dev split.

    Groups of items stay together in a fold; there are fewer folds if there are fewer groups.

    Args:
        name: Which loss.
        losses: The model.
        encoder: Of the run's examples.
        run: Whose items.
        dev: The items.
        draws: Of the rater on them.
        folds: At most so many.
        pad: Token that pads.

    Raises:
        ConfigError: If the scale or the draws have not what the loss needs.
        DataError: If no draw can be used.
    """
    scale = run.dimension.scale
    tokens = []
    if name == "agreement":
        if isinstance(scale, IntervalScale):
            raise ConfigError(f"--query agreement: scale {scale} lists no labels to expect over; give label or draws")
        tokens = first_tokens(encoder.loaded, scale, "--query agreement")
    gold = gold_labels(run.corpus, run.dimension.name, run.gold_method, dev.items)
    labels = dict(zip(gold.items.tolist(), (scale.label(number) for number in gold.numbers.tolist()), strict=True))
    fold_of = dict(zip(dev.items.tolist(), _folds(dev.labels.groups, folds).tolist(), strict=True))
    places = {run.corpus.item_ids[item]: item for item in dev.items.tolist()}
    by_item: dict[int, list[Record]] = {}
    for record in draws:
        if record["item_id"] in places:
            by_item.setdefault(places[record["item_id"]], []).append(record)
    decimals = _decimals(record for records in by_item.values() for record in records)
    rows = [
        (item, row)
        for item, records in by_item.items()
        for row in _rows(name, encoder, scale, item, labels[item], records, decimals)
    ]
    if not rows:
        raise DataError(f"--query {name}: none of {len(draws)} draws on the dev split says anything; train longer")
    # An item whose draws all agree equally well has no row of `draws`, and counts all the same: its gradient is 0.
    read = [item for item, records in by_item.items() if any(record["verdict"] is not None for record in records)]
    counts = np.bincount([fold_of[item] for item in read])
    used = np.flatnonzero(counts).tolist()
    found = [
        replace(row, fold=used.index(fold_of[item]), weight=row.weight / int(counts[fold_of[item]]))
        for item, row in rows
    ]
    return DevQueries(losses, found, counts[used].tolist(), pad, tokens)


def _folds(groups: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return (items,) folds of about the same size: the largest group first, into the smallest fold."""
    names, sizes = np.unique(groups, return_counts=True)
    held = np.zeros(min(most, len(names)), np.int64)
    fold_of = {}
    for place in np.argsort(-sizes, kind="stable"):
        fold = int(held.argmin())
        fold_of[int(names[place])] = fold
        held[fold] += sizes[place]
    return np.array([fold_of[int(group)] for group in groups], np.int64)


def _decimals(draws: Iterable[Record]) -> int:
    """Return how many decimals a rater's ratings have most often; of numbers alone, and 0 without any."""
    texts = [rating_text(record["answer"]) or "" for record in draws if record["verdict"] is not None]
    parts = [text.lstrip("+-").partition(".") for text in texts]
    counts = Counter(len(behind) for before, _, behind in parts if f"{before}{behind}".isdecimal())
    return max(counts, key=lambda count: (counts[count], count), default=0)


def _written(scale: AnyScale, label: Label, decimals: int) -> str:
    """Return a label as a rater writes it: on an interval scale with its decimals, and more if it needs them."""
    if not isinstance(scale, IntervalScale):
        return str(label)
    texts = (f"{label:.{count}f}" for count in range(decimals, 18))
    return next((text for text in texts if scale.parse(text) is not None), str(label))


def _rows(
    name: QueryName,
    encoder: Encoder,
    scale: AnyScale,
    item: int,
    label: Label,
    records: Sequence[Record],
    decimals: int,
) -> Iterator[QueryRow]:
    """Yield the rows of one item; weights are those within its mean."""
    verdicts = [None if record["verdict"] is None else scale.canonical(record["verdict"]) for record in records]
    gained = agreements(scale, label, verdicts)
    encoded: list[tuple[Any, float, Label]] = []
    for record, verdict, gain in zip(records, verdicts, gained, strict=True):
        if verdict is None:
            continue  # nobody knows where its verdict would stand
        baseline = (sum(gained) - gain) / (len(gained) - 1) if len(gained) > 1 else 0.0
        swapped = record["swapped"] is True
        wanted = scale.swapped(label) if swapped else label  # as the pair was shown
        if name == "draws":
            shown = scale.swapped(verdict) if swapped else verdict
            stated = rating_text(record["answer"])
            # As the draw has it, if it is read from there: 7 and 7.0 are the same verdict, and not the same tokens.
            said = stated if stated is not None and scale.parse(stated) == shown else _written(scale, shown, decimals)
        else:
            said = _written(scale, wanted, decimals)
        key = (record["item_id"], None)
        example = encoder.encode(Lesson("", key, item, swapped, said, record["trace"].strip(), said))
        if example is not None:
            encoded.append((example, gain - baseline, wanted))
    for example, advantage, wanted in encoded:
        # Of draws all of the answer is asked about, of the others the verdict: neither is what the target learns.
        begin, end = (example.prompt_tokens, None) if name == "draws" else (example.verdict_at, example.verdict_end)
        labels = [IGNORED] * len(example.input_ids)
        labels[begin:end] = example.input_ids[begin:end]
        row = {
            "input_ids": example.input_ids,
            "labels": labels,
            "verdict_at": example.verdict_at,
            "verdict_end": example.verdict_end,
        }
        weight = 1 / len(encoded)
        if name == "draws":
            if advantage:
                yield QueryRow(row, 0, weight * advantage)
        else:
            gains = agreements(scale, wanted, list(listed_labels(scale))) if name == "agreement" else None
            yield QueryRow(row, 0, weight, gains)
