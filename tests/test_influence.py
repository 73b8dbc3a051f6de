"""AdamW-influence on small problems, held to autograd through the whole run and to real removal."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from raters.influence.adamw import AdamWState, AdamWStep, Adjoint, advance, pull_back, removal_effects
from raters.influence.checkpoint_scores import CheckpointScores, Less, TracIn
from raters.influence.kept import Kept
from raters.influence.losses import products, row_gradients, step_gradient
from raters.influence.online import select_online
from raters.influence.retraining import left_out, retrain, without
from raters.influence.trajectory import Moment, RecordedStep, Trajectory, TrajectoryWriter
from raters.influence.unrolling import AdamWInfluence, SGDUnrolling
from raters.records import DataError, ModelError
from tests.influence_problems import BETAS, EPS, HeldOut, Problem, Setting, flat, lora_problem, network_problem

PROBLEMS = {"network": network_problem, "lora": lora_problem}
SETTINGS = {
    "plain": Setting(),
    "clipped": Setting(max_norm=0.3),
    "clipped now and then": Setting(max_norm=3.0),
    "decay": Setting(decay=0.1),
    "warm-up from zero": Setting(warmup=4),
    "accumulation": Setting(micro_batch=3),
    "all of it": Setting(max_norm=0.5, decay=0.1, warmup=3, micro_batch=3),
    "a batch larger than the data": Setting(steps=5, batch=30, max_norm=0.5),
}


def true_scores(problem: Problem, queries: HeldOut) -> torch.Tensor:
    """Return (examples, Q) minus the derivative of each query by each example's weight, by autograd through the run."""
    weights = torch.ones(len(problem.inputs), dtype=torch.float64, requires_grad=True)
    values = queries.values(problem.trained(weights))
    return -torch.stack([torch.autograd.grad(value, weights, retain_graph=True)[0] for value in values], 1)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", PROBLEMS)
def test_equals_autograd_through_the_whole_run(kind: str, setting: str, tmp_path: Path) -> None:
    problem, queries = PROBLEMS[kind](SETTINGS[setting])
    trajectory = problem.train(tmp_path / "t")
    wanted = true_scores(problem, queries)
    ends = problem.trained(torch.ones(len(problem.inputs), dtype=torch.float64)).detach()
    torch.testing.assert_close(ends, trajectory.last_state().parameters, rtol=1e-12, atol=1e-14)
    influence = AdamWInfluence(problem)
    influence.cache(trajectory)
    found = influence.attribute(queries)
    assert found.parts.shape == (24, 3, 2)
    assert float((found.total - wanted).abs().max() / wanted.abs().max()) < 1e-10
    mixture = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    mixed = influence.attribute(queries, mixture[None])
    torch.testing.assert_close(mixed.total[:, 0], found.total @ mixture, rtol=1e-10, atol=1e-16)


def test_a_clipped_setting_does_clip_and_another_now_and_then(tmp_path: Path) -> None:
    factors = {}
    for name in ("plain", "clipped", "clipped now and then"):
        problem, _ = network_problem(SETTINGS[name])
        factors[name] = [step.settings.clip_factor for step in problem.train(tmp_path / name).steps]
    assert set(factors["plain"]) == {1.0}
    assert max(factors["clipped"]) < 1
    assert 0 < sum(factor == 1 for factor in factors["clipped now and then"]) < 12


@pytest.mark.parametrize("batch", [8, 30])
def test_removal_that_renormalizes_is_the_derivative_of_that(batch: int, tmp_path: Path) -> None:
    """Held to finite differences of training in which one example's share shrinks and the others' grow.

    Of a batch larger than the data, examples stand twice in a step.
    """
    problem, queries = network_problem(Setting(steps=6, batch=batch, max_norm=0.5))
    trajectory = problem.train(tmp_path / "t")
    influence = AdamWInfluence(problem, renormalize=True)
    influence.cache(trajectory)
    found = influence.attribute(queries).total

    def ends(example: int, share: float) -> torch.Tensor:
        def weights(step: RecordedStep) -> torch.Tensor:
            alphas = torch.tensor(step.weights, dtype=torch.float64)
            gone = torch.tensor([place == example for place in step.examples]) * alphas
            # The way from all weights to those without the example, in a straight line.
            target = torch.tensor([place != example for place in step.examples]) / (1 - gone.sum())
            return 1 + share * (target - 1)

        return queries.values(retrain(trajectory, problem, weights).parameters)

    for example in range(0, 24, 4):
        slope = (ends(example, 1e-5) - ends(example, -1e-5)) / 2e-5
        torch.testing.assert_close(found[example], slope, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("finite", [False, True])
def test_a_step_without_others_drops_its_example(finite: bool, tmp_path: Path) -> None:
    """There is nothing to average over: both kinds of removal are the same there, as they are in training again."""
    problem, queries = network_problem(Setting(steps=20, batch=1, max_norm=0.5), examples=9)
    trajectory, found = problem.train(tmp_path / "t"), []
    for renormalize in (True, False):
        influence = AdamWInfluence(problem, renormalize=renormalize, finite=finite, error_proxy=finite)
        influence.cache(trajectory)
        found.append(influence.attribute(queries).total)
    assert torch.isfinite(found[0]).all()
    assert torch.equal(*found)


@pytest.mark.parametrize("repeats", [2, 3])
def test_removing_one_of_the_same_examples_is_the_exact_last_step(repeats: int, tmp_path: Path) -> None:
    """By the last step alone a finite removal is no approximation but for the query: held to taking the step again."""
    problem, queries = network_problem(Setting(steps=1, batch=6, max_norm=0.5, lr=1e-3))
    order = [[*problem.order()[0][: 6 - repeats], *[problem.order()[0][5]] * repeats]]
    problem.order = lambda: order  # type: ignore[method-assign]
    trajectory = problem.train(tmp_path / "t")
    full = trajectory.last_state().parameters
    gradient = queries.gradients(full)
    for renormalize in (True, False):
        influence = AdamWInfluence(problem, renormalize=renormalize, finite=True)
        influence.cache(trajectory)
        found = influence.attribute(queries).total
        for place in set(order[0]):
            moved = left_out(trajectory, problem, place, renormalize=renormalize).parameters - full
            torch.testing.assert_close(found[place], gradient @ moved, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_horizon_of_the_whole_run_is_the_run_and_of_one_step_is_that_step(kind: str, tmp_path: Path) -> None:
    problem, queries = PROBLEMS[kind](Setting(max_norm=0.5, warmup=2))
    trajectory = problem.train(tmp_path / "t")

    def scores(**options: Any) -> torch.Tensor:
        influence = AdamWInfluence(problem, **options)
        influence.cache(trajectory)
        return influence.attribute(queries).total

    class AtTheEnd:
        """The query's gradient at the end of the run, wherever it is asked for."""

        def __len__(self) -> int:
            return len(queries)

        def gradients(self, parameters: torch.Tensor) -> torch.Tensor:
            return queries.gradients(trajectory.last_state().parameters)

    whole = AdamWInfluence(problem, horizon=50)
    whole.cache(trajectory)
    torch.testing.assert_close(whole.attribute(AtTheEnd()).total, scores(), rtol=1e-9, atol=1e-15)
    wanted = torch.zeros(24, 3, dtype=torch.float64)
    for moment in trajectory.moments(1, 12):
        point = AdamWState(
            *(part.clone() for part in (moment.before.parameters, moment.before.first, moment.before.second))
        )
        own = row_gradients(problem, moment.before.parameters, moment.step)
        for row, place in enumerate(moment.step.examples):
            # By central differences of one step of the optimizer, clipping included.
            ends = []
            for share in (1e-6, -1e-6):
                full = moment.clipped / moment.step.settings.clip_factor - share * own[row]
                factor = min(1.0, 0.5 / (float(full.norm()) + 1e-6))
                ends.append(advance(point, factor * full, trajectory.header.decay(), moment.step.settings).parameters)
            wanted[place] += queries.gradients(moment.after.parameters) @ (ends[0] - ends[1]) / 2e-6
    if kind == "network":  # with LoRA the first steps of A are of rounding alone, which differences do not survive
        torch.testing.assert_close(scores(horizon=1), wanted, rtol=1e-4, atol=1e-8)


@pytest.mark.slow
def test_scores_of_removal_rank_as_leaving_out_does(tmp_path: Path) -> None:
    """The prototype's setting: learning rate 1e-3, 128 steps of 32 of 512 examples; 64 of them are left out in turn."""
    problem, queries = network_problem(Setting(steps=128, batch=32, lr=1e-3), examples=512, width=12, hidden=32)
    trajectory = problem.train(tmp_path / "t")
    chosen = list(range(0, 512, 8))
    full = queries.values(trajectory.last_state().parameters)
    truth = torch.stack([queries.values(left_out(trajectory, problem, place).parameters) - full for place in chosen])

    def rank(scores: torch.Tensor) -> float:
        return min(float(spearmanr(scores[chosen, q], truth[:, q]).statistic) for q in range(3))

    found = {}
    for name, attributor in {
        "adamw": AdamWInfluence(problem),
        "finite": AdamWInfluence(problem, finite=True, error_proxy=True),
        "fisher": AdamWInfluence(problem, fisher=True),
        "sgd": SGDUnrolling(problem),
        "tracin": TracIn(problem),
        "less": Less(problem),
    }.items():
        attributor.cache(trajectory)
        found[name] = attributor.attribute(queries)
    ranks = {name: rank(scores.total) for name, scores in found.items()}
    print("\nSpearman with leaving out, the least of three queries:", {name: round(r, 3) for name, r in ranks.items()})
    assert ranks["adamw"] >= 0.95
    assert ranks["finite"] >= 0.95
    assert ranks["adamw"] >= 1.1 * max(ranks["sgd"], ranks["tracin"], ranks["less"])
    proxy = found["finite"].error_proxy
    assert proxy is not None
    errors = (found["adamw"].total[chosen] - truth).abs()
    assert float(spearmanr(proxy[chosen, 0], errors[:, 0]).statistic) > 0.5


def test_products_are_those_of_the_hessian_and_of_the_fisher_matrix(tmp_path: Path) -> None:
    problem, _ = network_problem(Setting(steps=3))
    step = problem.train(tmp_path / "t").steps[1]
    point, vectors = flat(list(problem.start.values())), torch.randn(4, 65, dtype=torch.float64)

    def loss(parameters: torch.Tensor) -> torch.Tensor:
        errors = problem.errors(problem.split(parameters), step.examples).sum(1)
        return (errors * problem.alphas(step.examples)).sum()

    hessian = torch.autograd.functional.hessian(loss, point)
    found = products(problem, point, step, vectors)
    torch.testing.assert_close(found.curvature, vectors @ hessian, rtol=1e-9, atol=1e-12)
    own = row_gradients(problem, point, step)
    torch.testing.assert_close(found.rows.sum(-1), vectors @ own.T, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(own.sum(0), step_gradient(problem, point, step)[1], rtol=1e-9, atol=1e-12)
    fisher = own.T @ torch.diag(1 / torch.tensor(step.weights, dtype=torch.float64)) @ own
    by_fisher = products(problem, point, step, vectors, fisher=True)
    torch.testing.assert_close(by_fisher.curvature, vectors @ fisher, rtol=1e-9, atol=1e-12)
    problem.vectors_at_once = 1
    alone = products(problem, point, step, vectors)
    torch.testing.assert_close(alone.curvature, found.curvature, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(alone.rows, found.rows, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("max_norm", [None, 0.7])
def test_the_adjoint_of_a_step_is_that_of_autograd(max_norm: float | None) -> None:
    generator = torch.Generator().manual_seed(2)

    def normal() -> torch.Tensor:
        return torch.randn(9, generator=generator, dtype=torch.float64)

    state, gradient, decay = AdamWState(normal(), normal(), normal() ** 2), normal(), normal().abs()
    step = AdamWStep(5, 0.01, *BETAS, EPS, max_norm, float(gradient.norm()))
    adjoint = Adjoint(*(torch.stack([normal(), normal()]) for _ in range(3)))

    def ends(theta: torch.Tensor, m: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
        factor = 1.0 if max_norm is None else max_norm / (g.norm() + 1e-6)
        after = advance(AdamWState(theta, m, v), factor * g, decay, step)
        return after.parameters, after.first, after.second

    given = (state.parameters, state.first, state.second, gradient)
    found, pushed = pull_back(adjoint, AdamWState(*ends(*given)), step.clip_factor * gradient, decay, step)
    for q in range(2):
        cotangents = (adjoint.parameters[q], adjoint.first[q], adjoint.second[q])
        wanted = torch.autograd.functional.vjp(ends, given, cotangents)[1]
        for one, other in zip((found.parameters, found.first, found.second, pushed), wanted, strict=True):
            torch.testing.assert_close(one[q], other, rtol=1e-10, atol=1e-13)
    same = removal_effects(adjoint, state, AdamWState(*ends(*given)), gradient[None], decay, step)
    assert float(same.abs().max()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_is_that_of_torch_to_its_bits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    parameter = torch.nn.Parameter(torch.randn(1000, generator=generator, dtype=dtype))
    optimizer = torch.optim.AdamW([parameter], lr=3e-3, betas=BETAS, eps=EPS, weight_decay=0.01)
    state = AdamWState.fresh(parameter.detach().clone())
    for number in range(1, 20):
        gradient = torch.randn(1000, generator=generator, dtype=dtype)
        parameter.grad = gradient.clone()
        optimizer.step()
        settings = AdamWStep(number, 3e-3, *BETAS, EPS, None, 0.0)
        state = advance(state, gradient, torch.tensor(0.01, dtype=dtype), settings)
    assert torch.equal(state.parameters, parameter.detach())


# --- the recording ----------------------------------------------------------------------------------------------


def test_every_state_is_had_again(tmp_path: Path) -> None:
    problem, _ = lora_problem(Setting(max_norm=0.5, decay=0.1))
    sparse, dense = problem.train(tmp_path / "3"), problem.train(tmp_path / "1", state_every=1)
    assert sparse.stored() == [0, 3, 6, 9, 12]
    assert dense.stored() == list(range(13))
    backwards = [m.step.settings.number for segment in sparse.segments_backwards() for m in reversed(segment)]
    assert backwards == list(range(12, 0, -1))
    for moment in sparse.moments(1, 12):
        number = moment.step.settings.number
        for stored, replayed in ((number - 1, moment.before), (number, moment.after)):
            for name in ("parameters", "first", "second"):
                assert torch.equal(getattr(dense.stored_state(stored), name), getattr(replayed, name))
    assert sparse.check_replay() == 0
    assert (
        sparse.header.stored_bytes(12)
        == sum(path.stat().st_size for path in [tmp_path / "3" / "gradients.bin"]) + 5 * 3 * 8 * sparse.header.width
    )


def test_a_run_up_to_a_step_is_the_run_that_ended_there(tmp_path: Path) -> None:
    problem, queries = network_problem(Setting(max_norm=0.5))
    cut = problem.train(tmp_path / "long").up_to(7)
    problem.setting = Setting(steps=7, max_norm=0.5)
    short = problem.train(tmp_path / "short", state_every=3)
    assert len(cut) == 7
    assert cut.stored() == [0, 3, 6]
    assert torch.equal(cut.last_state().parameters, short.last_state().parameters)
    scores = []
    for trajectory in (cut, short):
        influence = AdamWInfluence(problem)
        influence.cache(trajectory)
        scores.append(influence.attribute(queries).total)
    torch.testing.assert_close(*scores, rtol=1e-12, atol=1e-16)


def test_what_was_recorded_is_checked(tmp_path: Path) -> None:
    problem, _ = network_problem(Setting())
    trajectory = problem.train(tmp_path / "t")
    gradients = tmp_path / "t" / "gradients.bin"
    content = bytearray(gradients.read_bytes())
    content[trajectory.header.width * 8 * 4 + 7] ^= 0x10  # an exponent of the fifth step
    gradients.write_bytes(bytes(content))
    with pytest.raises(ModelError, match="replaying the recorded steps leads to other weights"):
        Trajectory(tmp_path / "t").check_replay()
    gradients.write_bytes(bytes(content[:-1]))
    with pytest.raises(DataError, match="does not come to its end"):
        Trajectory(tmp_path / "t")
    with pytest.raises(DataError, match=r"has no trajectory\.json"):
        Trajectory(tmp_path)
    (tmp_path / "t" / "trajectory.json").write_text("{}")
    with pytest.raises(DataError, match="is no recorded run"):
        Trajectory(tmp_path / "t")


def test_a_recording_goes_on_behind_a_checkpoint(tmp_path: Path) -> None:
    problem, _ = network_problem(Setting())
    whole = problem.train(tmp_path / "whole")
    folder = tmp_path / "cut"
    problem.train(folder)
    writer = TrajectoryWriter(folder, whole.header, begun=7)  # what came after step 7 is written again
    for number in range(8, 13):
        writer.step(whole.steps[number - 1], whole.clipped(number))
        if writer.is_due(number):
            writer.state(number, whole.stored_state(number))
    writer.close()
    for name in ("steps.jsonl", "gradients.bin", "trajectory.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert Trajectory(folder).check_replay() == 0
    with pytest.raises(DataError, match="holds 12 steps of this run and training goes on from step 20"):
        TrajectoryWriter(folder, whole.header, begun=20)
    with pytest.raises(DataError, match="give --new"):
        TrajectoryWriter(folder, replace(whole.header, beta1=0.5), begun=7)


@pytest.mark.parametrize("horizon", [None, 4])
def test_one_segment_of_the_run_is_in_memory(
    horizon: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, queries = network_problem(Setting())
    replay, held = Trajectory.moments, weakref.WeakSet[Moment]()

    def counted(self: Trajectory, first: int, last: int) -> list[Moment]:
        assert not held
        found = replay(self, first, last)
        held.update(found)
        return found

    influence = AdamWInfluence(problem, horizon=horizon)
    influence.cache(problem.train(tmp_path / "t"))
    monkeypatch.setattr(Trajectory, "moments", counted)
    monkeypatch.setattr(Moment, "__hash__", object.__hash__)  # its own is that of tensors and lists
    influence.attribute(queries)
    assert len(held) == 0


class Stopped:
    """Counts what is done, and ends it like a kill after so much."""

    def __init__(self, after: int) -> None:
        self.after, self.done = after, 0

    def __call__(self, number: int = 1) -> None:
        self.done += number
        if self.done >= self.after:
            raise KeyboardInterrupt


NEVER = 10**9


@pytest.mark.parametrize(
    ("horizon", "stopped", "left"),
    # The run has 12 steps, kept every third; with a horizon of 2 each is swept with the next, the last one alone.
    [(None, 8, 6), (2, 8, 17)],
)
def test_a_sweep_that_was_stopped_goes_on(horizon: int | None, stopped: int, left: int, tmp_path: Path) -> None:
    problem, queries = network_problem(Setting(max_norm=0.5))
    trajectory, keep = problem.train(tmp_path / "t"), tmp_path / "sweep"

    def influence(**options: Any) -> AdamWInfluence:
        made = AdamWInfluence(problem, finite=True, error_proxy=True, horizon=horizon, **options)
        made.cache(trajectory)
        return made

    wanted = influence().attribute(queries)
    with pytest.raises(KeyboardInterrupt):
        influence(keep=keep, on_step=Stopped(stopped)).attribute(queries)
    again = Stopped(NEVER)
    kept = Kept.read(keep)
    assert kept is not None
    found = influence(keep=keep, on_step=again).attribute(queries)
    assert again.done == left
    assert kept.done + left == (12 if horizon is None else 23)  # what a bar begins with, and all of it
    torch.testing.assert_close(found.parts, wanted.parts, rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(found.error_proxy, wanted.error_proxy, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("kind", [TracIn, Less])
def test_scores_at_checkpoints_that_were_stopped_go_on(kind: type[CheckpointScores], tmp_path: Path) -> None:
    problem, queries = network_problem(Setting())
    trajectory, keep = problem.train(tmp_path / "t"), tmp_path / "sweep"

    def scores(**options: Any) -> torch.Tensor:
        made = kind(problem, **options)
        made.cache(trajectory)
        return made.attribute(queries).total

    with pytest.raises(KeyboardInterrupt):
        scores(keep=keep, on_examples=Stopped(60))  # 24 examples at each of four states
    again = Stopped(NEVER)
    torch.testing.assert_close(scores(keep=keep, on_examples=again), scores(), rtol=1e-12, atol=1e-16)
    assert again.done == 48
    assert scores(keep=keep, on_examples=Stopped(1)).shape == (24, 3)  # all is there


def test_selection_that_was_stopped_goes_on(tmp_path: Path) -> None:
    problem, held_out = network_problem(Setting(max_norm=0.5))
    trajectory, keep = problem.train(tmp_path / "t"), tmp_path / "sweep"

    class Queries(HeldOut):
        def gradient(self, parameters: torch.Tensor, fold: int) -> torch.Tensor:
            return self.gradients(parameters)[fold]

    queries: Any = Queries(problem, held_out.inputs, held_out.targets, held_out.groups)
    wanted = select_online(trajectory, problem, queries, 2)
    with pytest.raises(KeyboardInterrupt):
        select_online(trajectory, problem, queries, 2, Stopped(8), keep)
    again = Stopped(NEVER)
    found = select_online(trajectory, problem, queries, 2, again, keep)
    assert again.done == 6
    assert 0 < int(found.kept.sum()) < int(found.seen.sum()) == 12 * 8
    for name in ("seen", "kept", "scores"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert torch.equal(found.state.parameters, wanted.state.parameters)


def test_what_was_kept_and_is_damaged_is_refused(tmp_path: Path) -> None:
    Kept(3, 7, {"parts": torch.ones(2)}).write(tmp_path / "sweep")
    assert (Kept.read(None), Kept.read(tmp_path / "no")) == (None, None)
    (tmp_path / "sweep").write_bytes((tmp_path / "sweep").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"sweep: cannot be gone on from .*; remove it"):
        Kept.read(tmp_path / "sweep")


def test_retraining_with_all_examples_is_the_run(tmp_path: Path) -> None:
    problem, _ = lora_problem(Setting(max_norm=0.5, warmup=3))
    trajectory = problem.train(tmp_path / "t")
    again = retrain(trajectory, problem, without(set()))
    torch.testing.assert_close(again.parameters, trajectory.last_state().parameters, rtol=1e-12, atol=1e-14)
    late = next(place for place in range(24) if all(place not in step.examples for step in trajectory.steps[:2]))
    slow = retrain(trajectory, problem, without({late}))
    torch.testing.assert_close(left_out(trajectory, problem, late).parameters, slow.parameters, rtol=1e-12, atol=1e-14)


# --- what it is held against --------------------------------------------------------------------------------------


def test_tracin_and_less_by_their_definitions(tmp_path: Path) -> None:
    problem, queries = network_problem(Setting(steps=9, warmup=3))
    trajectory = problem.train(tmp_path / "t")
    tracin, less = torch.zeros(24, 3, dtype=torch.float64), torch.zeros(24, 3, dtype=torch.float64)
    for number in (3, 6, 9):
        rate = sum(problem.setting.rate(step) for step in range(number - 2, number + 1)) / 3
        state = trajectory.stored_state(number)
        against = queries.gradients(state.parameters)
        for place in range(24):
            point = state.parameters.clone().requires_grad_()
            (own,) = torch.autograd.grad(problem.errors(problem.split(point), [place]).sum(), point)
            first = (BETAS[0] * state.first + (1 - BETAS[0]) * own) / (1 - BETAS[0] ** number)
            second = (BETAS[1] * state.second + (1 - BETAS[1]) * own**2) / (1 - BETAS[1] ** number)
            step = first / (second.sqrt() + EPS)
            tracin[place] += rate * against @ own
            less[place] += rate * against @ step / against.norm(dim=1) / step.norm()
    for attributor, wanted in ((TracIn(problem), tracin), (Less(problem), less)):
        attributor.cache(trajectory)
        torch.testing.assert_close(attributor.attribute(queries).total, wanted, rtol=1e-9, atol=1e-14)


def test_tracin_of_a_run_that_is_cut_before_its_first_stored_state(tmp_path: Path) -> None:
    problem, queries = network_problem(Setting())
    cut = problem.train(tmp_path / "t").up_to(2)
    rate = (problem.setting.rate(1) + problem.setting.rate(2)) / 2
    parameters = problem.train(tmp_path / "dense", state_every=1).stored_state(2).parameters
    alone = [RecordedStep(cut.steps[0].settings, [place], [1.0]) for place in range(24)]
    own = torch.cat([row_gradients(problem, parameters, step) for step in alone])
    tracin = TracIn(problem)
    tracin.cache(cut)
    wanted = rate * own @ queries.gradients(parameters).T
    torch.testing.assert_close(tracin.attribute(queries).total, wanted, rtol=1e-9, atol=1e-14)


def test_sgd_unrolling_is_exact_for_sgd(tmp_path: Path) -> None:
    """Of a run by SGD, whose recorded states are then SGD's."""
    problem, queries = network_problem(Setting(steps=9, lr=0.05, decay=0.0))
    weights = torch.ones(24, dtype=torch.float64, requires_grad=True)
    parameters = flat(list(problem.start.values())).requires_grad_()
    writer = TrajectoryWriter(tmp_path / "t", problem.header(1))
    writer.state(0, AdamWState.fresh(parameters.detach()))
    for number, places in enumerate(problem.order(), start=1):
        errors = problem.errors(problem.split(parameters), places).sum(1)
        loss = (errors * problem.alphas(places) * weights[places]).sum()
        (gradient,) = torch.autograd.grad(loss, parameters, create_graph=True)
        parameters = parameters - 0.05 * gradient
        settings = AdamWStep(number, 0.05, *BETAS, EPS, None, float(gradient.detach().norm()))
        writer.step(RecordedStep(settings, places, problem.alphas(places).tolist()), gradient.detach())
        writer.state(number, AdamWState.fresh(parameters.detach()))
    writer.close()
    values = queries.values(parameters)
    wanted = -torch.stack([torch.autograd.grad(value, weights, retain_graph=True)[0] for value in values], 1)

    class OfSGD(Trajectory):
        def moments(self, first: int, last: int) -> list[Any]:
            found = super().moments(first, last)
            return [
                replace(moment, before=self.stored_state(number - 1), after=self.stored_state(number))
                for number, moment in enumerate(found, start=first)
            ]

    unrolling = SGDUnrolling(problem)
    unrolling.cache(OfSGD(tmp_path / "t"))
    torch.testing.assert_close(unrolling.attribute(queries).total, wanted, rtol=1e-9, atol=1e-14)
