"""Exercises as the student reads them: tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data.student.tasks import Exercise


@dataclass(frozen=True, slots=True)
class Row:
    """An exercise in tokens.

    Attributes:
        ids: Prompt and answer.
        prompt_tokens: How many of them are the prompt.
    """

    ids: list[int]
    prompt_tokens: int


def encode(tokenizer: Any, exercise: Exercise) -> Row:
    """Return an exercise as the student reads it."""
    prompt = [{"role": "user", "content": exercise.prompt}]
    asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    before = tokenizer(asked, add_special_tokens=False).input_ids
    after = tokenizer(exercise.answer, add_special_tokens=False).input_ids
    return Row([*before, *after, tokenizer.eos_token_id], len(before))
