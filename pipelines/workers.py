"""Several workers for a stage that draws: what each of them does, and what the stage does with their shards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pipelines.session import how_to_go_on, run_loop
from raters.options import flag
from raters.pace import time_left
from raters.records import BudgetError, ConfigError, JudgeseyeError

if TYPE_CHECKING:
    from pathlib import Path

    from raters.budgets import Use
    from raters.options import SharedOptions
    from raters.shards import Open, Shard, Shards

_REFRESH_SECONDS = 10.0


@dataclass
class Tally:
    """What workers have come to so far, told from the lines of their journals.

    Attributes:
        missing: Draws that the run lacks when they begin, at the most.
        exact: True if all of those will be made, whatever they say.
        cost: From tokens read and written to USD; None if unknown.
        labels: How many labels there are to match; None if none are.
        matched: How many of them a draw has matched.
    """

    missing: int
    exact: bool
    cost: Callable[[int, int], float | None]
    labels: int | None = None
    matched: int = 0
    draws: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _accepted: set[tuple[str, str | None]] = field(default_factory=set)
    _last: tuple[Any, ...] = ()

    def count(self, record: Mapping[str, Any]) -> None:
        """Count a line; those of one draw that is held against several labels stand together, and are one."""
        draw = (record["item_id"], record.get("chance"), record["draw"])
        if draw != self._last:
            self._last = draw
            self.draws += 1
            self.prompt_tokens += record["prompt_tokens"] or 0
            self.completion_tokens += record["completion_tokens"] or 0
        if record.get("accepted") is True:
            self._accepted.add((record["item_id"], record["annotator_id"]))

    def line(self, seconds: float) -> str:
        """Return how far they are, after some seconds."""
        parts = [f"{self.draws:,} draws", f"{self.draws / max(seconds, 1e-9):,.0f} draws/s"]
        if self.labels:
            parts.append(f"accepted {100 * (self.matched + len(self._accepted)) / self.labels:.1f} % of labels")
        usd = self.cost(self.prompt_tokens, self.completion_tokens)
        parts.append(f"{self.prompt_tokens + self.completion_tokens:,} tokens")
        parts.append("cost unknown" if usd is None else f"${usd:,.2f}")
        left = time_left(self.draws, self.missing, seconds)
        parts.append(left if self.exact else left.replace("about", "at most about"))
        return ", ".join(filter(None, parts))


def check_workers(options: SharedOptions, run: Path | None, models: Collection[str]) -> int | None:
    """Return how many workers draw; None if this process does by itself.

    Args:
        options: Who draws.
        run: The folder of the run that goes on; None if one begins.
        models: Specs of the models that are asked.

    Raises:
        ConfigError: If the options do not fit each other, or the run that stands in the folder was begun by others.
    """
    from raters.shards import check_ray, unfinished

    if options.ray_address is not None and options.engine != "ray":
        raise ConfigError(f"--ray-address {options.ray_address}: is for --engine ray; add it")
    if options.engine == "ray":
        check_ray(options.ray_address)
    workers = options.workers or 1
    served = next((spec for spec in models if spec.startswith("vllm/")), None)
    if served is not None and options.engine == "local" and workers > 1:
        raise ConfigError(
            f"--workers {workers}: {served} draws side by side by itself; leave it out and raise --concurrency, "
            "or give --engine ray for an engine on each GPU"
        )
    for name, most in options.whole_limits().items():
        if most < workers:
            raise ConfigError(f"{flag(name)} {most} --workers {workers}: leaves nothing for one of them; give fewer")
    wanted = workers if options.several else None
    begun = None if run is None else unfinished(run)
    if begun is not None and begun != wanted:
        raise ConfigError(
            f"--workers {workers}: the run in {run} was begun by {begun} workers; give --workers {begun} until it is "
            "done"
        )
    return wanted


def share_of(options: SharedOptions, workers: int, spent: Use) -> dict[str, Any]:
    """Return the options of one worker as plain values: of what holds for all of a run, it gets an equal share.

    Args:
        options: Of the run.
        workers: How many share it.
        spent: What the run had used before they began.
    """
    share: dict[str, Any] = {name: most // workers for name, most in options.whole_limits().items()}
    if options.max_cost is not None:
        share["max_cost"] = round(max(0.0, options.max_cost - spent.usd) / workers, 6)
    if options.max_total_tokens is not None:
        share["max_total_tokens"] = max(0, options.max_total_tokens - spent.tokens) // workers
    return {**options.model_dump(), **share}


def draw_in_shards(
    options: SharedOptions,
    open_: Open,
    journal: Path,
    workers: int,
    known: Callable[[Shard], Mapping[str, NDArray[Any]]],
    *,
    drawn: int,
    spent: Use,
    gpu: bool,
    tally: Tally,
) -> bool:
    """Have workers make the draws that a run misses, and merge their journals into the run's own.

    Args:
        options: Who draws.
        open_: What a worker opens; it gets the options as plain values.
        journal: The run's own.
        workers: How many.
        known: Returns what is known of a shard from the run's own journal.
        drawn: Draws in the run's own journal.
        spent: What they have used.
        gpu: True if each worker needs a GPU where there are any.
        tally: Counts what they draw.

    Returns:
        False if the user stopped it; the journals are merged only if all are done.

    Raises:
        BudgetError: A worker has spent its share of the budget.
        JudgeseyeError: What the first worker that failed had to say.
    """
    from pipelines.screen import say
    from raters.shards import Shards, conclude, in_processes, on_ray

    shards = Shards(journal, workers)
    shards.begin(known)
    say(f"{workers} worker{'s draw' if workers > 1 else ' draws'}, each with a journal in {shards.folder}")
    arguments = (share_of(options, workers, spent),)
    if options.engine == "ray":
        outcomes = on_ray(open_, arguments, shards, options.ray_address, gpu=gpu)
    else:
        outcomes = in_processes(open_, arguments, shards, _progress(shards, tally))
    try:
        done = conclude(outcomes)
    except JudgeseyeError as error:
        say(how_to_go_on(drawn + shards.draws(), journal.parent))
        if isinstance(error, BudgetError) and workers > 1:
            raise BudgetError(f"one of {workers} equal shares of the budget is used up: {error}") from error
        raise
    if done:
        shards.merge()
    else:
        say(how_to_go_on(drawn + shards.draws(), journal.parent))
    return done


def _progress(shards: Shards, tally: Tally) -> Callable[[], None]:
    """Return what shows now and then how far all workers are."""
    import time

    from pipelines.screen import say

    for _ in shards.new_records():
        pass  # what a session before has left, and no pace of this one
    began = time.monotonic()
    due = began + _REFRESH_SECONDS

    def show() -> None:
        nonlocal due
        if (now := time.monotonic()) >= due:
            due = now + _REFRESH_SECONDS
            for record in shards.new_records():
                tally.count(record)
            say(f"  {tally.line(now - began)}")

    return show


def open_infer_traces(options: Mapping[str, Any]) -> Callable[[Shard], bool]:
    """Return what draws a shard of infer_traces, with the inputs of the run read once."""
    from pipelines.infer_traces import draw
    from raters.checkpoints import Checkpoint
    from raters.inference import read_inputs
    from raters.inference_options import InferTracesOptions
    from raters.journal import Journal

    whole = read_inputs(InferTracesOptions.model_validate(options))

    def draw_shard(shard: Shard) -> bool:
        null_items = shard.first_rows(min(whole.options.null_items, len(whole.order)))
        plan = replace(
            whole,
            order=whole.order[shard.rows(len(whole.order))],
            options=whole.options.model_copy(update={"null_items": null_items}),
        )
        ledger = plan.empty_ledger()
        ledger.restore(shard.read_known(), ledger.state()[1])
        checkpoint = Checkpoint(Journal(shard.journal), ledger)
        ledger.replay(checkpoint.recover())
        try:
            if ledger.has_work(plan.sampling.full_rows(len(ledger.rows))):
                return run_loop(draw(plan, ledger, checkpoint, alone=False))
            return True
        finally:
            checkpoint.journal.close()

    return draw_shard


def open_rate_items(options: Mapping[str, Any]) -> Callable[[Shard], bool]:
    """Return what draws a shard of rate_items, with the inputs of the run read once."""
    from pipelines.rate_items import RateItemsOptions, draw, read_inputs
    from raters.checkpoints import Checkpoint
    from raters.journal import Journal
    from raters.rating_runs import RatingSheet

    whole = read_inputs(RateItemsOptions.model_validate(options))

    def draw_shard(shard: Shard) -> bool:
        plan = replace(whole, items=whole.items[shard.rows(len(whole.items))])
        sheet = RatingSheet.empty(plan.corpus, plan.spec, plan.items, plan.draws)
        sheet.restore(shard.read_known(), sheet.state()[1])
        checkpoint = Checkpoint(Journal(shard.journal), sheet)
        sheet.replay(checkpoint.recover())
        try:
            return sheet.rows_done == len(plan.items) or run_loop(draw(plan, sheet, checkpoint, alone=False))
        finally:
            checkpoint.journal.close()

    return draw_shard
