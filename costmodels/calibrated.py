"""From sums over places to the loss of a whole design: monotone curves fitted to real configurations, with intervals.

    KL        ln KL     = a + b ln S              S: sum of KL over places
    retained  -ln r     = exp(a) D^b              D = A^w (c S^p)^(1-w), A: sum of damages

``c S^p`` is the power law of damage against KL that runs through the configurations. Which witness to trust, w, is not
fixed: it is the one of five that predicts left-out configurations best, so a profile with noisy scores leans on KL and
one whose KL saturates on scores. Grids over (a, b[, w]) make each leave-one-out fit exact and cheap; a ridge towards
a = 0, b = 1 (plain sums) stands for :data:`RIDGE_CONFIGURATIONS` configurations.

Intervals are split-conformal on left-out residuals (Lei et al., JASA 113(523), 2018): the ceil(0.9 (n + 1))-th smallest
of n, of ln KL for KL and of r over (its noise + the predicted drop) for r. Below 9 configurations that rank does not
exist, and the largest residual is doubled; without any, a loss is uncertain by :data:`BARE_FACTOR` either way, because
plain sums of KL are known to miss the scale of designs with many choices by about that (R2 0.44 to 0.77 at ranks of
0.88 to 0.99), and a retained part of zero damage cannot be told from one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

COVERAGE: Final = 0.9
LEAST_CONFIGURATIONS: Final = 5
RIDGE_CONFIGURATIONS: Final = 0.5
BARE_FACTOR: Final = 3.0
_LEVELS: Final = np.linspace(-2.0, 2.0, 81)
_POWERS: Final = np.linspace(0.4, 2.0, 33)
_WITNESS: Final = (1.0, 0.75, 0.5, 0.25, 0.0)
_TINY: Final = 1e-9
_ROOM: Final = 0.01  # of the score: what a drop cannot be told from


@dataclass(frozen=True)
class KlCurve:
    """Predicted KL of a design: ``exp(level) * sum^power``, within ``factor`` either way."""

    level: float = 0.0
    power: float = 1.0
    factor: float = BARE_FACTOR
    n: int = 0

    def at(self, sums: np.ndarray) -> np.ndarray:
        """Return the KL in nats, shape of ``sums``."""
        return np.where(sums > 0, math.exp(self.level) * np.maximum(sums, _TINY) ** self.power, 0.0)


def fit_kl(sums: np.ndarray, kl: np.ndarray) -> KlCurve:
    """Return the curve through real configurations.

    Args:
        sums, kl: predicted sum and measured KL, shape (n,).
    """
    if len(kl) < LEAST_CONFIGURATIONS:
        return KlCurve()
    x, y = np.log(np.maximum(sums, _TINY)), np.log(np.maximum(kl, _TINY))
    level, power = (g.ravel() for g in np.meshgrid(_LEVELS, _POWERS, indexing="ij"))
    error = (level[:, None] + power[:, None] * x - y) ** 2
    ridge = RIDGE_CONFIGURATIONS * (level**2 + 4 * (power - 1) ** 2) * max(float(np.median(error.min(axis=0))), 0.01)
    best, left_out = _best_and_left_out(error, ridge)
    residual = np.abs(level[left_out] + power[left_out] * x - y)
    return KlCurve(float(level[best]), float(power[best]), math.exp(_conformal(residual)), len(kl))


@dataclass(frozen=True)
class RetainedCurve:
    """Predicted retained part of a design; see the module docstring.

    Attributes:
        level, power: a and b.
        witness: w, 1 for damages alone, 0 for KL alone.
        factor, exponent: c and p.
        width: half width of the interval over (noise + predicted drop).
        noise: what measured scores are uncertain by.
        n: configurations that it was fitted to.
    """

    level: float = 0.0
    power: float = 1.0
    witness: float = 1.0
    factor: float = 1.0
    exponent: float = 1.0
    width: float = BARE_FACTOR - 1.0
    noise: float = _ROOM
    n: int = 0

    def at(self, sums: np.ndarray, damages: np.ndarray) -> np.ndarray:
        """Return the retained part, shape of ``sums``; above 1 where damages say that the score rises."""
        if self.n == 0 and self.witness == 1.0:
            return np.exp(-damages)
        mixed = _mixed(sums, damages, self.witness, self.factor, self.exponent)
        return np.exp(-math.exp(self.level) * mixed**self.power)

    def half_width(self, retained: np.ndarray) -> np.ndarray:
        """Return the half width of the interval around predictions."""
        return self.width * (self.noise + np.maximum(1.0 - retained, 0.0))


def fit_retained(sums: np.ndarray, damages: np.ndarray, retained: np.ndarray, noise: float) -> RetainedCurve:
    """Return the curve through real configurations.

    Args:
        sums, damages: predicted sums of KL and damage, shape (n,).
        retained: measured retained part, shape (n,).
        noise: standard error of the measured ones.
    """
    room = max(noise, _ROOM)
    if len(retained) < LEAST_CONFIGURATIONS:
        return RetainedCurve(noise=room)
    factor, exponent = _damage_of_kl(sums, retained)
    grids = np.meshgrid(_LEVELS, _POWERS, np.arange(len(_WITNESS)), indexing="ij")
    level, power, which = (g.ravel() for g in grids)
    mixed = np.stack([_mixed(sums, damages, w, factor, exponent) for w in _WITNESS])
    found = np.exp(-np.exp(level)[:, None] * mixed[which.astype(int)] ** power[:, None])
    error = (found - retained) ** 2
    scale = max(float(np.median(error.min(axis=0))), room**2)
    ridge = RIDGE_CONFIGURATIONS * (level**2 + 4 * (power - 1) ** 2) * scale
    best, left_out = _best_and_left_out(error, ridge)
    told = found[left_out, np.arange(len(retained))]
    width = _conformal(np.abs(told - retained) / (room + np.maximum(1.0 - told, 0.0)))
    chosen = _WITNESS[int(which[best])]
    return RetainedCurve(float(level[best]), float(power[best]), chosen, factor, exponent, width, room, len(retained))


def _mixed(sums: np.ndarray, damages: np.ndarray, w: float, factor: float, exponent: float) -> np.ndarray:
    own, told = np.maximum(damages, _TINY), factor * np.maximum(sums, _TINY) ** exponent
    return np.asarray(own**w * told ** (1 - w))


def _damage_of_kl(sums: np.ndarray, retained: np.ndarray) -> tuple[float, float]:
    """Return (c, p) of retained = exp(-c S^p), least squares in the retained part."""
    factor, power = (g.ravel() for g in np.meshgrid(np.exp(np.linspace(-4, 4, 81)), _POWERS / 1.5, indexing="ij"))
    found = np.exp(-factor[:, None] * np.maximum(sums, _TINY) ** power[:, None])
    best = int(((found - retained) ** 2).sum(axis=1).argmin())
    return float(factor[best]), float(power[best])


def _best_and_left_out(error: np.ndarray, ridge: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the grid point of the least loss, and that of each configuration left out; error of shape (grid, n)."""
    total = error.sum(axis=1) + ridge
    return int(total.argmin()), (total[:, None] - error).argmin(axis=0)


def _conformal(residuals: np.ndarray) -> float:
    """Return the half width that covers a new one with probability :data:`COVERAGE`."""
    rank = math.ceil(COVERAGE * (len(residuals) + 1))
    ordered = np.sort(residuals)
    return float(ordered[rank - 1]) if rank <= len(ordered) else 2.0 * float(ordered[-1])
