"""YAML files of the user: configurations, recipes, prices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from raters.records import ConfigError


def read_yaml(path: Path, where: str, if_missing: str) -> Any:
    """Return what a YAML file of the user holds.

    Args:
        path: The file.
        where: For the error: who names it.
        if_missing: For the error: what to do if it is not there.

    Raises:
        ConfigError: If it is missing or cannot be read.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{where}: no such file; {if_missing}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{where}: cannot be read ({' '.join(str(error).split())}); mend the file") from error
