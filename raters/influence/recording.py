"""Record a fine-tuning run while transformers' trainer runs it.

What the trainer's callbacks see is what happened: the gradient as the optimizer takes it, after accumulation and
clipping, the learning rate that it is used at, and the optimizer's state behind it. Nothing is computed twice.
"""

from __future__ import annotations

import math
import re
import shutil
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from raters.influence.adamw import AdamWState, AdamWStep
from raters.influence.trajectory import STATES, Header, RecordedStep, TrajectoryWriter
from raters.journal import read_lines, to_line, write_atomically
from raters.records import ConfigError, ModelError
from raters.training_phases import Phase

FOLDER, EXAMPLES = "trajectory", "examples.jsonl"
_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
_CHANCE = re.compile("^(?!classifier|summary).*(drop|jitter)")
"""What configurations call the chances of a forward pass, but for those of heads that are not there: OPT's is plainly
`dropout`, and no module of its own."""


def check_model(model: Any, spec: str) -> None:
    """Refuse a base with dropout of its own.

    Raises:
        ConfigError: If it has any.
    """
    found = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Dropout) and part.p > 0]
    found += [
        name
        for name, rate in model.config.to_dict().items()
        if _CHANCE.search(name) and type(rate) in (int, float) and rate > 0
    ]
    if found:
        raise ConfigError(
            f"--record-trajectory: {spec} has dropout ({found[0]}), so that no step can be had again from its "
            "examples; set it to 0 in its config.json"
        )


def check_arguments(args: Any) -> None:
    """Refuse a trainer whose steps are not those of AdamW on whole examples.

    Args:
        args: TRL's.

    Raises:
        ConfigError: If its optimizer is another, such as one of 8 bits, or it packs several examples into a row.
    """
    if (name := str(getattr(args.optim, "value", args.optim))) not in _OPTIMIZERS:
        raise ConfigError(
            f"--record-trajectory: {name} is not torch's AdamW, whose steps are unrolled; train with adamw_torch"
        )
    if args.packing:
        raise ConfigError(
            "--record-trajectory: packing puts several examples into a row, so that none has a loss of its own; train "
            "without packing"
        )


class Recorder:
    """Writes what transformers' trainer does in one phase to a trajectory."""

    def __init__(self, folder: Path, phase: Phase, trainer: Any, order: Any, about: Mapping[str, Any]) -> None:
        """Take what is recorded; nothing is written yet.

        Raises:
            ConfigError: If the trainer's steps cannot be unrolled.

        Args:
            folder: Of the seed.
            phase: Its schedule and examples.
            trainer: transformers'.
            order: (steps * batch,) which example is seen when.
            about: What else a reader wants to know.
        """
        check_arguments(trainer.args)
        self._folder, self._phase, self._trainer, self._order = folder / FOLDER, phase, trainer, order
        self._about = dict(about)
        self._learned = [learned for _, learned in phase.lengths]
        self._writer: TrajectoryWriter | None = None
        self._pending: tuple[float, torch.Tensor] | None = None
        self._spare: int | None = None

    def _parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]

    def header(self, decays: Mapping[int, float]) -> Header:
        """Return what the steps share; decays are by id of parameter."""
        args, parameters = self._trainer.args, self._parameters()
        return Header(
            names=[name for name, _ in parameters],
            shapes=[list(parameter.shape) for _, parameter in parameters],
            decays=[decays.get(id(parameter), 0.0) for _, parameter in parameters],
            dtype="float32",
            beta1=args.adam_beta1,
            beta2=args.adam_beta2,
            eps=args.adam_epsilon,
            max_norm=args.max_grad_norm or None,
            state_every=max(1, math.isqrt(self._phase.plan.steps)),
            num_examples=len(self._phase.rows),
            about=self._about,
        )

    def announce(self, log: Callable[[str], None], to_come: int = 0) -> None:
        """Say how much disk the recording takes, and as many more like it.

        Args:
            log: Takes the line.
            to_come: Runs under other seeds that are recorded after this one.

        Raises:
            ConfigError: If the disk has less.
        """
        steps = self._phase.plan.steps
        alone = self.header({}).stored_bytes(steps)
        wanted = alone * (1 + to_come)
        seeds = f" under each of {1 + to_come} seeds" if to_come else ""
        self._folder.mkdir(parents=True, exist_ok=True)
        # What an earlier session left is gone on from, or goes away.
        there = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(self._folder).free + there
        if wanted > free:
            fewer = "fewer --seeds, fewer --steps" if to_come else "fewer --steps"
            raise ConfigError(
                f"--record-trajectory: {steps:,} steps{seeds} take {_size(wanted)} in {self._folder}, where "
                f"{_size(free)} are free; give {fewer}, a smaller --rank, or another --out"
            )
        more = f", {_size(wanted)} under the {1 + to_come} seeds that are left" if to_come else ""
        log(f"recording {steps:,} steps in {self._folder}: up to {_size(alone)}{more}")

    def as_callback(self) -> Any:
        """Return what transformers' trainer calls; it has to come before the one that marks checkpoints as whole."""
        import transformers

        library: Any = transformers
        recorder = self

        class Callback(library.TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                recorder.begin(state.global_step, more["optimizer"])

            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                recorder.take(more["optimizer"])

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
                if logs and "grad_norm" in logs:
                    recorder.write(state.global_step, logs["grad_norm"], more["optimizer"])

            def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                recorder.store(state.global_step, more["optimizer"], spare=True)

            def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                recorder.end(state.global_step, more["optimizer"])

        return Callback()

    def begin(self, begun: int, optimizer: Any) -> None:
        """Open the recording, behind the step that training goes on from."""
        decays = {
            id(parameter): float(group["weight_decay"])
            for group in _inner(optimizer).param_groups
            for parameter in group["params"]
        }
        header = self.header(decays)
        self._writer = TrajectoryWriter(self._folder, header, begun)
        self._spare = begun if begun and not self._writer.is_due(begun) else None
        if begun == 0:
            write_atomically(
                self._folder / EXAMPLES,
                (
                    to_line({"example_id": example_id, **row})
                    for example_id, row in zip(self._phase.ids, self._phase.rows, strict=True)
                ),
            )
            self._writer.state(0, AdamWState.fresh(_flat([parameter for _, parameter in self._parameters()])))

    def take(self, optimizer: Any) -> None:
        """Take the gradient that the optimizer is about to use, and its learning rate."""
        gradient = _flat([
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for _, parameter in self._parameters()
        ])  # fmt: skip
        self._pending = float(_inner(optimizer).param_groups[0]["lr"]), gradient

    def write(self, number: int, norm: float, optimizer: Any) -> None:
        """Write a step, once its norm before clipping is known.

        Raises:
            ModelError: If that is no number: then neither are the weights that the step led to.
        """
        if self._pending is None:
            return
        if not math.isfinite(norm):
            phase = self._phase.name
            raise ModelError(
                f"{phase} step {number}: the gradient's norm is {norm}; give a lower learning rate, or a longer warm-up"
            )
        assert self._writer is not None
        (lr, gradient), self._pending = self._pending, None
        header, plan = self._writer.header, self._phase.plan
        examples = self._order[(number - 1) * plan.batch : number * plan.batch].tolist()
        learned = [self._learned[place] for place in examples]
        settings = AdamWStep(number, lr, header.beta1, header.beta2, header.eps, header.max_norm, float(norm))
        weights = [count / sum(learned) for count in learned]
        self._writer.step(RecordedStep(settings, examples, weights), gradient)
        if self._writer.is_due(number):
            self.store(number, optimizer)

    def store(self, number: int, optimizer: Any, *, spare: bool = False) -> None:
        """Store the state after a step; one that is spare is dropped when the next one is stored."""
        assert self._writer is not None
        states = [_inner(optimizer).state[parameter] for _, parameter in self._parameters()]
        parameters = _flat([parameter for _, parameter in self._parameters()])
        moments = [_flat([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq")]
        self._writer.state(number, AdamWState(parameters, *moments))
        if self._spare not in (None, number):
            (self._folder / STATES / f"{self._spare:08}.safetensors").unlink(missing_ok=True)
        self._spare = number if spare and not self._writer.is_due(number) else None

    def end(self, number: int, optimizer: Any) -> None:
        """Close the recording behind the last step."""
        if self._writer is not None and number:
            self.store(number, optimizer)
            self._writer.close()
            self._writer = None


def _inner(optimizer: Any) -> Any:
    """Return torch's optimizer under accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return tensors as one vector (P,) in float32 on the CPU, a copy."""
    return torch.cat([tensor.detach().reshape(-1).float().cpu() for tensor in tensors])


def _size(count: int) -> str:
    """Return a number of bytes for a reader."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1000
    raise AssertionError


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """Return the examples of a recorded run, in the order of their places.

    Tokens are arrays of 4 bytes each; as lists they take nine times as much, most of a GB for 10,000 examples.

    Raises:
        DataError: If they are not there.
    """
    return [
        record | {name: array("i", record[name]) for name in ("input_ids", "labels")}
        for _, _, record in read_lines(folder / EXAMPLES)
    ]
