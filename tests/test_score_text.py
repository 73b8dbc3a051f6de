"""The scores on a terminal: no cell is cut, names stay apart, and what is missing has its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raters.score_text import progress_text, score_lines, without_middle
from raters.scoring import score
from tests.scored_corpora import ITEMS, NAN, corpus_of, random_numbers, rater
from tests.small_corpora import INTERVAL, NOMINAL, ORDINAL_5

LONG = "runs/ukpconvarg1/an-open-model-of-eight-billion-weights/rate_items"


def scored(folder: Path, names: tuple[str, ...], scale: dict[str, Any] = ORDINAL_5, people: int = 3) -> dict[str, Any]:
    labels = scale.get("labels") or [0, scale["max"] / 4, scale["max"]]
    corpus = corpus_of(folder, scale, labels, people)
    method: Any = {"ordinal": "median", "interval": "mean"}.get(scale["type"], "majority")
    how = "majority" if method == "majority" else "mean"
    raters = []
    for place, name in enumerate(names):
        numbers = random_numbers(place, len(labels))
        if scale["type"] == "interval":
            numbers = np.array(labels, float)[numbers.astype(int)]
        raters.append(rater(name, numbers, how))
    return {**score(corpus, corpus.dimension(None), method, raters, resamples=200), "partial": []}


def columns_of(lines: list[str], first: str) -> list[int]:
    """Return where the cells of a table end, from its first line to the next blank one."""
    start = next(place for place, line in enumerate(lines) if line.startswith(f"  {first} "))
    ends = set()
    for line in lines[start + 1 : lines.index("", start)]:
        if line.startswith(("  no value", "  cannot be")):
            break
        ends.add(len(line))
    return sorted(ends)


@pytest.mark.parametrize("scale", [ORDINAL_5, NOMINAL, INTERVAL, {"type": "interval", "min": 0, "max": 1_000_000}])
def test_a_column_is_as_wide_as_its_widest_cell(tmp_path: Path, scale: dict[str, Any]) -> None:
    scores = scored(tmp_path, ("a", "b"), scale)
    lines = list(score_lines(scores))
    for name, figure in scores["raters"][1]["agreement"].items():
        whole = f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
        (line,) = [line for line in lines if whole in line and " minus " not in line][:1]
        people = scores["human"]["ceiling"][name]
        assert line.endswith(f"{people['value']:.3f} [{people['low']:.3f}, {people['high']:.3f}]")
    # Lines with a cell in the last column end alike, and those without one column before it.
    assert len(columns_of(lines, "figure")) == 2
    assert len(columns_of(lines, "share of")) == 1


def test_long_names_lose_their_middle_and_stay_apart(tmp_path: Path) -> None:
    names = (f"{LONG}/one", f"{LONG}/two", LONG.replace("-eight-", "-seven-"), LONG)
    lines = list(score_lines(scored(tmp_path, names)))
    (head,) = [line for line in lines if line.startswith("  figure ")]
    # The last two differ in their middle alone.
    assert head.split()[1:5] == [*(without_middle(name, 28) for name in names[:2]), *names[2:]]


@pytest.mark.parametrize(
    ("name", "longest", "short"),
    [
        ("a", 5, "a"),
        ("abcde", 5, "abcde"),
        ("abcdefghij", 5, "ab…ij"),
        ("abcdefghij", 4, "ab…j"),
        ("abcdefghij", 9, "abcd…ghij"),
        ("評価者評価者", 7, "評価…者"),
    ],
)
def test_the_middle_is_left_out(name: str, longest: int, short: str) -> None:
    assert without_middle(name, longest) == short


def test_wide_characters_keep_the_columns_in_line(tmp_path: Path) -> None:
    """Each of these characters takes two columns of a terminal."""
    lines = list(score_lines(scored(tmp_path, ("評価者" * 4, "b"))))
    (head,) = [line for line in lines if line.startswith("  figure ")]
    (mse,) = [line for line in lines if line.startswith("  MSE ")]
    assert len(head) + 12 == len(mse)


def test_no_line_holds_a_line_break_or_another_control_character(tmp_path: Path) -> None:
    scores = scored(tmp_path, ("one\nforged: certified", "\x1b[31mred"))
    scores["corpus"] = "name\nforged"
    scores["partial"] = [{"rater": "a\nb", "items": 1, "of_items": 2, "draws": 1, "of_draws": 2}]
    for record in scores["raters"]:
        for which in ("label_shares", "verdict_shares"):
            record[which] = {f"{label}\u2028": share for label, share in record[which].items()}
    lines = list(score_lines(scores))
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if line.startswith("forged")]


def test_how_far_a_run_is() -> None:
    one = {"rater": "r", "items": 1200, "of_items": 1500, "draws": 1200, "of_draws": 3000}
    assert progress_text(one) == "r (1,200 of 1,500 items, 1,200 of 3,000 draws)"
    assert progress_text({**one, "of_items": None, "of_draws": None}) == "r (1,200 items, 1,200 draws)"


def test_a_reason_is_printed_once_with_all_whom_it_concerns(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5], people=1)
    raters = [rater("lost", [[NAN]] * ITEMS), rater("same", [[2.0]] * ITEMS), rater("alike", [[1.0]] * ITEMS)]
    scores = {**score(corpus, corpus.dimension(None), "median", raters, resamples=200), "partial": []}
    lines = list(score_lines(scores))
    assert "  no value or interval of any figure (lost): no item has both a label and a verdict" in lines
    assert "  no value or interval of Kendall tau-b, Spearman rho (same, alike): verdicts are constant" in lines
    (alone,) = [line for line in lines if line.endswith("(people): no item has two labels")]
    assert alone == "  no value or interval of alpha among them (people): no item has two labels"
    (tested,) = [line for line in lines if line.startswith("  cannot be tested for replacing people (")]
    assert "(lost, same, alike): no annotator has 30 items" in tested
    (difference,) = [line for line in lines if line.startswith("  Kendall tau-b: same minus alike")]
    assert difference.endswith("= -, p - (Holm)  (same: verdicts are constant)")


def test_many_raters_are_in_several_tables_with_the_same_rows(tmp_path: Path) -> None:
    names = tuple(f"rater{number}" for number in range(7))
    lines = list(score_lines(scored(tmp_path, names)))
    heads = [line.split() for line in lines if line.startswith("  figure")]
    shown = [name for head in heads for name in head if name in names]
    assert shown == list(names)
    begins = [index for index, line in enumerate(lines) if line.startswith("  figure")]
    rows = [[line[:20].strip() for line in lines[begin + 1 : begin + 12]] for begin in begins]
    assert len(rows) == 2
    assert rows[0] == rows[1]
    assert sum("people, each" in line for line in lines) == 1
