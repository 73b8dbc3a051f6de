"""What is minimised: TRL's losses, with a term for ordered labels and a weight for pairs.

Fine-tuning: the mean negative log-likelihood of the learned tokens of a step. With `--ordinal W`, W times the mean over
examples of

    ((E - y) / (highest - lowest label)) ** 2,   E = sum of label * p(label)

is added, where p is the softmax over the labels' first tokens at the place of the rating: a verdict next to the label
costs less than one at the other end of the scale, which cross-entropy does not see.

Preferences: the loss of DPO (Rafailov et al. 2023, equation 7), each pair's times its weight, which is the distance of
the rejected verdict from the label, over the mean of all pairs'. An answer one step off is less wrong than one four
steps off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OWN_KEYS = ("index", "verdict_at", "verdict", "weight")
"""Columns of a batch that are ours and not the model's."""


@dataclass(frozen=True, slots=True)
class OrdinalTerm:
    """The term for ordered labels.

    Attributes:
        weight: W.
        tokens: (labels,) first token of each label.
        values: (labels,) each label as a quantity, ascending.
    """

    weight: float
    tokens: Sequence[int]
    values: Sequence[float]


def squared_errors(logits: torch.Tensor, verdicts: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
    """Return (rows,) the squared error of the expected label, in units of the scale's length.

    Args:
        logits: (rows, labels) of the labels' first tokens.
        verdicts: (rows,) place of the right label.
        values: (labels,) as quantities, ascending.
    """
    import torch

    quantities = torch.tensor(values, dtype=torch.float32, device=logits.device)
    expected = logits.float().softmax(-1) @ quantities
    span = quantities[-1] - quantities[0]
    return (((expected - quantities[verdicts]) / span) ** 2).float()


def dpo_losses(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Return (pairs,) the loss of each pair from the log-likelihoods of its answers.

    Args:
        chosen: (pairs,) under the model.
        rejected: Likewise.
        reference_chosen: (pairs,) under the reference.
        reference_rejected: Likewise.
        beta: How strongly the model is kept at the reference.
    """
    from torch.nn.functional import logsigmoid

    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -logsigmoid(beta * margin)


class TextCollator:
    """Pads examples of fine-tuning on the right, where a causal model does not see it."""

    def __init__(self, pad_token_id: int) -> None:
        """Take the token that pads."""
        self._pad = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return tensors (rows, tokens) and (rows,)."""
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        batch = {
            "input_ids": torch.tensor([_filled(row["input_ids"], width, self._pad) for row in rows]),
            "labels": torch.tensor([_filled(row["labels"], width, -100) for row in rows]),
            "attention_mask": torch.tensor([_filled([1] * len(row["input_ids"]), width, 0) for row in rows]),
        }
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in OWN_KEYS if name in rows[0]}


class PairCollator:
    """Pads pairs: chosen answers first, rejected ones behind them, as TRL's trainer reads them."""

    def __init__(self, pad_token_id: int) -> None:
        """Take the token that pads."""
        self._pad = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return tensors (2 * rows, tokens) and (rows,)."""
        import torch

        both = [(row["prompt_ids"], row[f"{side}_ids"], row) for side in ("chosen", "rejected") for row in rows]
        width = max(len(prompt) + len(answer) for prompt, answer, _ in both)
        masks = [[0] * len(prompt) + [1] * len(answer) for prompt, answer, _ in both]
        batch = {
            "input_ids": torch.tensor([_filled([*prompt, *answer], width, self._pad) for prompt, answer, _ in both]),
            "attention_mask": torch.tensor([_filled([1] * len(mask), width, 0) for mask in masks]),
            "completion_mask": torch.tensor([_filled(mask, width, 0) for mask in masks]),
        }
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in OWN_KEYS if name in rows[0]}


def _filled(values: Sequence[int], width: int, filling: int) -> list[int]:
    return [*values, *[filling] * (width - len(values))]


def sft_trainer(ordinal: OrdinalTerm | None, batch: int, **options: Any) -> Any:
    """Return TRL's trainer for fine-tuning, with the term for ordered labels.

    Args:
        ordinal: The term; None for none.
        batch: Examples of one optimizer step, over all processes.
        **options: Of `trl.SFTTrainer`.
    """
    import trl
    from torch.nn.functional import cross_entropy

    library: Any = trl

    class RaterSFTTrainer(library.SFTTrainer):  # type: ignore[misc]
        """TRL's trainer, with our term."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """Return the loss of a micro-batch as its share of the step's."""
            own = {name: inputs.pop(name) for name in OWN_KEYS if name in inputs}
            if ordinal is None:
                return self._likelihood(model, inputs, num_items_in_batch)
            inner = self.accelerator.unwrap_model(model)
            inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
            seen: list[Any] = []
            # The head is fused into TRL's loss, so that no logits come out of it: take what goes into it.
            hook = inner.base_model.register_forward_hook(
                lambda module, given, output: seen.append(output.last_hidden_state)
            )
            try:
                loss = self._likelihood(model, inputs, num_items_in_batch)
            finally:
                hook.remove()
            rows = own["verdict_at"].new_tensor(range(len(own["verdict_at"])))
            before = seen[0][rows, own["verdict_at"] - 1]  # (rows, width): what predicts the label
            head = inner.get_output_embeddings()
            logits = before @ head.weight[list(ordinal.tokens)].to(before.dtype).T
            errors = squared_errors(logits, own["verdict"], ordinal.values)
            # The step's loss is the sum of its micro-batches', and DDP takes the mean over processes.
            share = errors.mean() if num_items_in_batch is None else errors.sum() / batch * self.args.world_size
            return loss + ordinal.weight * share

        def _likelihood(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Any:
            """Return the negative log-likelihood of a micro-batch as its share of the step's."""
            if inputs["input_ids"].device.type != "cpu":
                return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            # TRL scores every position in tiles, which pays on a GPU; here only what is learned gets logits.
            labels = inputs["labels"]
            first = int((labels != -100).any(0).nonzero()[0])
            wanted = labels[:, first:]
            kept = wanted.shape[1] + 1  # the position before the first learned token predicts it
            inner = self.accelerator.unwrap_model(model)
            can_leave_out = getattr(inner, "_supports_logits_to_keep", lambda: False)()
            logits = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                use_cache=False,
                **({"logits_to_keep": kept} if can_leave_out else {}),
            ).logits[:, -kept:-1]
            total = cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="sum")
            if num_items_in_batch is None:
                return total / (wanted != -100).sum()
            return total / num_items_in_batch * self.args.world_size

        def create_model_card(self, *arguments: Any, **named: Any) -> None:
            """Write no model card: a checkpoint is not for others."""

        def _send_telemetry(self) -> None:
            """Tell nobody of the run; TRL would tell its makers."""

    return RaterSFTTrainer(data_collator=TextCollator(_pad_of(options["processing_class"])), **options)


def dpo_trainer(**options: Any) -> Any:
    """Return TRL's trainer for preferences, with a weight for each pair.

    Args:
        **options: Of `trl.DPOTrainer`.
    """
    import torch
    import trl
    from trl.trainer.utils import use_adapter

    library: Any = trl

    class RaterDPOTrainer(library.DPOTrainer):  # type: ignore[misc]
        """TRL's trainer and its references; the loss is ours because TRL's has no place for a weight."""

        def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
            return dataset  # in tokens already

        def _likelihoods(self, model: Any, inputs: Any) -> tuple[Any, Any]:
            """Return (pairs,) log-likelihoods of chosen and of rejected answers."""
            labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
            output = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                labels=labels,
                use_cache=False,
                fused_lm_head=True,
            )
            chosen, rejected = output.log_probs.sum(dim=1).chunk(2)
            return chosen, rejected

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """Return the weighted mean loss of a micro-batch."""
            chosen, rejected = self._likelihoods(model, inputs)
            inner = self.accelerator.unwrap_model(self.model)
            name = "ref" if "ref" in inner.peft_config else None
            with torch.no_grad(), use_adapter(inner, adapter_name=name):
                reference = self._likelihoods(self.model, inputs)
            losses = dpo_losses(chosen, rejected, *reference, self.beta)
            loss = (inputs["weight"].to(losses.dtype) * losses).mean()
            with torch.no_grad():
                margins = (chosen - reference[0]) - (rejected - reference[1])
                self._metrics["train"]["preferred"].append(float((margins > 0).float().mean()))
            return (loss, None) if return_outputs else loss

        def create_model_card(self, *arguments: Any, **named: Any) -> None:
            """Write no model card: a checkpoint is not for others."""

        def _send_telemetry(self) -> None:
            """Tell nobody of the run; TRL would tell its makers."""

    return RaterDPOTrainer(data_collator=PairCollator(_pad_of(options["processing_class"])), **options)


def _pad_of(tokenizer: Any) -> int:
    pad = tokenizer.pad_token_id
    return int(pad if pad is not None else tokenizer.eos_token_id or 0)
