"""Counts against reference figures and sums done by hand."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.errors import UserError
from dse.model import Model, model_names, read_model
from dse.model.counting import attended
from dse.model.read import published

HUB = json.loads((Path(__file__).parent / "hub.json").read_text())["configs"]
EXPECTED = json.loads((Path(__file__).parent / "expected_counts.json").read_text())["models"]


@pytest.mark.validates(
    "models",
    "parameters, weight and cache bytes, products per token, models of the catalogue",
    "an independent count from each configuration",
    "equal",
)
@pytest.mark.parametrize("name", EXPECTED)
def test_counts_equal_the_reference_to_the_unit(name):
    model, expected = read_model(name), EXPECTED[name]
    counted = {
        "n_params": model.n_params,
        "n_active_params": model.n_active_params,
        "weight_bytes": model.weight_bytes(),
        "kv_bytes_per_token": model.kv_bytes_per_token(),
        "decode_matmul_flops_per_token": model.decode_matmul_flops_per_token,
    }
    assert {k: counted[k] for k in expected if k in counted} == {k: v for k, v in expected.items() if k in counted}


def test_mixtral_8x22b_is_exact():
    model = read_model("mixtral-8x22b")
    assert model.n_params == 140_620_634_112
    assert model.n_active_params == 39_152_031_744


@pytest.mark.parametrize("name", [n for n in EXPECTED if "n_encoder_params" in EXPECTED[n]])
def test_encoder_parameters_equal_the_reference(name):
    # The reference counts a merger or projector with the tower where it lies inside the tower's path (Qwen2-VL,
    # Llama-3.2), and the tower alone elsewhere.
    model = read_model(name)
    tower = params(model, "vision")
    whole = tower + params(model, "projector")
    assert EXPECTED[name]["n_encoder_params"] in (tower, whole)


def params(model, component):
    return sum(
        m.n_params(*model.units.get((m.component, m.block), (0, 0))) for m in model.modules if m.component == component
    )


@pytest.mark.parametrize("name", model_names())
def test_published_figures_in_the_catalogue_hold(name):
    model, quoted = read_model(name), published(name)
    counted = {
        "n_params": model.n_params,
        "n_active_params": model.n_active_params,
        "weight_bytes": model.weight_bytes(),
        "kv_per_token_bytes": model.kv_bytes_per_token(),
        "decode_matmul_flops": model.decode_matmul_flops_per_token,
    }
    assert {key: counted[key] for key in quoted} == dict(quoted)


@pytest.mark.validates("models", "parameters of released checkpoints", "the hub's figures", "equal")
@pytest.mark.parametrize("name", HUB)
def test_parameters_of_released_checkpoints(name):
    assert Model.from_config(HUB[name]["config"], name).n_params == HUB[name]["n_params"]


@pytest.mark.parametrize(
    ("name", "n_bytes"),
    [
        ("llama-3.1-8b", 131_072),  # 2 * 32 layers * 8 heads * 128 * 2 B
        ("qwen2-vl-7b", 57_344),  # 2 * 28 * 4 * 128 * 2
        ("llava-1.5-7b", 524_288),  # 2 * 32 * 32 * 128 * 2
        ("deepseek-v3", 70_272),  # 61 * (512 + 64) * 2
        ("gemma-3-4b", 139_264),  # 2 * 34 * 4 * 256 * 2
        ("llama-3.2-11b-vision", 131_072),  # 2 * 32 self-attention layers * 8 * 128 * 2
        ("llama-3.2-90b-vision", 327_680),  # 2 * 80 * 8 * 128 * 2
        ("whisper-large-v3", 163_840),  # 2 * 32 * 1280 * 2
    ],
)
def test_cache_bytes_per_token(name, n_bytes):
    assert read_model(name).kv_bytes_per_token() == n_bytes


def test_cache_bytes_per_encoder_state():
    # Keys and values of 8 cross-attention layers with 8 heads of 128, of 32 layers with 1280 features.
    assert read_model("llama-3.2-11b-vision").kv_bytes_per_state() == 2 * 8 * 8 * 128 * 2
    assert read_model("whisper-large-v3").kv_bytes_per_state() == 2 * 32 * 1280 * 2
    assert read_model("llama-3.1-8b").kv_bytes_per_state() == 0


def test_cache_widths_apply_to_keys_and_values_apart():
    model = read_model("llama-3.1-8b")
    assert model.kv_bytes_per_token(8, 4) == 32 * 8 * 128 * (8 + 4) // 8
    assert read_model("deepseek-v3").kv_bytes_per_token(8, 4) == 61 * 576  # the latent is a key, there is no value


def test_windows_cap_the_cache():
    model = read_model("gemma-3-4b")
    per_layer = 2 * 4 * 256 * 2
    assert model.kv_bytes(1_000) == 34 * per_layer * 1_000
    # Of 34 layers every sixth is global: 5 of them; the other 29 keep 1,024 positions.
    assert model.kv_bytes(5_000) == per_layer * (5 * 5_000 + 29 * 1_024)


def test_states_add_to_the_cache():
    model = read_model("llama-3.2-11b-vision")
    assert model.kv_bytes(100, 1_601) == 100 * model.kv_bytes_per_token() + 1_601 * model.kv_bytes_per_state()


@pytest.mark.validates("models", "weights of a 7B vision-language model at 4 bits", "by hand", "within 1 %")
def test_weights_of_a_7b_model_at_4_bits():
    # 7,063,427,072 parameters * 4 bit / 8
    assert read_model("llava-1.5-7b").weight_bytes(4) == 3_531_713_536


def test_flops_of_a_dense_model():
    model = read_model("llama-3.1-8b")
    # One layer: q and o 4096 x 4096, k and v 4096 x 1024, gate, up and down 4096 x 14336.
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert layer == 218_103_808
    head = 4096 * 128_256
    # Scores and values: 2 operations * 2 products * 32 heads * 128 elements per (query, key) pair and layer.
    pair = 2 * 2 * 32 * 128 * 32
    prompt = {"token": 1_000, "last": 1}
    assert model.flops("prefill", prompt, {"context": 1_000}) == (
        2 * 1_000 * 32 * layer + 2 * head + pair * (1_000 * 1_001 // 2)
    )
    one = {"token": 1, "last": 1}
    assert model.flops("decode", one, {"context": 501}) == 2 * (32 * layer + head) + pair * 501
    # Four sequences of one prompt are four times one.
    batch = {"token": 4_000, "last": 4}
    assert model.flops("prefill", batch, {"context": 1_000}, 4) == 4 * model.flops(
        "prefill", prompt, {"context": 1_000}
    )


def test_flops_of_a_mixture_of_experts():
    model = read_model("mixtral-8x7b")
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024
    router, expert = 4096 * 8, 3 * 4096 * 14336
    layer = attention + router + 2 * expert  # two experts per token
    head = 4096 * 32_000
    pair = 2 * 2 * 32 * 128 * 32
    assert layer == 394_297_344
    assert model.flops("decode", {"token": 1, "last": 1}, {"context": 500}) == 2 * (32 * layer + head) + pair * 500


def test_flops_of_absorbed_latent_attention():
    model = read_model("deepseek-v2-lite")
    heads, rank, nope, rope, value = 16, 512, 128, 64, 128
    projections = 2048 * heads * (nope + rope) + 2048 * (rank + rope) + heads * value * 2048
    absorbed = heads * nope * rank + heads * rank * value
    dense, shared = 3 * 2048 * 10944, 3 * 2048 * 2816
    routed = 2048 * 64 + 6 * 3 * 2048 * 1408
    weights = 27 * (projections + absorbed) + dense + 26 * (shared + routed) + 2048 * 102_400
    pair = 2 * heads * ((rank + rope) + rank) * 27
    assert model.flops("decode", {"token": 1, "last": 1}, {"context": 1_000}) == 2 * weights + pair * 1_000
    # In prefill the latent is expanded: scores over 192 elements, values over 128, and the expansion per token.
    expanded = rank * heads * (nope + value)
    weights = 27 * (projections + expanded) + dense + 26 * (shared + routed)
    pair = 2 * heads * (nope + rope + value) * 27
    assert model.flops("prefill", {"token": 10, "last": 1}, {"context": 10}) == (
        2 * 10 * weights + 2 * 2048 * 102_400 + pair * 55
    )


def test_flops_of_a_vision_tower():
    model = read_model("llava-1.5-7b")
    layout = model.visual_layout(336, 336)
    # 23 of 24 blocks run: 4 products 1024 x 1024 and 2 of 1024 x 4096 on 577 positions; attention over 577.
    block = 577 * (4 * 1024 * 1024 + 2 * 1024 * 4096) + 2 * 577 * 577 * 1024
    patches = 576 * 3 * 14 * 14 * 1024
    projector = 576 * (1024 * 4096 + 4096 * 4096)
    assert model.flops("encode", layout.rows(), layout.spans()) == 2 * (23 * block + patches + projector)


def test_windowed_attention_of_a_vision_tower():
    model = read_model("qwen2.5-vl-3b")
    layout = model.visual_layout(448, 448)  # 32 x 32 patches
    whole = model.flops("encode", layout.rows(), {"patch": 1_024})
    short = model.flops("encode", layout.rows(), {"patch": 64})
    # Only the 4 blocks with full attention see the difference between 1,024 patches and a window of 64.
    assert whole - short == 4 * 2 * 2 * 1_024 * 1_280 * (1_024 - 64)


def test_a_verification_step_is_decode_with_more_rows():
    model = read_model("qwen2.5-0.5b")
    # 4 rows at positions 97..100 see 97 + 98 + 99 + 100 positions.
    verify = model.flops("decode", {"token": 4, "last": 4}, {"context": 100})
    steps = sum(model.flops("decode", {"token": 1, "last": 1}, {"context": c}) for c in (97, 98, 99, 100))
    assert verify == steps


def test_rows_must_fit_their_sequences():
    model = read_model("qwen2.5-0.5b")
    with pytest.raises(UserError, match="3 rows in 2 sequences of 8 positions cannot be"):
        model.flops("decode", {"token": 3}, {"context": 8}, 2)
    with pytest.raises(UserError, match="9 rows in 1 sequences of 8"):
        model.flops("decode", {"token": 9}, {"context": 8})


@given(st.data())
def test_attended_pairs_equal_a_count_one_by_one(data):
    span = data.draw(st.integers(1, 40))
    queries = data.draw(st.integers(1, span))
    window = data.draw(st.integers(0, 20))
    chunked = data.draw(st.booleans()) and window > 0
    seen = 0
    for position in range(span - queries, span):
        first = 0
        if window:
            first = position // window * window if chunked else max(0, position - window + 1)
        seen += position + 1 - first
    assert attended(queries, span, window=window, chunked=chunked, causal=True) == seen


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 600))
def test_without_a_mask_every_row_sees_its_window(queries, span, window):
    assert attended(queries, span, window=window) == queries * (min(span, window) if window else span)
