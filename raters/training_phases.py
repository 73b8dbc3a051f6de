"""What a training run is told: its settings, and its phases with their examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raters.training_data import Example
from raters.training_loss import OrdinalTerm
from raters.training_pairs import Pair
from raters.training_plan import Schedule

PhaseName = Literal["sft", "dpo"]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a rater is trained.

    Attributes:
        base: `student` or `hf/<path or id>`.
        dtype: `float32` or `bfloat16`.
        rank: Of LoRA (Hu et al. 2022).
        alpha: LoRA's scale times rank.
        dropout: Of LoRA; 0 keeps a step a function of its examples.
        weight_decay: Of AdamW.
        max_grad_norm: Gradients are scaled down to this norm.
        lr_schedule: transformers' name of what follows the warm-up.
        beta: Of DPO.
        ordinal: The term for ordered labels; None for none.
        micro_batch: Examples that a process reads at once, at most.
        rating_batch: Rows of the dev split that are rated at once.
        gradient_checkpointing: True to recompute activations instead of keeping them.
        four_bit: True for a base in 4 bits.
        chat_template: In place of the tokenizer's own.
        keep_checkpoints: True to leave all of them.
        record_trajectory: True to record every step for attribution.
    """

    base: str
    dtype: str = "float32"
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    lr_schedule: str = "linear"
    beta: float = 0.1
    ordinal: OrdinalTerm | None = None
    micro_batch: int = 8
    rating_batch: int = 32
    gradient_checkpointing: bool = False
    four_bit: bool = False
    chat_template: str | None = None
    keep_checkpoints: bool = False
    record_trajectory: bool = False


@dataclass(frozen=True)
class Phase:
    """One phase of training.

    Attributes:
        name: `sft` or `dpo`.
        plan: Its schedule.
        lr: Highest learning rate.
        rows: (examples,) what a collator reads, without the weights of others.
        ids: (examples,) name of each.
        lengths: (examples,) tokens of each, all and learned.
    """

    name: PhaseName
    plan: Schedule
    lr: float
    rows: Sequence[Mapping[str, Any]]
    ids: Sequence[str]
    lengths: Sequence[tuple[int, int]]


def sft_phase(examples: Sequence[Example], verdicts: Sequence[int] | None, plan: Schedule, lr: float) -> Phase:
    """Return the phase of fine-tuning; verdicts are places on the scale, for the term for ordered labels."""
    rows = [
        {
            "input_ids": example.input_ids,
            "labels": example.labels,
            "index": place,
            "verdict_at": example.verdict_at,
            "verdict_end": example.verdict_end,
        }
        | ({} if verdicts is None else {"verdict": verdicts[place]})
        for place, example in enumerate(examples)
    ]
    lengths = [(len(example.input_ids), example.learned) for example in examples]
    return Phase("sft", plan, lr, rows, [example.example_id for example in examples], lengths)


def dpo_phase(pairs: Sequence[Pair], plan: Schedule, lr: float) -> Phase:
    """Return the phase of preferences."""
    rows, lengths = [], []
    for place, pair in enumerate(pairs):
        cut = pair.chosen.prompt_tokens
        answers = {f"{side}_ids": getattr(pair, side).input_ids[cut:] for side in ("chosen", "rejected")}
        rows.append({"prompt_ids": pair.chosen.input_ids[:cut], **answers, "index": place, "weight": pair.weight})
        both = (pair.chosen, pair.rejected)
        lengths.append((sum(len(one.input_ids) for one in both), sum(one.learned for one in both)))
    return Phase("dpo", plan, lr, rows, [pair.example_id for pair in pairs], lengths)
