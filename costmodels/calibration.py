"""Fits kernel constants to measured latencies, and says how far off they are on rows that were not fitted.

Constants minimise, in logarithms (so that errors are relative), a smoothed absolute error of the rows, plus a pull of
each constant towards the mean of its kind:

    sum rho(log(predicted / measured) / 0.06) + sum ((log k - log mean_k) / width_k)^2,  rho(e) = 2 (sqrt(1 + e^2) - 1)

The means start at round neutral values (:data:`PRIORS`) and become, over three rounds, the medians over all groups of
the op in the table (three groups or more): constants that a group's rows say nothing about take the value that other
devices, frameworks and precisions have. All have physical bounds, efficiencies at most 1. The widths were chosen once,
alike for all kinds, by the mean held-out error of six other deals of the shipped rows. Starting points are fixed,
nothing is random.

Held-out error: the rows of each (device, framework, op, variant, precision) are ordered by a hash of what they are
about and dealt in turn into halves (or k folds); each fold is predicted by a fit of the others, means included.
Transfer: each device is left out of the fit, and predicted from its datasheet with the constants of its relatives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from costmodels import collectives, kernels
from costmodels.constants import Entry, fields_of
from costmodels.measurements import Key, Measurement, work_of
from dse.hardware import Device

NOISE: Final = 0.06  # scale of relative errors below which a residual counts as squared
ROUNDS: Final = 3
LEVEL: Final = 0.9  # of the band of held-out errors

# Efficiencies of a device in general, for comparison: (compute, bandwidth, launch).
FIXED_EFFICIENCY: Final = {"attention": (0.55, 0.75, 8e-6), "other": (0.75, 0.80, 6e-6)}


class Prior(NamedTuple):
    """Neutral value of a constant, width of the pull towards the mean (in logarithms; 0 holds it), bounds."""

    value: float
    width: float
    low: float
    high: float


_OFF: Final = Prior(0.0, 0.0, 0.0, 0.0)
_ONE: Final = Prior(1.0, 0.0, 1.0, 1.0)


def _priors(launch_s: float, compute: float, bandwidth: float, blend: float, **special: Prior) -> dict[str, Prior]:
    table = {
        "launch_s": Prior(launch_s, 0.5, 5e-7, 1e-3),
        "compute_ratio": Prior(compute, 0.25, 0.05, 1.0),
        "bandwidth_ratio": Prior(bandwidth, 0.2, 0.1, 1.0),
        "blend_exponent": Prior(blend, 0.3, 0.8, 8.0),
        "overlap_exponent": Prior(1.2, 0.22, 0.9, 8.0),
        "cache_gain_ratio": Prior(1.2, 0.75, 1.0, 8.0),
        "cache_fill_ratio": Prior(1.0, 0.1, 0.3, 2.0),
        "pass_ratio": _OFF,
        "tail_ratio": _OFF,
        "chain_ratio": _OFF,
        "block_rows": _OFF,
        "misaligned_ratio": _ONE,
    }
    return table | special


PRIORS: Final[Mapping[str, Mapping[str, Prior]]] = {
    "gemm": _priors(
        8e-6, 0.7, 0.8, 2.5, pass_ratio=Prior(1.0, 1.2, 0.01, 30.0), block_rows=Prior(0.5, 0.7, 0.01, 3.0)
    ),
    "context_attention": _priors(
        1e-5, 0.5, 0.5, 1.2, pass_ratio=Prior(0.5, 1.2, 0.01, 30.0), tail_ratio=Prior(0.5, 0.9, 0.01, 10.0),
        block_rows=Prior(64.0, 1.2, 1.0, 1024.0),
    ),
    "encoder_attention": _priors(
        1e-5, 0.5, 0.5, 1.2, tail_ratio=Prior(0.5, 0.9, 0.01, 10.0), block_rows=Prior(64.0, 1.2, 1.0, 1024.0),
        misaligned_ratio=Prior(1.2, 1.2, 1.0, 10.0),
    ),
    "generation_attention": _priors(1e-5, 0.3, 0.85, 2.0, chain_ratio=Prior(0.05, 1.5, 1e-3, 5.0)),
    "moe": _priors(
        3e-5, 0.5, 0.8, 2.0, pass_ratio=Prior(1.0, 1.2, 0.01, 30.0), block_rows=Prior(50.0, 1.5, 0.5, 512.0)
    ),
    "allreduce": {
        "direct_launch_s": Prior(5e-6, 0.8, 1e-6, 1e-3), "ring_launch_s": Prior(3e-5, 0.8, 1e-6, 1e-3),
        "hop_ratio": Prior(0.1, 1.0, 1e-3, 3.0), "direct_ratio": Prior(0.6, 0.5, 0.05, 1.0),
        "ring_ratio": Prior(0.7, 0.4, 0.05, 1.0), "contention_exponent": Prior(0.1, 1.5, 1e-3, 3.0),
        "direct_limit_bytes": _OFF,
    },
}  # fmt: skip

# Second starting points: what the rows may show and the means do not (reuse in cache, a launch that hides all work).
_STARTS: Final[Sequence[Mapping[str, float]]] = (
    {}, {"cache_gain_ratio": 3.0}, {"launch_s": 8e-5, "overlap_exponent": 2.5},
)  # fmt: skip
_LIMITS: Final = (0.0, *(2.0**k for k in range(18, 25)))  # messages up to which a library sends directly, bytes

Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Group:
    """Rows with constants of their own, and what predicts them."""

    key: Key
    rows: Sequence[Measurement]
    predict: Predict

    @property
    def measured_s(self) -> np.ndarray:
        """Measured latencies, shape (n,)."""
        return np.array([row.latency_s for row in self.rows])


@dataclass(frozen=True)
class Score:
    """Errors of one (device, op, precision) on rows that were not fitted, as mean absolute relative errors.

    Attributes:
        n_rows: rows, each predicted once.
        error_ratio, median_ratio: mean and median error of the constants, two halves.
        folds_ratio: mean error in five folds.
        roofline_ratio, fixed_ratio: mean errors of the roofline, and of one efficiency for all devices.
        transfer_ratio: mean error with the constants of other devices; NaN where no other device has the kernel.
    """

    device: str
    op: str
    precision: str
    n_rows: int
    error_ratio: float
    median_ratio: float
    folds_ratio: float
    roofline_ratio: float
    fixed_ratio: float
    transfer_ratio: float


def groups_of(rows: Iterable[Measurement], devices: Mapping[str, Device]) -> dict[Key, Group]:
    """Return the rows by key, each key's in the order of their hashes."""
    found: dict[Key, list[Measurement]] = defaultdict(list)
    for row in sorted(rows, key=lambda r: r.order):
        found[row.key].append(row)
    return {key: Group(key, mine, _predictor(mine, devices[key.device])) for key, mine in sorted(found.items())}


def _predictor(rows: Sequence[Measurement], device: Device) -> Predict:
    if rows[0].key.op == "allreduce":
        sent = np.array([2.0 * row.shape["elements"] for row in rows])
        ranks = np.array([row.shape["gpus"] for row in rows])
        link = device.link_bytes_per_s or np.nan
        return lambda constants: collectives.all_reduce_s(sent, ranks, link, constants)
    work = work_of(rows, device)
    return lambda constants: kernels.seconds(work, constants)


def roofline_s(group: Group, device: Device) -> np.ndarray:
    """Return the rows' latencies at full efficiency without a launch, shape (n,)."""
    return _plain(group, device, (1.0, 1.0, 0.0))


def fixed_s(group: Group, device: Device) -> np.ndarray:
    """Return the rows' latencies by one efficiency for all devices, shape (n,)."""
    kind = "attention" if group.key.op.endswith("attention") else "other"
    return _plain(group, device, FIXED_EFFICIENCY[kind])


def _plain(group: Group, device: Device, efficiency: tuple[float, float, float]) -> np.ndarray:
    compute, bandwidth, launch = efficiency
    if group.key.op == "allreduce":
        constants = np.array([launch, launch, 0.0, bandwidth, bandwidth, 0.0, 0.0])
        return group.predict(constants)
    work = work_of(group.rows, device)
    return np.maximum(work.compute_s / compute, work.traffic_s / bandwidth) + launch


# ---------------------------------------------------------------------------------------------- fitting


def fit(groups: Mapping[Key, Group]) -> dict[Key, np.ndarray]:
    """Return the constants of each group."""
    means = {op: np.array([p.value for p in table.values()]) for op, table in PRIORS.items()}
    fitted: dict[Key, np.ndarray] = {}
    for turn in range(ROUNDS):
        for key, group in groups.items():
            starts = [fitted[key]] if turn else [_start(key.op, means[key.op], c) for c in _STARTS if _fits(key.op, c)]
            fitted[key] = _fit_group(group, means[key.op], starts)
        if turn < ROUNDS - 1:
            means = {op: _mean(op, means[op], [k for key, k in fitted.items() if key.op == op]) for op in means}
    return fitted


def _fits(op: str, change: Mapping[str, float]) -> bool:
    return all(name in PRIORS[op] for name in change)


def _start(op: str, mean: np.ndarray, change: Mapping[str, float]) -> np.ndarray:
    return np.array([change.get(name, value) for name, value in zip(fields_of(op), mean, strict=True)])


def _mean(op: str, before: np.ndarray, found: Sequence[np.ndarray]) -> np.ndarray:
    if len(found) < 3:
        return before
    free = np.array([p.width > 0 for p in PRIORS[op].values()])
    return np.where(free, np.exp(np.median(np.log(np.maximum(found, 1e-30)), axis=0)), before)


def _fit_group(group: Group, mean: np.ndarray, starts: Sequence[np.ndarray]) -> np.ndarray:
    limits = _LIMITS if group.key.op == "allreduce" else (0.0,)
    best, least = starts[0], np.inf
    for limit in limits:
        fixed = np.array(mean)
        if group.key.op == "allreduce":
            fixed[-1] = limit
        for start in starts:
            found, cost = _descend(group, fixed, start)
            if cost < least * (1 - 1e-9):
                best, least = found, cost
    return best


def _descend(group: Group, mean: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the constants that a start leads to, and their cost; bounds are kept by a change of variables."""
    from scipy.optimize import least_squares

    table = list(PRIORS[group.key.op].values())
    free = np.array([i for i, p in enumerate(table) if p.width > 0])
    low, high = (np.log([getattr(table[i], end) for i in free]) for end in ("low", "high"))
    width, centre = np.array([table[i].width for i in free]), np.log(mean[free])
    measured = np.log(group.measured_s)

    def constants(u: np.ndarray) -> np.ndarray:
        made = np.array(mean)
        made[free] = np.exp(low + (high - low) * (np.sin(u) + 1) / 2)
        return made

    def residuals(u: np.ndarray) -> np.ndarray:
        made = constants(u)
        error = (np.log(group.predict(made)) - measured) / NOISE
        smooth = np.sign(error) * np.sqrt(2 * (np.sqrt(1 + error**2) - 1))
        return np.concatenate([smooth, (np.log(made[free]) - centre) / width])

    inside = np.clip((np.log(start[free]) - low) / (high - low), 0.002, 0.998)
    # The rows of a group may be fewer than its constants; the pull makes up for them.
    answer = least_squares(residuals, np.arcsin(2 * inside - 1), method="lm", ftol=1e-5, xtol=1e-4, max_nfev=300)
    return constants(answer.x), float(answer.cost)


# ---------------------------------------------------------------------------------------------- honest errors


def held_out(groups: Mapping[Key, Group], devices: Mapping[str, Device], n_folds: int) -> dict[Key, np.ndarray]:
    """Return predicted over measured of every row by a fit that has not seen its fold, in the groups' row order."""
    ratios = {key: np.full(len(group.rows), np.nan) for key, group in groups.items()}
    for fold in range(n_folds):
        train, test = (
            {key: _part(group, devices, fold, n_folds, out) for key, group in groups.items()} for out in (0, 1)
        )
        fitted = fit({key: group for key, group in train.items() if group.rows})
        for key, group in test.items():
            if group.rows and key in fitted:
                ratios[key][fold::n_folds] = group.predict(fitted[key]) / group.measured_s
    return ratios


def _part(group: Group, devices: Mapping[str, Device], fold: int, n_folds: int, is_test: int) -> Group:
    rows = [row for i, row in enumerate(group.rows) if (i % n_folds == fold) == bool(is_test)]
    return Group(group.key, rows, _predictor(rows, devices[group.key.device]) if rows else group.predict)


def transferred(groups: Mapping[Key, Group], devices: Mapping[str, Device]) -> dict[Key, np.ndarray]:
    """Return predicted over measured of every row from its datasheet and the constants of other devices.

    A kernel is predicted from the same framework, op, variant and precision on the other devices.
    """
    from costmodels.constants import average

    ratios: dict[Key, np.ndarray] = {}
    for name in sorted({key.device for key in groups}):
        fitted = fit({key: group for key, group in groups.items() if key.device != name})
        for key, group in groups.items():
            others = [(devices[k.device], c) for k, c in fitted.items() if k[1:] == key[1:]]
            if key.device == name and others:
                ratios[key] = group.predict(average(devices[name], others)) / group.measured_s
    return ratios


def coverage(groups: Mapping[Key, Group], devices: Mapping[str, Device]) -> dict[str, float]:
    """Return op -> share of rows inside a band that neither they nor the fit's rows made.

    Each third of the rows in turn is fitted, another makes the bands, and the last is counted.
    """
    inside: dict[str, list[np.ndarray]] = defaultdict(list)
    for fold in range(3):
        fitted = fit({k: g for k, g in ((k, _part(g, devices, fold, 3, 1)) for k, g in groups.items()) if g.rows})
        ratios = {k: groups[k].predict(c) / groups[k].measured_s for k, c in fitted.items()}
        bands = _bands({k: r[(fold + 1) % 3 :: 3] for k, r in ratios.items()})
        for key, found in ratios.items():
            counted = 1.0 / found[(fold + 2) % 3 :: 3]
            inside[key.op].append((counted >= bands[key][0]) & (counted <= bands[key][1]))
    return {op: float(np.concatenate(hits).mean()) for op, hits in inside.items()}


def band(ratios: np.ndarray) -> tuple[float, float]:
    """Return the ends that hold :data:`LEVEL` of measured over predicted, for a row like these that was not fitted.

    Ranks are those of split conformal prediction, (n + 1) (1 +- level) / 2; the extremes where rows are few.
    """
    found = np.sort(1.0 / ratios[np.isfinite(ratios)])
    n = len(found)
    if not n:
        return 0.5, 2.0
    below = int(np.floor((n + 1) * (1 - LEVEL) / 2))
    above = int(np.ceil((n + 1) * (1 + LEVEL) / 2))
    return float(min(found[max(below - 1, 0)], 1.0)), float(max(found[min(above, n) - 1], 1.0))


@dataclass(frozen=True)
class Outcome:
    """A table's fit and its errors."""

    entries: Sequence[Entry]
    transfer: Mapping[tuple[str, str], tuple[float, float]]
    scores: Sequence[Score]


def calibrate(rows: Sequence[Measurement], devices: Mapping[str, Device]) -> Outcome:
    """Return constants fitted on all rows, with errors from fits that had not seen the rows they are tested on.

    Args:
        rows: a table.
        devices: by name, all that the rows name.
    """
    groups = groups_of(rows, devices)
    halves, folds = held_out(groups, devices, 2), held_out(groups, devices, 5)
    borrowed = transferred(groups, devices)
    fitted = fit(groups)
    bands = _bands(halves)
    entries = [Entry(key, k, len(groups[key].rows), _error(halves[key]), bands[key]) for key, k in fitted.items()]
    transfer = {}
    for op, precision in sorted({(key.op, p) for key in borrowed for p in (key.precision, "")}):
        mine = [r for key, r in borrowed.items() if key.op == op and precision in ("", key.precision)]
        transfer[op, precision] = band(np.concatenate(mine))
    return Outcome(entries, transfer, _scores(groups, devices, halves, folds, borrowed))


def _bands(ratios: Mapping[Key, np.ndarray]) -> dict[Key, tuple[float, float]]:
    """Return the band of each key: that of its (op, precision) on all devices, or of its op where rows are few."""

    def pooled(key: Key, same: Callable[[Key], Any]) -> np.ndarray:
        return np.concatenate([r for other, r in ratios.items() if same(other) == same(key)])

    found = {}
    for key in ratios:
        near = pooled(key, lambda k: (k.op, k.precision))
        found[key] = band(near if np.isfinite(near).sum() >= 40 else pooled(key, lambda k: k.op))
    return found


def _scores(
    groups: Mapping[Key, Group],
    devices: Mapping[str, Device],
    halves: Mapping[Key, np.ndarray],
    folds: Mapping[Key, np.ndarray],
    borrowed: Mapping[Key, np.ndarray],
) -> list[Score]:
    scores = []
    for device, op, precision in sorted({(k.device, k.op, k.precision) for k in groups}):
        mine = [k for k in groups if (k.device, k.op, k.precision) == (device, op, precision)]
        plain = [
            [made(groups[k], devices[device]) / groups[k].measured_s for k in mine] for made in (roofline_s, fixed_s)
        ]
        scores.append(
            Score(
                device, op, precision, sum(len(groups[k].rows) for k in mine),
                error_ratio=_error(np.concatenate([halves[k] for k in mine])),
                median_ratio=_median(np.concatenate([halves[k] for k in mine])),
                folds_ratio=_error(np.concatenate([folds[k] for k in mine])),
                roofline_ratio=_error(np.concatenate(plain[0])),
                fixed_ratio=_error(np.concatenate(plain[1])),
                transfer_ratio=_error(np.concatenate([borrowed.get(k, np.array([np.nan])) for k in mine])),
            )
        )  # fmt: skip
    return scores


def _error(ratios: np.ndarray) -> float:
    found = ratios[np.isfinite(ratios)]
    return float(np.abs(found - 1).mean()) if len(found) else float("nan")


def _median(ratios: np.ndarray) -> float:
    found = ratios[np.isfinite(ratios)]
    return float(np.median(np.abs(found - 1))) if len(found) else float("nan")
