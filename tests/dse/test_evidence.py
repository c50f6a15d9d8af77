"""What a proposer can ask of a study: metrics, reasons and parts of designs, effects of knobs, the problem in words."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse import CascadeProfile, Choice, Float, Policy, Scenario, Space, StageProfile, Study
from dse.acceptance import Acceptance
from dse.cascades import CascadeTable
from dse.evaluation import Evaluation
from dse.evidence import Evidence, describe, effects, merge, metric_words, pairs, sensitivities, shares
from dse.objectives import Goal
from dse.protocols import Breakdown, Proposals
from dse.record import Record
from dse.testing.samples import small_model, small_problem

SPACE = Space(
    weight_bits=Choice(4, 8, 16), pe_rows=Choice(4, 16, 64), sram_bytes=Choice("16 KiB", "1 MiB"),
    tile_m=Choice(0, 4000),
).bind(small_problem())  # fmt: skip
GOAL = Goal.parse("min latency_s, min quality_loss", "area_mm2 <= 4")


def kept(codes, batch_rows=3):
    """A record of designs as the loop would have it, told in several batches."""
    from dse.evaluation import hard_violation
    from dse.metrics import MetricBatch

    evaluation, record = Evaluation(SPACE, ("analytical", "prior")), Record(SPACE, GOAL, 0)
    for first in range(0, len(codes), batch_rows):
        rows = codes[first : first + batch_rows]
        groups = evaluation.evaluate(rows)
        joined, excess, n = MetricBatch.join(groups), hard_violation(groups), len(rows)
        record.append(
            rows, GOAL.to_minimise(joined.values, n), GOAL.violation(joined.values, excess),
            GOAL.margins(joined.values, n), np.isinf(excess), np.full(n, -1), [("x", n)],
        )  # fmt: skip
        record.evidence.keep(joined)
    record.evidence.explain = evaluation.explain
    return record, evaluation


def test_metrics_and_reasons_of_any_designs_in_any_order():
    codes = SPACE.sample(11, np.random.default_rng(0))
    record, evaluation = kept(codes)
    evidence = record.view("x", 0, []).evidence
    assert len(evidence) == 11
    assert {"energy_j", "area_mm2", "quality_loss"} <= set(evidence.metrics)
    numbers = np.array([10, 0, 4, 4])
    for group in evaluation.evaluate(codes[numbers]):
        for name, column in group.values.items():
            np.testing.assert_array_equal(evidence.values(numbers)[name], column)
    assert list(evidence.values(numbers, ["energy_j", "nothing"])) == ["energy_j", "nothing"]
    assert np.isnan(evidence.values(numbers, ["nothing"])["nothing"]).all()
    for number in range(11):
        assert bool(evidence.reason(number)) == bool(record.violation()[number] > 0)
    too_large = int(np.flatnonzero((codes[:, 1] == 2) & (record.violation() > 0))[0])
    assert "area_mm2 <= 4 mm2" in evidence.reason(too_large) or "over by" in evidence.reason(too_large)


def test_parts_add_up_and_do_not_depend_on_what_else_is_asked():
    codes = SPACE.repair(np.array([[0, 1, 1, 0], [2, 0, 1, 0], [1, 2, 1, 0]]))
    record, _ = kept(codes)
    together = {b.metric: b for b in record.evidence.breakdown(codes)}
    metrics = record.evidence.values(np.arange(3))
    for name in ("latency_s", "energy_j", "area_mm2", "quality_loss"):
        np.testing.assert_allclose(together[name].parts.sum(axis=1), metrics[name], rtol=1e-9)
    alone = {b.metric: b for b in kept(codes)[0].evidence.breakdown(codes[2:])}
    for name, b in alone.items():
        columns = [together[name].labels.index(label) for label in b.labels]
        np.testing.assert_array_equal(together[name].parts[2, columns], b.parts[0])


def test_a_cost_model_that_breaks_on_a_breakdown_leaves_its_row_unknown():
    a = ("chip", "all", "area", "array")
    b = ("chip", "all", "area", "memory")

    def explain(codes):
        if codes[0, 0] == 1:
            raise ZeroDivisionError
        return [Breakdown("area_mm2", (a, b) if codes[0, 0] == 0 else (b,), np.arange(1.0, 4 - codes[0, 0])[None])]

    evidence = Evidence(SPACE, GOAL, explain)
    codes = np.zeros((3, 4), dtype=np.uint16)
    codes[:, 0] = 0, 1, 2
    explain_two = lambda c: [Breakdown("area_mm2", (a, b), np.array([[1.0, 3.0]]))] if c[0, 0] == 0 else explain(c)  # noqa: E731
    evidence.explain = explain_two
    (area,) = evidence.breakdown(codes)
    assert area.labels == (a, b)
    np.testing.assert_array_equal(area.parts, [[1.0, 3.0], [np.nan, np.nan], [0.0, 1.0]])
    made_of = shares([area], "area_mm2")
    assert made_of.labels == (b, a)
    np.testing.assert_array_equal(made_of.ratios, [[0.75, 0.25], [np.nan, np.nan], [1.0, 0.0]])
    assert made_of.dominant(0) == (b, 0.75)
    assert made_of.dominant(1) is None
    assert shares([area], "latency_s") is None
    assert Evidence(SPACE, GOAL).breakdown(codes) == []
    assert merge([]) == []


def test_the_time_of_a_phase_is_made_of_its_parts_of_the_latency():
    labels = tuple(("decoder", phase, "linear", kind) for phase in ("prefill", "decode") for kind in ("compute", "kv"))
    whole = Breakdown("latency_s", labels, np.array([[1.0, 3.0, 10.0, 30.0]]))
    made_of = shares([whole], "ttft_s")
    assert made_of.labels == (labels[1], labels[0])
    np.testing.assert_array_equal(made_of.ratios, [[0.75, 0.25]])
    assert shares([whole], "tpot_s").dominant(0) == (labels[3], 0.75)
    nothing = shares([Breakdown("quality_loss", labels[:1], np.zeros((1, 1)))], "quality_loss")
    np.testing.assert_array_equal(nothing.ratios, [[0.0]])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_pairs_are_all_neighbours_that_differ_in_one_parameter(seed):
    rng = np.random.default_rng(seed)
    codes = np.unique(rng.integers(0, 3, size=(rng.integers(0, 25), 4)), axis=0)
    codes = rng.permutation(codes).reshape(-1, 4)
    found = set(zip(*(x.tolist() for x in pairs(codes)), strict=True))
    expected = set()
    for j in range(4):
        rest = np.delete(codes, j, axis=1)
        for a in range(len(codes)):
            line = [b for b in range(len(codes)) if (rest[b] == rest[a]).all() and codes[b, j] > codes[a, j]]
            if line:
                expected.add((j, a, min(line, key=lambda b: codes[b, j])))
    assert found == expected


def test_effects_by_hand():
    record, _ = kept(SPACE.repair(np.array([[0, 0, 1, 0], [0, 1, 1, 0], [2, 1, 1, 0]])))
    history = record.view("x", 0, [])
    y = np.array([[4.0, 0.0], [1.0, 0.0], [2.0, -1.0]])
    found = effects(replace(history, objectives=y, margins=np.array([[-0.5], [0.25], [0.25]])))
    assert found.parameter.tolist() == [0, 1]
    assert (found.low.tolist(), found.high.tolist()) == ([1, 0], [2, 1])
    np.testing.assert_array_equal(found.change, [[0.5, -1.0], [-0.75, 0.0]])
    np.testing.assert_array_equal(found.margin, [[0.0], [0.75]])
    one, two = sensitivities(found)
    assert (one.parameter, one.low_code, one.high_code, one.n_pairs) == (0, 0, 2, 1)
    assert two.change.tolist() == [-0.75, 0.0]
    assert len(effects(replace(history.limited(1)))) == 0


@pytest.mark.parametrize("hardware", ["npu-template", "rtx-4090"])
def test_a_problem_in_words_has_units_and_no_names(hardware):
    problem = small_problem(hardware=hardware)
    text = "\n".join(describe(problem))
    assert "7 prompt tokens, 5 output tokens" in text
    assert "1 images of 140 x 84 px" in text
    assert problem.target.name not in text
    assert problem.hardware.name not in text
    assert "vision of 3 blocks, decoder of 3 blocks" in text
    assert metric_words("latency_s").startswith("latency_s (s): ")


def test_drafters_and_stages_are_described_by_their_roles():
    log = CascadeTable(("stage1", "target"), np.full((4, 2), 0.5), np.array([[1, 1], [0, 1], [0, 1], [0, 0]]), None,
                       np.zeros((4, 2, 0)), "/home/me/answers.csv")  # fmt: skip
    profile = CascadeProfile({"stage1": StageProfile(0.25), "target": StageProfile(0.75)})
    for cascade in (log, profile):
        rates = {"ngram": 0.4, "draft": Acceptance.of_lengths([0.2, 0.4, 0.4])}
        policy = Policy(acceptance=rates, cascade=cascade, test_tokens=80)
        models = dict.fromkeys(("target", "stage1", "draft"), small_problem().target)
        text = "\n".join(describe(replace(small_problem(), models=models, policy=policy)))
        assert "guesses of ngram: kept at rates of 0.40 each" in text
        assert "guesses of draft: kept at rates of 0.80, 0.50 and so on" in text  # half of those that kept one keep two
        assert "without compression: stage1 25%, target 75%" in text
        assert "80 tokens" in text
        assert "answers.csv" not in text


class Cut(Exception):
    """The power goes."""


class Asking:
    """A proposer that lets all it can see of the evidence decide."""

    name = "asking"
    window = 0

    def propose(self, history, k, rng):
        evidence = history.evidence
        seen = [repr(history.numbers.tolist())]
        if len(history):
            seen += [repr({n: v.tolist() for n, v in evidence.values(history.numbers).items()})]
            seen += [evidence.reason(n) for n in history.numbers.tolist()]
            seen += [repr((b.metric, b.labels, b.parts.tolist())) for b in evidence.breakdown(history.codes[-3:])]
            seen += [repr(s) for s in sensitivities(effects(history))]
            seen += describe(evidence.problem)
        rng = np.random.default_rng([zlib.crc32("\n".join(seen).encode()), int(rng.integers(1 << 30))])
        return Proposals(history.space.sample(k, rng))


def test_a_resumed_study_is_told_the_same(tmp_path):
    def study():
        return Study(
            "asked", model=small_model("text"), scenario=Scenario(prompt_tokens=7, output_tokens=5),
            hardware="npu-template",
            space=Space(weight_bits=Choice(3, 4, 8, per="block"), ffn_keep=Float(0.5, 1.0, step=0.125),
                        pe_rows=Choice(8, 16, 32, 64), tile_m=Choice(0, 4, 4000)),
            objectives="min latency_s, min quality_loss", constraints="area_mm2 <= 4", proposers=Asking(), ask_size=8,
        )  # fmt: skip

    study().run(40, db=tmp_path / "whole.db", executor="local", report=lambda _: None)
    for last in (2, 4):  # each run knows nothing of the one before
        calls = []

        def cut(progress, calls=calls, last=last):
            calls.append(progress)
            if len(calls) == last:
                raise Cut

        with pytest.raises(Cut):
            study().run(40, db=tmp_path / "parts.db", executor="local", report=cut)
    study().run(40, db=tmp_path / "parts.db", executor="local", report=lambda _: None)
    whole, parts = (study().results(tmp_path / f"{name}.db").stored for name in ("whole", "parts"))
    assert len(whole.hashes) == 40
    assert whole.hashes == parts.hashes
