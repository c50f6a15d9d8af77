"""The accelerator's hardware fields as arrays, and what its constants make of counts: area and energy.

    mac(a, b) = mac_j e(a, b)              in an array of fixed 8-bit elements
                mac_j mac_scalable e(a, b)  in one of scalable elements
    sram(S)   = sram_j (S / anchor)^exponent

with e(a, b) the cycles of an element that one multiply-accumulate takes (:func:`costmodels.systolic.element_cycles`):

    a x b            2 x 2   4 x 4   2 x 8   8 x 8   8 x 16   16 x 16
    fixed              1       1       1       1       2        4
    scalable         1/16     1/4     1/4      1       2        4

An element costs the same in every cycle, whatever its mode. A fixed one therefore saves nothing on narrow operands
(what gated upper bits would save is not sourced and left out), and a scalable one pays ``mac_scalable`` for its
shifters and adders in every cycle. Synthesised at 45 nm, elements built for one width cost, relative to 8 x 8: 2 x 2
0.20, 4 x 4 0.41, 16 x 16 2.96 (Bit Fusion's published synthesis, see the constant); a scalable one by this law 0.14,
0.56, 9.0.

Every figure comes three times: with all constants at their value, at the low, and at the high end of their bands.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from costmodels.systolic import INPUT_STATIONARY, OUTPUT_STATIONARY, WEIGHT_STATIONARY, Chips
from dse.designs import DesignBatch
from dse.hardware import Accelerator

ENDS: Final = ("value", "low", "high")


@dataclass(frozen=True)
class Events:
    """Counts that energy is made of, of any broadcastable shape.

    Attributes:
        macs: multiply-accumulates.
        element_cycles: cycles that elements of the arrays are busy.
        vector_ops: elementary operations of the vector unit.
        sram_read_bits, sram_write_bits: on-chip traffic.
        dram_bits: DRAM traffic.
    """

    macs: np.ndarray
    element_cycles: np.ndarray
    vector_ops: np.ndarray
    sram_read_bits: np.ndarray
    sram_write_bits: np.ndarray
    dram_bits: np.ndarray

    @classmethod
    def none(cls, n: int) -> Events:
        """Return no events of n designs."""
        return cls(*(np.zeros(n) for _ in fields(cls)))

    def plus(self, other: Events, times: float) -> Events:
        """Return these events and ``times`` the others."""
        return Events(*(getattr(self, f.name) + times * getattr(other, f.name) for f in fields(self)))


class Chip:
    """The hardware fields of a batch of designs, shape (n, 1) each, and the constants."""

    def __init__(self, hardware: Accelerator, batch: DesignBatch) -> None:
        self._constants = hardware.constants

        def column(name: str) -> np.ndarray:
            return np.ascontiguousarray(batch[name], dtype=np.float64)

        self.freq_hz, self.lanes = column("freq_hz")[:, None], column("vector_lanes")[:, None]
        self.dram_bytes_per_s, self.sram_bytes = column("dram_bytes_per_s")[:, None], column("sram_bytes")
        self.attn_tile_q, self.attn_tile_kv = column("attn_tile_q"), column("attn_tile_kv")
        order, dataflow = batch["loop_order"], batch["dataflow"]
        at = {axis: np.char.find(order, axis).astype(np.float64) for axis in "mnk"}
        at = {axis: np.where(order == "auto", -1.0, position) for axis, position in at.items()}
        stays = np.where(
            dataflow == "os", OUTPUT_STATIONARY, np.where(dataflow == "is", INPUT_STATIONARY, WEIGHT_STATIONARY)
        )
        self.arrays = Chips(
            rows=column("pe_rows"), cols=column("pe_cols"), cores=column("n_cores"), stays=stays.astype(np.int64),
            is_scalable=(batch["mac_array"] == "scalable").astype(np.int64),
            tile_m=column("tile_m"), tile_n=column("tile_n"), tile_k=column("tile_k"),
            at_m=at["m"], at_n=at["n"], at_k=at["k"],
            sram_bytes=self.sram_bytes, freq_hz=self.freq_hz[:, 0], dram_bytes_per_s=self.dram_bytes_per_s[:, 0],
        )  # fmt: skip

    def constant(self, name: str, end: str) -> float:
        """Return the value, or the low or high end, of a constant."""
        return float(getattr(self._constants[name], end))

    def area_parts(self, end: str) -> dict[str, np.ndarray]:
        """Return the area by part, shape (n,) each."""
        a = self.arrays
        elements = a.rows * a.cols * a.cores
        element = np.where(a.is_scalable == 1, self.constant("pe_scalable_area_ratio", end), 1.0)
        return {
            "array": elements * element * self.constant("pe_mm2_per_unit", end),
            "vector unit": self.lanes[:, 0] * self.constant("vector_lane_mm2_per_unit", end),
            "on-chip memory": self.sram_bytes * self.constant("sram_mm2_per_byte", end),
            "interface": self.dram_bytes_per_s[:, 0] * self.constant("phy_mm2_per_unit", end),
        }

    def area(self, end: str) -> np.ndarray:
        """Return the area, shape (n,)."""
        return np.sum(list(self.area_parts(end).values()), axis=0)

    def sram_scale(self, end: str) -> np.ndarray:
        """Return the on-chip energy relative to the anchor size, shape (n,)."""
        size = self.sram_bytes / self.constant("sram_anchor_bytes", "value")
        ends = [size ** self.constant("sram_energy_exponent", e) for e in ENDS]
        return ends[0] if end == "value" else np.minimum(*ends[1:]) if end == "low" else np.maximum(*ends[1:])

    def energy_parts(self, events: Events, end: str) -> dict[str, np.ndarray]:
        """Return the energy of events by part, in their shape.

        Args:
            events: counts, shape (n,) or (n, j).
            end: "value", "low" or "high".
        """
        scale, element = self.sram_scale(end), self._element_j(end)
        if events.sram_read_bits.ndim == 2:
            scale, element = scale[:, None], element[:, None]
        return {
            "compute": element * events.element_cycles + self.constant("vector_j_per_op", end) * events.vector_ops,
            "on-chip memory": scale
            * (
                self.constant("sram_read_j_per_bit", end) * events.sram_read_bits
                + self.constant("sram_write_j_per_bit", end) * events.sram_write_bits
            ),
            "dram": self.constant("dram_j_per_bit", end) * events.dram_bits,
        }

    def _element_j(self, end: str) -> np.ndarray:
        """Return the energy of a busy cycle of an element, shape (n,)."""
        ratio = np.where(self.arrays.is_scalable == 1, self.constant("mac_scalable_energy_ratio", end), 1.0)
        return ratio * self.constant("mac_j_per_op", end)

    def energy(self, events: Events, end: str) -> np.ndarray:
        """Return the energy of events without leakage, in their shape."""
        parts = self.energy_parts(events, end)
        return parts["compute"] + parts["on-chip memory"] + parts["dram"]

    def leakage_w(self, end: str) -> np.ndarray:
        """Return the leakage power of the whole area, shape (n,)."""
        return self.constant("leakage_w_per_mm2", end) * self.area(end)
