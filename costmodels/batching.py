"""Continuous batching, request by request: an event loop that knows queues, blocks and a table of step times; compiled.

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

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

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
        timeline: a row per step, see :data:`SAMPLES`, shape (steps, 6); empty where not asked for.
    """

    arrival_s: np.ndarray
    start_s: np.ndarray
    first_s: np.ndarray
    end_s: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    sums: Sums
    timeline: np.ndarray


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
    """Return what becomes of requests.

    Args:
        arrival_s: ascending, shape (r,).
        prompt, output: tokens of each, at least 1, shape (r,).
        limits: of the engine; every request fits it alone.
        table: step times.
        kept: chances S_1 >= S_2 >= ... that guesses are kept, shape (g,); None for no guesses.
        seed: of the guesses that are kept.
        checked: positions that a step checks besides the one it is sure of: g, or the nodes of a tree.
        encodes: whether requests have images or sounds.
        with_timeline: whether to keep a row per step.

    Raises:
        ValueError: a request that the engine can never hold, arrivals out of order.
    """
    arrival = np.ascontiguousarray(arrival_s, dtype=np.float64)
    long = [np.ascontiguousarray(a, dtype=np.int64) for a in (prompt, output)]
    chances = np.zeros(0) if kept is None else np.ascontiguousarray(kept, dtype=np.float64)
    guesses = len(chances) if checked is None else checked
    if not len(arrival) or (np.diff(arrival) < 0).any():
        raise ValueError(f"{len(arrival)} arrivals, which must be ascending")
    most = int((long[0] + long[1]).max()) + guesses
    if -(-most // limits.block_tokens) > limits.blocks or min(limits.requests, long[0].min(), long[1].min()) < 1:
        raise ValueError(f"a request of {most} positions never fits {limits}")
    room = limits._replace(positions=max(limits.positions, guesses + 1, 1 if limits.cuts else most))
    start_s, first_s, end_s, sums, timeline = _run(
        arrival, long[0], long[1], room, table, chances, guesses, np.uint64(seed), encodes, with_timeline
    )
    return Run(arrival, start_s, first_s, end_s, long[0], long[1], Sums(*sums), timeline)


@njit(cache=True)
def _run(
    arrival: np.ndarray, prompt: np.ndarray, output: np.ndarray, limits: Limits, table: StepTable, kept: np.ndarray,
    guesses: int, seed: np.uint64, encodes: bool, with_timeline: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[Any, ...], np.ndarray]:  # fmt: skip
    """Return start, first token and end of each request, the sums and the timeline."""
    n = len(arrival)
    computed = np.zeros(n, np.int64)  # positions in the cache
    written = np.zeros(n, np.int64)  # tokens
    blocks = np.zeros(n, np.int64)
    encoded = np.zeros(n, np.bool_)
    taken = np.zeros(n, np.int64)  # positions in this step
    start_s, first_s, end_s = np.full(n, -1.0), np.zeros(n), np.zeros(n)
    run = np.empty(limits.requests, np.int64)
    n_run, n_done, arrived = 0, 0, 0
    # Who was preempted waits ahead of who never ran; the last preempted first, as it was admitted first.
    back = np.empty(n, np.int64)
    n_back, fresh = 0, 0
    free = limits.blocks
    now = arrival[0]
    busy = joules = running_s = waiting_s = blocks_s = 0.0
    peak = steps = positions = lost = preemptions = 0
    timeline = np.empty((1024 if with_timeline else 0, SAMPLES))
    while n_done < n:
        while arrived < n and arrival[arrived] <= now:
            arrived += 1
        if n_run == 0 and n_back == 0 and fresh == arrived:
            now = arrival[arrived]
            continue
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
                    lost += computed[last]
                    preemptions += 1
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
            r = back[n_back - 1] if n_back > 0 else fresh
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
        n_waiting = _waiting(arrival, arrived, now, step_s)
        running_s += n_run * step_s
        waiting_s += (n_back + arrived - fresh) * step_s + n_waiting
        blocks_s += used * step_s
        peak = max(peak, used)
        now += step_s
        busy += step_s
        joules += step_j
        positions += limits.positions - budget
        if with_timeline:
            if steps == len(timeline):
                longer = np.empty((2 * steps, SAMPLES))
                longer[:steps] = timeline
                timeline = longer
            timeline[steps, 0], timeline[steps, 1] = now, n_run
            timeline[steps, 2], timeline[steps, 3] = n_back + arrived - fresh, used
            timeline[steps, 4], timeline[steps, 5] = decoding, rows
        steps += 1
        left = 0
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
                        first_s[r] = now
                    written[r] = min(written[r] + gained, output[r])
                    computed[r] = prompt[r] + written[r] - 1  # guesses that were not kept are forgotten
                if written[r] == output[r]:
                    end_s[r] = now
                    free += blocks[r]
                    blocks[r] = 0
                    n_done += 1
                    continue
            run[left] = r
            left += 1
        n_run = left
    sums = (now, busy, joules, running_s, waiting_s, blocks_s, peak, steps, positions, lost, preemptions)
    return start_s, first_s, end_s, sums, timeline[:steps] if with_timeline else timeline


@njit(cache=True)
def _waiting(arrival: np.ndarray, arrived: int, now: float, step_s: float) -> float:
    """Return the time that requests wait which arrive during a step."""
    total = 0.0
    while arrived < len(arrival) and arrival[arrived] < now + step_s:
        total += now + step_s - arrival[arrived]
        arrived += 1
    return total


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
