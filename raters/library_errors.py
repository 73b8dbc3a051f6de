"""Errors in the words of a Python call: what the command line calls `--top-p` is `top_p` there."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from raters.options import StageOptions
from raters.records import ConfigError, JudgeseyeError, shown

_FLAG = re.compile(r"(?<![\w-])--([a-z](?:[a-z-]*[a-z])?)(?![\w-])")

Options = TypeVar("Options", bound=StageOptions)


def checked(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """Return the options that arguments come to.

    Raises:
        ConfigError: If there is no such argument, or its value is not allowed.
    """
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        detail = error.errors()[0]
        name = str(detail["loc"][0]) if detail["loc"] else str(detail.get("ctx", {}).get("name", ""))
        if detail["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, kind.model_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the arguments are {', '.join(kind.model_fields)}"
            raise ConfigError(f"argument {name}: unknown; {hint}") from error
        if detail["type"] == "boolean":
            raise ConfigError(f"{name} {detail['ctx']['value']}: must be a number, not True or False") from error
        message = detail["msg"].removeprefix("Input should be ")
        raise ConfigError(f"{name} {shown(detail['input'])}: must be {message}") from error


@contextlib.contextmanager
def in_words_of_a_call() -> Iterator[None]:
    """Name arguments instead of flags in every error of the block."""
    try:
        yield
    except JudgeseyeError as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (_FLAG.sub(lambda found: found[1].replace("-", "_"), error.args[0]), *error.args[1:])
        raise
