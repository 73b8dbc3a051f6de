"""The page of select_traces: what helped and what harmed, with the traces to read, in HTML without script or network.

Items and traces are texts of others: markup escapes whatever is put into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from raters.influence.harm import doubt_of, weights_remark
from raters.journal import Record
from raters.report_markup import join, markup, table, visible
from raters.report_page import PAGE, STYLE

SHOWN = 10
_QUERIES = {
    "label": "cross-entropy of people's label behind the rater's own reasoning",
    "agreement": "minus the expected agreement of the verdict behind the rater's own reasoning",
    "draws": "minus the expected agreement of whole draws",
}
_MORE_STYLE = Markup("""\
.trace{margin:1rem 0;padding:.5rem .8rem;border-left:3px solid var(--line);background:var(--soft)}
.trace.harmful{border-color:var(--c1)}.trace.helpful{border-color:var(--c0)}.trace h3{margin:0}
.trace pre{white-space:pre-wrap;margin:.4rem 0;font:inherit}.trace dl{margin:.3rem 0;font-size:.92rem}
svg .bar{fill:var(--c0)}svg .bar.harmful{fill:var(--c1)}
""")


def influence_report_html(
    summary: Mapping[str, Any],
    records: Sequence[Record],
    traces: Mapping[str, Record],
    inputs: Mapping[str, Mapping[str, str]],
) -> str:
    """Return the page, the same for the same run.

    Args:
        summary: What select_traces writes to summary.json.
        records: Lines of influence.jsonl, the most harmful first.
        traces: Example id -> line of traces.jsonl.
        inputs: Item id -> its text fields.
    """
    title = f"{summary['corpus']}, {summary['dimension']}: influence of traces"
    harmful = [record for record in records[:SHOWN] if record["score"] < 0]
    helpful = [record for record in reversed(records[-SHOWN:]) if record["score"] > 0]
    unexpected = sorted(records, key=lambda record: -record["own_loss"])[:SHOWN]
    parts = [
        markup("<h1>{}</h1>", title),
        _facts(summary),
        _doubts(summary),
        markup("<h2>All traces, by score</h2>"),
        _plot(records),
        _split(records),
        markup("<h2>Most harmful</h2>"),
        _list(harmful, traces, inputs, "No trace has a score below 0."),
        markup("<h2>Most helpful</h2>"),
        _list(helpful, traces, inputs, "No trace has a score above 0."),
        markup("<h2>Least expected</h2>"),
        markup(
            "<p>Those with the highest loss of their own before training: the mean negative log-likelihood of their "
            "tokens, in nats (median {:.2f}). Read them first where reasoning may belong to another item: of the "
            "student, on traces of the rule reader, this found such ones more surely than scores did. Odd traces stand "
            "here too, and those whose rating does not follow from their reasoning. {} far above the others: "
            "unexpected.</p>",
            summary["median_own_loss"],
            f"{summary['unexpected']:,} {'is' if summary['unexpected'] == 1 else 'are'}",
        ),
        _list(unexpected, traces, inputs, "There are no traces."),
    ]
    return visible(PAGE.format(title=title, style=STYLE + _MORE_STYLE, body=join(parts, "\n")))


def _facts(summary: Mapping[str, Any]) -> Markup:
    ahead = "to the end of the run" if summary["horizon"] is None else f"{summary['horizon']} steps"
    unrolled = summary["attributor"] not in ("tracin", "less")
    score = "predicted change of that loss if a trace is removed" if unrolled else "likeness to what lowers that loss"
    if summary["online"]:
        score += ", summed over the steps that saw it"
    rows = [
        ("loss asked about", _QUERIES[summary["query"]]),
        ("score", f"{score}; below 0 the trace is harmful"),
        ("attributor", summary["attributor"] + (", while training" if summary["online"] else "")),
        *([("look-ahead", ahead)] if unrolled else []),
        ("run", f"{summary['steps']:,} steps on {summary['traces']:,} traces"),
        ("dev items", f"{summary['dev_items']:,} in {summary['folds']} folds"),
        *([] if summary["online"] else [("harmful / helpful", f"{summary['harmful']:,} / {summary['helpful']:,}")]),
        ("unexpected", f"{summary['unexpected']:,}"),
        ("left out of traces.jsonl", f"{summary['dropped']:,}"),
    ]
    return markup('<dl class="facts">{}</dl>', join(markup("<dt>{}</dt><dd>{}</dd>", *row) for row in rows))


def _doubts(summary: Mapping[str, Any]) -> Markup:
    """Return what to keep in mind, and a warning where the linearisation does not hold."""
    ratio = summary["proxy_over_score"]
    if summary["online"]:
        notes = [markup("<p>A trace is left out if more than half of the steps that saw it left it out.</p>")]
    elif summary["folds"] < 2:
        notes = [markup("<p>On a single fold no sign is certain: no trace is called harmful or helpful.</p>")]
    else:
        notes = [
            markup(
                "<p>A trace is called harmful or helpful if its score has the same sign over the folds at {:.0f} %{}. "
                "About {:.0f} of either would be called so without any effect.</p>",
                100 * summary["confidence"],
                "" if ratio is None else " and the proxy of its error is smaller than the score",
                summary["expected_by_chance"],
            )
        ]
    if ratio is not None:
        notes.append(markup("<p>The proxy of the scores' error is {:.2f} of a score in the median.</p>", ratio))
    if doubt := doubt_of(summary):
        notes.append(markup('<p class="bad">{}.</p>', doubt[0].upper() + doubt[1:]))
    if remark := weights_remark(summary):
        notes.append(markup("<p>{}.</p>", remark[0].upper() + remark[1:]))
    return join(notes)


def _plot(records: Sequence[Record]) -> Markup:
    """Return a drawing of all scores, in order."""
    width, height, middle = 640.0, 160.0, 80.0
    longest = max((abs(record["score"]) for record in records), default=0.0) or 1.0
    step = width / max(len(records), 1)
    bars = []
    for place, record in enumerate(records):
        size = 70 * abs(record["score"]) / longest
        top = middle - size if record["score"] > 0 else middle
        kind = "bar harmful" if record["harmful"] else "bar" if record["helpful"] else "null"
        bars.append(
            markup(
                '<rect class="{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"/>',
                kind,
                place * step,
                top,
                max(step * 0.9, 0.5),
                max(size, 0.5),
            )
        )
    label = f"scores of {len(records)} traces from most harmful to most helpful; the longest bar is {longest:.2e}"
    return markup(
        '<figure style="max-width:none"><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}'
        '<line class="zero" x1="0" y1="{}" x2="{}" y2="{}"/></svg><figcaption>{}. Coloured: harmful and helpful ones; '
        "grey: sign not certain.</figcaption></figure>",
        width,
        height,
        label,
        join(bars),
        middle,
        width,
        middle,
        label,
    )


def _split(records: Sequence[Record]) -> Markup:
    """Return how the scores of the kinds of traces are made up."""
    kinds = {
        "harmful": [record for record in records if record["harmful"]],
        "helpful": [record for record in records if record["helpful"]],
        "sign not certain": [record for record in records if not record["harmful"] and not record["helpful"]],
    }
    rows = []
    for name, some in kinds.items():
        if some:
            cells = [f"{len(some):,}"] + [
                "-" if some[0][part] is None else f"{sum(record[part] for record in some) / len(some):+.2e}"
                for part in ("score", "reasoning", "verdict")
            ]
            tokens, losses = (sum(record[what] for record in some) / len(some) for what in ("tokens", "own_loss"))
            rows.append((name, [*cells, f"{tokens:,.0f}", f"{losses:.2f}"]))
    heads = ["traces", "how many", "mean score", "of it by reasoning", "by verdict", "mean tokens", "mean own loss"]
    return table(heads, rows)


def _list(
    some: Sequence[Record], traces: Mapping[str, Record], inputs: Mapping[str, Mapping[str, str]], none: str
) -> Markup:
    if not some:
        return markup("<p>{}</p>", none)
    return join(_trace(record, traces[record["example_id"]], inputs[record["item_id"]]) for record in some)


def _trace(record: Record, trace: Record, inputs: Mapping[str, str]) -> Markup:
    kind = "harmful" if record["harmful"] else "helpful" if record["helpful"] else ""
    doubtful = "" if kind else ", sign not certain"
    interval = "" if record["low"] is None else f" [{record['low']:+.2e}, {record['high']:+.2e}]"
    proxy = "" if record["error_proxy"] is None else f", proxy of its error {record['error_proxy']:.1e}"
    swapped = ", shown in exchanged order" if trace["swapped"] else ""
    fields = join(markup("<dt>{}</dt><dd>{}</dd>", name, text) for name, text in inputs.items())
    return markup(
        '<section class="trace {}"><h3>{}</h3><p>label {}{}; score {:+.2e}{}{}{}; own loss {:.2f}{}</p>'
        '<details><summary>the item</summary><dl class="read">{}</dl></details><pre>{}</pre></section>',
        kind,
        record["example_id"],
        record["label"],
        swapped,
        record["score"],
        interval,
        proxy,
        doubtful,
        record["own_loss"],
        ", unexpected" if record["unexpected"] else "",
        fields,
        trace["trace"],
    )
