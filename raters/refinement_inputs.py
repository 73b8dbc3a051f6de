"""What the options of refine_guideline and the files they name come to, checked before a model is asked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raters.records import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raters.dev_gate import DevLabels
    from raters.guideline_text import Guideline
    from raters.rater_files import RaterSpec
    from raters.refinement_options import RefineGuidelineOptions
    from raters.trace_runs import TraceRun

LEAST_DEV_ITEMS = 20


@dataclass(frozen=True)
class Plan:
    """What the options and the files they name come to."""

    options: RefineGuidelineOptions
    run: TraceRun
    original: Guideline
    raters: tuple[RaterSpec, ...]
    names: tuple[str, ...]
    dev_items: NDArray[np.int64]
    labels: DevLabels
    out: Path

    def describe(self) -> str:
        dimension, options = self.run.dimension, self.options
        return (
            f"corpus {self.run.corpus.name}: {dimension.name} on {dimension.scale}; {len(self.run.draws):,} draws of "
            f"{self.run.options['model']}; {options.method} by {options.writer}, gated by {len(self.dev_items):,} dev "
            f"items for {', '.join(self.names)}"
        )

    def identity(self) -> dict[str, Any]:
        """Return what decides the meaning of the run's records."""
        from raters.journal import sha256_of
        from raters.splits import ids_sha256

        options, run = self.options, self.run
        reviewed = [run.learned_sha256] if run.reviews else []
        traces = json.dumps([run.manifest["identity"], run.manifest.get("draws"), run.manifest.get("items"), *reviewed])
        decisive = ("method", "writer", "level", "draws", "embeddings", "gate_z", "seed", "resamples", "train_items")
        return {
            "corpus": run.corpus.name,
            "dimension": run.dimension.name,
            "traces": sha256_of(traces),
            "guideline": sha256_of(self.original.text),
            "raters": {name: spec.sha256 for name, spec in zip(self.names, self.raters, strict=True)},
            "dev_items": ids_sha256([run.corpus.item_ids[item] for item in self.dev_items]),
            **{name: getattr(options, name) for name in decisive},
            **{name: getattr(options, name) for name in ("cases", "instruction_traces", "rubric_traces")},
            **{name: getattr(options, name) for name in ("explain", "recover") if options.method == "post-hoc"},
        }

    def price(self, read: int, written: int) -> float | None:
        """Return what tokens cost in USD; None if a hosted model has no price."""
        from raters.prices import Price

        options = self.options
        draws_again = options.rounds > 1 or options.method == "post-hoc"
        again = [options.explain, options.recover, self.run.options["model"]] if draws_again else []
        specs = (options.writer, *(spec.model for spec in self.raters), *filter(None, again))
        if options.input_price is None and options.output_price is None:
            return None if any(spec.startswith("openai/") for spec in specs) else 0.0
        return Price(options.input_price or 0.0, options.output_price or 0.0).usd(read, written)


def read_inputs(options: RefineGuidelineOptions) -> Plan:
    """Read and check all that can be checked before a model is asked."""
    from raters.corpus_files import read_guideline_file
    from raters.dev_gate import labelled_items
    from raters.guideline_text import Guideline
    from raters.models import OF_OBSERVATIONS, STUDENT, check_spec
    from raters.runs import stage_folder
    from raters.trace_runs import TraceRun

    if options.traces is None:
        raise ConfigError("--traces: missing; give the folder of a finished run of infer_traces")
    if not options.rater:
        raise ConfigError("--rater: none; give a model or a rater.yaml that the guideline is for, or several")
    if options.max_cost is not None and options.input_price is None and options.output_price is None:
        raise ConfigError(f"--max-cost {options.max_cost}: needs --input-price and --output-price")
    for spec in filter(
        None, (options.writer if options.writer != "extractive" else None, options.explain, options.recover)
    ):
        check_spec(spec)
        if spec in OF_OBSERVATIONS and spec == options.writer:
            raise ConfigError(f"--writer {spec}: is a rater and cannot write; give extractive, hf/... or openai/...")
        if spec == STUDENT:
            raise ConfigError(f"--explain or --recover {spec}: it has learned to rate alone; give another model")
    run = TraceRun.read(Path(options.traces), options.corpus)
    _check_labels(run, options)
    text = (
        run.dimension.guideline
        if options.guideline is None
        else read_guideline_file(Path(options.guideline), "--guideline")
    )
    original = Guideline.of(text)
    raters, names = _read_raters(options, run, original.text)
    again = (options.explain, options.recover, run.options["model"])
    options.check_endpoint([options.writer, *again, *(spec.model for spec in raters)])
    dev = run.split.indices("dev")
    items, labels = labelled_items(run.corpus, run.dimension, run.gold_method, dev, options.dev_limit)
    if len(items) < LEAST_DEV_ITEMS:
        raise DataError(
            f"corpus {run.corpus.name}: the dev split has {len(items)} items with a label on {run.dimension.name}; at "
            f"least {LEAST_DEV_ITEMS} are needed to tell whether an edit helps; label more, or infer under another "
            "--split-seed"
        )
    return Plan(
        options=options,
        run=run,
        original=original,
        raters=raters,
        names=names,
        dev_items=items,
        labels=labels,
        out=stage_folder(options.out, run.corpus, run.dimension.name, "refine_guideline"),
    )


def _check_labels(run: TraceRun, options: RefineGuidelineOptions) -> None:
    """Refuse traces that say nothing of a label that people gave."""
    from raters.writers import level_names, level_of

    if options.method == "post-hoc":
        return
    scale, draws = run.dimension.scale, run.draws
    given = set(level_of(run.labels.numbers, scale).tolist())
    traced = set(level_of(draws.labels[draws.accepted], scale).tolist())
    for level in sorted(given - traced):
        raise DataError(
            f"--traces {run.folder}: no trace for label {level_names(scale)[level]} of {run.dimension.name}; infer "
            "more of them (a larger --k), or leave that label out of the corpus"
        )


def _read_raters(
    options: RefineGuidelineOptions, run: TraceRun, guideline: str
) -> tuple[tuple[RaterSpec, ...], tuple[str, ...]]:
    """Return the raters under the guideline that is begun with, and a name of each that can be a file's."""
    from raters.guidelines import with_guideline
    from raters.plain_raters import plain_rater
    from raters.rater_files import read_rater
    from raters.rating import check_fields

    raters: list[RaterSpec] = []
    names: list[str] = []
    for given in options.rater:
        if given.endswith((".yaml", ".yml")):
            spec = read_rater(Path(given))
            if spec.dimension.name != run.dimension.name or spec.dimension.scale != run.dimension.scale:
                raise DataError(
                    f"--rater {given}: rates {spec.dimension.name} on {spec.dimension.scale}, and the traces are of "
                    f"{run.dimension.name} on {run.dimension.scale}; give a rater of that"
                )
            for item, item_id in enumerate(run.corpus.item_ids):
                check_fields(run.corpus.item(item).inputs, spec, f"--rater {given}: item {item_id}")
        else:
            spec = plain_rater(given, run.corpus, run.dimension, run.split)
        spec = replace(with_guideline(spec, guideline), draws=options.draws, seed=options.seed)
        if any(spec.sha256 == other.sha256 for other in raters):
            raise ConfigError(f"--rater {given}: stands twice; give each rater once")
        raters.append(spec)
        base = re.sub(r"[^\w.-]+", "_", Path(given).parent.name or given if given.endswith(".yaml") else given)
        candidates = chain((base,), (f"{base}-{number}" for number in count(2)))
        names.append(next(name for name in candidates if name not in names))
    return tuple(raters), tuple(names)
