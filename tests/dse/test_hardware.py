from __future__ import annotations

import tomllib

import pytest

from dse import units
from dse.errors import HardwareError, NameUnknown
from dse.hardware import Accelerator, Device, hardware_names, read_hardware
from dse.knobs import KNOBS

DEVICE = """
type = "device"
name = "mine"
title = "Mine"
kind = "edge"
memory_bytes = "8 GiB"
memory_bytes_per_s = "100 GB/s"
[peak_ops_per_s]
fp16 = 10e12
[source]
"*" = "its datasheet, page 3"
"""


@pytest.mark.parametrize("name", hardware_names())
def test_every_catalogue_entry_reads_and_names_its_sources(name):
    hardware = read_hardware(name)
    assert hardware.name == name
    assert read_hardware(hardware.to_json()).content_hash == hardware.content_hash
    if isinstance(hardware, Device):
        assert hardware.sources["*"]
    else:
        assert isinstance(hardware, Accelerator)
        for constant in hardware.constants.values():
            assert constant.low <= constant.value <= constant.high
            assert constant.node_nm > 0
            assert constant.source
            assert not constant.recalled or constant.high >= 2 * constant.low
            assert constant.recalled == constant.source.startswith("recalled")


def test_published_figures():
    """Datasheet figures as the vendors print them (dense)."""
    h100, a100 = read_hardware("h100-sxm-80gb"), read_hardware("a100-80gb-sxm")
    assert isinstance(h100, Device)
    assert isinstance(a100, Device)
    assert h100.peak_ops_per_s == {"fp16": 989e12, "fp8": 1979e12, "int8": 1979e12}
    assert h100.memory_bytes_per_s == 3.35e12
    assert a100.peak_ops_per_s["fp16"] == 312e12
    assert a100.memory_bytes == 80 * 2**30
    assert a100.price_usd_per_hour == (0.8, 3.0)


def test_a_users_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(DEVICE)
    mine = read_hardware(path)
    assert isinstance(mine, Device)
    assert mine.memory_bytes == 8 * 2**30
    assert mine.memory_bytes_per_s == 100e9
    assert mine.power_w is None


@pytest.mark.parametrize(
    ("old", "new", "law"),
    [
        ('type = "device"', 'type = "gadget"', "neither 'device' nor 'accelerator'"),
        ('memory_bytes = "8 GiB"', "", "memory_bytes is missing"),
        ("100 GB/s", "-100 GB/s", "is not a positive number"),
        ("100 GB/s", "100 GB", "is not in B/s"),
        ("fp16 = 10e12", "fp12 = 1e12", "unknown precision"),
        ("fp16 = 10e12", "fp16 = -1", "is not a positive number"),
        ('"*" = "its datasheet, page 3"', "", "has no source"),
        ('name = "mine"', "", "name is missing"),
        ('kind = "edge"', 'kind = "edge"\nclok_hz = 1', "unknown field"),
        ("[source]", "[source", "is not TOML"),
    ],
)
def test_a_file_that_cannot_be_read_names_field_and_file(tmp_path, old, new, law):
    path = tmp_path / "mine.toml"
    assert old in DEVICE
    path.write_text(DEVICE.replace(old, new, 1))
    with pytest.raises((HardwareError, NameUnknown)) as error:
        read_hardware(path)
    assert law in error.value.message
    assert "mine.toml" in error.value.message


def test_an_accelerator_needs_every_field_and_constant(tmp_path):
    from importlib import resources

    text = (resources.files("dse") / "catalog" / "hardware" / "npu-template.toml").read_text()
    path = tmp_path / "npu.toml"
    for field in ("pe_rows = 64\n", "[constants.dram_j_per_bit]"):
        path.write_text(text.replace(field, "[constants.other_j_per_bit]" if "constants" in field else "", 1))
        with pytest.raises((HardwareError, NameUnknown)):
            read_hardware(path)
    document = tomllib.loads(text)
    document["constants"]["leakage_w_per_mm2"]["low"] = 0.03
    document["constants"]["leakage_w_per_mm2"]["high"] = 0.031
    with pytest.raises(HardwareError, match="band of a factor 2"):
        read_hardware(document)


def test_unknown_hardware_says_what_was_meant():
    with pytest.raises(NameUnknown) as error:
        read_hardware("H100")
    assert "h100-sxm-80gb" in error.value.hint
    with pytest.raises(HardwareError, match="cannot be read"):
        read_hardware("nowhere/else.toml")


def test_every_catalogue_key_and_knob_follows_the_naming_law():
    for name in hardware_names():
        document = read_hardware(name).to_json()
        keys = [
            k
            for k in document
            if k
            not in (
                *("type", "name", "title", "kind", "vendor", "architecture", "aliases"),
                *("note", "source", "reference", "constants"),
            )
        ]
        keys += [*document.get("reference", {}), *document.get("constants", {})]
        for key in keys:
            assert units.carries_unit(key) or key in ("dataflow", "mac_array", "loop_order", "process"), (
                f"{name}: {key} carries no unit"
            )
    for knob in KNOBS.values():
        assert knob.kind in (str, bool) or units.carries_unit(knob.name), knob.name
