"""AdamW-influence and TracIn beside other people's code, on the small network of tests/influence_problems.

    python -m pip install --no-deps --target DIR bergson==2.5.1 dattri==0.3.0 torchopt==0.7.3 optree==0.20.0 \
        graphviz==0.21 simple-parsing==0.1.9 docstring-parser==0.18.0 natsort==8.4.0 jaxtyping==0.3.11 \
        ml_dtypes==0.6.0 petname==2.9
    PYTHONPATH=DIR python -m tests.evidence.influence_oracle

Bergson's MAGIC (github.com/EleutherAI/bergson) differentiates a run of torchopt's AdamW through all of its steps by
reverse-mode autograd, replayed from its own checkpoints: it shares no code with ours, the optimizer included. Its
derivative by an example's weight is minus our score. dattri (github.com/TRAIS-Lab/dattri) has TracIn. Prints, a line a
setting, the largest difference as a share of the largest score.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from raters.influence.checkpoint_scores import TracIn
from raters.influence.trajectory import Trajectory
from raters.influence.unrolling import AdamWInfluence
from tests.influence_problems import BETAS, EPS, HeldOut, Problem, Setting, flat, network_problem

SETTINGS = {
    "plain": Setting(),
    "clipped": Setting(max_norm=0.3),
    "clipped now and then": Setting(max_norm=3.0),
    "decay": Setting(decay=0.1),
    "all of it, 40 steps": Setting(steps=40, max_norm=0.5, decay=0.1, warmup=3),
}


class OneDecay(Problem):
    """With the same decay for all parameters, as torchopt has it."""

    @property
    def decays(self) -> list[float]:
        return [self.setting.decay] * len(self.shapes)


class Network(torch.nn.Module):
    """The problem's network as a module that returns a batch's loss, its rows weighted."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self._problem = problem
        for name, tensor in problem.start.items():
            self.register_parameter(name, torch.nn.Parameter(tensor.clone()))

    def forward(self, places: torch.Tensor, example_weight: torch.Tensor, **unused: Any) -> torch.Tensor:
        parameters = {name: getattr(self, name) for name in self._problem.shapes}
        errors = self._problem.errors(parameters, places.tolist()).sum(1)
        return (errors * self._problem.alphas(places.tolist()) * example_weight).sum()


class Batches:
    """The problem's batches as Bergson's DataStream gives them."""

    device = torch.device("cpu")

    def __init__(self, problem: Problem) -> None:
        self._order = problem.order()
        self.weights = torch.nn.Parameter(torch.ones(len(problem.inputs)))
        self.requires_grad = True

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        places = torch.tensor(self._order[number])
        return {"input_ids": torch.zeros(len(places), 2), "places": places, "example_weight": self.weights[places]}


def by_magic(problem: Problem, queries: HeldOut, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (P,) the parameters that MAGIC's training comes to, and (examples, Q) its scores, in our sign."""
    import torchopt
    from bergson.magic.trainer import BackwardState, Trainer

    setting, scores = problem.setting, []
    for query in range(len(queries)):
        optimizer = torchopt.adamw(
            lambda step: setting.rate(int(step) + 1), betas=BETAS, eps=EPS, weight_decay=setting.decay
        )
        trainer, start = Trainer.initialize(Network(problem), optimizer)
        batches, place = Batches(problem), str(folder / str(query))
        state = trainer.train(start, batches, save_dir=place, max_grad_norm=setting.max_norm)
        ends = flat([state.params[name] for name in problem.shapes])
        by_parameters = problem.split(queries.gradients(ends)[query])
        by_moments = [torch.zeros_like(one) for one in state.differentiable_tensors()[len(state.params) :]]
        begun = BackwardState({name: by_parameters[name].clone() for name in state.params}, by_moments,
                              torch.zeros(len(problem.inputs)))  # fmt: skip
        done = trainer.backward(place, batches, begun, state, max_grad_norm=setting.max_norm)
        scores.append(-done.weight_grads.detach())
    return ends, torch.stack(scores, 1)


def by_dattri(problem: Problem, queries: HeldOut, trajectory: Trajectory) -> torch.Tensor:
    """Return (examples, Q) dattri's TracIn at the stored states."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    def loss(parameters: dict[str, torch.Tensor], data: Any) -> torch.Tensor:
        inputs, targets = data
        return ((problem.network(parameters, inputs) - targets) ** 2).sum()

    stored = trajectory.stored()
    checkpoints = [problem.split(trajectory.stored_state(number).parameters) for number in stored[1:]]
    rates = [
        sum(step.settings.lr for step in trajectory.steps[begin:end]) / (end - begin) for begin, end in pairwise(stored)
    ]
    task = AttributionTask(loss_func=loss, model=Network(problem), checkpoints=checkpoints)
    attributor = TracInAttributor(task, weight_list=torch.tensor(rates), normalized_grad=False)
    attributor.projector_kwargs = None  # all of each gradient
    learned, asked = (
        DataLoader(TensorDataset(one.inputs, one.targets), batch_size=8, shuffle=False) for one in (problem, queries)
    )
    by_query = attributor.attribute(learned, asked)
    return torch.stack([part.mean(1) for part in by_query.tensor_split(len(queries), dim=1)], 1)


def compared() -> dict[str, float]:
    """Return the largest difference by setting, as a share of the largest score."""
    torch.set_default_dtype(torch.float64)  # both count on it
    found = {}
    for name, setting in SETTINGS.items():
        problem, queries = network_problem(setting)
        problem.__class__ = OneDecay
        with TemporaryDirectory() as place:
            trajectory = problem.train(Path(place) / "ours")
            ends, wanted = by_magic(problem, queries, Path(place))
            torch.testing.assert_close(ends, trajectory.last_state().parameters, rtol=1e-10, atol=1e-12)
            influence, tracin = AdamWInfluence(problem), TracIn(problem)
            for attributor, other, what in (
                (influence, wanted, "Bergson's MAGIC"),
                (tracin, by_dattri(problem, queries, trajectory), "dattri's TracIn"),
            ):
                attributor.cache(trajectory)  # type: ignore[attr-defined]
                ours = attributor.attribute(queries).total  # type: ignore[attr-defined]
                found[f"{what}, {name}"] = float((ours - other).abs().max() / other.abs().max())
    return found


if __name__ == "__main__":
    figures = compared()
    for name, figure in figures.items():
        print(f"{name}: {figure:.1e}", file=sys.stderr)
    print(json.dumps(figures))
