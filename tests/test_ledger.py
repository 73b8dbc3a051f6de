"""The ledger: which draws were made, what they matched, and that it can be rebuilt from the journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raters.gold import gold_labels
from raters.ledger import UNDRAWN, Ledger
from raters.records import Chance
from tests.small_corpora import DIMENSION, ORDINAL_3, small_corpus

# Items a, b, c with two, one and three labels; d has none.
LABELS = {"a": {"ann": 1, "bob": 3}, "b": {"ann": 2}, "c": {"ann": 3, "bob": 1, "cyd": 1}, "d": {}}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Per annotator, in the order c, a, b, with up to three first draws and two of each second chance."""
    corpus = small_corpus(tmp_path, LABELS, ORDINAL_3)
    labels = gold_labels(corpus, DIMENSION, "per-annotator")
    draws: dict[Chance, int] = {"first": 3, "escalated": 2, "rationalized": 2}
    return Ledger(corpus, corpus.dimension(None), labels, np.array([2, 0, 1]), draws, keep_all=True)


GIVEN = {("c", "ann"): 3, ("c", "bob"): 1, ("c", "cyd"): 1, ("a", "ann"): 1, ("a", "bob"): 3, ("b", "ann"): 2}
"""What each annotator said of each item of the fixture."""


def line(item_id: str, draw: int, verdict: int | None, accepted: bool, **more: Any) -> dict[str, Any]:
    return {
        "item_id": item_id,
        "annotator_id": None,
        "draw": draw,
        "chance": "first",
        "verdict": verdict,
        "label": GIVEN.get((item_id, more.get("annotator_id", "ann")), 1),
        "accepted": accepted,
        "trace": "It names a reason.",
        "answer": "",
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "completion_tokens": 3,
    } | more


def test_units_stand_together_in_the_order_of_work(ledger: Ledger) -> None:
    assert ledger.unit_rows.tolist() == [0, 0, 0, 1, 1, 2]
    assert [list(ledger.units(row)) for row in range(3)] == [[0, 1, 2], [3, 4], [5]]
    assert ledger.unit_numbers.tolist() == [2, 0, 0, 0, 2, 1]  # labels 3 1 1, 1 3, 2 as places
    assert [ledger.annotator_id(unit) for unit in range(6)] == ["ann", "bob", "cyd", "ann", "bob", "ann"]
    assert ledger.human_agreement.tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1 / 2, 1 / 2, 1])
    assert {chance: numbers.shape for chance, numbers in ledger.numbers.items()} == {
        "first": (3, 3),
        "escalated": (3, 2),
        "rationalized": (6, 2),
    }


def test_a_draw_is_entered_once_however_many_units_share_it(ledger: Ledger) -> None:
    assert ledger.missing("first", 0) == [0, 1, 2]
    for unit, accepted in ((0, False), (1, True), (2, True)):
        ledger.enter(line("c", 1, 1, accepted), 0, unit, offset=100 + unit)
    assert ledger.missing("first", 0) == [0, 2]
    assert ledger.numbers["first"][0].tolist() == [UNDRAWN, 0.0, UNDRAWN]
    assert ledger.totals.draws == {"first": 1}
    assert (ledger.totals.prompt_tokens, ledger.totals.completion_tokens) == (10, 3)
    assert ledger.unmatched(0) == [0]
    assert ledger.matched_draw.tolist() == [-1, 1, 1, -1, -1, -1]
    assert ledger.matched_offset.tolist() == [-1, 101, 102, -1, -1, -1]


def test_an_earlier_draw_wins_whenever_it_arrives(ledger: Ledger) -> None:
    ledger.enter(line("b", 2, 2, True), 2, 5, offset=200)
    ledger.enter(line("b", 0, 2, True), 2, 5, offset=300)
    ledger.enter(line("b", 1, 2, True), 2, 5, offset=400)
    assert (ledger.matched_draw[5], ledger.matched_offset[5]) == (0, 300)
    assert sorted((ledger.accepted or {})[5]) == [(0, 300), (1, 400), (2, 200)]


def test_a_first_draw_wins_over_a_second_chance(ledger: Ledger) -> None:
    ledger.enter(line("b", 0, 2, True, chance="rationalized"), 5, 5, offset=1)
    assert (ledger.matched_draw[5], ledger.matched_chance[5]) == (0, 2)
    ledger.enter(line("b", 1, 2, True, chance="escalated"), 2, 5, offset=2)
    assert (ledger.matched_draw[5], ledger.matched_chance[5], ledger.matched_offset[5]) == (1, 1, 2)
    ledger.enter(line("b", 2, 2, True), 2, 5, offset=3)
    assert (ledger.matched_draw[5], ledger.matched_chance[5], ledger.matched_offset[5]) == (2, 0, 3)
    assert (ledger.accepted or {})[5] == [(2, 3)]  # of first draws alone


def test_totals(ledger: Ledger) -> None:
    ledger.enter(line("c", 0, None, False, finish_reason="length", completion_tokens=50), 0, 0, 0)
    ledger.enter(line("c", 1, 2, False, completion_tokens=None, prompt_tokens=None), 0, 0, 0)
    ledger.enter(line("c", 0, 2, False, chance="escalated"), 0, 0, 0)
    totals = ledger.totals
    assert totals.draws == {"first": 2, "escalated": 1}
    assert totals.unreadable == 1
    assert totals.finish_reasons == {"length": 1, "stop": 2}
    assert (totals.prompt_tokens, totals.completion_tokens, totals.uncounted) == (20, 53, 1)
    assert np.isnan(ledger.numbers["first"][0, 0])
    assert ledger.missing("first", 0) == [2]


def test_a_row_is_done_when_all_its_units_match_or_all_draws_are_made(ledger: Ledger) -> None:
    assert ledger.rows_done(0) == ledger.rows_done(3) == 0
    ledger.enter(line("a", 0, 1, True), 1, 3, 0)
    ledger.enter(line("a", 0, 1, False), 1, 4, 0)
    assert ledger.rows_done(0) == 0
    ledger.enter(line("a", 1, 3, True), 1, 4, 0)
    assert (ledger.rows_done(0), ledger.rows_done(3)) == (1, 0)
    for draw in range(3):
        ledger.enter(line("b", draw, None, False), 2, 5, 0)
    assert (ledger.rows_done(0), ledger.rows_done(3)) == (2, 1)


def test_there_is_work_while_an_open_unit_has_a_second_chance(ledger: Ledger) -> None:
    for row, item_id, units in ((0, "c", (0, 1, 2)), (1, "a", (3, 4)), (2, "b", (5,))):
        for draw in range(3):
            for unit in units:
                ledger.enter(line(item_id, draw, 2, unit not in (0, 5)), row, unit, 0)
    assert ledger.rows_done(3) == 3
    assert ledger.has_work(3)  # units 0 and 5 are open
    for row, item_id in ((0, "c"), (2, "b")):
        for draw in range(2):
            ledger.enter(line(item_id, draw, None, False, chance="escalated"), row, 0 if row == 0 else 5, 0)
    assert ledger.has_work(3)
    for draw in range(2):
        ledger.enter(line("c", draw, None, False, chance="rationalized"), 0, 0, 0)
    assert ledger.has_work(3)  # unit 5 was not rationalized
    ledger.enter(line("b", 0, 2, True, chance="rationalized"), 5, 5, 0)
    assert not ledger.has_work(3)  # a matched unit needs no further chance


def test_replay_takes_what_belongs_to_the_ledger_and_returns_the_last_line(ledger: Ledger) -> None:
    lines = [
        line("c", 0, 1, False, annotator_id="ann"),
        line("c", 0, 1, True, annotator_id="bob"),
        line("c", 0, 1, True, annotator_id="cyd"),
        line("elsewhere", 0, 1, True, annotator_id="ann"),
        line("c", 3, 3, True, annotator_id="ann"),  # a fourth draw, of a run with a larger k
        line("a", 1, 3, True, annotator_id="bob", chance="rationalized"),
        line("b", 0, None, False, annotator_id="ann"),
    ]
    last = ledger.replay((number + 1, 10 * number, record) for number, record in enumerate(lines))
    assert last == lines[-1]
    assert ledger.totals.draws == {"first": 2, "rationalized": 1}
    assert ledger.matched_draw.tolist() == [-1, 0, 0, -1, 1, -1]
    assert ledger.matched_chance.tolist() == [0, 0, 0, 0, 2, 0]
    assert ledger.matched_offset.tolist() == [-1, 10, 20, -1, 50, -1]
    assert ledger.numbers["rationalized"][4].tolist() == [UNDRAWN, 2.0]
    assert ledger.numbers["first"][0].tolist() == [0.0, UNDRAWN, UNDRAWN]


def test_replay_of_nothing(ledger: Ledger) -> None:
    assert ledger.replay([]) is None
    assert ledger.totals.draws == {}


def test_with_aggregated_labels_a_row_has_one_unit_and_nobodys_name(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, LABELS, ORDINAL_3)
    labels = gold_labels(corpus, DIMENSION, "median")
    ledger = Ledger(corpus, corpus.dimension(None), labels, labels.items[::-1].copy(), {"first": 2})
    assert ledger.unit_rows.tolist() == [0, 1, 2]
    assert [ledger.annotator_id(unit) for unit in range(3)] == [None] * 3
    assert ledger.unit_numbers.tolist() == [0, 1, 1]  # c: 3 1 1, b: 2, a: 1 and 3
    assert ledger.accepted is None


def test_labels_of_items_beyond_a_limit_are_left_out(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, LABELS, ORDINAL_3)
    labels = gold_labels(corpus, DIMENSION, "per-annotator")
    ledger = Ledger(corpus, corpus.dimension(None), labels, np.array([1]), {"first": 2})
    assert ledger.unit_rows.tolist() == [0]
    assert ledger.unit_numbers.tolist() == [1]
