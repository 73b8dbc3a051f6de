"""A refined guideline with its evidence beside each line, as one HTML page that needs no network and no script.

Lines, reasons and names are texts of models and of others. Markup escapes whatever is put into it, the page's own
policy forbids scripts and requests besides, and no character is left that could turn what stands around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from raters.guideline_figures import difference_text, is_known, number_text, p_text, path_of
from raters.guideline_text import Guideline, Line
from raters.journal import Record
from raters.report_markup import join, markup, table, visible
from raters.report_page import PAGE, STYLE
from raters.score_text import FIGURE_NAMES

_METHODS = {
    "contrast": "contrast: two drafts and a loop of small edits, each kept only behind the gate on dev",
    "paper": "paper: both drafts kept as they come, whatever they do on dev",
    "post-hoc": "post-hoc: drafts from explanations of labels that were shown, each kept only behind the gate on dev",
}
_ACTIONS = {
    "instructions": "draft of the procedure",
    "criteria": "draft of the criteria",
    "add": "adds a rule",
    "sharpen": "sharpens a rule",
    "remove": "takes a rule out",
    "move": "moves a rule",
}
_MORE_STYLE = Markup("""\
.outcome{font-size:1.1rem}.block{margin:.7rem 0;padding:.1rem 0 .1rem .8rem;border-left:3px solid transparent}
.block.new{border-color:var(--c0);background:var(--soft);padding:.5rem .8rem}
.block.out{border-color:var(--c1);background:var(--soft);padding:.5rem .8rem}
.block.old{color:var(--mute)}.block h3{margin:0 0 .3rem}.block>*{min-width:0}
.tag{margin:0;font-size:.8rem;font-weight:600;color:var(--mute)}.block.new .tag{color:var(--c0)}
.block.out .tag{color:var(--c1)}
.lines{margin:0;padding-left:2.2rem}.lines li::marker{color:var(--mute);font-size:.8rem}.lines li.gap{margin-top:.8rem}
.lines span,.lines ins,.lines del{white-space:pre-wrap}.lines small{display:block;color:var(--mute)}
ul.lines{list-style:none;padding-left:0}ins{text-decoration:none}
.evidence{font-size:.9rem}.evidence dl{margin:0}.evidence dd{margin:0 0 .35rem}.evidence dt{font-size:.85rem}
.evidence ul{margin:.2rem 0;padding-left:1.1rem}summary{cursor:pointer}a{color:var(--c0)}
thead th.wide{min-width:13rem}
@media (min-width:48rem){.block{display:grid;grid-template-columns:minmax(0,3fr) minmax(0,2fr);gap:0 1.5rem}
.evidence>div{position:sticky;top:.5rem}}
@media (max-width:47.99rem){.evidence{margin-top:.6rem;padding-top:.5rem;border-top:1px solid var(--line)}}
""")


def guideline_report_html(
    summary: Mapping[str, Any],
    refined: Guideline,
    original: Guideline,
    lines: Sequence[Record],
    tried: Sequence[Record],
) -> str:
    """Return the page, the same for the same run.

    Args:
        summary: What refine_guideline writes to summary.json; `dev` and `test` are missing where nothing was rated.
        refined: The guideline as it came out.
        original: As it began.
        lines: Provenance of each line that is new or changed.
        tried: Every proposal, in order.
    """
    figure = FIGURE_NAMES.get(summary["figure"], summary["figure"])
    kept = [record for record in tried if record["outcome"] == "kept"]
    by_proposal = {record["proposal"]: record for record in tried}
    for record in lines:
        by_proposal[record["proposal"]] = {**by_proposal.get(record["proposal"], {}), **record}
    by_line = _by_line(lines, by_proposal)
    parts = [
        _head(summary, figure),
        _guideline(refined, original, by_line, by_proposal, summary["raters"]),
        _taken_out(refined, kept, by_line, summary["raters"]),
        path_of(kept, summary["raters"], figure, ungated=summary["method"] == "paper"),
        _agreement(summary, figure),
        _not_kept([record for record in tried if record["outcome"] != "kept"], summary["raters"], bool(kept)),
    ]
    title = f"{summary['corpus']}, {summary['dimension']}: the refined guideline and its evidence"
    return visible(PAGE.format(title=title, style=STYLE + _MORE_STYLE, body=join(parts, "\n")))


def _by_line(lines: Sequence[Record], by_proposal: Mapping[int, Record]) -> dict[int, Record]:
    """Return provenance by line; the first line of an edit that sharpens a line of another proposal replaces that."""
    by_line: dict[int, Record] = {}
    begun = set()
    for record in lines:
        removed = by_proposal[record["proposal"]].get("removed", [])
        first = record["proposal"] not in begun
        begun.add(record["proposal"])
        if first and record["action"] == "sharpen" and record["replaces"] is None and len(removed) == 1:
            by_line[record["line"]] = {**record, "replaces": removed[0]}
        else:
            by_line[record["line"]] = record
    return by_line


def _changed(change: Mapping[str, Any]) -> str:
    """Return figures before and after with the difference in a line; why there are none otherwise."""
    if change["before"] is None and change["after"] is None:
        return "not rated"
    values = f"{number_text(change['before'])} to {number_text(change['after'])}"
    return f"{values}, {difference_text(change)}, one-sided p {p_text(change['p'])}"


def _outcome(summary: Mapping[str, Any], figure: str) -> str:
    """Return what came out in a sentence or two."""
    counts = summary["proposals"]
    made = sum(counts.values())
    why_not = f"{counts['gate']} without a sure gain on dev, {counts['lint']} refused by the lint"
    if not made:
        return "The guideline stays as it was: nothing was proposed."
    if not counts["kept"]:
        return f"The guideline stays as it was: nothing was kept. Proposals: {made}; {why_not}."
    said = f"Kept: {counts['kept']} of {made} proposals; {why_not}."
    if not summary["changed"]:
        return f"The guideline stays as it was: what was kept undid itself again. {said}"
    if "test" not in summary:
        return f"The guideline changed, and the test split was not rated. {said}"
    change = summary["test"]["changes"]["mean"]
    mean = " on average over the raters" if len(summary["raters"]) > 1 else ""
    if not is_known(change["before"], change["after"]):
        return f"The guideline changed; what that did on the test split cannot be said. {said}"
    gain = change["after"] - change["before"]
    verb = "rose" if gain > 0 else "fell" if gain < 0 else "stayed"
    chance = ""
    if is_known(change["low"], change["high"]) and change["low"] <= 0 <= change["high"]:
        chance = "; the interval holds zero"
    return (
        f"The guideline changed: on the test split {figure} with people {verb}{mean} from {change['before']:.3f} to "
        f"{change['after']:.3f} (difference {difference_text(change)}, one-sided p {p_text(change['p'])}{chance}). "
        f"{said}"
    )


def _head(summary: Mapping[str, Any], figure: str) -> Markup:
    facts = [
        ("corpus", summary["corpus"]),
        ("dimension", summary["dimension"]),
        ("scale", summary["scale"]),
        ("method", _METHODS.get(summary["method"], summary["method"])),
        ("raters", ", ".join(map(str, summary["raters"]))),
        ("figure", f"{figure} with people's label"),
        ("intervals and p", f"95 %; one-sided p of no rise; paired bootstrap over {summary['resampled']} of the dev "
         "split, not corrected for the number of proposals"),
        *([("ended", summary["ended"])] if summary["ended"] else []),
    ]  # fmt: skip
    return markup(
        '<h1>{}, {}: the refined guideline and its evidence</h1>\n<p class="outcome">{}</p>\n<dl class="facts">{}</dl>',
        summary["corpus"],
        summary["dimension"],
        _outcome(summary, figure),
        join(markup("<dt>{}</dt><dd>{}</dd>", name, value) for name, value in facts),
    )


def _guideline(
    refined: Guideline,
    original: Guideline,
    by_line: Mapping[int, Record],
    by_proposal: Mapping[int, Record],
    raters: Sequence[str],
) -> Markup:
    """Return the guideline in blocks of lines of one proposal; the evidence stands beside its first block."""
    numbered = [(number, line) for number, line in enumerate(refined.lines, start=1) if line.text.strip()]
    shown: set[int] = set()
    parts = []
    for proposal, block in groupby(numbered, key=lambda pair: pair[1].proposal):
        rows, kinds, last = [], [], 0
        for number, line in block:
            kind = _kind(line, original)
            below = Markup()
            if (old := by_line.get(number, {}).get("replaces")) is not None:
                below = markup('<small>replaces <del dir="auto">{}</del></small>', old)
            elif kind == "Moved":
                below = markup("<small>was line {}</small>", line.original)
            classes = "gap" if last and number > last + 1 else ""
            rows.append(markup('<li value="{}" class="{}">{}{}</li>', number, classes, _text(line, kind), below))
            kinds += [kind] if kind not in kinds else []
            last = number
        left = markup('<div><p class="tag">{}</p><ol class="lines">{}</ol></div>', " and ".join(kinds), join(rows))
        if proposal is None:
            parts.append(markup('<div class="block old">{}</div>', left))
        elif proposal in shown or proposal not in by_proposal:
            again = markup('as above: <a href="#proposal-{}">proposal {}</a>', proposal, proposal)
            right = again if proposal in shown else markup("proposal {}", proposal)
            parts.append(markup('<div class="block new">{}<p class="evidence">{}</p></div>', left, right))
        else:
            shown.add(proposal)
            parts.append(_block("new", left, by_proposal[proposal], raters))
    how = "Lines on grey are new or changed, with the evidence for them beside; the others are the original's own."
    none = "Every line is the original's own."
    return markup(
        '<h2 id="guideline">The guideline, line by line</h2>\n<p>{}</p>\n{}', how if shown else none, join(parts, "\n")
    )


def _kind(line: Line, original: Guideline) -> str:
    if line.proposal is None:
        return "Original"
    if line.original is None:
        return "New"
    return "Moved" if line.text == original.lines[line.original - 1].text else "Changed"


def _text(line: Line, kind: str) -> Markup:
    element = "ins" if kind in ("New", "Changed") else "span"
    text = markup("<b>{}</b>", line.text) if line.is_heading else line.text
    return markup(f'<{element} dir="auto">{{}}</{element}>', text)


def _block(kind: str, left: Markup, record: Record, raters: Sequence[str]) -> Markup:
    """Return lines with the evidence of their proposal, which can be linked to."""
    number = int(record["proposal"])
    return markup(
        '<section class="block {}" aria-labelledby="proposal-{}">{}<div class="evidence"><div>'
        '<h3 id="proposal-{}">Proposal {}: {}, round {}</h3>{}</div></div></section>',
        kind,
        number,
        left,
        number,
        number,
        _ACTIONS.get(record["action"], record["action"]),
        record["round"],
        _evidence(record, raters),
    )


def _evidence(record: Record, raters: Sequence[str]) -> Markup:
    """Return what a proposal did on dev, why it was made, of which traces, and why it was not kept if it was not."""
    rows: list[tuple[str, object]] = []
    findings = record.get("findings") or ([record["reason"]] if record.get("reason") else [])
    if findings:
        rows.append(("not kept, because", _list(findings)))
    rows.append((f"{FIGURE_NAMES.get(record['figure'], record['figure'])} on dev", _changed(record)))
    if len(raters) > 1 and record.get("raters"):
        rows[-1] = (f"{rows[-1][0]}, mean of the raters", rows[-1][1])
        each = [f"{name}: {_changed(record['raters'][name])}" for name in raters if name in record["raters"]]
        rows.append(
            ("of each rater", markup("<details><summary>{} raters</summary>{}</details>", len(each), _list(each)))
        )
    if record["why"]:
        rows.append(("the writer's reason", markup('<span dir="auto">{}</span>', record["why"])))
    draws: dict[str, list[str]] = {}
    for trace in record["traces"]:
        known = draws.setdefault(str(trace["item_id"]), [])
        known += [str(trace["draw"])] if str(trace["draw"]) not in known else []
    listed = [f"{item}: {'draw' if len(found) == 1 else 'draws'} {', '.join(found)}" for item, found in draws.items()]
    if len(listed) > 3:
        count = sum(map(len, draws.values()))
        folded = markup("<details><summary>{} of {} items</summary>{}</details>", count, len(draws), _list(listed))
        rows.append(("suggested by traces", folded))
    else:
        rows.append(("suggested by traces", _list(listed) if listed else "none in particular"))
    return markup("<dl>{}</dl>", join(markup("<dt>{}</dt><dd>{}</dd>", name, value) for name, value in rows))


def _list(texts: Iterable[object]) -> Markup:
    return markup("<ul>{}</ul>", join(markup('<li dir="auto">{}</li>', text) for text in texts))


def _lines_of(title: str, texts: Sequence[str], element: str) -> Markup:
    """Return a titled list of lines, added or taken away; nothing for none."""
    rows = join(markup(f'<li><{element} dir="auto">{{}}</{element}></li>', text) for text in texts if text.strip())
    return markup('<p class="tag">{}</p><ul class="lines">{}</ul>', title, rows) if rows else Markup()


def _taken_out(
    refined: Guideline, kept: Sequence[Record], by_line: Mapping[int, Record], raters: Sequence[str]
) -> Markup:
    """Return kept proposals that the guideline does not show whole: what they took out, or wrote and lost again."""
    standing = {line.text for line in refined.lines}
    replaced = {(record["proposal"], record["replaces"]) for record in by_line.values()}
    beside = {record["proposal"] for record in by_line.values()}
    parts = []
    for record in kept:
        number = record["proposal"]
        out = [text for text in record["removed"] if text not in standing and (number, text) not in replaced]
        left = _lines_of("Taken out", out, "del")
        if number in beside:
            link = markup('see <a href="#proposal-{}">proposal {}</a>', number, number)
            right = markup('<div class="block out"><div>{}</div><p class="evidence">{}</p></div>', left, link)
            parts += [right] if left else []
        else:
            again = [text for text in record["added"] if text not in standing]
            left += _lines_of("Written, and changed or taken out again", again, "del")
            left = left or Markup('<p class="tag">Its lines were moved or written again</p>')
            parts.append(_block("out", markup("<div>{}</div>", left), record, raters))
    return markup("<h2>Lines that no longer stand</h2>\n{}", join(parts, "\n")) if parts else Markup()


def _agreement(summary: Mapping[str, Any], figure: str) -> Markup:
    """Return agreement with people and of the raters with each other, before and after, on test and on dev."""
    decided = "nothing, by this method" if summary["method"] == "paper" else "what was kept"
    notes = {"test": "rated once; these items decided nothing", "dev": f"these items decided {decided}"}
    parts = [markup("<h2>Agreement before and after</h2>\n<p>{} with people's label.</p>", figure)]
    if not summary["changed"]:
        parts.append(Markup("<p>The guideline is the original, so before and after are the same ratings.</p>"))
    for part, note in notes.items():
        found = summary.get(part)
        if found is None:
            parts.append(markup("<p>The {} split was not rated.</p>", part))
            continue
        heading = f"{part.capitalize()} split: {found['items']:,} items, {note}; {found['resampled']} are resampled"
        changes = found["changes"]
        rated = [(name, changes[name]) for name in summary["raters"]]
        if len(rated) > 1:
            rated.append(("mean of the raters", changes["mean"]))
        rows = [
            (shown, [number_text(one["before"]), number_text(one["after"]), difference_text(one), p_text(one["p"])])
            for shown, one in rated
        ]
        heads = [f"rater, {part} split", "original", "refined", "difference", "one-sided p"]
        parts.append(markup("<h3>{}</h3>\n{}", heading, table(heads, rows)))
        if between := found["between_raters"]:
            before, after = between["before"], between["after"]
            rows = [
                (FIGURE_NAMES.get(name, name), [number_text(before[name]), number_text(after.get(name))])
                for name in before
            ]
            parts.append(table([f"raters with each other, {part}", "original", "refined"], rows))
    return join(parts, "\n")


def _not_kept(rejected: Sequence[Record], raters: Sequence[str], some_kept: bool) -> Markup:
    """Return the proposals that were not kept, folded, each with what it would have done and why not."""
    if not rejected:
        return Markup("<h2>Proposals that were not kept</h2>\n<p>None: all were kept.</p>") if some_kept else Markup()
    parts = []
    for record in rejected:
        left = _lines_of("Would have added", record["added"], "ins")
        left += _lines_of("Would have taken out", record["removed"], "del")
        left = left or Markup('<p class="tag">The same lines in another order</p>')
        parts.append(_block("no", markup("<div>{}</div>", left), record, raters))
    return markup(
        "<h2>Proposals that were not kept</h2>\n<details><summary>{} of them, with the reason</summary>\n{}</details>",
        len(rejected),
        join(parts, "\n"),
    )
