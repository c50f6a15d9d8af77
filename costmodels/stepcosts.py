"""Fills tables of step times from passes of the analytical model: one table per design, planes for the ends.

With D(r, c) a decode pass of r sequences at context c, G(r, l) one of r sequences at context 1 of which l go through
the head, and P(p, v) a prefill pass over p rows that see v keys on average (Pass lengths: :mod:`costmodels.workload`),

    linear(r)      = G(r, 1)
    head(l)        = G(R, l) - G(R, 1)                     R: rows of the largest step
    attend(b, c)   = D(b, c) - G(b, b)
    context(p, v)  = P(p, v) - G(p, 1)

so a step that only decodes, or only reads one prompt, takes exactly what the pass takes (at the nodes of the table),
and a step that does both pays for weights once. Seconds and joules of kernels add up, which is why differences may be
taken. Rows that see fewer keys than one sequence of that length would are several sequences: what attention does
depends on rows and keys alone. Where a design guesses, D has 1 + guesses rows per sequence, all through the head.

Left out: windows inside one step's mix of contexts (attention is taken at the mean); projections of encoder states are
paid with every chunk; pipeline stages (:mod:`costmodels.serving` refuses them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from costmodels.steps import Steps
from costmodels.steptable import Curve, StepTable, Surface, flat, plane
from costmodels.workload import Pass
from dse.designs import DesignBatch

N_ROWS: Final = 40
N_LOGITS: Final = 10
N_PLACES: Final = 14
N_CONTEXTS: Final = 7
N_CHUNKS: Final = 10
N_KEYS: Final = 6
N_COMING: Final = 5
ENDS: Final = 3

_Curve = tuple[np.ndarray, np.ndarray]
_Surface = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Extent:
    """How far the tables of n designs reach, arrays (n,).

    Attributes:
        places: requests that decode together on one replica.
        positions: that a step of one replica computes.
        longest: positions of the longest request, prompt and output.
        replicas: data-parallel copies; passes are costed for all, tables are of one.
        guesses: that a decoding request checks per step.
    """

    places: np.ndarray
    positions: np.ndarray
    longest: np.ndarray
    replicas: np.ndarray
    guesses: np.ndarray

    def take(self, rows: np.ndarray) -> Extent:
        """Return the given rows."""
        return Extent(
            self.places[rows], self.positions[rows], self.longest[rows], self.replicas[rows], self.guesses[rows]
        )


@dataclass(frozen=True)
class Drafting:
    """The drafter of n designs.

    Attributes:
        steps: its passes; None for a look-up, which costs nothing.
        passes: per step, shape (n,).
        width: positions that a pass works on.
        reads: whether it reads prompts.
    """

    steps: Steps | None
    passes: np.ndarray
    width: float
    reads: bool


class StepCosts:
    """Tables of one role's steps.

    Args:
        steps: its passes.
        batch: n designs.
        extent: how far tables reach.
        drafting: who guesses, None for nobody.
        least_s: that any step takes (the host).
        beside_s: what the host adds to a step that checks guesses.

    Attributes:
        live_bytes: largest activations of a step, shape (n,).
    """

    def __init__(
        self, steps: Steps, batch: DesignBatch, extent: Extent, drafting: Drafting | None = None,
        least_s: float = 0.0, beside_s: float = 0.0,
    ) -> None:  # fmt: skip
        self._steps, self._batch, self.extent = steps, batch, extent
        self._least_s, self.live_bytes = least_s, np.zeros(len(batch))
        rows = _axis(np.ones(len(batch)), extent.positions, N_ROWS)
        logits = _axis(np.ones(len(batch)), extent.places * (1 + extent.guesses), N_LOGITS)
        places = _axis(np.ones(len(batch)), extent.places, N_PLACES)
        contexts = _axis(1 + extent.guesses, extent.longest + extent.guesses, N_CONTEXTS)
        chunks = _axis(np.ones(len(batch)), extent.positions, N_CHUNKS)
        keys = _axis(np.ones(len(batch)), extent.longest, N_KEYS)
        coming = _axis(np.ones(len(batch)), extent.places, N_COMING)
        most = extent.positions[:, None] + 0.0 * logits
        through = np.minimum(logits, most)
        base = self._linear(most, np.ones_like(most))
        self.linear = (rows, self._linear(rows, np.ones_like(rows)))
        self.head = (logits, _minus(self._linear(most, through), base))
        self.attend = (places, contexts, self._attention(places, contexts))
        self.context = (chunks, keys, self._chunks(chunks, keys))
        self.encode = (coming, self._encode(coming))
        self.draft: _Surface | None = None
        self.read: _Curve | None = None
        if drafting is not None:
            self._draft(drafting, places, contexts, rows, beside_s)

    def tables(self, row: int, end: int) -> StepTable:
        """Return the table of a design with the low end, the value or the high end (0, 1, 2) of every pass."""
        return StepTable(
            _curve(self.linear, row, end), _curve(self.head, row, end), _surface(self.attend, row, end),
            _surface(self.context, row, end), _curve(self.encode, row, end),
            plane() if self.draft is None else _surface(self.draft, row, end),
            flat() if self.read is None else _curve(self.read, row, end),
            self._least_s,
        )  # fmt: skip

    def at(
        self, end: int, decoding: np.ndarray, context: np.ndarray, rows: np.ndarray, keys: np.ndarray,
        logits: np.ndarray, coming: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """Return seconds and joules of steps of all designs at once, (2, n, m), as the tables' interpolation has them.

        Args:
            end: 0, 1 or 2.
            decoding, context: requests that decode, on average over steps alike, and their mean context.
            rows, keys: positions of prompts, and the keys that one sees on average.
            logits: rows through the head.
            coming: requests whose images and sounds are encoded.
        """
        guesses = self.extent.guesses[:, None]
        found = _curve_at(self.linear, end, rows + decoding * (1 + guesses))
        found += np.where(logits > 1, _curve_at(self.head, end, logits), 0.0)
        found += np.where(decoding > 0, _surface_at(self.attend, end, decoding, context), 0.0)
        found += np.where(rows > 0, _surface_at(self.context, end, rows, keys), 0.0)
        # Less than one request on average is one in some of the steps.
        found += np.minimum(coming, 1.0) * _curve_at(self.encode, end, np.maximum(coming, 1.0))
        if self.draft is not None:
            found += np.where((decoding > 0) & (guesses > 0), _surface_at(self.draft, end, decoding, context), 0.0)
        if self.read is not None:
            found += np.where(rows > 0, _curve_at(self.read, end, rows), 0.0)
        found[0] = np.maximum(found[0], self._least_s)
        return found

    # ------------------------------------------------------------------ passes, (n, k) in, (6, n, k) out

    def _linear(self, rows: np.ndarray, logits: np.ndarray) -> np.ndarray:
        one = np.ones_like(rows)
        return self._run("decode", one, one, logits / rows, rows)

    def _attention(self, places: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        b, c = _grid(places, contexts)
        per = 1 + self.extent.guesses[:, None] + 0.0 * b
        whole = self._run("decode", per, np.maximum(c, per), per, b)
        return _square(_minus(whole, self._linear(b * per, b * per)), places, contexts)

    def _chunks(self, chunks: np.ndarray, keys: np.ndarray) -> np.ndarray:
        p, v = _grid(chunks, keys)
        # k sequences of p / k rows, each after so much of its prompt that rows see v keys on average.
        k = np.maximum(np.round(p / (2 * v)), 1.0)
        rows = p / k
        context = np.maximum(v + (rows - 1) / 2, rows)
        whole = self._run("prefill", rows, context, 1 / k, k)
        return _square(_minus(whole, self._linear(p, np.ones_like(p))), chunks, keys)

    def _encode(self, coming: np.ndarray) -> np.ndarray:
        one = np.ones_like(coming)
        return self._run("encode", one, one, one, coming)

    def _draft(
        self, drafting: Drafting, places: np.ndarray, contexts: np.ndarray, rows: np.ndarray, beside_s: float
    ) -> None:
        b, c = _grid(places, contexts)
        passes = np.zeros((2 * ENDS, *b.shape))
        if drafting.steps is not None:
            width = np.full_like(b, drafting.width)
            one = self._run("decode", width, np.maximum(c, width), width, b, drafting.steps)
            passes = one * drafting.passes[:, None]
            if drafting.reads:
                one = np.ones_like(rows)
                self.read = (rows, self._run("prefill", rows, rows, one, one, drafting.steps))
        passes[:ENDS] += beside_s
        self.draft = (places, contexts, _square(passes, places, contexts))

    def _run(
        self, phase: str, rows: np.ndarray, context: np.ndarray, logits: np.ndarray, sequences: np.ndarray,
        steps: Steps | None = None,
    ) -> np.ndarray:  # fmt: skip
        n, k = rows.shape
        every = np.repeat(np.arange(n), k)
        replicas = self.extent.replicas[every]
        batch = self._batch.take(every).replaced(batch=sequences.reshape(-1) * replicas)
        lengths = (np.ascontiguousarray(a.reshape(-1), dtype=np.float64) for a in (rows, context, logits))
        step = (steps or self._steps).evaluator.step(batch, Pass(phase, *lengths))
        self.live_bytes = np.maximum(self.live_bytes, step.live_bytes.reshape(n, k).max(axis=1))
        return np.concatenate([step.seconds, step.joules / replicas]).reshape(2 * ENDS, n, k)


def _axis(first: np.ndarray, last: np.ndarray, k: int) -> np.ndarray:
    """Return k whole numbers from first to last in about equal ratios, shape (n, k); twice the same where too few."""
    last = np.maximum(last, first)
    powers = np.linspace(0.0, 1.0, k)
    return np.round(first[:, None] * (last / first)[:, None] ** powers)


def _grid(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both coordinates of every pair, shape (n, k m)."""
    return np.repeat(x, y.shape[1], axis=1), np.tile(y, (1, x.shape[1]))


def _square(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return values.reshape(2 * ENDS, len(x), x.shape[1], y.shape[1])


def _minus(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return differences, none below 0: rounding up to tiles may make the whole cheaper than its part."""
    return np.maximum(a - b, 0.0)


def _kept(axis: np.ndarray) -> np.ndarray:
    """Return which nodes differ from the one before."""
    return np.concatenate([[True], np.diff(axis) > 0])


def _curve(part: _Curve, row: int, end: int) -> Curve:
    axis, values = part[0][row], part[1][:, row]
    kept = _kept(axis)
    return Curve(axis[kept], values[end][kept], values[ENDS + end][kept])


def _surface(part: _Surface, row: int, end: int) -> Surface:
    x, y, values = part[0][row], part[1][row], part[2][:, row]
    of_x, of_y = _kept(x), _kept(y)
    both = np.ix_(of_x, of_y)
    return Surface(x[of_x], y[of_y], values[end][both], values[ENDS + end][both])


def place(axis: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of each row's axis (n, k) that x (n, m) is in, and how far; beyond the ends it goes on."""
    at = np.clip((axis[:, None, :] <= x[:, :, None]).sum(axis=2) - 1, 0, max(axis.shape[1] - 2, 0))
    after = np.minimum(at + 1, axis.shape[1] - 1)
    low, high = (np.take_along_axis(axis, i, axis=1) for i in (at, after))
    wide = high - low
    return at, np.where(wide > 0, (x - low) / np.where(wide > 0, wide, 1.0), 0.0)


def _curve_at(part: _Curve, end: int, x: np.ndarray) -> np.ndarray:
    axis, values = part
    at, share = place(axis, x)
    after, rows = np.minimum(at + 1, axis.shape[1] - 1), np.arange(len(axis))[:, None]
    both = values[[end, ENDS + end]]
    low, high = both[:, rows, at], both[:, rows, after]
    return np.asarray(np.maximum(low + share * (high - low), 0.0))


def _surface_at(part: _Surface, end: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    of_x, of_y, values = part
    (i, a), (j, b) = place(of_x, x), place(of_y, np.broadcast_to(y, x.shape))
    k, m = np.minimum(i + 1, of_x.shape[1] - 1), np.minimum(j + 1, of_y.shape[1] - 1)
    rows, both = np.arange(len(of_x))[:, None], values[[end, ENDS + end]]
    found = (1 - a) * ((1 - b) * both[:, rows, i, j] + b * both[:, rows, i, m])
    found += a * ((1 - b) * both[:, rows, k, j] + b * both[:, rows, k, m])
    return np.asarray(np.maximum(found, 0.0))
