"""Certificates: what was measured of a rater, on which held-out items, beside what; or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raters.corpora import Corpus
from raters.rater_draws import RaterDraws
from raters.rater_files import RaterSpec
from raters.splits import ids_sha256


def certificate_of(
    name: str,
    spec: RaterSpec | None,
    corpus: Corpus,
    draws: RaterDraws,
    scores: Mapping[str, Any],
    manifest: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the certificate of one rater, or the record that refuses it with the reason.

    It is refused if nothing says what the rater is, if another rater made the ratings, if its run is not complete or
    only a part of it was scored, or if any rated item, or an item of its group, was seen in making the rater.

    Args:
        name: Of the rater, as `scores` has it.
        spec: What it is; None if no rater.yaml stands beside its ratings.
        corpus: What was rated.
        draws: What was scored, and which raters made it.
        scores: What `scoring.score` returned.
        manifest: Of the run that rated; None if there is none.
    """
    items = draws.items
    rated = {"rater": name, "corpus": corpus.name, "dimension": scores["dimension"], "items": len(items)}
    if spec is None:
        return {
            **rated,
            "certified": False,
            "reason": "no rater.yaml stands beside its ratings, so nothing says what it is",
        }
    if manifest is None or manifest.get("status") != "complete":
        return {**rated, "certified": False, "reason": "its run of rate_items is not complete, or has no manifest"}
    if draws.made_by != {spec.sha256}:
        reason = "the rater.yaml beside its ratings is not of the rater that made them"
        return {**rated, "certified": False, "reason": reason}
    if draws.aggregate != spec.aggregate:
        reason = f"its draws were joined by {draws.aggregate}, and the rater joins them by {spec.aggregate}"
        return {**rated, "certified": False, "reason": reason}
    made, whole = int(draws.drawn.sum()), manifest.get("draws")
    if len(items) != manifest.get("items") or made != whole:
        reason = (
            f"its manifest counts {whole} draws of {manifest.get('items')} items, and {made} of {len(items)} are here"
        )
        return {**rated, "certified": False, "reason": reason}
    seen = spec.seen.touched(corpus, items)
    if len(seen):
        reason = (
            f"{len(seen)} of the {len(items)} rated items, or items of their group, were seen in making the rater "
            f"(such as {corpus.item_ids[int(seen[0])]!r}); rate a split that it has not seen"
        )
        return {**rated, "certified": False, "reason": reason}
    (found,) = (rater for rater in scores["raters"] if rater["rater"] == name)
    return {
        **rated,
        "certified": True,
        "rater_sha256": spec.sha256,
        "model": spec.model,
        "guideline_sha256": spec.dimension.guideline_sha256,
        "prompt_sha256": spec.question.prompt.sha256,
        "rated_items_sha256": ids_sha256([corpus.item_ids[int(item)] for item in items]),
        "corpus_sha256": dict(corpus.sha256),
        "items_with_label": scores["items_with_label"],
        "annotators": scores["annotators"],
        "label_method": scores["label_method"],
        "draws_per_item": found["draws_per_item"],
        "aggregate": found["aggregate"],
        "items_by_probabilities": found["items_by_probabilities"],
        "coverage": found["coverage"],
        "agreement": found["agreement"],
        "worst_case": found["worst_case"],
        "alternative_annotator_test": found["alternative_annotator_test"],
        "human": scores["human"],
        "floors": {floor["rater"]: floor["agreement"] for floor in scores["floors"]},
        "compared_with": [rater["rater"] for rater in scores["raters"] if rater["rater"] != name],
        "intervals": {key: scores[key] for key in ("interval_method", "resamples", "resampled", "resampled_count")},
        "cost": {key: manifest.get(key) for key in ("cost_usd", "prompt_tokens", "completion_tokens", "seconds")},
        "versions": dict(manifest.get("versions", {})),
    }
