"""What the student has to do right before it is saved, and how that is measured.

    python -m data.student.gates

measures the weights that ship, as they were when they were saved, and ends with status 1 if one is below its gate.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data.student.fields import FIELDS, measure
from data.student.rows import encode
from data.student.tasks import Exercise, exercise, oracle_exercise

GATES: Mapping[str, float] = {
    "format": 1.0,
    "observation": 0.99,
    "level": 0.99,
    "tally": 0.99,
    "verdict": 0.99,
    "guideline": 0.95,
    "lora": 0.95,
    **{f"{field} sampled": 0.97 for field in FIELDS},
}
"""Least share right of each in greedy draws; `lora` is how often a student tuned on an oracle's traces rates like it.

Sampled draws, at temperature 1, take tokens now and then that the network itself thinks unlikely.
"""
MEASURED_DRAWS, ORACLE_ITEMS, ORACLE_STEPS, ORACLE_BATCH, ORACLE_RATE, RATED_ITEMS = 600, 400, 200, 32, 3e-3, 300
GLANCE_DRAWS = 60
"""Draws for a first look, since a student that cannot write at all is slow to measure."""
MOST_TOKENS = 320
"""Of a draw; the longest trace of a full guideline has 200."""
_UNSEEN = "measured"
"""Part of the seed of exercises that nothing is learned from."""


def draw(
    loaded: Any, exercises: Sequence[Exercise], seed: int, temperature: float = 1.0
) -> list[tuple[Exercise, str, str]]:
    """Return (exercise, reasoning, answer) of one draw for each exercise."""
    from raters.models.generation import generate, render
    from raters.models.protocol import SamplingSettings

    settings = SamplingSettings(temperature=temperature, max_tokens=MOST_TOKENS)
    written: list[tuple[Exercise, str, str]] = []
    for first in range(0, len(exercises), 50):
        part = exercises[first : first + 50]
        prompts = [render(loaded, [{"role": "user", "content": one.prompt}], settings.max_tokens) for one in part]
        seeds = [seed + first + place for place in range(len(part))]
        completions = generate(loaded, prompts, seeds, settings, lambda row: False)
        written += [(one, said.reasoning, said.text) for one, said in zip(part, completions, strict=True)]
    return written


def lora_agreement(folder: Path, seed: int) -> float:
    """Return how often a student, tuned on traces of an oracle whose rules it is not told, rates as the oracle does."""
    from raters.models.generation import load_model
    from raters.training import build_trainer
    from raters.training_phases import Phase, TrainingSettings
    from raters.training_plan import Schedule
    from raters.training_processes import QuietTraining

    loaded = load_model(f"hf/{folder}", str(folder), None, "cpu", "float32")
    chance = random.Random(f"{seed} {_UNSEEN} oracle")
    lessons = [oracle_exercise(chance) for _ in range(ORACLE_ITEMS)]
    rows = [encode(loaded.tokenizer, lesson) for lesson in lessons]
    phase = Phase(
        "sft",
        Schedule(len(rows), ORACLE_BATCH, ORACLE_STEPS, 10, ORACLE_STEPS, ORACLE_STEPS),
        ORACLE_RATE,
        [
            {
                "input_ids": row.ids,
                "labels": [-100] * row.prompt_tokens + row.ids[row.prompt_tokens :],
                "index": place,
                "verdict_at": -1,
            }
            for place, row in enumerate(rows)
        ],
        [str(place) for place in range(len(rows))],
        [(len(row.ids), len(row.ids) - row.prompt_tokens) for row in rows],
    )
    settings = TrainingSettings(base=f"hf/{folder}", micro_batch=ORACLE_BATCH)
    with QuietTraining(), TemporaryDirectory() as place:
        trainer, _ = build_trainer(settings, phase, Path(place), seed, loaded)
        trainer.train()
    tuned = trainer.model.eval()
    items = [oracle_exercise(chance) for _ in range(RATED_ITEMS)]
    said = draw(replace(loaded, model=tuned), items, seed)
    return sum(answer.strip() == item.answer.rpartition("</think>")[2].strip() for item, _, answer in said) / len(said)


def figures(folder: Path, seed: int) -> dict[str, float]:
    """Return the share right of every field and, if these reach their gates, of LoRA on an oracle's traces."""
    found = field_shares(folder, seed, GLANCE_DRAWS)
    if found["format"] < GATES["format"] / 2:
        return found  # what cannot write at all is slow to measure
    found = field_shares(folder, seed, MEASURED_DRAWS, temperature=0.0)
    sampled = field_shares(folder, seed, MEASURED_DRAWS)
    found |= {f"{name} sampled": share for name, share in sampled.items()}
    written = [found.get(name, 0.0) >= gate for name, gate in GATES.items() if name != "lora"]
    return {**found, "lora": lora_agreement(folder, seed)} if all(written) else found


def field_shares(folder: Path, seed: int, draws: int, temperature: float = 1.0) -> dict[str, float]:
    """Return the share right of every field in as many draws of a student that is saved in a folder."""
    from raters.models.generation import load_model

    loaded = load_model(f"hf/{folder}", str(folder), None, "cpu", "float32")
    chance = random.Random(f"{seed} {_UNSEEN}")
    exercises = [exercise(chance, kind) for kind in ("many", "few") for _ in range(draws // 2)]
    return measure(draw(loaded, exercises, seed, temperature))


def missed(found: dict[str, float]) -> list[str]:
    """Return a line for every gate that is not reached; what was not measured, because of others, counts as 0."""
    return [
        f"{name}: {found.get(name, 0.0):.4f}, below {gate:g}"
        for name, gate in GATES.items()
        if found.get(name, 0.0) < gate
    ]


def told(found: Mapping[str, float]) -> str:
    """Return every figure with its gate, a line each."""
    return "\n".join(f"  {name:<20} {share:.4f}   gate {GATES[name]:g}" for name, share in found.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a student that is saved; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m data.student.gates", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent, help="default: what ships")
    parser.add_argument("--seed", type=int, default=0, help="of the exercises (default 0)")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    found = figures(options.folder, options.seed)
    print(told(found))
    for line in missed(found):
        print(line, file=sys.stderr)
    return 1 if missed(found) else 0


if __name__ == "__main__":
    sys.exit(main())
