"""A certificate says what was measured on items that the rater has not seen, or why there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raters.certificates import certificate_of
from raters.corpora import Corpus
from raters.prompts import load_prompt
from raters.questions import Question
from raters.rater_draws import RaterDraws
from raters.rater_files import RaterSpec, SeenItems, read_rater
from raters.records import DataError
from raters.scoring import score
from tests.small_corpora import ORDINAL_3, small_corpus

DONE = {
    "status": "complete",
    "cost_usd": 0.5,
    "prompt_tokens": 10,
    "completion_tokens": 3,
    "seconds": 1.0,
    "versions": {},
}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Eight items in four groups of two, two people each."""
    names = [f"i{number}" for number in range(8)]
    labels = {name: {"ann": 1 + place % 3, "bob": 1 + (place + place // 4) % 3} for place, name in enumerate(names)}
    return small_corpus(
        tmp_path, labels, ORDINAL_3, groups={name: f"g{place // 2}" for place, name in enumerate(names)}
    )


def spec_of(corpus: Corpus, seen: SeenItems | None = None) -> RaterSpec:
    question = Question(corpus.dimension(None), load_prompt("rate"))
    return RaterSpec("openai/some", question, seen=seen or SeenItems.none())


def certify(
    corpus: Corpus,
    spec: RaterSpec | None,
    items: list[int],
    manifest: Any = DONE,
    made_by: frozenset[str] | None = None,
) -> dict[str, Any]:
    rows = np.array(items)
    numbers = (rows % 3).astype(float)[:, None]
    made_by = made_by or frozenset({spec.sha256} if spec else {"None"})
    ones, unswapped = np.ones(len(rows), np.int64), np.zeros(numbers.shape, bool)
    draws = RaterDraws("some", rows, numbers, ones, unswapped, "majority", made_by=made_by)
    if manifest is DONE:
        manifest = {**DONE, "items": len(rows), "draws": len(rows)}
    scores = score(corpus, corpus.dimension(None), "median", [draws], resamples=200)
    return certificate_of("some", spec, corpus, draws, scores, manifest)


def test_a_rater_on_unseen_items_is_certified(corpus: Corpus) -> None:
    spec = spec_of(corpus, SeenItems.of(corpus, np.array([0, 1])))
    found = certify(corpus, spec, [4, 5, 6, 7])
    assert found["certified"] is True
    assert (found["rater_sha256"], found["items"], found["annotators"]) == (spec.sha256, 4, 2)
    # Verdicts 2 3 1 2 on i4..i7; people say 2 and 3, 3 and 1, 1 and 2, 2 and 3: their medians, the lower of two
    # as near to the mean, are 2, 2, 1, 2 (3 and 1 have 2 between them).
    assert found["agreement"]["exact_agreement"]["value"] == 3 / 4
    assert found["cost"] == {"cost_usd": 0.5, "prompt_tokens": 10, "completion_tokens": 3, "seconds": 1.0}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("seen", [[4], [5], [4, 0]])
def test_an_item_that_was_seen_or_whose_group_was_refuses_it(corpus: Corpus, seen: list[int]) -> None:
    """Items 4 and 5 are a group; rated are 4, 6 and 7."""
    found = certify(corpus, spec_of(corpus, SeenItems.of(corpus, np.array(seen))), [4, 6, 7])
    assert found["certified"] is False
    assert "1 of the 3 rated items" in found["reason"]
    assert "'i4'" in found["reason"]


def test_nothing_is_certified_of_a_rater_that_nobody_knows_or_a_run_that_is_not_done(corpus: Corpus) -> None:
    assert "no rater.yaml" in certify(corpus, None, [4, 5])["reason"]
    for manifest in (None, {"status": "stopped"}):
        found = certify(corpus, spec_of(corpus), [4, 5], manifest)
        assert (found["certified"], "not complete" in found["reason"]) == (False, True)


def test_other_ratings_than_the_raters_own_and_a_part_of_them_are_not_certified(corpus: Corpus) -> None:
    """Whoever leaves out ratings, the hard ones say, finds the manifest against it."""
    spec = spec_of(corpus)
    assert "not of the rater that made them" in certify(corpus, spec, [4, 5], made_by=frozenset({"another"}))["reason"]
    joined = certify(corpus, replace(spec, aggregate="mean"), [4, 5], made_by=frozenset({spec.sha256}))
    assert "joined by majority" in joined["reason"]
    for counted in ({"items": 3, "draws": 2}, {"items": 2, "draws": 4}):
        found = certify(corpus, spec, [4, 5], {**DONE, **counted})
        assert found["certified"] is False
        assert "2 of 2 are here" in found["reason"]


def test_a_certificate_stays_with_its_rater(corpus: Corpus, tmp_path: Path) -> None:
    spec = spec_of(corpus)
    certified = spec.certified(certify(corpus, spec, [4, 5, 6, 7]))
    certified.write(tmp_path / "rater.yaml")
    assert read_rater(tmp_path / "rater.yaml").certificate == certified.certificate
    replace(certified, seed=7).write(tmp_path / "other.yaml")
    with pytest.raises(DataError, match=r"other\.yaml: certificate: is of another rater"):
        read_rater(tmp_path / "other.yaml")
