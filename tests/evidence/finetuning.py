"""What fine-tuning on traces does to the student, on real labels and on those of a hidden policy, beside labels alone.

    python -m tests.evidence.finetuning --corpora ../shared/data

It runs the stages as a user would, keeps every run under --out, goes on where it was stopped, and writes
data/results/finetuning.md. The generator is `embedded`, the base is `student`; neither is a language model. Every arm
has the same items, steps and choice of a checkpoint by dev; nothing was chosen by looking at test labels.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from raters.journal import to_line, write_atomically
from raters.rater_files import read_rater
from tests.evidence.arms import (
    TRUE_GUIDELINE,
    figure_of,
    figures_read_otherwise,
    once,
    ridge_figure,
    shown,
    shuffled_copy,
    simulated_corpus,
    stage,
    table,
)

TASKS = {"ukpconvarg1": "more_convincing", "realsumm": "present", "argquality_novice": "clarity"}
SIMULATED = "hidden policies"
SIMULATED_ITEMS_OF = "realsumm"
SEEDS = range(5)
SWEEP, SWEEP_SEEDS = (20, 60, 150), range(3)
ITEMS, K, REDRAWN_K = 300, 32, 8
TEST_ITEMS, TEST_DRAWS = 200, 8
TRAINING = {"--steps": 60, "--batch": 32, "--lr": 2e-3, "--eval-steps": 20, "--dev-limit": 100, "--dev-draws": 2}
RATES, RATES_TASKS = (5e-4, 5e-3), ("ukpconvarg1", "realsumm")
FAST = ("--batch-size", 128, "--concurrency", 256)
ARMS = {
    "base": "the student as it is",
    "labels": "fine-tuned on labels alone",
    "traces": "on traces inferred under the original guideline",
    "traces, round 2": "on traces inferred from the rater of the round before, afresh from the base",
    "traces, round 3": "likewise once more",
    "traces, then preferences": "the same traces, then DPO on accepted over rejected draws",
    "distilled": "on traces inferred under the refined guideline, prompted with the original one",
    "frozen, refined": "not tuned: the student under the refined guideline",
    "swapped": "control: as distilled, traces exchanged between items of the same label",
    "shuffled": "control: as distilled, all of it from labels that were exchanged between items",
}
ORACLE = "oracle"


class Case:
    """One task under one seed: its corpus, its runs, and what they come to.

    Args:
        corpus: Folder.
        dimension: What is rated.
        seed: Of split, draws and training.
        out: Where runs go; what is there already is not run again.
        items: Labelled items that are learned from.
    """

    def __init__(self, corpus: Path, dimension: str, seed: int, out: Path, items: int = ITEMS) -> None:
        """Note it; nothing runs yet."""
        self.corpus, self.dimension, self.seed, self.out, self.items = corpus, dimension, seed, out, items
        self.found: dict[str, float] = {}

    def infer(self, name: str, *arguments: object, corpus: Path | None = None, k: int = K) -> Path:
        """Return the folder of a run of infer_traces."""
        run = self.out / name
        shared = ("--dimension", self.dimension, "--limit", self.items, "--strategy", "fixed", "--k", k)
        seeds = ("--seed", self.seed, "--split-seed", self.seed)
        where = corpus or self.corpus
        self._once(name, "infer_traces", "--corpus", where, *shared, *seeds, *arguments, "--out", run)
        return run

    def refine(self, name: str, traces: Path) -> Path:
        """Return the guideline that three gated rounds come to."""
        run = self.out / name
        gated = ("--patience", 30, "--rounds", 3, "--seed", self.seed, "--no-test")
        self._once(name, "refine_guideline", "--traces", traces, *gated, "--out", run)
        return run / "guideline.md"

    def tune(self, name: str, traces: Path, *arguments: object, **settings: object) -> Path:
        """Return the rater.yaml of the student fine-tuned on traces, after rating the test split with it."""
        run = self.out / name
        training = TRAINING | {f"--{option}": value for option, value in settings.items()}
        options = [part for pair in training.items() for part in pair]
        base = ("--base", "student", "--seed", self.seed, "--rating-batch", 128)
        self._once(name, "finetune_rater", "--traces", traces, *base, *options, *arguments, "--out", run)
        self.rate(name, "--rater", run / "rater.yaml")
        return run / "rater.yaml"

    def rate(self, name: str, *arguments: object) -> None:
        """Note the test figure of a rater."""
        run = self.out / f"{name}-test"
        bounds = ("--split-seed", self.seed, "--limit", TEST_ITEMS, "--draws", TEST_DRAWS, *FAST)
        self._once(run.name, "rate_items", "--corpus", self.corpus, *arguments, *bounds, "--out", run)
        self.found[name] = figure_of(self.corpus, self.dimension, run / "ratings.jsonl")

    def rate_base(self, name: str, *arguments: object) -> None:
        """Note the test figure of the untuned student."""
        self.rate(name, "--model", "student", "--dimension", self.dimension, *arguments)

    def _once(self, name: str, *arguments: object) -> None:
        once(self.out / f"{name}.json", lambda: stage(str(arguments[0]), *arguments[1:]) or {})


def every_arm(case: Case) -> dict[str, float]:
    """Return arm -> test figure."""
    case.rate_base("base")
    traces = case.infer("inferred")
    case.tune("labels", traces, "--target", "label")
    rater = case.tune("traces", traces)
    for number in (2, 3):
        again = case.infer(f"inferred, round {number}", "--model", rater, *FAST, k=REDRAWN_K)
        rater = case.tune(f"traces, round {number}", again)
    case.tune("traces, then preferences", traces, "--method", "sft+dpo", "--dpo-lr", 2e-4)
    guideline = case.refine("refined", traces)
    under = case.infer("inferred under refined", "--guideline", guideline)
    case.tune("distilled", under, "--prompt-guideline", "original")
    case.tune(
        "swapped", swapped_copy(under, case.out / "inferred, swapped", case.seed), "--prompt-guideline", "original"
    )
    frozen = case.out / "frozen.yaml"
    _frozen_rater(case.out / "distilled" / "rater.yaml", frozen, guideline)
    case.rate("frozen, refined", "--rater", frozen)
    copy = case.out / "shuffled-corpus"
    if not (copy / "annotations.jsonl").exists():
        shuffled_copy(case.corpus, copy, case.dimension, case.seed, case.seed)
    control = case.infer("inferred, shuffled", corpus=copy)
    claimed = case.refine("refined, shuffled", control)
    control = case.infer("inferred under refined, shuffled", "--guideline", claimed, corpus=copy)
    case.tune("shuffled", control, "--prompt-guideline", "original")
    case.found["ridge"] = once(
        case.out / "ridge.json", lambda: {"tau": ridge_figure(case.corpus, case.dimension, case.seed)}
    )["tau"]
    return case.found


def few_arms(case: Case) -> dict[str, float]:
    """Return arm -> test figure of what is compared at several numbers of labelled items."""
    traces = case.infer("inferred")
    case.tune("labels", traces, "--target", "label")
    case.tune("traces", traces)
    under = case.infer("inferred under refined", "--guideline", case.refine("refined", traces))
    case.tune("distilled", under, "--prompt-guideline", "original")
    return case.found


def rates_arms(case: Case) -> dict[str, float]:
    """Return arm -> test figure of the two arms that are compared most, at other learning rates."""
    traces, under = case.out / "inferred", case.out / "inferred under refined"
    for lr in RATES:
        case.tune(f"labels, {lr:g}", traces, "--target", "label", lr=lr)
        case.tune(f"distilled, {lr:g}", under, "--prompt-guideline", "original", lr=lr)
    return case.found


def readings(case: Case) -> dict[str, float]:
    """Return test figures of the ratings of three arms, read by one verdict an item and by expected quantities."""
    return {
        f"{arm}, {way}": figure
        for arm in ("labels", "distilled", "frozen, refined")
        for way, figure in figures_read_otherwise(
            case.corpus, case.dimension, case.out / f"{arm}-test" / "ratings.jsonl"
        ).items()
    }


def oracle_arms(case: Case, truth: Path) -> dict[str, float]:
    """Return arm -> test figure, with traces of an oracle who goes by the policy that labelled the items."""
    case.rate_base("base")
    traces = case.infer("inferred")
    case.tune("labels", traces, "--target", "label")
    case.tune("traces", traces)
    under = case.infer("inferred under refined", "--guideline", case.refine("refined", traces))
    case.tune("distilled", under, "--prompt-guideline", "original")
    oracle = case.infer("inferred by oracle", "--guideline", truth, k=2)
    case.tune(ORACLE, oracle, "--prompt-guideline", "original")
    case.found["ridge"] = once(
        case.out / "ridge.json", lambda: {"tau": ridge_figure(case.corpus, case.dimension, case.seed)}
    )["tau"]
    return case.found


def swapped_copy(run: Path, out: Path, seed: int) -> Path:
    """Write a copy of a run whose traces are exchanged between items of the same label; return its folder."""
    if (out / "traces.jsonl").exists():
        return out
    shutil.copytree(run, out, dirs_exist_ok=True)
    records = [json.loads(line) for line in (run / "traces.jsonl").read_text(encoding="utf-8").splitlines()]
    chance = np.random.default_rng(seed)
    kinds: dict[str, list[int]] = {}
    for place, record in enumerate(records):  # of a pair, only those that were shown in the same order
        kinds.setdefault(json.dumps([record["label"], record["swapped"]]), []).append(place)
    for places in kinds.values():
        # Each takes the next one's in a random circle, so that none keeps its own.
        circle = chance.permutation(places).tolist()
        taken = {place: records[circle[(at + 1) % len(circle)]] for at, place in enumerate(circle)}
        for place, other in taken.items():
            records[place] = {**records[place], "trace": other["trace"], "completion": other["completion"]}
    write_atomically(out / "traces.jsonl", map(to_line, records))
    return out


def _frozen_rater(tuned: Path, path: Path, guideline: Path) -> None:
    """Write the rater.yaml of the untuned student under another guideline, everything else as of a tuned one."""
    spec = read_rater(tuned)
    dimension = replace(spec.dimension, guideline=guideline.read_text(encoding="utf-8"))
    question = replace(spec.question, dimension=dimension)
    replace(spec, adapter=None, adapter_sha256=None, question=question).write(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything that is not there yet and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, required=True, help="folder of the three corpora")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/finetuning"), help="where runs are kept")
    parser.add_argument("--page", type=Path, default=Path("data/results/finetuning.md"), help="page to write")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS), help="run these alone")
    parser.add_argument(
        "--parts", nargs="*", default=["real", "oracle", "sweep", "rates", "readings"], help="run these alone"
    )
    options = parser.parse_args(arguments)
    out: Path = options.out
    runs: list[tuple[str, Path, Callable[[], dict[str, float]]]] = []
    for seed in options.seeds:
        if "real" in options.parts:
            for task, dimension in TASKS.items():
                case = Case(options.corpora / task, dimension, seed, out / task / f"seed-{seed}")
                runs.append((f"{task}, seed {seed}", case.out / "figures.json", partial(every_arm, case)))
        if "oracle" in options.parts:
            place = out / "policies" / f"policy-{seed}"
            runs.append(
                (f"{SIMULATED}, {seed}", place / "figures.json", partial(_simulated, options.corpora, seed, place))
            )
    if "sweep" in options.parts:
        for seed in sorted(set(options.seeds) & set(SWEEP_SEEDS)):
            for items in SWEEP:
                case = Case(
                    options.corpora / "realsumm",
                    TASKS["realsumm"],
                    seed,
                    out / f"sweep-{items}" / f"seed-{seed}",
                    items,
                )
                runs.append(
                    (f"realsumm, {items} items, seed {seed}", case.out / "figures.json", partial(few_arms, case))
                )
    for seed in options.seeds if "rates" in options.parts else ():
        for task in RATES_TASKS:
            case = Case(options.corpora / task, TASKS[task], seed, out / task / f"seed-{seed}")
            runs.append((f"{task}, learning rates, seed {seed}", case.out / "rates.json", partial(rates_arms, case)))
    for seed in options.seeds if "readings" in options.parts else ():
        for task, dimension in TASKS.items():
            case = Case(options.corpora / task, dimension, seed, out / task / f"seed-{seed}")
            runs.append((f"{task}, readings, seed {seed}", case.out / "readings.json", partial(readings, case)))
    for name, path, made in runs:
        found = once(path, made)
        told = "  ".join(f"{arm} {figure:.3f}" for arm, figure in found.items() if arm != "seconds")
        print(f"{name}: {told}  ({found['seconds']:.0f} s)", flush=True)
    write_atomically(options.page, page(out))
    print(options.page.read_text(encoding="utf-8"))


def _simulated(corpora: Path, number: int, out: Path) -> dict[str, float]:
    if not (out / TRUE_GUIDELINE).exists():
        simulated_corpus(corpora / SIMULATED_ITEMS_OF, number, out)
    return oracle_arms(Case(out / "corpus", "quality", number, out), out / TRUE_GUIDELINE)


def _figures(folder: Path, name: str = "figures") -> list[Mapping[str, float]]:
    """Return the figures of every seed that is done."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(f"*/{name}.json"))]


_RIDGE = "knows labels, reads no traces; on all test items"


def page(out: Path) -> str:
    """Return the page of results, of all that is done."""
    tasks = {task: _figures(out / task) for task in TASKS}
    policies = _figures(out / "policies")

    def cells(found: Sequence[Mapping[str, float]], arms: Sequence[str]) -> list[str]:
        return [shown([one[arm] for one in found]) if found else "-" for arm in arms]

    def against(found: Sequence[Mapping[str, float]], arm: str, other: str) -> str:
        return shown([one[arm] - one[other] for one in found], sign="+")

    arms = [*ARMS, "ridge"]
    rows = [[arm, *(cells(found, [arm])[0] for found in tasks.values()), ARMS.get(arm, _RIDGE)]
            for arm in arms]  # fmt: skip
    differences = [
        [f"{arm} − {other}", *(against(found, arm, other) if found else "-" for found in tasks.values())]
        for arm, other in (
            ("labels", "base"),
            ("traces", "base"),
            ("traces", "labels"),
            ("traces, round 3", "traces"),
            ("traces, then preferences", "traces"),
            ("distilled", "base"),
            ("distilled", "labels"),
            ("distilled", "swapped"),
            ("distilled", "shuffled"),
        )
    ]
    seeds = ", ".join(f"{task} {len(found)}" for task, found in tasks.items())
    known = ["base", "labels", "traces", "distilled", ORACLE, "ridge"]
    over_labels = [f"{arm} − labels: {against(policies, arm, 'labels')}" for arm in ("distilled", ORACLE) if policies]
    sweep = []
    by_items = {items: _figures(out / f"sweep-{items}") for items in SWEEP}
    by_items[ITEMS] = tasks[SIMULATED_ITEMS_OF][: len(SWEEP_SEEDS)]
    for items, found in by_items.items():
        difference = against(found, "distilled", "labels") if found else "-"
        sweep.append([str(items), str(len(found)), *cells(found, ["labels", "traces", "distilled"]), difference])
    read = {task: _figures(out / task, "readings") for task in TASKS}
    read_names = ["labels, verdict", "labels, expected", "distilled, verdict", "frozen, refined, verdict"]
    by_reading = [[name, *(cells(found, [name])[0] for found in read.values())] for name in read_names]
    by_rate = []
    for lr in sorted({*RATES, float(TRAINING["--lr"])}):
        row = [f"{lr:g}"]
        for task in RATES_TASKS:
            usual = lr == TRAINING["--lr"]
            found = tasks[task] if usual else _figures(out / task, "rates")
            names = [arm if usual else f"{arm}, {lr:g}" for arm in ("labels", "distilled")]
            row += [*cells(found, names), against(found, names[1], names[0]) if found else "-"]
        by_rate.append(row)
    by_rate_header = [f"{task}: {arm}" for task in RATES_TASKS for arm in ("labels", "distilled", "difference")]
    return f"""# Fine-tuning on traces, and on labels alone

Made by `python -m tests.evidence.finetuning --corpora ../shared/data`. Base: `student`, a network of 0.85 M weights
that has learned to write as the rule reader does; generator of traces: `embedded`, the rule reader. Neither is a
language model: the tables say what the pipeline does with reasoning that can be checked, not what an LLM would gain.

Figures: Kendall τ-b of the mean of {TEST_DRAWS} sampled draws (of label probabilities where a rater has learned labels
alone) with people's gold label, on {TEST_ITEMS} test items at most; mean over split seeds ({seeds})
± the half width of the 95 % interval over seeds (Student's t). {ITEMS} labelled training items at most, {K} draws each;
every arm has {TRAINING["--steps"]} steps of {TRAINING["--batch"]} examples at learning rate {TRAINING["--lr"]:g} and
the checkpoint that is best on {TRAINING["--dev-limit"]} dev items. The base is not among them, so a tuned arm may
come out below it. realsumm has 14 documents, of which 2 or 3 make a test split, and argquality_novice 40 test items:
their intervals are wide.

{table(["arm", *TASKS, "what it is"], rows)}

Paired differences over seeds:

{table(["difference", *TASKS], differences)}

## One verdict an item

Labels of two kinds are read by the most probable one, and traces by the share of draws for each, which is finer. Here
all are read by one verdict an item (the majority of its draws), and labels by their expected quantity too:

{table(["arm", *TASKS], by_reading)}

## Learning rate

The same at other learning rates, so that no arm is judged by a rate that suits the other.

{table(["learning rate", *by_rate_header], by_rate)}

## Where the reasoning is known

{len(policies)} hidden policies of three rules each, applied by the rule reader to the texts of {SIMULATED_ITEMS_OF} on
a scale of 1 to 5. The oracle goes by the policy itself; what it writes is what an inferred trace stands in for.

{table(known, [cells(policies, known)])}

Paired differences over policies: {"; ".join(over_labels)}.

## Number of labelled items

realsumm, {len(SWEEP_SEEDS)} seeds at most.

{table(["labelled items", "seeds", "labels", "traces", "distilled", "distilled − labels"], sweep)}
"""


if __name__ == "__main__":
    main()
