"""The rater of `judge` for prompts that show observations of a text, and `embedded`, which reads them itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from raters.exports.judge import Judge
from raters.models.embedded import answer
from raters.models.protocol import Completion, SamplingSettings
from raters.observations import levels_of, render_levels


class ObservedJudge(Judge):
    """A rater that is shown observations of an item's text."""

    @property
    def rates_here(self) -> bool:
        """True for the rule reader, which is no model."""
        return bool(self.record["embedded"])

    def complete(self, inputs: Mapping[str, str], draw: int = 0) -> Completion:
        """Return one draw; see `Judge.complete`."""
        if not self.rates_here:
            return super().complete(inputs, draw)
        sampling = self.record["sampling"]
        settings = SamplingSettings(sampling["temperature"], sampling["top_p"], sampling["max_tokens"])
        return answer(self.messages(inputs, draw)[-1]["content"], self.seed(inputs, draw), settings)

    def _observations(self, inputs: Mapping[str, str], swapped: bool) -> str:
        fit = self.record["observations"]
        return render_levels(levels_of(inputs, fit["fields"], fit["second"], fit["cuts"]), swapped=swapped)


def load(folder: str | Path) -> ObservedJudge:
    """Return the rater of an exported folder.

    Raises:
        OSError: If it lacks its rater.json.
    """
    record = json.loads((Path(folder) / "rater.json").read_text(encoding="utf-8"))
    return ObservedJudge(record, Path(folder))
