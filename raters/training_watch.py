"""What is kept of a training run while it runs: metrics of every step, checkpoints, and ratings of the dev split.

A checkpoint is marked as whole once every process has written its part, and only then rated. So a rating that was cut
short is finished by the same weights.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from raters.journal import Journal, Record, read_lines, to_line, write_atomically
from raters.model_selection import DevRater, DevSplit, Selection, replayed
from raters.models.generation import LoadedModel
from raters.models.hf import HFModel
from raters.pace import time_left
from raters.rater_files import RaterSpec
from raters.records import ModelError
from raters.training_models import trainable_name
from raters.training_phases import Phase, TrainingSettings
from raters.training_plan import ids_of_step
from raters.training_processes import SameGenerators, from_main, is_main, num_processes, wait

METRICS = "metrics.jsonl"
_COMPLETE = "complete"
_SECONDS_BETWEEN_LINES = 10.0


@dataclass
class Session:
    """What the phases of a run share.

    Attributes:
        settings: How is trained.
        spec: The rater, without its adapter; rates the dev split.
        dev: The items that choose a checkpoint.
        log: Takes a line about what happens.
        stopping: True once the user has asked to stop.
    """

    settings: TrainingSettings
    spec: RaterSpec
    dev: DevSplit
    log: Callable[[str], None] = lambda line: None
    stopping: bool = False
    rater: DevRater | None = field(default=None, repr=False)

    def stop(self) -> None:
        """End after the step, or the draws of a rating, that are in work."""
        self.stopping = True
        if self.rater is not None:
            self.rater.stop()

    def stops_together(self) -> bool:
        """Return, on all processes, whether the first one is to stop: a signal reaches them at different steps."""
        self.stopping = bool(from_main([self.stopping])[0])
        return self.stopping


class Watcher:
    """Follows one phase: metrics of every step, ratings of checkpoints, and whether to go on."""

    def __init__(
        self, session: Session, phase: Phase, folder: Path, trainer: Any, loaded: LoadedModel, order: Any
    ) -> None:
        self._session, self._phase, self._folder, self._trainer = session, phase, folder, trainer
        self._loaded, self._order = loaded, order
        self._journal = Journal(folder / METRICS, prepare=lambda: folder.mkdir(parents=True, exist_ok=True))
        # One process alone reads what it writes.
        lines = [record for _, _, record in self._journal.recover()] if is_main() else []
        known = [record for record in from_main([lines])[0] if record["phase"] == phase.name]
        self._dev = {record["step"]: record["dev"] for record in known if "dev" in record}
        self._losses = {record["step"]: record["loss"] for record in known if "loss" in record}
        self.selection: Selection = replayed(phase.plan.patience, known)
        self._ended = False
        self._began = self._told = time.monotonic()
        self._steps = self._tokens = 0

    def as_callback(self) -> Any:
        """Return what transformers' trainer calls."""
        import transformers

        library: Any = transformers
        watcher = self

        class Callback(library.TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                watcher.begin(state.global_step, control)

            def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                watcher.step(state.global_step, control)

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
                watcher.note(state.global_step, logs or {})

            def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                watcher.saved(state.global_step, control)

        return Callback()

    def begin(self, step: int, control: Any) -> None:
        """Rate the checkpoint that training goes on from, if the last session did not come to it."""
        if step and self._phase.plan.is_rated(step) and step not in self._dev:
            self.rate(step, self._checkpoint(step))
            self._end_if_due(control)

    def step(self, step: int, control: Any) -> None:
        """Ask for a checkpoint where the dev split is rated, or where the user stops."""
        stops = self._session.stopping and num_processes() == 1
        control.should_save = self._phase.plan.is_rated(step) or stops
        control.should_training_stop = control.should_training_stop or stops

    def note(self, step: int, logs: Mapping[str, Any]) -> None:
        """Write a step's line of metrics.jsonl."""
        if self._ended or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise ModelError(
                f"{self._phase.name} step {step}: the loss is {logs['loss']}; give a lower learning rate, or a longer "
                "warm-up"
            )
        if not is_main():
            return
        plan, ids = self._phase.plan, self._phase.ids
        places = self._order[(step - 1) * plan.batch : step * plan.batch].tolist()
        lengths = [self._phase.lengths[place] for place in places]
        self._losses[step] = logs["loss"]
        record: Record = {
            "phase": self._phase.name,
            "step": step,
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": grad_norm if math.isfinite(grad_norm := logs.get("grad_norm", math.nan)) else None,
            "tokens": sum(all_of_it for all_of_it, _ in lengths),
            "learned_tokens": sum(learned for _, learned in lengths),
            **{name: logs[name] for name in ("mean_token_accuracy", "preferred") if name in logs},
            "examples": ids_of_step(ids, self._order, plan, step),
        }
        self._journal.append([record])
        self._tell(step, record)

    def _tell(self, step: int, record: Record) -> None:
        """Say now and then how far the phase is; time that ratings of dev take counts as that of steps."""
        self._steps += 1
        self._tokens += record["tokens"]
        if (now := time.monotonic()) < self._told + _SECONDS_BETWEEN_LINES:
            return
        self._told, steps, seconds = now, self._phase.plan.steps, now - self._began
        left = time_left(self._steps, steps - step + self._steps, seconds)
        where = f"{self._phase.name} step {step} of {steps}: loss {record['loss']:.4f}"
        self._session.log(", ".join(filter(None, [f"  {where}", f"{self._tokens / seconds:,.0f} tokens/s", left])))

    def saved(self, step: int, control: Any) -> None:
        """Mark a checkpoint as whole, rate it, and remove those that nobody needs."""
        wait()  # every process has written its generators
        checkpoint = self._checkpoint(step)
        if is_main():
            write_atomically(checkpoint / _COMPLETE, "")
        if self._phase.plan.is_rated(step) and step not in self._dev:
            self.rate(step, checkpoint)
        if is_main() and not self._session.settings.keep_checkpoints:
            kept = {step, self.selection.best_step}
            for other in checkpoint.parent.glob("checkpoint-*"):
                if step_of(other) not in kept:
                    shutil.rmtree(other)
        self._end_if_due(control)

    def rate(self, step: int, checkpoint: Path | None) -> None:
        """Rate the dev split by the model as it is, on one process, and tell all what came out."""
        if step in self._dev:
            return
        found: list[Any] = [None]
        if is_main():
            found = [self._rated(step, checkpoint)]
        found = from_main(found)
        if found[0] is None:
            self._session.stopping = True
            return
        self._dev[step] = found[0]
        better = step > 0 and self.selection.enter(step, found[0]["value"])
        if is_main():
            self._journal.append([{"phase": self._phase.name, "step": step, "dev": found[0]}])
            self._session.log(self._line(step, found[0], better))

    def _rated(self, step: int, checkpoint: Path | None) -> dict[str, Any] | None:
        session = self._session
        rater = DevRater(session.dev, session.spec, self._folder / "dev", 2 * session.settings.rating_batch)
        session.rater = rater
        if session.stopping:
            rater.stop()
        with SameGenerators():
            try:
                return rater.rate(f"{self._phase.name}-{step:06}", lambda: self._model(checkpoint))
            finally:
                session.rater = None

    def _model(self, checkpoint: Path | None) -> HFModel:
        """Return the model in training; a copy of it where its weights are spread over processes."""
        batch = self._session.settings.rating_batch
        if self._trainer.is_fsdp_enabled and checkpoint is not None:
            return HFModel(trainable_name(self._session.settings.base), adapter=checkpoint, batch_size=batch)
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        if not self._session.settings.four_bit:  # those lie where they were loaded
            model.to(self._trainer.args.device)
        model.eval()
        return HFModel.of(replace(self._loaded, model=model), batch_size=batch)

    def _end_if_due(self, control: Any) -> None:
        if self._session.stops_together() or self.selection.exhausted:
            self._ended = control.should_training_stop = True

    def _checkpoint(self, step: int) -> Path:
        return self._folder / "checkpoints" / self._phase.name / f"checkpoint-{step}"

    def _line(self, step: int, dev: Mapping[str, Any], better: bool) -> str:
        name = {"kendall_tau_b": "tau", "cohen_kappa": "kappa"}[dev["figure"]]
        loss = f"loss {self._losses[step]:.4f}, " if step in self._losses else ""
        unread = f", {dev['unreadable']} of {dev['draws']} draws unreadable" if dev["unreadable"] else ""
        mark = " (before)" if step == 0 else " (best so far)" if better else ""
        where = f"{self._phase.name} step {step} of {self._phase.plan.steps}"
        return f"{where}: {loss}dev {name} {dev['value']:.3f}{mark}{unread}"

    def result(self) -> dict[str, Any]:
        """Return what the phase came to."""
        plan, best = self._phase.plan, self.selection.best_step
        last = max(self._losses, default=0)
        return {
            "phase": self._phase.name,
            "schedule": asdict(plan),
            "lr": self._phase.lr,
            "steps": last,
            "stopped_early": last < plan.steps,
            "last_loss": self._losses.get(last),
            "best_step": best,
            "dev_before": self._dev.get(0),
            "dev": self._dev.get(best),
        }

    def close(self) -> None:
        """Bring the metrics to the disk."""
        self._journal.close()


def cut_metrics(path: Path, phase: str, step: int) -> None:
    """Drop the lines of a phase behind the checkpoint that it goes on from."""
    if not path.exists() or not path.stat().st_size:
        return
    journal = Journal(path)
    lines = [record for _, _, record in journal.recover()]
    kept = [line for line in lines if line["phase"] != phase or line["step"] <= step]
    if len(kept) < len(lines):
        write_atomically(path, map(to_line, kept))


def remove_torn(checkpoints: Path) -> None:
    """Remove the checkpoints of a phase that were not written to their end."""
    for checkpoint in checkpoints.glob("checkpoint-*") if checkpoints.is_dir() else ():
        if not (checkpoint / _COMPLETE).exists():
            shutil.rmtree(checkpoint)


def latest(checkpoints: Path) -> Path | None:
    """Return the last checkpoint of a phase; None if there is none."""
    found = list(checkpoints.glob("checkpoint-*")) if checkpoints.is_dir() else []
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path | None) -> int:
    """Return the step that a checkpoint was written after; 0 for none."""
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def read_metrics(path: Path) -> list[Record]:
    """Return the lines of a metrics.jsonl."""
    return [record for _, _, record in read_lines(path)]
