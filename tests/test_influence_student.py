"""Influence on the student, a language model under LoRA, held to leaving traces out and training again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from pipelines.finetune_rater import main as finetune_rater
from pipelines.infer_traces import main as infer_traces
from raters.influence.checkpoint_scores import Less, TracIn
from raters.influence.dev_queries import dev_queries, read_dev_draws
from raters.influence.retraining import left_out, retrain, without
from raters.influence.tuned_runs import TunedRun
from raters.influence.unrolling import AdamWInfluence, SGDUnrolling
from raters.model_selection import DevSplit
from raters.rater_files import read_rater
from raters.trace_runs import TraceRun
from raters.training_data import Encoder

REMOVED = 64


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("steps", "batch"), [(32, 8), (12, 16)])
def test_scores_rank_traces_as_leaving_them_out_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, batch: int
) -> None:
    monkeypatch.setattr("raters.training_report.plot_curves", lambda *arguments: None)
    traces, out = tmp_path / "traces", tmp_path / "tuned"
    assert infer_traces(["--limit", "200", "--null-items", "0", "--k", "16", "--out", str(traces)]) == 0
    schedule = f"--steps {steps} --batch {batch} --eval-steps {steps} --lr 1e-3".split()
    schedule += "--dev-limit 30 --dev-draws 2 --rating-batch 64".split()
    arguments = ["--traces", str(traces), "--base", "student", *schedule, "--record-trajectory", "--out", str(out)]
    assert finetune_rater(arguments) == 0
    tuned, run = TunedRun.open(out, out / "adapter"), TraceRun.read(traces)
    encoder = Encoder(tuned.loaded, run, read_rater(out / "rater.yaml").question, "trace", None)
    draws, dev = read_dev_draws(out, steps), DevSplit.of(run, 30)
    pad = tuned.loaded.generation.pad_token_id
    queries = dev_queries("label", tuned.losses, encoder, run, dev, draws, 1, pad)
    last = tuned.trajectory.last_state().parameters
    again = retrain(tuned.trajectory, tuned.losses, without(set())).parameters
    assert float((again - last).abs().max()) < 1e-4
    seen = sorted({place for step in tuned.trajectory.steps for place in step.examples})
    chosen = np.random.default_rng(0).choice(seen, REMOVED, replace=False).tolist()
    full = float(queries.values(last)[0])
    truth = [
        float(queries.values(left_out(tuned.trajectory, tuned.losses, place).parameters)[0]) - full for place in chosen
    ]
    ranks = {}
    for name, attributor in {
        "adamw": AdamWInfluence(tuned.losses),
        "finite": AdamWInfluence(tuned.losses, finite=True),
        "fisher": AdamWInfluence(tuned.losses, fisher=True),
        "sgd": SGDUnrolling(tuned.losses),
        "tracin": TracIn(tuned.losses),
        "less": Less(tuned.losses),
    }.items():
        attributor.cache(tuned.trajectory)
        ranks[name] = float(spearmanr(attributor.attribute(queries).total[chosen, 0], truth).statistic)
    print(
        f"\n{steps} steps of {batch}: Spearman with leaving out:",
        {name: round(rank, 3) for name, rank in ranks.items()},
    )
    assert ranks["adamw"] >= 0.95
    assert ranks["finite"] >= 0.95
    assert ranks["adamw"] >= 1.1 * ranks["sgd"]
