"""Mean steps of an engine that b requests share, and what a request that reads its prompt meets; arrays over designs.

A mean request of P prompt positions and n_d decode steps needs n_s = n_p + n_d steps, n_p = ceil(P / c) of them to read
its prompt, c positions being what a step has left beside decoding. Requests that are in different places of their lives
read in a step with chance f = n_p / n_s each, so

    share of steps that read          phi = 1 - (1 - f)^b, at least what the positions of a step force
    steps per request served          s = max(n_s / b, (P + (1 + g) n_d) / C)
    mean step                         t(b) = phi t_read + (1 - phi) t_decode
    time in the engine                R(b) = b s t        (Little)

with t_read a step of b - b f / phi requests that decode beside P / (s phi) positions of prompts. Requests that are all
alike and start together stay together: their prompts fill steps, b P / c of them in a wave, and the other steps decode.

Reading. Prompts that came during a step are read in the next one, all of them, as far as its positions go. With a the
step that only decodes and d what a prompt adds to it, steps are X' = a + d N(lambda X), a branching process with
immigration:

    E[X] = a / (1 - lambda d),    Var[X] = d^2 lambda E[X] / (1 - (lambda d)^2)

Who comes into a step (length-biased) waits for the rest of it, E[X^2] / 2 E[X], and reads in the next,
a + d (1 + lambda E[X^2] / E[X]). Prompts of several steps are read one after the other, as in M/G/1 with a service of
P / c full steps. Where positions bind in between, the longer of the two is taken. d is what a prompt adds to a step
that already reads; the first one hides behind the weights that decoding reads anyway, which is taken off d on average.
With gaps more even than Poisson (replicas in turn) N varies c_a^2 times as much. A request that is served for R meets
lambda R prompts of others, which delay it and with it the end of itself (a delay busy period): its time spreads by

    Var[R] = (d^2 lambda R + d a' lambda R + 2/3 a'^2 Var[b]) / (1 - lambda d)^2,    a' = n_d da/db

where 2/3 and the mixed term come from how far arrivals before and after it overlap with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from costmodels.engines import EngineBatch
from costmodels.stepcosts import place
from costmodels.waiting import total

N_GRID: Final = 24
N_LUCK: Final = 48
_FULLEST: Final = 0.98
# Additive recurrences with the generalised golden ratio of three dimensions spread points evenly (Roberts, recalled).
_GOLDEN: Final = 1.2207440846057596
TURNS: Final = ((np.arange(N_LUCK)[:, None] + 0.5) / _GOLDEN ** np.arange(1, 4) + 0.5) % 1.0
_COUNTS: Final = 64
_ROUNDS: Final = 4


@dataclass(frozen=True)
class Kinds:
    """What requests are like, of n designs, k kinds alike in number; arrivals at one engine.

    Attributes:
        prompt, output: positions, tokens, shape (n, k).
        rate: per second, infinite where all are there from the start, shape (n,).
        gap_cv2: squared coefficient of variation of gaps, shape (n,).
        n_requests: of the whole run.
    """

    prompt: np.ndarray
    output: np.ndarray
    rate: np.ndarray
    gap_cv2: np.ndarray
    n_requests: int


@dataclass(frozen=True)
class StepMeans:
    """What steps of n designs take with 1 ... B requests in places, on a grid of them, arrays (n, m).

    Attributes:
        b: the grid.
        step_s, joules: of the mean step.
        decode_s: of one that only decodes.
        own_s: of one in which one request reads, and b - 1 decode.
        added_s: what a further prompt adds to steps.
        full_s: of one that is full of prompts.
        n_read: steps that a prompt takes.
        per_request: steps per request served.
        fits: prompts that a step has positions for.
        served: requests per second.
        whole_s: time in the engine, from the first position of the prompt on.
        wave_s: time between requests that start together and those that take their places.
        n_steps: of a request, reading and decoding, shape (n,).
    """

    b: np.ndarray
    step_s: np.ndarray
    joules: np.ndarray
    decode_s: np.ndarray
    own_s: np.ndarray
    added_s: np.ndarray
    full_s: np.ndarray
    n_read: np.ndarray
    per_request: np.ndarray
    fits: np.ndarray
    served: np.ndarray
    whole_s: np.ndarray
    wave_s: np.ndarray
    n_steps: np.ndarray

    def over(self, values: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return values of the grid at any b, (n, k)."""
        at, share = place(self.b, b)
        after = np.minimum(at + 1, self.b.shape[1] - 1)
        low, high = (np.take_along_axis(values, i, axis=1) for i in (at, after))
        return np.asarray(low + share * (high - low))


def step_means(
    engine: EngineBatch, kinds: Kinds, decode: np.ndarray, places: np.ndarray, end: int, *, encodes: bool
) -> StepMeans:
    """Return what steps take, on a grid of requests in places.

    Args:
        engine: the engines.
        kinds: of requests.
        decode: decode steps of each kind, shape (n, k).
        places: requests that run at a time, whole numbers, shape (n,).
        end: 0, 1 or 2 for the low end, the value and the high end of all passes.
        encodes: whether requests have images or sounds.
    """
    positions, guesses = engine.extent.positions[:, None], engine.extent.guesses[:, None]
    cuts = engine.cuts[:, None]
    b = np.round(places[:, None] ** np.linspace(0.0, 1.0, N_GRID))
    prompt, steps = kinds.prompt.mean(axis=1)[:, None], decode.mean(axis=1)[:, None]
    fits = np.where(cuts, np.maximum(positions - b * (1 + guesses), positions / 64) / prompt,
                    np.maximum(np.floor(positions / prompt), 1.0))  # fmt: skip
    n_read = np.where(cuts, np.ceil(1.0 / fits - 1e-9), 1.0)
    n_whole = n_read + steps
    forced = np.where(cuts, (prompt + (1 + guesses) * steps) / positions, 1.0 / fits)
    per_request = np.maximum(n_whole / b, forced)
    f = n_read / n_whole
    share = np.clip(np.maximum(1.0 - (1.0 - f) ** b, 1.0 / per_request / fits), 1e-12, 1.0)
    reading = np.clip(b - steps / per_request, 0.0, b) / share
    tokens = (decode * (kinds.prompt + (kinds.output + 1) / 2)).sum(axis=1)[:, None]
    writing = decode.sum(axis=1)[:, None]
    context = np.where(writing > 0, tokens / np.where(writing > 0, writing, 1.0), prompt) + guesses
    keys = (prompt + 1) / 2

    def step(decoding: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """Return seconds and joules of steps that read so many prompts, or parts of one."""
        coming = prompts if encodes else np.zeros_like(prompts)
        logits = decoding * (1 + guesses) + prompts
        return engine.costs.at(end, np.maximum(decoding, 0.0), context, prompts * prompt, keys, logits, coming)

    plain = step(b, np.zeros_like(b))
    read = step(b - reading, np.minimum(1.0 / per_request / share, fits))
    share = np.where(steps > 0, share, 1.0)
    mean = share * read + (1.0 - share) * plain
    own = step(b - 1.0, np.minimum(np.ones_like(b), fits) / np.where(fits < 1, n_read * fits, 1.0))
    more = np.minimum(fits, 4.0)
    several = step(b - 1.0, np.maximum(more, 1.0))
    added = np.where(more > 1, (several - own)[0] / np.where(more > 1, more - 1.0, 1.0), (own - plain)[0])
    full = step(b, fits)
    n_full = np.ceil(b / np.where(cuts, fits, np.floor(fits)) - 1e-9)
    served = 1.0 / (per_request * mean[0])
    # Where positions bind, some of those in places wait for their turn to read.
    runs = np.minimum(b, steps / per_request + n_read)
    wave_s = np.where(
        n_full < n_whole,
        n_full * step(b - b / n_full, np.minimum(b / n_full, fits))[0] + (n_whole - n_full) * plain[0],
        b / served,
    )
    added = np.where(n_read > 1, np.maximum(full - plain, 0.0)[0] / fits, np.maximum(added, 0.0))
    return StepMeans(
        b, mean[0], mean[1], plain[0], own[0], added, full[0], n_read, per_request, fits,
        served, runs / served, wave_s, n_whole[:, 0],
    )  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """What a request meets that reads its prompt beside others, arrays (n,) and over luck (n, 48).

    Attributes:
        rest_s: rest of the step that runs when it comes, 0 where none does.
        first_s: the steps that read it.
        lucky_rest_s, lucky_first_s: the same, drawn.
        busy_ratio: share of time that prompts add to steps.
    """

    rest_s: np.ndarray
    first_s: np.ndarray
    lucky_rest_s: np.ndarray
    lucky_first_s: np.ndarray
    busy_ratio: np.ndarray


def reading(
    means: StepMeans, seen: np.ndarray, of_b: np.ndarray, rate: np.ndarray, gap_cv2: np.ndarray, joins: np.ndarray
) -> Reading:
    """Return what a request meets.

    Args:
        means: of steps.
        seen: chances of what arrivals find in places, themselves included, shape (n, s).
        of_b: how many that is, shape (n, s).
        rate: arrivals per second at one engine, finite.
        gap_cv2: squared coefficient of variation of gaps between them.
        joins: chance that an arrival finds others and a free place.
    """
    from scipy.special import pdtr

    def mean(values: np.ndarray) -> np.ndarray:
        return total(seen * means.over(values, of_b))

    own, added, full = mean(means.own_s), mean(means.added_s), mean(means.full_s)
    with_others = np.where(of_b > 1, seen, 0.0)
    weight = total(with_others)
    base = total(with_others * means.over(means.decode_s, of_b)) / np.where(weight > 0, weight, 1.0)
    n_read, fits = mean(means.n_read), mean(means.fits)
    # One after the other: a prompt holds its part of full steps.
    service = np.maximum(full / fits, added)
    load = np.minimum(rate * service, _FULLEST)
    behind = joins * load * service * gap_cv2 / (2.0 * (1.0 - load))
    # The first prompt of a step hides behind what decoding reads anyway.
    hidden = np.where(n_read > 1, 0.0, np.maximum(base + added - own, 0.0))
    each = added
    for _ in range(_ROUNDS):
        many = rate * base / (1.0 - np.minimum(rate * each, _FULLEST))
        each = added - np.minimum(hidden * -np.expm1(-many) / np.maximum(many, 1e-12), added)
    busy = np.minimum(rate * each, _FULLEST)
    step = base / (1.0 - busy)
    variance = each**2 * rate * step * gap_cv2 / (1.0 - busy**2)
    longer = step + np.where(step > 0, variance / np.where(step > 0, step, 1.0), 0.0)
    # Gaps that are even leave less room for others beside one that came.
    beside = np.maximum(rate * longer + np.minimum(gap_cv2 - 1.0, 0.0), 0.0)
    gated = np.where(n_read > 1, 0.0, joins * (longer / 2 + added * beside))
    alone = np.where(n_read > 1, base / 2 * joins, 0.0)
    in_turn = behind + alone
    is_gated = gated >= in_turn
    rest = np.where(is_gated, joins * longer / 2, in_turn)
    first = n_read * own + np.where(is_gated, joins * added * beside, 0.0)
    # Drawn: how long the running step is, how much of it is left, who came into it.
    n, u = len(rate), TURNS
    meets = u[:, 0] >= 1.0 - joins[:, None]
    level = np.clip((u[:, 0] - (1.0 - joins[:, None])) / np.maximum(joins, 1e-12)[:, None], 0.0, 1.0)
    k = np.arange(_COUNTS)
    many = rate * step
    excess = np.maximum(
        np.where(many > 0, variance / np.maximum(each, 1e-300) ** 2 / np.maximum(many, 1e-12), 1.0), 1.0 + 1e-6
    )
    chance = _negative_binomial(k, many, excess) * (base[:, None] + each[:, None] * k)
    filled = np.cumsum(chance, axis=1)
    filled /= filled[:, -1:]
    before = (level[:, :, None] > filled[:, None, :]).sum(axis=2)
    drawn = base[:, None] + each[:, None] * np.minimum(before, _COUNTS - 1)
    others = (
        u[None, :, 2, None]
        > pdtr(k, np.maximum(rate[:, None] * drawn + np.minimum(gap_cv2 - 1.0, 0.0)[:, None], 0.0)[:, :, None])
    ).sum(axis=2)
    lucky_rest = np.where(meets, drawn * u[:, 1], 0.0)
    lucky_first = np.where(meets, added[:, None] * others, 0.0)
    # One after the other: exponential beyond the chance to meet none.
    waits = np.maximum(load * joins, 1e-12)[:, None]
    tail = np.clip((u[:, 2] - (1.0 - waits)) / waits, 0.0, 1.0 - 1e-9)
    queued = -np.log1p(-tail) * (behind[:, None] / waits) + alone[:, None]
    return Reading(
        rest, first, np.where(is_gated[:, None], lucky_rest, queued),
        (n_read * own)[:, None] + np.where(is_gated[:, None], lucky_first, np.zeros((n, N_LUCK))), busy,
    )  # fmt: skip


def _negative_binomial(k: np.ndarray, mean: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Return the chances of counts with a mean and a variance of ``excess`` times it, above 1; (n, len(k))."""
    from scipy.special import gammaln

    size, p = np.maximum(mean, 1e-12) / (excess - 1.0), 1.0 / excess
    logs = gammaln(k + size[:, None]) - gammaln(size)[:, None] - gammaln(k + 1.0)
    return np.asarray(np.exp(logs + size[:, None] * np.log(p)[:, None] + k * np.log1p(-p)[:, None]))
