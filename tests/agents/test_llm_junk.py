"""What a language model without a clue can cost a study: next to nothing. One that knows the answers is heard."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from agents.auto import Auto, arm_of
from agents.llm.arm import LlmArm
from agents.llm.provider import Scripted
from dse import Choice, Float, Scenario, Space
from dse.calls import ACCEPTED, REJECTED, MemoryLog
from dse.evaluation import Evaluation
from dse.hardware import read_hardware
from dse.loop import Loop
from dse.objectives import Goal
from dse.problem import Problem
from dse.testing.samples import small_model
from tests.benchmarks.search.junk import JUNK, PATIENT, PROVIDERS, run
from tests.benchmarks.search.live import Live
from tests.benchmarks.search.play import InMemory, Yard

SEEDS, BUDGET = range(5), 120


@cache
def target():
    """A small model on the accelerator template, ten million designs."""
    scenario = Scenario(prompt_tokens=96, output_tokens=32)
    space = Space(
        weight_bits=Choice(3, 4, 6, 8, per="block"), ffn_keep=Float(0.5, 1.0, step=0.125), kv_bits=Choice(4, 8, 16),
        pe_rows=Choice(4, 8, 16, 32), pe_cols=Choice(4, 8, 16, 32), dataflow=Choice("ws", "os", "is"),
        sram_bytes=Choice("16 KiB", "64 KiB", "256 KiB"), dram_bytes_per_s=Choice("1 GB/s", "4 GB/s", "16 GB/s"),
        vector_lanes=Choice(4, 16, 64),
    ).bind(Problem({"target": small_model("text")}, scenario, read_hardware("npu-template")))  # fmt: skip
    goal = Goal.parse("min latency_s, min energy_j, min quality_loss", "area_mm2 <= 2")
    return Live("small", space, goal, Evaluation(space, ("analytical", "prior")))


@cache
def played(kind: str, seed: int):
    """Return objectives, violations, arms by design, and what the log says of a run; ``kind`` "" for no model."""
    found, log = target(), MemoryLog()
    auto = Auto()
    if kind:
        arm = LlmArm(PATIENT, Scripted(PROVIDERS[kind](found, seed)))
        arm.open(log, lambda _: None)
        auto = auto.with_arms([arm])
    memory = InMemory(found)
    loop = Loop(found.space, found.goal, [auto], memory, memory, seed=seed, ask_size=8, lag=1)
    loop.record.evidence.explain, loop.record.evidence.problem = found.told
    for _ in loop.run(BUDGET):
        pass
    auto.close()
    record = loop.record
    arms = [arm_of(auto.name, mark) for mark in record.view(auto.name, 0, []).marks.tolist()]
    return record.objectives().copy(), record.violation().copy(), arms, log


@cache
def yard():
    runs = [played(kind, seed) for kind in ("", *JUNK) for seed in SEEDS]
    return Yard.of(np.concatenate([y[violation == 0] for y, violation, *_ in runs]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", JUNK)
def test_junk_costs_next_to_nothing(kind):
    ratios = []
    for seed in SEEDS:
        (y, violation, *_), (plain, plain_violation, *_) = played(kind, seed), played("", seed)
        assert len(y) == len(plain) == BUDGET
        ratios.append(yard().ratio(y, violation) / yard().ratio(plain, plain_violation))
    assert np.median(ratios) >= 0.97, ratios


@pytest.mark.slow
@pytest.mark.parametrize("kind", JUNK)
def test_its_share_stays_near_the_probe_rate(kind):
    late = [arm for seed in SEEDS for arm in played(kind, seed)[2][BUDGET // 2 :]]
    assert 0 < late.count("llm") / len(late) < 0.1  # six arms alike would have 0.17 each, the floor is 0.03


@pytest.mark.slow
def test_a_model_that_knows_is_paid():
    """It proposes designs of the true front of a space that was enumerated."""
    found = {name: [run("edge-vlm", name, seed) for seed in range(3)] for name in ("knowing", "feasible", "")}
    at_50 = [a["ratios"][1] / b["ratios"][1] for a, b in zip(found["knowing"], found[""], strict=True)]
    assert np.median(at_50) > 1
    assert sum(r["n_given"] for r in found["knowing"]) > 1.5 * sum(r["n_given"] for r in found["feasible"])


@pytest.mark.slow
def test_mischief_is_rejected_before_it_is_paid():
    for seed in SEEDS:
        _, _, arms, log = played("mixed", seed)
        edits, outcomes = log.edits(), {c.outcome for c in log.calls()}
        assert {"ok", "invalid", "unavailable"} <= outcomes
        words = {e.detail.split()[0] for e in edits if e.verdict == REJECTED}
        assert {"value:", "repeated:"} <= words
        assert arms.count("llm") == sum(e.batch >= 0 for e in edits if e.verdict == ACCEPTED)
