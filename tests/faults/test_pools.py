"""Pools of processes and of Ray actors under fire: the same promises, whoever the workers are."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from dse.errors import ExecutorError, UserError
from dse.evaluation import Evaluation, build_evaluation
from dse.execute import Means, make_executor, pool
from dse.execute.auto import AutoExecutor
from dse.execute.local import LocalExecutor
from dse.metrics import MetricBatch
from dse.params import Choice
from dse.space import Space
from dse.testing.conformance import check_executor
from dse.testing.samples import small_problem, small_space

RAY = pytest.param(
    "ray",
    marks=[
        pytest.mark.ray,
        pytest.mark.slow,
        pytest.mark.filterwarnings("ignore"),
        pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    ],
)
pools = pytest.mark.parametrize("kind", ["process", RAY])

PROBLEM = small_problem()
SPACE = small_space(PROBLEM)
ROWS = Space(pe_rows=Choice(*range(1, 41))).bind(PROBLEM)  # code i stands for i + 1 rows
CODES = np.arange(40)[:, None]


def by_value(kind):
    """Workers of Ray cannot import a test module; its classes travel by value, as those of a study file do."""
    kind.__module__ = "__main__"
    return kind


@by_value
class Wicked:
    """Costs a design its rows, except for some rows, on which it does something else."""

    name, group, fidelity, version = "wicked", "hardware", "analytical", "1"
    laws: frozenset[str] = frozenset()
    metrics = ("latency_s",)
    fingerprint = "wicked-1"

    def __init__(self, deed, rows=(13,)):
        self.deed, self.rows, self.kept = deed, rows, []

    def prepare(self, problem):
        del problem
        return self

    def evaluate(self, batch):
        import os
        import time

        import numpy as np

        from dse.metrics import MetricBatch

        struck = np.isin(batch["pe_rows"], self.rows).any()
        if self.deed == "die" and struck:
            os._exit(9)
        if self.deed == "hang" and struck:
            time.sleep(1000)
        if self.deed == "exit" and struck:
            raise SystemExit(3)
        if self.deed == "gorge" and struck:
            self.kept.append(np.ones(1 << 29))  # 4 GiB
        if self.deed == "leak":
            self.kept.append(np.ones(len(batch) << 21))  # 16 MiB a design
        if self.deed in ("crawl", "leak"):
            time.sleep(0.02 * len(batch))
        return MetricBatch({"latency_s": batch["pe_rows"].astype(float)}, len(batch))

    def breakdown(self, batch):
        del batch
        return []


def make(kind, space, models, **limits):
    recipe = partial(build_evaluation, PROBLEM.to_json(), space.space.to_json(), models)
    return make_executor(Means(kind, workers=limits.pop("workers", 2), **limits), recipe, Evaluation(space, models))


def gathered(executor, codes):
    """Return the metrics of a batch and the sizes of its chunks."""
    chunks = list(executor.collect(executor.submit(codes)))
    sizes = [len(c.groups[0]) for c in chunks]
    rows = [(np.arange(c.start, c.start + n), c.groups[0]) for c, n in zip(chunks, sizes, strict=True)]
    return MetricBatch.scatter(rows, len(codes)), sizes


def pids(executor):
    crew = executor.workers
    if hasattr(crew[0], "pid"):
        return [w.pid for w in crew]
    import ray

    return ray.get([w.__ray_call__.remote(lambda _: os.getpid()) for w in crew])


@pools
def test_rows_equal_those_of_the_local_executor(kind):
    models = ("analytical", "prior")
    check_executor(make(kind, SPACE, models), LocalExecutor(Evaluation(SPACE, models)), SPACE)


@pools
def test_killed_workers_are_replaced_and_their_work_done_again(kind):
    executor = make(kind, SPACE, ("analytical",))
    try:
        codes = SPACE.sample(200, np.random.default_rng(1))
        ticket = executor.submit(codes)
        for pid in pids(executor):
            os.kill(pid, signal.SIGKILL)
        chunks = list(executor.collect(ticket))
        found = np.concatenate([c.groups[0].values["latency_s"] for c in chunks])
        np.testing.assert_array_equal(found, Evaluation(SPACE, ("analytical",)).evaluate(codes)[0].values["latency_s"])
        assert executor.n_deaths == 2
        assert len(pids(executor)) == 2
    finally:
        executor.close()


@pools
def test_a_design_that_kills_its_worker_fails_alone(kind):
    executor = make(kind, ROWS, (Wicked("die"),))
    try:
        metrics, _ = gathered(executor, CODES)
        assert np.flatnonzero(metrics.status).tolist() == [12]
        assert "killed its worker 3 times" in metrics.reason(12)
        if kind == "process":
            assert "it exited with code 9" in metrics.reason(12)
        assert metrics.values["latency_s"][13] == 14.0
        # Ray can lose the answer before with the worker that gave it: the first death is then the neighbour's.
        assert executor.n_deaths in ((3,) if kind == "process" else (3, 4))
    finally:
        executor.close()


@dataclass(eq=False)
class Call:
    held: list
    codes: np.ndarray | None = None


class ForgetfulCrew:
    """Workers of whom each answer is lost that was given right before a death; a worker is the list of its calls."""

    in_flight = 2

    def __init__(self, evaluation, killer):
        self.evaluation, self.killer = evaluation, killer

    def begin(self):
        return [], Call([])

    def send(self, worker, codes):
        worker.append(Call(worker, codes))
        return worker[-1]

    def wait(self, calls, timeout_s):
        del timeout_s
        return [call for call in calls if self.is_dead(call)] or calls[:1]

    def is_dead(self, call):
        return self.killer in [c.codes[0, 0] for c in call.held]

    def take(self, call):
        if call.codes is None:
            return None
        if self.is_dead(call):
            raise pool.WorkerDied("lost")
        call.held.remove(call)
        return pool.answer(self.evaluation, call.codes)

    def end(self, worker):
        del worker
        return ""

    def close(self):
        pass


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_nobody_fails_for_a_neighbour(workers, monkeypatch):
    """The neighbour whose answer is lost may be blamed once, never three times."""
    monkeypatch.setattr(pool, "CHUNK_S", 0.0)
    monkeypatch.setattr(pool, "LEAST_CHUNK_S", 0.0)  # one row a chunk
    crew = ForgetfulCrew(Evaluation(ROWS, (Wicked("live"),)), killer=12)
    executor = pool.PoolExecutor("forgetful", crew, 1, workers, timeout_s=None, memory_bytes=1 << 40)
    metrics, _ = gathered(executor, CODES)
    assert np.flatnonzero(metrics.status).tolist() == [12]
    assert metrics.reason(12) == "killed its worker 3 times, the last time: lost"
    assert executor.n_deaths in (3, 4)


@pools
def test_a_design_that_hangs_fails_alone(kind, monkeypatch):
    monkeypatch.setattr(pool, "FIRST_CHUNK_S", 1.0)
    executor = make(kind, ROWS, (Wicked("hang", rows=(7, 30)),), timeout_s=0.5)
    try:
        metrics, _ = gathered(executor, CODES)
        assert np.flatnonzero(metrics.status).tolist() == [6, 29]
        assert metrics.reason(6) == metrics.reason(29) == "took longer than 0.5 s (3 times)"
        np.testing.assert_array_equal(
            np.delete(metrics.values["latency_s"], [6, 29]), np.delete(CODES[:, 0], [6, 29]) + 1.0
        )
    finally:
        executor.close()


@pools
def test_the_limit_is_that_of_a_design_not_of_its_chunk(kind, monkeypatch):
    """40 designs of 20 ms under a limit of 0.3 s, in chunks of 20: the chunks are cut, no design fails."""
    monkeypatch.setattr(pool, "FIRST_CHUNK_S", 2.0)
    monkeypatch.setattr(pool, "CHUNK_S", 1.0)
    executor = make(kind, ROWS, (Wicked("crawl"),), timeout_s=0.3)
    try:
        metrics, _ = gathered(executor, CODES)
        assert not metrics.status.any()
        assert executor.n_deaths > 0
    finally:
        executor.close()


@pools
def test_a_model_that_leaks_is_put_away_between_chunks(kind):
    executor = make(kind, ROWS, (Wicked("leak"),), worker_memory_bytes=400 << 20)
    try:
        metrics, _ = gathered(executor, CODES)
        assert not metrics.status.any()
        assert executor.n_restarts > 0
    finally:
        executor.close()


def test_a_design_that_asks_for_too_much_memory_fails_alone():
    executor = make("process", ROWS, (Wicked("gorge"),), worker_memory_bytes=1 << 30)
    try:
        metrics, _ = gathered(executor, CODES)
        assert np.flatnonzero(metrics.status).tolist() == [12]
        assert metrics.reason(12) == "killed its worker 3 times, the last time: its memory was used up"
    finally:
        executor.close()


def test_a_model_that_exits_fails_its_row_and_ends_nobody():
    metrics = Evaluation(ROWS, (Wicked("exit"),)).evaluate(CODES)[0]
    assert np.flatnonzero(metrics.status).tolist() == [12]
    assert metrics.reason(12) == "SystemExit: 3"


@pools
def test_chunks_grow_to_a_tenth_of_a_second_and_do_not_wait_for_each_other(kind):
    executor = make(kind, ROWS, (Wicked("crawl"),))
    try:
        gathered(executor, CODES)
        _, sizes = gathered(executor, np.repeat(CODES, 2, axis=0))
        assert max(sizes[:4]) in range(3, 6)  # 0.1 s of 20 ms each, the clock's noise aside
        assert sum(sizes) == 80
    finally:
        executor.close()


def test_a_killed_nursery_is_replaced():
    executor = make("process", ROWS, (Wicked("die", rows=(99,)),))
    try:
        os.kill(executor._crew._nursery_pid, signal.SIGKILL)
        for pid in pids(executor):
            os.kill(pid, signal.SIGKILL)
        metrics, _ = gathered(executor, CODES)
        assert not metrics.status.any()
    finally:
        executor.close()


def test_nothing_is_left_behind():
    executor = make("process", ROWS, (Wicked("hang"),))
    executor.submit(CODES)
    left = [*pids(executor), executor._crew._nursery_pid]
    executor.close()
    executor.close()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in left) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(alive(pid) for pid in left)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("means", "message"),
    [
        ({"executor": "local", "timeout_s": 1.0}, "cannot end a design that hangs"),
        ({"executor": "locla"}, "unknown executor 'locla'"),
        ({"timeout_s": 0.0}, "is not a time of 0.01 s or more"),
        ({"timeout_s": float("nan")}, "is not a time"),
        ({"workers": -1}, "is not a whole number"),
        ({"executor": "process", "ray_address": "auto"}, "is of no use to the process executor"),
    ],
)
def test_means_that_cannot_be_are_refused(means, message):
    with pytest.raises(UserError, match=message):
        Means(**means)


def test_auto_takes_processes_where_something_must_be_limited():
    executor = make("auto", ROWS, (Wicked("die", rows=(99,)),), timeout_s=5.0)
    try:
        assert executor.name == "process"
    finally:
        executor.close()


class Counted:
    """An executor that counts what it is given."""

    name = "counted"

    def __init__(self):
        self.n = 0

    def submit(self, codes):
        self.n += len(codes)
        return self.n

    def close(self):
        pass


def test_auto_goes_over_when_the_work_so_far_has_cost_as_much_as_a_start():
    local, remote = LocalExecutor(Evaluation(ROWS, (Wicked("die", rows=(99,)),))), Counted()
    auto = AutoExecutor(local, [("counted workers", lambda: remote)])
    given = []
    for row_s in [None, 1e-5, 1e-5, *[0.02] * 10]:  # 40 rows: 0.4 ms, then 0.8 s a batch
        local.row_s = row_s
        auto.submit(CODES)
        given.append(remote.n)
    # Six batches of 0.8 s stay here (4.8 s); the seventh makes it more than five seconds.
    assert given == [0] * 9 + [40, 80, 120, 160]


def test_auto_goes_on_without_a_pool_that_does_not_start(capsys):
    """One line says so, and the next pool takes its place; where none starts, this process does the work."""

    def broken():
        raise ExecutorError("they did not start: no room", "a remedy")

    local, remote = LocalExecutor(Evaluation(ROWS, (Wicked("die", rows=(99,)),))), Counted()
    local.row_s = 1.0
    auto = AutoExecutor(local, [("odd workers", broken), ("counted workers", lambda: remote)])
    auto.submit(CODES)
    auto.submit(CODES)
    assert remote.n == 80
    assert capsys.readouterr().err == "no odd workers: they did not start: no room; counted workers instead\n"
    auto = AutoExecutor(local, [("odd workers", broken)])
    metrics, _ = gathered(auto, CODES)
    np.testing.assert_array_equal(metrics.values["latency_s"], CODES[:, 0] + 1.0)
    assert capsys.readouterr().err == "no odd workers: they did not start: no room; going on in this process\n"
