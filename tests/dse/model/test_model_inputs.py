"""Image and audio rules: published points, hand-made cases, and laws on sizes of any kind."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.errors import UserError
from dse.model import model_names, read_model
from dse.model.images import FixedGrid, SmartResize
from dse.model.tiles import AnyResolution, AspectTiles, SplitTiles

IMAGE_MODELS = [n for n in model_names() if "image" in read_model(n).modalities]
AUDIO_MODELS = [n for n in model_names() if "audio" in read_model(n).modalities]

sides = st.integers(1, 6_000)


def test_full_hd_in_qwen2_5_vl():
    layout = read_model("qwen2.5-vl-7b").visual_layout(1080, 1920)
    assert (layout.grids[0].cols, layout.grids[0].rows) == (69, 39)
    assert layout.n_tokens == 69 * 39 == 2_691
    assert layout.patches == 4 * 2_691
    assert layout.extra_tokens == 2


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        ("llava-1.5-7b", (480, 640), 576),
        ("paligemma-3b-224", (480, 640), 256),
        ("gemma-3-4b", (480, 640), 256),
        ("qwen2-vl-7b", (448, 448), 256),
        ("qwen3-vl-8b", (1024, 1024), 1_024),
        ("internvl3-78b", (448, 448), 256),
        ("internvl3-78b", (448, 896), 3 * 256),  # two tiles and a thumbnail
        ("internvl3-78b", (1344, 1792), 13 * 256),  # 4 x 3 tiles and a thumbnail
        ("smolvlm-2.2b", (1536, 1536), 17 * 81),  # 4 x 4 tiles and a global view
        ("smolvlm-256m", (1024, 2048), 9 * 64),  # 4 x 2 tiles and a global view
        ("llama-4-scout-17b-16e", (336, 336), 144),
        ("llama-4-scout-17b-16e", (672, 672), 5 * 144),
        ("llama-3.2-11b-vision", (560, 560), 0),
    ],
)
def test_visual_tokens(name, size, tokens):
    assert read_model(name).visual_layout(*size).n_tokens == tokens


def test_cross_attention_states_instead_of_tokens():
    model = read_model("llama-3.2-11b-vision")
    assert not model.image_rule.has_tokens
    # A 40 x 40 grid and a class token per tile of 560 pixels; a large square image takes 2 x 2 tiles.
    assert model.visual_layout(560, 560).n_states == 1_601
    layout = model.visual_layout(1_120, 1_120)
    assert layout.n_states == 4 * 1_601
    assert layout.rows() == {"cut": 6_400, "patch": 4 * 1_608, "merged": 6_404, "visual": 0, "state": 6_404}


def test_llava_next_drops_padding_and_adds_newlines():
    rule = AnyResolution(336, 14, ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)))
    square = rule.layout(672, 672)
    # Base view 24 x 24, canvas 48 x 48, one newline per row of the canvas; 5 tiles through the tower.
    assert (square.n_tokens, square.extra_tokens, square.n_sequences) == (576 + 2_304, 48, 5)
    # 336 x 448 on a 336 x 672 canvas: the scale is 1, so 32 of its 48 columns show the image.
    wide = rule.layout(336, 448)
    assert (wide.grids[1].rows, wide.grids[1].cols, wide.extra_tokens) == (24, 32, 24)


def test_a_thumbnail_is_kept_only_for_several_tiles():
    with_one, without = AspectTiles(448, 14, 2), AspectTiles(448, 14, 2, thumbnail=False)
    assert with_one.layout(448, 448).n_sequences == without.layout(448, 448).n_sequences == 1
    assert with_one.layout(448, 896).n_sequences == without.layout(448, 896).n_sequences + 1


def test_separators_of_split_images():
    rule = SplitTiles(512, 16, 4, 2048)
    # 4 x 4 tiles: two tokens before each, one newline per row, three around the global view.
    assert rule.layout(2048, 2048).extra_tokens == 16 * 2 + 4 + 3
    assert SplitTiles(512, 16, 4, 512).layout(300, 512).extra_tokens == 3


def test_a_class_token_may_reach_the_decoder():
    layout = FixedGrid(336, 14, class_token=True, keep_class=True).layout(10, 10)
    assert layout.n_tokens == 577
    assert FixedGrid(336, 14, class_token=True).layout(10, 10).n_tokens == 576


@pytest.mark.parametrize("name", IMAGE_MODELS)
@given(height=sides, width=sides)
def test_layouts_are_consistent(name, height, width):
    model = read_model(name)
    if max(height, width) > 200 * min(height, width):
        return
    layout = model.visual_layout(height, width)
    rows = layout.rows()
    assert rows["patch"] >= rows["cut"] > 0
    assert rows["merged"] == layout.n_merged > 0
    assert layout.n_tokens <= layout.n_merged
    assert (layout.n_tokens > 0) == model.image_rule.has_tokens == (layout.n_states == 0)
    assert layout.strided(1) == layout.n_tokens
    if not model.image_rule.resizes:
        assert layout == model.visual_layout(1, 1)


@pytest.mark.parametrize("name", IMAGE_MODELS)
@given(stride=st.integers(1, 8))
def test_a_stride_pools_each_grid(name, stride):
    layout = read_model(name).visual_layout(700, 1_100)
    by_hand = sum(g.n * math.ceil(g.rows / stride) * math.ceil(g.cols / stride) for g in layout.grids)
    assert layout.strided(stride) == by_hand
    assert layout.strided(stride + 1) <= layout.strided(stride) <= layout.n_tokens


@given(height=sides, width=sides)
def test_resizing_keeps_the_area_within_limits(height, width):
    rule = SmartResize(14, 2, 3_136, 1_003_520)
    if max(height, width) > 200 * min(height, width):
        return
    layout = rule.layout(height, width)
    assert layout.height_px % 28 == 0
    assert layout.width_px % 28 == 0
    # The lower limit holds exactly; a side of one patch may push a very long image over the upper one.
    assert layout.height_px * layout.width_px >= 3_136
    assert layout.height_px * layout.width_px <= 1_003_520 or min(layout.height_px, layout.width_px) == 28


def test_sizes_that_cannot_be():
    model = read_model("qwen2.5-vl-3b")
    with pytest.raises(UserError, match="image 5000x10: one side is more than 200 times the other"):
        model.visual_layout(10, 5_000)
    for bad in (0, -3, 2.5, True, 10**9):
        with pytest.raises(UserError, match="is not a whole number from 1 to 1000000"):
            model.visual_layout(bad, 100)
    with pytest.raises(UserError, match=r"llama-3.1-8b takes no images\n.*it takes text"):
        read_model("llama-3.1-8b").visual_layout(10, 10)
    with pytest.raises(UserError, match=r"qwen2.5-vl-3b takes no audio\n.*text and image"):
        model.audio_layout(1.0)


def test_whisper_windows():
    model = read_model("whisper-large-v3")
    short, long = model.audio_layout(2.5), model.audio_layout(75.0)
    assert (short.n_windows, short.frames, short.n_states) == (1, 1_500, 1_500)
    assert (long.n_windows, long.n_states, long.rows()["mel"]) == (3, 4_500, 9_000)
    assert not model.audio_rule.has_tokens
    assert long.spans() == {"frame": 1_500, "state": 1_500}


def test_qwen2_audio_tokens():
    model = read_model("qwen2-audio-7b")
    assert model.audio_layout(30.0).n_tokens == 750
    # 1 s: 100 frames, halved to 50, pooled to 25; the padded window is computed in full.
    second = model.audio_layout(1.0)
    assert (second.n_tokens, second.pooled, second.rows()["frame"]) == (25, 750, 1_500)
    assert model.audio_layout(45.0).n_tokens == 750 + 375
    assert model.audio_layout(45.0).extra_tokens == 4


@pytest.mark.parametrize("name", AUDIO_MODELS)
@given(seconds=st.floats(0.001, 4_000))
def test_audio_layouts_grow_with_the_clip(name, seconds):
    rule = read_model(name).audio_rule
    shorter, longer = rule.layout(seconds), rule.layout(seconds + 30)
    assert longer.n_windows == shorter.n_windows + 1
    assert longer.n_tokens >= shorter.n_tokens
    assert shorter.n_tokens <= shorter.n_windows * shorter.pooled


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan, True, "3"])
def test_lengths_that_cannot_be(seconds):
    with pytest.raises(UserError, match="is not a length above 0"):
        read_model("whisper-large-v3").audio_layout(seconds)
