"""Files for SCALE-Sim, ZigZag and AccelForge: what they say of the products, and real runs."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess

import pytest
import yaml

from costmodels.outside import scalesim, zigzag
from costmodels.outside.exports import named_products
from costmodels.outside.layers import Layers
from costmodels.outside.process import DRIVER, find_python, run_driver
from dse import catalogue
from dse.export import write_files
from dse.testing.samples import small_problem
from dse.whatif import evaluate_design

FLOWS = ["os", "ws", "is"]


def exported(name, **values):
    chosen, _ = evaluate_design(small_problem(), {"weight_bits": 4, "act_bits": 8, **values})
    layers = Layers(chosen)
    return catalogue.exporter(name).export(chosen), layers, named_products(layers)


def texts(export):
    return {name: content.decode() for name, content in export.files.items()}


def test_products_are_all_of_the_request():
    export, _, products = exported("scalesim")
    rows = list(csv.DictReader(io.StringIO(texts(export)["products.csv"])))
    assert {(r["name"], int(r["m"]), int(r["n"]), int(r["k"])) for r in rows} == {
        (name, *layer.size) for name, layer in products.items()
    }
    assert {r["name"].partition("_")[0] for r in rows} == {"encode", "prefill", "decode"}
    assert all(float(r["count"]) > 0 for r in rows)


class Tagged(yaml.SafeLoader):
    """Reads ``!Memory {...}`` as a mapping with its tag."""


Tagged.add_multi_constructor("!", lambda loader, tag, node: {"!": tag, **loader.construct_mapping(node, deep=True)})


@pytest.mark.parametrize("dataflow", FLOWS)
def test_accelforge_describes_the_array(dataflow):
    """Rows, columns, what stays and what is shared, bandwidths and products are the design's."""
    export, layers, products = exported("accelforge", dataflow=dataflow, pe_rows=16, pe_cols=32)
    files, n = texts(export), 0
    for name in [n for n in files if n.endswith("arch.yaml")]:
        nodes = yaml.load(files[name], Tagged)["arch"]["nodes"]
        assert [x["!"] for x in nodes] == ["Memory", "Memory", "Container", "Memory", "Compute"]
        assert [s["fanout"] for s in nodes[2]["spatial"]] == [16, 32]
        stays = {"os": "output", "ws": "weight", "is": "input"}[dataflow]
        assert nodes[3]["tensors"]["keep"] == stays
        assert {stays, *(s["reuse"] for s in nodes[2]["spatial"])} == {"input", "weight", "output"}
        dram = {a["name"]: a for a in nodes[0]["actions"]}
        assert dram["read"]["throughput"] == 8 * layers.dram_bytes_per_s
        assert 0 < dram["read"]["energy"] < 1e-9
        assert nodes[1]["size"] == 8 * layers.sram_bytes
        assert nodes[4]["actions"][0]["throughput"] == layers.freq_hz
        workload = yaml.safe_load(files[name.replace("arch", "workload")])["workload"]
        shape = {k: int(v.rpartition("< ")[2]) for k, v in workload["iteration_space_shape"].items()}
        for i, einsum in enumerate(workload["einsums"]):
            assert [a["projection"] for a in einsum["tensor_accesses"]] == [
                [f"m{i}", f"k{i}"], [f"k{i}", f"n{i}"], [f"m{i}", f"n{i}"],
            ]  # fmt: skip
            n += shape[f"m{i}"] * shape[f"n{i}"] * shape[f"k{i}"]
    assert n == sum(math.prod(layer.size) for layer in products.values())


ACCELFORGE = """
import json, sys
import accelforge

found = {}
for folder in sys.argv[1:]:
    spec = accelforge.Spec.from_yaml(folder + "/arch.yaml", folder + "/workload.yaml")
    found[folder] = [[node.name for node in spec.arch.nodes], [einsum.name for einsum in spec.workload.einsums]]
print("FOUND", json.dumps(found))
"""

# It wants Python 3.12 and packages that are not among ours, so there is a test only where an interpreter is named.
if os.environ.get("DSE_ACCELFORGE_PYTHON"):

    @pytest.mark.slow
    @pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
    def test_accelforge_reads_every_file(dataflow, tmp_path):
        export, _, products = exported("accelforge", dataflow=dataflow, pe_rows=16, pe_cols=32)
        folders = sorted({str(path.parent) for path in write_files(export, tmp_path) if path.suffix == ".yaml"})
        command = [os.environ["DSE_ACCELFORGE_PYTHON"], "-c", ACCELFORGE, *folders]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.partition("FOUND ")[2])
        assert all(
            n == ["MainMemory", "GlobalBuffer", "ProcessingElement", "Register", "MAC"] for n, _ in found.values()
        )
        assert sum(len(einsums) for _, einsums in found.values()) == len(products)

    @pytest.mark.slow
    def test_accelforge_maps_a_decode_product_in_the_time_that_its_bits_take(tmp_path):
        """Its mapper (which draws with Graphviz' dot) on the lightest product of one row: bound by DRAM, as ours is."""
        export, layers, products = exported("accelforge", dataflow="ws", pe_rows=16, pe_cols=32)
        _, layer = min(
            ((n, p) for n, p in products.items() if n.startswith("decode") and p.bits[1] < 16),
            key=lambda item: math.prod(item[1].size),
        )
        write_files(export, tmp_path)
        folder = next(p.parent for p in tmp_path.glob("*/workload.yaml") if p.parent.name == _folder(layer))
        work = yaml.safe_load((folder / "workload.yaml").read_text())["workload"]
        one = next(e for e in work["einsums"] if shape_of(work, e) == layer.size)
        ranks = {rank for access in one["tensor_accesses"] for rank in access["projection"]}
        work["iteration_space_shape"] = {r: v for r, v in work["iteration_space_shape"].items() if r in ranks}
        names = {access["name"] for access in one["tensor_accesses"]}
        work["bits_per_value"] = {n: v for n, v in work["bits_per_value"].items() if n in names}
        work["einsums"] = [one]
        (folder / "one.yaml").write_text(json.dumps({"workload": work}))
        code = (
            "import sys, accelforge; from accelforge.util.parallel import set_n_parallel_jobs; set_n_parallel_jobs(1)\n"
            "spec = accelforge.Spec.from_yaml(*sys.argv[1:])\n"
            "print('FOUND', spec.map_workload_to_arch().latency())"
        )
        command = [os.environ["DSE_ACCELFORGE_PYTHON"], "-c", code, str(folder / "arch.yaml"), str(folder / "one.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        m, n, k = layer.size
        bits = m * k * layer.bits[0] + k * n * layer.bits[1] + m * n * 16
        assert float(done.stdout.partition("FOUND ")[2]) == pytest.approx(
            bits / (8 * layers.dram_bytes_per_s), rel=1e-6
        )

    def _folder(layer):
        return f"a{layer.bits[0]:g}_b{layer.bits[1]:g}"

    def shape_of(work, einsum):
        sizes = work["iteration_space_shape"]
        (m, k), (_, n) = (access["projection"] for access in einsum["tensor_accesses"][:2])
        return tuple(int(sizes[rank].rpartition("< ")[2]) for rank in (m, n, k))


SCALESIM = """
import json
from scalesim.scale_sim import scalesim

tool = scalesim(save_disk_space=True, verbose=False, config="run.cfg", topology="gemm.csv", layout="layout.csv",
                input_type_gemm=True)
tool.run_scale(top_path=".")
names = [line.split(",")[0] for line in open("gemm.csv").read().splitlines()[1:]]
found = {}
for name, layer in zip(names, tool.runner.single_layer_sim_object_list):
    found[name] = int(layer.get_compute_report_items()[1])
with open("result.json", "w") as file:
    json.dump(found, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dataflow", FLOWS)
def test_scalesim_counts_our_cycles_on_every_product(dataflow, interpreter):
    """The exported files as they are, all products in one run: its cycles are those of our serial mode, exactly."""
    python = find_python(scalesim.NEEDS, interpreter("DSE_SCALESIM_PYTHON"))
    export, layers, products = exported("scalesim", dataflow=dataflow, pe_rows=16, pe_cols=8)
    found, error = run_driver(python, texts(export) | {DRIVER: SCALESIM}, 280.0)
    assert not error
    assert found == {name: layers.ours(layer)["scalesim_cycles"] for name, layer in products.items()}


ZIGZAG = """
import json
from zigzag.parser.accelerator_validator import AcceleratorValidator
from zigzag.parser.mapping_validator import MappingValidator
from zigzag.parser.workload_validator import WorkloadValidator
from zigzag.utils import open_yaml

found = {}
for name in FOLDERS:
    for validator, file in ((AcceleratorValidator, "accelerator"), (MappingValidator, "mapping"),
                            (WorkloadValidator, "workload")):
        found[name + file] = bool(validator(open_yaml(name + file + ".yaml")).validate())
with open("result.json", "w") as file:
    json.dump(found, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dataflow", FLOWS)
def test_zigzag_validates_every_file(dataflow, interpreter):
    python = find_python(zigzag.NEEDS, interpreter("DSE_ZIGZAG_PYTHON"))
    export, _, _ = exported("zigzag", dataflow=dataflow)
    files = {name.replace("/", "-"): text for name, text in texts(export).items()}
    folders = sorted({name.rpartition("-")[0] + "-" for name in files if name.endswith(".yaml")})
    found, error = run_driver(python, files | {DRIVER: f"FOLDERS = {json.dumps(folders)}\n{ZIGZAG}"}, 120.0)
    assert not error
    assert len(found) == 3 * len(folders)
    assert all(found.values())


def test_zigzag_workload_holds_widths_and_sizes():
    export, _, products = exported("zigzag")
    seen = {}
    for name, text in texts(export).items():
        if name.endswith("workload.yaml"):
            for layer in yaml.safe_load(text):
                precision = layer["operand_precision"]
                seen[layer["name"]] = (tuple(layer["loop_sizes"]), (precision["I"], precision["W"]))
    assert seen == {name: (layer.size, tuple(round(b) for b in layer.bits)) for name, layer in products.items()}
