"""Ways to reach a model, one file each, all behind the protocol in `protocol.py`.

A model is named `provider/name`: `hf/<path or id>`, `vllm/<path or id>`, `openai/<name>`. Two that ship with the
project have names of their own: `embedded`, a rule reader, and `student`, a tiny network that has learned to write as
it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from raters.models.batch_size import BatchSize
from raters.models.pacing import EndpointLimits
from raters.models.protocol import Model
from raters.records import ConfigError
from raters.resources import resource_folder

PROVIDERS = ("embedded", "student", "hf/<path or id>", "vllm/<path or id>", "openai/<name>")
STUDENT = "student"
IN_PROCESS = ("hf", "vllm")
"""Providers of models that run on this machine, on a GPU where there is one, and take adapters."""
OF_OBSERVATIONS = ("embedded", STUDENT)
"""Models that read observations of a text instead of the text."""


def open_model(
    spec: str,
    *,
    base_url: str | None = None,
    adapter: str | None = None,
    batch_size: BatchSize = "auto",
    concurrency: int = 32,
    limits: EndpointLimits | None = None,
    engine_options: Mapping[str, Any] | None = None,
) -> Model:
    """Return the model that a spec names.

    Args:
        spec: `provider/name`, `embedded` or `student`.
        base_url: Endpoint of `openai/...`; OPENAI_BASE_URL if None.
        adapter: LoRA adapter folder for `hf/...`, `vllm/...` or `student`.
        batch_size: Most rows that `hf/...` generates at once; `auto` for what a GPU's memory holds, 16 without one.
        concurrency: Most requests that `openai/...` has in flight; draws that `hf/...` is asked for at once.
        limits: How else `openai/...` may be asked; `EndpointLimits()` if None.
        engine_options: Of the engine of `vllm/...`, in place of our own.

    Raises:
        ConfigError: If the spec is not one, or an option does not belong to its provider.
        ModelAccessError: If the model cannot be loaded.
    """
    provider, name = check_spec(spec)
    check_adapter(spec, adapter)
    if spec == "embedded":
        from raters.models.embedded import EmbeddedModel

        return EmbeddedModel()
    if provider == "hf":
        from raters.models.hf import HFModel

        return HFModel(name, spec=spec, adapter=adapter, batch_size=batch_size, concurrency=concurrency)
    if provider == "vllm":
        from raters.models.vllm import VLLMModel

        return VLLMModel(name, adapter=adapter, engine_options=engine_options)
    from raters.models.openai import OpenAIModel

    return OpenAIModel(name, base_url=base_url, concurrency=concurrency, **asdict(limits or EndpointLimits()))


def check_spec(spec: str) -> tuple[str, str]:
    """Return (provider, name) of a model's spec; the name is empty for `embedded`, and a folder for `student`.

    Raises:
        ConfigError: If it is not one.
    """
    if spec == STUDENT:
        return "hf", str(resource_folder("data") / STUDENT)
    provider, _, name = spec.partition("/")
    if spec == "embedded" or (provider in (*IN_PROCESS, "openai") and name.strip()):
        return provider, name
    raise ConfigError(f"model {spec!r}: not a model; give one of {', '.join(PROVIDERS)}")


def check_adapter(spec: str, adapter: object) -> None:
    """Refuse an adapter, if there is one, for a model that takes none.

    Raises:
        ConfigError: If so.
    """
    if adapter is not None and check_spec(spec)[0] not in IN_PROCESS:
        raise ConfigError(f"--adapter {adapter}: {spec} takes none; hf/<path or id>, vllm/<path or id> and student do")


def prompt_family(spec: str) -> str:
    """Return the folder of prompts that a model reads, with its slash: `embedded/`, or none."""
    return "embedded/" if spec in OF_OBSERVATIONS else ""
