"""SCALE-Sim 3.0.0 on single matrix products: its cycles beside ours.

The tool walks through every cycle and word, about 5 us per word that the array asks for and 150 us per cycle, so
large products would take hours. Its time, and ours, is the number of folds times the cycles of one; a product that is
expected to take too long is therefore cut for both sides: by whole folds along the stationary sides, keeping the edge
folds, then along the streamed side. Its CALC mode is run: cycles without stalls, DRAM words as its buffers cause them.

Traps of the tool that the files avoid: the layout table is mandatory; the last field of a row of the product table is
dropped, so rows end in a comma; sizes of memories are whole kB; it prints, and ends its process on bad input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from costmodels.outside.layers import Layers
from costmodels.outside.process import DRIVER, Needs, find_python, run_driver
from dse.capabilities import CheckedProduct, CrossCheck
from dse.protocols import Chosen

NEEDS: Final = Needs(
    tool="scalesim",
    version="3.0.0",
    beside={"numpy": (2, 4)},
    variable="DSE_SCALESIM_PYTHON",
    install=("scalesim==3.0.0", "numpy<2.4"),
)

WORD_S: Final = 5e-6
CYCLE_S: Final = 150e-6
IMPORT_S: Final = 3.0
# The expected time is good to a factor of a few.
SHARE_OF_LIMIT: Final = 1 / 3

_CONFIG: Final = """[general]
run_name = run
[architecture_presets]
ArrayHeight = {rows}
ArrayWidth = {cols}
IfmapSramSzkB = {kilobytes[0]}
FilterSramSzkB = {kilobytes[1]}
OfmapSramSzkB = {kilobytes[2]}
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = {dataflow}
MemoryBanks = 1
ReadRequestBuffer = 32
WriteRequestBuffer = 32
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = False
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""

_DRIVER: Final = """
import json
from scalesim.scale_sim import scalesim

tool = scalesim(save_disk_space=True, verbose=False, config="run.cfg", topology="gemm.csv", layout="layout.csv",
                input_type_gemm=True)
tool.run_scale(top_path=".")
layer = tool.runner.single_layer_sim_object_list[0]
compute = layer.get_compute_report_items()
detail = layer.get_detail_report_items()
names = ("sram_ifmap_reads", "sram_filter_reads", "sram_ofmap_writes",
         "dram_ifmap_reads", "dram_filter_reads", "dram_ofmap_writes")
found = {name: int(detail[3 * i + 2]) for i, name in enumerate(names)}
found["cycles"], found["stall_cycles"] = int(compute[1]), int(compute[2])
found["overall_util_pct"], found["mapping_eff_pct"] = float(compute[3]), float(compute[4])
with open("result.json", "w") as file:
    json.dump(found, file)
"""


def input_files(
    size: tuple[int, int, int], array: tuple[int, int], dataflow: str, kilobytes: tuple[int, int, int]
) -> dict[str, str]:
    """Return the files of one run, name -> text.

    Args:
        size: m, n, k.
        array: rows and columns.
        dataflow: "os", "ws" or "is".
        kilobytes: on-chip memory of A, B and the results, in units of 1024 bytes.
    """
    return tables({"product": size}, array, dataflow, kilobytes) | {DRIVER: _DRIVER}


def tables(
    products: Mapping[str, tuple[int, int, int]],
    array: tuple[int, int],
    dataflow: str,
    kilobytes: tuple[int, int, int],
) -> dict[str, str]:
    """Return configuration, products and layout, file name -> text; ``products`` are m, n, k by a name of one word."""
    sizes = "".join(f"{name},{m},{n},{k},\n" for name, (m, n, k) in products.items())
    layouts = "".join(f"{name}{20 * ',1'}\n" for name in products)
    return {
        "run.cfg": _CONFIG.format(rows=array[0], cols=array[1], dataflow=dataflow, kilobytes=kilobytes),
        "gemm.csv": f"Layer,M,N,K,\n{sizes}",
        "layout.csv": f"Layer{20 * ',value'}\n{layouts}",
    }


def third_of_sram(layers: Layers) -> tuple[int, int, int]:
    """Return the on-chip memory that each operand gets: a third, in units of 1024 bytes."""
    third = max(1, int(layers.sram_bytes / 3 / 1024))
    return third, third, third


def run(
    python: str,
    size: tuple[int, int, int],
    array: tuple[int, int],
    dataflow: str,
    kilobytes: tuple[int, int, int],
    limit_s: float,
) -> tuple[Mapping[str, Any], str]:
    """Run the tool on one product; return its figures and "", or {} and why there are none."""
    return run_driver(python, input_files(size, array, dataflow, kilobytes), limit_s)


def expected_s(size: tuple[int, int, int], array: tuple[int, int], dataflow: str) -> float:
    """Return about how long the tool takes for a product."""
    sr, sc, t = _sides(size, dataflow)
    rows, cols = array
    n_folds = math.ceil(sr / rows) * math.ceil(sc / cols)
    cycles = t + cols + rows * (1 if dataflow == "os" else 2)
    words = t * (rows + cols) if dataflow == "os" else t * (rows if dataflow == "ws" else cols) + rows * cols
    return n_folds * (WORD_S * (words + rows * cols) + CYCLE_S * cycles)


def cut(size: tuple[int, int, int], array: tuple[int, int], dataflow: str, limit_s: float) -> tuple[int, int, int]:
    """Return the product without so many whole folds, then streamed steps, that the tool is done in about the limit."""
    sr, sc, t = _sides(size, dataflow)
    rows, cols = array

    def takes() -> float:
        return expected_s(_size(sr, sc, t, dataflow), array, dataflow)

    while takes() > limit_s and (sr > 2 * rows or sc > 2 * cols):
        if math.ceil(sr / rows) >= math.ceil(sc / cols):
            sr = _halved(sr, rows)
        else:
            sc = _halved(sc, cols)
    while takes() > limit_s and t > 2:
        t = max(2, t // 2)
    return _size(sr, sc, t, dataflow)


def _halved(side: int, unit: int) -> int:
    """Return a side of about half its folds, the edge fold as it was."""
    n_folds = math.ceil(side / unit)
    return side - unit * (n_folds - max(2, n_folds // 2))


def _sides(size: tuple[int, int, int], dataflow: str) -> tuple[int, int, int]:
    m, n, k = size
    return {"os": (m, n, k), "ws": (k, n, m), "is": (k, m, n)}[dataflow]


def _size(sr: int, sc: int, t: int, dataflow: str) -> tuple[int, int, int]:
    return {"os": (sr, sc, t), "ws": (t, sc, sr), "is": (sc, t, sr)}[dataflow]


class ScaleSim:
    """Cycles of the heaviest products, simulated cycle by cycle."""

    name = "scalesim"
    help = "SCALE-Sim 3.0.0, a cycle-by-cycle simulator of systolic arrays: its cycles against our mode scalesim"

    def check(self, chosen: Chosen, phase: str, top: int, python: str, limit_s: float) -> CrossCheck:
        """Return the heaviest products of a design beside the tool's figures."""
        layers = Layers(chosen)
        heaviest = layers.heaviest(phase, top)
        found = find_python(NEEDS, python)
        array = (layers.rows, layers.cols)
        kilobytes = third_of_sram(layers)
        products, known = [], {}
        for layer in heaviest:
            size = cut(layer.size, array, layers.dataflow, limit_s * SHARE_OF_LIMIT)
            if size not in known:  # products that differ in widths alone are one to it
                known[size] = run(found, size, array, layers.dataflow, kilobytes, limit_s + IMPORT_S)
            figures, error = known[size]
            ours = layers.ours(layer.resized(size))
            products.append(
                CheckedProduct(
                    layer.label, layer.count, layer.share_ratio, layer.size, size, layer.bits, ours, figures, error
                )
            )
        return CrossCheck(
            f"SCALE-Sim {NEEDS.version}", phase, "scalesim_cycles", products, _not_expressible(layers, products)
        )


def _not_expressible(layers: Layers, products: list[CheckedProduct]) -> list[str]:
    said = not_expressible(layers)
    if any(p.size != p.checked for p in products):
        said.append("time: products that would take it too long are cut, by whole folds first, for both sides alike")
    return said


def not_expressible(layers: Layers) -> list[str]:
    """Return what of a design the tool has no word for."""
    said = [
        "operand widths: a word is one byte to it, its cycles are those of one multiply-accumulate per element",
        "one shared on-chip memory: it gets a third, in whole kB, for each operand; cycles do not depend on it",
        "tiles, loop order and overlap of folds: it runs fold after fold",
    ]
    if layers.n_cores > 1:
        said.append(f"{layers.n_cores} cores: it has one array, and ours is costed on one here")
    return said
