"""Train the student: a tiny Qwen3 that learns from the rule reader to rate by observations, from random weights.

    python -m data.student.train --out data/student

It never sees a text or a label of a person: everything it learns from is random (see `tasks`). It is measured field by
field on draws of its own (see `fields`), and tuned with LoRA on the traces of an oracle; below one of the gates nothing
is saved and the script ends with status 1. On a CPU it takes about an hour; a run that was killed goes on from its
last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from data.student.gates import field_shares, figures, missed, told
from data.student.rows import Row, encode
from data.student.tasks import Kind, exercise
from data.student.tokenizer import CONTEXT_TOKENS, make_tokenizer, parts_of_pieces

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
INITIAL_SPREAD = 0.02
STEPS, BATCH, SEED = 5704, 32, 0
BETAS, WEIGHT_DECAY, MOST_GRADIENT_NORM = (0.9, 0.95), 0.05, 1.0
WARMUP_STEPS, LEAST_RATE = 100, 0.02
BLOCK = 8
"""Batches that are made together, so that each can be of rows about as long as each other."""
SAVE_STEPS, TELL_STEPS, TOLD_DRAWS = 400, 100, 60
_RATING: Mapping[Kind, int] = {"many": 10, "few": 4, "at-once": 1, "rate-first": 1}


@dataclass(frozen=True, slots=True)
class Round:
    """A part of the training, with an optimizer and a schedule of its own.

    Attributes:
        until: Share of all steps at which it ends.
        rate: Highest learning rate.
        decay_from: Share of its steps from which the rate falls, on a line down to its end.
        curriculum: (until which share of its steps, how often each kind of exercise).
    """

    until: float
    rate: float
    decay_from: float
    curriculum: tuple[tuple[float, Mapping[Kind, int]], ...]


ROUNDS = (
    Round(  # copying comes first, guessing last
        until=3000 / 5704,
        rate=2.5e-3,
        decay_from=0.5,
        curriculum=(
            (0.1, {"copy": 6, "restate": 2, "look-up": 1, "read-off": 1}),
            (0.2, {"copy": 2, "restate": 3, "look-up": 1, "read-off": 3, "many": 4}),
            (0.5, {"copy": 1, "restate": 2, "look-up": 1, "read-off": 2, "many": 12, "few": 4, "at-once": 1}),
            (1.0, {"restate": 1, "many": 10, "few": 7, "at-once": 1, "rate-first": 1}),
        ),
    ),
    Round(  # what was weakest after the first: labels of several letters, observations that are not all there
        until=4504 / 5704,
        rate=1.2e-3,
        decay_from=0.0,
        curriculum=((1.0, {**_RATING, "restate": 1, "look-up": 1, "read-off": 1, "spell": 4, "sparse": 6}),),
    ),
    Round(  # guesses were still of observations that the prompt does not show
        until=1.0,
        rate=1.2e-3,
        decay_from=0.0,
        curriculum=((1.0, {**_RATING, "restate": 1, "read-off": 1, "spell": 5, "scarce": 12}),),
    ),
)


def rounds_of(steps: int) -> list[tuple[int, int, Round]]:
    """Return (first step, step after the last, round) of each, at ends of blocks."""
    ends = [0, *(round(one.until * steps / BLOCK) * BLOCK for one in ROUNDS[:-1]), steps]
    return [(begin, end, one) for (begin, end), one in zip(pairwise(ends), ROUNDS, strict=True)]


def batches(tokenizer: Any, seed: int, part: tuple[int, int, Round], batch: int, begin: int) -> Iterator[list[Row]]:
    """Yield the batch of every step of a round from `begin` on, which must be the first of a block."""
    start, end, one = part
    for first in range(begin, end, BLOCK):
        chance = random.Random(f"{seed} {first}")
        kinds = next(kinds for until, kinds in one.curriculum if first - start < until * (end - start))
        rows = [
            encode(tokenizer, exercise(chance, kind))
            for kind in chance.choices(list(kinds), list(kinds.values()), k=BLOCK * batch)
        ]
        rows.sort(key=lambda row: len(row.ids))
        block = [rows[at : at + batch] for at in range(0, len(rows), batch)]
        chance.shuffle(block)
        yield from block


def tensors(rows: Sequence[Row], pad_id: int) -> tuple[Any, Any]:
    """Return (rows, tokens) input ids and labels; -100 where nothing is learned."""
    import torch

    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), -100)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
        labels[place, row.prompt_tokens : len(row.ids)] = torch.tensor(row.ids[row.prompt_tokens :])
    return ids, labels


def new_model(tokenizer: Any, seed: int) -> Any:
    """Return the student with random weights."""
    import torch
    import transformers

    library: Any = transformers
    torch.manual_seed(seed)
    config = library.Qwen3Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        initializer_range=INITIAL_SPREAD,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **SIZES,
    )
    model = library.Qwen3ForCausalLM(config)
    embedding = model.get_input_embeddings().weight.data
    for piece, parts in parts_of_pieces().items():
        # Begins as the sum of its parts, as if it were two tokens: a step from one to the other is there already.
        ids = [tokenizer.convert_tokens_to_ids(part) for part in parts]
        embedding[tokenizer.convert_tokens_to_ids(piece)] = embedding[ids].sum(0) / math.sqrt(2)
    return model


def optimizer(model: Any) -> Any:
    """Return AdamW, without decay of norms.

    Muon was tried for the matrices: it learned to restate guidelines sooner, and never to look anything up.
    """
    import torch

    weights = list(model.parameters())
    groups = [
        {"params": [weight for weight in weights if weight.ndim == 2], "weight_decay": WEIGHT_DECAY},
        {"params": [weight for weight in weights if weight.ndim != 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=BETAS)


def rate_at(step: int, part: tuple[int, int, Round]) -> float:
    """Return the learning rate of a step of a round: a warm-up, a plateau, and a line down to the end."""
    start, end, one = part
    rising = min(1.0, (step - start + 1) / WARMUP_STEPS)
    left = (end - step) / ((end - start) * (1 - one.decay_from))
    return one.rate * rising * min(1.0, max(LEAST_RATE, left))


def train(model: Any, tokenizer: Any, seed: int, steps: int, batch: int, checkpoint: Path) -> float:
    """Train a model in place and return the seconds it took, those of earlier sessions included."""
    import torch

    identity = {"seed": seed, "steps": steps, "batch": batch}
    done, seconds, state = 0, 0.0, None
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["identity"] == identity:
            done, seconds, state = saved["step"], saved["seconds"], saved["optimizer"]
            model.load_state_dict(saved["model"])
            print(f"going on from step {done}", flush=True)
    began, before = time.monotonic(), seconds
    losses: list[float] = []
    model.train()
    for part in rounds_of(steps):
        begin, end, _ = part
        if done >= end:
            continue
        stepper = optimizer(model)
        if state is not None and done > begin:
            stepper.load_state_dict(state)
        begin = max(begin, done)
        for step, rows in enumerate(batches(tokenizer, seed, part, batch, begin), begin):
            losses.append(_step(model, stepper, rate_at(step, part), tensors(rows, tokenizer.pad_token_id)))
            seconds = before + time.monotonic() - began
            if (step + 1) % TELL_STEPS == 0 or step + 1 == steps:
                mean = math.fsum(losses[-TELL_STEPS:]) / len(losses[-TELL_STEPS:])
                print(f"step {step + 1:,} of {steps:,}  loss {mean:.4f}  {seconds:,.0f} s", flush=True)
            if (step + 1) % SAVE_STEPS == 0 and step + 1 < steps:
                saved = {"identity": identity, "step": step + 1, "seconds": seconds}
                states = {"model": model.state_dict(), "optimizer": stepper.state_dict()}
                torch.save({**saved, **states}, checkpoint.with_suffix(".part"))
                checkpoint.with_suffix(".part").replace(checkpoint)
                save(model, tokenizer, checkpoint.parent)
                found = field_shares(checkpoint.parent, seed, TOLD_DRAWS)
                print("  " + "  ".join(f"{name} {share:.3f}" for name, share in found.items()), flush=True)
    model.eval()
    return seconds


def _step(model: Any, stepper: Any, rate: float, tensors: tuple[Any, Any]) -> float:
    """Make an optimizer step and return the mean loss of the tokens that are learned."""
    import torch
    from torch.nn.functional import cross_entropy

    ids, labels = tensors
    for group in stepper.param_groups:
        group["lr"] = rate
    learned = labels[:, 1:] != -100
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][learned]
    loss = cross_entropy(hidden @ model.get_input_embeddings().weight.T, labels[:, 1:][learned])
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), MOST_GRADIENT_NORM)
    stepper.step()
    stepper.zero_grad()
    return loss.item()


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a student as transformers reads it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, and save if every gate is reached; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m data.student.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder the weights go to")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of weights and exercises (default {SEED})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps (default {STEPS})")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"exercises in a step (default {BATCH})")
    options = parser.parse_args(arguments)
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # a second thread costs more than it brings at this size
    options.out.mkdir(parents=True, exist_ok=True)
    part = options.out / "training.part"
    part.mkdir(exist_ok=True)
    tokenizer = make_tokenizer()
    model = new_model(tokenizer, options.seed)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{parameters:,} weights, {len(tokenizer)} tokens", flush=True)
    seconds = train(model, tokenizer, options.seed, options.steps, options.batch, part / "checkpoint.pt")
    save(model, tokenizer, part)
    found = figures(part, options.seed)
    print(told(found), flush=True)
    if lines := missed(found):
        print("not saved: " + "; ".join(lines), file=sys.stderr)
        return 1
    about = {
        "command": f"python -m data.student.train --out data/student --seed {options.seed} --steps {options.steps} "
        f"--batch {options.batch}",
        "seed": options.seed,
        "steps": options.steps,
        "batch": options.batch,
        "weights": parameters,
        "seconds": round(seconds),
        "torch": torch.__version__,
        "figures": {name: round(share, 4) for name, share in found.items()},
    }
    (part / "training.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    for file in sorted(part.iterdir()):
        if file.is_file() and file.suffix != ".pt":
            file.replace(options.out / file.name)
    shutil.rmtree(part)
    print(f"saved to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
