"""Continuous batching, request by request: queues, blocks and tables of step times (loop: :mod:`costmodels.batchloop`).

An engine runs steps. A step computes positions of requests that run: one per request that decodes (1 + guesses where
it speculates), a chunk of the prompt of one that does not yet. In the order of admission running requests take from the
step's budget of positions, then waiting ones are admitted while budget, places and blocks last. Keys and values are
kept in blocks; where a running request finds none, the one admitted last gives up all of its blocks and goes back to
the head of the queue, to compute its prompt and what it has written so far again (preemption by recompute, as vLLM
does). With ``reserves`` blocks for the whole request are taken at admission, and nothing is ever preempted
(TensorRT-LLM's GUARANTEED_NO_EVICT).

    step time  t = linear(rows) + head(logits) + attend(decoding, mean context) + context(chunk rows, keys they see)
                   + encode(requests whose images or sounds come in)

each interpolated linearly in a table (:mod:`costmodels.steptable`); energy likewise. A request ends with
its last token; its blocks are free from then on. The first running request always advances, so a run ends after at most
as many steps as there are positions to compute, whatever the load.

Guesses: a step of a request with g guesses keeps guess j with the chance S_j; the draw is a hash of (seed, request,
tokens written), so designs see the same luck.

Laws, tested: sojourn times add up to the integral of requests present (Little, exact for a run from empty to empty);
positions computed are those of all requests plus those that preemption threw away; at one place and steps of one length
the mean wait is that of M/D/1, at random lengths that of M/G/1 (Pollaczek and Khinchine).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from costmodels.batchloop import KNOWN, LOST, PEAK, POSITIONS, PREEMPTIONS, STEPS, Limits, begin_at, run_all
from costmodels.steptable import StepTable


class Sums(NamedTuple):
    """What a run adds up to; "_s" of requests and blocks are integrals over time.

    Attributes:
        end_s: end of the last step.
        busy_s: time in steps.
        joules: of all steps.
        running_s, waiting_s, blocks_s: integrals of requests that run, requests that wait, blocks in use.
        peak_blocks: most blocks in use.
        steps: number of steps.
        positions: computed.
        lost: positions that preemption threw away.
        preemptions: how often it did.
    """

    end_s: float
    busy_s: float
    joules: float
    running_s: float
    waiting_s: float
    blocks_s: float
    peak_blocks: int
    steps: int
    positions: int
    lost: int
    preemptions: int


@dataclass(frozen=True)
class Run:
    """What became of requests, arrays (r,).

    Attributes:
        arrival_s, start_s, first_s, end_s: of arrival, first admission, first token and last token.
        prompt, output: tokens.
        sums: see :class:`Sums`.
        timeline: a row per step, see :data:`costmodels.batchloop.SAMPLES`, shape (steps, 6); empty where not asked for.
    """

    arrival_s: np.ndarray
    start_s: np.ndarray
    first_s: np.ndarray
    end_s: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    sums: Sums
    timeline: np.ndarray


@dataclass(frozen=True)
class Stage:
    """An engine that requests come to.

    Attributes:
        prompt, output: tokens of each request, at least 1, shape (r,).
        limits: of the engine; every request fits it alone.
        table: step times.
        kept: chances S_1 >= S_2 >= ... that guesses are kept, shape (g,); None for no guesses.
        checked: positions that a step checks besides the one it is sure of: g, or the nodes of a tree.
        encodes: whether requests have images or sounds.

    Raises:
        ValueError: a request that the engine can never hold.
    """

    prompt: np.ndarray
    output: np.ndarray
    limits: Limits
    table: StepTable
    kept: np.ndarray | None = None
    checked: int | None = None
    encodes: bool = False

    def __post_init__(self) -> None:
        for name in ("prompt", "output"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.int64))
        chances = np.zeros(0) if self.kept is None else np.ascontiguousarray(self.kept, dtype=np.float64)
        object.__setattr__(self, "kept", chances)
        object.__setattr__(self, "checked", len(chances) if self.checked is None else self.checked)
        guesses = self.checked or 0
        most = int((self.prompt + self.output).max()) + guesses
        room = self.limits
        if -(-most // room.block_tokens) > room.blocks or min(room.requests, self.prompt.min(), self.output.min()) < 1:
            raise ValueError(f"a request of {most} positions never fits {room}")
        least = max(room.positions, guesses + 1, 1 if room.cuts else most)
        object.__setattr__(self, "limits", room._replace(positions=least))


def simulate(
    arrival_s: np.ndarray,
    prompt: np.ndarray,
    output: np.ndarray,
    limits: Limits,
    table: StepTable,
    kept: np.ndarray | None = None,
    seed: int = 0,
    *,
    checked: int | None = None,
    encodes: bool = False,
    with_timeline: bool = False,
) -> Run:
    """Return what becomes of requests that come to one engine.

    Args:
        arrival_s: ascending, shape (r,).
        prompt, output, limits, table, kept, checked, encodes: see :class:`Stage`.
        seed: of the guesses that are kept.
        with_timeline: whether to keep a row per step.

    Raises:
        ValueError: a request that the engine can never hold, arrivals out of order.
    """
    stage = Stage(prompt, output, limits, table, kept, checked, encodes)
    return route(arrival_s, [stage], np.zeros(len(stage.prompt), np.int64), seed, with_timeline=with_timeline)[0]


def route(
    arrival_s: np.ndarray, stages: Sequence[Stage], last: np.ndarray, seed: int = 0, *, apart: bool = False,
    with_timeline: bool = False,
) -> list[Run]:  # fmt: skip
    """Return what becomes of requests that stages are asked about in turn, a run per stage.

    A request comes to the next stage when the stage before has written its last token. In a run, NaN times are those of
    requests that never came there.

    Args:
        arrival_s: ascending, shape (r,).
        stages: in the order in which they are asked.
        last: number of the stage that answers each request, shape (r,).
        seed: of the guesses that are kept.
        apart: whether each stage has devices of its own; otherwise stages that have something to do take turns.
        with_timeline: whether to keep a row per step of the first stage.

    Raises:
        ValueError: arrivals out of order.
    """
    arrival = np.ascontiguousarray(arrival_s, dtype=np.float64)
    if not len(arrival) or (np.diff(arrival) < 0).any():
        raise ValueError(f"{len(arrival)} arrivals, which must be ascending")
    states = tuple(begin_at(s.prompt, s.output, s.limits) for s in stages)
    timeline = run_all(
        arrival, states, np.ascontiguousarray(last, dtype=np.int64), tuple(s.limits for s in stages),
        tuple(s.table for s in stages), tuple(np.asarray(s.kept) for s in stages),
        tuple(int(s.checked or 0) for s in stages), tuple(s.encodes for s in stages), np.uint64(seed), apart,
        with_timeline,
    )  # fmt: skip
    runs: list[Run] = []
    for state in states:
        came = np.full(len(arrival), np.nan)
        known = int(state.n[KNOWN])
        came[state.queue[:known]] = state.ready_s[:known]
        here = ~np.isnan(came)
        start, first, end = (np.where(here, a, np.nan) for a in (state.start_s, state.first_s, state.end_s))
        n, sums = state.n, [float(x) for x in state.sums]
        end_s = float(np.nanmax(end)) if here.any() else float(arrival[0])
        counts = [int(n[at]) for at in (PEAK, STEPS, POSITIONS, LOST, PREEMPTIONS)]
        totals = Sums(end_s, sums[0], sums[1], sums[2], sums[3], sums[4], *counts)
        runs.append(
            Run(came, start, first, end, state.prompt, state.output, totals, timeline if not runs else timeline[:0])
        )
    return runs
