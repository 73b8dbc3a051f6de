"""The stage that scores raters, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import rate_items
from pipelines.command import run_command
from pipelines.score_agreement import STAGE, main
from raters.agreement import METRICS_BY_SCALE
from raters.rater_files import read_rater
from tests.small_corpora import DIMENSION, NOMINAL, ORDINAL_3, write_corpus, write_jsonl

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two embedded raters' ratings of the demo corpus's test split, and one of its train split."""
    folder = tmp_path_factory.mktemp("rated")
    for name, seed, split in (("one", "0", "test"), ("two", "1", "test"), ("seen", "0", "train")):
        flags = ["--model", "embedded", "--seed", seed, "--split", split, "--draws", "2"]
        assert rate_items.main([*flags, "--out", str(folder / name)]) == 0
    return folder


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run the stage, check that it refuses with one line and writes nothing, and return the line."""

    def run(*arguments: object) -> str:
        out = tmp_path / "refused"
        monkeypatch.setattr(sys, "argv", [STAGE, *map(str, arguments), "--out", str(out)])
        assert run_command(STAGE, main) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert not out.exists()
        (line,) = [line for line in printed.err.splitlines() if line.startswith(f"{STAGE}: ")]
        assert line == printed.err.splitlines()[-1]
        return line

    return run


def scores_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "scores.json").read_text(), parse_constant=pytest.fail)
    return found


def test_two_raters_are_scored_and_certified(rated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(rated / name / "ratings.jsonl") for name in ("one", "two")]
    assert main(["--ratings", *files, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    scores = scores_of(tmp_path / "out")
    assert [record["rater"] for record in scores["raters"]] == ["one", "two"]
    assert [record["rater"] for record in scores["floors"]] == ["floor: rule reader", "floor: ridge"]
    for record in (*scores["raters"], *scores["floors"]):
        assert set(record["agreement"]) == set(METRICS_BY_SCALE["ordinal"])
        tau = record["agreement"]["kendall_tau_b"]
        assert tau["low"] < tau["value"] < tau["high"]
        assert f"{tau['value']:.3f} [{tau['low']:.3f}, {tau['high']:.3f}]" in printed
    ceiling = scores["human"]["ceiling"]["kendall_tau_b"]
    assert f"{ceiling['value']:.3f} [" in printed
    assert scores["between_raters"]["pairs"][0]["raters"] == ["one", "two"]
    certificates = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert [certificate["certified"] for certificate in certificates] == [True, True]
    certified = read_rater(tmp_path / "out" / "certified" / "one.yaml")
    assert certified.certificate is not None
    assert certified.certificate["items"] == 56
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{tau['value']:.3f}" in page
    assert "certified" in page
    before = (tmp_path / "out" / "scores.json").read_bytes()
    assert main(["--ratings", *files, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "scores.json").read_bytes() == before


def test_items_that_the_rater_has_seen_are_scored_and_not_certified(
    rated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--ratings", str(rated / "seen" / "ratings.jsonl"), "--out", str(tmp_path / "out")]) == 0
    (certificate,) = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert certificate["certified"] is False
    assert "272 of the 272 rated items" in certificate["reason"]
    assert "no certificate" in capsys.readouterr().out
    assert not (tmp_path / "out" / "certified").exists()
    assert scores_of(tmp_path / "out")["floors"] == []  # nothing is left to fit a floor on


def test_other_raters_are_refused_in_the_same_folder(rated: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["--ratings", str(rated / "one" / "ratings.jsonl"), *out]) == 0
    with pytest.raises(Exception, match="belongs to another run"):
        main(["--ratings", str(rated / "two" / "ratings.jsonl"), *out])
    assert main(["--ratings", str(rated / "two" / "ratings.jsonl"), *out, "--new"]) == 0
    assert (tmp_path / "out.old-1" / "scores.json").exists()


def test_a_run_that_is_not_complete_needs_partial(rated: Path, tmp_path: Path, refused: Refused) -> None:
    run = tmp_path / "stopped"
    run.mkdir()
    lines = (rated / "one" / "ratings.jsonl").read_text().splitlines(keepends=True)
    (run / "ratings.jsonl").write_text("".join(lines[:40]))
    manifest = json.loads((rated / "one" / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "stopped"}))
    assert "is not complete" in refused("--ratings", run / "ratings.jsonl")
    assert main(["--ratings", str(run / "ratings.jsonl"), "--partial", "--out", str(tmp_path / "out")]) == 0
    scores = scores_of(tmp_path / "out")
    assert (scores["partial"], scores["items"]) == (["stopped"], 40)


def test_ratings_from_elsewhere_are_scored(tmp_path: Path) -> None:
    labels = {f"i{number}": {"ann": 1 + number % 3, "bob": 1 + number % 3} for number in range(30)}
    corpus = write_corpus(tmp_path / "c", labels, ORDINAL_3)
    folder = tmp_path / "their\x1b[31mrater"
    folder.mkdir()
    ratings = [{"item_id": name, "dimension": DIMENSION, "verdict": given["ann"]} for name, given in labels.items()]
    write_jsonl(folder / "ratings.jsonl", ratings)
    command = [sys.executable, "-m", "pipelines.score_agreement", "--corpus", str(corpus)]
    command += ["--ratings", str(folder / "ratings.jsonl"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert scores_of(tmp_path / "out")["raters"][0]["agreement"]["exact_agreement"]["value"] == 1.0
    assert "no rater.yaml" in json.loads((tmp_path / "out" / "certificate.json").read_text())[0]["reason"]


def test_bad_input_is_one_line(rated: Path, tmp_path: Path, refused: Refused) -> None:
    one = rated / "one" / "ratings.jsonl"
    corpus = write_corpus(tmp_path / "c", {f"i{n}": {"ann": "present"} for n in range(30)}, NOMINAL)
    theirs = tmp_path / "r.jsonl"
    write_jsonl(theirs, [{"item_id": f"i{n}", "dimension": DIMENSION, "verdict": "present"} for n in range(30)])
    assert "--ratings: missing" in refused()
    assert "no summary.json of infer_traces" in refused("--ratings", one, "--traces", tmp_path)
    assert "no such file" in refused("--ratings", tmp_path / "nowhere.jsonl")
    assert "different items" in refused("--ratings", one, rated / "seen" / "ratings.jsonl")
    assert "has no order" in refused("--corpus", corpus, "--ratings", theirs, "--labels", "median")
    assert "has no order" in refused("--corpus", corpus, "--ratings", theirs, "--aggregate", "mean")
    assert "not in corpus small" in refused("--corpus", corpus, "--ratings", one)
    (tmp_path / "empty.jsonl").touch()
    assert "holds no records" in refused("--ratings", tmp_path / "empty.jsonl")
    (tmp_path / "broken.jsonl").write_text("{broken\n")
    assert "broken.jsonl line 1: not JSON" in refused("--ratings", tmp_path / "broken.jsonl")
    write_jsonl(theirs, [{"item_id": "i0", "dimension": DIMENSION, "verdict": "perhaps"}])
    assert "r.jsonl line 1: verdict 'perhaps'" in refused("--corpus", corpus, "--ratings", theirs)


def test_scoring_needs_no_torch(rated: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pipelines.score_agreement import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'matplotlib', 'openai'} & sys.modules.keys();"
        "sys.exit(status or bool(heavy))"
    )
    arguments = ["--ratings", str(rated / "one" / "ratings.jsonl"), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
