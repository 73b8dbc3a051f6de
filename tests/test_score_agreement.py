"""The stage that scores raters, as a user runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import rate_items
from pipelines.command import run_command
from pipelines.score_agreement import STAGE, main
from raters.agreement import METRICS_BY_SCALE
from raters.rater_files import read_rater
from raters.records import ConfigError
from raters.score_text import FIGURE_NAMES
from tests.small_corpora import DIMENSION, INTERVAL, NOMINAL, ORDINAL_3, PAIRWISE, write_corpus, write_jsonl

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
    progress = {"rater": "stopped", "items": 40, "of_items": 56, "draws": 40, "of_draws": 112}
    assert (scores["partial"], scores["items"]) == ([progress], 40)


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


# --- what a run writes and prints -------------------------------------------------------------------------

QUICK = ("--resamples", "200")
FIGURE = {"value", "low", "high", "reason", "undefined_resamples"}
SCORES = set(
    "corpus dimension scale label_method items items_with_label dropped_items annotators resampled resampled_count "
    "resamples interval_method test_method human raters floors between_raters differences holm_over partial".split()
)
RECORD = set(
    "rater aggregate draws_per_item items_by_probabilities coverage unreadable_items unreadable_draws agreement "
    "worst_case confusion alternative_annotator_test self_agreement verdict_shares label_shares length_correlation "
    "position".split()
)


def given_ratings(folder: Path, verdicts: dict[str, Any], **more: Any) -> Path:
    """Write ratings from elsewhere and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [{"item_id": name, "dimension": DIMENSION, "verdict": verdict, **more}
               for name, verdict in verdicts.items()]  # fmt: skip
    write_jsonl(folder / "ratings.jsonl", records)
    return folder / "ratings.jsonl"


def two_people(scale: dict[str, Any], count: int = 40) -> dict[str, dict[str, Any]]:
    """Return labels of two people who agree on two items of three."""
    labels = scale.get("labels") or list(range(scale["min"], scale["max"] + 1, (scale["max"] - scale["min"]) // 4))
    return {
        f"i{number:02}": {
            "ann": labels[number % len(labels)],
            "bob": labels[(number + (number % 3 == 0)) % len(labels)],
        }
        for number in range(count)
    }


def a_corpus(folder: Path, scale: dict[str, Any], **options: Any) -> Path:
    labels = two_people(scale)
    if scale["type"] == "pairwise":
        options["inputs"] = {name: {"left": "some " * (1 + n % 7), "right": "words"} for n, name in enumerate(labels)}
    return write_corpus(folder, labels, scale, **options)


def shown(found: dict[str, Any]) -> str:
    """Return a figure as the table has it."""
    if found["value"] is None:
        return "-"
    return f"{found['value']:.3f}" + ("" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]")


def row_of(printed: str, figure: str) -> str:
    (line,) = [line for line in printed.splitlines() if line.startswith(f"  {figure} ")]
    return line


def test_scores_have_a_schema(rated: Path, tmp_path: Path) -> None:
    files = [str(rated / name / "ratings.jsonl") for name in ("one", "two")]
    assert main(["--ratings", *files, *QUICK, "--out", str(tmp_path / "out")]) == 0
    scores = scores_of(tmp_path / "out")
    assert set(scores) == SCORES
    assert (scores["resamples"], scores["partial"]) == (200, [])
    names = set(METRICS_BY_SCALE["ordinal"])
    assert set(scores["human"]) == {"alpha", "ceiling", "ceiling_pooled"}
    assert set(scores["human"]["ceiling"]) == names
    for record in (*scores["raters"], *scores["floors"]):
        assert set(record) == RECORD
        assert set(record["agreement"]) == set(record["worst_case"]) == names
        for found in (*record["agreement"].values(), *record["worst_case"].values()):
            assert set(found) == FIGURE
        assert sum(record["verdict_shares"].values()) == pytest.approx(1)
    assert {row["figure"] for row in scores["differences"]} == names
    for row in scores["differences"]:
        assert set(row) == {"figure", "raters", "value", "low", "high", "p", "p_holm", "reason"}
        assert row["p_holm"] >= row["p"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["stage"], manifest["status"]) == (STAGE, "complete")
    assert {str(Path(file).resolve()) for file in files} <= set(manifest["inputs_sha256"])
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.endswith(".partial")]


@pytest.mark.parametrize("scale", [ORDINAL_3, INTERVAL, NOMINAL, PAIRWISE, {"type": "interval", "min": 0, "max": 1000}])
def test_every_figure_is_printed_whole_with_its_interval_and_that_of_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: dict[str, Any]
) -> None:
    corpus = a_corpus(tmp_path / "c", scale)
    said = list(two_people(scale).items())
    verdicts = {name: said[(place * 7) % len(said)][1]["bob"] for place, (name, _) in enumerate(said)}
    file = given_ratings(tmp_path / "theirs", verdicts)
    assert main(["--corpus", str(corpus), "--ratings", str(file), *QUICK, "--out", str(tmp_path / "out")]) == 0
    printed, scores = capsys.readouterr().out, scores_of(tmp_path / "out")
    assert "theirs" in printed
    assert "people, " in printed
    assert shown(scores["human"]["alpha"]) in printed
    for name in METRICS_BY_SCALE[scale["type"]]:
        line = row_of(printed, FIGURE_NAMES[name])
        for found in (scores["raters"][0]["agreement"][name], scores["human"]["ceiling"][name]):
            assert shown(found) in line, (name, line)
        assert line.endswith(shown(scores["human"]["ceiling"][name]))
    assert "100.0 %" in row_of(printed, "readable items")


def test_the_same_command_gives_the_same_and_another_is_refused_by_name(
    rated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(rated / "one", run)
    command = ["--ratings", str(run / "ratings.jsonl"), *QUICK, "--out", str(out)]
    assert main(command) == 0
    first = capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    lines = (run / "ratings.jsonl").read_text().splitlines(keepends=True)
    changed = {**json.loads(lines[0]), "verdict": None}
    (run / "ratings.jsonl").write_text(json.dumps(changed) + "\n" + "".join(lines[1:]))
    for more, named in (([], str(run / "ratings.jsonl")), (["--seed", "3"], "seed was 0, now 3")):
        monkeypatch.setattr(sys, "argv", [STAGE, *command, *more])
        assert run_command(STAGE, main) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"{STAGE}: ")]
        assert "belongs to another run" in line
        assert named in line
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert main([*command, "--new"]) == 0
    assert scores_of(out)["raters"][0]["unreadable_draws"] == 1
    assert (tmp_path / "out.old-1" / "scores.json").read_bytes() == before["scores.json"]


def test_a_file_by_another_path_is_the_same_file(rated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["--ratings", str(rated / "one" / "ratings.jsonl"), *QUICK, *out]) == 0
    monkeypatch.chdir(rated / "one")
    for path in ("ratings.jsonl", "../two/../one/ratings.jsonl"):
        assert main(["--ratings", path, *QUICK, *out]) == 0


def test_a_run_is_complete_when_all_is_written(
    rated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is killed while it writes the last of its files; the same command finishes it."""
    out = tmp_path / "out"
    command = ["--ratings", str(rated / "one" / "ratings.jsonl"), *QUICK, "--out", str(out)]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("raters.rater_files.RaterSpec.write", killed)
        with pytest.raises(KeyboardInterrupt):
            main(command)
    assert (out / "report.html").exists()
    assert json.loads((out / "manifest.json").read_text())["status"] == "running"
    assert main(command) == 0
    assert json.loads((out / "manifest.json").read_text())["status"] == "complete"
    assert (out / "certified" / "one.yaml").exists()


def test_what_is_no_longer_certified_is_taken_away(rated: Path, tmp_path: Path) -> None:
    shutil.copytree(rated / "one", tmp_path / "one")
    command = ["--ratings", str(tmp_path / "one" / "ratings.jsonl"), *QUICK, "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert (tmp_path / "out" / "certified" / "one.yaml").exists()
    (tmp_path / "one" / "manifest.json").unlink()
    assert main(command) == 0
    assert not list((tmp_path / "out" / "certified").iterdir())


def test_ratings_in_the_folder_where_the_user_is(rated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(rated / "one", tmp_path / "mine")
    (tmp_path / "mine" / "deeper").mkdir()
    for place, given in (("mine", "ratings.jsonl"), ("mine/deeper", "../ratings.jsonl")):
        monkeypatch.chdir(tmp_path / place)
        out = tmp_path / f"out-{Path(place).name}"
        assert main(["--ratings", given, *QUICK, "--out", str(out)]) == 0
        assert scores_of(out)["raters"][0]["rater"] == "mine"
        assert (out / "certified" / "mine.yaml").exists()


def test_raters_of_one_folder_name_are_told_apart(rated: Path, tmp_path: Path) -> None:
    """Also where a folder has the name that the third would get, and where file names would be the same."""
    for source, name in (("one", "a 3"), ("two", "x/a"), ("one", "y/a"), ("two", "a_3")):
        shutil.copytree(rated / source, tmp_path / name)
    files = [str(tmp_path / name / "ratings.jsonl") for name in ("a 3", "x/a", "y/a", "a_3")]
    assert main(["--ratings", *files, *QUICK, "--out", str(tmp_path / "out")]) == 0
    raters = [record["rater"] for record in scores_of(tmp_path / "out")["raters"]]
    assert len(set(raters)) == 4
    certified = [read_rater(path) for path in sorted((tmp_path / "out" / "certified").iterdir())]
    assert len(certified) == 4
    assert {spec.certificate["rater"] for spec in certified if spec.certificate} == set(raters)


# --- runs that are not done -------------------------------------------------------------------------------


def stopped(rated: Path, folder: Path, lines: int, tail: str = "") -> Path:
    """Make the folder of a run that was killed after some lines."""
    folder.mkdir(parents=True)
    kept = (rated / "one" / "ratings.jsonl").read_text().splitlines(keepends=True)[:lines]
    (folder / "ratings.jsonl").write_text("".join(kept) + tail)
    manifest = json.loads((rated / "one" / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    return folder / "ratings.jsonl"


def test_a_line_cut_off_by_a_kill_is_passed_over_with_partial(
    rated: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    file = stopped(rated, tmp_path / "killed", 30, tail='{"item_id": "x", "dimens')
    assert "is not complete" in refused("--ratings", file)
    assert main(["--ratings", str(file), "--partial", *QUICK, "--out", str(tmp_path / "out")]) == 0
    assert scores_of(tmp_path / "out")["items"] == 30
    assert row_of(capsys.readouterr().out, "not complete:") == (
        "  not complete: killed (30 of 56 items, 30 of 112 draws)"
    )


def test_a_run_that_says_nothing_of_its_size_is_counted(
    rated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = stopped(rated, tmp_path / "killed", 70)
    (file.parent / "manifest.json").write_text(json.dumps({"status": "running", "items": "many"}))
    assert main(["--ratings", str(file), "--partial", *QUICK, "--out", str(tmp_path / "out")]) == 0
    assert row_of(capsys.readouterr().out, "not complete:") == "  not complete: killed (56 items, 70 draws)"


def test_partial_raters_are_named_as_in_the_table(rated: Path, tmp_path: Path) -> None:
    files = [str(stopped(rated, tmp_path / name / "run", 30)) for name in ("x", "y")]
    shutil.copytree(rated / "one", tmp_path / "run")
    assert main(["--ratings", *files, "--partial", *QUICK, "--out", str(tmp_path / "out")]) == 0
    scores = scores_of(tmp_path / "out")
    assert [one["rater"] for one in scores["partial"]] == [record["rater"] for record in scores["raters"]]
    for certificate in json.loads((tmp_path / "out" / "certificate.json").read_text()):
        assert certificate["certified"] is False


# --- certificates -----------------------------------------------------------------------------------------


def test_a_rater_that_did_not_make_the_ratings_is_not_certified(rated: Path, tmp_path: Path) -> None:
    """Another rater's rater.yaml stands beside the ratings."""
    shutil.copytree(rated / "one", tmp_path / "mixed")
    shutil.copy(rated / "two" / "rater.yaml", tmp_path / "mixed" / "rater.yaml")
    file = tmp_path / "mixed" / "ratings.jsonl"
    assert main(["--ratings", str(file), *QUICK, "--out", str(tmp_path / "out")]) == 0
    (certificate,) = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert certificate["certified"] is False
    assert "rater.yaml" in certificate["reason"]


def test_another_aggregate_than_the_raters_is_not_certified(rated: Path, tmp_path: Path) -> None:
    """The rater as it is used takes the mean of its draws; figures of a majority are not its own."""
    file = rated / "one" / "ratings.jsonl"
    assert main(["--ratings", str(file), "--aggregate", "majority", *QUICK, "--out", str(tmp_path / "out")]) == 0
    (certificate,) = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert certificate["certified"] is False


@pytest.mark.parametrize("kept", ["items", "draws"])
def test_a_part_of_a_complete_run_is_not_certified(rated: Path, tmp_path: Path, kept: str) -> None:
    """Whoever leaves out ratings, the hard ones say, finds the manifest against it."""
    shutil.copytree(rated / "one", tmp_path / "chosen")
    file = tmp_path / "chosen" / "ratings.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    chosen = sorted({record["item_id"] for record in records})[:40]
    write_jsonl(file, [one for one in records if (one["item_id"] in chosen if kept == "items" else one["draw"] == 0)])
    assert main(["--ratings", str(file), *QUICK, "--out", str(tmp_path / "out")]) == 0
    (certificate,) = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert certificate["certified"] is False


def test_two_raters_are_compared_by_the_figures_in_the_table(rated: Path, tmp_path: Path) -> None:
    files = [str(rated / name / "ratings.jsonl") for name in ("one", "two")]
    assert main(["--ratings", *files, *QUICK, "--out", str(tmp_path / "out")]) == 0
    scores = scores_of(tmp_path / "out")
    one, two = (record["agreement"] for record in scores["raters"])
    for row in scores["differences"]:
        name = row["figure"]
        assert row["value"] == pytest.approx(one[name]["value"] - two[name]["value"]), name


# --- bad input --------------------------------------------------------------------------------------------


def mended(line: str) -> str:
    """Return an error line after checking that it says what to do."""
    assert re.search("; |must be ", line), f"says no mend: {line}"
    return line


LINE = {"item_id": "i00", "dimension": DIMENSION, "verdict": 1}
ODD_IDS: tuple[Any, ...] = (["i00"], {}, None, 3, "I00", "i00 ")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        *((json.dumps({k: v for k, v in LINE.items() if k != key}).encode(), f"no {key}; ") for key in LINE),
        (b"[1, 2]", "is not a JSON object"),
        (b'{"item_id": NaN}', "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        *((json.dumps({**LINE, "item_id": item_id}).encode(), f"item_id {item_id!r}") for item_id in ODD_IDS),
        *((json.dumps({**LINE, "draw": draw}).encode(), f"draw {draw!r}") for draw in (10**12, 1.0, "0", None)),
        *(
            (json.dumps({**LINE, "verdict": verdict}).encode(), f"verdict {verdict!r}")
            for verdict in (True, "1", 4, [1])
        ),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, refused: Refused, content: bytes, told: str) -> None:
    corpus = a_corpus(tmp_path / "c", ORDINAL_3)
    (tmp_path / "r.jsonl").write_bytes(content + b"\n")
    line = mended(refused("--corpus", corpus, "--ratings", tmp_path / "r.jsonl"))
    assert f"{tmp_path / 'r.jsonl'} line 1: " in line
    assert told in line


def test_what_stands_beside_ratings_must_be_readable(tmp_path: Path, refused: Refused) -> None:
    corpus = a_corpus(tmp_path / "c", ORDINAL_3)
    file = given_ratings(tmp_path / "theirs", {name: given["ann"] for name, given in two_people(ORDINAL_3).items()})
    flags = ("--corpus", corpus, "--ratings")
    assert "tone" in mended(refused(*flags, file, "--dimension", "tone"))
    assert str(tmp_path / "theirs") in mended(refused(*flags, tmp_path / "theirs"))
    for content in ("{", "[]", "{}"):
        (tmp_path / "theirs" / "manifest.json").write_text(content)
        assert "manifest.json" in mended(refused(*flags, file))
    (tmp_path / "theirs" / "manifest.json").unlink()
    (tmp_path / "theirs" / "rater.yaml").write_text("no: rater")
    assert "rater.yaml" in mended(refused(*flags, file))


def test_a_folder_of_something_else_is_left_alone(rated: Path, tmp_path: Path) -> None:
    """The folder of the ratings themselves, and one with somebody's notes."""
    shutil.copytree(rated / "one", tmp_path / "one")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("notes")
    file = tmp_path / "one" / "ratings.jsonl"
    for out, told in (("one", "belongs to a run of rate_items"), ("notes", "holds files but no run")):
        before = {path.name: path.read_bytes() for path in (tmp_path / out).iterdir()}
        with pytest.raises(ConfigError, match=told):
            main(["--ratings", str(file), *QUICK, "--out", str(tmp_path / out)])
        assert {path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} == before


def test_two_files_of_different_dimensions_are_refused(tmp_path: Path, refused: Refused) -> None:
    corpus = a_corpus(tmp_path / "c", ORDINAL_3)
    settings = yaml.safe_load((corpus / "corpus.yaml").read_text())
    settings["dimensions"]["tone"] = settings["dimensions"][DIMENSION]
    (corpus / "corpus.yaml").write_text(yaml.safe_dump(settings))
    good = {name: labels["ann"] for name, labels in two_people(ORDINAL_3).items()}
    files = [given_ratings(tmp_path / "x", good), given_ratings(tmp_path / "y", good, dimension="tone")]
    line = mended(refused("--corpus", corpus, "--ratings", *files))
    assert "y/ratings.jsonl line 1: dimension 'tone'" in line


def test_items_without_labels_are_refused(tmp_path: Path, refused: Refused) -> None:
    labels = {**two_people(ORDINAL_3), "bare": {}, "naked": {}}
    corpus = write_corpus(tmp_path / "c", labels, ORDINAL_3)
    file = given_ratings(tmp_path / "theirs", {"bare": 1, "naked": 2})
    line = mended(refused("--corpus", corpus, "--ratings", file))
    assert "none of the 2 rated items has a label" in line


def test_a_method_that_needs_order_is_refused_for_pairs(tmp_path: Path, refused: Refused) -> None:
    corpus = a_corpus(tmp_path / "c", PAIRWISE)
    file = given_ratings(tmp_path / "theirs", dict.fromkeys(two_people(PAIRWISE), "A"))
    for flags in ("--aggregate mean", "--aggregate median", "--labels mean", "--labels paper"):
        assert "has no order" in mended(refused("--corpus", corpus, "--ratings", file, *flags.split()))


def test_an_annotator_who_labelled_an_item_twice_is_refused(tmp_path: Path, refused: Refused) -> None:
    corpus = a_corpus(tmp_path / "c", ORDINAL_3)
    first = (corpus / "annotations.jsonl").read_text().splitlines()[0]
    with (corpus / "annotations.jsonl").open("a") as file:
        file.write(first + "\n")
    ratings = given_ratings(tmp_path / "theirs", {"i00": 1, "i01": 2})
    assert "annotations.jsonl line 81" in mended(refused("--corpus", corpus, "--ratings", ratings))


# --- one annotator, hostile names -------------------------------------------------------------------------


def test_a_single_annotator_has_no_ceiling_and_the_reason_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {name: {"ann": given["ann"]} for name, given in two_people(ORDINAL_3).items()}
    corpus = write_corpus(tmp_path / "c", labels, ORDINAL_3)
    file = given_ratings(tmp_path / "theirs", {name: given["bob"] for name, given in two_people(ORDINAL_3).items()})
    assert main(["--corpus", str(corpus), "--ratings", str(file), *QUICK, "--out", str(tmp_path / "out")]) == 0
    human = scores_of(tmp_path / "out")["human"]
    for found in (human["alpha"], *human["ceiling"].values()):
        assert found["value"] is None
        assert found["reason"]
    printed = capsys.readouterr().out
    assert row_of(printed, "MSE").endswith(" -")
    for found in (human["alpha"], human["ceiling"]["mse"]):
        (line,) = [line for line in printed.splitlines() if line.endswith(f"(people): {found['reason']}")]
        assert line.startswith("  no value or interval of ")
    assert scores_of(tmp_path / "out")["raters"][0]["agreement"]["mse"]["value"] is not None


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    red, forged = "\x1b[31m", "\nforged: certified"
    scale = {"type": "nominal", "labels": [f"yes{red}", "no\u202e"]}
    corpus = a_corpus(tmp_path / "c", scale)
    verdicts = {name: given["ann"] for name, given in two_people(scale).items()}
    files = [str(given_ratings(tmp_path / f"{place}/{red}evil{forged}", verdicts)) for place in "xy"]
    assert main(["--corpus", str(corpus), "--ratings", *files, *QUICK, "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert not [line for line in printed.splitlines() if line.startswith("forged: ")]
    scores = scores_of(tmp_path / "out")
    assert [record["rater"].isprintable() for record in scores["raters"]] == [True, True]
    assert "y/\ufffd[31mevil\ufffdforged: certified" in printed
