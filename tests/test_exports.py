"""An exported rater asks, reads and joins as ours does, from one file that needs nothing but Python."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raters.corpora import load_corpus
from raters.corpus_files import Dimension
from raters.exports.folders import Export
from raters.exports.judge import Judge, JudgeError, completion_from, completion_of
from raters.exports.one_file import one_file
from raters.exports.portable import Naming, as_name, naming_of, portable_record
from raters.exports.rule_reader import ObservedJudge
from raters.exports.targets import export_files
from raters.models.protocol import Completion, SamplingSettings
from raters.observations import fit_observations
from raters.prompts import load_prompt, prompt_from_text
from raters.questions import Question
from raters.rater_files import RaterSpec, read_rater
from raters.rating import Rater
from raters.records import ConfigError, DataError
from tests.harness_items import GUIDELINE, INPUTS, answers, expected, rater_of, write_items, write_rater
from tests.scripted_server import Answer, Fault, Script, ScriptedServer
from tests.small_corpora import INTERVAL, NOMINAL, ORDINAL_3, ORDINAL_5, PAIRWISE, dimension_of

TEXTUAL = {"type": "ordinal", "labels": ["poor", "fair", "good"]}
UNTIED = {"type": "pairwise", "labels": ["A", "B"], "fields": ["left", "right"]}
SCALES = {
    "ordinal": ORDINAL_5,
    "textual": TEXTUAL,
    "nominal": NOMINAL,
    "interval": INTERVAL,
    "pairwise": PAIRWISE,
    "untied": UNTIED,
}
ITEMS = [
    {"left": question, "right": reply, "topic": f"{number} {reply[::-1]}"}
    for number, (question, reply) in enumerate(INPUTS.values())
]
SAID = (
    "<rating>3</rating>",
    "<rating> **4** </rating>",
    "<rating>2.0</rating>",
    "<rating>A</rating> or <rating>B</rating>",
    "<RATING>b.</RATING>",
    "<rating>tie</rating>",
    "<rating>Fair</rating>",
    "<rating>not_present</rating> ok",
    "<rating>99.5</rating>",
    "<rating>1e2</rating>",
    "<rating>5</rating",
    "<rating>3 of 5</rating>",
    "<think>so <rating>1</rating></think> <rating>5</rating>",
    "<think>never closed <rating>5</rating>",
    "rating: 5",
    "",
)
NAMING = Naming("quality", ("left", "right", "topic"), "right")


def spec_on(scale: Mapping[str, Any], prompt: str = "rate", *, draws: int = 1, aggregate: Any = None) -> RaterSpec:
    dimension = dimension_of(scale, GUIDELINE)
    pair = ("left", "right") if scale["type"] == "pairwise" else None
    observations = fit_observations(ITEMS, pair) if prompt.startswith("embedded") else None
    question = Question(dimension, load_prompt(prompt), observations)
    joined = aggregate or ("majority" if scale["type"] in ("nominal", "pairwise") else "mean")
    model = "embedded" if observations else "openai/some"
    return RaterSpec(model, question, draws=draws, aggregate=joined, seed=11)


def judge_of(spec: RaterSpec, naming: Naming = NAMING) -> Judge:
    record = json.loads(json.dumps(portable_record(spec, naming)))
    return (Judge if record["observations"] is None else ObservedJudge)(record, Path())


class Parrot:
    """A model that says what it is told to, in turn, and remembers what it was asked."""

    spec = "openai/some"

    def __init__(self, said: Sequence[str]) -> None:
        self.said, self.asked = list(said), list[tuple[str, int]]()

    async def complete(self, messages: Any, seeds: Sequence[int], settings: SamplingSettings) -> list[Completion]:
        self.asked.append((messages[-1]["content"], seeds[0]))
        await asyncio.sleep(0)
        return [completion_from(self.said[(len(self.asked) - 1) % len(self.said)])]

    async def close(self) -> None:
        """Nothing is held."""


# --- the same as ours -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["rate", "rate_first", "rate_at_once", "embedded/rate", "embedded/rate_first"])
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_messages_and_seeds_are_ours(scale: Mapping[str, Any], prompt: str) -> None:
    spec = spec_on(scale, prompt, draws=4)
    judge, parrot = judge_of(spec), Parrot(["<rating>1</rating>"])
    with Rater(spec, parrot, concurrency=1) as rater:
        rater.rate_many(ITEMS)
    asked = [
        (judge.messages(inputs, draw)[0]["content"], judge.seed(inputs, draw))
        for inputs, draw in itertools.product(map(judge.item, ITEMS), range(4))
    ]
    assert asked == parrot.asked


ORDERED = [(name, how) for name in ("ordinal", "textual", "interval") for how in ("mean", "median", "majority")]


@pytest.mark.parametrize(
    ("name", "aggregate"), [*ORDERED, *((name, "majority") for name in ("nominal", "pairwise", "untied"))]
)
def test_verdicts_and_what_draws_say_together_are_ours(name: str, aggregate: str) -> None:
    scale = SCALES[name]
    spec = spec_on(scale, draws=3, aggregate=aggregate)
    judge, chance = judge_of(spec), np.random.default_rng(5)
    for inputs in ITEMS:
        for _ in range(40):
            said = [SAID[place] for place in chance.integers(len(SAID), size=3)]
            with Rater(spec, Parrot(said), concurrency=1) as rater:
                ours = rater.rate(inputs)
            theirs = judge.joined(judge.item(inputs), [completion_from(text) for text in said])
            assert (theirs.verdict, theirs.verdicts, theirs.reasoning) == (ours.verdict, ours.verdicts, ours.reasoning)
            assert theirs.value == (None if ours.value is None else pytest.approx(ours.value, abs=1e-12))


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_the_rule_reader_rates_as_ours(scale: Mapping[str, Any]) -> None:
    from raters.models.embedded import EmbeddedModel

    spec = spec_on(scale, "embedded/rate", draws=5)
    with Rater(spec, EmbeddedModel()) as rater:
        ours = rater.rate_many(ITEMS)
    judge = judge_of(spec)
    assert judge.rates_here
    assert [one.verdicts for one in judge.rate_many(ITEMS)] == [one.verdicts for one in ours]
    assert [one.value for one in judge.rate_many(ITEMS)] == [one.value for one in ours]


def test_places_on_the_scale_by_hand() -> None:
    def place(scale: Mapping[str, Any], said: str, output: str = "right") -> tuple[Any, Any, Any]:
        judge = judge_of(spec_on(scale), replace(NAMING, output=output))
        # Of a pair the texts of draw 0 may be exchanged; an item of which they are not is looked for.
        inputs = next(one for one in map(judge.item, ITEMS) if not judge._swapped(one, 0))
        rating = judge.joined(inputs, [completion_from(f"<rating>{said}</rating>")])
        return judge.native(rating), judge.number(rating), judge.share(rating)

    assert place(ORDINAL_5, "1") == (1.0, 1.0, 0.0)
    assert place(ORDINAL_5, "4") == (4.0, 4.0, 0.75)
    assert place(TEXTUAL, "fair") == ("fair", 1.0, 0.5)
    assert place(INTERVAL, "25") == (25.0, 25.0, 0.25)
    assert place(NOMINAL, "present") == ("present", 1.0, 1.0)
    assert place(NOMINAL, "not_present") == ("not_present", 0.0, 0.0)
    assert place(PAIRWISE, "B") == ("B", 1.0, 1.0)
    assert place(PAIRWISE, "A") == ("A", 0.0, 0.0)
    assert place(PAIRWISE, "A", output="left") == ("A", 1.0, 1.0)
    assert place(PAIRWISE, "tie") == ("tie", 0.5, 0.5)
    assert place(ORDINAL_5, "6") == (None, None, None)


# --- one file ---------------------------------------------------------------------------------------------


@pytest.fixture
def observed_export(tmp_path: Path) -> Path:
    return written(export_files("python", Export(spec_on(ORDINAL_5, "embedded/rate"), NAMING, [], Path("a"))), tmp_path)


def written(files: Mapping[str, Any], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = content.read_bytes() if isinstance(content, Path) else content
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def test_the_file_needs_nothing_but_python(observed_export: Path) -> None:
    """In an interpreter without site-packages, from another folder: it rates, and loads no module of ours."""
    script = f"""
import json, sys
sys.path.insert(0, {str(observed_export)!r})
import judge_quality as file
judge = file.load({str(observed_export)!r})
print(json.dumps([judge.rate(item).verdicts for item in json.loads(sys.argv[1])]))
print(sorted(set(name.partition(".")[0] for name in sys.modules) - sys.stdlib_module_names - {{"judge_quality"}}))
"""
    command = [sys.executable, "-I", "-S", "-c", script, json.dumps(ITEMS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    verdicts, modules = done.stdout.splitlines()
    ours = judge_of(spec_on(ORDINAL_5, "embedded/rate")).rate_many(ITEMS)
    assert json.loads(verdicts) == [list(one.verdicts) for one in ours]
    assert modules == "['__main__']"


def test_a_file_is_whole_and_only_what_is_needed() -> None:
    text = one_file("raters.exports.judge", ["load"], "Head.")
    compile(text, "judge.py", "exec")
    assert text.startswith('"""Head."""\n\nfrom __future__ import annotations\n')
    assert "raters" not in text.split('"""', 2)[2]
    assert text.count("\ndef split_reasoning(") == 1
    assert "class ObservedJudge" not in text
    assert "EmbeddedModel" not in one_file("raters.exports.rule_reader", ["load"], "")


def test_what_rests_on_a_library_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match=r"is of (pydantic|numpy)"):
        one_file("raters.gold", ["nearest_label"], "")


# --- prompts in pieces ------------------------------------------------------------------------------------


def judge_by(text: str, guideline: str = GUIDELINE) -> Judge:
    question = Question(dimension_of(ORDINAL_3, guideline), prompt_from_text("own", text))
    return judge_of(RaterSpec("openai/some", question))


LISTED = "{% for name, text in fields %}[{{ name }}|{{ text }}]{% endfor %}"


def test_text_is_shown_as_it_is() -> None:
    judge = judge_by(
        "{{ guideline }} {{ labels }}\n{% for a, b in fields %}\n<{{ b }}> {{ a }}{% endfor %}!", "{{ x }}"
    )
    inputs = {"left": "{{ 7*7 }}", "right": "{% raw %}", "topic": "\ue000name\ue001"}
    shown = "<{{ 7*7 }}> left<{% raw %}> right<\ue000name\ue001> topic!"
    assert judge.messages(inputs)[0]["content"] == f"{{{{ x }}}} 1, 2, 3 (from lowest to highest)\n{shown}"


def test_a_guideline_may_hold_what_marks_the_places() -> None:
    for mark in ("\ue000", "\ue000" * 3 + "around", "\ue000name\ue000"):
        judge = judge_by("{{ guideline }}{{ labels }}" + LISTED, f"a{mark}b")
        content = judge.messages({"left": "x", "right": "y", "topic": "z"})[0]["content"]
        assert content == f"a{mark}b1, 2, 3 (from lowest to highest)[left|x][right|y][topic|z]"


@pytest.mark.parametrize(
    "text",
    [
        "{% for name, text in fields %}{{ loop.index }}{{ name }}{{ text }}{% endfor %}",
        "{% for name, text in fields if name %}{{ name }}{{ text }}{% endfor %}",
        "{% for name, text in fields %}{{ name | upper }}{{ text }}{% endfor %}",
        "{% for name, text in fields %}{% if text %}{{ name }}{% endif %}{% endfor %}",
        "{% for name, text in fields %}{{ name }}{% else %}none{% endfor %}",
        "{% for pair in fields %}{{ pair }}{% endfor %}",
        "{% if labels %}{% for name, text in fields %}{{ name }}{% endfor %}{% endif %}",
        "{{ fields }}",
        "{{ fields | length }}" + LISTED,
        LISTED + LISTED,
        "{% for name, text in fields %}{{ name }}{{ guideline }}{% endfor %}",
    ],
)
def test_prompts_that_do_more_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="prompt own: does more with fields"):
        judge_by("{{ guideline }}{{ labels }}" + text)


# --- names ------------------------------------------------------------------------------------------------


def test_fields_and_output_are_told_or_found() -> None:
    text, observed, pair = spec_on(ORDINAL_5), spec_on(ORDINAL_5, "embedded/rate"), spec_on(PAIRWISE)
    assert naming_of(text, ("question", "reply")) == Naming("quality", ("question", "reply"), "reply")
    assert naming_of(text, ("question", "reply"), output="question").output == "question"
    assert naming_of(text, ("a", "b"), fields=("b", "a"), name="n1") == Naming("n1", ("b", "a"), "a")
    fit = observed.question.observations
    assert fit is not None
    assert naming_of(observed, ()) == Naming("quality", (fit.fields[0], str(fit.second)), fit.fields[0])
    assert naming_of(pair, ("topic", "left", "right")).output == "right"
    assert [as_name(text) for text in ("Clarity & wit", "1st", "überzeugend", "日本")] == [
        "clarity_wit",
        "rater_1st",
        "berzeugend",
        "rater_",
    ]


@pytest.mark.parametrize(
    ("of_corpus", "options", "words"),
    [
        ((), {}, "--fields: missing"),
        (("a", "b"), {"output": "c"}, "--output-field 'c': is not one of the fields"),
        (("a",), {"fields": ("a", "a")}, "--fields 'a': stands twice"),
        (("a",), {"fields": ("a", " ")}, "--fields ' '"),
        (("a",), {"name": "no-name"}, "--name 'no-name': must be an identifier"),
        (("a",), {"name": "import"}, "--name 'import': must be an identifier"),
    ],
)
def test_bad_names_are_refused(of_corpus: Any, options: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        naming_of(spec_on(ORDINAL_5), of_corpus, **options)


def test_a_pair_needs_both_texts() -> None:
    with pytest.raises(ConfigError, match="the rater reads right as well"):
        naming_of(spec_on(PAIRWISE), (), fields=("left", "topic"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"model": "student"}, "--served-model"), ({"reasoning": False}, "probabilities of labels")],
)
def test_raters_that_no_server_has_are_refused(changes: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        portable_record(replace(spec_on(ORDINAL_5), **changes), NAMING)


def test_models_are_called_as_servers_call_them() -> None:
    def name(model: str, adapter: str | None = None) -> str:
        return str(portable_record(replace(spec_on(ORDINAL_5), model=model, adapter=adapter), NAMING)["model"])

    assert name("openai/gpt-5") == "gpt-5"
    assert name("hf/org/model") == "org/model"
    assert name("vllm/org/model", "somewhere") == "adapter"
    student = replace(spec_on(ORDINAL_5), model="student")
    assert portable_record(student, replace(NAMING, served_model="tiny"))["model"] == "tiny"


# --- asking a server --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr("raters.exports.asking.time.sleep", lambda seconds: waits.append(seconds) if seconds else None)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "JUDGE_BASE_URL", "JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return waits


def asked(script: Script, monkeypatch: pytest.MonkeyPatch, key: str | None = None) -> tuple[Any, ScriptedServer]:
    monkeypatch.setenv("JUDGE_API_KEY", "sk-secret")
    with ScriptedServer(script, key=key) as server:
        monkeypatch.setenv("JUDGE_BASE_URL", f"{server.base_url}/")
        try:
            return judge_of(spec_on(ORDINAL_5)).rate(ITEMS[0]), server
        except JudgeError as error:
            return str(error), server


def after(*faults: Fault) -> Script:
    return lambda body, count: faults[count] if count < len(faults) else Answer("<rating>4</rating>", reasoning="So.")


def test_what_passes_is_asked_again(monkeypatch: pytest.MonkeyPatch, no_waits: list[float]) -> None:
    limit = Fault(status=429, headers={"Retry-After": "7"})
    torn, odd = Fault(body=b"<html>", status=200), Fault(body=b'{"error": {"message": "busy"}}', status=200)
    rating, server = asked(after(limit, Fault(status=500), Fault(drop=True), torn, odd), monkeypatch)
    assert (rating.verdict, rating.reasoning) == (4, ("So.",))
    assert len(server.requests) == 6
    assert 7.0 <= no_waits[0] <= 7.7
    assert max(no_waits[1:]) <= 8.0
    assert {json.dumps(body) for body in server.requests} == {json.dumps(server.requests[0])}


def test_newer_models_are_asked_in_their_words(monkeypatch: pytest.MonkeyPatch, no_waits: list[float]) -> None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    rating, server = asked(after(Fault(status=400, message=words)), monkeypatch)
    assert rating.verdict == 4
    assert ("max_tokens" in server.requests[0], "max_completion_tokens" in server.requests[1]) == (True, True)
    assert "max_tokens" not in server.requests[1]
    assert not no_waits


def test_what_is_refused_ends_at_once_and_tells_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    message, server = asked(after(), monkeypatch, key="another")
    assert "401 Incorrect API key provided: [key]." in message
    assert "sk-secret" not in message
    assert server.base_url in message
    message, server = asked(after(*[Fault(status=400, message="too long\x1b[31m")] * 9), monkeypatch)
    assert "400 too long [31m" in message
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, no_waits: list[float]) -> None:
    monkeypatch.setenv("JUDGE_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(JudgeError, match=r"quality: some at http://127\.0\.0\.1:9/v1 gave no answer \(.*refused"):
        judge_of(spec_on(ORDINAL_5)).rate(ITEMS[0])
    assert len(no_waits) == 5
    monkeypatch.setenv("JUDGE_BASE_URL", "http://user:word@127.0.0.1:9/v1?key=x")
    with pytest.raises(JudgeError) as caught:
        judge_of(spec_on(ORDINAL_5)).rate(ITEMS[0])
    assert not [secret for secret in ("user", "word", "key") if secret in str(caught.value)]


def test_fields_that_are_missing_are_told() -> None:
    judge = judge_of(spec_on(ORDINAL_5))
    with pytest.raises(
        JudgeError, match="no text field 'topic', which the rater reads; the fields are: 'left', 'right'"
    ):
        judge.rate({"left": "a", "right": "b"})
    with pytest.raises(JudgeError, match="no text field 'right'"):
        judge.item({"left": "a", "right": 3, "topic": "c"})
    two = judge_of(spec_on(ORDINAL_5), Naming("quality", ("question", "reply"), "reply"))
    assert two.item({"x": 1}, "said", "asked") == {"question": "asked", "reply": "said"}
    assert two.item({"question": "known"}, "said", "asked") == {"question": "known", "reply": "said"}


@pytest.mark.parametrize("payload", [None, [], {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": 3}]}])
def test_answers_without_a_message_are_none(payload: Any) -> None:
    with pytest.raises(ValueError, match="an answer without choices"):
        completion_of(payload)


def test_ten_items_by_the_rule_of_their_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule is worked out in `expected`; ours and the exported rater come to the same."""
    from raters.rating import load_rater

    _, path = write_rater(tmp_path)
    record = portable_record(read_rater(path), Naming("quality", ("question", "reply"), "reply"))
    items = [{"question": question, "reply": reply} for question, reply in INPUTS.values()]
    with ScriptedServer(answers) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        with load_rater(path) as rater:
            ours = rater.rate_many(items)
        theirs = Judge(record, tmp_path).rate_many(items)
    assert [one.value for one in theirs] == [expected(item) for item in INPUTS.values()]
    assert [one.value for one in ours] == [one.value for one in theirs]
    half = len(server.requests) // 2
    bodies = [
        sorted(json.dumps(body, sort_keys=True) for body in part)
        for part in (server.requests[:half], server.requests[half:])
    ]
    assert bodies[0] == bodies[1]


# --- folders ----------------------------------------------------------------------------------------------


def test_an_adapter_goes_along(tmp_path: Path) -> None:
    adapter = tmp_path / "lora"
    with pytest.raises(DataError, match="no such folder, or an empty one"):
        export_files(
            "deepeval",
            Export(replace(spec_on(ORDINAL_5), model="hf/a/b", adapter=str(adapter)), NAMING, [], tmp_path / "out"),
        )
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    from raters.rater_files import adapter_sha256

    spec = replace(spec_on(ORDINAL_5), model="hf/a/b", adapter=str(adapter), adapter_sha256=adapter_sha256(adapter))
    folder = written(export_files("deepeval", Export(spec, NAMING, [], tmp_path / "out")), tmp_path / "out")
    again = read_rater(folder / "rater.yaml")
    assert again.adapter == str(folder / "adapter")
    assert again.sha256 == spec.sha256
    readme = (folder / "README.md").read_text()
    assert "`vllm serve a/b --enable-lora --lora-modules adapter=./adapter`" in readme


def test_files_of_requests_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raters.exports.folders import Rated

    monkeypatch.setattr("raters.exports.targets.MOST_REQUESTS", 7)
    spec = rater_of(load_corpus(write_items(tmp_path / "items")))
    items = [Rated(name, {"question": question, "reply": reply}, 1) for name, (question, reply) in INPUTS.items()]
    export = Export(spec, Naming("quality", ("question", "reply"), "reply"), items, tmp_path)
    files = export_files("openai-batch", export)
    parts = [files[f"requests-{number}.jsonl"] for number in (1, 2, 3)]
    lines = [json.loads(line) for part in parts if isinstance(part, bytes) for line in part.splitlines()]
    assert [part.count(b"\n") for part in parts if isinstance(part, bytes)] == [7, 7, 6]
    assert "Upload requests-1.jsonl to requests-3.jsonl, a batch each," in str(files["README.md"])
    assert "read_answers.py answers.jsonl …`" in str(files["README.md"])
    assert [line["custom_id"] for line in lines] == [f"{row}-{draw}" for row in range(10) for draw in range(2)]
    judge = Judge(export.record, tmp_path)
    assert [line["body"]["seed"] for line in lines] == [
        judge.seed(one.inputs, draw) for one in items for draw in range(2)
    ]
    assert lines[0]["body"] == {
        "model": "grader-1",
        "messages": judge.messages(items[0].inputs),
        "seed": judge.seed(items[0].inputs),
        "temperature": 0.7,
        "max_completion_tokens": 512,
        "top_p": 0.9,
    }


def test_dimension_names_are_anything() -> None:
    dimension = Dimension("Wie gut? {{ x }}", spec_on(ORDINAL_3).dimension.scale, "g")
    spec = RaterSpec("openai/some", Question(dimension, load_prompt("rate")))
    assert naming_of(spec, ("a",)).name == "wie_gut_x"
