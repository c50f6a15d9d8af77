"""Matrix products O[m, n] = A[m, k] B[k, n] as SCALE-Sim 3.0.0 counts them, in closed form, as arrays over products.

The named mode ``scalesim`` stands on this module; it is exempt from the monotonicity laws, because the tool's counting
does not obey them. Words are the tool's: one element of an operand each.

Array. A dataflow names the operand that stays in the R x C array; its sides Sr x Sc are cut into fr x fc folds, each of
which streams T steps. Folds run one after the other, filled and drained each time, at full R and C in edge folds too:

    os (outputs)   Sr = m, Sc = n, T = k    T + R + C - 2 cycles per fold
    ws (weights)   Sr = k, Sc = n, T = m    T + 2R + C - 2
    is (inputs)    Sr = k, Sc = m, T = n    T + 2R + C - 2

Total cycles are fr fc times that, less one: the tool reports the number of its last cycle, counted from 0. Stalls are
0, as in its CALC mode, which asks what bandwidth a stall-free run needs.

SRAM reads. A is read once per column fold (os, ws) or once (is); B once per row fold (os), once (ws) or once per
column fold (is).

DRAM reads. A read buffer of S words fills in 100 sets of floor(S / 100) words, 50 of which are active: U = 50 floor(S /
100) words. It drops everything at the moment its U-th word comes in. So DRAM reads are the misses of a cache that is
flushed when full, and follow from the order of the reads alone:

- an operand that is read in one go, or over and over in the same order (all but B in os): its own size u if u < U, else
  every read misses (also at u = U: the last word of the first pass flushes the others);
- B in os is read slab by slab (the k x C words of a column fold), each slab fr times. Say a slab has s words, s < U and
  fr > 1. q = ceil(U / s) - 1 slabs fit and are fetched once. The first pass of slab q + 1 meets the flush after
  U - q s words, and all its s words are missed once more; it stays, and so do q - 1 others, and so on. That makes
  floor((slabs - 1) / q) flushes, each of which costs U - q s words. With s >= U every read misses. The last, narrower
  slab starts with what is in the buffer by then.

DRAM writes. m n words (os) or m n fr (ws, is: partial sums go out once per row fold, and are not counted back in)
through lines of C words and a buffer that starts to drain when more than D = floor(S / 2) words are in. If D is a
multiple of C, and not C itself, the first drain pads a line of one word, which is later counted in full: C - 1 words
more, once, for more than D + 1 words. For other D the padded line is the last of its batch, whose padding is not
counted.

Derived from the order in which SCALE-Sim 3.0.0 issues and serves requests (its compute and memory modules), then
checked on runs of the tool: every CALC run in ``tests/data/scalesim_runs.csv.gz``. In USER mode cycles and SRAM reads
are the same, DRAM reads and stalls are those of a prefetcher that this module does not follow.

Not in the tool: operand widths, overlap of folds, partial sums read back, vector work, several arrays.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from costmodels.systolic import INPUT_STATIONARY, OUTPUT_STATIONARY, WEIGHT_STATIONARY

N_SETS: Final = 100
N_ACTIVE_SETS: Final = 50
CHUNK: Final = 16_384

STAYS: Final = {"os": OUTPUT_STATIONARY, "ws": WEIGHT_STATIONARY, "is": INPUT_STATIONARY}


class Folds(NamedTuple):
    """How products lie on an array, arrays of one shape.

    Attributes:
        rows, cols: folds along the array's rows and columns.
        cycles: cycles of one fold.
    """

    rows: np.ndarray
    cols: np.ndarray
    cycles: np.ndarray


class Counts(NamedTuple):
    """What the tool reports for products, arrays of one shape; words unless said otherwise.

    Attributes:
        cycles: total cycles without stalls.
        mapping_ratio: processing elements that folds use, mean over folds.
        utilisation_ratio: multiply-accumulates over cycles times processing elements.
        a_sram_reads, b_sram_reads: operand reads of the array.
        o_sram_writes: results that leave the array; os adds R + C per fold, a slip of the tool's count.
        a_dram_reads, b_dram_reads, o_dram_writes: DRAM traffic.
        o_logical_writes: results and partial sums that go to DRAM, without the padding of lines.
    """

    cycles: np.ndarray
    mapping_ratio: np.ndarray
    utilisation_ratio: np.ndarray
    a_sram_reads: np.ndarray
    b_sram_reads: np.ndarray
    o_sram_writes: np.ndarray
    a_dram_reads: np.ndarray
    b_dram_reads: np.ndarray
    o_dram_writes: np.ndarray
    o_logical_writes: np.ndarray


def fold(m: np.ndarray, n: np.ndarray, k: np.ndarray, rows: np.ndarray, cols: np.ndarray, stays: np.ndarray) -> Folds:
    """Return the folds of products.

    Args:
        m, n, k: sizes.
        rows, cols: elements of the array.
        stays: OUTPUT_STATIONARY, WEIGHT_STATIONARY or INPUT_STATIONARY.
    """
    is_os, is_is = stays == OUTPUT_STATIONARY, stays == INPUT_STATIONARY
    streamed = np.where(is_os, k, np.where(is_is, n, m))
    preload = np.where(is_os, 0.0, rows)
    return Folds(
        rows=np.ceil(np.where(is_os, m, k) / rows),
        cols=np.ceil(np.where(is_is, m, n) / cols),
        cycles=streamed + preload + rows + cols - 2.0,
    )


def count(
    m: np.ndarray,
    n: np.ndarray,
    k: np.ndarray,
    rows: np.ndarray,
    cols: np.ndarray,
    stays: np.ndarray,
    a_words: np.ndarray,
    b_words: np.ndarray,
    o_words: np.ndarray,
) -> Counts:
    """Return what the tool counts for products in its CALC mode.

    Args:
        m, n, k: sizes, float64; like all arguments of shapes that broadcast together.
        rows, cols: elements of the array.
        stays: OUTPUT_STATIONARY, WEIGHT_STATIONARY or INPUT_STATIONARY.
        a_words, b_words, o_words: on-chip words of each operand (the tool's kB times 1024), 100 or more.
    """
    given = (m, n, k, rows, cols, stays, a_words, b_words, o_words)
    shape = np.broadcast_shapes(*(np.shape(a) for a in given))
    if len(shape) != 1 or shape[0] <= CHUNK:
        return _count(*given)
    # Some forty temporaries: worked on in pieces, they stay in a core's second-level cache.
    full = [np.broadcast_to(a, shape) for a in given]
    out = Counts(*(np.empty(shape) for _ in Counts._fields))
    for start in range(0, shape[0], CHUNK):
        piece = slice(start, start + CHUNK)
        for into, part in zip(out, _count(*(a[piece] for a in full)), strict=True):
            into[piece] = part
    return out


def _count(
    m: np.ndarray,
    n: np.ndarray,
    k: np.ndarray,
    rows: np.ndarray,
    cols: np.ndarray,
    stays: np.ndarray,
    a_words: np.ndarray,
    b_words: np.ndarray,
    o_words: np.ndarray,
) -> Counts:
    folds = fold(m, n, k, rows, cols, stays)
    is_os, is_is = stays == OUTPUT_STATIONARY, stays == INPUT_STATIONARY
    n_folds, elements = folds.rows * folds.cols, rows * cols
    cycles = n_folds * folds.cycles - 1.0
    a_passes = np.where(is_is, 1.0, folds.cols)
    b_passes = np.where(is_os, folds.rows, np.where(is_is, folds.cols, 1.0))
    a_size, b_size, macs = m * k, k * n, m * n * k
    logical = m * n * np.where(is_os, 1.0, folds.rows)
    return Counts(
        cycles=cycles,
        mapping_ratio=np.where(is_os, m * n, np.where(is_is, m * k, k * n)) / (n_folds * elements),
        utilisation_ratio=macs / (np.maximum(cycles, 1.0) * elements),  # one cycle: the tool divides by zero
        a_sram_reads=a_size * a_passes,
        b_sram_reads=b_size * b_passes,
        o_sram_writes=logical + np.where(is_os, n_folds * (rows + cols), 0.0),
        a_dram_reads=_repeated(a_size, a_passes, active_words(a_words)),
        b_dram_reads=np.where(
            is_os,
            _slab_by_slab(k * cols, k * (n - (folds.cols - 1.0) * cols), folds, active_words(b_words)),
            _repeated(b_size, b_passes, active_words(b_words)),
        ),
        o_dram_writes=logical + _padding(logical, cols, o_words),
        o_logical_writes=logical,
    )


def active_words(words: np.ndarray) -> np.ndarray:
    """Return the words of a read buffer that are active, of those it has."""
    return N_ACTIVE_SETS * np.floor(words / N_SETS)


def _repeated(size: np.ndarray, passes: np.ndarray, active: np.ndarray) -> np.ndarray:
    return size * np.where(size < active, 1.0, passes)


def _slab_by_slab(slab: np.ndarray, last: np.ndarray, folds: Folds, active: np.ndarray) -> np.ndarray:
    """Return the misses of B in os: slabs of ``slab`` words and one of ``last``, each read once per row fold."""
    whole, passes = folds.cols - 1.0, folds.rows
    fits = slab < active
    held = np.ceil(active / slab) - 1.0  # slabs that fit beside each other; used only where one fits
    held = np.where(fits, held, 1.0)
    flushes = np.floor(np.maximum(whole - 1.0, 0.0) / held)
    thrash = whole * slab * passes
    missed = np.where(fits, whole * slab + flushes * (active - held * slab), thrash)
    left = np.where(fits, (whole - flushes * held) * slab, thrash - active * np.floor(thrash / active))
    at_last = np.where(last < active, last + np.where(left + last < active, 0.0, active - left), last * passes)
    return np.where(passes > 1.0, missed + at_last, whole * slab + last)


def _padding(logical: np.ndarray, cols: np.ndarray, words: np.ndarray) -> np.ndarray:
    drains_at = np.floor(words / 2.0)
    lines = drains_at / cols
    return np.where((lines == np.floor(lines)) & (lines > 1.0) & (logical > drains_at + 1.0), cols - 1.0, 0.0)
