"""Completion for shells, written from the stages' option models: stages, flags, and values where they are listed.

The scripts are complete in themselves, so that a press of the key starts no Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin

from pipelines.options import help_text
from raters.options import StageOptions, flag, is_switch
from raters.records import ConfigError

_MODELS = ("embedded", "student", "hf/", "vllm/", "openai/")
_SPECS = frozenset({"model", "rater", "base", "writer", "escalate", "rationalize", "recover", "explain"})
_SHELLS = ("bash", "zsh", "fish")
_MOST_HELP = 60


@dataclass(frozen=True, slots=True)
class Flag:
    """An option as a shell completes it.

    Attributes:
        name: With its dashes; empty for what stands without a flag.
        help: What it is for, in a few words.
        values: What it can be, as far as it is listed.
        kind: What comes behind it: nothing (`switch`), a number, one of `values` alone (`words`), or a file or one of
            `values` (`file`), or any text (`text`).
        several: True if several values may come.
    """

    name: str
    help: str
    values: tuple[str, ...]
    kind: Literal["switch", "number", "words", "file", "text"]
    several: bool = False


def completion_script(shell: str, stages: Sequence[str]) -> str:
    """Return the script that teaches a shell to complete `judgeseye`.

    Raises:
        ConfigError: If it is another shell.
    """
    scripts: dict[str, Callable[[dict[str, list[Flag]]], Iterator[str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in scripts:
        raise ConfigError(f"completion {shell[:80]}: is no shell that is known; give one of {', '.join(_SHELLS)}")
    return "\n".join(scripts[shell]({stage: list(flags_of(stage)) for stage in stages})) + "\n"


def options_of(stage: str) -> type[StageOptions]:
    """Return the option model of a stage: `InferTracesOptions` for infer_traces."""
    name = "".join(part.title() for part in stage.split("_")) + "Options"
    kind: type[StageOptions] = getattr(import_module(f"pipelines.{stage}"), name)
    return kind


def flags_of(stage: str) -> Iterator[Flag]:
    """Yield what may stand on a stage's command line."""
    yield Flag("--help", "say what the options are", (), "switch")
    yield Flag("--config", "YAML file with the same options", (), "file")
    for name, field in options_of(stage).model_fields.items():
        annotation = field.annotation
        text = " ".join(help_text(field).split())
        short = text if len(text) <= _MOST_HELP else text[: _MOST_HELP - 1] + "…"
        if is_switch(annotation):
            yield Flag(flag(name), short, (), "switch")
            yield Flag(flag(f"no_{name}"), f"not: {short}", (), "switch")
            continue
        members = get_args(annotation) if get_origin(annotation) not in (Literal, tuple) else (annotation,)
        members = members if get_origin(annotation) is not None else (annotation,)
        values = tuple(_choices(members))
        kind: Literal["number", "words", "file", "text"] = "words" if values else "file"
        if not values and (int in members or float in members):
            kind = "number"
        elif name in _SPECS:
            values = _MODELS
        elif name == "corpus":
            values = ("demo",)
        elif name.endswith("base_url"):
            kind = "text"
        several = get_origin(annotation) is tuple
        yield Flag("" if field.json_schema_extra else flag(name), short, values, kind, several)


def _choices(members: Sequence[Any]) -> Iterator[str]:
    for member in members:
        if get_origin(member) is Literal:
            yield from map(str, get_args(member))
        elif get_origin(member) is Union:
            yield from _choices(get_args(member))


def _bash(stages: dict[str, list[Flag]]) -> Iterator[str]:
    yield "# Completion of judgeseye for bash. Made by: judgeseye completion bash"
    yield "_judgeseye_flags() {\n  case $1 in"
    for stage, flags in stages.items():
        yield f"    {stage}) echo '{' '.join(one.name for one in flags if one.name)}' ;;"
    yield "  esac\n}"
    yield "_judgeseye_values() {\n  case $1/$2 in"
    for stage, flags in stages.items():
        for one in flags:
            if one.kind == "file" and not one.values and not one.several:
                continue
            yield f"    {stage}/{one.name}) echo '{one.kind} {int(one.several)} {' '.join(one.values)}' ;;"
    yield "    *) echo 'file 0' ;;\n  esac\n}"
    yield f"""\
_judgeseye() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} stage=${{COMP_WORDS[1]}} at flag= kind several values
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W '{" ".join(stages)} completion --help --version' -- "$cur"))
    return
  fi
  if [[ $stage == completion ]]; then
    COMPREPLY=($(compgen -W '{" ".join(_SHELLS)}' -- "$cur"))
    return
  fi
  [[ -n $(_judgeseye_flags "$stage") ]] || return
  if [[ $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$(_judgeseye_flags "$stage")" -- "$cur"))
    return
  fi
  # Whose value this is: that of the last flag, if it takes one more.
  for ((at = COMP_CWORD - 1; at > 1; at--)); do
    if [[ ${{COMP_WORDS[at]}} == --* ]]; then
      flag=${{COMP_WORDS[at]}}
      break
    fi
  done
  read -r kind several values <<< "$(_judgeseye_values "$stage" "$flag")"
  if [[ -n $flag ]] && {{ [[ $kind == switch ]] || ((!several && COMP_CWORD - at > 1)); }}; then
    read -r kind several values <<< "$(_judgeseye_values "$stage" '')"
  fi
  COMPREPLY=($(compgen -W "$values" -- "$cur"))
  if [[ $kind == file ]]; then
    while IFS= read -r at; do COMPREPLY+=("$at"); done < <(compgen -f -- "$cur")
    compopt -o filenames 2> /dev/null  # bash before 4 has none
  fi
  [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == */ ]] && compopt -o nospace 2> /dev/null
  return 0
}}
complete -F _judgeseye judgeseye"""


def _zsh(stages: dict[str, list[Flag]]) -> Iterator[str]:
    def quoted(text: str) -> str:
        return "'" + text.replace("'", "'\\''") + "'"

    def plain(text: str) -> str:
        return re.sub(r"([\\:\[\]])", r"\\\1", text)

    yield "#compdef judgeseye\n# Completion of judgeseye for zsh. Made by: judgeseye completion zsh"
    yield "_judgeseye() {\n  local -a stages\n  stages=("
    for stage in stages:
        yield f"    {quoted(stage)}"
    yield "    completion\n  )"
    yield "  if (( CURRENT == 2 )); then\n    _describe stage stages\n    return\n  fi"
    yield "  local stage=$words[2]\n  shift words\n  (( CURRENT-- ))\n  case $stage in"
    yield f"    completion) _arguments '1:shell:({' '.join(_SHELLS)})' ;;"
    for stage, flags in stages.items():
        yield f"    {stage})\n      _arguments \\"
        for one in flags:
            what = one.name.removeprefix("--") or "source"
            colon = ":*--*:" if one.several else ":"  # values up to the next flag
            action = {
                "switch": "",
                "number": f":{what}: ",
                "text": f":{what}: ",
                "words": f"{colon}{what}:({' '.join(one.values)})",
                "file": f"{colon}{what}:{_zsh_files(one.values)}",
            }[one.kind]
            if not one.name:
                yield f"        {quoted(f'1{action}')} \\"
            else:
                several = "*" if one.several else ""
                yield f"        {quoted(f'{several}{one.name}[{plain(one.help)}]{action}')} \\"
        yield "        ;;"
    yield "  esac\n}\n"
    yield 'if [ "$funcstack[1]" = "_judgeseye" ]; then\n  _judgeseye "$@"\nelse\n  compdef _judgeseye judgeseye\nfi'


def _zsh_files(values: Sequence[str]) -> str:
    """Return what offers files and some words; those that end in a slash go on."""
    whole = [value for value in values if not value.endswith("/")]
    begun = [value for value in values if value.endswith("/")]
    words = f"compadd -- {' '.join(whole)}; " if whole else ""
    return f'{{ {words}{f"""compadd -S "" -- {" ".join(begun)}; """ if begun else ""}_files }}' if values else "_files"


def _fish(stages: dict[str, list[Flag]]) -> Iterator[str]:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    yield "# Completion of judgeseye for fish. Made by: judgeseye completion fish"
    yield "complete -c judgeseye -e"
    names = " ".join([*stages, "completion"])
    yield f"complete -c judgeseye -f -n 'not __fish_seen_subcommand_from {names}' -a {quoted(names)}"
    yield f"complete -c judgeseye -f -n '__fish_seen_subcommand_from completion' -a {quoted(' '.join(_SHELLS))}"
    for stage, flags in stages.items():
        for one in flags:
            when = f"complete -c judgeseye -n '__fish_seen_subcommand_from {stage}'"
            if not one.name:
                continue  # a file, which fish completes by itself
            values = f" -a {quoted(' '.join(one.values))}" if one.values else ""
            takes = {"switch": " -f", "number": " -x", "text": " -x", "words": " -x", "file": " -r -F"}[one.kind]
            yield f"{when} -l {one.name.removeprefix('--')}{takes}{values} -d {quoted(one.help)}"
