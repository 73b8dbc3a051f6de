"""What select_traces writes and prints of what it has found."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from raters.trace_text import printable

if TYPE_CHECKING:
    from pipelines.selection import Found, Recorded
    from raters.influence.harm import Influence
    from raters.journal import Record


def write_results(recorded: Recorded, found: Found, own_losses: Sequence[float]) -> tuple[dict[str, Any], list[str]]:
    """Write what was found; return the summary and its lines for a reader."""
    import numpy as np

    from raters.influence.report import influence_report_html
    from raters.journal import to_line, write_atomically
    from raters.reviews import learned_from

    out = recorded.sources.out
    records = list(influence_records(recorded, found, own_losses))
    dropped = {record["example_id"] for record in records if record["dropped"]}
    write_atomically(out / "influence.jsonl", map(to_line, records))
    from raters.training_data import example_id

    kept = (to_line(trace) for trace in learned_from(recorded.sources.run) if example_id(trace) not in dropped)
    write_atomically(out / "traces.jsonl", kept)
    influence, options = found.influence, recorded.options
    # Nothing is called anything on one fold, nor where training itself selects; a trace that no step has met has 0.
    called = np.count_nonzero(influence.scores) if np.isfinite(influence.low).any() else 0
    summary = {
        "corpus": recorded.sources.run.corpus.name,
        "dimension": recorded.sources.run.dimension.name,
        "scale": str(recorded.sources.run.dimension.scale),
        "run": options.run,
        "query": options.query,
        "attributor": options.attributor,
        "horizon": options.online if options.online is not None else options.horizon,
        "online": options.online is not None,
        "traces": len(records),
        "dropped": len(dropped),
        "harmful": int(influence.harmful.sum()),
        "helpful": int(influence.helpful.sum()),
        "steps": len(recorded.tuned.trajectory),
        "chosen_step": recorded.sources.chosen_step,
        "dev_items": recorded.queries.items,
        "folds": len(recorded.queries),
        "confidence": options.confidence,
        "expected_by_chance": int(called) * (1 - options.confidence) / 2,
        "proxy_over_score": _ratio(influence),
        "median_own_loss": median(own_losses),
        "unexpected": sum(record["unexpected"] for record in records),
        "drop_unexpected": options.drop_unexpected,
        "sum_of_learning_rates": sum(step.settings.lr for step in recorded.tuned.trajectory.steps),
    }
    write_atomically(out / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    traces = dict(zip(recorded.tuned.example_ids, recorded.records, strict=True))
    inputs = {item_id: recorded.sources.run.corpus.item(place).inputs for item_id, place in _places(recorded).items()}
    write_atomically(out / "report.html", influence_report_html(summary, records, traces, inputs))
    return summary, list(summary_lines(summary, records, traces, options.show))


def _places(recorded: Recorded) -> dict[str, int]:
    wanted = {record["item_id"] for record in recorded.records}
    return {item_id: place for place, item_id in enumerate(recorded.sources.run.corpus.item_ids) if item_id in wanted}


def _ratio(influence: Influence) -> float | None:
    """Return the median of proxy over score; None without a proxy."""
    import numpy as np

    sizes = np.abs(influence.scores)
    known = np.isfinite(influence.proxy) & (sizes > 0)
    return float(np.median(influence.proxy[known] / sizes[known])) if known.any() else None


def influence_records(recorded: Recorded, found: Found, own_losses: Sequence[float]) -> Iterator[Record]:
    """Yield the lines of influence.jsonl, the most harmful trace first."""
    import numpy as np

    from raters.influence.answers import PARTS
    from raters.influence.harm import unexpected_of

    influence, tuned, unexpected = found.influence, recorded.tuned, unexpected_of(own_losses)

    def known(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    def parts_of(place: int) -> dict[str, float | None]:
        parts = influence.parts[place].tolist()
        return dict(zip(PARTS, parts if len(parts) == len(PARTS) else [None] * len(PARTS), strict=True))

    for place in np.argsort(influence.scores, kind="stable").tolist():
        trace = recorded.records[place]
        online = {} if found.seen is None else {"seen": int(found.seen[place]), "kept": int(found.kept[place])}
        yield {
            "example_id": tuned.example_ids[place],
            **{name: trace[name] for name in ("item_id", "annotator_id", "draw", "label")},
            "score": float(influence.scores[place]),
            "low": known(influence.low[place]),
            "high": known(influence.high[place]),
            **parts_of(place),
            "by_fold": [float(score) for score in influence.folds[place]],
            "error_proxy": known(influence.proxy[place]),
            "tokens": tuned.learned[place],
            "own_loss": own_losses[place],
            "unexpected": bool(unexpected[place]),
            "harmful": bool(influence.harmful[place]),
            "helpful": bool(influence.helpful[place]),
            "dropped": bool(found.dropped[place] or (recorded.options.drop_unexpected and unexpected[place])),
            **online,
        }


def summary_lines(
    summary: dict[str, Any], records: Sequence[Record], traces: dict[str, Record], show: int
) -> Iterator[str]:
    """Yield what came out, for a reader."""
    from raters.influence.harm import doubt_of, weights_remark

    yield printable(f"{summary['corpus']}, {summary['dimension']} ({summary['scale']}): influence of traces on dev")
    if summary["online"]:
        yield (
            f"  selected while training, {summary['horizon']} steps ahead: {summary['dropped']:,} of "
            f"{summary['traces']:,} traces were left out of most steps that saw them"
        )
        yield from _about_own_losses(summary, records)
        return
    ahead = "" if summary["horizon"] is None else f", {summary['horizon']} steps ahead"
    yield f"  {summary['attributor']} over {summary['steps']:,} steps{ahead}; loss: {summary['query']}"
    if summary["folds"] > 1:
        percent = 100 * summary["confidence"]
        yield (
            f"  harmful {summary['harmful']:,}, helpful {summary['helpful']:,} of {summary['traces']:,} traces: the "
            f"same sign over {summary['folds']} folds of {summary['dev_items']:,} dev items ({percent:.0f} %)"
        )
        yield f"  about {summary['expected_by_chance']:.0f} of either would be called so without any effect"
    else:
        yield "  none of the traces is called harmful or helpful: on a single fold no sign is certain (--folds)"
    if summary["proxy_over_score"] is not None:
        yield f"  proxy of the scores' error: {summary['proxy_over_score']:.2f} of a score in the median"
    yield from _about_own_losses(summary, records)
    if doubt := doubt_of(summary):
        yield f"  {doubt}"
    if remark := weights_remark(summary):
        yield f"  {remark}"
    for record in records[:show]:
        if record["score"] < 0:
            yield ""
            doubtful = "" if record["harmful"] else ", sign not certain"
            told = f"label {record['label']}, score {record['score']:+.2e}{doubtful}"
            yield printable(f"  {record['example_id']}: {told}")
            for line in printable(traces[record["example_id"]]["trace"]).splitlines()[:6]:
                yield textwrap.shorten(line, 110, placeholder=" …").join(("    ", ""))


def _about_own_losses(summary: dict[str, Any], records: Sequence[Record]) -> Iterator[str]:
    """Yield what a trace cost the rater before it learned from any, in a line, and what to do about the dearest."""
    if not summary["unexpected"]:
        return
    found = sorted((record for record in records if record["unexpected"]), key=lambda record: -record["own_loss"])
    yield (
        f"  unexpected {len(found):,}: own losses before training far above the median of "
        f"{summary['median_own_loss']:.2f} nats a token; their reasoning may be another item's"
    )
    if summary["drop_unexpected"]:
        yield "  left out too (--drop-unexpected)"
        return
    shown = ", ".join(f"{record['example_id']} ({record['own_loss']:.2f})" for record in found[:3])
    yield printable(f"  {shown}{' …' if len(found) > 3 else ''}: --drop-unexpected leaves them out")
