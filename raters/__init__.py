"""judgeseye: label-only annotations into LLM raters that can be trusted. The library behind `pipelines`.

Five names are enough to begin with: `load_corpus`, `infer_traces`, `refine_guideline`, `load_rater`, `score_agreement`.
What waits for a model or takes seconds has a twin to await: `infer_traces_async`, and so on. What they raise on purpose
is a `JudgeseyeError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raters.corpora import Corpus, load_corpus
    from raters.rating import Rater, Rating, load_rater
    from raters.records import JudgeseyeError
    from raters.refinement_calls import RefinedGuideline, refine_guideline, refine_guideline_async
    from raters.trace_calls import Trace, Traces, infer_traces, infer_traces_async
    from raters.verdict_scores import Agreement, Figure, score_agreement, score_agreement_async

__version__ = "0.1.0"
__all__ = [
    "Agreement",
    "Corpus",
    "Figure",
    "JudgeseyeError",
    "Rater",
    "Rating",
    "RefinedGuideline",
    "Trace",
    "Traces",
    "infer_traces",
    "infer_traces_async",
    "load_corpus",
    "load_rater",
    "refine_guideline",
    "refine_guideline_async",
    "score_agreement",
    "score_agreement_async",
]

_MODULES = {
    "corpora": ("Corpus", "load_corpus"),
    "rating": ("Rater", "Rating", "load_rater"),
    "records": ("JudgeseyeError",),
    "refinement_calls": ("RefinedGuideline", "refine_guideline", "refine_guideline_async"),
    "trace_calls": ("Trace", "Traces", "infer_traces", "infer_traces_async"),
    "verdict_scores": ("Agreement", "Figure", "score_agreement", "score_agreement_async"),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import what users call when they first use it, so that importing one module stays light."""
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(f"raters.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'raters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
