"""What the scripts of evidence share: running a stage quietly, corpora with shuffled or simulated labels, tables."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raters.corpora import load_corpus
from raters.corpus_files import Dimension
from raters.journal import to_line, write_atomically
from raters.splits import split_corpus


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


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and half width of the 95 % interval of a few values, by Student's t over seeds."""
    from scipy.special import stdtrit

    array = np.asarray(values, float)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    half = float(stdtrit(len(array) - 1, 0.975)) * array.std(ddof=1) / np.sqrt(len(array))
    return float(array.mean()), float(half)


def shown(values: Sequence[float]) -> str:
    """Return values as mean ± half width."""
    mean, half = mean_interval(values)
    return f"{mean:.3f} ± {half:.3f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
