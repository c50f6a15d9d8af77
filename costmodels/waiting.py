"""Waiting in closed form: an engine with places that slows down as they fill, arrays over designs.

An engine has B places. With b requests in them it serves mu(b) requests per second; whoever comes later waits in line
for a place. Let m be the requests present. Where requests in places share the engine evenly, the chances p_m are those
of the birth-death chain with rates lambda and mu(min(m, B)), whatever the lengths of requests (Kelly's symmetric
queues, Cohen 1979: processor sharing with a rate that depends on the state is insensitive):

    p_m = p_0 prod_{j <= m} lambda / mu(j),    p_{B+i} = p_B rho^i,    rho = lambda / mu(B)

The line in front of the places is first come, first served, and not insensitive. As for M/G/c (Allen and Cunneen) its
mean is that of the chain times (c_a^2 + c_s^2) / 2, the squared coefficients of variation of gaps between arrivals and
of lengths:

    P(wait) = p_B / (1 - rho),    E[W] = p_B rho / ((1 - rho)^2 lambda) (c_a^2 + c_s^2) / 2

At one place that is Pollaczek and Khinchine's formula, exact; with places for all there is no wait, exact too. Who
waits, waits gamma-distributed with the two moments of M/G/1 (Takacs: E[W^2] = 2 E[W]^2 + lambda E[S^3] / 3 (1 - rho));
their ratio is E[W^2 | W > 0] / E[W | W > 0]^2 = 2 rho + 4/3 (1 - rho) E[S^3] E[S] / E[S^2]^2: exponential for M/M/1.

A run of n requests that begins empty has not seen the long waits of high loads: its mean is at most that of a random
walk without drift, (2/3) sqrt(2 n (c_a^2 + c_s^2) / pi) / mu(B) (Brownian motion, reflected). The smaller of the two is
taken. Beyond capacity the line grows: request i of n waits i (1 / mu(B) - 1 / lambda), a fluid.

References are recalled, formulas are derived or checked against M/M/1, M/D/1, M/G/1, M/M/c in tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

_EDGES: Final = np.concatenate(
    [np.linspace(0.0, 0.9, 19), np.linspace(0.9, 0.99, 10)[1:], np.linspace(0.99, 1.0, 6)[1:]]
)
LEVELS: Final = (_EDGES[1:] + _EDGES[:-1]) / 2
"""Where distributions are held, finer towards their upper end, and how much each point weighs."""
WEIGHTS: Final = np.diff(_EDGES)


@dataclass(frozen=True)
class Line:
    """Requests present and waiting, for n designs.

    Attributes:
        idle_ratio: chance that nobody is there, shape (n,).
        chances: that so many places are taken, from 1 to S, shape (n, S).
        seen: what an arrival finds in places, itself included, shape (n, S).
        wait_s: mean wait for a place, shape (n,).
        waits_s: the wait at :data:`LEVELS`, shape (n, 32).
        free_ratio: chance that who takes the last place did not wait for it, shape (n,).
        is_stable: whether arrivals stay below capacity, shape (n,).
    """

    idle_ratio: np.ndarray
    chances: np.ndarray
    seen: np.ndarray
    wait_s: np.ndarray
    waits_s: np.ndarray
    free_ratio: np.ndarray
    is_stable: np.ndarray


def total(values: np.ndarray) -> np.ndarray:
    """Return sums over states, (n,), from (n, S): one by one, so that places of other designs change no digit."""
    return np.asarray(np.cumsum(values, axis=1)[:, -1])


def line(
    rate: np.ndarray, served: np.ndarray, places: np.ndarray, gap_cv2: np.ndarray | float, size_cv2: np.ndarray,
    size_skew: np.ndarray, n_requests: np.ndarray,
) -> Line:  # fmt: skip
    """Return how requests wait.

    Args:
        rate: arrivals per second, above 0, infinite for all at once; shape (n,).
        served: requests per second with 1 ... S in places, shape (n, S); those beyond a design's places do not count.
        places: whole numbers from 1 to S, shape (n,).
        gap_cv2: squared coefficient of variation of gaps, 1 for Poisson.
        size_cv2: the same of lengths of service.
        size_skew: E[S^3] E[S] / E[S^2]^2 of lengths.
        n_requests: of the run, that one engine gets, shape (n,).
    """
    states = served.shape[1]
    at = np.arange(1, states + 1)
    inside = at <= places[:, None]
    most = np.take_along_axis(served, (places - 1).astype(np.int64)[:, None], axis=1)[:, 0]
    load = rate / most
    is_stable = load < 1.0
    # A design that is overloaded has all places taken.
    finite = np.where(is_stable, rate, 1.0)
    logs = np.where(inside, np.log(finite)[:, None] - np.log(served), 0.0).cumsum(axis=1)
    top = np.maximum(logs.max(axis=1), 0.0)
    weights = np.where(inside, np.exp(logs - top[:, None]), 0.0)
    idle = np.exp(-top)
    last = np.take_along_axis(weights, (places - 1).astype(np.int64)[:, None], axis=1)[:, 0]
    rho = np.where(is_stable, load, 0.5)
    tail = last * rho / (1.0 - rho)
    mass = idle + total(weights) + tail
    is_last = at == places[:, None]
    chances = np.where(is_stable[:, None], (weights + is_last * tail[:, None]) / mass[:, None], is_last)
    idle = np.where(is_stable, idle / mass, 0.0)
    # An arrival finds m present (arrivals that are Poisson see time averages) and makes it m + 1, as far as places go.
    found = np.concatenate([idle[:, None], chances[:, :-1]], axis=1)
    seen = np.where(inside, found, 0.0) + is_last * (1.0 - total(np.where(inside, found, 0.0)))[:, None]
    at_last = total(seen * is_last)
    waits_ratio = np.where(is_stable, last / (1.0 - rho) / mass, 1.0)
    spread = (gap_cv2 + size_cv2) / 2
    steady = waits_ratio * rho / (1.0 - rho) / np.where(is_stable, rate, 1.0) * spread
    drifting = 2.0 / 3.0 * np.sqrt(2.0 * n_requests * 2.0 * spread / np.pi) / most
    mean = np.minimum(steady, np.maximum(drifting, 0.0))
    growth = n_requests * np.maximum(1.0 / most - 1.0 / rate, 0.0)
    fluid = growth[:, None] * LEVELS
    ratio = np.maximum(2.0 * rho + 4.0 / 3.0 * (1.0 - rho) * size_skew, 1.0 + 1e-6)
    waits = np.where(is_stable[:, None], _gamma(mean, waits_ratio, ratio), fluid)
    free = np.clip(1.0 - waits_ratio / np.maximum(at_last, 1e-300), 0.0, 1.0)
    return Line(idle, chances, seen, np.where(is_stable, mean, growth / 2), waits, free, is_stable)


def _gamma(mean: np.ndarray, waits_ratio: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Return at :data:`LEVELS` what is 0 but for a share, and there gamma; (n, 32)."""
    from scipy.special import gammaincinv

    share = np.maximum(waits_ratio, 1e-300)[:, None]
    level = np.clip((LEVELS - (1.0 - share)) / share, 0.0, 1.0)
    excess = (ratio - 1.0)[:, None]
    shape = 1.0 / excess
    return np.asarray(np.where(level > 0, gammaincinv(shape, level) * mean[:, None] / share * excess, 0.0))


def quantiles(values: np.ndarray, weights: np.ndarray, at: tuple[float, ...]) -> np.ndarray:
    """Return the smallest values that such shares of the weight stay within, (len(at), n), from values (n, k)."""
    order = np.argsort(values, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    filled = np.cumsum(np.take_along_axis(np.broadcast_to(weights, values.shape), order, axis=1), axis=1)
    # Each point stands for the middle of its weight.
    middle = filled - np.take_along_axis(np.broadcast_to(weights, values.shape), order, axis=1) / 2
    found = []
    for level in at:
        above = np.minimum(np.argmax(middle >= level * filled[:, -1:], axis=1), values.shape[1] - 1)
        below = np.maximum(above - 1, 0)
        x0, x1 = (np.take_along_axis(middle, i[:, None], axis=1)[:, 0] for i in (below, above))
        y0, y1 = (np.take_along_axis(ranked, i[:, None], axis=1)[:, 0] for i in (below, above))
        part = np.where(x1 > x0, (level * filled[:, -1] - x0) / np.where(x1 > x0, x1 - x0, 1.0), 1.0)
        found.append(y0 + np.clip(part, 0.0, 1.0) * (y1 - y0))
    return np.stack(found)
