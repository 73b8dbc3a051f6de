"""Whether influence finds the traces that harm: against leaving out, on corrupted traces, and by training without them.

    python -m tests.evidence.influence --corpora ../shared/data

It runs the stages as a user would, keeps every run under --out, goes on where it was stopped, and writes
data/results/influence.md. The generator is `embedded`, the base is `student`; neither is a language model. Scores are
of the loss on the dev split; test labels are looked at once, to say what came of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from raters.influence.checkpoint_scores import Less, TracIn
from raters.influence.dev_queries import DevQueries, QueryName, dev_queries, read_dev_draws
from raters.influence.harm import unexpected_of
from raters.influence.online import select_online
from raters.influence.retraining import Weights, left_out, retrain, without
from raters.influence.trajectory import RecordedStep
from raters.influence.tuned_runs import TunedRun, write_adapter
from raters.influence.unrolling import AdamWInfluence, SGDUnrolling
from raters.journal import to_line, write_atomically
from raters.model_selection import DevSplit
from raters.rater_files import adapter_sha256, read_rater
from raters.trace_runs import TraceRun
from raters.training_data import Encoder
from tests.evidence.arms import figure_of, once, shown, stage, table
from tests.influence_problems import Setting, network_problem

TASKS = {"ukpconvarg1": "more_convincing", "realsumm": "present", "argquality_novice": "clarity"}
SEEDS = range(5)
ITEMS, K = 160, 32
STEPS, BATCH, LR = 40, 8, 2e-3
DEV_ITEMS, TEST_ITEMS = 100, 200
CORRUPTED, REMOVED = 0.2, 0.1
LEFT_OUT, LEFT_OUT_SEEDS = 64, range(3)
ONLINE_TASKS, ONLINE_HORIZONS, ONLINE_LRS, ONLINE_SEEDS = (
    ("ukpconvarg1", "realsumm"),
    (1, 4, 16),
    (2e-3, 5e-3),
    range(5),
)
PROXY_LRS, PROXY_STEPS = (1e-3, 3e-3, 1e-2, 3e-2), (32, 128, 512)
QUERIES: tuple[QueryName, ...] = ("draws", "label")
Floats = NDArray[np.float64]


@dataclass
class Recorded:
    """A recorded run of the student, opened.

    Attributes:
        corpus: Folder.
        dimension: What is rated.
        seed: Of the split, and of all else.
        folder: Of the run of finetune_rater.
    """

    corpus: Path
    dimension: str
    seed: int
    folder: Path

    @cached_property
    def tuned(self) -> TunedRun:
        """The run."""
        return TunedRun.open(self.folder, self.folder / "adapter")

    def queries(self, name: QueryName, folds: int = 1) -> DevQueries:
        """Return losses on dev."""
        asked = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))["options"]
        run = TraceRun.read(Path(asked["traces"]), str(self.corpus))
        encoder = Encoder(self.tuned.loaded, run, self.spec.question, asked["target"], None)
        draws = read_dev_draws(self.folder, len(self.tuned.trajectory))
        pad = self.tuned.loaded.generation.pad_token_id
        return dev_queries(name, self.tuned.losses, encoder, run, DevSplit.of(run, DEV_ITEMS), draws, folds, pad)

    @cached_property
    def spec(self) -> Any:
        """The rater."""
        return read_rater(self.folder / "rater.yaml")

    def scores(self, attributor: Any, name: QueryName = "label") -> Floats:
        """Return (examples,) scores."""
        attributor.cache(self.tuned.trajectory)
        found: Floats = attributor.attribute(self.queries(name)).total[:, 0].double().numpy()
        return found

    def test_figure(self, parameters: torch.Tensor) -> float:
        """Return the figure on test items of the student under some parameters."""
        with TemporaryDirectory() as place:
            folder = Path(place)
            write_adapter(self.tuned, parameters, folder / "adapter")
            sha256 = adapter_sha256(folder / "adapter")
            replace(self.spec, adapter="adapter", adapter_sha256=sha256).write(folder / "rater.yaml")
            bounds = ("--split-seed", self.seed, "--limit", TEST_ITEMS, "--draws", 8)
            pace = ("--batch-size", 128, "--concurrency", 256)
            rated = ("--rater", folder / "rater.yaml", "--corpus", self.corpus, *bounds, *pace)
            stage("rate_items", *rated, "--out", folder / "r")
            return figure_of(self.corpus, self.dimension, folder / "r" / "ratings.jsonl")


def recorded(corpus: Path, dimension: str, seed: int, out: Path, traces: Path, lr: float = LR) -> Recorded:
    """Return a recorded run on some traces, prompted with the original guideline."""
    schedule = ("--steps", STEPS, "--batch", BATCH, "--lr", lr, "--eval-steps", STEPS, "--patience", 10 * STEPS)
    rating = ("--dev-limit", DEV_ITEMS, "--dev-draws", 2, "--rating-batch", 128)
    given = ("--traces", traces, "--base", "student", "--prompt-guideline", "original", "--seed", seed)
    once(
        out.with_name(f"{out.name}.json"),  # not with_suffix: names may end in a rate, 0.002
        lambda: stage("finetune_rater", *given, *schedule, *rating, "--record-trajectory", "--out", out) or {},
    )
    return Recorded(corpus, dimension, seed, out)


def clearer_traces(corpus: Path, dimension: str, seed: int, out: Path) -> Path:
    """Return traces inferred under a guideline that was refined on the same items."""
    question = ("--corpus", corpus, "--dimension", dimension, "--limit", ITEMS, "--strategy", "fixed", "--k", K)
    seeds = ("--seed", seed, "--split-seed", seed)
    first, refined, under = out / "inferred", out / "refined", out / "under"
    once(out / "inferred.json", lambda: stage("infer_traces", *question, *seeds, "--out", first) or {})
    gated = ("--patience", 30, "--rounds", 3, "--seed", seed, "--no-test")
    once(out / "refined.json", lambda: stage("refine_guideline", "--traces", first, *gated, "--out", refined) or {})
    guideline = ("--guideline", refined / "guideline.md")
    once(out / "under.json", lambda: stage("infer_traces", *question, *seeds, *guideline, "--out", under) or {})
    return under


def corrupted_copy(run: Path, out: Path, seed: int, *, same_label: bool = False) -> tuple[Path, list[int]]:
    """Write a copy of a run in which a fifth of the traces have the reasoning of another item of another label.

    Labels and ratings stay. Of the same label (and order of a pair) the reasoning still comes to the rating behind it.
    Returns its folder and the places of the corrupted traces.
    """

    def fits(other: Mapping[str, Any], one: Mapping[str, Any]) -> bool:
        if not same_label:
            return bool(other["label"] != one["label"])
        alike = all(other[name] == one[name] for name in ("label", "swapped"))
        return alike and bool(other["item_id"] != one["item_id"])

    records = [json.loads(line) for line in (run / "traces.jsonl").read_text(encoding="utf-8").splitlines()]
    chance = np.random.default_rng(seed)
    chosen = np.sort(chance.choice(len(records), round(CORRUPTED * len(records)), replace=False)).tolist()
    marker = out / "corrupted.json"
    if not marker.exists():
        shutil.copytree(run, out, dirs_exist_ok=True)
        changed = list(records)
        for place in chosen:
            others = [other for other in records if fits(other, records[place])]
            other = others[int(chance.integers(len(others)))]
            rating = records[place]["completion"][-1]["content"].rpartition("<rating>")[2]
            before = other["completion"][-1]["content"].rpartition("<rating>")[0]
            message = {**records[place]["completion"][-1], "content": f"{before}<rating>{rating}"}
            changed[place] = {**records[place], "trace": other["trace"], "completion": [message]}
        write_atomically(out / "traces.jsonl", map(to_line, changed))
        write_atomically(marker, json.dumps(chosen) + "\n")
    return out, chosen


def seen_places(case: Recorded) -> NDArray[np.int64]:
    """Return the places of the traces that a run has seen, in order."""
    return np.array(sorted({place for step in case.tuned.trajectory.steps for place in step.examples}))


@torch.no_grad()
def own_shares(case: Recorded, places: NDArray[np.int64]) -> Floats:
    """Return (places, 2) the mean loss a token of each trace before training, as it is made up of the two parts."""
    trajectory, losses = case.tuned.trajectory, case.tuned.losses
    start, settings = trajectory.stored_state(0).parameters, trajectory.steps[0].settings
    alone = (RecordedStep(settings, [place], [1.0]) for place in places.tolist())
    found = torch.cat([losses.shares(start, batch) for step in alone for _, batch in losses.batches(step)])
    return found.double().numpy()


def own_losses(case: Recorded, places: NDArray[np.int64]) -> Floats:
    """Return the mean loss a token of each trace before training."""
    found: Floats = own_shares(case, places).sum(1)
    return found


def pointed_out(honest: Recorded, case: Recorded, corrupted: Sequence[int]) -> dict[str, float]:
    """Return shares of traces that `unexpected_of` points out: among corrupted ones, among honest ones beside them,
    and among the same traces where none is corrupted.
    """
    found = unexpected_of(own_losses(case, np.arange(case.tuned.trajectory.num_examples)).tolist())
    before = unexpected_of(own_losses(honest, np.arange(honest.tuned.trajectory.num_examples)).tolist())
    is_corrupted = np.isin(np.arange(len(found)), corrupted)
    return {
        "corrupted ones": float(found[is_corrupted].mean()),
        "honest ones beside them": float(found[~is_corrupted].mean()),
        "where none is corrupted": float(before.mean()),
    }


def finding(case: Recorded, corrupted: Sequence[int]) -> dict[str, float]:
    """Return the share of corrupted traces among as many that each way ranks as most harmful."""
    tuned, known = case.tuned, seen_places(case)
    wanted = np.isin(known, corrupted)
    losses = tuned.losses
    ways: dict[str, Floats] = {}
    for query in QUERIES:
        ways[f"AdamW-influence, {query}"] = case.scores(AdamWInfluence(losses, finite=True), query)[known]
        ways[f"SGD unrolled, {query}"] = case.scores(SGDUnrolling(losses), query)[known]
        ways[f"TracIn, {query}"] = case.scores(TracIn(losses), query)[known]
        ways[f"LESS, {query}"] = case.scores(Less(losses), query)[known]
    ways["longest first"] = -np.array([float(tuned.learned[place]) for place in known])
    ways["highest own loss before training"] = -own_losses(case, known)
    count = int(wanted.sum())
    return {
        **{name: float(wanted[np.argsort(scores, kind="stable")[:count]].mean()) for name, scores in ways.items()},
        "by chance": float(wanted.mean()),
    }


def told_by_own_loss(case: Recorded, corrupted: Sequence[int], kind: str) -> dict[str, float]:
    """Return the share of corrupted traces among as many of highest own loss: of all tokens, and of either part's."""
    known = seen_places(case)
    wanted, shares = np.isin(known, corrupted), own_shares(case, known)
    ways = {"all tokens": shares.sum(1), "reasoning alone": shares[:, 0], "verdict alone": shares[:, 1]}
    count = int(wanted.sum())
    return {
        f"{kind}: {name}": float(wanted[np.argsort(-losses, kind="stable")[:count]].mean())
        for name, losses in ways.items()
    }


def removing(case: Recorded, seed: int) -> dict[str, float]:
    """Return test figures after training without a tenth of the traces."""
    tuned, seen = case.tuned, seen_places(case)
    count = round(REMOVED * len(seen))
    scores = case.scores(AdamWInfluence(tuned.losses, finite=True, renormalize=True), "draws")[seen]
    order = seen[np.argsort(scores, kind="stable")]
    away = {
        "all traces": [],
        "without the most harmful tenth": order[:count].tolist(),
        "without the most helpful tenth": order[-count:].tolist(),
        "without a random tenth": np.random.default_rng(seed).choice(seen, count, replace=False).tolist(),
    }
    by_label = case.scores(AdamWInfluence(tuned.losses, finite=True, renormalize=True), "label")[seen]
    away["without the most harmful tenth, label"] = seen[np.argsort(by_label, kind="stable")[:count]].tolist()
    away["without the most helpful tenth, label"] = seen[np.argsort(by_label, kind="stable")[-count:]].tolist()
    found = {
        name: case.test_figure(
            retrain(tuned.trajectory, tuned.losses, without(set(places), renormalize=True)).parameters
        )
        for name, places in away.items()
    }
    return {"before training": case.test_figure(tuned.trajectory.stored_state(0).parameters), **found}


def cleaning(case: Recorded, corrupted: Sequence[int], seed: int) -> dict[str, float]:
    """Return test figures after training on corrupted traces without as many of them as are corrupted."""
    tuned, seen = case.tuned, seen_places(case)
    count = int(np.isin(seen, corrupted).sum())
    influence = case.scores(AdamWInfluence(tuned.losses, finite=True, renormalize=True), "draws")[seen]
    away = {
        "all, corrupted ones too": np.array([], dtype=np.int64),
        "without the corrupted (were they known)": seen[np.isin(seen, corrupted)],
        "without the highest own losses": seen[np.argsort(-own_losses(case, seen), kind="stable")[:count]],
        "without the most harmful": seen[np.argsort(influence, kind="stable")[:count]],
        "without the worst by LESS": seen[np.argsort(case.scores(Less(tuned.losses), "draws")[seen])[:count]],
        # Of a stream of its own: with the seed alone it would draw the very traces that were corrupted.
        "without random ones": np.random.default_rng([seed, 1]).choice(seen, count, replace=False),
    }
    return {
        name: case.test_figure(
            retrain(tuned.trajectory, tuned.losses, without(set(places.tolist()), renormalize=True)).parameters
        )
        for name, places in away.items()
    }


def leaving_out(case: Recorded, seed: int) -> dict[str, float]:
    """Return Spearman correlations of scores with leaving out one trace at a time."""
    tuned = case.tuned
    losses, queries = tuned.losses, case.queries("label")
    chosen = np.random.default_rng(seed).choice(seen_places(case), LEFT_OUT, replace=False).tolist()
    full = float(queries.values(tuned.trajectory.last_state().parameters)[0])
    truth = np.array([
        float(queries.values(left_out(tuned.trajectory, losses, place).parameters)[0]) - full for place in chosen
    ])  # fmt: skip
    ways = {
        "AdamW-influence": AdamWInfluence(losses),
        "finite push": AdamWInfluence(losses, finite=True),
        "empirical Fisher": AdamWInfluence(losses, fisher=True),
        "SGD unrolled": SGDUnrolling(losses),
        "TracIn": TracIn(losses),
        "LESS": Less(losses),
    }
    return {name: float(spearmanr(case.scores(way)[chosen], truth).statistic) for name, way in ways.items()}


def online(case: Recorded, horizon: int) -> dict[str, float]:
    """Return the test figure of training with selection, and the share of rows that learned."""
    found = select_online(case.tuned.trajectory, case.tuned.losses, case.queries("draws", folds=5), horizon)
    return {"tau": case.test_figure(found.state.parameters), "kept": float(found.kept.sum() / found.seen.sum())}


@dataclass
class Opposite:
    """Queries asked the other way round: what helps is taken to harm.

    Attributes:
        queries: Losses on dev.
    """

    queries: DevQueries

    def __len__(self) -> int:
        """Folds."""
        return len(self.queries)

    def gradient(self, parameters: torch.Tensor, number: int) -> torch.Tensor:
        """Return (P,) minus the gradient of a fold."""
        return -self.queries.gradient(parameters, number)


def opposite(case: Recorded, horizon: int) -> dict[str, float]:
    """Return what `online` does where it learns from what harms: the control that has to fail."""
    queries: Any = Opposite(case.queries("draws", folds=5))
    found = select_online(case.tuned.trajectory, case.tuned.losses, queries, horizon)
    return {"tau": case.test_figure(found.state.parameters), "kept": float(found.kept.sum() / found.seen.sum())}


def some_rows(order: Callable[[RecordedStep], Floats], share: float) -> Weights:
    """Return weights that leave each step a share of its rows, those that are first in some order (rows,)."""

    def weights(step: RecordedStep) -> torch.Tensor:
        count = max(round(share * len(step.examples)), 1)
        stays = torch.zeros(len(step.examples), dtype=torch.float64)
        stays[np.argsort(order(step), kind="stable")[:count].copy()] = 1
        return stays / (stays @ torch.tensor(step.weights, dtype=torch.float64))

    return weights


def at_random(seed: int) -> Callable[[RecordedStep], Floats]:
    """Return an order of rows, anew at every step as selection's is: one of traces would leave many never learned."""
    return lambda step: np.random.default_rng([seed, 1, step.settings.number]).random(len(step.examples))


def fewer(case: Recorded, share: float, seed: int | None) -> dict[str, float]:
    """Return the test figure of training on a share of each step's rows, at random or (no seed) of least own loss."""
    tuned = case.tuned
    if seed is None:
        losses = own_losses(case, np.arange(tuned.trajectory.num_examples))
        weights = some_rows(lambda step: losses[step.examples], share)
    else:
        weights = some_rows(at_random(seed), share)
    state = retrain(tuned.trajectory, tuned.losses, weights)
    return {"tau": case.test_figure(state.parameters), "kept": share}


def proxy_case(lr: float, steps: int) -> dict[str, float]:
    """Return how proxy and true error go together on a network of 482 numbers, 64 of 512 examples left out in turn."""
    problem, queries = network_problem(Setting(steps=steps, batch=32, lr=lr), examples=512, width=12, hidden=32)
    problem.rows_at_once, queries.groups = 64, 1
    with TemporaryDirectory() as place:
        trajectory = problem.train(Path(place) / "t")
        first = trajectory.steps[0].examples  # all are seen before the sixteenth step
        chosen = sorted({*first[:8], *range(0, 512, 9)})[:LEFT_OUT]
        full = queries.values(trajectory.last_state().parameters)
        truth = torch.stack([queries.values(left_out(trajectory, problem, one).parameters) - full for one in chosen])
        found = {}
        for name, way in (
            ("adamw", AdamWInfluence(problem)),
            ("finite", AdamWInfluence(problem, finite=True, error_proxy=True)),
            ("sgd", SGDUnrolling(problem)),
        ):
            way.cache(trajectory)
            scores = way.attribute(queries)
            found[name] = float(spearmanr(scores.total[chosen, 0], truth[:, 0]).statistic)
            if name == "adamw":
                errors = (scores.total[chosen] - truth).abs()
            if scores.error_proxy is not None:
                sizes = scores.total[chosen].abs()
                found["proxy over score"] = float((scores.error_proxy[chosen] / sizes).median())
                found["true error over score"] = float((errors / truth.abs()).median())
                found["proxy and true error"] = float(spearmanr(scores.error_proxy[chosen, 0], errors[:, 0]).statistic)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything that is not there yet and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, required=True, help="folder of the three corpora")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/influence"), help="where runs are kept")
    parser.add_argument("--page", type=Path, default=Path("data/results/influence.md"), help="page to write")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS), help="run these alone")
    parser.add_argument(
        "--parts",
        nargs="*",
        default=["proxy", "traces", "unexpected", "own", "cleaning", "left-out", "online"],
        help="run these alone",
    )
    options = parser.parse_args(arguments)
    for path, made in _work(options):
        found = once(path, made)
        told = "  ".join(f"{name} {figure:.3f}" for name, figure in found.items() if name != "seconds")
        print(f"{path.relative_to(options.out)}: {told}  ({found['seconds']:.0f} s)", flush=True)
    write_atomically(options.page, page(options.out))


def _work(options: argparse.Namespace) -> Sequence[tuple[Path, Callable[[], Mapping[str, Any]]]]:
    """Return what there is to do: files of figures, and how each is made."""
    out: Path = options.out
    work: list[tuple[Path, Callable[[], Mapping[str, Any]]]] = []
    if "proxy" in options.parts:
        work += [
            (out / "proxy" / f"{lr}-{steps}.json", partial(proxy_case, lr, steps))
            for lr in PROXY_LRS
            for steps in PROXY_STEPS
        ]
    for seed in options.seeds:
        for task, dimension in TASKS.items():
            place, corpus = out / task / f"seed-{seed}", options.corpora / task

            def clean(
                corpus: Path = corpus, dimension: str = dimension, seed: int = seed, place: Path = place
            ) -> Recorded:
                return recorded(
                    corpus, dimension, seed, place / "tuned", clearer_traces(corpus, dimension, seed, place)
                )

            def corrupted(
                corpus: Path = corpus, dimension: str = dimension, seed: int = seed, place: Path = place
            ) -> dict[str, float]:
                traces = clearer_traces(corpus, dimension, seed, place)
                copy, chosen = corrupted_copy(traces, place / "corrupted", seed)
                return finding(recorded(corpus, dimension, seed, place / "tuned-corrupted", copy), chosen)

            def cleaned(
                corpus: Path = corpus, dimension: str = dimension, seed: int = seed, place: Path = place
            ) -> dict[str, float]:
                traces = clearer_traces(corpus, dimension, seed, place)
                copy, chosen = corrupted_copy(traces, place / "corrupted", seed)
                return cleaning(recorded(corpus, dimension, seed, place / "tuned-corrupted", copy), chosen, seed)

            def unexpected(
                corpus: Path = corpus, dimension: str = dimension, seed: int = seed, place: Path = place
            ) -> dict[str, float]:
                traces = clearer_traces(corpus, dimension, seed, place)
                copy, chosen = corrupted_copy(traces, place / "corrupted", seed)
                honest = recorded(corpus, dimension, seed, place / "tuned", traces)
                return pointed_out(honest, recorded(corpus, dimension, seed, place / "tuned-corrupted", copy), chosen)

            if "unexpected" in options.parts:
                work.append((place / "unexpected.json", unexpected))

            def told(
                corpus: Path = corpus, dimension: str = dimension, seed: int = seed, place: Path = place
            ) -> dict[str, float]:
                traces = clearer_traces(corpus, dimension, seed, place)
                found: dict[str, float] = {}
                for kind, name in (("of another label", "corrupted"), ("of the same label", "corrupted-alike")):
                    copy, chosen = corrupted_copy(traces, place / name, seed, same_label=name != "corrupted")
                    case = recorded(corpus, dimension, seed, place / f"tuned-{name}", copy)
                    found |= told_by_own_loss(case, chosen, kind)
                return found

            if "own" in options.parts:
                work.append((place / "own.json", told))
            if "cleaning" in options.parts:
                work.append((place / "cleaning.json", cleaned))
            if "traces" in options.parts:
                work.append((place / "finding.json", corrupted))
                work.append((place / "removing.json", lambda clean=clean, seed=seed: removing(clean(), seed)))  # type: ignore[misc]
            if "left-out" in options.parts and seed in LEFT_OUT_SEEDS:
                work.append((place / "left-out.json", lambda clean=clean, seed=seed: leaving_out(clean(), seed)))  # type: ignore[misc]
            if "online" in options.parts and task in ONLINE_TASKS and seed in ONLINE_SEEDS:
                for lr in ONLINE_LRS:
                    work += _online_work(place, corpus, dimension, seed, lr)
    return work


def _online_work(
    place: Path, corpus: Path, dimension: str, seed: int, lr: float
) -> Sequence[tuple[Path, Callable[[], Mapping[str, Any]]]]:
    def case() -> Recorded:
        traces = clearer_traces(corpus, dimension, seed, place)
        copy, _ = corrupted_copy(traces, place / "corrupted", seed)
        return recorded(corpus, dimension, seed, place / f"tuned-corrupted-{lr}", copy, lr)

    def plain() -> dict[str, float]:
        one = case()
        return {"tau": one.test_figure(one.tuned.trajectory.last_state().parameters), "kept": 1.0}

    def share() -> float:
        return float(json.loads((place / f"online-{lr}-{ONLINE_HORIZONS[0]}.json").read_text(encoding="utf-8"))["kept"])

    return [
        (place / f"online-{lr}-0.json", plain),
        *(
            (place / f"online-{lr}-{horizon}.json", lambda horizon=horizon: online(case(), horizon))
            for horizon in ONLINE_HORIZONS
        ),
        (place / f"online-{lr}-random.json", lambda: fewer(case(), share(), seed)),
        (place / f"online-{lr}-own.json", lambda: fewer(case(), share(), None)),
        (place / f"online-{lr}-opposite.json", lambda: opposite(case(), ONLINE_HORIZONS[0])),
    ]


def _by_seed(out: Path, pattern: str) -> dict[str, dict[str, float]]:
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(pattern))}


def _read(out: Path, pattern: str) -> list[dict[str, float]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(pattern))]


def _online_tables(out: Path) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Return a head, and rows of figures and of their paired differences from training on all traces."""
    cases = [(task, lr) for task in ONLINE_TASKS for lr in ONLINE_LRS]
    figures, differences = [], []
    for way, what in _ONLINE.items():
        by_case = [_by_seed(out, f"{task}/*/online-{lr}-{way}.json") for task, lr in cases]
        plain = [_by_seed(out, f"{task}/*/online-{lr}-0.json") for task, lr in cases]
        pairs = [
            [one["tau"] - whole[seed]["tau"] for seed, one in some.items()]
            for some, whole in zip(by_case, plain, strict=True)
        ]
        taus = [[one["tau"] for one in some.values()] for some in by_case]
        figures.append([what, *(shown(some) if some else "-" for some in taus)])
        differences.append([what, *(shown(some, "+") if some else "-" for some in pairs)])
    return ["learned from", *(f"{task}, {lr:g}" for task, lr in cases)], figures, differences[1:]


def page(out: Path) -> str:
    """Return the page of results, of all that is done."""

    def seeds(name: str) -> str:
        return ", ".join(f"{task} {len(_read(out, f'{task}/*/{name}.json'))}" for task in TASKS)

    def rows_of(name: str) -> list[list[str]]:
        by_task = {task: _read(out, f"{task}/*/{name}.json") for task in TASKS}
        names = [key for key in next((found[0] for found in by_task.values() if found), {}) if key != "seconds"]
        return [
            [key, *(shown([one[key] for one in found]) if found else "-" for found in by_task.values())]
            for key in names
        ]

    def differences(name: str, beside: str) -> list[list[str]]:
        by_task = {task: _read(out, f"{task}/*/{name}.json") for task in TASKS}
        names = [key for key in next((found[0] for found in by_task.values() if found), {}) if key != "seconds"]
        return [
            [key, *(shown([one[key] - one[beside] for one in some], "+") if some else "-" for some in by_task.values())]
            for key in names
            if key not in (beside, "before training")
        ]

    proxy = []
    for lr in PROXY_LRS:
        for steps in PROXY_STEPS:
            found = _read(out, f"proxy/{lr}-{steps}.json")
            if found:
                one = found[0]
                proxy.append([f"{lr:g}", str(steps), *(f"{one[name]:.2f}" for name in _PROXY)])
    online_head, by_way, beside = _online_tables(out)
    shares = [
        one["kept"]
        for task in ONLINE_TASKS
        for lr in ONLINE_LRS
        for one in _read(out, f"{task}/*/online-{lr}-{ONLINE_HORIZONS[0]}.json")
    ]
    kept = f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %" if shares else "a part"
    return f"""# Which traces help and which harm

Made by `python -m tests.evidence.influence --corpora ../shared/data`. Base: `student`, 0.85 M weights; generator of
traces: `embedded`, the rule reader, under a guideline refined on the same items; neither is a language model. {ITEMS}
labelled items, {STEPS} AdamW steps of {BATCH} traces at learning rate {LR:g}, LoRA of rank 16 (155,648 numbers).
Figures are means over split seeds ± the half width of the 95 % interval over seeds (Student's t); a figure without ±
is of one seed. Test items are those of the seed's own split, which neither traces nor dev have seen.

## Scores against leaving out

Spearman correlation with the change of the dev loss (cross-entropy of the label) when one trace is left out and the
student trained again; {LEFT_OUT} traces in turn, {len(LEFT_OUT_SEEDS)} seeds at most.

{table(["scores", *TASKS], rows_of("left-out"))}

Seeds done: {seeds("left-out")}.

## Finding corrupted traces

{100 * CORRUPTED:.0f} % of the traces have the reasoning of another item with another label; labels and ratings are
kept. Share of corrupted traces among as many that each way ranks as most harmful:

{table(["ranked by", *TASKS], rows_of("finding"))}

Seeds done: {seeds("finding")}.

What select_traces calls unexpected, without knowing how many are corrupted: share of traces called so.

{table(["among", *TASKS], rows_of("unexpected"))}

Seeds done: {seeds("unexpected")}.

What a trace's own loss before training goes by: where the reasoning of another label stands before the rating, the
two contradict each other within the trace, which is no longer so with another item's reasoning of the same label.

{table(["exchanged for reasoning, and loss of", *TASKS], rows_of("own"))}

Seeds done: {seeds("own")}.

Training again without as many as are corrupted, those left averaging for them, as in the scores by which they are
chosen (τ-b on test items):

{table(["trained on", *TASKS], rows_of("cleaning"))}

Seeds done: {seeds("cleaning")}.

Less training on all of them, paired over seeds:

{table(["trained on", *TASKS], differences("cleaning", "all, corrupted ones too"))}

## Training without them

Of the traces as they are, none corrupted. Kendall τ-b on at most {TEST_ITEMS} test items, 8 draws each, of training
again in the same order without a tenth of the traces, those left averaging for it. Ranked by the query `draws`, in the
last two rows by `label`.

{table(["trained on", *TASKS], rows_of("removing"))}

Seeds done: {seeds("removing")}.

Less training without a random tenth, paired over seeds:

{table(["trained on", *TASKS], differences("removing", "without a random tenth"))}

## Selecting while training

On corrupted traces, {len(ONLINE_SEEDS)} seeds at most. τ-b on test items by how many steps are looked ahead, K.
Selection with K = {ONLINE_HORIZONS[0]} learns from {kept} of the rows; `random` and `least own loss`
from as many of each step's. The opposite learns from what K = {ONLINE_HORIZONS[0]} shows to harm and has to come out
below. Selection sees the labels of {DEV_ITEMS} dev items, and for them the draws of the rater that all traces made;
training on all traces sees neither.

{table(online_head, by_way)}

Seeds done: {seeds(f"online-{ONLINE_LRS[0]}-opposite")}.

Less training on all of them, paired over seeds:

{table(online_head, beside)}

## When scores can be believed

A network of 482 numbers, 512 examples, batches of 32; {LEFT_OUT} left out in turn. Spearman correlations with leaving
out, and medians of error over score: the proxy is known without training again, the true error is not.

{table(["learning rate", "steps", *_PROXY], proxy)}
"""


_ONLINE = {
    "0": "all",
    **{str(horizon): f"what K = {horizon} does not show to harm" for horizon in ONLINE_HORIZONS},
    "random": "random",
    "own": "least own loss",
    "opposite": "the opposite",
}
_PROXY = ("adamw", "finite", "sgd", "proxy over score", "true error over score", "proxy and true error")

if __name__ == "__main__":
    main()
