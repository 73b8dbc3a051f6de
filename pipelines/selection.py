"""What select_traces reads and checks, and how its traces are scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raters.records import DataError
from raters.trace_text import printable

if TYPE_CHECKING:
    from pipelines.select_traces import SelectTracesOptions
    from raters.influence.dev_queries import DevQueries
    from raters.influence.harm import Influence
    from raters.influence.tuned_runs import TunedRun
    from raters.journal import Record
    from raters.rater_files import RaterSpec
    from raters.trace_runs import TraceRun

_SWEEP, _READY = "sweep.safetensors", "complete"
_MEND = "give the folder of a finished run of finetune_rater --record-trajectory"


@dataclass(frozen=True)
class Sources:
    """What a run is about, known before any model is in memory.

    Attributes:
        options: Of the stage.
        asked: Options of the run that was recorded.
        folder: Of the seed that is attributed.
        adapter: What that seed came to.
        run: The traces it learned from.
        spec: The rater it came to.
        chosen_step: Whose weights that rater has.
        step: After which the loss is asked about.
        out: Folder of this run.
    """

    options: SelectTracesOptions
    asked: Mapping[str, Any]
    folder: Path
    adapter: Path
    run: TraceRun
    spec: RaterSpec
    chosen_step: int
    step: int
    out: Path

    @property
    def sweep(self) -> Path:
        """Where it stands how far the run has come."""
        return self.out / _SWEEP

    def identity(self) -> dict[str, Any]:
        """Return what decides the meaning of the run's records.

        Raises:
            DataError: If no run was recorded.
        """
        from raters.journal import sha256_of

        decisive = "at query attributor horizon folds confidence renormalize error_proxy online"
        steps = self.folder / "trajectory" / "steps.jsonl"
        if not steps.exists():
            raise DataError(f"{steps}: no such file, so no run was recorded there; {_MEND}")
        return {
            "run": sha256_of(steps.read_text(encoding="utf-8")),
            "corpus": self.run.corpus.name,
            "dimension": self.run.dimension.name,
            "traces": self.run.learned_sha256,
            "guideline": self.spec.dimension.guideline_sha256,
            **{name: getattr(self.options, name) for name in decisive.split()},
            **({"drop_unexpected": True} if self.options.drop_unexpected else {}),  # runs of before lack it
        }

    def manifest(self, status: str, seconds: float) -> dict[str, Any]:
        """Return what the manifest says beside stage and identity."""
        from raters.runs import git_revision, versions

        return {
            "status": status,
            "options": self.options.model_dump(),
            "traces": str(self.run.kept.parent),
            "versions": versions(),
            "git_revision": git_revision(),
            "inputs_sha256": dict(self.run.corpus.sha256),
            "seconds": round(seconds, 3),
        }


@dataclass(frozen=True)
class Recorded:
    """A recorded run with all that attribution needs.

    Attributes:
        sources: What it is about.
        tuned: Its trajectory and model.
        queries: Losses on the dev split, a fold each.
        records: (examples,) the lines of its traces.jsonl.
    """

    sources: Sources
    tuned: TunedRun
    queries: DevQueries
    records: Sequence[Record]

    @property
    def options(self) -> SelectTracesOptions:
        """Of the stage."""
        return self.sources.options

    def describe(self) -> str:
        """Return what is attributed, in a line."""
        trajectory, run = self.tuned.trajectory, self.sources.run
        return printable(
            f"corpus {run.corpus.name}: {run.dimension.name} on {run.dimension.scale}; {len(self.records):,} traces, "
            f"{len(trajectory):,} steps of {trajectory.header.width:,} parameters; {self.queries.items:,} dev items in "
            f"{len(self.queries)} folds ask for {self.options.query}"
        )

    def work(self) -> int:
        """Return how many steps a bar counts."""
        from raters.influence.checkpoint_scores import checkpoints

        trajectory, options = self.tuned.trajectory, self.options
        if options.online is not None:
            return len(trajectory)
        if options.attributor in ("tracin", "less"):
            return trajectory.num_examples * len(checkpoints(trajectory))
        horizon = options.horizon or 1
        return sum(min(horizon, len(trajectory) - number) for number in range(len(trajectory)))


@dataclass(frozen=True)
class Found:
    """What was found out about the traces.

    Attributes:
        influence: Of each.
        dropped: (examples,) True for those that are left out because of it.
        seen: (examples,) steps that saw each; None unless selected online.
        kept: (examples,) steps that learned from it; likewise.
    """

    influence: Influence
    dropped: Any
    seen: Any = None
    kept: Any = None


def read_sources(options: SelectTracesOptions) -> Sources:
    """Read what says which run this is.

    Raises:
        DataError: If the run was not recorded, or is not finished, or its traces or corpus are not there.
    """
    from raters.rater_files import read_rater
    from raters.runs import stage_folder
    from raters.trace_runs import TraceRun

    assert options.run is not None
    where = Path(options.run)
    manifest = _finished(where)
    asked, summary = manifest["options"], manifest["summary"]
    adapter = where / summary["adapter"]
    phase = summary["seeds"][str(summary["best_seed"])]["sft"]
    run = TraceRun.read(Path(options.traces or asked["traces"]), options.corpus or asked["corpus"])
    return Sources(
        options=options,
        asked=asked,
        folder=adapter.parent,
        adapter=adapter,
        run=run,
        spec=read_rater(where / "rater.yaml"),
        chosen_step=phase["best_step"],
        step=phase["best_step"] if options.at == "chosen" else phase["steps"],
        out=stage_folder(options.out, run.corpus, run.dimension.name, "select_traces"),
    )


def read_recorded(sources: Sources) -> Recorded:
    """Load the model and read and check all else that can be checked before anything is written.

    Raises:
        DataError: If the recording does not come to its end, or what it learned from has changed.
        ConfigError: If the query cannot be asked.
    """
    from raters.influence.dev_queries import dev_queries, read_dev_draws
    from raters.influence.tuned_runs import TunedRun
    from raters.model_selection import DevSplit
    from raters.reviews import learned_from
    from raters.training_data import Encoder, example_id

    options, asked, run = sources.options, sources.asked, sources.run
    template = asked["chat_template"]
    if template is not None:  # as the run left it: the file that was given may have changed since
        template = (sources.adapter / "chat_template.jinja").read_text(encoding="utf-8")
    tuned = TunedRun.open(
        sources.folder, sources.adapter, template, rows_at_once=options.micro_batch, last=sources.step
    )
    by_id = {example_id(record): record for record in learned_from(run)}
    lost = [example for example in tuned.example_ids if example not in by_id]
    if lost:
        raise DataError(
            f"{run.kept}: lacks trace {printable(lost[0])}, which --run {options.run} learned from; give the traces as "
            "they were, or train again"
        )
    encoder = Encoder(tuned.loaded, run, sources.spec.question, asked["target"], asked["max_length"])
    queries = dev_queries(
        options.query,
        tuned.losses,
        encoder,
        run,
        DevSplit.of(run, asked["dev_limit"]),
        read_dev_draws(sources.folder, sources.step),
        options.folds,
        tuned.loaded.generation.pad_token_id,
    )
    return Recorded(sources, tuned, queries, [by_id[name] for name in tuned.example_ids])


def _finished(folder: Path) -> dict[str, Any]:
    """Return the manifest of a finished, recorded run of finetune_rater."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        stage, status, options = manifest["stage"], manifest["status"], manifest["options"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"--run {folder}: holds no run ({type(error).__name__}); {_MEND}") from error
    if stage != "finetune_rater":
        raise DataError(f"--run {folder}: is a run of {stage}; {_MEND}")
    if status != _READY:
        raise DataError(f"--run {folder}: is {status}, not complete; give its command again, then this one")
    if not options.get("record_trajectory"):
        raise DataError(f"--run {folder}: was trained without --record-trajectory; train it again with that")
    return dict(manifest)


def finished(manifest: Mapping[str, Any], out: Path) -> bool:
    """Return True if a run that stands in --out is complete and all of it is there."""
    files = ("influence.jsonl", "traces.jsonl", "report.html", "summary.json")
    return manifest.get("status") == _READY and all((out / name).exists() for name in files)


def work_done(sources: Sources) -> int:
    """Return how much of `Recorded.work` a run that was stopped has done."""
    from raters.influence.kept import Kept

    kept = Kept.read(sources.sweep)
    return 0 if kept is None else kept.done


def attribute(recorded: Recorded, count: Callable[[int], None]) -> Found:
    """Return the influence of all traces; what was stopped goes on where it was."""
    import torch

    from raters.influence.checkpoint_scores import Less, TracIn
    from raters.influence.harm import influence_of
    from raters.influence.unrolling import AdamWInfluence, Attributor, SGDUnrolling

    options, tuned, queries = recorded.options, recorded.tuned, recorded.queries
    name, keep = options.attributor, recorded.sources.sweep
    losses = tuned.losses
    attributor: Attributor
    if name in ("tracin", "less"):
        attributor = (TracIn if name == "tracin" else Less)(losses, on_examples=count, keep=keep)
    else:
        shared: dict[str, Any] = {
            "horizon": options.horizon,
            "renormalize": options.renormalize,
            "on_step": lambda: count(1),
            "keep": keep,
        }
        if name == "sgd":
            attributor = SGDUnrolling(losses, **shared)
        else:
            exact = options.error_proxy
            attributor = AdamWInfluence(losses, fisher=name == "fisher", finite=exact, error_proxy=exact, **shared)
    attributor.cache(tuned.trajectory)
    # The last of the mixtures is the loss on all items.
    mixtures = torch.cat([torch.eye(len(queries)), torch.tensor(queries.shares, dtype=torch.float32)[None]])
    scores = attributor.attribute(queries, mixtures)
    proxy = None if scores.error_proxy is None else scores.error_proxy[:, -1].double().numpy()
    parts = scores.parts.double().numpy()
    found = influence_of(parts[:, :-1], parts[:, -1], proxy, queries.shares, options.confidence)
    return Found(found, found.harmful)


def train_online(recorded: Recorded, count: Callable[[int], None]) -> Found:
    """Return which traces training with selection learned from; its rater is in the run's folder.

    Training that was stopped goes on where it was.
    """
    import numpy as np

    from raters.influence.harm import influence_of
    from raters.influence.online import select_online
    from raters.influence.tuned_runs import write_adapter

    tuned, horizon, sources = recorded.tuned, recorded.options.online, recorded.sources
    assert horizon is not None
    found = select_online(
        tuned.trajectory, tuned.losses, recorded.queries, horizon, on_step=lambda: count(1), keep=sources.sweep
    )
    adapter = sources.out / "adapter"
    write_adapter(tuned, found.state.parameters, adapter)
    _write_rater(sources, adapter)
    scores = found.scores.double().numpy()[:, None]
    dropped = (found.seen > 0) & (2 * found.kept < found.seen)
    influence = influence_of(scores[:, None], scores, None, np.ones(1))
    return Found(influence, dropped.numpy(), found.seen.numpy(), found.kept.numpy())


def _write_rater(sources: Sources, adapter: Path) -> None:
    from dataclasses import replace

    from raters.rater_files import adapter_sha256

    spec = replace(sources.spec, adapter="adapter", adapter_sha256=adapter_sha256(adapter))
    spec.write(sources.out / "rater.yaml")


def own_losses(recorded: Recorded, count: Callable[[int], None]) -> list[float]:
    """Return what each trace cost the rater before it learned from any: the mean loss a token, in nats."""
    tuned = recorded.tuned
    found: list[float] = tuned.losses.mean_losses(tuned.trajectory.stored_state(0).parameters, count).tolist()
    return found
