"""The datasheet model against sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dse import catalogue
from dse.errors import HardwareError
from dse.hardware import read_hardware
from dse.metrics import Status
from dse.model import read_model
from dse.params import Choice
from dse.problem import Problem
from dse.scenario import Scenario
from dse.space import Space
from dse.testing.samples import small_problem


def evaluate(problem, **values):
    space = Space({n: Choice(v) for n, v in values.items()} or {"batch": Choice(problem.scenario.batch)}).bind(problem)
    return catalogue.cost_model("analytical").prepare(problem).evaluate(space.decode(space.reference_codes()))


def test_decode_of_an_8b_model_is_its_weights_over_the_bandwidth():
    """Llama-3.1-8B on an H100, one request, context of 2,049 positions.

    Per pass: linear weights (8,030,261,248 parameters - 525,336,576 of the token table - 266,240 of norms) x 2 B;
    every linear kernel also moves its activations, 10 MB in all; at 0.8 of 3.35 TB/s, with 225 launches of 6 us.
    Attention: 2,049 positions x 131,072 B at 0.75 of the bandwidth, 32 launches of 8 us.
    """
    problem = Problem(
        {"target": read_model("llama-3.1-8b")},
        Scenario(prompt_tokens=2048, output_tokens=2),
        read_hardware("h100-sxm-80gb"),
    )
    result = evaluate(problem)
    weights = (8_030_261_248 - 525_336_576 - 266_240) * 2
    linear = weights / (0.8 * 3.35e12) + (32 * 7 + 1) * 6e-6
    attention = 2049 * 131_072 / (0.75 * 3.35e12) + 32 * 8e-6
    # activations in and out of linear kernels, vector work: below half a percent
    assert result.values["tpot_s"][0] == pytest.approx(linear + attention, rel=5e-3)
    assert result.values["tpot_s"][0] > linear + attention
    assert result.intervals["latency_s"][0][0] < result.values["latency_s"][0] < result.intervals["latency_s"][1][0]


def test_prefill_of_an_8b_model_is_its_operations_over_the_peak():
    """2 x 6.98e9 linear parameters x 2,048 tokens at 0.75 of 989 TFLOP/s, the output head once, attention beside it."""
    problem = Problem(
        {"target": read_model("llama-3.1-8b")},
        Scenario(prompt_tokens=2048, output_tokens=1),
        read_hardware("h100-sxm-80gb"),
    )
    result = evaluate(problem)
    inside = 8_030_261_248 - 2 * 525_336_576 - 266_240
    linear = 2 * inside * 2048 / (0.75 * 989e12) + 32 * 7 * 6e-6
    pairs = 2048 * 2049 / 2
    attention = 32 * (4 * 32 * 128 * pairs / (0.55 * 989e12) + 8e-6)
    head = 525_336_576 * 2 / (0.8 * 3.35e12) + 6e-6
    # Vector work at 0.8 of the bandwidth, bytes per token and layer at 16 bits: two norms 2 x 4096 x 4, rotation of
    # 40 heads x 128 x 4, activation 14,336 x 4, product 14,336 x 6, two residuals 2 x 4096 x 6, cache 2 x 1024 x 2.
    per_token = 2 * 4096 * 4 + 5120 * 4 + 14_336 * 10 + 2 * 4096 * 6 + 4096
    vector = per_token * 2048 * 32 / (0.8 * 3.35e12)
    assert result.values["ttft_s"][0] == pytest.approx(linear + attention + head + vector, rel=2e-3)


def test_narrow_weights_save_bytes_and_narrow_operands_save_time():
    problem = small_problem("text", hardware="h100-sxm-80gb", prompt_tokens=2000)
    wide = evaluate(problem, weight_bits=16).values
    weight_only = evaluate(problem, weight_bits=4).values
    both = evaluate(problem, weight_bits=8, act_bits=8).values
    assert weight_only["weight_bytes"][0] < 0.3 * wide["weight_bytes"][0]
    assert both["prefill_s"][0] < weight_only["prefill_s"][0] < wide["prefill_s"][0]


@pytest.mark.parametrize(
    ("hardware", "bits", "fits"), [("h100-sxm-80gb", 4, False), ("b200-sxm-180gb", 4, True), ("apple-m4-max", 4, False)]
)
def test_a_precision_that_the_device_lacks_is_infeasible(hardware, bits, fits):
    result = evaluate(small_problem("text", hardware=hardware), weight_bits=bits, act_bits=bits)
    assert (result.status[0] == Status.OK) == fits
    if not fits:
        assert "computes at 8 bit or more, the design asks for 4 bit" in result.reason(0)
        assert np.isnan(result.values["latency_s"][0])


def test_a_model_larger_than_the_memory_is_infeasible_by_the_amount():
    problem = Problem({"target": read_model("llama-3.1-70b")}, Scenario(), read_hardware("a100-80gb-sxm"))
    assert "has 80 GiB (over by 51." in evaluate(problem).reason(0)
    assert evaluate(problem, weight_bits=4).status[0] == Status.OK


def test_cost_is_the_rent_of_the_time():
    problem = small_problem("text", hardware="h100-sxm-80gb")
    result = evaluate(problem)
    assert result.values["cost_usd"][0] == pytest.approx(1.99 / 3600 * result.values["latency_s"][0])


def test_a_device_without_a_peak_is_refused():
    with pytest.raises(HardwareError, match="no compute peak"):
        evaluate(small_problem("text", hardware="rtx-pro-6000-blackwell-server"))


def test_a_device_knob_evaluates_each_design_on_its_device():
    from dse.evaluation import Evaluation

    problem = small_problem("text", hardware="h100-sxm-80gb")
    space = Space(device=Choice("h100-sxm-80gb", "l4", "rtx-pro-6000-blackwell-server"), batch=Choice(1, 2)).bind(
        problem
    )
    evaluation = Evaluation(space, ["analytical", "prior"])
    codes = np.array([[1, 0], [0, 1], [2, 0], [1, 1], [0, 0]])
    hardware = evaluation.evaluate(codes)[0]
    assert hardware.status.tolist() == [0, 0, 2, 0, 0]
    assert "no compute peak" in hardware.reason(2)
    alone = evaluate(small_problem("text", hardware="l4"))
    assert hardware.values["latency_s"][0] == alone.values["latency_s"][0]
    assert len(evaluation.fingerprints()) == 2
