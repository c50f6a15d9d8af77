"""Fused groups in the simulator: timelines worked out by hand, the bytes of the closed forms, their lower bounds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from costmodels.chip import Chip
from costmodels.groups import CYCLES as GROUP_CYCLES
from costmodels.groups import HELD_BYTES, READ_BYTES, VECTOR_OPS, WRITTEN_BYTES
from costmodels.machine import (
    ARRAY,
    ARRAY_S,
    BUSY,
    N_COLUMNS,
    N_SUMS,
    N_TIMES,
    READ_WAIT_S,
    VECTOR,
    VECTOR_S,
    WRITE_WAIT_S,
    Log,
    no_log,
)  # fmt: skip
from costmodels.machine import READ_BYTES as READ
from costmodels.machine import WRITE_BYTES as WRITTEN
from costmodels.passes import CYCLES
from costmodels.simgroups import (
    FIRST,
    FREED_ARRAY,
    FREED_LANES,
    ITEM_S,
    ITEM_UNIT,
    N_ITEM,
    NEEDS_ARRAY,
    NEEDS_LANES,
    RESULTS,
    WEIGHTS,
    chain,
    run_items,
)
from costmodels.simpass import SECONDS
from costmodels.simulator import Simulated
from costmodels.systolic import OUTPUT_STATIONARY, OneChip
from costmodels.tilesim import N_LEVELS
from dse import Choice, Space, catalogue
from dse.hardware import read_hardware
from dse.model import read_model
from dse.problem import Problem
from dse.scenario import Scenario
from dse.testing.samples import small_problem

SECOND = OneChip(1.0, 1.0, 1.0, OUTPUT_STATIONARY, 0, 0.0, 0.0, 0.0, 1e9, 1.0, 1.0, 1.0)
FORMS = ("fuse_attention", "fuse_mlp", "fuse_norm")


def items_of(*rows):
    """Items as (unit, seconds, weights, first operands, results, item of the lanes that it needs)."""
    out = np.zeros((len(rows), N_ITEM))
    out[:, [NEEDS_ARRAY, NEEDS_LANES, FREED_ARRAY, FREED_LANES]] = -1.0
    for item, (unit, seconds, weights, first, results, needs) in zip(out, rows, strict=True):
        item[ITEM_UNIT], item[ITEM_S], item[WEIGHTS], item[FIRST] = unit, seconds, weights, first
        item[RESULTS], item[NEEDS_LANES] = results, needs
    chain(out, len(out))
    return out


def run(items, copies=1, trips=1, *, keeps=False, has_two=False, log=None):
    t, kept, sums = np.empty(N_TIMES), np.empty((N_LEVELS, N_TIMES + N_SUMS)), np.zeros(N_SUMS)
    return run_items(items, items, copies, trips, keeps, has_two, SECOND, log or no_log(), 0.0, t, kept, sums), sums


@pytest.mark.validates("simulated", "a norm fused with a projection", "timelines by hand", "equal")
# A norm and a projection in two tiles of rows, one byte per second. The norm takes 30 s and 2 bytes of operands, the
# projection 30 s and a byte of weights, and writes a byte. Operands and weights of the first tile come at 0-2 and 2-3;
# those of the second in two parts and one, by 6. With one tile on chip:
#     lanes     norm 2-32             62-92
#     array               32-62               92-122      writes 62-63, 122-123
# With two, the lanes go on while the array works:
#     lanes     norm 2-32   32-62
#     array               32-62   62-92                   writes 62-63, 92-93
# A byte of operands in 20 s and weights in 5 s, 10 s of work each: operands 0-20, weights 20-25, then half the next
# operands 25-35, weights 35-40, the other half 40-50; norm 20-30, projection 30-40, norm 50-60, projection 60-70, and
# 4 bytes of results 50-54 and 70-74.
@pytest.mark.parametrize(
    ("work", "operands", "weights", "results", "has_two", "seconds"),
    [(30, 2, 1, 1, False, 123), (30, 2, 1, 1, True, 93), (10, 20, 5, 4, False, 74), (10, 20, 5, 4, True, 74)],
)
def test_norm_and_projection_by_hand(work, operands, weights, results, has_two, seconds):
    items = items_of((VECTOR, work, 0, operands, 0, -1), (ARRAY, work, weights, 0, results, 0))
    found, sums = run(items, trips=2, has_two=has_two)
    assert found == seconds
    assert (sums[READ], sums[WRITTEN]) == (2 * (operands + weights), 2 * results)
    assert (sums[ARRAY_S], sums[VECTOR_S]) == (2 * work, 2 * work)
    assert sums[BUSY] + sums[READ_WAIT_S] + sums[WRITE_WAIT_S] == found


def test_weights_that_stay_are_read_once():
    items = items_of((VECTOR, 10, 0, 20, 0, -1), (ARRAY, 10, 5, 0, 4, 0))
    assert run(items, trips=4, keeps=True)[1][READ] == 4 * 20 + 5
    assert run(items, copies=3, trips=4, keeps=True)[1][READ] == 3 * (4 * 20 + 5)


@pytest.mark.parametrize("has_two", [False, True])
@pytest.mark.parametrize("work", [1, 9, 30])
@pytest.mark.parametrize(("copies", "trips"), [(1, 40), (40, 1), (9, 11)])
def test_skipped_tiles_equal_the_walk(copies, trips, work, has_two):
    items = items_of((VECTOR, work, 0, 20, 0, -1), (ARRAY, 10, 5, 0, 4, 0), (VECTOR, 3, 0, 0, 1, -1))
    skipped, sums = run(items, copies, trips, has_two=has_two)
    log = Log(np.empty((2000, N_COLUMNS)), np.zeros(1, np.int64), np.zeros((2, 8)), np.ones(1))
    walked, walked_sums = run(items, copies, trips, has_two=has_two, log=log)
    assert log.n_events[0] > 0
    assert skipped == pytest.approx(walked, rel=1e-9)
    assert sums == pytest.approx(walked_sums, rel=1e-9, abs=1e-9 * walked)


def fused_designs(n=40, seed=0, kind="vision-language"):
    problem = small_problem(kind)
    space = Space(
        pe_rows=Choice(4, 8, 16), pe_cols=Choice(4, 8), dataflow=Choice("ws", "os", "is"), n_cores=Choice(1, 2),
        sram_bytes=Choice(2048, 8192, 65536, 2**22), tile_m=Choice(0, 8), loop_order=Choice("auto"),
        weight_bits=Choice(4, 8, 16), attn_tile_q=Choice(0, 8), attn_tile_kv=Choice(0, 16), batch=Choice(1, 2),
        dram_bytes_per_s=Choice("1 GB/s", "100 GB/s"), **{name: Choice(False, True, per="component") for name in FORMS},
    ).bind(problem)  # fmt: skip
    return problem, space.decode(space.sample(n, np.random.default_rng(seed)))


@pytest.mark.validates(
    "simulated",
    "bytes and time of each fused group",
    "closed forms; array, lanes and DRAM alone",
    "equal bytes, never faster",
)
def test_traffic_and_bounds_of_the_closed_forms():
    """Same designs run, every group moves the same bytes, and no group is faster than array, lanes or DRAM alone."""
    problem, batch = fused_designs()
    evaluator, closed = Simulated().evaluator(problem), catalogue.cost_model("analytical").prepare(problem)
    found, expected = evaluator.evaluate(batch), closed.evaluate(batch)
    assert [found.reason(i) for i in range(len(batch))] == [expected.reason(i) for i in range(len(batch))]
    ok = found.status == 0
    assert 0 < ok.sum() < len(batch)
    assert found.values["dram_bytes"][ok] == pytest.approx(expected.values["dram_bytes"][ok], rel=1e-9)
    chip = Chip(problem.hardware, batch)
    skew = (chip.arrays.rows + chip.arrays.cols - 2.0)[:, None]
    n_groups = 0
    for schedule, phase in zip(closed.schedule(batch), evaluator.run(batch), strict=True):
        r, groups = phase.results[ok], schedule.groups[:, ok]
        runs = groups[HELD_BYTES] > 0
        n_groups += runs.sum()
        assert r[:, :, 1 + READ][runs] == pytest.approx(groups[READ_BYTES][runs], rel=1e-9)
        assert r[:, :, 1 + WRITTEN][runs] == pytest.approx(groups[WRITTEN_BYTES][runs], rel=1e-9)
        # The closed form fills and drains the array once per product, which here may overlap within a group.
        members = (schedule.group_of[ok][:, :, None] == np.arange(runs.shape[1])).sum(axis=1)
        cycles = np.maximum(groups[GROUP_CYCLES] - members * skew[ok], 0.0)
        moved = groups[READ_BYTES] + groups[WRITTEN_BYTES]
        lanes = groups[VECTOR_OPS] / (chip.lanes * chip.freq_hz)[ok]
        for bound in (cycles / chip.freq_hz[ok], lanes, moved / chip.dram_bytes_per_s[ok]):
            assert (r[:, :, SECONDS] >= bound * (1 - 1e-9))[runs].all()
        assert r[:, :, 1 + VECTOR_S][runs] == pytest.approx(lanes[runs], rel=1e-9)
        parts = sum(r[:, :, 1 + of] for of in (BUSY, READ_WAIT_S, WRITE_WAIT_S))
        assert parts == pytest.approx(r[:, :, SECONDS], rel=1e-9)
        assert r[:, :, 1 + BUSY][runs].min() > 0
        assert (schedule.products[CYCLES][ok] >= 0).all()
    assert n_groups > 100


def test_a_trace_names_the_operators_of_a_group():
    problem, batch = fused_designs(200)
    every = np.all([batch[name].all(axis=1) for name in FORMS], axis=0)
    runs = Simulated().prepare(problem).evaluate(batch).status == 0
    design = batch.take([int(np.flatnonzero(every & runs)[0])])
    document = json.loads(json.dumps(Simulated().trace(problem, design, "prefill", 10**6)))
    events = [e for e in document["traceEvents"] if e["ph"] == "X"]
    on = {name: {e["tid"] for e in events if e["name"] == name} for name in {e["name"] for e in events}}
    assert 2 in on["decoder.1.mlp.gate_proj"]
    assert 3 in on["decoder.1.mlp.act"]
    assert 2 in on["decoder.1.self_attn.score"]
    assert 3 in on["decoder.1.self_attn.softmax"]
    busy = {tid: sum(e["dur"] for e in events if e["tid"] == tid) / 1e6 for tid in (2, 3)}
    phase = next(p for p in Simulated().evaluator(problem).run(design) if p.name == "prefill")
    assert busy[2] == pytest.approx(float(phase.total(1 + ARRAY_S)[0]), rel=1e-6)
    assert busy[3] == pytest.approx(float(phase.total(1 + VECTOR_S)[0]), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "image_px"), [("qwen2.5-vl-3b", (448, 448)), ("llava-1.5-7b", (336, 336))])
def test_fused_designs_of_whole_models_rank_as_analytically(model, image_px, validated):
    """Forms, tiles, order, on-chip memory, bandwidth and cores drawn, 60 designs."""
    scenario = Scenario(images=1, image_px=image_px, prompt_tokens=64, output_tokens=64)
    problem = Problem({"target": read_model(model)}, scenario, read_hardware("npu-template"))
    space = Space(
        tile_m=Choice(32, 64, 128), tile_n=Choice(64, 128, 256), tile_k=Choice(64, 128, 256),
        loop_order=Choice("mnk", "nmk", "mkn", "nkm"), sram_bytes=Choice("4 MiB", "16 MiB"), n_cores=Choice(1, 2),
        dram_bytes_per_s=Choice("34 GB/s", "136 GB/s"), weight_bits=Choice(4, 8),
        **{name: Choice(False, True, per="component") for name in FORMS},
    ).bind(problem)  # fmt: skip
    batch = space.decode(space.sample(60, np.random.default_rng(0)))
    ours, closed = (catalogue.cost_model(n).prepare(problem).evaluate(batch) for n in ("simulated", "analytical"))
    ok = ours.status == 0
    pair = [column.values["latency_s"][ok] for column in (ours, closed)]
    rank, ratio = np.corrcoef(*(np.argsort(np.argsort(s)) for s in pair))[0, 1], pair[0] / pair[1]
    assert rank >= 0.98
    validated(
        "simulated", f"latency of fused designs, {model}, forms, tiles, order, memory, cores drawn", "`analytical`",
        ok.sum(),
        {"rank correlation {}": rank, "ratio: median {}": np.median(ratio), "90 % {}": np.percentile(ratio, 90),
         "largest {}": ratio.max()}, "rank 0.98", digits=4,
    )  # fmt: skip
