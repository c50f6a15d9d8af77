"""Sizes against the model's own exact counts, and against sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.products import B_BYTES, COUNT, K, M, N
from costmodels.workload import Workload, mean_chunk, mean_span
from dse.designs import DesignBatch
from dse.hardware import read_hardware
from dse.model import model_names, read_model
from dse.model.images import resized
from dse.params import Choice
from dse.problem import Problem, WeightFormat
from dse.scenario import Scenario
from dse.schema import Schema
from dse.space import Space
from dse.testing.samples import small_model, small_problem


def sizes_of(problem, **values):
    space = Space({name: Choice(value) for name, value in (values or {"batch": problem.scenario.batch}).items()})
    bound = space.bind(problem)
    return Workload(problem).size(bound.decode(bound.reference_codes()))


def problem_of(name, **scenario):
    model = read_model(name)
    request = {
        "prompt_tokens": 37,
        "output_tokens": 1,
        "images": int(model.image_rule is not None),
        "image_px": (640, 480),
    }
    request |= {"audio_s": 12.5 if model.audio_rule is not None else 0.0} | scenario
    return Problem({"target": model}, Scenario(**request), read_hardware("h200-sxm-141gb"))


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("requests", [1, 3])
def test_operations_equal_the_models_exact_count(name, requests):
    """Two ways to the same number: arrays of products here, a walk over operators with exact masks there."""
    problem = problem_of(name)
    model = problem.target
    layout = model.visual_layout(480, 640) if problem.scenario.images else None
    audio = model.audio_layout(12.5) if problem.scenario.audio_s else None
    prompt = 37
    for part in (layout, audio):
        prompt += part.n_tokens + part.extra_tokens if part else 0
    rows, spans = {}, {}
    for part in filter(None, (layout, audio)):
        rows |= {k: requests * v for k, v in part.rows().items()}
        spans |= part.spans()
    sizes = sizes_of(problem, batch=requests)
    for phase in sizes.phases:
        p = phase.gemms.planes
        found = (2 * p[COUNT] * p[M] * p[K] * p[N] * phase.gemms.visible_ratio).sum()
        positions = prompt if phase.name == "prefill" else prompt + 1
        tokens = prompt if phase.name == "prefill" else 1
        bound_rows = rows | {"token": requests * tokens, "last": requests}
        expected = model.flops(phase.name, bound_rows, spans | {"context": positions}, sequences=requests)
        assert found == pytest.approx(expected, rel=1e-12), phase.name


def test_a_7b_vision_language_model_at_4_bits():
    """LLaVA-1.5-7B, weights of 4 bits in groups of 128 with a 16-bit scale and a 4-bit zero point.

    Parameters 7,063,427,072, of which norms, biases, position and class embeddings stay at 16 bits:
        vision: 24 x (2 norms x 2 x 1024 + 6 biases: 4 x 1024 + 4096 + 1024) = 24 x 13,312 = 319,488
                2 norms x 2 x 1024 + class 1024 + positions 577 x 1024 = 596,992 -> 595,968 + 1,024
        projector biases 2 x 4096 = 8,192; decoder norms (2 x 32 + 1) x 4096 = 266,240
    The rest is quantised: 4 bits + (16 + 4) / 128 bits of group data = 4.15625 bits each.
        (7,063,427,072 - 1,190,912) x 4.15625 / 8 + 1,190,912 x 2 = 3,671,427,000 B or 3.42 GiB, to 1 % (the patch
        embedding's last group is part-filled).
    """
    sizes = sizes_of(problem_of("llava-1.5-7b"), weight_bits=4)
    plain = 24 * 13_312 + 596_992 + 8_192 + 266_240
    by_hand = (7_063_427_072 - plain) * 4.15625 / 8 + plain * 2
    assert sizes.weight_bytes[0] == pytest.approx(by_hand, rel=1e-4)
    assert sizes.weight_bytes[0] == pytest.approx(3.4193 * 2**30, rel=0.01)


@pytest.mark.parametrize("name", model_names())
def test_weights_and_caches_at_16_bits_equal_the_models_counts(name):
    problem = problem_of(name, output_tokens=11)
    model = problem.target
    sizes = sizes_of(problem, batch=2)
    assert sizes.weight_bytes[0] == model.weight_bytes()
    prompt, states = 37, 0
    if problem.scenario.images:
        layout = model.visual_layout(480, 640)
        prompt, states = prompt + layout.n_tokens + layout.extra_tokens, layout.n_states
    if problem.scenario.audio_s:
        audio = model.audio_layout(12.5)
        prompt, states = prompt + audio.n_tokens + audio.extra_tokens, states + audio.n_states
    assert sizes.kv_bytes[0] == 2 * model.kv_bytes(prompt + 11, states)


def test_group_data_is_counted_for_part_filled_groups():
    """A weight of 64 x 64 at 4 bits in groups of 48: two groups per output, 64 x (64 x 4 + 2 x 20) bits."""
    problem = Problem(
        {"target": small_model("text")},
        Scenario(prompt_tokens=3, output_tokens=2),
        read_hardware("npu-template"),
        WeightFormat(group_size=48, scale_bits=16, zero_points=True),
    )
    sizes = sizes_of(problem, weight_bits=4)
    decode = next(p for p in sizes.phases if p.name == "decode")
    q_proj = 0  # the first product of a decoder graph
    assert decode.gemms.planes[B_BYTES, 0, q_proj] == 64 * (64 * 4 + 2 * 20) / 8
    plain = Problem(problem.models, problem.scenario, problem.hardware, WeightFormat(48, 16, zero_points=False))
    assert sizes_of(plain, weight_bits=4).weight_bytes[0] < sizes.weight_bytes[0]
    assert sizes_of(plain, weight_bits=16).weight_bytes[0] == sizes_of(problem, weight_bits=16).weight_bytes[0]


def test_channel_groups_mix_widths():
    problem = small_problem("text")
    halves = Space(weight_bits=Choice(4, 16, per="component.module.channel_half")).bind(problem)
    codes = halves.reference_codes()
    first = [i for i, label in enumerate(halves.labels) if "channels 1 of 2" in label]
    codes[0, first] = 0
    mixed = Workload(problem).size(halves.decode(codes)).weight_bytes[0]
    four, sixteen = (sizes_of(problem, weight_bits=b).weight_bytes[0] for b in (4, 16))
    assert mixed == pytest.approx((four + sixteen) / 2, rel=1e-12)


@given(st.integers(1, 3000), st.integers(1, 500), st.integers(1, 2000))
def test_mean_spans_equal_the_sum_over_passes(first, steps, window):
    every = np.arange(first, first + steps)
    at = np.array([[float(first)]])
    assert mean_span(at, steps, 0)[0, 0] == pytest.approx(every.mean())
    assert mean_span(at, steps, window)[0, 0] == pytest.approx(np.minimum(every, window).mean())
    assert mean_chunk(at, steps, window)[0, 0] == pytest.approx(((every - 1) % window + 1).mean())


@pytest.mark.parametrize(
    ("side", "expected"), [(0, (768, 1024)), (1024, (768, 1024)), (512, (384, 512)), (2048, (1536, 2048)), (1, (1, 1))]
)
def test_an_image_is_scaled_by_its_longer_side(side, expected):
    assert resized(768, 1024, side) == expected


def test_visual_tokens_follow_image_size_stride_and_dropping():
    problem = problem_of("qwen2.5-vl-7b", image_px=(1920, 1080))
    tokens = Workload(problem)
    schema = Schema(problem)

    def share(**values):
        arrays = {n: np.full((1, len(schema.fields[n].entries)), v) for n, v in values.items()}
        return tokens.visual_tokens(DesignBatch(schema, arrays)).share[0]

    # 69 x 39 = 2,691 tokens; a stride of 2 leaves 35 x 20; half of them, rounded up, 1,346
    assert share(token_stride=2) == 35 * 20 / 2691
    assert share(visual_token_keep=0.5) == 1346 / 2691
    # 960 x 540 becomes 34 x 19 tokens
    assert share(image_px=960) == 34 * 19 / 2691


def test_context_limits():
    problem = problem_of("llama-3.1-8b", prompt_tokens=100, output_tokens=28)
    sizes = sizes_of(problem, max_context=100)
    assert sizes.limits[0].excess_ratio.tolist() == [0.28]
    assert "needs 128 tokens of context" in sizes.limits[0].describe(0)
    roomy = sizes_of(problem, max_context=4096)
    assert all((limit.excess_ratio == 0).all() for limit in roomy.limits)
    assert roomy.kv_bytes[0] == 4096 * 131_072
    beyond = sizes_of(problem_of("llama-3.1-8b", prompt_tokens=200_000))
    assert any((limit.excess_ratio > 0).all() for limit in beyond.limits)


def test_experts_touched():
    """Uniform independent routing: E (1 - (1 - k/E)^rows); 8 experts, 2 per token, 4 rows: 5.46875."""
    sizes = sizes_of(problem_of("mixtral-8x7b", prompt_tokens=4))
    prefill = next(p for p in sizes.phases if p.name == "prefill")
    counts = set(np.round(prefill.gemms.planes[COUNT, 0][prefill.gemms.is_weight], 6).tolist())
    assert 5.46875 in counts


def test_windows_read_every_position_once():
    """Prefill of Gemma 3, 29 of whose 34 layers look at windows of 1,024: 34 layers x 4 heads x 256 x 2 x 16 bits."""
    problem = problem_of("gemma-3-4b", images=0, image_px=(0, 0), prompt_tokens=4000, output_tokens=2)
    prefill = next(p for p in sizes_of(problem).phases if p.name == "prefill").gemms
    read = (prefill.planes[COUNT] * prefill.planes[B_BYTES])[0, prefill.is_cached].sum()
    assert read == 4000 * 34 * 4 * 256 * 2 * 2 == 4000 * problem.target.kv_bytes_per_token()
    assert prefill.products.windowed.sum() == 2 * 29
