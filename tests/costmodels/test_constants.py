"""Which constants a device gets, and that files of constants are read back as they were written."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest

from costmodels.constants import CALIBRATED, TRANSFERRED, Book, Entry, as_toml, average, book_for, read_book, shipped
from costmodels.measurements import Key
from dse.errors import HardwareError
from dse.hardware import hardware_names, read_hardware

OWN = Key("mine", "", "gemm", "", "bfloat16")
FILE = """
type = "device"
name = "mine"
title = "Mine"
like = "h100-sxm-80gb"
calibration = "constants.toml"
"""


def entry(key, launch_s=1e-5):
    constants = np.array([launch_s, 0.7, 0.8, 2.5, 1.2, 1.1, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    return Entry(key, constants, 40, 0.05, (0.9, 1.1))


def test_measured_devices_use_their_own_and_say_so():
    for name in ("a100-80gb-sxm", "h200-sxm-141gb", "b200-sxm-180gb", "l40s"):
        found = shipped().find(read_hardware(name), "gemm", "bfloat16")
        assert (found.basis, found.origin) == (CALIBRATED, (Key(name, "vllm", "gemm", "", "bfloat16"),))


@pytest.mark.parametrize(
    ("name", "relatives", "is_kin"),
    [
        ("h100-sxm-80gb", ["h200-sxm-141gb"], True),
        ("gb200-per-gpu", ["b200-sxm-180gb"], True),
        ("rtx-4090", ["l40s"], True),
        ("jetson-agx-orin-64gb", ["a100-80gb-sxm"], False),  # its architecture, not its class
        ("mi300x", ["a100-80gb-sxm", "b200-sxm-180gb", "h200-sxm-141gb", "l40s"], False),
    ],
)
def test_others_borrow_from_their_relatives_with_a_wider_band(name, relatives, is_kin):
    device, book = read_hardware(name), shipped()
    assert book.relatives(device) == (relatives, is_kin)
    found = book.find(device, "gemm", "bfloat16")
    own = book.find(read_hardware(relatives[0]), "gemm", "bfloat16")
    assert found.basis == TRANSFERRED
    assert found.band[0] < own.band[0]
    assert found.band[1] > own.band[1]
    kin = book.find(read_hardware("h100-sxm-80gb"), "gemm", "bfloat16").band
    assert (found.band == kin) == is_kin
    if not is_kin:
        assert found.band == (kin[0] / 2, kin[1] * 2)


def test_a_precision_that_nobody_near_has_is_carried_over_as_a_change():
    """Weight-only products are measured on the A100 alone: launch of the H200, its efficiencies x (int4 / 16 bit)."""
    book, h200 = shipped(), read_hardware("h200-sxm-141gb")
    found = book.find(h200, "gemm", "int4_wo")
    a100 = {p: book.entries[Key("a100-80gb-sxm", "trtllm", "gemm", "", p)].constants for p in ("bfloat16", "int4_wo")}
    own = book.find(h200, "gemm", "bfloat16").constants
    assert found.basis == TRANSFERRED
    assert found.constants[0] == pytest.approx(own[0])
    assert found.constants[1] == pytest.approx(own[1] * a100["int4_wo"][1] / a100["bfloat16"][1])
    assert found.constants[2] == pytest.approx(min(own[2] * a100["int4_wo"][2] / a100["bfloat16"][2], 1.0))


def test_the_average_weighs_near_architectures_more():
    lend = [
        (read_hardware(n), entry(OWN, launch_s).constants)
        for n, launch_s in (("a100-80gb-sxm", 1e-5), ("b200-sxm-180gb", 4e-5))
    ]
    # H200: two years from either: 20 us. GB200: none from the B200, four from the A100: weights 10 and 1 / 0.544.
    assert average(read_hardware("h200-sxm-141gb"), lend)[0] == pytest.approx(2e-5)
    near = 10 / (10 + 1 / (0.1 + (4 / 6) ** 2))
    assert average(read_hardware("gb200-per-gpu"), lend)[0] == pytest.approx(1e-5 * 4**near)


@pytest.mark.parametrize("name", hardware_names())
def test_every_device_has_constants_for_every_kernel(name):
    device = read_hardware(name)
    if device.to_json()["type"] != "device":
        return
    for op, precisions in {"gemm": ("bfloat16", "int8_wo", "int4_wo", "fp8", "sq", "nvfp4"), "moe": ("fp8",)}.items():
        for precision in precisions:
            found = shipped().find(device, op, precision)
            assert np.isfinite(found.constants).all()
            assert 0 < found.band[0] <= 1 <= found.band[1]


def test_a_users_own_constants_come_first(tmp_path):
    text = as_toml([entry(OWN)], {("gemm", ""): (0.7, 1.4)}, {"table": "mine.csv", "note": 'a "quote"'})
    (tmp_path / "constants.toml").write_text(text)
    (tmp_path / "mine.toml").write_text(FILE)
    mine = read_hardware(tmp_path / "mine.toml")
    assert mine.peak_ops_per_s == read_hardware("h100-sxm-80gb").peak_ops_per_s
    found = book_for(mine).find(mine, "gemm", "bfloat16")
    assert (found.basis, found.band, found.constants[0]) == (CALIBRATED, (0.9, 1.1), 1e-5)
    assert book_for(mine).find(mine, "context_attention", "bfloat16/kv:bfloat16").origin[0].device == "h200-sxm-141gb"
    # A stored study keeps them: the description holds the constants, not the path.
    (tmp_path / "constants.toml").unlink()
    assert read_hardware(mine.to_json()).content_hash == mine.content_hash


def test_what_is_written_is_read_back():
    book = shipped()
    again = read_book(tomllib.loads(as_toml(book.entries.values(), book.transfer, book.source)), "again")
    assert again.source == book.source
    assert again.transfer == book.transfer
    for key, one in book.entries.items():
        assert np.array_equal(again.entries[key].constants, one.constants)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("launch_s = 1e-05", "", "'launch_s' is missing"),
        ("launch_s = 1e-05", 'launch_s = "x"', "launch_s is missing or no number"),
        ("[[kernel]]", "[[kernels]]", "has no [[kernel]]"),
        ('device = "mine"', 'device = "yours"', "unknown hardware 'yours'"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, old, new, said):
    text = as_toml([entry(OWN)], {}, {})
    assert old in text
    (tmp_path / "constants.toml").write_text(text.replace(old, new))
    (tmp_path / "mine.toml").write_text(FILE)
    mine = read_hardware(tmp_path / "mine.toml")
    with pytest.raises(Exception, match=r".") as error:
        book_for(mine)
    assert said in str(error.value)
    assert isinstance(error.value, HardwareError) or "unknown" in said


def test_a_missing_calibration_file_is_named(tmp_path):
    (tmp_path / "mine.toml").write_text(FILE)
    with pytest.raises(HardwareError, match=r"calibration 'constants.toml' cannot be read"):
        read_hardware(tmp_path / "mine.toml")


def test_a_book_without_a_kernel_says_so():
    empty = Book({OWN: entry(OWN)}, {}, {}, {"mine": read_hardware("l4")})
    with pytest.raises(HardwareError, match="no kernel constants for moe"):
        empty.find(read_hardware("l4"), "moe", "bfloat16")
