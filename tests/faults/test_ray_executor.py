"""The Ray executor: the same rows as in process, dead workers replaced, poison quarantined."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)

from dse.coordinator import build_evaluation
from dse.errors import UserError
from dse.evaluation import Evaluation
from dse.execute.local import LocalExecutor
from dse.execute.on_ray import RayExecutor
from dse.metrics import MetricBatch
from dse.params import Choice
from dse.space import Space
from dse.testing.conformance import check_executor
from dse.testing.samples import small_problem, small_space

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PROBLEM = small_problem()
SPACE = small_space(PROBLEM)


def by_value(kind):
    """Workers cannot import a test module; its classes travel by value, as those of a study file do."""
    kind.__module__ = "__main__"
    return kind


@by_value
class Deadly:
    """A cost model that ends its process on designs of 13 rows, and costs the others their rows."""

    name, group, fidelity, version = "deadly", "hardware", "analytical", "1"
    laws: frozenset[str] = frozenset()
    metrics = ("latency_s",)
    fingerprint = "deadly-1"

    def prepare(self, problem):
        del problem
        return self

    def evaluate(self, batch):
        if (batch["pe_rows"] == 13).any():
            os._exit(9)
        return MetricBatch({"latency_s": batch["pe_rows"].astype(float)}, len(batch))

    def breakdown(self, batch):
        del batch
        return []


def test_rows_equal_those_of_the_local_executor():
    recipe = partial(build_evaluation, PROBLEM.to_json(), SPACE.space.to_json(), ("analytical", "prior"))
    local = LocalExecutor(Evaluation(SPACE, ("analytical", "prior")))
    check_executor(RayExecutor(recipe, 2, workers=2), local, SPACE)


def test_a_killed_worker_is_replaced_and_its_work_done_again():
    recipe = partial(build_evaluation, PROBLEM.to_json(), SPACE.space.to_json(), ("analytical",))
    executor = RayExecutor(recipe, 1, workers=2)
    try:
        codes = SPACE.sample(200, np.random.default_rng(1))
        for pid in executor.worker_pids():
            os.kill(pid, signal.SIGKILL)
        chunks = list(executor.collect(executor.submit(codes)))
        assert sum(len(c.groups[0]) for c in chunks) == 200
        expected = Evaluation(SPACE, ("analytical",)).evaluate(codes)[0]
        found = np.concatenate([c.groups[0].values["latency_s"] for c in chunks])
        np.testing.assert_array_equal(found, expected.values["latency_s"])
        assert len(executor.worker_pids()) == 2
    finally:
        executor.close()


def test_a_design_that_kills_its_worker_fails_alone():
    space = Space(pe_rows=Choice(*range(1, 41))).bind(PROBLEM)
    recipe = partial(build_evaluation, PROBLEM.to_json(), space.space.to_json(), (Deadly(),))
    executor = RayExecutor(recipe, 1, workers=2)
    try:
        codes = np.arange(40)[:, None]
        chunks = list(executor.collect(executor.submit(codes)))
        metrics = MetricBatch.scatter(
            [(np.arange(c.start, c.start + len(c.groups[0])), c.groups[0]) for c in chunks], 40
        )
        assert np.flatnonzero(metrics.status).tolist() == [12]
        assert "killed its worker 3 times" in metrics.reason(12)
        assert metrics.values["latency_s"][13] == 14.0
    finally:
        executor.close()


def test_workers_that_cannot_start_are_told_at_once():
    recipe = partial(build_evaluation, PROBLEM.to_json(), SPACE.space.to_json(), ("no-such-model",))
    with pytest.raises(UserError, match="cannot prepare the study"):
        RayExecutor(recipe, 1, workers=1)


def test_a_stranger_without_the_token_is_turned_away():
    """A local Ray lets in only who has the token of this process."""
    script = (
        "import os, sys; from dse.execute.on_ray import RayExecutor; from dse.testing.samples import *\n"
        "import ray, subprocess\n"
        "from functools import partial; from dse.coordinator import build_evaluation\n"
        "s = small_space(); r = partial(build_evaluation, s.schema.problem.to_json(), s.space.to_json(), ('prior',))\n"
        "e = RayExecutor(r, 1, workers=1)\n"
        "address = ray.get_runtime_context().gcs_address\n"
        "assert address.startswith('127.0.0.1'), address\n"
        "env = {k: v for k, v in os.environ.items() if not k.startswith('RAY_AUTH')} | {'HOME': '/nonexistent'}\n"
        "code = f'import ray; ray.init(address={address!r}, log_to_driver=False)'\n"
        "stranger = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, timeout=120)\n"
        "e.close()\n"
        "print('refused' if stranger.returncode else 'let in')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip().endswith("refused"), done.stdout + done.stderr
