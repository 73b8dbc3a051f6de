"""Contrast of accepted with rejected draws, worked out by hand."""

from __future__ import annotations

import random

import pytest

from raters.contrasts import RuleContrast
from raters.contrasts import contrast_rules as contrast_with_expectation


def trace(*steps: str) -> str:
    return "\n".join(["- start maybe five.", *steps, "- total six 4."])


UP = "- length is high length helps maybe once +1 six."
DOWN = "- length is high length hurts maybe once -1 four."


def contrast_rules(draws: list[tuple[int, str, bool]], items: int) -> list[RuleContrast]:
    """Contrast draws that all have the same chance of acceptance: the mean m."""
    mean = sum(accepted for _, _, accepted in draws) / max(len(draws), 1)
    return contrast_with_expectation([(place, text, accepted, mean) for place, text, accepted in draws], items)


def by_name(draws: list[tuple[int, str, bool]], items: int) -> dict[str, RuleContrast]:
    return {contrast.observation: contrast for contrast in contrast_rules(draws, items)}


def test_z_of_a_small_example() -> None:
    """Of 8 draws 4 are accepted, m = 1/2.

    Item 0: (+1)(1 - 1/2) + (-1)(0 - 1/2) = 1; item 1: (+1)(1 - 1/2) = 1/2; item 2: (+1)(0 - 1/2) = -1/2;
    sum 1, sum of squares 1 + 1/4 + 1/4: z = 1 / sqrt(1.5).
    """
    draws = [
        (0, trace(UP), True),
        (0, trace(DOWN), False),
        (1, trace(UP), True),
        (2, trace(UP), False),
        (2, "Words of a language model.", True),
        (2, trace(), True),
        (1, trace(), False),
        (0, trace(), False),
    ]
    (contrast,) = contrast_rules(draws, 3)
    assert contrast.z == pytest.approx(1 / 1.5**0.5)
    assert (contrast.observation, contrast.draws, contrast.items) == ("length", 4, 3)
    assert str(contrast) == "length helps"


def test_draws_of_one_item_count_as_one_observation() -> None:
    """m = 1/2. Item 0 gives 4 times 1/2, so sum 2 and spread 2: z = 1, where four items would give 2."""
    rejected = [(place, trace(), False) for place in range(4)]
    one_item = [(0, trace(UP), True)] * 4 + rejected
    four_items = [(place, trace(UP), True) for place in range(4)] + rejected
    assert by_name(one_item, 4)["length"].z == pytest.approx(1)
    assert by_name(four_items, 4)["length"].z == pytest.approx(2)


def test_an_item_whose_draws_cancel_out_is_counted_too() -> None:
    """m = 2/4; item 0 gives 1/2 + 1/2, item 1 gives -1/2 + 1/2: four draws of two items, z = 1."""
    draws = [(0, trace(UP), True), (0, trace(DOWN), False), (1, trace(UP), False), (1, trace(UP), True)]
    (contrast,) = contrast_rules(draws, 2)
    assert contrast.z == pytest.approx(1)
    assert (contrast.draws, contrast.items) == (4, 2)


def test_a_negative_z_means_that_it_hurts() -> None:
    draws = [(place, trace(DOWN), place < 3) for place in range(6)]
    assert contrast_rules(draws, 6)[0].z == 0  # the same direction, accepted and rejected alike
    draws = [(place, trace(DOWN if place < 3 else UP), place < 3) for place in range(6)]
    (contrast,) = contrast_rules(draws, 6)
    # Every item gives -1/2: -3 / sqrt(6/4).
    assert contrast.z == pytest.approx(-3 / 1.5**0.5)
    assert str(contrast) == "length hurts"


def test_stated_rules_and_rules_without_effect_are_no_evidence() -> None:
    stated = "- length is high length helps once +1 six."
    without_effect = "- commas is middle commas helps maybe twice +0 six."
    draws = [(0, trace(stated, without_effect), True), (1, trace(stated, without_effect), False)]
    assert contrast_rules(draws, 2) == []


def test_several_rules_of_one_trace_are_told_apart_and_the_strongest_comes_first() -> None:
    commas = "- commas is low commas helps maybe once -1 four."
    draws = [(place, trace(UP, commas) if place < 2 else trace(UP), True) for place in range(4)]
    draws += [(4 + place, trace(DOWN, commas) if place < 2 else trace(DOWN), False) for place in range(4)]
    found = contrast_rules(draws, 8)
    assert [contrast.observation for contrast in found] == ["length", "commas"]
    # m = 1/2: length is 8 times 1/2, commas twice 1/2 and twice -1/2.
    assert found[0].z == pytest.approx(4 / 2**0.5)
    assert found[1].z == 0
    assert (found[0].draws, found[1].draws) == (8, 4)


def random_draws() -> list[tuple[int, str, bool]]:
    chance = random.Random(5)
    steps = [
        f"- {name} is {level} {name} {direction} maybe once {change} six."
        for name in ("length", "commas", "digits")
        for level in ("low", "highest")
        for direction, change in (("helps", "+1"), ("hurts", "-1"))
    ]
    return [
        (chance.randrange(12), trace(*chance.sample(steps, chance.randint(0, 3))), chance.random() < 0.4)
        for _ in range(200)
    ]


def test_z_does_not_depend_on_the_order_of_draws_or_of_items() -> None:
    draws = random_draws()
    expected = contrast_rules(draws, 12)
    assert len(expected) == 3
    for seed in range(5):
        shuffled = random.Random(seed).sample(draws, len(draws))
        assert contrast_rules(shuffled, 12) == expected
    places = random.Random(9).sample(range(12), 12)
    moved = contrast_rules([(places[place], text, accepted) for place, text, accepted in draws], 12)
    assert [(c.observation, c.z, c.items) for c in moved] == [
        (c.observation, pytest.approx(c.z), c.items) for c in expected
    ]


def test_turning_every_guess_around_turns_every_sign() -> None:
    turn = {"helps": "hurts", "hurts": "helps"}
    draws = random_draws()
    turned = [
        (place, " ".join(turn.get(word, word) for word in text.split(" ")), accepted) for place, text, accepted in draws
    ]
    before, after = by_name(draws, 12), by_name(turned, 12)
    assert {name: -contrast.z for name, contrast in before.items()} == {
        name: pytest.approx(contrast.z) for name, contrast in after.items()
    }


def test_with_acceptance_by_chance_z_is_standard_normal() -> None:
    """Over 400 independent data sets the mean of z is within 4/20 of 0 and its deviation within .15 of 1."""
    chance = random.Random(1)
    found = []
    for _ in range(400):
        luck = [chance.uniform(0.1, 0.9) for _ in range(30)]  # items differ in how easily they are matched
        draws = [(item, trace(chance.choice((UP, DOWN))), chance.random() < luck[item]) for item in list(range(30)) * 4]
        found.append(contrast_rules(draws, 30)[0].z)
    mean = sum(found) / 400
    assert mean == pytest.approx(0, abs=0.2)
    assert (sum((z - mean) ** 2 for z in found) / 400) ** 0.5 == pytest.approx(1, abs=0.15)


def test_nothing_is_said_of_no_draws() -> None:
    assert contrast_rules([], 3) == []


def test_what_a_verdict_is_worth_anyway_is_no_evidence() -> None:
    """Guessing `helps` ends in the label of 90 % of the items, `hurts` in that of 10 %, and neither knows the item.

    Over 100 data sets z would be far above 3 if acceptance were held against its mean (checked as the control),
    and is standard normal if it is held against the frequency of the verdict's label.
    """
    chance = random.Random(3)
    fair, naive = [], []
    for _ in range(100):
        draws = [(item, guess, chance.random() < (0.9 if guess == UP else 0.1)) for item in range(400)
                 for guess in [chance.choice((UP, DOWN))]]  # fmt: skip
        naive.append(contrast_rules([(item, trace(guess), accepted) for item, guess, accepted in draws], 400)[0].z)
        expected = [(item, trace(guess), accepted, 0.9 if guess == UP else 0.1) for item, guess, accepted in draws]
        fair.append(contrast_with_expectation(expected, 400)[0].z)
    assert min(naive) > 3
    assert sum(fair) / 100 == pytest.approx(0, abs=0.35)
    assert max(map(abs, fair)) < 4
