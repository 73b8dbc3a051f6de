"""The student's tokenizer: bytes, and one token for each piece of the controlled English it is asked in.

Any text can be written in it, byte by byte; what matters is that names, levels, rungs and signed changes are one token
each and the same token wherever they stand. An observation of the prompt is one token as a whole, so that its level is
found by its name in one step; and the label that a total leads to stands right behind it, as it does in the scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raters.models.embedded import RUNGS, STRENGTHS
from raters.observations import LEVELS, STATISTICS

PADDING, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTEXT_TOKENS = 1024
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WHOLE_LABELS = ("tie", "present", "not_present", "yes", "no", "true", "false", "good", "bad", "first", "second")
"""Labels of more than one letter that are one token; other labels are written letter by letter."""


def pieces() -> list[str]:
    """Return the strings that are one token, in the order of their ids."""
    return [
        *("<think>\n-", "<think>\n", "</think>\n\n", "<rating>", "</rating>"),
        *("user\n", "assistant\n", "Guideline:", "\n-", ".\n-", ".\n", "\n"),
        *("Think, then rate.", "Rate at once.", "Rate, then think.", "Restate.", "Observe.", "Read."),
        *("Text:", "A against B:", " against "),
        f"Scale: {RUNGS[0]} ",
        *(f". {word} " for word in RUNGS[1:]),
        *(f" {word}" for word in RUNGS),
        *(f" total {word} " for word in RUNGS),
        *(f" is {level}" for level in LEVELS),
        *(f" {name} is {level}." for name in STATISTICS for level in LEVELS),
        *(f" {name}" for name in STATISTICS),
        *(f" {word}" for word in ("helps", "hurts", "maybe", "start", "at", "rest ignored", *STRENGTHS)),
        *(f" {change:+d}" for change in range(-6, 7)),
        *WHOLE_LABELS,
    ]


def parts_of_pieces() -> Mapping[str, tuple[str, ...]]:
    """Return the pieces that hold two others which are tokens themselves: what finds or says these helps with those."""
    observed = {f" {name} is {level}.": (f" {name}", f" is {level}") for name in STATISTICS for level in LEVELS}
    rungs = {f". {word} ": (f" {word}", ".") for word in RUNGS[1:]}
    totals = {f" total {word} ": (f" {word}", "=") for word in RUNGS}
    return {**observed, **rungs, f"Scale: {RUNGS[0]} ": (f" {RUNGS[0]}", "."), **totals}


def make_tokenizer() -> Any:
    """Return the tokenizer, with its chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [PADDING, START_OF_TURN, END_OF_TURN]
    bpe = Tokenizer(models.BPE(vocab={char: place for place, char in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(special)
    bpe.add_tokens([AddedToken(piece, normalized=False) for piece in pieces()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TURN, pad_token=PADDING, extra_special_tokens=[START_OF_TURN]
    )
    tokenizer.model_max_length = CONTEXT_TOKENS
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
