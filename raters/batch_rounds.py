"""Rounds of draws that a provider's batch API answers: what goes into a round, what is under way, what came back.

A round has draws of the items that are still without an acceptance, in files of a size that the provider takes. What
is under way is written down before each step that another run of the command could not tell from one not taken: a file
is there before it is submitted, and a batch carries a token that is known before it is made. So a kill between any two
steps submits nothing twice. An answer enters the journal the way of every draw, and one that is there already is passed
over, so that collecting may be cut off and done again as well.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from raters.drawing import REFUSED, Source
from raters.journal import parse_line, replacing, write_atomically
from raters.ledger import UNDRAWN, Ledger
from raters.models.batch_api import MOST_BYTES, MOST_REQUESTS, BatchEndpoint, request_line
from raters.models.protocol import Completion, SamplingSettings
from raters.records import ConfigError, DataError, ModelAccessError, ModelError, ModelRequestError, StorageError
from raters.sampling import Sampler

FOLDER, _BOOK = "batches", "batches.json"
_LONGEST_ITEM, _LONGEST_DIMENSION = 36, 20
_PLAIN = re.compile(r"[\w.:@=+-]+", re.ASCII)
Status = Literal["written", "submitting", "submitted", "handed out", "collected"]


@dataclass(slots=True)
class Part:
    """One file of requests, and what became of it.

    Attributes:
        number: Counted from 1 over all rounds.
        requests: How many it has.
        token: What its batch carries, to be found by.
        status: `written` before it goes to the provider, `submitting` once a batch of it may exist, `submitted` once
            its batch is known, `handed out` if the user has it answered, `collected` in the end.
        file_id: The provider's name for the file.
        batch_id: And for the batch.
    """

    number: int
    requests: int
    token: str
    status: Status = "written"
    file_id: str | None = None
    batch_id: str | None = None

    @property
    def name(self) -> str:
        """How a user is told of it."""
        return self.batch_id or f"file {self.number}"


class Book:
    """What is known of all files of a run, kept in its folder.

    Args:
        run: The run's folder.

    Attributes:
        parts: All of them, in their order.

    Raises:
        ConfigError: If it cannot be read.
    """

    def __init__(self, run: Path) -> None:
        """Read what is there; nothing is made yet."""
        self.folder = run / FOLDER
        self.path = self.folder / _BOOK
        self.parts: list[Part] = []
        try:
            self.parts = [Part(**part) for part in json.loads(self.path.read_text(encoding="utf-8"))["parts"]]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path}: cannot be read ({error}); give another --out") from error

    @property
    def under_way(self) -> list[Part]:
        """Those whose answers are not in the journal yet."""
        return [part for part in self.parts if part.status != "collected"]

    def file(self, part: Part, kind: str = "requests") -> Path:
        """Return where a part's requests, answers or errors are."""
        return self.folder / f"{part.number:04}.{kind}.jsonl"

    def save(self) -> None:
        """Write down what is known.

        Raises:
            StorageError: If it cannot be written.
        """
        record = {"parts": [asdict(part) for part in self.parts]}
        write_atomically(self.path, json.dumps(record, indent=1) + "\n")


def open_draws(ledger: Ledger, full_rows: int, at_once: int) -> Iterator[tuple[int, int]]:
    """Yield (row, draw) of the next round.

    Args:
        ledger: What was drawn.
        full_rows: The first so many rows get all their draws.
        at_once: Most draws of a row that may stop early.
    """
    for row in range(len(ledger.rows)):
        missing = ledger.missing("first", row)
        if row >= full_rows and missing:
            needed = ledger.draws_needed(row, "first")
            missing = [draw for draw in missing if draw < needed][:at_once]
        for draw in missing:
            yield row, draw


class Names:
    """What requests are called: item, dimension and draw, each as it is if a provider takes it, else as a hash."""

    def __init__(self, ledger: Ledger) -> None:
        """Remember the items of a run."""
        self._ledger = ledger
        self._dimension = _plain(ledger.dimension.name, _LONGEST_DIMENSION)
        self._rows: dict[str, int] = {}

    def of(self, row: int, draw: int) -> str:
        """Return the `custom_id` of a draw, at most 64 characters."""
        item_id = self._ledger.corpus.item_ids[int(self._ledger.rows[row])]
        return f"{_plain(item_id, _LONGEST_ITEM)}/{self._dimension}/{draw}"

    def read(self, custom_id: object) -> tuple[int, int] | None:
        """Return (row, draw) of a `custom_id`; None if no draw of this run is called so."""
        if not self._rows:
            item_ids = self._ledger.corpus.item_ids
            self._rows = {_plain(item_ids[int(item)], _LONGEST_ITEM): row for row, item in enumerate(self._ledger.rows)}
        parts = custom_id.split("/") if isinstance(custom_id, str) else []
        if len(parts) != 3 or parts[1] != self._dimension or not re.fullmatch(r"\d{1,4}", parts[2], re.ASCII):
            return None
        row, draw = self._rows.get(parts[0]), int(parts[2])
        return None if row is None or draw >= self._ledger.numbers["first"].shape[1] else (row, draw)


def _plain(text: str, longest: int) -> str:
    if len(text) <= longest and _PLAIN.fullmatch(text):
        return text
    return "~" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=longest // 2 - 1).hexdigest()


def write_round(
    book: Book,
    sampler: Sampler,
    source: Source,
    model: str,
    at_once: int,
    *,
    most_requests: int = MOST_REQUESTS,
    most_bytes: int = MOST_BYTES,
) -> list[Part]:
    """Write the requests of the next round and return their files; nothing is sent yet.

    Args:
        book: Of the run.
        sampler: Of the run.
        source: What is asked.
        model: Its name, as the provider knows it.
        at_once: See `open_draws`.
        most_requests: Of one file.
        most_bytes: Of one file.

    Raises:
        StorageError: If they cannot be written.
    """
    settings: SamplingSettings = sampler.options.settings
    full_rows = sampler.options.full_rows(len(sampler.ledger.rows))
    draws, names = open_draws(sampler.ledger, full_rows, at_once), Names(sampler.ledger)
    lines = (
        request_line(model, names.of(row, draw), *sampler.asked("first", source, row, draw), settings)
        for row, draw in draws
    )
    try:
        book.folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"{book.folder}: cannot be made ({error.strerror}); mend that and try again") from error
    parts: list[Part] = []
    line = next(lines, None)
    while line is not None:
        part = Part(len(book.parts) + len(parts) + 1, 0, secrets.token_hex(16))
        size = 0
        with replacing(book.file(part)) as file:
            while line is not None and part.requests < most_requests and (not size or size + len(line) <= most_bytes):
                file.write(line)
                part.requests, size = part.requests + 1, size + len(line)
                line = next(lines, None)
        parts.append(part)
    if parts:
        book.parts += parts
        book.save()
    return parts


async def submit(book: Book, endpoint: BatchEndpoint) -> list[Part]:
    """Submit what is written and not submitted yet; return it.

    Raises:
        ModelError: The provider failed; what was submitted before is written down.
    """
    waiting = [part for part in book.parts if part.status in ("written", "submitting")]
    for part in waiting:
        if part.file_id is None:
            part.file_id = await endpoint.upload(book.file(part))
            book.save()
        may_exist = part.status == "submitting"
        part.status = "submitting"
        book.save()
        part.batch_id = await endpoint.submit(part.file_id, part.token, may_exist=may_exist)
        part.status = "submitted"
        book.save()
    return waiting


@dataclass(slots=True)
class Tally:
    """What files of answers held.

    Attributes:
        answered: Draws that were made.
        refused: Requests that the provider will never answer; they are draws as well.
        again: Requests that stay open and may be asked again.
        known: Answers that were in the journal already.
        unknown: Lines that are of no draw of this run.
        broken: Lines that cannot be read.
        reasons: Why requests stay open.
        no_access: What the provider said of the key or the model, if it refused one.
    """

    answered: int = 0
    refused: int = 0
    again: int = 0
    known: int = 0
    unknown: int = 0
    broken: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    no_access: str | None = None

    def describe(self, requests: int) -> str:
        """Return it in words.

        Args:
            requests: How many were asked.
        """
        missing = max(0, requests - self.answered - self.refused - self.again - self.known)
        why = f" ({self.reasons.most_common(1)[0][0]})" if self.reasons else ""
        words = [
            f"{self.answered:,} answered",
            f"{self.refused:,} refused for good" if self.refused else "",
            f"{self.again:,} failed{why}" if self.again else "",
            f"{missing:,} without a line" if missing else "",
            f"{self.known:,} there already" if self.known else "",
            f"{self.unknown:,} lines of other requests passed over" if self.unknown else "",
            f"{self.broken:,} lines cannot be read" if self.broken else "",
        ]
        return ", ".join(filter(None, words))


def take_answers(sampler: Sampler, source: Source, endpoint: BatchEndpoint, files: Sequence[Path]) -> Tally:
    """Enter all answers of some files, in the order of draws; return what they held.

    Args:
        sampler: Of the run.
        source: What was asked.
        endpoint: Reads answers.
        files: Those of one batch: answers first, then errors.

    Raises:
        ModelAccessError: If the model refused the first requests, all of them.
        StorageError: If the journal cannot be written.
    """
    tally, names, ledger = Tally(), Names(sampler.ledger), sampler.ledger
    places: dict[tuple[int, int], tuple[int, int]] = {}
    for number, path in enumerate(files):
        for offset, record in _records(path, tally):
            if (named := names.read(record.get("custom_id"))) is None:
                tally.unknown += 1
            elif ledger.numbers["first"][named] != UNDRAWN:
                tally.known += 1
            else:
                places.setdefault(named, (number, offset))
    opened = [path.open("rb") for path in files]
    try:
        for (row, draw), (number, offset) in sorted(places.items()):
            opened[number].seek(offset)
            record = parse_line(opened[number].readline(), str(files[number]))
            try:
                completion = endpoint.read_answer(record)
            except ModelRequestError as error:
                completion = Completion(str(error), "", REFUSED, None, None)
            except ModelError as error:
                tally.again += 1
                tally.reasons[str(error)] += 1
                if isinstance(error, ModelAccessError):
                    tally.no_access = tally.no_access or str(error)
                continue
            sampler.take("first", source, row, draw, completion, 0.0)
            if completion.finish_reason == REFUSED:
                tally.refused += 1
            else:
                tally.answered += 1
    finally:
        for file in opened:
            file.close()
    sampler.pool.settle(any_answer=bool(ledger.totals.draws))
    return tally


def _records(path: Path, tally: Tally) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (offset, record) of every line that is one."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                try:
                    yield offset, parse_line(line, str(path))
                except DataError:
                    tally.broken += 1
            offset += len(line)
