"""Asking a writer: what is paid for is kept, what cannot be used is asked for again, three times and no more."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raters.models.openai import OpenAIModel
from raters.prompts import Prompt, load_prompt, prompt_from_text
from raters.records import ConfigError, DataError, ModelAccessError
from raters.trials import Spending, WorkEnds
from raters.writers import gathered
from raters.writing import MOST_ATTEMPTS, Scribe, UnusableAnswerError, lines_of, prompt_for, tagged
from tests.scripted_server import Answer, Fault
from tests.scripted_writer import BAD, GOOD, Say, ScriptedWriter, filled
from tests.small_corpora import ScriptedModel

VALUES: dict[str, dict[str, Any]] = {
    "instructions": {"dimension": "quality", "labels": "1, 2", "guideline": "Rate it.", "traces": [("1", "Dull.")]},
    "critiques": {"dimension": "quality", "labels": "1, 2", "label": "1", "trace": "It is dull."},
    "criteria": {"dimension": "quality", "labels": "1, 2", "guideline": "Rate it.", "critiques": [("1", "Dull.")]},
    "edit": {"dimension": "quality", "labels": "1, 2", "guideline": "[1] Rate it.", "cases": [], "tried": []},
}  # fmt: skip


def read_lines(purpose: str) -> Callable[[str], list[str]]:
    return lambda answer: lines_of(tagged(answer, purpose), 20)


@contextmanager
def scribing(
    folder: Path, says: dict[str, Say] | None = None, spending: Spending | None = None, **options: Any
) -> Iterator[tuple[ScriptedWriter, Scribe, list[str]]]:
    """Yield a server, a scribe that asks it, and what the scribe logs."""
    log: list[str] = []
    with ScriptedWriter(says) as server:
        model = OpenAIModel("scripted", base_url=server.base_url, max_retries=0)
        scribe = Scribe(model, folder / "writer.jsonl", spending or Spending(), log=log.append, **options)
        scribe.recover()
        try:
            yield server, scribe, log
        finally:
            scribe.close()


def write(scribe: Scribe, *purposes: str, **more: Any) -> list[Any]:
    """Ask for some purposes at once."""

    async def work() -> list[Any]:
        try:
            asked = [scribe.write(one, read_lines(one), **{**VALUES[one], **more}) for one in purposes]
            return await gathered(asked)
        finally:
            await scribe.model.close()

    return asyncio.run(work())


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "writer.jsonl").read_text(encoding="utf-8").splitlines()]


# --- reading an answer ------------------------------------------------------------------------------------


def test_what_stands_between_the_tags() -> None:
    assert tagged("Well.\n<edit>\n a\n\nb\n</edit>\nSo be it.", "edit") == " a\n\nb"
    assert tagged("<EDIT>a</Edit>", "edit") == "a"
    assert tagged("<edit></edit>", "edit") == ""
    assert tagged("<critiques>a < b and </criteria></critiques>", "critiques") == "a < b and </criteria>"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no <edit>"),
        ("<edit>a", "no <edit>...</edit>"),
        ("a</edit>", "no <edit>...</edit>"),
        ("<edits>a</edits>", "no <edit>"),
        ("<criteria>\n- a\n</criteria>", "it has <criteria> instead"),
        ("<edit>a</edit><edit>b</edit>", "2 times"),
        ("<edit>a</edit> <EDIT>b", "2 times"),
        ("<edit><edit>a</edit></edit>", "2 times"),
        ("<edit>a<edit>b</edit>", "2 times"),
    ],
)
def test_what_is_no_pair_of_tags(answer: str, reason: str) -> None:
    with pytest.raises(UnusableAnswerError, match=re.escape(reason)):
        tagged(answer, "edit")


def test_tags_in_an_endless_answer_take_no_time() -> None:
    with pytest.raises(UnusableAnswerError):
        tagged("<edit>" * 50_000 + "</edit " * 50_000, "edit")


def test_lines() -> None:
    assert lines_of("\n 1. a \n\n\t2. b\n", 2) == ["1. a", "2. b"]
    with pytest.raises(UnusableAnswerError, match="3 lines stand between the tags; at most 2"):
        lines_of("a\nb\nc", 2)
    with pytest.raises(UnusableAnswerError, match="nothing stands between"):
        lines_of(" \n", 2)


# --- the prompts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", VALUES)
def test_prompts_have_the_slots_that_are_filled(purpose: str) -> None:
    assert prompt_for(purpose).slots == VALUES[purpose].keys()
    assert prompt_for(purpose).fill(**VALUES[purpose])


def test_a_prompt_with_other_slots_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Prompt:
        return prompt_from_text(name, load_prompt("writer/edit").text.replace("tried", "attempts"))

    monkeypatch.setattr("raters.writing.load_prompt", load)
    with pytest.raises(ConfigError, match=r"prompt writer/edit: has slots attempts, cases.*; filled are cases"):
        prompt_for("edit")


# --- asking -----------------------------------------------------------------------------------------------


def test_an_answer_and_its_record(tmp_path: Path) -> None:
    says: dict[str, Say] = {
        "instructions": Answer(GOOD["instructions"], reasoning="Hm.", prompt_tokens=90, completion_tokens=30)
    }
    with scribing(tmp_path, says) as (server, scribe, log):
        (found,) = write(scribe, "instructions")
        assert found == ["1. Read it.", "2. Weigh the reasons.", "3. Choose a label."]
        assert log == []
        (request,) = server.requests
        assert request["messages"] == [
            {"role": "user", "content": prompt_for("instructions").fill(**VALUES["instructions"])}
        ]
        assert (request["temperature"], request["max_tokens"]) == (1.0, 4096)
        (record,) = journal(tmp_path)
        assert record.pop("key")
        assert record == {
            "purpose": "instructions", "attempt": 0, "model": "openai/scripted", "seed": request["seed"],
            "answer": GOOD["instructions"], "reasoning": "Hm.", "finish_reason": "stop", "prompt_tokens": 90,
            "completion_tokens": 30,
        }  # fmt: skip
        spent = scribe.spending
        assert (spent.requests, spent.prompt_tokens, spent.completion_tokens) == (1, 90, 30)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("purpose", ["instructions"])
def test_what_cannot_be_used_is_asked_for_three_times_and_skipped(tmp_path: Path, name: str, purpose: str) -> None:
    with scribing(tmp_path, {purpose: BAD[name](purpose)}) as (server, scribe, log):
        assert write(scribe, purpose) == [None]
        assert server.counts == {purpose: MOST_ATTEMPTS} == {purpose: 3}
        first, *again = server.prompts[purpose]
        assert first == prompt_for(purpose).fill(**VALUES[purpose])
        for prompt in again:
            assert prompt.startswith(first)
            assert "Your answer could not be used: " in prompt[len(first) :]
        assert [line.partition(" cannot be used: ")[0] for line in log] == [
            f"writer: {purpose}: attempt {number} of 3" for number in (1, 2, 3)
        ]
        assert len({record["key"] for record in journal(tmp_path)}) == 3
        assert len({request["seed"] for request in server.requests}) == 3
        assert scribe.spending.requests == 3
        # The same question again is answered, as it was, by the journal.
        assert write(scribe, purpose) == [None]
        assert len(server.requests) == 3


REASONS = {
    "no tags": "it has no <edit>...</edit>", "two blocks": "it has <edit> 2 times",
    "another part": "it has no <edit>...</edit>; it has <criteria> instead",
    "a whole guideline": "it has no <edit>...</edit>; it has <guideline> instead",
    "empty answer": "it is empty", "endless": "it was cut off for its length", "cut off": "it was cut off",
    "content filter": "a content filter cut it off", "content filter half way": "a content filter cut it off",
    "HTTP 400": "the model refused it (openai/scripted: ",
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_the_writer_is_told_what_was_wrong(tmp_path: Path, name: str) -> None:
    with scribing(tmp_path, {"edit": [BAD[name]("edit"), filled("edit")]}) as (server, scribe, log):
        assert write(scribe, "edit") != [None]
        assert server.counts == {"edit": 2}
        assert f"Your answer could not be used: {REASONS[name]}" in server.prompts["edit"][1]
        assert len(log) == 1
        assert REASONS[name] in log[0]


def test_the_third_answer_still_counts(tmp_path: Path) -> None:
    with scribing(tmp_path, {"criteria": ["", "no", GOOD["criteria"]]}) as (server, scribe, log):
        assert write(scribe, "criteria") == [["- LOW: no reason is given.", "- HIGH: every claim has a reason."]]
        assert server.counts == {"criteria": 3}
        assert len(log) == 2


def test_only_the_last_reason_is_told(tmp_path: Path) -> None:
    with scribing(tmp_path, {"edit": ["", BAD["two blocks"]("edit"), filled("edit")]}) as (server, scribe, _):
        write(scribe, "edit")
        assert "it has <edit> 2 times" in server.prompts["edit"][2]
        assert "it is empty" not in server.prompts["edit"][2]


def test_a_reason_holds_nothing_that_moves_a_cursor(tmp_path: Path) -> None:
    def read(answer: str) -> None:
        raise ValueError(answer)

    with scribing(tmp_path, {"edit": "a\x1b[2J\nb\u202e"}) as (server, scribe, log):
        asyncio.run(scribe.write("edit", read, **VALUES["edit"]))
        assert "could not be used: a [2J b. Answer again" in server.prompts["edit"][1]
        assert all(line.isprintable() for line in log)


# --- nothing is paid for twice ----------------------------------------------------------------------------


def test_a_later_session_asks_for_nothing_again(tmp_path: Path) -> None:
    with scribing(tmp_path, {"criteria": ["no", GOOD["criteria"]]}) as (_, scribe, _log):
        first = write(scribe, "instructions", "criteria")
    before = (tmp_path / "writer.jsonl").read_bytes()
    with scribing(tmp_path, {"criteria": "no"}) as (server, scribe, log):
        assert scribe.spending.requests == 3
        assert write(scribe, "instructions", "criteria") == first
        assert server.requests == []
        assert log == ["writer: criteria: attempt 1 of 3 cannot be used: it has no <criteria>...</criteria>"]
        assert scribe.spending.requests == 3
        write(scribe, "criteria", guideline="Another one.")
        assert server.counts == {"criteria": 3}
    assert (tmp_path / "writer.jsonl").read_bytes().startswith(before)


def test_another_seed_or_model_is_another_question(tmp_path: Path) -> None:
    for options in ({}, {"seed": 1}, {"temperature": 0.5}):
        with scribing(tmp_path, **options) as (server, scribe, _):
            write(scribe, "instructions")
            assert len(server.requests) == 1
    assert len({record["key"] for record in journal(tmp_path)}) == 3


def test_a_torn_line_is_asked_for_again(tmp_path: Path) -> None:
    with scribing(tmp_path) as (_, scribe, _log):
        first = write(scribe, "instructions")
    path = tmp_path / "writer.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with scribing(tmp_path) as (server, scribe, _):
        assert write(scribe, "instructions") == first
        assert len(server.requests) == 1
    assert len(journal(tmp_path)) == 1


def test_the_same_question_at_the_same_time_is_asked_once(tmp_path: Path) -> None:
    """Traces may be alike, word for word."""
    with scribing(tmp_path, {"critiques": Answer(GOOD["critiques"], delay_seconds=0.05)}) as (server, scribe, _):
        found = write(scribe, *["critiques"] * 5)
        assert found == [["- It gives reasons.", "- It is hard to follow."]] * 5
        assert len(server.requests) == 1
        assert scribe.spending.requests == 1


@pytest.mark.parametrize(
    "line", ['{"key": "k"}', '{"key": 1, "answer": "a"}', '{"key": "k", "answer": null}', '["key"]', "no json"]
)
def test_a_journal_that_is_none(tmp_path: Path, line: str) -> None:
    (tmp_path / "writer.jsonl").write_text(line + "\n")
    scribe = Scribe(ScriptedModel(lambda prompt, seed: ""), tmp_path / "writer.jsonl", Spending())
    with pytest.raises(DataError, match=r"writer\.jsonl line 1"):
        scribe.recover()


# --- budget, stopping, failure ----------------------------------------------------------------------------


def many(scribe: Scribe, count: int) -> list[Any]:
    """Ask for the critiques of so many traces at once; failures are returned."""

    async def work() -> list[Any]:
        asked = (
            scribe.write("critiques", read_lines("critiques"), **{**VALUES["critiques"], "trace": f"Trace {number}."})
            for number in range(count)
        )
        try:
            return list(await asyncio.gather(*asked, return_exceptions=True))
        finally:
            await scribe.model.close()

    return asyncio.run(work())


def test_a_budget_of_requests_is_exact_however_many_run_at_once(tmp_path: Path) -> None:
    with scribing(tmp_path, spending=Spending(most_requests=7)) as (server, scribe, _):
        found = many(scribe, 20)
        assert len(server.requests) == len(journal(tmp_path)) == 7
        assert sum(isinstance(one, WorkEnds) for one in found) == 13
        assert sum(isinstance(one, list) for one in found) == 7


def test_concurrency_is_a_bound(tmp_path: Path) -> None:
    says: dict[str, Say] = {"critiques": Answer(GOOD["critiques"], delay_seconds=0.01)}
    with scribing(tmp_path, says, concurrency=3) as (server, scribe, _):
        many(scribe, 12)
        assert server.most_at_once == 3


def test_a_failure_waits_for_what_is_in_flight_and_begins_nothing_more(tmp_path: Path) -> None:
    def say(prompt: str, number: int) -> Answer | Fault:
        if number == 2:
            return Fault(401, "Your key has expired.", "invalid_request_error", "invalid_api_key")
        return Answer(GOOD["critiques"], delay_seconds=0.1)

    with scribing(tmp_path, {"critiques": say}, concurrency=4) as (server, scribe, _):
        found = many(scribe, 20)
        assert len(server.requests) <= 5
        assert len(journal(tmp_path)) == len(server.requests) - 1
        assert sum(isinstance(one, ModelAccessError) for one in found) == 20 - len(journal(tmp_path))


def test_gathered_raises_after_all_have_ended() -> None:
    ended = []

    async def one(number: int) -> int:
        if number == 1:
            raise WorkEnds("enough")
        await asyncio.sleep(0.02)
        ended.append(number)
        return number

    with pytest.raises(WorkEnds):
        asyncio.run(gathered([one(number) for number in range(3)]))
    assert ended == [0, 2]
    assert asyncio.run(gathered([one(0), one(2)])) == [0, 2]


def test_stopping_keeps_what_is_in_flight(tmp_path: Path) -> None:
    spending = Spending()

    def say(prompt: str, number: int) -> Answer:
        spending.stopping = spending.stopping or number == 1
        return Answer(GOOD["critiques"], delay_seconds=0.05)

    with scribing(tmp_path, {"critiques": say}, spending, concurrency=2) as (server, scribe, _):
        found = many(scribe, 6)
        assert len(server.requests) == len(journal(tmp_path)) == 2
        assert [str(one) for one in found if isinstance(one, WorkEnds)] == ["stopped"] * 4


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    model = OpenAIModel("scripted", base_url="http://127.0.0.1:9/v1", max_retries=0)
    scribe = Scribe(model, tmp_path / "writer.jsonl", Spending())
    scribe.recover()
    with pytest.raises(ModelAccessError, match="no server answers"):
        write(scribe, "edit")
    assert not (tmp_path / "writer.jsonl").exists()
