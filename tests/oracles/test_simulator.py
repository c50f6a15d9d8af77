"""The simulator against timelines worked out by hand, recurrences, closed forms of the mapping, and SCALE-Sim."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.machine import (
    ARRAY_S,
    BEGIN,
    BUSY,
    END,
    N_COLUMNS,
    N_SUMS,
    N_TIMES,
    READ_BYTES,
    READ_WAIT_S,
    RESOURCE,
    SPARE,
    VECTOR_S,
    WRITE_BYTES,
    WRITE_WAIT_S,
    Log,
    no_log,
)  # fmt: skip
from costmodels.scalesim import STAYS
from costmodels.simpass import SECONDS
from costmodels.simulator import Simulated
from costmodels.streams import run_serial
from costmodels.systolic import OUTPUT_STATIONARY, Tiles, pace, run_product
from costmodels.tilesim import N_LEVELS, Array, Product, run_tiles
from dse import Choice, Space, Study, catalogue
from dse.cli.main import run as dse
from dse.errors import UserError
from dse.testing.samples import small_problem, small_space
from tests.benchmarks.__main__ import FIXED_TILES, FREE_TILES, llava_space
from tests.benchmarks.simulator import agreement, flagship_space

RUNS = Path(__file__).parents[1] / "data" / "scalesim_runs.csv.gz"
ORDERS = ["".join(p) for p in itertools.permutations("mnk")]


def simulate(
    m, k, n, *, tiles, order="mnk", rows=1, cols=1, cores=1, stays=OUTPUT_STATIONARY, freq=1.0, bandwidth=1.0,
    sram=1e12, count=1, bits=(8, 8), log=None,
):  # fmt: skip
    """Return the seconds and sums of products on a machine that starts idle."""
    a_bits, b_bits = (float(b) for b in bits)
    meets = pace(float(rows), float(cols), stays, 0, a_bits, b_bits, float(b_bits > 8))
    cut = [float(min(tile, size)) for tile, size in zip(tiles, (m, n, k), strict=True)]
    mapping = Tiles(*cut, *(float(order.index(axis)) for axis in "mnk"))
    product = Product(count, float(m), float(k), float(n), a_bits / 8, b_bits / 8, meets, mapping, 0.0, 0.0)
    array = Array(float(rows), float(cols), float(cores), stays, float(freq), float(bandwidth), float(sram))
    sums = np.zeros(N_SUMS)
    t, kept = np.empty(N_TIMES), np.empty((N_LEVELS, N_TIMES + N_SUMS))
    return run_tiles(product, array, log or no_log(), 0, 0.0, t, kept, sums), sums


def full_log(most=200_000):
    return Log(np.empty((most, N_COLUMNS)), np.zeros(1, np.int64), np.zeros((2, 8)), np.ones(1))


# One row of A (10 bytes) and four columns of B (10 bytes each), one element of the array, one byte per second: the
# first load takes 20 s, each further column 10 s, each result (2 bytes) 2 s. Memory for A, two columns and one sum is
# 34 bytes; the output's place is then free once its result is written. At 1 cycle per second a column takes 10 s:
#   port      A, B0 0-20 | B1 20-30 | W0 30-32 | B2 32-42 | W1 42-44 | B3 44-54 | W2 54-56 | W3 66-68
#   array               B0 20-30      B1 32-42              B2 44-54              B3 56-66
# At a tenth, 100 s: B0 20-120, W0 120-122, B1 122-222, W1 222-224, ... W3 426-428.
# At ten times, 1 s: B0 20-21; B1 20-30, W0 30-32, work 32-33; B2 32-42, W1 42-44, work 44-45; B3 44-54, W2 54-56,
# work 56-57, W3 57-59.
# With 38 bytes there are two outputs:
#   port      A, B0 0-20 | B1 20-30 | W0 30-32 | B2 32-42 | W1 42-44 | B3 44-54 | W2 54-56 | W3 64-66
#   array               B0 20-30  B1 30-40         B2 42-52              B3 54-64
@pytest.mark.parametrize(
    ("freq", "sram", "seconds"), [(1.0, 34, 68), (0.1, 34, 428), (10.0, 34, 59), (1.0, 38, 66), (0.1, 38, 422)]
)
def test_four_columns_by_hand(freq, sram, seconds):
    found, sums = simulate(1, 10, 4, tiles=(1, 1, 10), order="mnk", freq=freq, sram=sram)
    assert found == pytest.approx(seconds, rel=1e-12)
    assert sums[BUSY] == pytest.approx(40 / freq)
    assert sums[READ_WAIT_S] + sums[WRITE_WAIT_S] == pytest.approx(seconds - 40 / freq)
    assert (sums[READ_BYTES], sums[WRITE_BYTES]) == (50, 8)
    assert sums[READ_WAIT_S] >= 20


def test_one_buffer_by_hand():
    # Two products of one column: memory for one column and one row (1 x 10 each) and a result of 4 bytes. Both operands
    # of the second replace those of the first once they are used: load 20, work 10, write 2, load 20, work 10, write 2.
    # The write comes first, since what is loaded has to wait anyway.
    tight, _ = simulate(1, 10, 1, tiles=(1, 1, 10), count=2, sram=24)
    assert tight == 64
    # With room for a second pair they are loaded during the work: load 0-20, 20-40, work 20-30, write 40-42, work
    # 42-52, write 52-54.
    roomy, _ = simulate(1, 10, 1, tiles=(1, 1, 10), count=2, sram=44)
    assert roomy == 54


@pytest.mark.validates("simulated", "double-buffered products", "their recurrence", "equal")
@given(
    k=st.integers(1, 200), tile=st.integers(1, 40), freq=st.sampled_from([0.1, 0.5, 1.0, 3.0, 10.0]),
    bits=st.sampled_from([(8, 8), (16, 8), (8, 16)]),
)  # fmt: skip
def test_double_buffers_follow_their_recurrence(k, tile, freq, bits):
    """arrive(i + 1) = max(arrive(i), end(i - 1)) + load(i + 1), end(i) = max(end(i - 1), arrive(i)) + work(i)."""
    pieces = [min(tile, k - start) for start in range(0, k, tile)]
    loads = [p * (bits[0] + bits[1]) / 8 for p in pieces]
    works = [max(p * (2 if 16 in bits else 1), 1) / freq for p in pieces]
    ends, arrive = [0.0, 0.0], 0.0
    for load, work in zip(loads, works, strict=True):
        arrive = max(arrive, ends[-2]) + load
        ends.append(max(ends[-1], arrive) + work)
    found, _ = simulate(1, k, 1, tiles=(1, 1, tile), freq=freq, bits=bits)
    assert found == pytest.approx(ends[-1] + 2, rel=1e-9)
    if k % tile == 0:  # equal tiles: the closed form
        closed = loads[0] + (len(pieces) - 1) * max(loads[0], works[0]) + works[0] + 2
        assert found == pytest.approx(closed, rel=1e-9)


drawn = {
    "m": st.integers(1, 60), "k": st.integers(1, 60), "n": st.integers(1, 60),
    "tiles": st.tuples(*[st.integers(1, 40)] * 3), "order": st.sampled_from(ORDERS), "rows": st.integers(1, 9),
    "cols": st.integers(1, 9), "cores": st.integers(1, 4), "stays": st.integers(0, 2), "count": st.integers(1, 12),
    "bandwidth": st.sampled_from([0.1, 1.0, 7.0, 100.0]), "bits": st.sampled_from([(8, 8), (16, 8), (8, 4), (16, 16)]),
    "sram": st.sampled_from([0.0, 4e3, 1e9]),
}  # fmt: skip


@pytest.mark.validates(
    "simulated", "traffic, and array cycles on one core, drawn products", "closed forms of `analytical`", "equal"
)
@given(**drawn)
def test_traffic_and_cycles_against_the_closed_forms(m, k, n, **o):
    """Bytes are those of the mapping; time is at least that of the array and of the port, and its parts add up."""
    seconds, sums = simulate(m, k, n, **o)
    a_bits, b_bits = (float(b) for b in o["bits"])
    meets = pace(float(o["rows"]), float(o["cols"]), o["stays"], 0, a_bits, b_bits, float(b_bits > 8))
    cut = [float(min(tile, size)) for tile, size in zip(o["tiles"], (m, n, k), strict=True)]
    at = (float(o["order"].index(axis)) for axis in "mnk")
    sizes = (float(x) for x in (o["count"], m, k, n, a_bits, k * n * b_bits / 8, o["rows"], o["cols"], o["cores"]))
    closed = run_product(*sizes, o["stays"], meets, Tiles(*cut, *at), 2.0)
    moved = closed.a_moved + closed.b_moved + closed.o_moved
    assert sums[READ_BYTES] + sums[WRITE_BYTES] == pytest.approx(moved, rel=1e-9)
    assert seconds >= closed.cycles * (1 - 1e-9)  # at one cycle per second
    assert seconds >= moved / o["bandwidth"] * (1 - 1e-9)
    assert sums[BUSY] + sums[READ_WAIT_S] + sums[WRITE_WAIT_S] == pytest.approx(seconds, rel=1e-9)
    assert sums[[READ_WAIT_S, WRITE_WAIT_S]].min() >= 0
    if o["cores"] == 1:  # then no core is idle, and the array works exactly as long as in closed form
        assert sums[BUSY] == pytest.approx(closed.cycles - (o["rows"] + o["cols"] - 2), rel=1e-9)


@pytest.mark.validates("simulated", "periods that are skipped", "walking every step", "equal to 1e-9")
@given(**drawn)
def test_skipped_periods_equal_the_whole_walk(m, k, n, **o):
    log = full_log()
    skipped, sums = simulate(m, k, n, **o)
    walked, walked_sums = simulate(m, k, n, **o, log=log)
    assert skipped == pytest.approx(walked, rel=1e-9)
    assert sums == pytest.approx(walked_sums, rel=1e-9, abs=1e-9 * walked)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("stays", range(3))
def test_long_runs_are_skipped_and_equal_the_walk(order, stays):
    """Hundreds of tiles and products, so that every level of loops repeats."""
    o = {"tiles": (5, 7, 9), "order": order, "rows": 4, "cols": 3, "stays": stays, "count": 9, "sram": 1e3}
    for bandwidth in (0.3, 3.0, 30.0):
        log = full_log()
        skipped, sums = simulate(53, 101, 75, **o, bandwidth=bandwidth)
        walked, walked_sums = simulate(53, 101, 75, **o, bandwidth=bandwidth, log=log)
        assert skipped == pytest.approx(walked, rel=1e-9)
        assert sums == pytest.approx(walked_sums, rel=1e-9, abs=1e-9 * walked)


@given(**drawn)
def test_a_faster_part_never_costs_time(m, k, n, **o):
    before, _ = simulate(m, k, n, **o)
    assert simulate(m, k, n, **(o | {"bandwidth": 1.3 * o["bandwidth"]}))[0] <= before * (1 + 1e-9)
    assert simulate(m, k, n, **o, freq=1.7)[0] <= before * (1 + 1e-9)


@given(**drawn)
def test_one_thing_at_a_time(m, k, n, **o):
    """Transfers share one port, slices one array; the events are what the sums say."""
    log = full_log()
    seconds, sums = simulate(m, k, n, **o, log=log)
    events = log.events[: log.n_events[0]]
    port, array = events[events[:, RESOURCE] <= 1], events[events[:, RESOURCE] == 2]
    for of_one in (port, array, events[(events[:, RESOURCE] == SPARE) | (events[:, RESOURCE] <= 1)]):
        assert (of_one[1:, BEGIN] >= of_one[:-1, END] * (1 - 1e-12)).all()
    assert (array[:, END] - array[:, BEGIN]).sum() == pytest.approx(sums[BUSY], rel=1e-9)
    moved = sums[READ_BYTES] + sums[WRITE_BYTES]
    assert (port[:, END] - port[:, BEGIN]).sum() * o["bandwidth"] == pytest.approx(moved, rel=1e-9)
    assert events[:, END].max() == pytest.approx(seconds)
    assert log.moved_bytes.sum() == pytest.approx(moved, rel=1e-9)


def test_serial_folds_equal_every_run_of_scalesim(validated):
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(RUNS.read_bytes()).decode())))
    assert len(rows) >= 1000
    t, sums, log = np.empty(N_TIMES), np.zeros(N_SUMS), no_log()
    n_equal = 0
    for r in rows:
        sides = (float(r[c]) for c in ("M", "N", "K", "rows", "cols"))
        found = run_serial(*sides, STAYS[r["dataflow"]], t, sums, log)
        assert found == float(r["total_cycles"]) - float(r["stall_cycles"]), r
        n_equal += 1
    validated(
        "simulated",
        "compute cycles, folds walked one by one",
        "SCALE-Sim 3.0.0",
        len(rows),
        {"{} equal": n_equal},
        "all",
    )


def test_whole_models_against_the_analytical_one():
    """Same laws, same traffic; never faster than the array, the lanes or the port alone."""
    space = small_space()
    batch = space.decode(space.sample(120, np.random.default_rng(3)))
    problem = space.schema.problem
    evaluator = Simulated().evaluator(problem)
    found = evaluator.evaluate(batch)
    closed = catalogue.cost_model("analytical").prepare(problem).evaluate(batch)
    assert [found.reason(i) for i in range(120)] == [closed.reason(i) for i in range(120)]
    assert (found.status == closed.status).all()
    ok = found.status == 0
    assert 0 < ok.sum() < 120
    assert found.values["dram_bytes"][ok] == pytest.approx(closed.values["dram_bytes"][ok], rel=1e-9)
    assert (found.values["latency_s"] >= closed.values["dram_bytes"] / batch["dram_bytes_per_s"] * (1 - 1e-9))[ok].all()
    for name in ("array", "vector", "dram"):
        ratio = found.values[f"{name}_utilisation_ratio"][ok]
        assert ((ratio >= 0) & (ratio <= 1)).all()
    for run in evaluator.run(batch):
        parts = sum(run.results[:, :, 1 + of] for of in (BUSY, READ_WAIT_S, WRITE_WAIT_S))
        assert parts == pytest.approx(run.results[:, :, SECONDS], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "space"),
    [("LLaVA-1.5-7B, tiles fixed per design", lambda: llava_space(**FIXED_TILES)),
     ("LLaVA-1.5-7B, mapper free", lambda: llava_space(**FREE_TILES)),
     ("Qwen2.5-VL-3B, flagship space", flagship_space)],
)  # fmt: skip
def test_random_designs_of_whole_models_rank_as_analytically(title, space, validated):
    found = agreement(space())
    n = round(found["designs that run"])
    assert found["rank correlation of latency"] >= 0.98
    assert found["least simulated latency over lower bound"] >= 1 - 1e-9
    percentiles = {f"{p} %": found[f"simulated over analytical, {p} %"] for p in (50, 90, 100)}
    validated(
        "simulated", f"latency, {title}", "`analytical`", n,
        {"rank correlation {}": found["rank correlation of latency"],
         "ratio: median {}": percentiles["50 %"], "90 % {}": percentiles["90 %"], "largest {}": percentiles["100 %"],
         "least over the bound of array, lanes or DRAM alone {}": found["least simulated latency over lower bound"]},
        "rank 0.98, never below the bound", digits=4,
    )  # fmt: skip


def traced(phase="prefill", most=10**6, row=0):
    space = small_space(small_problem(), block_keep=None, sram_bytes=None, tile_m=None, tile_n=None, tile_k=None)
    design = space.decode(space.sample(5, np.random.default_rng(1))).take([row])
    evaluator = Simulated().evaluator(space.schema.problem)
    document = json.loads(json.dumps(Simulated().trace(space.schema.problem, design, phase, most)))
    return document, next(run for run in evaluator.run(design) if run.name == phase)


@pytest.mark.parametrize("row", range(5))
@pytest.mark.parametrize("phase", ["encode", "prefill", "decode"])
def test_a_trace_shows_what_the_sums_say(phase, row):
    document, run = traced(phase, row=row)
    about, events = document["otherData"], [e for e in document["traceEvents"] if e["ph"] == "X"]
    assert about["is_whole"]
    assert not about["note"]
    assert about["seconds"] == pytest.approx(float(run.total(SECONDS)[0]))
    by_thread = {i: sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["tid"] == i) for i in range(4)}
    for spans in (sorted(by_thread[0] + by_thread[1]), by_thread[2], by_thread[3]):
        assert all(b[0] >= a[1] - 1e-9 * about["seconds"] * 1e6 for a, b in itertools.pairwise(spans))
    busy = {i: sum(end - begin for begin, end in spans) / 1e6 for i, spans in by_thread.items()}
    assert busy[2] == pytest.approx(float(run.total(1 + ARRAY_S)[0]), rel=1e-6)
    assert busy[3] == pytest.approx(float(run.total(1 + VECTOR_S)[0]), rel=1e-6)
    moved = {i: sum(e["args"]["bytes"] for e in events if e["tid"] == i) for i in (0, 1)}
    assert moved[0] == pytest.approx(float(run.total(1 + READ_BYTES)[0]), rel=1e-6)
    assert moved[1] == pytest.approx(float(run.total(1 + WRITE_BYTES)[0]), rel=1e-6)
    rates = [e["args"] for e in document["traceEvents"] if e["ph"] == "C"]
    width = about["seconds"] / len(rates)
    assert sum(r["read"] + r["write"] for r in rates) * width * 1e9 == pytest.approx(moved[0] + moved[1], rel=1e-6)
    assert {e["args"]["name"] for e in document["traceEvents"] if e["ph"] == "M"} >= {"array", "DRAM read"}


def test_a_trace_that_is_cut_says_so():
    document, _ = traced(most=20)
    assert not document["otherData"]["is_whole"]
    assert document["otherData"]["note"].startswith("cut: the first 20 of ")
    assert sum(e["ph"] == "X" for e in document["traceEvents"]) <= 40


def test_what_cannot_be_traced_is_refused():
    with pytest.raises(UserError, match="training"):
        traced("training")
    space = small_space()
    batch = space.decode(space.sample(60, np.random.default_rng(0)))
    bad = np.flatnonzero(Simulated().prepare(space.schema.problem).evaluate(batch).status)[0]
    with pytest.raises(UserError, match="cannot run"):
        Simulated().trace(space.schema.problem, batch.take([bad]), "prefill", 100)


def test_a_study_at_fidelity_simulated_and_its_trace(tmp_path, capsys):
    problem = small_problem()
    study = Study(
        "sim", model=problem.models["target"], scenario=problem.scenario, hardware="npu-template",
        space=Space(pe_rows=Choice(8, 16, 32)),
        objectives="min latency_s, min energy_j", cost_models=("simulated", "prior"), proposers="random",
    )  # fmt: skip
    results = study.run(3, db=tmp_path / "a.db", executor="local", report=lambda _: None)
    assert (results.metrics.values["array_utilisation_ratio"] > 0).all()
    assert results.metrics.basis["latency_s"] == "simulated"
    kinds = {kind for *_, kind in next(b for b in results.breakdown(0) if b.metric == "latency_s").labels}
    assert kinds <= {"compute", "waiting for reads", "waiting for writes"}
    db, out = str(tmp_path / "a.db"), tmp_path / "t.json"
    assert dse(["trace", "sim", "0", "--db", db, "--out", str(out)]) == 0
    assert json.loads(out.read_text())["traceEvents"]
    before = out.read_bytes()
    assert dse(["trace", "sim", "0", "--db", db, "--out", str(out), "--phase", "decode"]) != 0
    assert "exists" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert dse(["trace", "sim", "0", "--db", db, "--out", str(out), "--phase", "decode", "--overwrite"]) == 0
    assert out.read_bytes() != before
