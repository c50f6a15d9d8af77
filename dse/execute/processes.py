"""Evaluation in processes of this machine, without Ray: what hangs can be ended, what leaks can be put away.

The workers are forks. The executor forks once, early, a *nursery*: a process of one thread that holds the evaluators
prepared and does nothing but fork workers from itself on request, so a worker starts within milliseconds, needs nothing
sent to it (a cost model written in the study file included), and inherits no thread and no lock that was taken later.
The nursery ends its workers when the coordinator is gone, however it went, and tells how a worker ended.

Coordinator and worker speak over a socket pair that no other process holds. Both are this program, run by this user:
what they send each other is pickled. One chunk is under way per worker: handing over the next takes less than 0.1 ms.

Needs ``fork``: Linux and macOS.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Final, NoReturn

import numpy as np

from dse.errors import ExecutorError, UserError
from dse.evaluation import Evaluation
from dse.execute.pool import Answer, PoolExecutor, WorkerDied, answer, limit_memory, share_of_memory

_ORDER: Final = struct.Struct("<ci")
_MEMORY_GONE: Final = "its memory was used up"


def process_executor(
    evaluation: Evaluation, *, workers: int = 0, timeout_s: float | None = None, memory_bytes: int = 0
) -> PoolExecutor:
    """Return an executor of forked workers.

    Args:
        evaluation: the prepared cost models.
        workers: number of processes, 0 for one per core.
        timeout_s: what one design may take.
        memory_bytes: what a worker may take; 0 for an equal share of the machine.

    Raises:
        UserError: the system cannot fork.
    """
    if not hasattr(os, "fork"):
        raise UserError("this system has no fork, which the process executor needs", "use --executor local or ray")
    count = workers or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_bytes = memory_bytes or share_of_memory(count)
    crew = ProcessCrew(evaluation, memory_bytes)
    return PoolExecutor("process", crew, len(evaluation.models), count, timeout_s=timeout_s, memory_bytes=memory_bytes)


@dataclass(frozen=True, eq=False)
class ProcessWorker:
    """A forked worker: its process id, our end of the line to it, and the nursery that it came from."""

    pid: int
    line: Connection
    nursery_pid: int


class ProcessCrew:
    """Forks workers and speaks to them.

    Args:
        evaluation: what they evaluate with.
        memory_bytes: what each may take.
    """

    in_flight = 1

    def __init__(self, evaluation: Evaluation, memory_bytes: int) -> None:
        self._evaluation, self._memory_bytes = evaluation, memory_bytes
        self._nursery: socket.socket | None = None
        self._nursery_pid = 0

    def begin(self) -> tuple[ProcessWorker, Connection]:
        """Fork a worker."""
        for _ in range(2):
            nursery = self._running()
            try:
                nursery.sendall(_ORDER.pack(b"s", 0))
                message, ends, _, _ = socket.recv_fds(nursery, _ORDER.size, 1)
            except OSError:
                message, ends = b"", []
            if ends:
                line = Connection(ends[0])
                return ProcessWorker(_ORDER.unpack(message)[1], line, self._nursery_pid), line
            self._forget_nursery()  # somebody killed it
        raise ExecutorError("worker processes cannot be started", "--executor local needs none")

    def send(self, worker: ProcessWorker, codes: np.ndarray) -> Connection:
        """Hand a chunk over; a worker that is dead is noticed when its answer is taken."""
        with suppress(OSError):
            worker.line.send(codes)
        return worker.line

    def wait(self, calls: Sequence[Connection], timeout_s: float) -> Collection[Connection]:
        """Return the lines on which an answer, or the end, has come."""
        return [line for line in wait(calls, timeout_s) if isinstance(line, Connection)]

    def take(self, call: Connection) -> Answer | None:
        """Return the answer that has come."""
        try:
            found = call.recv()
        except (EOFError, OSError):
            raise WorkerDied from None
        if isinstance(found, str):
            raise WorkerDied(found)
        return None if found is True else found

    def end(self, worker: ProcessWorker) -> str:
        """Kill a worker and return how it ended."""
        with suppress(OSError):
            worker.line.close()
        if self._nursery is None or worker.nursery_pid != self._nursery_pid:
            with suppress(OSError):
                os.kill(worker.pid, signal.SIGKILL)
            return ""
        try:
            self._nursery.sendall(_ORDER.pack(b"k", worker.pid))
            _, status = _ORDER.unpack(_exactly(self._nursery, _ORDER.size))
        except (OSError, struct.error):
            self._forget_nursery()
            return self.end(worker)
        return _told(status)

    def close(self) -> None:
        """End the nursery and with it all workers."""
        self._forget_nursery()

    def _running(self) -> socket.socket:
        if self._nursery is None:
            ours, theirs = socket.socketpair()
            with warnings.catch_warnings():
                # Later Pythons warn of other threads at the time of a fork: the child runs only what is below.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                ours.close()
                _as_child(lambda: _tend(theirs, self._evaluation, self._memory_bytes))
            theirs.close()
            self._nursery, self._nursery_pid = ours, pid
        return self._nursery

    def _forget_nursery(self) -> None:
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = None
            with suppress(ChildProcessError):
                os.waitpid(self._nursery_pid, 0)


def _told(status: int) -> str:
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it exited with code {status}"


def _exactly(line: socket.socket, n: int) -> bytes:
    got = b""
    while len(got) < n:
        more = line.recv(n - len(got))
        if not more:
            break
        got += more
    return got


# ---------------------------------------------------------------------------------------------- in the forks


def _as_child(work: object) -> NoReturn:
    """Do the child's work and leave without touching what was inherited (buffers, open databases)."""
    code = 70
    try:
        for number in (signal.SIGINT, signal.SIGTERM):  # for the coordinator, which finishes what is under way
            signal.signal(number, signal.SIG_IGN)
        work()  # type: ignore[operator]
        code = 0
    finally:
        os._exit(code)


def _tend(line: socket.socket, evaluation: Evaluation, memory_bytes: int) -> None:
    """Fork workers and end them on request, until the coordinator is gone."""
    children: set[int] = set()
    try:
        while len(order := _exactly(line, _ORDER.size)) == _ORDER.size:
            what, pid = _ORDER.unpack(order)
            if what == b"s":
                theirs, ours = socket.socketpair()
                child = os.fork()
                if child == 0:
                    theirs.close()
                    line.close()
                    _as_child(lambda end=ours: _work(Connection(end.detach()), evaluation, memory_bytes))
                ours.close()
                socket.send_fds(line, [_ORDER.pack(b"s", child)], [theirs.fileno()])
                theirs.close()
                children.add(child)
            else:
                line.sendall(_ORDER.pack(b"k", _end(pid) if pid in children else 0))
                children.discard(pid)
    finally:
        for pid in children:
            _end(pid)


def _end(pid: int) -> int:
    """Kill a child unless it has ended, and return how it ended: exit code, or minus the signal."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _work(line: Connection, evaluation: Evaluation, memory_bytes: int) -> None:
    """Answer chunks until the line ends."""
    limit_memory(memory_bytes)
    line.send(True)
    with suppress(EOFError, OSError):
        while True:
            codes = line.recv()
            try:
                found: Answer | str = answer(evaluation, codes)
            except MemoryError:
                found = _MEMORY_GONE
            line.send(found)
