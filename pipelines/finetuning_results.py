"""What finetune_rater writes and prints once it has trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from raters.trace_text import printable

if TYPE_CHECKING:
    from pipelines.finetuning import Plan


def write_results(plan: Plan, results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Write raters, curves, the merged model and the summary; return it."""
    from raters.journal import write_atomically
    from raters.rater_files import adapter_sha256
    from raters.training_models import merge
    from raters.training_report import plot_curves, seeds_summary
    from raters.training_watch import METRICS, read_metrics

    options = plan.options
    summary = {
        "corpus": plan.run.corpus.name,
        "dimension": plan.run.dimension.name,
        "scale": str(plan.run.dimension.scale),
        "base": options.base,
        "target": options.target,
        "method": options.method,
        **plan.counts,
        **seeds_summary(results),
        "seeds": {str(seed): phases for seed, phases in results.items()},
    }
    for seed in results:
        folder = plan.seed_folder(seed)
        plan.spec("adapter", adapter_sha256(folder / "adapter")).write(folder / "rater.yaml")
    best = plan.seed_folder(summary["best_seed"]) / "adapter"
    summary["adapter"] = str(best.relative_to(plan.out))
    spec = plan.spec(summary["adapter"], adapter_sha256(best))
    if plan.earlier is not None:
        summary["gate"] = plan.earlier.as_record(summary["dev"]["mean"])
        spec = spec if summary["gate"]["passed"] else plan.earlier.rater
    spec.write(plan.out / "rater.yaml")
    metrics = {seed: read_metrics(plan.seed_folder(seed) / METRICS) for seed in results}
    title = f"{plan.run.corpus.name}: {plan.run.dimension.name}: {options.method} of {options.target}"
    plot_curves(metrics, summary["figure"], plan.out, title)
    if options.merge:
        assert options.base is not None
        template, merged = plan.chat_template, plan.out / "merged"
        summary["merge"] = merge(options.base, plan.dtype, template, best, merged, plan.sample)
    write_atomically(plan.out / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def summary_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield what came out, for a reader."""
    from raters.score_text import FIGURE_NAMES

    what = f"{summary['corpus']}, {summary['dimension']} ({summary['scale']}): {summary['base']}"
    yield printable(f"{what}, {summary['method']} of {summary['target']}")
    left_out = f"; {summary['too_long']:,} left out as too long" if summary["too_long"] else ""
    pairs = f", {summary['pairs']:,} pairs" if "pairs" in summary else ""
    yield f"  {summary['examples']:,} of {summary['traces']:,} traces{left_out}{pairs}"
    for seed, phases in summary["seeds"].items():
        for name, phase in phases.items():
            early = ", stopped early" if phase["stopped_early"] else ""
            yield (
                f"  seed {seed}, {name}: step {phase['best_step']} of {phase['schedule']['steps']} chosen{early}; "
                f"last loss {phase['last_loss']:.4f}"
            )
    figure = FIGURE_NAMES[summary["figure"]]
    yield f"dev split, {summary['items']:,} items (these items chose the checkpoint): {figure} with people's label"
    yield f"  before {_spread(summary['dev_before'])}   after {_spread(summary['dev'])}"
    if (gate := summary.get("gate")) is not None:
        held = f"against {gate['value']:.3f} of the rater of {gate['run']}"
        yield printable(
            f"  {held}: {'better, and takes its place' if gate['passed'] else 'not better, so that one stays'}"
        )
    for seed, phases in summary["seeds"].items():
        dev = list(phases.values())[-1]["dev"]
        if dev["unreadable"] * 10 > dev["draws"]:
            unread = f"{dev['unreadable']:,} of {dev['draws']:,} draws of the chosen checkpoint cannot be read"
            yield f"  seed {seed}: {unread}; each counts as the label farthest from people's. Train longer?"
    if "merge" in summary:
        yield f"  merged: logits off by at most {summary['merge']['largest_difference']:.1e} of the largest"


def _spread(found: Mapping[str, Any]) -> str:
    spread = "" if found["sd"] is None else f" ± {found['sd']:.3f} (sd over {len(found['values'])} seeds)"
    return f"{found['mean']:.3f}{spread}"
