"""Small training problems whose influence is known otherwise: a network of tanh, and LoRA on one, in double precision.

The runs here are torch's own: torch.optim.AdamW behind torch.nn.utils.clip_grad_norm_, recorded by our writer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raters.influence.adamw import AdamWState, AdamWStep
from raters.influence.trajectory import Header, RecordedStep, Trajectory, TrajectoryWriter

BETAS, EPS = (0.9, 0.95), 1e-8


@dataclass(frozen=True)
class Setting:
    """How a problem is trained."""

    steps: int = 12
    batch: int = 8
    lr: float = 1e-2
    warmup: int = 0
    decay: float = 0.0
    max_norm: float | None = None
    micro_batch: int | None = None

    def rate(self, number: int) -> float:
        """Return the learning rate of a step; of the first of a warm-up it is 0, as transformers has it."""
        return self.lr * min(1.0, (number - 1) / self.warmup) if self.warmup else self.lr * (1 - (number - 1) / 1000)


@dataclass
class Problem:
    """Squared errors of a small network on random data; an example's loss is its own, a step's their weighted mean."""

    inputs: torch.Tensor
    targets: torch.Tensor
    shapes: dict[str, tuple[int, ...]]
    network: Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]
    start: dict[str, torch.Tensor]
    setting: Setting
    parts: Sequence[str] = ("first", "second")
    vectors_at_once: int = 64
    rows_at_once: int = 5  # batches that do not share a step evenly
    row_weights: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.row_weights = 1 + torch.arange(len(self.inputs), dtype=torch.float64) % 3  # as if of so many tokens

    @property
    def decays(self) -> list[float]:
        """The second parameter is not decayed, as biases are not."""
        return [0.0 if place == 1 else self.setting.decay for place in range(len(self.shapes))]

    def header(self, state_every: int) -> Header:
        setting = self.setting
        return Header(
            list(self.shapes),
            [list(shape) for shape in self.shapes.values()],
            self.decays,
            "float64",
            *BETAS,
            EPS,
            setting.max_norm,
            state_every,
            len(self.inputs),
            {},
        )

    def order(self) -> list[list[int]]:
        """Return the examples of each step; epochs follow each other, cut anywhere."""
        chance, wanted = np.random.default_rng(3), self.setting.steps * self.setting.batch
        found: list[int] = []
        while len(found) < wanted:
            found += chance.permutation(len(self.inputs)).tolist()
        size = self.setting.batch
        return [found[begin : begin + size] for begin in range(0, wanted, size)]

    def split(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = torch.split(vector, sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def errors(self, parameters: dict[str, torch.Tensor], places: Sequence[int]) -> torch.Tensor:
        """Return (rows, outputs) squared errors."""
        return (self.network(parameters, self.inputs[list(places)]) - self.targets[list(places)]) ** 2

    def alphas(self, places: Sequence[int]) -> torch.Tensor:
        weights = self.row_weights[list(places)]
        return weights / weights.sum()

    # --- as raters.influence.losses.ExampleLosses --------------------------------------------------------------

    def batches(self, step: RecordedStep, most: int | None = None) -> Iterator[tuple[slice, Any]]:
        alphas, size = self.alphas(step.examples), most or self.rows_at_once
        for begin in range(0, len(step.examples), size):
            place = slice(begin, begin + size)
            yield place, (step.examples[place], alphas[place])

    def shares(self, parameters: torch.Tensor, batch: Any) -> torch.Tensor:
        places, alphas = batch
        return self.errors(self.split(parameters), places) * alphas[:, None]

    # --- the run ------------------------------------------------------------------------------------------------

    def train(self, folder: Path, state_every: int | None = None) -> Trajectory:
        """Train with torch's optimizer, record, and return the run."""
        setting = self.setting
        every = state_every or max(1, math.isqrt(setting.steps))
        writer = TrajectoryWriter(folder, self.header(every))
        parameters = [torch.nn.Parameter(tensor.clone()) for tensor in self.start.values()]
        groups = [
            {"params": [parameter], "weight_decay": decay}
            for parameter, decay in zip(parameters, self.decays, strict=True)
        ]
        optimizer = torch.optim.AdamW(groups, lr=setting.lr, betas=BETAS, eps=EPS)
        writer.state(0, AdamWState.fresh(flat(parameters)))
        for number, places in enumerate(self.order(), start=1):
            for group in optimizer.param_groups:
                group["lr"] = setting.rate(number)
            optimizer.zero_grad()
            alphas, size = self.alphas(places), setting.micro_batch or len(places)
            for begin in range(0, len(places), size):
                named = dict(zip(self.shapes, parameters, strict=True))
                errors = self.errors(named, places[begin : begin + size]).sum(1)
                (errors * alphas[begin : begin + size]).sum().backward()
            norm = torch.linalg.vector_norm(flat([p.grad for p in parameters]))
            if setting.max_norm is not None:
                norm = torch.nn.utils.clip_grad_norm_(parameters, setting.max_norm)
            settings = AdamWStep(number, setting.rate(number), *BETAS, EPS, setting.max_norm, float(norm))
            writer.step(RecordedStep(settings, places, alphas.tolist()), flat([p.grad for p in parameters]))
            optimizer.step()
            if writer.is_due(number) or number == setting.steps:
                states = [optimizer.state[p] for p in parameters]
                moments = [flat([s[name] for s in states]) for name in ("exp_avg", "exp_avg_sq")]
                writer.state(number, AdamWState(flat(parameters), *moments))
        writer.close()
        return Trajectory(folder)

    def trained(self, weights: torch.Tensor) -> torch.Tensor:
        """Return (P,) what training comes to, as a differentiable function of weights (examples,) of their terms.

        Written after the definitions, without the code under test: the update as one expression of its history.
        """
        setting, decay = self.setting, torch.cat([
            torch.full((math.prod(shape),), value, dtype=torch.float64)
            for shape, value in zip(self.shapes.values(), self.decays, strict=True)
        ])  # fmt: skip
        parameters = flat(list(self.start.values())).requires_grad_()
        gradients: list[torch.Tensor] = []
        for number, places in enumerate(self.order(), start=1):
            errors = self.errors(self.split(parameters), places).sum(1)
            loss = (errors * self.alphas(places) * weights[list(places)]).sum()
            (gradient,) = torch.autograd.grad(loss, parameters, create_graph=True)
            if setting.max_norm is not None:
                norm = gradient.norm()
                if norm + 1e-6 > setting.max_norm:
                    gradient = gradient * setting.max_norm / (norm + 1e-6)
            gradients.append(gradient)
            first = sum(BETAS[0] ** (number - s) * (1 - BETAS[0]) * g for s, g in enumerate(gradients, start=1))
            second = sum(BETAS[1] ** (number - s) * (1 - BETAS[1]) * g**2 for s, g in enumerate(gradients, start=1))
            seen = second > 0
            root = torch.where(seen, torch.where(seen, second, 1.0).sqrt(), 0.0) / (1 - BETAS[1] ** number) ** 0.5
            step = torch.where(seen, first / (1 - BETAS[0] ** number) / (root + EPS), 0.0)
            rate = setting.rate(number)
            parameters = parameters - rate * decay * parameters - rate * step
        return parameters


@dataclass
class HeldOut:
    """Queries: mean squared errors on groups of other data of the same problem."""

    problem: Problem
    inputs: torch.Tensor
    targets: torch.Tensor
    groups: int = 3

    def __len__(self) -> int:
        return self.groups

    def values(self, parameters: torch.Tensor) -> torch.Tensor:
        """Return (Q,)."""
        errors = (self.problem.network(self.problem.split(parameters), self.inputs) - self.targets) ** 2
        return torch.stack([part.mean() for part in errors.sum(1).tensor_split(self.groups)])

    def gradients(self, parameters: torch.Tensor) -> torch.Tensor:
        point = parameters.detach().requires_grad_()
        values = self.values(point)
        return torch.stack([torch.autograd.grad(value, point, retain_graph=True)[0] for value in values])


def flat(tensors: Sequence[Any]) -> torch.Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def network_problem(setting: Setting, examples: int = 24, width: int = 6, hidden: int = 7) -> tuple[Problem, HeldOut]:
    """Return a network of one hidden layer."""
    shapes = {"w1": (hidden, width), "b1": (hidden,), "w2": (2, hidden), "b2": (2,)}

    def network(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ p["w1"].T + p["b1"]) @ p["w2"].T + p["b2"]

    return _problem(shapes, network, setting, examples, width)


def lora_problem(setting: Setting, examples: int = 24, width: int = 6, hidden: int = 7) -> tuple[Problem, HeldOut]:
    """Return a frozen layer under an adapter whose B is 0 at the start, so that A has no gradient in the first step."""
    shapes = {"a": (2, width), "b": (hidden, 2)}
    chance = torch.Generator().manual_seed(9)
    base = torch.randn(hidden, width, generator=chance, dtype=torch.float64) / 3
    head = torch.randn(2, hidden, generator=chance, dtype=torch.float64) / 3

    def network(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ (base + 2 * p["b"] @ p["a"]).T) @ head.T

    problem, held_out = _problem(shapes, network, setting, examples, width)
    problem.start["b"].zero_()
    return problem, held_out


def _problem(
    shapes: dict[str, tuple[int, ...]], network: Any, setting: Setting, examples: int, width: int
) -> tuple[Problem, HeldOut]:
    chance = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance, dtype=torch.float64)

    teacher = normal(2, width)

    def data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = normal(count, width)
        return inputs, torch.tanh(inputs @ teacher.T) + 0.3 * normal(count, 2)

    start = {name: normal(*shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    problem = Problem(*data(examples), shapes, network, start, setting)
    return problem, HeldOut(problem, *data(30))
