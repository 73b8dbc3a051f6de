"""Which stages there are, in the order of use."""

from __future__ import annotations

STAGES = (
    "import_corpus",
    "infer_traces",
    "review",
    "refine_guideline",
    "finetune_rater",
    "rate_items",
    "score_agreement",
    "select_traces",
    "export_rater",
    "run_recipe",
)
RECIPE_STAGES = tuple(name for name in STAGES if name not in ("review", "run_recipe"))
"""Those that a recipe may name: a person reads in one of the others, and the last one is the recipe's own."""
