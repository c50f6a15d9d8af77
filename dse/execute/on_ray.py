"""Evaluation on Ray: an actor pool on this machine or a cluster. The only module that imports Ray.

Each actor prepares the evaluators once and keeps them; at most two chunks are in flight per actor, so that one waits
while one runs. Ray repeats neither actor calls nor exceptions by itself here: what a dead actor held goes back to the
queue by the pool's own rules (pool.py), and an actor that cannot be replaced, because its machine is gone, is done
without. An actor whose cost models are not the coordinator's, by their fingerprints, is refused: a cluster that has
another version installed must not answer.

A local Ray listens on the loopback address only (by the switch that Ray has for laptops; without it, it listens on all
interfaces whatever address it is given), and lets in only clients with a random token of this process. A cluster is met
with the token that the environment has for it (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token); one without a
token is its owner's decision. Ray reads these settings when it is imported, so they are made here, before the import;
what the environment says prevails.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np

from dse.errors import ExecutorError, UserError
from dse.execute import Recipe
from dse.execute.pool import Answer, PoolExecutor, WorkerDied, answer, limit_memory, share_of_memory

if "RAY_AUTH_MODE" not in os.environ:
    if "ray" in sys.modules:
        raise UserError(
            "Ray was imported before the ray executor could ask for token authentication",
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN before Python starts, or do not import ray in the study file",
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError:
    raise UserError("the ray executor needs Ray, which is not installed", "pip install 'mfm-dse[ray]'") from None

IN_FLIGHT: Final = 2
CONNECT_S: Final = 10.0


def ray_executor(
    recipe: Recipe,
    fingerprints: Sequence[str],
    *,
    workers: int = 0,
    address: str | None = None,
    timeout_s: float | None = None,
    memory_bytes: int = 0,
) -> PoolExecutor:
    """Return an executor of Ray actors.

    Args:
        recipe: builds the evaluation in each actor.
        fingerprints: of the cost models, which those of the actors must have.
        workers: number of actors, 0 for one per core that Ray has.
        address: an existing cluster ("auto", "HOST:PORT"); None starts a local one, which closing stops.
        timeout_s: what one design may take.
        memory_bytes: what an actor may take; 0 for an equal share of this machine.

    Raises:
        UserError: there is no cluster at the address, or its workers cannot prepare the study.
        ExecutorError: Ray, or all of its workers, did not start.
    """
    crew = RayCrew(recipe, fingerprints, address, workers, memory_bytes)
    try:
        count = workers or crew.n_cores
        limit = memory_bytes or share_of_memory(crew.n_cores)
        return PoolExecutor("ray", crew, len(fingerprints), count, timeout_s=timeout_s, memory_bytes=limit)
    except RayError as error:
        crew.close()
        raise _not_started(error) from error
    except BaseException:
        crew.close()
        raise


class _Actor:
    """Runs in the actor's process."""

    def __init__(self, recipe: Recipe, memory_bytes: int) -> None:
        self.evaluation = recipe()
        limit_memory(memory_bytes)

    def ready(self) -> list[str]:
        return self.evaluation.fingerprints()

    def evaluate(self, codes: np.ndarray) -> Answer:
        return answer(self.evaluation, codes)


class RayCrew:
    """Starts actors and calls them.

    Args:
        recipe: builds the evaluation in each.
        fingerprints: of the coordinator's cost models.
        address: of a cluster, None for a local one of our own.
        workers: cores of a local one, 0 for all.
        memory_bytes: what an actor may take, 0 for no limit of its own.
    """

    in_flight = IN_FLIGHT

    def __init__(
        self, recipe: Recipe, fingerprints: Sequence[str], address: str | None, workers: int, memory_bytes: int
    ) -> None:
        self._fingerprints, self._memory_bytes = list(fingerprints), memory_bytes
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _start(address, workers)
        try:
            self._recipe = ray.put(recipe)
        except Exception as error:  # whatever pickling one of the study's own cost models raises
            self.close()
            raise UserError(
                f"the study cannot be sent to Ray's workers: {type(error).__name__}: {_first_line(error)}",
                "--executor process sends nothing",
            ) from error
        self._remote = ray.remote(num_cpus=1, max_restarts=0)(_Actor)

    @property
    def n_cores(self) -> int:
        """Cores that the cluster has."""
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return max(1, int(resources.get("CPU", 1)))

    def begin(self) -> tuple[Any, Any]:
        """Start an actor."""
        actor: Any = self._remote.remote(self._recipe, self._memory_bytes)
        return actor, actor.ready.remote()

    def send(self, worker: Any, codes: np.ndarray) -> Any:
        """Call an actor."""
        return worker.evaluate.remote(codes)

    def wait(self, calls: Sequence[Any], timeout_s: float) -> Collection[Any]:
        """Return the calls that have ended."""
        ended, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        if not ended:
            ended, _ = ray.wait(list(calls), num_returns=1, timeout=timeout_s)
        return set(ended)

    def take(self, call: Any) -> Answer | None:
        """Return the result of a call that has ended."""
        try:
            found = ray.get(call)
        except MemoryError as error:
            raise WorkerDied("its memory was used up") from error
        except RayTaskError as error:
            raise WorkerDied(f"{type(error.cause).__name__}: {error.cause}") from error
        except RayError as error:
            if (cause := _preparation_error(error)) is not None:
                raise UserError(
                    f"the Ray workers cannot prepare the study: {cause}", "--executor local shows more"
                ) from error
            raise WorkerDied(str(error).strip().splitlines()[0]) from error
        if isinstance(found, Answer):
            return found
        if found != self._fingerprints:
            raise UserError(
                "the Ray workers have other cost models, or tables, than this process",
                "install the same version of mfm-dse on all machines of the cluster",
            )
        return None

    def end(self, worker: Any) -> str:
        """Kill an actor."""
        with suppress(Exception):
            ray.kill(worker)
        return ""

    def close(self) -> None:
        """Stop Ray if it was started here."""
        if self._owns_ray and ray.is_initialized():
            ray.shutdown()
        self._owns_ray = False


def _preparation_error(error: RayError) -> str | None:
    """Return what an actor's constructor raised, None if the actor ended otherwise."""
    text = str(error)
    if "The actor died because of an error raised in its creation task" not in text:
        return None
    return text.strip().splitlines()[-1]


def _start(address: str | None, workers: int) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        if workers:
            options["num_cpus"] = workers
    else:
        options["address"] = address
    try:
        if address is not None and address != "auto":
            _knock(address)  # Ray itself tries for minutes
        ray.init(**options)
    except Exception as error:  # a start that times out is a bare Exception
        if address is None:
            raise _not_started(error) from error
        raise UserError(
            f"there is no Ray cluster at {address!r} that lets us in: {_first_line(error)}",
            "see 'ray status' there, and RAY_AUTH_MODE and RAY_AUTH_TOKEN here",
        ) from error


def _not_started(error: Exception) -> ExecutorError:
    return ExecutorError(f"Ray did not start: {_first_line(error)}", "--executor process does without it")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _knock(address: str) -> None:
    host, _, port = address.rpartition("/")[2].rpartition(":")
    socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
