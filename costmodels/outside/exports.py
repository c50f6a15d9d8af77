"""Files that describe an accelerator and all its matrix products to tools of the field.

SCALE-Sim 3.0.0: configuration, products, layout. ZigZag 3.9.1 and AccelForge 1.0.467 (units: joules, bits per
second): a folder per pair of operand widths, since the energy of a multiply-accumulate and the registers follow from
them. Each distinct product stands once, with its count and its widths in ``products.csv``.

What the tools are told is what ``dse crosscheck`` runs, see :mod:`costmodels.outside.scalesim` and
:mod:`costmodels.outside.zigzag`. AccelForge is run on them in a test, where there is an interpreter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from costmodels.outside import scalesim, zigzag
from costmodels.outside.layers import Layer, Layers
from costmodels.products import PLAIN_BITS
from costmodels.workload import PHASES
from dse.errors import UserError
from dse.export.plain import comments, statement, yaml_text
from dse.protocols import Chosen, Exported

_VECTOR: Final = "softmax, norms, activations and everything else on the vector unit: matrix products alone are written"


class _Files:
    """What the three have in common: the products, by names of one word."""

    name: str

    def export(self, chosen: Chosen) -> Exported:
        """Return the files.

        Raises:
            UserError: the design's hardware is a device, which has no array that could be described.
        """
        layers = Layers(chosen)
        products = named_products(layers)
        missing = [_VECTOR, *self._missing(layers, list(products.values()))]
        notes = [
            "each distinct product stands once; products.csv says how often it runs, and with which widths",
            "fusion and tiles of the design: dse export --to design has them",
        ]
        said = statement(chosen, self.name, missing, notes)
        files = self._files(layers, products, comments(said)) | {"products.csv": _listing(products)}
        return Exported({name: text.encode() for name, text in files.items()}, missing, notes)

    def _missing(self, layers: Layers, products: Sequence[Layer]) -> list[str]:
        raise NotImplementedError

    def _files(self, layers: Layers, products: Mapping[str, Layer], head: str) -> dict[str, str]:
        raise NotImplementedError


def named_products(layers: Layers) -> dict[str, Layer]:
    """Return the distinct products of all phases that the request has, the heaviest of each phase first.

    Raises:
        UserError: there is none.
    """
    found: dict[str, Layer] = {}
    for phase in PHASES:
        try:
            products = layers.heaviest(phase, 1 << 30)
        except UserError:  # the request has no such phase
            continue
        for i, layer in enumerate(products):
            found[f"{phase}_{i}_{re.sub('[^a-z0-9]+', '_', layer.label.lower())}"] = layer
    if not found:
        raise UserError("the request has no matrix product", "give it a prompt")
    return found


def _listing(products: Mapping[str, Layer]) -> str:
    rows = [
        f"{name},{','.join(map(str, layer.size))},{layer.bits[0]:g},{layer.bits[1]:g},{layer.count:g}\n"
        for name, layer in products.items()
    ]
    return "name,m,n,k,a_bits,b_bits,count\n" + "".join(rows)


def _by_widths(products: Mapping[str, Layer]) -> dict[str, dict[str, Layer]]:
    """Return the products by the folder of their widths: "a8_b4" for 8-bit inputs and 4-bit weights."""
    found: dict[str, dict[str, Layer]] = {}
    for name, layer in products.items():
        folder = "_".join(f"{side}{bits:g}".replace(".", "p") for side, bits in zip("ab", layer.bits, strict=True))
        found.setdefault(folder, {})[name] = layer
    return found


class ScaleSimFiles(_Files):
    """Configuration, products and layout for SCALE-Sim."""

    name = "scalesim"
    help = "SCALE-Sim 3.0.0: configuration, table of matrix products, layout"

    def _missing(self, layers: Layers, products: Sequence[Layer]) -> list[str]:  # noqa: ARG002
        return scalesim.not_expressible(layers)

    def _files(self, layers: Layers, products: Mapping[str, Layer], head: str) -> dict[str, str]:
        sizes = {name: layer.size for name, layer in products.items()}
        array = layers.rows, layers.cols
        files = scalesim.tables(sizes, array, layers.dataflow, scalesim.third_of_sram(layers))
        return {name: head + text if name.endswith(".cfg") else text for name, text in files.items()}


class ZigZagFiles(_Files):
    """Accelerator, workload and mapping for ZigZag, a folder per pair of widths."""

    name = "zigzag"
    help = "ZigZag 3.9.1: accelerator, workload and mapping YAML"

    def _missing(self, layers: Layers, products: Sequence[Layer]) -> list[str]:
        return zigzag.not_expressible(layers, products)

    def _files(self, layers: Layers, products: Mapping[str, Layer], head: str) -> dict[str, str]:
        files: dict[str, str] = {}
        for folder, group in _by_widths(products).items():
            first = next(iter(group.values()))
            documents = {
                "accelerator": zigzag.accelerator(layers, first),
                "mapping": [
                    zigzag.mapping(layers, first),
                    *(zigzag.mapping(layers, layer, name) for name, layer in group.items()),
                ],
                "workload": [zigzag.workload(layer, i, name) for i, (name, layer) in enumerate(group.items())],
            }
            files |= {f"{folder}/{name}.yaml": head + yaml_text(d) for name, d in documents.items()}
        return files


# Dataflow -> operand that stays in the array, what is shared along its rows, what along its columns.
_SHARED: Final = {
    "ws": ("weight", "output", "input"),
    "os": ("output", "weight", "input"),
    "is": ("input", "output", "weight"),
}


class AccelForgeFiles(_Files):
    """Architecture and workload for AccelForge, a folder per pair of widths."""

    name = "accelforge"
    help = "AccelForge 1.0: architecture and workload YAML"

    def _missing(self, layers: Layers, products: Sequence[Layer]) -> list[str]:
        said = [
            "tiles and loop order of the design: its mapper searches its own",
            "scales and zero points of narrow weights: it moves the bare bits",
            "area and leakage: left at 0, dse export --to design has them",
        ]
        if any(max(layer.bits) > 8 for layer in products):
            said.append("two cycles for a side wider than 8 bits: one cycle per multiply-accumulate is written")
        if layers.n_cores > 1:
            said.append(f"{layers.n_cores} cores: one array is written")
        return said

    def _files(self, layers: Layers, products: Mapping[str, Layer], head: str) -> dict[str, str]:
        files = {}
        for folder, group in _by_widths(products).items():
            nodes = _nodes(layers, next(iter(group.values())))
            parts = "".join(f"  - !{kind}\n{yaml_text(node, 4)}" for kind, node in nodes)
            files[f"{folder}/arch.yaml"] = f"{head}arch:\n  nodes:\n{parts}"
            files[f"{folder}/workload.yaml"] = head + yaml_text({"workload": _workload(list(group.values()))})
        return files


def _nodes(layers: Layers, layer: Layer) -> list[tuple[str, dict[str, Any]]]:
    """Return the nodes from the DRAM to the multiply-accumulate unit; energies per bit, bits per second."""
    stays, along_rows, along_cols = _SHARED[layers.dataflow]
    costs, dram = layers.constants(), 8 * layers.dram_bytes_per_s
    bits = {"input": layer.bits[0], "weight": layer.bits[1], "output": float(zigzag.SUM_BITS)}
    # No port of ours limits the array, so none is written: as wide as all of the array in a cycle.
    wide = layers.freq_hz * zigzag.SUM_BITS * max(layers.rows, layers.cols)
    return [
        ("Memory", _memory("MainMemory", "inf", (costs["dram_j"], costs["dram_j"]), dram,
                           {"keep": "~Intermediates", "may_keep": "All"})),
        ("Memory", _memory("GlobalBuffer", int(8 * layers.sram_bytes), (costs["sram_read_j"], costs["sram_write_j"]),
                           wide, {"keep": "~MainMemory", "may_keep": "All"})),
        ("Container", {
            "name": "ProcessingElement",
            "spatial": [
                {"name": "rows", "fanout": layers.rows, "may_reuse": along_rows, "reuse": along_rows},
                {"name": "cols", "fanout": layers.cols, "may_reuse": along_cols, "reuse": along_cols},
            ],
        }),
        ("Memory", _memory("Register", round(bits[stays]), (0.0, 0.0), wide, {"keep": stays})),
        ("Compute", {
            "name": "MAC", "leak_power": 0, "area": 0,
            "actions": [{"name": "compute", "energy": layers.mac_j(layer), "throughput": layers.freq_hz}],
        }),
    ]  # fmt: skip


def _memory(
    name: str, size: int | str, energy_j: tuple[float, float], bits_per_s: float, tensors: dict[str, str]
) -> dict[str, Any]:
    read, write = energy_j
    return {
        "name": name,
        "size": size,
        "leak_power": 0,
        "area": 0,
        "actions": [
            {"name": "read", "energy": read, "throughput": bits_per_s},
            {"name": "write", "energy": write, "throughput": bits_per_s},
        ],
        "tensors": tensors,
    }


def _workload(products: Sequence[Layer]) -> dict[str, Any]:
    """Return each product as an einsum O[m, n] = A[m, k] B[k, n] with ranks of its own."""
    shape: dict[str, str] = {}
    bits: dict[str, int] = {}
    einsums = []
    for i, layer in enumerate(products):
        shape |= {f"{r}{i}": f"0 <= {r}{i} < {size}" for r, size in zip("mnk", layer.size, strict=True)}
        bits |= {f"A{i}": round(layer.bits[0]), f"B{i}": round(layer.bits[1]), f"O{i}": PLAIN_BITS}
        einsums.append(
            {
                "name": f"Product{i}",
                "tensor_accesses": [
                    {"name": f"A{i}", "projection": [f"m{i}", f"k{i}"]},
                    {"name": f"B{i}", "projection": [f"k{i}", f"n{i}"]},
                    {"name": f"O{i}", "projection": [f"m{i}", f"n{i}"], "output": True},
                ],
                "renames": {"input": f"A{i}", "weight": f"B{i}", "output": f"O{i}"},
            }
        )
    return {"iteration_space_shape": shape, "bits_per_value": bits, "einsums": einsums}
