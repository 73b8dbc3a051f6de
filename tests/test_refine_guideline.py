"""The stage from its command line to its files: what it writes, how it goes on, and what it never does."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from pipelines.infer_traces import main as infer
from pipelines.rate_items import main as rate_items
from pipelines.refine_guideline import STAGE, main
from raters.models.embedded import rule_lines
from raters.rater_draws import RaterDraws
from raters.rater_files import read_rater
from raters.refinement_results import _rows
from raters.refinement_text import summary_lines
from raters.scales import OrdinalScale
from raters.trace_runs import TraceRun
from tests.places import DEMO
from tests.scripted_server import Answer, Fault
from tests.scripted_writer import BAD, Say, ScriptedWriter, edit_block, numbered_lines
from tests.small_corpora import ORDINAL_3, ORDINAL_5, varied_texts, write_corpus
from tests.stage_runs import (
    Outcome,
    Record,
    Run,
    calls_of,
    interrupt,
    kill,
    leave_the_user,
    read,
    started,
    strict,
    wait_until,
)

ORIGINAL = (DEMO / "guidelines" / "helpfulness.md").read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    leave_the_user(tmp_path, monkeypatch)
    return calls_of(STAGE, main, monkeypatch, capsys)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return a run's results; journals and the manifest hold wall times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", ".lock")
    }


def rules(folder: Path) -> set[str]:
    return set(rule_lines((folder / "guideline.md").read_text()))


def one_clear_line(outcome: Outcome, *words: str) -> str:
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith(f"{STAGE}: ")
    for word in words:
        assert word in last
    return last


def read_first_draws(traces: Path) -> list[Record]:
    """Return a candidate of every item."""
    return [record for record in read(traces / "candidates.jsonl") if record["draw"] == 0]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of infer_traces on the demo corpus."""
    folder = tmp_path_factory.mktemp("traces") / "run"
    assert infer(["--out", str(folder), "--k", "12", "--strategy", "fixed", "--null-items", "0"]) == 0
    return folder


FAST = ("--resamples", 200, "--draws", 4, "--patience", 2)


@pytest.fixture(scope="module")
def finished(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the stage, which several tests look at."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["--traces", str(traces), "--out", str(folder), *map(str, FAST)]) == 0
    return folder


# --- what a run writes ------------------------------------------------------------------------------------


def test_files(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "guideline.md", "diff.md", "provenance.jsonl", "proposals.jsonl", "raters", "report.html", "summary.json",
        "test", "manifest.json", "trials", ".lock",
    }  # fmt: skip
    assert {path.name for path in (finished / "raters").iterdir()} == {"embedded.yaml"}
    assert {path.name for path in (finished / "test").iterdir()} == {"embedded-original", "embedded-refined"}
    strict(finished / "summary.json")
    strict(finished / "manifest.json")


def test_the_guideline_says_more_and_loses_nothing(finished: Path) -> None:
    text = (finished / "guideline.md").read_text()
    assert text.startswith(ORIGINAL.rstrip() + "\n\n## What to weigh\n")
    assert text.endswith("\n")
    assert {"overlap helps twice", "length helps twice"} <= rules(finished)
    diff = (finished / "diff.md").read_text()
    body = [line for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert [line[1:] for line in body] == text.splitlines()[len(ORIGINAL.rstrip().splitlines()) :]
    assert not [line for line in diff.splitlines() if re.match(r"-(?!--)", line)]


def gold_of(run: TraceRun, part: str) -> dict[str, int]:
    """Return people's labels of a part, odd numbers of them by their plain median."""
    said: dict[str, list[int]] = {}
    for record in read(DEMO / "annotations.jsonl"):
        said.setdefault(record["item_id"], []).append(record["label"])
    ids = {run.corpus.item_ids[item] for item in run.split.indices(part)}  # type: ignore[arg-type]
    return {item_id: int(np.median(labels)) for item_id, labels in said.items() if item_id in ids and len(labels) % 2}


def tau(records: Sequence[Record], gold: dict[str, int]) -> float:
    said: dict[str, list[int]] = {}
    for record in records:
        said.setdefault(record["item_id"], []).append(record["verdict"])
    return float(kendalltau(list(gold.values()), [np.mean(said[item_id]) for item_id in gold]).statistic)


def test_every_new_line_has_its_evidence(finished: Path, traces: Path) -> None:
    text = (finished / "guideline.md").read_text().splitlines()
    lines = read(finished / "provenance.jsonl")
    new = {number for number, line in enumerate(text, 1) if line.strip() and line not in ORIGINAL.splitlines()}
    assert {line["line"] for line in lines} == new
    candidates = {(one["item_id"], one["draw"]): one for one in read(traces / "candidates.jsonl")}
    proposals = {one["proposal"]: one for one in read(finished / "proposals.jsonl")}
    for line in lines:
        assert text[line["line"] - 1] == line["text"]
        assert line["replaces"] is None
        assert line["figure"] == "kendall_tau_b"
        assert line["before"] < line["after"]
        assert line["low"] < line["after"] - line["before"] < line["high"]
        assert 0 < line["p"] <= 0.05
        proposal = proposals[line["proposal"]]
        assert proposal["outcome"] == "kept"
        assert line["text"] in proposal["added"]
        assert {name: proposal[name] for name in ("before", "after", "low", "high", "p")} == {
            name: line[name] for name in ("before", "after", "low", "high", "p")
        }
        for trace in line["traces"]:
            assert candidates[trace["item_id"], trace["draw"]]["accepted"]
    assert any(line["traces"] for line in lines)


def test_every_proposal_is_told_with_its_outcome(finished: Path) -> None:
    proposals = read(finished / "proposals.jsonl")
    assert [one["proposal"] for one in proposals] == list(range(1, len(proposals) + 1))
    summary = strict(finished / "summary.json")
    outcomes = [one["outcome"] for one in proposals]
    assert summary["proposals"] == {name: outcomes.count(name) for name in ("kept", "gate", "lint")}
    for one in proposals:
        assert (one["reason"] == "") == (one["outcome"] == "kept")
        if one["outcome"] == "gate":
            assert one["p"] is None or one["p"] > 0.05 or one["after"] <= one["before"]
    assert "kept" in outcomes
    assert "kept" not in outcomes[-2:]  # it ends without a gain, for want of proposals or of patience


def test_figures_are_those_of_the_ratings_that_are_kept(finished: Path, traces: Path) -> None:
    """By scipy, on the items whose median is plain; the stage's own figures are of all items and near."""
    run_ = TraceRun.read(traces)
    test = strict(finished / "summary.json")["test"]
    gold = gold_of(run_, "test")
    assert 20 < len(gold) < test["items"] == 56
    for when, name in (("before", "original"), ("after", "refined")):
        records = read(finished / "test" / f"embedded-{name}" / "ratings.jsonl")
        assert len(records) == 56 * 4
        assert tau(records, gold) == pytest.approx(test["changes"]["embedded"][when], abs=0.15)
    assert test["changes"]["embedded"]["after"] > test["changes"]["embedded"]["before"] + 0.3


@pytest.mark.parametrize("version", ["original", "refined"])
def test_test_ratings_are_those_of_rate_items(finished: Path, tmp_path: Path, version: str) -> None:
    """The rater beside the ratings, applied by the stage for it, says the same of every item."""
    folder = finished / "test" / f"embedded-{version}"
    arguments = ["--rater", str(folder / "rater.yaml"), "--corpus", str(DEMO), "--out", str(tmp_path / "out")]
    assert rate_items([*arguments, "--split", "test"]) == 0
    theirs, ours = read(tmp_path / "out" / "ratings.jsonl"), read(folder / "ratings.jsonl")

    def plain(records: list[Record]) -> list[Record]:
        return sorted(({**record, "seconds": 0} for record in records), key=lambda one: (one["item_id"], one["draw"]))

    assert plain(ours) == plain(theirs)
    manifests = [strict(place / "manifest.json") for place in (folder, tmp_path / "out")]
    assert manifests[0].keys() <= manifests[1].keys() | {"split_sha256"}
    for name in ("stage", "status", "inputs_sha256", "split_sha256", "rated_sha256", "items", "draws", "draws_per_item",
                 "prompt_tokens", "completion_tokens", "cost_usd"):  # fmt: skip
        assert manifests[0][name] == manifests[1][name], name


def test_ratings_can_be_scored(finished: Path, tmp_path: Path) -> None:
    """By score_agreement, which refuses what its rater has seen."""
    from pipelines.score_agreement import main as score

    ratings = [str(finished / "test" / f"embedded-{version}" / "ratings.jsonl") for version in ("original", "refined")]
    assert score(["--ratings", *ratings, "--corpus", str(DEMO), "--out", str(tmp_path), "--resamples", "200"]) == 0
    figure = strict(finished / "summary.json")["test"]["changes"]["embedded"]
    assert 0.3 < figure["after"] < 1


def test_the_rater_has_the_new_guideline_and_says_what_it_has_seen(finished: Path, traces: Path) -> None:
    spec = read_rater(finished / "raters" / "embedded.yaml")
    assert spec.dimension.guideline == (finished / "guideline.md").read_text().strip()
    assert (spec.model, spec.draws, spec.seed, spec.certificate) == ("embedded", 4, 0, None)
    run_ = TraceRun.read(traces)
    for part, seen in (("train", True), ("dev", True), ("test", False)):
        items = run_.split.indices(part)  # type: ignore[arg-type]
        assert len(spec.seen.touched(run_.corpus, items)) == (len(items) if seen else 0)


def test_manifest(finished: Path) -> None:
    manifest = strict(finished / "manifest.json")
    assert (manifest["stage"], manifest["status"]) == (STAGE, "complete")
    records = [record for path in (finished / "trials").glob("*.jsonl") for record in read(path)]
    assert manifest["requests"] == len(records)
    for name in ("prompt_tokens", "completion_tokens"):
        assert manifest[name] == sum(record[name] for record in records)
    assert manifest["cost_usd"] == 0.0
    assert manifest["options"]["method"] == "contrast"
    assert manifest["inputs_sha256"].keys() >= {"items.jsonl", "annotations.jsonl"}
    made = [(record["rater_sha256"], record["item_id"], record["draw"]) for record in records]
    assert len(made) == len(set(made))


def test_labels_of_the_test_split_decide_nothing(traces: Path, finished: Path, tmp_path: Path, run: Run) -> None:
    """The corpus is not to change after the traces, so its hash is mended in the manifest for once."""
    corpus, copy = tmp_path / "corpus", tmp_path / "traces"
    shutil.copytree(DEMO, corpus)
    shutil.copytree(traces, copy)
    run_ = TraceRun.read(traces)
    test = {run_.corpus.item_ids[item] for item in run_.split.indices("test")}
    records = read(corpus / "annotations.jsonl")
    for record in records:
        if record["item_id"] in test:
            record["label"] = 6 - record["label"]
    (corpus / "annotations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    manifest = strict(copy / "manifest.json")
    del manifest["inputs_sha256"]["annotations.jsonl"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    run("--traces", copy, "--corpus", corpus, "--out", "run", *FAST)
    for name in ("guideline.md", "proposals.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
    before, after = (strict(folder / "summary.json")["test"] for folder in (finished, tmp_path / "run"))
    assert after["changes"]["embedded"]["after"] == pytest.approx(-before["changes"]["embedded"]["after"], abs=0.05)


# --- going on ---------------------------------------------------------------------------------------------


def test_same_command_again_says_the_same_and_draws_nothing(traces: Path, finished: Path, run: Run) -> None:
    before, requests = files_of(finished), strict(finished / "manifest.json")["requests"]
    outcome = run("--traces", traces, "--out", finished, *FAST)
    assert files_of(finished) == before
    assert strict(finished / "manifest.json")["requests"] == requests
    assert f"{requests:,} answers are there already" in outcome.err


def test_another_folder_and_concurrency_give_the_same(traces: Path, finished: Path, tmp_path: Path, run: Run) -> None:
    run("--traces", traces, "--out", "other", "--concurrency", 3, *FAST)
    ours = files_of(tmp_path / "other")
    for name, content in files_of(finished).items():
        if "trials" not in name and "ratings" not in name:
            assert ours[name] == content, name


def test_changed_settings_are_refused(traces: Path, finished: Path, run: Run, tmp_path: Path) -> None:
    before = files_of(finished)
    (tmp_path / "other.md").write_text("Rate it.\n")
    for name, value in (
        ("--level", 0.01), ("--method", "paper"), ("--dev-limit", 30), ("--guideline", tmp_path / "other.md"),
    ):  # fmt: skip
        outcome = run("--traces", traces, "--out", finished, *FAST, name, value, status=2)
        one_clear_line(outcome, "belongs to another run", "--new")
    assert files_of(finished) == before


def test_another_explainer_is_another_run(traces: Path, tmp_path: Path, run: Run) -> None:
    arguments = ("--traces", traces, "--out", "run", "--method", "post-hoc", "--explanations", 1, "--rubric-traces", 2)
    run(*arguments, "--no-test", *FAST)
    outcome = run(*arguments, "--no-test", *FAST, "--explain", "openai/other", "--base-url", "http://x/v1", status=2)
    one_clear_line(outcome, 'explain was null, now "openai/other"')


def test_a_folder_of_another_stage_is_refused(traces: Path, run: Run) -> None:
    before = files_of(traces)
    one_clear_line(run("--traces", traces, "--out", traces, status=2), "belongs to a run of infer_traces")
    assert files_of(traces) == before


def test_new_keeps_the_old_run_beside(traces: Path, tmp_path: Path, run: Run) -> None:
    run("--traces", traces, "--out", "run", "--no-test", *FAST)
    first = files_of(tmp_path / "run")
    run("--traces", traces, "--out", "run", "--no-test", "--new", *FAST, "--seed", 1)
    assert files_of(tmp_path / "run.old-1") == first
    assert files_of(tmp_path / "run")["proposals.jsonl"] != first["proposals.jsonl"]


def test_torn_journals_are_mended(traces: Path, finished: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(finished, tmp_path / "run")
    journals = sorted((tmp_path / "run" / "trials").glob("*.jsonl"))
    for path, share in zip(journals, (0.2, 0.7, 1.0) * len(journals), strict=False):
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for path in ("guideline.md", "summary.json", "provenance.jsonl"):
        (tmp_path / "run" / path).unlink()
    run("--traces", traces, "--out", "run", *FAST)
    ours = files_of(tmp_path / "run")
    for name, content in files_of(finished).items():
        if "trials" not in name and "ratings" not in name:
            assert ours[name] == content, name


# --- a writer behind a server -----------------------------------------------------------------------------

RULE = "- overlap helps twice."
SILLY = ("- closed_end hurts once.", "- questions hurts once.")
SMALL = (
    "--dev-limit", 40, "--draws", 4, "--resamples", 200, "--rubric-traces", 1, "--instruction-traces", 2,
    "--train-items", 10, "--cases", 2, "--embeddings", "tfidf", "--no-test",
)  # fmt: skip


def at_server(server: ScriptedWriter, traces: Path, *more: object, small: Sequence[object] = SMALL) -> list[object]:
    model = ("--writer", "openai/scripted", "--base-url", server.base_url)
    return ["--traces", traces, "--out", "run", *model, *small, *more]


def one_rule_after_another(prompt: str, number: int) -> str:
    """Propose a rule that helps, then two that do not, then nothing."""
    lines = numbered_lines(prompt)
    tried = prompt.partition("# Edits that were tried before")[2].partition("# Your task")[0]
    left = [rule for rule in (RULE, *SILLY) if rule not in lines and f"why {rule}" not in tried]
    return edit_block("add", len(lines), left[0], why=f"why {left[0]}") if left else "<edit></edit>"


def test_a_model_writes_and_the_gate_decides(traces: Path, tmp_path: Path, run: Run) -> None:
    with ScriptedWriter({"edit": one_rule_after_another}) as server:
        outcome = run(*at_server(server, traces))
    # Five labels have one trace each; drafts that change no verdict of the rule reader are no gain.
    proposals = read(tmp_path / "run" / "proposals.jsonl")
    kept = [one for one in proposals if one["outcome"] == "kept"]
    assert server.counts["instructions"] == server.counts["criteria"] == 1
    assert server.counts["critiques"] == 5
    assert server.counts["edit"] == len(proposals) - 2 + 1
    assert [one["action"] for one in proposals[:2]] == ["instructions", "criteria"]
    assert {one["outcome"] for one in proposals[:2]} == {"gate"}
    assert [one["added"] for one in proposals[2:]] == [[rule] for rule in (RULE, *SILLY)]
    assert [one["outcome"] for one in proposals[2:]] == ["kept", "gate", "gate"]
    assert rules(tmp_path / "run") == {RULE[2:-1]}
    assert len(kept) == 1
    assert "How to rate" not in (tmp_path / "run" / "guideline.md").read_text()
    assert "no further proposal" in outcome.err
    # The writer's journal holds every answer once.
    answers = read(tmp_path / "run" / "writer.jsonl")
    assert len(answers) == len(server.requests)
    manifest = strict(tmp_path / "run" / "manifest.json")
    drawn = sum(len(read(path)) for path in (tmp_path / "run" / "trials").glob("*.jsonl"))
    assert manifest["requests"] == len(answers) + drawn
    assert manifest["cost_usd"] is None


def test_the_writer_sees_cases_of_the_train_split_and_what_was_tried(traces: Path, tmp_path: Path, run: Run) -> None:
    with ScriptedWriter({"edit": one_rule_after_another}) as server:
        run(*at_server(server, traces))
    run_ = TraceRun.read(traces)
    train = {run_.corpus.item_ids[item] for item in run_.split.indices("train")}
    candidates = read(traces / "candidates.jsonl")
    assert {record["item_id"] for record in candidates} <= train
    by_trace: dict[str, list[Record]] = {}
    for record in candidates:
        by_trace.setdefault(record["trace"], []).append(record)
    for prompt in server.prompts["edit"]:
        cases = re.findall(r'<case people="(\d)" raters="(.*?)">(.*?)</case>', prompt, re.DOTALL)
        assert len(cases) == 2
        for label, verdict, shown in cases:
            assert verdict != label  # where the rater is most wrong
            for trace in re.findall(r"<right_reasoning>\n(.*?)\n</right_reasoning>", shown, re.DOTALL):
                assert any(record["accepted"] and str(record["label"]) == label for record in by_trace[trace])
            for said, trace in re.findall(
                r'<wrong_reasoning label="(\d)">\n(.*?)\n</wrong_reasoning>', shown, re.DOTALL
            ):
                assert said != label
                assert any(not record["accepted"] and str(record["verdict"]) == said for record in by_trace[trace])
    last = server.prompts["edit"][-1]
    assert "# Edits that were tried before" in last
    for one in read(tmp_path / "run" / "proposals.jsonl"):
        assert (f"- {one['why']}\n" in last) == (one["outcome"] != "kept")


STAGE_BAD = "no tags|two blocks|another part|empty answer|endless|content filter|refusal|HTTP 400".split("|")


@pytest.mark.parametrize("name", STAGE_BAD)
def test_a_writer_that_misbehaves_leaves_the_guideline_alone(traces: Path, tmp_path: Path, run: Run, name: str) -> None:
    says: dict[str, Say] = {
        purpose: BAD[name](purpose) for purpose in ("instructions", "critiques", "criteria", "edit")
    }
    with ScriptedWriter(says) as server:
        outcome = run(*at_server(server, traces))
        assert server.counts == {"instructions": 3, "critiques": 15, "edit": 3}
    assert (tmp_path / "run" / "guideline.md").read_text() == ORIGINAL.rstrip() + "\n"
    assert read(tmp_path / "run" / "proposals.jsonl") == read(tmp_path / "run" / "provenance.jsonl") == []
    assert outcome.err.count("cannot be used: ") == 21
    assert "The guideline stays as it was" in outcome.out
    assert strict(tmp_path / "run" / "summary.json")["changed"] is False


def test_an_edit_that_the_lint_refuses_is_asked_for_again(traces: Path, tmp_path: Path, run: Run) -> None:
    first = TraceRun.read(traces)
    item = next(iter(first.corpus.item(int(first.split.indices("train")[0])).inputs.values()))
    quote = " ".join(item.split()[:14])
    says: dict[str, Say] = {
        "edit": [
            edit_block("add", 1, f"- {quote}"),
            edit_block("add", 1, "- Most replies are a 3, so rate 3 if in doubt."),
            edit_block("remove", 3),
            "<edit></edit>",
        ]
    }
    with ScriptedWriter(says) as server:
        outcome = run(*at_server(server, traces))
        assert server.counts["edit"] == 3  # three attempts at one proposal, and it is skipped
    for words in ("quotes an item", "says how often a label is given", "its rule is lost"):
        assert words in outcome.err
    assert rules(tmp_path / "run") == set()


def test_paper_keeps_both_drafts_and_asks_for_no_edit(traces: Path, tmp_path: Path, run: Run) -> None:
    with ScriptedWriter() as server:
        run(*at_server(server, traces, "--method", "paper", "--instruction-traces", 10))
        assert server.counts == {"instructions": 1, "critiques": 5, "criteria": 1}
        assert server.prompts["instructions"][0].count("<reasoning label=") == 50
        assert "1. Read it.\n2. Weigh the reasons." in server.prompts["criteria"][0]  # the second stage sees the first
    text = (tmp_path / "run" / "guideline.md").read_text()
    assert text.startswith(ORIGINAL.rstrip())
    assert text.index("## How to rate") < text.index("## What speaks for each label")
    proposals = read(tmp_path / "run" / "proposals.jsonl")
    assert [(one["action"], one["outcome"]) for one in proposals] == [("instructions", "kept"), ("criteria", "kept")]
    # It is told all the same what they did.
    assert all(one["before"] is not None for one in proposals)


BY_HEART = "- Say what people say."


def test_a_rater_behind_a_server_counts_every_request(traces: Path, tmp_path: Path, run: Run) -> None:
    """A rater that follows the guideline: 40 dev items under the original and under each of three others."""
    people = {record["inputs"]["reply"]: 3 for record in read(DEMO / "items.jsonl")}
    ids = {record["item_id"]: record["inputs"]["reply"] for record in read(DEMO / "items.jsonl")}
    people |= {ids[record["item_id"]]: record["label"] for record in read(DEMO / "annotations.jsonl")}

    def rate(prompt: str, number: int) -> str:
        guideline, _, item = prompt.rpartition("# Item")
        said = next(label for reply, label in people.items() if reply in item)
        return f"<rating>{said if BY_HEART in guideline else 1 + sum(map(ord, item)) % 5}</rating>"

    def edit(prompt: str, number: int) -> str:
        lines = numbered_lines(prompt)
        return "<edit></edit>" if BY_HEART in lines else edit_block("add", len(lines), BY_HEART)

    with ScriptedWriter({"edit": edit, "rate": rate}) as server:
        arguments = at_server(server, traces, "--rater", "openai/scripted", "--draws", 1)
        run(*arguments)
        outcomes = [one["outcome"] for one in read(tmp_path / "run" / "proposals.jsonl")]
        assert outcomes == ["gate", "gate", "kept"]
        # Ten train items before the first edit and, as the guideline is another, ten before the second.
        assert server.counts["rate"] == 4 * 40 + 2 * 10
        assert len(set(server.prompts["rate"])) == server.counts["rate"]
        before = len(server.requests)
        run(*arguments)
        assert len(server.requests) == before
    assert BY_HEART in (tmp_path / "run" / "guideline.md").read_text()
    assert read_rater(tmp_path / "run" / "raters" / "openai_scripted.yaml").model == "openai/scripted"


def slowly(delay: float) -> Say:
    def say(prompt: str, number: int) -> Answer:
        return Answer(one_rule_after_another(prompt, number), delay_seconds=delay)

    return say


@pytest.fixture(scope="module")
def undisturbed(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """Return a run with a scripted writer, and its requests."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with ScriptedWriter({"edit": one_rule_after_another}) as server:
        assert main([*map(str, at_server(server, traces)), "--out", str(folder)]) == 0
        return folder, server.counts


def same_results(folder: Path, other: Path) -> None:
    ours = files_of(folder)
    for name in ("guideline.md", "diff.md", "provenance.jsonl", "proposals.jsonl", "summary.json"):
        assert ours[name] == files_of(other)[name], name


@pytest.mark.parametrize("edits", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_run_pays_for_nothing_twice(
    traces: Path, tmp_path: Path, run: Run, undisturbed: tuple[Path, dict[str, int]], edits: int
) -> None:
    folder, counts = undisturbed
    with ScriptedWriter({"edit": slowly(0.2)}) as server:
        arguments = [*at_server(server, traces), "--out", tmp_path / "run"]
        with started(STAGE, *arguments) as process:
            # Killed while a rater rates, or while the writer writes.
            wait_until(lambda: len(server.prompts["edit"]) > edits, process)
            kill(process)
        time.sleep(0.3)
        lost = len(server.requests) - len(read(tmp_path / "run" / "writer.jsonl"))
        assert 0 <= lost <= 1  # what was in flight
        assert strict(tmp_path / "run" / "manifest.json")["status"] == "running"
        assert not (tmp_path / "run" / "guideline.md").exists()
        server.says["edit"] = one_rule_after_another
        outcome = run(*arguments)
        assert "answers are there already" in outcome.err
        assert len(server.requests) == sum(counts.values()) + lost
    same_results(tmp_path / "run", folder)
    made = [(one["rater_sha256"], one["item_id"], one["draw"])
            for path in (tmp_path / "run" / "trials").glob("*.jsonl") for one in read(path)]  # fmt: skip
    assert len(made) == len(set(made))
    assert len(made) == sum(len(read(path)) for path in (folder / "trials").glob("*.jsonl"))


def test_an_interrupted_run_goes_on(
    traces: Path, tmp_path: Path, run: Run, undisturbed: tuple[Path, dict[str, int]]
) -> None:
    folder, counts = undisturbed
    with ScriptedWriter({"edit": slowly(0.4)}) as server:
        arguments = [*at_server(server, traces), "--out", tmp_path / "run"]
        with started(STAGE, *arguments) as process:
            wait_until(lambda: len(server.prompts["edit"]) > 0, process)
            interrupt(process)
        assert strict(tmp_path / "run" / "manifest.json")["status"] == "stopped"
        assert not (tmp_path / "run" / "guideline.md").exists()
        # The answer in flight was waited for.
        assert len(read(tmp_path / "run" / "writer.jsonl")) == len(server.requests)
        server.says["edit"] = one_rule_after_another
        run(*arguments)
        assert len(server.requests) == sum(counts.values())
    same_results(tmp_path / "run", folder)


# --- budgets ----------------------------------------------------------------------------------------------


def test_a_budget_of_requests_ends_the_run_in_order(
    traces: Path, tmp_path: Path, run: Run, undisturbed: tuple[Path, dict[str, int]]
) -> None:
    folder, _ = undisturbed
    with ScriptedWriter({"edit": one_rule_after_another}) as server:
        arguments = at_server(server, traces)
        spent = 0
        for budget in (3, 9, 500):
            outcome = run(*arguments, "--max-requests", budget)
            summary, manifest = (strict(tmp_path / "run" / name) for name in ("summary.json", "manifest.json"))
            assert spent <= manifest["requests"] <= budget
            spent = manifest["requests"]
            assert f"over the budget of {budget}" in summary["ended"]
            assert "ended early" in outcome.err or summary["ended"] in outcome.out
        run(*arguments)
    same_results(tmp_path / "run", folder)


def test_budgets_of_tokens_and_cost(traces: Path, tmp_path: Path, run: Run) -> None:
    run("--traces", traces, "--out", "tokens", *FAST, "--max-tokens", 20_000)
    summary = strict(tmp_path / "tokens" / "summary.json")
    assert "tokens are used, of at most 20,000" in summary["ended"]
    assert not summary["changed"]
    assert rules(tmp_path / "tokens") == set()
    with ScriptedWriter({"edit": one_rule_after_another}) as server:
        prices = ("--input-price", 1000, "--output-price", 1000, "--max-cost", 0.03)
        run(*at_server(server, traces, *prices))
        assert len(server.requests) < 7
    manifest = strict(tmp_path / "run" / "manifest.json")
    # A scripted answer is 11 tokens read and 7 written: $0.018.
    assert manifest["cost_usd"] >= 0.03
    assert "of at most $0.03" in strict(tmp_path / "run" / "summary.json")["ended"]


def test_max_cost_needs_prices(traces: Path, run: Run) -> None:
    one_clear_line(run("--traces", traces, "--max-cost", 1, status=2), "--input-price")


def test_most_proposals_and_patience(traces: Path, tmp_path: Path, run: Run) -> None:
    run("--traces", traces, "--out", "few", "--no-test", *FAST, "--max-proposals", 2)
    assert len(read(tmp_path / "few" / "proposals.jsonl")) == 2
    run("--traces", traces, "--out", "one", "--no-test", *FAST, "--patience", 1)
    outcomes = [one["outcome"] for one in read(tmp_path / "one" / "proposals.jsonl")]
    assert outcomes[-1] != "kept"
    assert "gate" not in outcomes[1:-1]


# --- methods, rounds, raters ------------------------------------------------------------------------------


def test_post_hoc_offline(traces: Path, tmp_path: Path, run: Run) -> None:
    """Explanations of labels that are shown, drafts gated, no loop of edits."""
    run("--traces", traces, "--out", "run", "--method", "post-hoc", "--rubric-traces", 40, "--no-test", *FAST)
    (path,) = (tmp_path / "run" / "rounds").glob("explain-*.jsonl")
    records = read(path)
    assert {record["chance"] for record in records} == {"rationalized"}
    labels = {record["item_id"]: record["label"] for record in records}
    given = [record["label"] for record in read_first_draws(traces)]
    for label in range(1, 6):
        assert list(labels.values()).count(label) == min(40, given.count(label))
    assert not [record for record in records if "<rating>" in record["trace"]]
    proposals = read(tmp_path / "run" / "proposals.jsonl")
    assert {one["action"] for one in proposals} <= {"instructions", "criteria"}
    manifest = strict(tmp_path / "run" / "manifest.json")
    drawn = sum(len(read(path)) for path in (tmp_path / "run" / "trials").glob("*.jsonl"))
    assert manifest["requests"] == drawn + len(records)
    before = files_of(tmp_path / "run")
    run("--traces", traces, "--out", "run", "--method", "post-hoc", "--rubric-traces", 40, "--no-test", *FAST)
    assert files_of(tmp_path / "run") == before


def test_several_rounds_infer_again_under_the_refined_guideline(traces: Path, tmp_path: Path, run: Run) -> None:
    arguments = ("--traces", traces, "--out", "run", "--no-test", *FAST)
    run(*arguments)
    first = files_of(tmp_path / "run")
    outcome = run(*arguments, "--rounds", 2)
    assert "round 2: inferring traces again" in outcome.err
    (path,) = (tmp_path / "run" / "rounds").glob("infer-2-*.jsonl")
    records = read(path)
    assert len(records) == len(read(traces / "candidates.jsonl"))
    stated = rule_lines(first["guideline.md"].decode())
    for record in records[:50]:
        for rule in stated:
            if rule != "rest ignored" and "start at" not in rule:
                assert f" {rule} " in record["trace"]
        assert "maybe" in record["trace"]  # what is not stated may be guessed
    proposals = read(tmp_path / "run" / "proposals.jsonl")
    assert [one for one in proposals if one["round"] == 1] == [
        json.loads(line) for line in first["proposals.jsonl"].splitlines()
    ]
    # A line of the first round is shown beside what it was kept for, whatever the second added to its section.
    lines = {line["text"]: line for line in read(tmp_path / "run" / "provenance.jsonl")}
    for line in map(json.loads, first["provenance.jsonl"].splitlines()):
        if line["text"] in lines:
            assert {**lines[line["text"]], "line": 0} == {**line, "line": 0}


def test_rounds_of_post_hoc_explain_again_and_show_no_other_draws(traces: Path, tmp_path: Path, run: Run) -> None:
    small = ("--method", "post-hoc", "--rounds", 2, "--rubric-traces", 15, "--no-test")
    outcome = run("--traces", traces, "--out", "run", *small, *FAST)
    assert "round 2: explaining labels again" in outcome.err
    assert all(path.name.startswith("explain-") for path in (tmp_path / "run" / "rounds").iterdir())


def test_one_rater_in_a_config_file_that_is_no_list(traces: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "one.yaml").write_text(f"traces: {traces}\nrater: embedded\n")
    one_clear_line(run("--config", "one.yaml", "--out", "run", status=2), "rater embedded: must be a list")


def test_several_raters(traces: Path, finished: Path, tmp_path: Path, run: Run) -> None:
    """The rule reader, and itself without chance, which says one and the same of all until rules are stated."""
    text = (finished / "test" / "embedded-original" / "rater.yaml").read_text()
    (tmp_path / "cold").mkdir()
    cold = re.sub(r"temperature: 1\.0", "temperature: 0.0", text)
    (tmp_path / "cold" / "rater.yaml").write_text(re.sub(r"(?m)^sha256: .*\n", "", cold))
    run("--traces", traces, "--out", "run", "--rater", "embedded", "cold/rater.yaml", *FAST)
    summary = strict(tmp_path / "run" / "summary.json")
    assert summary["raters"] == ["embedded", "cold"]
    assert {path.name for path in (tmp_path / "run" / "raters").iterdir()} == {"embedded.yaml", "cold.yaml"}
    assert {path.name for path in (tmp_path / "run" / "test").iterdir()} == {
        "embedded-original", "embedded-refined", "cold-original", "cold-refined",
    }  # fmt: skip
    for part in ("dev", "test"):
        changes = summary[part]["changes"]
        assert changes.keys() == {"mean", "embedded", "cold"}
        for when in ("before", "after"):
            assert changes["mean"][when] == pytest.approx((changes["embedded"][when] + changes["cold"][when]) / 2)
        assert changes["cold"]["before"] == 0
        between = summary[part]["between_raters"]
        assert between["after"]["krippendorff_alpha"] > (between["before"]["krippendorff_alpha"] or 0)
        assert between["after"].keys() == {"krippendorff_alpha", "icc3_1"}
    for one in read(tmp_path / "run" / "proposals.jsonl"):
        if one["before"] is not None:
            assert one["raters"].keys() == {"embedded", "cold"}
    assert read_rater(tmp_path / "run" / "raters" / "cold.yaml").settings.temperature == 0


def test_nothing_significant_leaves_the_guideline_as_it_was(traces: Path, tmp_path: Path, run: Run) -> None:
    outcome = run("--traces", traces, "--out", "run", *FAST, "--gate-z", 50)
    assert (tmp_path / "run" / "guideline.md").read_text() == ORIGINAL.rstrip() + "\n"
    assert "Nothing was changed." in (tmp_path / "run" / "diff.md").read_text()
    assert (tmp_path / "run" / "provenance.jsonl").read_bytes() == b""
    assert "The guideline stays as it was: " in outcome.out
    summary = strict(tmp_path / "run" / "summary.json")
    assert summary["changed"] is False
    change = summary["test"]["changes"]["embedded"]
    assert change["before"] == change["after"]
    assert {path.name for path in (tmp_path / "run" / "test").iterdir()} == {"embedded-original"}
    # The rater is the one that was there.
    spec = read_rater(tmp_path / "run" / "raters" / "embedded.yaml")
    assert spec.sha256 == read_rater(tmp_path / "run" / "test" / "embedded-original" / "rater.yaml").sha256


def test_a_guideline_of_ones_own(traces: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "own.md").write_text("\n# Own\r\n\r\nRate how helpful it is.\r\n- overlap helps once.\r\n\n\n")
    run("--traces", traces, "--out", "run", "--no-test", "--guideline", "own.md", *FAST)
    text = (tmp_path / "run" / "guideline.md").read_text()
    assert text.startswith("# Own\n\nRate how helpful it is.\n- overlap helps")
    assert "\r" not in text
    for line in read(tmp_path / "run" / "provenance.jsonl"):
        assert line["text"] not in ("# Own", "Rate how helpful it is.")


def test_a_limit_of_words_is_held(traces: Path, tmp_path: Path, run: Run) -> None:
    words = len(ORIGINAL.split())
    run("--traces", traces, "--out", "run", "--no-test", *FAST, "--max-words", words + 5)
    (first, *_) = read(tmp_path / "run" / "proposals.jsonl")
    assert first["outcome"] == "lint"
    assert "are the most" in first["reason"]
    assert (tmp_path / "run" / "guideline.md").read_text() == ORIGINAL.rstrip() + "\n"


def test_ratings_of_a_guideline_that_came_out_before_do_not_stay(
    traces: Path, finished: Path, tmp_path: Path, run: Run
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    assert list((tmp_path / "run" / "test").glob("*-refined"))
    run("--traces", traces, "--out", "run", *FAST, "--max-words", 5)
    assert not json.loads((tmp_path / "run" / "summary.json").read_text())["changed"]
    assert [path.name for path in (tmp_path / "run" / "test").iterdir()] == ["embedded-original"]


def test_items_without_a_label_take_their_probabilities_with_them() -> None:
    numbers = np.array([[0.0], [1.0], [2.0]])
    said = RaterDraws("r", np.arange(3), numbers, np.ones(3, int), numbers > 9, "mean", np.array([0.1, 1.1, 2.1]))
    assert _rows(said, np.array([0, 2])).values(OrdinalScale(**ORDINAL_3)).tolist() == [0.1, 2.1]


@pytest.mark.parametrize(
    ("method", "counts", "said"),
    [
        ("paper", {"kept": 1, "gate": 0, "lint": 0}, "kept whatever they say"),
        ("contrast", {"kept": 0, "gate": 0, "lint": 0}, "nothing was proposed"),
        ("contrast", {"kept": 0, "gate": 0, "lint": 2}, "no proposal was kept"),
    ],
)
def test_the_summary_says_what_decided(finished: Path, method: str, counts: dict[str, int], said: str) -> None:
    summary = strict(finished / "summary.json") | {"method": method, "proposals": counts, "changed": counts["kept"] > 0}
    assert said in "\n".join(summary_lines(summary))


# --- bad input --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with corpora and traces of them: `few` dev items, a label `untraced`, and `whole`."""
    folder = tmp_path_factory.mktemp("small")
    for name, count in (("few", 60), ("whole", 150)):
        texts = varied_texts(count)
        labels = {item_id: {"ann": 1 + n % 3} for n, item_id in enumerate(texts)}
        write_corpus(folder / name, labels, ORDINAL_3, inputs=texts)
    texts = varied_texts(150)
    labels = {item_id: {"ann": 1 + n % 5} for n, item_id in enumerate(texts)}
    write_corpus(folder / "untraced", labels, ORDINAL_5, inputs=texts)
    for name, options in (("few", []), ("whole", []), ("untraced", ["--temperature", "0", "--k", "1"])):
        command = ["--corpus", str(folder / name), "--out", str(folder / f"{name}-traces"), "--k", "4", *options]
        assert infer(command) == 0
    return folder


def test_fewer_than_twenty_dev_items(small: Path, tmp_path: Path, run: Run) -> None:
    outcome = run("--traces", small / "few-traces", "--out", "run", status=2)
    one_clear_line(outcome, "the dev split has 9 items", "at least 20")
    assert not (tmp_path / "run").exists()


def test_a_label_without_a_trace(small: Path, tmp_path: Path, run: Run) -> None:
    """At temperature 0 the rule reader says 3 of everything."""
    outcome = run("--traces", small / "untraced-traces", "--out", "run", status=2)
    one_clear_line(outcome, "no trace for label 1 of quality", "larger --k")
    assert not (tmp_path / "run").exists()


GUIDELINES = {
    "empty": (b"", "is empty"), "blank": (b" \n\t\n", "is empty"), "bytes": (b"\xff\xfe\x00a", "not text in UTF-8"),
    "zeros": (b"Rate\x00 it.", "holds zero bytes"), "picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not text in UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", GUIDELINES)
def test_a_guideline_that_is_no_text(small: Path, tmp_path: Path, run: Run, name: str) -> None:
    content, words = GUIDELINES[name]
    (tmp_path / "g.md").write_bytes(content)
    one_clear_line(run("--traces", small / "whole-traces", "--guideline", "g.md", status=2), "--guideline g.md", words)


def test_a_guideline_that_is_not_there(small: Path, tmp_path: Path, run: Run) -> None:
    one_clear_line(run("--traces", small / "whole-traces", "--guideline", "g.md", status=2), "no such file")
    one_clear_line(run("--traces", small / "whole-traces", "--guideline", tmp_path, status=2), "cannot be read")


def test_a_rater_of_another_scale(small: Path, finished: Path, tmp_path: Path, run: Run) -> None:
    rater = finished / "raters" / "embedded.yaml"
    outcome = run("--traces", small / "whole-traces", "--rater", rater, "--out", "run", status=2)
    one_clear_line(outcome, "rates helpfulness on 1..5", "quality on 1..3")
    text = rater.read_text().replace("dimension: helpfulness", "dimension: quality")
    (tmp_path / "other.yaml").write_text(re.sub(r"(?m)^sha256: .*\n", "", text))
    outcome = run("--traces", small / "whole-traces", "--rater", "other.yaml", "--out", "run", status=2)
    one_clear_line(outcome, "rates quality on 1..5")
    assert not (tmp_path / "run").exists()


def test_a_rater_that_reads_other_fields(small: Path, traces: Path, tmp_path: Path, run: Run) -> None:
    """The same dimension and scale, but it observes a field that the corpus lacks."""
    texts = {f"item{n:03}": {"essay": f"Some words. {'more ' * n}"} for n in range(150)}
    labels = {item_id: {"ann": 1 + n % 3} for n, item_id in enumerate(texts)}
    write_corpus(tmp_path / "essays", labels, ORDINAL_3, inputs=texts)
    assert infer(["--corpus", str(tmp_path / "essays"), "--out", str(tmp_path / "traces"), "--k", "4"]) == 0
    arguments = ["--model", "embedded", "--corpus", str(tmp_path / "essays"), "--out", str(tmp_path / "rated")]
    assert rate_items(arguments) == 0
    rater = tmp_path / "rated" / "rater.yaml"
    outcome = run("--traces", small / "whole-traces", "--rater", rater, "--out", "run", status=2)
    one_clear_line(outcome, "no field essay")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--traces: missing"),
        (["--traces", "nowhere"], "holds no manifest.json"),
        (["--writer", "embedded"], "--writer embedded: is a rater and cannot write"),
        (["--writer", "gpt"], "model 'gpt': not a model"),
        (["--rater", "nobody.yaml"], "nobody.yaml"),
        (["--rater", "gpt"], "model 'gpt': not a model"),
        (["--rater", "embedded", "embedded"], "--rater embedded: stands twice"),
        (["--rater", "embedded", "--rater", "embedded"], "--rater embedded: stands twice"),
        (["--method", "magic"], "--method magic"),
        (["--level", "1.5"], "--level 1.5"),
        (["--dev-limit", "5"], "--dev-limit 5"),
        (["--embeddings", "word2vec"], "word2vec"),
        (["--explain", "gpt", "--method", "post-hoc"], "model 'gpt'"),
    ],
)
def test_options_that_cannot_be(small: Path, tmp_path: Path, run: Run, arguments: list[str], words: str) -> None:
    given = arguments if not arguments or "--traces" in arguments else ["--traces", small / "whole-traces", *arguments]
    one_clear_line(run(*given, "--out", "run", status=2), words)
    assert not (tmp_path / "run" / "guideline.md").exists()


UNREACHABLE = "http://127.0.0.1:9/v1"


def test_a_writer_that_cannot_be_reached(traces: Path, tmp_path: Path, run: Run) -> None:
    run("--traces", traces, "--out", "run", "--no-test", *FAST)
    before = files_of(tmp_path / "run")
    writer = ("--writer", "openai/scripted", "--base-url", UNREACHABLE)
    outcome = run("--traces", traces, "--out", "other", *writer, "--no-test", *FAST, status=2)
    one_clear_line(outcome, "no server answers at http://127.0.0.1:9/v1")
    assert strict(tmp_path / "other" / "manifest.json")["status"] == "failed"
    assert not (tmp_path / "other" / "guideline.md").exists()
    # In the folder of a finished run it overwrites nothing, with --new neither.
    one_clear_line(run("--traces", traces, "--out", "run", *writer, "--no-test", *FAST, status=2), "another run")
    assert files_of(tmp_path / "run") == before
    run("--traces", traces, "--out", "run", *writer, "--no-test", *FAST, "--new", status=2)
    assert files_of(tmp_path / "run.old-1") == before


def test_a_rater_that_cannot_be_reached(traces: Path, tmp_path: Path, run: Run) -> None:
    with ScriptedWriter() as server:
        arguments = ("--traces", traces, "--out", "run", "--writer", "openai/scripted", *SMALL)
        both = ("--rater", "openai/other", "--base-url", UNREACHABLE, "--writer-base-url", server.base_url)
        outcome = run(*arguments, *both, status=2)
        one_clear_line(outcome, "openai/other: no server answers at http://127.0.0.1:9/v1")
        assert server.counts == {"instructions": 1}
        assert "1 answers are kept" in outcome.err
    assert not (tmp_path / "run" / "guideline.md").exists()


def test_no_key_and_no_endpoint(traces: Path, tmp_path: Path, run: Run) -> None:
    outcome = run("--traces", traces, "--out", "run", "--writer", "openai/gpt-x", status=2)
    one_clear_line(outcome, "OPENAI_API_KEY is not set")
    assert not (tmp_path / "run" / "guideline.md").exists()


def test_a_server_that_fails_half_way_loses_nothing(
    traces: Path, tmp_path: Path, run: Run, undisturbed: tuple[Path, dict[str, int]]
) -> None:
    folder, counts = undisturbed

    def fail(prompt: str, number: int) -> Fault:
        return Fault(401, "Your key has expired.", "invalid_request_error", "invalid_api_key")

    with ScriptedWriter({"criteria": fail}) as server:
        outcome = run(*at_server(server, traces), status=2)
        one_clear_line(outcome, "refused the key")
        assert not (tmp_path / "run" / "guideline.md").exists()
        server.says |= {"criteria": ScriptedWriter().says["criteria"], "edit": one_rule_after_another}
        run(*at_server(server, traces))
        assert len(server.requests) == sum(counts.values()) + 1
    same_results(tmp_path / "run", folder)


def test_an_output_folder_that_is_none(traces: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("mine")
    one_clear_line(run("--traces", traces, "--out", "file", status=2), "is a file, not a folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    one_clear_line(run("--traces", traces, "--out", "full", status=2), "holds files but no run")
    one_clear_line(run("--traces", traces, "--out", "full", "--new", status=2), "holds files but no run")
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "mine.txt").read_text() == "mine"


# --- shuffled labels --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_with_shuffled_labels_the_guideline_stays_as_it_was(tmp_path: Path, run: Run, seed: int) -> None:
    """Whose labels stand where is chance here, so whatever came of it would be noise."""
    corpus = tmp_path / "corpus"
    shutil.copytree(DEMO, corpus)
    records = read(corpus / "annotations.jsonl")
    items = list(dict.fromkeys(record["item_id"] for record in records))
    new = dict(zip(items, np.random.default_rng(seed).permutation(items).tolist(), strict=True))
    with (corpus / "annotations.jsonl").open("w") as file:
        for record in records:
            file.write(json.dumps({**record, "item_id": new[record["item_id"]]}) + "\n")
    assert (
        infer(["--corpus", str(corpus), "--out", "traces", "--k", "32", "--strategy", "fixed", "--seed", str(seed)])
        == 0
    )
    run("--traces", "traces", "--out", "run", "--seed", seed)
    tried = [
        (one["action"], one["why"], one["p"], one["outcome"]) for one in read(tmp_path / "run" / "proposals.jsonl")
    ]
    assert (tmp_path / "run" / "guideline.md").read_text() == ORIGINAL.rstrip() + "\n", tried
