"""Stage: fine-tune an open model on kept traces into a rater, its checkpoint chosen on the dev split."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipelines import screen
from pipelines.command import INTERRUPTED, run_command
from pipelines.options import parse_options
from raters.options import StageOptions
from raters.records import MOST_DRAWS, JudgeseyeError

if TYPE_CHECKING:
    from pipelines.finetuning import Plan
    from raters.runs import RunFolder
    from raters.training_watch import Session

STAGE = "finetune_rater"
DESCRIPTION = """\
Fine-tune an open model with LoRA on the traces that a run of infer_traces kept, choose the checkpoint whose ratings of
the dev split agree best with people's labels, and write it as a rater.

  python -m pipelines.finetune_rater --traces runs/demo/infer_traces --base student --lr 0.002

Writes to --out: adapter/ (with tokenizer and chat template), rater.yaml, metrics.jsonl, loss.svg, dev.svg,
summary.json, manifest.json, and with --merge merged/; with --seeds one folder a seed. The same command again goes on
from the last checkpoint. On several GPUs: accelerate launch -m pipelines.finetune_rater ..."""


class FinetuneRaterOptions(StageOptions):
    """Options of finetune_rater."""

    traces: str | None = Field(None, description="folder of a finished run of infer_traces on the train split; needed")
    base: str | None = Field(None, description="model to train: student or hf/<path or id>; needed")
    corpus: str | None = Field(None, description="where that run's corpus is now (default: where it was)")
    target: Literal["trace", "label", "label-after-trace", "verdict-first"] = Field(
        "trace",
        description="what is learned. trace: reasoning, then rating; label: the rating alone; label-after-trace: the "
        "rating, with the reasoning before it not learned; verdict-first: the rating, then the reasoning",
    )
    method: Literal["sft", "dpo", "sft+dpo"] = Field(
        "sft", description="sft: likelihood of kept traces; dpo: kept over rejected draws; sft+dpo: one after the other"
    )
    prompt_guideline: str | None = Field(
        None,
        description="file of the guideline to train with, or `original` for the corpus's own (default: the one that "
        "the traces were inferred under)",
    )
    ordinal: float = Field(0.0, ge=0, description="sft: weight of the squared error of the expected label")
    seed: int = Field(
        0, ge=0, lt=2**31, description="seed of fresh weights and the order of examples; the first of --seeds"
    )
    seeds: int = Field(1, ge=1, le=100, description="how many seeds to train under")
    epochs: float = Field(3.0, gt=0, description="passes over the traces")
    steps: int | None = Field(None, ge=1, description="optimizer steps of sft (default: as --epochs says)")
    batch: int | None = Field(None, ge=1, description="examples of a step (default: 128, or fewer if traces are few)")
    micro_batch: int = Field(8, ge=1, description="examples that a process reads at once, at most")
    lr: float = Field(5e-5, gt=0, description="learning rate of sft")
    warmup: int | None = Field(None, ge=0, description="steps of warm-up (default: 100, or a tenth of a short run)")
    lr_schedule: Literal["linear", "constant_with_warmup", "cosine"] = Field(
        "linear", description="learning rate after the warm-up"
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    rank: int = Field(16, ge=1, description="rank of LoRA, on all linear layers")
    alpha: int = Field(32, ge=1, description="alpha of LoRA: its scale times --rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of LoRA, a share from 0 to 1")
    dpo_lr: float = Field(5e-6, gt=0, description="learning rate of dpo")
    dpo_epochs: float = Field(1.0, gt=0, description="passes over the pairs")
    beta: float = Field(0.1, gt=0, description="beta of dpo: how strongly the model is kept at its reference")
    pairs: int = Field(4, ge=1, description="dpo: rejected draws beside a kept trace, at most")
    eval_steps: int | None = Field(None, ge=1, description="steps between ratings of dev (default: 20, or fewer)")
    patience: int | None = Field(None, ge=1, description="steps without a better one that end it (default: 100)")
    dev_limit: int | None = Field(None, ge=2, description="most dev items that choose a checkpoint (default: all)")
    dev_draws: int = Field(4, ge=1, le=MOST_DRAWS, description="draws for a dev item")
    dev_max_tokens: int | None = Field(None, ge=1, description="most tokens of such a draw (default: 4096)")
    rating_batch: int = Field(32, ge=1, description="draws written at once")
    max_length: int | None = Field(None, ge=1, description="most tokens of an example (default: the base's context)")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the base; auto: bfloat16 on a GPU")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third slower")
    load_4bit: bool = Field(False, description="base in 4 bits (QLoRA); needs bitsandbytes and a GPU")
    adapter: str | None = Field(None, description="adapter to begin with (default: a fresh one)")
    gate: str | None = Field(
        None,
        description="folder of a finished run of finetune_rater, such as the round before: its rater stays unless this "
        "run's is better on dev",
    )
    chat_template: str | None = Field(None, description="file of a chat template (default: the base's own)")
    merge: bool = Field(False, description="also write merged/, a whole model")
    keep_checkpoints: bool = Field(False, description="keep every checkpoint, not the last and the best alone")
    record_trajectory: bool = Field(
        False, description="also record every optimizer step in trajectory/, for select_traces; sft alone"
    )
    out: str | None = Field(
        None, description="folder of this run (default: runs/<corpus>[-<dimension>]/finetune_rater)"
    )
    new: bool = Field(False, description="start over; a run that stands in --out is kept beside it")


def main(arguments: Sequence[str]) -> int:
    """Run the stage and return its exit status."""
    options = parse_options(FinetuneRaterOptions, STAGE, DESCRIPTION, arguments)
    try:
        return _main(options)
    except JudgeseyeError as error:
        if _is_first_process():
            raise
        return error.exit_code  # the first one says it


def _main(options: FinetuneRaterOptions) -> int:
    from pipelines.finetuning import read_inputs
    from pipelines.finetuning_results import summary_lines
    from raters.runs import RunFolder

    began = time.monotonic()
    plan = read_inputs(options)
    say(plan.describe())
    for line in plan.remarks:
        say(line)
    folder = RunFolder(plan.out, STAGE, plan.identity(), new=options.new) if _is_first_process() else None
    try:
        summary = _run(plan, folder, began)
    finally:
        if folder is not None:
            folder.release()
    if summary is None:
        say(f"stopped; the last checkpoint is in {plan.out}; give the same command again to go on")
        return INTERRUPTED
    if folder is not None:
        print("\n".join(summary_lines(summary)))
        merged = ", merged/" if options.merge else ""
        print(f"\nWritten to {plan.out}: rater.yaml, {summary['adapter']}/{merged}, metrics, curves, summary.json")
    return 0


def say(line: str) -> None:
    """Print one line about what the stage is doing, on the first process alone."""
    if _is_first_process():
        screen.say(line)


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _run(plan: Plan, folder: RunFolder | None, began: float) -> dict[str, Any] | None:
    """Train under every seed and write what comes out; return the summary, None if the user stopped it."""
    from pipelines.finetuning_results import write_results
    from raters.training import Tuner
    from raters.training_phases import TrainingSettings
    from raters.training_processes import wait
    from raters.training_watch import Session

    options = plan.options
    before = 0.0 if folder is None else folder.previous.get("seconds", 0.0)

    def manifest(status: str) -> dict[str, Any]:
        return plan.manifest(status, before + time.monotonic() - began)

    if folder is not None:
        folder.create(manifest("running"))
    wait()
    assert options.base is not None
    settings = TrainingSettings(
        base=options.base,
        dtype=plan.dtype,
        ordinal=plan.ordinal,
        four_bit=options.load_4bit,
        chat_template=plan.chat_template,
        **{
            name: getattr(options, name)
            for name in (
                "rank alpha dropout weight_decay lr_schedule beta micro_batch rating_batch gradient_checkpointing "
                "keep_checkpoints record_trajectory"
            ).split()
        },
    )
    start = None if options.adapter is None else Path(options.adapter)
    session = Session(settings, plan.spec(), plan.dev, say)
    tuner = Tuner(session, plan.take_base(), start)
    seeds = range(options.seed, options.seed + options.seeds)
    results: dict[int, dict[str, Any]] = {}
    with _StoppedBySignals(session):
        for seed in seeds:
            if len(seeds) > 1:
                say(f"seed {seed}")
            found = tuner.train(plan.phases, plan.seed_folder(seed), seed, to_come=seeds[-1] - seed)
            if found is None:
                if folder is not None:
                    folder.write_manifest(manifest("stopped"))
                return None
            results[seed] = found
    if folder is None:
        return {}
    summary = write_results(plan, results)
    folder.write_manifest({**manifest("complete"), "summary": summary})
    return summary


class _StoppedBySignals:
    """Lets the first Ctrl-C or SIGTERM end training in order; the second one ends it at once."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *details: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        if self._session.stopping:
            raise KeyboardInterrupt
        say("\nstopping after this step; Ctrl-C again to leave it")
        self._session.stop()


if __name__ == "__main__":
    sys.exit(run_command(STAGE, main))
