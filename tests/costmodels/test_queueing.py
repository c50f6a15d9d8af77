"""Waiting in closed form: textbook queues, the simulation, the rung below it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.queueing import Queueing
from costmodels.serving import Serving
from costmodels.waiting import LEVELS, line, total
from dse.cascades import CascadeProfile, StageProfile
from dse.designs import DesignBatch
from dse.errors import UserError
from dse.hardware import read_hardware
from dse.ladder import Rung
from dse.model import read_model
from dse.params import Choice
from dse.policy import Policy
from dse.problem import Problem
from dse.scenario import Scenario
from dse.space import Space
from dse.study import Study

LONG = np.full(1, 1e12)
REQUEST = {"prompt_tokens": 512, "output_tokens": 65, "n_requests": 2000}


def _one(*values):
    return [np.full(1, float(v)) for v in values]


def _served(rate, n):
    """An engine that serves each request in places at its own pace: M/M/n."""
    return rate * np.arange(1.0, n + 1)[None, :]


@given(st.floats(0.05, 0.95), st.floats(0.0, 3.0))
def test_at_one_place_the_mean_is_that_of_pollaczek_and_khinchine(load, cv2):
    found = line(*_one(load), np.ones((1, 1)), np.ones(1), 1.0, np.full(1, cv2), np.full(1, 1.0 + cv2), LONG)
    assert found.wait_s[0] == pytest.approx(load * (1 + cv2) / (2 * (1 - load)), rel=1e-12)
    assert found.idle_ratio[0] == pytest.approx(1 - load, rel=1e-12)


@pytest.mark.parametrize(("servers", "load"), [(2, 0.5), (5, 0.8), (40, 0.9)])
def test_exponential_lengths_wait_as_erlang_has_it(servers, load):
    """Erlang C: P(wait) = a^c / c! / (1 - rho) / (sum_k<c a^k / k! + the same), E[W] = P(wait) / (c mu - lambda)."""
    a = servers * load
    last = a**servers / math.factorial(servers) / (1 - load)
    waits = last / (sum(a**k / math.factorial(k) for k in range(servers)) + last)
    found = line(*_one(a), _served(1.0, servers), np.full(1, servers), 1.0, np.ones(1), np.full(1, 1.5), LONG)
    assert found.wait_s[0] == pytest.approx(waits / (servers - a), rel=1e-10)
    # Who waits in M/M/c waits exponentially.
    expected = [max(0.0, -math.log((1 - u) / waits) / (servers - a)) for u in LEVELS]
    assert found.waits_s[0] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_with_places_for_all_those_present_are_poisson():
    found = line(*_one(7.0), _served(1.0, 80), np.full(1, 80), 1.0, np.zeros(1), np.ones(1), LONG)
    expected = [math.exp(-7.0) * 7.0**k / math.factorial(k) for k in range(1, 30)]
    assert found.chances[0, :29] == pytest.approx(expected, rel=1e-9)
    assert found.wait_s[0] < 1e-40
    assert total(found.chances)[0] + found.idle_ratio[0] == pytest.approx(1.0)


@given(st.integers(1, 30), st.floats(0.1, 0.9), st.floats(0.01, 0.09))
def test_more_arrivals_wait_longer_and_fewer_places_too(places, load, more):
    served = 1.0 / (0.3 + 0.7 / np.arange(1.0, places + 1))[None, :]  # slower each, faster together
    few, many = (
        line(*_one(rate * served[0, -1]), served, np.full(1, places), 1.0, np.zeros(1), np.ones(1), LONG)
        for rate in (load, load + more)
    )
    assert many.wait_s[0] > few.wait_s[0]
    assert (many.waits_s >= few.waits_s - 1e-12).all()


def test_beyond_capacity_the_line_grows_by_what_is_not_served():
    found = line(*_one(2.0), np.ones((1, 1)), np.ones(1), 1.0, np.zeros(1), np.ones(1), np.full(1, 100.0))
    assert not found.is_stable[0]
    assert found.wait_s[0] == pytest.approx(100 * (1.0 - 0.5) / 2)


def _problem(model="llama-3.1-8b", hardware="h100-sxm-80gb", roles=None, policy=None, **scenario):
    models = {"target": model} | (roles or {})
    return Problem({r: read_model(m) for r, m in models.items()}, Scenario(**(REQUEST | scenario)),
                   read_hardware(hardware), policy=policy or Policy())  # fmt: skip


def _batch(problem, **knobs) -> DesignBatch:
    space = Space({path.replace("__", "/"): Choice(*values) for path, values in knobs.items()}).bind(problem)
    return space.decode(space.reference_codes()) if all(len(v) == 1 for v in knobs.values()) else space.decode(
        np.concatenate([space.codes_of({"batch": b})[0] for b in knobs["batch"]])
    )  # fmt: skip


def test_at_batch_1_a_model_waits_as_m_d_1():
    """S is the time of a request alone; all are alike: E[W] = lambda S^2 / (2 (1 - lambda S))."""
    alone = Queueing().prepare(_problem(requests_per_s=1e-6)).evaluate(_batch(_problem(), batch=[1])).values
    service = alone["latency_s"][0]
    assert alone["queue_s"][0] < 1e-5 * service
    for load in (0.3, 0.8):
        problem = _problem(requests_per_s=load / service, n_requests=10**9)
        found = Queueing().prepare(problem).evaluate(_batch(problem, batch=[1])).values
        assert found["queue_s"][0] == pytest.approx(load * service / (2 * (1 - load)), rel=1e-5)
        assert found["latency_s"][0] == pytest.approx(found["queue_s"][0] + service, rel=1e-5)


@pytest.mark.parametrize(
    ("model", "extra", "knobs"),
    [
        ("llama-3.1-8b", {"requests_per_s": 12.0}, {"batch": [32]}),
        ("llama-3.1-8b", {"requests_per_s": 12.0}, {"batch": [64], "prefill_chunk": [256]}),
        ("qwen2.5-vl-3b", {"requests_per_s": 8.0, "images": 1, "image_px": (448, 448)}, {"batch": [32]}),
        ("llama-3.1-8b", {"requests_per_s": 6.0}, {"batch": [32], "n_devices": [2]}),
    ],
)
def test_it_agrees_with_the_simulation(model, extra, knobs):
    problem = _problem(model, **extra)
    batch = _batch(problem, **knobs)
    solved, simulated = (m.prepare(problem).evaluate(batch).values for m in (Queueing(), Serving("3")))
    for name, tolerance in (
        ("tpot_s", 0.03), ("latency_s", 0.03), ("latency_p95_s", 0.08), ("throughput_tokens_per_s", 0.05),
        ("capacity_requests_per_s", 0.1), ("ttft_s", 0.1), ("n_running", 0.08), ("energy_j", 0.08), ("cost_usd", 0.05),
    ):  # fmt: skip
        assert solved[name][0] == pytest.approx(simulated[name][0], rel=tolerance), name


def test_all_at_once_is_served_in_waves():
    problem = _problem(n_requests=200)
    batch = _batch(problem, batch=[16])
    solved, simulated = (m.prepare(problem).evaluate(batch).values for m in (Queueing(), Serving()))
    for name in ("throughput_tokens_per_s", "latency_s", "latency_p95_s", "ttft_s"):
        assert solved[name][0] == pytest.approx(simulated[name][0], rel=0.05), name


def test_guesses_shorten_what_a_request_takes():
    problem = _problem(roles={"draft": "llama-3.2-1b"}, policy=Policy({"draft": 0.8}), requests_per_s=1.0)
    space = Space({"target/draft": Choice("draft"), "target/draft_tokens": Choice(3)}, batch=Choice(4)).bind(problem)
    batch = space.decode(space.reference_codes())
    solved, simulated = (m.prepare(problem).evaluate(batch).values for m in (Queueing(), Serving()))
    for name in ("tpot_s", "latency_s"):
        assert solved[name][0] == pytest.approx(simulated[name][0], rel=0.06), name


def test_a_rate_beyond_capacity_is_infeasible_by_so_much_and_a_trace_is_not():
    problem = _problem(requests_per_s=1e4)
    found = Queueing().prepare(problem).evaluate(_batch(problem, batch=[8]))
    assert "requests arrive at 10" in found.reason(0)
    assert "grows without end" in found.reason(0)
    (limit,) = found.limits
    assert limit.excess_ratio[0] > 1
    problem = _problem(trace=[(0.001 * i, 500 + i, 20 + i % 30) for i in range(300)])
    batch = _batch(problem, batch=[4])
    solved, simulated = (m.prepare(problem).evaluate(batch) for m in (Queueing(), Serving()))
    assert not solved.reason(0)
    assert solved.values["load_ratio"][0] > 1
    assert solved.values["latency_s"][0] == pytest.approx(simulated.values["latency_s"][0], rel=0.1)


def test_it_draws_nothing():
    with pytest.raises(UserError, match="queueing:trtllm"):
        Queueing("7")
    assert Queueing("trtllm").engine.reserves
    cascade = CascadeProfile({"stage1": StageProfile(0.6), "target": StageProfile(0.9)})
    with pytest.raises(UserError, match="stage1"):
        Queueing().prepare(_problem(roles={"stage1": "llama-3.2-1b"}, policy=Policy(cascade=cascade)))


def test_it_is_the_rung_below_the_simulation(tmp_path):
    study = Study(
        "chat",
        model="llama-3.1-8b",
        hardware="h100-sxm-80gb",
        policy=Policy(),
        scenario=Scenario(prompt_tokens=256, output_tokens=32, requests_per_s=4.0, n_requests=300),
        space=Space(weight_bits=Choice(8, 16), act_bits=Choice(8, 16), batch=Choice(2, 8, 64)),
        objectives="min latency_p95_s, min energy_j",
        cost_models=["queueing", "prior"],
        ladder=Rung("serving", designs=4),
        trials=12,
    )
    study.run(db=tmp_path / "s.db", executor="local")
    assert "serving=simulated" in str(study.front(tmp_path / "s.db"))
    below = study.front(tmp_path / "s.db", fidelity="queueing")
    assert "serving=analytical" in str(below)
