"""From one technology node and supply voltage to another, for logic, by a published rule.

    energy  E(node, V) ~ a2 V^2 + a1 V + a0        per node, fitted to circuit simulation, 180 to 7 nm
    area    ratios between nodes

Source: Stillmaker, Baas, "Scaling equations for the accurate prediction of CMOS device performance from 180 nm to
7 nm", Integration 58 (2017) 74-81; coefficients and ratios as tabulated in the repository wromaszkan/nodeScale
(nodeScale.py), its example checked against the article's corrigendum (1 pJ at 65 nm and 1.3 V is 0.1755 pJ at HP 32 nm
and 0.9 V). Nodes of 45 nm and below come as high-performance (hp) and low-power (lp) processes. Ratios of area have two
digits.

The rule covers logic. It does not cover on-chip memory, leakage or interfaces, whose constants are refused away from
their node, nor DRAM, which is another chip and stays at its own.
"""

from __future__ import annotations

from typing import Final

from dse.errors import HardwareError

PROCESSES: Final = ("hp", "lp")

# (a2, a1, a0) of the energy factor.
_PLANAR: Final = {
    180: (0.0, 24.64, -17.98),
    130: (7.171, -6.709, 2.904),
    90: (4.762, -4.781, 2.092),
    65: (3.755, -4.398, 1.975),
}
_BY_PROCESS: Final = {
    "hp": {
        45: (1.018, -0.3107, 0.1539),
        32: (0.8367, -0.4341, 0.1701),
        20: (0.373, -0.1582, 0.04104),
        16: (0.2958, -0.1241, 0.03024),
        14: (0.2363, -0.09675, 0.02239),
        10: (0.2068, -0.09311, 0.02375),
        7: (0.1776, -0.09097, 0.02447),
    },
    "lp": {
        45: (1.103, -0.362, 0.2767),
        32: (0.9559, -0.7823, 0.471),
        20: (0.2632, -0.14, 0.06841),
        16: (0.2139, -0.1187, 0.05639),
        14: (0.1556, -0.06472, 0.03066),
        10: (0.1261, -0.0518, 0.02769),
        7: (0.09365, -0.03409, 0.02043),
    },
}

# Area of the same circuit, relative to 7 nm.
_AREAS: Final = {
    180: 320.0, 130: 110.0, 90: 48.0, 65: 25.0, 45: 17.0, 32: 7.8, 20: 3.6, 16: 3.2, 14: 2.9, 10: 1.7, 7: 1.0,
}  # fmt: skip


def energy_factor(node_nm: float, voltage_v: float, process: str, where: str) -> float:
    """Return the energy of a switching event relative to the rule's unit.

    Args:
        node_nm: one of the rule's nodes.
        voltage_v: supply, where the polynomial is positive and rising.
        process: "hp" or "lp"; no matter above 45 nm.
        where: the constant, for the message.

    Raises:
        HardwareError: outside the rule.
    """
    table = _PLANAR | _BY_PROCESS[process]
    if node_nm not in table:
        raise HardwareError(f"{where}: the scaling rule has no node of {node_nm:g} nm", f"it has {_listing(table)}")
    square, linear, fixed = table[int(node_nm)]
    factor = (square * voltage_v + linear) * voltage_v + fixed
    if factor <= 0 or 2 * square * voltage_v + linear <= 0:
        raise HardwareError(f"{where}: {voltage_v:g} V is below what the scaling rule covers at {node_nm:g} nm")
    return factor


def area_factor(node_nm: float, where: str) -> float:
    """Return the area of a circuit relative to its area at 7 nm.

    Raises:
        HardwareError: not one of the rule's nodes.
    """
    if node_nm not in _AREAS:
        raise HardwareError(f"{where}: the scaling rule has no node of {node_nm:g} nm", f"it has {_listing(_AREAS)}")
    return _AREAS[int(node_nm)]


def _listing(nodes: dict[int, tuple[float, float, float]] | dict[int, float]) -> str:
    return ", ".join(f"{node}" for node in nodes) + " nm"
