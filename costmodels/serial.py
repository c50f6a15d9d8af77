"""The mode ``scalesim`` for whole models: products take the cycles and the DRAM words that SCALE-Sim counts.

Everything but the matrix products - vector work, cache, energy per event, area, memory - is that of the physical mode
(:mod:`costmodels.accelerator`). A product takes the longer of

- the tool's compute cycles, folds one after the other, filled and drained each time (:mod:`costmodels.scalesim`);
- its DRAM bytes over the bandwidth: the tool's words, each at the width of its operand. This is *not* what the tool
  computes: its CALC mode has no stalls, and the stalls of its USER mode are those of a prefetcher that reads words it
  does not need. Without a bound by bandwidth a decode pass would look a hundred times too fast.

Choices where the tool has no counterpart:

- on-chip memory is split in three equal buffers; a buffer holds as many words as its operand's stored width allows,
  results at 16 bits, or at accumulator width where folds along k leave partial sums;
- results cross to DRAM at 16 bits, partial sums at accumulator width, written and not read back, as in the tool;
- operand widths change bytes and energy, never cycles; tiles and loop order have no effect, the tool's folds stand for
  both;
- several cores share the folds of products out among them; the tool has one array;
- results read from and written to on-chip memory are counted once each, without the R + C per fold that the tool adds
  for output-stationary arrays.

So less time or traffic does not follow from more on-chip memory or fewer bits (a buffer that is flushed when full may
be flushed at a worse moment), and the laws that say so are not declared.
"""

from __future__ import annotations

import numpy as np

from costmodels.accelerator import AcceleratorEvaluator
from costmodels.chip import Chip
from costmodels.products import A_BITS, B_BITS, B_BYTES, COUNT, K, M, N
from costmodels.scalesim import N_SETS, count, fold
from costmodels.systolic import (
    A_MOVED,
    ACCUMULATOR_BYTES,
    B_MOVED,
    CYCLES,
    LIVE_BYTES,
    MACS,
    O_MOVED,
    OUTPUT_STATIONARY,
    PLAIN_BYTES,
    SCALED_MACS,
    SRAM_READ_BITS,
    SRAM_WRITE_BITS,
    TILE_BYTES,
)

N_BUFFERS = 3

LAWS = frozenset(
    {"more_bandwidth_never_costs_time", "time_scales_with_time", "breakdown_adds_up", "traffic_at_least_compulsory"}
)


class SerialEvaluator(AcceleratorEvaluator):
    """The analytical model in its mode ``scalesim``, for one problem on an accelerator template."""

    def run_products(self, sizes: np.ndarray, chip: Chip) -> np.ndarray:
        """Return what products do on their chips: the planes of :func:`costmodels.systolic.run_products`."""
        m, n, k, times = sizes[M], sizes[N], sizes[K], sizes[COUNT]
        arrays = chip.arrays
        rows, cols, stays, cores = (a[:, None] for a in (arrays.rows, arrays.cols, arrays.stays, arrays.cores))
        a_bytes, b_bytes = sizes[A_BITS] / 8.0, sizes[B_BYTES] / (k * n)
        folds = fold(m, n, k, rows, cols, stays)
        has_partial_sums = (stays != OUTPUT_STATIONARY) & (folds.rows > 1.0)
        o_bytes = np.where(has_partial_sums, ACCUMULATOR_BYTES, PLAIN_BYTES)
        # Fewer than one word per set is no buffer: the design is infeasible, and costed as if there were one.
        words = [
            np.maximum(np.floor(chip.sram_bytes[:, None] / N_BUFFERS / wide), N_SETS)
            for wide in (a_bytes, b_bytes, o_bytes)
        ]
        c = count(m, n, k, rows, cols, stays, words[0], words[1], words[2])
        a_moved, b_moved = c.a_dram_reads * a_bytes, c.b_dram_reads * b_bytes
        o_moved = m * n * PLAIN_BYTES + (c.o_dram_writes - m * n) * ACCUMULATOR_BYTES
        macs = m * n * k
        o_on_chip = m * n * PLAIN_BYTES + (c.o_logical_writes - m * n) * ACCUMULATOR_BYTES
        rounds = np.ceil(times * folds.rows * folds.cols / cores)
        out = np.empty((10, *np.broadcast_shapes(m.shape, rows.shape)))
        # One cycle less per product, as the tool reports it.
        out[CYCLES] = rounds * folds.cycles - np.maximum(times / cores, 1.0)
        out[A_MOVED], out[B_MOVED], out[O_MOVED] = times * a_moved, times * b_moved, times * o_moved
        out[SRAM_READ_BITS] = 8.0 * times * (c.a_sram_reads * a_bytes + c.b_sram_reads * b_bytes + o_moved)
        out[SRAM_WRITE_BITS] = 8.0 * times * (a_moved + b_moved + o_on_chip)
        out[MACS], out[SCALED_MACS] = times * macs, times * macs * sizes[A_BITS] * sizes[B_BITS] / 64.0
        out[TILE_BYTES] = N_BUFFERS * N_SETS * np.maximum(np.maximum(a_bytes, b_bytes), o_bytes)
        out[LIVE_BYTES] = times * (m * k * a_bytes + m * n * PLAIN_BYTES)
        return np.where(times > 0.0, out, 0.0)
