"""What the scripts of evidence share: running a stage quietly, corpora with shuffled or simulated labels, tables."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from raters.corpora import Corpus, load_corpus
from raters.corpus_files import Dimension
from raters.dev_gate import quantities, said
from raters.floor import floors
from raters.gold import default_method, gold_labels
from raters.journal import read_lines, to_line, write_atomically
from raters.label_probabilities import from_record
from raters.models.embedded import STRENGTHS, answer
from raters.models.protocol import SamplingSettings
from raters.prompts import load_prompt
from raters.questions import Question, fit_to_corpus
from raters.rater_draws import read_draws
from raters.rater_files import default_aggregate, read_rater
from raters.scales import OrdinalScale, listed_labels
from raters.splits import split_corpus

RULES_OF_A_POLICY = 3
SIMULATED_ITEMS = {"train": 1000, "dev": 300, "test": 500}
TRUE_GUIDELINE = "true.md"


def stage(name: str, *arguments: object) -> None:
    """Run a stage in this process; what it prints is shown only if it fails."""
    said = io.StringIO()
    main = importlib.import_module(f"pipelines.{name}").main
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = main([str(argument) for argument in arguments])
    except BaseException:
        print(said.getvalue(), file=sys.stderr)
        raise
    if status:
        print(said.getvalue(), file=sys.stderr)
        raise SystemExit(f"{name} {' '.join(map(str, arguments))}: exit status {status}")


def once(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a JSON file holds, made and written first if it is not there, so that a script can be stopped."""
    if not path.exists():
        began = time.monotonic()
        record = {**make(), "seconds": round(time.monotonic() - began, 1)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def shuffled_copy(folder: Path, out: Path, dimension: str, split_seed: int, seed: int) -> Path:
    """Write a copy of a corpus whose labels of train and dev items are exchanged among those items; return its folder.

    The test split keeps its labels, so that a guideline or a rater made from the copy is held against real ones.
    """
    corpus = load_corpus(folder)
    seen = np.flatnonzero(split_corpus(corpus, split_seed).parts < 2)
    table = corpus.annotations(dimension)
    labelled = np.intersect1d(seen, table.items)
    exchanged = dict(zip(labelled.tolist(), np.random.default_rng(seed).permutation(labelled).tolist(), strict=True))
    scale = corpus.dimensions[dimension].scale
    _copy(folder, out, dimension)
    rows = zip(table.items.tolist(), table.annotators.tolist(), table.numbers.tolist(), strict=True)
    lines = (
        {
            "item_id": corpus.item_ids[exchanged.get(item, item)],
            "annotator_id": corpus.annotator_ids[annotator],
            "dimension": dimension,
            "label": scale.label(number),
        }
        for item, annotator, number in rows
    )
    write_atomically(out / "annotations.jsonl", map(to_line, lines))
    return out


def labelled_copy(folder: Path, out: Path, dimension: Dimension, labels: Mapping[str, Any]) -> Path:
    """Write a copy of a corpus whose items one simulated annotator has labelled on one dimension; return its folder."""
    _copy(folder, out, None)
    settings = yaml.safe_load((folder / "corpus.yaml").read_text(encoding="utf-8"))
    guideline = out / "guidelines" / f"{dimension.name}.md"
    guideline.parent.mkdir(exist_ok=True)
    write_atomically(guideline, dimension.guideline)
    entry = {"scale": dimension.scale.model_dump(mode="json"), "guideline": f"guidelines/{dimension.name}.md"}
    settings["dimensions"] = {dimension.name: entry}
    write_atomically(out / "corpus.yaml", yaml.safe_dump(settings))
    lines = (
        {"item_id": item_id, "annotator_id": "simulated", "dimension": dimension.name, "label": label}
        for item_id, label in labels.items()
    )
    write_atomically(out / "annotations.jsonl", map(to_line, lines))
    return out


def _copy(folder: Path, out: Path, dimension: str | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "items.jsonl", out / "items.jsonl")
    shutil.copytree(folder / "guidelines", out / "guidelines", dirs_exist_ok=True)
    settings = yaml.safe_load((folder / "corpus.yaml").read_text(encoding="utf-8"))
    if dimension is not None:
        settings["dimensions"] = {dimension: settings["dimensions"][dimension]}
    write_atomically(out / "corpus.yaml", yaml.safe_dump(settings))


def simulated_corpus(folder: Path, number: int, out: Path) -> tuple[Path, list[tuple[str, str, str]]]:
    """Write a copy of a corpus that a hidden policy has labelled from 1 to 5, and beside it the guideline that says so.

    Args:
        folder: Whose texts.
        number: Which policy; of the split too.
        out: Gets `corpus` and TRUE_GUIDELINE.

    Returns:
        The copy, whose own guideline says nothing of the policy, and the policy's rules: (observation, direction,
        strength).
    """
    corpus = load_corpus(folder)
    split, scale = split_corpus(corpus, number), OrdinalScale(labels=(1, 2, 3, 4, 5))
    observations = fit_to_corpus(corpus, scale, split.indices("train"))
    names = [name for name, cuts in observations.cuts.items() if len(set(cuts)) == len(cuts)]
    chance = random.Random(f"policy {number}")
    rules = [
        (name, chance.choice(("helps", "hurts")), chance.choice(STRENGTHS[:2]))
        for name in chance.sample(names, RULES_OF_A_POLICY)
    ]
    lines = "".join(f"- {name} {direction} {strength}.\n" for name, direction, strength in rules)
    truth = Dimension("quality", scale, f"{lines}- start at five.\n- rest ignored.\n")
    question = Question(truth, load_prompt("embedded/rate"), observations)
    settings = SamplingSettings(temperature=0.0)
    chosen = np.concatenate([split.indices(part)[:most] for part, most in SIMULATED_ITEMS.items()])
    labels = {}
    for index in chosen.tolist():
        item = corpus.item(index)
        told = answer(question.about(item)()[-1]["content"], 0, settings)
        labels[item.item_id] = scale.read_verdict(told.text)
    vague = Dimension("quality", scale, "Rate the quality of the text from 1 (lowest) to 5 (highest).\n")
    copy = labelled_copy(folder, out / "corpus", vague, labels)
    write_atomically(out / TRUE_GUIDELINE, truth.guideline)
    return copy, rules


def ridge_figure(folder: Path, name: str, seed: int) -> float:
    """Return the test figure of a ridge on the rule reader's observations, fitted to the train split."""
    corpus = load_corpus(folder)
    dimension, split = corpus.dimensions[name], split_corpus(corpus, seed)
    items = split.indices("test")
    _, ridge = floors(corpus, dimension, default_method(dimension.scale), items, split.indices("train"))
    values = said(ridge, dimension.scale) if ridge.quantities is None else ridge.quantities
    return _tau(corpus, dimension, items, values)


def figure_of(folder: Path, name: str, ratings: Path) -> float:
    """Return Kendall's tau-b of what the draws of a ratings.jsonl say together with people's gold label.

    Raises:
        ValueError: If the rater, whose rater.yaml stands beside them, has seen any of the items in its making.
    """
    corpus = load_corpus(folder)
    dimension = corpus.dimensions[name]
    draws = read_draws(ratings, "rater", corpus, dimension, default_aggregate(dimension.scale))
    seen = read_rater(ratings.parent / "rater.yaml").seen.touched(corpus, draws.items)
    if len(seen):
        raise ValueError(f"{ratings}: {len(seen)} of {len(draws.items)} items were seen in making the rater")
    return _tau(corpus, dimension, draws.items, said(draws, dimension.scale))


def figures_read_otherwise(folder: Path, name: str, ratings: Path) -> dict[str, float]:
    """Return figure_of by each item's one verdict, and by the mean quantity of label probabilities where there are any.

    Label probabilities count as the most probable label in figure_of where labels have no order, sampled draws by their
    mean: the one is coarser than the other.
    """
    corpus = load_corpus(folder)
    dimension = corpus.dimensions[name]
    scale = dimension.scale
    draws = read_draws(ratings, "rater", corpus, dimension, default_aggregate(scale))
    found = {"verdict": _tau(corpus, dimension, draws.items, quantities(draws.verdicts(scale), scale))}
    placed = quantities(np.arange(float(len(listed_labels(scale)))), scale)
    of_item: dict[str, list[float]] = {}
    for _, _, record in read_lines(ratings):
        if record["label_probabilities"] is not None:
            told = from_record(record["label_probabilities"], scale)
            of_item.setdefault(record["item_id"], []).append(float(told @ placed))
    if of_item:
        place = {item_id: index for index, item_id in enumerate(corpus.item_ids)}
        means = {place[item_id]: float(np.mean(values)) for item_id, values in of_item.items()}
        items = np.array(sorted(means))
        found["expected"] = _tau(corpus, dimension, items, np.array([means[item] for item in items.tolist()]))
    return found


def _tau(corpus: Corpus, dimension: Dimension, items: NDArray[np.int64], values: NDArray[np.float64]) -> float:
    """Return the figure over those of some items that have a gold label; an item without a verdict counts as 0."""
    from scipy.stats import kendalltau

    gold = gold_labels(corpus, dimension.name, default_method(dimension.scale), items)
    found = np.nan_to_num(values[np.searchsorted(items, gold.items)])
    # All verdicts alike say nothing of the order of labels.
    return float(np.nan_to_num(kendalltau(found, quantities(gold.numbers, dimension.scale)).statistic))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and half width of the 95 % interval of a few values, by Student's t over seeds."""
    from scipy.special import stdtrit

    array = np.asarray(values, float)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    half = float(stdtrit(len(array) - 1, 0.975)) * array.std(ddof=1) / np.sqrt(len(array))
    return float(array.mean()), float(half)


def shown(values: Sequence[float], sign: str = "") -> str:
    """Return values as mean ± half width; of one value there is none. With the sign "+" differences show theirs."""
    mean, half = mean_interval(values)
    return f"{mean:{sign}.3f}" if np.isnan(half) else f"{mean:{sign}.3f} ± {half:.3f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
