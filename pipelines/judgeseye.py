"""One command for all stages: `judgeseye STAGE ...` is `python -m pipelines.STAGE ...`, with completion for shells."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from pipelines.command import run_command
from pipelines.stages import STAGES
from raters.records import ConfigError

STAGE = "judgeseye"
USAGE = """\
usage: judgeseye STAGE [options]
       judgeseye completion {bash,zsh,fish}

Each stage is also python -m pipelines.STAGE, with the same options; judgeseye STAGE --help names them.

"""
COMPLETION_USAGE = """\
usage: judgeseye completion {bash,zsh,fish}

Prints what makes a shell complete stages, options and their values. To have it in every session:

  bash: judgeseye completion bash > ~/.local/share/bash-completion/completions/judgeseye
  zsh:  judgeseye completion zsh > DIRECTORY/_judgeseye, a directory of $fpath, before compinit
  fish: judgeseye completion fish > ~/.config/fish/completions/judgeseye.fish
"""


def main() -> int:
    """Run the stage that the first argument names, and return its exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in STAGES:
        sys.argv = [name, *sys.argv[2:]]
        return run_command(name, import_module(f"pipelines.{name}").main)
    return run_command(STAGE, _own)


def _own(arguments: Sequence[str]) -> int:
    """Answer what no stage does."""
    asked, *more = arguments or ("--help",)
    if asked in ("-h", "--help"):
        print(USAGE + "\n".join(f"  {name:<18}{_first_sentence(name)}" for name in STAGES))
    elif asked == "--version":
        from raters import __version__

        print(f"judgeseye {__version__}")
    elif asked == "completion":
        if len(more) != 1 or more[0] in ("-h", "--help"):
            print(COMPLETION_USAGE, end="")
            return 0 if more else 2
        from pipelines.completion import completion_script

        print(completion_script(more[0], STAGES), end="")
    else:
        import difflib

        near = difflib.get_close_matches(asked.replace("-", "_"), [*STAGES, "completion"], n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(STAGES)}, completion"
        raise ConfigError(f"{asked[:80]}: is no stage; {hint}")
    return 0


def _first_sentence(name: str) -> str:
    text = " ".join(import_module(f"pipelines.{name}").DESCRIPTION.split())
    first = text.partition(". ")[0].partition(": ")[0]
    return first if len(first) <= 90 else first[:89] + "…"


if __name__ == "__main__":
    sys.exit(main())
