"""Latency of one kernel on a device, in closed form: work at datasheet speed in, seconds out.

A kernel is described by times that follow from its shape and the datasheet alone (:class:`Work`), and by a dozen
constants of (device, framework, op, precision) that :mod:`costmodels.calibration` fits:

    compute  c = compute_s (1 + block_rows / rows) (misaligned_ratio where its dimensions are odd) / compute_ratio
    memory   m = traffic_s (1 - h + h / cache_gain_ratio) / bandwidth_ratio,  h = 1 / (1 + (fill / cache_fill_ratio)^12)
    work     w = smax(smax(c, m; blend) (1 + tail_ratio / waves), chain_ratio m / waves; 2)
    latency  t = smax(launch_s, w + pass_ratio pass_s; overlap),   smax(a, b; q) = (a^q + b^q)^(1/q)

- *Smooth maximum*: compute and traffic overlap, imperfectly near the ridge. The same form joins launch and work:
  overlap near 1 adds them (the launch is exposed), a large overlap hides the shorter one (the host prepares a chain of
  small kernels while the device works: quantisation outside the product, say).
- *Residency*: a working set that fits the last-level cache is read at cache speed. ``fill`` is the working set over
  the cache; least-recently-used caches let go abruptly, hence the steep h. In a benchmark that repeats one kernel
  the working set is the kernel's; in a model it is everything a pass touches.
- *Waves*: blocks that a kernel splits into, over the processors that run them. On average half of the last wave is
  idle (``tail_ratio`` about 0.5), and a decode kernel whose few sequences and heads do not fill the device is limited
  by what one processor can read (``chain_ratio``: the share of the bandwidth that one processor lacks).
- *Blocks*: tiles on the diagonal of causal attention, and partly filled tiles of experts, are computed whole. Of
  products, ``rows`` are waves of 128 x 128 tiles, and ``block_rows`` the part of a wave that idles at the end.
- *Passes*: traffic that is not overlapped with the product: quantising activations, appending to a quantised cache.

Properties, tested: never faster with more operations, bytes, passes or launch; never slower with more cache; where all
times are a multiple (a power of two), the result is exactly that multiple. What is not there: clocks that fall with
power and temperature, tile shapes chosen per shape, contention with other kernels.

Form after the roofline with smoothed maximum; constants and validation in docs/devices.md.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numba import njit

FIELDS: Final = (
    "launch_s", "compute_ratio", "bandwidth_ratio", "blend_exponent", "overlap_exponent", "cache_gain_ratio",
    "cache_fill_ratio", "pass_ratio", "tail_ratio", "chain_ratio", "block_rows", "misaligned_ratio",
)  # fmt: skip
LAUNCH, COMPUTE, BANDWIDTH, BLEND, OVERLAP, GAIN, FILL, PASS, TAIL, CHAIN, BLOCK, MISALIGNED = range(len(FIELDS))

# Planes of the result of kernel_planes.
BUSY, OVERHEAD, COMPUTE_BOUND, FLOOR, LOW, HIGH = range(6)

# Blocks of attention are 128 queries, a common tile.
QUERY_ROWS: Final = 128.0


class Work(NamedTuple):
    """Kernels by what they do, arrays of one shape.

    Attributes:
        compute_s: operations over the peak of their precision.
        traffic_s: bytes, each operand once, over the memory bandwidth.
        pass_s: bytes of passes that nothing overlaps, over the memory bandwidth.
        waves: independent blocks over processors.
        fill: working set over the last-level cache; infinite where there is none.
        rows: queries, or rows per expert, that blocks are cut from; of products, waves of tiles.
        misaligned: 1 where a dimension does not suit the kernel's loads, else 0.
    """

    compute_s: np.ndarray
    traffic_s: np.ndarray
    pass_s: np.ndarray
    waves: np.ndarray
    fill: np.ndarray
    rows: np.ndarray
    misaligned: np.ndarray


@njit(cache=True)
def smooth_max(a: float, b: float, exponent: float) -> float:
    """Return (a^q + b^q)^(1/q), exact under scaling by powers of two."""
    high, low = max(a, b), min(a, b)
    if low <= 0.0:
        return high
    # exp and log cost half of two powers
    return high * math.exp(math.log1p(math.exp(exponent * math.log(low / high))) / exponent)


@njit(cache=True)
def resident_ratio(fill: float, cache_fill_ratio: float) -> float:
    """Return the part of the traffic that the cache serves."""
    x = fill / cache_fill_ratio
    if x > 1e6:
        return 0.0
    x4 = x * x * x * x
    return 1.0 / (1.0 + x4 * x4 * x4)


@njit(cache=True)
def kernel_seconds(
    compute_s: float, traffic_s: float, pass_s: float, waves: float, fill: float, rows: float, misaligned: float,
    k: np.ndarray,
) -> tuple[float, float, float, float]:  # fmt: skip
    """Return busy time, whole time, compute time and memory time of one kernel with constants ``k``."""
    odd = 1.0 + (k[MISALIGNED] - 1.0) * misaligned
    c = compute_s * (1.0 + k[BLOCK] / rows) * odd / k[COMPUTE]
    h = resident_ratio(fill, k[FILL])
    m = traffic_s * (1.0 - h + h / k[GAIN]) / k[BANDWIDTH]
    work = smooth_max(c, m, k[BLEND]) * (1.0 + k[TAIL] / waves)
    if k[CHAIN] > 0.0:
        chain = k[CHAIN] * m / waves
        high, low = max(work, chain), min(work, chain)
        if high > 0.0:
            work = high * (1.0 + (low / high) * (low / high)) ** 0.5
    busy = work + k[PASS] * pass_s
    return busy, smooth_max(k[LAUNCH], busy, k[OVERLAP]), c, m


@njit(cache=True)
def seconds(work: Work, constants: np.ndarray) -> np.ndarray:
    """Return the latency of kernels that share their constants, shape (n,)."""
    out = np.empty(len(work.compute_s))
    for i in range(len(out)):
        _, out[i], _, _ = kernel_seconds(
            work.compute_s[i], work.traffic_s[i], work.pass_s[i], work.waves[i], work.fill[i], work.rows[i],
            work.misaligned[i], constants,
        )  # fmt: skip
    return out


@njit(cache=True)
def kernel_planes(
    work: Work, row: np.ndarray, share: np.ndarray, constants: np.ndarray, bands: np.ndarray
) -> np.ndarray:
    """Return the planes of kernels with constants each, shape (6, n designs, q kernels).

    Args:
        work: arrays (n, q).
        row: row of ``constants`` and ``bands`` of each, shape (n, q).
        share: part of a launch that each pays, shape (q,); products fused into one kernel share its launch.
        constants: shape (rows, fields).
        bands: (low, high) as ratios to the value, shape (rows, 2).

    Returns:
        BUSY and OVERHEAD, which add up to the latency; COMPUTE_BOUND, 1 where compute takes longer than traffic; FLOOR,
        the roofline at full efficiency (traffic that the cache serves counts nothing); LOW and HIGH, the band's ends.
        All are zero where there is no work.
    """
    n, q = work.compute_s.shape
    out = np.zeros((6, n, q))
    own = np.empty(constants.shape[1])
    for i in range(n):
        for j in range(q):
            if work.compute_s[i, j] <= 0.0 and work.traffic_s[i, j] <= 0.0:
                continue
            at = row[i, j]
            for f in range(len(own)):
                own[f] = constants[at, f]
            own[LAUNCH] *= share[j]
            busy, whole, c, m = kernel_seconds(
                work.compute_s[i, j], work.traffic_s[i, j], work.pass_s[i, j], work.waves[i, j], work.fill[i, j],
                work.rows[i, j], work.misaligned[i, j], own,
            )  # fmt: skip
            from_memory = work.traffic_s[i, j] * (1.0 - resident_ratio(work.fill[i, j], own[FILL]))
            out[BUSY, i, j], out[OVERHEAD, i, j] = busy, whole - busy
            out[COMPUTE_BOUND, i, j] = 1.0 if c >= m else 0.0
            out[FLOOR, i, j] = max(work.compute_s[i, j], from_memory)
            out[LOW, i, j], out[HIGH, i, j] = bands[at, 0] * whole, bands[at, 1] * whole
    return out
