"""A model with a guideline as a rater, before anybody has refined or trained anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raters.corpora import Corpus
from raters.corpus_files import Dimension
from raters.models import OF_OBSERVATIONS, check_adapter, check_spec, prompt_family
from raters.prompts import load_prompt
from raters.questions import Question, fit_to_corpus
from raters.rater_files import RaterSpec, adapter_sha256, default_aggregate, seen_by_adapter
from raters.records import ConfigError
from raters.splits import Split


def plain_rater(
    model: str,
    corpus: Corpus,
    dimension: Dimension,
    split: Split | None,
    *,
    prompt: str | None = None,
    reasoning: bool = True,
    adapter: str | None = None,
) -> RaterSpec:
    """Return a model with a dimension's guideline as a rater.

    Args:
        model: `provider/name`.
        corpus: Where the dimension is.
        dimension: Scale and guideline.
        split: Whose train part observations are fitted on, if the prompt shows them; all items if None.
        prompt: Of prompts/, or a .md file; the model's own if None.
        reasoning: False to ask for the verdict alone.
        adapter: LoRA adapter folder for `hf/...`, `vllm/...` or `student`.

    Raises:
        ConfigError: If model, prompt and adapter do not go together.
        DataError: If the adapter cannot be read.
    """
    check_spec(model)
    check_adapter(model, adapter)
    loaded = load_prompt(prompt or prompt_family(model) + ("rate" if reasoning else "rate_at_once"))
    if model in OF_OBSERVATIONS and "fields" in loaded.slots:
        raise ConfigError(f"--prompt {prompt}: shows text, and {model} reads observations; give embedded/rate")
    observations, sha256 = None, None if adapter is None else adapter_sha256(Path(adapter))
    seen = seen_by_adapter(None if adapter is None else Path(adapter))
    if "observations" in loaded.slots:
        training = np.arange(len(corpus.item_ids)) if split is None else split.indices("train")
        observations, seen = fit_to_corpus(corpus, dimension.scale, training), seen.with_items(corpus, training)
    return RaterSpec(
        model=model,
        question=Question(dimension, loaded, observations),
        adapter=None if adapter is None else str(Path(adapter).resolve()),
        adapter_sha256=sha256,
        aggregate=default_aggregate(dimension.scale),
        reasoning=reasoning,
        seen=seen,
    )
