"""Make the demo corpus: simulated customer messages, workshop replies, annotators, labels and rationales.

Replies are composed from the hand-written sentences of segments.yaml. Simulated annotators label them by a
hidden policy (WEIGHTS, ANNOTATORS) over features that can be read off the text (`measure_features`); the
guideline they were supposedly given says little of it. As the policy is known, the pipeline can be tested on
this corpus against the truth. Results on it say nothing about people.

    python data/demo/make.py [--out DIR] [--seed 7] [--stats]

Output is the same, byte for byte, on every Python from 3.11: random numbers come from random.Random, noise is
built from additions only, and floats are summed with math.fsum, as plain sum() changed in Python 3.12.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shutil
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
DIMENSION = "helpfulness"
LABELS = (1, 2, 3, 4, 5)
REPLIES_PER_CASE = 8

# The hidden policy: what a feature at its maximum of 1 adds to the quality of a reply.
WEIGHTS = {
    "answers": 2.0, "steps": 1.0, "specific": 1.1, "reason": 1.0, "length": 1.2,
    "shouting": -1.3, "filler": -1.1, "blame": -1.7,
}  # fmt: skip
# Share of all annotations that the labels 1..4 would get if annotators had neither bias nor noise.
CUT_SHARES = (0.13, 0.21, 0.30, 0.22)

PRICE_OR_TIME = re.compile(r"\d+ (?:to \d+ )?(?:euros|minutes|days|working|weeks|am|pm)\b")
CAPITALS = re.compile(r"\b[A-Z]{3,}\b")


@dataclass(frozen=True, slots=True)
class Annotator:
    """A simulated annotator.

    Attributes:
        voice: Which block of rationales in segments.yaml this annotator speaks from.
        bias: Added to every judgement, in units of quality.
        noise: Standard deviation of a judgement that no feature explains.
        factors: What the common weight of a feature is multiplied by; 1 where absent.
        openers: Phrases that may begin a rationale.
    """

    voice: str
    bias: float
    noise: float
    factors: Mapping[str, float]
    openers: tuple[str, ...] = ()


ANNOTATORS = {
    "ann1": Annotator("customer", 0.10, 0.95, {"specific": 1.7, "reason": 0.6, "shouting": 0.7}, ("for me, ",)),
    "ann2": Annotator("terse", -0.45, 1.05, {"length": 0.6, "filler": 1.6, "steps": 1.3}),
    "ann3": Annotator("observer", 0.00, 0.90, {"answers": 1.5, "blame": 1.2, "specific": 0.7}),
    "ann4": Annotator("customer", 0.45, 1.30, {"blame": 1.6, "shouting": 1.5, "steps": 0.6}, ("honestly, ", "well, ")),
    "ann5": Annotator("observer", -0.20, 1.10, {"reason": 1.8, "answers": 0.8, "length": 1.3}, ("overall, ",)),
    "ann6": Annotator("terse", 0.15, 1.20, {"steps": 1.7, "filler": 0.5, "blame": 0.6}),
}


@dataclass(slots=True)
class Writer:
    """Draws segments evenly: each list is a shuffled deck, begun anew only when it is used up."""

    rng: random.Random
    decks: dict[int, list[str]] = field(default_factory=dict)

    def draw(self, segments: Sequence[str], avoid: Iterable[str] = ()) -> str:
        """A segment of the list that is not in `avoid`."""
        deck = self.decks.setdefault(id(segments), [])
        if not set(deck) - set(avoid):
            deck[:] = segments
            self.rng.shuffle(deck)
        segment = next(s for s in deck if s not in avoid)
        deck.remove(segment)
        return segment

    def fill(self, segment: str, slots: Mapping[str, str]) -> str:
        """The segment with one of each <a|b> chosen and its {slots} filled."""
        chosen = re.sub(r"<([^<>]+)>", lambda match: self.rng.choice(match[1].split("|")), segment)
        return chosen.format(**slots)


def choose_kinds(rng: random.Random, plan: Sequence[str]) -> list[str]:
    """The kinds of segment that appear, from a plan such as ["answers", "steps 0.6"]."""
    pairs = [entry.partition(" ") for entry in plan]
    return [kind for kind, _, probability in pairs if rng.random() < float(probability or 1)]


def compose_reply(
    writer: Writer, text: Mapping[str, Any], topic: Mapping[str, Any], style: str, slots: Mapping[str, str]
) -> str:
    """A reply in the given style about the topic."""
    kinds = choose_kinds(writer.rng, text["styles"][style])
    if style != "blunt":
        for kind in choose_kinds(writer.rng, text["slips"]):
            kinds.insert(writer.rng.randint(1, len(kinds)), kind)
    used: list[str] = []
    vague = ""
    sentences = []
    for kind in kinds:
        segment = writer.draw(topic.get(kind) or text["generic"][kind], avoid=used)
        used.append(segment)
        if kind == "vague":
            vague = segment[0].lower() + segment[1:]
        sentences.append(writer.fill(segment, {**slots, "vague": vague}))
    return " ".join(sentences)


def make_items(text: Mapping[str, Any], seed: int) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """All items, and for each what its message is about. No reply occurs twice."""
    rng = random.Random(f"items {seed}")
    writer = Writer(rng)
    cases = [(topic, question) for topic in text["topics"] for question in topic["questions"]]
    rng.shuffle(cases)
    items: list[dict[str, Any]] = []
    topics = []
    seen: set[str] = set()
    for number, (topic, template) in enumerate(cases, start=1):
        question = writer.fill(template, {"bike": rng.choice(text["slots"]["bike"])})
        price = rng.randint(*topic["price"])
        for index, style in enumerate(rng.sample(sorted(text["styles"]), REPLIES_PER_CASE), start=1):
            subject = topic
            while style == "mistaken" and subject is topic:
                subject = rng.choice(text["topics"])
            reply = ""
            while not reply or reply in seen:
                slots = {name: rng.choice(values) for name, values in text["slots"].items()}
                asked = price + rng.randint(-2, 3)
                slots |= {"price": str(asked), "price_high": str(asked + rng.randint(6, 22))}
                slots |= {"part": str(rng.randint(6, 28)), "about": subject["about"]}
                reply = compose_reply(writer, text, subject, style, slots)
            seen.add(reply)
            inputs = {"question": question, "reply": reply}
            metadata = {"case": f"case_{number:03d}", "simulated": True}
            items.append({"item_id": f"demo_{number:03d}_{index}", "inputs": inputs, "metadata": metadata})
            topics.append({"about": topic["about"], "noun": topic["noun"]})
    return items, topics


def measure_features(item: Mapping[str, Any], markers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The eight features of a reply that the hidden policy weighs, each from 0 to 1.

    Args:
        item: An item with the inputs question and reply.
        markers: Words and phrases per feature, from segments.yaml.

    Returns:
        answers: share of the question's content words that the reply takes up, full at 50 %; words of four or
            more letters count, by their first four letters;
        steps: different words that give instructions, full at 4;
        specific: prices and times in digits, full at 3;
        reason: connectives that give a reason, full at 2;
        length: words, full at 60;
        shouting: exclamation marks and words in capitals, full at 4;
        filler: stock phrases and announced repetitions, full at 3;
        blame: phrases that blame the customer, full at 2.
    """
    reply = item["inputs"]["reply"]
    low = reply.lower()

    def stems(prose: str) -> set[str]:
        return {word[:4] for word in re.findall(r"[a-z]{4,}", prose) if word not in markers["stop_words"]}

    def count(feature: str) -> int:
        return len(re.findall(r"\b(?:" + "|".join(markers[feature]) + r")\b", low))

    asked = stems(item["inputs"]["question"].lower())
    counts = {
        "answers": len(asked & stems(low)) / (0.5 * len(asked)),
        "steps": len(set(markers["steps"]) & set(re.findall(r"[a-z]+", low))) / 4,
        "specific": len(PRICE_OR_TIME.findall(reply)) / 3,
        "reason": count("reason") / 2,
        "length": len(reply.split()) / 60,
        "shouting": (reply.count("!") + len(CAPITALS.findall(reply))) / 4,
        "filler": count("filler") / 3,
        "blame": count("blame") / 2,
    }
    return {feature: min(1.0, value) for feature, value in counts.items()}


def draw_normal(rng: random.Random) -> float:
    """An approximately standard normal number: twelve uniform ones, summed, less six."""
    return math.fsum(rng.random() for _ in range(12)) - 6


def explain(
    writer: Writer,
    annotator: Annotator,
    phrases: Mapping[str, Any],
    features: Mapping[str, float],
    centred: Mapping[str, float],
    parts: Mapping[str, float],
    topic: Mapping[str, str],
) -> str:
    """A rationale that names the one or two features that moved this judgement most.

    Only what is plainly so is said: a feature counts as high from 0.5 and as low up to 0.25.
    """
    sides = {}
    for name, value in features.items():
        if value >= 0.5 and centred[name] > 0:
            sides[name] = "high"
        elif value <= 0.25 and centred[name] < 0:
            sides[name] = "low"
    ranked = sorted(sides, key=lambda name: -abs(parts[name]))
    named = [name for name in ranked[:2] if abs(parts[name]) >= 0.5 * abs(parts[ranked[0]])]
    said = [writer.fill(writer.draw(phrases[name][sides[name]]), topic) for name in named]
    if len(said) == 2 and (parts[named[0]] > 0) != (parts[named[1]] > 0):
        said = [f"{said[1]}, but {said[0]}"]  # the weightier side has the last word
    elif len(said) == 2 and annotator.voice == "terse":
        said = [f"{said[0]}{writer.rng.choice((', ', '; '))}{said[1]}"]
    elif len(said) == 2 and not re.search(", | and ", " ".join(said)) and writer.rng.random() < 0.8:
        said = [f"{said[0]}, and {said[1]}"]
    if annotator.openers and writer.rng.random() < 0.15:
        said[0] = writer.rng.choice(annotator.openers) + said[0]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in said)


def annotate(
    text: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    topics: Sequence[Mapping[str, str]],
    seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Annotations of all items by three or four annotators each, and a rationale for every annotation."""
    rng = random.Random(f"annotations {seed}")
    writer = Writer(rng)
    features = [measure_features(item, text["markers"]) for item in items]
    means = {name: math.fsum(values[name] for values in features) / len(features) for name in WEIGHTS}
    centred = [{name: values[name] - means[name] for name in WEIGHTS} for values in features]
    qualities = sorted(math.fsum(WEIGHTS[name] * values[name] for name in WEIGHTS) for values in centred)
    cuts = [qualities[int(len(items) * math.fsum(CUT_SHARES[: i + 1]))] for i in range(len(CUT_SHARES))]
    annotations, rationales = [], []
    for item, topic, measured, values in zip(items, topics, features, centred, strict=True):
        for annotator_id in sorted(rng.sample(sorted(ANNOTATORS), 3 if rng.random() < 0.6 else 4)):
            who = ANNOTATORS[annotator_id]
            # Attention wanders: how much a feature weighs changes from one judgement to the next.
            attention = {name: who.factors.get(name, 1.0) * rng.uniform(0.2, 1.8) for name in WEIGHTS}
            parts = {name: values[name] * WEIGHTS[name] * attention[name] for name in WEIGHTS}
            score = math.fsum([*parts.values(), who.bias, who.noise * draw_normal(rng)])
            key = {"item_id": item["item_id"], "annotator_id": annotator_id, "dimension": DIMENSION}
            annotations.append({**key, "label": LABELS[len([cut for cut in cuts if score > cut])]})
            reason = explain(writer, who, text["rationales"][who.voice], measured, values, parts, topic)
            rationales.append({**key, "rationale": reason})
    return annotations, rationales


def krippendorff_alpha(units: Iterable[Sequence[int]]) -> float:
    """Krippendorff's alpha for ordinal labels.

    Args:
        units: The labels that each item got; items with a single label are left out.

    Source:
        Krippendorff 2011, Computing Krippendorff's Alpha-Reliability (ordinal difference function).
    """
    pairable = [unit for unit in units if len(unit) > 1]
    totals = Counter(label for unit in pairable for label in unit)
    size = totals.total()

    def distance(a: int, b: int) -> float:
        low, high = sorted((a, b))
        between = sum(totals[label] for label in LABELS if low <= label <= high)
        return (between - (totals[a] + totals[b]) / 2) ** 2

    within = [distance(a, b) / (len(unit) - 1) for unit in pairable for a in unit for b in unit]
    overall = [totals[a] * totals[b] * distance(a, b) / (size - 1) for a in LABELS for b in LABELS]
    return 1 - math.fsum(within) / math.fsum(overall)


def format_stats(items: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]) -> str:
    """Counts, label distributions and alpha as Markdown."""
    units: dict[str, list[int]] = {}
    for row in annotations:
        units.setdefault(row["item_id"], []).append(row["label"])
    words = sorted(len(item["inputs"]["reply"].split()) for item in items)
    annotators = Counter(len(unit) for unit in units.values())
    lines = [
        "| count | value |",
        "|---|---|",
        f"| cases | {len({item['metadata']['case'] for item in items})} |",
        f"| items | {len(items)} |",
        f"| annotations, each with a rationale | {len(annotations)} |",
        f"| items with 3 / 4 annotators | {annotators[3]} / {annotators[4]} |",
        f"| words per reply: least, quartiles, most | {words[0]}, "
        + ", ".join(str(words[len(words) * quarter // 4]) for quarter in (1, 2, 3))
        + f", {words[-1]} |",
        f"| Krippendorff's alpha, ordinal | {krippendorff_alpha(units.values()):.3f} |",
        "",
        "| labels given by | " + " | ".join(str(label) for label in LABELS) + " | all |",
        "|---" * (len(LABELS) + 2) + "|",
    ]
    groups: dict[str, list[int]] = {name: [] for name in [*ANNOTATORS, "everyone"]}
    for row in annotations:
        groups[row["annotator_id"]].append(row["label"])
        groups["everyone"].append(row["label"])
    groups["median of the item (lower)"] = [statistics.median_low(unit) for unit in units.values()]
    for name, labels in groups.items():
        shares = " | ".join(f"{100 * labels.count(label) / len(labels):.1f} %" for label in LABELS)
        lines.append(f"| {name} | {shares} | {len(labels)} |")
    return "\n".join(lines) + "\n"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as UTF-8 JSON lines."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8", newline="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the corpus, and print its statistics if asked."""
    parser = argparse.ArgumentParser(description="Make the simulated demo corpus.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: this script's)")
    parser.add_argument("--seed", type=int, default=7, help="seed of all random choices (default: 7)")
    parser.add_argument("--stats", action="store_true", help="print counts, label distributions and alpha")
    options = parser.parse_args(arguments)
    text = yaml.safe_load((HERE / "segments.yaml").read_text(encoding="utf-8"))
    items, topics = make_items(text, options.seed)
    annotations, rationales = annotate(text, items, topics, options.seed)
    (options.out / "guidelines").mkdir(parents=True, exist_ok=True)
    if options.out.resolve() != HERE:
        for name in ("corpus.yaml", f"guidelines/{DIMENSION}.md"):
            shutil.copyfile(HERE / name, options.out / name)
    write_jsonl(options.out / "items.jsonl", items)
    write_jsonl(options.out / "annotations.jsonl", annotations)
    write_jsonl(options.out / "rationales.jsonl", rationales)
    if options.stats:
        print(format_stats(items, annotations), end="")


if __name__ == "__main__":
    main()
