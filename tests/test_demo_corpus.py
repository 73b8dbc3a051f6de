"""The demo corpus is what its script makes, and what its README says it is."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import krippendorff
import numpy as np
import pytest
import yaml
from scipy.stats import spearmanr

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
MADE = ("items.jsonl", "annotations.jsonl", "rationales.jsonl")
COPIED = ("corpus.yaml", "guidelines/helpfulness.md")


def read_jsonl(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def items() -> list[dict[str, Any]]:
    return read_jsonl("items.jsonl")


@pytest.fixture(scope="module")
def annotations() -> list[dict[str, Any]]:
    return read_jsonl("annotations.jsonl")


@pytest.fixture(scope="module")
def rationales() -> list[dict[str, Any]]:
    return read_jsonl("rationales.jsonl")


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_make", DEMO / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def run_make(*arguments: str, hash_seed: str = "0") -> str:
    command = [sys.executable, str(DEMO / "make.py"), *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_script_makes_the_shipped_files_byte_for_byte(tmp_path: Path, hash_seed: str) -> None:
    run_make("--out", str(tmp_path), hash_seed=hash_seed)
    for name in (*MADE, *COPIED):
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes(), name


def test_another_seed_makes_another_corpus(tmp_path: Path) -> None:
    run_make("--out", str(tmp_path), "--seed", "8")
    for name in MADE:
        assert (tmp_path / name).read_bytes() != (DEMO / name).read_bytes(), name


def test_readme_holds_the_statistics_that_the_script_prints(tmp_path: Path) -> None:
    printed = run_make("--out", str(tmp_path), "--stats")
    assert printed.strip() in (DEMO / "README.md").read_text(encoding="utf-8")


def test_readme_holds_the_policy_that_the_script_follows(make: ModuleType) -> None:
    readme = (DEMO / "README.md").read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
    for feature, weight in make.WEIGHTS.items():
        assert re.search(rf"\| {feature} \|.*\| {re.escape(f'{weight:+.1f}')} \|", readme), feature
    for name, who in make.ANNOTATORS.items():
        factors = ", ".join(f"{feature} × {factor}" for feature, factor in who.factors.items())
        bias = f"{who.bias:+.2f}" if who.bias else "0.00"
        assert f"| {name} | {who.voice} | {bias} | {who.noise:.2f} | {factors} |" in readme


def test_counts_and_groups_of_eight(items: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    assert len(items) == len({item["item_id"] for item in items}) == 384
    assert len({item["inputs"]["reply"] for item in items}) == 384
    cases = Counter(item["metadata"]["case"] for item in items)
    assert len(cases) == 48
    assert set(cases.values()) == {8}
    assert len({(item["metadata"]["case"], item["inputs"]["question"]) for item in items}) == 48
    assert all(item["metadata"]["simulated"] is True for item in items)
    assert {row["annotator_id"] for row in annotations} == {f"ann{n}" for n in range(1, 7)}
    pairs = Counter((row["item_id"], row["annotator_id"]) for row in annotations)
    assert set(pairs.values()) == {1}
    assert set(Counter(row["item_id"] for row in annotations).values()) == {3, 4}


def test_annotations_refer_to_items_and_stay_on_scale(
    items: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> None:
    config = yaml.safe_load((DEMO / "corpus.yaml").read_text(encoding="utf-8"))
    assert config["group_by"] == "metadata.case"
    scale = config["dimensions"]["helpfulness"]["scale"]
    assert scale == {"type": "ordinal", "labels": [1, 2, 3, 4, 5]}
    assert (DEMO / config["dimensions"]["helpfulness"]["guideline"]).is_file()
    assert {row["item_id"] for row in annotations} == {item["item_id"] for item in items}
    assert {row["dimension"] for row in annotations} == {"helpfulness"}
    for row in annotations:
        assert type(row["label"]) is int
        assert row["label"] in scale["labels"]


def test_labels_are_spread_and_annotators_agree_as_stated(annotations: list[dict[str, Any]]) -> None:
    names = sorted({row["annotator_id"] for row in annotations})
    columns = {item_id: i for i, item_id in enumerate(dict.fromkeys(row["item_id"] for row in annotations))}
    labels = np.full((len(names), len(columns)), np.nan)
    for row in annotations:
        labels[names.index(row["annotator_id"]), columns[row["item_id"]]] = row["label"]
    for given in labels:
        assert set(given[~np.isnan(given)]) == {1, 2, 3, 4, 5}
    for level in ("ordinal", "interval"):
        alpha = krippendorff.alpha(reliability_data=labels, level_of_measurement=level)
        assert 0.45 <= alpha <= 0.6, level
    ordinal = krippendorff.alpha(reliability_data=labels, level_of_measurement="ordinal")
    assert f"alpha, ordinal | {ordinal:.3f} |" in (DEMO / "README.md").read_text(encoding="utf-8")
    medians = np.nanmedian(labels, axis=0)
    for median in (np.floor(medians), np.ceil(medians)):
        shares = [np.mean(median == label) for label in (1, 2, 3, 4, 5)]
        assert min(shares) >= 0.08


def test_every_annotation_has_a_rationale_that_does_not_give_the_label_away(
    annotations: list[dict[str, Any]], rationales: list[dict[str, Any]]
) -> None:
    keys = ("item_id", "annotator_id", "dimension")
    assert [[row[k] for k in keys] for row in rationales] == [[row[k] for k in keys] for row in annotations]
    number_words = re.compile(r"\b(one|two|three|four|five|stars?|labels?|scores?)\b", re.IGNORECASE)
    for row in rationales:
        assert set(row) == {*keys, "rationale"}
        assert not re.search(r"\d", row["rationale"]), row
        assert not number_words.search(row["rationale"]), row
        assert 2 <= len(row["rationale"]) <= 300, row
        assert row["rationale"].endswith("."), row


def test_labels_follow_the_policy_on_the_surface_of_the_texts(
    items: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> None:
    labels = defaultdict(list)
    for row in annotations:
        labels[row["item_id"]].append(row["label"])
    means = [np.mean(labels[item["item_id"]]) for item in items]
    replies = [item["inputs"]["reply"] for item in items]
    words = spearmanr([len(reply.split()) for reply in replies], means)
    digits = spearmanr([sum(c.isdigit() for c in reply) for reply in replies], means)
    exclamations = spearmanr([reply.count("!") for reply in replies], means)
    assert words.statistic > 0
    assert words.pvalue < 0.01
    assert digits.statistic > 0
    assert digits.pvalue < 0.01
    assert exclamations.statistic < 0
    assert exclamations.pvalue < 0.01


def test_features_of_a_reply_counted_by_hand(make: ModuleType) -> None:
    markers = yaml.safe_load((DEMO / "segments.yaml").read_text(encoding="utf-8"))["markers"]
    reply = "You should have come EARLIER! First check the chain, because it skips. It costs 20 euros."
    item = {"inputs": {"question": "Why does my chain skip on hills?", "reply": reply}}
    assert make.measure_features(item, markers) == pytest.approx(
        {
            "answers": 1.0,  # chain and skip of chain, skip, hills: 2/3, full at a half
            "steps": 2 / 4,  # first, check
            "specific": 1 / 3,  # 20 euros
            "reason": 1 / 2,  # because
            "length": 16 / 60,
            "shouting": 2 / 4,  # EARLIER and !
            "filler": 0.0,
            "blame": 1 / 2,  # you should have
        }
    )


def test_every_segment_of_blame_filler_and_shouting_is_recognised(make: ModuleType) -> None:
    text = yaml.safe_load((DEMO / "segments.yaml").read_text(encoding="utf-8"))
    lists = [("blame", topic["blame"]) for topic in text["topics"] if "blame" in topic]
    lists += [("blame", text["generic"]["blame"]), ("shouting", text["generic"]["shouts"])]
    lists += [("filler", text["generic"]["filler"]), ("filler", text["generic"]["repeats"])]
    for feature, segments in lists:
        for segment in segments:
            item = {"inputs": {"question": "Why does the chain skip?", "reply": segment}}
            assert make.measure_features(item, text["markers"])[feature] > 0, segment


def test_corpus_is_small_and_ends_its_lines_with_newlines() -> None:
    paths = [path for path in DEMO.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum((DEMO / name).stat().st_size for name in (*MADE, *COPIED)) < 1_500_000
    for path in paths:
        if path.suffix in {".jsonl", ".md", ".yaml", ".py"}:
            data = path.read_bytes()
            assert data.endswith(b"\n"), path.name
            assert b"\r" not in data, path.name
