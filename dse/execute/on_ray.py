"""Evaluation on Ray: an actor pool on this machine or a cluster. The only module that imports Ray.

Each actor prepares the evaluators once and keeps them. A batch is cut into chunks; at most two are in flight per
actor, so that one waits while one runs. Ray repeats neither actor calls nor exceptions by itself here: when an actor
dies, the chunk it was running is blamed, everything it held goes back to the queue, and a new actor takes its place.
A chunk that was blamed three times is cut into single rows; a row that was blamed three times fails with that reason
and takes nobody with it.

A local Ray listens on the loopback address only (by the switch that Ray has for laptops; without it, it listens on all
interfaces whatever address it is given), and lets in only clients with a random token of this process. Ray reads these
settings when it is imported, so they are made here, before the import; what the environment says prevails.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from dse.errors import UserError
from dse.execute import Recipe
from dse.metrics import MetricBatch
from dse.protocols import Chunk

if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") is None:
    raise UserError(
        "Ray was imported before the ray executor could ask for token authentication",
        "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN before Python starts, or do not import ray in the study file",
    )
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import ray
    from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
except ImportError:
    raise UserError("the ray executor needs Ray, which is not installed", "pip install 'mfm-dse[ray]'") from None

IN_FLIGHT: Final = 2
MAX_BLAMES: Final = 3
CHUNKS_PER_WORKER: Final = 2


class _Worker:
    """Runs in the actor's process."""

    def __init__(self, recipe: Recipe) -> None:
        self.evaluation = recipe()

    def ready(self) -> bool:
        return True

    def evaluate(self, codes: np.ndarray) -> list[MetricBatch]:
        return self.evaluation.evaluate(codes)


@dataclass(frozen=True)
class _Task:
    ticket: int
    start: int
    codes: np.ndarray
    blames: int = 0


@dataclass
class _Slot:
    """An actor and what it holds, oldest first."""

    actor: Any
    held: deque[tuple[Any, _Task]]


class RayExecutor:
    """Evaluates on a pool of Ray actors.

    Args:
        recipe: builds the evaluation in each actor.
        n_models: number of cost models, for rows that no worker answers.
        workers: number of actors, 0 for one per available core.
        address: an existing cluster ("auto", "HOST:PORT"); None starts a local one, which :meth:`close` stops.
    """

    name = "ray"

    def __init__(self, recipe: Recipe, n_models: int, *, workers: int = 0, address: str | None = None) -> None:
        self._n_models = n_models
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _start(address, workers)
        self._recipe = ray.put(recipe)
        self._remote = ray.remote(num_cpus=1, max_restarts=0)(_Worker)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        count = workers or max(1, int(resources.get("CPU", 1)))
        self._slots: list[_Slot] = []
        self._slots = [
            _Slot(a, deque()) for a in self._started([self._remote.remote(self._recipe) for _ in range(count)])
        ]
        self._queue: deque[_Task] = deque()
        self._done: dict[int, dict[int, list[MetricBatch]]] = {}
        self._lengths: dict[int, int] = {}
        self._tickets = 0

    def submit(self, codes: np.ndarray) -> int:
        """Cut a batch into chunks and start on them."""
        self._tickets += 1
        ticket = self._tickets
        self._done[ticket] = {}
        self._lengths[ticket] = len(codes)
        size = max(1, -(-len(codes) // (len(self._slots) * CHUNKS_PER_WORKER)))
        for start in range(0, len(codes), size):
            self._queue.append(_Task(ticket, start, codes[start : start + size]))
        self._dispatch()
        return ticket

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
        """Stop the actors, and Ray if it was started here."""
        for slot in self._slots:
            with suppress(Exception):
                ray.kill(slot.actor)
        self._slots = []
        if self._owns_ray and ray.is_initialized():
            ray.shutdown()

    def worker_pids(self) -> list[int]:
        """Return the process ids of the actors, for tests and diagnosis."""
        calls = [slot.actor.__ray_call__.remote(lambda _: os.getpid()) for slot in self._slots]
        pids: list[int] = ray.get(calls)
        return pids

    def _started(self, actors: list[Any]) -> list[Any]:
        """Return actors that have prepared their evaluators.

        Raises:
            UserError: they cannot, and no other one could.
        """
        try:
            ray.get([actor.ready.remote() for actor in actors])
        except RayError as error:
            self.close()
            cause = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            raise UserError(
                f"the Ray workers cannot prepare the study: {cause}", "--executor local shows more"
            ) from error
        return actors

    def _dispatch(self) -> None:
        # Fill the emptiest actors first, so that the second chunk of one never waits while another is idle.
        for slot in sorted(self._slots, key=lambda s: len(s.held)):
            while self._queue and len(slot.held) < IN_FLIGHT:
                task = self._queue.popleft()
                slot.held.append((slot.actor.evaluate.remote(task.codes), task))
                if any(not s.held for s in self._slots):
                    break

    def _wait(self) -> None:
        """Wait until some call has ended, and take over what has."""
        self._dispatch()
        ray.wait([ref for slot in self._slots for ref, _ in slot.held], num_returns=1)
        for slot in self._slots:
            self._settle(slot)
        self._dispatch()

    def _settle(self, slot: _Slot) -> None:
        """Take the results of an actor, oldest first; put another in its place if it has died.

        When it dies all its calls end at once, in any order, so whichever has ended is looked at.
        """
        ended, _ = (
            ray.wait([ref for ref, _ in slot.held], num_returns=len(slot.held), timeout=0) if slot.held else ([], [])
        )
        for ref in ended:
            task = next(task for held, task in slot.held if held == ref)
            try:
                groups = ray.get(ref)
            except (ActorDiedError, ActorUnavailableError) as error:
                self._replace(slot, str(error).strip().splitlines()[0])
                return
            except RayError as error:
                message = f"{type(error).__name__}: {error}"[:2000]
                groups = [MetricBatch.failed(len(task.codes), message) for _ in range(self._n_models)]
            slot.held.remove((ref, task))
            self._done[task.ticket][task.start] = groups

    def _replace(self, slot: _Slot, reason: str) -> None:
        """Put a new actor in the place of a dead one; blame the chunk it was running, requeue all it held."""
        held = [task for _, task in slot.held]
        with suppress(Exception):
            ray.kill(slot.actor)
        slot.held.clear()
        slot.actor = self._started([self._remote.remote(self._recipe)])[0]
        blamed = replace(held[0], blames=held[0].blames + 1)
        self._queue.extendleft(reversed(held[1:]))
        if blamed.blames < MAX_BLAMES:
            self._queue.appendleft(blamed)
        elif len(blamed.codes) > 1:
            rows = [_Task(blamed.ticket, blamed.start + i, blamed.codes[i : i + 1]) for i in range(len(blamed.codes))]
            self._queue.extendleft(reversed(rows))
        else:
            message = f"killed its worker {MAX_BLAMES} times, the last time: {reason}"
            self._done[blamed.ticket][blamed.start] = self._failed(message)

    def _failed(self, message: str) -> list[MetricBatch]:
        return [MetricBatch.failed(1, message) for _ in range(self._n_models)]


def _start(address: str | None, workers: int) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        if workers:
            options["num_cpus"] = workers
    else:
        options["address"] = address
    ray.init(**options)
