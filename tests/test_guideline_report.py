from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from raters.dev_gate import Change, Decision
from raters.guideline_outcomes import proposals, provenance
from raters.guideline_report import guideline_report_html
from raters.guideline_text import Edit, Guideline
from raters.guidelines import Attempt
from raters.journal import Record
from raters.writers import Proposal, TraceId

ORIGINAL = Guideline.of("# Quality\n\nJudge the text.\n- 1: bad\n- 2: good\nMind the topic.\n")
NAN = float("nan")
ATTRIBUTES = {
    "aria-label": r"table: [\w ,-]+",
    "aria-labelledby": r"(proposal-\d+|path-title path-desc)",
    "charset": "utf-8",
    "class": "[a-z0-9 ]*",
    "content": r"width=device-width, initial-scale=1|default-src 'none'; style-src 'unsafe-inline'|light dark",
    "dir": "auto",
    "href": r"#proposal-\d+",
    "http-equiv": "Content-Security-Policy",
    "id": "[a-z]+(-[a-z]+|-[0-9]+)?",
    "lang": "en",
    "name": "viewport|color-scheme",
    "points": r"[-\d., ]*",
    "role": "img|region",
    "scope": "row|col",
    "tabindex": "0",
    "text-anchor": "start|middle|end",
    "value": r"\d+",
    "viewbox": r"0 0 \d+ \d+",
    **dict.fromkeys(("cx", "cy", "r", "x", "x1", "x2", "y", "y1", "y2"), r"-?\d+(\.\d+)?"),
}
"""What an attribute may say, whatever stands in the texts that the page shows."""
ELEMENTS = frozenset(
    "html head meta title style body main h1 h2 h3 p dl dt dd div section ol ul li span ins del b i small a details "
    "summary figure figcaption svg g desc line polyline circle text table thead tbody tr th td".split()
)


class Reader(HTMLParser):
    """Collects what a page holds, and fails on what no page of ours holds."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ELEMENTS
        for name, value in attrs:
            assert re.fullmatch(ATTRIBUTES[name], value or ""), f"{tag} {name}={value!r}"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        pytest.fail(f"a comment: {data}")

    def handle_pi(self, data: str) -> None:
        pytest.fail(f"an instruction: {data}")


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    assert page.encode("utf-8")
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in reader.tags:
        for target in attributes.get("aria-labelledby", attributes.get("href", "")).replace("#", "").split():
            assert target in ids
    return reader


def text_of(page: str) -> str:
    return "|".join(" ".join(text.split()) for text in read(page).texts if text.strip())


class Run(NamedTuple):
    """What the page is made of."""

    summary: dict[str, Any]
    refined: Guideline
    original: Guideline
    lines: list[Record]
    tried: list[Record]

    def page(self) -> str:
        return guideline_report_html(*self)


def decision(before: float, after: float, p: float, raters: int, reason: str = "") -> Decision:
    """Return a decision: rater number n is n hundredths above the mean, and the interval is the rise -0.2 to +0.05."""
    rise = after - before
    each = [Change(before + place / 100, after + place / 100, rise - 0.2, rise + 0.05, p) for place in range(raters)]
    return Decision(not reason, reason, Change(before, after, rise - 0.2, rise + 0.05, p), tuple(each))


def changes(raters: tuple[str, ...], before: float | None, after: float | None) -> dict[str, Any]:
    """Return a part of summary.json in which the mean rises by 0.25 at most."""
    ends = {"low": None, "high": None, "p": None} if before is None else {"low": 0.03, "high": 0.47, "p": 0.00001}
    one = {"before": before, "after": after, **ends}
    return {
        "items": 1234,
        "resampled": "groups",
        "changes": dict.fromkeys(("mean", *raters), one),
        "between_raters": {"before": {"icc3_1": 0.111}, "after": {"icc3_1": 0.222}} if len(raters) > 1 else None,
    }


def run_of(raters: tuple[str, ...] = ("embedded",)) -> Run:
    """Return a run of seven proposals, five of them kept, whose guideline is worked out by hand here.

    1 (kept) writes a section of two rules, 2 is refused by the gate, 3 (kept) sharpens line 3, 4 (kept) takes line 6
    out, 5 is refused by the lint, 6 (kept) sharpens the first rule of 1, 7 (kept) moves original line 4 down.
    """
    drafted = ORIGINAL.with_section("## How to rate", ["Read once.", "Count the sources.", "Then decide."], 1)
    three = drafted.apply(Edit("sharpen", 3, "Judge the text alone."), 3)
    four = three.apply(Edit("remove", 6), 4)
    # 1 title, 2 blank, 3 sharpened, 4 "1: bad", 5 "2: good", 6 blank, 7 heading, 8 blank, 9 to 11 rules.
    six = four.apply(Edit("sharpen", 10, "Count independent sources."), 6)
    seven = six.apply(Edit("move", 4, to=5), 7)
    sources = tuple(TraceId(item, draw) for item, draw in (("i1", 0), ("i1", 3), ("i1", 3), ("i2", 1)))
    many = tuple(TraceId(f"many{place}", 0) for place in range(5))
    added = drafted.apply(Edit("add", 3, "Prefer the longer."), 2)
    linted = three.apply(Edit("add", 3, "Usually rate 2."), 5)
    number = len(raters)
    attempts = [
        Attempt(Proposal(1, "instructions", drafted, "steps of the traces", many), ORIGINAL, 1, "kept", (),
                decision(0.1, 0.3, 0.004, number)),
        Attempt(Proposal(2, "add", added, "length wins", ()), drafted, 1, "gate", (),
                decision(0.3, 0.31, 0.4, number, "the rise from 0.300 to 0.310 may be chance (p 0.400)")),
        Attempt(Proposal(3, "sharpen", three, "raters judged the author", sources), drafted, 1, "kept", (),
                decision(0.3, 0.4, 0.01, number)),
        Attempt(Proposal(4, "remove", four, "topics are equal", ()), three, 1, "kept", (),
                decision(0.4, 0.45, 0.02, number)),
        Attempt(Proposal(5, "add", linted, "the common label", ()), four, 2, "lint",
                ("line 4: states a label frequency", "line 4: another finding")),  # type: ignore[arg-type]
        Attempt(Proposal(6, "sharpen", six, "sources repeat each other", ()), four, 2, "kept", (),
                decision(0.45, 0.5, 0.03, number)),
        Attempt(Proposal(7, "move", seven, "good first", ()), six, 2, "kept", (), decision(0.5, 0.55, 0.04, number)),
    ]  # fmt: skip
    lines = list(provenance(seven, ORIGINAL, attempts, "kendall_tau_b"))
    tried = list(proposals(attempts, raters, "kendall_tau_b"))
    summary = {
        "corpus": "essays", "dimension": "quality", "scale": "1..2", "method": "contrast", "figure": "kendall_tau_b",
        "raters": list(raters), "resampled": "items", "ended": "40 requests are the most", "changed": True,
        "proposals": {"kept": 5, "gate": 1, "lint": 1},
        "dev": changes(raters, 0.1, 0.55), "test": changes(raters, 0.125, 0.375),
    }  # fmt: skip
    return Run(json.loads(json.dumps(summary)), seven, ORIGINAL, lines, tried)


def nothing_kept(tried: int = 2) -> Run:
    run = run_of()
    rejected = [record for record in run.tried if record["outcome"] != "kept"][:tried]
    counts = {"kept": 0, **{name: sum(record["outcome"] == name for record in rejected) for name in ("gate", "lint")}}
    return run._replace(
        summary={**run.summary, "changed": False, "proposals": counts}, refined=ORIGINAL, lines=[], tried=rejected
    )


def sections(page: str) -> dict[str, str]:
    """Return the text below each heading of the second level, a bar for all tags between two texts."""
    parts = re.split(r"<h2[^>]*>(.*?)</h2>", page.partition("<main>")[2].partition("</main>")[0])
    texts = (re.sub(r"(\s*<[^>]+>\s*)+", "|", text) for text in parts[2::2])
    return dict(zip(parts[1::2], texts, strict=True))


def test_each_line_stands_beside_the_evidence_of_the_edit_that_brought_it() -> None:
    page = run_of().page()
    part = sections(page)["The guideline, line by line"]
    expected = (
        "|Original|# Quality|", "|Changed|Judge the text alone.|replaces|Judge the text.|",
        "|Proposal 3: sharpens a rule, round 1|", "|0.300 to 0.400, +0.100 [-0.100, +0.150], one-sided p 0.0100|",
        "|raters judged the author|", "|i1: draws 0, 3|i2: draw 1|",
        "|Original|- 2: good|", "|Moved|- 1: bad|was line 4|", "|Proposal 7: moves a rule, round 2|",
        "|New|## How to rate|Read once.|", "|Proposal 1: draft of the procedure, round 1|",
        "|0.100 to 0.300, +0.200 [+0.000, +0.250], one-sided p 0.0040|", "|5 of 5 items|many0: draw 0|",
        "|New|Count independent sources.|replaces|Count the sources.|",
        "|Proposal 6: sharpens a rule, round 2|", "|none in particular|",
        "|New|Then decide.|as above:|proposal 1|",
    )  # fmt: skip
    place = 0
    for one in expected:
        assert one in part[place:]
        # A bar may end one text and begin the next.
        place = part.index(one, place) + len(one) - 1
    assert part.count("steps of the traces") == 1
    numbers = [attributes["value"] for tag, attributes in read(page).tags if tag == "li" and "value" in attributes]
    assert numbers == ["1", "3", "4", "5", "7", "9", "10", "11"]


def test_what_was_taken_out_or_changed_again_is_shown_with_its_evidence() -> None:
    part = sections(run_of().page())["Lines that no longer stand"]
    assert "|Taken out|Mind the topic.|Proposal 4: takes a rule out, round 1|" in part
    assert "|0.400 to 0.450, +0.050 [-0.150, +0.100], one-sided p 0.0200|" in part
    assert "Count the sources." not in part
    assert "Judge the text." not in part
    run = run_of()
    # Another edit of the line that proposal 6 wrote leaves nothing of 6 in the guideline.
    place = next(place for place, line in enumerate(run.refined.lines) if line.proposal == 6)
    latest = run.refined.apply(Edit("sharpen", place + 1, "Count sources once."), 8)
    last = {**run.tried[-2], "proposal": 8, "added": ["Count sources once."], "removed": ["Count independent sources."]}
    lines = [{**record, **last, "text": "Count sources once."} if record["proposal"] == 6 else record
             for record in run.lines]  # fmt: skip
    page = run._replace(refined=latest, lines=lines, tried=[*run.tried, last]).page()
    part = sections(page)["Lines that no longer stand"]
    assert (
        "|Taken out|Count the sources.|Written, and changed or taken out again|Count independent sources.|Proposal 6: "
        "sharpens a rule, round 2|" in part
    )
    assert "|Count sources once.|replaces|Count independent sources.|" in sections(page)["The guideline, line by line"]


def test_the_head_says_what_came_out() -> None:
    run = run_of()
    text = text_of(run.page())
    assert (
        "on the test split Kendall tau-b with people rose from 0.125 to 0.375 (difference +0.250 [+0.030, +0.470], "
        "one-sided p < 0.0001). Kept: 5 of 7 proposals; 1 without a sure gain on dev, 1 refused by the lint." in text
    )
    for fact in ("essays", "quality", "1..2", "contrast: two drafts", "embedded", "40 requests are the most"):
        assert fact in text
    del run.summary["test"]
    text = text_of(run.page())
    assert "the test split was not rated" in text
    assert "The test split was not rated." in text


def test_a_fall_and_a_difference_that_may_be_none_are_said_plainly() -> None:
    run = run_of()
    run.summary["test"]["changes"]["mean"] = {"before": 0.5, "after": 0.25, "low": -0.4, "high": 0.1, "p": 0.9}
    assert (
        "fell from 0.500 to 0.250 (difference -0.250 [-0.400, +0.100], one-sided p 0.9000; the interval holds "
        "zero)" in text_of(run.page())
    )


def test_drafts_that_nobody_gated_are_said_to_be_so() -> None:
    run = run_of()
    assert "these items decided what was kept" in text_of(run.page())
    run.summary["method"] = "paper"
    text = text_of(run.page())
    assert "whatever they do on dev" in text
    assert "these items decided nothing, by this method" in text
    assert "decided what was kept" not in text


def test_nothing_kept_is_said_plainly() -> None:
    page = nothing_kept().page()
    text = text_of(page)
    assert (
        "The guideline stays as it was: nothing was kept. Proposals: 2; 1 without a sure gain on dev, 1 refused by the "
        "lint." in text
    )
    assert "Every line is the original's own." in text
    assert "before and after are the same ratings" in text
    assert "<svg" not in page
    assert "Lines that no longer stand" not in text
    nothing = text_of(nothing_kept(0).page())
    assert "The guideline stays as it was: nothing was proposed." in nothing
    assert "not kept" not in nothing


def test_what_undoes_itself_is_no_change() -> None:
    run = run_of()
    same = run._replace(summary={**run.summary, "changed": False}, refined=ORIGINAL, lines=[])
    assert "what was kept undid itself again" in text_of(same.page())


def test_proposals_that_were_not_kept_are_folded_with_the_reason() -> None:
    part = sections(run_of().page())["Proposals that were not kept"]
    assert part.index("|2 of them, with the reason|") < part.index("Prefer the longer.")
    assert "|Would have added|Prefer the longer.|Proposal 2: adds a rule, round 1|" in part
    assert "|the rise from 0.300 to 0.310 may be chance (p 0.400)|" in part
    assert "|0.300 to 0.310, +0.010 [-0.190, +0.060], one-sided p 0.4000|" in part
    assert "|line 4: states a label frequency|line 4: another finding|" in part
    assert "|not rated|" in part
    run = run_of()
    all_kept = run._replace(tried=[record for record in run.tried if record["outcome"] == "kept"])
    assert "None: all were kept." in text_of(all_kept.page())


def test_agreement_stands_in_a_row_for_each_rater_and_their_mean() -> None:
    page = run_of(("first", "second", "third")).page()
    part = sections(page)["Agreement before and after"]
    test = part[part.index("Test split") : part.index("Dev split")]
    assert "Test split: 1,234 items, rated once" in test
    for name in ("first", "second", "third", "mean of the raters"):
        assert f"|{name}|0.125|0.375|+0.250 [+0.030, +0.470]|&lt; 0.0001|" in test
    assert "|ICC(3,1)|0.111|0.222|" in test
    one = sections(run_of().page())["Agreement before and after"]
    assert "mean of the raters" not in one
    assert "ICC" not in one
    guideline = sections(page)["The guideline, line by line"]
    # The third rater is two hundredths above the mean.
    assert "|third: 0.320 to 0.420, +0.100 [-0.100, +0.150], one-sided p 0.0100|" in guideline


@pytest.mark.parametrize("raters", [("embedded",), tuple(f"rater{place}" for place in range(9))])
def test_the_path_has_a_line_for_each_rater_and_a_bar_for_each_interval(raters: tuple[str, ...]) -> None:
    page = run_of(raters).page()
    tags = read(page).tags
    lines = [attributes["points"].split() for tag, attributes in tags if tag == "polyline"]
    assert len(lines) == (1 if len(raters) == 1 else len(raters) + 1)
    assert all(len(points) == 6 for points in lines)
    heights = [[float(point.split(",")[1]) for point in points] for points in lines]
    assert all(all(later < earlier for earlier, later in pairwise(one)) for one in heights)
    assert sum(tag == "line" and attributes["class"].startswith("line ") for tag, attributes in tags) == 5
    assert (
        "original 0.100, after proposal 1 0.300, after proposal 3 0.400, after proposal 4 0.450, after proposal 6 "
        "0.500, after proposal 7 0.550." in text_of(page)
    )
    # Proposal 1 rises from 0.1 to 0.3 with an interval of 0 to 0.25: its bar reaches from 0.1 to 0.35, at its place.
    bar = next(one for tag, one in tags if tag == "line" and one["class"].startswith("line "))
    first, second = heights[-1 if len(raters) > 1 else 0][:2]
    assert float(bar["x1"]) == float(bar["x2"]) == float(lines[-1][1].split(",")[0])
    assert float(bar["y1"]) == pytest.approx(first, abs=0.11)
    assert float(bar["y2"]) == pytest.approx(first + 1.25 * (second - first), abs=0.2)
    width, height = 360, float(next(attributes for tag, attributes in tags if tag == "svg")["viewbox"].split()[3])
    for tag, attributes in tags:
        if tag == "text":
            assert 0 <= float(attributes["x"]) <= width
            assert 0 <= float(attributes["y"]) <= height


@pytest.mark.parametrize("value", [None, NAN])
def test_figures_that_are_not_known_are_dashes(value: float | None) -> None:
    run = run_of(("first", "second"))
    unknown = dict.fromkeys(("before", "after", "low", "high", "p"), value)
    for record in (*run.lines, *run.tried):
        record |= unknown
        record |= {"raters": dict.fromkeys(("first", "second"), unknown)} if "raters" in record else {}
    for part in ("dev", "test"):
        run.summary[part]["changes"] = dict.fromkeys(("mean", "first", "second"), unknown)
        run.summary[part]["between_raters"] = {"before": {"icc3_1": value}, "after": {"icc3_1": value}}
    page = run.page()
    text = text_of(page)
    assert "what that did on the test split cannot be said" in text
    assert "|No figure is known.|" in text
    assert "|ICC(3,1)|-|-|" in text
    assert not re.search(r"\b(nan|None|inf)\b", text.replace("None: all were kept", ""))
    # One figure missing in the middle leaves the others drawn.
    run = run_of()
    run.tried[2] |= {"after": value, "low": value}
    points = next(attributes["points"] for tag, attributes in read(run.page()).tags if tag == "polyline").split()
    assert len(points) == 5


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "javascript:alert(4)",
    "</title></style><style>*{display:none}</style>",
    "<!-- --><?php ?><![CDATA[",
    "</ins></li></ol></main><iframe srcdoc=x>",
    "&lt;b&gt; & &amp; {0} {} %s",
    "\x00\x01\x1b[31m\x7f\x85\u200b\u2028\u202e\u2066turned\u2069\ufeff\U000e0041\ud800",
)


def replaced(value: Any, hostile: Iterator[str]) -> Any:
    """Return a record with something hostile in place of every text that is not a key of ours."""
    if isinstance(value, dict):
        return {
            key: one if key in ("outcome", "resampled") else replaced(one, hostile) for key, one in value.items()
        }  # fmt: skip
    if isinstance(value, list):
        return [replaced(one, hostile) for one in value]
    return next(hostile) if isinstance(value, str) else value


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_texts_become_no_element_and_no_attribute(hostile: str) -> None:
    run = run_of(("first", "second"))
    for guideline in (run.refined, run.original):
        for line in guideline.lines:
            object.__setattr__(line, "text", hostile if line.text.strip() else "")
    names = [hostile, f"second {hostile}"]
    again = iter(lambda: hostile, None)
    lines, tried = ([replaced(record, again) for record in records] for records in (run.lines, run.tried))
    for record in tried:
        if "raters" in record:
            record["raters"] = dict(zip(names, record["raters"].values(), strict=True))
    summary = {**replaced(run.summary, again), "raters": names}
    for part in ("dev", "test"):
        values = list(summary[part]["changes"].values())
        summary[part]["changes"] = dict(zip(("mean", *names), values, strict=True))
        summary[part]["between_raters"] = {when: {hostile: 0.5} for when in ("before", "after")}
    page = Run(summary, run.refined, run.original, lines, tried).page()
    reader = read(page)
    assert sum(tag == "style" for tag, _ in reader.tags) == 1
    assert not [character for character in page if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
                and character not in "\n\t\u200c\u200d"]  # fmt: skip
    if hostile.isprintable():
        assert "".join(reader.texts).count(hostile) >= 30
    else:
        assert "turned" in "".join(reader.texts)


def test_letters_of_all_scripts_and_their_spaces_stay() -> None:
    kept = "ניסוח\u00a0می\u200cشود 規則\u3000评分 👩\u200d🔬\tQualité"
    run = run_of()
    run.tried[1]["why"] = kept
    assert kept in "".join(read(run.page()).texts)


def test_the_page_asks_nothing_of_anyone_and_is_always_the_same() -> None:
    run = run_of(("first", "second"))
    page = run.page()
    for reference in ("http:", "https:", "src=", "url(", "@import", "<script", "<link", "javascript:"):
        assert reference not in page
    assert "default-src 'none'" in page
    again = [json.loads(json.dumps(part)) for part in (run.summary, run.lines, run.tried)]
    assert page == guideline_report_html(again[0], run.refined, run.original, again[1], again[2])


def test_the_page_can_be_read_by_a_screen_reader_and_on_a_phone() -> None:
    tags = read(run_of(("first", "second")).page()).tags
    names = [tag for tag, _ in tags]
    levels = [int(name[1]) for name in names if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert all(attributes.get("scope") for tag, attributes in tags if tag == "th")
    assert names.count("table") == sum(attributes.get("class") == "scroll" for _, attributes in tags)
    svg = names.index("svg")
    assert tags[svg][1]["role"] == "img"
    assert names[svg + 1 : svg + 3] == ["title", "desc"]
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags
