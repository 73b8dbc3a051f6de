"""judgeseye: label-only annotations into LLM raters that can be trusted. The library behind `pipelines`."""

__version__ = "0.1.0"
