"""Energy of devices by hand."""

from __future__ import annotations

import numpy as np
import pytest

from costmodels.device_energy import energy_j
from dse import catalogue
from dse.hardware import read_hardware
from dse.model import read_model
from dse.params import Choice
from dse.problem import Problem
from dse.scenario import Scenario
from dse.space import Space


def evaluate(hardware, **values):
    problem = Problem(
        {"target": read_model("llama-3.1-8b")}, Scenario(prompt_tokens=512, output_tokens=65), read_hardware(hardware)
    )
    space = Space({n: Choice(v) for n, v in values.items()}).bind(problem)
    return catalogue.cost_model("analytical").prepare(problem).evaluate(space.decode(space.reference_codes()))


def test_three_terms_by_hand():
    """700 W for 2 s, half a second at peak, 1 TB: 0.15 x 1400 + 0.6 x 350 + 8e12 x 6.25e-12 = 470 J."""
    one = np.ones(1)
    low, value, high = energy_j(700 * one, 0.5 * one, 1e12 * one, (one, 2 * one, 3 * one))
    assert value == pytest.approx(470)
    assert low == pytest.approx(0.08 * 700 + 0.3 * 350 + 8e12 * 3.2e-12)
    assert high == pytest.approx(0.37 * 2100 + 0.9 * 350 + 8e12 * 11.7e-12)


def test_never_above_the_board():
    one = np.ones(1)
    assert energy_j(700 * one, 9 * one, 1e15 * one, (one, one, one))[1] == 700


@pytest.mark.parametrize("batch", [1, 128])
@pytest.mark.parametrize("hardware", ["h100-sxm-80gb", "h200-sxm-141gb", "b200-sxm-180gb", "l40s"])
def test_power_is_between_idle_and_the_board(hardware, batch):
    result, device = evaluate(hardware, batch=batch), read_hardware(hardware)
    power = result.values["power_w"][0]
    low, high = (end[0] for end in result.intervals["power_w"])
    assert 0.08 * device.power_w < low < power < high <= device.power_w
    assert result.values["energy_j"][0] == pytest.approx(power * result.values["latency_s"][0] / batch)


def test_a_batch_costs_less_energy_per_request_and_narrow_weights_less_than_wide():
    def energy(**values):
        return evaluate("h200-sxm-141gb", **values).values["energy_j"][0]

    assert energy(batch=16) < 0.25 * energy(batch=1)
    assert energy(weight_bits=4) < energy(weight_bits=16)


def test_two_devices_draw_idle_power_twice():
    one, two = (evaluate("h200-sxm-141gb", n_devices=n, tensor_parallel=n).values for n in (1, 2))
    assert two["latency_s"] < one["latency_s"]
    assert two["power_w"] > one["power_w"]
