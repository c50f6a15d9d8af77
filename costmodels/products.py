"""Sizes of the matrix products of a phase for a batch of designs: the inner loop over designs and operators, compiled.

Every product is brought to one form, ``count`` products O[m, n] = A[m, k] B[k, n]:

    linear         A activations, B weight. Of experts, ``count`` is the expected number that the rows touch,
                   E (1 - (1 - k/E)^rows) under uniform independent routing, each with an equal share of the rows;
                   of a block-diagonal weight (absorbed latent attention), one product per head
    score, value   one product per sequence and key-value head; the query heads that share it are stacked in m

The loop works on scalars, so a formula stands here as it is written on paper; numpy would need some forty temporaries
of (designs, operators). No fast-math: a row's result does not depend on its neighbours, bit for bit. Compiled code is
kept on disk.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numba import njit

LINEAR: Final = 0
SCORE: Final = 1
VALUE: Final = 2

PLAIN_BITS: Final = 16

# Planes of the result of size_products.
COUNT, M, K, N, A_BITS, B_BITS, B_BYTES, WIDE = range(8)


class Products(NamedTuple):
    """The matrix products of a phase, one element or row per product.

    Attributes:
        kind: LINEAR, SCORE or VALUE, shape (j,).
        block: block column, shape (j,).
        k, n, heads, kv_heads: dims as (fixed, per head, per channel), shape (j, 3).
        rows, span: columns of the bound row and span tables, shape (j,).
        copies, active: experts, and experts per row, shape (j,).
        weight: first weight-bits column; without a weight, the last column (16 bits), shape (j,).
        share: part of the output channels in each channel group, shape (j, c).
        act: act-bits column, shape (j,).
        cache: cache-bits column: of keys at 0 ... , of values behind them, shape (j,).
    """

    kind: np.ndarray
    block: np.ndarray
    k: np.ndarray
    n: np.ndarray
    heads: np.ndarray
    kv_heads: np.ndarray
    rows: np.ndarray
    span: np.ndarray
    copies: np.ndarray
    active: np.ndarray
    weight: np.ndarray
    share: np.ndarray
    act: np.ndarray
    cache: np.ndarray


class Bound(NamedTuple):
    """Symbols and pruning of a batch of designs, bound to numbers.

    Attributes:
        heads, channels: units that pruning leaves in each block, shape (n, b + 1).
        block: 1 where a block runs, 0 where it does not, shape (n, b + 1).
        per_sequence, sequences: rows per sequence and sequences of each row symbol, shape (n, symbols).
        spans: positions that each span symbol stands for, shape (n, symbols).
    """

    heads: np.ndarray
    channels: np.ndarray
    block: np.ndarray
    per_sequence: np.ndarray
    sequences: np.ndarray
    spans: np.ndarray


class Widths(NamedTuple):
    """Widths of a batch of designs, and what a group of narrow elements stores beside them.

    Attributes:
        weight, act, cache: bits, each with a last column of 16, shape (n, entries + 1).
        group_size: elements of a group.
        scale_bits: bits of its scale.
        zero_points: 1 if it also keeps a zero point as wide as its elements, else 0.
    """

    weight: np.ndarray
    act: np.ndarray
    cache: np.ndarray
    group_size: float
    scale_bits: float
    zero_points: float


@njit(cache=True)
def group_bits(width: float, w: Widths) -> float:
    """Return the bits that a group stores beside its elements: none at 16 bits."""
    return w.scale_bits + w.zero_points * width if width < PLAIN_BITS else 0.0


@njit(cache=True)
def _size(dims: np.ndarray, j: int, heads: float, channels: float) -> float:
    return float(dims[j, 0] + dims[j, 1] * heads + dims[j, 2] * channels)


@njit(cache=True)
def size_products(p: Products, b: Bound, w: Widths) -> np.ndarray:
    """Return count, m, k, n, a_bits, b_bits, b_bytes and the share of wide channels, shape (8, n designs, j products).

    ``b_bytes`` are the stored bytes of one B, scales and zero points included; ``b_bits`` its mean width in the
    multiplier; wide are the channels above 8 bits. A product in a dropped block, or without rows, has count 0.
    """
    n_designs, n_products = len(b.block), len(p.kind)
    out = np.empty((8, n_designs, n_products))
    for i in range(n_designs):
        for j in range(n_products):
            at = p.block[j]
            heads, channels = b.heads[i, at], b.channels[i, at]
            length, number = b.per_sequence[i, p.rows[j]], b.sequences[i, p.rows[j]]
            k, n = _size(p.k, j, heads, channels), _size(p.n, j, heads, channels)
            queries = _size(p.heads, j, heads, channels)
            if p.kind[j] == LINEAR:
                rows, touched = length * number, 1.0
                if p.copies[j] > 1.0 and rows > 0.0:
                    touched = p.copies[j] * (1.0 - (1.0 - p.active[j] / p.copies[j]) ** rows)
                count, m = touched * queries, rows * p.active[j] / touched
                bits = beside = wide = 0.0
                for c in range(p.share.shape[1]):
                    width = w.weight[i, min(p.weight[j] + c, w.weight.shape[1] - 1)]
                    bits += p.share[j, c] * width
                    beside += p.share[j, c] * group_bits(width, w)
                    wide += p.share[j, c] * (1.0 if width > 8.0 else 0.0)
                # A weight's last group may be part-filled: it stores a scale all the same.
                stored = bits + beside * math.ceil(k / w.group_size) / max(k, 1.0)
                a_bits = w.act[i, p.act[j]]
            else:
                kv_heads, span = _size(p.kv_heads, j, heads, channels), b.spans[i, p.span[j]]
                if p.kind[j] == SCORE:
                    n = span
                else:
                    k = span
                count, m = number * kv_heads, length * queries / kv_heads
                bits = w.cache[i, p.cache[j]]
                stored = bits + group_bits(bits, w) / w.group_size
                wide = 1.0 if bits > 8.0 else 0.0
                a_bits = float(PLAIN_BITS)
            if m <= 0.0 or k <= 0.0 or n <= 0.0:  # no image, no states: nothing to do, and nothing to divide by
                count, m, k, n = 0.0, max(m, 1.0), max(k, 1.0), max(n, 1.0)
            out[COUNT, i, j], out[M, i, j], out[K, i, j], out[N, i, j] = count * b.block[i, at], m, k, n
            out[A_BITS, i, j], out[B_BITS, i, j] = a_bits, bits
            out[B_BYTES, i, j], out[WIDE, i, j] = k * n * stored / 8.0, wide
    return out
