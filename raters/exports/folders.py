"""What every exported folder holds, whatever the harness.

The core needs nothing but Python: `judge_<name>.py`, which builds messages and reads verdicts with this project's own
code, and `rater.json`, which says what the rater is; `rater.yaml`, `certificate.json` and `guideline.md` beside them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from raters import __version__
from raters.exports.one_file import one_file
from raters.exports.portable import ADAPTER, Naming, adapter_files, portable_record, serving_line
from raters.rater_files import RaterSpec, rater_text

Files = dict[str, str | bytes | Path]
"""Content by path in the folder; a path stands for the content of a file there."""
_HARNESS = Path(__file__).parent / "harness"
_NAMES = ("load", "completion_of", "completion_from", "Judge", "JudgeError", "Rating", "Completion")
_NOT_MEASURED = {"certified": False, "reason": "score_agreement has not measured this rater; its rater.yaml has none"}


@dataclass(frozen=True, slots=True)
class Rated:
    """An item of an export.

    Attributes:
        item_id: Unique among them.
        inputs: Its text fields.
        label: People's; None if it has none.
    """

    item_id: str
    inputs: Mapping[str, str]
    label: int | float | str | None


@dataclass(frozen=True)
class Export:
    """A rater on its way out.

    Attributes:
        spec: The rater.
        naming: What it is called there.
        items: That go with it; none if there is no corpus.
        folder: Where it goes, for its README.

    Raises:
        ConfigError: If no exported rater can do what this one does, or no server can have its model.
    """

    spec: RaterSpec
    naming: Naming
    items: Sequence[Rated]
    folder: Path

    def __post_init__(self) -> None:
        """Refuse what cannot be exported."""
        assert self.record

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """What `judge` is made of."""
        return portable_record(self.spec, self.naming)

    @property
    def module(self) -> str:
        """Name of the file that rates; of its own, since a harness may load several raters into one program."""
        return f"judge_{self.naming.name}"

    def core(self) -> Files:
        """Return the files that every folder has.

        Raises:
            DataError: If the rater's adapter is missing.
        """
        spec, observed = self.spec, self.record["observations"] is not None
        head = (
            f"A rater of judgeseye {__version__}: builds its messages, asks its model, reads its verdicts.\n\n"
            "Copied from judgeseye's own modules, so that it says what it says there; needs Python 3.10 or later.\n"
        )
        names = [*_NAMES, "ObservedJudge"] if observed else _NAMES
        files: Files = {
            f"{self.module}.py": one_file(
                "raters.exports.rule_reader" if observed else "raters.exports.judge", names, head
            ),
            "rater.json": _json(self.record),
            "certificate.json": _json(spec.certificate or _NOT_MEASURED),
            "guideline.md": spec.dimension.guideline.rstrip("\n") + "\n",
            "rater.yaml": self._rater_yaml(),
        }
        files |= {f"{ADAPTER}/{name}": path for name, path in adapter_files(spec).items()}
        if self.items:
            lines = ({"item_id": one.item_id, "inputs": dict(one.inputs), "label": one.label} for one in self.items)
            files["items.jsonl"] = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        return files

    def _rater_yaml(self) -> str:
        record = self.spec.as_record()
        if self.spec.adapter is not None and self.spec.adapter_sha256 is not None:
            record["adapter"] = ADAPTER  # known by its hash, wherever it lies
        return rater_text(record)

    def readme(self, *lines: str) -> str:
        """Return a README of what this is, how it is made ready, and how it is run."""
        name, dimension = self.naming.name, self.spec.dimension
        state = "certified, see certificate.json" if self.record["certified"] else "not certified"
        fields = ", ".join(
            f"{field} (what is evaluated)" * (field == self.naming.output) or field for field in self.naming.fields
        )
        what = (
            f"`{name}` rates {dimension.name} on {dimension.scale} with {self.spec.model} ({state}); fields: {fields}."
        )
        return "\n".join([what, *lines]) + "\n"

    @property
    def server(self) -> str:
        """What has to be running or set before the rater is asked."""
        if self.record["embedded"]:
            return "It needs no model and no key."
        serve = serving_line(self.spec)
        at = "JUDGE_BASE_URL and JUDGE_API_KEY, or else OPENAI_BASE_URL and OPENAI_API_KEY, say where its model is."
        return at if serve is None else f"Serve its model (`{serve}`) and set JUDGE_BASE_URL=http://localhost:8000/v1."

    @property
    def place(self) -> str:
        """The folder as a shell and pip take it."""
        return shlex.quote(str(self.folder) if self.folder.is_absolute() else f"./{self.folder}")

    def harness(self, name: str, *, relative: bool = False) -> str:
        """Return a file of harness/ as it stands in the folder.

        Args:
            name: Of the file.
            relative: True if the folder is a package.
        """
        text = (_HARNESS / f"{name}.py").read_text(encoding="utf-8").replace("raters.exports.harness.", "")
        return text.replace("from raters.exports.judge import", f"from {'.' if relative else ''}{self.module} import")


def _json(record: object) -> str:
    """Return a record as a file of JSON."""
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
