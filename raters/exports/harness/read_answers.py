"""Answers of a batch as verdicts: python read_answers.py answers.jsonl [more.jsonl …].

Reads what the provider, or `vllm run-batch`, answered to requests-*.jsonl, and writes verdicts.jsonl.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from raters.exports.judge import Completion, completion_from, completion_of, load

HERE = Path(__file__).parent
JUDGE = load(HERE)


def main(paths: Sequence[str]) -> int:
    """Write verdicts.jsonl and return the exit status."""
    if not paths:
        print(__doc__.splitlines()[0])
        return 2
    answers: dict[str, Completion] = {}
    for path in paths:
        place = path
        try:
            for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
                place = f"{path} line {number}"
                if line.strip():
                    record = json.loads(line)
                    if (answer := _answer(record)) is not None:
                        answers[record["custom_id"]] = answer
        except OSError as error:
            print(f"{path}: {error.strerror}; give the file of answers", file=sys.stderr)
            return 2
        except (ValueError, KeyError, TypeError):
            print(f"{place}: is no answer of a batch; give the file of answers", file=sys.stderr)
            return 2
    items = [json.loads(line) for line in (HERE / "items.jsonl").read_text(encoding="utf-8").split("\n") if line]
    missing = unreadable = 0
    lines = []
    for row, item in enumerate(items):
        names = [f"{row}-{draw}" for draw in range(JUDGE.draws)]
        missing += sum(name not in answers for name in names)
        drawn = [answers.get(name, completion_from("")) for name in names]
        rating = JUDGE.joined(JUDGE.item(item["inputs"]), drawn)
        unreadable += rating.value is None
        told = {"item_id": item["item_id"], "verdict": rating.verdict, "value": rating.value}
        told |= {"verdicts": rating.verdicts, "reasoning": rating.reasoning}
        lines.append(json.dumps(told, ensure_ascii=False))
    out = Path("verdicts.jsonl")
    out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(
        f"{len(items)} items: {unreadable} unreadable, {missing} of {len(items) * JUDGE.draws} answers missing; {out}"
    )
    return 0


def _answer(record: dict[str, Any]) -> Completion | None:
    """Return the completion of a line; None if its request failed."""
    record["custom_id"]
    try:
        return completion_of((record.get("response") or {}).get("body"))
    except ValueError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
