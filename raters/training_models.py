"""The models of a training run: loading a base, putting an adapter on it, saving it, merging it."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raters.journal import write_atomically
from raters.models import check_spec
from raters.models.bases import BASE_FILE, base_fingerprint, check_base
from raters.models.generation import LoadedModel, check_adapter_weights, load_model
from raters.records import ConfigError, ModelAccessError, ModelError
from raters.training_processes import QuietTraining

if TYPE_CHECKING:
    import torch

Dtype = Literal["auto", "float32", "bfloat16"]
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEPT = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
MOST_MERGE_ERROR = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest change of a logit that merging may make, as a share of the largest logit: rounding, and no more."""


def trainable_name(spec: str) -> str:
    """Return the folder or hub id of a base.

    Raises:
        ConfigError: If the spec is no model that can be trained.
    """
    provider, name = check_spec(spec)
    if provider != "hf":
        raise ConfigError(f"--base {spec}: its weights are not here to be trained; give student or hf/<path or id>")
    return name


def resolved_dtype(dtype: Dtype) -> str:
    """Return the dtype of the base's weights: bfloat16 where a GPU computes in it, else float32."""
    if dtype != "auto":
        return dtype
    import torch

    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


def load_base(spec: str, dtype: str, *, four_bit: bool, chat_template: str | None) -> LoadedModel:
    """Return a base in memory; on the CPU, from where the trainer places it, unless it is in 4 bits.

    Args:
        spec: `student`, `hf/<path or id>`, or another name of such a model.
        dtype: Of its weights, or in 4 bits of its arithmetic.
        four_bit: True for NF4 with double quantisation (Dettmers et al. 2023, QLoRA).
        chat_template: In place of its tokenizer's own.

    Raises:
        ConfigError: If it cannot be had in 4 bits here.
        ModelAccessError: If it cannot be loaded.
    """
    name = trainable_name(spec)
    quantization, device = None, "cpu"
    if four_bit:
        quantization = _four_bit(dtype)
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
    return load_model(spec, name, None, device, dtype, chat_template=chat_template, quantization=quantization)


def _four_bit(dtype: str) -> Any:
    import torch
    import transformers

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("--load-4bit: needs bitsandbytes, which is not installed; pip install bitsandbytes")
    if not torch.cuda.is_available():
        raise ConfigError("--load-4bit: needs a GPU, and none is here; leave it out")
    library: Any = transformers
    return library.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def with_adapter(loaded: LoadedModel, adapter: Path) -> LoadedModel:
    """Return a base under an adapter that is to be trained further.

    Raises:
        ModelAccessError: If the adapter is none, or of another base.
    """
    import peft

    if not (adapter / ADAPTER_CONFIG).is_file():
        raise ModelAccessError(f"--adapter {adapter}: has no {ADAPTER_CONFIG}; give the folder PEFT saved")
    check_adapter_weights(adapter, loaded.spec)
    check_base(partial(base_fingerprint, loaded.model), adapter, loaded.spec)
    try:
        model = peft.PeftModel.from_pretrained(loaded.model, str(adapter), is_trainable=True)
    except Exception as error:  # RuntimeError for shapes, KeyError or ValueError for names
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ModelAccessError(
            f"--adapter {adapter}: does not fit {loaded.spec} ({type(error).__name__}: {first[:160]}); give one that "
            "was trained on it"
        ) from error
    return replace(loaded, model=model)


def save_adapter(checkpoint: Path, loaded: LoadedModel, fingerprint: str, folder: Path) -> None:
    """Make an adapter's folder from a checkpoint: weights, tokenizer with template, and what base it belongs to."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in _KEPT:
        shutil.copyfile(checkpoint / name, partial / name)
    loaded.tokenizer.save_pretrained(partial)
    record = {"base": loaded.spec, "fingerprint": fingerprint}
    write_atomically(partial / BASE_FILE, json.dumps(record, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def merge(
    spec: str, dtype: str, chat_template: str | None, adapter: Path, folder: Path, input_ids: list[int]
) -> dict[str, float]:
    """Write a base with an adapter merged into it, a whole model, and return how far its logits are from both apart.

    Args:
        spec: The base.
        dtype: Of its weights.
        chat_template: In place of its tokenizer's own.
        adapter: The adapter's folder.
        folder: Where to write.
        input_ids: A conversation to compare on.

    Raises:
        ModelError: If they differ by more than rounding.
    """
    with QuietTraining():
        return _merge(spec, dtype, chat_template, adapter, folder, input_ids)


def _merge(
    spec: str, dtype: str, chat_template: str | None, adapter: Path, folder: Path, input_ids: list[int]
) -> dict[str, float]:
    import peft
    import torch

    loaded = load_base(spec, dtype, four_bit=False, chat_template=chat_template)
    model = peft.PeftModel.from_pretrained(loaded.model, str(adapter)).eval()
    ids = torch.tensor([input_ids])
    apart = _logits(model, ids)
    merged = model.merge_and_unload()
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    merged.save_pretrained(partial)
    loaded.tokenizer.save_pretrained(partial)
    del model, merged, loaded
    gc.collect()
    read_back = load_base(f"hf/{partial.resolve()}", dtype, four_bit=False, chat_template=None)
    together = _logits(read_back.model, ids)
    scale = float(apart.abs().max())
    difference = float((together - apart).abs().max()) / scale
    if not difference <= MOST_MERGE_ERROR[dtype]:
        raise ModelError(
            f"--merge: the merged model's logits are off by {difference:.2g} of the largest; use the adapter by itself"
        )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return {"largest_difference": difference, "largest_logit": scale}


def _logits(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=input_ids).logits.float().cpu()
    return logits


def fingerprint_of(loaded: LoadedModel) -> str:
    """Return the fingerprint of a base without an adapter."""
    return base_fingerprint(loaded.model)
