"""The serving cost model: what it agrees with at its ends, what it refuses, what it reports."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from costmodels.capacity import CONTEXT_BYTES, ENGINES, capacity
from costmodels.policy import PolicyModel
from costmodels.serving import Serving
from dse.designs import DesignBatch
from dse.errors import TableError, UserError
from dse.hardware import read_hardware
from dse.model import read_model
from dse.params import Choice
from dse.policy import Policy
from dse.problem import Problem
from dse.scenario import Scenario
from dse.space import Space

H100 = "h100-sxm-80gb"
REQUEST = {"prompt_tokens": 512, "output_tokens": 65}


def _problem(model="llama-3.1-8b", hardware=H100, roles=None, policy=None, **scenario):
    request = Scenario(**(REQUEST | {"n_requests": 200} | scenario))
    models = {"target": model} | (roles or {})
    return Problem({r: read_model(m) for r, m in models.items()}, request, read_hardware(hardware),
                   policy=policy or Policy())  # fmt: skip


def _batch(problem, **knobs) -> DesignBatch:
    space = Space({path.replace("__", "/"): Choice(*dict.fromkeys(values)) for path, values in knobs.items()})
    bound = space.bind(problem)
    n = max(len(values) for values in knobs.values())
    rows = [
        bound.codes_of({path.replace("__", "/"): v[min(i, len(v) - 1)] for path, v in knobs.items()})[0]
        for i in range(n)
    ]
    return bound.decode(np.concatenate(rows))


def _values(problem, options="", **knobs):
    return Serving(options).prepare(problem).evaluate(_batch(problem, **knobs))


@pytest.mark.parametrize(
    ("model", "extra"), [("llama-3.1-8b", {}), ("qwen2.5-vl-3b", {"images": 1, "image_px": (448, 448)})]
)
def test_requests_that_never_meet_take_what_a_request_alone_takes(model, extra, validated):
    """One request at a time, the next one long after: encode, prefill and decode of the model for whole requests."""
    problem = _problem(model, trace=[(1e3 * i, 512, 65) for i in range(20)], **extra)
    batch = _batch(problem, batch=[1])
    served, alone = Serving().prepare(problem).evaluate(batch), PolicyModel().prepare(problem).evaluate(batch)
    assert served.values["queue_s"][0] == 0.0
    for name, tolerance in (("ttft_s", 0.02), ("tpot_s", 0.005), ("latency_s", 0.005)):
        assert served.values[name][0] == pytest.approx(alone.values[name][0], rel=tolerance)
    validated(
        "serving", f"a request that meets no other, {model}", "`policy`", 20,
        {f"{name} off by {{}} %": 100 * max(abs(served.values[name][0] / alone.values[name][0] - 1), 1e-6)
         for name in ("ttft_s", "tpot_s", "latency_s")}, "2 %, 0.5 %, 0.5 %", digits=1,
    )  # fmt: skip
    for name in ("ttft", "tpot", "latency"):
        spread = [served.values[f"{name}_{p}_s"][0] for p in ("p50", "p95", "p99")]
        assert spread == pytest.approx([served.values[f"{name}_s"][0]] * 3)


def test_more_load_waits_longer_and_is_told():
    waits, loads = [], []
    for rate in (2.0, 8.0, 12.0):
        found = _values(_problem(requests_per_s=rate), batch=[8])
        if found.status[0] == 0:
            waits.append(found.values["latency_p95_s"][0])
            loads.append(found.values["load_ratio"][0])
    assert waits == sorted(waits)
    assert loads == sorted(loads)
    assert len(waits) >= 2
    assert max(loads) < 1


def test_a_rate_beyond_capacity_is_infeasible_by_so_much():
    found = _values(_problem(requests_per_s=1e4), batch=[8])
    assert "requests arrive at 10" in found.reason(0)
    assert "grows without end" in found.reason(0)
    most = _values(_problem(), batch=[8]).values["throughput_requests_per_s"][0]
    assert not _values(_problem(requests_per_s=0.5 * most), batch=[8]).reason(0)
    assert _values(_problem(requests_per_s=1.5 * most), batch=[8]).reason(0)


def test_a_trace_is_served_whatever_its_rate():
    trace = [(0.01 * i, 100 + i, 20) for i in range(300)]
    found = _values(_problem(trace=trace), batch=[4])
    assert not found.reason(0)
    assert found.values["load_ratio"][0] > 1
    assert found.values["n_waiting"][0] > 4
    with pytest.raises(TableError, match="sort the trace"):
        _problem(trace=[(1.0, 5, 5), (0.5, 5, 5)])


def test_goodput_counts_requests_within_all_limits():
    free = _values(_problem(requests_per_s=8.0), batch=[16])
    median = free.values["latency_p50_s"][0]
    limited = _values(_problem(requests_per_s=8.0, latency_slo_s=float(median)), batch=[16])
    ratio = limited.values["goodput_requests_per_s"][0] / free.values["throughput_requests_per_s"][0]
    assert ratio == pytest.approx(0.5, abs=0.01)
    assert free.values["goodput_requests_per_s"][0] == free.values["throughput_requests_per_s"][0]


def test_little_s_law_and_the_timeline_hold_in_a_run_of_a_model():
    problem = _problem(requests_per_s=10.0, n_requests=400)
    batch = _batch(problem, batch=[16], prefill_chunk=[256])
    evaluator = Serving("5").prepare(problem)
    values = evaluator.evaluate(batch).values
    present = values["n_running"][0] + values["n_waiting"][0]
    assert present == pytest.approx(values["throughput_requests_per_s"][0] * values["latency_s"][0], rel=1e-9)
    seen = evaluator.timeline(batch)
    assert seen.n_running.max() <= 16
    assert seen.kv_occupancy_ratio.max() == pytest.approx(values["kv_peak_ratio"][0])
    assert (seen.prompt_tokens <= 256).all()
    assert seen.prompt_tokens.sum() == 400 * 512
    assert (np.diff(seen.end_s) > 0).all()


def test_seeds_are_arguments():
    problem = _problem(requests_per_s=8.0)
    one, again, other = (_values(problem, seed, batch=[8]).values["latency_s"][0] for seed in ("1", "1", "2"))
    assert one == again
    assert one != other


def test_a_small_cache_preempts_and_one_that_reserves_does_not():
    """An RTX 4090 holds about 40,000 positions of Llama-3.1-8B: 256 requests that grow to 1,100 do not all fit."""
    problem = _problem(hardware="rtx-4090", prompt_tokens=100, output_tokens=1000, n_requests=300)
    vllm, reserving = (_values(problem, options, batch=[256]).values for options in ("", "0,trtllm"))
    assert vllm["preemption_ratio"][0] > 0
    assert vllm["kv_peak_ratio"][0] > 0.95
    assert reserving["preemption_ratio"][0] == 0


def test_energy_and_cost_per_token_are_those_of_the_run():
    found = _values(_problem(), batch=[32]).values
    price = read_hardware(H100).price_usd_per_hour[0]
    tokens_per_hour = 3600 * found["throughput_tokens_per_s"][0]
    assert found["million_tokens_cost_usd"][0] == pytest.approx(1e6 * price / tokens_per_hour)
    assert found["million_tokens_energy_j"][0] == pytest.approx(1e6 * found["energy_j"][0] / 65)
    assert found["energy_j"][0] / 65 * found["throughput_tokens_per_s"][0] < read_hardware(H100).power_w * 1.01


def test_speculation_pays_with_few_requests():
    roles = {"draft": "llama-3.2-1b"}
    found = _values(
        _problem(roles=roles, policy=Policy({"draft": 0.8}), requests_per_s=0.5, n_requests=50),
        target__draft=["none", "draft"], target__draft_tokens=[3], batch=[4],
    )  # fmt: skip
    plain, guessed = found.values["tpot_s"]
    assert guessed < plain
    assert found.values["kv_capacity_tokens"][1] < found.values["kv_capacity_tokens"][0]


def test_what_it_cannot_serve_is_refused():
    with pytest.raises(UserError, match="serving:7"):
        Serving("abc")
    found = _values(_problem(), n_devices=[2], pipeline_parallel=[2])
    assert "pipeline" in found.reason(0)
    found = _values(_problem("llama-3.1-70b"), batch=[1])
    assert "memory" in found.reason(0) or "GiB" in found.reason(0)


def _tokens(reported_bytes, requests, used_ratio):
    """Positions that vLLM has room for, of Llama-3.1-8B in bfloat16: 8,030,261,248 weights, 131,072 bytes each."""
    one = np.ones(1)
    engine = ENGINES["vllm"]._replace(used_ratio=used_ratio)
    room = capacity(reported_bytes, 2 * 8_030_261_248 * one, 0 * one, requests * one, 128_256,
                    131_072 * 1024 * one, 1024 * one, engine)  # fmt: skip
    items = room.item(0)
    kept = ("reserved_bytes", "weight_bytes", "activation_bytes", "context_bytes", "kv_bytes")
    assert sum(items[name] for name in kept) == pytest.approx(items["reported_bytes"])
    assert items["context_bytes"] == CONTEXT_BYTES
    return float(room.n_blocks[0]) * 16


def test_room_of_real_vllm_runs(validated):
    """LLMServingSim bench/examples/*/vllm/meta.json: tokens that vLLM reports.

    RTX 4090 (vLLM 0.19, 0.9 used, 256 requests at a time; outputs/sim.log): 41,408. RTX PRO 6000 (vLLM 0.28,
    0.92 used, 128 requests): 574,608, a device that no constant was read from.
    """
    for name, version, requests, used, reported in (
        ("rtx-4090", "0.19", 256, 0.9, 41_408),
        ("rtx-pro-6000-blackwell-server", "0.28", 128, 0.92, 574_608),
    ):
        found = _tokens(read_hardware(name).memory_bytes, requests, used)
        assert found == pytest.approx(reported, rel=0.03)
        validated(
            "serving", f"room for keys and values of Llama-3.1-8B, {name}, {used} used, {requests} requests",
            f"vLLM {version}: {reported:,} tokens", 1,
            {"{} tokens": round(found), "off by {} %": 100 * (found / reported - 1)}, "3 %", digits=2,
        )  # fmt: skip


@pytest.mark.slow
def test_the_study_of_a_235b_model_climbs_to_the_simulation(tmp_path):
    study = runpy.run_path(str(Path(__file__).parents[2] / "studies" / "vlm_235b_serving.py"))["study"]
    study.run(trials=12, db=tmp_path / "s.db", executor="local")
    front = study.front()
    assert len(front) >= 1
    assert "serving=simulated" in str(front)
