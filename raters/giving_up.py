"""Giving hopeless items up: the chance that the draws an item has left will be accepted, learnt from the run itself.

What a draw of an item has a chance of being accepted with differs from item to item. Two priors describe how:

- `BetaPrior` sees failures alone: acceptance of a draw is Beta(a, b) over items, so that after m failures it is
  Beta(a, b + m) (the beta-geometric model of Weinberg and Gladen 1986, Biometrics 42(3)).
- `DirichletPrior` sees what the failed draws said, on an ordinal scale: verdicts of an item are a draw from a
  distribution over labels, itself Dirichlet about one of a grid of bell curves over the scale. So a verdict speaks for
  its neighbours too, and a label far from all verdicts is given up sooner than one beside them.

Both are fitted by maximum likelihood to the run's own first items (empirical Bayes) and give the chance of at least
one acceptance in r more draws with their uncertainty integrated out: 1 - B(p, q + r) / B(p, q) where the mass of the
accepted labels is Beta(p, q), B being the beta function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raters.ledger import UNDRAWN, Ledger
from raters.scales import OrdinalScale

FIRST_FIT = 50
"""Items that are never given up, and that the first prior is fitted to."""
MOST_FITTED = 12_800
"""Items of the last fit: a prior of a few numbers does not get better from more."""
MOST_LABELS = 20
"""Longest ordinal scale with a DirichletPrior: on longer ones hardly a label comes up twice."""

_WIDTHS = (0.35, 0.7, 1.4)
"""Standard deviations of the bell curves, in labels, on a scale of up to ten."""
_CONCENTRATIONS = (2.0, 8.0, 32.0)
"""How many draws' worth of certainty there is that an item's verdicts follow a bell curve."""
_UNIFORM_SHARE = 0.02
"""Of every bell curve: no label is impossible."""
_BORROWED = 3.0
"""How many items of other labels a label's own ones are weighed against."""
_ROUNDS_OF_EM = 60
_LOG_BOUNDS = (-6.0, 6.0)
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Histories:
    """What draws said of some units, up to each one's first acceptance where it stopped there.

    Attributes:
        labels: (units,) place of the unit's label on its scale; 0 on a scale without listed labels.
        accepted: (units,) accepted draws.
        rejected: (units,) other draws, unreadable ones among them.
        verdicts: (units, labels + 1) draws by the place of their verdict, the unreadable ones last; no columns on a
            scale without listed labels.
    """

    labels: NDArray[np.int64]
    accepted: NDArray[np.int64]
    rejected: NDArray[np.int64]
    verdicts: NDArray[np.int64]


class Prior(Protocol):
    """What is known of items before their draws."""

    def chance(self, label: int, verdicts: NDArray[np.int64], failures: int, remaining: int) -> float:
        """Return the chance of an acceptance in the remaining draws of a unit that has had failures alone.

        Args:
            label: Place of its label.
            verdicts: (labels + 1,) its draws, as in `Histories.verdicts`.
            failures: How many they are.
            remaining: Draws that it has left.
        """
        ...

    def as_record(self) -> dict[str, Any]:
        """Return the prior as plain values."""
        ...


@dataclass(frozen=True)
class BetaPrior:
    """The chance that a draw is accepted is Beta(a, b) over items."""

    a: float
    b: float

    def chance(self, label: int, verdicts: NDArray[np.int64], failures: int, remaining: int) -> float:
        """See `Prior.chance`; verdicts and label play no part."""
        from scipy.special import betaln

        failed = self.b + failures
        return float(-np.expm1(betaln(self.a, failed + remaining) - betaln(self.a, failed)))

    def as_record(self) -> dict[str, Any]:
        """Return the prior as plain values."""
        return {"kind": "beta", "a": self.a, "b": self.b}


def fit_beta(histories: Histories) -> BetaPrior:
    """Return the prior under which the histories are most likely.

    A unit with s accepted and m rejected draws contributes B(a + s, b + m) / B(a, b), whether it stopped at its first
    acceptance or not: when to stop depends on what was seen alone, and drops out of the likelihood.
    """
    from scipy.optimize import minimize
    from scipy.special import betaln

    seen, counts = np.unique(np.column_stack([histories.accepted, histories.rejected]), axis=0, return_counts=True)
    # One unit of either kind, seen once: without it, a run with acceptances alone would have no maximum.
    seen, counts = np.vstack([seen, [[1, 0], [0, 1]]]), np.append(counts, [1, 1])

    def loss(logs: NDArray[np.float64]) -> float:
        a, b = np.exp(logs)
        return float(-(counts * (betaln(a + seen[:, 0], b + seen[:, 1]) - betaln(a, b))).sum())

    found = minimize(loss, np.log([0.5, 0.5]), method="L-BFGS-B", bounds=[_LOG_BOUNDS] * 2)
    # Rounded, so that the same run comes to the same prior on another machine.
    a, b = (float(f"{value:.3g}") for value in np.exp(found.x))
    return BetaPrior(a, b)


@dataclass(frozen=True)
class DirichletPrior:
    """Verdicts of an item have a distribution that is Dirichlet about one of several bell curves over the scale.

    Attributes:
        pseudo_counts: (components, labels + 1) parameters of the components, the last for unreadable verdicts.
        weights: (labels, components) how frequent each component is among units of a label.
        steps: How many labels apart an accepted verdict may be.
    """

    pseudo_counts: NDArray[np.float64]
    weights: NDArray[np.float64]
    steps: int = 0

    def chance(self, label: int, verdicts: NDArray[np.int64], failures: int, remaining: int) -> float:
        """See `Prior.chance`: each component's own chance, weighed by how well it explains the verdicts."""
        from scipy.special import betaln

        log_weights = np.log(self.weights[label]) + _log_likelihood(self.pseudo_counts, verdicts[None])[0]
        weights = np.exp(log_weights - log_weights.max())
        near = slice(max(label - self.steps, 0), min(label + self.steps + 1, self.pseudo_counts.shape[1] - 1))
        hit = self.pseudo_counts[:, near].sum(axis=1)
        missed = self.pseudo_counts.sum(axis=1) - hit + failures
        none = np.exp(betaln(hit, missed + remaining) - betaln(hit, missed))
        return float(1 - (weights * none).sum() / weights.sum())

    def as_record(self) -> dict[str, Any]:
        """Return the prior as plain values: what each label's items are expected to be rated before any draw."""
        mean = self.pseudo_counts / self.pseudo_counts.sum(axis=1, keepdims=True)
        return {"kind": "dirichlet", "expected_verdicts": np.round(self.weights @ mean, 4).tolist()}


def fit_dirichlet(histories: Histories, steps: int = 0) -> DirichletPrior:
    """Return the mixture under which the histories are most likely, by expectation and maximisation.

    The components are fixed; weights are each label's own, drawn towards those of all labels where it has few units.

    Args:
        histories: Of units on a scale with listed labels.
        steps: How many labels apart an accepted verdict may be.
    """
    labels = histories.verdicts.shape[1] - 1
    drawn = histories.verdicts.sum()
    unreadable = (histories.verdicts[:, -1].sum() + 0.5) / (drawn + 1.0)
    components = _components(labels, float(unreadable))
    seen, counts = np.unique(np.column_stack([histories.labels, histories.verdicts]), axis=0, return_counts=True)
    own, verdicts = seen[:, 0], seen[:, 1:]
    logs = _log_likelihood(components, verdicts)
    likelihood = np.exp(logs - logs.max(axis=1, keepdims=True))
    of_label = np.zeros((labels, len(seen)))
    of_label[own, np.arange(len(seen))] = counts
    weights = np.full((labels, len(components)), 1 / len(components))
    for _ in range(_ROUNDS_OF_EM):
        share = likelihood * weights[own]
        share /= share.sum(axis=1, keepdims=True)
        expected = of_label @ share
        everyone = expected.sum(axis=0) / expected.sum()
        weights = (expected + _BORROWED * everyone) / (expected.sum(axis=1, keepdims=True) + _BORROWED)
        weights = np.maximum(weights, 1e-12)
    # Rounded for the same reason as the other prior.
    return DirichletPrior(components, np.maximum(np.round(weights, 6), 1e-12), steps)


def _components(labels: int, unreadable: float) -> NDArray[np.float64]:
    """Return (components, labels + 1) Dirichlet parameters: bell curves over the scale, and no preference at all."""
    from scipy.special import ndtr

    stretch = max(1.0, labels / 10)
    edges = np.arange(labels + 1) - 0.5
    edges[0], edges[-1] = -np.inf, np.inf
    centres = np.arange(-0.5, labels - 0.25, 0.5 * stretch)
    curves = [np.diff(ndtr((edges - centre) / (width * stretch))) for width in _WIDTHS for centre in centres]
    uniform = np.full(labels, 1 / labels)
    means = np.array([(1 - _UNIFORM_SHARE) * curve + _UNIFORM_SHARE * uniform for curve in curves] + [uniform])
    means = np.column_stack([(1 - unreadable) * means, np.full(len(means), unreadable)])
    return np.concatenate([concentration * means for concentration in _CONCENTRATIONS])


def _log_likelihood(pseudo_counts: NDArray[np.float64], verdicts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (units, components) log-probability of each unit's draws, in their order, under each component."""
    from scipy.special import gammaln

    found = np.zeros((len(verdicts), len(pseudo_counts)))
    for place in range(pseudo_counts.shape[1]):  # one by one: all at once would be gigabytes
        own = pseudo_counts[:, place]
        values, where = np.unique(verdicts[:, place], return_inverse=True)
        found += (gammaln(own + values[:, None]) - gammaln(own))[where]
    total = pseudo_counts.sum(axis=1)
    values, where = np.unique(verdicts.sum(axis=1), return_inverse=True)
    return np.asarray(found - (gammaln(total + values[:, None]) - gammaln(total))[where], np.float64)


class GivingUp:
    """Which rows of a run are given up, decided from recorded draws alone.

    The first prior is fitted once the first 50 rows have all their draws, in the order of work; further ones at 100,
    200, ... rows. A row is held against the prior of the last fit before it in that order, however late it is drawn
    for. So which rows are given up, and after which draw, is a function of the draws: the same whatever the number of
    requests at once, and after any interruption.

    Args:
        ledger: What was drawn; `given_up` of it is kept up to date.
        least_chance: Rows are given up whose labels all have less than that left.
        tolerance: How far a verdict may be from the label.
        full_rows: First rows that get all their draws whatever comes.

    Attributes:
        priors: By the number of rows that each was fitted to.
        lost: (units,) chance that each unit had left when it was given up; nan of all others.
    """

    def __init__(self, ledger: Ledger, least_chance: float, tolerance: float, full_rows: int) -> None:
        """Take in what the ledger holds already."""
        scale = ledger.dimension.scale
        self._ledger, self._least_chance, self._tolerance = ledger, least_chance, tolerance
        self._never = max(full_rows, FIRST_FIT)
        self._full_rows = full_rows
        self._k = ledger.numbers["first"].shape[1]
        self._labels = len(scale.labels) if isinstance(scale, OrdinalScale) and len(scale.labels) <= MOST_LABELS else 0
        self.priors: dict[int, Prior] = {}
        self.lost = np.full(len(ledger.unit_rows), np.nan)
        self._chances: dict[tuple[int, int, int, bytes], float] = {}
        self._settled = self._left_out = 0
        ledger.given_up[:] = False
        for row in range(min(MOST_FITTED, len(ledger.rows))):
            self.consider(row)
            self.advance()
        undrawn = ledger.numbers["first"][MOST_FITTED:] == UNDRAWN
        for row in (MOST_FITTED + np.flatnonzero(undrawn.any(axis=1) & ~undrawn.all(axis=1))).tolist():
            self.consider(row)

    def decides(self, row: int) -> bool:
        """Return True if a row may be given up at all."""
        return row >= self._never

    def undecided(self, row: int) -> bool:
        """Return True if nothing can be said of a row yet, because the prior it is held against is not fitted."""
        return self.decides(row) and self._boundary(row) not in self.priors

    def consider(self, row: int) -> bool:
        """Return True if a row is given up, after deciding it from the draws that it has now."""
        ledger = self._ledger
        if ledger.given_up[row] or not self.decides(row) or self.undecided(row):
            return bool(ledger.given_up[row])
        # What a second chance has matched since was given up all the same.
        open_units = [u for u in ledger.units(row) if ledger.matched_draw[u] < 0 or ledger.matched_chance[u] > 0]
        made = self._made(row)
        if not open_units or not 0 < made < self._k:
            return False
        verdicts = self._counted(ledger.numbers["first"][row][None, :made])[0]
        prior, remaining = self.priors[self._boundary(row)], self._k - made
        places = ledger.unit_numbers[open_units].astype(np.int64) if self._labels else [0] * len(open_units)
        chances = []
        for place in places:
            # Most rows have said what others said before them.
            key = (self._boundary(row), int(place), made, verdicts.tobytes())
            if key not in self._chances:
                self._chances[key] = prior.chance(int(place), verdicts, made, remaining)
            chances.append(self._chances[key])
        if max(chances) < self._least_chance:
            ledger.given_up[row] = True
            self.lost[open_units] = chances
            self._left_out += remaining
        return bool(ledger.given_up[row])

    def advance(self) -> bool:
        """Fit the next prior if the rows before it have all their draws; return True if one was fitted."""
        rows, fits = len(self._ledger.rows), len(self.priors)
        while self._settled < min(rows, MOST_FITTED) and self._is_done(self._settled):
            self._settled += 1
            if self._settled < rows and self._boundary(self._settled) == self._settled:
                self.priors[self._settled] = self._fit(self._settled)
        return len(self.priors) > fits

    @staticmethod
    def _boundary(row: int) -> int:
        """Return how many rows the prior is fitted to that a row is held against; 0 if none."""
        boundary = FIRST_FIT
        if row < boundary:
            return 0
        while 2 * boundary <= min(row, MOST_FITTED):
            boundary *= 2
        return boundary

    def _made(self, row: int) -> int:
        """Return how many draws a row has before the first that is missing."""
        undrawn = self._ledger.numbers["first"][row] == UNDRAWN
        return int(undrawn.argmax()) if undrawn.any() else self._k

    def _is_done(self, row: int) -> bool:
        ledger = self._ledger
        return bool(ledger.given_up[row]) or self._made(row) >= ledger.draws_needed(row, "first", self._full_rows)

    def _fit(self, rows: int) -> Prior:
        histories = self.histories(rows)
        if self._labels:
            return fit_dirichlet(histories, int(self._tolerance + _ROUNDING))
        return fit_beta(histories)

    def histories(self, rows: int) -> Histories:
        """Return what the draws of the first rows said, each unit's up to its first acceptance if its row may stop."""
        ledger = self._ledger
        units = np.flatnonzero(ledger.unit_rows < rows)
        numbers = ledger.numbers["first"][ledger.unit_rows[units]].astype(np.float64)
        own = ledger.unit_numbers[units]
        hits = np.abs(numbers - own[:, None]) <= self._tolerance + _ROUNDING
        # Draws after an acceptance are there by chance: another annotator's need, or a draw made ahead.
        before: NDArray[np.bool_] = np.cumsum(hits, axis=1) - hits == 0
        before |= (ledger.unit_rows[units] < self._full_rows)[:, None]
        counted = (numbers != UNDRAWN) & before
        accepted = (hits & counted).sum(axis=1)
        verdicts = self._counted(np.where(counted, numbers, UNDRAWN))
        labels = own.astype(np.int64) if self._labels else np.zeros(len(units), np.int64)
        return Histories(labels, accepted, counted.sum(axis=1) - accepted, verdicts)

    def _counted(self, numbers: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return (units, labels + 1) draws by verdict; no columns where labels are not told apart."""
        if not self._labels:
            return np.zeros((len(numbers), 0), np.int64)
        by_label = [(numbers == place).sum(axis=1) for place in range(self._labels)]
        return np.column_stack([*by_label, np.isnan(numbers).sum(axis=1)])

    def summary(self) -> dict[str, Any]:
        """Return what giving up did, as it stands in `summary.json`.

        `expected_matches_lost` is the sum of the chances that the given-up labels had left: what it cost in coverage,
        as far as the priors tell. `draws_left_out` would all have been made only if none of them had been accepted.
        """
        given_up = ~np.isnan(self.lost)
        return {
            "below": self._least_chance,
            "items": int(self._ledger.given_up.sum()),
            "labels": int(given_up.sum()),
            "draws_left_out": self._left_out,
            "expected_matches_lost": float(np.nansum(self.lost)),
            "priors": [{"items": rows, **prior.as_record()} for rows, prior in self.priors.items()],
        }
