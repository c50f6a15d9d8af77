"""How designs were found: chains of parents, and what each step changed."""

from __future__ import annotations

import pytest

from agents.auto import arm_of
from dse import Choice, Scenario, Space, Study
from dse.errors import UserError
from dse.lineage import lineage, superior, told
from dse.protocols import Proposals
from dse.testing.samples import small_model


class Ladder:
    """Each design is the one before it with one knob moved."""

    name = "ladder"
    window = 0

    def propose(self, history, k, rng):
        del rng
        n = history.n_total
        codes = history.space.repair(history.codes[-1:].astype(int))
        codes[0, (n - 1) % 2] += 1
        return Proposals(codes[: min(k, 1)], [(int(history.numbers[-1]),)], None)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    study = Study(
        "climbing", model=small_model("text"), scenario=Scenario(prompt_tokens=7, output_tokens=5),
        hardware="npu-template", space=Space(weight_bits=Choice(3, 4, 8), pe_rows=Choice(8, 16, 32)),
        objectives="min latency_s, min quality_loss", proposers=Ladder(), ask_size=1,
    )  # fmt: skip
    study.enqueue({"weight_bits": 3, "pe_rows": 8})
    return study.run(4, db=tmp_path_factory.mktemp("lineage") / "a.db", executor="local", report=lambda _: None)


def test_a_chain_tells_each_step(results):
    steps = lineage(results, 3)
    assert [s.number for s in steps] == [0, 1, 2, 3]
    assert steps[0].changes == {}
    assert steps[0].ratios == {}
    assert [s.changes for s in steps[1:]] == [
        {"weight_bits": (3, 4)}, {"pe_rows": (8, 16)}, {"weight_bits": (4, 8)},
    ]  # fmt: skip
    y = results.objectives
    assert steps[2].ratios["latency_s"] == y[2, 0] / y[1, 0]
    assert told(steps[0]) == "design 0 by user"
    assert told(steps[2], "arm").startswith("design 2 by arm: pe_rows 8 -> 16 (latency_s x")
    with pytest.raises(UserError, match="no design 9"):
        lineage(results, 9)


def test_superior_designs_are_better_in_every_objective(results):
    y = results.objectives
    expected = [i for i in range(4) if y[i, 0] < y[0, 0] and y[i, 1] < y[0, 1]]
    assert superior(results, 0).tolist() == expected


def test_the_arm_behind_a_mark():
    assert arm_of("evolve", 7) == "evolve"
    assert arm_of("auto", -1) == "auto"
    assert arm_of("auto:arms=evolve+local", 16 * 3 + 1) == "local"
    assert arm_of("auto:arms=evolve+local", 16 * 3 + 9) == "auto:arms=evolve+local"
