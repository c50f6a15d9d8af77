"""What runs on the simulated machine without tiles: vector work in chunks, and folds one after the other; compiled.

Vector work. Chunks of an eighth of on-chip memory or less, at least eight of them where there is work for all lanes;
two buffers in, two out.

Serial folds. SCALE-Sim's way to count: no overlap, DRAM never late.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from costmodels.machine import (
    ARRAY,
    AT_DONE,
    AT_X,
    N_STEPS,
    N_TIMES,
    PORT,
    READ,
    RELEASED,
    UNIT,
    VECTOR,
    WRITE,
    WRITE_WAIT_S,
    Log,
    is_periodic,
    move,
    restart,
    skip,
    spare,
    work,
)  # fmt: skip
from costmodels.products import ceil
from costmodels.systolic import INPUT_STATIONARY, OUTPUT_STATIONARY
from costmodels.tilesim import WORTH_SKIPPING, Array

LEAST_CHUNKS: Final = 8.0
CHUNKS_IN_MEMORY: Final = 8.0


@njit(cache=True)
def run_chunks(
    seconds: float, read_bytes: float, write_bytes: float, elements: float, lanes: float, a: Array,
    log: Log, op: int, at: float, t: np.ndarray, kept: np.ndarray, sums: np.ndarray,
) -> float:  # fmt: skip
    """Run vector work on an idle machine and return the seconds until its last result is written.

    Args:
        seconds: time in the lanes, all of it.
        read_bytes, write_bytes: what it moves.
        elements, lanes: elements that it writes, and how many at a time.
        a: whose memory it runs on.
        log, op, at, t, kept, sums: as for :func:`run_tiles`.
    """
    n = max(
        ceil((read_bytes + write_bytes) / (a.sram_bytes / CHUNKS_IN_MEMORY)), min(LEAST_CHUNKS, ceil(elements / lanes))
    )
    chunks, bandwidth, before = int(n), a.dram_bytes_per_s, kept[0]
    restart(t, at)
    t[AT_X] = move(t, sums, log, op, READ, at, read_bytes / n, bandwidth)
    i = 0
    while i < chunks:
        # AT_DONE and its neighbour: when the results of the last chunk, and of the one before it, are written.
        ended = work(t, sums, log, op, VECTOR, t[AT_X], t[AT_DONE + 1], seconds / n)
        sums[N_STEPS] += 1.0
        if i + 1 < chunks:
            t[AT_X] = move(t, sums, log, op, READ, t[RELEASED], read_bytes / n, bandwidth)
        else:
            spare(t, sums, log, op, ended)
        t[AT_DONE + 1] = t[AT_DONE]
        t[AT_DONE] = move(t, sums, log, op, WRITE, ended, write_bytes / n, bandwidth)
        t[RELEASED] = ended
        if log.moved_bytes.shape[1] == 0 and chunks >= WORTH_SKIPPING:
            if 2 <= i < chunks - 3 and is_periodic(t, before, 2):
                skip(t, sums, before[:N_TIMES], before[N_TIMES:], float(chunks - 3 - i))
                i = chunks - 3
            elif i >= 1:
                before[:N_TIMES] = t
                before[N_TIMES:] = sums
        i += 1
    sums[WRITE_WAIT_S] += t[PORT] - t[UNIT]
    return t[PORT] - at


@njit(cache=True)
def run_serial(
    m: float, n: float, k: float, rows: float, cols: float, stays: int, t: np.ndarray, sums: np.ndarray, log: Log
) -> float:
    """Return the cycles of a product fold by fold, each filled, streamed and drained before the next one starts.

    This is how SCALE-Sim counts; as there, DRAM never makes a fold wait, and the number of the last cycle is reported,
    counted from 0.
    """
    is_os, is_is = stays == OUTPUT_STATIONARY, stays == INPUT_STATIONARY
    along, across = ceil((m if is_os else k) / rows), ceil((m if is_is else n) / cols)
    streamed = k if is_os else n if is_is else m
    restart(t, 0.0)
    for _ in range(int(across)):
        for _ in range(int(along)):
            loaded = t[UNIT] if stays == OUTPUT_STATIONARY else work(t, sums, log, 0, ARRAY, t[UNIT], t[UNIT], rows)
            through = work(t, sums, log, 0, ARRAY, loaded, loaded, streamed)
            work(t, sums, log, 0, ARRAY, through, through, rows + cols - 2.0)
            sums[N_STEPS] += 1.0
    return t[UNIT] - 1.0
