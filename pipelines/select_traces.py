"""Stage: say which traces of a recorded fine-tuning run helped and which harmed, and keep those that did not harm."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipelines.command import run_command
from pipelines.options import parse_options
from pipelines.screen import ProgressBar, say
from raters.options import StageOptions
from raters.records import ConfigError

if TYPE_CHECKING:
    from pipelines.selection import Sources
    from raters.runs import RunFolder

STAGE = "select_traces"
DESCRIPTION = """\
Say what each trace of a run of finetune_rater --record-trajectory did to agreement on the dev split, by unrolling the
run's AdamW steps backwards, and keep the traces that did not harm. finetune_rater --traces takes the folder.

  python -m pipelines.select_traces --run runs/demo/finetune_rater --out runs/demo/select_traces

Writes to --out: influence.jsonl (every trace: score, interval, split, error proxy, own loss before training),
traces.jsonl (without the harmful ones), report.html (the most helpful, most harmful and least expected to read),
summary.json, manifest.json; with --online also adapter/ and rater.yaml. Scores are predicted changes of the dev loss if
a trace is removed: below 0 is harmful.
The same command again goes on from where it was stopped."""


class SelectTracesOptions(StageOptions):
    """Options of select_traces."""

    run: str | None = Field(None, description="folder of a finished run of finetune_rater --record-trajectory; needed")
    corpus: str | None = Field(None, description="where that run's corpus is now (default: where it was)")
    traces: str | None = Field(None, description="where that run's traces are now (default: where they were)")
    split: Literal["dev"] = Field("dev", description="whose labels decide; the test split stays unseen")
    at: Literal["chosen", "last"] = Field(
        "chosen", description="whose loss: that of the weights that dev chose, or of those after the last step"
    )
    query: Literal["draws", "agreement", "label"] = Field(
        "draws",
        description="loss on the dev split. draws: minus the expected agreement of whole draws, by their likelihood; "
        "agreement: minus that of the verdict behind the rater's own reasoning; label: cross-entropy of people's label "
        "there",
    )
    attributor: Literal["adamw", "sgd", "fisher", "tracin", "less"] = Field(
        "adamw",
        description="adamw: AdamW-influence. To compare with: sgd, unrolled as if SGD had trained; fisher, adamw with "
        "the empirical Fisher matrix for the Hessian; tracin; less",
    )
    horizon: int | None = Field(
        None, ge=1, description="look only so many steps ahead of each step (default: to the end of the run)"
    )
    folds: int = Field(5, ge=1, le=50, description="folds of the dev split, over which a sign has to be stable")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="confidence, from 0 to 1, of the interval over folds")
    drop_unexpected: bool = Field(
        False,
        description="also leave out traces whose own loss before training is far above the others', as where reasoning "
        "belongs to another item",
    )
    renormalize: bool = Field(True, description="a step without a trace averages over those left")
    error_proxy: bool = Field(True, description="take each removal's own step exactly, and call nothing harmful whose "
                              "score is smaller than the proxy of its error; about twice as long")  # fmt: skip
    online: int | None = Field(
        None,
        ge=1,
        description="train again instead, leaving out at every step what this many steps ahead shows to harm "
        "(default: no)",
    )
    micro_batch: int = Field(8, ge=1, description="examples read at once")
    show: int = Field(3, ge=0, description="most harmful traces to print")
    out: str | None = Field(None, description="folder of this run (default: runs/<corpus>[-<dimension>]/select_traces)")
    new: bool = Field(False, description="start over; a run that stands in --out is kept beside it")


def main(arguments: Sequence[str]) -> int:
    """Run the stage and return its exit status."""
    options = parse_options(SelectTracesOptions, STAGE, DESCRIPTION, arguments)
    if options.run is None:
        raise ConfigError("--run: missing; give the folder of a run of finetune_rater --record-trajectory")
    if options.online is not None and (options.horizon is not None or options.attributor != "adamw"):
        raise ConfigError(
            f"--online {options.online}: is the horizon itself, of AdamW-influence; leave out --horizon and "
            "--attributor"
        )
    if options.online is not None and options.drop_unexpected:
        raise ConfigError("--drop-unexpected: has no part in --online, whose rater learns from them; leave out either")
    if options.horizon is not None and options.attributor in ("tracin", "less"):
        raise ConfigError(f"--horizon {options.horizon}: {options.attributor} unrolls nothing; leave it out")
    from pipelines.selection import finished, read_sources
    from raters.runs import RunFolder

    began = time.monotonic()
    sources = read_sources(options)
    folder = RunFolder(sources.out, STAGE, sources.identity(), new=options.new)
    try:
        if finished(folder.previous, folder.path):
            say(f"--out {folder.path}: holds this very run, finished; nothing is left to do")
            return 0
        lines = _run(sources, folder, began)
    finally:
        folder.release()
    print("\n".join(lines))
    rater = ", rater.yaml, adapter/" if options.online is not None else ""
    print(f"\nWritten to {folder.path}: influence.jsonl, traces.jsonl, report.html, summary.json{rater}")
    return 0


def _run(sources: Sources, folder: RunFolder, began: float) -> list[str]:
    """Attribute, write what comes out, and return the lines of a summary."""
    from pipelines.selection import attribute, own_losses, read_recorded, train_online, work_done
    from pipelines.selection_results import write_results
    from raters.influence.retraining import check_gradient

    options = sources.options
    recorded = read_recorded(sources)
    say(recorded.describe())
    before = folder.previous.get("seconds", 0.0)
    folder.create(sources.manifest("running", before))
    done = work_done(sources)
    bar = ProgressBar(
        recorded.work(), lambda: (done, ""), unit="step" if options.attributor in _UNROLLED else "gradient"
    )

    def count(number: int) -> None:
        nonlocal done
        done += number
        bar.update()

    check_gradient(recorded.tuned.trajectory, recorded.tuned.losses)
    found = (attribute if options.online is None else train_online)(recorded, count)
    bar.close()
    done = 0
    bar = ProgressBar(len(recorded.records), lambda: (done, "own losses"), unit="trace")
    losses = own_losses(recorded, count)
    bar.close()
    summary, lines = write_results(recorded, found, losses)
    folder.write_manifest({**sources.manifest("complete", before + time.monotonic() - began), "summary": summary})
    sources.sweep.unlink(missing_ok=True)  # nothing is gone on from any more
    return lines


_UNROLLED = ("adamw", "sgd", "fisher")

if __name__ == "__main__":
    sys.exit(run_command(STAGE, main))
