"""``local``: what one knob, or two, would change about the designs of the front.

Ordered knobs go one level up or down, others to any other level. One-knob moves come first; when all of them around the
front are known, two-knob moves follow. Without a feasible design, the least violating ones take the front's place.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from agents.sampling import stratified
from agents.standing import stand
from agents.variation import Layout, make_new, unknown_rows
from dse.protocols import History, Proposals

_CENTRES: Final = 200
_LARGEST_WORD: Final = 64  # levels of a word tried at most
_DRAWS: Final = 8  # moves looked at per design asked for
_ROUNDS: Final = 4


class Local:
    """See the module."""

    name = "local"
    window = 1200

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        """Return up to k new neighbours of the front; none when all that were looked at are known."""
        layout = Layout.of(history.space)
        if not len(history):
            codes, fresh = make_new(history, layout, stratified(history.space, k, rng), rng)
            return Proposals(codes[fresh])
        standing = stand(history.objectives, history.violation)
        centres = standing.order[: max(1, min(int((standing.rank == 0).sum()), _CENTRES))]
        knob, change = moves(layout)
        found = np.empty((0, history.space.n_parameters), dtype=np.int64)
        origin = np.empty(0, dtype=np.int64)
        for n_knobs in (1, 2):
            # All one-knob moves in random order while they are few; a sample of larger neighbourhoods.
            n_all = len(centres) * len(knob) ** n_knobs
            for _ in range(1 if n_all <= _DRAWS * k else _ROUNDS):
                if len(found) >= k:
                    break
                drawn = rng.permutation(n_all) if n_all <= _DRAWS * k else rng.integers(0, n_all, _DRAWS * k)
                centre, rest = centres[drawn % len(centres)], drawn // len(centres)
                codes = history.codes[centre].astype(np.int64)
                for _ in range(n_knobs):
                    apply(layout, codes, knob[rest % len(knob)], change[rest % len(knob)])
                    rest = rest // len(knob)
                both = history.space.repair(np.concatenate([found, codes]))
                fresh = unknown_rows(history, both, set())
                found, origin = both[fresh], np.concatenate([origin, centre])[fresh]
        found, origin = found[:k], origin[:k]
        return Proposals(found, [(int(i),) for i in history.numbers[origin]])


def moves(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Return every one-knob move as (knob, change of its code): +1 and -1 if ordered, else 1 to levels - 1, cyclic."""
    knobs, changes = [], []
    for j, n in enumerate(layout.n_levels.tolist()):
        options = (-1, 1) if layout.ordered[j] and n > 1 else range(1, min(n, _LARGEST_WORD))
        knobs += [j] * len(options)
        changes += list(options)
    return np.array(knobs, dtype=np.int64), np.array(changes, dtype=np.int64)


def apply(layout: Layout, codes: np.ndarray, knob: np.ndarray, change: np.ndarray) -> None:
    """Make a move in each row, in place; a step beyond the last level of an ordered knob changes nothing."""
    rows, n = np.arange(len(codes)), layout.n_levels[knob]
    moved = codes[rows, knob] + change
    codes[rows, knob] = np.where(layout.ordered[knob], np.clip(moved, 0, n - 1), moved % n)
