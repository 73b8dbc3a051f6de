"""What finetune_rater reads and checks before it trains."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raters.records import ConfigError

if TYPE_CHECKING:
    from pipelines.finetune_rater import FinetuneRaterOptions
    from raters.model_selection import DevSplit
    from raters.models.generation import LoadedModel
    from raters.questions import Question
    from raters.rater_files import RaterSpec
    from raters.round_gate import EarlierRound
    from raters.trace_runs import TraceRun
    from raters.training_loss import OrdinalTerm
    from raters.training_phases import Phase

FEW_DEV_ITEMS = 20


@dataclass(frozen=True)
class Plan:
    """What the options and the files they name come to."""

    options: FinetuneRaterOptions
    run: TraceRun
    question: Question
    dev: DevSplit
    base: list[LoadedModel]
    dtype: str
    chat_template: str | None
    ordinal: OrdinalTerm | None
    phases: tuple[Phase, ...]
    counts: Mapping[str, int]
    sample: list[int]
    remarks: tuple[str, ...]
    out: Path
    earlier: EarlierRound | None = None

    def take_base(self) -> LoadedModel:
        """Hand over the base that examples were made with; nobody else keeps its memory."""
        return self.base.pop()

    def describe(self) -> str:
        dimension, options = self.run.dimension, self.options
        pairs = f", {self.counts['pairs']:,} pairs" if "pairs" in self.counts else ""
        return (
            f"corpus {self.run.corpus.name}: {dimension.name} on {dimension.scale}; {options.base} learns "
            f"{options.target} by {options.method} from {self.counts['examples']:,} traces{pairs}; "
            f"{len(self.dev.items):,} dev items choose the checkpoint"
        )

    def identity(self) -> dict[str, Any]:
        """Return what decides the meaning of the run's records."""
        from raters.journal import sha256_of
        from raters.rater_files import adapter_sha256
        from raters.splits import ids_sha256

        options, run = self.options, self.run
        adapter = {} if options.adapter is None else {"adapter_sha256": adapter_sha256(Path(options.adapter))}
        decisive = (
            "base target method ordinal seed seeds lr lr_schedule weight_decay rank alpha dropout beta pairs dev_draws "
            "dev_max_tokens max_length load_4bit adapter record_trajectory"
        )
        return {
            "corpus": run.corpus.name,
            "dimension": run.dimension.name,
            "traces": run.learned_sha256,
            "guideline": self.question.dimension.guideline_sha256,
            "prompt": self.question.prompt.sha256,
            "dev_items": ids_sha256([run.corpus.item_ids[item] for item in self.dev.items]),
            **{name: getattr(options, name) for name in decisive.split()},
            **adapter,
            **({} if self.earlier is None else {"gate": self.earlier.rater.sha256}),
            "dtype": self.dtype,
            "chat_template": None if self.chat_template is None else sha256_of(self.chat_template),
            **{f"{phase.name}_schedule": _numbers(phase) for phase in self.phases},
        }

    def manifest(self, status: str, seconds: float) -> dict[str, Any]:
        from raters.runs import git_revision, versions

        return {
            "status": status,
            "options": self.options.model_dump(),
            "versions": versions(),
            "git_revision": git_revision(),
            "inputs_sha256": {**self.run.corpus.sha256, "guideline": self.question.dimension.guideline_sha256},
            "split_sha256": self.run.split.hashes(self.run.corpus),
            "counts": dict(self.counts),
            "phases": {phase.name: _numbers(phase) for phase in self.phases},
            "seconds": round(seconds, 3),
        }

    def seed_folder(self, seed: int) -> Path:
        """Return where a seed's files are: the run's folder, or one of their own if there are several."""
        return self.out if self.options.seeds == 1 else self.out / f"seed-{seed}"

    def spec(self, adapter: str | None = None, adapter_sha256: str | None = None) -> RaterSpec:
        """Return the rater that is trained, with its adapter once there is one."""
        import numpy as np

        from raters.models.protocol import SamplingSettings
        from raters.rater_files import RaterSpec, default_aggregate, seen_by_adapter

        assert self.options.base is not None
        seen = self.run.generator.seen.with_items(self.run.corpus, np.flatnonzero(self.run.split.parts < 2))
        if self.options.adapter is not None:
            seen = seen.united(seen_by_adapter(Path(self.options.adapter)))
        most = self.options.dev_max_tokens
        return RaterSpec(
            model=self.options.base,
            question=self.question,
            adapter=adapter,
            adapter_sha256=adapter_sha256,
            settings=SamplingSettings() if most is None else SamplingSettings(max_tokens=most),
            draws=self.options.dev_draws,
            aggregate=default_aggregate(self.question.dimension.scale),
            reasoning=self.options.target != "label",
            seen=seen,
        )


def _numbers(phase: Phase) -> dict[str, Any]:
    return {**asdict(phase.plan), "lr": phase.lr}


def read_inputs(options: FinetuneRaterOptions) -> Plan:
    """Read and check all that can be checked before anything is written, the base and every example included."""
    from raters.model_selection import DevSplit
    from raters.round_gate import EarlierRound
    from raters.runs import stage_folder
    from raters.trace_runs import TraceRun
    from raters.training_data import Encoder, encode_lessons, question_for, read_lessons
    from raters.training_models import load_base, resolved_dtype, trainable_name
    from raters.training_pairs import encode_pairs

    if options.traces is None:
        raise ConfigError("--traces: missing; give the folder of a finished run of infer_traces")
    if options.base is None:
        raise ConfigError("--base: missing; give the model to train, student or hf/<path or id>")
    _check_options(options)
    trainable_name(options.base)
    chat_template = _read_template(options.chat_template)
    run = TraceRun.read(Path(options.traces), options.corpus)
    lessons = read_lessons(run)
    question = question_for(run, options.target, _guideline(options, run))
    _check_family(options.base, question)
    dev = DevSplit.of(run, options.dev_limit)
    dtype = resolved_dtype(options.dtype)
    loaded = load_base(options.base, dtype, four_bit=options.load_4bit, chat_template=chat_template)
    _check_adapter(options, loaded)
    encoder = Encoder(loaded, run, question, options.target, options.max_length)
    examples = encode_lessons(encoder, lessons, run.folder)
    counts = {"traces": len(lessons), "examples": len(examples), "too_long": encoder.too_long}
    remarks = [_too_long(encoder.too_long, "traces", encoder)] if encoder.too_long else []
    ordinal = _ordinal_term(options, loaded, question, examples)
    phases: list[Phase] = []
    if "sft" in options.method:
        phases.append(_sft_phase(options, question, examples, ordinal))
    if "dpo" in options.method:
        encoder.too_long = 0
        pairs = encode_pairs(encoder, run, lessons, options.pairs)
        counts |= {"pairs": len(pairs), "too_long_in_pairs": encoder.too_long}
        remarks += [_too_long(encoder.too_long, "answers of pairs", encoder)] if encoder.too_long else []
        phases.append(_dpo_phase(options, pairs))
    remarks += [line for phase in phases if (line := _scaled(phase))]
    if len(dev.items) < FEW_DEV_ITEMS:
        remarks.append(f"{len(dev.items)} dev items tell little between checkpoints; label more if you can")
    plan = Plan(
        options=options,
        run=run,
        question=question,
        dev=dev,
        base=[loaded],
        dtype=dtype,
        chat_template=chat_template,
        ordinal=ordinal,
        phases=tuple(phases),
        counts=counts,
        sample=examples[0].input_ids,
        remarks=tuple(remarks),
        out=stage_folder(options.out, run.corpus, run.dimension.name, "finetune_rater"),
        earlier=None if options.gate is None else EarlierRound.read(Path(options.gate)),
    )
    if plan.earlier is not None:
        plan.earlier.check_comparable(plan.identity())
    return plan


def _check_options(options: FinetuneRaterOptions) -> None:
    """Refuse combinations that cannot mean what they say."""
    if options.ordinal and options.method == "dpo":
        raise ConfigError(f"--ordinal {options.ordinal}: is a term of sft, and --method is dpo; leave it out")
    if "dpo" in options.method and options.target == "label-after-trace":
        raise ConfigError(
            f"--method {options.method} --target label-after-trace: a preference is between whole answers, and this "
            "target learns no reasoning; give --target trace"
        )
    if options.merge and options.load_4bit:
        raise ConfigError("--merge --load-4bit: weights in 4 bits cannot be merged; merge in a run without --load-4bit")
    if options.gate is not None and (options.merge or options.record_trajectory):
        other = "--merge" if options.merge else "--record-trajectory"
        raise ConfigError(
            f"--gate {options.gate} {other}: is about this run's rater, and another's may stay; leave one of them out"
        )
    if options.record_trajectory:
        _check_recordable(options)


def _check_recordable(options: FinetuneRaterOptions) -> None:
    """Refuse to record a run whose steps are no function of their examples, or that has more than one place to be."""
    where, processes = "--record-trajectory", int(os.environ.get("WORLD_SIZE", "1"))
    if options.dropout:
        raise ConfigError(
            f"{where} --dropout {options.dropout}: with dropout no step can be had again from its examples; leave one "
            "of them out"
        )
    if options.method != "sft":
        raise ConfigError(f"{where} --method {options.method}: sft alone is recorded; leave one of them out")
    if options.load_4bit:
        raise ConfigError(f"{where} --load-4bit: a base in 4 bits has no second derivatives; leave one of them out")
    if processes > 1:
        raise ConfigError(f"{where}: one process is recorded, and {processes} share this run; start one")


def _read_template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"--chat-template {path}: cannot be read ({reason}); check the name") from error


def _guideline(options: FinetuneRaterOptions, run: TraceRun) -> str:
    """Return the guideline of the prompt that is trained with."""
    from raters.corpus_files import read_guideline_file

    if options.prompt_guideline is None:
        return run.dimension.guideline
    if options.prompt_guideline == "original":
        return run.corpus.dimension(run.dimension.name).guideline
    return read_guideline_file(Path(options.prompt_guideline), "--prompt-guideline")


def _check_family(base: str, question: Question) -> None:
    """Refuse to show text to a base that reads observations alone."""
    from raters.models import prompt_family

    if prompt_family(base) and not question.needs_observations:
        raise ConfigError(
            f"--base {base}: reads observations, and the traces are of a model that was shown text; give a language "
            "model, or traces of embedded or student"
        )


def _check_adapter(options: FinetuneRaterOptions, loaded: LoadedModel) -> None:
    """Refuse an adapter that does not fit, on a copy of the base that nothing else uses."""
    import copy

    from raters.training_models import with_adapter

    if options.adapter is not None:
        with_adapter(replace(loaded, model=copy.deepcopy(loaded.model)), Path(options.adapter))


def _ordinal_term(
    options: FinetuneRaterOptions, loaded: LoadedModel, question: Question, examples: Sequence[Any]
) -> OrdinalTerm | None:
    from raters.training_data import label_tokens
    from raters.training_loss import OrdinalTerm

    if not options.ordinal:
        return None
    tokens, values = label_tokens(loaded, question.dimension.scale)
    for example in examples:
        place = list(question.dimension.scale.labels).index(example.verdict)  # type: ignore[union-attr]
        if example.input_ids[example.verdict_at] != tokens[place]:
            raise ConfigError(
                f"--ordinal {options.ordinal}: {loaded.spec} cuts label {example.verdict} into other tokens in an "
                "answer than by itself; leave it out"
            )
    return OrdinalTerm(options.ordinal, tokens, values)


def _sft_phase(
    options: FinetuneRaterOptions, question: Question, examples: Sequence[Any], ordinal: OrdinalTerm | None
) -> Phase:
    from raters.training_data import numbers_of
    from raters.training_phases import sft_phase
    from raters.training_plan import schedule

    plan = schedule(
        len(examples),
        options.epochs,
        batch=options.batch,
        steps=options.steps,
        warmup=options.warmup,
        eval_steps=options.eval_steps,
        patience=options.patience,
    )
    verdicts = None if ordinal is None else numbers_of(examples, question.dimension.scale)
    return sft_phase(examples, verdicts, plan, options.lr)


def _dpo_phase(options: FinetuneRaterOptions, pairs: Sequence[Any]) -> Phase:
    from raters.training_phases import dpo_phase
    from raters.training_plan import schedule

    plan = schedule(
        len(pairs),
        options.dpo_epochs,
        batch=options.batch,
        steps=options.steps if options.method == "dpo" else None,
        warmup=options.warmup,
        eval_steps=options.eval_steps,
        patience=options.patience,
    )
    return dpo_phase(pairs, plan, options.dpo_lr)


def _scaled(phase: Phase) -> str:
    from raters.training_plan import scaled_down

    line = scaled_down(phase.plan)
    return f"{phase.name}: {line}" if line else ""


def _too_long(count: int, what: str, encoder: Any) -> str:
    return f"left out {count:,} {what} that are longer than {encoder.most_tokens:,} tokens with their prompt"
