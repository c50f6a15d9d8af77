"""Hypothesis strategies: rows of codes of a search space."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from dse.space import BoundSpace


@st.composite
def code_rows(draw: st.DrawFn, space: BoundSpace, min_rows: int = 1, max_rows: int = 6) -> np.ndarray:
    """Draw repaired rows of codes, shape (n, p).

    Rows come from a drawn seed, not code by code, so that spaces of hundreds of parameters stay fast; single codes are
    then set to their ends, where formulas tend to break.
    """
    n = draw(st.integers(min_rows, max_rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = space.sample(n, rng)
    for _ in range(draw(st.integers(0, 3))):
        column = draw(st.integers(0, space.n_parameters - 1))
        end = draw(st.booleans())
        codes[:, column] = space.n_levels[column] - 1 if end else 0
    return space.repair(codes)
