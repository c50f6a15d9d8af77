"""Step times: the same prices as whole requests, sums over growing contexts, chunks and verification."""

import numpy as np
import pytest

from costmodels.analytical import Analytical
from costmodels.steps import Steps
from dse.designs import DesignBatch
from dse.hardware import read_hardware
from dse.model import read_model
from dse.params import Choice
from dse.problem import TARGET, Problem
from dse.scenario import Scenario
from dse.schema import Schema
from dse.testing.samples import small_problem, small_space

CASES = [
    ("llama-3.1-8b", "h100-sxm-80gb", {"prompt_tokens": 512, "output_tokens": 512}),
    ("llama-3.1-8b", "h100-sxm-80gb", {"prompt_tokens": 128, "output_tokens": 4096, "batch": 64}),
    ("qwen2.5-vl-3b", "npu-template", {"prompt_tokens": 96, "output_tokens": 1500}),
    ("gemma-3-4b", "l40s", {"prompt_tokens": 900, "output_tokens": 400, "batch": 8}),
    ("deepseek-v2-lite", "h100-sxm-80gb", {"prompt_tokens": 500, "output_tokens": 2000, "batch": 8}),
]


def _steps(model, hardware, scenario):
    problem = Problem({TARGET: read_model(model)}, Scenario(**scenario), read_hardware(hardware))
    return Steps(problem, TARGET), DesignBatch(Schema(problem), {}, 1)


def test_the_prompt_of_a_full_hd_image_in_qwen_has_2691_visual_tokens():
    """1920 x 1080 rounds to 69 x 39 tokens of 28 x 28 pixels; with two delimiters and the text."""
    steps, batch = _steps(
        "qwen2.5-vl-7b", "h100-sxm-80gb", {"images": 1, "image_px": (1920, 1080), "prompt_tokens": 25}
    )
    assert steps.workload.prompt_tokens(batch) == 69 * 39 + 2 + 25 == 2691 + 27


@pytest.mark.validates("policy", "prices of passes, summed", "whole requests of `analytical`", "equal to 1e-12")
@pytest.mark.parametrize("hardware", ["npu-template", "h100-sxm-80gb"])
def test_passes_of_a_request_cost_what_the_request_costs(hardware):
    # Four-bit activations are beyond an H100.
    space = small_space(small_problem(hardware=hardware, output_tokens=2), act_bits=Choice(8, 16, per="component"))
    batch = space.decode(space.sample(12, np.random.default_rng(1)))
    values = Analytical().prepare(space.schema.problem).evaluate(batch).values
    steps = Steps(space.schema.problem, TARGET)
    ok = np.isfinite(values["latency_s"])
    assert ok.any()
    prompt = steps.workload.prompt_tokens(batch)
    decode = steps.decode(batch, prompt + 1)
    whole = steps.encode(batch).plus(steps.whole_prefill(batch)).plus(decode)
    np.testing.assert_allclose(whole.seconds[1][ok], values["latency_s"][ok], rtol=1e-12)
    np.testing.assert_allclose(decode.seconds[1][ok], values["tpot_s"][ok], rtol=1e-12)
    np.testing.assert_allclose(whole.joules[1][ok] / batch["batch"][ok], values["energy_j"][ok], rtol=1e-9)


@pytest.mark.parametrize(("model", "hardware", "scenario"), CASES)
def test_three_nodes_stand_for_every_step_of_a_growing_context(model, hardware, scenario, validated):
    steps, batch = _steps(model, hardware, scenario)
    n, first = scenario["output_tokens"] - 1, steps.workload.prompt_tokens(batch) + 1
    each = steps.decode(batch.take(np.zeros(n, int)), first + np.arange(n))
    found = steps.decoding(batch, first, n)
    # The accelerator is off by what rounds up to whole tiles, a device by the curvature of its smooth maxima.
    assert found.seconds[1] == pytest.approx(each.seconds[1].mean(), rel=2e-4)
    assert found.joules[1] == pytest.approx(each.joules[1].mean(), rel=2e-4)
    mean = Analytical().prepare(batch.schema.problem).evaluate(batch).values["tpot_s"]
    off = [float(abs(seconds / each.seconds[1].mean() - 1)[0]) for seconds in (mean, found.seconds[1])]
    where = f"{model}, {hardware}, batch {scenario.get('batch', 1)}, context {first[0]:g} to {first[0] + n - 1:g}"
    validated(
        "step times", f"seconds of decoding, {where}", "the sum over every step", n,
        {"`analytical`, a mean pass, off by {}": off[0], "three nodes off by {}": max(off[1], 1e-9)}, "2e-4", digits=1,
    )  # fmt: skip


def test_panels_end_where_fixed_chunks_begin():
    """Llama-4 attends within chunks of 8,192: spans jump from 8,192 to 1 in the middle of this output."""
    scenario = {"prompt_tokens": 8000, "output_tokens": 600, "batch": 8}
    steps, batch = _steps("llama-4-scout-17b-16e", "h200-sxm-141gb", scenario)
    each = steps.decode(batch.take(np.zeros(599, int)), 8001.0 + np.arange(599))
    assert steps.decoding(batch, np.array([8001.0]), 599).seconds[1] == pytest.approx(each.seconds[1].mean(), rel=1e-4)


def test_a_chunked_prefill_reads_the_weights_once_per_chunk():
    """The operations are the same; what chunks add is weights, and keys and values of earlier chunks."""
    steps, batch = _steps("llama-3.1-8b", "h100-sxm-80gb", {"prompt_tokens": 2048, "output_tokens": 8})
    whole, cut = steps.whole_prefill(batch), steps.whole_prefill(batch, np.array([512.0]))
    weights = 2.0 * (8030261248 - 128256 * 4096)  # 16 bits, without the token table
    extra = cut.dram_bytes - whole.dram_bytes
    assert 3 * weights < extra < 3 * weights + 0.1 * weights
    assert cut.seconds[1] > whole.seconds[1]
    ragged = steps.whole_prefill(batch, np.array([1500.0]))
    assert whole.seconds[1] < ragged.seconds[1] < cut.seconds[1]


def test_verification_of_one_token_is_a_decode_step_and_grows_with_tokens():
    steps, batch = _steps("llama-3.1-8b", "h100-sxm-80gb", {"prompt_tokens": 512, "output_tokens": 8, "batch": 64})
    rows = batch.take(np.zeros(6, int))
    tokens = np.array([1.0, 2.0, 5.0, 9.0, 33.0, 65.0])
    checked = steps.verify(rows, tokens, 512.0 + tokens)
    assert checked.seconds[1][0] == steps.decode(batch, np.array([513.0])).seconds[1][0]
    assert (np.diff(checked.seconds[1]) > 0).all()
    # 64 x 65 rows are beyond the ridge of 295: compute-bound, so in proportion to the rows and far from free.
    assert checked.seconds[1][-1] > 5 * checked.seconds[1][0]


def test_rows_do_not_depend_on_their_neighbours():
    problem = small_problem()
    space = small_space(problem)
    batch = space.decode(space.sample(5, np.random.default_rng(3)))
    steps = Steps(problem, TARGET)
    together = steps.decoding(batch, steps.workload.prompt_tokens(batch) + 1, 9.0)
    for row in range(5):
        one = batch.take([row])
        alone = steps.decoding(one, steps.workload.prompt_tokens(one) + 1, 9.0)
        assert alone.seconds[1][0] == together.seconds[1][row]
