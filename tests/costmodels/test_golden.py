"""Pinned results: a change of results needs a new version of the cost model, because stored studies compare by it.

To accept new numbers: raise VERSION in the cost model, then run ``python tests/costmodels/test_golden.py``.
"""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path

import numpy as np
import pytest

from dse import catalogue
from dse.hardware import Device, read_hardware
from dse.model import read_model
from dse.problem import Problem
from dse.scenario import Scenario
from dse.testing.samples import small_problem, small_space

FILE = Path(__file__).parent / "golden.json"
CASES = {
    "small on template": lambda: small_problem(),
    "small on b200": lambda: small_problem(hardware="b200-sxm-180gb"),
    "qwen2.5-vl-3b on template": lambda: Problem(
        {"target": read_model("qwen2.5-vl-3b")},
        Scenario(images=1, image_px=(640, 480), prompt_tokens=50, output_tokens=20),
        read_hardware("npu-template"),
    ),
}


def results(name):
    problem = CASES[name]()
    space = small_space(problem)
    batch = space.decode(space.sample(4, np.random.default_rng(11)))
    found = {}
    for kind in sorted(catalogue.listing("cost model")):
        model = catalogue.cost_model(kind)
        if kind == "simulated" and isinstance(problem.hardware, Device):
            continue  # it needs an array
        if kind in ("surrogate", "measured"):
            continue  # they need a profile
        answer = model.prepare(problem).evaluate(batch)
        columns = {n: [None if math.isnan(x) else x for x in v.tolist()] for n, v in answer.values.items()}
        found[kind] = {"version": model.version, "columns": columns, "reasons": [answer.reason(i) for i in range(4)]}
    return found


@pytest.mark.parametrize("case", CASES)
def test_results_change_only_with_the_version(case):
    pinned, found = json.loads(FILE.read_text())["cases"][case], results(case)
    for kind, expected in pinned.items():
        if found[kind]["version"] != expected["version"]:
            pytest.fail(f"{kind} has version {found[kind]['version']}: run this file to pin its results")
        assert found[kind]["reasons"] == expected["reasons"]
        for name, column in expected["columns"].items():
            assert found[kind]["columns"][name] == pytest.approx(column, rel=1e-9, nan_ok=True), f"{kind} {name}"


if __name__ == "__main__":
    document = {
        "made_with": {"python": platform.python_version(), "numpy": np.__version__},
        "cases": {case: results(case) for case in CASES},
    }
    FILE.write_text(json.dumps(document, indent=1) + "\n")
