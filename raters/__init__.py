"""judgeseye: label-only annotations into LLM raters that can be trusted. The library behind `pipelines`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raters.rating import load_rater as load_rater

__version__ = "0.1.0"
__all__ = ["load_rater"]


def __getattr__(name: str) -> Any:
    """Import what users call when they first use it, so that importing one module stays light."""
    if name == "load_rater":
        from raters.rating import load_rater

        return load_rater
    raise AttributeError(f"module 'raters' has no attribute {name!r}")
