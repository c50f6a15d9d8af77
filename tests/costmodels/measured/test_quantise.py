"""Rounding of tensors, against PyTorch's own fake quantisation and by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from costmodels.measured.quantise import Quantiser, in_groups, over_positions  # noqa: E402
from dse.errors import UserError  # noqa: E402

pytestmark = pytest.mark.torch


def test_by_hand():
    """Two bits from -1 to 2: steps of 1, zero point 1, levels -1, 0, 1, 2; halves go to the even level."""
    w = torch.tensor([[-1.0, -0.4, 0.6, 2.0]])
    assert Quantiser("channel").weights(w, 2).tolist() == [[-1.0, 0.0, 1.0, 2.0]]
    # Symmetric: steps of 2 / 1, levels -4, -2, 0, 2.
    assert Quantiser("channel", symmetric=True).weights(w, 2).tolist() == [[-0.0, -0.0, 0.0, 2.0]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_channels_as_pytorch_rounds_them(bits):
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(bits))
    low, high = w.amin(1).clamp_max(0), w.amax(1).clamp_min(0)
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round()
    expected = torch.fake_quantize_per_channel_affine(w, scale, zero.to(torch.int32), 0, 0, 2**bits - 1)
    assert torch.allclose(Quantiser("channel").weights(w, bits), expected, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_symmetric_tensor_as_pytorch_rounds_it(bits):
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(bits))
    top = 2 ** (bits - 1) - 1
    expected = torch.fake_quantize_per_tensor_affine(w, float(w.abs().max()) / top, 0, -top - 1, top)
    assert torch.allclose(Quantiser("tensor", symmetric=True).weights(w, bits), expected, atol=1e-6)


def test_groups_are_channels_of_a_matrix_cut_to_pieces():
    w = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    pieces = [Quantiser("channel").weights(piece, 3) for piece in w.split(32, dim=1)]
    assert torch.equal(Quantiser("group", group_size=32).weights(w, 3), torch.cat(pieces, dim=1))


@given(st.integers(2, 8), st.integers(1, 50), st.booleans(), st.integers(0, 9))
def test_laws(bits, width, symmetric, seed):
    """Zero stays zero, nothing moves further than a step and a half, no more levels than bits allow."""
    w = torch.randn(3, width, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed - 4)
    w[:, 0] = 0.0
    out = Quantiser("channel", symmetric).weights(w, bits)
    assert torch.equal(out[:, 0], torch.zeros(3))
    step = 2 * w.abs().amax(1, keepdim=True) / (2**bits - 2)
    assert ((out - w).abs() <= 1.01 * step).all()
    assert all(len(row.unique()) <= 2**bits for row in out)


def test_wider_formats_change_nothing():
    w = torch.randn(3, 8)
    assert Quantiser().weights(w, 16) is w
    assert in_groups(w, 16, 4) is w


def test_keys_are_rounded_per_feature():
    """Of two positions every feature has two numbers: with zero among them, two bits are enough."""
    keys = torch.tensor([[[0.0, 5.0, -3.0], [2.0, 0.0, 0.0]]])
    assert torch.allclose(over_positions(keys, 2), keys)


@pytest.mark.parametrize("wrong", [{"granularity": "row"}, {"group_size": 0}])
def test_settings_that_cannot_be(wrong):
    with pytest.raises(UserError):
        Quantiser(**wrong)
