"""Reading labels' log-probabilities from what servers send with their tokens: by hand, and over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from raters.models.openai import OpenAIModel
from raters.models.protocol import Completion, Message, SamplingSettings
from raters.models.top_logprobs import label_logprobs, read_tokens
from raters.records import ModelError
from tests.scripted_server import Answer, Fault, Script, ScriptedServer, token_entry

FIVE = ("1", "2", "3", "4", "5")
TEN = tuple(map(str, range(1, 11)))
Place = tuple[str, Mapping[str, float]]
"""A token that was written, and probabilities of tokens in its place."""


def content(*places: str | Place) -> list[dict[str, Any]]:
    """Return entries of tokens; one without others in its place was certain."""
    entries = []
    for place in places:
        text, options = (place, {place: 1.0}) if isinstance(place, str) else place
        logs = {name: math.log(probability) for name, probability in options.items()}
        entries.append(token_entry(text, logs.get(text, -20.0), logs))
    return entries


def masses(labels: Sequence[str], *places: str | Place, answer: str | None = None) -> dict[str, float] | None:
    """Return the probabilities that are read, rounded."""
    entries = content(*places)
    tokens = read_tokens({"content": entries, "refusal": None})
    assert tokens is not None
    text = "".join(entry["token"] for entry in entries) if answer is None else answer
    found = label_logprobs(tokens, text.strip(), labels)
    return None if found is None else {label: round(math.exp(value), 9) for label, value in found.items()}


OPEN, CLOSE = ("<", "rating", ">"), ("</", "rating", ">")


# --- one token a label ------------------------------------------------------------------------------------


def test_labels_of_one_token() -> None:
    place = ("4", {"4": 0.6, "3": 0.25, "5": 0.1, "The": 0.03, "**": 0.02})
    assert masses(FIVE, *OPEN, place, *CLOSE) == {"4": 0.6, "3": 0.25, "5": 0.1}


def test_the_same_label_with_other_white_space_or_case_is_one() -> None:
    place = ("4", {"4": 0.5, " 4": 0.2, "4\n": 0.1, "\n": 0.1, "3": 0.05, " 3": 0.05})
    assert masses(FIVE, *OPEN, place, *CLOSE) == {"4": 0.8, "3": 0.1}
    assert masses(("Yes", "No"), *OPEN, ("yes", {"yes": 0.5, "Yes": 0.3, "NO": 0.1}), *CLOSE) == {"Yes": 0.8, "No": 0.1}


def test_the_written_token_counts_though_it_is_not_among_the_likeliest() -> None:
    entries = content(*OPEN, ("2", {"4": 0.9, "3": 0.05}), *CLOSE)
    entries[3]["logprob"] = math.log(0.001)
    tokens = read_tokens({"content": entries})
    assert tokens is not None
    found = label_logprobs(tokens, "<rating>2</rating>", FIVE)
    assert found == pytest.approx({"2": math.log(0.001), "3": math.log(0.05), "4": math.log(0.9)})


def test_reasoning_before_the_answer_is_passed_over() -> None:
    thought = ["<think>", "So ", *OPEN, ("1", {"1": 1.0}), *CLOSE, "</think>", "\n\n"]
    place = ("4", {"4": 0.9, "5": 0.1})
    found = masses(FIVE, *thought, *OPEN, place, *CLOSE, answer="<rating>4</rating>")
    assert found == {"4": 0.9, "5": 0.1}
    # Reasoning in a field of its own, and its tokens before the answer's, without the tags.
    assert masses(FIVE, "Hm. ", *OPEN, place, *CLOSE, "", answer="<rating>4</rating>") == found


def test_the_tag_that_counts_is_the_one_whose_verdict_is_read() -> None:
    first, last = ("2", {"2": 0.9, "1": 0.1}), ("5", {"5": 0.7, "4": 0.3})
    assert masses(FIVE, *OPEN, first, *CLOSE, " or ", *OPEN, last, *CLOSE) == {"5": 0.7, "4": 0.3}
    assert masses(FIVE, *OPEN, first, *CLOSE, " is my ", *OPEN) == {"2": 0.9, "1": 0.1}
    assert masses(FIVE, *OPEN, last) == {"5": 0.7, "4": 0.3}  # cut off before it closed
    assert masses(FIVE, *OPEN) == {}  # cut off right behind the tag


def test_no_tag_is_no_probabilities() -> None:
    assert masses(FIVE, "I ", "say ", ("4", {"4": 0.9})) is None


# --- where tokens end -------------------------------------------------------------------------------------


def test_a_token_that_holds_the_end_of_the_tag() -> None:
    place = (">4", {">4": 0.6, ">3": 0.3, ">": 0.05, "4": 0.01})  # the last does not close the tag at all
    assert masses(FIVE, "<", "rating", place, *CLOSE) == {"4": 0.6, "3": 0.3}


def test_a_token_that_holds_the_beginning_of_the_closing_tag() -> None:
    place = ("4</", {"4</": 0.6, "3</": 0.3, "4": 0.05, "45": 0.05})
    assert masses(FIVE, "<rating>", place, "rating", ">") == {"4": 0.65, "3": 0.3}


def test_the_whole_answer_in_one_token() -> None:
    place = ("<rating>4</rating>", {"<rating>4</rating>": 0.7, "<rating>2</rating>": 0.3})
    assert masses(FIVE, place) == {"4": 0.7, "2": 0.3}


def test_tokens_that_are_not_the_answer_are_no_use() -> None:
    place = ("4", {"4": 1.0})
    assert masses(FIVE, *OPEN, place, *CLOSE, answer="<rating>5</rating>") is None
    assert masses(FIVE, "<", "rating", place, *CLOSE, answer="<rating>4</rating>") is None


def test_parts_of_characters_are_told_by_their_bytes() -> None:
    thumb = "👍".encode()
    entries = content("Well ", *OPEN, *CLOSE)
    halves = [
        {"token": "\\xf0\\x9f", "logprob": math.log(0.8), "bytes": list(thumb[:2])},
        {"token": "\\x91\\x8d", "logprob": math.log(0.5), "bytes": list(thumb[2:])},
    ]
    down = {"token": "\\x91\\x8e", "logprob": math.log(0.25), "bytes": list("👎".encode()[2:])}
    other = {"token": "no", "logprob": math.log(0.2), "bytes": list(b"no")}
    entries[4:4] = [{**halves[0], "top_logprobs": [halves[0], other]}, {**halves[1], "top_logprobs": [halves[1], down]}]
    tokens = read_tokens({"content": entries})
    assert tokens is not None
    found = label_logprobs(tokens, "Well <rating>👍</rating>", ("👍", "👎", "no"))
    # Both thumbs begin alike and the written one was followed: .8 × .5 and .8 × .25.
    assert found == pytest.approx({"👍": math.log(0.4), "👎": math.log(0.2), "no": math.log(0.2)})


# --- labels of several tokens, and labels that begin alike ------------------------------------------------


def test_first_tokens_tell_words_apart() -> None:
    place = ("not", {"not": 0.7, "present": 0.2, "pre": 0.05, "n": 0.01})
    assert masses(("present", "not_present"), *OPEN, place, "_present", *CLOSE) == {
        "not_present": 0.71,
        "present": 0.25,
    }


def test_digits_one_by_one_are_followed_if_they_were_written() -> None:
    first, second = ("1", {"1": 0.5, "7": 0.3, "2": 0.2}), ("0", {"0": 0.6, "</": 0.3, ".": 0.1})
    assert masses(TEN, *OPEN, first, second, *CLOSE) == {"10": 0.3, "1": 0.15, "7": 0.3, "2": 0.2}
    second = ("</", {"</": 0.9, "0": 0.1})
    assert masses(TEN, *OPEN, first, second, "rating", ">") == {"1": 0.45, "10": 0.05, "7": 0.3, "2": 0.2}


def test_digits_one_by_one_are_missing_if_another_was_written() -> None:
    place = ("7", {"7": 0.6, "1": 0.3, "2": 0.1})
    assert masses(TEN, *OPEN, place, *CLOSE) == {"7": 0.6, "2": 0.1}  # .3 is 1 or 10
    place = ("7", {"7": 0.8, "1": 0.005, "2": 0.1})
    assert masses(TEN, *OPEN, place, *CLOSE) == {"7": 0.8, "2": 0.1}


def test_a_label_that_is_known_in_part_only_is_missing() -> None:
    place = ("7", {"7": 0.5, "1</": 0.1, "1": 0.3, "2": 0.1})  # .1 is surely 1, and .3 is 1 or 10
    assert masses(TEN, *OPEN, place, *CLOSE) == {"7": 0.5, "2": 0.1}
    place = ("7", {"7": 0.79, "1</": 0.1, "1": 0.009, "2": 0.1})  # so little of it is in doubt that it counts
    assert masses(TEN, *OPEN, place, *CLOSE) == {"7": 0.79, "1": 0.1, "2": 0.1}


def test_a_vocabulary_that_has_10_as_a_token_means_1_by_1() -> None:
    place = ("7", {"7": 0.5, "1": 0.3, "10": 0.2})
    assert masses(TEN, *OPEN, place, *CLOSE) == {"7": 0.5, "1": 0.3, "10": 0.2}


def test_words_that_begin_alike() -> None:
    labels = ("agree", "agree strongly", "disagree")
    first = (" agree", {" agree": 0.6, "dis": 0.4})
    assert masses(labels, *OPEN, first, (" strongly", {" strongly": 0.75, "</": 0.25}), *CLOSE) == {
        "agree strongly": 0.45,
        "agree": 0.15,
        "disagree": 0.4,
    }
    assert masses(labels, *OPEN, ("dis", {"dis": 0.7, "agree": 0.3}), "agree", *CLOSE) == {"disagree": 0.7}
    # A beginning that next to nothing goes to spoils nothing.
    assert masses(labels, *OPEN, ("dis", {"dis": 0.99, "agree": 0.004}), "agree", *CLOSE) == {"disagree": 0.99}
    assert masses(labels, *OPEN, first) == {"disagree": 0.4}  # cut off before they part


def test_white_space_before_the_label_is_followed() -> None:
    first, second = ("\n", {"\n": 0.8, "4": 0.2}), ("4", {"4": 0.5, "5": 0.5})
    assert masses(FIVE, *OPEN, first, second, "\n", *CLOSE) == {"4": 0.6, "5": 0.4}


def test_an_answer_that_goes_on_otherwise_shows_that_first_tokens_mean_no_labels() -> None:
    place = ("3", {"3": 0.6, "4": 0.4})
    assert masses(FIVE, *OPEN, place, ".", "5", *CLOSE) is None
    assert masses(FIVE, *OPEN, place, " out of 5", *CLOSE) is None
    assert masses(FIVE, *OPEN, place, " ", *CLOSE) == {"3": 0.6, "4": 0.4}
    assert masses(FIVE, *OPEN, ("7", {"7": 0.2, "3": 0.5, "4": 0.3}), *CLOSE) == {"3": 0.5, "4": 0.3}  # off the scale


# --- what servers leave out -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "logprobs",
    [None, {}, [], "no", {"content": None}, {"content": []}, {"content": [None]}, {"content": [{"logprob": -1.0}]}],
    ids=str,
)
def test_no_tokens_are_no_tokens(logprobs: object) -> None:
    assert read_tokens(logprobs) is None


def test_entries_that_cannot_be_read_are_passed_over() -> None:
    entries = content(*OPEN, ("4", {"4": 0.5, "3": 0.3, "5": 0.1, "2": 0.05, "1": 0.05}), *CLOSE)
    top = entries[3]["top_logprobs"]
    top[1].pop("logprob")
    top[2]["logprob"] = math.nan
    top[3]["logprob"] = 5.0
    top[4]["token"] = None
    top[4]["bytes"] = [999]
    top.append(None)
    for entry in entries:
        entry["bytes"] = None  # as of servers that do not list them
    tokens = read_tokens({"content": entries})
    assert tokens is not None
    assert label_logprobs(tokens, "<rating>4</rating>", FIVE) == pytest.approx({"4": math.log(0.5)})
    for missing in (None, "none"):
        entries[3]["top_logprobs"] = missing
        tokens = read_tokens({"content": entries})
        assert tokens is not None
        assert label_logprobs(tokens, "<rating>4</rating>", FIVE) == pytest.approx({"4": math.log(0.5)})


def test_a_probability_of_nothing_is_no_label() -> None:
    entries = content(*OPEN, ("4", {"4": 1.0}), *CLOSE)
    entries[3]["top_logprobs"].append({"token": "3", "logprob": -9999.0, "bytes": [51]})
    tokens = read_tokens({"content": entries})
    assert tokens is not None
    assert label_logprobs(tokens, "<rating>4</rating>", FIVE) == {"4": 0.0}


# --- over HTTP --------------------------------------------------------------------------------------------

ASK = SamplingSettings(max_tokens=24, label_logprobs=FIVE)
MESSAGES: list[Message] = [{"role": "user", "content": "Rate it."}]
TEXT = "<rating>4</rating>"
ENTRIES = content(*OPEN, ("4", {"4": 0.6, "3": 0.2, "5": 0.1, "2": 0.06, "1": 0.03, "6": 0.01}), *CLOSE)
GOOD = Answer(TEXT, logprobs=ENTRIES)


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


def ask(script: Script, draws: int = 1, settings: SamplingSettings = ASK) -> tuple[ScriptedServer, list[Completion]]:
    """Return the server, with what it was asked, and what one model drew, one draw after another."""
    with ScriptedServer(script) as server:
        model = OpenAIModel("scripted", base_url=server.base_url, max_retries=0)

        async def draw() -> list[Completion]:
            found = [(await model.complete(MESSAGES, [seed], settings))[0] for seed in range(draws)]
            await model.close()
            return found

        return server, asyncio.run(draw())


def asked(server: ScriptedServer) -> list[tuple[Any, Any]]:
    return [(body.get("logprobs"), body.get("top_logprobs")) for body in server.requests]


def test_the_scripted_server_sends_what_the_api_sends() -> None:
    from openai.types.chat import ChatCompletion

    with ScriptedServer(lambda body, count: GOOD) as server:
        sent = json.dumps({"model": "scripted", "messages": [], "logprobs": True, "top_logprobs": 2}).encode()
        with urllib.request.urlopen(f"{server.base_url}/chat/completions", sent) as reply:
            parsed = ChatCompletion.model_validate_json(reply.read(), strict=True)
    told = parsed.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert "".join(entry.token for entry in told.content) == TEXT
    assert [option.token for option in told.content[3].top_logprobs] == ["4", "3"]


def test_log_probabilities_are_asked_for_only_if_wanted() -> None:
    server, [completion] = ask(lambda body, count: GOOD, settings=SamplingSettings(max_tokens=24))
    assert asked(server) == [(None, None)]
    assert completion.label_logprobs is None
    server, [completion] = ask(lambda body, count: GOOD)
    assert asked(server) == [(True, 20)]
    assert completion.label_logprobs == pytest.approx(
        {"4": math.log(0.6), "3": math.log(0.2), "5": math.log(0.1), "2": math.log(0.06), "1": math.log(0.03)}
    )
    assert (completion.text, completion.finish_reason) == (TEXT, "stop")


REFUSALS = {
    "openai, unknown argument": Fault(400, "Unrecognized request argument supplied: logprobs", "invalid_request_error"),
    "azure": Fault(
        400, "This model does not support the 'logprobs' parameter.", "invalid_request_error", param="logprobs"
    ),
    "openai, reasoning models": Fault(
        403, "You are not allowed to request logprobs from this model", "invalid_request_error"
    ),
    "gemini": Fault(400, body=b'{"error": {"code": 400, "message": "Logprobs is not enabled for models/x"}}'),
    "pydantic": Fault(
        422, body=b'{"detail": [{"type": "extra_forbidden", "loc": ["body", "top_logprobs"], "msg": "Extra inputs"}]}'
    ),
    "not implemented": Fault(501, "logprobs are not implemented"),
}


@pytest.mark.parametrize("fault", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_server_that_refuses_them_is_asked_without_from_then_on(
    fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    server, completions = ask(lambda body, count: fault if "logprobs" in body else GOOD, draws=3)
    assert asked(server) == [(True, 20), (True, 5), (None, None), (None, None), (None, None)]
    assert [(one.text, one.label_logprobs) for one in completions] == [(TEXT, None)] * 3
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    told = record.getMessage()
    assert told.startswith(f"openai/scripted: {server.base_url} refuses log-probabilities ({fault.status} ")
    assert told.endswith("is rated without them")
    assert "\n" not in told


def test_a_server_that_allows_five_is_asked_for_five(caplog: pytest.LogCaptureFixture) -> None:
    told = "Requested sample logprobs of 20, which is greater than max allowed: 5"

    def capped(body: dict[str, Any], count: int) -> Answer | Fault:
        return Fault(400, told, "BadRequestError") if body["top_logprobs"] > 5 else GOOD

    server, completions = ask(capped, draws=2)
    assert asked(server) == [(True, 20), (True, 5), (True, 5)]
    for completion in completions:
        assert completion.label_logprobs is not None
        assert set(completion.label_logprobs) == {"4", "3", "5", "2", "1"}
    assert not caplog.records


def test_a_server_that_silently_sends_fewer_leaves_labels_out() -> None:
    few = [{**entry, "top_logprobs": entry["top_logprobs"][:2]} for entry in ENTRIES]
    _, [completion] = ask(lambda body, count: Answer(TEXT, logprobs=few))
    assert completion.label_logprobs is not None
    assert set(completion.label_logprobs) == {"4", "3"}


def raw(choice: dict[str, Any]) -> Fault:
    message = {"role": "assistant", "content": TEXT}
    return Fault(200, body=json.dumps({"choices": [{"index": 0, "message": message, **choice}]}).encode())


@pytest.mark.parametrize(
    "answer",
    [
        Answer(TEXT),  # `transformers serve`: null
        raw({"finish_reason": "stop"}),
        raw({"finish_reason": "stop", "logprobs": {}}),
        raw({"finish_reason": "stop", "logprobs": {"content": None, "refusal": None}}),
        raw({"finish_reason": "stop", "logprobs": {"tokens": ["4"], "token_logprobs": [-0.1]}}),  # the older API's form
    ],
    ids=["null", "missing", "empty", "null content", "older form"],
)
def test_a_server_that_ignores_the_wish_is_told_of_once(
    answer: Answer | Fault, caplog: pytest.LogCaptureFixture
) -> None:
    server, completions = ask(lambda body, count: answer, draws=3)
    assert [(one.text, one.label_logprobs) for one in completions] == [(TEXT, None)] * 3
    assert len(server.requests) == 3
    [record] = caplog.records
    told = f"openai/scripted: {server.base_url} sends no log-probabilities; what it writes is rated without them"
    assert record.getMessage() == told


def test_one_answer_without_them_says_nothing_of_others(caplog: pytest.LogCaptureFixture) -> None:
    replies = [Answer(None, refusal=None, finish_reason="content_filter"), GOOD]
    _, completions = ask(lambda body, count: replies[count], draws=2)
    assert completions[0].label_logprobs is None
    assert completions[1].label_logprobs is not None
    assert not caplog.records


def test_an_error_that_only_repeats_the_word_does_not_switch_them_off(caplog: pytest.LogCaptureFixture) -> None:
    """An item about logprobs, refused by a filter that repeats it: that request fails, others are asked as before."""

    def picky(body: dict[str, Any], count: int) -> Answer | Fault:
        return Fault(400, "Filtered: 'explain logprobs to me'") if body["seed"] == 0 else GOOD

    with ScriptedServer(picky) as server:
        model = OpenAIModel("scripted", base_url=server.base_url)

        async def draw() -> Completion:
            with pytest.raises(ModelError, match="Filtered"):
                await model.complete(MESSAGES, [0], ASK)
            [completion] = await model.complete(MESSAGES, [1], ASK)
            return completion

        assert asyncio.run(draw()).label_logprobs is not None
    assert asked(server) == [(True, 20), (True, 5), (None, None), (True, 20)]
    assert not caplog.records


def test_the_wish_survives_the_switch_to_max_completion_tokens() -> None:
    def newer(body: dict[str, Any], count: int) -> Answer | Fault:
        if "max_tokens" in body:
            return Fault(400, "'max_tokens' is not supported, use 'max_completion_tokens' instead.")
        return Fault(400, "top_logprobs must be at most 5") if body.get("top_logprobs", 0) > 5 else GOOD

    server, completions = ask(newer, draws=2)
    assert all(one.label_logprobs for one in completions)
    assert asked(server) == [(True, 20), (True, 20), (True, 5), (True, 5)]


def test_completions_with_log_probabilities_can_be_told_apart_and_hashed() -> None:
    plain, told = Completion("4", "", "stop", 1, 1), Completion("4", "", "stop", 1, 1, {"4": -0.1})
    assert plain != told
    assert len({plain, told}) == 2
