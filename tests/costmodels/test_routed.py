"""Cascades request by request: what leaves, what waits, and the closed form where nobody meets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.batching import Stage, route, simulate
from costmodels.batchloop import Limits
from costmodels.policy import PolicyModel
from costmodels.queueing import Queueing
from costmodels.serving import Serving
from costmodels.steptable import flat, step_table
from dse.cascades import CascadeProfile, CascadeTable, StageProfile
from dse.errors import UserError
from dse.hardware import read_hardware
from dse.model import read_model
from dse.params import Choice
from dse.policy import Policy
from dse.problem import Problem
from dse.scenario import Scenario
from dse.space import Space

QUERIES = 100


def _stage(prompt, output, step_s, places=8):
    limits = Limits(places, 10_000, 100_000, 16, cuts=False, reserves=False)
    return Stage(np.asarray(prompt), np.asarray(output), limits, step_table(linear=flat(step_s)))


def test_two_stages_worked_out_by_hand():
    """Steps of 1 s at the first stage, 10 s at the second. A and B come at 0, each of 2 tokens, 1 place per stage.

    Apart: A reads and writes 0-2, is passed on, reads and writes 2-22. B 2-4 at the first stage, which answers it.
    Shared, in turn: A 0-2; then turns: the second stage reads A 2-12, the first reads B 12-13, the second writes A
    13-23, the first writes B 23-24.
    """
    stages = [_stage([5, 5], [2, 2], 1.0, 1), _stage([5, 5], [2, 2], 10.0, 1)]
    arrival, last = np.zeros(2), np.array([1, 0])
    first, second = route(arrival, stages, last, apart=True)
    assert first.end_s.tolist() == [2.0, 4.0]
    assert second.arrival_s[0] == 2.0
    assert second.end_s[0] == 22.0
    assert np.isnan(second.end_s[1])
    first, second = route(arrival, stages, last)
    assert first.end_s.tolist() == [2.0, 24.0]
    assert second.first_s[0] == 12.0
    assert second.end_s[0] == 23.0


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.booleans(), st.floats(0.01, 5.0))
def test_every_request_leaves_exactly_once(n, seed, apart, gap):
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(gap, n))
    stages = [_stage(rng.integers(1, 50, n), rng.integers(1, 20, n), s, 4) for s in (0.1, 0.3, 0.7)]
    last = rng.integers(0, 3, n)
    runs = route(arrival, stages, last, apart=apart)
    for k, run in enumerate(runs):
        came = last >= k
        assert (np.isfinite(run.arrival_s) == came).all()
        assert (np.isfinite(run.end_s) == came).all()
        if k:
            assert run.arrival_s[came] == pytest.approx(runs[k - 1].end_s[came])
        # Little: time present of all who came, against the integrals of those running and waiting.
        present = (run.end_s - run.arrival_s)[came].sum()
        assert run.sums.running_s + run.sums.waiting_s == pytest.approx(present, rel=1e-9, abs=1e-9)
        assert run.sums.positions >= (run.prompt + run.output - 1)[came].sum()
    if not apart:  # one clock: busy times do not overlap
        assert sum(run.sums.busy_s for run in runs) <= runs[0].arrival_s.min() + max(r.sums.end_s for r in runs)


def test_a_stage_that_nobody_is_passed_on_from_is_the_simulation_of_one_model():
    rng = np.random.default_rng(3)
    arrival, prompt, output = np.cumsum(rng.exponential(2.0, 200)), rng.integers(1, 99, 200), rng.integers(1, 30, 200)
    one, two = _stage(prompt, output, 0.2), _stage(prompt, output, 0.5)
    alone = simulate(arrival, prompt, output, one.limits, one.table)
    for apart in (False, True):
        first, second = route(arrival, [one, two], np.zeros(200), apart=apart)
        assert (first.end_s == alone.end_s).all()
        assert second.sums.steps == 0


def _table(with_tokens=False, further=0, seed=7):
    rng = np.random.default_rng(seed)
    score = np.round(rng.random((QUERIES, 2)), 3)
    correct = (rng.random((QUERIES, 2)) < [0.6, 0.9]).astype(float)
    tokens = rng.integers(20, 60, (QUERIES, 2)).astype(float) if with_tokens else None
    tests = (rng.random((QUERIES, 2, 3)) < 0.7).astype(float)
    others = tuple(_table(with_tokens, seed=seed + 1 + i) for i in range(further))
    return CascadeTable(("stage1", "target"), score, correct, tokens, tests, further=others)


def _problem(cascade, **scenario):
    models = {"target": "llama-3.1-8b", "stage1": "llama-3.2-1b"}
    given = {"prompt_tokens": 200, "output_tokens": 40, "n_requests": 3 * QUERIES} | scenario
    return Problem({r: read_model(m) for r, m in models.items()}, Scenario(**given), read_hardware("h100-sxm-80gb"),
                   policy=Policy(cascade=cascade, test_tokens=30))  # fmt: skip


def _design(problem, threshold=0.5, self_tests=0, batch=4, cascade="stage1+target", solutions=1):
    space = Space(cascade=Choice(cascade), threshold=Choice(threshold), self_tests=Choice(self_tests),
                  solutions=Choice(solutions), batch=Choice(batch)).bind(problem)  # fmt: skip
    return space.decode(space.reference_codes())


@pytest.mark.parametrize("with_tokens", [False, True])
@pytest.mark.parametrize("self_tests", [0, 2])
def test_where_nobody_meets_the_mixture_is_that_of_the_closed_form(with_tokens, self_tests):
    """Each query comes three times, one every 1,000 s: means and percentiles are those of the table."""
    problem = _problem(_table(with_tokens), trace=[(1e3 * i, 200, 40) for i in range(3 * QUERIES)])
    design = _design(problem, self_tests=self_tests, batch=1)
    served, solved = (m.prepare(problem).evaluate(design).values for m in (Serving(), PolicyModel()))
    assert served["escalation_ratio"][0] == pytest.approx(solved["escalation_ratio"][0], abs=1e-12)
    assert served["queue_s"][0] == 0.0
    for name in ("latency_s", "latency_p50_s", "latency_p95_s", "latency_p99_s"):
        assert served[name][0] == pytest.approx(solved[name][0], rel=0.01), name
    assert served["ttft_s"][0] == pytest.approx(solved["ttft_s"][0], rel=0.02)
    for name in ("accuracy_ratio", "quality_loss"):
        assert served[name][0] == solved[name][0]


@pytest.mark.parametrize("with_tokens", [False, True])
@pytest.mark.parametrize("cascade", ["stage1+target", "target"])
def test_several_solutions_take_what_the_closed_form_says(with_tokens, cascade):
    problem = _problem(_table(with_tokens, further=2), trace=[(1e3 * i, 200, 40) for i in range(3 * QUERIES)])
    design = _design(problem, self_tests=1, batch=1, solutions=3, cascade=cascade)
    served, solved = (m.prepare(problem).evaluate(design) for m in (Serving(), PolicyModel()))
    assert served.status[0] == solved.status[0] == 0
    for name in ("latency_s", "latency_p95_s"):
        assert served.values[name][0] == pytest.approx(solved.values[name][0], rel=0.01), name
    for name in ("accuracy_ratio", "escalation_ratio"):
        assert served.values[name][0] == pytest.approx(solved.values[name][0], abs=1e-12)
    assert served.basis["accuracy_ratio"] == solved.basis["accuracy_ratio"]


def test_solutions_that_nobody_logged_are_refused():
    plain = Problem({"target": read_model("llama-3.2-1b")}, Scenario(prompt_tokens=64, output_tokens=16, n_requests=32),
                    read_hardware("h100-sxm-80gb"), policy=Policy())  # fmt: skip
    space = Space(solutions=Choice(1, 2), batch=Choice(4)).bind(plain)
    designs = space.decode(np.array([[0, 0], [1, 0]]))
    for model in (Serving(), Queueing(), PolicyModel()):
        found = model.prepare(plain).evaluate(designs)
        assert found.status.tolist() == [0, 1], model.name
        assert "1 solution(s) of each stage, the design writes 2" in found.reason(1)
    logged = _problem(_table())
    with pytest.raises(UserError, match="one answer a request; there are those of stage1, target"):
        Queueing().prepare(logged)


def test_escalation_is_that_of_the_table_at_any_load():
    table = _table()
    problem = _problem(table, requests_per_s=20.0)
    values = Serving("4").prepare(problem).evaluate(_design(problem, threshold=0.3, batch=32)).values
    assert values["escalation_ratio"][0] == pytest.approx((table.score[:, 0] < 0.3).mean(), abs=1e-12)
    present = values["n_running"][0] + values["n_waiting"][0]
    assert present == pytest.approx(values["throughput_requests_per_s"][0] * values["latency_s"][0], rel=1e-9)


def test_stages_on_devices_of_their_own_are_faster_and_dearer():
    problem = _problem(_table(), requests_per_s=30.0)
    design = _design(problem, batch=16)
    shared, apart = (Serving(o).prepare(problem).evaluate(design).values for o in ("", "0,apart"))
    assert apart["latency_s"][0] < shared["latency_s"][0]
    assert apart["capacity_requests_per_s"][0] > shared["capacity_requests_per_s"][0]
    assert apart["cost_usd"][0] > 1.5 * shared["cost_usd"][0]
    assert shared["weight_bytes"][0] == pytest.approx(2 * (8.03e9 + 1.236e9), rel=0.01)
    assert apart["weight_bytes"][0] == pytest.approx(2 * 8.03e9, rel=0.01)


def test_compressed_stages_and_cascades_of_one_are_served_too_and_a_flood_is_refused():
    cascade = CascadeProfile({"stage1": StageProfile(0.65, auroc=0.75), "target": StageProfile(0.88)})
    problem = _problem(cascade, requests_per_s=5.0, n_requests=2048)
    space = Space({"stage1/weight_bits": Choice(4, 16)}, cascade=Choice("target", "stage1+target"),
                  threshold=Choice(0.5), batch=Choice(8)).bind(problem)  # fmt: skip
    designs = space.decode(np.concatenate([space.codes_of({"stage1/weight_bits": b, "cascade": c})[0]
                           for b in (4, 16) for c in ("target", "stage1+target")]))  # fmt: skip
    served, solved = (m.prepare(problem).evaluate(designs).values for m in (Serving(), PolicyModel()))
    assert served["escalation_ratio"] == pytest.approx(solved["escalation_ratio"], abs=0.02)
    assert (served["latency_s"] > 0).all()
    flooded = _problem(cascade, requests_per_s=1e4)
    assert "grows without end" in Serving().prepare(flooded).evaluate(_design(flooded)).reason(0)
