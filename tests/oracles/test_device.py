"""The datasheet model against sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from costmodels.constants import shipped
from costmodels.device_kernels import DeviceKernels
from costmodels.kernels import FIELDS
from dse import catalogue
from dse.errors import HardwareError
from dse.hardware import read_hardware
from dse.metrics import Status
from dse.model import read_model
from dse.params import Choice
from dse.problem import Problem
from dse.scenario import Scenario
from dse.space import Space
from dse.testing.samples import small_problem


def evaluate(problem, **values):
    space = Space({n: Choice(v) for n, v in values.items()} or {"batch": Choice(problem.scenario.batch)}).bind(problem)
    return catalogue.cost_model("analytical").prepare(problem).evaluate(space.decode(space.reference_codes()))


PEAK, BANDWIDTH = 989e12, 3.35e12  # of an H100


def one_kernel(
    op, operations, moved, waves=1.0, rows=np.inf, passed=0.0, precision="bfloat16", variant="", fill=np.inf
):
    """The documented form, written anew, with the constants that an H100 borrows."""
    found = shipped().find(read_hardware("h100-sxm-80gb"), op, precision, variant).constants
    k = dict(zip(FIELDS, found.tolist(), strict=True))
    compute = operations / PEAK * (1 + k["block_rows"] / rows) / k["compute_ratio"]
    kept = 1 / (1 + (fill / k["cache_fill_ratio"]) ** 12)
    memory = moved / BANDWIDTH * (1 - kept + kept / k["cache_gain_ratio"]) / k["bandwidth_ratio"]
    blend, overlap = k["blend_exponent"], k["overlap_exponent"]
    work = (compute**blend + memory**blend) ** (1 / blend) * (1 + k["tail_ratio"] / waves)
    work = np.hypot(work, k["chain_ratio"] * memory / waves)
    busy = work + k["pass_ratio"] * passed / BANDWIDTH
    return (k["launch_s"] ** overlap + busy**overlap) ** (1 / overlap)


def gemm(rows, n, k):
    """A product in waves of 128 x 128 tiles over 132 processors."""
    tiles = max(rows / 128, 1) * max(n / 128, 1)
    return one_kernel("gemm", 2 * rows * k * n, 2 * (k * n + rows * (k + n)), rows=tiles / 132)


def llama_layer(rows):
    """Llama-3.1-8B: seven products of a layer, with 16-bit weights and activations."""
    shapes = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14_336), (4096, 14_336), (14_336, 4096)]
    return sum(gemm(rows, n, k) for k, n in shapes)


def head(rows):
    return gemm(rows, 128_256, 4096)


def vector_bytes(rows):
    """Bytes of vector work per layer: two norms 2 x 4096 x 4, rotation of 40 heads x 128 x 4, activation 14,336 x 4,
    product 14,336 x 6, two residuals 2 x 4096 x 6; at 0.8 of the bandwidth."""
    return rows * (2 * 4096 * 4 + 5120 * 4 + 14_336 * 10 + 2 * 4096 * 6)


def test_decode_of_an_8b_model_is_the_sum_of_its_kernels():
    """One request, context of 2,049 positions: 32 layers and the head, 8 key-value heads of 128 over 132 processors."""
    problem = Problem(
        {"target": read_model("llama-3.1-8b")},
        Scenario(prompt_tokens=2048, output_tokens=2),
        read_hardware("h100-sxm-80gb"),
    )
    result = evaluate(problem)
    attention = one_kernel(
        "generation_attention", 4 * 32 * 2049 * 128, 2 * (2 * 8 * 2049 * 128 + 2 * 32 * 128), waves=8 / 132,
        precision="bfloat16/kv:bfloat16", variant="gqa",
    )  # fmt: skip
    vector = (vector_bytes(1) + 2 * 2 * 1024) / (0.8 * BANDWIDTH)
    expected = 32 * (llama_layer(1) + attention + vector) + head(1)
    assert result.values["tpot_s"][0] == pytest.approx(expected, rel=2e-3)
    # A bound that needs no constants: all weights and keys at full bandwidth.
    weights = (8_030_261_248 - 525_336_576 - 266_240) * 2
    assert result.values["tpot_s"][0] > (weights + 2049 * 131_072) / BANDWIDTH
    assert result.intervals["latency_s"][0][0] < result.values["latency_s"][0] < result.intervals["latency_s"][1][0]
    assert result.basis["latency_s"] == "transferred"
    assert result.basis["memory_bytes"] == "datasheet"


def test_prefill_of_an_8b_model_is_the_sum_of_its_kernels():
    """2,048 tokens; causal attention of 32 heads, whose key-value heads have 4 x 2,048 / 128 = 64 query blocks each.

    Its queries, keys, values and results (42 MB) were just written and are still in the 50 MiB cache, mostly.
    """
    problem = Problem(
        {"target": read_model("llama-3.1-8b")},
        Scenario(prompt_tokens=2048, output_tokens=1),
        read_hardware("h100-sxm-80gb"),
    )
    result = evaluate(problem)
    pairs = 32 * 2048 * 2049 / 2
    moved = 2 * (2 * 8 * 2048 * 128 + 2 * 32 * 2048 * 128)
    attention = one_kernel(
        "context_attention", 4 * pairs * 128, moved, waves=8 * 64 / 132, rows=2048, passed=2 * 8 * 2048 * 128 * 4,
        precision="bfloat16/kv:bfloat16", fill=moved / (50 * 2**20),
    )  # fmt: skip
    expected = 32 * (llama_layer(2048) + attention + vector_bytes(2048) / (0.8 * BANDWIDTH)) + head(1)
    assert result.values["ttft_s"][0] == pytest.approx(expected, rel=2e-3)


def test_narrow_weights_save_bytes_and_narrow_operands_save_time():
    problem = Problem(
        {"target": read_model("llama-3.1-8b")},
        Scenario(prompt_tokens=4096, output_tokens=32),
        read_hardware("h200-sxm-141gb"),
    )
    wide = evaluate(problem, weight_bits=16).values
    weight_only = evaluate(problem, weight_bits=4).values
    both = evaluate(problem, weight_bits=8, act_bits=8).values
    assert weight_only["weight_bytes"][0] < 0.4 * wide["weight_bytes"][0]
    assert weight_only["tpot_s"][0] < both["tpot_s"][0] < wide["tpot_s"][0]
    assert both["prefill_s"][0] < 0.8 * min(wide["prefill_s"][0], weight_only["prefill_s"][0])


def test_the_interval_is_wider_where_constants_are_borrowed():
    def spread(hardware):
        result = evaluate(small_problem("text", hardware=hardware))
        low, high = (end[0] for end in result.intervals["latency_s"])
        return high / low, result.basis["latency_s"]

    own, kin, stranger = spread("h200-sxm-141gb"), spread("h100-sxm-80gb"), spread("tpu-v5e")
    assert own[1] == "calibrated"
    assert kin[1] == stranger[1] == "transferred"
    assert own[0] < kin[0] < stranger[0]


def test_weights_stay_in_the_cache_only_if_all_of_a_pass_fit():
    """In a benchmark a 2 MB weight comes from the cache; in a model of many layers it does not."""
    problem = Problem(
        {"target": read_model("llama-3.1-8b")}, Scenario(prompt_tokens=8, output_tokens=2), read_hardware("l40s")
    )
    evaluator = catalogue.cost_model("analytical").prepare(problem)
    batch = Space(batch=Choice(1)).bind(problem)
    design = batch.decode(batch.reference_codes())
    decode = evaluator.workload.size(design).phases[-1]
    kernels = DeviceKernels(read_hardware("l40s"), shipped())
    assert kernels.fill(decode.gemms)[0, 0] == pytest.approx(7_504_658_432 * 2 / (96 * 2**20), rel=0.01)


@pytest.mark.parametrize(
    ("hardware", "bits", "fits"), [("h100-sxm-80gb", 4, False), ("b200-sxm-180gb", 4, True), ("apple-m4-max", 4, False)]
)
def test_a_precision_that_the_device_lacks_is_infeasible(hardware, bits, fits):
    result = evaluate(small_problem("text", hardware=hardware), weight_bits=bits, act_bits=bits)
    assert (result.status[0] == Status.OK) == fits
    if not fits:
        assert "computes at 8 bit or more, the design asks for 4 bit" in result.reason(0)
        assert np.isnan(result.values["latency_s"][0])


def test_a_model_larger_than_the_memory_is_infeasible_by_the_amount():
    problem = Problem({"target": read_model("llama-3.1-70b")}, Scenario(), read_hardware("a100-80gb-sxm"))
    assert "has 80 GiB (over by 51." in evaluate(problem).reason(0)
    assert evaluate(problem, weight_bits=4).status[0] == Status.OK


def test_cost_is_the_rent_of_the_time():
    problem = small_problem("text", hardware="h100-sxm-80gb")
    result = evaluate(problem)
    assert result.values["cost_usd"][0] == pytest.approx(1.99 / 3600 * result.values["latency_s"][0])


def test_a_device_without_a_peak_is_refused():
    with pytest.raises(HardwareError, match="no compute peak"):
        evaluate(small_problem("text", hardware="rtx-pro-6000-blackwell-server"))


def test_a_device_knob_evaluates_each_design_on_its_device():
    from dse.evaluation import Evaluation

    problem = small_problem("text", hardware="h100-sxm-80gb")
    space = Space(device=Choice("h100-sxm-80gb", "l4", "rtx-pro-6000-blackwell-server"), batch=Choice(1, 2)).bind(
        problem
    )
    evaluation = Evaluation(space, ["analytical", "prior"])
    codes = np.array([[1, 0], [0, 1], [2, 0], [1, 1], [0, 0]])
    hardware = evaluation.evaluate(codes)[0]
    assert hardware.status.tolist() == [0, 0, 2, 0, 0]
    assert "no compute peak" in hardware.reason(2)
    alone = evaluate(small_problem("text", hardware="l4"))
    assert hardware.values["latency_s"][0] == alone.values["latency_s"][0]
    assert len(evaluation.fingerprints()) == 2
