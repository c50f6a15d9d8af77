"""Scaling between technology nodes, against the article's own example and its table of ratios."""

from __future__ import annotations

import copy

import pytest

from dse import technology
from dse.errors import HardwareError
from dse.hardware import CONSTANTS, read_hardware


def template(**changed):
    document = copy.deepcopy(read_hardware("npu-template").to_json())
    for name, values in changed.items():
        document["constants"][name] |= values
    return document


@pytest.mark.validates("analytical", "scaling between nodes", "worked example of Stillmaker and Baas (2017)", "equal")
def test_the_worked_example():
    """Corrigendum: 3.755 V^2 - 4.398 V + 1.975 at 1.3 V is 2.604, 0.8367 V^2 - 0.4341 V + 0.1701 at 0.9 V is 0.4571."""
    old, new = technology.energy_factor(65, 1.3, "hp", ""), technology.energy_factor(32, 0.9, "hp", "")
    assert old == pytest.approx(2.604, abs=5e-4)
    assert new == pytest.approx(0.4571, abs=5e-5)
    assert new / old == pytest.approx(0.1755, abs=1e-4)


def test_the_worked_example_through_a_template():
    """A multiply-accumulate of 1 pJ at 65 nm and 1.3 V in a template of 32 nm and 0.9 V, its band twice either way."""
    at_32 = {"node_nm": 32, "voltage_v": 0.9}
    document = template(**dict.fromkeys(CONSTANTS, at_32))
    document |= at_32
    old = {"value": 1e-12, "low": 0.5e-12, "high": 2e-12, "node_nm": 65, "voltage_v": 1.3}
    document["constants"]["mac_j_per_op"] |= old
    found = read_hardware(document).constants["mac_j_per_op"]
    assert found.value == pytest.approx(0.1755e-12, rel=1e-3)
    assert (found.low / found.value, found.high / found.value) == (pytest.approx(0.5), pytest.approx(2.0))
    assert (found.node_nm, found.voltage_v) == (32, 0.9)
    assert "scaled from 65 nm and 1.3 V" in found.source
    # what stands at the template's node is as it was read
    assert read_hardware(document).constants["vector_j_per_op"].value == 0.4e-12


@pytest.mark.parametrize(
    ("source", "target", "ratio"),
    [(65, 45, 1.5), (180, 90, 6.6), (65, 32, 3.3), (32, 16, 2.4), (90, 10, 28), (14, 7, 2.9)],
)
def test_area_ratios_agree_with_the_published_table(source, target, ratio):
    """The table gives each ratio to two digits; they are kept here relative to 7 nm, so products of two round twice."""
    found = technology.area_factor(source, "") / technology.area_factor(target, "")
    assert found == pytest.approx(ratio, rel=0.04)


def test_area_of_logic_is_scaled():
    found = read_hardware(template(pe_mm2_per_unit={"node_nm": 65})).constants["pe_mm2_per_unit"]
    assert found.value == pytest.approx(8.54e-4 / 25)


@pytest.mark.parametrize("name", ["sram_read_j_per_bit", "sram_mm2_per_byte", "leakage_w_per_mm2", "phy_mm2_per_unit"])
def test_what_the_rule_does_not_cover_is_refused_at_another_node(name):
    with pytest.raises(HardwareError, match=f"{name}.*45 nm in a template of 7 nm"):
        read_hardware(template(**{name: {"node_nm": 45}}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"node_nm": 28}, "no node of 28 nm"),
        ({"node_nm": 65, "voltage_v": 0.5}, "0.5 V is below"),
        ({"process": "bulk"}, "neither of hp, lp"),
        ({"voltage_v": None}, "voltage_v"),
    ],
)
def test_outside_the_rule(changed, message):
    with pytest.raises(HardwareError, match=message):
        read_hardware(template(mac_j_per_op=changed))


def test_every_constant_has_node_voltage_and_source():
    for name, constant in read_hardware("npu-template").constants.items():
        assert constant.node_nm > 0, name
        assert constant.voltage_v > 0, name
        assert constant.source, name
        assert not constant.recalled or constant.high >= 2 * constant.low, name
