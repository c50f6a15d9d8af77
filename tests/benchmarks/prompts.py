"""How long it takes to write a prompt of 8,000 tokens when a study has 100,000 designs and 405 knobs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agents.llm.digest import digest
from agents.llm.prompt import TEMPLATE, proposer_request
from dse import Choice
from dse.evaluation import Evaluation
from dse.metrics import MetricBatch
from dse.objectives import Goal
from dse.record import Record
from dse.testing.samples import small_space

N_DESIGNS = 100_000


def work() -> Callable[[], object]:
    """Return the view of the history, its digest with parts of the best designs asked for anew, and the prompt."""
    space = small_space(
        weight_bits=Choice(2, 3, 4, 6, 8, 16, per="block.module.channel_8"),
        act_bits=Choice(4, 8, 16, per="block.module"),
    )
    goal = Goal.parse("min latency_s, min energy_j, min quality_loss", "area_mm2 <= 40")
    record = Record(space, goal, 0)
    record.evidence.explain = Evaluation(space, ["analytical", "prior"]).explain
    record.evidence.problem = space.schema.problem
    rng, n = np.random.default_rng(0), N_DESIGNS
    y, violation = rng.random((n, 3)), np.where(rng.random(n) < 0.5, 0.0, 0.3)
    codes = space.sample(n, rng)
    record.append(codes, y, violation, rng.normal(size=(n, 1)), np.zeros(n, bool), np.full(n, -1), [("x", n)])
    names = ("latency_s", "energy_j", "quality_loss")
    record.evidence.keep(MetricBatch(dict(zip(names, y.T, strict=True)), n))
    pending = [(space.sample(5, rng), np.full(5, -1), "auto")]

    def write() -> object:
        record.evidence._explained.clear()
        found = digest(record.view("llm", 300, pending))
        return proposer_request(space, goal, found, TEMPLATE, 8, 8000, 3000)

    return write
