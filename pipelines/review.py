"""Stage: a page on this machine to read a run's draws beside each other and to say which traces are good."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field

from pipelines.command import INTERRUPTED, run_command
from pipelines.options import parse_options, positional
from pipelines.screen import say
from raters.options import StageOptions
from raters.records import ConfigError, DataError

STAGE = "review"
DESCRIPTION = """\
Read items, labels, accepted and rejected draws of a run of infer_traces side by side, in a web browser: choose the
better trace of a label, correct one, or reject all. Keys do everything; ? on the page names them.

  python -m pipelines.review runs/demo/traces

Writes to RUN: reviews.jsonl, a line a choice; the last one of a label counts. finetune_rater, refine_guideline and
select_traces go by them. Ctrl-C ends it. The page is served to this machine alone, under an address that holds a
secret; from another one, forward the port: ssh -L 8765:localhost:8765 HOST, with --port 8765 there."""


class ReviewOptions(StageOptions):
    """Options of review."""

    run: str | None = positional("folder of a finished run of infer_traces, or of select_traces on one; needed")
    corpus: str | None = Field(None, description="where that run's corpus is now (default: where it was)")
    port: int = Field(0, ge=0, le=65_535, description="port of this machine; 0 for a free one")


def main(arguments: Sequence[str]) -> int:
    """Run the stage and return its exit status."""
    options = parse_options(ReviewOptions, STAGE, DESCRIPTION, arguments)
    if options.run is None:
        raise ConfigError("RUN: missing; give the folder of a finished run of infer_traces")
    from raters.review_page.book import ReviewBook
    from raters.review_page.label_index import LabelIndex
    from raters.review_page.server import ReviewServer
    from raters.reviews import REVIEWS
    from raters.runs import hold
    from raters.trace_runs import TraceRun

    try:
        run = TraceRun.read(Path(options.run), options.corpus)
    except (ConfigError, DataError) as error:
        raise type(error)(str(error).replace("--traces ", "", 1)) from error
    path = run.folder / REVIEWS
    with hold(run.folder / ".reviews.lock", str(path)):
        index = LabelIndex.of(run, _telling())
        book = ReviewBook(index)
        server = ReviewServer(book, options.port)
        reviewed = f", {len(book.reviews):,} of them reviewed" if book.reviews else ""
        say(f"corpus {run.corpus.name}: {len(index):,} labels on {run.dimension.name}{reviewed}; Ctrl-C ends")
        print(server.address, flush=True)
        serving = threading.Thread(target=server.serve_forever, name="review", daemon=True)
        serving.start()
        try:
            while serving.is_alive():
                time.sleep(3600)
        except KeyboardInterrupt:
            say(f"\n{book.made:,} reviews made; {len(book.reviews):,} labels are reviewed in {path}")
            return INTERRUPTED
        finally:
            server.shutdown()
            server.server_close()
    return 0


def _telling() -> Callable[[int], None]:
    """Return what says now and then how many draws were read."""
    due = time.monotonic() + 2.0

    def tell(draws: int) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + 2.0
            say(f"  reading draws: {draws:,}")

    return tell


if __name__ == "__main__":
    sys.exit(run_command(STAGE, main))
