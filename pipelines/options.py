"""Options on the command line: a stage's pydantic model gives the flags, the keys of `--config`, and the checks."""

from __future__ import annotations

import argparse
import difflib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

from raters.options import StageOptions, flag, is_switch
from raters.records import ConfigError
from raters.yaml_files import read_yaml

_MOST_SHOWN = 80
NEEDED = "needed"
"""In the help text of what cannot be left out."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line like all others."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        known = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown.split("=")[0].split()[0], known, n=1) if unknown != message else []
        raise ConfigError(f"{message}; {f'did you mean {near[0]}?' if near else 'see --help'}")


def positional(description: str) -> Any:
    """Return a field that stands on the command line without a flag; one a stage, and a text."""
    return Field(None, description=description, json_schema_extra={"positional": True})


Options = TypeVar("Options", bound=StageOptions)


def parse_options(kind: type[Options], stage: str, description: str, arguments: Sequence[str]) -> Options:
    """Return a stage's options from its arguments; flags go before `--config file.yaml`, that before defaults.

    Raises:
        ConfigError: On an unknown flag or key or a value that is not allowed; names the flag or the file's key.
        SystemExit: After `--help`.
    """
    alone = [name for name, field in kind.model_fields.items() if field.json_schema_extra]
    parser = _Parser(
        prog=f"python -m pipelines.{stage}",
        usage=" ".join([f"python -m pipelines.{stage}", *map(str.upper, alone), "[options]"]),
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same options (k: 8, top_p: 0.9, ...)")
    # What stages share comes last, so it does not stand in the stage's own class.
    for name, field in sorted(kind.model_fields.items(), key=lambda field: field[0] not in kind.__annotations__):
        text = help_text(field).replace("%", "%%")
        if name in alone:
            parser.add_argument(name, nargs="?", metavar=name.upper(), help=text)
        elif is_switch(field.annotation):
            parser.add_argument(flag(name), action=argparse.BooleanOptionalAction, help=text)
        elif get_origin(field.annotation) is tuple:
            parser.add_argument(flag(name), nargs="+", action="extend", metavar=_metavar(str, name), help=text)
        else:
            parser.add_argument(flag(name), metavar=_metavar(field.annotation, name), help=text)
    given = vars(parser.parse_args(arguments))
    path = given.pop("config", None)
    from_file = _read_config(Path(path), kind) if path is not None else {}
    try:
        return kind.model_validate({**from_file, **given})
    except ValidationError as error:
        detail = error.errors()[0]
        least = next((f" of at least {one['ctx']['ge']}" for one in error.errors() if "ge" in one.get("ctx", {})), "")
        if detail["type"] == "boolean":
            raise ConfigError(
                f"{path}: {detail['msg']} {detail['ctx']['value']}: must be a number, not yes or no"
            ) from error
        name = str(detail["loc"][0]) if detail["loc"] else ""
        place = f"{path}: {name}" if name in from_file and name not in given else flag(name)
        choices = _metavar(kind.model_fields[name].annotation, name) if name in kind.model_fields else ""
        message = detail["msg"].removeprefix("Input should be ")
        if choices.startswith("{"):
            message = "one of " + choices.strip("{}").replace(",N", f",or a whole number{least}").replace(",", ", ")
        if detail["type"] == "tuple_type":
            message = "a list, such as [a, b]"
        value = detail["input"] if isinstance(detail["input"], str) else repr(detail["input"])
        raise ConfigError(f"{place} {value[:_MOST_SHOWN]}: must be {message}") from error


def help_text(field: FieldInfo) -> str:
    """Return what an option is for and what it is if it is not given."""
    text, default = field.description or "", field.default
    if "default" in text or NEEDED in text or "if not given" in text:
        return text
    if isinstance(default, bool):
        default = "yes" if default else "no"
    elif isinstance(default, tuple):
        default = " ".join(map(str, default))
    return f"{text} (default: {'none' if default in (None, '') else default})"


def _metavar(annotation: Any, name: str) -> str:
    members = get_args(annotation) if get_origin(annotation) in (types.UnionType, Union) else (annotation,)
    members = tuple(get_args(member)[0] if get_origin(member) is Annotated else member for member in members)
    choices = [str(value) for member in members if get_origin(member) is Literal for value in get_args(member)]
    if choices:
        return "{" + ",".join(choices) + ("" if int not in members else ",N") + "}"
    return "N" if int in members or float in members else name.upper().rsplit("_", maxsplit=1)[-1]


def _read_config(path: Path, kind: type[StageOptions]) -> dict[str, Any]:
    settings = read_yaml(path, f"--config {path}", "check the name")
    if not isinstance(settings, dict):
        raise ConfigError(f"--config {path}: holds no options; write one `key: value` a line")
    settings = {str(name).replace("-", "_"): value for name, value in settings.items()}
    for name in settings.keys() - kind.model_fields.keys():
        near = difflib.get_close_matches(name, kind.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(kind.model_fields)}"
        raise ConfigError(f"--config {path}: unknown key {name!r}; {hint}")
    return settings
