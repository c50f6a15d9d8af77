"""The event loop of continuous batching, compiled: what a step of an engine does, and whose turn it is.

What it stands for is said in :mod:`costmodels.batching`. A stage is an engine with its queue; requests that a stage is
done with go to the next one, or leave. Stages on the same devices have one clock and take turns, step by step; stages
apart have a clock each, and the one that can begin first goes on.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from costmodels.steptable import StepTable, step_cost

SAMPLES: Final = 6
"""Columns of a timeline: end of step, running, waiting, blocks in use, tokens written, prompt positions."""


class Limits(NamedTuple):
    """What an engine has room for.

    Attributes:
        requests: that run at a time.
        positions: that a step computes.
        blocks: of the cache.
        block_tokens: positions of a block.
        cuts: whether a prompt may be cut into chunks.
        reserves: whether a request takes blocks for its whole length when it is admitted.
    """

    requests: int
    positions: int
    blocks: int
    block_tokens: int
    cuts: bool
    reserves: bool


class State(NamedTuple):
    """One stage in the middle of a run; arrays over requests, counts in ``n``, integrals in ``sums``."""

    prompt: np.ndarray
    output: np.ndarray
    computed: np.ndarray  # positions in the cache
    written: np.ndarray  # tokens
    blocks: np.ndarray
    encoded: np.ndarray
    taken: np.ndarray  # positions in this step
    start_s: np.ndarray
    first_s: np.ndarray
    end_s: np.ndarray
    queue: np.ndarray  # who comes, in order, and when
    ready_s: np.ndarray
    run: np.ndarray
    back: np.ndarray  # who was preempted waits ahead of who never ran, the last one preempted first
    n: np.ndarray
    sums: np.ndarray


_RUNNING, _BACK, _FRESH, _ARRIVED, KNOWN, _FREE, _DONE = range(7)
PEAK, STEPS, POSITIONS, LOST, PREEMPTIONS = range(7, 12)
_USED, _RAN, _WAITED, _HELD, _WROTE, _READ = range(12, 18)  # of the last step but for the first: in use after it
_BUSY, _JOULES, _RUNNING_S, _WAITING_S, _BLOCKS_S, _UNTIL = range(6)  # the last: up to when integrals are taken


def begin_at(prompt: np.ndarray, output: np.ndarray, limits: Limits) -> State:
    """Return a stage that nobody has come to."""
    n = len(prompt)
    counts, sums = np.zeros(18, np.int64), np.zeros(6)
    counts[_FREE] = limits.blocks
    return State(
        prompt,
        output,
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        np.zeros(n, np.bool_),
        np.zeros(n, np.int64),
        np.full(n, -1.0),
        np.zeros(n),
        np.zeros(n),
        np.zeros(n, np.int64),
        np.zeros(n),
        np.empty(limits.requests, np.int64),
        np.empty(n, np.int64),
        counts,
        sums,
    )


@njit(cache=True)
def _arrive(state: State, now: float) -> bool:
    """Let in who has come by now, and return whether there is anything to do."""
    n, sums = state.n, state.sums
    # While another stage had its turn, those who are here stayed.
    idle_s = max(now - sums[_UNTIL], 0.0)
    sums[_RUNNING_S] += n[_RUNNING] * idle_s
    sums[_WAITING_S] += (n[_BACK] + n[_ARRIVED] - n[_FRESH]) * idle_s
    sums[_BLOCKS_S] += n[_USED] * idle_s
    sums[_UNTIL] = max(now, sums[_UNTIL])
    while n[_ARRIVED] < n[KNOWN] and state.ready_s[n[_ARRIVED]] <= now:
        sums[_WAITING_S] += now - state.ready_s[n[_ARRIVED]]
        n[_ARRIVED] += 1
    return n[_RUNNING] > 0 or n[_BACK] > 0 or n[_FRESH] < n[_ARRIVED]


@njit(cache=True)
def _step(
    state: State, now: float, limits: Limits, table: StepTable, kept: np.ndarray, guesses: int, seed: np.uint64,
    encodes: bool, gone: np.ndarray,
) -> tuple[float, int]:  # fmt: skip
    """Run a step that begins now; return its end and how many requests leave with it, who are written to ``gone``."""
    prompt, output, computed, written, blocks = state.prompt, state.output, state.computed, state.written, state.blocks
    encoded, taken, start_s, run, back, n = state.encoded, state.taken, state.start_s, state.run, state.back, state.n
    n_run, n_back, fresh, arrived, free = n[_RUNNING], n[_BACK], n[_FRESH], n[_ARRIVED], n[_FREE]
    budget = limits.positions
    decoding, context, rows, seen, logits, coming = 0, 0.0, 0, 0.0, 0, 0
    was_short = False
    i = 0
    while i < n_run:
        r = run[i]
        need = prompt[r] + written[r] - computed[r]
        decodes = written[r] > 0 and need == 1
        if decodes:
            need += guesses
        take = min(need, budget)
        taken[r] = 0
        if take > 0 and (take == need or (limits.cuts and not decodes)):
            more = -(-(computed[r] + take) // limits.block_tokens) - blocks[r]
            while more > free:
                n_run -= 1
                last = run[n_run]
                free += blocks[last]
                n[LOST] += computed[last]
                n[PREEMPTIONS] += 1
                blocks[last], computed[last], encoded[last] = 0, 0, False
                back[n_back] = last
                n_back += 1
                was_short = True
                if last == r:
                    break
            if i == n_run:  # it gave up itself
                break
            if more > 0:
                blocks[r] += more
                free -= more
            taken[r] = take
            budget -= take
            if decodes:
                decoding += 1
                context += computed[r] + take
                logits += take
            else:
                rows += take
                seen += take * (computed[r] + 0.5 * (take + 1))
                logits += take == need
        i += 1
    while not was_short and n_run < limits.requests and budget > 0 and (n_back > 0 or fresh < arrived):
        r = back[n_back - 1] if n_back > 0 else state.queue[fresh]
        need = prompt[r] + written[r]
        take = min(need, budget)
        if take < need and not limits.cuts:
            break
        whole = prompt[r] + output[r] + guesses if limits.reserves else take
        more = -(-whole // limits.block_tokens)
        if more > free:
            break
        if n_back > 0:
            n_back -= 1
        else:
            fresh += 1
        if start_s[r] < 0:
            start_s[r] = now
        if encodes and not encoded[r]:
            encoded[r] = True
            coming += 1
        free -= more
        blocks[r] = more
        taken[r] = take
        budget -= take
        rows += take
        seen += take * 0.5 * (take + 1)
        logits += take == need
        run[n_run] = r
        n_run += 1
    step_s, step_j = step_cost(table, decoding, context, rows, seen, logits, coming, guesses)
    used = limits.blocks - free
    n_waiting = n_back + arrived - fresh
    state.sums[_RUNNING_S] += n_run * step_s
    state.sums[_WAITING_S] += n_waiting * step_s
    state.sums[_BLOCKS_S] += used * step_s
    state.sums[_BUSY] += step_s
    state.sums[_JOULES] += step_j
    n[PEAK] = max(n[PEAK], used)
    n[STEPS] += 1
    n[POSITIONS] += limits.positions - budget
    n[_RAN], n[_WAITED], n[_HELD], n[_WROTE], n[_READ] = n_run, n_waiting, used, decoding, rows
    now += step_s
    left, n_gone = 0, 0
    for i in range(n_run):
        r = run[i]
        take = taken[r]
        if take > 0:
            whole = prompt[r] + written[r]
            decodes = written[r] > 0 and computed[r] == whole - 1
            computed[r] += take
            if decodes or computed[r] == whole:
                gained = 1
                if decodes and guesses > 0:
                    gained += _lucky(kept, seed, r, written[r])
                if written[r] == 0:
                    state.first_s[r] = now
                written[r] = min(written[r] + gained, output[r])
                computed[r] = prompt[r] + written[r] - 1  # guesses that were not kept are forgotten
            if written[r] == output[r]:
                state.end_s[r] = now
                free += blocks[r]
                blocks[r] = 0
                gone[n_gone] = r
                n_gone += 1
                continue
        run[left] = r
        left += 1
    n[_USED] = limits.blocks - free
    state.sums[_UNTIL] = now
    n[_RUNNING], n[_BACK], n[_FRESH], n[_FREE] = left, n_back, fresh, free
    n[_DONE] += n_gone
    return now, n_gone


@njit(cache=True)
def run_all(
    arrival: np.ndarray, states: tuple[State, ...], last: np.ndarray, limits: tuple[Limits, ...],
    tables: tuple[StepTable, ...], kept: tuple[np.ndarray, ...], guesses: tuple[int, ...], encodes: tuple[bool, ...],
    seed: np.uint64, apart: bool, with_timeline: bool,
) -> np.ndarray:  # fmt: skip
    """Run all stages to their end; return the timeline of the first."""
    n_requests, n_stages = len(arrival), len(states)
    states[0].queue[:], states[0].ready_s[:] = np.arange(n_requests), arrival
    states[0].n[KNOWN] = n_requests
    gone = np.empty(n_requests, np.int64)
    clock = np.full(n_stages, arrival[0])
    turn, n_done = 0, 0
    timeline = np.empty((1024 if with_timeline else 0, SAMPLES))
    while n_done < n_requests:
        # The stage that can begin first; of several the one whose turn it is.
        best, begin = -1, np.inf
        for offset in range(n_stages):
            k = (turn + offset) % n_stages
            n = states[k].n
            at = np.inf
            if _arrive(states[k], clock[k]):
                at = clock[k]
            elif n[_ARRIVED] < n[KNOWN]:
                at = states[k].ready_s[n[_ARRIVED]]
            if at < begin:
                best, begin = k, at
        state = states[best]
        _arrive(state, begin)
        now, n_gone = _step(
            state, begin, limits[best], tables[best], kept[best], guesses[best], seed, encodes[best], gone
        )
        if apart:
            clock[best] = now
        else:
            clock[:] = now
        turn = best + 1
        for i in range(n_gone):
            r = gone[i]
            if last[r] <= best:
                n_done += 1
                continue
            to = states[best + 1]
            to.queue[to.n[KNOWN]], to.ready_s[to.n[KNOWN]] = r, now
            to.n[KNOWN] += 1
        if with_timeline and best == 0:
            k = state.n[STEPS] - 1
            if k == len(timeline):
                longer = np.empty((2 * k, SAMPLES))
                longer[:k] = timeline
                timeline = longer
            timeline[k, 0], timeline[k, 1], timeline[k, 2] = now, state.n[_RAN], state.n[_WAITED]
            timeline[k, 3], timeline[k, 4], timeline[k, 5] = state.n[_HELD], state.n[_WROTE], state.n[_READ]
    return timeline[: states[0].n[STEPS]] if with_timeline else timeline


@njit(cache=True)
def _lucky(kept: np.ndarray, seed: np.uint64, request: int, written: int) -> int:
    """Return how many guesses are kept: those whose chance lies above a number that is hashed from the place.

    The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    z = seed + np.uint64(request) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(written) * np.uint64(0xD1B54A32D192ED03)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    level = float(z >> np.uint64(11)) / 9007199254740992.0
    n = 0
    while n < len(kept) and level < kept[n]:
        n += 1
    return n
