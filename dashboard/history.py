"""How a study grew: the hypervolume of its front over designs and time, of the whole and of each proposer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from agents.standing import gains_in_order
from dse import catalogue
from dse.errors import DseError
from dse.hypervolume import hypervolume
from dse.pareto import ParetoArchive
from dse.protocols import Portfolio
from dse.results import Results

# Beyond three objectives an exact hypervolume takes seconds for a large front; then the front is thinned, which only
# ever understates it.
_MOST_POINTS: Final = {1: 1, 2: 20_000, 3: 20_000}
_MOST_POINTS_BEYOND: Final = 120


@dataclass(frozen=True)
class Growth:
    """The hypervolume of a front as it grew.

    Attributes:
        n_designs: designs evaluated at each point, shape (k,).
        seconds: since the first batch was proposed, shape (k,).
        volumes: relative to the study's reference point, shape (k,).
        is_thinned: whether a front was too large for an exact volume.
    """

    n_designs: np.ndarray
    seconds: np.ndarray
    volumes: np.ndarray
    is_thinned: bool


def growth(results: Results, rows: np.ndarray | None = None, n_points: int = 60) -> Growth:
    """Return how the front of some designs grew; nothing where the study has no feasible design yet.

    Args:
        results: the study.
        rows: numbers of the designs, ascending; all by default.
        n_points: points of the curve at most.
    """
    reference = results.row.reference
    rows = np.flatnonzero(results.evaluated) if rows is None else rows
    if reference is None or not len(rows):
        return Growth(np.empty(0, int), np.empty(0), np.empty(0), is_thinned=False)
    archive = ParetoArchive(results.goal.n_objectives)
    ends = np.unique(np.linspace(0, len(rows), min(n_points, len(rows)) + 1).round().astype(int))
    volumes, is_thinned = [], False
    for first, last in pairwise(ends.tolist()):
        part = rows[first:last]
        archive.add(part, results.objectives[part], results.violation[part])
        points, thinned = _thin(archive.points, results.goal.n_objectives)
        is_thinned |= thinned
        volumes.append(hypervolume(points, reference))
    at = rows[ends[1:] - 1]
    began = results.stored.created_s
    seconds = began[results.stored.batches[at]] - began[0]
    return Growth(at + 1, seconds, np.array(volumes), is_thinned)


def _thin(points: np.ndarray, n_objectives: int) -> tuple[np.ndarray, bool]:
    most = _MOST_POINTS.get(n_objectives, _MOST_POINTS_BEYOND)
    if len(points) <= most:
        return points, False
    order = np.argsort(points[:, 0])
    return points[order[np.linspace(0, len(order) - 1, most).round().astype(int)]], True


@dataclass(frozen=True)
class Source:
    """Who proposed designs.

    Attributes:
        name: the proposer.
        rows: numbers of its designs, shape (n,).
        n_feasible, n_front: how many are feasible, and on the front.
        n_duplicates: designs it proposed that were known, and so not paid for.
        credit_ratio: share of the dominated volume that its designs added when they came in, of all that was added
            after the first design, which is nobody's merit; NaN where nothing was. What ``auto`` deals its shares by,
            here without discount for age.
    """

    name: str
    rows: np.ndarray
    n_feasible: int
    n_front: int
    n_duplicates: int
    credit_ratio: float


def sources(results: Results, front: np.ndarray) -> Sequence[Source]:
    """Return who proposed the designs of a study, the busiest first; a portfolio's arms by themselves.

    Duplicates are known of whole batches only, so those of a portfolio stand at its own name, as do its first designs,
    which no arm proposed.
    """
    stored = results.stored
    names = list(dict.fromkeys(stored.proposers.values()))
    of_batch = np.full(max(stored.proposers, default=-1) + 1, -1)
    for batch, name in stored.proposers.items():
        of_batch[batch] = names.index(name)
    proposed = np.zeros(len(names), dtype=np.int64)
    np.add.at(proposed, of_batch[sorted(stored.proposers)], stored.n_proposed_by_batch)
    owner = of_batch[stored.batches] if len(stored.batches) else np.empty(0, int)
    duplicates = proposed - np.bincount(owner, minlength=len(names))
    for i, name in enumerate(list(names)):
        arms, chosen = _arms(name, stored.marks)
        for j, arm in enumerate(arms):
            mine = (owner == i) & (chosen == j)
            if mine.any():
                owner = np.where(mine, len(names), owner)
                names.append(f"{_short(name)} > {arm}")
    on_front = np.zeros(len(results), dtype=bool)
    on_front[front] = True
    added = gains_in_order(results.objectives, results.violation, 0) if len(results) else np.empty(0)
    added[:1] = 0.0
    whole = added.sum()
    found = []
    for i, name in enumerate(names):
        mine = owner == i
        n_duplicates = int(duplicates[i]) if i < len(duplicates) else 0
        if mine.any() or n_duplicates:
            found.append(
                Source(
                    name,
                    np.flatnonzero(mine & results.evaluated),
                    int((mine & (results.violation == 0)).sum()),
                    int((mine & on_front).sum()),
                    n_duplicates,
                    float(added[mine].sum() / whole) if whole > 0 else np.nan,
                )
            )
    return sorted(found, key=lambda s: -len(s.rows))


def _arms(name: str, marks: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
    """Return a portfolio's arms and which one each mark is of; none where the proposer has none or is not installed."""
    try:
        proposer = catalogue.proposer(name)
    except DseError:
        return (), marks
    return proposer.arms_of(marks) if isinstance(proposer, Portfolio) else ((), marks)


def _short(name: str) -> str:
    """Return a proposer's name without its options."""
    return name.partition(":")[0]
