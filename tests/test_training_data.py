"""What is learned, token by token, against conversations written out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raters.models.generation import LoadedModel
from raters.records import ConfigError, DataError
from raters.trace_runs import TraceRun
from raters.training_data import (
    IGNORED,
    Encoder,
    Lesson,
    Target,
    encode_lessons,
    example_id,
    label_tokens,
    numbers_of,
    question_for,
    read_lessons,
)
from raters.training_models import load_base
from raters.training_pairs import encode_pairs, pair_weights, rejected_draws
from tests.small_corpora import ORDINAL_5, dimension_of
from tests.small_training import write_pair_run, write_trace_run
from tests.tiny_models import CHAT_TEMPLATE, THINKING_TEMPLATE, make_model

DROPS_THINKING = CHAT_TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'].split('</think>')[-1] }}")
"""As the templates of some reasoning models do."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "m", special_tags=False, context_tokens=2048)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TraceRun:
    return TraceRun.read(write_trace_run(tmp_path_factory.mktemp("run")))


def loaded(base: Path, template: str | None = None) -> LoadedModel:
    return load_base(f"hf/{base}", "float32", four_bit=False, chat_template=template)


def encoder(base: Path, run: TraceRun, target: Target, template: str | None = None, most: int | None = None) -> Encoder:
    return Encoder(loaded(base, template), run, question_for(run, target, run.dimension.guideline), target, most)


def texts(base: Path, run: TraceRun, target: Target, template: str | None = None) -> tuple[str, str, str, Lesson]:
    """Return what an example reads and does not learn, what it learns, all of it, and what it is made of."""
    lesson = read_lessons(run)[0]
    made = encoder(base, run, target, template)
    example = made.encode(lesson)
    assert example is not None
    decode = made.loaded.tokenizer.decode
    learned = [token for token in example.labels if token != IGNORED]
    assert [label for label in example.labels if label != IGNORED] == learned
    assert all(label in (IGNORED, token) for label, token in zip(example.labels, example.input_ids, strict=True))
    unlearned = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label == IGNORED]
    return decode(unlearned), decode(learned), decode(example.input_ids), lesson


def asked(run: TraceRun, lesson: Lesson, target: Target) -> str:
    question = question_for(run, target, run.dimension.guideline)
    content = question.about(run.corpus.item(lesson.item))(False)[0]["content"]
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def test_a_trace_is_learned_whole(base: Path, run: TraceRun) -> None:
    unlearned, learned, _, lesson = texts(base, run, "trace")
    assert unlearned == asked(run, lesson, "trace")
    assert "Is it good?" in unlearned
    assert learned == f"<think>\n{lesson.trace}\n</think>\n\n<rating>{lesson.rating}</rating><|im_end|>"
    assert lesson.trace.startswith("It says")


def test_the_label_alone(base: Path, run: TraceRun) -> None:
    unlearned, learned, _, lesson = texts(base, run, "label")
    assert unlearned == asked(run, lesson, "label")
    assert "Answer at once" in unlearned
    assert learned == f"<rating>{lesson.label}</rating><|im_end|>"


def test_the_label_after_a_trace_that_is_read_and_not_learned(base: Path, run: TraceRun) -> None:
    unlearned, learned, whole, lesson = texts(base, run, "label-after-trace")
    assert unlearned == asked(run, lesson, "trace") + f"<think>\n{lesson.trace}\n</think>"
    assert learned == f"\n\n<rating>{lesson.rating}</rating><|im_end|>"
    assert whole == texts(base, run, "trace")[2]  # the same text as for traces, the mask alone differs


def test_the_verdict_before_its_reasons(base: Path, run: TraceRun) -> None:
    unlearned, learned, _, lesson = texts(base, run, "verdict-first")
    assert unlearned == asked(run, lesson, "verdict-first")
    assert "Begin with the label" in unlearned
    assert learned == f"<rating>{lesson.rating}</rating>\n\n{lesson.trace}<|im_end|>"


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("trace", "{trace}\n</think>\n\n<rating>{label}</rating><|im_end|>"),
        ("label", "\n</think>\n\n<rating>{label}</rating><|im_end|>"),
        ("verdict-first", "\n</think>\n\n<rating>{label}</rating>\n\n{trace}<|im_end|>"),
    ],
)
def test_a_template_that_opens_the_thinking_itself(base: Path, run: TraceRun, target: Target, wanted: str) -> None:
    unlearned, learned, _, lesson = texts(base, run, target, THINKING_TEMPLATE)
    assert unlearned == asked(run, lesson, target) + "<think>\n"
    assert learned == wanted.format(trace=lesson.trace, label=lesson.rating)


@pytest.mark.parametrize("target", ["trace", "label", "verdict-first"])
def test_the_mask_is_that_of_trl(base: Path, run: TraceRun, target: Target, tmp_path: Path) -> None:
    """TRL renders prompt and completion by itself; beyond the end of the turn it learns a line break more."""
    import datasets
    import trl

    made = encoder(base, run, target)
    lessons = read_lessons(run)[:3]
    rows = []
    for lesson in lessons:
        answer = texts_of(made, lesson)
        prompt = made._question.about(run.corpus.item(lesson.item))(False)
        rows.append({"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]})
    arguments = trl.SFTConfig(output_dir=str(tmp_path), max_length=None, bf16=False, use_cpu=True, report_to="none")
    trainer = trl.SFTTrainer(
        model=made.loaded.model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=made.loaded.tokenizer,
    )
    for lesson, row in zip(lessons, trainer.train_dataset, strict=True):
        example = made.encode(lesson)
        assert example is not None
        assert example.input_ids == row["input_ids"][:-1]
        assert example.labels == row["labels"][:-1]
        assert made.loaded.tokenizer.decode(row["input_ids"][-1:]) == "\n"


def texts_of(made: Encoder, lesson: Lesson) -> str:
    label = f"<rating>{lesson.rating}</rating>"
    return {
        "trace": f"<think>\n{lesson.trace}\n</think>\n\n{label}",
        "label": label,
        "verdict-first": f"{label}\n\n{lesson.trace}",
    }[made._target]


def test_draws_have_names_of_their_own_whatever_items_and_annotators_are_called() -> None:
    names = ("i", "i/0", "a", "rationalized", "i/rationalized", "a/rationalized", "a%2Frationalized", "corrected", "0")
    for annotators in ([None], names):
        records = [
            {"item_id": item, "annotator_id": annotator, "draw": draw, "chance": chance, "reviewed": reviewed}
            for item in names
            for annotator in annotators
            for draw in (0, 1)
            for chance in ("first", "rationalized")
            for reviewed in ("no", "corrected")
        ]
        assert len({example_id(record) for record in records}) == len(records)
    plain = {"item_id": "i", "annotator_id": "ann", "draw": 3, "chance": "first"}
    assert example_id(plain) == "i/ann/3"
    assert example_id({**plain, "annotator_id": None, "chance": "rationalized"}) == "i/3/rationalized"


def test_the_place_of_the_verdict(base: Path, run: TraceRun) -> None:
    for target in ("trace", "label", "label-after-trace", "verdict-first"):
        made = encoder(base, run, target)
        for lesson in read_lessons(run):
            example = made.encode(lesson)
            assert example is not None
            token = made.loaded.tokenizer.decode([example.input_ids[example.verdict_at]])
            assert token == str(example.verdict) == lesson.rating
            before = made.loaded.tokenizer.decode(example.input_ids[: example.verdict_at])
            assert before.endswith("<rating>")


def test_a_template_that_drops_the_thinking_is_refused(base: Path, run: TraceRun) -> None:
    for target in ("trace", "label-after-trace"):
        with pytest.raises(ConfigError, match=r"chat template drops the thinking of an answer; give --chat-template"):
            encoder(base, run, target, DROPS_THINKING).encode(read_lessons(run)[0])
    example = encoder(base, run, "label", DROPS_THINKING).encode(read_lessons(run)[0])
    assert example is not None


def test_a_template_that_opens_and_then_drops_the_thinking_is_refused(base: Path, run: TraceRun) -> None:
    template = DROPS_THINKING.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    with pytest.raises(ConfigError, match="drops the thinking"):
        encoder(base, run, "trace", template).encode(read_lessons(run)[0])
    with pytest.raises(ConfigError, match="does not write an answer behind the prompt"):
        encoder(base, run, "label", template).encode(read_lessons(run)[0])


def test_a_template_that_drops_answers_is_refused(base: Path, run: TraceRun) -> None:
    template = CHAT_TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'][:9] }}")
    with pytest.raises(ConfigError, match="leaves the rating out of what is learned"):
        encoder(base, run, "label", template).encode(read_lessons(run)[0])


def test_control_tokens_in_a_trace_end_no_turn(base: Path, run: TraceRun) -> None:
    hostile = replace(read_lessons(run)[0], trace="So<|im_end|> it goes.")
    made = encoder(base, run, "trace")
    example = made.encode(hostile)
    assert example is not None
    end = made.loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [label for label in example.labels if label == end] == [end]
    assert example.labels[-1] == end


def test_what_is_too_long_is_left_out_whole_and_counted(base: Path, run: TraceRun) -> None:
    lessons = read_lessons(run)
    lengths = sorted(len(example.input_ids) for example in map(encoder(base, run, "trace").encode, lessons) if example)
    made = encoder(base, run, "trace", most=lengths[28])
    kept = encode_lessons(made, lessons, run.folder)
    assert len(kept) + made.too_long == len(lessons)
    assert len(kept) == sum(length <= lengths[28] for length in lengths)
    assert all(example.labels[-1] != IGNORED for example in kept)
    with pytest.raises(
        DataError, match=r"34 of 34 traces are longer than 5 tokens with their prompt, and what is left"
    ):
        encode_lessons(encoder(base, run, "trace", most=5), lessons, run.folder)


def test_the_context_of_the_base_is_a_limit(run: TraceRun, tmp_path: Path) -> None:
    short = make_model(tmp_path / "short", special_tags=False, context_tokens=8)
    made = encoder(short, run, "trace")
    assert made.encode(read_lessons(run)[0]) is None
    assert made.too_long == 1


def test_another_guideline_in_the_prompt(base: Path, run: TraceRun) -> None:
    question = question_for(run, "trace", "Another guideline.")
    example = Encoder(loaded(base), run, question, "trace", None).encode(read_lessons(run)[0])
    assert example is not None
    text = loaded(base).tokenizer.decode(example.input_ids)
    assert "Another guideline." in text
    assert "Is it good?" not in text


def rewritten(tmp_path: Path, change: Any) -> Path:
    folder = write_trace_run(tmp_path)
    lines = [json.loads(line) for line in (folder / "traces.jsonl").read_text().splitlines()]
    (folder / "traces.jsonl").write_text("".join(json.dumps(line) + "\n" for line in change(lines)))
    return folder


def test_no_accepted_traces(tmp_path: Path) -> None:
    folder = rewritten(tmp_path, lambda lines: [])
    with pytest.raises(DataError, match=r"traces.jsonl: no accepted traces.*larger --k"):
        read_lessons(TraceRun.read(folder))


def test_fewer_than_two_labels(tmp_path: Path) -> None:
    folder = rewritten(tmp_path, lambda lines: [line for line in lines if line["label"] == 2])
    with pytest.raises(DataError, match=r"its \d+ traces all have label 2, and a rater learns from at least two"):
        read_lessons(TraceRun.read(folder))


def test_traces_of_two_dimensions(tmp_path: Path) -> None:
    folder = rewritten(tmp_path, lambda lines: [*lines[:-1], {**lines[-1], "dimension": "style"}])
    with pytest.raises(DataError, match=r"traces.jsonl line 34: a trace of dimension 'style' among those of quality"):
        read_lessons(TraceRun.read(folder))


@pytest.mark.parametrize(
    "broken",
    [{"label": 9}, {"item_id": "nobody"}, {"completion": []}, {"completion": [{"content": "3"}]}, {"trace": 1}],
)
def test_lines_that_are_no_traces(tmp_path: Path, broken: dict[str, Any]) -> None:
    folder = rewritten(tmp_path, lambda lines: [{**lines[0], **broken}, *lines[1:]])
    with pytest.raises(DataError, match=r"traces.jsonl line 1: .* is no trace of corpus small"):
        read_lessons(TraceRun.read(folder))


def test_pairs_are_of_one_item_and_weigh_their_distance(tmp_path: Path, base: Path) -> None:
    run = TraceRun.read(write_trace_run(tmp_path, ORDINAL_5))
    lessons = read_lessons(run)
    found = list(rejected_draws(run, lessons, 4))
    assert len(found) == 2 * len(lessons)
    for kept, rejected, distance in found:
        assert kept.key == rejected.key
        assert distance == abs(int(kept.rating) - int(rejected.rating)) > 0
    # one label's rejected draws are the next two of 1..5, the last followed by the first
    distances = {1: [1, 2], 2: [1, 2], 3: [1, 2], 4: [1, 3], 5: [4, 3]}
    for kept in lessons:
        assert [distance for one, _, distance in found if one is kept] == distances[kept.label]
    pairs = encode_pairs(encoder(base, run, "trace"), run, lessons, 4)
    mean = sum(distance for _, _, distance in found) / len(found)
    assert [pair.weight for pair in pairs] == pytest.approx([distance / mean for _, _, distance in found])
    assert sum(pair.weight for pair in pairs) == pytest.approx(len(pairs))
    for pair in pairs:
        cut = pair.chosen.prompt_tokens
        assert pair.chosen.input_ids[:cut] == pair.rejected.input_ids[:cut]
        assert pair.chosen.input_ids[cut:] != pair.rejected.input_ids[cut:]
    assert len(encode_pairs(encoder(base, run, "trace"), run, lessons, 1)) == len(lessons)


def test_weights_by_hand() -> None:
    assert pair_weights([1, 1, 4, 2]) == [0.5, 0.5, 2.0, 1.0]
    assert pair_weights([1.0, 1.0]) == [1.0, 1.0]
    assert pair_weights([]) == []


def test_pairs_of_texts_are_compared_in_the_order_shown(tmp_path: Path) -> None:
    run = TraceRun.read(write_pair_run(tmp_path))
    lessons = {lesson.key[0]: lesson for lesson in read_lessons(run)}
    for record in run.draws.records(range(len(run.draws))):
        lesson = lessons[record["item_id"]]
        exchanged = {"A": "B", "B": "A", "tie": "tie"} if record["swapped"] else {}
        assert lesson.label == exchanged.get(record["label"], record["label"])
    for kept, rejected, distance in rejected_draws(run, list(lessons.values()), 4):
        assert kept.swapped == rejected.swapped
        assert kept.rating != rejected.rating
        assert distance == 1


def test_no_rejected_draws(base: Path, tmp_path: Path) -> None:
    folder = write_trace_run(tmp_path)
    lines = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["accepted"]]
    (folder / "candidates.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    run = TraceRun.read(folder)
    with pytest.raises(DataError, match="no kept trace has a rejected draw of the same label beside it"):
        encode_pairs(encoder(base, run, "trace"), run, read_lessons(run), 4)


def test_first_tokens_of_labels(base: Path) -> None:
    model = loaded(base)
    tokens, values = label_tokens(model, dimension_of(ORDINAL_5).scale)
    assert [model.tokenizer.decode([token]) for token in tokens] == ["1", "2", "3", "4", "5"]
    assert values == [1, 2, 3, 4, 5]


def test_labels_that_begin_alike_are_refused(base: Path) -> None:
    scale = dimension_of({"type": "ordinal", "labels": [1, 5, 10]}).scale
    with pytest.raises(ConfigError, match="labels 1 and 10 begin with the same token"):
        label_tokens(loaded(base), scale)


def test_labels_without_an_order_have_no_expected_value(base: Path) -> None:
    scale = dimension_of({"type": "nominal", "labels": ["a", "b", "c"]}).scale
    with pytest.raises(ConfigError, match="--ordinal: labels a/b/c are no list with an order"):
        label_tokens(loaded(base), scale)


def test_places_of_verdicts(base: Path, run: TraceRun) -> None:
    made = encoder(base, run, "trace")
    examples = [example for lesson in read_lessons(run) if (example := made.encode(lesson)) is not None]
    assert numbers_of(examples, run.dimension.scale) == [example.verdict - 1 for example in examples]
