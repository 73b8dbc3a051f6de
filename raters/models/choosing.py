"""Choosing the next token of each row, from a seed of the row's own.

Sampling by Gumbel-max: the argmax of log-probabilities plus independent Gumbel noise is an exact sample of the
distribution (Gumbel 1954, "Statistical Theory of Extreme Values"; Maddison, Tarlow and Minka 2014, "A* Sampling"). So
every row brings its own noise from its own seed, and greedy decoding does the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raters.models.protocol import SamplingSettings

if TYPE_CHECKING:
    import torch


class Chooser:
    """Takes the next token of each row: the likeliest, after Gumbel noise if it is to be drawn."""

    def __init__(self, seeds: Sequence[int], settings: SamplingSettings, device: torch.device) -> None:
        self._warpers = warpers(settings)
        self._noise = GumbelNoise(seeds, device) if settings.temperature > 0 else None

    def __call__(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Return (rows,) tokens for logits (rows, vocabulary); `rows` says whose they are."""
        for warper in self._warpers:
            logits = warper(None, logits)
        return (logits if self._noise is None else self._noise.added(logits, rows)).argmax(-1)


def warpers(settings: SamplingSettings) -> list[Any]:
    """Return what shapes a distribution before a token is drawn from it; greedy decoding needs none."""
    import transformers

    library: Any = transformers
    found = []
    if settings.temperature > 0:
        if settings.temperature != 1.0:
            found.append(library.TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_p < 1.0:
            found.append(library.TopPLogitsWarper(settings.top_p))
    return found


class GumbelNoise:
    """Adds Gumbel(0, 1) noise, each row's from a generator of its own; also a logits processor of transformers."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        import torch

        self._generators = [torch.Generator(device).manual_seed(_spread(seed)) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (rows, tokens) plus noise."""
        return self.added(scores, range(len(self._generators)))

    def added(self, scores: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Return scores (rows, tokens) plus noise; `rows` says whose they are."""
        import torch

        # -log of an exponential variable is a Gumbel variable; exponential_ may return 0 in float32.
        noise = torch.empty_like(scores)
        for index, row in enumerate(rows):
            noise[index].exponential_(generator=self._generators[row])
        return scores - noise.clamp_min_(torch.finfo(noise.dtype).tiny).log_()


def _spread(seed: int) -> int:
    """Return a 63-bit seed that differs in its low bits too: torch's CPU generator reads only 32 of them."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
