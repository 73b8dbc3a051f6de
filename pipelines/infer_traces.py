"""Stage: infer the reasoning behind label-only annotations by rejection sampling.

A model rates each item up to k times without seeing the label. Draws whose verdict equals the person's label are
kept, and their reasoning stands in for the person's own (Zhang et al. 2026).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from pipelines.command import INTERRUPTED, run_command
from pipelines.options import parse_options
from pipelines.session import draw_until_done, how_to_go_on, progress_text, run_loop
from raters.inference_options import InferTracesOptions
from raters.records import BudgetError, JudgeseyeError

if TYPE_CHECKING:
    from raters.checkpoints import Checkpoint
    from raters.inference import Plan
    from raters.inferring import InferenceRun
    from raters.ledger import Ledger
    from raters.runs import RunFolder

STAGE = "infer_traces"
DESCRIPTION = """\
Infer the thinking behind label-only annotations: draw up to k ratings for each item from a model that does not see
the label, keep those that agree with the person, with their reasoning.

  python -m pipelines.infer_traces --corpus my_corpus --limit 20 --show 3
  python -m pipelines.infer_traces --corpus my_corpus --model openai/gpt-oss-120b --base-url http://localhost:8000/v1

Writes to --out: candidates.jsonl (every draw), traces.jsonl (kept ones), unmatched.jsonl, summary.json,
utilisation.svg, split.json, manifest.json. The same command again continues where it stopped."""


def main(arguments: Sequence[str]) -> int:
    """Run the stage and return its exit status."""
    options = parse_options(InferTracesOptions, STAGE, DESCRIPTION, arguments)
    from pipelines.screen import say
    from pipelines.workers import check_workers
    from raters.inference import read_inputs
    from raters.inference_checks import check_continuation
    from raters.inferring import InferenceRun
    from raters.runs import RunFolder
    from raters.shards import clear_up

    plan = read_inputs(options)
    say(plan.describe())
    folder = RunFolder(plan.out, STAGE, plan.identity(), new=options.new)
    try:
        check_continuation(plan, folder)
        workers = check_workers(options, folder.path if folder.previous else None, plan.models)
        if folder.previous:
            clear_up(folder.path / "candidates.jsonl")
        summary = _run(InferenceRun(plan, folder), workers)
    finally:
        folder.release()
    if summary is None:
        return INTERRUPTED
    if summary:
        _print_results(plan, folder, summary)
    return 0


def _run(run: InferenceRun, workers: int | None) -> dict[str, Any] | None:
    """Make the draws that are missing and write the results; return the summary.

    It is None if the user stopped it, and empty if what was done is one step of a batch's.
    """
    from pipelines.batches import batch_round
    from pipelines.screen import say
    from pipelines.workers import Tally, draw_in_shards, open_infer_traces
    from raters.ledger import UNDRAWN
    from raters.models import IN_PROCESS, check_spec
    from raters.shards import unfinished

    plan, folder, ledger, journal = run.plan, run.folder, run.ledger, run.journal
    if run.continued:
        say(f"continuing {folder.path}: {run.drawn:,} draws are there already")
    try:
        if plan.options.batch is not None and run.has_work:
            if not batch_round(plan, ledger, run.checkpoint, None if folder.previous else run.begin):
                run.checkpoint.close()
                folder.write_manifest(run.manifest("stopped"))
                return {}
        elif workers is not None and run.has_work:
            run.begin()
            done = draw_in_shards(
                plan.options,
                open_infer_traces,
                journal.path,
                workers,
                lambda shard: ledger.part(shard.rows(len(ledger.rows))),
                drawn=run.drawn,
                spent=plan.use(ledger),
                gpu=check_spec(plan.options.model)[0] in IN_PROCESS,
                tally=Tally(
                    missing=sum(int((numbers == UNDRAWN).sum()) for numbers in ledger.numbers.values()),
                    exact=plan.sampling.strategy == "fixed",
                    cost=lambda read, written: plan.prices["first"].usd(read, written) if plan.prices else None,
                    labels=len(ledger.matched_draw),
                    matched=int((ledger.matched_draw >= 0).sum()),
                ),
            )
            if not done:
                folder.write_manifest(run.manifest("stopped"))
                return None
            ledger.replay(journal.recover(journal.end))
        elif run.has_work and not run_loop(draw(plan, ledger, run.checkpoint)):
            run.stopped()
            say(how_to_go_on(run.drawn, folder.path))
            return None
        return run.finish()
    except JudgeseyeError as error:
        if isinstance(error, BudgetError) and unfinished(folder.path):
            folder.write_manifest(run.manifest("stopped"))
        elif run.drawn and not unfinished(folder.path):
            say(how_to_go_on(run.drawn, folder.path))
            run.failed(error)
        raise
    finally:
        run.close()


async def draw(plan: Plan, ledger: Ledger, checkpoint: Checkpoint, *, alone: bool = True) -> bool:
    """Make the draws that are missing; return False if the user stopped it.

    Args:
        plan: Of the run.
        ledger: What is drawn already.
        checkpoint: Of the journal.
        alone: False for one of several workers, who can say nothing of the whole run.

    Raises:
        BudgetError: The budget is spent.
    """
    from pipelines.screen import ProgressBar, say
    from raters.inferring import open_sampler, progress_state

    totals = ledger.totals
    text = progress_text(
        lambda: sum(totals.draws.values()),
        lambda: totals.prompt_tokens + totals.completion_tokens,
        lambda: plan.cost(ledger),
    )

    def state() -> tuple[int, str]:
        done, accepted, _, _ = progress_state(plan, ledger)
        return done, f"accepted {100 * accepted:.1f} % of labels, {text()}"

    def on_estimate(line: str) -> None:
        say(f"\n{line}")

    bar: ProgressBar | None = None

    def on_draw() -> None:
        if bar is not None:  # or a draw of an earlier session is being completed
            bar.update()

    estimate = on_estimate if alone else None
    async with open_sampler(plan, ledger, checkpoint, on_draw=on_draw, on_estimate=estimate) as sampler:
        bar = ProgressBar(len(ledger.rows), state)
        done = await draw_until_done(sampler.pool, sampler.run(), bar)
        if sampler.pool.ended:
            raise BudgetError(sampler.pool.ended)
        return done


def _print_results(plan: Plan, folder: RunFolder, summary: Mapping[str, Any]) -> None:
    from raters.journal import read_lines
    from raters.trace_text import summary_lines, trace_lines

    print("\n".join(summary_lines(summary)))
    if plan.options.show and summary["kept"]:
        print()
        places = {item_id: index for index, item_id in enumerate(plan.corpus.item_ids)}
        for _, _, trace in islice(read_lines(folder.path / "traces.jsonl"), plan.options.show):
            inputs = plan.corpus.item(places[trace["item_id"]]).inputs
            print("\n".join(trace_lines(trace, inputs)))
    print(f"\nWritten to {folder.path}: traces.jsonl, candidates.jsonl, unmatched.jsonl, summary.json, utilisation.svg")


if __name__ == "__main__":
    sys.exit(run_command(STAGE, main))
