"""Tiled attention against a loop over all its tiles, written in plain Python, that counts pairs, bytes and products."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.attention import CAUSAL, RECTANGLE, SLIDING, floor_sum, positions_read, split, visits
from costmodels.totals import ACTIVATION_BYTES, KV_BYTES, MACS
from dse import Choice, Scenario, Space, catalogue
from dse.hardware import read_hardware
from dse.metrics import Status
from dse.model import Model, OpKind, read_model
from dse.problem import Problem
from dse.testing.samples import small_model, small_problem


def sees(kind, window, row, position):
    if kind == RECTANGLE:
        return True
    return position <= row and (kind == CAUSAL or position > row - window)


def walk(n_q, n_kv, kind, window, tile_q, tile_kv):
    """Every pair of tiles with a visible score: pairs by whether the tiles are whole, positions, rows x positions."""
    pairs, read, scores, row_visits = {}, 0, 0, 0
    for a in range(0, n_q, tile_q):
        rows = range(a, min(a + tile_q, n_q))
        for start in range(0, n_kv, tile_kv):
            positions = range(start, min(start + tile_kv, n_kv))
            if any(sees(kind, window, row, position) for row in rows for position in positions):
                key = (len(rows) == tile_q, len(positions) == tile_kv)
                pairs[key] = pairs.get(key, 0) + 1
                read += len(positions)
                scores += len(rows) * len(positions)
                row_visits += len(rows)
    return pairs, read, scores, row_visits


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.sampled_from([RECTANGLE, CAUSAL, SLIDING]),
    st.integers(1, 50), st.integers(1, 50),
)  # fmt: skip
def test_visits_equal_a_walk_over_tiles(n_q, other, window, kind, tile_q, tile_kv):
    n_kv = other if kind == RECTANGLE else n_q
    tile_q, tile_kv = min(tile_q, n_q), min(tile_kv, n_kv)
    pairs, read, _, _ = walk(n_q, n_kv, kind, window, tile_q, tile_kv)
    found = visits(float(n_q), float(n_kv), kind, float(window), float(tile_q), float(tile_kv))
    assert list(found) == [pairs.get(key, 0) for key in ((True, True), (True, False), (False, True), (False, False))]
    assert positions_read(found, float(n_kv), float(tile_kv)) == read


@given(st.integers(0, 60), st.integers(1, 50), st.integers(0, 90), st.integers(0, 90))
def test_floor_sum(n, m, a, b):
    assert floor_sum(n, m, a, b) == sum((a * i + b) // m for i in range(n))


def test_a_pass_of_fewer_rows_sees_its_whole_span():
    assert tuple(split(1.0, 640.5, 1, 0, 0)[0]) == (1.0, 1.0, 640.5, RECTANGLE)
    found = visits(1.0, 640.5, RECTANGLE, 640.5, 1.0, 64.0)
    assert list(found) == [10.0, 1.0, 0.0, 0.0]
    assert positions_read(found, 640.5, 64.0) == 640.5


@pytest.mark.parametrize(("n_q", "span", "chunked", "expected"), [(10, 4, 1, [(2, 4, CAUSAL), (1, 2, CAUSAL)])])
def test_chunks_are_attentions_of_their_own(n_q, span, chunked, expected):
    parts = split(float(n_q), float(span), 1, chunked, 1)
    assert [(p.times, p.n_q, p.kind) for p in parts] == expected


CONFIGS = {
    "grouped": {},
    "sliding": {"use_sliding_window": True, "sliding_window": 13, "max_window_layers": 0},
}


def fused(kind="text", config=None, phase="prefill", scenario=None, **fields):
    """Return the planes of the first attention of a phase, the design, and the problem."""
    problem = small_problem(kind, **(scenario or {}))
    if config:
        document = {
            "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 4096,
            "tie_word_embeddings": False, **config,
        }  # fmt: skip
        problem = Problem({"target": Model.from_config(document, name="x")}, problem.scenario, problem.hardware)
    given_fields = {"fuse_attention": True, "batch": 2, "tile_m": 0, "loop_order": "auto", **fields}
    space = Space({k: Choice(v) for k, v in given_fields.items()}).bind(problem)
    batch = space.decode(np.zeros_like(space.reference_codes()))
    evaluator = catalogue.cost_model("analytical").prepare(problem)
    found = {s.phase: s for s in evaluator.schedule(batch)}[phase]
    ops = problem.target.graph(phase).ops
    at = next(i for i, op in enumerate(ops) if op.kind is OpKind.SCORE)
    return found.groups[:, 0, at], evaluator.evaluate(batch), problem


@pytest.mark.validates(
    "fusion", "fused attention: bytes and products, any mask and tiles", "a loop over all pairs of tiles", "equal"
)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("tile_q", "tile_kv"), [(8, 16), (5, 7), (16, 4), (41, 3), (1, 1)])
@pytest.mark.parametrize("bits", [4, 16])
def test_traffic_and_products_equal_a_walk(config, tile_q, tile_kv, bits):
    """41 prompt tokens, 2 requests, 2 key-value heads shared by 2 query heads each, 16 elements per head."""
    planes, result, problem = fused(
        config=CONFIGS[config], scenario={"prompt_tokens": 41, "batch": 2}, attn_tile_q=tile_q, attn_tile_kv=tile_kv,
        kv_bits=bits, sram_bytes=2**20,
    )  # fmt: skip
    assert result.status[0] == Status.OK
    window = next(o.window for o in problem.target.graph("prefill").ops if o.kind is OpKind.SCORE)
    assert window == (13 if config == "sliding" else 0)
    kind = SLIDING if window else CAUSAL
    _, read, scores, _ = walk(41, 41, kind, window, tile_q, tile_kv)
    stored = (bits + (16 + bits) / 128 if bits < 16 else 16) / 8
    times = 2 * 2  # requests, key-value heads
    assert planes[KV_BYTES] == pytest.approx(times * read * 2 * 16 * stored, rel=1e-12)
    assert planes[ACTIVATION_BYTES] == 2 * times * 41 * 2 * 16 * 2  # queries and results, 2 heads each, 16 bits
    assert planes[MACS] == times * 2 * scores * 2 * 16


def test_keys_are_read_once_where_memory_holds_them():
    planes, _, _ = fused(scenario={"prompt_tokens": 700, "batch": 2}, sram_bytes=2**22)
    assert planes[KV_BYTES] == 2 * 2 * 700 * 2 * 16 * 2


@pytest.mark.validates(
    "fusion",
    "reads of keys and values as memory doubles",
    "FlashAttention's bound, arXiv 2205.14135, theorem 2",
    "half, down to compulsory",
)
def test_traffic_falls_with_memory_as_flashattention_says():
    """Theta(N^2 d^2 / M): with memory short of the keys, twice the memory halves what is read of keys and values.

    Dao et al. (arXiv 2205.14135), theorem 2. 4,096 positions, encoder-like (no mask would change the constant alone).
    """
    read = []
    for kib in (64, 128, 256, 512):
        planes, result, _ = fused(
            scenario={"prompt_tokens": 4000, "output_tokens": 2}, batch=1, sram_bytes=kib * 1024, pe_rows=16, pe_cols=16
        )
        assert result.status[0] == Status.OK
        read.append(planes[KV_BYTES])
    compulsory = 2 * 4000 * 2 * 16 * 2
    ratios = [a / b for a, b in itertools.pairwise(read) if b > 2 * compulsory]
    assert ratios
    assert all(1.6 < r < 2.4 for r in ratios)
    assert math.isclose(read[-1], compulsory)


def test_latent_cache_is_read_once_for_keys_and_values():
    problem = Problem(
        {"target": read_model("deepseek-v2-lite")},
        Scenario(prompt_tokens=100, output_tokens=3), read_hardware("npu-template"),
    )  # fmt: skip
    roomy = Problem(
        problem.models, problem.scenario, read_hardware({**problem.hardware.to_json(), "memory_bytes": "1 TiB"})
    )
    space = Space(fuse_attention=Choice(True), batch=Choice(1)).bind(roomy)
    batch = space.decode(np.zeros_like(space.reference_codes()))
    evaluator = catalogue.cost_model("analytical").prepare(roomy)
    planes = {s.phase: s for s in evaluator.schedule(batch)}["decode"].groups[:, 0]
    at = next(i for i, op in enumerate(roomy.target.graph("decode").ops) if op.kind is OpKind.SCORE)
    # Mean context 101.5 over the two decode passes, 512 latent and 64 rotary elements at 16 bits.
    assert planes[KV_BYTES, at] == pytest.approx(101.5 * 576 * 2)


def test_small_model_has_grouped_queries():
    op = next(o for o in small_model("text").graph("prefill").ops if o.kind is OpKind.SCORE)
    assert (op.kv_heads.size(2), op.heads.size(2)) == (2, 4)
