"""The stage from its command line to its files: what it writes, how it goes on, and what it never does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from pipelines.infer_traces import STAGE, main
from raters.records import ConfigError
from tests.places import CHECKOUT, DEMO
from tests.scripted_server import Answer, Fault, ScriptedServer
from tests.stage_runs import (
    INTERRUPTED,
    Outcome,
    Record,
    Run,
    calls_of,
    interrupt,
    kill,
    leave_the_user,
    read,
    run_alone,
    started,
    strict,
    timeless,
    wait_until,
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    leave_the_user(tmp_path, monkeypatch)
    return calls_of(STAGE, main, monkeypatch, capsys)


def wait_for_draws(path: Path, size: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run in another process has written that many bytes of candidates."""
    wait_until(lambda: path.exists() and path.stat().st_size >= size, process)


def by_draw(records: Sequence[Record]) -> list[Record]:
    return sorted(
        records, key=lambda record: (record["item_id"], record["chance"], record["draw"], str(record["annotator_id"]))
    )


def draws_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[record["item_id"]].append(record)
    return found


def make_corpus(
    folder: Path,
    scale: Record,
    labels: Callable[[int], dict[str, Any]],
    *,
    inputs: Callable[[int], dict[str, str]] | None = None,
    count: int = 12,
    name: str = "small",
) -> Path:
    """Write a corpus of items without groups, labelled as `labels` says for each item's number."""
    (folder / "guidelines").mkdir(parents=True)
    (folder / "guidelines" / "g.md").write_text("Say how good it is.\n")
    settings = {"name": name, "dimensions": {"quality": {"scale": scale, "guideline": "guidelines/g.md"}}}
    (folder / "corpus.yaml").write_text(yaml.safe_dump(settings))
    inputs = inputs or (lambda number: {"text": f"Number {number}. " + "Some more words. " * number})
    items = [{"item_id": f"i{number}", "inputs": inputs(number), "metadata": {}} for number in range(count)]
    annotations = [
        {"item_id": f"i{number}", "annotator_id": who, "dimension": "quality", "label": label}
        for number in range(count)
        for who, label in labels(number).items()
    ]
    for file, records in (("items.jsonl", items), ("annotations.jsonl", annotations)):
        (folder / file).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


ORDINAL = {"type": "ordinal", "labels": [1, 2, 3]}
NOMINAL = {"type": "nominal", "labels": ["good", "bad"]}
PAIRWISE = {"type": "pairwise", "labels": ["A", "B", "tie"], "fields": ["first", "second"]}
INTERVAL = {"type": "interval", "min": 0, "max": 100}


# --- what a run writes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """An adaptive run on the demo corpus, which several tests look at."""

    folder: Path
    traces: list[Record]
    candidates: list[Record]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["--out", str(folder), "--limit", "60", "--k", "6", "--null-items", "0"]) == 0
    return Finished(folder, read(folder / "traces.jsonl"), read(folder / "candidates.jsonl"))


FIELDS = (
    "item_id dimension annotator_id draw chance mode model prompt_sha256 guideline_sha256 seed temperature swapped "
    "trace answer verdict label accepted flags finish_reason prompt_tokens completion_tokens seconds"
).split()


def test_files(finished: Finished) -> None:
    assert {path.name for path in finished.folder.iterdir()} == {
        "candidates.jsonl", "traces.jsonl", "unmatched.jsonl", "summary.json", "utilisation.svg", "split.json",
        "observations.json", "rater.yaml", "manifest.json", ".lock",
    }  # fmt: skip
    for path in finished.folder.glob("*.json"):
        strict(path)


def test_candidates_hold_every_draw_up_to_the_first_acceptance(finished: Finished) -> None:
    drawn = draws_of(finished.candidates)
    assert len(drawn) == 60
    for records in drawn.values():
        assert [record["draw"] for record in records] == list(range(len(records)))
        assert [record["accepted"] for record in records[:-1]] == [False] * (len(records) - 1)
        assert records[-1]["accepted"] or len(records) == 6
    for record in finished.candidates:
        assert list(record) == FIELDS
        assert record["accepted"] == (record["verdict"] == record["label"])
        assert record["answer"] == f"<rating>{record['verdict']}</rating>"
        assert (record["chance"], record["mode"], record["model"]) == ("first", "infer", "embedded")
        assert record["annotator_id"] is None
    assert len({record["seed"] for record in finished.candidates}) == len(finished.candidates)


def test_kept_traces_are_the_accepted_candidates(finished: Finished) -> None:
    accepted = {record["item_id"]: record for record in finished.candidates if record["accepted"]}
    assert 30 < len(finished.traces) < 60
    assert {trace["item_id"]: {name: trace[name] for name in FIELDS} for trace in finished.traces} == accepted
    order = [json.loads(line)["item_id"] for line in (DEMO / "items.jsonl").open()]
    places = [order.index(trace["item_id"]) for trace in finished.traces]
    assert places == sorted(places)
    for trace in finished.traces:
        (answer,) = trace["completion"]
        assert answer["role"] == "assistant"
        assert answer["content"] == f"<think>\n{trace['trace']}\n</think>\n\n<rating>{trace['label']}</rating>"
        assert [message["role"] for message in trace["prompt"]] == ["user"]


def test_labels_are_the_median_of_what_people_said(finished: Finished) -> None:
    said: dict[str, list[int]] = defaultdict(list)
    for line in (DEMO / "annotations.jsonl").open():
        annotation = json.loads(line)
        said[annotation["item_id"]].append(annotation["label"])
    odd = 0
    for record in finished.candidates:
        labels = said[record["item_id"]]
        assert statistics.median_low(labels) <= record["label"] <= statistics.median_high(labels)
        odd += len(labels) % 2
    assert odd


def test_unmatched_labels_are_the_others(finished: Finished) -> None:
    unmatched = read(finished.folder / "unmatched.jsonl")
    kept = {trace["item_id"] for trace in finished.traces}
    drawn = draws_of(finished.candidates)
    assert {record["item_id"] for record in unmatched} == drawn.keys() - kept
    for record in unmatched:
        verdicts = [candidate["verdict"] for candidate in drawn[record["item_id"]]]
        assert record["draws"] == len(verdicts) == 6
        assert record["verdicts"] == {str(verdict): verdicts.count(verdict) for verdict in set(verdicts)}
        assert record["distance"] == min(abs(verdict - record["label"]) for verdict in verdicts)
        assert abs(record["nearest_verdict"] - record["label"]) == record["distance"]


def test_draws_are_made_for_the_train_split_alone(finished: Finished) -> None:
    split = strict(finished.folder / "split.json")
    metadata = {record["item_id"]: record["metadata"]["case"] for record in read(DEMO / "items.jsonl")}
    parts = [set(split[part]) for part in ("train", "dev", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 384
    cases = [{metadata[item_id] for item_id in part} for part in parts]
    assert sum(map(len, cases)) == 48
    assert {record["item_id"] for record in finished.candidates} <= parts[0]


def test_manifest(finished: Finished) -> None:
    manifest = strict(finished.folder / "manifest.json")
    assert (manifest["stage"], manifest["status"]) == (STAGE, "complete")
    assert manifest["options"]["seed"] == 0
    assert manifest["options"]["k"] == 6
    assert manifest["options"]["limit"] == 60
    assert manifest["options"]["temperature"] == 1.0
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert manifest["versions"].keys() >= {"numpy", "jinja2"}
    if (CHECKOUT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
        assert manifest["git_revision"].startswith(head.stdout.strip())
    hashes = manifest["inputs_sha256"]
    for name in ("corpus.yaml", "items.jsonl", "annotations.jsonl"):
        assert hashes[name] == hashlib.sha256((DEMO / name).read_bytes()).hexdigest()
    prompt = (CHECKOUT / "prompts" / "embedded" / "rate.md").read_bytes()
    assert hashes["prompt first"] == hashlib.sha256(prompt).hexdigest()
    assert {record["prompt_sha256"] for record in finished.candidates} == {hashes["prompt first"]}
    guideline = (DEMO / "guidelines" / "helpfulness.md").read_text().strip()
    assert hashes["guideline"] == hashlib.sha256(guideline.encode()).hexdigest()
    assert manifest["items"] == 60
    assert manifest["draws"] == {"first": len(finished.candidates)}
    assert manifest["kept"] == len(finished.traces)
    assert manifest["unreadable"] == 0
    for name in ("prompt_tokens", "completion_tokens"):
        assert manifest[name] == sum(record[name] for record in finished.candidates)
    assert manifest["cost_usd"] == 0.0
    assert 0 < manifest["seconds"] < 60
    split = strict(finished.folder / "split.json")
    for part in ("train", "dev", "test"):
        ids = "\n".join(sorted(split[part])).encode()
        assert manifest["split_sha256"][part] == hashlib.sha256(ids).hexdigest()


def test_summary_counts_what_the_files_hold(finished: Finished) -> None:
    summary = strict(finished.folder / "summary.json")
    drawn = draws_of(finished.candidates)
    first = [records[-1]["draw"] if records[-1]["accepted"] else 99 for records in drawn.values()]
    assert [point["k"] for point in summary["utilisation"]] == [1, 2, 4, 6]
    for point in summary["utilisation"]:
        assert point["share"] == pytest.approx(sum(draw < point["k"] for draw in first) / 60)
        assert point["null"] is None or 0 < point["null"] < 1
    assert summary["utilisation"][0]["null"] is not None  # the first draw of every item tells
    assert (summary["items"], summary["labels"], summary["kept"]) == (60, 60, len(finished.traces))
    assert summary["first_draws_per_kept_trace"] == pytest.approx(len(finished.candidates) / len(finished.traces))
    assert summary["fixed_k_draws_per_kept_trace"] == pytest.approx(360 / len(finished.traces))
    for entry in summary["coverage_by_label"]:
        here = [records[0]["label"] == int(entry["label"]) for records in drawn.values()]
        assert entry["labels"] == sum(here)
        assert entry["kept"] == sum(str(trace["label"]) == entry["label"] for trace in finished.traces)
    assert summary["unmatched"]["labels"] == 60 - len(finished.traces)


@pytest.mark.parametrize("name", ["small", 'Arguments $x$ & <b>words</b> -- "quoted" {a} \\frac ^_ é', "议论文 🙂"])
def test_plot_is_well_formed_and_undated(tmp_path: Path, run: Run, name: str, recwarn: pytest.WarningsRecorder) -> None:
    corpus = make_corpus(tmp_path / "c", ORDINAL, lambda number: {"a": 1 + number % 3}, name=name)
    run("--corpus", corpus, "--out", "run")
    text = (tmp_path / "run" / "utilisation.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "dc:date" not in text
    assert not re.search(r"\b20\d\d-\d\d-\d\d", text)
    shown = [str(warning.message) for warning in recwarn if warning.category is UserWarning]
    assert not shown, "would be printed among the results"


LOAD = """
import json, sys
import datasets
loaded = datasets.load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
print(json.dumps({"types": {name: str(feature) for name, feature in loaded.features.items()}, "rows": len(loaded),
                  "first": loaded[0]}))
"""


def test_traces_load_with_datasets(finished: Finished, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(finished.folder / "traces.jsonl"), str(tmp_path / "cache")],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = json.loads(done.stdout)
    assert loaded["rows"] == len(finished.traces)
    assert loaded["first"] == finished.traces[0]
    types = loaded["types"]
    strings = "item_id dimension chance mode model prompt_sha256 guideline_sha256 trace answer finish_reason".split()
    wanted = {
        **dict.fromkeys(strings, "Value('string')"),
        **dict.fromkeys("draw seed verdict label prompt_tokens completion_tokens".split(), "Value('int64')"),
        **dict.fromkeys("temperature seconds".split(), "Value('float64')"),
        **dict.fromkeys("swapped accepted".split(), "Value('bool')"),
    }
    assert {name: types[name] for name in wanted} == wanted
    assert types.keys() - wanted.keys() == {"annotator_id", "flags", "prompt", "completion"}
    for name in ("prompt", "completion"):
        assert types[name] == "List({'role': Value('string'), 'content': Value('string')})"


def test_help_answers_at_once() -> None:
    began = time.monotonic()
    done = run_alone(STAGE, "--help")
    assert time.monotonic() - began < 2
    assert done.status == 0
    for flag in ("--corpus", "--dimension", "--out", "--seed", "--config", "--model", "--k", "--rationalize"):
        assert flag in done.out
    assert done.err == ""


def test_default_folder_is_named_for_the_corpus(tmp_path: Path, run: Run) -> None:
    make_corpus(tmp_path / "c", ORDINAL, lambda number: {"a": 1 + number % 3}, name="../my corpus")
    run("--corpus", "c")
    (manifest,) = tmp_path.rglob("manifest.json")
    assert manifest.parent.name == STAGE
    assert manifest.parent.parent.parent == tmp_path / "runs"


# --- what a run does not depend on ------------------------------------------------------------------------


def test_adaptive_and_fixed_keep_the_same_traces(finished: Finished, tmp_path: Path, run: Run) -> None:
    run("--limit", 60, "--k", 6, "--strategy", "fixed", "--out", "fixed")
    assert timeless(tmp_path / "fixed" / "traces.jsonl") == timeless(finished.folder / "traces.jsonl")
    every = read(tmp_path / "fixed" / "candidates.jsonl")
    assert len(every) == 360
    made = {(record["item_id"], record["draw"]) for record in finished.candidates}
    shared = [record for record in by_draw(timeless(tmp_path / "fixed" / "candidates.jsonl"))
              if (record["item_id"], record["draw"]) in made]  # fmt: skip
    assert shared == by_draw(timeless(finished.folder / "candidates.jsonl"))


@pytest.mark.parametrize("concurrency", [1, 500])
def test_concurrency_changes_nothing(finished: Finished, tmp_path: Path, run: Run, concurrency: int) -> None:
    run("--limit", 60, "--k", 6, "--concurrency", concurrency, "--out", "other")
    assert timeless(tmp_path / "other" / "traces.jsonl") == timeless(finished.folder / "traces.jsonl")


def test_labels_do_not_reach_the_draws(tmp_path: Path, run: Run) -> None:
    make_corpus(tmp_path / "one", ORDINAL, lambda number: {"a": 1 + number % 3})
    make_corpus(tmp_path / "two", ORDINAL, lambda number: {"a": 1 + (number + 1) % 3})
    for name in ("one", "two"):
        run("--corpus", name, "--strategy", "fixed", "--k", 4, "--out", f"run-{name}")
    hidden = {"label", "accepted", "flags", "seconds"}
    one, two = (
        [{key: value for key, value in record.items() if key not in hidden} for record in by_draw(read(path))]
        for path in (tmp_path / "run-one" / "candidates.jsonl", tmp_path / "run-two" / "candidates.jsonl")
    )
    assert one == two


def test_another_seed_draws_otherwise(finished: Finished, tmp_path: Path, run: Run) -> None:
    run("--limit", 60, "--k", 6, "--seed", 1, "--out", "other")
    assert timeless(tmp_path / "other" / "traces.jsonl") != timeless(finished.folder / "traces.jsonl")


def test_config_file_gives_the_same_run_as_flags(tmp_path: Path, run: Run) -> None:
    run("--limit", 10, "--k", 3, "--top-p", 0.9, "--seed", 5, "--out", "flags")
    (tmp_path / "run.yaml").write_text("limit: 10\nk: 9\ntop-p: 0.9\nseed: 5\nout: config\n")
    run("--config", "run.yaml", "--k", 3)
    flags, config = (strict(tmp_path / name / "manifest.json")["options"] for name in ("flags", "config"))
    assert {**config, "out": "flags"} == flags
    assert timeless(tmp_path / "config" / "traces.jsonl") == timeless(tmp_path / "flags" / "traces.jsonl")


# --- going on ---------------------------------------------------------------------------------------------


def test_same_command_again_draws_nothing_and_says_the_same(tmp_path: Path, run: Run) -> None:
    arguments = ("--limit", 30, "--k", 4, "--show", 2, "--out", "run")
    first = run(*arguments)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    second = run(*arguments)
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert second.out == first.out
    del before["manifest.json"], after["manifest.json"]
    assert after == before


def test_larger_limit_keeps_the_first_items(tmp_path: Path, run: Run) -> None:
    run("--limit", 20, "--out", "run")
    path = tmp_path / "run" / "candidates.jsonl"
    before, kept = path.read_bytes(), timeless(tmp_path / "run" / "traces.jsonl")
    run("--limit", 40, "--out", "run")
    assert path.read_bytes().startswith(before)
    traces = timeless(tmp_path / "run" / "traces.jsonl")
    assert len({record["item_id"] for record in read(path)}) == 40
    assert [trace for trace in traces if trace in kept] == kept
    run("--limit", 40, "--out", "straight")
    assert timeless(tmp_path / "straight" / "traces.jsonl") == traces
    assert by_draw(timeless(tmp_path / "straight" / "candidates.jsonl")) == by_draw(timeless(path))
    # And back: a smaller limit would leave out draws that were made.
    written = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert main(["--limit", "40", "--out", str(path.parent)]) == 0
    with pytest.raises(ConfigError, match="was run on 40 items, now 20"):
        main(["--limit", "20", "--out", str(path.parent)])
    assert path.read_bytes() == written["candidates.jsonl"]
    assert timeless(tmp_path / "run" / "traces.jsonl") == traces


@pytest.mark.parametrize("strategy", ["adaptive", "fixed"])
def test_larger_k_goes_on(tmp_path: Path, run: Run, strategy: str) -> None:
    arguments = ("--limit", 30, "--strategy", strategy)
    run(*arguments, "--k", 4, "--out", "run")
    path = tmp_path / "run" / "candidates.jsonl"
    before, kept = path.read_bytes(), timeless(tmp_path / "run" / "traces.jsonl")
    run(*arguments, "--k", 8, "--out", "run")
    assert path.read_bytes().startswith(before)
    traces = timeless(tmp_path / "run" / "traces.jsonl")
    assert len(traces) > len(kept)
    assert [trace for trace in traces if trace in kept] == kept
    run(*arguments, "--k", 8, "--out", "straight")
    assert timeless(tmp_path / "straight" / "traces.jsonl") == traces
    assert by_draw(timeless(tmp_path / "straight" / "candidates.jsonl")) == by_draw(timeless(path))


def test_adaptive_goes_on_as_fixed(finished: Finished, tmp_path: Path, run: Run) -> None:
    run("--limit", 20, "--k", 4, "--out", "run")
    run("--limit", 20, "--k", 4, "--strategy", "fixed", "--out", "run")
    made = [(record["item_id"], record["draw"]) for record in read(tmp_path / "run" / "candidates.jsonl")]
    assert len(made) == len(set(made)) == 80


def test_new_keeps_the_old_run_beside(tmp_path: Path, run: Run) -> None:
    def content(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    run("--limit", 5, "--out", "run")
    first = content("run")
    run("--limit", 5, "--seed", 1, "--new", "--out", "run")
    assert content("run.old-1") == first
    second = content("run")
    assert second["candidates.jsonl"] != first["candidates.jsonl"]
    run("--limit", 5, "--seed", 2, "--new", "--out", "run")
    assert content("run.old-1") == first
    assert content("run.old-2") == second


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_torn_last_line_is_drawn_again(finished: Finished, tmp_path: Path, run: Run, share: float) -> None:
    run("--limit", 60, "--k", 6, "--null-items", 0, "--out", "run")
    path = tmp_path / "run" / "candidates.jsonl"
    whole = path.read_bytes()
    cut = whole[: int(share * len(whole))]
    cut = cut[:-5] if cut.endswith(b"\n") else cut
    path.write_bytes(cut)
    (tmp_path / "run" / "traces.jsonl").unlink()
    run("--limit", 60, "--k", 6, "--null-items", 0, "--out", "run")
    assert path.read_bytes().startswith(cut[: cut.rfind(b"\n") + 1])
    assert by_draw(timeless(path)) == by_draw(timeless(finished.folder / "candidates.jsonl"))
    assert timeless(tmp_path / "run" / "traces.jsonl") == timeless(finished.folder / "traces.jsonl")


def whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


LONG = ("--strategy", "fixed", "--k", 20)
LONG_DRAWS = 272 * 20
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main([*map(str, LONG), "--out", str(folder)]) == 0
    return folder


def check_that_nothing_was_lost(folder: Path, before: bytes, uninterrupted: Path) -> None:
    path = folder / "candidates.jsonl"
    assert path.read_bytes().startswith(whole_lines(before))
    made = [(record["item_id"], record["draw"]) for record in read(path)]
    assert len(made) == len(set(made)) == LONG_DRAWS
    for name in ("traces.jsonl", "unmatched.jsonl"):
        without_times = [
            re.sub(rb'"seconds": [0-9.e-]+', b"", (place / name).read_bytes()) for place in (folder, uninterrupted)
        ]
        assert without_times[0] == without_times[1]
    assert strict(folder / "summary.json") == strict(uninterrupted / "summary.json")
    assert strict(folder / "manifest.json")["status"] == "complete"


def test_killed_run_goes_on(tmp_path: Path, run: Run, uninterrupted: Path) -> None:
    folder = tmp_path / "run"
    with started(STAGE, *LONG, "--out", folder) as process:
        wait_for_draws(folder / "candidates.jsonl", MEGABYTE, process)
        kill(process)
    before = (folder / "candidates.jsonl").read_bytes()
    assert 0 < before.count(b"\n") < LONG_DRAWS
    assert strict(folder / "manifest.json")["status"] == "running"
    outcome = run(*LONG, "--out", folder)
    assert f"{before.count(bytes([10])):,} draws are there already" in outcome.err
    check_that_nothing_was_lost(folder, before, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_goes_on(tmp_path: Path, run: Run, uninterrupted: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    with started(STAGE, *LONG, "--out", folder) as process:
        wait_for_draws(folder / "candidates.jsonl", MEGABYTE, process)
        last = interrupt(process, number)
    assert str(folder) in last
    before = (folder / "candidates.jsonl").read_bytes()
    assert before.endswith(b"\n")
    assert before.count(b"\n") < LONG_DRAWS
    assert f"{before.count(bytes([10])):,} draws" in last
    manifest = strict(folder / "manifest.json")
    assert manifest["status"] == "stopped"
    assert manifest["draws"] == {"first": before.count(b"\n")}
    run(*LONG, "--out", folder)
    check_that_nothing_was_lost(folder, before, uninterrupted)


def test_full_disk_loses_nothing(tmp_path: Path, run: Run, uninterrupted: Path) -> None:
    """A limit on the size of files stands in for a disk that is full."""
    folder, limit = tmp_path / "run", 400_123

    def fill_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = run_alone(STAGE, *LONG, "--out", folder, preexec_fn=fill_disk)
    assert done.status == 1, done.err
    assert "Traceback" not in done.err
    before = (folder / "candidates.jsonl").read_bytes()
    # What did not fit was cut off again, so that no draw in flight could come to stand behind half a line.
    assert limit - 2_000 < len(before) <= limit
    assert before.endswith(b"\n")
    last = done.err.strip().splitlines()[-1]
    assert str(folder) in last
    assert "File too large" in last
    assert "same command again" in done.err
    run(*LONG, "--out", folder)
    check_that_nothing_was_lost(folder, before, uninterrupted)


def test_second_interrupt_leaves_the_draws_in_flight(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", ORDINAL, lambda number: {"a": 1 + number % 3})

    def script(body: Record, count: int) -> Answer:
        return Answer("<rating>2</rating>", reasoning="It is of the usual kind.", delay_seconds=0 if count < 3 else 60)

    with ScriptedServer(script) as server, started(
        STAGE, "--corpus", corpus, "--out", tmp_path / "run", "--model", "openai/scripted",
        "--base-url", server.base_url,
    ) as process:  # fmt: skip
        wait_for_draws(tmp_path / "run" / "candidates.jsonl", 1, process)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None, "the draws in flight are worth waiting for"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == INTERRUPTED, err
    assert "Traceback" not in err
    assert "Ctrl-C again" in err
    assert "same command again" in err.strip().splitlines()[-1]
    assert len(read(tmp_path / "run" / "candidates.jsonl")) == 3


@pytest.mark.parametrize("extra", [[], ["--new"]], ids=["same command", "new"])
def test_two_processes_never_write_one_folder(tmp_path: Path, run: Run, extra: list[str]) -> None:
    corpus = make_corpus(tmp_path / "c", ORDINAL, lambda number: {"a": 2})
    folder, gate = tmp_path / "run", threading.Event()

    def script(body: Record, count: int) -> Answer:
        assert count < 3 or gate.wait(60)
        return Answer("<rating>2</rating>", reasoning="It is of the usual kind.")

    with ScriptedServer(script) as server:
        arguments = (
            "--corpus", corpus, "--out", folder, "--model", "openai/scripted", "--base-url", server.base_url,
            "--split", "all",
        )  # fmt: skip
        with started(STAGE, *arguments) as process:
            # A second run that does get in must not hang here, so it is not kept waiting for answers.
            opened = threading.Timer(5, gate.set)
            try:
                wait_for_draws(folder / "candidates.jsonl", 1, process)
                opened.start()
                outcome = run(*arguments, *extra, status=2)
            finally:
                opened.cancel()
                gate.set()
            last = outcome.err.strip().splitlines()[-1]
            assert last.startswith(f"{STAGE}: ")
            assert str(folder) in last
            assert "another process" in last
            _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert {record["item_id"] for record in read(folder / "candidates.jsonl")} == {f"i{n}" for n in range(12)}
    assert len(read(folder / "traces.jsonl")) == 12
    assert not list(tmp_path.glob("run.old-*"))


def test_server_that_fails_half_way_loses_nothing(tmp_path: Path, run: Run) -> None:
    corpus = make_corpus(tmp_path / "c", ORDINAL, lambda number: {"a": 1})
    broken = [True]

    def script(body: Record, count: int) -> Answer | Fault:
        if broken[0] and count >= 10:
            return Fault(401, "Your key has expired.", "invalid_request_error", "invalid_api_key")
        return Answer("<rating>2</rating>", reasoning="It is of the usual kind.", prompt_tokens=11, completion_tokens=7)

    with ScriptedServer(script) as server:
        arguments = (
            "--corpus", corpus, "--out", "run", "--model", "openai/scripted", "--base-url", server.base_url, "--k", 4,
            "--concurrency", 1, "--split", "all", "--input-price", 2, "--output-price", 10,
        )  # fmt: skip
        outcome = run(*arguments, status=2)
        lines = outcome.err.strip().splitlines()
        assert lines[-1].startswith(f"{STAGE}: openai/scripted")
        assert "10 draws are kept" in outcome.err
        assert "same command again" in outcome.err
        manifest = strict(tmp_path / "run" / "manifest.json")
        assert manifest["status"] == "failed"
        assert manifest["draws"] == {"first": 10}
        # 10 draws of 11 tokens read at $2 and 7 written at $10 a million.
        assert manifest["cost_usd"] == pytest.approx(10 * (11 * 2 + 7 * 10) / 1e6)
        before = (tmp_path / "run" / "candidates.jsonl").read_bytes()
        broken[0] = False
        run(*arguments)
        assert len(server.requests) == 11 + 38
    assert (tmp_path / "run" / "candidates.jsonl").read_bytes().startswith(before)
    assert strict(tmp_path / "run" / "manifest.json")["draws"] == {"first": 48}


# --- labels, keeping, second chances ----------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["adaptive", "fixed"])
def test_per_annotator_keeps_a_trace_for_each_persons_own_label(tmp_path: Path, run: Run, strategy: str) -> None:
    said = {number: {"ann": 1 + number % 3, "bob": 1 + number // 3 % 3, "cy": 2} for number in range(12)}
    corpus = make_corpus(tmp_path / "c", ORDINAL, lambda number: said[number])
    arguments = ("--corpus", corpus, "--labels", "per-annotator", "--split", "all", "--k", 30, "--strategy", strategy)
    run(*arguments, "--out", "run")
    traces = read(tmp_path / "run" / "traces.jsonl")
    own = {(f"i{number}", who): label for number, labels in said.items() for who, label in labels.items()}
    assert {(trace["item_id"], trace["annotator_id"]): trace["label"] for trace in traces} == own
    assert all(trace["verdict"] == trace["label"] for trace in traces)
    shared: dict[tuple[str, int], set[tuple[str, int]]] = defaultdict(set)
    seen: set[tuple[str, int, str]] = set()
    for record in read(tmp_path / "run" / "candidates.jsonl"):
        assert record["label"] == own[record["item_id"], record["annotator_id"]]
        shared[record["item_id"], record["draw"]].add((record["trace"], record["verdict"]))
        line = (record["item_id"], record["draw"], record["annotator_id"])
        assert line not in seen
        seen.add(line)
    assert all(len(drawn) == 1 for drawn in shared.values())
    assert strict(tmp_path / "run" / "manifest.json")["draws"] == {"first": len(shared)}
    # Who gave the same label to an item kept the same draw.
    kept: dict[tuple[str, int], set[int]] = defaultdict(set)
    for trace in traces:
        kept[trace["item_id"], trace["label"]].add(trace["draw"])
    assert all(len(draws) == 1 for draws in kept.values())


@pytest.mark.parametrize("strategy", ["adaptive", "fixed"])
@pytest.mark.parametrize("lines", [1, 2, 4, 5, 30])
def test_per_annotator_goes_on_from_any_line(tmp_path: Path, run: Run, strategy: str, lines: int) -> None:
    """A draw that several people share is several lines, and a crash may fall between them."""
    corpus = make_corpus(tmp_path / "c", ORDINAL, lambda number: {"ann": 1, "bob": 2, "cy": 3})
    arguments = ("--corpus", corpus, "--labels", "per-annotator", "--split", "all", "--k", 5, "--strategy", strategy)
    run(*arguments, "--out", "whole")
    run(*arguments, "--out", "run")
    path = tmp_path / "run" / "candidates.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]) + b'{"item_id": "i')
    run(*arguments, "--out", "run")
    assert by_draw(timeless(path)) == by_draw(timeless(tmp_path / "whole" / "candidates.jsonl"))
    assert timeless(tmp_path / "run" / "traces.jsonl") == timeless(tmp_path / "whole" / "traces.jsonl")


def test_keep_all(tmp_path: Path, run: Run) -> None:
    run("--limit", 15, "--k", 12, "--keep", "all", "--out", "run")
    accepted = [record for record in timeless(tmp_path / "run" / "candidates.jsonl") if record["accepted"]]
    kept = [{name: trace[name] for name in FIELDS if name != "seconds"} for trace in
            timeless(tmp_path / "run" / "traces.jsonl")]  # fmt: skip
    assert len(accepted) > 15
    assert by_draw(kept) == by_draw(accepted)
    assert len(read(tmp_path / "run" / "candidates.jsonl")) == 15 * 12


def test_keep_two(tmp_path: Path, run: Run) -> None:
    run("--limit", 15, "--k", 12, "--keep", 2, "--out", "run")
    accepted = draws_of([record for record in read(tmp_path / "run" / "candidates.jsonl") if record["accepted"]])
    kept = draws_of(read(tmp_path / "run" / "traces.jsonl"))
    assert kept.keys() == accepted.keys()
    for item_id, traces in kept.items():
        draws = sorted(record["draw"] for record in accepted[item_id])
        assert traces[0]["draw"] == draws[0]
        assert len({trace["draw"] for trace in traces}) == min(2, len(draws))
        assert {trace["draw"] for trace in traces} <= set(draws)
    assert any(len(traces) == 2 for traces in kept.values())


@pytest.mark.parametrize(
    ("flag", "chance", "mode"),
    [("--escalate", "escalated", "infer"), ("--rationalize", "rationalized", "rationalize")],
)
def test_second_chance_is_marked_and_changes_nothing_else(
    tmp_path: Path, run: Run, flag: str, chance: str, mode: str
) -> None:
    run("--limit", 40, "--k", 1, "--out", "plain")
    run("--limit", 40, "--k", 1, flag, "embedded", "--out", "run")
    plain = timeless(tmp_path / "plain" / "candidates.jsonl")
    candidates = timeless(tmp_path / "run" / "candidates.jsonl")
    assert by_draw([record for record in candidates if record["chance"] == "first"]) == by_draw(plain)
    second = [record for record in candidates if record["chance"] != "first"]
    assert second
    assert {(record["chance"], record["mode"]) for record in second} == {(chance, mode)}
    matched = {record["item_id"] for record in plain if record["accepted"]}
    assert matched.isdisjoint(record["item_id"] for record in second)
    assert all(len(records) <= 4 for records in draws_of(second).values())
    traces = timeless(tmp_path / "run" / "traces.jsonl")
    assert [trace for trace in traces if trace["chance"] == "first"] == timeless(tmp_path / "plain" / "traces.jsonl")
    gained = [trace for trace in traces if trace["chance"] == chance]
    assert gained
    assert all(trace["accepted"] and trace["verdict"] == trace["label"] for trace in gained)
    summary = strict(tmp_path / "run" / "summary.json")
    assert summary["kept_by_chance"] == {"first": len(traces) - len(gained), chance: len(gained)}
    # What is learned from is the question without the label, also where the label was shown.
    assert all("Known rating" not in trace["prompt"][0]["content"] for trace in traces)
    assert summary["utilisation"][-1]["share"] == pytest.approx((len(traces) - len(gained)) / 40)


def test_second_chances_go_on_too(tmp_path: Path, run: Run) -> None:
    arguments = ("--limit", 20, "--k", 1, "--escalate", "embedded", "--rationalize", "embedded", "--second-k", 2)
    run(*arguments, "--out", "whole")
    whole = by_draw(timeless(tmp_path / "whole" / "candidates.jsonl"))
    assert {record["chance"] for record in whole} == {"first", "escalated", "rationalized"}
    run("--limit", 20, "--k", 1, "--escalate", "embedded", "--second-k", 2, "--out", "run")
    run(*arguments, "--out", "run")
    path = tmp_path / "run" / "candidates.jsonl"
    assert by_draw(timeless(path)) == whole
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    run(*arguments, "--out", "run")
    assert by_draw(timeless(path)) == whole
    assert timeless(tmp_path / "run" / "traces.jsonl") == timeless(tmp_path / "whole" / "traces.jsonl")


def test_second_chance_may_be_added_with_any_number_of_draws(tmp_path: Path, run: Run) -> None:
    run("--limit", 20, "--k", 1, "--out", "run")
    run("--limit", 20, "--k", 1, "--escalate", "embedded", "--second-k", 1, "--out", "run")
    run("--limit", 20, "--k", 1, "--escalate", "embedded", "--second-k", 1, "--out", "straight")
    assert timeless(tmp_path / "run" / "traces.jsonl") == timeless(tmp_path / "straight" / "traces.jsonl")


# --- scales -----------------------------------------------------------------------------------------------


def test_nothing_accepted(tmp_path: Path, run: Run) -> None:
    """At temperature 0 without rules the rule reader starts and stays in the middle: 2 of 1, 2, 3."""
    corpus = make_corpus(tmp_path / "c", ORDINAL, lambda number: {"a": 3})
    outcome = run("--corpus", corpus, "--temperature", 0, "--k", 1, "--split", "all", "--show", 3, "--out", "run")
    assert "Kept 0 traces for 0 of 12 labels" in outcome.out
    assert read(tmp_path / "run" / "traces.jsonl") == []
    summary = strict(tmp_path / "run" / "summary.json")
    assert summary["kept"] == 0
    assert [point["share"] for point in summary["utilisation"]] == [0.0]
    assert summary["unmatched"] == {"labels": 12, "by_distance_of_nearest_verdict": {"1": 12}}
    strict(tmp_path / "run" / "manifest.json")
    for record in read(tmp_path / "run" / "unmatched.jsonl"):
        assert (record["label"], record["nearest_verdict"], record["distance"]) == (3, 2, 1)
        assert record["verdicts"] == {"2": 1}


def test_tolerance_on_an_ordinal_scale_is_in_steps(tmp_path: Path, run: Run) -> None:
    corpus = make_corpus(tmp_path / "c", ORDINAL, lambda number: {"a": 3})
    arguments = ("--corpus", corpus, "--temperature", 0, "--k", 1, "--split", "all", "--tolerance", 1)
    run(*arguments, "--out", "run")
    traces = read(tmp_path / "run" / "traces.jsonl")
    assert [(trace["label"], trace["verdict"]) for trace in traces] == [(3, 2)] * 12
    # The trace argues for the verdict, so the verdict is what it ends in.
    assert all(trace["completion"][0]["content"].endswith("<rating>2</rating>") for trace in traces)


def test_nominal_items_without_a_majority_are_left_out_and_counted(tmp_path: Path, run: Run) -> None:
    corpus = make_corpus(tmp_path / "c", NOMINAL, lambda number: {"a": "good", "b": "good" if number >= 4 else "bad"})
    run("--corpus", corpus, "--split", "all", "--out", "run")
    assert {record["item_id"] for record in read(tmp_path / "run" / "candidates.jsonl")} == {
        f"i{number}" for number in range(4, 12)
    }
    assert sum(strict(tmp_path / "run" / "summary.json")["dropped_items"].values()) == 4
    assert {trace["label"] for trace in read(tmp_path / "run" / "traces.jsonl")} == {"good"}


def test_interval(tmp_path: Path, run: Run) -> None:
    corpus = make_corpus(tmp_path / "c", INTERVAL, lambda number: {"a": 40, "b": 60.5})
    run("--corpus", corpus, "--split", "all", "--tolerance", 6, "--k", 20, "--out", "run")
    traces = read(tmp_path / "run" / "traces.jsonl")
    assert traces
    for record in read(tmp_path / "run" / "candidates.jsonl"):
        assert record["label"] == 50.25
        assert record["accepted"] == (abs(record["verdict"] - 50.25) <= 6)


def test_pairwise_texts_change_places_every_second_draw(tmp_path: Path, run: Run) -> None:
    corpus = make_corpus(
        tmp_path / "c",
        PAIRWISE,
        lambda number: {"a": "AB"[number % 2]},
        inputs=lambda number: {"first": "Few words. " * (1 + number), "second": "Some other words! " * (12 - number)},
    )
    run("--corpus", corpus, "--split", "all", "--k", 6, "--strategy", "fixed", "--keep", "all", "--out", "run")
    other = {"A": "B", "B": "A", "tie": "tie"}
    for records in draws_of(read(tmp_path / "run" / "candidates.jsonl")).values():
        swapped = [record["swapped"] for record in sorted(records, key=lambda record: record["draw"])]
        assert swapped in ([True, False] * 3, [False, True] * 3)
        for record in records:
            said = re.fullmatch("<rating>(.*)</rating>", record["answer"])
            assert said is not None
            assert record["verdict"] == (other[said[1]] if record["swapped"] else said[1])
    traces = read(tmp_path / "run" / "traces.jsonl")
    assert {trace["swapped"] for trace in traces} == {True, False}
    for trace in traces:
        # A trace speaks of the order it saw, and so does the answer it is taught with.
        seen = other[trace["label"]] if trace["swapped"] else trace["label"]
        assert trace["completion"][0]["content"].endswith(f"<rating>{seen}</rating>")
        assert trace["trace"].endswith(f" {seen}.")


# --- the terminal -----------------------------------------------------------------------------------------


def test_show_prints_traces_beside_their_items(tmp_path: Path, run: Run) -> None:
    outcome = run("--limit", 10, "--show", 2, "--out", "run")
    traces = read(tmp_path / "run" / "traces.jsonl")
    items = {item["item_id"]: item["inputs"] for item in read(DEMO / "items.jsonl")}
    for trace in traces[:2]:
        assert trace["item_id"] in outcome.out
        assert all(line in outcome.out for line in trace["trace"].splitlines())
        printed = " ".join(outcome.out.split())
        assert all(" ".join(text.split()) in printed for text in items[trace["item_id"]].values())
    assert traces[2]["item_id"] not in outcome.out


HOSTILE = "\x1b[2J\x1b]0;title\x07 \x08\x08\r\x9b31m \u202egnp.exe \x00 end"


def is_harmless(outcome: Outcome) -> bool:
    return (outcome.out + outcome.err).replace("\n", "").replace("\r", "").isprintable()


def test_control_characters_of_an_item_do_not_reach_the_terminal(tmp_path: Path, run: Run) -> None:
    corpus = make_corpus(
        tmp_path / "c",
        NOMINAL,
        lambda number: {f"ann{HOSTILE}": "good"},
        inputs=lambda number: {"text": f"{number} {HOSTILE} " * (number + 1), f"na{HOSTILE}me": "b"},
    )
    outcome = run("--corpus", corpus, "--split", "all", "--labels", "per-annotator", "--show", 12, "--out", "run")
    assert "\r" not in outcome.out
    assert is_harmless(outcome)
    assert read(tmp_path / "run" / "traces.jsonl"), "the text itself is no obstacle"


@pytest.mark.parametrize("place", ["name", "label"])
def test_control_characters_of_corpus_yaml_do_not_reach_the_terminal(tmp_path: Path, run: Run, place: str) -> None:
    """Whether such a corpus is refused or used: nothing of it moves the cursor, and the plot stays well-formed."""
    good = "good\x1b[2J" if place == "label" else "good"
    name = "small\x1b[2J\x07" if place == "name" else "small"
    corpus = make_corpus(
        tmp_path / "c", {"type": "nominal", "labels": [good, "bad"]}, lambda number: {"a": good}, name=name
    )
    outcome = run("--corpus", corpus, "--split", "all", "--show", 2, "--out", "run", status=None)
    assert is_harmless(outcome)
    assert outcome.status in (0, 2)
    for plot in tmp_path.rglob("*.svg"):
        ElementTree.parse(plot)
