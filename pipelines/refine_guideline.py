"""Stage: synthesise a clearer guideline from traces, every edit gated on held-out labels."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.command import INTERRUPTED, run_command
from pipelines.options import parse_options
from pipelines.screen import say
from pipelines.session import draw_until_done, run_loop
from raters.records import JudgeseyeError, StorageError
from raters.refinement_options import RefineGuidelineOptions

if TYPE_CHECKING:
    from raters.refinement_inputs import Plan
    from raters.refining import RefinementRun
    from raters.runs import RunFolder

STAGE = "refine_guideline"
_SECONDS_BETWEEN_LINES = 10.0
DESCRIPTION = """\
Write a clearer guideline from the traces of a run of infer_traces, keep each edit only if it raises the raters'
agreement with people on the dev split, and rate the test split once with the guideline before and after.

  python -m pipelines.refine_guideline --traces runs/demo/infer_traces --rater embedded --rounds 3

Writes to --out: guideline.md, diff.md, provenance.jsonl, proposals.jsonl, raters/<rater>.yaml, report.html,
summary.json, test/<rater>-{original,refined}/ratings.jsonl, manifest.json. The same command again goes on where it
stopped."""


def main(arguments: Sequence[str]) -> int:
    """Run the stage and return its exit status."""
    options = parse_options(RefineGuidelineOptions, STAGE, DESCRIPTION, arguments)
    from raters.refinement_inputs import read_inputs
    from raters.runs import RunFolder

    plan = read_inputs(options)
    say(plan.describe())
    folder = RunFolder(plan.out, STAGE, plan.identity(), new=options.new)
    try:
        finished = _run(plan, folder)
    finally:
        folder.release()
    if finished is None:
        return INTERRUPTED
    from raters.refinement_text import summary_lines

    print("\n".join(summary_lines(finished)))
    files = "guideline.md, diff.md, provenance.jsonl, proposals.jsonl, raters/, report.html, summary.json"
    print(f"\nWritten to {folder.path}: {files}")
    return 0


class _Ticker:
    """Says now and then how far a long step is."""

    def __init__(self) -> None:
        self._due = time.monotonic() + _SECONDS_BETWEEN_LINES

    def tick(self, work: RefinementRun) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _SECONDS_BETWEEN_LINES
            say(f"  {work.progress()}")

    def close(self) -> None:
        """Nothing is open."""


def _run(plan: Plan, folder: RunFolder) -> dict[str, Any] | None:
    """Refine, rate the test split, write the results; return the summary, None if the user stopped it."""
    from raters.refining import RefinementRun

    ticker = _Ticker()
    work = RefinementRun(plan, folder, say=say, on_answer=ticker.tick)
    if work.spending.requests:
        say(f"continuing {folder.path}: {work.spending.requests:,} answers are there already")

    async def refine() -> bool:
        async with work.opened():
            return await draw_until_done(work, work.refine(), ticker)

    try:
        if not run_loop(refine()):
            folder.write_manifest(work.manifest("stopped"))
            say(f"{work.spending.requests:,} answers are kept in {folder.path}; give the same command again to go on")
            return None
        return work.finish()
    except JudgeseyeError as error:
        if not isinstance(error, StorageError):
            folder.write_manifest(work.manifest("failed"))
        if work.spending.requests:
            say(f"{work.spending.requests:,} answers are kept in {folder.path}; give the same command again to go on")
        raise


if __name__ == "__main__":
    sys.exit(run_command(STAGE, main))
