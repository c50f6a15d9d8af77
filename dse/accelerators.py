"""Templates of accelerators that are still being designed.

The *reference design* gives every field that a design may change (array, cores, on-chip memory, bandwidth, clock,
tiles), and *constants* give energy and area per event or unit, each with technology node, source and a band. A constant
whose source could not be read is marked ``recalled`` and its band spans at least a factor 2; the band shows in the
results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from dse import technology
from dse.canonical import content_hash
from dse.descriptions import check_keys, check_sources, positive, read_number, read_sources, read_text
from dse.errors import HardwareError
from dse.knobs import KNOBS
from dse.params import Value

ACCELERATOR_FIELDS: Final = (
    "pe_rows", "pe_cols", "n_cores", "dataflow", "sram_bytes", "dram_bytes_per_s", "freq_hz", "vector_lanes",
    "mac_array", "tile_m", "tile_n", "tile_k", "loop_order",
)  # fmt: skip

# What templates may leave out: then the knob's own default holds.
OPTIONAL_FIELDS: Final = ("attn_tile_q", "attn_tile_kv")

# How a constant follows its template to another node: by the rule for logic, not at all because the rule does not cover
# it, or left alone because it belongs to no node (ratios, sizes) or to another chip (DRAM).
LOGIC_ENERGY: Final = ("mac_j_per_op", "vector_j_per_op")
LOGIC_AREA: Final = ("pe_mm2_per_unit", "vector_lane_mm2_per_unit")
AT_THEIR_NODE: Final = (
    "sram_read_j_per_bit", "sram_write_j_per_bit", "sram_mm2_per_byte", "leakage_w_per_mm2", "phy_mm2_per_unit",
)  # fmt: skip

CONSTANTS: Final = (
    "mac_j_per_op", "mac_scalable_energy_ratio", "vector_j_per_op", "sram_read_j_per_bit", "sram_write_j_per_bit",
    "sram_anchor_bytes", "sram_energy_exponent", "dram_j_per_bit", "leakage_w_per_mm2",
    "pe_mm2_per_unit", "pe_scalable_area_ratio", "vector_lane_mm2_per_unit", "sram_mm2_per_byte", "phy_mm2_per_unit",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Constant:
    """One energy or area constant: value and band in SI units, at a technology node and supply voltage, its source.

    A constant of logic that was read at another node than its template's stands here as scaled to it.
    """

    value: float
    low: float
    high: float
    node_nm: float
    voltage_v: float
    source: str
    recalled: bool


@dataclass(frozen=True)
class Accelerator:
    """An accelerator template.

    Attributes:
        name: catalogue name.
        title: name as people write it.
        reference: value of every field that a design may change.
        constants: energy and area constants by name.
        memory_bytes: DRAM capacity.
        node_nm, voltage_v, process: technology that it is built in, "hp" or "lp".
        document: the TOML it was read from.
    """

    name: str
    title: str
    reference: Mapping[str, Value]
    constants: Mapping[str, Constant]
    memory_bytes: int
    node_nm: float
    voltage_v: float
    process: str
    document: Mapping[str, Any] = field(repr=False)

    @cached_property
    def content_hash(self) -> str:
        """Hash of everything the file says."""
        return content_hash(self.document)

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON types."""
        return dict(self.document)


def read_accelerator(document: Mapping[str, Any], where: str) -> Accelerator:
    """Return the template that a document describes; ``where`` names it in messages.

    Raises:
        HardwareError: a field or constant is missing, unknown, malformed, without a source, or of the wrong node.
    """
    check_keys(document, {"type", "name", "title", "note", "memory_bytes", "node_nm", "voltage_v", "process",
                           "reference", "constants", "source"}, where)  # fmt: skip
    reference = document.get("reference", {})
    check_keys(reference, {*ACCELERATOR_FIELDS, *OPTIONAL_FIELDS}, f"{where} [reference]")
    missing = [f for f in ACCELERATOR_FIELDS if f not in reference]
    if missing:
        raise HardwareError(f"{where}: [reference] lacks {', '.join(missing)}")
    constants = document.get("constants", {})
    check_keys(constants, set(CONSTANTS), f"{where} [constants]")
    missing = [c for c in CONSTANTS if c not in constants]
    if missing:
        raise HardwareError(f"{where}: [constants] lacks {', '.join(missing)}")
    check_sources(["memory_bytes", "reference", "node_nm", "voltage_v"], read_sources(document, where), where)
    node_nm, voltage_v = (positive(document.get(key), key, where) for key in ("node_nm", "voltage_v"))
    process = _process(document, where)
    found = {}
    for name in CONSTANTS:
        place = f"{where} [constants.{name}]"
        read = _constant(constants[name], place)
        found[name] = _at_node(
            name, read, _process(constants[name], place, process), (node_nm, voltage_v, process), place
        )
    return Accelerator(
        name=read_text(document, "name", where),
        title=read_text(document, "title", where),
        reference={
            f: KNOBS[f].read(reference.get(f, KNOBS[f].default), f"{where}: {f}")
            for f in (*ACCELERATOR_FIELDS, *OPTIONAL_FIELDS)
        },
        constants=found,
        memory_bytes=int(read_number(document, "memory_bytes", where, True) or 0),
        node_nm=node_nm,
        voltage_v=voltage_v,
        process=process,
        document=document,
    )


def _constant(table: Mapping[str, Any], where: str) -> Constant:
    check_keys(table, {"value", "low", "high", "node_nm", "voltage_v", "process", "source", "recalled"}, where)
    value, low, high = (positive(table.get(key), key, where) for key in ("value", "low", "high"))
    if not low <= value <= high:
        raise HardwareError(f"{where}: low <= value <= high does not hold for {low}, {value}, {high}")
    recalled = bool(table.get("recalled", False))
    if recalled and high < 2 * low:
        raise HardwareError(f"{where}: a recalled constant carries a band of a factor 2 or more, not {high / low:.3g}")
    return Constant(
        value=value,
        low=low,
        high=high,
        node_nm=positive(table.get("node_nm"), "node_nm", where),
        voltage_v=positive(table.get("voltage_v"), "voltage_v", where),
        source=read_text(table, "source", where),
        recalled=recalled,
    )


def _process(table: Mapping[str, Any], where: str, default: str = "hp") -> str:
    process = table.get("process", default)
    if process not in technology.PROCESSES:
        raise HardwareError(f"{where}: process={process!r} is neither of {', '.join(technology.PROCESSES)}")
    return str(process)


def _at_node(name: str, read: Constant, process: str, built: tuple[float, float, str], where: str) -> Constant:
    """Return a constant as it is at the template's node, voltage and process; its band keeps its ratios."""
    node_nm, voltage_v, target = built
    is_same_node = (read.node_nm, process) == (node_nm, target)
    if name in LOGIC_ENERGY and not (is_same_node and read.voltage_v == voltage_v):
        factor = technology.energy_factor(node_nm, voltage_v, target, where)
        factor /= technology.energy_factor(read.node_nm, read.voltage_v, process, where)
    elif name in LOGIC_AREA and read.node_nm != node_nm:
        factor = technology.area_factor(node_nm, where) / technology.area_factor(read.node_nm, where)
    elif name in AT_THEIR_NODE and read.node_nm != node_nm:
        raise HardwareError(
            f"{where}: a constant of {read.node_nm:g} nm in a template of {node_nm:g} nm",
            f"the scaling rule covers logic only: give {name} at {node_nm:g} nm, with a band for what you assume",
        )
    else:
        return read
    given = f"{read.source}; scaled from {read.node_nm:g} nm and {read.voltage_v:g} V after Stillmaker and Baas (2017)"
    low, value, high = (factor * end for end in (read.low, read.value, read.high))
    return Constant(value, low, high, node_nm, voltage_v, given, read.recalled)
