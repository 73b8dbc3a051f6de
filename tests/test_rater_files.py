"""rater.yaml: complete, the same after reading, and refused in one line where it is not a rater."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from raters.corpora import load_corpus
from raters.corpus_files import Dimension
from raters.models.protocol import SamplingSettings
from raters.observations import fit_observations
from raters.prompts import load_prompt, prompt_from_text
from raters.questions import Question, fit_to_corpus
from raters.rater_files import RaterSpec, SeenItems, default_aggregate, read_rater
from raters.rating import load_rater
from raters.records import DataError, Item, JudgeseyeError, StorageError
from raters.scales import SCALE_ADAPTER
from tests.places import CHECKOUT
from tests.small_corpora import (
    DIMENSION,
    GUIDELINE,
    INTERVAL,
    NOMINAL,
    ORDINAL_3,
    ORDINAL_5,
    PAIRWISE,
    dimension_of,
    small_corpus,
    varied_texts,
    write_corpus,
)

LONGEST_ERROR_LINE = 1000
Record = dict[str, Any]

SCALES: list[Record] = [
    ORDINAL_3,
    {"type": "ordinal", "labels": [0, 5, 10]},
    {"type": "ordinal", "labels": [-0.5, 0.0, 1e-07, 2.5]},
    {"type": "ordinal", "labels": ["low", "middling", "high"]},
    {"type": "ordinal", "labels": ["1", "2", "3"]},
    NOMINAL,
    {"type": "nominal", "labels": ["yes", "no", "null", "~", "true", "1", "1_000", "1:30", "0x1f", ".inf", "1e3"]},
    {"type": "nominal", "labels": ["a: b", "# x", "- y", "é", "议", "🙂", "=", "*x", "&y", "!z", "%w", "'", '"']},
    {"type": "nominal", "labels": [1, 2, "unclear"]},
    PAIRWISE,
    {"type": "pairwise", "labels": [1, 2], "fields": ["argument: a", "argument #b"]},
    INTERVAL,
    {"type": "interval", "min": -1.5, "max": 1e16},
]  # fmt: skip

AWKWARD = {
    "plain": "Say how good it is.",
    "trailing blanks": "Blanks at the end   \nof lines  \nand of all  ",
    "tabs": "\tA tab first,\n\tand\tin\tbetween,\t\n\tand last\t",
    "unicode": "Ünïcödé 议论文 🙂 \u202eright to left \xa0\nsecond line",
    "mapping": "key: value # no comment\n- list\n? question\n: answer",
    "comment": "# Heading\n#\n # indented",
    "comment in one line": "# Heading: all",
    "documents": "---\nfirst\n...\n---\nsecond\n",
    "document mark": "---",
    "directive": "%YAML 1.2\n%TAG ! x",
    "long word": "x" * 5000,
    "long line": "word " * 2000 + "end",
    "long lines": ("word " * 300 + "\n") * 3,
    "quotes": "'single' \"double\" \\n \\ `code`",
    "indented first": "    four blanks\n  two\nnone",
    "blank lines first": "\n\n  then text\n",
    "blank lines last": "text\n\n\n",
    "only a line break": "\n",
    "one blank": " ",
    "carriage returns": "one\r\ntwo\rthree\n",
    "next line": "one\x85two\nthree\x85\nfour",
    "next line alone": "one\x85two",
    "line separators": "one\u2028two\u2029three\nfour",
    "separator last": "one\ntwo\u2028",
    "control characters": "bell \x07 escape \x1b[0m delete \x7f\nnext\x00",
    "byte order mark": "\ufeffone\ntwo\ufeff",
    "last plane": "\U0010ffff\n\ufffd\ue000",
    "null": "null",
    "boolean": "yes",
    "number": "1e3",
    "date": "2024-01-01",
    "value": "=",
    "merge": "<<",
    "tag": "!!python/none x",
    "alias": "*a &b",
    "block mark": "|\n>\n|-\n",
    "braces": "{{ guideline }} {% if x %} {# c #} }} %}",
    "json": '{"a": [1, 2]}',
}


def spec_of(scale: Mapping[str, Any] = ORDINAL_5, guideline: str = GUIDELINE, **changes: Any) -> RaterSpec:
    dimension = dimension_of(scale, guideline)
    question = Question(dimension, load_prompt("rate"))
    return RaterSpec(
        **{
            "model": "openai/some-model:latest",
            "question": question,
            "aggregate": default_aggregate(dimension.scale),
            **changes,
        }
    )


def embedded_spec() -> RaterSpec:
    question = Question(
        dimension_of(ORDINAL_5), load_prompt("embedded/rate"), fit_observations(list(varied_texts(30).values()))
    )
    return RaterSpec("embedded", question, aggregate="mean", seen=SeenItems(np.array([-5, 7, 2**62], np.int64)))


def written(spec: RaterSpec, folder: Path) -> RaterSpec:
    """Return a rater as it is after writing and reading it."""
    spec.write(folder / "rater.yaml")
    return read_rater(folder / "rater.yaml")


def check_same(found: RaterSpec, spec: RaterSpec) -> None:
    for name in ("model", "adapter", "settings", "draws", "aggregate", "reasoning", "seed", "certificate", "dimension"):
        assert getattr(found, name) == getattr(spec, name), name
    assert found.question.prompt.text == spec.question.prompt.text
    assert found.question.prompt.name == spec.question.prompt.name
    assert found.question.prompt.sha256 == spec.question.prompt.sha256
    assert found.question.observations == spec.question.observations
    assert found.dimension.guideline_sha256 == spec.dimension.guideline_sha256
    assert found.seen.hashes.dtype == np.int64
    assert found.seen.hashes.tolist() == spec.seen.hashes.tolist()
    assert found.sha256 == spec.sha256


# --- writing and reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: str(SCALE_ADAPTER.validate_python(scale))[:20])
def test_every_scale_is_the_same_after_reading(tmp_path: Path, scale: Record) -> None:
    spec = spec_of(scale)
    found = written(spec, tmp_path)
    check_same(found, spec)
    assert repr(found.dimension.scale) == repr(spec.dimension.scale)  # 1 and 1.0 are equal, but not the same


def test_every_setting_is_the_same_after_reading(tmp_path: Path) -> None:
    spec = spec_of(
        model="hf/some/path with blanks: and #",
        adapter="../adapter #1",
        settings=SamplingSettings(temperature=1e-07, top_p=0.123456789012345678, max_tokens=12345),
        draws=7,
        aggregate="median",
        reasoning=False,
        seed=-(2**40),
        seen=SeenItems(np.array([-(2**63), -1, 0, 2**63 - 1], np.int64)),
        certificate={"figures": {"alpha": 0.5, "note": "a: b # c\n- d", "none": None, "list": [1, "yes", "é"]}},
    )
    check_same(written(spec, tmp_path), spec)


def test_observations_are_the_same_after_reading(tmp_path: Path) -> None:
    """Some cuts are the greatest float there is."""
    spec = embedded_spec()
    found = written(spec, tmp_path)
    check_same(found, spec)
    for item_id, inputs in varied_texts(5).items():
        item = Item(item_id, inputs, {})
        assert found.question.about(item)() == spec.question.about(item)()


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_guidelines_are_the_same_after_reading(tmp_path: Path, name: str) -> None:
    spec = spec_of(guideline=AWKWARD[name])
    check_same(written(spec, tmp_path), spec)


SLOTS = "{{ guideline }} {{ labels }} {% for name, text in fields %}{{ name }} {{ text }}{% endfor %}"


@pytest.mark.parametrize("name", sorted(AWKWARD.keys() - {"braces"}))
def test_awkward_prompts_are_the_same_after_reading(tmp_path: Path, name: str) -> None:
    text = AWKWARD[name]
    for template in (text + SLOTS, SLOTS + "\n" + text):
        spec = spec_of()
        prompt = prompt_from_text(f"of {text[:20]}", template)
        spec = replace(spec, question=Question(spec.dimension, prompt))
        found = written(spec, tmp_path)
        check_same(found, spec)
        item = Item("a", {"text": "Some text."}, {})
        assert found.question.about(item)() == spec.question.about(item)()


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names_are_the_same_after_reading(tmp_path: Path, name: str) -> None:
    text = AWKWARD[name]
    dimension = Dimension(text, SCALE_ADAPTER.validate_python({**PAIRWISE, "fields": [text, "other"]}), GUIDELINE)
    question = Question(dimension, load_prompt("rate"))
    spec = RaterSpec(text, question, adapter=text, certificate={"by": text, text: [text]})
    check_same(written(spec, tmp_path), spec)


def test_a_file_holds_the_texts_in_full_for_people_to_read(tmp_path: Path) -> None:
    guideline = "# Quality\n\nSay how good it is:\n\n- 1: bad\n- 5: {{ good }}"
    spec = spec_of(guideline=guideline)
    spec.write(tmp_path / "rater.yaml")
    text = (tmp_path / "rater.yaml").read_text(encoding="utf-8")
    for line in filter(None, guideline.splitlines()):
        assert f"  {line}\n" in text
    record = yaml.safe_load(text)
    assert record["guideline"] == guideline
    assert record["prompt"]["text"] == (CHECKOUT / "prompts" / "rate.md").read_text(encoding="utf-8")
    assert record["hashes"] == {"guideline": spec.dimension.guideline_sha256, "prompt": spec.question.prompt.sha256}


def test_comments_and_another_order_of_keys_change_nothing(tmp_path: Path) -> None:
    spec = embedded_spec()
    record = json.loads(json.dumps(spec.as_record()))
    text = yaml.safe_dump(dict(reversed(record.items())), sort_keys=False)
    (tmp_path / "rater.yaml").write_text("# Ours since May.\n" + text, encoding="utf-8")
    check_same(read_rater(tmp_path / "rater.yaml"), spec)


def test_a_whole_number_for_a_temperature_is_the_same_rater(tmp_path: Path) -> None:
    spec = spec_of(settings=SamplingSettings(temperature=0, top_p=1))
    assert written(spec, tmp_path).sha256 == spec.sha256
    assert spec_of(settings=SamplingSettings(temperature=0.0)).sha256 == spec.sha256


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    spec = embedded_spec()
    spec.write(tmp_path / "a.yaml")
    read_rater(tmp_path / "a.yaml").write(tmp_path / "b.yaml")
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere/rater\.yaml: cannot be written .*; "):
        spec_of().write(tmp_path / "nowhere" / "rater.yaml")


def test_a_certificate_is_added_without_changing_the_rater(tmp_path: Path) -> None:
    spec = spec_of()
    certified = spec.certified({"alpha": 0.7})
    assert spec.certificate is None
    assert written(certified, tmp_path).certificate == {"alpha": 0.7}
    assert certified.sha256 == spec.sha256


# --- the hash of a rater ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"seen": SeenItems(np.array([1, 2], np.int64))},
        {"certificate": {"alpha": 0.7}},
        {"draws": 9},
        {"aggregate": "majority"},
    ],
)
def test_the_hash_does_not_depend_on(changes: Record) -> None:
    assert replace(spec_of(), **changes).sha256 == spec_of().sha256


def other_question(**changes: Any) -> Question:
    spec = embedded_spec()
    dimension = spec.dimension
    return Question(
        **{
            "dimension": Dimension(
                changes.pop("name", dimension.name),
                SCALE_ADAPTER.validate_python(changes.pop("scale", ORDINAL_5)),
                changes.pop("guideline", dimension.guideline),
            ),
            "prompt": spec.question.prompt,
            "observations": spec.question.observations,
            **changes,
        }
    )


def test_the_hash_depends_on_everything_that_decides_a_verdict() -> None:
    spec = embedded_spec()
    prompt = spec.question.prompt
    changed: dict[str, Record] = {
        "model": {"model": "hf/other"},
        "adapter": {"adapter": "adapter"},
        "temperature": {"settings": SamplingSettings(temperature=0.9)},
        "top_p": {"settings": SamplingSettings(top_p=0.9)},
        "max_tokens": {"settings": SamplingSettings(max_tokens=100)},
        "reasoning": {"reasoning": False},
        "seed": {"seed": 1},
        "dimension": {"question": other_question(name="tone")},
        "scale": {"question": other_question(scale=ORDINAL_3)},
        "type of scale": {"question": other_question(scale={**ORDINAL_5, "type": "nominal"})},
        "guideline": {"question": other_question(guideline=GUIDELINE + "!")},
        "prompt": {"question": other_question(prompt=prompt_from_text(prompt.name, prompt.text + "\nNow."))},
        "observations": {
            "question": other_question(observations=fit_observations(list(varied_texts(30).values())[:9]))
        },
    }
    hashes = {name: replace(spec, **changes).sha256 for name, changes in changed.items()}
    assert replace(spec, question=other_question()).sha256 == spec.sha256
    assert len({spec.sha256, *hashes.values()}) == 1 + len(hashes), hashes


# --- what is refused --------------------------------------------------------------------------------------


def check_refused(path: Path, *names: str) -> str:
    """Check that a file is refused in one line that names it, and what is wrong; return the line."""
    with pytest.raises(JudgeseyeError) as caught:
        read_rater(path)
    line = str(caught.value)
    assert caught.value.exit_code == 2
    assert line.isprintable(), line
    assert len(line) <= LONGEST_ERROR_LINE
    assert "; " in line, f"says no mend: {line}"
    for name in (str(path), *names):
        assert name in line, (name, line)
    assert not re.search(r"_RaterFile|\w+Entry\b|pydantic", line), f"speaks of our classes: {line}"
    return line


def put(folder: Path, record: object) -> Path:
    path = folder / "rater.yaml"
    path.write_text(yaml.safe_dump(record, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def record_of(spec: RaterSpec | None = None) -> Record:
    return copy.deepcopy((spec or embedded_spec()).as_record())


@pytest.mark.parametrize(("name", "key"), [("guideline", ("guideline",)), ("prompt", ("prompt", "text"))])
def test_a_changed_text_is_refused_with_both_hashes(tmp_path: Path, name: str, key: tuple[str, ...]) -> None:
    spec = spec_of()
    record = record_of(spec)
    inner = record
    for part in key[:-1]:
        inner = inner[part]
    inner[key[-1]] += "!"
    path = put(tmp_path, record)
    before = {"guideline": spec.dimension.guideline_sha256, "prompt": spec.question.prompt.sha256}[name]
    changed = {
        "guideline": dimension_of(ORDINAL_5, GUIDELINE + "!").guideline_sha256,
        "prompt": prompt_from_text("rate", spec.question.prompt.text + "!").sha256,
    }[name]
    line = check_refused(path, name, before[:12], changed[:12])
    assert f"hashes.{name}" in line
    # What the line says can be done: the new hash is in it, or null stands for it.
    found = re.findall("[0-9a-f]{64}", line)
    record["hashes"][name] = changed if changed in found else None
    record["certificate"] = None
    put(tmp_path, record)
    assert read_rater(path).sha256 != spec.sha256


def paths_of(record: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in record.items():
        yield (*above, name)
        if isinstance(value, dict) and name != "certificate":
            yield from paths_of(value, (*above, name))


KEYS = [path for path in paths_of(embedded_spec().as_record()) if "cuts" not in path[:-1]]


def inside(record: Record, path: tuple[str, ...]) -> Record:
    for part in path:
        record = record[part]
    return record


@pytest.mark.parametrize("path", [path for path in KEYS if path != ("scale", "type")], ids=".".join)
def test_a_missing_key_is_refused(tmp_path: Path, path: tuple[str, ...]) -> None:
    record = record_of()
    del inside(record, path[:-1])[path[-1]]
    check_refused(put(tmp_path, record), path[-1], path[0])


def test_a_missing_type_of_scale_is_refused(tmp_path: Path) -> None:
    record = record_of()
    del record["scale"]["type"]
    check_refused(put(tmp_path, record), "scale", "type is missing", "ordinal")


FREE = {("certificate",)}
MAPPINGS = [(), *(path for path in KEYS if isinstance(inside(embedded_spec().as_record(), path), dict))]


@pytest.mark.parametrize(
    "path", [path for path in MAPPINGS if path not in FREE], ids=lambda path: ".".join(path) or "top"
)
@pytest.mark.parametrize("key", ["extra", "te\nm\x1b[31mper"], ids=["extra", "hostile"])
def test_an_unknown_key_is_refused(tmp_path: Path, path: tuple[str, ...], key: str) -> None:
    record = record_of()
    inside(record, path)[key] = 1
    check_refused(put(tmp_path, record), *path[:1])


ILL_TYPED: list[tuple[str, Any]] = [
    ("format", 2), ("format", "1"), ("format", None),
    ("model", None), ("model", 3), ("model", ["a"]), ("model", ""),
    ("adapter", 3), ("adapter", ["a"]),
    ("dimension", None), ("dimension", 1),
    ("scale", None), ("scale", "1..5"), ("scale", []), ("scale.type", "likert"), ("scale.type", None),
    ("scale.labels", [1]), ("scale.labels", [2, 1]), ("scale.labels", "1..5"), ("scale.labels", [True, False]),
    ("scale.labels", [1, [2]]), ("scale.labels", None),
    ("guideline", ""), ("guideline", None), ("guideline", 3), ("guideline", ["a"]),
    ("prompt", None), ("prompt", "rate"), ("prompt.name", 3), ("prompt.text", None), ("prompt.text", ""),
    ("observations", "none"), ("observations", []), ("observations", None), ("observations", {}),
    ("observations.fields", "reply"), ("observations.fields", []), ("observations.fields", [1]),
    ("observations.fields", ["a", "b", "c"]), ("observations.fields", None), ("observations.second", 3),
    ("observations.cuts", None), ("observations.cuts", []), ("observations.cuts", {}),
    ("observations.cuts.length", [1, 2, 3]), ("observations.cuts.length", ["a", 1, 2, 3]),
    ("observations.cuts.length", None), ("observations.cuts.length", [1, 2, float("nan"), 4]),
    ("sampling", None), ("sampling", []),
    ("sampling.temperature", "hot"), ("sampling.temperature", -0.1), ("sampling.temperature", float("nan")),
    ("sampling.temperature", float("inf")), ("sampling.temperature", None), ("sampling.temperature", True),
    ("sampling.top_p", 0), ("sampling.top_p", 1.1), ("sampling.top_p", None),
    ("sampling.max_tokens", 0), ("sampling.max_tokens", 1.5), ("sampling.max_tokens", True),
    ("sampling.draws", 0), ("sampling.draws", 2.5), ("sampling.draws", "many"), ("sampling.draws", True),
    ("sampling.aggregate", "sum"), ("sampling.aggregate", None),
    ("sampling.reasoning", "maybe"), ("sampling.reasoning", None), ("sampling.reasoning", 2),
    ("sampling.seed", "x"), ("sampling.seed", None), ("sampling.seed", 1.5), ("sampling.seed", True),
    ("hashes", None), ("hashes.guideline", 3), ("hashes.guideline", "0" * 64), ("hashes.prompt", ""),
    ("seen", None), ("seen.items", -1), ("seen.items", "three"), ("seen.items", None),
    ("seen.hashes", 3), ("seen.hashes", "not base64!"), ("seen.hashes", "AAAA"), ("seen.hashes", "é"),
    ("certificate", "good"), ("certificate", []), ("certificate", 0.7),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), ILL_TYPED, ids=lambda part: str(part)[:40])
def test_a_value_of_another_kind_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    record = record_of()
    *above, last = key.split(".")
    inside(record, tuple(above))[last] = value
    path = put(tmp_path, record)
    if key == "model":
        with pytest.raises(JudgeseyeError) as caught:
            load_rater(path)
        assert "model" in str(caught.value)
        assert str(caught.value).isprintable()
        return
    check_refused(path, key.partition(".")[0])


def test_a_list_of_seen_items_that_was_shortened_is_refused(tmp_path: Path) -> None:
    """Who removes hashes could have agreement certified on items that the rater has seen."""
    record = record_of()
    assert record["seen"]["items"] == 3
    record["seen"]["hashes"] = ""
    check_refused(put(tmp_path, record), "seen")
    record["seen"]["hashes"] = base64.b64encode(np.array([1, 2], np.int64).tobytes()).decode()
    check_refused(put(tmp_path, record), "seen")


@pytest.mark.parametrize("scale", [NOMINAL, PAIRWISE])
@pytest.mark.parametrize("aggregate", ["mean", "median"])
def test_an_aggregate_that_the_scale_does_not_allow_is_refused_before_any_draw(
    tmp_path: Path, scale: Record, aggregate: str
) -> None:
    record = record_of(spec_of(scale))
    record["sampling"]["aggregate"] = aggregate
    check_refused(put(tmp_path, record), aggregate, "majority")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{{ guideline", []),
        ("{% for x in %}", []),
        (SLOTS + "{{ label }}", ["label"]),
        ("{{ guideline }} {{ labels }}", ["fields"]),
        (SLOTS + "{{ secret }}", ["secret"]),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused(tmp_path: Path, text: str, names: list[str]) -> None:
    record = record_of(spec_of())
    record["prompt"]["text"] = text
    record["hashes"]["prompt"] = dimension_of(ORDINAL_5, text).guideline_sha256
    check_refused(put(tmp_path, record), "prompt", *names)


@pytest.mark.parametrize(
    "content",
    [b"", b"   \n", b"# nothing\n", b"text", b"- list", b"3", b"null", b"a: [", b"\tx: 1", b"a: 1\na: {", b"\x00\x01",
     b"Stra\xdfe: 1", b"\xff\xfe", b"a: 1\n---\nb: 2\n", b"[" * 50_000, b"a: *missing", b"? [1]\n: 2", b"{1: 2}",
     b"format: 1"],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
def test_a_file_that_is_no_rater_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rater.yaml"
    path.write_bytes(content)
    check_refused(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    check_refused(tmp_path / "none.yaml", "no such file")
    check_refused(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        load_rater(tmp_path / "none.yaml")


HOSTILE_TAGS = [
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/apply:subprocess.check_call [[touch, '{}']]",
    "!!python/object/new:os.system ['touch {}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!unknown {{a: 1}}",
]


@pytest.mark.parametrize("tag", HOSTILE_TAGS)
@pytest.mark.parametrize("key", ["certificate", "model", "observations"])
def test_tags_that_make_objects_are_refused(tmp_path: Path, tag: str, key: str) -> None:
    path = put(tmp_path, {name: value for name, value in record_of().items() if name != key})
    mark = tmp_path / "mark"
    path.write_text(path.read_text() + f"{key}: {tag.format(mark)}\n")
    check_refused(path)
    assert not mark.exists()


def bomb(width: int = 4, depth: int = 10) -> str:
    """Return the value of anchors that name each other: a few lines that stand for a million texts."""
    lines = ["x0: &x0 [lol, lol, lol, lol]"]
    for level in range(1, depth):
        lines.append(f"x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * width)}]")
    return "{" + ", ".join(lines) + "}"


@pytest.mark.parametrize("last", ["x9", "x5"])
@pytest.mark.parametrize(
    "key", [path for path in KEYS if path[0] not in ("certificate", "format")], ids=lambda path: ".".join(path)
)
def test_a_bomb_of_anchors_is_refused_in_a_short_line(tmp_path: Path, key: tuple[str, ...], last: str) -> None:
    """It is put in place of each value in turn; a message that wrote it out would have megabytes."""
    record = record_of()
    inside(record, key[:-1])[key[-1]] = "BOMB"
    record["certificate"] = "ANCHORS"
    # The anchors must stand before the place that names them.
    record = {"certificate": record.pop("certificate"), **record}
    path = put(tmp_path, record)
    path.write_text(path.read_text().replace("ANCHORS", bomb()).replace("BOMB", f"*{last}"))
    check_refused(path)


def test_a_certificate_that_names_itself_does_no_harm(tmp_path: Path) -> None:
    path = put(tmp_path, {name: value for name, value in record_of().items() if name != "certificate"})
    path.write_text(path.read_text() + "certificate: &a {self: *a, figure: 1}\n")
    with contextlib.suppress(DataError):  # it may be refused, but must not be followed for ever
        assert read_rater(path).sha256 == embedded_spec().sha256


# --- elsewhere --------------------------------------------------------------------------------------------

ELSEWHERE = """
import json, sys
import raters
with raters.load_rater(sys.argv[1]) as rater:
    found = rater.rate_many(json.load(sys.stdin), draws=3)
print(json.dumps([[rating.verdict, rating.value, rating.verdicts, rating.reasoning] for rating in found]))
"""


def test_a_rater_works_elsewhere_without_its_corpus(tmp_path: Path) -> None:
    inputs = varied_texts(20)
    folder = write_corpus(tmp_path / "corpus", {item_id: {"ann": 3} for item_id in inputs}, inputs=inputs)
    (folder / "guideline.md").write_text("Rules:\n\n- length helps twice.\n- commas hurts.\n")
    corpus = load_corpus(folder)
    dimension, items = corpus.dimension(None), np.arange(20)
    fitted = fit_to_corpus(corpus, dimension.scale, items)
    spec = RaterSpec("embedded", Question(dimension, load_prompt("embedded/rate"), fitted), aggregate="mean")
    (tmp_path / "made").mkdir()
    spec.write(tmp_path / "made" / "rater.yaml")
    with load_rater(tmp_path / "made" / "rater.yaml") as rater:
        here = rater.rate_many(inputs.values(), draws=3)
    del corpus
    shutil.rmtree(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "made" / "rater.yaml").rename(elsewhere / "other name.yml")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, "other name.yml"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        input=json.dumps(list(inputs.values())),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert there == [[one.verdict, one.value, list(one.verdicts), list(one.reasoning)] for one in here]
    assert len({json.dumps(one) for one in there}) > 5


def test_what_was_seen_is_known_again_after_reading(tmp_path: Path) -> None:
    inputs = {name: {"text": f"The text of {name}."} for name in "abcd"}
    corpus = small_corpus(tmp_path / "c", {name: {"ann": 1} for name in inputs}, ORDINAL_3, inputs=inputs)
    spec = spec_of(seen=SeenItems.of(corpus, np.array([2, 0])))
    assert written(spec, tmp_path).seen.touched(corpus, np.arange(4)).tolist() == [0, 2]
    assert yaml.safe_load((tmp_path / "rater.yaml").read_text())["seen"]["items"] == 2
    assert DIMENSION in (tmp_path / "rater.yaml").read_text()
