"""Several devices against counts done by hand and laws of parallelism."""

from __future__ import annotations

import numpy as np
import pytest

from costmodels import collectives
from costmodels.constants import shipped
from costmodels.sharding import Layout, Sharding
from costmodels.workload import Workload
from dse import catalogue
from dse.hardware import read_hardware
from dse.metrics import Status
from dse.model import read_model
from dse.params import Choice
from dse.problem import Problem
from dse.scenario import Scenario
from dse.space import Space

KNOBS = ("n_devices", "tensor_parallel", "pipeline_parallel", "expert_parallel", "batch")


def problem(model="llama-3.1-8b", hardware="h100-sxm-80gb", prompt=1024, output=2, **more):
    return Problem(
        {"target": read_model(model)}, Scenario(prompt_tokens=prompt, output_tokens=output, **more),
        read_hardware(hardware),
    )  # fmt: skip


def designs(of, rows, **fixed):
    """Designs of (n, t, p, e, batch), one row each."""
    columns = {name: sorted({row[i] for row in rows}) for i, name in enumerate(KNOBS)}
    space = Space(
        {name: Choice(*values) for name, values in columns.items()} | {k: Choice(v) for k, v in fixed.items()}
    )
    bound = space.bind(of)
    codes = np.repeat(bound.reference_codes()[:1], len(rows), axis=0)
    for at, parameter in enumerate(bound.parameters):
        name = parameter.knobs[0]
        if name in KNOBS:
            codes[:, at] = [list(parameter.levels).index(row[KNOBS.index(name)]) for row in rows]
    return bound.decode(codes)


def evaluate(of, rows, **fixed):
    return catalogue.cost_model("analytical").prepare(of).evaluate(designs(of, rows, **fixed))


def communication(of, row):
    evaluator = catalogue.cost_model("analytical").prepare(of)
    found = next(b for b in evaluator.breakdown(designs(of, [row])) if b.metric == "latency_s")
    parts = zip(found.labels, found.parts[0], strict=True)
    return {label[1]: value for label, value in parts if label[3] == "communication"}


@pytest.mark.validates("devices", "weights and caches of one of eight devices", "by hand", "equal")
def test_weights_and_keys_of_one_of_eight_devices_by_hand():
    """Llama-3.1-8B over 8: all matrices and both tables divide by 8 (8 key-value heads), 65 norms are copied."""
    result = evaluate(problem(), [(8, 8, 1, 1, 4)])
    norms = 65 * 4096
    assert result.values["weight_bytes"][0] == 2 * ((8_030_261_248 - norms) / 8 + norms)
    assert result.values["kv_bytes"][0] == 4 * 1026 * 131_072 / 8


def test_keys_are_copied_beyond_the_key_value_heads_and_a_latent_always():
    """Qwen2.5-VL-3B has 2 key-value heads, DeepSeek-V2-Lite one latent of 576 elements in 27 blocks."""
    two = evaluate(problem("qwen2.5-vl-3b"), [(1, 1, 1, 1, 1), (2, 2, 1, 1, 1), (4, 4, 1, 1, 1)]).values["kv_bytes"]
    assert two[1] == two[2] == two[0] / 2
    latent = evaluate(problem("deepseek-v2-lite"), [(1, 1, 1, 1, 1), (4, 4, 1, 1, 1)]).values["kv_bytes"]
    assert latent[0] == latent[1] == 1026 * 27 * 576 * 2


@pytest.mark.validates("devices", "all-reduces of tensor parallelism", "Megatron's counts", "equal")
def test_megatron_counts_of_all_reduces():
    """Two per block and one after the token table, of rows x 4096 x 2 bytes; one all-gather of 128,256 logits."""
    of = problem(prompt=512)
    device = of.hardware
    k = shipped().find(device, "allreduce", "bfloat16").constants
    n, link = np.array([4.0]), device.link_bytes_per_s
    for phase, rows in (("prefill", 512), ("decode", 1)):
        reduce = collectives.all_reduce_s(np.array([rows * 4096 * 2.0]), n, link, k)[0]
        gather = collectives.all_gather_s(np.array([128_256 * 2.0]), n, link, k)[0]
        assert communication(of, (4, 4, 1, 1, 1))[phase] == pytest.approx(65 * reduce + gather)


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gemma-3-4b", "mixtral-8x7b", "deepseek-v2-lite", "starcoder2-15b"])
def test_every_sequential_block_reduces_twice(model):
    """Shared and routed experts are summed before they are reduced."""
    of = problem(model)
    sharding = Sharding(Workload(of), designs(of, [(1, 1, 1, 1, 1)]).schema)
    n_blocks = sum(b.component == "decoder" for b in of.target.blocks)
    for phase in ("prefill", "decode"):
        assert sum(len(p.blocks) for p in sharding.phases[phase].points) == 2 * n_blocks + 1


def test_products_of_all_devices_do_the_work_of_one():
    """Multiply-accumulates and weight bytes of t devices add up to those of one, but for what is copied."""
    of = problem("mixtral-8x7b")
    workload = Workload(of)
    batch = designs(of, [(4, 4, 1, 1, 8), (4, 4, 1, 2, 8), (4, 4, 1, 4, 8)])
    sharding, layout = Sharding(workload, batch.schema), Layout.of(batch)
    for phase in workload.size(batch, layout.micro_requests).phases:
        whole, own = phase.gemms.planes, sharding.phases[phase.name].shard(phase.gemms, layout).planes
        split = sharding.phases[phase.name].split != 0
        for i in range(3):
            work = [p[0, i] * p[1, i] * p[2, i] * p[3, i] for p in (whole, own)]
            assert 4 * work[1][split].sum() == pytest.approx(work[0][split].sum())
            stored = [p[0, i] * p[6, i] for p in (whole, own)]
            assert 4 * stored[1][split].sum() == pytest.approx(stored[0][split].sum())


def test_one_request_gains_nothing_from_stages_but_memory():
    one, two = (evaluate(problem(), [row]).values for row in ((1, 1, 1, 1, 1), (2, 1, 2, 1, 1)))
    assert one["ttft_s"][0] < two["ttft_s"][0] < 1.01 * one["ttft_s"][0]
    assert 0.45 < two["memory_bytes"][0] / one["memory_bytes"][0] < 0.6


def test_the_bubble_of_a_pipeline():
    """8 requests over 4 stages are 4 micro-batches of 2: (4 + 3) / 4 of the time of one through all stages."""
    stages, alone = (evaluate(problem(), [row]).values for row in ((4, 1, 4, 1, 8), (1, 1, 1, 1, 2)))
    assert stages["prefill_s"][0] == pytest.approx(7 / 4 * alone["prefill_s"][0], rel=0.01)
    assert stages["tpot_s"][0] == pytest.approx(alone["tpot_s"][0], rel=0.02)


def test_replicas_divide_the_batch():
    many, one = (evaluate(problem(), [row]).values for row in ((4, 1, 1, 1, 16), (1, 1, 1, 1, 4)))
    assert many["latency_s"][0] == one["latency_s"][0]
    assert many["memory_bytes"][0] == one["memory_bytes"][0]
    assert many["throughput_tokens_per_s"][0] == pytest.approx(4 * one["throughput_tokens_per_s"][0])
    assert many["cost_usd"][0] == pytest.approx(one["cost_usd"][0])


def test_spread_experts_send_tokens_out_and_back():
    """Mixtral, 8 replicas of 4 requests share 8 experts: per block two all-to-alls of 4 x 2 x 4096 x 2 bytes."""
    of = problem("mixtral-8x7b")
    k = shipped().find(of.hardware, "allreduce", "bfloat16").constants
    sent = np.array([4 * 2 * 4096 * 2.0])
    expected = 32 * 2 * collectives.all_to_all_s(sent, np.array([8.0]), of.hardware.link_bytes_per_s, k)[0]
    assert communication(of, (8, 1, 1, 8, 32))["decode"] == pytest.approx(expected)
    # Inside a replica the all-reduce sums the parts: as many bytes as without experts' parallelism.
    assert communication(of, (8, 8, 1, 8, 32)) == communication(of, (8, 8, 1, 1, 32))


@pytest.mark.parametrize(
    ("model", "hardware", "row", "said"),
    [
        ("llama-3.1-8b", "h100-sxm-80gb", (3, 3, 1, 1, 1), "2 prefill attention heads are left over"),
        ("llama-3.1-8b", "h100-sxm-80gb", (4, 8, 1, 1, 1), "is 8 devices, the design has 4 (over by 4)"),
        ("llama-3.1-8b", "h100-sxm-80gb", (6, 4, 1, 1, 1), "2 devices are left over"),
        ("llama-3.1-8b", "h100-sxm-80gb", (64, 1, 64, 1, 1), "64 pipeline stages for 32 decoder blocks (over by 32)"),
        ("llama-3.1-8b", "h100-sxm-80gb", (2, 1, 1, 2, 1), "expert_parallel=2 for 1 experts"),
        ("mixtral-8x7b", "h200-sxm-141gb", (3, 1, 1, 3, 1), "2 experts are left over"),
        ("mixtral-8x7b", "h200-sxm-141gb", (2, 1, 1, 4, 1), "2 replicas are left over"),
        ("llama-3.1-8b", "l4", (2, 2, 1, 1, 1), "how many l4 a node has is not known"),
        ("llama-3.1-8b", "mi300x", (16, 16, 1, 1, 1), "no link between nodes of mi300x is known: 8 device(s)"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_name_and_amount(model, hardware, row, said):
    result = evaluate(problem(model, hardware), [row])
    assert result.status[0] == Status.INFEASIBLE
    assert said in result.reason(0)


def test_between_nodes_is_slower_than_within():
    near, far = evaluate(problem("llama-3.1-70b", prompt=4096), [(8, 8, 1, 1, 1), (16, 16, 1, 1, 1)]).values["ttft_s"]
    assert far > near


def test_rows_of_one_and_of_many_devices_stand_beside_each_other():
    rows = [(1, 1, 1, 1, 8), (2, 2, 1, 1, 8), (4, 2, 2, 1, 8), (3, 3, 1, 1, 8), (1, 1, 1, 1, 1)]
    whole = evaluate(problem(), rows)
    for i, row in enumerate(rows):
        one = evaluate(problem(), [row])
        for name in whole.values:
            assert np.array_equal(whole.values[name][i], one.values[name][0], equal_nan=True), (row, name)


def test_breakdown_of_many_devices_adds_up():
    of = problem("mixtral-8x7b")
    batch = designs(of, [(8, 2, 2, 1, 16), (8, 1, 1, 8, 16)])
    evaluator = catalogue.cost_model("analytical").prepare(of)
    values = evaluator.evaluate(batch).values
    for part in evaluator.breakdown(batch):
        assert part.parts.sum(axis=1) == pytest.approx(values[part.metric])
