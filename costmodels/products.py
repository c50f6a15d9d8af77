"""Sizes of the matrix products of a phase for a batch of designs: the inner loop over designs and operators, compiled.

Every product is brought to one form, ``count`` products O[m, n] = A[m, k] B[k, n]:

    linear         A activations, B weight. Of experts, ``count`` is the expected number that the rows touch,
                   E (1 - (1 - k/E)^rows) under uniform independent routing, each with an equal share of the rows;
                   of a block-diagonal weight (absorbed latent attention), one product per head
    score, value   one product per sequence and key-value head; the query heads that share it are stacked in m. Under a
                   window of w < L positions, L / w products of w rows and w positions each: every position is read,
                   once (a sliding window's rows may need those before it again, which is left out)

The loop works on scalars, so a formula stands here as it is written on paper; numpy would need some forty temporaries
of (designs, operators). Records of arrays are passed per design, not per product: each pass counts references. No
fast-math: a row's result does not depend on its neighbours, bit for bit. Compiled code is
kept on disk.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

LINEAR: Final = 0
SCORE: Final = 1
VALUE: Final = 2

PLAIN_BITS: Final = 16

# Planes of the result of size_products.
COUNT, M, K, N, A_BITS, B_BITS, B_BYTES, WIDE, HELD = range(9)
N_SIZES: Final = 9


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
        windowed: whether attention looks at a window, shape (j,).
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
    windowed: np.ndarray


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
def ceil(x: float) -> float:
    """Return the ceiling as a float, one instruction instead of a detour by integers."""
    return float(np.ceil(x))


@njit(cache=True)
def _size(dims: np.ndarray, j: int, heads: float, channels: float) -> float:
    return float(dims[j, 0] + dims[j, 1] * heads + dims[j, 2] * channels)


@njit(cache=True)
def held_bits(width: float) -> float:
    """Return the bits that an element takes in a multiplier made of 2-bit ones: the next power of two."""
    return 2.0 if width <= 2.0 else 4.0 if width <= 4.0 else 8.0 if width <= 8.0 else 16.0


@njit(cache=True)
def window_parts(length: float, span: float) -> float:
    """Return how many windows the rows of a sequence fill; one where there are fewer rows than positions (decode)."""
    return length / span if 0.0 < span < length else 1.0


@njit(cache=True)
def size_design(p: Products, b: Bound, w: Widths, i: int, out: np.ndarray, at: int) -> None:
    """Write the sizes of the products of design i to ``out[:, at, :]``, planes as :func:`size_products` has them."""
    kind, block, rows_at, span_at, weight_at, act_at, cache_at = (
        p.kind,
        p.block,
        p.rows,
        p.span,
        p.weight,
        p.act,
        p.cache,
    )
    windowed, k_of, n_of, queries_of, kv_heads_of, copies, active, shares = (
        p.windowed,
        p.k,
        p.n,
        p.heads,
        p.kv_heads,
        p.copies,
        p.active,
        p.share,
    )
    heads_of, channels_of, runs = b.heads[i], b.channels[i], b.block[i]
    lengths, numbers, spans = b.per_sequence[i], b.sequences[i], b.spans[i]
    weight_bits, act_bits, cache_bits = w.weight[i], w.act[i], w.cache[i]
    group_size, scale_bits, zero_points = w.group_size, w.scale_bits, w.zero_points
    last = len(weight_bits) - 1
    for j in range(len(kind)):
        heads, channels = heads_of[block[j]], channels_of[block[j]]
        length, number = lengths[rows_at[j]], numbers[rows_at[j]]
        k, n = _size(k_of, j, heads, channels), _size(n_of, j, heads, channels)
        queries = _size(queries_of, j, heads, channels)
        if kind[j] == LINEAR:
            count, m = queries, length * number * active[j]
            if copies[j] > 1.0 and m > 0.0:
                touched = copies[j] * (1.0 - (1.0 - active[j] / copies[j]) ** (length * number))
                count, m = touched * queries, m / touched
            bits = beside = wide = held = 0.0
            for c in range(shares.shape[1]):
                width, share = weight_bits[min(weight_at[j] + c, last)], shares[j, c]
                bits += share * width
                beside += share * (scale_bits + zero_points * width if width < PLAIN_BITS else 0.0)
                wide += share * (1.0 if width > 8.0 else 0.0)
                held += share * held_bits(width)
            # A weight's last group may be part-filled: it stores a scale all the same.
            stored = n * (k * bits + ceil(k / group_size) * beside)
            a_bits = act_bits[act_at[j]]
        else:
            kv_heads, span = _size(kv_heads_of, j, heads, channels), spans[span_at[j]]
            if windowed[j]:
                parts = window_parts(length, span)
                length, number = length / parts, number * parts
            if kind[j] == SCORE:
                n = span
            else:
                k = span
            count, m = number * kv_heads, length * queries / kv_heads
            bits = cache_bits[cache_at[j]]
            beside = scale_bits + zero_points * bits if bits < PLAIN_BITS else 0.0
            stored = n * k * (bits + beside / group_size)
            wide, held = 1.0 if bits > 8.0 else 0.0, held_bits(bits)
            a_bits = float(PLAIN_BITS)
        if m <= 0.0 or k <= 0.0 or n <= 0.0:  # no image, no states: nothing to do, and nothing to divide by
            count, m, k, n, stored = 0.0, max(m, 1.0), max(k, 1.0), max(n, 1.0), 0.0
        out[COUNT, at, j], out[M, at, j], out[K, at, j], out[N, at, j] = count * runs[block[j]], m, k, n
        out[A_BITS, at, j], out[B_BITS, at, j] = a_bits, bits
        out[B_BYTES, at, j], out[WIDE, at, j], out[HELD, at, j] = stored / 8.0, wide, held


@njit(cache=True)
def size_products(p: Products, b: Bound, w: Widths) -> np.ndarray:
    """Return the sizes of all products of all designs, shape (9, n designs, j products).

    Planes: count, m, k, n, a_bits, b_bits, b_bytes, the share of wide channels, held bits. ``b_bytes`` are the stored
    bytes of one B, scales and zero points included; ``b_bits`` its mean width; wide are the channels above 8 bits; held
    bits are the mean of :func:`held_bits`. A product in a dropped block, or without rows, has count 0.
    """
    out = np.empty((N_SIZES, len(b.block), len(p.kind)))
    for i in range(len(b.block)):
        size_design(p, b, w, i, out, i)
    return out
