"""Rows of the totals of a pass, shape (11, n), which products and fused groups add to."""

from __future__ import annotations

from typing import Final

# The last is the vector work of fused groups.
(
    SECONDS, WEIGHT_BYTES, KV_BYTES, ACTIVATION_BYTES, MACS, ELEMENT_CYCLES, SRAM_READ_BITS, SRAM_WRITE_BITS,
    LIVE_BYTES, TILE_BYTES, GROUP_VECTOR_OPS,
) = range(11)  # fmt: skip
N_TOTALS: Final = 11
