"""Where a design comes from, and which ones are like it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dse.params import Value
from dse.results import Results
from dse.shown import show_knob

_GENERATIONS = 8


@dataclass(frozen=True)
class Ancestor:
    """A design on the way to another.

    Attributes:
        number: its number.
        generation: how many steps back.
        proposer: who proposed it.
        changes: what its child changed, "label: from to to", by child.
    """

    number: int
    generation: int
    proposer: str
    changes: Sequence[str]


def ancestors(results: Results, number: int, most: int = 40) -> list[Ancestor]:
    """Return the designs that one was derived from, parents first, each once, eight generations at most."""
    found: list[Ancestor] = []
    seen, generation = {number}, [number]
    for depth in range(1, _GENERATIONS + 1):
        following = []
        for child in generation:
            for parent in results.stored.parents[child]:
                if parent in seen or not 0 <= parent < len(results) or len(found) >= most:
                    continue
                seen.add(parent)
                following.append(parent)
                proposer = results.stored.proposers.get(int(results.stored.batches[parent]), "")
                found.append(Ancestor(parent, depth, proposer, differences(results, parent, child)))
        generation = following
    return found


def children(results: Results, number: int, most: int = 40) -> list[int]:
    """Return the designs that were derived from one."""
    mark = str(number)
    texts = results.stored.parents_text
    return [i for i, text in enumerate(texts) if text and mark in text and mark in text.split(",")][:most]


def differences(results: Results, one: int, other: int) -> list[str]:
    """Return what changes from one design to another, "label: from to to", knobs that do not matter left out."""
    codes = results.space.repair(results.stored.codes[[one, other]])
    active = results.space.active(codes)
    first, second = results.space.values(codes)
    labels = [p.label for p in results.space.parameters]
    changed = np.flatnonzero((codes[0] != codes[1]) & active.any(axis=0))
    return [f"{labels[j]}: {_told(labels[j], first)} to {_told(labels[j], second)}" for j in changed.tolist()]


def _told(label: str, values: Mapping[str, Value]) -> str:
    return show_knob(label, values[label]) if label in values else "–"


def similar(results: Results, number: int, most: int = 8) -> list[tuple[int, float]]:
    """Return the feasible designs nearest to one, with their distance.

    The distance is the mean over parameters of how far their levels lie apart: the share of the range where levels are
    ordered, 1 where words differ.
    """
    codes = results.space.repair(results.stored.codes).astype(np.float64)
    spread = np.maximum(results.space.n_levels - 1, 1)
    apart = np.abs(codes - codes[number])
    ordered = np.array([p.is_ordered for p in results.space.parameters])
    distance = np.where(ordered, apart / spread, apart > 0).mean(axis=1)
    distance[results.violation != 0] = np.inf
    distance[number] = np.inf
    order = np.argsort(distance, kind="stable")[:most]
    return [(int(i), float(distance[i])) for i in order if np.isfinite(distance[i])]
