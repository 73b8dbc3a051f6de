"""What people made of a run's traces, and that training and guidelines go by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.finetune_rater import main as finetune
from pipelines.refine_guideline import main as refine
from raters.journal import Record, read_lines
from raters.records import DataError
from raters.review_page.book import ReviewBook
from raters.review_page.label_index import LabelIndex
from raters.reviews import REVIEWS, learned_from, read_reviews, trace_problem
from raters.trace_runs import TraceRun
from raters.training_data import example_id, read_lessons
from raters.training_pairs import rejected_draws
from tests.small_corpora import ORDINAL_3, PAIRWISE, varied_texts, write_corpus, write_jsonl
from tests.small_runs import draw, run_of
from tests.small_training import write_trace_run
from tests.stage_runs import read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a run whose train items have draws 0 and 2 rejected and draw 1 accepted and kept."""
    return write_trace_run(tmp_path)


def book_of(folder: Path) -> ReviewBook:
    return ReviewBook(LabelIndex.of(TraceRun.read(folder)))


def reviewed(folder: Path, *asked: dict[str, Any]) -> TraceRun:
    book = book_of(folder)
    for one in asked:
        book.add(one)
    return TraceRun.read(folder)


def by_item(run: TraceRun) -> dict[str, Record]:
    return {record["item_id"]: record for record in learned_from(run)}


def test_a_run_that_nobody_reviewed_is_learned_from_as_it_was_kept(folder: Path) -> None:
    run = TraceRun.read(folder)
    assert list(learned_from(run)) == [record for _, _, record in read_lines(folder / "traces.jsonl")]
    assert run.reviews == {}


def test_rejected_and_corrected_labels(folder: Path) -> None:
    before = TraceRun.read(folder)
    index = LabelIndex.of(before)
    first, second = index.keys[0][0], index.keys[1][0]
    run = reviewed(
        folder,
        {"place": 0, "action": "reject"},
        {"place": 1, "action": "correct", "chance": "first", "draw": 2, "trace": " It is put otherwise now. "},
    )
    kept, now = by_item(before), by_item(run)
    assert now.keys() == kept.keys() - {first}
    changed = now.pop(second)
    assert now.items() <= kept.items()
    assert (changed["trace"], changed["draw"], changed["reviewed"]) == ("It is put otherwise now.", 2, "corrected")
    assert changed["verdict"] == changed["label"] == kept[second]["label"]
    assert changed["prompt"] == kept[second]["prompt"]
    answer = f"<think>\nIt is put otherwise now.\n</think>\n\n<rating>{changed['label']}</rating>"
    assert changed["completion"] == [{"role": "assistant", "content": answer}]
    lessons = {lesson.key[0]: lesson for lesson in read_lessons(run)}
    assert first not in lessons
    assert (lessons[second].trace, lessons[second].label) == ("It is put otherwise now.", kept[second]["label"])
    assert example_id(changed) == f"{second}/2/corrected"
    # The draw that was corrected is no longer one to learn against; the other rejected one is.
    pairs = [(one.trace, other.trace) for one, other, _ in rejected_draws(run, list(lessons.values()), 9)]
    assert [other[-3:] for one, other in pairs if one == "It is put otherwise now."] == [" 0."]


def test_choosing_another_draw_and_undoing_it(tmp_path: Path) -> None:
    labels = {"a": 1, "b": 2, "c": 3}
    draws = [
        draw("a", 0, "First of a.", 1, 1), draw("a", 1, "Second of a.", 1, 1), draw("a", 2, "Third of a.", 2, 1),
        draw("b", 0, "First of b.", 2, 2, flags=["no_reasoning"]), draw("b", 1, "Second of b.", 2, 2),
        draw("c", 0, "First of c.", 1, 3), draw("c", 0, "Escalated of c.", 3, 3, chance="escalated"),
    ]  # fmt: skip
    run = run_of(tmp_path, draws, labels)
    write_jsonl(run.kept, [{**draws[0], "completion": []}, {**draws[3], "completion": []}])
    index = LabelIndex.of(run)
    assert [index.keys[place] for place in range(3)] == [("a", None), ("b", None), ("c", None)]
    assert index.accepted.tolist() == [2, 2, 1]
    book = ReviewBook(index)
    book.add({"place": 0, "action": "choose", "chance": "first", "draw": 1})
    book.add({"place": 1, "action": "choose", "chance": "first", "draw": 0})
    book.add({"place": 2, "action": "choose", "chance": "escalated", "draw": 0})
    read_again = read_reviews(run.folder / REVIEWS, run.dimension.name)
    assert read_again == book.reviews

    def again() -> TraceRun:
        return TraceRun(run.folder, run.manifest, run.corpus, run.generator, run.split, run.method, run.kept,
                        read_reviews(run.folder / REVIEWS, run.dimension.name))  # fmt: skip

    now = again()
    assert [record["trace"] for record in learned_from(now)] == ["Second of a.", "First of b.", "Escalated of c."]
    # Draw 0 of a, which nobody wanted, is neither accepted nor rejected; what a person chose is not doubtful.
    found = list(zip(now.draws.records(range(len(now.draws))), now.draws.accepted, now.draws.doubtful, strict=True))
    assert [(record["trace"], bool(yes), bool(doubt)) for record, yes, doubt in found] == [
        ("Second of a.", True, False), ("Third of a.", False, False), ("First of b.", True, False),
        ("First of c.", False, False),
    ]  # fmt: skip
    assert now.learned_sha256 != run.learned_sha256
    book.add({"place": 0, "action": "undo"})
    assert next(record["trace"] for record in learned_from(again())) == "First of a."
    for place in (1, 2):
        book.add({"place": place, "action": "undo"})
    assert again().learned_sha256 == run.learned_sha256
    assert len(again().draws) == 6


def test_the_last_review_of_a_label_counts_and_half_a_line_does_not(folder: Path) -> None:
    reviewed(folder, {"place": 0, "action": "reject"}, {"place": 0, "action": "choose", "chance": "first", "draw": 1})
    path = folder / REVIEWS
    assert [record["action"] for record in read(path)] == ["reject", "choose"]
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"item_id": "item0')
    (review,) = TraceRun.read(folder).reviews.values()
    assert review.action == "choose"
    book_of(folder).add({"place": 1, "action": "reject"})  # a new session cuts it off
    assert path.read_bytes().startswith(whole)
    assert len(read(path)) == 3


def test_a_correction_reaches_who_writes_a_guideline(folder: Path) -> None:
    asked = {"place": 0, "action": "correct", "chance": "first", "draw": 0, "trace": "Nobody had written this."}
    before, run = TraceRun.read(folder), reviewed(folder, asked)
    assert len(run.draws) == len(before.draws) - 1  # the accepted one that was not chosen
    (place,) = [at for at, one in enumerate(run.draws.records(range(len(run.draws)))) if "Nobody" in one["trace"]]
    assert run.draws.accepted[place]
    assert run.draws.numbers[place] == run.draws.labels[place]
    assert np.array_equal(run.draws.items, np.delete(before.draws.items, 1))


def test_what_select_traces_left_out_stays_out(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "traces.jsonl").read_text().splitlines(keepends=True)
    selected = tmp_path / "selected"
    selected.mkdir()
    (selected / "traces.jsonl").write_text("".join(lines[2:]))
    manifest = {"stage": "select_traces", "status": "complete", "traces": str(folder)}
    (selected / "manifest.json").write_text(json.dumps(manifest))
    correct = {"action": "correct", "chance": "first", "draw": 1}
    reviewed(
        folder,
        {"place": 0, **correct, "trace": "Corrected, and left out."},
        {"place": 5, **correct, "trace": "Corrected, and kept."},
        {"place": 6, "action": "reject"},
    )
    run = TraceRun.read(selected)
    assert run.is_selected
    found = [record["trace"] for record in learned_from(run)]
    assert len(found) == len(lines) - 2 - 1
    assert "Corrected, and kept." in found
    assert "Corrected, and left out." not in found


def test_a_pair_that_was_shown_in_exchanged_order(tmp_path: Path) -> None:
    folder = write_trace_run(tmp_path, PAIRWISE)
    index = LabelIndex.of(TraceRun.read(folder))
    offset = index.offsets[index.starts[1]]
    place = next(
        place
        for place in range(len(index))
        if index.find(place, "first", 1)[1]["swapped"]  # type: ignore[index]
    )
    assert offset is not None
    run = reviewed(folder, {"place": place, "action": "correct", "chance": "first", "draw": 0, "trace": "Other words."})
    item_id = index.keys[place][0]
    (lesson,) = [lesson for lesson in read_lessons(run) if lesson.key[0] == item_id]
    (plain,) = [lesson for lesson in read_lessons(TraceRun.read(folder)) if lesson.key[0] == item_id]
    kept = {record["item_id"]: record for record in read(folder / "traces.jsonl")}[item_id]
    assert (lesson.rating, lesson.label, lesson.swapped) == (plain.rating, plain.label, True)
    assert lesson.rating == str(run.dimension.scale.swapped(kept["label"]))
    assert by_item(run)[item_id]["prompt"] == kept["prompt"]


# --- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"place": 0, "action": "choose", "chance": "first", "draw": 0}, "its verdict is not the person's label"),
        ({"place": 0, "action": "choose", "chance": "first", "draw": 9}, "no such draw"),
        ({"place": 0, "action": "choose", "chance": "first", "draw": "1"}, "no such draw"),
        ({"place": 0, "action": "choose", "chance": "escalated", "draw": 1}, "no such draw"),
        ({"place": 0, "action": "choose"}, "no such draw"),
        ({"place": 10_000, "action": "reject"}, "place 10000"),
        ({"place": -1, "action": "reject"}, "place -1"),
        ({"place": True, "action": "reject"}, "place True"),
        ({"action": "reject"}, "place None"),
        ({"place": 0, "action": "delete"}, "action 'delete'"),
        ({"place": 0, "action": ["reject"]}, "action ['reject']"),
        ({"place": 0, "action": "correct", "chance": "first", "draw": 1, "trace": "  \n "}, "is blank"),
        ({"place": 0, "action": "correct", "chance": "first", "draw": 1}, "trace None"),
        ({"place": 0, "action": "correct", "chance": "first", "draw": 1, "trace": "a\ud800b"}, "half a character"),
        ({"place": 0, "action": "correct", "chance": "first", "draw": 1, "trace": "so </Think> 3"}, "holds </think>"),
        ({"place": 0, "action": "correct", "chance": "first", "draw": 1, "trace": "x" * 200_001}, "200,001 characters"),
    ],
)
def test_what_is_no_review_is_refused_and_not_written(folder: Path, asked: dict[str, Any], said: str) -> None:
    book = book_of(folder)
    with pytest.raises(DataError) as error:
        book.add(asked)
    assert said in str(error.value)
    assert not (folder / REVIEWS).exists()
    assert book.reviews == {}


GOOD = {"item_id": "item00", "dimension": "quality", "annotator_id": None, "action": "choose", "chance": "first",
        "draw": 1, "offset": 0, "trace": None, "reviewed_at": ""}  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "no json", "[1]", "{}", '{"item_id": 1}',
        *(json.dumps({**GOOD, **changes}) for changes in (
            {"dimension": "tone"}, {"action": "keep"}, {"draw": None}, {"draw": "1"}, {"chance": "third"},
            {"offset": None}, {"item_id": 3}, {"annotator_id": 3}, {"more": 1}, {"action": "correct"},
            {"action": "correct", "trace": "a <rating>3"}))],
)  # fmt: skip
def test_a_line_that_is_no_review_is_named(folder: Path, line: str) -> None:
    (folder / REVIEWS).write_text(line + "\n")
    with pytest.raises(DataError, match=r"reviews\.jsonl line 1: "):
        TraceRun.read(folder)


def test_a_review_of_a_draw_that_is_not_there(folder: Path) -> None:
    (folder / REVIEWS).write_text(json.dumps({**GOOD, "item_id": "item01", "offset": 3}) + "\n")
    with pytest.raises(DataError, match=r"is not in candidates\.jsonl as it was reviewed"):
        list(learned_from(TraceRun.read(folder)))


def test_all_rejected_leaves_nothing_to_learn(folder: Path) -> None:
    count = len(LabelIndex.of(TraceRun.read(folder)))
    run = reviewed(folder, *({"place": place, "action": "reject"} for place in range(count)))
    with pytest.raises(DataError, match="reviews leave no trace"):
        read_lessons(run)


@pytest.mark.parametrize("text", ["Two lines.\nAnd <b>bold</b>.", "评论很好", "x" * 200_000])
def test_what_may_be_a_trace(text: str) -> None:
    assert trace_problem(text) == ""


# --- the stages -------------------------------------------------------------------------------------------


def test_training_and_refining_go_by_reviews(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of either belongs to the reviews it was made under, and another needs another folder."""
    from pipelines.infer_traces import main as infer

    monkeypatch.setattr("raters.training_report.plot_curves", lambda *arguments: None)
    texts = varied_texts(160)
    labels = {item_id: {"ann": 1 + n % 3} for n, item_id in enumerate(texts)}
    write_corpus(tmp_path / "corpus", labels, ORDINAL_3, inputs=texts)
    traces = tmp_path / "traces"
    options = ["--corpus", str(tmp_path / "corpus"), "--strategy", "fixed", "--k", "4"]
    assert infer([*options, "--out", str(traces)]) == 0
    train = ["--traces", str(traces), "--base", "student", "--steps", "2", "--batch", "4", "--eval-steps", "2",
             "--dev-limit", "8", "--dev-draws", "1", "--rating-batch", "64", "--rank", "4"]  # fmt: skip
    write = ["--traces", str(traces), "--max-proposals", "1", "--no-test", "--resamples", "200", "--draws", "1"]
    assert finetune([*train, "--out", str(tmp_path / "tuned")]) == 0
    assert refine([*write, "--out", str(tmp_path / "refined")]) == 0
    kept = json.loads((tmp_path / "tuned" / "summary.json").read_text())["traces"]
    index = LabelIndex.of(TraceRun.read(traces))
    places = [place for place in range(len(index)) if index.accepted[place]][:5]
    reviewed(traces, *({"place": place, "action": "reject"} for place in places))
    for stage, arguments, out in ((finetune, train, "tuned"), (refine, write, "refined")):
        with pytest.raises(ValueError, match="belongs to another run"):
            stage([*arguments, "--out", str(tmp_path / out)])
        capsys.readouterr()
        assert stage([*arguments, "--out", str(tmp_path / f"{out}-again")]) == 0
    assert json.loads((tmp_path / "tuned-again" / "summary.json").read_text())["traces"] == kept - 5
    draws = len(read(traces / "candidates.jsonl"))
    left_out = int(index.accepted[places].sum())
    assert f"{draws - left_out:,} draws of embedded" in capsys.readouterr().err
