"""From traces to a clearer guideline, every edit gated on held-out labels.

Zhang et al. 2026 rewrite a guideline in one pass and never check it. Here a writer's drafts and small edits are
proposals: each is linted, then rated on the dev split by every rater, and kept only behind the gate of `dev_gate`.
`paper` keeps both drafts unchecked by labels, for comparison. In several rounds traces are inferred again under the
guideline as it stands, so that what is left to guess can be told apart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raters.dev_gate import Decision, DevLabels, choice_figure, decide, quantities, said
from raters.guideline_lint import Finding, GuidelineLint
from raters.guideline_text import Guideline
from raters.rater_draws import RaterDraws
from raters.rater_files import RaterSpec
from raters.trace_runs import Draws, TraceRun
from raters.trials import Trials, WorkEnds
from raters.writers import PARTS, Case, Material, Proposal, Writer

Outcome = Literal["kept", "lint", "gate"]
_TRACES_OF_A_CASE = 2


@dataclass(frozen=True, slots=True)
class RefineSettings:
    """How a guideline is refined.

    Attributes:
        gated: False to keep what passes the lint, whatever it does to agreement (`paper`).
        edits: False to stop after the two drafts.
        level: Of the one-sided paired test.
        rounds: How often traces are inferred, the first time having been done.
        patience: Proposals in a row without a gain that end a round.
        most_proposals: Of a round.
        dev_draws: Draws of a rater for an item.
        train_items: Items of the train split that are rated to find where raters go wrong.
        cases: How many of those the writer sees at once.
        resamples: Of the bootstrap.
        seed: Of resamples and choices.
    """

    gated: bool = True
    edits: bool = True
    level: float = 0.05
    rounds: int = 1
    patience: int = 10
    most_proposals: int = 40
    dev_draws: int = 4
    train_items: int = 60
    cases: int = 4
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """A proposal, and what became of it.

    Attributes:
        proposal: The changed guideline.
        before: The guideline that it would have changed.
        round: Counted from 1.
        outcome: Kept, or what it failed.
        findings: Of the lint.
        decision: Of the gate; None where it was not asked.
    """

    proposal: Proposal
    before: Guideline
    round: int
    outcome: Outcome
    findings: tuple[Finding, ...] = ()
    decision: Decision | None = None

    @property
    def reason(self) -> str:
        """Why it was not kept; empty if it was."""
        if self.outcome == "lint":
            return str(self.findings[0])
        return self.decision.reason if self.decision and self.outcome == "gate" else ""


@dataclass
class Refinement:
    """One run over a guideline.

    Attributes:
        run: The traces.
        guideline: As it stands now.
        raters: Under the guideline that the run begins with.
        names: Of the raters.
        dev_items: (items,) corpus indices of the dev items with a label, ascending.
        labels: Of those items.
        writer: Who proposes.
        lint: What is refused before anybody rates.
        trials: Who rates.
        settings: How.
        infer_again: From a guideline and a round to new draws under it.
        log: Called with a line for every attempt.
    """

    run: TraceRun
    guideline: Guideline
    raters: Sequence[RaterSpec]
    names: Sequence[str]
    dev_items: NDArray[np.int64]
    labels: DevLabels
    writer: Writer
    lint: GuidelineLint
    trials: Trials
    settings: RefineSettings
    infer_again: Callable[[Guideline, int], Awaitable[Draws]]
    log: Callable[[str], None] = lambda line: None
    attempts: list[Attempt] = field(default_factory=list)
    ended: str = ""

    def __post_init__(self) -> None:
        """Remember the original."""
        self.original = self.guideline

    async def refine(self, draws: Draws) -> Guideline:
        """Return the guideline that comes out; `attempts` and `ended` say how.

        Args:
            draws: Of the first round.

        Raises:
            JudgeseyeError: If a model fails. What was drawn and written stays in the journals.
        """
        try:
            for number in range(1, self.settings.rounds + 1):
                began = self.guideline
                if number > 1:
                    draws = await self.infer_again(self.guideline, number)
                await self._round(Material(self.run, draws, self.findings, self.settings.seed), number)
                if self.guideline == began and number > 1:
                    self.ended = self.ended or f"round {number} changed nothing"
                    break
        except WorkEnds as end:
            self.ended = str(end)
        return self.guideline

    def findings(self, guideline: Guideline) -> list[Finding]:
        """Return what the lint finds in a guideline."""
        return self.lint.findings(guideline.text, guideline.replaced(self.original))

    async def rated(self, guideline: Guideline, items: NDArray[np.int64]) -> list[RaterDraws]:
        """Return what every rater says of items under a guideline."""
        specs = [with_guideline(spec, guideline.text) for spec in self.raters]
        draws = self.settings.dev_draws
        return [await self.trials.rate(spec, name, items, draws) for spec, name in zip(specs, self.names, strict=True)]

    async def _round(self, material: Material, number: int) -> None:
        for part in PARTS:
            proposal = await self.writer.draft(part, material, self.guideline, len(self.attempts) + 1)
            if proposal is None:
                self.log(f"round {number}: {part}: nothing to propose")
            else:
                await self._try(proposal, number)
        without_gain = 0
        while self.settings.edits and without_gain < self.settings.patience:
            if sum(attempt.round == number for attempt in self.attempts) >= self.settings.most_proposals:
                self.log(f"round {number}: {self.settings.most_proposals} proposals are the most")
                return
            cases = await self._cases(material)
            tried = [attempt.proposal.why for attempt in self.attempts if attempt.outcome != "kept"]
            proposal = await self.writer.propose(material, self.guideline, cases, tried, len(self.attempts) + 1)
            if proposal is None:
                self.log(f"round {number}: no further proposal")
                return
            without_gain = 0 if await self._try(proposal, number) else without_gain + 1
        if self.settings.edits:
            self.log(f"round {number}: {without_gain} proposals in a row without a gain")

    async def _try(self, proposal: Proposal, round_number: int) -> bool:
        """Return whether a proposal is kept."""
        before = self.guideline
        if findings := self.findings(proposal.guideline):
            return self._enter(Attempt(proposal, before, round_number, "lint", tuple(findings)))
        old, new = await self.rated(before, self.dev_items), await self.rated(proposal.guideline, self.dev_items)
        settings = self.settings
        decision = decide(self.labels, old, new, settings.level, resamples=settings.resamples, seed=settings.seed)
        kept = decision.kept or not settings.gated
        return self._enter(Attempt(proposal, before, round_number, "kept" if kept else "gate", (), decision))

    def _enter(self, attempt: Attempt) -> bool:
        self.attempts.append(attempt)
        kept = attempt.outcome == "kept"
        if kept:
            self.guideline = attempt.proposal.guideline
        mean = attempt.decision.mean if attempt.decision else None
        figures = f", dev {mean.before:.3f} to {mean.after:.3f}" if mean else ""
        outcome = "kept" if kept else f"not kept: {attempt.reason}"
        what = f"{attempt.proposal.action}: {attempt.proposal.why[:160]}"
        self.log(f"proposal {attempt.proposal.number} ({what}){figures if kept else ''}: {outcome}")
        return kept

    async def _cases(self, material: Material) -> list[Case]:
        """Return the items of a sample of the train split on which the raters are farthest from people."""
        if not self.writer.needs_cases:
            return []
        draws, scale = material.draws, material.scale
        both = np.intersect1d(draws.items[draws.accepted], draws.items[~draws.accepted & np.isfinite(draws.numbers)])
        chance = np.random.default_rng([self.settings.seed, 1])
        items = np.sort(chance.permutation(both)[: self.settings.train_items])
        if not len(items):
            return []
        rated = await self.rated(self.guideline, items)
        known, first = np.unique(draws.items, return_index=True)
        gold = draws.labels[first[np.searchsorted(known, items)]]
        people = quantities(gold, scale)
        gaps = [np.abs(np.nan_to_num(said(one, scale), nan=np.inf) - people) for one in rated]
        if choice_figure(scale) == "cohen_kappa":
            gaps = [(gap > 0).astype(np.float64) for gap in gaps]  # labels without order are right or wrong
        far = np.mean(gaps, axis=0)
        cases = []
        for row in np.lexsort((chance.random(len(items)), -far))[: self.settings.cases]:
            verdicts = [one.verdicts(scale)[row] for one in rated]
            shown = ["unreadable" if np.isnan(verdict) else str(scale.label(verdict)) for verdict in verdicts]
            places = np.flatnonzero(draws.items == items[row])
            places = places[[not record["swapped"] for record in draws.records(places)]]
            right = places[draws.accepted[places]][:_TRACES_OF_A_CASE]
            wrong = places[~draws.accepted[places] & np.isfinite(draws.numbers[places])][:_TRACES_OF_A_CASE]
            label = str(scale.label(float(gold[row])))
            cases.append(Case(label, ", ".join(shown), tuple(right.tolist()), tuple(wrong.tolist())))
        return cases


def with_guideline(spec: RaterSpec, guideline: str) -> RaterSpec:
    """Return a rater under another guideline; what was measured of it before is no longer its own.

    Blanks around a guideline do not count, as in a corpus, so that the same guideline is the same rater.
    """
    dimension = replace(spec.dimension, guideline=guideline.strip())
    return replace(spec, question=replace(spec.question, dimension=dimension), certificate=None)
