"""`judgeseye STAGE`, and what shells complete of it: asked of the shells themselves."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
import tomllib
from functools import cache
from pathlib import Path

import pytest

from pipelines.completion import flags_of, options_of
from pipelines.stages import STAGES
from tests.places import CHECKOUT
from tests.stage_runs import environment

ASKED = [
    ("judgeseye fine", "judgeseye finetune_rater "),
    ("judgeseye compl", "judgeseye completion "),
    ("judgeseye completion ba", "judgeseye completion bash "),
    ("judgeseye infer_traces --split-s", "judgeseye infer_traces --split-seed "),
    ("judgeseye infer_traces --k 8 --split de", "judgeseye infer_traces --k 8 --split dev "),
    ("judgeseye infer_traces --no-ah", "judgeseye infer_traces --no-ahead "),
    ("judgeseye infer_traces --model emb", "judgeseye infer_traces --model embedded "),
    ("judgeseye infer_traces --model open", "judgeseye infer_traces --model openai/"),
    ("judgeseye rate_items --corpus my", "judgeseye rate_items --corpus my_corpus/"),
    ("judgeseye run_recipe rec", "judgeseye run_recipe recipe.yaml "),
    ("judgeseye run_recipe --list rec", "judgeseye run_recipe --list recipe.yaml "),
    ("judgeseye score_agreement --ratings recipe.yaml two",
     "judgeseye score_agreement --ratings recipe.yaml two\\ words.jsonl "),
    ("judgeseye score_agreement --labels med", "judgeseye score_agreement --labels median "),
]  # fmt: skip
"""What is typed before the key, and the line after it, in bash and zsh."""


@cache
def script(shell: str) -> str:
    command = [sys.executable, "-m", "pipelines.judgeseye", "completion", shell]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_corpus").mkdir()
    for name in ("recipe.yaml", "two words.jsonl"):
        (tmp_path / name).write_text("")
    return tmp_path


def completed(shell: list[str], folder: Path, setup: str, typed: str) -> str:
    """Return what a person sees who types that in a shell and presses the key, and then a bar."""
    pid, screen = pty.fork()
    if pid == 0:
        os.chdir(folder)
        variables = {"TERM": "dumb", "PATH": os.environ["PATH"], "HOME": str(folder), "ZDOTDIR": str(folder)}
        os.execvpe(shell[0], shell, {**variables, "LC_ALL": "C.UTF-8"})
    seen = ""

    def until(wanted: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 20
        while wanted not in seen:
            assert time.monotonic() < deadline, f"{wanted!r} did not come: {seen!r}"
            if select.select([screen], [], [], 0.1)[0]:
                seen += os.read(screen, 1 << 16).decode(errors="replace")

    try:
        os.write(screen, f"judgeseye() {{ :; }}; {setup}; echo rea''dy\n".encode())
        until("ready")
        seen = ""
        os.write(screen, f"{typed}\t".encode())
        time.sleep(0.5)
        os.write(screen, b"|")
        until("|")
        return seen.replace("\r", "").replace("\b", "")  # zsh goes back over a blank that it may take away
    finally:
        os.close(screen)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(("typed", "line"), ASKED)
def test_bash_completes(folder: Path, typed: str, line: str) -> None:
    (folder / "judgeseye.bash").write_text(script("bash"))
    setup = "bind 'set enable-bracketed-paste off'; source ./judgeseye.bash"
    found = completed(["bash", "--norc", "--noprofile", "-i"], folder, setup, typed)
    assert f"{line}|" in found, found


@pytest.mark.shells
@pytest.mark.parametrize(("typed", "line"), ASKED)
def test_zsh_completes(folder: Path, typed: str, line: str) -> None:
    (folder / "_judgeseye").write_text(script("zsh"))
    setup = "unsetopt zle_bracketed_paste 2>/dev/null; fpath=($PWD $fpath); autoload -Uz compinit; compinit -u"
    found = completed(["zsh", "-f", "-i"], folder, setup, typed)
    assert f"{line}|" in found, found


@pytest.mark.shells
@pytest.mark.parametrize(("typed", "line"), ASKED)
def test_fish_completes(folder: Path, typed: str, line: str) -> None:
    (folder / "judgeseye.fish").write_text(script("fish"))
    asked = f"source judgeseye.fish; complete -C {typed!r}"
    done = subprocess.run(["fish", "-N", "-c", asked], cwd=folder, capture_output=True, text=True, check=True,
                          env={"PATH": os.environ["PATH"], "HOME": str(folder)})  # fmt: skip
    words = {entry.partition("\t")[0] for entry in done.stdout.splitlines()}
    last = re.split(r"(?<!\\) ", line.rstrip())[-1].replace("\\ ", " ")
    assert last in words, done.stdout
    if " --" not in typed or "--" in typed.split()[-1]:  # files may stand beside values
        assert len(words) < 20


def test_the_key_shows_all_that_may_come(folder: Path) -> None:
    text = script("bash")
    source = (
        f"{text}\nCOMP_WORDS=(judgeseye infer_traces --keep ''); COMP_CWORD=3; _judgeseye; echo \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", source], cwd=folder, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("first all\n", "")
    for words in ("judgeseye nothing ''", "judgeseye infer_traces --k ''", "judgeseye infer_traces --nothing ''"):
        source = (
            f'{text}\nCOMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}; _judgeseye; echo "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(["bash", "-c", source], cwd=folder, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert "nothing" in words or done.stdout == "\n"


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_is_completed(stage: str) -> None:
    names = {one.name for one in flags_of(stage)}
    for name, field in options_of(stage).model_fields.items():
        assert f"--{name.replace('_', '-')}" in names or (field.json_schema_extra and "" in names)
    flags = re.search(rf"    {stage}\) echo '(--help .*)' ;;", script("bash"))
    assert flags is not None
    assert set(flags[1].split()) == names - {""}


# --- the command ------------------------------------------------------------------------------------------


def judgeseye(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.judgeseye", *arguments]
    return subprocess.run(command, cwd=CHECKOUT, env=environment(), capture_output=True, text=True, check=False)


def test_the_command_is_installed_with_the_package() -> None:
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    assert settings["project"]["scripts"] == {"judgeseye": "pipelines.judgeseye:main"}


def test_a_stage_by_its_name(tmp_path: Path) -> None:
    done = judgeseye("rate_items", "--model", "embedded", "--limit", "3", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "rated 3 items" in done.stdout
    done = judgeseye("rate_items", "--model", "embedded", "--limt", "3")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2, "rate_items: unrecognized arguments: --limt 3; did you mean --limit?",
    )  # fmt: skip


def test_what_it_says_of_itself() -> None:
    for arguments in ((), ("--help",), ("-h",)):
        done = judgeseye(*arguments)
        assert done.returncode == 0
        assert all(f"\n  {stage} " in done.stdout for stage in STAGES)
    assert re.fullmatch(r"judgeseye \d+\.\d+\.\d+\n", judgeseye("--version").stdout)
    for wrong, said in (("infer-traces", "did you mean infer_traces?"), ("x", "is no stage"), ("../x", "is no stage")):
        done = judgeseye(wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("judgeseye: ")
        assert said in done.stderr
    assert judgeseye("completion").returncode == 2
    assert "give one of bash, zsh, fish" in judgeseye("completion", "csh").stderr
