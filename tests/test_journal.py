"""Record files: nothing that was appended is lost, whatever happens to the process."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import raters.journal as journal_module
from raters.journal import Journal, read_at, read_lines, sha256_of, to_line, write_atomically
from raters.records import DataError, StorageError
from tests.places import CHECKOUT
from tests.stage_runs import environment, wait_for_lines

RECORDS = [{"n": 1, "text": "eins"}, {"n": 2, "text": "zwei\nZeilen\u2028 „ü“ 🚲"}, {"n": 3, "text": ""}]


def written(path: Path, records: list[dict[str, object]] = RECORDS) -> Path:
    journal = Journal(path)
    journal.append(records)
    journal.close()
    return path


def recovered(path: Path) -> list[dict[str, object]]:
    journal = Journal(path)
    try:
        return [record for _, _, record in journal.recover()]
    finally:
        journal.close()


def test_what_was_appended_is_read_back_with_lines_and_offsets(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    offsets = journal.append(RECORDS[:1]) + journal.append(RECORDS[1:])
    journal.close()
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 4
    assert lines[3] == b""
    assert offsets == [0, len(lines[0]) + 1, len(lines[0]) + len(lines[1]) + 2]
    assert list(read_lines(path)) == [(n + 1, offsets[n], RECORDS[n]) for n in range(3)]
    assert list(read_at(path, [offsets[2], offsets[0]])) == [RECORDS[2], RECORDS[0]]
    assert list(Journal(path).recover()) == [(n + 1, offsets[n], RECORDS[n]) for n in range(3)]


def test_a_line_is_on_the_system_before_append_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for count in (1, 2, 3):
        journal.append(RECORDS[count - 1 : count])
        assert [record for _, _, record in read_lines(journal.path)] == RECORDS[:count]
    journal.close()


def test_nothing_is_made_before_the_first_record(tmp_path: Path) -> None:
    made: list[str] = []

    def prepare() -> None:
        made.append("folder")
        (tmp_path / "run").mkdir()

    journal = Journal(tmp_path / "run" / "journal.jsonl", prepare)
    assert list(journal.recover()) == []
    assert not journal.path.parent.exists()
    journal.append(RECORDS)
    journal.append(RECORDS)
    journal.close()
    assert made == ["folder"]
    assert recovered(journal.path) == RECORDS * 2


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_last_line_is_removed_and_nothing_else(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "journal.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + to_line({"n": 4, "text": "ü" * 20})[:-cut])
    journal = Journal(path)
    assert [record for _, _, record in journal.recover()] == RECORDS
    assert path.read_bytes() == whole
    assert journal.append([{"n": 5}]) == [len(whole)]
    journal.close()
    assert recovered(path) == [*RECORDS, {"n": 5}]


def test_a_journal_of_a_torn_line_alone_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"n": 1')
    assert recovered(path) == []
    assert path.read_bytes() == b""


def test_a_broken_line_in_the_middle_is_named_and_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "journal.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"n": 2, "te\n' + lines[2])
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"journal\.jsonl line 2: not JSON"):
        recovered(path)
    assert path.read_bytes() == before


APPENDER = """
import sys
from pathlib import Path
from raters.journal import Journal
journal = Journal(Path(sys.argv[1]))
for number in range(10_000_000):
    journal.append([{"n": number, "text": "ü" * (number % 997)}])
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def test_a_killed_process_loses_no_line_that_it_reported(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDER, str(path)], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    reported = [int(process.stdout.readline()) for _ in range(2_000)]
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    reported += [int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    assert process.wait() == -signal.SIGKILL
    numbers = [record["n"] for record in recovered(path)]
    assert len(reported) >= 2_000
    assert numbers[: len(reported)] == reported == list(range(len(reported)))
    # At most the record that was under way is there beside those reported.
    assert len(numbers) <= len(reported) + 1


def test_a_write_that_failed_half_way_spoils_no_later_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full in the middle of a record, and has room again when the next draw in flight arrives."""
    path, write = tmp_path / "journal.jsonl", os.write
    journal = Journal(path)
    journal.append(RECORDS[:1])
    room = iter([5])

    def full(descriptor: int, data: bytes) -> int:
        if (left := next(room, None)) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:left])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="No space left on device"):
        journal.append([{"n": 9, "text": "lost"}])
    monkeypatch.setattr(os, "write", write)
    with contextlib.suppress(StorageError):  # to refuse it would be as good
        (offset,) = journal.append(RECORDS[1:2])
        assert list(read_at(path, [offset])) == RECORDS[1:2]
    journal.close()
    assert recovered(path) in (RECORDS[:1], RECORDS[:2])


def test_a_model_may_write_half_an_emoji(tmp_path: Path) -> None:
    """JSON may hold half a surrogate pair, which UTF-8 cannot: a draw that is paid for must still be kept."""
    text = json.loads('"cut in half: \\ud83d"')
    path = tmp_path / "journal.jsonl"
    written(path, [{"n": 1, "text": text}])
    (record,) = recovered(path)
    assert record["n"] == 1
    assert str(record["text"]).startswith("cut in half: ")


def test_what_is_written_can_be_read_back() -> None:
    """No line may hold NaN or Infinity, which are no JSON and which reading refuses."""
    with pytest.raises(ValueError, match="JSON"):
        to_line({"seconds": float("nan")})


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, "old ü\n")
    assert path.read_bytes() == "old ü\n".encode()

    def lines() -> Iterator[bytes]:
        yield b"new "
        assert path.read_text(encoding="utf-8") == "old ü\n"
        yield b"file\n"

    write_atomically(path, lines())
    assert path.read_bytes() == b"new file\n"
    write_atomically(path, b"")
    assert path.read_bytes() == b""
    assert [found.name for found in tmp_path.iterdir()] == ["summary.json"]


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, "old\n")

    def lines() -> Iterator[bytes]:
        yield b"new"
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        write_atomically(path, lines())
    assert path.read_bytes() == b"old\n"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": 1', "not JSON"),
        (b"[1, 2]", "is not a JSON object"),
        (b"3", "is not a JSON object"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": "\xff"}', "byte 8 is not UTF-8"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_is_no_record_is_named_by_its_number(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"fine": 1}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"records\.jsonl line 3: .*{problem}") as caught:
        list(read_lines(path))
    assert len(str(caught.value)) < 1_000


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl: no such file"):
        list(read_lines(tmp_path / "nothing.jsonl"))
    (tmp_path / "empty.jsonl").write_bytes(b"\n  \n")
    with pytest.raises(DataError, match=r"empty\.jsonl: holds no records"):
        list(read_lines(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_lines(tmp_path))


def test_reading_can_hash_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": 2}')
    digest = hashlib.sha256()
    assert [record["a"] for _, _, record in read_lines(path, digest)] == [1, 2]
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_of("ü") == hashlib.sha256("ü".encode()).hexdigest()


def test_who_reads_while_it_is_written_sees_whole_lines_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", APPENDER, str(path)], cwd=CHECKOUT, env=environment(), stdout=subprocess.DEVNULL
    ) as process:
        try:
            wait_for_lines(path, 1, process)
            seen = 0
            while seen < 5_000:
                numbers = [record["n"] for _, _, record in read_lines(path, pass_over_torn=True)]
                assert numbers == list(range(len(numbers)))
                assert len(numbers) >= seen
                seen = len(numbers)
                assert process.poll() is None
        finally:
            process.kill()


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes that files had when they were brought to the disk; folders count as -1."""
    sizes: list[int] = []
    sync = os.fsync

    def noting(descriptor: int) -> None:
        found = os.fstat(descriptor)
        sizes.append(-1 if stat.S_ISDIR(found.st_mode) else found.st_size)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    return sizes


def test_a_small_batch_of_records_goes_to_the_disk_at_once(tmp_path: Path, synced: list[int]) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for _ in range(1000):
        journal.append(RECORDS[:1])
    size = journal.path.stat().st_size
    assert synced.count(-1) == 1, "a new file's name goes to the disk too"
    assert len(synced) <= 3, "not one for each record"
    journal.close()
    assert synced[-1] == size


def test_the_last_records_reach_the_disk_although_none_follows(
    tmp_path: Path, synced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst of answers, and then nothing for minutes: they must not wait for the next one."""
    monkeypatch.setattr(journal_module, "_SYNC_SECONDS", 0.05)
    journal = Journal(tmp_path / "journal.jsonl")
    for _ in range(2):
        journal.append(RECORDS)
        deadline = time.monotonic() + 10
        while synced[-1] != journal.path.stat().st_size:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    count = len(synced)
    time.sleep(0.3)
    assert len(synced) == count, "what is on the disk is not brought there again"
    journal.close()


def test_a_disk_that_fails_later_is_told_with_the_next_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_SYNC_SECONDS", 0.01)
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(RECORDS[:1])
    failed = threading.Event()

    def broken(descriptor: int) -> None:
        failed.set()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    assert failed.wait(10)
    time.sleep(0.3)  # until the failure is noted
    with pytest.raises(StorageError, match=r"journal\.jsonl: cannot be written \(Input/output error\)"):
        journal.append(RECORDS[1:2])
    with pytest.raises(StorageError, match="Input/output error"):
        journal.close()
    monkeypatch.undo()
    assert recovered(journal.path)[0] == RECORDS[0]


def test_a_replaced_file_is_on_the_disk_with_its_name(tmp_path: Path, synced: list[int]) -> None:
    write_atomically(tmp_path / "summary.json", "four")
    assert synced == [4, -1]


def test_recovery_can_begin_where_an_earlier_one_ended(tmp_path: Path) -> None:
    path = written(tmp_path / "journal.jsonl", RECORDS[:2])
    first = Journal(path)
    assert len(list(first.recover())) == 2
    end = first.end
    first.append(RECORDS[2:])
    later = first.end
    first.close()
    second = Journal(path)
    ((line_number, offset, record),) = second.recover(end)
    assert (line_number, offset, record) == (3, end[0], RECORDS[2])
    assert second.end == later == (path.stat().st_size, 3, end[0])
