"""Checkpoints: what is restored is what reading every line gives, and where they do not fit, every line is read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raters.checkpoints as checkpoints
from pipelines.infer_traces import STAGE, main
from raters.checkpoints import Checkpoint
from raters.corpora import Corpus
from raters.journal import Journal, Record
from raters.ledger import Ledger
from raters.plain_raters import plain_rater
from raters.rating_runs import RatingRun, RatingSheet
from raters.records import StorageError
from raters.sampling import SamplingOptions
from tests.small_corpora import Run as SamplingRun
from tests.small_corpora import ScriptedModel, rating, small_corpus, start_run
from tests.stage_runs import calls_of, leave_the_user, read, strict

ITEMS = 12


@pytest.fixture(autouse=True)
def _for_short_journals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "LEAST_BYTES", 1)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    labels = {f"i{number}": {"a": 1 + number % 5, "b": 1 + number * 7 % 5} for number in range(ITEMS)}
    return small_corpus(tmp_path / "corpus", labels)


def guess(prompt: str, seed: int) -> str:
    """Return a verdict that the seed decides; every seventh cannot be read."""
    return "no idea" if seed % 7 == 0 else rating(1 + seed % 5)


Kind = dict[str, Any]
KINDS: dict[str, Kind] = {
    "first acceptance": {},
    "all draws": {"options": SamplingOptions(strategy="fixed"), "keep_all": True},
    "per annotator": {"method": "per-annotator"},
    "second chances": {"k": 1, "escalate": ScriptedModel(guess), "explain": ScriptedModel(guess)},
}


def begin(corpus: Corpus, journal: Path, **kind: Any) -> SamplingRun:
    return start_run(corpus, journal, ScriptedModel(guess), **kind)


def empty(run: SamplingRun, path: Path) -> tuple[Ledger, Checkpoint]:
    """Return an empty ledger of the same run, with its checkpoint."""
    full = run.ledger
    ledger = object.__new__(Ledger)
    for name, value in vars(full).items():
        setattr(ledger, name, value.copy() if isinstance(value, np.ndarray) else value)
    ledger.totals = type(full.totals)()
    ledger.numbers = {chance: np.full_like(numbers, -np.inf) for chance, numbers in full.numbers.items()}
    ledger.matched_draw = np.full_like(full.matched_draw, -1)
    ledger.matched_chance = np.zeros_like(full.matched_chance)
    ledger.matched_offset = np.full_like(full.matched_offset, -1)
    ledger.accepted = None if full.accepted is None else {}
    return ledger, Checkpoint(Journal(path), ledger)


def resumed(run: SamplingRun, path: Path) -> tuple[Ledger, list[Record]]:
    """Return the ledger of a run that goes on, and the lines of the journal that it read."""
    ledger, checkpoint = empty(run, path)
    lines: list[Record] = []

    def noting(found: Any) -> Any:
        for number, offset, record in found:
            lines.append(record)
            yield number, offset, record

    ledger.replay(noting(checkpoint.recover()))
    assert checkpoint.journal.end[:2] == (path.stat().st_size, len(read(path)))
    assert checkpoint.last_record() == read(path)[-1]
    return ledger, lines


def same(found: Any, wanted: Any) -> None:
    """Check that two ledgers or sheets are equal in all they hold."""
    assert vars(found).keys() == vars(wanted).keys()
    for name, value in vars(wanted).items():
        other = getattr(found, name)
        if name == "numbers" and isinstance(value, dict):
            assert value.keys() == other.keys()
            for chance in value:
                np.testing.assert_array_equal(other[chance], value[chance])
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(other, value)
        elif name == "accepted" and value is not None:
            assert {unit: sorted(kept) for unit, kept in other.items()} == {
                unit: sorted(kept) for unit, kept in value.items()
            }
        elif name != "corpus":
            assert other == value, name


def drawn(corpus: Corpus, path: Path, **kind: Any) -> SamplingRun:
    """Return a run that is done, with a checkpoint."""
    run = begin(corpus, path, **kind)
    run.draw()
    Checkpoint(run.journal, run.ledger).save()
    return run


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_is_restored_is_what_reading_every_line_gives(corpus: Corpus, tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "candidates.jsonl"
    run = drawn(corpus, path, **kind)
    assert run.ledger.totals.unreadable
    assert (run.ledger.matched_draw >= 0).any()
    ledger, lines = resumed(run, path)
    assert lines == []
    same(ledger, run.ledger)


@pytest.mark.parametrize("kind", [{}, KINDS["all draws"], KINDS["per annotator"]], ids=["first", "all", "annotators"])
def test_more_draws_and_more_items_go_on_from_a_checkpoint(corpus: Corpus, tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "candidates.jsonl"
    before = drawn(corpus, path, **kind, k=2, limit=7)
    known = len(read(path))
    more = begin(corpus, path, **kind, k=5, limit=ITEMS)
    more.draw()
    ledger, lines = resumed(more, path)
    assert lines == read(path)[known:]
    assert len(lines) > known > len(before.ledger.rows)
    same(ledger, begin(corpus, path, **kind, k=5, limit=ITEMS).ledger)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def lose_the_end(path: Path) -> None:
    path.write_bytes(b"".join(lines_of(path)[:-1]))


def lose_a_line(path: Path) -> None:
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[:4] + lines[5:]))


def change_a_verdict(path: Path) -> None:
    lines = lines_of(path)
    place = next(place for place, line in enumerate(lines) if b'"verdict": 2' in line and b'"accepted": false' in line)
    lines[place] = lines[place].replace(b'"verdict": 2', b'"verdict": 1')
    path.write_bytes(b"".join(lines))


def exchange_lines_before_the_end(path: Path) -> None:
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines[1:3], lines[0], *lines[3:], lines[-1]]))


def cut(path: Path) -> None:
    saved = path.with_name("candidates.jsonl.checkpoint")
    saved.write_bytes(saved.read_bytes()[:-100])


def flip_a_byte(path: Path) -> None:
    saved = path.with_name("candidates.jsonl.checkpoint")
    content = bytearray(saved.read_bytes())
    content[zipfile.ZipFile(saved).infolist()[1].header_offset - 1] ^= 255  # the last one of an array
    saved.write_bytes(bytes(content))


def rubbish(path: Path) -> None:
    path.with_name("candidates.jsonl.checkpoint").write_bytes(b"rubbish")


def nothing(path: Path) -> None:
    path.with_name("candidates.jsonl.checkpoint").write_bytes(b"")


def of_something_else(path: Path) -> None:
    with path.with_name("candidates.jsonl.checkpoint").open("wb") as file:
        np.savez(file, numbers=np.zeros(3))


SPOILS = (
    lose_the_end, lose_a_line, change_a_verdict, exchange_lines_before_the_end, cut, flip_a_byte, rubbish, nothing,
    of_something_else,
)  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILS)
def test_where_a_checkpoint_does_not_fit_every_line_is_read(
    corpus: Corpus, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "candidates.jsonl"
    run = drawn(corpus, path, **KINDS["all draws"])
    spoil(path)
    ledger, lines = resumed(run, path)
    assert lines == read(path)
    same(ledger, begin(corpus, path, **KINDS["all draws"]).ledger)


@pytest.mark.parametrize(
    "changes",
    [
        {"k": 3}, {"keep_all": False}, {"method": "per-annotator"}, {"escalate": ScriptedModel(guess)},
        {"limit": 5}, {"options": SamplingOptions(strategy="fixed", seed=1)},
    ],
    ids=["fewer draws", "first kept", "other labels", "another chance", "fewer items", "another order"],
)  # fmt: skip
def test_what_was_counted_under_other_settings_is_not_restored(
    corpus: Corpus, tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = tmp_path / "candidates.jsonl"
    drawn(corpus, path, **KINDS["all draws"])
    other = begin(corpus, path, **{**KINDS["all draws"], **changes})
    ledger, lines = resumed(other, path)
    assert lines == read(path)
    same(ledger, other.ledger)


def test_a_torn_line_behind_a_checkpoint_is_cut_off(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    run = drawn(corpus, path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"item_id": "i1", "dra')
    ledger, lines = resumed(run, path)
    assert (lines, path.read_bytes()) == ([], whole)
    same(ledger, run.ledger)


def test_a_checkpoint_that_finds_no_room_stops_nothing(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise StorageError(f"{path}: cannot be written (No space left on device)")

    run = begin(corpus, tmp_path / "candidates.jsonl")
    run.draw()
    monkeypatch.setattr(checkpoints, "replacing", full)
    checkpoint = Checkpoint(run.journal, run.ledger)
    checkpoint.close()
    assert not checkpoint.path.exists()


def test_a_short_journal_has_none(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    run = begin(corpus, tmp_path / "candidates.jsonl")
    run.draw()
    Checkpoint(run.journal, run.ledger).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["candidates.jsonl", "corpus"]


def test_checkpoints_cost_a_run_little(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One a minute, or one in fifty times as long as it takes, if that is more."""
    run = begin(corpus, tmp_path / "candidates.jsonl")
    run.draw()
    now, saves = [1000.0], []
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    slow = checkpoints.np.savez

    def saving(file: Any, **arrays: Any) -> None:
        now[0] += 4.0
        saves.append(now[0])
        slow(file, **arrays)

    monkeypatch.setattr(checkpoints.np, "savez", saving)
    checkpoint = Checkpoint(run.journal, run.ledger)
    for _ in range(1000):
        now[0] += 1.0
        checkpoint.save_if_due()
    assert saves[0] == 1065.0
    assert set(np.diff(saves)) == {205.0}


async def rate(sheet: RatingSheet, journal: Journal) -> None:
    await RatingRun(sheet, journal, ScriptedModel(guess), 4, lambda: None).run()


def test_ratings_are_restored_too(corpus: Corpus, tmp_path: Path) -> None:
    import asyncio

    path = tmp_path / "ratings.jsonl"
    spec = plain_rater("openai/scripted", corpus, corpus.dimension(None), None)

    def sheet(items: Sequence[int], draws: int) -> tuple[RatingSheet, Checkpoint, int]:
        empty = RatingSheet.empty(corpus, spec, np.array(items), draws)
        checkpoint = Checkpoint(Journal(path), empty)
        lines = list(checkpoint.recover())
        empty.replay(lines)
        return empty, checkpoint, len(lines)

    first, checkpoint, _ = sheet(range(7), 2)
    asyncio.run(rate(first, checkpoint.journal))
    checkpoint.close()
    assert first.draws == 14
    assert first.unreadable

    second, checkpoint, lines = sheet(range(ITEMS), 3)
    assert (lines, second.draws) == (0, 14)
    asyncio.run(rate(second, checkpoint.journal))
    checkpoint.journal.close()  # killed before it could save
    third, _, lines = sheet(range(ITEMS), 3)
    assert lines == ITEMS * 3 - 14
    same(third, second)
    for items, draws in ((range(ITEMS), 1), (range(1, ITEMS), 3)):
        assert sheet(items, draws)[2] == ITEMS * 3


def test_a_run_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_the_user(tmp_path, monkeypatch)
    run = calls_of(STAGE, main, monkeypatch, capsys)
    run("--out", "whole", "--k", 6)
    run("--out", "parts", "--k", 2)
    known = len(read(tmp_path / "parts" / "candidates.jsonl"))
    read_lines: list[int] = []
    recover = Journal.recover

    def noting(self: Journal, after: tuple[int, int, int] = (0, 0, 0)) -> Any:
        read_lines.append(after[1])
        return recover(self, after)

    monkeypatch.setattr(Journal, "recover", noting)
    assert f"{known:,} draws are there already" in run("--out", "parts", "--k", 6).err
    assert read_lines == [known]
    assert strict(tmp_path / "parts" / "summary.json") == strict(tmp_path / "whole" / "summary.json")

    def timeless(name: str) -> list[Record]:
        return [{**record, "seconds": None} for record in read(tmp_path / name / "traces.jsonl")]

    assert timeless("parts") == timeless("whole")
