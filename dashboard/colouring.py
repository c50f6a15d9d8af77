"""By what the designs of a picture are coloured: the front, who proposed them, their fidelity, a knob or a metric."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dashboard.figures.front import Layer
from dashboard.figures.theme import BLUE, GREY, colour, symbol, titled
from dse.results import Results

FRONT, PROPOSER, FIDELITY = "front", "proposer", "fidelity"
_MOST_CATEGORIES = 7


def colourings(results: Results) -> list[str]:
    """Return what designs can be coloured by."""
    metrics = [f"metric: {n}" for n in results.metrics.values if np.isfinite(results.metrics.values[n]).any()]
    several = [FIDELITY] if len(results.fidelities) > 1 else []
    return [FRONT, PROPOSER, *several, *(f"knob: {p.label}" for p in results.space.parameters), *metrics]


def coloured(
    results: Results, by: str | None, dominated: np.ndarray, front: np.ndarray, columns: Sequence[np.ndarray]
) -> list[Layer]:
    """Return the dominated designs and the front as layers; the front's points are larger in all of them.

    Args:
        results: the study.
        by: one of :func:`colourings`; anything else is the front.
        dominated, front: design numbers.
        columns: metrics along the axes, of all designs.
    """
    if by == PROPOSER:
        names = list(dict.fromkeys(results.stored.proposers.values()))
        index = {name: i for i, name in enumerate(names)}
        owner = {b: index[p] for b, p in results.stored.proposers.items()}
        of = np.array([owner[b] for b in range(len(owner))]) if len(owner) == max(owner, default=-1) + 1 else None
        values = of[results.stored.batches] if of is not None else np.zeros(len(results), int)
        return _categories(values, names, dominated, front, columns)
    if by == FIDELITY:
        labels = results.fidelities
        reached = np.sum([results.at(i).evaluated for i in range(1, len(labels))], axis=0, dtype=np.int64)
        values = np.broadcast_to(reached, len(results))
        return _categories(values, [f"up to {label}" for label in labels], dominated, front, columns)
    if by and by.startswith("knob: "):
        labels = [p.label for p in results.space.parameters]
        if by[6:] in labels:
            j = labels.index(by[6:])
            levels = results.space.parameters[j].levels
            codes = results.stored.codes[:, j].astype(np.int64)
            if len(levels) <= _MOST_CATEGORIES:
                return _categories(codes, [str(v) for v in levels], dominated, front, columns)
            numbers = results.space.parameters[j].is_ordered
            values = np.array(levels, dtype=float)[codes] if numbers else codes.astype(float)
            return _shaded(values, by[6:], dominated, front, columns)
    if by and by.startswith("metric: ") and by[8:] in results.metrics.values:
        return _shaded(results.metrics.values[by[8:]], titled(by[8:]), dominated, front, columns)
    return [
        _layer("dominated", dominated, columns, GREY, "circle", 5, 0.5),
        _layer("front", front, columns, BLUE, "diamond", 9, 1.0),
    ]


def _categories(
    values: np.ndarray, names: Sequence[str], dominated: np.ndarray, front: np.ndarray, columns: Sequence[np.ndarray]
) -> list[Layer]:
    layers = []
    for numbers, ending, size, opacity in ((dominated, "", 5, 0.5), (front, ", front", 10, 1.0)):
        for i, name in enumerate(names):
            mine = numbers[values[numbers] == i]
            if len(mine):
                layers.append(_layer(name + ending, mine, columns, colour(i), symbol(i), size, opacity))
    return layers


def _shaded(
    values: np.ndarray, title: str, dominated: np.ndarray, front: np.ndarray, columns: Sequence[np.ndarray]
) -> list[Layer]:
    low = Layer(
        "dominated", dominated, [c[dominated] for c in columns], size=5, opacity=0.6, shade=(values[dominated], title)
    )
    high = Layer("front", front, [c[front] for c in columns], symbol="diamond", size=10, shade=(values[front], title))
    return [low, high] if len(dominated) else [high]


def _layer(
    name: str, numbers: np.ndarray, columns: Sequence[np.ndarray], paint: str, shape: str, size: int, opacity: float
) -> Layer:
    return Layer(name, numbers, [c[numbers] for c in columns], paint, shape, size, opacity)
