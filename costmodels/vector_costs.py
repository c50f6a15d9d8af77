"""What an element costs that a vector operator writes: elementary operations, elements read, elements written.

Counted by hand. Softmax finds the maximum by compares, subtracts it, takes the exponential, sums, divides. A norm
squares, sums, scales, multiplies by its weight. A rotation multiplies twice and adds. SiLU and GELU are an exponential,
an addition, a division and a product. Residuals and gates read two operands. Routing is a softmax over the experts.
Look-ups and pooling move data. Exponential and division count as one operation each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from costmodels.products import PLAIN_BITS
from dse.model import OpKind


@dataclass(frozen=True, slots=True)
class VectorCost:
    """Elementary operations, elements read and elements written per element of the result."""

    ops: float
    reads: float
    writes: float


VECTOR_COSTS: Final[Mapping[OpKind, VectorCost]] = {
    OpKind.SOFTMAX: VectorCost(5, 1, 1),
    OpKind.NORM: VectorCost(4, 1, 1),
    OpKind.ROPE: VectorCost(3, 1, 1),
    OpKind.ACTIVATION: VectorCost(4, 1, 1),
    OpKind.MULTIPLY: VectorCost(1, 2, 1),
    OpKind.ADD: VectorCost(1, 2, 1),
    OpKind.EMBED: VectorCost(0, 1, 1),
    OpKind.ROUTE: VectorCost(5, 1, 1),
    OpKind.POOL: VectorCost(1, 1, 1),
}


@dataclass(frozen=True)
class VectorCoefficients:
    """Cost of an element of each vector group, shape (g,).

    Attributes:
        ops: elementary operations.
        moved_bytes: bytes read and written at 16 bits.
    """

    ops: np.ndarray
    moved_bytes: np.ndarray

    @classmethod
    def of(cls, labels: Sequence[tuple[str, OpKind]]) -> VectorCoefficients:
        """Return the coefficients of groups labelled (component, kind)."""
        costs = [VECTOR_COSTS[kind] for _, kind in labels]
        moved = [(c.reads + c.writes) * PLAIN_BITS / 8 for c in costs]
        return cls(np.array([c.ops for c in costs]), np.array(moved))
