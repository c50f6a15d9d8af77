"""Energy of a device from what it computes and moves: idle power, operations, memory traffic, at most its board power.

    E = idle P T + compute P C + 8 dram B,    at most P T

P is the board power of all devices, T the latency, C the seconds that all operations take at the peak of their
precision, B the bytes moved. An operation's energy follows from the board power over the peak, so narrow operands
cost as much less as they are faster. The ends of the interval take the low and the high constants with the low and
the high latency.

Where the constants come from (shares of the board power; joule per bit):

- idle 0.15 (0.08 ... 0.37): 80 W of an H200's 700 W before a load (api.serialalice.pt/alice-benchmark), 15 % in
  nemulai.com/blog/gpu-electricity-cost-per-training-run, 147 W of an A100's 400 W with its memory in use (A. Bains'
  white paper of May 2026, news.chathome.org).
- compute 0.6 (0.3 ... 0.9) of the board power while computing at peak: recalled; idle and memory take the rest.
- dram 6.25e-12 (3.2e-12 ... 11.7e-12): HBM2, the span of DRAMs from HBM4 to the DRAM of ZigZag's cost table
  (hwcomponents-cacti 1.0.40; zigzag-dse 3.9.1). The type of a device's memory is not in the catalogue.

Compare: vLLM on one H200 draws 517 W at batch 128, an H100 267-680 W over eight models and five batch sizes
(api.serialalice.pt/alice-benchmark, a vendor of certificates; prompt lengths not given, so not fitted to).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

BITS: Final = 8.0


class Band(NamedTuple):
    """A constant and its band."""

    low: float
    value: float
    high: float


IDLE_RATIO: Final = Band(0.08, 0.15, 0.37)
COMPUTE_RATIO: Final = Band(0.3, 0.6, 0.9)
DRAM_J_PER_BIT: Final = Band(3.2e-12, 6.25e-12, 11.7e-12)


def energy_j(
    power_w: np.ndarray, compute_s: np.ndarray, moved_bytes: np.ndarray,
    times: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Return low end, value and high end of the energy of a batch of requests, arrays (n,).

    Args:
        power_w: board power of all devices.
        compute_s: seconds that all operations take at peak if the devices share them evenly.
        moved_bytes: memory traffic of all devices.
        times: low end, value and high end of the latency.
    """
    ends = []
    for end, time in enumerate(times):
        drawn = IDLE_RATIO[end] * power_w * time + COMPUTE_RATIO[end] * power_w * compute_s
        ends.append(np.minimum(drawn + BITS * DRAM_J_PER_BIT[end] * moved_bytes, power_w * time))
    low, value, high = ends
    return np.minimum(low, value), value, np.maximum(high, value)
