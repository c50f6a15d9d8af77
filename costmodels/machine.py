"""The machine of the simulator: one DRAM port, a compute unit and the slices of tiles that go through them, compiled.

Requests to DRAM are served one after the other at full bandwidth, in an order that is fixed before the run, as a
compiler for an accelerator without caches would emit them; a read and a write channel share the port. A request waits
for the port, and for what it depends on: a buffer that is still in use, a result that is not there yet. Compute slices
run in order and wait for operands and for room for their results. All that happens is therefore a maximum of sums of
durations (max-plus linear), so a faster part never makes anything later: Graham's anomalies cannot occur.

Time is in seconds. What every function here adds to are an array of times and one of sums, so that a run can be
compared with itself a period earlier.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

# Most slices that a tile is moved and worked off in.
MOST_SLICES: Final = 64

# Times: of the port, of the unit, of buffers, then of each slice: operands there, sums there, results written
# (all of these for the next step), work done (in this step).
# Groups use two units: UNIT is the array, LANES the vector unit, FRONT the end of the last work of either; OPERANDS is
# when what was loaded for the next tile is there.
PORT, UNIT, RELEASED, NEXT_X, NEXT_Y, FREE_X, FREE_Y, FREE_O, LANES, FRONT, OPERANDS = range(11)
_SCALARS: Final = 11
AT_X, AT_Y, AT_SUMS, AT_DONE, AT_END = (_SCALARS + i * MOST_SLICES for i in range(5))
N_TIMES: Final = _SCALARS + 5 * MOST_SLICES
LONG_AGO: Final = -1e300

# Sums: time in which a unit works; bytes read and written; what the unit waited for; spare time of the port behind the
# last read; bytes, among those read, that came while the operator before had time to spare; steps; time of the array
# and of the vector unit, which in groups work beside each other.
BUSY, READ_BYTES, WRITE_BYTES, READ_WAIT_S, WRITE_WAIT_S, SPARE_S, AHEAD_BYTES, N_STEPS, ARRAY_S, VECTOR_S = range(10)
N_SUMS: Final = 10

# Resources and columns of recorded events.
READ, WRITE, ARRAY, VECTOR, SPARE = range(5)
RESOURCE, OP, BEGIN, END, AMOUNT = range(5)
N_COLUMNS: Final = 5


class Log(NamedTuple):
    """What a run writes down beside its sums; empty arrays where nobody asks.

    Attributes:
        events: resource, operator, begin, end, bytes or slices of each event, shape (most, 5).
        n_events: events there would have been with room for all, shape (1,).
        moved_bytes: bytes read and written in each interval of time, shape (2, intervals).
        interval_s: length of an interval, shape (1,).
    """

    events: np.ndarray
    n_events: np.ndarray
    moved_bytes: np.ndarray
    interval_s: np.ndarray


def no_log() -> Log:
    """Return a log that takes nothing."""
    return Log(np.empty((0, N_COLUMNS)), np.zeros(1, np.int64), np.empty((2, 0)), np.ones(1))


@njit(cache=True)
def note(log: Log, resource: int, op: int, begin: float, end: float, amount: float) -> None:
    """Write an event down, where there is room."""
    at = log.n_events[0]
    log.n_events[0] = at + 1
    if at < log.events.shape[0]:
        event = log.events[at]
        event[RESOURCE], event[OP], event[BEGIN], event[END], event[AMOUNT] = resource, op, begin, end, amount
    n = log.moved_bytes.shape[1]
    if n > 0 and resource <= WRITE and end > begin:
        width = log.interval_s[0]
        first, last = min(int(begin / width), n - 1), min(int(end / width), n - 1)
        for i in range(first, last + 1):
            low, high = max(begin, i * width), end if i == n - 1 else min(end, (i + 1) * width)
            log.moved_bytes[resource, i] += amount * max(high - low, 0.0) / (end - begin)


@njit(cache=True)
def spare(t: np.ndarray, sums: np.ndarray, log: Log, op: int, ready: float) -> None:
    """Count the time until ``ready``, for which the port waits behind the last read of an operator."""
    sums[SPARE_S] += max(0.0, ready - t[PORT])
    if log.moved_bytes.shape[1] > 0 and ready > t[PORT]:
        note(log, SPARE, op, t[PORT], ready, 0.0)


@njit(cache=True)
def restart(t: np.ndarray, at: float) -> None:
    """Set all times to those of a machine that is idle at time ``at``."""
    t[:] = LONG_AGO
    t[PORT] = t[UNIT] = at


@njit(cache=True)
def move(
    t: np.ndarray, sums: np.ndarray, log: Log, op: int, resource: int, ready: float, size: float, bandwidth: float
) -> float:
    """Move ``size`` bytes to (READ) or from (WRITE) the chip, not before ``ready``; return when they have arrived."""
    begin = max(t[PORT], ready)
    end = begin + size / bandwidth
    t[PORT] = end
    sums[READ_BYTES if resource == READ else WRITE_BYTES] += size
    if log.moved_bytes.shape[1] > 0:
        note(log, resource, op, begin, end, size)
    return end


@njit(cache=True)
def work(
    t: np.ndarray, sums: np.ndarray, log: Log, op: int, unit: int, operands: float, room: float, seconds: float
) -> float:
    """Work ``seconds`` on the unit once operands are there and results have room; return when it is done."""
    begin = max(t[UNIT], operands, room)
    wait = begin - t[UNIT]
    sums[READ_WAIT_S if operands >= room else WRITE_WAIT_S] += wait
    sums[BUSY] += seconds
    sums[VECTOR_S if unit == VECTOR else ARRAY_S] += seconds
    t[UNIT] = begin + seconds
    if log.moved_bytes.shape[1] > 0:
        note(log, unit, op, begin, t[UNIT], 1.0)
    return t[UNIT]


@njit(cache=True)
def work_beside(
    t: np.ndarray, sums: np.ndarray, log: Log, op: int, unit: int, operands: float, room: float, seconds: float
) -> float:
    """Work as :func:`work` does, on the array or on the vector unit, while the other one works too.

    Time counts as busy when either works, and as waiting from the end of all work so far.
    """
    at = LANES if unit == VECTOR else UNIT
    begin = max(t[at], operands, room)
    end, front = begin + seconds, t[FRONT]
    sums[READ_WAIT_S if operands >= room else WRITE_WAIT_S] += max(0.0, begin - front)
    sums[BUSY] += max(0.0, end - max(begin, front))
    sums[VECTOR_S if unit == VECTOR else ARRAY_S] += seconds
    t[at], t[FRONT] = end, max(front, end)
    if log.moved_bytes.shape[1] > 0:
        note(log, unit, op, begin, end, 1.0)
    return end


@njit(cache=True)
def is_shifted(t: np.ndarray, before: np.ndarray) -> bool:
    """Return whether all times of a group that still matter are later than before by one period, to 1e-11 of it.

    Nothing that follows begins before the port is free and the place of an earlier tile is (RELEASED).
    """
    period = t[PORT] - before[PORT]
    if period <= 0.0:
        return False
    past, past_before = min(t[PORT], t[RELEASED]), min(before[PORT], before[RELEASED])
    for i in range(_SCALARS):
        if not _shifted(t[i] - past, before[i] - past_before, 1e-11 * period):
            return False
    return _shifted(t[AT_DONE] - past, before[AT_DONE] - past_before, 1e-11 * period)


@njit(cache=True)
def is_periodic(t: np.ndarray, before: np.ndarray, n_slices: int) -> bool:
    """Return whether all times that still matter are later than before by one period, to 1e-11 of it.

    Whatever waits for a time also waits for the port or for the unit, so a time before both of them is past.
    """
    period = t[PORT] - before[PORT]
    slack = 1e-11 * period
    if period <= 0.0 or abs(t[UNIT] - before[UNIT] - period) > slack:
        return False
    past, past_before = min(t[PORT], t[UNIT]), min(before[PORT], before[UNIT])
    for i in range(RELEASED, _SCALARS):
        if not _shifted(t[i] - past, before[i] - past_before, slack):
            return False
    for base in (AT_X, AT_Y, AT_SUMS, AT_DONE):
        for i in range(base, base + n_slices):
            if not _shifted(t[i] - past, before[i] - past_before, slack):
                return False
    return True


@njit(cache=True)
def _shifted(now: float, before: float, slack: float) -> bool:
    return abs(max(now, 0.0) - max(before, 0.0)) <= slack


@njit(cache=True)
def skip(t: np.ndarray, sums: np.ndarray, before: np.ndarray, sums_before: np.ndarray, times: float) -> None:
    """Let as many periods pass as ``times`` says, each like the one since ``before``."""
    period = t[PORT] - before[PORT]
    for i in range(N_TIMES):
        if t[i] != LONG_AGO:
            t[i] += times * period
    for i in range(N_SUMS):
        sums[i] += times * (sums[i] - sums_before[i])
