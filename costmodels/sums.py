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
    out = np.zeros(len(heads))
    for i in range(len(heads)):
        total = 0.0
        for j in range(len(block)):
            at = block[j]
            h, c = heads[i, at], channels[i, at]
            grouped = grouped_of[j, 0] + grouped_of[j, 1] * h + grouped_of[j, 2] * c
            across = channels_of[j, 0] + channels_of[j, 1] * h + channels_of[j, 2] * c
            per_channel = _channel_bits(grouped, widths, weight, shares, group_size, scale_bits, zero_points, i, j)
            total += per_channel * across * (copies[j] * runs[i, at])
        out[i] = total / 8.0
    return out


@njit(cache=True, inline="always")
def _channel_bits(
    grouped: float, widths: np.ndarray, weight: np.ndarray, shares: np.ndarray,
    group_size: float, scale_bits: float, zero_points: float, i: int, j: int,
) -> float:  # fmt: skip
    """Return the mean bits of an output channel of matrix j in design i; inlined, a call would count references."""
    groups = ceil(grouped / group_size)
    last, per_channel = widths.shape[1] - 1, 0.0
    for x in range(shares.shape[1]):
        bits = widths[i, min(weight[j] + x, last)]
        beside = scale_bits + zero_points * bits if bits < PLAIN_BITS else 0.0
        per_channel += shares[j, x] * (grouped * bits + groups * beside)
    return per_channel


@njit(cache=True)
def sum_stored_bytes_by_stage(
    m: Matrices, w: Widths, heads: np.ndarray, channels: np.ndarray, runs: np.ndarray,
    split: np.ndarray, kv_heads: np.ndarray, end: np.ndarray,
    tensor: np.ndarray, experts: np.ndarray, stage: np.ndarray, stages: np.ndarray, n_stages: int,
) -> np.ndarray:  # fmt: skip
    """Return the stored bytes on one device of each pipeline stage, shape (n, n_stages).

    Args:
        m: the matrices.
        w: widths of the designs.
        heads, channels, runs: what pruning leaves of each block, shape (n, b + 1).
        split: how each matrix is divided, see :class:`costmodels.splits.Split`, shape (j,).
        kv_heads: fixed key-value heads of its block, 0 without, shape (j,).
        end: 0 where its block decides on the stage, 1, 2, 3 for the first, the last and both, shape (j,).
        tensor, experts: devices that divide a layer, and an expert layer, shape (n,).
        stage: stage of each block, shape (n, b + 1).
        stages: stages of each design, shape (n,).
        n_stages: most stages of any design.
    """
    block, grouped_of, channels_of, copies, weight, shares = m
    widths, group_size, scale_bits, zero_points = w.weight, w.group_size, w.scale_bits, w.zero_points
    out = np.zeros((len(heads), n_stages))
    for i in range(len(heads)):
        for j in range(len(block)):
            at = block[j]
            h, c = heads[i, at], channels[i, at]
            grouped = grouped_of[j, 0] + grouped_of[j, 1] * h + grouped_of[j, 2] * c
            across = channels_of[j, 0] + channels_of[j, 1] * h + channels_of[j, 2] * c
            per_channel = _channel_bits(grouped, widths, weight, shares, group_size, scale_bits, zero_points, i, j)
            parts, own = 1.0, across
            if split[j] == 1:  # by outputs
                fixed = channels_of[j, 0]
                shared = min(tensor[i], kv_heads[j]) if kv_heads[j] > 0.0 else tensor[i]
                own = (across - fixed) / tensor[i] + fixed / shared
            elif split[j] == 2 or split[j] == 3:
                parts = tensor[i]
            elif split[j] == 4 or split[j] == 5:
                parts = experts[i]
            elif split[j] == 6:
                own = ceil(across / tensor[i])
            size = per_channel * own * (copies[j] * runs[i, at]) / parts / 8.0
            last = int(stages[i]) - 1
            if end[j] == 0:
                out[i, stage[i, at]] += size
            else:
                if end[j] == 1 or end[j] == 3:
                    out[i, 0] += size
                if end[j] == 2 or (end[j] == 3 and last > 0):
                    out[i, last] += size
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
