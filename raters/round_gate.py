"""Rounds of fine-tuning: a round's rater takes the place of the one before only if it agrees better with people on dev.

A round infers traces again with the tuned rater and fine-tunes afresh from the base. Nothing makes the next rater a
better one (where the traces of the first round taught nothing, the second has nothing to build on), so each round is
held against the one whose rater stands, by the figure and on the items that chose their checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from raters.rater_files import RaterSpec, read_rater
from raters.records import ConfigError

_SAME = ("corpus", "dimension", "dev_items", "dev_draws", "dev_max_tokens", "base")
"""What two rounds must have in common, or their figures cannot be held against each other."""


@dataclass(frozen=True)
class EarlierRound:
    """A finished run of finetune_rater whose rater stands.

    Attributes:
        folder: Of the run.
        identity: What decided its records.
        rater: That stands after it: its own, or the one that its own gate has left standing.
        figure: Name of the dev figure.
        value: Of the rater that stands; the mean over seeds.
    """

    folder: Path
    identity: Mapping[str, Any]
    rater: RaterSpec
    figure: str
    value: float

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the round of a folder.

        Raises:
            ConfigError: If it holds no finished run of finetune_rater.
            DataError: If its rater cannot be read.
        """
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            if manifest["stage"] != "finetune_rater" or manifest["status"] != "complete":
                raise ValueError(f"a run of {manifest['stage']} that is {manifest['status']}")
            summary, identity = manifest["summary"], dict(manifest["identity"])
            gate = summary.get("gate")
            value = summary["dev"]["mean"] if gate is None or gate["passed"] else gate["value"]
            figure, value = str(summary["figure"]), float(value)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"--gate {folder}: holds no finished run of finetune_rater ({error}); give the folder of one"
            ) from error
        rater = read_rater(folder / "rater.yaml")
        if rater.adapter is not None:
            rater = replace(rater, adapter=str(Path(rater.adapter).resolve()))
        return cls(folder, identity, rater, figure, value)

    def check_comparable(self, identity: Mapping[str, Any]) -> None:
        """Refuse a round whose dev figure cannot be held against this one's.

        Args:
            identity: Of the round that is to come.

        Raises:
            ConfigError: If so.
        """
        for name in _SAME:
            if self.identity.get(name) != identity[name]:
                raise ConfigError(
                    f"--gate {self.folder}: is of another {name} ({self.identity.get(name)}, now {identity[name]}), so "
                    "that dev figures cannot be compared; give a run that differs in its traces"
                )

    def as_record(self, value: float) -> dict[str, Any]:
        """Return what a summary says of the gate.

        Args:
            value: Dev figure of the round that came to it.
        """
        return {"run": str(self.folder), "value": self.value, "passed": value > self.value}
