"""Log-probabilities of labels under a model in memory, against plain forward passes of transformers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import raters.models.label_scoring as scoring_module
from raters.models import generation
from raters.models.hf import HFModel
from raters.models.label_scoring import answer_up_to_rating, score_labels
from raters.models.protocol import Completion, Message, SamplingSettings
from tests.tiny_models import CONTEXT_TOKENS, THINKING_TEMPLATE, make_adapter, make_model, make_rater

MESSAGES: list[Message] = [{"role": "user", "content": "The argument names a reason."}]
LABELS = ("1", "2", "10", "not_present", "présent 👍")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def rater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that writes `<rating>1</rating>`, or 2 or 3, and nothing else."""
    prompts = [MESSAGES[0]["content"]]
    return make_rater(tmp_path_factory.mktemp("models") / "rater", prompts, [1, 2, 3], steps=60, at_once=True)


def plain(folder: Path, adapter: Path | None = None) -> tuple[Any, Any]:
    """Return model and tokenizer as transformers loads them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def expected_logprobs(
    model: Any, tokenizer: Any, messages: Sequence[Message], before: str, labels: Sequence[str]
) -> dict[str, float]:
    """Return the log-probability of each label and closing tag, a forward pass a token.

    The tags are one token each in the tiny tokenizer, so that the pieces of the answer have tokens of their own.
    """
    import torch

    prompt = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    opened, closed = (tokenizer.convert_tokens_to_ids(tag) for tag in ("<rating>", "</rating>"))
    found = {}
    for label in labels:
        ids = [*prompt, *tokenizer(before, add_special_tokens=False).input_ids, opened]
        total = 0.0
        for token in [*tokenizer(label, add_special_tokens=False).input_ids, closed]:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].double()
            total += float(logits[token] - torch.logsumexp(logits, 0))
            ids.append(token)
        found[label] = total
    return found


def draw(
    folder: Path,
    seeds: Sequence[int],
    settings: SamplingSettings,
    messages: Sequence[Message] = MESSAGES,
    **options: Any,
) -> list[Completion]:
    async def drawn() -> list[Completion]:
        model = HFModel(str(folder), device="cpu", **options)
        try:
            return await model.complete(messages, seeds, settings)
        finally:
            await model.close()

    return asyncio.run(drawn())


def close(found: Any, expected: dict[str, float]) -> bool:
    return dict(found or {}) == pytest.approx(expected, abs=1e-4)


def test_scores_are_those_of_plain_forward_passes(tiny: Path) -> None:
    settings = SamplingSettings(max_tokens=8, label_logprobs=LABELS)
    [completion] = draw(tiny, [1], settings)
    assert "<rating>" not in completion.text, "this random model writes noise, so the tag is put there"
    expected = expected_logprobs(*plain(tiny), MESSAGES, "", LABELS)
    assert completion.label_logprobs is not None
    assert list(completion.label_logprobs) == list(LABELS)
    assert close(completion.label_logprobs, expected)
    # `10` needs a token more than `1`; without the closing tag `1` would hold all that `10` has.
    assert expected["10"] != expected["1"]


def test_labels_that_all_begin_alike_are_scored_from_their_beginning(tiny: Path) -> None:
    labels = ("10", "12", "11")
    [completion] = draw(tiny, [1], SamplingSettings(max_tokens=2, label_logprobs=labels))
    assert close(completion.label_logprobs, expected_logprobs(*plain(tiny), MESSAGES, "", labels))


def test_scores_under_an_adapter(tiny: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny, tmp_path / "adapter")
    [completion] = draw(tiny, [1], SamplingSettings(max_tokens=2, label_logprobs=LABELS), adapter=adapter)
    expected = expected_logprobs(*plain(tiny, adapter), MESSAGES, "", LABELS)
    assert close(completion.label_logprobs, expected)
    assert not close(completion.label_logprobs, expected_logprobs(*plain(tiny), MESSAGES, "", LABELS))


def test_what_is_written_is_the_same_with_and_without_scores(tiny: Path) -> None:
    plainly = draw(tiny, [1, 2, 3], SamplingSettings(max_tokens=12))
    scored = draw(tiny, [1, 2, 3], SamplingSettings(max_tokens=12, label_logprobs=LABELS))
    assert all(one.label_logprobs is None for one in plainly)
    assert [(one.text, one.completion_tokens) for one in plainly] == [
        (one.text, one.completion_tokens) for one in scored
    ]


def test_scores_do_not_depend_on_the_batch(tiny: Path) -> None:
    settings = SamplingSettings(max_tokens=1, label_logprobs=LABELS)
    texts = ["Short.", "A text of some more words than that. " * 4, "x" * 90]

    async def all_draws(batch_size: int) -> list[list[Completion]]:
        model = HFModel(str(tiny), device="cpu", batch_size=batch_size)
        calls = [model.complete([{"role": "user", "content": text}], range(4), settings) for text in texts]
        drawn = list(await asyncio.gather(*calls))
        await model.close()
        return drawn

    alone = asyncio.run(all_draws(1))
    assert asyncio.run(all_draws(6)) == alone
    model, tokenizer = plain(tiny)
    for text, drawn in zip(texts, alone, strict=True):
        expected = expected_logprobs(model, tokenizer, [{"role": "user", "content": text}], "", LABELS)
        # Now and then this random model closes a thought that it never opened, which then stands before the label.
        plainly = [one for one in drawn if one.text]
        assert len(plainly) > 1
        for one in plainly:
            assert close(one.label_logprobs, expected)


def test_temperature_and_nucleus_do_not_change_scores(rater: Path) -> None:
    labels = ("1", "2", "3")
    found = []
    for temperature, top_p in ((0.0, 1.0), (1.0, 1.0), (1.5, 1.0), (1.0, 0.3)):
        settings = SamplingSettings(temperature=temperature, top_p=top_p, max_tokens=12, label_logprobs=labels)
        found += [one for one in draw(rater, range(6), settings) if one.text.startswith("<rating>")]
    assert len(found) > 18
    assert len({one.text for one in found}) > 1, "the draws differ, and their scores do not"
    expected = expected_logprobs(*plain(rater), MESSAGES, "", labels)
    for completion in found:
        assert close(completion.label_logprobs, expected)


def test_an_answer_is_scored_behind_its_own_words(rater: Path) -> None:
    """What was written before the tag is part of what the label follows; what comes behind it is not."""
    loaded = generation.load_model(f"hf/{rater}", str(rater), None, "cpu", None)
    prompt = generation.render(loaded, MESSAGES, 40)
    written = generation._written(loaded, prompt, loaded.tokenizer("Well, <rating>2</rating> it is").input_ids)
    settings = SamplingSettings(label_logprobs=("1", "2", "3"))
    [scores] = generation._label_scores(loaded, [prompt], [written], settings)
    completion = generation.as_completion(prompt, written, scores)
    assert completion.text == "Well, <rating>2</rating> it is"
    expected = expected_logprobs(*plain(rater), MESSAGES, "Well, ", ("1", "2", "3"))
    assert close(completion.label_logprobs, expected)


def test_reasoning_stands_before_the_scored_label(tmp_path: Path) -> None:
    """A template that opens <think>: the thought is read before the label, and a thought cut off is no answer."""
    folder = make_model(tmp_path / "thinking", chat_template=THINKING_TEMPLATE)
    loaded = generation.load_model(f"hf/{folder}", str(folder), None, "cpu", None)
    prompt = generation.render(loaded, MESSAGES, 40)
    assert prompt.opened == "<think>"
    settings = SamplingSettings(label_logprobs=("1", "2"))
    model, tokenizer = plain(folder)

    def scored(text: str) -> Any:
        ids = loaded.tokenizer(text).input_ids
        written = generation._written(loaded, prompt, ids)
        [scores] = generation._label_scores(loaded, [prompt], [written], settings)
        return scores

    thought = "a reason\n</think>\n\n"
    expected = expected_logprobs(model, tokenizer, MESSAGES, thought, ("1", "2"))
    assert close(scored(f"{thought}<rating>2</rating>"), expected)
    assert close(scored(f"{thought}I cannot say."), expected)  # the tag is put where the answer begins
    assert close(scored(f"<rating>5</rating> {thought}<rating>"), expected_logprobs(
        model, tokenizer, MESSAGES, f"<rating>5</rating> {thought}", ("1", "2")
    ))  # fmt: skip
    assert scored("a reason, and a secon") is None


@pytest.mark.parametrize(
    ("written", "begun"),
    [
        ("<rating>3</rating>", "<rating>"),
        (" So: <rating>3</rating> done", " So: <rating>"),
        ("<rating>1</rating> no, <rating>3</rating>", "<rating>1</rating> no, <rating>"),
        ("<rating>3</rating> and <rating>", "<rating>"),
        ("<RATING>3", "<RATING>"),
        ("I cannot.", "<rating>"),
        ("\n I cannot.", "\n <rating>"),
        ("", "<rating>"),
        ("<think>why</think>\n<rating>3", "<think>why</think>\n<rating>"),
        ("<think><rating>1</rating></think>No.", "<think><rating>1</rating></think><rating>"),
        ("<think>cut off <rating>2</rating>", None),
        ("<rating>2</rating> <think>cut off", "<rating>"),
    ],
)
def test_where_an_answer_begins_to_rate(written: str, begun: str | None) -> None:
    assert answer_up_to_rating(written) == begun


def test_many_labels_are_scored_in_parts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = generation.load_model(f"hf/{tiny}", str(tiny), None, "cpu", None)
    ids = generation.render(loaded, MESSAGES, 5).token_ids
    labels = [str(number) for number in range(40)]
    in_parts = score_labels(loaded, ids, "<rating>", labels)
    monkeypatch.setattr(scoring_module, "_LABELS_AT_ONCE", 1)
    one_by_one = score_labels(loaded, ids, "<rating>", labels)
    assert in_parts is not None
    assert list(in_parts) == labels
    assert in_parts == pytest.approx(one_by_one, abs=1e-4)


def test_labels_that_the_memory_does_not_hold_are_scored_in_smaller_parts(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    loaded = generation.load_model(f"hf/{tiny}", str(tiny), None, "cpu", None)
    ids = generation.render(loaded, MESSAGES, 5).token_ids
    expected, real, tried = score_labels(loaded, ids, "<rating>", LABELS), scoring_module._scores, []

    def small_memory(loaded: Any, prompt_ids: Any, endings: Any, given: int) -> list[float]:
        tried.append(len(endings))
        if len(endings) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(loaded, prompt_ids, endings, given)

    monkeypatch.setattr(scoring_module, "_scores", small_memory)
    limit = 2
    assert score_labels(loaded, ids, "<rating>", LABELS) == pytest.approx(expected, abs=1e-4)
    assert tried == [5, 2, 2, 1]
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        score_labels(loaded, ids, "<rating>", LABELS)


def test_models_that_cannot_leave_out_logits(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = generation.load_model(f"hf/{tiny}", str(tiny), None, "cpu", None)
    ids = generation.render(loaded, MESSAGES, 5).token_ids
    expected = score_labels(loaded, ids, "<rating>", LABELS)
    monkeypatch.setattr(loaded.model, "_supports_logits_to_keep", lambda: False)
    assert score_labels(loaded, ids, "<rating>", LABELS) == pytest.approx(expected, abs=1e-5)


def test_a_label_that_no_longer_fits_the_context_is_not_scored(tiny: Path) -> None:
    loaded = generation.load_model(f"hf/{tiny}", str(tiny), None, "cpu", None)
    assert score_labels(loaded, [5] * (CONTEXT_TOKENS - 3), "<rating>", ("1", "2")) is not None
    assert score_labels(loaded, [5] * (CONTEXT_TOKENS - 2), "<rating>", ("1", "2")) is None
    messages: list[Message] = [{"role": "user", "content": "z" * 480}]
    settings = SamplingSettings(max_tokens=9999, label_logprobs=("1", "x" * 200))
    for completion in draw(tiny, range(2), settings, messages):
        assert completion.label_logprobs is None
        assert completion.completion_tokens


def test_tokens_that_span_the_end_of_a_tag(tiny: Path, tmp_path: Path) -> None:
    """A vocabulary with `>1` and `2</` in it: a label's score is that of its text as the tokenizer cuts it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = make_model(tmp_path / "merging", special_tags=False)
    saved = json.loads((folder / "tokenizer.json").read_text())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: number for number, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet])
    }
    for piece in (">1", "2<", "2</"):
        vocabulary[piece] = len(vocabulary)
    bpe = Tokenizer(models.BPE(vocabulary, [(">", "1"), ("2", "<"), ("2<", "/")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    bpe.save(str(folder / "tokenizer.json"))
    assert saved != json.loads((folder / "tokenizer.json").read_text())

    loaded = generation.load_model(f"hf/{folder}", str(folder), None, "cpu", None)
    prompt = generation.render(loaded, MESSAGES, 5).token_ids
    pieces = {label: loaded.tokenizer.tokenize(f"<rating>{label}</rating>") for label in ("1", "2", "3")}
    assert ">1" in pieces["1"]
    assert "2</" in pieces["2"]
    assert pieces["3"][7:9] == [">", "3"]
    # `>1` parts from `>` at the tag's last sign, so all three are scored from there on.
    model = plain(folder)[0]
    for label, found in (score_labels(loaded, prompt, "<rating>", ("1", "2", "3")) or {}).items():
        ids = [*prompt, *loaded.tokenizer.convert_tokens_to_ids(pieces[label])]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        begin = len(prompt) + len("<rating")
        expected = sum(float(logprobs[place - 1, ids[place]]) for place in range(begin, len(ids)))
        assert found == pytest.approx(expected, abs=1e-4), label
