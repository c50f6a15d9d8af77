from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse import units
from dse.errors import UserError


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("4 GiB", "memory_bytes", 4 * 2**30),
        ("4GiB", "memory_bytes", 4 * 2**30),
        ("4 GB", "memory_bytes", 4e9),
        ("512 KiB", "sram_bytes", 512 * 1024),
        ("1.5 kB", "sram_bytes", 1500),
        ("68 GB/s", "dram_bytes_per_s", 68e9),
        ("20 ms", "latency_s", 0.02),
        ("3 us", "latency_s", 3e-6),
        ("1 GHz", "freq_hz", 1e9),
        ("40 mm2", "area_mm2", 40),
        ("40 mm^2", "area_mm2", 40),
        ("3 mJ", "energy_j", 0.003),
        ("5", "power_w", 5),
        ("1e-3", "latency_s", 0.001),
        ("95 %", "accuracy_ratio", 0.95),
        ("448 px", "image_px", 448),
        (7, "batch", 7),
    ],
)
def test_parse(text, name, value):
    assert units.parse(text, name) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "name", "law", "remedy"),
    [
        ("4 GiB", "latency_s", "is not in s", "20 ms"),
        ("fast", "latency_s", "is not a quantity", "20 ms"),
        ("4 KB", "memory_bytes", "read as 1000 and as 1024", "KiB"),
        ("4 KiJ", "energy_j", "is not in J", "3 mJ"),
        ("nan", "energy_j", "is not a quantity", ""),
        ("1e999", "energy_j", "is not finite", ""),
        (float("inf"), "energy_j", "is not finite", ""),
        (True, "energy_j", "takes a number", ""),
    ],
)
def test_parse_refuses(text, name, law, remedy):
    with pytest.raises(UserError) as error:
        units.parse(text, name)
    assert law in error.value.message
    assert remedy in error.value.hint


def test_unit_of_reads_the_longest_suffix():
    assert units.unit_of("dram_bytes_per_s") == "B/s"
    assert units.unit_of("memory_bytes") == "B"
    assert units.unit_of("decoder/weight_bits") == "bit"
    assert units.unit_of("throughput_tokens_per_s") == "tokens/s"
    assert units.unit_of("accuracy_ratio") == ""
    assert units.unit_of("n_cores") == ""


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [
        (0.0123, "latency_s", "12.3 ms"),
        (3.2e9, "freq_hz", "3.2 GHz"),
        (262144, "sram_bytes", "256 KiB"),
        (0.99999999, "latency_s", "1 s"),
        (0.0, "latency_s", "0 s"),
        (40.0, "area_mm2", "40 mm2"),
        (0.5, "accuracy_ratio", "0.5"),
        (float("nan"), "latency_s", "n/a"),
        (float("inf"), "latency_s", "inf"),
        (-0.002, "latency_s", "-2 ms"),
        (12_345.0, "area_mm2", "12345 mm2"),
    ],
)
def test_format_quantity(value, name, text):
    assert units.format_quantity(value, name) == text


@given(
    st.floats(1e-12, 1e15),
    st.sampled_from(["latency_s", "energy_j", "memory_bytes", "freq_hz", "dram_bytes_per_s", "area_mm2", "power_w"]),
)
def test_what_is_shown_can_be_typed(value, name):
    shown = units.format_quantity(value, name, digits=17)
    assert math.isclose(units.parse(shown, name), value, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "name", "shown"),
    [
        (4.13, 26.2, "energy_j", "4.1 .. 26 J"),
        (0.0041, 26.2, "energy_j", "0.0041 .. 26 J"),
        (17.0, 104.0, "area_mm2", "17 .. 104 mm2"),
        (0.0009, 12.0, "quality_loss", "0.0009 .. 12 nats/token"),
        (0.0, float("inf"), "latency_s", "0 .. inf s"),
        (0.0, 0.0, "latency_s", "0 .. 0 s"),
    ],
)
def test_an_interval_is_in_one_unit(low, high, name, shown):
    assert units.format_interval(low, high, name) == shown
