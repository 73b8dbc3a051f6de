"""What a refinement leaves once everything is rated: guideline, provenance, raters, report, ratings of test."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raters.journal import Journal, Record, to_line, without_nan, write_atomically

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from raters.guidelines import Refinement
    from raters.rater_draws import RaterDraws
    from raters.rater_files import RaterSpec
    from raters.trace_runs import TraceRun
    from raters.trials import Trials


def write_results(folder: Path, refinement: Refinement, results: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Write guideline, difference, provenance, proposals, raters and report; return the summary."""
    from raters.dev_gate import choice_figure
    from raters.guideline_outcomes import proposals, provenance
    from raters.guideline_report import guideline_report_html
    from raters.guideline_text import diff_markdown
    from raters.guidelines import with_guideline

    run, refined, original = refinement.run, refinement.guideline, refinement.original
    figure = choice_figure(run.dimension.scale)
    lines = list(provenance(refined, original, refinement.attempts, figure))
    tried = list(proposals(refinement.attempts, refinement.names, figure))
    seen = np.flatnonzero(run.split.parts < 2)
    write_atomically(folder / "guideline.md", refined.text)
    title = f"{run.corpus.name}: {run.dimension.name}: guideline, original and refined"
    write_atomically(folder / "diff.md", diff_markdown(original.text, refined.text, title))
    write_atomically(folder / "provenance.jsonl", map(to_line, lines))
    write_atomically(folder / "proposals.jsonl", map(to_line, tried))
    (folder / "raters").mkdir(exist_ok=True)
    raters = {}
    for name, spec in zip(refinement.names, refinement.raters, strict=True):
        raters[name] = dataclasses.replace(
            with_guideline(spec, refined.text), seen=spec.seen.with_items(run.corpus, seen)
        )
        raters[name].write(folder / "raters" / f"{name}.yaml")
    summary = {
        "corpus": run.corpus.name,
        "dimension": run.dimension.name,
        "scale": str(run.dimension.scale),
        "method": method,
        "figure": figure,
        "raters": list(refinement.names),
        "resampled": "groups" if refinement.labels.by_group else "items",
        "ended": refinement.ended,
        "changed": refined.text != original.text,
        "proposals": {
            outcome: sum(attempt.outcome == outcome for attempt in refinement.attempts)
            for outcome in ("kept", "gate", "lint")
        },
        "lines": [{key: line[key] for key in ("line", "text", "replaces", "before", "after", "p")} for line in lines],
    }
    for part in ("dev", "test"):
        if part in results:
            summary[part] = _part_summary(refinement, results[part])
    # Ratings of a guideline that an earlier session came to are not of this one; its draws stay in trials/.
    shutil.rmtree(folder / "test", ignore_errors=True)
    if "test" in results:
        for name, spec in zip(refinement.names, refinement.raters, strict=True):
            versions = {"original": spec, **({"refined": raters[name]} if summary["changed"] else {})}
            for when, one in versions.items():
                _write_ratings(
                    folder / "test" / f"{name}-{when}", one, refinement.trials, run, results["test"]["items"]
                )
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / "report.html", guideline_report_html(summary, refined, original, lines, tried))
    return summary


def _part_summary(refinement: Refinement, part: Mapping[str, Any]) -> dict[str, Any]:
    """Return agreement before and after on one part of the split, and of the raters with each other."""
    from raters.dev_gate import decide, labelled_items

    run = refinement.run
    items, labels = labelled_items(run.corpus, run.dimension, run.gold_method, part["items"])
    rows = np.searchsorted(part["items"], items)
    before, after = ([_rows(one, rows) for one in part[when]] for when in ("before", "after"))
    settings = refinement.settings
    decision = decide(labels, before, after, settings.level, resamples=settings.resamples, seed=settings.seed)
    changes = {"mean": decision.mean, **dict(zip(refinement.names, decision.raters, strict=True))}
    return {
        "items": len(items),
        "resampled": "groups" if labels.by_group else "items",
        "changes": {rater: without_nan(dataclasses.asdict(change)) for rater, change in changes.items()},
        "between_raters": {when: _between(part[when], run) for when in ("before", "after")}
        if len(before) > 1
        else None,
    }


def _between(raters: Sequence[RaterDraws], run: TraceRun) -> dict[str, float | None]:
    """Return how far raters agree with each other: alpha, and ICC(3,1) where the scale has quantities."""
    from raters.agreement import ALPHA_LEVELS
    from raters.dev_gate import quantities
    from raters.reliability import icc3, krippendorff_alpha

    scale = run.dimension.scale
    verdicts = np.array([one.verdicts(scale) for one in raters])
    values = [scale.value(label) for label in scale.labels] if scale.type == "ordinal" else None
    found = {"krippendorff_alpha": krippendorff_alpha(verdicts, ALPHA_LEVELS[scale.type], values).value}
    if scale.type in ("ordinal", "interval"):
        found["icc3_1"] = icc3(quantities(verdicts.T, scale))[0].value
    return without_nan(found)


def _rows(draws: RaterDraws, rows: NDArray[np.int64]) -> RaterDraws:
    return dataclasses.replace(
        draws,
        items=draws.items[rows],
        numbers=draws.numbers[rows],
        drawn=draws.drawn[rows],
        swapped=draws.swapped[rows],
        quantities=None if draws.quantities is None else draws.quantities[rows],
    )


def _write_ratings(folder: Path, spec: RaterSpec, trials: Trials, run: TraceRun, items: NDArray[np.int64]) -> None:
    """Write a rater's ratings of the test split as rate_items would have written them."""
    from raters.rating_runs import RatingSheet

    wanted = {run.corpus.item_ids[int(item)] for item in items}
    lines = [line for line in Journal(trials.path(spec)).recover() if line[2]["item_id"] in wanted]
    sheet = RatingSheet.empty(run.corpus, spec, items, spec.draws)
    sheet.replay(lines)
    records = [record for _, _, record in lines if record["draw"] < spec.draws]
    folder.mkdir(parents=True, exist_ok=True)
    manifest: Record = {
        "stage": "rate_items",
        "identity": {"corpus": run.corpus.name, "rater": spec.sha256, "split": "test", "split_seed": run.split.seed},
        "status": "complete",
        **sheet.manifest(run.split),
        "cost_usd": trials.spending.price(sheet.prompt_tokens, sheet.completion_tokens),
        "seconds": round(sum(record["seconds"] for record in records), 3),
    }
    write_atomically(folder / "ratings.jsonl", map(to_line, records))
    spec.write(folder / "rater.yaml")
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
