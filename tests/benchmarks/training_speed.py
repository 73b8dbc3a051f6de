"""How fast fine-tuning is on a GPU: tokens a second, and the share of what its matrix multiplications could do.

    python -m tests.benchmarks.training_speed              # an 8B Qwen3 with random weights, 2,048-token examples
    python -m tests.benchmarks.training_speed --size tiny --device cpu

Counted are the operations that LoRA on a frozen base needs: 4 N tokens (forward and the gradient of activations; none
for the frozen weights), and attention's 6 S^2 width a layer and sequence (forward and backward, the causal half). The
ceiling is the fastest of three large square products in the same precision. Beside it stands the same work with TRL's
own defaults: checkpointed gradients, one example after another of a batch padded to its longest.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from raters.models.generation import LoadedModel
from raters.training import build_trainer
from raters.training_data import Example
from raters.training_phases import TrainingSettings, sft_phase
from raters.training_plan import Schedule
from raters.training_processes import QuietTraining


@dataclass(frozen=True)
class Size:
    """A Qwen3 and its work."""

    width: int
    layers: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head: int
    vocabulary: int
    tokens: int
    batch: int
    micro_batch: int


SIZES = {
    "8b": Size(4096, 36, 12288, 32, 8, 128, 151_936, 2048, 8, 2),
    "student": Size(128, 4, 384, 4, 2, 32, 564, 256, 16, 16),
    "tiny": Size(32, 2, 64, 2, 1, 16, 320, 64, 4, 4),
}


def build(size: Size, device: str, dtype: str) -> LoadedModel:
    """Return a model of a size with random weights."""
    import torch
    import transformers

    from tests.tiny_models import make_tokenizer

    tokenizer = make_tokenizer()
    config = transformers.Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        head_dim=size.head,
        max_position_embeddings=2 * size.tokens,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.config._name_or_path = "random"
    return LoadedModel("hf/random", model, tokenizer, None, frozenset({2}), 2 * size.tokens, True, ())


def examples(size: Size, count: int) -> list[Example]:
    """Return conversations of random tokens, half of them learned."""
    import numpy as np

    rows = np.random.default_rng(0).integers(3, min(size.vocabulary, 320), (count, size.tokens)).tolist()
    half = size.tokens // 2
    return [
        Example(str(place), half, ids, [-100] * half + ids[half:], half, len(ids), 1) for place, ids in enumerate(rows)
    ]


def seconds_per_step(trainer: Any, skip: int) -> float:
    """Train, and return the median seconds of a step behind the first ones."""
    import statistics

    import torch
    import transformers

    ends: list[float] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    with QuietTraining():
        trainer.train()
    return statistics.median(later - sooner for sooner, later in zip(ends[skip:], ends[skip + 1 :], strict=False))


def ours(size: Size, device: str, dtype: str, steps: int, folder: Path, **changes: Any) -> float:
    """Return the seconds of one of our steps."""
    settings = replace(TrainingSettings("hf/random", dtype=dtype, micro_batch=size.micro_batch), **changes)
    plan = Schedule(size.batch * 2, size.batch, steps, 1, steps, steps)
    phase = sft_phase(examples(size, size.batch * 2), None, plan, 5e-5)
    with QuietTraining():
        trainer, _ = build_trainer(settings, phase, folder, 0, build(size, device, dtype))
    return seconds_per_step(trainer, 2)


def trls_defaults(size: Size, device: str, dtype: str, steps: int, folder: Path) -> float:
    """Return the seconds of a step of the same work as TRL does it if nothing is asked for."""
    import datasets
    import peft
    import torch
    import trl

    rows = [{"input_ids": row.input_ids, "labels": row.labels} for row in examples(size, size.batch * (steps + 1))]
    with QuietTraining():
        arguments = trl.SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=size.micro_batch,
            gradient_accumulation_steps=size.batch // size.micro_batch,
            max_steps=steps,
            max_length=None,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            bf16=dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
        )
        loaded = build(size, device, dtype)
        lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = trl.SFTTrainer(
            model=loaded.model,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=loaded.tokenizer,
            peft_config=lora,
        )
    return seconds_per_step(trainer, 2)


def operations(size: Size) -> float:
    """Return the floating-point operations that a step needs (see the head)."""
    attention = size.heads * size.head
    per_layer = size.width * (attention + 2 * size.key_value_heads * size.head) + attention * size.width
    weights = size.layers * (per_layer + 3 * size.width * size.feed_forward) + size.width * size.vocabulary
    tokens = size.batch * size.tokens
    return 4.0 * weights * tokens + 6.0 * size.tokens**2 * attention * size.layers * size.batch


def ceiling(device: str, dtype: str, side: int) -> float:
    """Return the operations a second of the fastest of three square products."""
    import torch

    left, right = (torch.randn(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    fastest = 0.0
    for _ in range(3):
        repeats = 20
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        fastest = max(fastest, repeats * 2.0 * side**3 / (time.perf_counter() - began))
    return fastest


def measure(name: str, device: str, steps: int) -> dict[str, Any]:
    """Return what fine-tuning a size comes to on a device."""
    size, dtype = SIZES[name], "bfloat16" if device == "cuda" else "float32"
    most = ceiling(device, dtype, 8192 if device == "cuda" else 512)
    with TemporaryDirectory() as folder:
        seconds = ours(size, device, dtype, steps, Path(folder))
        checkpointed = ours(size, device, dtype, steps, Path(folder), gradient_checkpointing=True)
        defaults = trls_defaults(size, device, dtype, steps, Path(folder))
    tokens = size.batch * size.tokens
    return {
        "size": asdict(size),
        "device": device,
        "tokens_per_second": tokens / seconds,
        "with_checkpointed_gradients": tokens / checkpointed,
        "trl_defaults": tokens / defaults,
        "times_trl_defaults": defaults / seconds,
        "ceiling_tflops": most / 1e12,
        "share_of_ceiling": operations(size) / seconds / most,
    }


def main() -> None:
    """Print a measurement as JSON, or say that there is no GPU."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="8b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=12)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing measured; --size tiny --device cpu shows what would be")
        return
    print(json.dumps(measure(given.size, given.device, given.steps), indent=2))


if __name__ == "__main__":
    main()
