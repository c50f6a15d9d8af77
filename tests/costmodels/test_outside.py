"""Tools of the field: the files written for them, what happens when they fail, and real runs of both."""

from __future__ import annotations

import configparser
import csv
import io
import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels import scalesim as closed_form
from costmodels.outside import scalesim, zigzag
from costmodels.outside.layers import Layers
from costmodels.outside.process import DRIVER, RESULT, Needs, find_python, run_driver
from costmodels.scalesim import STAYS
from dse import catalogue
from dse.capabilities import OutsideTool
from dse.errors import NameUnknown, UserError
from dse.hardware import read_hardware
from dse.model import read_model
from dse.problem import Problem
from dse.scenario import Scenario
from dse.testing.samples import small_problem
from dse.whatif import evaluate_design

FLOWS = ["os", "ws", "is"]


def design(problem=None, **values):
    return evaluate_design(problem or small_problem("text"), values)[0]


# ---------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("phase", ["encode", "prefill", "decode"])
def test_layers_are_the_whole_phase(phase):
    """Together they have the phase's multiply-accumulates (sizes that are means are rounded up) and all its time."""
    from costmodels.products import COUNT, K, M, N
    from costmodels.workload import Workload

    chosen = design(small_problem(), weight_bits="4", pe_rows="8")
    layers = Layers(chosen).heaviest(phase, 1000)
    planes = next(p for p in Workload(chosen.problem).size(chosen.design).phases if p.name == phase).gemms.planes[:, 0]
    whole = planes[COUNT] * np.ceil(planes[M]) * np.ceil(planes[N]) * np.ceil(planes[K])
    assert sum(layer.count * math.prod(layer.size) for layer in layers) == pytest.approx(whole.sum(), rel=1e-12)
    assert sum(layer.share_ratio for layer in layers) == pytest.approx(1.0)
    shares = [layer.share_ratio for layer in layers]
    assert shares == sorted(shares, reverse=True)
    assert len({(layer.label, layer.size, layer.bits) for layer in layers}) == len(layers)


def test_our_figures_are_those_of_the_model():
    """Cycles times counts add up to the array time in the breakdown, where the array bounds every product."""
    chosen = design(dram_bytes_per_s="1000000 GB/s", dataflow="os", act_bits="8", weight_bits="8")
    layers = Layers(chosen)
    for name, figure in (("analytical", "physical_cycles"), ("analytical:scalesim", "scalesim_cycles")):
        parts = catalogue.cost_model(name).prepare(chosen.problem).breakdown(chosen.design)
        latency = next(p for p in parts if p.metric == "latency_s")
        array_s = sum(
            float(latency.parts[0, i])
            for i, (_, phase, kind, cost) in enumerate(latency.labels)
            if (phase, kind, cost) == ("prefill", "linear", "compute")
        )
        ours = sum(
            layer.count * layers.ours(layer)[figure]
            for layer in layers.heaviest("prefill", 1000)
            if layer.label == "decoder linear"
        )
        assert ours / layers.freq_hz == pytest.approx(array_s, rel=1e-9)


def test_layers_refuse_what_has_no_array_or_no_phase():
    with pytest.raises(UserError, match="is a device without an array"):
        Layers(design(small_problem("text", "b200-sxm-180gb")))
    with pytest.raises(UserError, match="has no encode"):
        Layers(design()).heaviest("encode", 3)
    with pytest.raises(NameUnknown, match="phase 'decod'"):
        Layers(design()).heaviest("decod", 3)


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("dataflow", FLOWS)
def test_scalesim_files(dataflow):
    files = scalesim.input_files((3, 5, 7), (8, 16), dataflow, (1, 2, 3))
    config = configparser.ConfigParser()
    config.read_string(files["run.cfg"])
    array = config["architecture_presets"]
    assert (array["ArrayHeight"], array["ArrayWidth"], array["Dataflow"]) == ("8", "16", dataflow)
    assert [array[f"{o}SramSzkB"] for o in ("Ifmap", "Filter", "Ofmap")] == ["1", "2", "3"]
    assert config["run_presets"]["InterfaceBandwidth"] == "CALC"
    assert config["sparsity"]["SparsitySupport"] == "False"
    row = files["gemm.csv"].splitlines()[1]
    assert row == "product,3,5,7,", "the tool drops the last field of a row"
    layout = list(csv.reader(io.StringIO(files["layout.csv"])))
    assert [len(line) for line in layout] == [21, 21]
    compile(files[DRIVER], DRIVER, "exec")


@pytest.mark.parametrize("dataflow", FLOWS)
def test_zigzag_files(dataflow):
    """Array dimensions unroll the sides that the dataflow keeps in place; energies per access are bits times ours."""
    chosen = design(dataflow=dataflow, pe_rows="8", pe_cols="16", weight_bits="4", act_bits="8", sram_bytes="64 KiB",
                    dram_bytes_per_s="34 GB/s")  # fmt: skip
    layers = Layers(chosen)
    layer = layers.heaviest("prefill", 1)[0]
    files = zigzag.input_files(layers, layer)
    accelerator, (mapping,), (work,) = (json.loads(files[f"{n}.yaml"]) for n in ("accelerator", "mapping", "workload"))
    assert accelerator["operational_array"]["sizes"] == [8, 16]
    loops = {"os": ("B", "K"), "ws": ("C", "K"), "is": ("C", "B")}[dataflow]
    size = dict(zip(work["loop_dims"], work["loop_sizes"], strict=True))
    assert tuple(size.values()) == layer.size
    assert mapping["spatial_mapping"] == {
        f"D{i}": [f"{loop}, {min(side, size[loop])}"]
        for i, (loop, side) in enumerate(zip(loops, (8, 16), strict=True), 1)
    }
    assert work["operand_precision"] == {"I": 8, "W": 4, "O": 32, "O_final": 16}
    memories = accelerator["memories"]
    assert list(memories) == [*["stationary"] * (dataflow != "os"), "sums", "sram", "dram"], "from the inside out"
    assert memories["sram"]["size"] == 64 * 1024 * 8
    port = memories["dram"]["ports"][0]
    assert port["bandwidth_max"] == 34 * 8, "bits per cycle at 1 GHz"
    constant = chosen.problem.hardware.constants["dram_j_per_bit"].value
    assert memories["dram"]["r_cost"] == pytest.approx(34 * 8 * constant * 1e12)
    compile(files[DRIVER], DRIVER, "exec")


@given(
    size=st.tuples(st.integers(1, 5000), st.integers(1, 20000), st.integers(1, 20000)),
    array=st.tuples(st.sampled_from([8, 16, 64, 128]), st.sampled_from([8, 16, 64, 128])),
    dataflow=st.sampled_from(FLOWS),
    limit_s=st.floats(5, 100),
)
def test_a_cut_product_keeps_its_edges(size, array, dataflow, limit_s):
    small = scalesim.cut(size, array, dataflow, limit_s)
    assert all(1 <= s <= whole for s, whole in zip(small, size, strict=True))
    assert scalesim.expected_s(small, array, dataflow) <= limit_s
    streamed = {"os": 2, "ws": 0, "is": 1}[dataflow]
    sides = [axis for axis in {"os": (0, 1), "ws": (2, 1), "is": (2, 0)}[dataflow] if axis != streamed]
    for axis, unit in zip(sides, array, strict=True):
        assert small[axis] % unit == size[axis] % unit
        assert min(2, math.ceil(size[axis] / unit)) <= math.ceil(small[axis] / unit)
    if scalesim.expected_s(size, array, dataflow) <= limit_s:
        assert small == size


# ---------------------------------------------------------------------------------------------- processes


def needs(**changed):
    return Needs(**{"tool": "numpy", "version": np.__version__, "beside": {}, "variable": "DSE_TEST_PYTHON",
                    "install": ("numpy",)} | changed)  # fmt: skip


def test_an_interpreter_is_found_in_order(monkeypatch, tmp_path):
    monkeypatch.delenv("DSE_TEST_PYTHON", raising=False)
    assert find_python(needs(), "") == sys.executable
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    monkeypatch.setenv("DSE_TEST_PYTHON", "/nowhere/python")
    with pytest.raises(UserError, match="DSE_TEST_PYTHON=/nowhere/python cannot run"):
        find_python(needs(), "")
    assert find_python(needs(), sys.executable) == sys.executable


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tool": "no-such-tool"}, "no-such-tool is not installed there"),
        ({"version": "0.1"}, f"it has numpy {np.__version__}"),
        ({"beside": {"no-such-six": ()}}, "no-such-six is not installed there"),
        ({"beside": {"pytest": (1, 2)}}, "and 1.2 breaks it"),
    ],
)
def test_an_interpreter_that_lacks_something_is_refused(monkeypatch, changed, said):
    monkeypatch.delenv("DSE_TEST_PYTHON", raising=False)
    with pytest.raises(UserError, match="this interpreter cannot run") as caught:
        find_python(needs(**changed), "")
    assert said in caught.value.message
    assert "ENV/bin/pip install 'numpy'" in caught.value.hint
    assert "DSE_TEST_PYTHON" in caught.value.hint


def test_what_is_no_interpreter_is_refused(tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho hello\n")
    script.chmod(0o755)
    with pytest.raises(UserError, match="it is no Python interpreter"):
        find_python(needs(), str(script))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('noise'); exit()", "ended with exit code 0 and no result: noise"),
        ("raise TypeError('only 0-dimensional arrays')", "exit code 1 and no result: TypeError: only 0-dimensional"),
        ("import os; os._exit(7)", "ended with exit code 7 and no result: it said nothing"),
        ("import time; time.sleep(60)", "stopped after 1 s"),
        (f"open('{RESULT}', 'w').write('{{')", "exit code 0 and no result"),
    ],
)
def test_a_driver_that_fails_says_how(script, said):
    found, error = run_driver(sys.executable, {DRIVER: script}, 1.0 if "sleep" in script else 60.0)
    assert found == {}
    assert said in error


def test_a_driver_gets_a_folder_and_no_secrets(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    script = f"import json, os; json.dump([sorted(os.environ), open('input').read()], open('{RESULT}', 'w'))"
    (names, text), error = run_driver(sys.executable, {DRIVER: script, "input": "x"}, 60.0)
    assert (text, error) == ("x", "")
    assert "OPENAI_API_KEY" not in names


def test_the_tools_are_in_the_catalogue():
    for name in catalogue.listing("outside tool"):
        tool = catalogue.outside_tool(name)
        assert isinstance(tool, OutsideTool)
        assert tool.name == name
        assert tool.help
    assert {"scalesim", "zigzag"} <= set(catalogue.listing("outside tool"))


# ---------------------------------------------------------------------------------------------- the real tools


@pytest.mark.slow
@pytest.mark.parametrize("dataflow", FLOWS)
def test_scalesim_reports_what_the_closed_form_says(dataflow, interpreter):
    python = find_python(scalesim.NEEDS, interpreter("DSE_SCALESIM_PYTHON"))
    for size, array, kilobytes in [
        ((1, 300, 70), (16, 32), (1, 1, 1)),
        ((37, 91, 64), (32, 16), (1, 2, 1)),
        ((20, 33, 150), (8, 12), (1, 1, 1)),
    ]:
        found, error = scalesim.run(python, size, array, dataflow, kilobytes, 120.0)
        assert not error
        words = [np.float64(1024 * kb) for kb in kilobytes]
        c = closed_form.count(*(np.float64(v) for v in (*size, *array)), np.int64(STAYS[dataflow]), *words)
        assert found["cycles"] == c.cycles
        assert found["stall_cycles"] == 0
        assert found["mapping_eff_pct"] == pytest.approx(100 * c.mapping_ratio)
        assert found["overall_util_pct"] == pytest.approx(100 * c.utilisation_ratio)
        names = ("sram_ifmap_reads", "sram_filter_reads", "sram_ofmap_writes",
                 "dram_ifmap_reads", "dram_filter_reads", "dram_ofmap_writes")  # fmt: skip
        ours = (c.a_sram_reads, c.b_sram_reads, c.o_sram_writes, c.a_dram_reads, c.b_dram_reads, c.o_dram_writes)
        assert [found[n] for n in names] == [float(v) for v in ours]


def real_problem():
    scenario = Scenario(prompt_tokens=100, output_tokens=20)
    return Problem({"target": read_model("qwen2.5-0.5b")}, scenario, read_hardware("npu-template"))


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_scalesim_agrees_on_a_designs_heaviest_products(phase, interpreter, validated):
    python = interpreter("DSE_SCALESIM_PYTHON")
    chosen = design(real_problem(), dataflow="ws", weight_bits="4", act_bits="8")
    found = scalesim.ScaleSim().check(chosen, phase, 2, python, 20.0)
    assert [p.error for p in found.products] == ["", ""]
    equal = sum(p.ours[found.compared] == p.tool["cycles"] for p in found.products)
    assert equal == 2
    validated(
        "crosscheck", f"cycles of exported products, Qwen2.5-0.5B, {phase}", "SCALE-Sim 3.0.0, run by the test", 2,
        {"{} equal": equal}, "all",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dataflow", FLOWS)
def test_zigzag_takes_our_description_and_agrees_on_decoding(dataflow, interpreter, validated):
    """A decode pass is bound by DRAM, whatever the mapping: the weights' bits over the bandwidth, on both sides.

    Ours also reads scales, 16 bits for every group of 128 weights, hence the allowance.
    """
    python = interpreter("DSE_ZIGZAG_PYTHON")
    chosen = design(real_problem(), dataflow=dataflow, weight_bits="8", act_bits="8", dram_bytes_per_s="8 GB/s")
    found = zigzag.ZigZag().check(chosen, "decode", 2, python, 120.0)
    for p in found.products:
        assert not p.error
        weights_alone = p.checked[1] * p.checked[2] / 8
        assert p.tool["cycles"] >= weights_alone
        assert p.tool["cycles"] == pytest.approx(p.ours[found.compared], rel=0.05)
    off = [100 * (p.ours[found.compared] / p.tool["cycles"] - 1) for p in found.products]
    validated(
        "crosscheck", f"latency of exported products, Qwen2.5-0.5B, decode, dataflow {dataflow}",
        "ZigZag 3.9.1, run by the test", len(off),
        {"error: least {} %": min(off), "most {} %": max(off)}, "5 %", digits=2,
    )  # fmt: skip


@pytest.mark.slow
def test_zigzag_says_why_it_cannot(interpreter):
    """A description that its validators refuse ends the driver, not us."""
    python = find_python(zigzag.NEEDS, interpreter("DSE_ZIGZAG_PYTHON"))
    layers = Layers(design())
    files = zigzag.input_files(layers, layers.heaviest("decode", 1)[0])
    broken = json.loads(files["accelerator.yaml"])
    broken["memories"]["sram"]["size"] = "large"
    found, error = run_driver(python, files | {"accelerator.yaml": json.dumps(broken)}, 120.0)
    assert found == {}
    assert "accelerator.yaml is not valid to AcceleratorValidator" in error
