"""What all pools of workers share: chunks, order, deadlines, blame. How a worker is reached is its crew's business.

A batch is cut into chunks as workers come free, sized from the seconds that designs have taken so far to
:data:`CHUNK_S` of work: long enough that shipping is noise, short enough that a death costs little and the last chunks
of a batch end together. Chunks are shipping units only: results are given back in row order, and a row's metrics do not
depend on its neighbours, so neither cutting nor timing shows in what is stored.

When a worker dies, the chunk that it was running is blamed and cut into single rows, everything else it held goes back
to the queue, and another worker takes its place. What it was running is the oldest call without an answer, which is
wrong when the worker died so soon after an answer that the answer was lost with it; so all that a dead worker held is
run with nothing beside it from then on, and nobody is blamed twice for a neighbour. A row that was blamed three times
fails with the reason and takes nobody with it. A chunk that runs longer than the limit of one design is ended and cut
likewise, without blame; so the limit holds for each design by itself, whatever chunk it came in: what is too slow alone
three times has failed. The first chunk of a worker has :data:`FIRST_CHUNK_S` more, for what is compiled or prepared on
first use.

A worker tells its resident memory with every chunk; one that has grown beyond its limit is put away between two chunks,
so a cost model that leaks costs a restart, not the machine.
"""

from __future__ import annotations

import os
import resource
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np

from dse.errors import ExecutorError, UserError
from dse.evaluation import Evaluation
from dse.metrics import MetricBatch
from dse.protocols import Chunk

CHUNK_S: Final = 0.1
LEAST_CHUNK_S: Final = 0.005
MAX_BLAMES: Final = 3
FIRST_CHUNK_S: Final = 10.0
START_S: Final = 120.0
_POLL_S: Final = 1.0


@dataclass(frozen=True)
class Answer:
    """What a worker answers to a chunk.

    Attributes:
        groups: one metric batch per cost model.
        seconds: wall time of the evaluation alone.
        resident_bytes: memory of the worker's process afterwards.
    """

    groups: list[MetricBatch]
    seconds: float
    resident_bytes: int


class WorkerDied(Exception):
    """A worker ended, or could not go on, while it held work."""


class Crew(Protocol):
    """Workers of one kind, and how they are reached.

    Attributes:
        in_flight: calls that a worker may hold.
    """

    in_flight: int

    def begin(self) -> tuple[Any, Any]:
        """Start a worker and return it with a call that ends when it is prepared."""
        ...

    def send(self, worker: Any, codes: np.ndarray) -> Any:
        """Hand a chunk to a worker and return the call."""
        ...

    def wait(self, calls: Sequence[Any], timeout_s: float) -> Collection[Any]:
        """Return those calls that have ended, at the latest after the timeout."""
        ...

    def take(self, call: Any) -> Answer | None:
        """Return the answer of a call that has ended, None for the one that prepared the worker.

        Raises:
            WorkerDied: there is none.
            UserError: the worker cannot prepare the study.
        """
        ...

    def end(self, worker: Any) -> str:
        """End a worker at once, dead or alive, and return how it ended, "" if that is not known."""
        ...

    def close(self) -> None:
        """Release everything; safe to call twice."""
        ...


@dataclass(frozen=True)
class _Task:
    ticket: int
    start: int
    codes: np.ndarray
    blames: int = 0
    is_suspect: bool = False


@dataclass
class _Slot:
    """A worker and what it holds, oldest first; the first call is the one that prepares it."""

    worker: Any
    held: deque[tuple[Any, _Task | None]]
    since_s: float
    n_answers: int = 0
    is_full: bool = False


class PoolExecutor:
    """Evaluates on a pool of workers.

    Args:
        name: of the executor.
        crew: the workers.
        n_models: number of cost models, for rows that no worker answers.
        workers: number of workers.
        timeout_s: what one design may take; None for no limit.
        memory_bytes: resident memory beyond which a worker is replaced.

    Raises:
        UserError: the workers cannot prepare the study.
    """

    def __init__(
        self, name: str, crew: Crew, n_models: int, workers: int, *, timeout_s: float | None, memory_bytes: int
    ) -> None:
        self.name = name
        self._crew, self._n_models, self._wanted = crew, n_models, workers
        self._timeout_s, self._memory_bytes = timeout_s, memory_bytes
        self._row_s: float | None = None
        self._slots: list[_Slot] = []
        self._queue: deque[_Task] = deque()
        self._done: dict[int, dict[int, list[MetricBatch]]] = {}
        self._lengths: dict[int, int] = {}
        self._tickets = 0
        self.n_deaths = 0
        self.n_restarts = 0
        try:
            for _ in range(workers):
                self._add()
            deadline = time.monotonic() + START_S
            while any(slot.n_answers == 0 for slot in self._slots) and time.monotonic() < deadline:
                self._wait()
            if all(slot.n_answers == 0 for slot in self._slots):
                raise ExecutorError(
                    f"no worker of the {name} executor was ready after {START_S:.0f} s",
                    "are there free cores? --executor local needs none",
                )
        except BaseException:
            self.close()
            raise

    def submit(self, codes: np.ndarray) -> int:
        """Queue a batch and start on it."""
        self._tickets += 1
        self._done[self._tickets] = {}
        self._lengths[self._tickets] = len(codes)
        if len(codes):
            self._queue.append(_Task(self._tickets, 0, codes))
        self._dispatch()
        return self._tickets

    def collect(self, ticket: int) -> Iterator[Chunk]:
        """Yield the chunks of a batch in row order, waiting for each."""
        done, start = self._done[ticket], 0
        while start < self._lengths[ticket]:
            while start not in done:
                self._wait()
            groups = done.pop(start)
            yield Chunk(start, groups)
            start += len(groups[0])
        del self._done[ticket], self._lengths[ticket]

    def close(self) -> None:
        """End the workers."""
        for slot in self._slots:
            self._crew.end(slot.worker)
        self._slots = []
        self._crew.close()

    @property
    def workers(self) -> list[Any]:
        """The crew's handles of the workers, for tests and diagnosis."""
        return [slot.worker for slot in self._slots]

    # ------------------------------------------------------------------ giving out

    def _add(self) -> None:
        worker, call = self._crew.begin()
        self._slots.append(_Slot(worker, deque([(call, None)]), time.monotonic()))

    def _dispatch(self) -> None:
        # Fill the emptiest workers first, so that the second chunk of one never waits while another is idle.
        ready = [slot for slot in self._slots if slot.n_answers and not slot.is_full]
        for depth in range(self._crew.in_flight):
            for slot in ready:
                if self._queue and len(slot.held) == depth and self._may_join(slot):
                    self._send(slot, self._next())

    def _may_join(self, slot: _Slot) -> bool:
        """Whether a worker may hold what comes next: suspects are run alone."""
        return not slot.held or not (
            self._queue[0].is_suspect or any(task is not None and task.is_suspect for _, task in slot.held)
        )

    def _send(self, slot: _Slot, task: _Task) -> None:
        if not slot.held:
            slot.since_s = time.monotonic()
        slot.held.append((self._crew.send(slot.worker, task.codes), task))

    def _next(self) -> _Task:
        """Cut the next chunk off the queue; until a design's duration is known, one row."""
        task = self._queue.popleft()
        n = len(task.codes)
        if n == 1:
            return task
        if self._row_s is None:
            rows = 1
        else:
            share = min(CHUNK_S / self._row_s, -(-n // max(1, len(self._slots))))
            rows = int(min(n, max(1, share, LEAST_CHUNK_S / self._row_s)))
        if rows < n:
            self._queue.appendleft(replace(task, start=task.start + rows, codes=task.codes[rows:]))
        return replace(task, codes=task.codes[:rows])

    # ------------------------------------------------------------------ taking back

    def _wait(self) -> None:
        """Wait until some call has ended or is overdue, and take over what has."""
        self._dispatch()
        limits = [self._due_s(slot) for slot in self._slots if slot.held]
        pause = min([_POLL_S, *(limit - time.monotonic() for limit in limits)])
        ended = self._crew.wait([call for slot in self._slots for call, _ in slot.held], max(0.0, pause))
        for slot in list(self._slots):
            if not self._settle(slot, ended) and slot.held and time.monotonic() > self._due_s(slot):
                self._overdue(slot)
        self._dispatch()

    def _due_s(self, slot: _Slot) -> float:
        """When the call that a worker is busy with is overdue."""
        if not slot.n_answers:
            return slot.since_s + START_S
        if self._timeout_s is None:
            return float("inf")
        return slot.since_s + self._timeout_s + (FIRST_CHUNK_S if slot.n_answers == 1 else 0.0)

    def _settle(self, slot: _Slot, ended: Collection[Any]) -> bool:
        """Take what a worker has answered, oldest first, and return whether there was anything."""
        some = False
        while slot.held and (slot.held[0][0] in ended or self._is_dead(slot, ended)):
            some = True
            call, task = slot.held[0]
            try:
                answer = self._crew.take(call)
            except WorkerDied as death:
                self._replace(slot, f"killed its worker {MAX_BLAMES} times, the last time: {{reason}}", str(death))
                return True
            except UserError:
                # One machine of several that cannot prepare the study is done without.
                if not any(other.n_answers for other in self._slots):
                    raise
                self._replace(slot, "", "")
                return True
            slot.held.popleft()
            slot.since_s = time.monotonic()
            slot.n_answers += 1
            if answer is not None and task is not None:
                self._keep(slot, task, answer)
        if slot.is_full and not slot.held:
            self._crew.end(slot.worker)
            self._slots.remove(slot)
            self.n_restarts += 1
            self._add()
        return some

    def _is_dead(self, slot: _Slot, ended: Collection[Any]) -> bool:
        # When a worker dies all its calls end at once, in any order; the oldest is the one it was running.
        return any(call in ended for call, _ in slot.held) and bool(self._crew.wait([slot.held[0][0]], _POLL_S))

    def _keep(self, slot: _Slot, task: _Task, answer: Answer) -> None:
        if task.ticket in self._done:
            self._done[task.ticket][task.start] = answer.groups
        row_s = max(answer.seconds / len(task.codes), 1e-7)
        # The first chunk of a worker compiles and prepares: it says little about the next.
        if slot.n_answers > 2 or self._row_s is None:
            self._row_s = row_s if self._row_s is None or slot.n_answers <= 4 else 0.7 * self._row_s + 0.3 * row_s
        slot.is_full = answer.resident_bytes > self._memory_bytes

    def _overdue(self, slot: _Slot) -> None:
        if slot.n_answers:
            self._replace(slot, f"took longer than {self._timeout_s:g} s ({MAX_BLAMES} times)", "", is_late=True)
        else:
            self._replace(slot, "", f"it was not ready after {START_S:.0f} s")

    def _replace(self, slot: _Slot, message: str, reason: str, *, is_late: bool = False) -> None:
        """Put a new worker in the place of one that died or hangs; blame what it was running, requeue the rest."""
        held = [task for _, task in slot.held]
        ending = self._crew.end(slot.worker)
        self._slots.remove(slot)
        self.n_deaths += 1
        if not slot.n_answers:  # it never started: go on with fewer
            if not self._slots:
                raise ExecutorError(f"no worker of the {self.name} executor can be started: {reason or ending}")
            return
        tasks = [task for task in held if task is not None]
        self._queue.extendleft(replace(task, is_suspect=True) for task in reversed(tasks[1:]))
        if tasks:
            blames = tasks[0].blames + (not is_late or len(tasks[0].codes) == 1)
            if blames >= MAX_BLAMES and len(tasks[0].codes) == 1:
                self._fail(tasks[0], message.format(reason=reason or ending or "it ended"))
            else:
                rows = [
                    _Task(tasks[0].ticket, tasks[0].start + i, tasks[0].codes[i : i + 1], blames, is_suspect=True)
                    for i in range(len(tasks[0].codes))
                ]
                self._queue.extendleft(reversed(rows))
        self._add()

    def _fail(self, task: _Task, message: str) -> None:
        if task.ticket in self._done:
            self._done[task.ticket][task.start] = [MetricBatch.failed(1, message) for _ in range(self._n_models)]


# ---------------------------------------------------------------------------------------------- in the worker


def answer(evaluation: Evaluation, codes: np.ndarray) -> Answer:
    """Evaluate a chunk; runs in the worker.

    Raises:
        MemoryError: the worker's memory is used up; the worker should end.
    """
    began = time.perf_counter()
    groups = evaluation.evaluate(codes)
    return Answer(groups, time.perf_counter() - began, resident_bytes())


def limit_memory(memory_bytes: int) -> None:
    """Let this process take so much private memory more: what asks for more gets a MemoryError, not the machine."""
    if memory_bytes:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = _private_bytes() + memory_bytes
        if hard == resource.RLIM_INFINITY or wanted <= hard:
            resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def resident_bytes() -> int:
    """Resident memory of this process; its peak where the system does not tell the present one."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _private_bytes() -> int:
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))
    except (OSError, StopIteration):
        return resident_bytes()


def share_of_memory(workers: int) -> int:
    """An equal share of this machine's memory for each worker and the coordinator, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (workers + 1)
