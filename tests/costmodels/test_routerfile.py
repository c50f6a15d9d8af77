"""The cascade router's file: valid by its schema, equal to the design, and routing as the cost model says.

The router of these tests reads the file alone and routes the table's queries one by one; it knows nothing of
costmodels/cascade.py.
"""

import copy
import json
from importlib import resources

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse import catalogue
from dse.cascades import CascadeProfile, StageProfile
from dse.errors import UserError
from dse.export.design import place
from dse.hardware import read_hardware
from dse.metrics import MetricBatch
from dse.model import read_model
from dse.params import Choice, Float
from dse.policy import Policy
from dse.problem import Problem
from dse.protocols import Chosen
from dse.scenario import Scenario
from dse.space import Space
from dse.testing.samples import small_policy_problem, small_problem, small_space
from dse.whatif import evaluate_design

SCHEMA = json.loads((resources.files("dse.export") / "schemas" / "cascade-router-1.json").read_text())


def written(chosen):
    exported = catalogue.exporter("cascade-router").export(chosen)
    document = json.loads(exported.files["cascade-router.json"])
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert all(stage["routing"] for stage in document["stages"][:-1])
    assert document["stages"][-1]["routing"] is None
    assert document["mfm_dse"]["not_expressible"] == list(exported.not_expressible)
    return document


def routed(document, table):
    """Shares of queries that each stage is asked and answers, and of right answers: query by query, by the file."""
    n = len(table.score)
    asked, answered, right = (dict.fromkeys((s["role"] for s in document["stages"]), 0) for _ in range(3))
    for q in range(n):
        for stage in document["stages"]:
            k = table.stages.index(stage["role"])
            asked[stage["role"]] += 1
            rule, several = stage["routing"], stage.get("solutions", {"n_solutions": 1, "chosen_by": "", "n_tests": 0})
            by = several["chosen_by"] or (rule and rule["score"]) or "confidence"
            n_tests = rule["self_tests"]["n_tests"] if rule else several["n_tests"]
            best = -1.0
            for one in table.solutions[: several["n_solutions"]]:
                outcomes = one.tests[q, k, :n_tests]
                score = {"confidence": one.score[q, k], "self_tests": outcomes.sum() / max(len(outcomes), 1)}[by]
                if score > best:
                    best, credit = score, one.correct[q, k]
            if rule is not None and best < rule["keep_from"]:
                continue
            answered[stage["role"]] += 1
            right[stage["role"]] += credit
            break
    return [{role: count / n for role, count in part.items()} for part in (asked, answered, right)]


@pytest.mark.parametrize("hardware", ["npu-template", "h100-sxm-80gb"])
@pytest.mark.parametrize(
    ("threshold", "tests", "solutions"),
    [(0.0, 0, 1), (0.4, 0, 1), (0.7, 0, 2), (1.0, 0, 1), (0.5, 1, 1), (0.6, 3, 1), (1.0, 3, 1), (0.6, 3, 2)],
)
def test_a_router_that_reads_the_file_sees_the_shares_it_states(hardware, threshold, tests, solutions):
    """Uncompressed stages, so that the table is what they answer."""
    problem = small_policy_problem(hardware)
    values = {"cascade": "stage1+target", "threshold": threshold, "self_tests": tests, "solutions": solutions}
    chosen, _ = evaluate_design(problem, values, ("policy",))
    document = written(chosen)
    found = routed(document, problem.policy.answers.table())
    for stage in document["stages"]:
        expected = stage["expected"]
        for shares, name in zip(found, ("asked_ratio", "answered_ratio", "right_ratio"), strict=True):
            assert expected[name] == pytest.approx(shares[stage["role"]], abs=1e-12)
        if expected["asked_ratio"]:
            assert expected["kept_ratio"] == pytest.approx(expected["answered_ratio"] / expected["asked_ratio"])


def _tests_s(stage):
    return (
        stage["routing"]["self_tests"]["all_s"]
        if stage["routing"]
        else stage.get("solutions", {}).get("all_tests_s", 0.0)
    )


def drawn(seed, hardware="h100-sxm-80gb"):
    space = small_space(small_policy_problem(hardware), act_bits=Choice(8, 16, per="component"))
    codes = space.sample(1, np.random.default_rng(seed))
    batch = space.decode(codes)
    metrics = catalogue.cost_model("policy").prepare(space.schema.problem).evaluate(batch)
    return Chosen("study", seed, space.schema.problem, batch, space.values(codes)[0], metrics)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["npu-template", "h100-sxm-80gb"]))
def test_the_file_is_the_design(seed, hardware):
    chosen = drawn(seed, hardware)
    document, design = written(chosen), chosen.design
    roles = [stage["role"] for stage in document["stages"]]
    assert roles == str(design["cascade"][0]).split("+")
    for stage in document["stages"]:
        role = stage["role"]
        assert stage["model"] == chosen.problem.models[role].name
        if stage["routing"]:
            assert stage["routing"]["keep_from"] == design.of_role("threshold", role)[0]
            assert stage["routing"]["self_tests"]["n_tests"] == design.of_role("self_tests", role)[0]
        several = int(design.of_role("solutions", role)[0])
        assert stage.get("solutions", {"n_solutions": 1})["n_solutions"] == several
        drafter, asked = stage["drafter"], int(design.of_role("draft_tokens", role)[0])
        if drafter is None:  # none, or none that pays
            assert design.of_role("draft", role)[0] == "none" or asked == 0
        else:
            assert drafter["role"] == design.of_role("draft", role)[0]
            assert asked in (0, drafter["n_tokens"])
        for owner, said in ((role, stage["design"]), *([(drafter["role"], drafter["design"])] if drafter else [])):
            for name, field in design.schema.fields.items():
                if field.is_scalar or name in ("threshold", "self_tests", "solutions", "draft", "draft_tokens"):
                    continue
                for entry, value, plain in zip(field.entries, design[name][0], field.default, strict=True):
                    if entry.role == owner:
                        assert said.get(name, {}).get(place(field, entry), plain) == value
    metrics = chosen.metrics
    if metrics.status[0] == 0:
        parts = [s["expected"]["asked_ratio"] * (s["expected"]["answer_s"] + _tests_s(s)) for s in document["stages"]]
        assert sum(parts) == pytest.approx(metrics.values["latency_s"][0], rel=1e-9)
        assert sum(s["expected"]["answered_ratio"] for s in document["stages"]) == pytest.approx(1.0)


@pytest.mark.parametrize("target", ["llava-1.5-7b", "qwen2.5-vl-3b", "qwen2.5-coder-7b", "mixtral-8x7b"])
def test_real_models(target):
    large = read_model(target)
    small = read_model("smolvlm-256m" if large.image_rule is not None else "qwen2.5-coder-1.5b")
    images = {"images": 1, "image_px": (640, 480)} if large.image_rule is not None else {}
    profile = CascadeProfile({"stage1": StageProfile(0.6, 0.75), "target": StageProfile(0.8, 0.75)})
    problem = Problem(
        {"target": large, "stage1": small}, Scenario(prompt_tokens=64, output_tokens=32, **images),
        read_hardware("h200-sxm-141gb"), policy=Policy({"ngram": 0.4}, profile),
    )  # fmt: skip
    space = Space(
        {"target/draft": Choice("none", "ngram"), "target/weight_bits": Choice(4, 8, 16, per="block_third.module"),
         "stage1/weight_bits": Choice(4, 8, 16, per="component")},
        cascade=Choice("stage1", "target", "stage1+target"), threshold=Float(0, 1), self_tests=Choice(0, 4),
    ).bind(problem)  # fmt: skip
    for seed in range(3):
        codes = space.sample(1, np.random.default_rng(seed))
        chosen = Chosen("s", seed, problem, space.decode(codes), space.values(codes)[0], MetricBatch({}, 1))
        document = written(chosen)
        names = {"target": large.name, "stage1": small.name}
        assert [s["model"] for s in document["stages"]] == [
            names[r] for r in str(chosen.design["cascade"][0]).split("+")
        ]


def test_the_schema_refuses_what_no_router_could_follow():
    values = {"cascade": "stage1+target", "self_tests": 2}
    document = written(evaluate_design(small_policy_problem(), values, ("policy",))[0])
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)

    def broken(change):
        other = copy.deepcopy(document)
        change(other)
        return not validator.is_valid(other)

    assert broken(lambda d: d.update(format="mfm-dse/cascade-router/2"))
    assert broken(lambda d: d.update(stages=[]))
    assert broken(lambda d: d.update(more=1))
    assert broken(lambda d: d["stages"][0].update(role="stage"))
    assert broken(lambda d: d["stages"][0].pop("drafter"))
    assert broken(lambda d: d["stages"][0].update(checkpoint="../x"))
    assert broken(lambda d: d["stages"][0]["routing"].update(keep_from=1.5))
    assert broken(lambda d: d["stages"][0]["routing"].update(score="confidence"))
    assert broken(lambda d: d["stages"][0]["expected"].update(answer_s=-1))


def test_designs_without_a_choice_of_models_are_refused():
    chosen, _ = evaluate_design(small_problem("text"), {"weight_bits": 4})
    with pytest.raises(UserError, match="nothing to route"):
        catalogue.exporter("cascade-router").export(chosen)
