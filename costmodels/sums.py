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
    heads: np.ndarray, channels: np.ndarray, runs: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Return the elements per row of vector groups, shape (n, n_groups).

    Args:
        group, block: group and block column of each entry, shape (e,).
        size: its elements as (fixed, per head, per channel), shape (e, 3).
        n_groups: number of groups.
        heads, channels, runs: what pruning leaves of each block, shape (n, b + 1).
    """
    out = np.zeros((len(heads), n_groups))
    for i in range(len(heads)):
        for e in range(len(group)):
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
    out = np.zeros(len(heads))
    for i in range(len(heads)):
        total = 0.0
        for j in range(len(m.block)):
            at = m.block[j]
            per_channel, across = _stored(m, w, i, j, heads[i, at], channels[i, at])
            total += per_channel * across * (m.copies[j] * runs[i, at])
        out[i] = total / 8.0
    return out


@njit(cache=True)
def _stored(m: Matrices, w: Widths, i: int, j: int, heads: float, channels: float) -> tuple[float, float]:
    """Return the bits of an output channel of matrix j, and its output channels, in design i."""
    grouped = m.grouped[j, 0] + m.grouped[j, 1] * heads + m.grouped[j, 2] * channels
    across = m.channels[j, 0] + m.channels[j, 1] * heads + m.channels[j, 2] * channels
    groups = ceil(grouped / w.group_size)
    last, per_channel = w.weight.shape[1] - 1, 0.0
    for x in range(m.share.shape[1]):
        bits = w.weight[i, min(m.weight[j] + x, last)]
        beside = w.scale_bits + w.zero_points * bits if bits < PLAIN_BITS else 0.0
        per_channel += m.share[j, x] * (grouped * bits + groups * beside)
    return per_channel, across


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
    out = np.zeros((len(heads), n_stages))
    for i in range(len(heads)):
        for j in range(len(m.block)):
            at = m.block[j]
            per_channel, across = _stored(m, w, i, j, heads[i, at], channels[i, at])
            parts, own = 1.0, across
            if split[j] == 1:  # by outputs
                fixed = m.channels[j, 0]
                shared = min(tensor[i], kv_heads[j]) if kv_heads[j] > 0.0 else tensor[i]
                own = (across - fixed) / tensor[i] + fixed / shared
            elif split[j] == 2 or split[j] == 3:
                parts = tensor[i]
            elif split[j] == 4 or split[j] == 5:
                parts = experts[i]
            elif split[j] == 6:
                own = ceil(across / tensor[i])
            size = per_channel * own * (m.copies[j] * runs[i, at]) / parts / 8.0
            last = int(stages[i]) - 1
            if end[j] == 0:
                out[i, stage[i, at]] += size
            else:
                if end[j] == 1 or end[j] == 3:
                    out[i, 0] += size
                if end[j] == 2 or (end[j] == 3 and last > 0):
                    out[i, last] += size
    return out
