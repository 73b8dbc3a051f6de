"""A recorded training run: enough to have every state of the optimizer again, to the bit.

In its folder:

    trajectory.json   parameters (names, shapes, decay), dtype, betas, epsilon, max_norm, state_every, examples
    steps.jsonl       a line a step: number, lr, norm before clipping, examples seen, and alpha, their loss weights
    gradients.bin     (steps, P) the clipped gradients, one after another, little-endian
    states/           theta, m and v every `state_every` steps, from before the first one; and the last one's

A step's gradient is all that AdamW needs to come from its state to the next, so the states between are replayed,
elementwise and in order; moments are never inverted, which would lose them to rounding. For P parameters and T steps a
run takes (T + 3 sqrt T) P numbers on disk, and a segment of it sqrt(T) times 4 P numbers in memory.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raters.influence.adamw import AdamWState, AdamWStep, advance
from raters.journal import Journal, Record, read_lines, to_line, write_atomically
from raters.records import DataError, ModelError, StorageError

HEADER, STEPS, GRADIENTS, STATES = "trajectory.json", "steps.jsonl", "gradients.bin", "states"
_NUMPY: Mapping[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float64": np.dtype("<f8")}
_MOMENTS = ("parameters", "first", "second")


@dataclass(frozen=True)
class Header:
    """What all steps of a run share.

    Attributes:
        names: Of the trainable parameters, in their order in a vector.
        shapes: Of each.
        decays: Weight decay of each.
        dtype: `float32` or `float64`.
        beta1: Of AdamW.
        beta2: Of AdamW.
        eps: Of AdamW.
        max_norm: Gradients are clipped to it; None for no clipping.
        state_every: Steps between two stored states.
        num_examples: How many examples the run learns from.
        about: What else whoever reads it wants to know.
    """

    names: Sequence[str]
    shapes: Sequence[Sequence[int]]
    decays: Sequence[float]
    dtype: str
    beta1: float
    beta2: float
    eps: float
    max_norm: float | None
    state_every: int
    num_examples: int
    about: Mapping[str, Any]

    @property
    def sizes(self) -> list[int]:
        """How many numbers each parameter has."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def width(self) -> int:
        """P."""
        return sum(self.sizes)

    def named(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parameters in a vector (P,), by name; differentiable."""
        parts = torch.split(vector, self.sizes)
        return {name: part.view(*shape) for name, shape, part in zip(self.names, self.shapes, parts, strict=True)}

    def decay(self) -> torch.Tensor:
        """Return (P,) the decay of each number, or () if it is the same for all."""
        dtype = getattr(torch, self.dtype)
        values = torch.tensor(list(self.decays), dtype=dtype)
        if len(set(self.decays)) <= 1:
            return values[0] if len(values) else torch.zeros((), dtype=dtype)
        return values.repeat_interleave(torch.tensor(self.sizes))

    def stored_bytes(self, steps: int) -> int:
        """Return how much disk a run of so many steps takes, but for its lines of text."""
        states = steps // self.state_every + 1 + bool(steps % self.state_every)
        return (steps + 3 * states) * self.width * _NUMPY[self.dtype].itemsize


@dataclass(frozen=True)
class RecordedStep:
    """One optimizer step.

    Attributes:
        settings: What AdamW was told.
        examples: (rows,) which examples it saw, by place; one may stand twice.
        weights: (rows,) alpha: the share of each in the step's loss. They add up to 1.
    """

    settings: AdamWStep
    examples: Sequence[int]
    weights: Sequence[float]


@dataclass(frozen=True)
class Moment:
    """A step with the states around it.

    Attributes:
        step: What was done.
        before: The state that the gradient was taken at.
        after: The state it led to.
        clipped: (P,) the gradient, clipped.
    """

    step: RecordedStep
    before: AdamWState
    after: AdamWState
    clipped: torch.Tensor


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], told: Mapping[str, str] | None = None) -> None:
    """Write tensors, and texts about them, so that a reader sees the old file or the new one.

    Raises:
        StorageError: If they cannot be written.
    """
    from safetensors.torch import save_file

    partial = path.with_name(f"{path.name}.partial")
    with _writing(path):
        save_file({name: one.contiguous() for name, one in tensors.items()}, str(partial), dict(told or {}))
        with open(partial, "rb") as file:
            os.fsync(file.fileno())  # or a power cut may leave the new name without its content
        os.replace(partial, path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:  # what the second one says has the system's reason in it
        raise StorageError(
            f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}); mend that and give the same "
            "command again"
        ) from error


class TrajectoryWriter:
    """Writes a run while it goes on; lines count once their gradient is there.

    Attributes:
        header: What its steps share.
    """

    def __init__(self, folder: Path, header: Header, begun: int = 0) -> None:
        """Begin, or go on behind step `begun`; what was written of later steps is dropped.

        Raises:
            DataError: If what stands there is of another run, or ends before that step.
        """
        self.header = header
        self._folder, self._next = folder, begun + 1
        self._bytes = header.width * _NUMPY[header.dtype].itemsize
        (folder / STATES).mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(header), indent=2) + "\n"
        if begun:
            self._cut(begun, text)
        else:
            for name in (STEPS, GRADIENTS):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / STATES)
            (folder / STATES).mkdir()
            write_atomically(folder / HEADER, text)
        self._journal = Journal(folder / STEPS)
        self._journal.recover()
        self._gradients = open(folder / GRADIENTS, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def _cut(self, begun: int, text: str) -> None:
        known = (self._folder / HEADER).read_text(encoding="utf-8") if (self._folder / HEADER).exists() else None
        steps = self._folder / STEPS
        there = steps.exists() and steps.stat().st_size > 0
        lines = [record for _, _, record in read_lines(steps, pass_over_torn=True)] if there else []
        gradients = self._folder / GRADIENTS
        have = gradients.stat().st_size // self._bytes if gradients.exists() else 0
        if known != text or min(len(lines), have) < begun:
            raise DataError(
                f"{self._folder}: holds {min(len(lines), have)} steps of this run and training goes on from step "
                f"{begun}; give --new to train and record from the start"
            )
        write_atomically(steps, map(to_line, lines[:begun]))
        with open(gradients, "r+b") as file:
            file.truncate(begun * self._bytes)
        for path in (self._folder / STATES).glob("*.safetensors"):
            if int(path.stem) > begun:
                path.unlink()

    def state(self, number: int, state: AdamWState) -> None:
        """Store the state after a step; 0 is before the first."""
        path = self._folder / STATES / f"{number:08}.safetensors"
        write_tensors(path, {name: getattr(state, name) for name in _MOMENTS})

    def is_due(self, number: int) -> bool:
        """Return True if the state after a step is stored."""
        return number % self.header.state_every == 0

    def step(self, step: RecordedStep, clipped: torch.Tensor) -> None:
        """Store a step, which must follow the one before it."""
        assert step.settings.number == self._next
        dtype = _NUMPY[self.header.dtype]
        rest = memoryview(clipped.detach().cpu().numpy().astype(dtype, copy=False).tobytes())
        with _writing(self._folder / GRADIENTS):
            while rest:
                rest = rest[self._gradients.write(rest) :]
        settings = step.settings
        record: Record = {
            "step": settings.number,
            "lr": settings.lr,
            "norm": settings.norm,
            "examples": list(step.examples),
            "weights": list(step.weights),
        }
        self._journal.append([record])
        self._next += 1

    def close(self) -> None:
        """Bring it to the disk."""
        self._journal.close()
        os.fsync(self._gradients.fileno())
        self._gradients.close()


class Trajectory:
    """A recorded run, read.

    Attributes:
        header: What its steps share.
        steps: (T,) in their order.
    """

    def __init__(self, folder: Path) -> None:
        """Read it.

        Raises:
            DataError: If it is none, or not whole.
        """
        self.folder = folder
        try:
            self.header = Header(**json.loads((folder / HEADER).read_text(encoding="utf-8")))
            self.steps = [self._step(record) for _, _, record in read_lines(folder / STEPS)]
        except FileNotFoundError as error:
            raise DataError(
                f"{folder}: has no {Path(error.filename).name}, so no run was recorded there; give a run of "
                "finetune_rater --record-trajectory"
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{folder}: is no recorded run ({type(error).__name__}: {error}); record it again"
            ) from error
        size = len(self.steps) * self.header.width * _NUMPY[self.header.dtype].itemsize
        there = (folder / GRADIENTS).stat().st_size if (folder / GRADIENTS).exists() else 0
        states = all(self._state_path(number).exists() for number in (0, len(self.steps)))
        if not self.steps or there != size or not states:
            raise DataError(
                f"{folder}: the recording does not come to its end ({len(self.steps)} steps, {there:,} bytes of "
                "gradients); give the command of finetune_rater again, which goes on from where it was stopped"
            )
        self._gradients = np.memmap(
            folder / GRADIENTS, _NUMPY[self.header.dtype], "r", shape=(len(self.steps), self.header.width)
        )

    def _step(self, record: Record) -> RecordedStep:
        header = self.header
        settings = AdamWStep(
            record["step"], record["lr"], header.beta1, header.beta2, header.eps, header.max_norm, record["norm"]
        )
        return RecordedStep(settings, record["examples"], record["weights"])

    def __len__(self) -> int:
        """T."""
        return len(self.steps)

    @property
    def num_examples(self) -> int:
        """How many examples the run learns from."""
        return self.header.num_examples

    def _state_path(self, number: int) -> Path:
        return self.folder / STATES / f"{number:08}.safetensors"

    def stored(self) -> list[int]:
        """Return after which steps the state is stored; 0 is before the first."""
        found = sorted(int(path.stem) for path in (self.folder / STATES).glob("*.safetensors"))
        return [number for number in found if number <= len(self)]

    def up_to(self, number: int) -> Trajectory:
        """Return the run as if it had ended after a step."""
        cut = copy.copy(self)
        cut.steps = self.steps[:number]
        return cut

    def stored_state(self, number: int) -> AdamWState:
        """Return a stored state."""
        from safetensors.torch import load_file

        return AdamWState(**load_file(str(self._state_path(number))))

    def clipped(self, number: int) -> torch.Tensor:
        """Return (P,) the clipped gradient of a step, counted from 1."""
        return torch.from_numpy(np.array(self._gradients[number - 1]))

    def state(self, number: int) -> AdamWState:
        """Return the state after a step, replayed if it is not stored."""
        if self._state_path(number).exists():
            return self.stored_state(number)
        return self.moments(number, number)[-1].after

    def last_state(self) -> AdamWState:
        """Return the state that the run came to."""
        return self.state(len(self))

    def moments(self, first: int, last: int) -> list[Moment]:
        """Return steps `first` to `last`, both counted from 1 and included, with their states: 4 P numbers each."""
        begin = max(number for number in self.stored() if number < first)
        state, decay = self.stored_state(begin), self.header.decay()
        found = []
        for number in range(begin + 1, last + 1):
            step, clipped = self.steps[number - 1], self.clipped(number)
            after = advance(state, clipped, decay, step.settings)
            if number >= first:
                found.append(Moment(step, state, after, clipped))
            state = after
        return found

    def segments_backwards(self, last: int | None = None) -> Iterator[list[Moment]]:
        """Yield the steps up to `last` (the run's last) in segments between stored states, the last segment first."""
        end = len(self) if last is None else last
        for begin in reversed([number for number in self.stored() if number < end]):
            yield self.moments(begin + 1, end)
            end = begin

    def check_replay(self) -> float:
        """Return the largest difference of a stored state's parameters from those replayed from the one before it.

        In shares of their largest number.

        Raises:
            ModelError: If they differ by more than rounding: then what was recorded is not what was run.
        """
        stored, worst = self.stored(), 0.0
        for begin, end in pairwise(stored):
            replayed = self.moments(begin + 1, end)[-1].after.parameters
            wanted = self.stored_state(end).parameters
            worst = max(worst, float((replayed - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)))
        most = 1e-5 if self.header.dtype == "float32" else 1e-12
        if not worst <= most:
            raise ModelError(
                f"{self.folder}: replaying the recorded steps leads to other weights than training did, off by "
                f"{worst:.1e} of the largest; this run cannot be attributed"
            )
        return worst
