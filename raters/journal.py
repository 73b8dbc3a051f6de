"""Crash-safe append-only record files: one JSON object a line.

A line reaches the operating system before the next draw is asked for, so `kill -9` loses nothing that was
appended; only the machine's own death can lose the last second. A line that was cut off half way is removed when
the file is opened again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from raters.records import ConfigError, DataError

_SYNC_SECONDS = 1.0
Record = dict[str, Any]


def read_lines(path: Path, digest: hashlib._Hash | None = None) -> Iterator[tuple[int, int, Record]]:
    """Yield (line number from 1, byte offset, record) of every line of a record file.

    Args:
        path: A JSON-lines file in UTF-8; lines of white space alone are passed over.
        digest: Fed with every byte read, if given.

    Raises:
        DataError: If the file is missing or empty, or a line is not a JSON object in UTF-8.
    """
    offset, empty = 0, True
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the folder's name") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    with file:
        for line_number, line in enumerate(file, start=1):
            if digest is not None:
                digest.update(line)
            if line.strip():
                empty = False
                yield line_number, offset, parse_line(line, path, line_number)
            offset += len(line)
    if empty:
        raise DataError(f"{path}: holds no records; write one JSON object a line")


def parse_line(line: bytes, path: Path, line_number: int) -> Record:
    """Return the record of one line.

    Raises:
        DataError: If it is not a JSON object in UTF-8.
    """
    where = f"{path} line {line_number}"
    try:
        record = json.loads(line.removeprefix(b"\xef\xbb\xbf"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        shown = line.strip()[:60].decode("utf-8", "replace")
        raise DataError(f"{where}: not JSON ({error}): {shown!r}; write one JSON object a line") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: {str(record)[:60]!r} is not a JSON object; write one JSON object a line")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def to_line(record: Record) -> bytes:
    """Return a record as one line of a record file."""
    return json.dumps(record, ensure_ascii=False, separators=(", ", ": ")).encode() + b"\n"


def write_atomically(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        if isinstance(content, str):
            file.write(content.encode())
        elif isinstance(content, bytes):
            file.write(content)
        else:
            file.writelines(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def sha256_of(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


class Journal:
    """An append-only record file with one writer.

    Args:
        path: The file; made with its first record.
        prepare: Called before the file is made, to make its folder.
    """

    def __init__(self, path: Path, prepare: Callable[[], None] = lambda: None) -> None:
        """Remember where the journal is; nothing is opened yet."""
        self.path = path
        self._prepare = prepare
        self._descriptor: int | None = None
        self._size = 0
        self._synced = 0.0

    def recover(self) -> Iterator[tuple[int, Record]]:
        """Yield (byte offset, record) of all that was appended so far, and cut off a torn last line.

        Raises:
            ConfigError: If another process is writing this journal.
            DataError: If a line before the last one is broken.
        """
        if not self.path.exists():
            return
        self._open()
        offset = 0
        with self.path.open("rb") as file:
            for line_number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    os.truncate(self.path, offset)
                    break
                yield offset, parse_line(line, self.path, line_number)
                offset += len(line)
        self._size = offset

    def append(self, records: Sequence[Record]) -> list[int]:
        """Append records in one write and return the byte offset of each."""
        if self._descriptor is None:
            self._prepare()
            self._open()
        assert self._descriptor is not None
        lines = [to_line(record) for record in records]
        offsets = []
        for line in lines:
            offsets.append(self._size)
            self._size += len(line)
        rest = memoryview(b"".join(lines))
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        if (now := time.monotonic()) - self._synced > _SYNC_SECONDS:
            os.fsync(self._descriptor)
            self._synced = now
        return offsets

    def close(self) -> None:
        """Bring everything to the disk and let other processes write."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            self._descriptor = None
            raise ConfigError(
                f"{self.path}: another process is writing it; wait for it, or give another --out"
            ) from error
        self._size = os.fstat(self._descriptor).st_size


def read_at(path: Path, offsets: Iterable[int]) -> Iterator[Record]:
    """Yield the records of a record file that start at the given byte offsets."""
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            yield parse_line(file.readline(), path, 0)
