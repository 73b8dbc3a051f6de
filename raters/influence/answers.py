"""The losses of a fine-tuning run's examples, under a base with an adapter whose weights are given as a vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from raters.influence.trajectory import Header, RecordedStep
from raters.training_loss import squared_errors

if TYPE_CHECKING:
    from raters.training_loss import OrdinalTerm

PARTS = ("reasoning", "verdict")
"""What an example's loss is split into: the tokens of the verdict's label up to the rating's end (the answer's end, if
no reasoning follows), and all others."""
IGNORED = -100


@dataclass(frozen=True)
class AnswerBatch:
    """Rows of token sequences, padded on the right, where a causal model does not see it.

    Attributes:
        input_ids: (rows, tokens).
        labels: (rows, tokens), -100 where nothing is learned.
        verdict_at: (rows,) place of the verdict's first token.
        verdict_end: (rows,) place behind the verdict.
        scale: What a row's sum of negative log-likelihoods is multiplied by to be its share.
        verdicts: (rows,) place of the right label on the scale, for the term for ordered labels; None without it.
        ordinal_scale: What a row's squared error is multiplied by.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    verdict_at: torch.Tensor
    verdict_end: torch.Tensor
    scale: float = 1.0
    verdicts: torch.Tensor | None = None
    ordinal_scale: float = 0.0

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], pad: int, **more: Any) -> AnswerBatch:
        """Return examples as tensors."""
        width = max(len(row["input_ids"]) for row in rows)

        def filled(values: Sequence[int], filling: int) -> list[int]:
            return [*values, *[filling] * (width - len(values))]

        return cls(
            torch.tensor([filled(row["input_ids"], pad) for row in rows]),
            torch.tensor([filled(row["labels"], IGNORED) for row in rows]),
            torch.tensor([row["verdict_at"] for row in rows]),
            torch.tensor([row.get("verdict_end", len(row["input_ids"])) for row in rows]),
            **more,
        )


class AnswerLosses:
    """What fine-tuning examples add to a step's loss (see `losses.ExampleLosses`).

    Attributes:
        parts: `PARTS`.
        vectors_at_once: See `losses.ExampleLosses`.
    """

    parts = PARTS

    def __init__(
        self,
        model: Any,
        header: Header,
        rows: Sequence[Mapping[str, Any]],
        pad: int,
        *,
        ordinal: OrdinalTerm | None = None,
        rows_at_once: int = 8,
        vectors_at_once: int = 1,
    ) -> None:
        """Take what a run learned from.

        Args:
            model: The base under its adapter; with attention that can be differentiated twice.
            header: Of the run.
            rows: (examples,) input_ids, labels, verdict_at, verdict_end and, for the ordinal term, verdict.
            pad: Token that pads.
            ordinal: The term for ordered labels, if the run had it.
            rows_at_once: Rows that are read at once.
            vectors_at_once: See `losses.ExampleLosses`.
        """
        self.model, self._header, self._rows, self._pad = model, header, rows, pad
        self._ordinal, self._most, self.vectors_at_once = ordinal, rows_at_once, vectors_at_once
        self._learned = [sum(label != IGNORED for label in row["labels"]) for row in rows]

    def batches(self, step: RecordedStep, most: int | None = None) -> Iterator[tuple[slice, AnswerBatch]]:
        """Yield the step's rows in batches (see `losses.ExampleLosses`)."""
        learned = sum(self._learned[place] for place in step.examples)
        size = min(self._most, most or self._most)
        for begin in range(0, len(step.examples), size):
            places = slice(begin, min(begin + size, len(step.examples)))
            rows = [self._rows[place] for place in step.examples[places]]
            more: dict[str, Any] = {}
            if self._ordinal is not None:
                more["verdicts"] = torch.tensor([row["verdict"] for row in rows])
                more["ordinal_scale"] = self._ordinal.weight / len(step.examples)
            yield places, AnswerBatch.of(rows, self._pad, scale=1 / learned, **more)

    def shares(self, parameters: torch.Tensor, batch: AnswerBatch) -> torch.Tensor:
        """Return (rows, 2) what each row adds to the step's loss, by reasoning and by verdict."""
        first = _first_learned(batch)
        logits = self.logits(parameters, batch.input_ids, first)  # (rows, tokens - first, vocabulary)
        shares = batch.scale * _log_losses(logits, batch, first)
        if self._ordinal is None:
            return shares
        assert batch.verdicts is not None
        at_labels = logits[torch.arange(len(shares)), batch.verdict_at - first][:, list(self._ordinal.tokens)]
        errors = batch.ordinal_scale * squared_errors(at_labels, batch.verdicts, self._ordinal.values)
        return shares + torch.stack([torch.zeros_like(errors), errors], dim=1)

    def log_losses(self, parameters: torch.Tensor, batch: AnswerBatch) -> torch.Tensor:
        """Return (rows, 2) sums of negative log-likelihoods of each row's learned tokens, by part."""
        first = _first_learned(batch)
        return _log_losses(self.logits(parameters, batch.input_ids, first), batch, first)

    @torch.no_grad()
    def mean_losses(self, parameters: torch.Tensor, on_examples: Callable[[int], None]) -> torch.Tensor:
        """Return (examples,) the mean negative log-likelihood of each example's learned tokens, in nats.

        Args:
            parameters: (P,).
            on_examples: Called with a number of examples that are done.
        """
        found = []
        for begin in range(0, len(self._rows), self._most):
            batch = AnswerBatch.of(self._rows[begin : begin + self._most], self._pad)
            found.append(self.log_losses(parameters, batch).sum(1))
            on_examples(len(found[-1]))
        return torch.cat(found) / torch.tensor(self._learned)

    def logits(self, parameters: torch.Tensor, input_ids: torch.Tensor, first: int) -> torch.Tensor:
        """Return (rows, tokens - first, vocabulary) the logits of the tokens from place `first` on."""
        kept = input_ids.shape[1] - first + 1  # the position before a token predicts it
        device = next(self.model.parameters()).device
        inputs = {"input_ids": input_ids.to(device), "use_cache": False}
        named = self._header.named(parameters.to(device))  # vectors stay on the CPU, where there is room for them
        if getattr(self.model, "_supports_logits_to_keep", lambda: False)():
            inputs["logits_to_keep"] = kept
        logits: torch.Tensor = functional_call(self.model, named, (), inputs).logits
        return logits[:, -kept:-1].float().to(input_ids.device)


def _first_learned(batch: AnswerBatch) -> int:
    return int((batch.labels != IGNORED).any(0).nonzero()[0])


def _log_losses(logits: torch.Tensor, batch: AnswerBatch, first: int) -> torch.Tensor:
    """Return (rows, 2) sums over tokens of `logits` (rows, tokens - first, vocabulary), by part."""
    wanted = batch.labels[:, first:]
    lost = cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
    lost = lost.view(wanted.shape)
    places = torch.arange(first, batch.labels.shape[1])[None]
    is_verdict = (places >= batch.verdict_at[:, None]) & (places < batch.verdict_end[:, None])
    return torch.stack([(lost * ~is_verdict).sum(1), (lost * is_verdict).sum(1)], dim=1)
