"""Bases of adapters: telling whether an adapter was trained on the model it is put on.

PEFT puts an adapter on any model whose layers have the same shapes, and the result is noise. So training leaves a
fingerprint of the base beside the adapter, and whoever loads both compares it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
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
    return _fingerprint(model.get_input_embeddings().weight, [weight for _, weight in _norms(model)])


def fingerprint_of_files(name: str) -> str | None:
    """Return the fingerprint of a model that only another program has in memory, read from its files.

    Args:
        name: Folder, or hub id of a model that was downloaded.

    Returns:
        What `base_fingerprint` returns of it; None if the files do not have the weights that it is made of.
    """
    import huggingface_hub
    import safetensors
    import torch
    import transformers

    library: Any = transformers
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
        except (OSError, ValueError):  # it is where only the other program knows
            return None
    with torch.device("meta"):  # the names of the weights, without the weights
        model = library.AutoModelForCausalLM.from_config(library.AutoConfig.from_pretrained(folder))
    embeddings = model.get_input_embeddings().weight
    names = [name for name, weight in model.named_parameters() if weight is embeddings]
    names += [name for name, _ in _norms(model)]
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as weights:
            found |= {name: weights.get_tensor(name) for name in set(names).intersection(weights.keys())}
    if found.keys() < set(names):
        return None
    first, *norms = (found[name] for name in names)
    return _fingerprint(first, norms)


def _norms(model: Any) -> list[tuple[str, Any]]:
    """Return name and weight of each of a model's norms."""
    return [(name, one) for name, one in sorted(model.named_parameters()) if "norm" in name and one.ndim == 1]


def _fingerprint(embeddings: Any, norms: Sequence[Any]) -> str:
    import torch

    digest = hashlib.sha256()
    digest.update(str(tuple(embeddings.shape)).encode())
    for weight in (embeddings[:: max(1, len(embeddings) // _ROWS)], *norms):
        rounded = weight.detach().to(torch.bfloat16).cpu().view(torch.int16)
        digest.update(rounded.numpy().tobytes())
    return digest.hexdigest()


def check_base(fingerprint: Callable[[], str | None], adapter: Path, spec: str) -> None:
    """Refuse an adapter that says it was trained on another base; one that says nothing passes.

    Args:
        fingerprint: Returns the base's; None if it has none to tell.
        adapter: The adapter's folder.
        spec: For the message.

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
    if (ours := fingerprint()) is not None and ours != wanted:
        raise ModelAccessError(
            f"{spec}: adapter {adapter} was trained on another base ({base}), whose weights are not these; give that "
            "one"
        )
