"""Bases of adapters: telling whether an adapter was trained on the model it is put on.

PEFT puts an adapter on any model whose layers have the same shapes, and the result is noise. So training leaves a
fingerprint of the base beside the adapter, and whoever loads both compares it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from raters.records import ModelAccessError

BASE_FILE = "base.json"
_ROWS = 16


def base_fingerprint(model: Any) -> str:
    """Return a hash of a causal model's embeddings and norms; the same in float32 and bfloat16.

    Args:
        model: transformers' model, without an adapter.
    """
    import torch

    digest = hashlib.sha256()
    embeddings = model.get_input_embeddings().weight
    digest.update(str(tuple(embeddings.shape)).encode())
    norms = [weight for name, weight in sorted(model.named_parameters()) if "norm" in name and weight.ndim == 1]
    for weight in (embeddings[:: max(1, len(embeddings) // _ROWS)], *norms):
        rounded = weight.detach().to(torch.bfloat16).cpu().view(torch.int16)
        digest.update(rounded.numpy().tobytes())
    return digest.hexdigest()


def check_base(model: Any, adapter: Path, spec: str) -> None:
    """Refuse an adapter that says it was trained on another base; one that says nothing passes.

    Raises:
        ModelAccessError: If it does.
    """
    path = adapter / BASE_FILE
    if not path.is_file():
        return
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        wanted, base = said["fingerprint"], said["base"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelAccessError(f"{path}: cannot be read ({error}); give the adapter's folder as it was made") from error
    if base_fingerprint(model) != wanted:
        raise ModelAccessError(
            f"{spec}: adapter {adapter} was trained on another base ({base}), whose weights are not these; give that "
            "one"
        )
