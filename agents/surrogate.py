"""Gaussian processes over codes: what objectives and feasibility will probably be at designs not yet paid for.

The kernel is a sum over knobs, plus what the sum leaves over: with ``F_j(x)`` the features of knob j (cosines of an
ordered level, an indicator per level of a word), weight ``w_j`` per knob, and ``A = sum_j w_j F_j F_j'``,

    k(x, x') = A(x, x') + a exp(-s |x - x'|_w^2 / 2) + noise,   |x - x'|_w^2 = A(x,x) + A(x',x') - 2 A(x,x').

The sum (Duvenaud, Nickisch and Rasmussen, NIPS 2011) is what lets some dozens of designs say something about 40 knobs;
costs are products of factors more often than sums, so columns that span a range are modelled by their logarithm.
Weights, amplitude, scale and noise maximise the marginal likelihood with a log-normal prior on each (Rasmussen and
Williams, 2006, section 5.4.1), by resilient propagation (Riedmiller and Braun, 1993) with a fixed number of steps, so
that a fit costs the same every time. All derivatives are matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from dse.space import BoundSpace

_COSINES: Final = 4
_MAX_INDICATORS: Final = 32
_PRIOR_SCALE: Final = 1.5  # of log weights
_LOWEST_NOISE: Final = 1e-5


class Features:
    """Codes as feature vectors.

    Args:
        space: the search space.

    Attributes:
        knob: parameter that each feature belongs to, shape (d,).
    """

    def __init__(self, space: BoundSpace) -> None:
        self._tables: list[np.ndarray] = []
        for parameter in space.parameters:
            n = len(parameter.levels)
            if parameter.is_ordered:
                u = (np.arange(n) + 0.5) / n
                orders = np.arange(1, min(n - 1, _COSINES) + 1)
                table = np.sqrt(2.0) * np.cos(np.pi * np.outer(u, orders)) / orders
            else:
                table = np.eye(n)[:, np.arange(n) % _MAX_INDICATORS == np.arange(n)] * np.sqrt(n / max(n - 1, 1))
                table = table - table.mean(axis=0)
            self._tables.append(table.reshape(n, -1) if n > 1 else np.zeros((1, 1)))
        self.knob = np.repeat(np.arange(len(self._tables)), [t.shape[1] for t in self._tables])

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Return features of rows of codes, shape (n, d)."""
        return np.concatenate([table[codes[:, j]] for j, table in enumerate(self._tables)], axis=1)


@dataclass(frozen=True)
class Process:
    """Hyperparameters of one output, natural logarithms.

    Attributes:
        weights: per knob, shape (p,).
        rest: amplitude, inverse squared length, noise variance, shape (3,).
    """

    weights: np.ndarray
    rest: np.ndarray

    @classmethod
    def start(cls, n_knobs: int) -> Process:
        """Return the centre of the prior: variance 1, half of it in the sum."""
        return cls(np.full(n_knobs, np.log(0.5 / n_knobs)), np.log([0.5, 1.0, 1e-3]))

    def kernel(self, a: np.ndarray, b: np.ndarray, knob: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sum and the rest of the kernel between two sets of features, both (n, k)."""
        scaled = a * np.exp(self.weights)[knob]
        total = scaled @ b.T
        squared = (scaled * a).sum(axis=1)[:, None] + ((b * np.exp(self.weights)[knob]) * b).sum(axis=1) - 2 * total
        amplitude, scale, _ = np.exp(self.rest)
        return total, amplitude * np.exp(-0.5 * scale * np.maximum(squared, 0.0))


def fit(features: np.ndarray, knob: np.ndarray, y: np.ndarray, start: Process, steps: int) -> Process:
    """Return hyperparameters of higher posterior density.

    Args:
        features: shape (n, d).
        knob: parameter of each feature, shape (d,).
        y: standardised, shape (n,).
        start: where to begin.
        steps: of resilient propagation.
    """
    n_knobs = len(start.weights)
    prior = Process.start(n_knobs)
    centre = np.concatenate([prior.weights, prior.rest])
    width = np.concatenate([np.full(n_knobs, _PRIOR_SCALE), [1.0, 1.0, 2.0]])
    theta = np.concatenate([start.weights, start.rest])
    size, before = np.full(len(theta), 0.3), np.zeros(len(theta))
    best, best_value = theta, -np.inf
    for _ in range(steps):
        value, slope = _posterior(theta, features, knob, y)
        value -= 0.5 * (((theta - centre) / width) ** 2).sum()
        slope -= (theta - centre) / width**2
        if value > best_value:
            best, best_value = theta, value
        same = slope * before
        size = np.clip(size * np.where(same > 0, 1.3, np.where(same < 0, 0.5, 1.0)), 1e-3, 1.0)
        before = np.where(same < 0, 0.0, slope)
        theta = np.clip(theta + size * np.sign(before), centre - 6 * width, centre + 6 * width)
    return Process(best[:n_knobs], best[n_knobs:])


def _posterior(theta: np.ndarray, f: np.ndarray, knob: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the log marginal likelihood and its derivatives by the log hyperparameters."""
    n_knobs = len(theta) - 3
    process = Process(theta[:n_knobs], theta[n_knobs:])
    total, rest = process.kernel(f, f, knob)
    _, scale, noise = np.exp(process.rest)
    covariance = total + rest
    covariance.flat[:: len(y) + 1] += noise + _LOWEST_NOISE
    try:
        inverse = np.linalg.inv(covariance)
        sign, logdet = np.linalg.slogdet(covariance)
    except np.linalg.LinAlgError:
        return -np.inf, np.zeros(len(theta))
    if sign <= 0:
        return -np.inf, np.zeros(len(theta))
    alpha = inverse @ y
    value = -0.5 * (y @ alpha + logdet)
    g = 0.5 * (np.outer(alpha, alpha) - inverse)  # d value / d covariance
    m = g * rest
    rows = m.sum(axis=1)
    # Of w_j: through the sum g : F_j F_j', and through the distance -scale/2 m : |F_j - F_j'|^2.
    by_feature = ((g @ f) * f).sum(axis=0) - scale * ((f * f * rows[:, None]).sum(axis=0) - ((m @ f) * f).sum(axis=0))
    weights = np.exp(process.weights) * np.bincount(knob, by_feature, n_knobs)
    scaled = f * np.exp(process.weights)[knob]
    norm = (scaled * f).sum(axis=1)
    distance_term = 2 * (rows * norm).sum() - 2 * (m * total).sum()
    return float(value), np.concatenate([weights, [m.sum(), -0.5 * scale * distance_term, noise * np.trace(g)]])


class Posterior:
    """A process conditioned on data.

    Args:
        process: its hyperparameters.
        features: of the data, shape (n, d).
        knob: parameter of each feature.
        y: standardised values, shape (n,).
    """

    def __init__(self, process: Process, features: np.ndarray, knob: np.ndarray, y: np.ndarray) -> None:
        self._process, self._features, self._knob = process, features, knob
        total, rest = process.kernel(features, features, knob)
        covariance = total + rest
        covariance.flat[:: len(y) + 1] += np.exp(process.rest[2]) + _LOWEST_NOISE
        self._inverse = np.linalg.inv(covariance)
        self._alpha = self._inverse @ y

    def mean(self, features: np.ndarray) -> np.ndarray:
        """Return the expected value at each row of features, shape (n,)."""
        total, rest = self._process.kernel(features, self._features, self._knob)
        return (total + rest) @ self._alpha

    def mean_and_deviation(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return expected value and standard deviation at each row of features, both (n,)."""
        total, rest = self._process.kernel(features, self._features, self._knob)
        both = total + rest
        own = (features * features * np.exp(self._process.weights)[self._knob]).sum(axis=1)
        own = own + np.exp(self._process.rest[0])
        variance = own - ((both @ self._inverse) * both).sum(axis=1)
        return both @ self._alpha, np.sqrt(np.maximum(variance, 1e-10))


@dataclass(frozen=True)
class Scale:
    """A column and its standardised form.

    Attributes:
        log: whether the logarithm is modelled.
        sign: of the column where it is.
        shift: added before the logarithm.
        middle, width: of what is modelled.
    """

    log: bool
    sign: float
    shift: float
    middle: float
    width: float

    @classmethod
    def of(cls, column: np.ndarray) -> Scale:
        """Return the scale of a column without NaN: the logarithm where it keeps one sign over a range of 2 or more."""
        sign = 1.0 if column.min() >= 0 else -1.0
        size = sign * column
        shift = 0.0
        if size.min() >= 0 and size.max() > 0:
            shift = 0.02 * float(np.median(size)) if size.min() < 0.01 * np.median(size) else 0.0
        log = size.min() + shift > 0 and size.max() + shift > 2 * (size.min() + shift)
        values = np.log(size + shift) if log else column
        width = float(values.std())
        return cls(bool(log), sign, shift, float(values.mean()), width if width > 0 else 1.0)

    def forward(self, column: np.ndarray) -> np.ndarray:
        """Return the standardised form."""
        values = np.log(np.maximum(self.sign * column + self.shift, 1e-300)) if self.log else column
        return (values - self.middle) / self.width

    def back(self, values: np.ndarray) -> np.ndarray:
        """Return the column of a standardised form."""
        raw = values * self.width + self.middle
        return self.sign * (np.exp(np.minimum(raw, 600.0)) - self.shift) if self.log else raw
