from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raters.gold import default_method
from raters.rater_draws import RaterDraws
from raters.report import FIGURE_NAMES, report_html
from raters.scoring import score
from tests.small_corpora import INTERVAL, NOMINAL, ORDINAL_3, ORDINAL_5, PAIRWISE, small_corpus

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "& &amp; 'single'", "</style>\x00\u202ename")
SCALES = {"ordinal": ORDINAL_5, "nominal": NOMINAL, "pairwise": PAIRWISE, "interval": INTERVAL}
VOID = {"meta", "br", "img", "link", "hr", "input"}


def scored(
    folder: Path,
    scale: Mapping[str, Any] = ORDINAL_5,
    raters: int = 2,
    floors: int = 0,
    *,
    draws: int = 3,
    items: int = 40,
    annotators: int = 3,
    constant: bool = False,
    names: tuple[str, ...] = ("first", "second", "third", "fourth", "floor: rules", "floor: ridge"),
) -> dict[str, Any]:
    """Score scripted raters of a corpus whose labels follow the item's number, with noise."""
    chooser = np.random.default_rng(3)
    values = scale.get("labels") or list(range(0, 101))
    width = len(values)
    truth = chooser.integers(0, width, items)

    def noisy() -> np.ndarray[Any, Any]:
        return np.where(chooser.random(items) < 0.6, truth, chooser.integers(0, width, items))

    said = [np.zeros(items, int) if constant else noisy() for _ in range(annotators)]
    labels = {
        f"item{item}": {f"person{place}": values[said[place][item]] for place in range(annotators)}
        for item in range(items)
    }
    inputs = {item_id: {"left": "a b " * (place + 1), "right": "a b c"} for place, item_id in enumerate(labels)}
    corpus = small_corpus(folder, labels, scale, inputs=inputs)
    dimension = corpus.dimension(None)
    method = default_method(dimension.scale)
    made = []
    for place in range(raters + floors):
        numbers = np.array([noisy() for _ in range(draws)], float).T
        numbers[0, :] = np.nan
        swapped = np.zeros(numbers.shape, bool)
        swapped[:, ::2] = scale["type"] == "pairwise"
        name = names[place if place < raters else place - raters + len(names) - floors]
        drawn = np.full(items, draws)
        made.append(RaterDraws(name, np.arange(items), numbers, drawn, swapped, "majority"))
    return score(corpus, dimension, method, made[:raters], floors=made[raters:], resamples=200)


class Balance(HTMLParser):
    """Collects what a page holds, and fails on a tag that is closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(page: str) -> Balance:
    found = Balance()
    found.feed(page)
    found.close()
    assert not found.open
    return found


def text_of(page: str) -> str:
    return "".join(parsed(page).texts)


def figures_of(record: object) -> Iterator[dict[str, Any]]:
    if isinstance(record, dict):
        if {"value", "low", "high", "reason"} <= record.keys():
            yield record
        for value in record.values():
            yield from figures_of(value)
    elif isinstance(record, list):
        for value in record:
            yield from figures_of(value)


UTILISATION = {
    "corpus": "small", "model": "<b>model</b>",
    "utilisation": [
        {"k": 1, "share": 0.2, "null": 0.25, "null_sd": 0.02},
        {"k": 4, "share": 0.8125, "null": 0.625, "null_sd": 0.03},
        {"k": 6, "share": 0.9, "null": None, "null_sd": None},
    ],
}  # fmt: skip


@pytest.mark.parametrize("floors", [0, 2])
@pytest.mark.parametrize("raters", [1, 4])
@pytest.mark.parametrize("kind", sorted(SCALES))
def test_every_figure_is_in_a_page_that_is_well_formed(tmp_path: Path, kind: str, raters: int, floors: int) -> None:
    scores = scored(tmp_path, SCALES[kind], raters, floors)
    page = report_html(scores, utilisation=UTILISATION)
    text = text_of(page)
    figures = list(figures_of(scores))
    assert len(figures) >= 10
    for figure in figures:
        assert figure["reason"] in text
        if figure["value"] is not None:
            assert f"{figure['value']:.3f}" in text
        if figure["low"] is not None:
            assert f"[{figure['low']:.3f}, {figure['high']:.3f}]" in text
    for rater in (*scores["raters"], *scores["floors"]):
        assert rater["rater"] in text
        assert f"{100 * rater['coverage']:.1f} %" in text
        matrix = rater["confusion"]
        for count in (*(count for counts in matrix["counts"] for count in counts), *matrix["unreadable"]):
            assert f">{count:,}</td>" in page
        for share in (*rater["verdict_shares"].values(), *rater["label_shares"].values()):
            assert f"{100 * share:.1f} %" in text
        assert f"{rater['alternative_annotator_test']['advantage']:.3f}" in text
    for difference in scores["differences"]:
        assert f"{difference['p_holm']:.3f}" in text
    for name in scores["human"]["ceiling"]:
        assert FIGURE_NAMES[name] in text
    assert ("Raters among each other" in text) == (raters > 1)
    assert ("chose first shown" in text) == (kind == "pairwise")
    assert ("rho with length" in text) == (kind != "nominal")
    assert ("floors" in text) == (floors > 0)


def test_page_asks_the_network_for_nothing(tmp_path: Path) -> None:
    page = report_html(scored(tmp_path, floors=2), utilisation=UTILISATION)
    for reference in ("http:", "https:", "src=", "url(", "@import", "<script", "<link", "href"):
        assert reference not in page
    assert "default-src 'none'" in page


def test_hostile_texts_are_shown_and_do_nothing(tmp_path: Path) -> None:
    names = (*HOSTILE, "<u>floor</u>", "<u>ridge</u>")
    scores = scored(tmp_path, NOMINAL, 4, 2, names=names)
    labels = {"<i>yes</i>": 0.25, 'no & "never"': 0.5, "<svg onload=x>": 0.25}
    for rater in (*scores["raters"], *scores["floors"]):
        rater |= {"verdict_shares": labels, "label_shares": labels}
    scores["dropped_items"] = {"<u>reason</u>": 1}
    scores["partial"] = [{"rater": "<u>partial</u>", "items": 3, "of_items": 4, "draws": 3, "of_draws": None}]
    matrix = {"labels": ["<i>yes</i>", "<u>no</u>"], "counts": [[1, 2], [3, 0]], "unreadable": [0, 1]}
    scores["raters"][0]["confusion"] = matrix
    scores["raters"][0]["agreement"]["cohen_kappa"] |= {"value": None, "reason": "<u>undefined</u>"}
    scores["human"]["ceiling"]["cohen_kappa"] |= {"value": None, "low": None, "reason": '" onload="x'}
    certificate = {"rater": HOSTILE[0], "certified": False, "reason": "<u>refused</u>", "<u>key</u>": {"<b>": ["<u>"]}}
    page = report_html(scores, utilisation=UTILISATION, certificates=[certificate])
    for hostile in ("<script", "<img", "<u>", "<i>yes", "<b>model", "<svg onload", "\x00", "\u202e"):
        assert hostile not in page
    found = parsed(page)
    assert not {tag for tag, _ in found.tags} & {"script", "img", "u"}
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    text = text_of(page)
    for shown in (*HOSTILE[:3], *labels, "<u>reason</u>", "<u>undefined</u>", "<u>refused</u>", "<u>key</u>"):
        assert shown in text


def test_labels_against_verdicts_are_shaded_by_their_share_of_the_row(tmp_path: Path) -> None:
    scores = scored(tmp_path, ORDINAL_3, 1)
    matrix = {"labels": ["1", "2", "3"], "counts": [[8, 1, 0], [0, 0, 0], [1000, 0, 1001]], "unreadable": [1, 0, 0]}
    scores["raters"][0]["confusion"] = matrix
    page = report_html(scores)
    (table,) = re.findall(r'<table class="confusion">.*?</table>', page, re.DOTALL)
    cells = re.findall(r'<td class="s(\d)( same)?" title="(.*?)">(.*?)</td>', table)
    # Fifths of a row, rounded up: 8 and 1 of 10; nothing of nothing; 1,000 and 1,001 of 2,001.
    assert [int(shade) for shade, *_ in cells] == [4, 1, 0, 1, 0, 0, 0, 0, 3, 0, 3, 0]
    assert [text for *_, text in cells] == ["8", "1", "0", "1", "0", "0", "0", "0", "1,000", "0", "1,001", "0"]
    assert [place for place, (_, same, *_) in enumerate(cells) if same] == [0, 5, 10]
    assert cells[3][2] == "1, unreadable: 10.0 %"
    for shade in range(1, 6):
        assert page.count(f"--s{shade}:#") == 2  # light and dark


def test_shares_of_a_rater_that_cannot_be_read_are_dashes(tmp_path: Path) -> None:
    scores = scored(tmp_path, ORDINAL_3, 1)
    scores["raters"][0]["verdict_shares"] = dict.fromkeys(("1", "2", "3"))
    assert "first, 2: -" in text_of(report_html(scores))


def test_labels_stand_in_plots_as_they_are_and_long_ones_without_their_middle(tmp_path: Path) -> None:
    scores = scored(tmp_path, ORDINAL_3, 1)
    for which in ("label_shares", "verdict_shares"):
        scores["raters"][0][which] = {"one": 0.5, "a label of more characters than fit above a bar": 0.5}
    words = re.findall(r"<text [^>]*>(.*?)</text>", report_html(scores))
    assert "one" in words
    assert "a label of mor…t above a bar" in words


def test_an_undefined_figure_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    scores = scored(tmp_path, ORDINAL_3, 2, constant=True)
    reasons = {figure["reason"] for figure in figures_of(scores) if figure["value"] is None}
    assert reasons - {""}
    text = text_of(report_html(scores))
    assert all(reason in text for reason in reasons)
    assert "None" not in text
    assert "nan" not in text


def test_one_annotator_gives_no_band_and_says_why(tmp_path: Path) -> None:
    scores = scored(tmp_path, ORDINAL_5, 1, annotators=1)
    text = text_of(report_html(scores))
    assert scores["human"]["ceiling"]["kendall_tau_b"]["reason"] in text
    assert "No band for people" in text
    assert scores["raters"][0]["alternative_annotator_test"]["reason"] in text


def test_the_page_can_be_read_by_a_screen_reader_and_on_a_phone(tmp_path: Path) -> None:
    found = parsed(report_html(scored(tmp_path, floors=1), utilisation=UTILISATION))
    tags = found.tags
    assert ("html", {"lang": "en"}) in tags
    assert any(tag == "meta" and attributes.get("name") == "viewport" for tag, attributes in tags)
    assert any(tag == "title" for tag, _ in tags)
    drawings = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(drawings) == 4
    assert all(drawing["aria-label"] and drawing["viewbox"] for drawing in drawings)
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in tags if tag == "th")
    tables = sum(tag == "table" for tag, _ in tags)
    assert tables == sum(attributes.get("class") == "scroll" for _, attributes in tags)


def test_scores_without_floors_or_partial_are_shown_and_the_page_is_always_the_same(tmp_path: Path) -> None:
    scores = scored(tmp_path)
    del scores["floors"]
    page = report_html(scores)
    assert page == report_html(json.loads(json.dumps(scores)))
    assert "Not complete" not in page


def test_utilisation_stands_beside_its_null(tmp_path: Path) -> None:
    text = text_of(report_html(scored(tmp_path, raters=1), utilisation=UTILISATION))
    assert "81.2 %" in text
    assert "62.5 %" in text
    single = {"utilisation": [{"k": 1, "share": 0.5, "null": None, "null_sd": None}]}
    assert "50.0 %" in text_of(report_html(scored(tmp_path / "again", raters=1), utilisation=single))


def test_a_certificate_is_flattened(tmp_path: Path) -> None:
    scores = scored(tmp_path, raters=1)
    certificate = {
        "rater": "first", "certified": True, "cost": {"cost_usd": 0.25, "seconds": None}, "compared_with": [],
        "agreement": scores["raters"][0]["agreement"], "versions": {},
    }  # fmt: skip
    text = text_of(report_html(scores, certificates=[certificate]))
    for shown in ("first: certified", "cost: cost_usd", "0.25", "agreement: kendall_tau_b", "compared_with"):
        assert shown in text
