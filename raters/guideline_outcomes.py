"""What a refinement leaves: where each line of the guideline comes from, and every proposal with what became of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from raters.dev_gate import Decision
from raters.guideline_text import Guideline
from raters.guidelines import Attempt
from raters.journal import Record, without_nan


def provenance(guideline: Guideline, original: Guideline, attempts: Sequence[Attempt], figure: str) -> Iterator[Record]:
    """Yield for every added or changed line of a guideline the traces that suggested it and what it did on dev.

    Args:
        guideline: As it came out.
        original: As it began.
        attempts: All proposals, in order.
        figure: By which the gate decided.
    """
    by_number = {attempt.proposal.number: attempt for attempt in attempts}
    for number, line in enumerate(guideline.lines, start=1):
        if line.proposal is None or not line.text.strip():
            continue
        attempt = by_number[line.proposal]
        replaces = None if line.original is None else original.lines[line.original - 1].text
        yield {
            "line": number,
            "text": line.text,
            "replaces": replaces if replaces != line.text else None,
            "proposal": attempt.proposal.number,
            "action": attempt.proposal.action,
            "round": attempt.round,
            "why": attempt.proposal.why,
            "traces": [dataclasses.asdict(source) for source in attempt.proposal.sources],
            "figure": figure,
            **_decided(attempt.decision, ()),
        }


def proposals(attempts: Sequence[Attempt], names: Sequence[str], figure: str) -> Iterator[Record]:
    """Yield every proposal, kept or not, with the lines it would have added and taken away."""
    for attempt in attempts:
        old = [line.text for line in attempt.before.lines]
        new = [line.text for line in attempt.proposal.guideline.lines]
        yield {
            "proposal": attempt.proposal.number,
            "round": attempt.round,
            "action": attempt.proposal.action,
            "outcome": attempt.outcome,
            "reason": attempt.reason,
            "why": attempt.proposal.why,
            "added": [text for text in new if text not in old],
            "removed": [text for text in old if text not in new],
            "traces": [dataclasses.asdict(source) for source in attempt.proposal.sources],
            "findings": [str(finding) for finding in attempt.findings],
            "figure": figure,
            **_decided(attempt.decision, names),
        }


def _decided(decision: Decision | None, names: Sequence[str]) -> Record:
    if decision is None:
        return {"before": None, "after": None, "low": None, "high": None, "p": None}
    each = {name: without_nan(dataclasses.asdict(change)) for name, change in zip(names, decision.raters, strict=False)}
    return {**without_nan(dataclasses.asdict(decision.mean)), **({"raters": each} if names else {})}
