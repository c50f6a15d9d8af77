"""Which designs go up a rung: pure functions of what is stored, so a resumed study chooses what the other would have.

**What is learned.** For each design evaluated on both rungs, the *shift* r = z_high - z_low, where z are its objectives
on a logarithmic scale (asinh(x / median |x|) for a column that has zeros or both signs), followed by its constraint
margins. A shift is a log ratio, then; one that depends on the design in a regular way is predicted by a ridge
regression on its knobs and on z_low, with the penalty that predicts best when each pair is left out in turn (an
infinite one, the mean of all, among them). What is left of each pair when it is left out is its *residual* e.

**Who need not go up.** Of a design that is as likely to be high or low as the pairs were, the residual is below the
bound

    b = -s w,    s = the ceil((n + 1)(1 - a))-th smallest of max_j(-e_pj / w_j) over the pairs p = 1 ... n,

in any objective or margin with probability at most a = 5 % (conformal prediction with the left-out residuals: Vovk,
Gammerman, Shafer, Algorithmic Learning in a Random World, 2005; Barber et al., Ann. Statist. 49(1), 2021, for what
leaving out costs); w_j is the residuals' standard deviation, which makes the score one number for all columns, so that
correlated ones cost no margin twice. Below 19 pairs no s exists and nobody is left out. So where

    z_low + predicted shift + b

breaks a constraint, or is dominated by a design already known on the upper rung, the design is on the upper front with
a probability of at most 5 %: it stays. No word is said on how many such designs there are: of a hundred true members of
the front, up to five may be lost. Pairs are not a random sample of the designs that stay (they were promising); half of
the first :data:`PILOT` are drawn at random near the front to keep the sample honest, and tests/benchmarks/fidelity.py
measures what the promise is worth.

**Who goes first.** The designs whose promotion is expected to add most to the volume that the upper front dominates,
one after the other. A design covers a point of objective space with the share of the residuals with which it would
dominate that point and keep all constraints. Points are drawn uniformly, on the scales above, in the box that the
candidates and the upper front span; what the upper front covers is left out, and a chosen design leaves of each point
the share that it does not cover: the greedy choice for a submodular gain (Nemhauser, Wolsey, Fisher, Math. Program. 14,
1978), with chances of different designs taken as independent. Where no point is left to gain, the nearest to the front
go first.

**Broken ones.** A design that cannot run above counts as a pair whose residual is worse than any; it uses budget. One
that breaks a constraint above has its shifts like any other. A design without metrics below (it cannot run there) has
nothing to be predicted from and never goes up; one that breaks a constraint below may, while its margin is within
reach.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from dse.pareto import first_front, is_dominated
from dse.space import BoundSpace

MISS: Final = 0.05
PILOT: Final = 20
_MOST_PAIRS: Final = 512
_MOST_CANDIDATES: Final = 1024
_MOST_DRAWS: Final = 64
_POINTS: Final = 512
_TRIED: Final = 8192
_NEAR: Final = 256
_PENALTIES: Final = (np.inf, 100.0, 10.0, 1.0, 0.1, 0.01)


@dataclass(frozen=True)
class Standing:
    """Designs on one rung.

    Attributes:
        objectives: to be minimised, NaN where unknown, shape (n, m).
        margins: relative excess over each constraint, negative where it holds, NaN where unknown, shape (n, c).
    """

    objectives: np.ndarray
    margins: np.ndarray

    def take(self, rows: np.ndarray) -> Standing:
        """Return the given rows."""
        return Standing(self.objectives[rows], self.margins[rows])

    @property
    def is_known(self) -> np.ndarray:
        """Where everything is a number, boolean, shape (n,)."""
        return np.isfinite(self.objectives).all(axis=1) & np.isfinite(self.margins).all(axis=1)


@dataclass(frozen=True)
class Chosen:
    """Who goes up next.

    Attributes:
        rows: of the designs below, the most promising first.
        n_within_reach: designs that may still be on the upper front, these included.
    """

    rows: np.ndarray
    n_within_reach: int


def choose(
    low: Standing, features: np.ndarray, promoted: np.ndarray, high: Standing, k: int, rng: np.random.Generator
) -> Chosen:
    """Return up to ``k`` designs worth evaluating on the upper rung.

    Args:
        low: all designs finished on the lower rung, n of them.
        features: of each, what its shift may depend on, shape (n, f).
        promoted: rows that went up before, shape (q,).
        high: these on the upper rung, unknown where they cannot run, shape (q, ...).
        k: how many are wanted.
        rng: for points and pilots.
    """
    waits = low.is_known
    waits[promoted] = False
    rows = np.flatnonzero(waits)
    if not len(rows) or k < 1:
        return Chosen(rows[:0], len(rows))
    scale = Scale(np.concatenate([low.objectives[low.is_known], high.objectives[high.is_known]]))
    z, z_high = scale(low), scale(high)
    shifts = Shifts.learn(features, z, promoted, z_high, rows)
    m = low.objectives.shape[1]
    front = z_high[high.is_known & (high.margins <= 0.0).all(axis=1)][:, :m]
    front = front[first_front(front)]
    expected = z[rows] + shifts.predicted
    best = expected + shifts.bound
    reach = (best[:, m:] <= 0.0).all(axis=1)
    reach[reach] = ~is_dominated(best[reach][:, :m], front)
    rows, expected = rows[reach], expected[reach]
    n_within_reach = len(rows)
    depth = _depth(expected, m, front, shifts.width)
    near = np.argsort(depth, kind="stable")[:_MOST_CANDIDATES]
    rows, expected, depth = rows[near], expected[near], depth[near]
    n_random = min(k, PILOT - len(promoted)) // 2 if len(promoted) < PILOT else 0
    picked = _greedy(expected, m, front, shifts, k - n_random, rng)
    rest = np.setdiff1d(np.arange(len(rows)), picked)
    pool = rest[: max(len(rest) // 2, n_random)]  # candidates stand in the order of their depth
    picked = np.concatenate([picked, rng.permutation(pool)[:n_random]])
    return Chosen(rows[picked], n_within_reach)


def round_size(n_promoted: int, ask_size: int) -> int:
    """Return how many go up next: pilots first, then as many again as are known, up to the ask size or an eighth."""
    if n_promoted < PILOT:
        return min(PILOT - n_promoted, ask_size)
    return max(min(n_promoted, ask_size), n_promoted // 8)


def features(space: BoundSpace, codes: np.ndarray) -> np.ndarray:
    """Return what a shift may depend on: levels of numbers from 0 to 1, a column of 0 and 1 for each word, (n, f)."""
    columns: list[np.ndarray] = []
    for parameter, column in zip(space.parameters, codes.T, strict=True):
        if isinstance(parameter.levels[0], str):
            columns += [(column == code).astype(np.float64) for code in range(len(parameter.levels))]
        else:
            columns.append(column / max(1, len(parameter.levels) - 1))
    return np.stack(columns, axis=1) if columns else np.empty((len(codes), 0))


class Scale:
    """Objectives as numbers whose differences are comparable along each column.

    Args:
        objectives: all that are known, shape (n, m).
    """

    def __init__(self, objectives: np.ndarray) -> None:
        self._is_log = (objectives > 0).all(axis=0) | (objectives < 0).all(axis=0)
        middle = np.median(np.abs(objectives), axis=0) if len(objectives) else np.ones(objectives.shape[1])
        self._middle = np.where(middle > 0, middle, np.maximum(np.abs(objectives).max(axis=0, initial=0.0), 1e-300))

    def __call__(self, standing: Standing) -> np.ndarray:
        """Return scaled objectives, then margins, shape (n, m + c)."""
        x = standing.objectives
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.where(self._is_log, np.sign(x) * np.log(np.abs(x)), np.arcsinh(x / self._middle))
        # -log|x| falls as |x| grows, so a column of negative numbers keeps its order.
        return np.concatenate([scaled, standing.margins], axis=1)


@dataclass(frozen=True)
class Shifts:
    """What a design's values change by from the lower to the upper rung.

    Attributes:
        predicted: of the candidates, shape (n, d).
        residuals: of the pairs that can run above, each left out in turn, shape (q, d).
        n_pairs: pairs in all, those that cannot run included.
        width: standard deviation of the residuals, 0 in columns that do not change, shape (d,).
        bound: the best residual that has to be reckoned with, shape (d,); -inf where nothing can be said.
    """

    predicted: np.ndarray
    residuals: np.ndarray
    n_pairs: int
    width: np.ndarray
    bound: np.ndarray

    @classmethod
    def learn(
        cls, features: np.ndarray, z: np.ndarray, promoted: np.ndarray, z_high: np.ndarray, rows: np.ndarray
    ) -> Shifts:
        """Return the shifts of the candidates ``rows``.

        Args:
            features: of all designs below, shape (n, f).
            z: their scaled values, shape (n, d).
            promoted: rows of the pairs in the order in which they went up, shape (q,); the latest 512 count.
            z_high: their scaled values above, NaN where they cannot run, shape (q, d).
            rows: the candidates.
        """
        d = z.shape[1]
        promoted, z_high = promoted[-_MOST_PAIRS:], z_high[-_MOST_PAIRS:]
        can_run = np.isfinite(z_high).all(axis=1)
        pairs = promoted[can_run]
        shift = z_high[can_run] - z[pairs]
        if not len(pairs):
            nothing = np.full(d, np.inf if conformal_rank(len(promoted)) else -np.inf)
            return cls(np.zeros((len(rows), d)), np.zeros((1, d)), max(len(promoted), 1), np.zeros(d), nothing)
        inputs = np.concatenate([features, z / np.maximum(z[pairs].std(axis=0), 1e-12)], axis=1)
        predicted, residuals = regress(inputs[pairs], shift, inputs[rows])
        width = residuals.std(axis=0)
        width[np.ptp(shift, axis=0) <= 1e-12] = 0.0
        return cls(predicted, residuals, len(promoted), width, _bound(residuals, width, len(promoted)))


def conformal_rank(n: int) -> int:
    """Return which of n scores, the smallest as 1, bounds the next with probability 1 - :data:`MISS`; 0 if none."""
    rank = math.ceil((n + 1) * (1.0 - MISS) - 1e-9)
    return rank if rank <= n else 0


def _bound(residuals: np.ndarray, width: np.ndarray, n_pairs: int) -> np.ndarray:
    moves = width > 0.0
    rank = conformal_rank(n_pairs)
    if not rank:
        return np.where(moves, -np.inf, 0.0) if len(residuals) > 1 else np.full(len(width), -np.inf)
    scores = (-residuals[:, moves] / width[moves]).max(axis=1, initial=-np.inf)
    # Pairs that cannot run above would score lowest of all: they are no reason to expect more of the next.
    ordered = np.sort(np.concatenate([np.full(n_pairs - len(scores), -np.inf), scores]))
    score = float(ordered[rank - 1])
    return np.where(moves, -score * np.where(moves, width, 1.0), 0.0)


def regress(inputs: np.ndarray, targets: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ridge predictions, and what each known row leaves when it is left out.

    With C = K + l I, K the products of centred inputs and a constant, leaving out row i gives the residual
    (C^-1 y)_i / (C^-1)_ii in closed form (Cawley and Talbot, Pattern Recognition 36, 2003). Each column of targets
    takes the penalty l of the least squared residual; the constant is not penalised noticeably.

    Args:
        inputs: shape (q, f).
        targets: shape (q, d).
        asked: shape (n, f).

    Returns:
        Predictions, shape (n, d), and residuals, shape (q, d).
    """
    q = len(inputs)
    mean = targets.mean(axis=0)
    if q < 3:
        return np.broadcast_to(mean, (len(asked), targets.shape[1])), (targets - mean) * (q / max(q - 1, 1))
    centre, spread = inputs.mean(axis=0), inputs.std(axis=0)
    varies = spread > 1e-12
    x = (inputs[:, varies] - centre[varies]) / spread[varies]
    a = (asked[:, varies] - centre[varies]) / spread[varies]
    size = max(1, x.shape[1])
    predictions = np.broadcast_to(mean, (len(asked), targets.shape[1])).copy()
    residuals = (targets - mean) * (q / (q - 1))
    least = (residuals**2).sum(axis=0)
    constant = 1e6  # its variance, against 1 of all inputs together
    for penalty in _PENALTIES[1:]:
        inverse = np.linalg.inv(x @ x.T / size + constant + penalty * np.eye(q))
        weights = inverse @ targets
        left = weights / np.diag(inverse)[:, None]
        error = (left**2).sum(axis=0)
        better = error < least
        if better.any():
            chosen = weights[:, better]
            predictions[:, better] = a @ (x.T @ chosen / size) + constant * chosen.sum(axis=0)
            residuals[:, better], least[better] = left[:, better], error[better]
    return predictions, residuals


def _depth(expected: np.ndarray, m: int, front: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Return how far candidates lie behind the front, in standard deviations of what is uncertain, shape (n,).

    The additive epsilon indicator of a single point: max over the front's points k of min over the objectives j of
    (z_j - z_kj) / w_j; a broken margin adds its own share.
    """
    feasible = (expected[:, m:] <= 0.0).all(axis=1)
    points = expected[feasible][:, :m]
    points = np.concatenate([front, points[first_front(points)]])
    if len(points) > _NEAR:
        points = points[np.linspace(0, len(points) - 1, _NEAR).round().astype(int)]
    span = np.ptp(expected, axis=0) if len(expected) else np.ones(expected.shape[1])
    units = np.maximum(np.maximum(width, 0.01 * span), 1e-12)
    depth = np.zeros(len(expected)) if not len(points) else np.full(len(expected), -np.inf)
    for point in points:
        depth = np.maximum(depth, ((expected[:, :m] - point) / units[:m]).min(axis=1))
    return np.asarray(depth + np.maximum(expected[:, m:] / units[m:], 0.0).sum(axis=1))


def _greedy(
    expected: np.ndarray, m: int, front: np.ndarray, shifts: Shifts, k: int, rng: np.random.Generator
) -> np.ndarray:
    """Return up to k candidates, by what each is expected to add to the volume beside those before it."""
    k = min(k, len(expected))
    if not k:
        return np.empty(0, dtype=np.intp)
    draws = shifts.residuals
    if len(draws) > _MOST_DRAWS:
        draws = draws[np.linspace(0, len(draws) - 1, _MOST_DRAWS).round().astype(int)]
    runs = (expected[:, m:] <= 0.0).all(axis=1)
    points = _points(expected[runs if runs.any() else slice(None)][:, :m], front, draws[:, :m], rng)
    covered = np.zeros((len(expected), len(points)), dtype=np.float32)
    for draw in draws:
        value = expected + draw
        inside = np.broadcast_to((value[:, m:] <= 0.0).all(axis=1)[:, None], covered.shape).copy()
        for j in range(m):
            inside &= value[:, j, None] <= points[:, j]
        covered += inside
    share = len(shifts.residuals) / max(shifts.n_pairs, 1)  # of the pairs, those that can run above
    covered *= np.float32(share / len(draws))
    left = np.ones(len(points), dtype=np.float32)
    free = np.ones(len(expected), dtype=bool)
    picked: list[int] = []
    while len(picked) < k:
        gain = np.where(free, covered @ left, -1.0)
        best = int(gain.argmax())
        if gain[best] <= 0.0:
            picked += np.flatnonzero(free)[: k - len(picked)].tolist()  # in the order of depth
            break
        picked.append(best)
        free[best] = False
        left *= 1.0 - covered[best]
    return np.array(picked, dtype=np.intp)


def _points(z: np.ndarray, front: np.ndarray, draws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return points of the box that candidates and front span which the front does not cover."""
    edge = np.concatenate([z[first_front(z)], front])
    low = edge.min(axis=0) + np.minimum(draws.min(axis=0), 0.0)
    high = edge.max(axis=0) + np.maximum(draws.max(axis=0), 0.0)
    high = high + 0.1 * np.maximum(high - low, 1e-9)
    points = low + (high - low) * rng.random((_TRIED, z.shape[1]))
    return points[~is_dominated(points, front)][:_POINTS]
