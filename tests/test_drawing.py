"""Several samples of one request: asked for together where a server has that, found out once, never paid for twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raters.drawing import REFUSED, Asked, DrawPool, Source, draw_seed
from raters.models.openai import OpenAIModel
from raters.models.protocol import Completion, Message, SamplingSettings, with_siblings
from raters.prompts import load_prompt
from raters.questions import Question
from raters.sampling import SamplingOptions
from raters.utilisation import summarise
from tests.scripted_server import Answer, Fault, ScriptedServer
from tests.small_corpora import (
    ORDINAL_5,
    PAIRWISE,
    Run,
    ScriptedModel,
    dimension_of,
    rating,
    shown_fields,
    small_corpus,
    start_run,
)

MESSAGES: list[Message] = [{"role": "user", "content": "Rate it."}]
Script = Callable[[dict[str, Any], int], Answer | Fault]


def samples(body: dict[str, Any], count: int) -> Answer:
    """Answer as a server that has `n`: sample i of a seed is what it is, whatever else is asked for."""
    first, *others = [
        Answer(f"sample {place} of {body['seed']}", prompt_tokens=100, completion_tokens=60)
        for place in range(body.get("n", 1))
    ]
    return Answer(first.content, prompt_tokens=100, completion_tokens=60, siblings=others)


def one(body: dict[str, Any], count: int) -> Answer:
    """Answer as a server that passes `n` over."""
    return Answer(f"sample 0 of {body['seed']}")


def refuses_n(body: dict[str, Any], count: int) -> Answer | Fault:
    return Fault(400, "n must be 1", "invalid_request_error") if body.get("n", 1) > 1 else one(body, count)


def ask(
    script: Script, *groups: list[int], wanted: list[int] | None = None
) -> tuple[list[dict[int, Asked]], list[Any]]:
    """Return what a pool gets for groups of seeds, all asked at once, and the (seed, n) of the requests."""

    async def work(model: OpenAIModel) -> list[dict[int, Asked]]:
        pool = DrawPool(SamplingSettings(max_tokens=9), 8, set())
        source = Source(model, Question(dimension_of(ORDINAL_5), load_prompt("rate"), None, "rate"))
        try:
            return await asyncio.gather(
                *(pool.ask_together(source, MESSAGES, seeds, wanted or list(range(len(seeds)))) for seeds in groups)
            )
        finally:
            await model.close()

    with ScriptedServer(script) as server:
        answers = asyncio.run(work(OpenAIModel("scripted", base_url=server.base_url)))
        return answers, [(body["seed"], body.get("n", 1)) for body in server.requests]


def texts(answers: dict[int, Asked]) -> dict[int, str]:
    return {place: asked.completion.text for place, asked in answers.items()}


def test_a_server_that_has_it_is_asked_once_for_all() -> None:
    (answers,), requests = ask(samples, [5, 6, 7])
    assert requests == [(5, 3)]
    assert texts(answers) == {place: f"sample {place} of 5" for place in range(3)}
    assert {asked.seed for asked in answers.values()} == {5}


def test_what_is_missing_of_a_request_is_what_it_was() -> None:
    """As after a kill between two lines of the journal."""
    (answers,), requests = ask(samples, [5, 6, 7], wanted=[2])
    assert requests == [(5, 3)]
    assert texts(answers) == {2: "sample 2 of 5"}


@pytest.mark.parametrize(("script", "probes"), [(one, 0), (refuses_n, 1)])
def test_a_server_that_has_it_not_is_found_out_once(script: Script, probes: int) -> None:
    answers, requests = ask(script, [5, 6, 7], [8, 9, 10], [11, 12, 13])
    for first, group in zip((5, 8, 11), answers, strict=True):
        assert texts(group) == {place: f"sample 0 of {first + place}" for place in range(3)}
        assert [group[place].seed for place in range(3)] == [first, first + 1, first + 2]
    # One that passes it over has made the first draw by that.
    assert len(requests) == 9 + probes
    assert [n for _, n in requests].count(3) == 1


def test_a_request_refused_for_its_prompt_says_nothing_of_the_number() -> None:
    def script(body: dict[str, Any], count: int) -> Answer | Fault:
        return Fault(400, "too long", "invalid_request_error") if body["seed"] < 10 else samples(body, count)

    (refused, answered), requests = ask(script, [5, 6], [18, 19])
    assert {asked.completion.finish_reason for asked in refused.values()} == {REFUSED}
    assert texts(answered) == {0: "sample 0 of 18", 1: "sample 1 of 18"}
    assert (18, 2) in requests
    assert (18, 1) not in requests


def test_fewer_samples_than_asked_for_are_made_up_for() -> None:
    def script(body: dict[str, Any], count: int) -> Answer:
        return samples({**body, "n": min(body.get("n", 1), 2)}, count)

    (answers,), requests = ask(script, [5, 6, 7, 8])
    assert requests == [(5, 4), (7, 1), (8, 1)]
    assert texts(answers) == {0: "sample 0 of 5", 1: "sample 1 of 5", 2: "sample 0 of 7", 3: "sample 0 of 8"}


def test_a_sample_that_cannot_be_read_ends_what_is_taken() -> None:
    def script(body: dict[str, Any], count: int) -> Answer | Fault:
        if body.get("n", 1) == 1:
            return one(body, count)
        whole = b'{"choices": [{"index": 1, "message": null}, {"index": 0, "message": {"content": "zero"}}]}'
        return Fault(200, body=whole)

    (answers,), requests = ask(script, [5, 6])
    assert texts(answers) == {0: "zero", 1: "sample 0 of 6"}
    assert requests == [(5, 2), (6, 1)]


def test_tokens_of_a_request_are_shared_out_to_its_samples() -> None:
    whole = [Completion("x" * length, "", "stop", 100, 60) for length in (9, 19, 29)]
    first = with_siblings(whole)
    made = [first, *first.siblings]
    assert [sample.prompt_tokens for sample in made] == [100, 0, 0]
    assert [sample.completion_tokens for sample in made] == [10, 20, 30]  # one more than each is long
    untold = with_siblings([Completion("a", "", "stop", None, None)] * 2)
    assert [(sample.prompt_tokens, sample.completion_tokens) for sample in (untold, *untold.siblings)] == [
        (None,) * 2
    ] * 2


# In a run


def run_over(tmp_path: Path, name: str, script: Script, together: int) -> tuple[Run, list[dict[str, Any]]]:
    labels = {f"i{number}": {"a": 1 + number % 5} for number in range(12)}
    corpus = small_corpus(tmp_path / "corpus", labels)
    with ScriptedServer(script) as server:
        model = OpenAIModel("scripted", base_url=server.base_url)
        options = SamplingOptions(together=together, concurrency=3, null_rows=2)
        run = start_run(corpus, tmp_path / name, model, k=6, options=options)
        run.draw()
        asyncio.run(model.close())
        return run, server.requests


def verdict_of(seed: int, place: int) -> str:
    return rating(1 + (seed + place) % 5)


def with_n(body: dict[str, Any], count: int) -> Answer:
    first, *others = [Answer(verdict_of(body["seed"], place)) for place in range(body.get("n", 1))]
    return Answer(first.content, siblings=others)


def without_n(body: dict[str, Any], count: int) -> Answer:
    return Answer(verdict_of(body["seed"], 0))


def test_a_run_asks_for_draws_together_and_records_each(tmp_path: Path) -> None:
    run, requests = run_over(tmp_path, "together.jsonl", with_n, 4)
    # 6 draws are requests of 4 and 2.
    assert {body.get("n") for body in requests} == {4, 2}
    assert len(run.records()) == sum(body["n"] for body in requests)
    for record in run.records():
        start = record["draw"] // 4 * 4
        assert record["seed"] == draw_seed(0, record["item_id"], "quality", start)
        assert rating(record["verdict"]) == verdict_of(record["seed"], record["draw"] - start)
    assert run.ledger.totals.prompt_tokens == 11 * len(requests)
    assert run.ledger.totals.completion_tokens == 7 * len(requests)


def test_a_server_without_n_makes_the_draws_that_it_makes_one_by_one(tmp_path: Path) -> None:
    together, requests = run_over(tmp_path, "together.jsonl", without_n, 4)
    alone, _ = run_over(tmp_path, "alone.jsonl", without_n, 1)
    assert together.kept() == alone.kept()
    assert len(requests) == len(together.records())


def test_pairs_are_shown_in_both_orders_by_turns_of_requests(tmp_path: Path) -> None:
    inputs = {f"p{number}": {"left": "One text.", "right": f"Another {number}."} for number in range(6)}
    corpus = small_corpus(tmp_path / "corpus", {item_id: {"a": "tie"} for item_id in inputs}, PAIRWISE, inputs=inputs)
    model = ScriptedModel(lambda prompt, seed: rating("A"))
    run = start_run(corpus, tmp_path / "c.jsonl", model, k=8, options=SamplingOptions(strategy="fixed", together=2))
    run.draw()
    for item_id in inputs:
        swapped = [r["swapped"] for r in sorted(run.records(), key=lambda r: r["draw"]) if r["item_id"] == item_id]
        assert swapped in ([False, False, True, True] * 2, [True, True, False, False] * 2)
    assert {next(iter(shown_fields(prompt))) for prompt in model.prompts} == {"left"}
    position = summarise(run.ledger, run.options)["position"]
    assert position is not None
    assert position["chose_first_shown"] == 1.0
