"""Losses by hand, and batches as the trainers read them."""

from __future__ import annotations

import math

import pytest
import torch

from raters.training_loss import PairCollator, TextCollator, dpo_losses, squared_errors


def test_the_expected_label_by_hand() -> None:
    # p = (1/4, 1/4, 1/2) over 1, 2, 5: expected 3.25; labels 5 and 1 are 1.75 and 2.25 away, of a scale 4 long
    logits = torch.log(torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.0, 2.0]]))
    errors = squared_errors(logits, torch.tensor([2, 0]), [1, 2, 5])
    assert errors.tolist() == pytest.approx([(1.75 / 4) ** 2, (2.25 / 4) ** 2])


def test_a_sure_and_right_verdict_costs_nothing() -> None:
    assert float(squared_errors(torch.tensor([[50.0, 0.0]]), torch.tensor([0]), [1, 2])) == pytest.approx(0)
    assert float(squared_errors(torch.tensor([[50.0, 0.0]]), torch.tensor([1]), [1, 2])) == pytest.approx(1)


def test_the_term_pulls_towards_the_label_and_not_only_away_from_others() -> None:
    """A far verdict is pushed down harder than a near one, which cross-entropy does not do."""
    logits = torch.zeros(1, 5, requires_grad=True)
    squared_errors(logits, torch.tensor([0]), [1, 2, 3, 4, 5]).sum().backward()
    assert logits.grad is not None
    slopes = logits.grad[0].tolist()
    assert slopes == sorted(slopes)
    assert slopes[0] < 0 < slopes[4]


def test_preferences_by_hand() -> None:
    # margins (-3 + 4) - (-2 + 2) = 1 and 0; at beta 0.5: log(1 + e^-0.5) and log 2
    model = torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -1.0])
    reference = torch.tensor([-4.0, -1.0]), torch.tensor([-2.0, -1.0])
    found = dpo_losses(*model, *reference, 0.5)
    assert found.tolist() == pytest.approx([math.log1p(math.exp(-0.5)), math.log(2)])


def test_a_batch_of_texts() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "index": 3, "verdict_at": 2, "verdict": 1},
        {"input_ids": [8], "labels": [8], "index": 0, "verdict_at": 0, "verdict": 0},
    ]
    batch = TextCollator(9)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["verdict_at"].tolist() == [2, 0]
    assert batch["index"].tolist() == [3, 0]
    assert "weight" not in batch


def test_a_batch_of_pairs() -> None:
    rows = [
        {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6], "index": 0, "weight": 0.5},
        {"prompt_ids": [7, 8], "chosen_ids": [9], "rejected_ids": [10, 11], "index": 1, "weight": 2.0},
    ]
    # as in the docstring of TRL's DataCollatorForPreference
    batch = PairCollator(0)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 0, 0], [1, 2, 3, 6, 0], [7, 8, 10, 11, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 1, 1, 0]]
    assert batch["weight"].tolist() == [0.5, 2.0]
