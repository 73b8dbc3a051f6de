"""Log-probabilities of labels under a model in memory: one teacher-forced pass over all labels behind `<rating>`.

A label's score is the log-probability of the label and the whole closing tag, cut into tokens as the tokenizer cuts
the finished text. The tag counts, or `1` would have the probability of `10` too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raters.models.protocol import THINK_CLOSE, THINK_OPEN
from raters.scales import rating_start

if TYPE_CHECKING:
    from raters.models.generation import LoadedModel, Reader

_OPEN, _CLOSE = "<rating>", "</rating>"
_LABELS_AT_ONCE = 16


def answer_up_to_rating(written: str) -> str | None:
    """Return what a model wrote up to and including the `<rating>` of its verdict.

    An answer without the tag is cut where it begins, and the tag put there. None if the model was still thinking when
    it was cut off: it has begun no answer.

    Args:
        written: Raw text, reasoning included; with the `<think>` that its prompt may have ended in.
    """
    after = written.rpartition(THINK_CLOSE)[2]
    answer, unfinished, _ = after.partition(THINK_OPEN)
    begin = rating_start(answer)
    thought = written[: len(written) - len(after)]
    if begin is not None:
        return thought + answer[:begin]
    if unfinished:
        return None
    blank = answer[: len(answer) - len(answer.lstrip())]
    return thought + blank + _OPEN


def score_labels(
    loaded: LoadedModel, prompt_ids: Sequence[int], begun: str, labels: Sequence[str]
) -> dict[str, float] | None:
    """Return the log-probability of each label, and the closing tag behind it, as what the model writes next.

    The model's own: no temperature, no nucleus.

    Args:
        loaded: The model.
        prompt_ids: The rendered conversation.
        begun: The answer up to and including `<rating>`.
        labels: The scale's labels as text, at least two.

    Returns:
        Natural logarithms by label; None if the model's context does not hold them.
    """
    import torch

    endings, given = label_endings(loaded, begun, labels)
    longest = max(map(len, endings.values()))
    if loaded.context_tokens is not None and len(prompt_ids) + longest > loaded.context_tokens:
        return None
    scores: list[float] = []
    at_once = _LABELS_AT_ONCE
    while len(scores) < len(labels):
        some = [endings[label] for label in labels[len(scores) : len(scores) + at_once]]
        try:
            scores += _scores(loaded, prompt_ids, some, given)
            continue
        except torch.OutOfMemoryError:
            if len(some) == 1:
                raise
        at_once = len(some) // 2  # out here no exception holds the failed pass's tensors
        torch.cuda.empty_cache()
    return dict(zip(labels, scores, strict=True))


def label_endings(loaded: Reader, begun: str, labels: Sequence[str]) -> tuple[dict[str, list[int]], int]:
    """Return the tokens of an answer that ends in each label and the closing tag, and how many of them are given.

    A tokenizer may draw the end of the tag and a label into one token; what is scored begins where labels part from
    the tag alone.

    Args:
        loaded: The model.
        begun: The answer up to and including `<rating>`.
        labels: The scale's labels as text.
    """
    endings = {label: _token_ids(loaded, f"{begun}{label}{_CLOSE}") for label in labels}
    return endings, _shared_length([_token_ids(loaded, begun), *endings.values()])


def _scores(
    loaded: LoadedModel, prompt_ids: Sequence[int], endings: Sequence[Sequence[int]], given: int
) -> list[float]:
    """Return the log-probability of each ending behind its first `given` tokens, which are the same in all."""
    import torch

    model: Any = loaded.model
    longest = max(map(len, endings))
    # Padding stands behind the text, where a causal model does not see it.
    padded = [[*prompt_ids, *ending, *[loaded.generation.pad_token_id] * (longest - len(ending))] for ending in endings]
    lengths = torch.tensor([len(prompt_ids) + len(ending) for ending in endings])
    input_ids = torch.tensor(padded)  # (labels, tokens)
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    kept = longest - given + 1  # the last position that is given predicts the first that is scored
    can_leave_out = getattr(model, "_supports_logits_to_keep", lambda: False)()
    options = {"logits_to_keep": kept} if can_leave_out else {}
    with torch.inference_mode():
        logits = model(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            use_cache=False,
            **options,
        ).logits[:, -kept:-1]  # (labels, kept - 1, vocabulary)
        targets = input_ids[:, len(prompt_ids) + given :].to(model.device)  # (labels, kept - 1)
        logprobs = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        scored = attention_mask[:, len(prompt_ids) + given :].to(model.device)
        return [float(score) for score in (logprobs.double() * scored).sum(1).tolist()]


def _token_ids(loaded: Reader, text: str) -> list[int]:
    return list(loaded.tokenizer(text, add_special_tokens=False).input_ids)


def _shared_length(rows: Sequence[Sequence[int]]) -> int:
    """Return how many first tokens are the same in all rows."""
    length = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length
