"""Priors against closed forms and simulation, and that who is given up depends on the draws alone."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raters.corpora import Corpus
from raters.giving_up import FIRST_FIT, BetaPrior, DirichletPrior, GivingUp, Histories, fit_beta, fit_dirichlet
from raters.gold import GoldMethod
from raters.models.protocol import Completion, Message, SamplingSettings
from raters.sampling import SamplingOptions, giving_up_of
from raters.utilisation import summarise
from tests.small_corpora import INTERVAL, ORDINAL_5, Run, rating, shown_fields, small_corpus, start_run

NO_VERDICTS = np.zeros(0, np.int64)


# Priors


def test_the_chance_of_a_beta_prior_is_the_integral_over_what_it_does_not_know() -> None:
    # Uniform p: one draw, 1/2. After a failure p has density 2(1-p): two draws, 1 - 2 * integral (1-p)^3 = 1/2.
    assert BetaPrior(1, 1).chance(0, NO_VERDICTS, 0, 1) == pytest.approx(1 / 2)
    assert BetaPrior(1, 1).chance(0, NO_VERDICTS, 1, 2) == pytest.approx(1 / 2)
    # No failure yet, three draws: 1 - integral (1-p)^3 = 3/4.
    assert BetaPrior(1, 1).chance(0, NO_VERDICTS, 0, 3) == pytest.approx(3 / 4)
    chances = [BetaPrior(0.27, 0.36).chance(0, NO_VERDICTS, failures, 16 - failures) for failures in range(16)]
    assert chances == sorted(chances, reverse=True)


def histories_of(rng: np.random.Generator, acceptance: NDArray[np.float64], *, stop: bool, k: int = 16) -> Histories:
    hits = rng.random((len(acceptance), k)) < acceptance[:, None]
    made = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, k) if stop else np.full(len(acceptance), k)
    accepted = (hits & (np.arange(k) < made[:, None])).sum(axis=1)
    nothing = np.zeros((len(acceptance), 0), np.int64)
    return Histories(np.zeros(len(acceptance), np.int64), accepted, made - accepted, nothing)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize(("a", "b"), [(0.27, 0.36), (0.12, 0.38), (2.0, 5.0)])
def test_a_beta_prior_is_found_from_its_draws_also_of_items_that_stopped(a: float, b: float, stop: bool) -> None:
    rng = np.random.default_rng(0)
    found = fit_beta(histories_of(rng, rng.beta(a, b, 20_000), stop=stop))
    # What counts is the chance it gives, at every number of failures.
    for failures in range(16):
        wanted = BetaPrior(a, b).chance(0, NO_VERDICTS, failures, 16 - failures)
        assert found.chance(0, NO_VERDICTS, failures, 16 - failures) == pytest.approx(wanted, abs=0.02)


def test_a_beta_prior_is_found_where_nothing_or_everything_was_accepted() -> None:
    for acceptance in (0.0, 1.0):
        rng = np.random.default_rng(0)
        found = fit_beta(histories_of(rng, np.full(50, acceptance), stop=True))
        assert 0 < found.a < np.inf
        assert 0 < found.b < np.inf
        first = found.chance(0, NO_VERDICTS, 0, 1)
        assert first < 0.1 if acceptance == 0 else first > 0.9


def test_the_chance_of_a_dirichlet_prior_is_that_of_a_simulation() -> None:
    """Distributions drawn from the mixture, weighed by how likely they make the verdicts that were seen."""
    prior = DirichletPrior(
        np.array([[4.0, 2.0, 1.0, 0.5], [0.5, 1.0, 6.0, 0.1], [1.0, 1.0, 1.0, 1.0]]),
        np.array([[0.5, 0.2, 0.3], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]]),
    )
    verdicts, label, remaining = np.array([3, 0, 0, 1]), 2, 5
    rng = np.random.default_rng(0)
    draws = 2_000_000
    component = rng.choice(3, draws, p=prior.weights[label])
    gammas = rng.gamma(prior.pseudo_counts[component])
    chances = gammas / gammas.sum(axis=1, keepdims=True)
    weights = np.prod(chances**verdicts, axis=1)
    for steps in (0, 1):
        mass = chances[:, label - steps : label + 1].sum(axis=1)
        wanted = np.average(1 - (1 - mass) ** remaining, weights=weights)
        found = replace(prior, steps=steps).chance(label, verdicts, 4, remaining)
        assert found == pytest.approx(wanted, abs=0.004)


def ordinal_histories(rng: np.random.Generator, items: int, k: int) -> tuple[Histories, NDArray[np.float64]]:
    """Return what a rater says that is off by its own error for each item; and every verdict, for the rest."""
    quality = rng.normal(2, 1.2, items)
    labels = np.clip(np.rint(quality), 0, 4)
    centre = quality + rng.normal(0, 1.0, items)
    numbers = np.clip(np.rint(centre[:, None] + rng.normal(0, 0.5, (items, k))), 0, 4)
    hits = numbers == labels[:, None]
    counted = np.cumsum(hits, axis=1) - hits == 0
    verdicts = np.column_stack([((numbers == place) & counted).sum(axis=1) for place in range(5)] + [np.zeros(items)])
    accepted = (hits & counted).sum(axis=1)
    found = Histories(labels.astype(int), accepted, counted.sum(axis=1) - accepted, verdicts.astype(int))
    return found, numbers


def test_a_dirichlet_prior_is_calibrated_on_new_items_of_the_same_rater() -> None:
    rng = np.random.default_rng(0)
    prior = fit_dirichlet(ordinal_histories(rng, 3_000, 16)[0])
    new, numbers = ordinal_histories(rng, 6_000, 16)
    failed = (numbers[:, :4] != new.labels[:, None]).all(axis=1)
    told, came = [], []
    for item in np.flatnonzero(failed):
        verdicts = np.bincount(numbers[item, :4].astype(int), minlength=6)
        told.append(prior.chance(int(new.labels[item]), verdicts, 4, 12))
        came.append(bool((numbers[item, 4:] == new.labels[item]).any()))
    told, came = np.array(told), np.array(came)
    assert len(told) > 1_500
    for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 1)):
        here = (told >= low) & (told < high)
        error = 3 * np.sqrt(0.25 / here.sum()) + 0.03
        assert came[here].mean() == pytest.approx(told[here].mean(), abs=error), (low, high, here.sum())


def test_verdicts_far_from_the_label_give_it_up_sooner_than_near_ones() -> None:
    prior = fit_dirichlet(ordinal_histories(np.random.default_rng(0), 3_000, 16)[0])
    chances = [prior.chance(4, 4 * np.eye(6, dtype=int)[verdict], 4, 12) for verdict in (1, 2, 3)]
    # What failures alone say is the same of all three.
    assert chances == sorted(chances)
    assert chances[0] < chances[2] / 4


def test_unreadable_verdicts_speak_for_no_label() -> None:
    histories, _ = ordinal_histories(np.random.default_rng(0), 2_000, 16)
    spoiled = replace(histories, verdicts=histories.verdicts + np.eye(6, dtype=int)[5])
    prior = fit_dirichlet(spoiled)
    shares = np.array(prior.as_record()["expected_verdicts"])
    assert shares[:, 5].mean() == pytest.approx(spoiled.verdicts[:, 5].sum() / spoiled.verdicts.sum(), abs=0.01)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-3)


# In a run


class Biased:
    """A rater with its own error for each item, in an order that has nothing to do with that of the requests."""

    spec = "scripted/biased"

    def __init__(self, turns: int = 0, numeric: bool = False) -> None:
        self._chance, self._turns, self._numeric = random.Random(turns), turns, numeric

    async def complete(
        self, messages: Sequence[Message], seeds: Sequence[int], settings: SamplingSettings
    ) -> list[Completion]:
        for _ in range(self._chance.randint(0, self._turns)):
            await asyncio.sleep(0)
        number = int(shown_fields(messages[-1]["content"])["text"].rstrip(".").rpartition("item")[2])
        centre = number * 7919 % 1000 / 200
        found = []
        for seed in seeds:
            spread = random.Random(seed).gauss(0, 0.5)
            verdict = min(max(round(centre + spread), 1), 5)
            found.append(Completion(rating(20 * verdict if self._numeric else verdict), "A reason.", "stop", 10, 5))
        return found

    async def close(self) -> None:
        return


ITEMS = 130
OPTIONS = SamplingOptions(give_up=0.15, concurrency=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    chooser = np.random.default_rng(3)
    labels = {f"item{n}": {name: int(chooser.integers(1, 6)) for name in ("ann", "bob")} for n in range(ITEMS)}
    return small_corpus(tmp_path_factory.mktemp("corpus"), labels, ORDINAL_5)


def start(corpus: Corpus, path: Path, options: SamplingOptions, turns: int = 0, **more: Any) -> Run:
    return start_run(corpus, path, Biased(turns), k=8, options=options, **more)


def drawn(run: Run) -> Run:
    run.draw()
    return run


def timeless(run: Run) -> list[str]:
    return sorted(json.dumps({**record, "seconds": 0}, sort_keys=True) for record in run.records())


METHODS: list[GoldMethod] = ["median", "per-annotator"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("null_rows", [0, 60])
def test_what_is_given_up_is_the_same_at_any_concurrency(
    corpus: Corpus, tmp_path: Path, method: GoldMethod, null_rows: int
) -> None:
    options = replace(OPTIONS, null_rows=null_rows)
    wanted = drawn(start(corpus, tmp_path / "one.jsonl", options, method=method))
    assert wanted.ledger.given_up.sum() > 5
    assert not wanted.ledger.given_up[: max(FIRST_FIT, null_rows)].any()
    for turn, concurrency in enumerate((3, 20, 200), start=5):
        run = drawn(start(corpus, tmp_path / f"{turn}", replace(options, concurrency=concurrency), turn, method=method))
        assert timeless(run) == timeless(wanted)
        np.testing.assert_array_equal(run.ledger.given_up, wanted.ledger.given_up)
        assert summarise(run.ledger, run.options) == summarise(wanted.ledger, wanted.options)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_given_up_is_the_same_after_interruptions(corpus: Corpus, tmp_path: Path, method: GoldMethod) -> None:
    options = replace(OPTIONS, concurrency=20, ahead=True)
    wanted = drawn(start(corpus, tmp_path / "one.jsonl", OPTIONS, method=method))
    path, turn = tmp_path / "cut.jsonl", 0
    while True:
        turn += 1
        run = start(corpus, path, options, turn, method=method)
        seen: list[int] = []
        run.sampler._on_draw = lambda run=run, seen=seen: (  # type: ignore[misc]
            seen.append(0), setattr(run.sampler.pool, "stopping", len(seen) >= 25))  # fmt: skip
        run.draw()
        if not run.sampler.pool.stopping:
            break
        content = path.read_bytes()
        path.write_bytes(content[: len(content) - turn % 3 * 40])  # a kill tears the last line
    assert turn > 10
    assert run.kept() == wanted.kept()
    np.testing.assert_array_equal(run.ledger.given_up, wanted.ledger.given_up)
    assert summarise(run.ledger, OPTIONS)["given_up"] == summarise(wanted.ledger, OPTIONS)["given_up"]


def test_every_row_is_given_up_at_its_first_draw_below_the_chance(corpus: Corpus, tmp_path: Path) -> None:
    """Held against the prior of the last fit before it, computed here from the recorded draws."""
    run = drawn(start(corpus, tmp_path / "one.jsonl", OPTIONS))
    giving_up = giving_up_of(run.ledger, OPTIONS)
    assert giving_up is not None
    assert list(giving_up.priors) == [50, 100]
    fitted = {rows: fit_dirichlet(giving_up.histories(rows)) for rows in (50, 100)}
    for row in range(FIRST_FIT, ITEMS):
        prior, label = fitted[50 if row < 100 else 100], int(run.ledger.unit_numbers[row])
        numbers = run.ledger.numbers["first"][row]
        made = numbers[np.isfinite(numbers)].astype(int)
        for count in range(1, len(made) + 1):
            verdicts = np.bincount(made[:count], minlength=6)
            below = (
                (made[:count] != label).all()
                and count < 8
                and prior.chance(label, verdicts, count, 8 - count) < OPTIONS.give_up
            )
            assert below == (bool(run.ledger.given_up[row]) and count == len(made))


def test_the_summary_says_what_it_cost(corpus: Corpus, tmp_path: Path) -> None:
    run = drawn(start(corpus, tmp_path / "one.jsonl", OPTIONS))
    whole = drawn(start(corpus, tmp_path / "whole.jsonl", replace(OPTIONS, give_up=0.0)))
    told = summarise(run.ledger, OPTIONS)["given_up"]
    assert told["below"] == OPTIONS.give_up
    assert told["items"] == told["labels"] == run.ledger.given_up.sum()
    assert told["draws_left_out"] == (run.ledger.numbers["first"][run.ledger.given_up] == -np.inf).sum()
    assert 0 < told["expected_matches_lost"] < OPTIONS.give_up * told["labels"]
    # What the whole run matched of them: no more than a Poisson count of that mean would be in 1 of 1,000 runs.
    lost = len(whole.kept()) - len(run.kept())
    assert lost <= told["expected_matches_lost"] + 3.1 * np.sqrt(told["expected_matches_lost"]) + 1
    assert summarise(whole.ledger, whole.options)["given_up"] is None
    assert [prior["items"] for prior in told["priors"]] == [50, 100]


def test_what_is_given_up_gets_its_second_chance(corpus: Corpus, tmp_path: Path) -> None:
    run = start(corpus, tmp_path / "one.jsonl", OPTIONS, escalate=Biased())
    run.draw()
    places = {run.ledger.corpus.item_ids[item]: row for row, item in enumerate(run.ledger.rows)}
    escalated = {places[record["item_id"]] for record in run.records() if record["chance"] == "escalated"}
    assert set(np.flatnonzero(run.ledger.given_up)) <= escalated
    before = run.ledger.given_up.copy()
    assert giving_up_of(run.ledger, OPTIONS) is not None  # a match of the second chance does not undo it
    np.testing.assert_array_equal(run.ledger.given_up, before)
    assert not run.ledger.has_work(0)


def test_without_it_and_in_fixed_runs_nothing_is_given_up(corpus: Corpus, tmp_path: Path) -> None:
    run = start(corpus, tmp_path / "one.jsonl", OPTIONS)
    assert giving_up_of(run.ledger, replace(OPTIONS, give_up=0.0)) is None
    assert giving_up_of(run.ledger, replace(OPTIONS, strategy="fixed")) is None


def test_scales_without_listed_order_are_given_up_by_failures_alone(tmp_path: Path) -> None:
    labels = {f"item{n}": {"a": 20 * (1 + n % 5)} for n in range(70)}
    corpus = small_corpus(tmp_path / "corpus", labels, INTERVAL)
    options = replace(OPTIONS, tolerance=5.0, give_up=0.4)
    run = start_run(corpus, tmp_path / "one.jsonl", Biased(numeric=True), k=8, options=options)
    run.draw()
    giving_up = giving_up_of(run.ledger, options)
    assert isinstance(giving_up, GivingUp)
    (prior,) = giving_up.priors.values()
    assert isinstance(prior, BetaPrior)
    made = np.isfinite(run.ledger.numbers["first"]).sum(axis=1)
    assert run.ledger.given_up.any()
    assert len(set(made[run.ledger.given_up])) == 1  # all after the same number of failures
