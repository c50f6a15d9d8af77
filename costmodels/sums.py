"""Sums over the operators and modules of a model for a batch of designs, compiled: vector elements, stored weights.

Same rules as :mod:`costmodels.products`: scalars in the loop, sums in the order of the table, no fast-math.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from costmodels.products import PLAIN_BITS, Widths, ceil


class Matrices(NamedTuple):
    """Parameters of a model, one element or row per matrix.

    Attributes:
        block: block column, shape (j,).
        grouped, channels: dims along which groups run, and across them, as (fixed, per head, per channel), (j, 3).
        copies: experts, shape (j,).
        weight: first weight-bits column; one past the last for what stays at 16 bits, shape (j,).
        share: part of the output channels in each channel group, shape (j, c).
    """

    block: np.ndarray
    grouped: np.ndarray
    channels: np.ndarray
    copies: np.ndarray
    weight: np.ndarray
    share: np.ndarray


@njit(cache=True)
def sum_elements(
    group: np.ndarray, block: np.ndarray, size: np.ndarray, n_groups: int,
    heads: np.ndarray, channels: np.ndarray, runs: np.ndarray, skipped: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Return the elements per row of vector groups, shape (n, n_groups).

    Args:
        group, block: group and block column of each entry, shape (e,).
        size: its elements as (fixed, per head, per channel), shape (e, 3).
        n_groups: number of groups.
        heads, channels, runs: what pruning leaves of each block, shape (n, b + 1).
        skipped: entries that are left out, shape (n, e), or (1, e) for all designs alike.
    """
    out = np.zeros((len(heads), n_groups))
    for i in range(len(heads)):
        row = i if len(skipped) > 1 else 0
        for e in range(len(group)):
            if skipped[row, e]:
                continue
            at = block[e]
            out[i, group[e]] += runs[i, at] * (size[e, 0] + size[e, 1] * heads[i, at] + size[e, 2] * channels[i, at])
    return out


@njit(cache=True)
def sum_stored_bytes(
    m: Matrices, w: Widths, heads: np.ndarray, channels: np.ndarray, runs: np.ndarray
) -> np.ndarray:  # fmt: skip
    """Return the stored bytes of all matrices, scales and zero points included, shape (n,).

    Args:
        m: the matrices.
        w: widths of the designs.
        heads, channels, runs: what pruning leaves of each block, shape (n, b + 1).
    """
    block, grouped_of, channels_of, copies, weight, shares = m
    widths, group_size, scale_bits, zero_points = w.weight, w.group_size, w.scale_bits, w.zero_points
    last, n_parts = widths.shape[1] - 1, shares.shape[1]
    out = np.zeros(len(heads))
    for i in range(len(heads)):
        total = 0.0
        for j in range(len(block)):
            at = block[j]
            h, c = heads[i, at], channels[i, at]
            grouped = grouped_of[j, 0] + grouped_of[j, 1] * h + grouped_of[j, 2] * c
            across = channels_of[j, 0] + channels_of[j, 1] * h + channels_of[j, 2] * c
            groups = ceil(grouped / group_size)
            per_channel = 0.0
            for x in range(n_parts):
                bits = widths[i, min(weight[j] + x, last)]
                beside = scale_bits + zero_points * bits if bits < PLAIN_BITS else 0.0
                per_channel += shares[j, x] * (grouped * bits + groups * beside)
            total += per_channel * across * (copies[j] * runs[i, at])
        out[i] = total / 8.0
    return out


@njit(cache=True)
def sum_weights(
    block: np.ndarray, inner: np.ndarray, outer: np.ndarray, copies: np.ndarray,
    heads: np.ndarray, channels: np.ndarray, runs: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Return the elements of all matrices that pruning leaves, shape (n,).

    Args:
        block, copies: block column and copies of each matrix, shape (j,).
        inner, outer: its sides as (fixed, per head, per channel), shape (j, 3).
        heads, channels, runs: what pruning leaves of each block, shape (n, b + 1).
    """
    out = np.zeros(len(heads))
    for i in range(len(heads)):
        for j in range(len(block)):
            at = block[j]
            h, c = heads[i, at], channels[i, at]
            rows = inner[j, 0] + inner[j, 1] * h + inner[j, 2] * c
            cols = outer[j, 0] + outer[j, 1] * h + outer[j, 2] * c
            out[i] += rows * cols * copies[j] * runs[i, at]
    return out


@njit(cache=True)
def sum_by_width(bits: np.ndarray, share: np.ndarray, by_width: np.ndarray) -> np.ndarray:
    """Return sums over the entries of a knob of what their widths stand for, shape (t, n).

    Args:
        bits: whole numbers up to 16, shape (n, g).
        share: factor of each entry and table, shape (t, g).
        by_width: what 0, 1, ... 16 bits stand for in each table, shape (t, 17).
    """
    out = np.zeros((len(share), len(bits)))
    for i in range(len(bits)):
        for j in range(share.shape[1]):
            width = bits[i, j]
            for t in range(len(share)):
                out[t, i] += share[t, j] * by_width[t, width]
    return out
