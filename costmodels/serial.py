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

from dataclasses import dataclass

import numpy as np

from costmodels.accelerator import AcceleratorEvaluator
from costmodels.chip import Chip
from costmodels.passes import ARRAY_S, N_PLANES, TRAFFIC_S
from costmodels.products import A_BITS, B_BYTES, COUNT, K, M, N
from costmodels.scalesim import N_SETS, count, fold
from costmodels.systolic import ACCUMULATOR_BYTES, OUTPUT_STATIONARY, PLAIN_BYTES, cycles_per_mac
from costmodels.tables import Gemms
from costmodels.totals import (
    ACTIVATION_BYTES,
    ELEMENT_CYCLES,
    KV_BYTES,
    LIVE_BYTES,
    MACS,
    N_TOTALS,
    SECONDS,
    SRAM_READ_BITS,
    SRAM_WRITE_BITS,
    TILE_BYTES,
    WEIGHT_BYTES,
)

N_BUFFERS = 3

LAWS = frozenset(
    {"more_bandwidth_never_costs_time", "time_scales_with_time", "breakdown_adds_up", "traffic_at_least_compulsory"}
)


@dataclass(frozen=True)
class SerialProducts:
    """What products do as SCALE-Sim counts them, all ``count`` of a product together, shape (n, j) each.

    Attributes:
        cycles: of the array.
        a_moved, b_moved, o_moved: bytes that cross to DRAM.
        sram_read_bits, sram_write_bits: on-chip traffic.
        least_bytes: on-chip memory that the smallest buffers take.
        live_bytes: bytes of operands and results.
    """

    cycles: np.ndarray
    a_moved: np.ndarray
    b_moved: np.ndarray
    o_moved: np.ndarray
    sram_read_bits: np.ndarray
    sram_write_bits: np.ndarray
    least_bytes: np.ndarray
    live_bytes: np.ndarray


def serial_products(sizes: np.ndarray, chip: Chip) -> SerialProducts:
    """Return what products do on their chips.

    Args:
        sizes: as :func:`costmodels.products.size_products` returns them, shape (9, n, j).
        chip: hardware of each design.
    """
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
    o_on_chip = m * n * PLAIN_BYTES + (c.o_logical_writes - m * n) * ACCUMULATOR_BYTES
    rounds = np.ceil(times * folds.rows * folds.cols / cores)
    runs = times > 0.0
    least = N_BUFFERS * N_SETS * np.maximum(np.maximum(a_bytes, b_bytes), o_bytes)
    return SerialProducts(
        # One cycle less per product, as the tool reports it.
        cycles=np.where(runs, rounds * folds.cycles - np.maximum(times / cores, 1.0), 0.0),
        a_moved=times * a_moved,
        b_moved=times * b_moved,
        o_moved=times * o_moved,
        sram_read_bits=8.0 * times * (c.a_sram_reads * a_bytes + c.b_sram_reads * b_bytes + o_moved),
        sram_write_bits=8.0 * times * (a_moved + b_moved + o_on_chip),
        least_bytes=np.where(runs, least, 0.0),
        live_bytes=times * (m * k * a_bytes + m * n * PLAIN_BYTES),
    )


class SerialEvaluator(AcceleratorEvaluator):
    """The analytical model in its mode ``scalesim``, for one problem on an accelerator template."""

    can_fuse = False

    def run_products(self, g: Gemms, chip: Chip, with_planes: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return totals and planes of a pass; see :class:`~costmodels.accelerator.AcceleratorEvaluator`."""
        del with_planes  # they are made in any case
        sizes = g.planes
        ran = serial_products(sizes, chip)
        moved = ran.a_moved + ran.b_moved + ran.o_moved
        array_s, traffic_s = ran.cycles / chip.freq_hz, moved / chip.dram_bytes_per_s
        macs = sizes[COUNT] * sizes[M] * sizes[N] * sizes[K]
        planes = np.zeros((N_PLANES, *moved.shape))
        planes[SECONDS] = np.maximum(array_s, traffic_s)
        planes[WEIGHT_BYTES] = ran.b_moved * g.is_weight
        planes[KV_BYTES] = ran.b_moved * (~g.is_weight & g.is_cached)
        planes[ACTIVATION_BYTES] = moved - planes[WEIGHT_BYTES] - planes[KV_BYTES]
        planes[MACS], planes[ELEMENT_CYCLES] = macs, macs * cycles_per_mac(sizes, chip.arrays.is_scalable)
        planes[SRAM_READ_BITS], planes[SRAM_WRITE_BITS] = ran.sram_read_bits, ran.sram_write_bits
        is_bound = array_s >= traffic_s
        planes[ARRAY_S], planes[TRAFFIC_S] = np.where(is_bound, array_s, 0.0), np.where(is_bound, 0.0, traffic_s)
        totals = np.zeros((N_TOTALS, len(moved)))
        for plane in range(SRAM_WRITE_BITS + 1):
            totals[plane] = planes[plane].sum(axis=1)
        totals[LIVE_BYTES], totals[TILE_BYTES] = ran.live_bytes.max(axis=1), ran.least_bytes.max(axis=1)
        return totals, planes
