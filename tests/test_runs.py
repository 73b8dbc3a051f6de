"""The folder of a run: the same command goes on in it, another one is told what differs."""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import raters.runs as runs_module
from raters.journal import Journal, read_lines
from raters.records import ConfigError
from raters.runs import RunFolder, versions

IDENTITY = {"model": "embedded", "seed": 0, "scale": {"labels": (1, 2)}, "guideline": "a" * 64, "tolerance": None}


def begun(path: Path, **changes: Any) -> RunFolder:
    folder = RunFolder(path, "infer_traces", IDENTITY | changes)
    folder.create({"status": "running", "seconds": 1.5})
    return folder


def manifest_of(path: Path) -> dict[str, Any]:
    found = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_nothing_is_made_before_create(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "small", "infer_traces", IDENTITY)
    assert list(tmp_path.iterdir()) == []
    assert folder.previous == {}


def test_create_makes_the_folder_and_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "small"
    folder = begun(path)
    assert manifest_of(path) == {
        "stage": "infer_traces",
        "identity": IDENTITY | {"scale": {"labels": [1, 2]}},
        "status": "running",
        "seconds": 1.5,
    }
    folder.write_manifest({"status": "complete", "name": "ü"})
    assert manifest_of(path)["status"] == "complete"
    assert "ü" in (path / "manifest.json").read_text(encoding="utf-8")


def test_the_same_command_goes_on(tmp_path: Path) -> None:
    begun(tmp_path / "run").release()
    again = RunFolder(tmp_path / "run", "infer_traces", IDENTITY)
    assert again.previous["seconds"] == 1.5
    again.release()


def test_a_second_process_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    first = begun(tmp_path / "run")
    for new in (False, True):
        with pytest.raises(ConfigError, match="another process is writing it; wait for it, or give another --out"):
            RunFolder(tmp_path / "run", "infer_traces", IDENTITY, new=new)
    first.release()
    RunFolder(tmp_path / "run", "infer_traces", IDENTITY).release()


def test_of_two_processes_that_begin_together_one_is_refused(tmp_path: Path) -> None:
    """Both find no run; the one whose first draw comes later must not write into the other's journal."""
    folders = [RunFolder(tmp_path / "run", "infer_traces", IDENTITY) for _ in range(2)]
    journals = [
        Journal(folder.path / "candidates.jsonl", prepare=partial(folder.create, {"status": "running"}))
        for folder in folders
    ]
    journals[0].append([{"n": 1}])
    with pytest.raises(ConfigError, match="another process"):
        journals[1].append([{"n": 2}])
    journals[0].close()
    folders[0].release()
    # Also once the first has finished, since what it wrote is not in the second one's ledger.
    late = Journal(tmp_path / "run" / "candidates.jsonl", prepare=partial(folders[1].create, {"status": "running"}))
    with pytest.raises(ConfigError):
        late.append([{"n": 2}])
    assert [record for _, _, record in read_lines(tmp_path / "run" / "candidates.jsonl")] == [{"n": 1}]


def test_starting_over_begins_a_journal_of_its_own(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = RunFolder(tmp_path / "run", "infer_traces", IDENTITY, new=number == 2)
        journal = Journal(folder.path / "candidates.jsonl", prepare=partial(folder.create, {"status": "running"}))
        journal.append([{"n": number}])
        journal.close()
        folder.release()
    for name, number in (("run", 2), ("run.old-1", 1)):
        assert [record for _, _, record in read_lines(tmp_path / name / "candidates.jsonl")] == [{"n": number}]


def test_a_run_that_was_killed_while_it_began_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "manifest.json.partial").write_text('{"stage": "infer', encoding="utf-8")
    folder = RunFolder(tmp_path, "infer_traces", IDENTITY)
    assert folder.previous == {}
    folder.create({"status": "running"})
    assert manifest_of(tmp_path)["status"] == "running"
    folder.release()


def test_an_empty_folder_is_a_new_run(tmp_path: Path) -> None:
    assert RunFolder(tmp_path, "infer_traces", IDENTITY).previous == {}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"model": "hf/x"}, 'model was "embedded", now "hf/x"'),
        ({"guideline": "b" * 64}, "guideline was aaaaaaaaaaaa…, now bbbbbbbbbbbb…"),
        ({"tolerance": 0.5}, "tolerance was null, now 0.5"),
        ({"scale": {"labels": [1, 2, 3]}}, 'scale was {"labels": [1, 2]}, now {"labels": [1, 2, 3]}'),
        ({"scale": None}, 'scale was {"labels": [1, 2]}, now null'),
        ({"new_setting": 3}, "new_setting was null, now 3"),
        ({"seed": 1, "model": "hf/x"}, 'model was "embedded", now "hf/x"; seed was 0, now 1'),
    ],
)
def test_another_command_is_told_what_differs_and_what_to_do(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    begun(tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        RunFolder(tmp_path / "run", "infer_traces", IDENTITY | changes)
    assert named in str(caught.value)
    assert "--new to start over" in str(caught.value)
    assert manifest_of(tmp_path / "run")["identity"]["seed"] == 0


def test_of_many_inputs_those_that_differ_are_named(tmp_path: Path) -> None:
    """The line would be cut before it came to the fifth."""
    inputs = {f"/long/path/of/ratings/{place}/ratings.jsonl": f"{place}" * 64 for place in range(8)}
    begun(tmp_path / "run", inputs=inputs)
    changed = {**inputs, "/long/path/of/ratings/5/ratings.jsonl": "c" * 64, "new.jsonl": "d" * 64}
    del changed["/long/path/of/ratings/7/ratings.jsonl"]
    with pytest.raises(ConfigError) as caught:
        RunFolder(tmp_path / "run", "infer_traces", IDENTITY | {"inputs": changed})
    named = str(caught.value).split("(", 1)[1].split(")")[0].split("; ")
    assert named == [
        "inputs /long/path/of/ratings/5/ratings.jsonl was 555555555555…, now cccccccccccc…",
        "inputs new.jsonl was null, now dddddddddddd…",
        "inputs /long/path/of/ratings/7/ratings.jsonl was 777777777777…, now null",
    ]


def test_a_setting_that_is_gone_differs_too(tmp_path: Path) -> None:
    begun(tmp_path / "run", strategy="fixed")
    with pytest.raises(ConfigError, match='strategy was "fixed", now null'):
        RunFolder(tmp_path / "run", "infer_traces", IDENTITY)


def test_a_run_of_another_stage_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    with pytest.raises(ConfigError, match="belongs to a run of infer_traces, not rate_items; give another --out"):
        RunFolder(tmp_path / "run", "rate_items", IDENTITY)


@pytest.mark.parametrize(
    "content", [None, "not JSON", "[]", "{}", '{"stage": "infer_traces"}', '{"stage": "", "identity": {}}']
)
@pytest.mark.parametrize("new", [False, True])
def test_a_folder_that_holds_no_run_is_left_alone(tmp_path: Path, content: str | None, new: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    if content is not None:
        (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"holds files but no run .*; give another --out"):
        RunFolder(tmp_path, "infer_traces", IDENTITY, new=new)
    assert (tmp_path / "thesis.tex").read_text(encoding="utf-8") == "years of work"


def test_starting_over_keeps_the_old_run_beside_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for seed in (1, 2, 3):
        folder = RunFolder(path, "infer_traces", IDENTITY | {"seed": seed}, new=True)
        assert folder.previous == {}
        if seed > 1:
            assert manifest_of(path)["identity"]["seed"] == seed - 1  # nothing is moved before create
        folder.create({})
        folder.release()
        (path / "candidates.jsonl").write_text(f"{seed}\n", encoding="utf-8")
    names = sorted(found.name for found in tmp_path.iterdir())
    assert names == ["run", "run.old-1", "run.old-2"]
    assert [(tmp_path / name / "candidates.jsonl").read_text(encoding="utf-8") for name in names] == [
        "3\n",
        "1\n",
        "2\n",
    ]


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"file is a file, not a folder; give another --out"):
        RunFolder(tmp_path / "file" / "run", "infer_traces", IDENTITY)
    with pytest.raises(ConfigError, match=r"file is a file, not a folder; give another --out"):
        RunFolder(tmp_path / "file", "infer_traces", IDENTITY)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write anywhere
    with pytest.raises(ConfigError, match=r"cannot be written; give another --out"):
        RunFolder(tmp_path / "run", "infer_traces", IDENTITY)


def test_versions_are_those_installed() -> None:
    import platform

    import numpy

    found = versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == numpy.__version__


def test_the_revision_says_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raters").mkdir()
    monkeypatch.setattr(runs_module, "__file__", str(tmp_path / "raters" / "runs.py"))
    git_revision = runs_module.git_revision.__wrapped__  # it is asked once in a process
    assert git_revision() is None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "raters" / "a.py").write_text("1\n", encoding="utf-8")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert git_revision() == git("rev-parse", "HEAD")
    (tmp_path / "raters" / "a.py").write_text("2\n", encoding="utf-8")
    assert git_revision() == git("rev-parse", "HEAD") + "+changes"
