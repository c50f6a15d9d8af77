"""Tables of step times: what the parts of a step take, interpolated; compiled, and ignorant of models.

A step runs all its rows through the layers, some of them through the head, attention per request that decodes and per
chunk of a prompt, and encoders for requests that come in. Parts add up; :mod:`costmodels.stepcosts` fills the tables.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit


class Curve(NamedTuple):
    """A piecewise linear function of x, arrays (k,): seconds and joules at ascending x."""

    x: np.ndarray
    seconds: np.ndarray
    joules: np.ndarray


class Surface(NamedTuple):
    """A piecewise bilinear function of x and y: ascending axes (k,), (m,), values (k, m)."""

    x: np.ndarray
    y: np.ndarray
    seconds: np.ndarray
    joules: np.ndarray


class StepTable(NamedTuple):
    """What a step takes.

    Attributes:
        linear: of the rows of all requests together, one row through the head included.
        head: of further rows through the head.
        attend: of attention while decoding: requests, mean context.
        context: of attention over chunks of prompts: rows, mean keys that a row sees.
        encode: of images and sounds: requests.
        draft: of the drafter's passes of a step: requests, mean context.
        read: of the drafter's reading of prompts: rows.
        least_s: what the host needs to start a step.
    """

    linear: Curve
    head: Curve
    attend: Surface
    context: Surface
    encode: Curve
    draft: Surface
    read: Curve
    least_s: float


def flat(seconds: float = 0.0, joules: float = 0.0) -> Curve:
    """Return a curve that is the same everywhere."""
    return Curve(np.zeros(1), np.array([seconds]), np.array([joules]))


def plane(seconds: float = 0.0, joules: float = 0.0) -> Surface:
    """Return a surface that is the same everywhere."""
    return Surface(np.zeros(1), np.zeros(1), np.array([[seconds]]), np.array([[joules]]))


def step_table(**parts: Any) -> StepTable:
    """Return a table in which the parts that are not given cost nothing."""
    curves = {name: flat() for name in ("linear", "head", "encode", "read")}
    surfaces = {name: plane() for name in ("attend", "context", "draft")}
    return StepTable(**({"least_s": 0.0} | curves | surfaces | parts))


@njit(cache=True)
def step_cost(
    table: StepTable, decoding: int, context: float, rows: int, seen: float, logits: int, coming: int, guesses: int
) -> tuple[float, float]:
    """Return seconds and joules of a step.

    Args:
        table: the engine's.
        decoding, context: requests that decode, and the sum of their contexts, this step's positions included.
        rows, seen: positions of prompts, and the sum of the keys that each of them sees.
        logits: rows through the head.
        coming: requests whose images and sounds are encoded.
        guesses: that each decoding request checks.
    """
    all_rows = rows + decoding * (guesses + 1)
    seconds, joules = _curve(table.linear, float(all_rows))
    if logits > 1:
        s, j = _curve(table.head, float(logits))
        seconds, joules = seconds + s, joules + j
    if decoding > 0:
        s, j = _surface(table.attend, float(decoding), context / decoding)
        seconds, joules = seconds + s, joules + j
        if guesses > 0:
            s, j = _surface(table.draft, float(decoding), context / decoding)
            seconds, joules = seconds + s, joules + j
    if rows > 0:
        s, j = _surface(table.context, float(rows), seen / rows)
        seconds, joules = seconds + s, joules + j
        s, j = _curve(table.read, float(rows))
        seconds, joules = seconds + s, joules + j
    if coming > 0:
        s, j = _curve(table.encode, float(coming))
        seconds, joules = seconds + s, joules + j
    return max(seconds, table.least_s), joules


@njit(cache=True)
def _place(axis: np.ndarray, x: float) -> tuple[int, float]:
    """Return the interval of an axis that x is in, and how far; beyond its ends it goes on as in the last one."""
    if len(axis) == 1:
        return 0, 0.0
    low, high = 0, len(axis) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if axis[middle] <= x:
            low = middle
        else:
            high = middle
    return low, (x - axis[low]) / (axis[high] - axis[low])


@njit(cache=True)
def _curve(curve: Curve, x: float) -> tuple[float, float]:
    i, part = _place(curve.x, x)
    k = min(i + 1, len(curve.x) - 1)
    return (
        max(curve.seconds[i] + part * (curve.seconds[k] - curve.seconds[i]), 0.0),
        max(curve.joules[i] + part * (curve.joules[k] - curve.joules[i]), 0.0),
    )


@njit(cache=True)
def _surface(surface: Surface, x: float, y: float) -> tuple[float, float]:
    i, a = _place(surface.x, x)
    j, b = _place(surface.y, y)
    k, m = min(i + 1, len(surface.x) - 1), min(j + 1, len(surface.y) - 1)
    w00, w01, w10, w11 = (1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b
    s, e = surface.seconds, surface.joules
    return (
        max(w00 * s[i, j] + w01 * s[i, m] + w10 * s[k, j] + w11 * s[k, m], 0.0),
        max(w00 * e[i, j] + w01 * e[i, m] + w10 * e[k, j] + w11 * e[k, m], 0.0),
    )
