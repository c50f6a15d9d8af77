"""Speculative decoding in closed form: tokens of a step, their price, how many guesses pay, and what compression does.

Leviathan et al. (arXiv 2211.17192). a: chance that a guess is kept; g: guesses per step; c: time of a draft pass over
that of a
target step; c': the same of operations. Verification is a target pass over g + 1 positions; where that costs more than
a pass over one, its price is what counts, not c.

    tokens of a step      E = 1 + S_1 + ... + S_g,  S_j = h_1 ... h_j;  for one rate (1 - a^(g+1)) / (1 - a)
    speed-up              E / (g c + 1)
    growth of operations  (g c' + g + 1) / E
    steps of an output    N with Wald's identity: N E = t + overshoot. The tokens K of steps are independent and sum up
    to t or
                          more at the end; in the limit of renewal theory the last step overshoots t by (E[K^2] / E -
                          1) / 2 (whole numbers of span 1; Feller, vol. 1, XIII). t - 1 tokens follow the first one of
                          prefill

What compression does to acceptance. A guess is kept with a = 1 - E[TV(p, q)], p and q the distributions of target and
drafter (same source), TV the total variation distance. ``quality_loss`` d is an expected KL divergence in nats: the
increase of the loss on text that the uncompressed model is a good model of. Between a model and its compressed self

    TV <= sqrt(d / 2)                    Pinsker; and on average over text, by Jensen
    TV ~  sqrt(d / pi)                   where the log-ratio of the two is normal with variance s^2: d = s^2 / 2, and
                                         TV = s / sqrt(2 pi)

The triangle inequality gives ends that hold whatever the text: 1 - a' within 1 - a -+ (sqrt(d_target / 2) +
sqrt(d_draft / 2)), at the upper ends of both losses. The value takes the perturbations to be independent of each other
and of the gap between the models, so variances of log-ratios add:

    (1 - a')^2 = (1 - a)^2 + c (d_target + d_draft) / pi,   c = 1

for a loss that every token has alike. Where few tokens have most of it, the mean of the root is less than the root of
the mean, and c < 1: :func:`fitted_loss_ratio` takes it from compressed pairs whose acceptance was measured. With c = 1
it is a prior; the ends hold in both cases.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from dse.acceptance import Acceptance

CANDIDATES: Final = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)


def tokens_per_step(rate: np.ndarray | float, guesses: np.ndarray | float) -> np.ndarray:
    """Return E for one rate, (1 - a^(g+1)) / (1 - a), g + 1 in the limit a = 1."""
    a, g = np.broadcast_arrays(np.asarray(rate, dtype=np.float64), np.asarray(guesses, dtype=np.float64))
    rest = 1.0 - a
    # Near a = 1 the difference is lost to rounding: expm1 and log1p keep it.
    with np.errstate(divide="ignore", invalid="ignore"):
        tokens = -np.expm1((g + 1.0) * np.log1p(-rest)) / rest
    return np.clip(np.where(rest > 0, np.where(a > 0, tokens, 1.0), g + 1.0), 1.0, g + 1.0)


def speedup(rate: np.ndarray | float, guesses: np.ndarray | float, draft_ratio: np.ndarray | float) -> np.ndarray:
    """Return the speed-up where verification costs one target step, E / (g c + 1)."""
    return np.asarray(tokens_per_step(rate, guesses) / (np.asarray(guesses) * draft_ratio + 1.0))


def operations_growth(
    rate: np.ndarray | float, guesses: np.ndarray | float, draft_ratio: np.ndarray | float
) -> np.ndarray:
    """Return the operations per token relative to plain decoding, (g c' + g + 1) / E."""
    g = np.asarray(guesses)
    return np.asarray((g * draft_ratio + g + 1.0) / tokens_per_step(rate, g))


class Rates(NamedTuple):
    """Chances h_j of designs, shape (n, G): value, and ends."""

    low: np.ndarray
    value: np.ndarray
    high: np.ndarray


def rates_of(
    given: Acceptance, most: int, target: tuple[np.ndarray, np.ndarray], draft: tuple[np.ndarray, np.ndarray]
) -> Rates:
    """Return the rates of up to ``most`` guesses under compression, (n, most); 0 beyond what is known.

    Args:
        given: acceptance between the uncompressed models.
        most: guesses.
        target, draft: (value, upper end) of the losses of both models, arrays (n,).
    """
    known = min(given.most_tokens, most)
    at = np.minimum(np.arange(most), len(given.rates) - 1)
    is_known = np.arange(most) < known
    low, value, high = (
        np.where(is_known, np.asarray(ends)[at], 0.0)[None, :] for ends in (given.low, given.rates, given.high)
    )
    spread = given.loss_ratio * (target[0] + draft[0]) / np.pi
    shift = np.sqrt(target[1] / 2) + np.sqrt(draft[1] / 2)
    moved = 1.0 - np.minimum(np.sqrt((1.0 - value) ** 2 + spread[:, None]), 1.0)
    lowest = np.clip(low - shift[:, None], 0.0, 1.0)
    highest = np.where(is_known, np.clip(high + shift[:, None], 0.0, 1.0), 0.0)
    moved = np.where(is_known, np.clip(moved, lowest, highest), 0.0)
    return Rates(np.where(is_known, lowest, 0.0), moved, highest)


def fitted_loss_ratio(rate: float, losses_nats: np.ndarray, measured: np.ndarray) -> float:
    """Return c of compressed pairs by least squares, between 0 and 1; 1 where there is no loss.

    Args:
        rate: acceptance of the uncompressed pair.
        losses_nats: sum of both losses of each pair, shape (r,).
        measured: its acceptance, shape (r,).
    """
    x, y = losses_nats / np.pi, (1.0 - measured) ** 2 - (1.0 - rate) ** 2
    return float(np.clip((x * y).sum() / (x * x).sum(), 0.0, 1.0)) if (x > 0).any() else 1.0


def survival(rates: np.ndarray) -> np.ndarray:
    """Return S_0 ... S_G, shape (n, G + 1)."""
    one = np.ones((len(rates), 1))
    return np.concatenate([one, np.cumprod(rates, axis=1)], axis=1)


def moments(alive: np.ndarray, guesses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return E[K] and E[K^2] of the tokens of a step with ``guesses`` (n,), from S (n, G + 1).

    K >= j + 1 with probability S_j for j <= g, so E[K] is the sum of S_j, and E[K^2] that of (2 j + 1) S_j.
    """
    j = np.arange(alive.shape[1])
    counted = np.where(j <= guesses[:, None], alive, 0.0)
    return counted.sum(axis=1), (counted * (2 * j + 1)).sum(axis=1)


def n_steps(tokens: np.ndarray | float, mean: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Return the expected number of steps to ``tokens`` tokens, given moments of a step's tokens."""
    t = np.asarray(tokens, dtype=np.float64)
    overshoot = (square / mean - 1.0) / 2.0
    return np.where(t > 0, np.maximum((t + overshoot) / mean, np.minimum(t, 1.0)), 0.0)
