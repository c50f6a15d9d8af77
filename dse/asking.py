"""Asking a proposer: anybody's code, whose failure costs it its turn and never the study.

An ask that raises, ends the process, answers with codes of another shape or of no whole numbers, or takes longer than
its limit is answered by random designs instead, and counted with its first reason. What was proposed is stored before
it is evaluated, so a resumed study does not ask again.

Matrices of proposers are small: on one thread they take less time than threads take to meet, and sums do not depend on
the number of cores. So an ask runs with one thread of the linear algebra library.

The limit needs SIGALRM and the main thread, and ends Python code and system calls; a loop in a C library goes on.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType

import numpy as np
from threadpoolctl import ThreadpoolController

from dse.protocols import History, Proposals, Proposer
from dse.space import BoundSpace


@dataclass
class Mishaps:
    """Asks that failed.

    Attributes:
        n: how many.
        first: who, and why, the first time.
    """

    n: int = 0
    first: str = ""


def ask(
    proposer: Proposer, history: History, k: int, rng: np.random.Generator, limit_s: float | None, mishaps: Mishaps
) -> Proposals | None:
    """Return what a proposer proposes, at most ``k`` designs inside their ranges; None where it failed.

    Args:
        proposer: whom to ask.
        history: what it sees.
        k: designs wanted.
        rng: its random numbers.
        limit_s: what it may take; None for no limit.
        mishaps: counts failures.
    """
    try:
        with _limited(limit_s), _one_thread(len(sys.modules)).limit(limits=1, user_api="blas"):
            return _checked(proposer.propose(history, k, rng), history.space, k)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001  anybody's code; its failure belongs to its turn
        mishaps.n += 1
        mishaps.first = mishaps.first or f"{proposer.name}: {type(error).__name__}: {error}"[:2000]
        return None


@lru_cache(maxsize=1)
def _one_thread(_n_modules: int) -> ThreadpoolController:
    """Return what holds the libraries that are loaded, looked for again when modules have been imported since."""
    return ThreadpoolController()


def _checked(proposals: Proposals, space: BoundSpace, k: int) -> Proposals:
    """Return the proposals repaired.

    Raises:
        ValueError: codes, marks or parents are not what they must be.
    """
    codes = np.asarray(proposals.codes)
    if not codes.size:
        return Proposals(np.empty((0, space.n_parameters), dtype=np.uint16))
    codes = space.repair(codes)
    n = len(codes)
    marks = None if proposals.marks is None else np.asarray(proposals.marks)
    if marks is not None and (marks.shape != (n,) or marks.dtype.kind not in "iu"):
        raise ValueError(f"marks are {marks.dtype} of shape {marks.shape}, expected whole numbers of shape ({n},)")
    if len(proposals.parents) not in (0, n):
        raise ValueError(f"{len(proposals.parents)} parents for {n} designs")
    parents = [tuple(int(number) for number in one) for one in proposals.parents[:k]]
    return Proposals(codes[:k], parents, None if marks is None else marks[:k].astype(np.int64))


@contextmanager
def _limited(limit_s: float | None) -> Iterator[None]:
    on_main = threading.current_thread() is threading.main_thread()
    if limit_s is None or not on_main or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"took longer than {limit_s:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
