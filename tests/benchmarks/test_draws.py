"""Draws that a run makes beside 16 of each item, at equal coverage and somewhat less; run with -m benchmark -s.

Items are simulated so that utilisation follows the paper's five curves, on which a rule that sees failures alone can
reach what is computed here in closed form. What failed draws said is worth something where an item's verdicts stay
about one place: simulated raters with an error of their own for each item, and the rule reader under a guideline. The
rule, the ledger and the fits are those of a run; only requests and journal are left out, except in the last test.

    pytest -m benchmark -s tests/benchmarks/test_draws.py

The corpora stand beside the project, as for `-m real_corpora`; JUDGESEYE_CORPORA in the environment says where else.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import betaln

from raters.corpora import Corpus, load_corpus
from raters.giving_up import GivingUp
from raters.gold import default_method, gold_labels
from raters.ledger import Ledger
from raters.models.protocol import Completion
from raters.sampling import SamplingOptions
from raters.trace_runs import read_draws_of
from tests.places import CHECKOUT, CORPORA
from tests.small_corpora import ScriptedModel, rating, shown_fields, small_corpus, start_run

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

K = 16
ITEMS = 4_000
CURVES = ((0.27, 0.36), (0.35, 0.62), (0.17, 0.21), (0.17, 0.23), (0.12, 0.38))
"""Beta distributions of acceptance that fit the paper's five utilisation curves."""
COVERAGES = (1.0, 0.97, 0.90)
LIMITS = (0.47, 0.40, 0.26)
"""Of the mean ratio of draws to 16 an item, for rules that see failures alone."""
TOLERANCE = 0.02
CHANCES = (
    0,
    0.01,
    0.02,
    0.03,
    0.05,
    0.07,
    0.1,
    0.13,
    0.16,
    0.2,
    0.25,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.95,
    0.98,
    0.995,
)
"""Values of --give-up that are tried."""
RATERS = ((0.35, 1.0), (0.5, 1.2), (0.35, 0.8), (0.5, 1.0), (0.8, 1.2), (0.7, 0.8))
"""(spread of an item's verdicts, error of the rater for an item), in labels."""
HIGHEST_UTILISATION = 0.75
"""Of the paper's five curves at 16 draws: raters above it have few hopeless items, and little to save."""
MOST_DRAWS_WITH_VERDICTS = 0.9
GUIDELINE = "- start at five.\n- length helps thrice.\n- richness helps twice.\n- overlap helps twice.\n"


def scale_of(kind: str, labels: int = 5) -> dict[str, object]:
    """Return a scale; a nominal one has no order, so that failures alone are seen on it."""
    return {"type": kind, "labels": list(range(labels))}


def corpus_of(folder: Path, labels: NDArray[np.float64], kind: str, count: int = 5) -> Corpus:
    given = {f"item{number:05}": {"a": int(label)} for number, label in enumerate(labels)}
    return small_corpus(folder / kind, given, scale_of(kind, count))


def play(corpus: Corpus, verdicts: NDArray[np.float64], least_chance: float) -> tuple[float, float]:
    """Return (draws an item, share of items matched) of a run, one item after another.

    Args:
        corpus: Items with a label each.
        verdicts: (items, 16) what the draws of an item say.
        least_chance: As --give-up.
    """
    dimension, items = corpus.dimension(None), np.arange(len(corpus.item_ids))
    labels = gold_labels(corpus, dimension.name, default_method(dimension.scale))
    ledger = Ledger(corpus, dimension, labels, items, {"first": K})
    giving_up = GivingUp(ledger, least_chance, 0.0, 0)
    draws = 0
    for row in range(len(items)):
        for draw in range(K):
            ledger.numbers["first"][row, draw] = verdicts[row, draw]
            draws += 1
            if verdicts[row, draw] == ledger.unit_numbers[row]:
                ledger.matched_draw[row] = draw
                break
            if giving_up.consider(row):
                break
        giving_up.advance()
    return draws / len(items), float((ledger.matched_draw >= 0).mean())


def draws_at(points: Sequence[tuple[float, float]], shares: Sequence[float]) -> list[float]:
    """Return the draws an item at shares of the coverage of the first point, between the points about each."""
    draws, coverage = np.array(points).T
    assert coverage.min() <= min(shares) * coverage[0]
    order = np.argsort(coverage)
    found: list[float] = np.interp(np.array(shares) * coverage[0], coverage[order], draws[order]).tolist()
    return found


def limits(a: float, b: float) -> list[float]:
    """Return what a rule that sees failures alone can reach: every open item stops after the same number of draws."""
    unmatched = np.exp(betaln(a, b + np.arange(K + 1)) - betaln(a, b))
    points = [(float(unmatched[:most].sum()), float(1 - unmatched[most])) for most in range(K, 0, -1)]
    return [draws / K for draws in draws_at(points, COVERAGES)]


def test_draws_beside_sixteen_of_each_item(tmp_path: Path) -> None:
    rng, corpus = np.random.default_rng(0), corpus_of(tmp_path, np.zeros(ITEMS), "nominal")
    ratios, best = [], []
    for a, b in CURVES:
        verdicts = np.where(rng.random((ITEMS, K)) < rng.beta(a, b, ITEMS)[:, None], 0.0, 1.0)
        points = [play(corpus, verdicts, chance) for chance in CHANCES]
        ratios.append([draws / K for draws in draws_at(points, COVERAGES)])
        best.append(limits(a, b))
        told = ", ".join(f"{ratio:.3f} ({limit:.3f})" for ratio, limit in zip(ratios[-1], best[-1], strict=True))
        print(f"\nacceptance Beta({a}, {b}), utilisation {points[0][1]:.1%}: draws / 16 (limit) {told}", end="")
    mean, limit = np.mean(ratios, axis=0), np.mean(best, axis=0)
    for share, ratio, known, told in zip(COVERAGES, mean, limit, LIMITS, strict=True):
        print(f"\nmean ratio at {share:.0%} of the coverage: {ratio:.3f}; limit {known:.3f}, as given {told}", end="")
    print()
    np.testing.assert_array_less(mean, limit + TOLERANCE)
    np.testing.assert_array_less(mean, np.array(LIMITS) + TOLERANCE)


def with_and_without_verdicts(
    folder: Path, labels: NDArray[np.float64], verdicts: NDArray[np.float64], count: int = 5
) -> tuple[float, float, float]:
    """Return (utilisation, draws an item of the rule that sees failures, of the one that sees verdicts) at 95 %."""
    found, utilisation = [], 0.0
    for kind in ("nominal", "ordinal"):
        corpus = corpus_of(folder, labels, kind, count)
        points = [play(corpus, verdicts, chance) for chance in CHANCES]
        found += draws_at(points, [0.95])
        utilisation = points[0][1]
    return utilisation, found[0], found[1]


def test_what_failed_draws_said_of_simulated_raters(tmp_path: Path) -> None:
    rng, ratios = np.random.default_rng(0), []
    for spread, error in RATERS:
        quality = rng.normal(2, 1.2, ITEMS)
        labels = np.clip(np.rint(quality + rng.normal(0, 0.5, ITEMS)), 0, 4)
        centre = quality + rng.normal(0, error, ITEMS)
        verdicts = np.clip(np.rint(centre[:, None] + rng.normal(0, spread, (ITEMS, K))), 0, 4)
        utilisation, failures, aware = with_and_without_verdicts(tmp_path / f"{spread}_{error}", labels, verdicts)
        as_in_the_paper = utilisation <= HIGHEST_UTILISATION
        ratios += [aware / failures] if as_in_the_paper else []
        where = "" if as_in_the_paper else "; above the paper's utilisation"
        print(
            f"\nspread {spread}, error {error}: utilisation {utilisation:.1%}; draws an item at 95 % of it: "
            f"{failures:.2f} by failures, {aware:.2f} by verdicts, {aware / failures:.3f} x{where}",
            end="",
        )
        assert aware < failures
    print()
    assert len(ratios) >= 3
    assert max(ratios) <= MOST_DRAWS_WITH_VERDICTS


def embedded_draws(out: Path, corpus: Corpus, dimension: str, *more: object) -> tuple[NDArray[np.float64], ...]:
    """Return (items,) labels and (items, 16) verdicts of the rule reader, in an order drawn at random."""
    command = [sys.executable, "-m", "pipelines.infer_traces", "--corpus", corpus.folder, "--dimension", dimension]
    command += ["--split", "all", "--strategy", "fixed", "--k", K, "--out", out, *more]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    subprocess.run([str(part) for part in command], env=environment, check=True, capture_output=True)
    draws = read_draws_of(out / "candidates.jsonl", corpus, corpus.dimension(dimension))
    order = np.argsort(draws.items, kind="stable")
    labels, verdicts = draws.labels[order].reshape(-1, K)[:, 0], draws.numbers[order].reshape(-1, K)
    mixed = np.random.default_rng(0).permutation(len(labels))
    return labels[mixed], verdicts[mixed]


def test_what_failed_draws_said_of_the_rule_reader(tmp_path: Path) -> None:
    """Without rules it guesses anew at each draw: nothing is hopeless, and nothing can be saved. With them it can."""
    corpus = load_corpus(CORPORA / "argquality_novice")
    (tmp_path / "guideline.md").write_text(GUIDELINE)
    means = {}
    for name, more in (("without rules", ()), ("with rules", ("--guideline", tmp_path / "guideline.md"))):
        totals = np.zeros(2)
        for dimension in corpus.dimensions:
            place = tmp_path / name / dimension
            labels, verdicts = embedded_draws(place / "run", corpus, dimension, *more)
            count = len(corpus.dimension(dimension).scale.labels)  # type: ignore[union-attr]
            utilisation, failures, aware = with_and_without_verdicts(place, labels, verdicts, count)
            totals += failures, aware
            print(
                f"\n{dimension}, {name}: utilisation {utilisation:.1%}; {failures:.2f} draws an item by failures, "
                f"{aware:.2f} by verdicts, {aware / failures:.3f} x",
                end="",
            )
        means[name] = totals[1] / totals[0]
        print(f"\nall {len(corpus.dimensions)} dimensions, {name}: {means[name]:.3f} x")
    assert means["with rules"] <= MOST_DRAWS_WITH_VERDICTS
    assert 0.97 <= means["without rules"] <= 1.03


def test_a_run_makes_the_very_draws(tmp_path: Path) -> None:
    """What is played above is what the sampler does, at any number of requests at once."""
    rng, items, least_chance = np.random.default_rng(1), 300, 0.2
    quality = rng.normal(2, 1.2, items)
    labels = np.clip(np.rint(quality), 0, 4)
    corpus = corpus_of(tmp_path, labels, "ordinal")
    centre = quality + rng.normal(0, 1.0, items)

    def answer(prompt: str, seed: int) -> Completion:
        item = int(shown_fields(prompt)["text"].rstrip(".").rpartition("item")[2])
        said = np.clip(np.rint(centre[item] + np.random.default_rng(seed).normal(0, 0.5)), 0, 4)
        return Completion(rating(int(said)), "A reason.", "stop", 10, 5)

    options = SamplingOptions(give_up=least_chance, concurrency=50)
    path = tmp_path / "candidates.jsonl"
    run = start_run(corpus, path, ScriptedModel(answer), k=K, options=options)
    run.draw()
    every = start_run(corpus, tmp_path / "all.jsonl", ScriptedModel(answer), k=K, options=SamplingOptions("fixed"))
    every.draw()
    order = run.ledger.rows
    in_order = tmp_path / "in_order"
    draws, coverage = play(corpus_of(in_order, labels[order], "ordinal"), every.ledger.numbers["first"], least_chance)
    assert run.ledger.totals.draws["first"] == round(draws * items)
    assert (run.ledger.matched_draw >= 0).mean() == pytest.approx(coverage)
    assert run.ledger.given_up.any()
