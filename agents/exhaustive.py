"""``enumerate``: every design of a space once, in the order of its codes, the last knob fastest.

A design's mark is its place in that order, so the next batch goes on behind the largest one. Codes that repair to other
codes (an inactive knob off its canonical level) are passed over, and so is what was proposed before by others.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from dse.errors import UserError
from dse.protocols import History, Proposals

MOST_DESIGNS: Final = 50_000_000
_CHUNK: Final = 16_384


class Enumerate:
    """See the module."""

    name = "enumerate"
    window = 1

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        """Return the next k designs; none at the end.

        Raises:
            UserError: a space of more than 50 million code rows.
        """
        del rng
        space, total = history.space, history.space.n_designs
        if total > MOST_DESIGNS:
            raise UserError(
                f"enumerate: the space has {total:,} designs, the limit is {MOST_DESIGNS:,}",
                "vary fewer knobs, use larger steps, or search with proposers='auto'",
            )
        place, found, marks = history.next_mark(), [], []
        missing, size = k, max(2 * k, 256)
        while missing and place < total:
            index = np.arange(place, min(place + size, total))
            codes = np.stack(np.unravel_index(index, tuple(space.n_levels)), axis=1).astype(np.int64)
            canonical = (space.repair(codes) == codes).all(axis=1)
            canonical[canonical] = ~history.is_known(codes[canonical])
            rows = np.flatnonzero(canonical)[:missing]
            found.append(codes[rows])
            marks.append(index[rows])
            missing -= len(rows)
            place, size = int(index[-1]) + 1, min(2 * size, _CHUNK)
        empty = np.empty((0, space.n_parameters), dtype=np.int64)
        return Proposals(np.concatenate([empty, *found]), marks=np.concatenate([np.empty(0, np.int64), *marks]))
