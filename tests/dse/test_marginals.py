"""Allocation on designs: marginals add up to sums, `dse allocate` keeps its budget, the arm proposes hull points."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from dse import catalogue, profilefile
from dse.allocation import hull, solve
from dse.cli.allocating import allocate
from dse.errors import UserError
from dse.evaluation import Evaluation
from dse.marginals import marginals
from dse.model import read_model
from dse.params import Choice
from dse.space import Space
from dse.testing.conformance import check_proposer
from dse.testing.samples import small_problem, small_profile

MODELS = ("analytical", "surrogate")


def space(**more):
    problem = small_problem("text", "h100-sxm-80gb")
    problem = replace(problem, quality={"target": small_profile(problem.target)})
    return Space(weight_bits=Choice(2, 3, 4, 8, 16, per="module"), **more).bind(problem)


def test_marginals_of_bytes_and_losses_add_up():
    """Stored bytes are a sum over modules, and so are the losses under the calibration curve."""
    bound = space()
    found = marginals(bound, MODELS)
    chosen = np.random.default_rng(3).integers(0, 5, size=(8, bound.n_parameters))
    codes, at = found.codes(chosen), np.arange(bound.n_parameters)
    evaluation = Evaluation(bound, MODELS)
    for cost, real in (
        ("weight_bytes", evaluation.evaluate(codes)[0].values["weight_bytes"]),
        ("quality_loss", evaluation.summed_loss(codes)),
    ):
        table = found.metrics[cost] - found.at_base[cost]
        assert real == pytest.approx([found.at_base[cost] + table[at, row].sum() for row in chosen])


def test_an_allocated_map_beats_the_uniform_one_of_its_size():
    bound = space()
    found = marginals(bound, MODELS)
    choices = found.choices("quality_loss", "weight_bytes")
    at = np.arange(bound.n_parameters)
    uniform = np.full(bound.n_parameters, 1)  # 3 bits
    best = solve(choices, float(choices.cost[at, uniform].sum()))
    assert best.cost <= choices.cost[at, uniform].sum()
    assert best.loss <= choices.loss[at, uniform].sum()


def test_the_arm_proposes_points_of_the_hull_and_passes_the_kit():
    bound = space()
    check_proposer(catalogue.proposer("allocate"), bound, k=6)
    choices = marginals(bound, MODELS).choices("quality_loss", "latency_s")
    points = {tuple(a.chosen.tolist()) for a in hull(choices)}
    history = next(h for h, _ in _histories(bound))
    proposed = catalogue.proposer("allocate").propose(history, 6, np.random.default_rng(0)).codes
    energy = {tuple(a.chosen.tolist()) for a in hull(marginals(bound, MODELS).choices("quality_loss", "energy_j"))}
    assert {tuple(row) for row in proposed.tolist()} <= points | energy


def _histories(bound):
    from dse.testing.conformance import _histories

    return _histories(catalogue.proposer("allocate"), bound, 1, 6, 0)


def test_the_arm_has_nothing_to_say_where_nothing_is_compressed():
    problem = small_problem("text", "h100-sxm-80gb")
    bound = Space(batch=Choice(1, 2, 4)).bind(problem)
    check_proposer(catalogue.proposer("allocate"), bound)


def test_the_command_keeps_its_budget(tmp_path):
    read = read_model("smolvlm-256m")
    profilefile.write(tmp_path / "p.jsonl", small_profile(read, with_configurations=False))
    arguments = ["--model", "smolvlm-256m", "--hardware", "h100-sxm-80gb", "--per", "block_third.kind", "--json"]
    arguments += ["--profile", str(tmp_path / "p.jsonl")]
    run = CliRunner().invoke(allocate, [*arguments, "--budget", "120 MiB"], catch_exceptions=False)
    (found,) = json.loads(run.output)["maps"]
    assert found["weight_bytes"] <= 120 * 2**20
    every = CliRunner().invoke(allocate, arguments, catch_exceptions=False)
    maps = json.loads(every.output)["maps"]
    below = [m for m in maps if m["weight_bytes"] <= 120 * 2**20]
    assert found["summed_quality_loss"] <= below[-1]["summed_quality_loss"] + 1e-12
    with pytest.raises(UserError, match="below"):
        CliRunner().invoke(allocate, [*arguments, "--budget", "1 MiB"], catch_exceptions=False)
