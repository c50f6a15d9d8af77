"""Designs that a study begins with: the reference design, the best of another study, the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dse.errors import DseError
from dse.params import Value
from dse.results import Results
from dse.space import BoundSpace

REFERENCE: Final = "reference"
USER: Final = "user"


@dataclass(frozen=True)
class Points:
    """Designs from outside the search.

    Attributes:
        source: stands where a proposer's name does.
        codes: shape (n, p).
        notes: what did not fit, in words.
    """

    source: str
    codes: np.ndarray
    notes: Sequence[str]


def reference(space: BoundSpace) -> Points:
    """Return the design of the levels that are nearest to the reference values."""
    return Points(REFERENCE, space.reference_codes(), ())


def warm_source(name: str) -> str:
    """Return the source of designs that come from a study."""
    return f"warm start: {name}"[:200]


def warm_start(space: BoundSpace, other: Results, n: int) -> Points:
    """Return the front of another study, and then what is nearest to being feasible, at most ``n`` designs.

    Values go over by label, or by declaration where a label is not known here. Numbers are put at the nearest level;
    words that are no level, and parameters that are not here, are left at the reference. All of that is noted.
    """
    front = other.front().numbers
    if len(front) > n:
        front = front[np.linspace(0, len(front) - 1, n).round().astype(int)]
    others = np.setdiff1d(np.flatnonzero(np.isfinite(other.violation)), front)
    nearest = others[np.argsort(other.violation[others], kind="stable")] if not len(front) else others[:0]
    chosen = [*front.tolist(), *nearest.tolist()][:n]
    notes: dict[str, None] = {}
    known = {*space.labels, *space.space.declarations}
    rows = [np.empty((0, space.n_parameters), dtype=np.uint16)]
    for values in other.space.values(other.stored.codes[chosen]):
        codes, _ = space.codes_of({})
        kept: dict[str, Value] = {}
        for label, value in values.items():
            name = next((k for k in (label, label.partition("[")[0]) if k in known), "")
            if not name:
                notes[f"warm start: {label} is no parameter here, left out"] = None
                continue
            try:
                space.codes_of({name: value})
            except DseError as error:
                notes[f"warm start: {error.args[0] if error.args else error}, left at the reference"] = None
                continue
            kept[name] = value
        codes, snapped = space.codes_of(kept)
        notes |= dict.fromkeys(f"warm start: {note}" for note in snapped)
        rows.append(codes)
    return Points(warm_source(other.row.name), np.concatenate(rows), list(notes))
