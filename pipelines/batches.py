"""`--batch submit` and `--batch collect` of infer_traces: draws by way of a provider's batch API."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.screen import say
from pipelines.session import run_loop
from raters.records import ConfigError, ModelError, StorageError

if TYPE_CHECKING:
    from raters.batch_rounds import Book, Part
    from raters.checkpoints import Checkpoint
    from raters.drawing import Source
    from raters.inference import Plan
    from raters.ledger import Ledger
    from raters.models.batch_api import BatchEndpoint
    from raters.sampling import Sampler

_ELSEWHERE = "http://batch-file/v1"
"""In place of an address where nothing is sent."""
_FIRST_SUBMIT = "give --batch submit first"


def batch_round(plan: Plan, ledger: Ledger, checkpoint: Checkpoint, begin: Callable[[], None] | None) -> bool:
    """Submit a round of draws, or collect what was submitted; return True if no draw is missing afterwards.

    Args:
        plan: What the run is.
        ledger: What was drawn.
        checkpoint: Of the journal.
        begin: Makes the folder of a new run; None if the run is there already.

    Raises:
        ConfigError: There is nothing to collect, or not in this way.
        ModelError: The provider failed, or a batch did.
    """
    from raters.batch_rounds import Book
    from raters.drawing import Source
    from raters.models import check_spec
    from raters.models.batch_api import BatchEndpoint
    from raters.sampling import Sampler

    options = plan.options
    name = check_spec(options.model)[1]
    in_a_file = options.batch_file is not None
    endpoint = BatchEndpoint(
        name,
        base_url=options.base_url or (_ELSEWHERE if in_a_file else None),
        request_timeout_seconds=options.request_timeout,
        connect_timeout_seconds=options.connect_timeout,
        max_retries=options.max_retries,
    )
    if begin is not None:
        if options.batch == "collect":
            raise ConfigError(f"--batch collect: there is no run in {checkpoint.journal.path.parent}; {_FIRST_SUBMIT}")
        begin()
    book = Book(checkpoint.journal.path.parent)
    source = Source(endpoint, plan.questions["first"])
    sampler = Sampler(ledger, checkpoint.journal, source, plan.sampling, on_draw=checkpoint.save_if_due)
    if (last := checkpoint.last_record()) is not None:
        sampler.complete_group(last)
    work = _submit if options.batch == "submit" else _collect
    try:
        run_loop(_closing(endpoint, work(plan, book, sampler, source, endpoint)))
    except KeyboardInterrupt:
        say("\nwhat is under way stays under way; give the same command again to go on")
        raise
    full_rows = plan.sampling.full_rows(len(ledger.rows))
    if ledger.has_work(full_rows):
        if options.batch == "collect":
            left = len(ledger.rows) - ledger.rows_done(full_rows)
            say(f"{left:,} items still need draws; --batch submit makes the next round, or go on without --batch")
        return False
    return True


async def _closing(endpoint: BatchEndpoint, work: Coroutine[None, None, None]) -> None:
    try:
        await work
    finally:
        await endpoint.close()


async def _submit(plan: Plan, book: Book, sampler: Sampler, source: Source, endpoint: BatchEndpoint) -> None:
    """Write a round, if none is under way, and send it or hand it out."""
    from raters.batch_rounds import submit, write_round

    options = plan.options
    handed_out = [part for part in book.under_way if part.status == "handed out"]
    if handed_out and options.batch_file is None:
        raise ConfigError(
            "--batch submit: the round under way was written with --batch-file; have that file answered, and give "
            "--batch collect --batch-file with the answers"
        )
    if options.batch_file is not None and any(part.status in ("submitting", "submitted") for part in book.under_way):
        raise ConfigError(
            f"--batch-file {options.batch_file}: the round under way has been submitted, and would be paid for twice; "
            "give --batch collect first"
        )
    if book.under_way:
        say(f"a round of {_requests(book.under_way)} is under way already; no other is made before it is collected")
    else:
        limits = {"most_requests": len(sampler.ledger.rows) * options.k + 1, "most_bytes": 2**63}
        parts = write_round(
            book,
            sampler,
            source,
            source.model.spec.partition("/")[2],
            options.batch_draws,
            **(limits if options.batch_file is not None else {}),
        )
        say(f"{_requests(parts)} written to {book.folder}")
    if options.batch_file is not None:
        _hand_out(book, Path(options.batch_file))
        return
    for part in await submit(book, endpoint):
        say(f"submitted {part.batch_id}: {part.requests:,} requests")
    say("--batch collect waits for the answers and takes them; it may be given at any time, and again")


def _hand_out(book: Book, target: Path) -> None:
    """Give the user the file of the round that is under way."""
    # First, so that a kill leaves no file with the user that could be submitted as well.
    for part in book.under_way:
        part.status = "handed out"
    book.save()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as whole:
            for part in book.under_way:
                with book.file(part).open("rb") as file:
                    shutil.copyfileobj(file, whole, 1 << 20)
    except OSError as error:
        raise StorageError(f"--batch-file {target}: cannot be written ({error.strerror}); give another") from error
    say(f"{target}: {_requests(book.under_way)}; give the file of answers to --batch collect --batch-file")


async def _collect(plan: Plan, book: Book, sampler: Sampler, source: Source, endpoint: BatchEndpoint) -> None:
    """Take the answers of all that is under way, waiting for them."""
    from raters.models.batch_api import ENDED

    options = plan.options
    if not book.under_way:
        raise ConfigError(f"--batch collect: no round is under way; {_FIRST_SUBMIT}")
    if options.batch_file is not None:
        _collect_file(book, sampler, source, endpoint, Path(options.batch_file))
        return
    if unsent := [part for part in book.under_way if part.status != "submitted"]:
        how = "--batch-file with its answers" if unsent[0].status == "handed out" else "--batch submit again"
        raise ConfigError(f"--batch collect: {unsent[0].name} was not submitted; give {how}")
    failure: ModelError | None = None
    while True:
        for part in list(book.under_way):
            assert part.batch_id is not None
            state = await endpoint.look(part.batch_id)
            if state.status not in ENDED:
                done = state.completed + state.failed
                say(f"{part.name}: {state.status}, {done:,} of {state.total or part.requests:,} requests done")
                continue
            if state.status != "completed":
                say(f"{part.name}: {state.status}{': ' if state.problem else ''}{state.problem}")
            files = []
            for kind, file_id, lines in (
                ("answers", state.output_file_id, state.completed),
                ("errors", state.error_file_id, state.failed),
            ):
                path = book.file(part, kind)
                if file_id is None:
                    continue
                if await endpoint.download(file_id, path, lines):
                    files.append(path)
                else:
                    say(f"{part.name}: the provider has its {kind} no longer")
            try:
                _take([part], book, sampler, source, endpoint, files)
            except ModelError as error:
                failure = failure or error
            if state.status == "failed":
                failure = failure or ModelError(
                    f"{source.model.spec}: {part.name} failed ({state.problem}); mend that, and give --batch submit "
                    "again"
                )
        if not book.under_way:
            break
        await asyncio.sleep(options.batch_poll)
    if failure is not None:
        raise failure


def _collect_file(book: Book, sampler: Sampler, source: Source, endpoint: BatchEndpoint, path: Path) -> None:
    """Take the answers of a round that the user had answered."""
    if any(part.status != "handed out" for part in book.under_way):
        raise ConfigError(
            f"--batch-file {path}: the round under way was not written with it; leave it out, and the answers are "
            "fetched"
        )
    if not path.is_file():
        raise ConfigError(f"--batch-file {path}: no such file; give the file of answers")
    _take(book.under_way, book, sampler, source, endpoint, [path], must_hold=True)


def _take(
    parts: list[Part],
    book: Book,
    sampler: Sampler,
    source: Source,
    endpoint: BatchEndpoint,
    files: list[Path],
    *,
    must_hold: bool = False,
) -> None:
    """Enter the answers to some files of requests, and then write down that they are there.

    Raises:
        ConfigError: If files of the user hold no line of them.
        ModelAccessError: If the provider has refused all of them.
    """
    from raters.batch_rounds import take_answers
    from raters.records import ModelAccessError

    refused: ModelAccessError | None = None
    asked = sum(part.requests for part in parts)
    try:
        tally = take_answers(sampler, source, endpoint, files)
    except ModelAccessError as error:
        refused = error
    else:
        if must_hold and not (tally.answered or tally.refused or tally.known or tally.again):
            raise ConfigError(
                f"--batch-file {files[0]}: holds no answer to this round; give the file that the answers were written "
                "to"
            )
        say(f"{', '.join(part.name for part in parts)}: {tally.describe(asked)}")
        if tally.no_access is not None and not (tally.answered or tally.known):
            refused = ModelAccessError(tally.no_access)
    sampler.journal.close()  # what is written down as collected must be on the disk
    for part in parts:
        part.status = "collected"
    book.save()
    if refused is not None:
        raise refused


def _requests(parts: list[Part]) -> str:
    count, files = sum(part.requests for part in parts), len(parts)
    return f"{count:,} requests" + (f" in {files} files" if files > 1 else "")
