"""Checkpoints: what was counted from a journal so far, so that a resumed run reads the end of the journal alone.

A journal of a million items and sixteen draws each takes minutes to read line by line; the numbers that a run keeps
of it are read back in a second. The journal stays the truth: a checkpoint that does not fit it to the byte, as far
as a few looks can tell, is passed over, and everything is read again. Short journals have none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raters.journal import Journal, Record, read_at, replacing
from raters.records import StorageError

LEAST_BYTES = 32 * 2**20
"""A shorter journal is read in about a second."""
_LEAST_SECONDS = 60.0
_MOST_SHARE = 0.02
"""Of a run's time that may go into checkpoints."""
_LOOKS, _LOOK_BYTES, _LAST_BYTES = 64, 4096, 65536
_FACTS, _FORMAT = "facts", 2

Arrays = Mapping[str, NDArray[Any]]
Facts = Mapping[str, Any]


class Counted(Protocol):
    """What a run keeps in memory of its journal."""

    def state(self) -> tuple[Arrays, Facts]:
        """Return all that was entered, as arrays and as values that JSON has."""
        ...

    def restore(self, arrays: Arrays, facts: Facts) -> bool:
        """Take over what `state` returned; return False, and take nothing, if it was counted under other settings."""
        ...


class Checkpoint:
    """The checkpoint of one journal.

    Args:
        journal: Its file's name with `.checkpoint` behind it is where the checkpoint is.
        counted: What is saved and restored.
    """

    def __init__(self, journal: Journal, counted: Counted) -> None:
        """Remember what belongs together; nothing is read yet."""
        self.journal, self.counted = journal, counted
        self.path = journal.path.with_name(journal.path.name + ".checkpoint")
        self._saved_at, self._pause_seconds, self._saved_size = time.monotonic(), _LEAST_SECONDS, 0

    def recover(self) -> Iterator[tuple[int, int, Record]]:
        """Restore what fits, and yield the lines of the journal that came after it, as `Journal.recover` does.

        Raises:
            DataError: If a line is broken.
            StorageError: If nothing could be appended, which is better known before draws are paid for.
        """
        path = self.journal.path
        if path.exists() and not os.access(path, os.W_OK):
            raise StorageError(f"{path}: cannot be written ({os.strerror(errno.EACCES)}); mend that and try again")
        after = self._restored()
        self._saved_size = after[0]
        yield from self.journal.recover(after)

    def last_record(self) -> Record | None:
        """Return the last line of what was recovered, restored or read; None if there is none."""
        _, lines, offset = self.journal.end
        return next(read_at(self.journal.path, [offset])) if lines else None

    def save_if_due(self) -> None:
        """Save, if that was long enough ago; what is counted must be what the journal holds."""
        if time.monotonic() - self._saved_at > self._pause_seconds:
            self.save()

    def close(self) -> None:
        """Close the journal and save; what is counted must be what the journal holds.

        Raises:
            StorageError: If the journal does not reach the disk.
        """
        self.journal.close()
        if self.journal.end[0] != self._saved_size:
            self.save()

    def save(self) -> None:
        """Save, if the journal is long; a disk that is full is no reason to stop, since nothing is lost."""
        if self.journal.end[0] < LEAST_BYTES:
            return
        began = time.monotonic()
        arrays, facts = self.counted.state()
        size, lines, last = self.journal.end
        about = {
            "format": _FORMAT,
            "end": [size, lines, last],
            "looks": _looks(self.journal.path, size),
            "modified_ns": self.journal.path.stat().st_mtime_ns,
            _FACTS: facts,
        }
        with suppress(StorageError), replacing(self.path) as file:
            np.savez(file, **{**arrays, _FACTS: np.array(json.dumps(about))})  # type: ignore[arg-type]
        self._saved_at, self._saved_size = time.monotonic(), size
        self._pause_seconds = max(_LEAST_SECONDS, (self._saved_at - began) / _MOST_SHARE)

    def _restored(self) -> tuple[int, int, int]:
        """Return the end of the journal up to which everything is restored; zeros if nothing is."""
        try:
            with np.load(self.path, allow_pickle=False) as saved:
                about = json.loads(str(saved[_FACTS]))
                size, lines, last = map(int, about["end"])
                found = self.journal.path.stat()
                # Of a journal that did not grow since, nobody may have touched a byte.
                untouched = found.st_size > size or found.st_mtime_ns == about["modified_ns"]
                fits = found.st_size >= size and untouched and about["looks"] == _looks(self.journal.path, size)
                # Before the first number is taken over, since the arrays are then read one by one.
                if about["format"] != _FORMAT or not fits or saved.zip.testzip() is not None:
                    return 0, 0, 0
                return (size, lines, last) if self.counted.restore(saved, about[_FACTS]) else (0, 0, 0)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return 0, 0, 0


def _looks(journal: Path, size: int) -> str:
    """Return a hash of the last bytes before a size, and of others evenly spaced before them.

    A line that was removed, added or made longer moves the last bytes, so only changes that keep the length of every
    line can pass, and those where nobody looks.
    """
    digest = hashlib.blake2b(digest_size=16)
    with journal.open("rb") as file:
        for offset in np.linspace(0, max(size - _LOOK_BYTES, 0), _LOOKS).astype(int).tolist():
            file.seek(offset)
            digest.update(file.read(min(_LOOK_BYTES, size - offset)))
        file.seek(max(size - _LAST_BYTES, 0))
        digest.update(file.read(min(_LAST_BYTES, size)))
    return digest.hexdigest()
