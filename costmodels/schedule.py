"""What a design executes, as arrays: the schedule that the analytical model costs, for simulators and inspection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """One pass of a phase for a batch of designs.

    Attributes:
        phase: "encode", "prefill" or "decode".
        products: rows as in :mod:`costmodels.passes` (tiles, order, cycles, bytes per operand, on-chip bytes; bytes and
            cycles of all ``count`` of a product together), shape (21, n, products); all zero for products that run in
            a group or not at all. Products stand in the order of the graph's matrix products.
        groups: rows as in :mod:`costmodels.groups` (seconds, bytes read and written, array cycles, vector operations,
            row tile or block of query positions, key tile, on-chip bytes), shape (17, n, operators), at the operator
            that leads the group; all zero elsewhere.
        group_of: leader of the group that each operator runs in, itself where it runs alone, shape (n, operators).
        vector_elements: elements that vector work outside groups writes, by vector group, shape (n, groups).
    """

    phase: str
    products: np.ndarray
    groups: np.ndarray
    group_of: np.ndarray
    vector_elements: np.ndarray
