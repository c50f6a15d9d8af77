"""Designs of real models, without their metrics: what formats of weights need."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from dse.hardware import read_hardware
from dse.metrics import MetricBatch
from dse.model import read_model
from dse.params import Choice, Float
from dse.problem import Problem
from dse.protocols import Chosen
from dse.scenario import Scenario
from dse.space import Space


@cache
def _problem(model, hardware):
    read = read_model(model)
    images = {"images": 1, "image_px": (640, 480)} if read.image_rule is not None else {}
    return Problem({"target": read}, Scenario(**images), read_hardware(hardware))


@cache
def _space(model, hardware):
    domains = {
        "weight_bits": Choice(2, 3, 4, 6, 8, 16, per="block_third.module"),
        "act_bits": Choice(4, 6, 8, 16, per="block_half.module"),
        "kv_bits": Choice(4, 8, 16),
        "ffn_keep": Float(0.25, 1.0, step=0.125, per="block_third"),
        "head_keep": Float(0.5, 1.0, step=0.25, per="block_third"),
        "block_keep": Choice(0.8, 1.0, per="component"),
    }
    return Space(domains).bind(_problem(model, hardware))


@pytest.fixture(scope="session")
def random_design():
    """model, seed -> a random design of it; widths mixed over all modules."""

    def draw(model, seed, hardware="h100-sxm-80gb"):
        space = _space(model, hardware)
        codes = space.sample(1, np.random.default_rng(seed))
        problem = _problem(model, hardware)
        return Chosen("study", seed, problem, space.decode(codes), space.values(codes)[0], MetricBatch({}, 1))

    return draw


@pytest.fixture(scope="session")
def plain_design():
    """model, values -> the design that they make."""

    def make(model, values, hardware="h100-sxm-80gb"):
        problem = _problem(model, hardware)
        space = Space({path: Choice(value) for path, value in values.items()}).bind(problem)
        codes = space.reference_codes()
        return Chosen("study", 7, problem, space.decode(codes), space.values(codes)[0], MetricBatch({}, 1))

    return make
