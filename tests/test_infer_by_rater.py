"""infer_traces by a rater.yaml, as a second round of fine-tuning has it: what is known of it, and that it stays one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.infer_traces import STAGE, main
from raters.corpora import Corpus, load_corpus
from raters.plain_raters import plain_rater
from raters.rater_files import RaterSpec, SeenItems, adapter_sha256, read_rater
from raters.splits import split_corpus
from tests.small_corpora import ORDINAL_3, write_corpus
from tests.stage_runs import Run, calls_of, leave_the_user, read, refused_line, strict
from tests.tiny_models import make_adapter, make_model

SHORT = ("--limit", 2, "--k", 1, "--max-tokens", 4, "--no-ahead")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "m")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    leave_the_user(tmp_path, monkeypatch)
    write_corpus(tmp_path / "small", {f"i{number}": {"ann": 1 + number % 3} for number in range(20)}, ORDINAL_3)
    return calls_of(STAGE, main, monkeypatch, capsys)


@pytest.fixture
def corpus(run: Run) -> Corpus:
    return load_corpus(Path("small"))


def rater_of(corpus: Corpus, model: str = "embedded", **more: object) -> RaterSpec:
    """Return a rater whose making has seen train and dev, as a fine-tuned one's has."""
    split = split_corpus(corpus, 0)
    spec = plain_rater(model, corpus, corpus.dimension(None), split, **more)  # type: ignore[arg-type]
    return replace(spec, seen=SeenItems.of(corpus, np.flatnonzero(split.parts < 2)))


@pytest.mark.parametrize("model", ["embedded", "hf"])
def test_what_a_rater_has_seen_stays_known(run: Run, corpus: Corpus, base: Path, model: str) -> None:
    spec = rater_of(corpus, f"hf/{base}" if model == "hf" else model)
    spec.write(Path("rater.yaml"))
    run("--corpus", "small", "--model", "rater.yaml", *SHORT, "--out", "run")
    seen = read_rater(Path("run/rater.yaml")).seen
    split = split_corpus(corpus, 0)
    assert seen.touched(corpus, split.indices("dev")).tolist() == split.indices("dev").tolist()
    assert not len(seen.touched(corpus, split.indices("test")))


def test_what_an_adapter_has_seen_is_known_from_the_rater_it_was_made_with(
    run: Run, corpus: Corpus, base: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(base, tmp_path / "tuned" / "adapter")
    spec = rater_of(corpus, f"hf/{base}")
    replace(spec, adapter="adapter", adapter_sha256=adapter_sha256(adapter)).write(tmp_path / "tuned" / "rater.yaml")
    run("--corpus", "small", "--model", f"hf/{base}", "--adapter", "tuned/adapter", *SHORT, "--out", "run")
    generator = read_rater(Path("run/rater.yaml"))
    assert generator.seen.hashes.tolist() == spec.seen.hashes.tolist()
    assert generator.adapter_sha256 == adapter_sha256(adapter)
    split = split_corpus(corpus, 0)
    plain = plain_rater(f"hf/{base}", corpus, corpus.dimension(None), split, adapter="tuned/adapter")
    assert plain.seen.hashes.tolist() == spec.seen.hashes.tolist()
    assert plain.adapter_sha256 == adapter_sha256(adapter)
    # beside another adapter's rater.yaml nothing is known of it
    make_adapter(base, adapter, seed=2)
    other = plain_rater(f"hf/{base}", corpus, corpus.dimension(None), split, adapter="tuned/adapter")
    assert not len(other.seen.hashes)


def test_a_run_does_not_go_on_with_an_adapter_that_was_trained_again(
    run: Run, corpus: Corpus, base: Path, tmp_path: Path
) -> None:
    flags = ("--corpus", "small", "--model", "rater.yaml", *SHORT, "--out", "run")
    weights = make_adapter(base, tmp_path / "adapter") / "adapter_model.safetensors"

    def tuned() -> None:
        spec = rater_of(corpus, f"hf/{base}")
        replace(spec, adapter="adapter", adapter_sha256=adapter_sha256(Path("adapter"))).write(Path("rater.yaml"))

    tuned()
    run(*flags)
    assert len(read(tmp_path / "run" / "candidates.jsonl")) == 2
    run(*flags, "--k", 2)  # the same adapter goes on
    first = strict(tmp_path / "run" / "manifest.json")["identity"]["adapter_sha256"]
    before = weights.read_bytes()
    make_adapter(base, tmp_path / "adapter", seed=2)
    assert weights.read_bytes() != before
    tuned()
    line = refused_line(run, tmp_path, *flags, "--k", 3, names=["belongs to another run", "adapter_sha256", first[:8]])
    assert "--new" in line


def test_a_rater_that_gives_its_rating_alone_infers_nothing(run: Run, corpus: Corpus, tmp_path: Path) -> None:
    rater_of(corpus, reasoning=False).write(Path("rater.yaml"))
    names = ["--model rater.yaml", "rating alone"]
    refused_line(run, tmp_path, "--corpus", "small", "--model", "rater.yaml", "--out", "run", names=names)


def test_an_adapter_without_weights_is_refused_before_anything_is_made(run: Run, base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    names = ["empty", "adapter's folder"]
    refused_line(
        run, tmp_path, "--corpus", "small", "--model", f"hf/{base}", "--adapter", "empty", "--out", "run", names=names
    )
