"""Fine-tune a rater on kept traces: TRL's trainers, PEFT's LoRA, and the choice of a checkpoint by the dev split.

A run goes through one phase (`sft` or `dpo`) or both, for each of its seeds. Whatever it does is on disk before it goes
on: a checkpoint with optimizer and generators before its ratings of the dev split, every such rating as it is made, a
line of metrics.jsonl for every step. So a run that was killed goes on from its last checkpoint, on a CPU to the same
bits, and rates nothing twice. Dropout is off and the order of examples is a function of the seed alone, so that a later
stage can follow a run step by step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raters.journal import write_atomically
from raters.models.generation import LoadedModel
from raters.records import ModelError
from raters.training_loss import dpo_trainer, sft_trainer
from raters.training_models import fingerprint_of, load_base, save_adapter, with_adapter
from raters.training_phases import Phase, TrainingSettings
from raters.training_plan import data_order, micro_batches
from raters.training_processes import QuietTraining, free_memory, is_main, num_processes, wait
from raters.training_watch import METRICS, Session, Watcher, cut_metrics, latest, remove_torn, step_of

_DDP_TIMEOUT_SECONDS = 24 * 3600
"""One process rates the dev split while the others wait."""


@dataclass
class Tuner:
    """Trains one rater, one seed after another.

    Attributes:
        session: Settings, rater and dev split.
        first: The base in memory, for the first phase; others load it again.
        start: Adapter to begin with, if not a fresh one.
    """

    session: Session
    first: LoadedModel | None = None
    start: Path | None = None

    def train(self, phases: Sequence[Phase], folder: Path, seed: int, to_come: int = 0) -> dict[str, Any] | None:
        """Return what the training under one seed came to; None if it was stopped.

        Args:
            phases: In their order.
            folder: Of this seed; what is there already is gone on from.
            seed: Of fresh weights and of the order of examples.
            to_come: Seeds that are trained under after this one, whose recordings need disk too.

        Raises:
            JudgeseyeError: If the base cannot be loaded again, or fails while it rates.
        """
        results: dict[str, Any] = {}
        adapter = self.start
        for phase in phases:
            done = folder / f"{phase.name}.json"
            if not done.exists():
                with QuietTraining():
                    found = self._phase(phase, folder, seed, adapter, to_come)
                if found is None:
                    return None
                results[phase.name] = found
            else:
                results[phase.name] = json.loads(done.read_text(encoding="utf-8"))
            adapter = folder / "adapters" / phase.name
        if is_main():
            if (last := folder / "adapters" / phases[-1].name).exists():
                shutil.rmtree(folder / "adapter", ignore_errors=True)
                last.rename(folder / "adapter")
            shutil.rmtree(folder / "adapters", ignore_errors=True)
            if not self.session.settings.keep_checkpoints:
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        wait()
        return results

    def _phase(
        self, phase: Phase, folder: Path, seed: int, adapter: Path | None, to_come: int
    ) -> dict[str, Any] | None:
        import torch

        checkpoints = folder / "checkpoints" / phase.name
        if is_main():
            remove_torn(checkpoints)
        wait()
        last = latest(checkpoints)
        begun = step_of(last)
        if is_main():
            cut_metrics(folder / METRICS, phase.name, begun)
            if begun:
                self.session.log(f"{phase.name}, seed {seed}: going on from step {begun} of {phase.plan.steps}")
        wait()
        loaded, self.first = self.first, None
        if loaded is None:
            settings = self.session.settings
            loaded = load_base(
                settings.base, settings.dtype, four_bit=settings.four_bit, chat_template=settings.chat_template
            )
        fingerprint = fingerprint_of(loaded)
        if adapter is not None:
            loaded = with_adapter(loaded, adapter)
        trainer, order = build_trainer(self.session.settings, phase, checkpoints, seed, loaded, fresh=adapter is None)
        if self.session.settings.record_trajectory:
            self._record(phase, folder, seed, trainer, order, to_come)
        watcher = Watcher(self.session, phase, folder, trainer, loaded, order)
        trainer.add_callback(watcher.as_callback())
        if begun == 0:
            watcher.rate(0, None)
        if not (watcher.selection.exhausted or self.session.stopping):
            try:
                trainer.train(resume_from_checkpoint=str(last) if last else None)
            except torch.OutOfMemoryError as error:
                raise ModelError(
                    f"{phase.name}: GPU memory does not hold a step; lower --micro-batch or --rating-batch, or give "
                    "--gradient-checkpointing or --load-4bit"
                ) from error
        watcher.close()
        if self.session.stops_together():
            return None
        best = watcher.selection.best_step
        found = watcher.result()
        if self.session.settings.record_trajectory:
            found["replay_error"] = _replay_error(folder)
        if is_main():
            kept = folder / "adapters" / phase.name
            save_adapter(checkpoints / f"checkpoint-{best}", loaded, fingerprint, kept)
            write_atomically(folder / f"{phase.name}.json", json.dumps(found, indent=2) + "\n")
        wait()
        del trainer, watcher, loaded
        free_memory()
        return found

    def _record(self, phase: Phase, folder: Path, seed: int, trainer: Any, order: Any, to_come: int) -> None:
        """Have the trainer's steps recorded for attribution."""
        from raters.influence.recording import Recorder, check_model

        settings = self.session.settings
        check_model(trainer.model, settings.base)
        ordinal = None if settings.ordinal is None else asdict(settings.ordinal)
        about = {"base": settings.base, "dtype": settings.dtype, "seed": seed, "ordinal": ordinal}
        recorder = Recorder(folder, phase, trainer, order, about)
        recorder.announce(self.session.log, to_come)
        trainer.add_callback(recorder.as_callback())


def _replay_error(folder: Path) -> float:
    """Return how far replaying a seed's recording is from its weights, in shares of the largest."""
    from raters.influence.recording import FOLDER
    from raters.influence.trajectory import Trajectory

    return Trajectory(folder / FOLDER).check_replay()


def build_trainer(
    settings: TrainingSettings, phase: Phase, checkpoints: Path, seed: int, loaded: LoadedModel, *, fresh: bool = True
) -> tuple[Any, Any]:
    """Return TRL's trainer for a phase, and the order of its examples (see `training_plan.data_order`).

    Args:
        settings: How is trained.
        phase: What.
        checkpoints: Where checkpoints go.
        seed: Of fresh weights and of the order.
        loaded: The base, under its adapter if it has one already.
        fresh: True to put a fresh adapter on it.
    """
    import datasets
    import peft
    import torch
    import trl

    plan = phase.plan
    size, times = micro_batches(plan.batch, num_processes(), settings.micro_batch)
    order = data_order(plan, seed)
    library: Any = trl
    kind = library.SFTConfig if phase.name == "sft" else library.DPOConfig
    more = {} if phase.name == "sft" else {"beta": settings.beta}
    arguments = kind(
        output_dir=str(checkpoints),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=times,
        max_steps=plan.steps,
        learning_rate=phase.lr,
        weight_decay=settings.weight_decay,
        warmup_steps=plan.warmup,
        lr_scheduler_type=settings.lr_schedule,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
        bf16=settings.dtype == "bfloat16",
        gradient_checkpointing=settings.gradient_checkpointing,
        max_length=None,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        ddp_timeout=_DDP_TIMEOUT_SECONDS,
        **more,
    )
    lora = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    common = {
        "model": loaded.model,
        "args": arguments,
        "train_dataset": datasets.Dataset.from_list([dict(row) for row in phase.rows]).select(order),
        "processing_class": loaded.tokenizer,
        "peft_config": lora if fresh else None,
    }
    is_sft = phase.name == "sft"
    trainer = sft_trainer(settings.ordinal, plan.batch, **common) if is_sft else dpo_trainer(**common)
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "PrinterCallback":
            trainer.remove_callback(callback)
    return trainer, order
