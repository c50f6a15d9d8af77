"""The mode scalesim against runs of the tool, and against a walk over single words."""

from __future__ import annotations

import csv
import gzip
import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels import scalesim
from dse import Choice, Space, catalogue
from dse.errors import HardwareError, NameUnknown
from dse.testing.conformance import check_cost_model
from dse.testing.samples import small_problem, small_space

RUNS = Path(__file__).parents[1] / "data" / "scalesim_runs.csv.gz"


@pytest.fixture(scope="module")
def runs():
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(RUNS.read_bytes()).decode())))
    texts = ("source", "dataflow", "bw_mode")
    return {c: np.array([r[c] if c in texts else float(r[c]) for r in rows]) for c in rows[0]}


def counted(runs):
    kilo = [runs[f"{o}_sram_kB"] * 1024 for o in ("ifmap", "filter", "ofmap")]
    stays = np.array([scalesim.STAYS[d] for d in runs["dataflow"]])
    return scalesim.count(runs["M"], runs["N"], runs["K"], runs["rows"], runs["cols"], stays, *kilo)


def test_the_table_is_whole(runs):
    assert (runs["source"] == "reference").sum() == 481
    assert (runs["source"] != "reference").sum() >= 500
    assert (runs["bw_mode"] == "CALC").sum() == len(runs["M"]) - 39


@pytest.mark.parametrize("source", ["reference", "drawn"])
def test_cycles_sram_and_mapping_of_every_run(runs, source, validated):
    rows = (runs["source"] == "reference") == (source == "reference")
    c = counted(runs)
    exact = {
        "cycles": (c.cycles, runs["total_cycles"] - runs["stall_cycles"]),
        "ifmap reads": (c.a_sram_reads, runs["sram_ifmap_reads"]),
        "filter reads": (c.b_sram_reads, runs["sram_filter_reads"]),
        "ofmap writes": (c.o_sram_writes, runs["sram_ofmap_writes"]),
    }
    validated(
        "scalesim", f"cycles; SRAM reads and writes of each operand, {source} runs", "SCALE-Sim 3.0.0", rows.sum(),
        {"{} equal": np.all([ours[rows] == tool[rows] for ours, tool in exact.values()], axis=0).sum()}, target="all",
    )  # fmt: skip
    for name, (ours, tool) in exact.items():
        assert (ours[rows] == tool[rows]).all(), name
    # The table prints six digits.
    assert c.mapping_ratio[rows] * 100 == pytest.approx(runs["mapping_eff_pct"][rows], rel=1e-5)


def test_dram_words_and_utilisation_of_every_calc_run(runs, validated):
    rows, c = runs["bw_mode"] == "CALC", counted(runs)
    words = {"dram_ifmap_reads": c.a_dram_reads, "dram_filter_reads": c.b_dram_reads,
             "dram_ofmap_writes": c.o_dram_writes}  # fmt: skip
    validated(
        "scalesim", "DRAM reads and writes of all three operands, stalls, CALC mode", "SCALE-Sim 3.0.0", rows.sum(),
        {"{} equal": np.all([runs[name][rows] == ours[rows] for name, ours in words.items()], axis=0).sum()},
        target="all",
    )  # fmt: skip
    assert (runs["stall_cycles"][rows] == 0).all()
    assert (c.a_dram_reads[rows] == runs["dram_ifmap_reads"][rows]).all()
    assert (c.b_dram_reads[rows] == runs["dram_filter_reads"][rows]).all()
    assert (c.o_dram_writes[rows] == runs["dram_ofmap_writes"][rows]).all()
    assert c.utilisation_ratio[rows] * 100 == pytest.approx(runs["overall_util_pct"][rows], rel=1e-5)


def test_the_runs_hold_every_case_of_the_forms(runs):
    """Each branch of the DRAM forms is exercised by several runs, or their agreement says little."""
    calc, c = runs["bw_mode"] == "CALC", counted(runs)
    size = runs["N"] * runs["K"]
    is_os = calc & (runs["dataflow"] == "os")
    partly = is_os & (c.b_dram_reads > size) & (c.b_dram_reads < c.b_sram_reads)
    active = scalesim.active_words(runs["filter_sram_kB"] * 1024)
    slab = runs["K"] * np.minimum(runs["cols"], runs["N"])
    cases = {
        "slabs, partly missed": partly,
        "slabs, more than two buffers": partly & (size > 2 * active),
        "slabs larger than the buffer": is_os & (slab >= active) & (c.b_sram_reads > size),
        "a size of just the buffer": calc & (c.a_sram_reads > runs["M"] * runs["K"])
        & (runs["M"] * runs["K"] == scalesim.active_words(runs["ifmap_sram_kB"] * 1024)),
        "padded lines": calc & (c.o_dram_writes > c.o_logical_writes),
        "a drain that is no multiple of a line": calc & (runs["ofmap_sram_kB"] * 512 % runs["cols"] > 0)
        & (c.o_logical_writes > runs["ofmap_sram_kB"] * 512 + 1),
    }  # fmt: skip
    for name, rows in cases.items():
        assert rows.sum() >= 2, name


def flushed_when_full(words, active):
    held, misses = set(), 0
    for word in words:
        if word not in held:
            misses += 1
            held.add(word)
            if len(held) == active:
                held.clear()
    return misses


def folds(size, unit):
    return [range(start, min(start + unit, size)) for start in range(0, size, unit)]


def reads(m, n, k, rows, cols, dataflow):
    """Return the words of A and of B in the order in which the array asks for them, columns of folds outside."""
    a, b = [], []
    first, second = {"os": (m, n), "ws": (k, n), "is": (k, m)}[dataflow]
    for fc in folds(second, cols):
        for fr in folds(first, rows):
            if dataflow == "os":
                a += [(i, l) for l in range(k) for i in fr]  # noqa: E741
                b += [(l, j) for l in range(k) for j in fc]  # noqa: E741
            elif dataflow == "ws":
                a += [(i, l) for i in range(m) for l in fr]  # noqa: E741
                b += [(l, j) for l in fr for j in fc]  # noqa: E741
            else:
                a += [(i, l) for l in fr for i in fc]  # noqa: E741
                b += [(l, j) for j in range(n) for l in fr]  # noqa: E741
    return a, b


@pytest.mark.validates(
    "scalesim", "DRAM reads, small drawn products", "a walk over single words through the tool's buffers", "equal"
)
@settings(max_examples=300)
@given(
    sizes=st.tuples(*[st.integers(1, 14)] * 3),
    array=st.tuples(*[st.integers(1, 6)] * 2),
    dataflow=st.sampled_from(["os", "ws", "is"]),
    sets=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_dram_reads_are_those_of_a_buffer_that_is_flushed_when_full(sizes, array, dataflow, sets):
    m, n, k = sizes
    a, b = reads(m, n, k, *array, dataflow)
    numbers = [np.float64(v) for v in (*sizes, *array)]
    c = scalesim.count(*numbers, np.int64(scalesim.STAYS[dataflow]), 100.0 * sets[0], 100.0 * sets[1], np.float64(1e9))
    assert (c.a_sram_reads, c.b_sram_reads) == (len(a), len(b))
    assert c.a_dram_reads == flushed_when_full(a, 50 * sets[0])
    assert c.b_dram_reads == flushed_when_full(b, 50 * sets[1])


@given(logical=st.integers(1, 5000), cols=st.integers(1, 70), words=st.sampled_from([100, 128, 256, 300, 512, 1024]))
def test_dram_writes_are_those_of_padded_lines(logical, cols, words):
    """Walk over lines: a drain starts when more than half is in, pads the open line, takes whole lines; the padding
    of the last line it takes is not counted."""
    half, written, inside, open_line = words // 2, 0, 0, 0
    lines = []

    def drain():
        nonlocal written, inside
        batch = [lines.pop(0) for _ in range(min(math.ceil(half / cols), len(lines)))]
        taken = cols * (len(batch) - 1) + batch[-1]
        written += taken
        inside -= taken

    for _ in range(logical):
        open_line, inside = open_line + 1, inside + 1
        if open_line == cols:
            lines.append(open_line)
            open_line = 0
        if inside > half:
            if open_line:
                lines.append(open_line)
                open_line = 0
            drain()
    if open_line:
        lines.append(open_line)
    while lines:
        drain()
    one = np.float64(1.0)
    c = scalesim.count(np.float64(logical), one, one, one, np.float64(cols), np.int64(scalesim.STAYS["os"]), 1e9, 1e9,
                       np.float64(words))  # fmt: skip
    assert c.o_dram_writes == written


# ---------------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize(("kind", "scenario"), [("vision-language", {}), ("text", {"batch": 4, "output_tokens": 1})])
def test_the_mode_passes_the_kit_and_its_laws(kind, scenario):
    space = small_space(small_problem(kind, "npu-template", **scenario))
    check_cost_model(catalogue.cost_model("analytical:scalesim"), space, n_rows=60)


def test_products_of_a_model_take_the_tools_cycles():
    """One array, int8: cycles and words of every product equal the closed form, results at 16 bits."""
    from costmodels.chip import Chip
    from costmodels.products import COUNT, K, M, N
    from costmodels.serial import serial_products
    from costmodels.workload import Workload

    problem = small_problem("text")
    space = Space(pe_rows=Choice(8), pe_cols=Choice(16), dataflow=Choice("os"), weight_bits=Choice(8),
                  act_bits=Choice(8), kv_bits=Choice(8), sram_bytes=Choice(3 * 8192)).bind(problem)  # fmt: skip
    batch = space.decode(space.reference_codes())
    planes = Workload(problem).size(batch).phases[0].gemms.planes
    ran = serial_products(planes, Chip(problem.hardware, batch))
    linear = planes[3][0] > 0
    args = [planes[p][0][linear] for p in (M, N, K)]
    c = scalesim.count(
        *args, np.full(1, 8.0), np.full(1, 16.0), np.array([scalesim.STAYS["os"]]), 8192.0, 8192.0, 4096.0
    )
    times = planes[COUNT][0][linear]
    assert ran.cycles[0][linear] == pytest.approx(times * c.cycles, rel=1e-12)
    is_int8 = planes[4][0][linear] == 8
    assert is_int8.any()
    assert ran.a_moved[0][linear][is_int8] == pytest.approx((times * c.a_dram_reads)[is_int8], rel=1e-12)
    assert (ran.b_moved[0][linear] >= (times * args[1] * args[2])).all()  # scales come on top
    assert (ran.o_moved[0][linear] >= 2 * times * args[0] * args[1]).all()


def test_serial_folds_take_longer_than_overlapped_ones():
    """On int8 operands, where a product takes one cycle in both modes."""
    problem = small_problem("text")
    space = Space(pe_rows=Choice(8, 16, 32), pe_cols=Choice(8, 16, 32), dataflow=Choice("os", "ws", "is"),
                  weight_bits=Choice(4, 8), act_bits=Choice(8), kv_bits=Choice(8),
                  dram_bytes_per_s=Choice(1e15)).bind(problem)  # fmt: skip
    batch = space.decode(space.sample(50, np.random.default_rng(0)))
    physical, serial = (
        {p.metric: p for p in catalogue.cost_model(name).prepare(problem).breakdown(batch)}["latency_s"]
        for name in ("analytical", "analytical:scalesim")
    )

    def array_s(part):
        chosen = [i for i, label in enumerate(part.labels) if label[2] == "linear" and label[3] == "compute"]
        return part.parts[:, chosen].sum(axis=1)

    assert (array_s(serial) > array_s(physical)).all()


def test_the_mode_is_for_accelerators_and_has_a_name():
    with pytest.raises(HardwareError, match="is a device"):
        catalogue.cost_model("analytical:scalesim").prepare(small_problem(hardware="b200-sxm-180gb"))
    with pytest.raises(NameUnknown, match="scalesm"):
        catalogue.cost_model("analytical:scalesm")


def test_laws_it_does_not_declare_are_broken():
    """More memory can cost traffic. Ten slabs of 30 words, each read twice. With 100 active words 3 fit, and 3 flushes
    cost 100 - 90 words each; with 150 active words 4 fit, and 2 flushes cost 150 - 120 each."""
    numbers = [np.float64(v) for v in (4, 30, 10, 2, 3)]
    words = np.array([200.0, 300.0])
    c = scalesim.count(*numbers, np.int64(scalesim.STAYS["os"]), words, words, words)
    assert c.b_dram_reads.tolist() == [330, 360]
    laws = catalogue.cost_model("analytical:scalesim").laws
    assert "more_sram_never_costs_time" not in laws
    assert "fewer_bits_never_cost_bytes" not in laws
    assert "traffic_at_least_compulsory" in laws


def test_many_products_at_once_are_the_same_products():
    rng = np.random.default_rng(0)
    n = scalesim.CHUNK + 7
    numbers = [rng.integers(1, 300, n).astype(float) for _ in range(5)]
    stays, words = rng.integers(0, 3, n), [100.0 * rng.integers(1, 90, n) for _ in range(3)]
    whole = scalesim.count(*numbers, stays, *words)
    some = rng.integers(0, n, 50)
    part = scalesim.count(*(a[some] for a in numbers), stays[some], *(a[some] for a in words))
    for a, b in zip(whole, part, strict=True):
        assert (a[some] == b).all()


def test_a_study_names_the_mode_and_reads_it_back(tmp_path):
    from dse import Scenario, Study
    from dse.results import Results
    from dse.store import open_store
    from dse.testing.samples import small_model

    study = Study(
        "serial", model=small_model("text"), scenario=Scenario(prompt_tokens=7, output_tokens=5),
        hardware="npu-template", space=Space(pe_rows=Choice(8, 16, 32), pe_cols=Choice(8, 16, 32)),
        objectives="min latency_s, min area_mm2", cost_models=("analytical:scalesim", "prior"), proposers="random",
    )  # fmt: skip
    study.run(8, db=tmp_path / "a.db", report=lambda _: None, executor="local")
    store = open_store(str(tmp_path / "a.db"), read_only=True)
    found = Results.load(store, "serial")
    store.close()
    assert found.design(0).provenance["cost_model.hardware"].startswith("analytical:scalesim ")
    latency = next(p for p in found.breakdown(0) if p.metric == "latency_s")
    assert latency.parts.sum() == pytest.approx(found.design(0).metrics.values["latency_s"][0])
