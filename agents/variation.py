"""New designs from old ones: crossover, mutation and their repair to designs that nobody proposed before.

All on whole arrays of codes. Ordered levels move by steps, others jump to any other level. Step lengths are geometric
with a mean that is a fraction of the number of levels, so a knob of 1,024 levels and one of 4 move alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from dse.protocols import History
from dse.space import BoundSpace, row_keys

CROSSOVERS: Final = ("none", "uniform", "block")
# (knobs changed on average: constant + fraction of all, mean step as a fraction of the levels)
MUTATIONS: Final = ((1.0, 0.0, 0.0), (1.5, 0.02, 0.1), (2.0, 0.05, 0.25), (2.0, 0.15, 1.0))
N_OPERATORS: Final = len(CROSSOVERS) * len(MUTATIONS)
_ROUNDS: Final = 8


@dataclass(frozen=True)
class Layout:
    """What variation needs to know of a space.

    Attributes:
        n_levels: shape (p,).
        ordered: whether levels are ascending numbers, shape (p,).
        block: number of the declaration that each parameter belongs to, shape (p,).
        place: position within it, shape (p,).
        sizes: parameters of each declaration.
    """

    n_levels: np.ndarray
    ordered: np.ndarray
    block: np.ndarray
    place: np.ndarray
    sizes: np.ndarray

    @classmethod
    @lru_cache(maxsize=8)
    def of(cls, space: BoundSpace) -> Layout:
        """Return the layout of a space."""
        numbers = {path: i for i, path in enumerate(dict.fromkeys(p.path for p in space.parameters))}
        block = np.array([numbers[p.path] for p in space.parameters])
        sizes = np.bincount(block)
        place = np.zeros(len(block), dtype=np.int64)
        for b in range(len(sizes)):
            place[block == b] = np.arange(sizes[b])
        ordered = np.array([p.is_ordered for p in space.parameters])
        return cls(space.n_levels, ordered, block, place, sizes)


def cross(layout: Layout, a: np.ndarray, b: np.ndarray, kind: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return children of pairs of parents.

    Args:
        layout: of the space.
        a, b: codes of the parents, shape (n, p).
        kind: index into :data:`CROSSOVERS` for each pair, shape (n,): the first parent; each knob from either parent;
            whole declarations from either parent, half of them cut at a place along the hierarchy.
        rng: random generator.
    """
    n, p = a.shape
    uniform = rng.random((n, p)) < 0.5
    swapped = rng.random((n, len(layout.sizes))) < 0.5
    cut = (rng.random((n, len(layout.sizes))) * 2 * layout.sizes).astype(np.int64)
    block = swapped[:, layout.block] ^ (layout.place >= cut[:, layout.block])
    from_b = np.where((kind == 1)[:, None], uniform, block) & (kind > 0)[:, None]
    return np.where(from_b, b, a)


def mutate(layout: Layout, codes: np.ndarray, strength: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the codes with at least one parameter of each row changed, where any has more than one level.

    Args:
        layout: of the space.
        codes: shape (n, p).
        strength: index into :data:`MUTATIONS` for each row, shape (n,).
        rng: random generator.
    """
    n, p = codes.shape
    table = np.array(MUTATIONS)[strength]
    movable = layout.n_levels > 1
    if not movable.any():
        return codes
    # Levels weigh in by their logarithm: a knob of two levels is tried out sooner than one of a thousand.
    weight = np.where(movable, 1.0 + np.log2(layout.n_levels), 0.0)
    rate = np.minimum((table[:, 0] + table[:, 1] * p)[:, None] * (weight / weight.sum()), 1.0)
    chosen = rng.random((n, p)) < rate
    forced = rng.choice(p, size=n, p=weight / weight.sum())
    chosen[np.arange(n), forced] |= ~chosen.any(axis=1)
    return np.where(chosen, _moved(layout, codes, table[:, 2], rng), codes)


def _moved(layout: Layout, codes: np.ndarray, fraction: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return every parameter at another level, those with one level as they are."""
    n, p = codes.shape
    codes = codes.astype(np.int64)
    top = layout.n_levels - 1
    jump = (codes + 1 + rng.integers(0, np.maximum(top, 1), size=(n, p))) % layout.n_levels
    mean = np.maximum(1.0, fraction[:, None] * layout.n_levels)
    step = rng.geometric(1.0 / mean) * np.where(rng.random((n, p)) < 0.5, 1, -1)
    moved = codes + step
    moved = np.where((moved < 0) | (moved > top), codes - step, moved)  # reflected at the ends
    moved = np.where((moved < 0) | (moved > top) | (fraction[:, None] >= 1.0), jump, moved)
    return np.where(layout.ordered, moved, jump)


def unknown_rows(history: History, codes: np.ndarray, taken: set[bytes]) -> np.ndarray:
    """Return which rows nobody proposed before, nor are in ``taken``, nor equal an earlier row, boolean, (n,)."""
    fresh = ~history.is_known(codes)
    seen = set(taken)
    for i, row in enumerate(row_keys(codes)):
        if fresh[i]:
            fresh[i] = row not in seen
            seen.add(row)
    return fresh


def make_new(
    history: History, layout: Layout, codes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes with every known row mutated until it is new, and which rows are; rows left over are not.

    Args:
        history: what is known already.
        layout: of its space.
        codes: shape (n, p).
        rng: random generator.

    Returns:
        Repaired codes (n, p), and which of them are new and different from each other, boolean (n,).
    """
    codes = history.space.repair(codes)
    fresh = unknown_rows(history, codes, set())
    for turn in range(_ROUNDS):
        stale = np.flatnonzero(~fresh)
        if not len(stale):
            break
        strength = np.full(len(stale), min(turn // 2, len(MUTATIONS) - 1))
        codes[stale] = history.space.repair(mutate(layout, codes[stale], strength, rng))
        fresh[stale] = unknown_rows(history, codes[stale], set(row_keys(codes[fresh])))
    return codes, fresh
