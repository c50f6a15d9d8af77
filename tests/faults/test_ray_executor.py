"""What is of Ray alone: who is let in, who is refused, what is told. See test_pools.py for the rest."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from functools import partial

import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)

from dse.errors import UserError
from dse.evaluation import build_evaluation
from dse.execute.on_ray import ray_executor
from dse.testing.samples import small_problem, small_space

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PROBLEM = small_problem()
SPACE = small_space(PROBLEM)


def test_workers_that_cannot_start_are_told_at_once():
    recipe = partial(build_evaluation, PROBLEM.to_json(), SPACE.space.to_json(), ("no-such-model",))
    with pytest.raises(UserError, match="cannot prepare the study"):
        ray_executor(recipe, ["any"], workers=1)


def test_workers_with_other_cost_models_are_refused():
    recipe = partial(build_evaluation, PROBLEM.to_json(), SPACE.space.to_json(), ("prior",))
    with pytest.raises(UserError, match="other cost models"):
        ray_executor(recipe, ["of another version"], workers=1)


def test_no_cluster_at_the_address_is_told():
    code = (
        "from functools import partial; from dse.execute import Means, make_executor\n"
        "from dse.errors import UserError; from dse.evaluation import Evaluation; from dse.testing.samples import *\n"
        "e = Evaluation(small_space(), ('prior',))\n"
        "try:\n    make_executor(Means('ray', ray_address='127.0.0.1:1'), None, e)\n"
        "except UserError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert "no Ray cluster at '127.0.0.1:1'" in done.stdout, done.stdout + done.stderr


START_THAT_FAILS = """
import sys, time
from dse.execute import auto
from dse.testing.samples import small_model
from dse import Choice, Scenario, Space, Study

class Never:  # what Ray raises when its node is not up after thirty seconds: an exception of no class of its own
    def init(**options):
        raise Exception("The current node timed out during startup. This could happen because of many things.\\nMore.")

from dse.execute import on_ray
on_ray.ray.init = Never.init
auto.START_COST_S = auto.WORTH_BATCH_S = 0.0
study = Study(
    "unlucky", model=small_model("text"), scenario=Scenario(prompt_tokens=7, output_tokens=5), hardware="npu-template",
    space=Space(weight_bits=Choice(3, 4, 8, per="block"), pe_rows=Choice(4, 8, 16, 32)),
    objectives="min latency_s, min quality_loss", ask_size=8,
)
results = study.run(24, db=sys.argv[1], executor=sys.argv[2], workers=2, report=lambda _: None)
print(len(results), bool(results.evaluated.all()))
"""


@pytest.mark.parametrize("executor", ["auto", "ray"])
def test_a_ray_that_does_not_start_is_told_in_a_line(tmp_path, executor):
    """Auto goes on with processes; where Ray was asked for by name, that ends the run."""
    done = subprocess.run(
        [sys.executable, "-c", START_THAT_FAILS, str(tmp_path / "a.db"), executor],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    reason = "Ray did not start: The current node timed out during startup. This could happen because of many things."
    if executor == "auto":
        assert (done.stdout.strip(), lines) == ("24 True", [f"no Ray workers: {reason}; worker processes instead"])
        assert done.returncode == 0
    else:
        assert lines[-2:] == [reason, "  --executor process does without it"]
        assert done.returncode == 1


def test_a_stranger_without_the_token_is_turned_away():
    """A local Ray lets in only who has the token of this process."""
    script = (
        "import os, sys; from dse.execute.on_ray import ray_executor; from dse.testing.samples import *\n"
        "import ray, subprocess\n"
        "from functools import partial; from dse.evaluation import build_evaluation\n"
        "s = small_space(); r = partial(build_evaluation, s.schema.problem.to_json(), s.space.to_json(), ('prior',))\n"
        "s_eval = r().fingerprints()\n"
        "e = ray_executor(r, s_eval, workers=1)\n"
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
