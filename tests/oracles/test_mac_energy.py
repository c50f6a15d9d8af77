"""Energy of multiply-accumulates by operand widths, against the synthesis that Bit Fusion published.

Dynamic power of 4 x 4 arrays at 45 nm and 500 MHz in nW, by widest and narrowest precision of their elements
(github.com/hsharma35/bitfusion, results/systolic_array_synth.csv).
"""

import pytest

from costmodels.systolic import element_cycles
from dse.hardware import read_hardware

POWER_NW = {(8, 8): 1_627_500, (8, 2): 3_673_500, (4, 2): 942_252, (16, 2): 16_907_600}

CYCLES = [
    (2, 2, 1, 1 / 16),
    (4, 4, 1, 1 / 4),
    (2, 8, 1, 1 / 4),
    (8, 3, 1, 1 / 2),
    (8, 8, 1, 1),
    (8, 16, 2, 2),
    (16, 16, 4, 4),
]


@pytest.mark.parametrize(("a_bits", "b_bits", "fixed", "scalable"), CYCLES)
def test_cycles_of_an_element(a_bits, b_bits, fixed, scalable):
    held = next(w for w in (2.0, 4.0, 8.0, 16.0) if w >= b_bits)
    assert element_cycles(0, float(a_bits), held, float(b_bits > 8)) == fixed
    assert element_cycles(1, float(a_bits), held, float(b_bits > 8)) == scalable


def test_the_ratio_is_the_synthesis():
    ratio = read_hardware("npu-template").constants["mac_scalable_energy_ratio"]
    assert ratio.value == pytest.approx(POWER_NW[8, 2] / POWER_NW[8, 8], abs=0.005)


def test_other_scalable_elements_of_the_synthesis_follow():
    """An element for 2 to 4 bits and one for 2 to 16, which the constant was not taken from, in 8 x 8 multiplies.

    One cycle of the first is a 4 x 4 multiply (ours: a quarter of a cycle), of the second a 16 x 16 one (four cycles).
    """
    ratio = read_hardware("npu-template").constants["mac_scalable_energy_ratio"].value
    assert ratio * element_cycles(1, 4.0, 4.0, 0.0) == pytest.approx(POWER_NW[4, 2] / POWER_NW[8, 8], rel=0.05)
    assert ratio * element_cycles(1, 16.0, 16.0, 1.0) == pytest.approx(POWER_NW[16, 2] / POWER_NW[8, 8], rel=0.15)
