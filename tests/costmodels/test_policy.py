"""Whole requests under a policy: equal to single models without one, and every choice priced."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodels.analytical import Analytical
from costmodels.policy import PolicyModel
from costmodels.prior import Prior, PriorEvaluator
from costmodels.speculation import tokens_per_step
from costmodels.steps import Steps
from costmodels.surrogate import Surrogate, SurrogateEvaluator
from dse.acceptance import Acceptance
from dse.cascades import CascadeProfile, CascadeTable, StageProfile
from dse.designs import DesignBatch
from dse.errors import NameUnknown, SpaceError, TableError, UserError
from dse.hardware import read_hardware
from dse.model import read_model
from dse.model.drafters import eagle_head, medusa_heads
from dse.params import Choice
from dse.policy import EAGER, Policy
from dse.problem import TARGET, Problem
from dse.scenario import Scenario
from dse.schema import Schema
from dse.space import Space
from dse.study import Study
from dse.testing.conformance import check_cost_model
from dse.testing.samples import small_policy_problem, small_problem, small_profile, small_space

H100 = "h100-sxm-80gb"


def _problem(models, policy, hardware=H100, **scenario):
    request = Scenario(**{"prompt_tokens": 256, "output_tokens": 129, **scenario})
    return Problem({r: read_model(m) if isinstance(m, str) else m for r, m in models.items()}, request,
                   read_hardware(hardware), policy=policy)  # fmt: skip


def _values(problem, **knobs):
    """The metrics of one design per value; a knob of one role is written as role__knob."""
    listed = {name.replace("__", "/"): values for name, values in knobs.items()}
    space = Space({path: Choice(*dict.fromkeys(values)) for path, values in listed.items()}).bind(problem)
    n = max(len(v) for v in listed.values())
    rows = [space.codes_of({path: v[min(i, len(v) - 1)] for path, v in listed.items()})[0] for i in range(n)]
    return PolicyModel().prepare(problem).evaluate(space.decode(np.concatenate(rows)))


@pytest.mark.parametrize("hardware", ["npu-template", H100])
def test_without_choices_it_is_the_two_groups_below(hardware):
    problem = small_problem(hardware=hardware)
    space = small_space(problem, act_bits=Choice(8, 16, per="component"))
    batch = space.decode(space.sample(20, np.random.default_rng(2)))
    found = PolicyModel().prepare(problem).evaluate(batch)
    single, prior = Analytical().prepare(problem).evaluate(batch), Prior().prepare(problem).evaluate(batch)
    assert found.status.tolist() == single.status.tolist()
    ok = found.status == 0
    for name in ("ttft_s", "weight_bytes", "kv_bytes", "memory_bytes"):
        np.testing.assert_allclose(found.values[name][ok], single.values[name][ok], rtol=1e-12)
    steps = Steps(problem, TARGET)
    first = steps.workload.prompt_tokens(batch) + 1
    decode = sum(steps.decode(batch, first + i).seconds[1] for i in range(4))
    np.testing.assert_allclose(found.values["latency_s"][ok], (single.values["ttft_s"] + decode)[ok], rtol=1e-12)
    np.testing.assert_allclose(found.values["energy_j"][ok], single.values["energy_j"][ok], rtol=0.01)
    for name in ("quality_loss", "accuracy_ratio"):
        np.testing.assert_allclose(found.values[name][ok], prior.values[name][ok], rtol=1e-12)
    assert (found.values["latency_p99_s"][ok] == found.values["latency_s"][ok]).all()
    assert not found.values["escalation_ratio"][ok].any()


@pytest.mark.parametrize("hardware", ["npu-template", H100])
def test_the_kit_on_a_problem_with_every_policy_knob(hardware):
    space = small_space(small_policy_problem(hardware), act_bits=Choice(8, 16, per="component"))
    check_cost_model(PolicyModel(), space, n_rows=40)


def test_the_breakdown_adds_up_and_names_roles():
    space = small_space(small_policy_problem())
    batch = space.decode(space.sample(30, np.random.default_rng(4)))
    evaluator = PolicyModel().prepare(space.schema.problem)
    (parts,), values = evaluator.breakdown(batch), evaluator.evaluate(batch).values["latency_s"]
    ok = np.isfinite(values)
    np.testing.assert_allclose(parts.parts.sum(axis=1)[ok], values[ok], rtol=1e-12)
    assert {label[0] for label in parts.labels} == {"stage1", TARGET}
    assert {"draft", "target", "self-test", "prefill"} <= {label[2] for label in parts.labels}


def test_a_speculative_step_is_drafts_and_a_pass_over_all_guesses():
    """From the steps: T - 1 = 128 tokens at E a step, each 4 passes of the drafter and one over 5 positions."""
    problem = _problem({TARGET: "qwen2.5-coder-7b", "draft": "qwen2.5-coder-0.5b"}, Policy({"draft": 0.8}), batch=8)
    found = _values(problem, target__draft=["none", "draft"], target__draft_tokens=[4])
    batch = DesignBatch(Schema(problem), {}, 1)
    own, drafter, first = Steps(problem, TARGET), Steps(problem, "draft"), np.array([257.0])
    step = own.decoding(batch, first + 4, 128, tokens=np.array([5.0])).seconds[1]
    step = step + 4 * drafter.decoding(batch, first, 128).seconds[1]
    mean = float(tokens_per_step(0.8, 4))
    plain, guessed = found.values["latency_s"] - found.values["ttft_s"]
    assert plain == pytest.approx(128 * own.decoding(batch, first, 128).seconds[1][0], rel=1e-12)
    # The last step overshoots by less than a step.
    assert 128 / mean * step[0] < guessed < (128 / mean + 1) * step[0]
    assert found.values["n_tokens_per_step"].tolist() == pytest.approx([1.0, 3.3616])
    more = found.values["weight_bytes"][1] - found.values["weight_bytes"][0]
    assert more == pytest.approx(read_model("qwen2.5-coder-0.5b").weight_bytes(), rel=1e-3)
    assert found.values["ttft_s"][1] > found.values["ttft_s"][0]


def test_verification_is_not_free_once_it_is_bound_by_compute():
    """2.47 tokens a step at 0.6 and 8 guesses: almost free for one sequence, 2,304 rows and over the ridge for 256."""
    problem = _problem({TARGET: "llama-3.1-8b"}, Policy({"ngram": 0.6}))
    found = _values(problem, draft=["none", "ngram", "none", "ngram"], draft_tokens=[8], batch=[1, 1, 256, 256])
    plain, guessed, plain_many, guessed_many = found.values["tpot_s"]
    assert plain / guessed == pytest.approx(2.47, rel=0.1)
    assert plain_many / guessed_many < 1.0


def test_the_free_look_ahead_is_the_best_and_none_where_none_pays():
    problem = _problem({TARGET: "llama-3.1-8b", "draft": "llama-3.2-1b"}, Policy({"draft": 0.75}))
    found = _values(problem, target__draft=["draft"], target__draft_tokens=[0, 1, 2, 3, 4, 5, 6, 8, 10, 12])
    best = found.values["tpot_s"][1:].min()
    assert found.values["tpot_s"][0] == pytest.approx(best, rel=1e-3)
    useless = _problem({TARGET: "llama-3.2-1b", "draft": "llama-3.2-1b"}, Policy({"draft": 0.3}))
    found = _values(useless, target__draft=["draft", "none"], target__draft_tokens=[0])
    assert found.values["n_draft_tokens"][0] == 0
    assert found.values["tpot_s"][0] == found.values["tpot_s"][1]


def test_compressing_either_model_lowers_acceptance():
    problem = _problem({TARGET: "llama-3.1-8b", "draft": "llama-3.2-1b"}, Policy({"draft": 0.8}))
    found = _values(problem, target__draft=["draft"], target__draft_tokens=[4], target__weight_bits=[16, 16, 4, 4],
                    draft__weight_bits=[16, 4, 16, 4])  # fmt: skip
    tokens = found.values["n_tokens_per_step"]
    assert tokens[0] > max(tokens[1], tokens[2]) >= min(tokens[1], tokens[2]) > tokens[3]
    low, high = found.intervals["latency_s"]
    assert (low < found.values["latency_s"]).all()
    assert (found.values["latency_s"] < high).all()


def test_heads_cost_their_own_weights_alone():
    target = read_model("vicuna-7b-v1.3")
    models = {TARGET: target, "draft": eagle_head(target), "draft2": medusa_heads(target, 4)}
    problem = _problem(models, Policy({"draft": Acceptance.of_mean(3.5, 5, nodes=25, width=5)}))
    found = _values(problem, target__draft=["none", "draft", "draft2"])
    weights = found.values["weight_bytes"]
    # EAGLE: 2 h x h with bias, and a block of 4 h^2 + 3 h f + 2 h; Medusa: four times h^2 + h + h V. 16 bits each.
    h, f, v = 4096, 11008, 32000
    assert weights[1] - weights[0] == 2 * (2 * h * h + h + 4 * h * h + 3 * h * f + 2 * h)
    assert weights[2] - weights[0] == 2 * 4 * (h * h + h + h * v)
    assert found.values["tpot_s"][1] < found.values["tpot_s"][0]


def test_the_host_bounds_a_pass_from_below():
    models = {TARGET: "llama-3.2-1b"}
    quick, slow = (_values(_problem(models, p), target__draft=["none"]) for p in (Policy(), Policy(host=EAGER)))
    assert slow.values["tpot_s"][0] == max(quick.values["tpot_s"][0], EAGER.pass_s + 16 * EAGER.block_s)


def test_a_cascade_is_its_stages_with_their_weights():
    """Two of four queries are kept: (L1 + 3 tests) each, L2 on top for the others."""
    score, right = np.array([[0.9, 0], [0.8, 0], [0.2, 0], [0.1, 0]]), np.array([[1, 1], [0, 1], [0, 1], [1, 0]])
    tests = np.repeat(np.array([1.0, 1.0, 0.0, 0.0])[:, None, None], 2, axis=1) * np.ones((1, 1, 3))
    table = CascadeTable(("stage1", TARGET), score, right.astype(float), None, tests)
    problem = _problem({TARGET: "llama-3.1-8b", "stage1": "llama-3.2-1b"}, Policy(cascade=table, test_tokens=10))
    found = _values(problem, cascade=["target", "stage1", "stage1+target", "stage1+target"], threshold=[0.5],
                    self_tests=[0, 0, 0, 3])  # fmt: skip
    large, small, both, tested = found.values["latency_s"]
    assert both == pytest.approx(small + large / 2, rel=1e-12)
    assert tested == pytest.approx(both + 30 * found.values["tpot_s"][1], rel=1e-9)
    assert found.values["escalation_ratio"].tolist() == [0, 0, 0.5, 0.5]
    # Right: query 1 by the first stage, query 3 by the target: 2 of 4, where the target alone has 3.
    assert found.values["accuracy_ratio"].tolist() == pytest.approx([1.0, 2 / 3, 2 / 3, 2 / 3])
    assert found.values["latency_p50_s"][2] == pytest.approx(small)
    assert found.values["latency_p95_s"][2] == pytest.approx(small + large)
    weights = found.values["weight_bytes"]
    assert weights[2] == pytest.approx(weights[0] + weights[1])
    assert found.values["energy_j"][2] == pytest.approx(found.values["energy_j"][1] + found.values["energy_j"][0] / 2)


def test_a_compressed_stage_passes_on_more():
    profile = CascadeProfile({"stage1": StageProfile(0.7, 0.85), TARGET: StageProfile(0.8, 0.7)})
    problem = _problem({TARGET: "llama-3.1-8b", "stage1": "llama-3.2-1b"}, Policy(cascade=profile))
    found = _values(problem, cascade=["stage1+target"], stage1__weight_bits=[16, 4, 3], stage1__threshold=[0.6])
    assert (np.diff(found.values["escalation_ratio"]) > 0).all()
    assert (np.diff(found.values["accuracy_ratio"]) < 0).all()
    low, high = found.intervals["escalation_ratio"]
    assert (low <= found.values["escalation_ratio"]).all()
    assert (found.values["escalation_ratio"] <= high).all()
    assert (high[1:] - low[1:] > 0).all()


def test_the_prior_of_a_role_is_that_of_the_model_alone():
    problem = small_policy_problem()
    space = Space({"stage1/weight_bits": Choice(4, 16), "target/weight_bits": Choice(3, 16)}).bind(problem)
    batch = space.decode(space.codes_of({"stage1/weight_bits": 4, "target/weight_bits": 3})[0])
    for role, bits in (("stage1", 4), (TARGET, 3), ("draft", 16)):
        alone = Problem({TARGET: problem.models[role]}, problem.scenario, problem.hardware)
        single = Space(weight_bits=Choice(bits)).bind(alone)
        expected = Prior().prepare(alone).evaluate(single.decode(single.reference_codes())).values["quality_loss"]
        assert PriorEvaluator(problem, role).evaluate(batch).values["quality_loss"] == expected


def test_a_policy_survives_its_json_and_is_in_the_hash(tmp_path):
    log = tmp_path / "steps.csv"
    log.write_text("drafted,accepted\n4,2\n4,4\n")
    problem = _problem({TARGET: "llama-3.1-8b", "draft": "llama-3.2-1b"}, Policy({"draft": str(log)}))
    back = Problem.from_json(json.loads(json.dumps(problem.to_json())))
    assert back.content_hash == problem.content_hash
    other = _problem({TARGET: "llama-3.1-8b", "draft": "llama-3.2-1b"}, Policy({"draft": 0.5}))
    assert other.content_hash != problem.content_hash


def test_more_guesses_than_the_log_knows_cannot_run():
    problem = _problem({TARGET: "llama-3.1-8b", "draft": "llama-3.2-1b"}, Policy({"draft": Acceptance((0.8, 0.7))}))
    found = _values(problem, target__draft=["draft"], target__draft_tokens=[2, 3])
    assert found.status.tolist() == [0, 1]
    assert "known to guess 2 token(s) ahead" in found.reason(1)


def test_context_beyond_a_drafter_cannot_run():
    problem = _problem({TARGET: "vicuna-7b-v1.3", "draft": "vicuna-68m"}, Policy(), prompt_tokens=2000)
    found = _values(problem, target__draft=["draft"])
    assert "vicuna-68m takes 2,048" in found.reason(0).replace("2048", "2,048")


def test_what_cannot_be():
    profile = CascadeProfile({"stage1": StageProfile(0.7, 0.8), TARGET: StageProfile(0.8, 0.7)})
    with pytest.raises(UserError, match="vocabulary of 32000"):
        _problem({TARGET: "llama-3.1-8b", "draft": "vicuna-68m"}, Policy())
    with pytest.raises(NameUnknown, match=r"drafter in policy\.acceptance"):
        _problem({TARGET: "llama-3.1-8b"}, Policy({"drat": 0.5}))
    with pytest.raises(UserError, match="nothing says how well"):
        _problem({TARGET: "llama-3.1-8b", "stage1": "llama-3.2-1b"}, Policy())
    with pytest.raises(NameUnknown, match=r"stage in policy\.cascade"):
        _problem({TARGET: "llama-3.1-8b"}, Policy(cascade=profile))
    with pytest.raises(UserError, match="takes no images"):
        _problem(
            {TARGET: "qwen2.5-vl-7b", "stage1": "qwen2.5-coder-7b"},
            Policy(cascade=profile),
            images=1,
            image_px=(64, 64),
        )
    problem = _problem(
        {TARGET: "llama-3.1-8b", "stage1": "vicuna-68m", "draft": "llama-3.2-1b"}, Policy(cascade=profile)
    )
    with pytest.raises(SpaceError, match="draft has a vocabulary of 128256, stage1 one of 32000"):
        Space({"stage1/draft": Choice("draft")}).bind(problem)
    with pytest.raises(NameUnknown, match="drafter in"):
        Space({"target/draft": Choice("dreft")}).bind(problem)
    with pytest.raises(SpaceError, match="cannot guess for itself"):
        Space({"target/draft": Choice("target")}).bind(problem)
    with pytest.raises(NameUnknown, match="cascade in"):
        Space(cascade=Choice("target+stage1")).bind(problem)
    with pytest.raises(SpaceError, match="no policy"):
        Space(draft=Choice("ngram")).bind(
            Problem({TARGET: read_model("llama-3.1-8b")}, problem.scenario, problem.hardware)
        )
    with pytest.raises(SpaceError, match="stages before the target"):
        Space(threshold=Choice(0.5)).bind(_problem({TARGET: "llama-3.1-8b"}, Policy()))


def test_the_study_in_the_docs_can_be_made():
    text = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
    found = {}
    exec(text.split("```python\n")[1].split("```")[0], found)
    assert found["study"].evaluation.models[0].name == "policy"
    assert "latency_p95_s" in found["study"].evaluation.metrics


def _profiled(*roles):
    problem = small_policy_problem()
    return replace(problem, quality={role: small_profile(problem.models[role], i) for i, role in enumerate(roles)})


def test_a_role_with_a_profile_is_judged_by_it_and_another_by_the_prior():
    """The stage by its profile alone, the target by the prior: as both say of the single models."""
    problem, plain = _profiled("stage1"), small_policy_problem()
    knobs = {"stage1/weight_bits": Choice(3, 16), "target/weight_bits": Choice(3, 16)}
    space = Space(knobs, cascade=Choice("stage1", "target", "stage1+target"), draft=Choice("none")).bind(problem)
    designs = [
        {"stage1/weight_bits": 3, "target/weight_bits": 3, "cascade": c} for c in ("stage1", "target", "stage1+target")
    ]
    batch = space.decode(np.concatenate([space.codes_of(d)[0] for d in designs]))
    found, before = (PolicyModel().prepare(p).evaluate(batch) for p in (problem, plain))
    alone = Problem({TARGET: problem.models["stage1"]}, problem.scenario, problem.hardware,
                    quality={TARGET: problem.quality["stage1"]})  # fmt: skip
    single = Space(weight_bits=Choice(3)).bind(alone)
    kept = Surrogate().prepare(alone).evaluate(single.decode(single.reference_codes())).values["accuracy_ratio"][0]
    # Of 2,048 queries the stage is right in 60 %, the target in 80 %.
    right = problem.policy.answers.table().correct.mean(axis=0)
    assert found.values["accuracy_ratio"][0] == pytest.approx(kept * right[0] / right[1], rel=1e-12)
    assert found.values["accuracy_ratio"][1] == before.values["accuracy_ratio"][1]
    assert found.values["accuracy_ratio"][0] != before.values["accuracy_ratio"][0]
    assert found.basis["accuracy_ratio"] == before.basis["accuracy_ratio"] == "prior"
    both = PolicyModel().prepare(_profiled("stage1", TARGET)).evaluate(batch)
    assert both.basis["accuracy_ratio"] == "surrogate"
    # Measured twice, so less is open than with published tables of other models.
    low, high = both.intervals["escalation_ratio"]
    wide = before.intervals["escalation_ratio"]
    assert (high - low)[2] < (wide[1] - wide[0])[2]


def test_acceptance_follows_the_measured_loss_of_target_and_drafter():
    """(1 - a')^2 = (1 - a)^2 + (d_target + d_draft) / pi with a = 0.7 and both losses from the profiles."""
    problem = _profiled(TARGET, "draft")
    knobs = {"draft/weight_bits": Choice(2, 16), "target/weight_bits": Choice(2, 16)}
    space = Space(knobs, draft=Choice("draft"), draft_tokens=Choice(4), cascade=Choice("target")).bind(problem)
    designs = [{"target/weight_bits": t, "draft/weight_bits": d} for t in (2, 16) for d in (2, 16)]
    batch = space.decode(np.concatenate([space.codes_of(d)[0] for d in designs]))
    found = PolicyModel().prepare(problem).evaluate(batch)
    loss = sum(SurrogateEvaluator(problem, r).evaluate(batch).values["quality_loss"] for r in (TARGET, "draft"))
    rate = 1 - np.sqrt(0.3**2 + loss / np.pi)
    assert loss[3] == 0.0
    assert (loss[:3] > 0.01).all()
    np.testing.assert_allclose(found.values["n_tokens_per_step"], tokens_per_step(rate, 4), rtol=1e-12)


def test_a_profile_is_in_the_fingerprint_and_has_to_cover_the_space():
    plain, with_one = small_policy_problem(), _profiled("stage1")
    assert PolicyModel().prepare(plain).fingerprint != PolicyModel().prepare(with_one).fingerprint
    rows = tuple(r for r in with_one.quality["stage1"].rows if "mlp" not in r.group)
    few = replace(with_one.quality["stage1"], rows=rows)
    with pytest.raises(TableError, match="no measurement of weight_bits"):
        Study("few", model=plain.models, scenario=plain.scenario, hardware=plain.hardware, policy=plain.policy,
              quality={"stage1": few}, space=Space({"stage1/weight_bits": Choice(2, 16, per="block.module")}),
              objectives="min latency_s")  # fmt: skip


@pytest.mark.parametrize("images", [0, 1])
def test_solutions_and_generated_tests_are_paid(images):
    """Two solutions of 128 further tokens, the second one's first token too, and three tests of 10, written once.

    Queries 1 and 2 are wrong at first and right at second; query 1's second solution passes all tests, query 2's none.
    """
    score, wrong = np.full((2, 2), 0.5), np.array([[0.0, 1.0], [0.0, 1.0]])
    fails, passes = np.zeros((2, 2, 3)), np.ones((2, 2, 3)) * np.array([1.0, 0.0])[:, None, None]
    second = CascadeTable(("stage1", TARGET), score, np.ones((2, 2)), None, passes)
    table = CascadeTable(("stage1", TARGET), score, wrong, None, fails, further=(second,))
    models = {TARGET: "qwen2.5-vl-7b", "stage1": "qwen2.5-vl-3b"}
    scenario = {"images": images, "image_px": (448, 448)} if images else {}
    problem = _problem(models, Policy(cascade=table, test_tokens=10), **scenario)
    found = _values(problem, cascade=["stage1", "stage1+target", "stage1+target", "target", "target"], threshold=[1.0],
                    self_tests=[0, 3, 3, 0, 3], solutions=[1, 1, 2, 1, 2])  # fmt: skip
    assert found.status.tolist() == [0] * 5
    small, one, two, large, best = found.values["latency_s"]
    token, token_large = found.values["tpot_s"][0], found.values["tpot_s"][3]
    assert one == pytest.approx(small + 30 * token + large, rel=1e-9)
    assert two == pytest.approx(small + (129 + 30) * token + (large + (129 + 30) * token_large) / 2, rel=1e-9)
    assert best == pytest.approx(large + (129 + 30) * token_large, rel=1e-9)
    assert found.values["escalation_ratio"].tolist() == [0.0, 1.0, 0.5, 0.0, 0.0]
    assert found.values["accuracy_ratio"].tolist() == pytest.approx([0.0, 1.0, 1.0, 1.0, 1.0])
    # One answer of 129 tokens is delivered, however many were written.
    assert found.values["throughput_tokens_per_s"][4] == pytest.approx(129 / best)


def test_more_solutions_than_the_log_has_cannot_run():
    profile = CascadeProfile({"stage1": StageProfile(0.7, 0.8), TARGET: StageProfile(0.8, 0.7)})
    problem = _problem({TARGET: "llama-3.1-8b", "stage1": "llama-3.2-1b"}, Policy(cascade=profile))
    found = _values(problem, cascade=["stage1+target"], solutions=[1, 2])
    assert found.status.tolist() == [0, 1]
    assert "1 solution(s) of each stage, the design writes 2" in found.reason(1)


def test_qwen_tables_of_two_paddings_are_one_vocabulary():
    """151,936 and 152,064 rows: the same tokeniser, padded to multiples of 128 and 256."""
    _problem({TARGET: "qwen2.5-coder-32b", "draft": "qwen2.5-coder-0.5b"}, Policy({"draft": 0.7}))
