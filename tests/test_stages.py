"""What every stage does alike: help with defaults, units and an example; exit statuses; progress."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import termios
import time
from importlib import import_module
from pathlib import Path

import pytest

from pipelines import screen
from pipelines.completion import flags_of, options_of
from pipelines.options import NEEDED, help_text, parse_options
from pipelines.stages import STAGES
from raters.pace import in_words, time_left
from tests.stage_runs import INTERRUPTED, command, environment, leave_the_user, run_alone, snapshot

UNITS = re.compile(
    r"\b(seconds?|megabytes|tokens?|USD|requests?|tries|items?|rows|draws?|traces?|proposals?|words|answers|resamples|"
    r"folds|examples|steps?|passes|explanations|times|from 0 to 1|units|who draw|labels?|\|z\|)\b"
)
WITHOUT_UNIT = {
    "split_seed", "seed", "seeds", "temperature", "ordinal", "lr", "dpo_lr", "weight_decay", "rank", "alpha", "beta",
    "gate_z", "port",
}  # fmt: skip
"""Numbers that are no quantity of anything."""


def numbers(stage: str) -> set[str]:
    """Return the names of a stage's numeric options."""
    flags = {one.name: one.kind for one in flags_of(stage)}
    return {name for name in options_of(stage).model_fields if flags.get(f"--{name.replace('_', '-')}") == "number"}


@pytest.mark.parametrize("stage", STAGES)
def test_help_names_defaults_units_and_an_example_that_can_be_given(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_the_user(tmp_path, monkeypatch)
    module, kind = import_module(f"pipelines.{stage}"), options_of(stage)
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for name, field in kind.model_fields.items():
        text = help_text(field)
        assert text in shown, name
        told = "default" in text or NEEDED in text or "if not given" in text
        assert told, f"--{name} does not say what it is if it is not given"
    for name in numbers(stage) - WITHOUT_UNIT:
        assert UNITS.search(help_text(kind.model_fields[name])), f"--{name} has no unit"
    examples = re.findall(rf"^  (python -m pipelines\.{stage} .*)$", module.DESCRIPTION, re.MULTILINE)
    assert examples
    for example in examples:
        parse_options(kind, stage, "", shlex.split(example)[3:])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--config", "gone.yaml"], "gone.yaml"),
        (["--config", "list.yaml"], "list.yaml: holds no options"),
        (["--config", "key.yaml"], "unknown key 'nonsense'"),
        (["--out"], "--out"),
    ],
)
def test_bad_input_is_one_line_and_status_2(stage: str, arguments: list[str], said: str, tmp_path: Path) -> None:
    if arguments == ["--out"] and "out" not in options_of(stage).model_fields:
        arguments, said = ["--port"], "--port"
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "key.yaml").write_text("nonsense: 1\n")
    before = snapshot(tmp_path)
    outcome = run_alone(stage, *arguments, folder=tmp_path)
    assert outcome.status == 2
    assert said in outcome.error_line
    assert outcome.out == ""
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("stage", ["score_agreement", "refine_guideline", "finetune_rater"])
def test_a_seed_that_no_generator_of_numbers_takes_is_refused(stage: str, tmp_path: Path) -> None:
    outcome = run_alone(stage, "--seed", "-1", folder=tmp_path)
    assert (outcome.status, outcome.out) == (2, "")
    assert "--seed -1: must be greater than or equal to 0" in outcome.error_line


@pytest.mark.parametrize("stage", STAGES)
def test_an_interruption_is_one_line_and_status_130(stage: str, tmp_path: Path) -> None:
    """The stage waits for its configuration, which comes from a pipe that nobody writes to."""
    pipe = tmp_path / "options.yaml"
    os.mkfifo(pipe)
    line = command(stage, "--config", pipe)
    with subprocess.Popen(
        line, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        writer = os.open(pipe, os.O_WRONLY)  # comes back once the stage has opened it
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        os.close(writer)
    assert process.returncode == INTERRUPTED, err
    assert (out, err) == ("", f"{stage}: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["options.yaml"]


# --- progress ---------------------------------------------------------------------------------------------


def test_without_a_terminal_progress_is_plain_lines(tmp_path: Path) -> None:
    outcome = run_alone("infer_traces", "--limit", 12, "--k", 4, "--out", tmp_path / "out", folder=tmp_path)
    assert outcome.status == 0
    assert "\r" not in outcome.err
    assert "\x1b" not in outcome.err
    line = outcome.err.splitlines()[-1]
    assert re.fullmatch(
        r"  12 of 12 items \(100 %\), accepted [\d.]+ % of labels, [\d,]+ draws/s, [\d,]+ tokens, \$0\.00", line
    )


def test_on_a_terminal_it_is_a_bar(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 200, 0, 0))
    arguments = command("infer_traces", "--limit", 12, "--k", 4, "--out", tmp_path / "out")
    with subprocess.Popen(
        arguments, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                seen += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0
    assert re.search(r"100%.*12/12 \[.*accepted [\d.]+ % of labels, [\d,]+ draws/s, [\d,]+ tokens, \$", seen.decode())


def test_a_line_tells_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    done = 10
    bar = screen.ProgressBar(110, lambda: (done, "all well"))
    now[0], done = 109.0, 20
    bar.update()
    assert capsys.readouterr().err == ""
    now[0] = 120.0  # 10 items in 20 s, so 90 items in 180
    bar.update()
    assert capsys.readouterr().err == "  20 of 110 items (18 %), all well, about 3 min left\n"
    done = 110
    bar.close()
    assert capsys.readouterr().err == "  110 of 110 items (100 %), all well\n"


@pytest.mark.parametrize(
    ("done", "total", "seconds", "said"),
    [
        (0, 10, 5, ""), (10, 10, 5, ""), (11, 10, 5, ""), (5, 10, 0, ""), (1, 2, 30, "about 30 s left"),
        (1, 4, 20, "about 1 min left"), (1, 3, 0.1, "about 1 s left"), (1, 2, 3600, "about 1 h 0 min left"),
        (2, 10, 2505, "about 2 h 47 min left"),
    ],
)  # fmt: skip
def test_time_left(done: int, total: int, seconds: float, said: str) -> None:
    assert time_left(done, total, seconds) == said


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (59.4, "59 s"), (59.9, "60 s"), (3599, "1 h 0 min")])
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_workers_tell_acceptance_tokens_cost_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.workers import Tally

    tally = Tally(missing=40, exact=True, cost=lambda read, written: (read + 4 * written) / 1e6, labels=10, matched=2)
    line = {"chance": "first", "annotator_id": None, "prompt_tokens": 100_000, "completion_tokens": 50_000}
    for item, draw, accepted in (("a", 0, False), ("a", 1, True), ("b", 0, True), ("b", 1, True)):
        tally.count({**line, "item_id": item, "draw": draw, "accepted": accepted})
    assert tally.line(8.0) == ("4 draws, 0 draws/s, accepted 40.0 % of labels, 600,000 tokens, $1.20, about 1 min left")
    # A draw that two people's labels are held against has two lines, and was paid once.
    shared = Tally(missing=9, exact=False, cost=lambda read, written: None, labels=4)
    for who, accepted in (("eva", True), ("kim", False)):
        shared.count({**line, "item_id": "a", "draw": 0, "annotator_id": who, "accepted": accepted})
    assert shared.line(1.0) == (
        "1 draws, 1 draws/s, accepted 25.0 % of labels, 150,000 tokens, cost unknown, at most about 8 s left"
    )


def test_refining_tells_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines import refine_guideline
    from pipelines.infer_traces import main as infer

    leave_the_user(tmp_path, monkeypatch)
    assert infer(["--strategy", "fixed", "--k", "16", "--out", "traces"]) == 0
    monkeypatch.setattr(refine_guideline, "_SECONDS_BETWEEN_LINES", 0.0)
    capsys.readouterr()
    options = "--max-proposals 3 --resamples 200 --draws 2 --dev-limit 30 --no-test --out refined".split()
    assert refine_guideline.main(["--traces", "traces", *options]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if re.match(r"  [\d,]+ answers, ", line)]
    assert re.fullmatch(
        r"  [\d,]+ answers, [\d,]+ tokens, \$0\.00, \d of \d proposals kept \(\d+ %\), at most about \d+ s left",
        lines[-1],
    ), lines[-1]


def test_training_tells_its_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.finetune_rater import main as finetune
    from pipelines.infer_traces import main as infer

    leave_the_user(tmp_path, monkeypatch)
    monkeypatch.setattr("raters.training_report.plot_curves", lambda *arguments: None)
    monkeypatch.setattr("raters.training_watch._SECONDS_BETWEEN_LINES", 0.0)
    assert infer(["--limit", "16", "--null-items", "0", "--out", "traces"]) == 0
    train = "--steps 4 --batch 4 --eval-steps 4 --dev-limit 8 --dev-draws 1 --rating-batch 64 --rank 4".split()
    assert finetune(["--traces", "traces", "--base", "student", *train, "--out", "tuned"]) == 0
    err = capsys.readouterr().err
    assert re.search(r"  sft step 2 of 4: loss \d\.\d{4}, [\d,]+ tokens/s, about \d+ s left\n", err)
    assert "  sft step 4 of 4: loss" in err
