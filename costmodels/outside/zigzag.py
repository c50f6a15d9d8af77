"""ZigZag 3.9.1 on single matrix products: latency and energy of the best mapping that it finds, beside ours.

The design's array is described in ZigZag's own files: the two array dimensions unrolled as the dataflow says, a
register of two words per element for the operand that stays (so that the next fold loads while one runs), accumulators,
one shared on-chip memory, DRAM with its bits per cycle. Energies are those of our template: DRAM and on-chip memory per
bit, multiply-accumulates at the product's widths; registers are in the latter, so they cost nothing here.

    os   rows m, columns n, sums stay
    ws   rows k, columns n, weights stay
    is   rows k, columns m, inputs stay

ZigZag chooses tiles and loop order itself (search "loma", uneven mapping, for latency), where ours are the design's.
Its latency holds loading, stalls and draining: it stands against the longer of our array and memory cycles.

Traps: it imports ``six`` without declaring it; it takes accelerator and mapping as files only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from costmodels.outside.layers import Layer, Layers
from costmodels.outside.process import DRIVER, Needs, find_python, run_driver
from costmodels.products import PLAIN_BITS
from costmodels.systolic import ACCUMULATOR_BYTES
from dse.capabilities import CheckedProduct, CrossCheck
from dse.protocols import Chosen

NEEDS: Final = Needs(
    tool="zigzag-dse",
    version="3.9.1",
    beside={"six": ()},
    variable="DSE_ZIGZAG_PYTHON",
    install=("zigzag-dse==3.9.1", "six"),
)

SUM_BITS: Final = int(8 * ACCUMULATOR_BYTES)
DRAM_BITS: Final = 10**12
IMPORT_S: Final = 10.0

# Dataflow -> loop along the rows, loop along the columns, operand that stays, and that loop's index in (m, n, k).
# ZigZag's B, K, C are our m, n, k; its I1, I2 are our A, B.
_UNROLLED: Final = {"os": ("B", "K", "O"), "ws": ("C", "K", "I2"), "is": ("C", "B", "I1")}
_INDEX: Final = {"B": 0, "K": 1, "C": 2}

_DRIVER: Final = """
import json
from zigzag.api import get_hardware_performance_zigzag
from zigzag.parser.accelerator_validator import AcceleratorValidator
from zigzag.parser.mapping_validator import MappingValidator
from zigzag.parser.workload_validator import WorkloadValidator
from zigzag.utils import open_yaml

for validator, file in ((AcceleratorValidator, "accelerator.yaml"), (MappingValidator, "mapping.yaml"),
                        (WorkloadValidator, "workload.yaml")):
    if not validator(open_yaml(file)).validate():
        raise SystemExit(file + " is not valid to " + validator.__name__)
_, _, results = get_hardware_performance_zigzag(
    open_yaml("workload.yaml"), "accelerator.yaml", "mapping.yaml", temporal_mapping_search_engine="loma",
    temporal_mapping_type="uneven", opt="latency", lpf_limit=6, nb_spatial_mappings_generated=1, dump_folder="dump",
    loma_show_progress_bar=False)
best = results[0][1][0][0]
found = {
    "cycles": float(best.latency_total2),
    "ideal_cycles": float(best.ideal_temporal_cycle),
    "onloading_cycles": float(best.data_onloading_cycle),
    "offloading_cycles": float(best.data_offloading_cycle),
    "energy_j": 1e-12 * float(best.energy_total),
}
with open("result.json", "w") as file:
    json.dump(found, file)
"""


def accelerator(layers: Layers, layer: Layer) -> dict[str, Any]:
    """Return the design's accelerator as ZigZag describes one; energies in pJ per access of a port's width."""
    rows, cols, stays = layers.rows, layers.cols, _UNROLLED[layers.dataflow][2]
    dram_bits = max(8, int(8 * layers.dram_bytes_per_s / layers.freq_hz))
    widths = {"I1": _bits(layer.bits[0]), "I2": _bits(layer.bits[1]), "O": SUM_BITS}
    # Wide enough that no array and no DRAM ever waits for a port: our model has no such limit either.
    port = -(-max(SUM_BITS * max(rows, cols), dram_bits) // 8) * 8
    costs = layers.constants()
    memories: dict[str, Any] = {}
    if stays != "O":
        memories["stationary"] = _memory(2 * widths[stays], 0.0, 0.0, _ports([stays], widths[stays], widths[stays]), [])
    sums = 2 * SUM_BITS if stays == "O" else SUM_BITS
    memories["sums"] = _memory(sums, 0.0, 0.0, _ports(["O"], SUM_BITS, SUM_BITS), [])
    memories["sram"] = _memory(
        int(8 * layers.sram_bytes),
        1e12 * costs["sram_read_j"] * port,
        1e12 * costs["sram_write_j"] * port,
        _ports(["I1", "I2", "O"], 8, port),
        ["D1", "D2"],
    )
    both = ["I1, fh", "I1, tl", "I2, fh", "I2, tl", "O, fh", "O, tl", "O, fl", "O, th"]
    dram_j = 1e12 * costs["dram_j"] * dram_bits
    shared = [_port("rw_port_1", "read_write", dram_bits, dram_bits, both)]
    memories["dram"] = _memory(DRAM_BITS, dram_j, dram_j, shared, ["D1", "D2"])
    return {
        "name": "design",
        "memories": memories,
        "operational_array": {
            "unit_energy": 1e12 * layers.mac_j(layer),
            "unit_area": 1.0,
            "dimensions": ["D1", "D2"],
            "sizes": [rows, cols],
            "systolic_dimensions": ["D1", "D2"],
        },
    }


def _memory(size_bits: int, read_pj: float, write_pj: float, ports: list[Any], serves: list[str]) -> dict[str, Any]:
    operands = dict.fromkeys(a.partition(",")[0] for port in ports for a in port["allocation"])
    return {
        "size": size_bits,
        "r_cost": read_pj,
        "w_cost": write_pj,
        "area": 0.0,
        "latency": 1,
        "operands": list(operands),
        "ports": ports,
        "served_dimensions": serves,
    }


def _ports(operands: list[str], least: int, most: int) -> list[Any]:
    """Return a port of their own for each operand and direction: h, l: above and below; f, t: from and to."""
    reads = [f"{o}, tl" for o in operands] + ["O, th"] * ("O" in operands)
    writes = [f"{o}, fh" for o in operands] + ["O, fl"] * ("O" in operands)
    return [
        *(_port(f"r_port_{i}", "read", least, most, [a]) for i, a in enumerate(reads, start=1)),
        *(_port(f"w_port_{i}", "write", least, most, [a]) for i, a in enumerate(writes, start=1)),
    ]


def _port(name: str, kind: str, least: int, most: int, allocation: list[str]) -> dict[str, Any]:
    return {"name": name, "type": kind, "bandwidth_min": least, "bandwidth_max": most, "allocation": allocation}


def mapping(layers: Layers, layer: Layer, name: str = "default") -> dict[str, Any]:
    """Return which loops the array unrolls for a layer: as many steps as it has elements, or as the product has."""
    along_rows, along_cols, _ = _UNROLLED[layers.dataflow]
    sides = {"D1": (along_rows, layers.rows), "D2": (along_cols, layers.cols)}
    return {
        "name": name,
        "spatial_mapping": {d: [f"{loop}, {min(n, layer.size[_INDEX[loop]])}"] for d, (loop, n) in sides.items()},
        "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
    }


def workload(layer: Layer, number: int = 0, name: str = "") -> dict[str, Any]:
    """Return the product as a layer; a layer that reads its own number takes its operands from outside."""
    a_bits, b_bits = layer.bits
    return {
        "id": number,
        **({"name": name} if name else {}),
        "operator_type": "Gemm",
        "equation": "O[b][k]+=I[b][c]*W[c][k]",
        "loop_dims": ["B", "K", "C"],
        "loop_sizes": list(layer.size),
        "operand_precision": {"I": _bits(a_bits), "W": _bits(b_bits), "O": SUM_BITS, "O_final": PLAIN_BITS},
        "operand_source": {"I": number, "W": number},
    }


def _bits(width: float) -> int:
    return max(1, round(width))


def input_files(layers: Layers, layer: Layer) -> dict[str, str]:
    """Return the files of one run, name -> text; JSON is YAML."""
    documents = {
        "accelerator.yaml": accelerator(layers, layer),
        "mapping.yaml": [mapping(layers, layer)],
        "workload.yaml": [workload(layer)],
    }
    return {name: json.dumps(d, indent=1) + "\n" for name, d in documents.items()} | {DRIVER: _DRIVER}


class ZigZag:
    """Latency and energy of the heaviest products, mapped by ZigZag."""

    name = "zigzag"
    help = "ZigZag 3.9.1, a mapper with latency and energy models: its best mapping against our physical mode"

    def check(self, chosen: Chosen, phase: str, top: int, python: str, limit_s: float) -> CrossCheck:
        """Return the heaviest products of a design beside the tool's figures."""
        layers = Layers(chosen)
        heaviest = layers.heaviest(phase, top)
        found = find_python(NEEDS, python)
        products = []
        for layer in heaviest:
            figures, error = run_driver(found, input_files(layers, layer), limit_s + IMPORT_S)
            products.append(
                CheckedProduct(
                    layer.label, layer.count, layer.share_ratio, layer.size, layer.size, layer.bits,
                    layers.ours(layer), figures, error,
                )
            )  # fmt: skip
        return CrossCheck(
            f"ZigZag {NEEDS.version}", phase, "latency_cycles", products, not_expressible(layers, heaviest)
        )


def not_expressible(layers: Layers, heaviest: Sequence[Layer]) -> list[str]:
    """Return what of a design and its products the tool has no word for."""
    said = [
        "tiles and loop order of the design: it searches its own",
        "scales and zero points of narrow weights: it moves the bare bits",
    ]
    if any(max(layer.bits) > 8 for layer in heaviest):
        said.append("two cycles for a side wider than 8 bits: it takes one cycle for every multiply-accumulate")
    if any(b != round(b) for layer in heaviest for b in layer.bits):
        said.append("mean widths of channel groups: they are rounded to whole bits")
    if layers.n_cores > 1:
        said.append(f"{layers.n_cores} cores: it has one array, and ours is costed on one here")
    return said
