"""Image and audio rules against the released processors, on random sizes. Needs the ``torch`` extra and Pillow."""

from __future__ import annotations

import ast
import importlib.util
import math
import random
from collections import defaultdict, namedtuple
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from dse.model.audio import PooledWindows
from dse.model.images import SmartResize
from dse.model.tiles import AnyResolution, AspectTiles, CanvasTiles, SplitTiles, StateTiles

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("PIL")

pytestmark = pytest.mark.torch

N_SIZES = 2_000


def sizes(n=N_SIZES, largest=5_000):
    """Random (height, width), and the shapes where rules break ties: squares, doubles, exact multiples of tiles."""
    rng = random.Random(7)
    exact = [(a * k, b * k) for a in (1, 2, 3, 4) for b in (1, 2, 3, 4) for k in (28, 336, 364, 384, 448, 512, 560)]
    return exact + [(rng.randint(1, largest), rng.randint(1, largest)) for _ in range(n)]


@pytest.mark.parametrize(
    ("patch", "limits"),
    [(14, (3136, 12845056)), (14, (3136, 1003520)), (16, (65536, 16777216)), (14, (200704, 401408))],
)
def test_smart_resize_is_the_processors(patch, limits):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    rule = SmartResize(patch, 2, *limits)
    for height, width in sizes():
        if max(height, width) > 200 * min(height, width):
            continue
        layout = rule.layout(height, width)
        wanted = smart_resize(height, width, 2 * patch, *limits)
        assert (layout.height_px, layout.width_px) == wanted, (height, width)
        assert layout.n_tokens == wanted[0] * wanted[1] // (4 * patch * patch)


@pytest.mark.parametrize("limits", [(1, 12), (1, 6), (2, 9)])
def test_internvl_tiles_are_the_processors(limits):
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    rule = AspectTiles(448, 14, 2, *limits)
    for height, width in sizes():
        cols, rows = get_optimal_tiled_canvas((height, width), (448, 448), *limits)
        tiles = cols * rows + (cols * rows > 1)
        layout = rule.layout(height, width)
        assert (layout.width_px, layout.height_px) == (448 * cols, 448 * rows), (height, width)
        assert layout.n_tokens == 256 * tiles


def test_llama_vision_tiles_are_the_processors():
    from transformers.models.mllama.image_processing_pil_mllama import get_optimal_tiled_canvas

    for max_tiles in (1, 3, 4, 6):
        rule = StateTiles(560, 14, max_tiles)
        for height, width in sizes():
            canvas = tuple(map(int, get_optimal_tiled_canvas(height, width, max_tiles, 560)))
            layout = rule.layout(height, width)
            assert (layout.height_px, layout.width_px) == canvas, (height, width)
            assert layout.n_states == 1601 * canvas[0] * canvas[1] // 560**2


def test_llava_next_canvas_and_unpadding_are_the_processors():
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

    pinpoints = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    rule = AnyResolution(336, 14, pinpoints)
    stub = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=[list(p) for p in pinpoints]),
        patch_size=14,
        num_additional_image_tokens=1,
        _get_unpadded_features=lambda *a: LlavaNextProcessor._get_unpadded_features(None, *a),
    )
    for height, width in sizes():
        wanted = LlavaNextProcessor._get_number_of_features(stub, height, width, 336, 336) - 1
        layout = rule.layout(height, width)
        assert layout.n_tokens + layout.extra_tokens == wanted, (height, width)


def test_idefics3_tiles_are_the_processors():
    from PIL import Image
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    for tile, longest in ((364, 1456), (384, 1536), (512, 2048), (384, 1000)):
        processor = Idefics3ImageProcessorPil(size={"longest_edge": longest}, max_image_size={"longest_edge": tile})
        rule = SplitTiles(tile, 14, 2, longest)
        for height, width in sizes(n=12, largest=1_200)[:: 1 if tile == 364 else 5]:
            if max(height, width) > 40 * min(height, width):
                continue  # the processor resizes to one pixel, which Pillow refuses
            out = processor(Image.new("RGB", (width, height)), return_row_col_info=True, return_tensors="np")
            rows, cols = out["rows"][0][0], out["cols"][0][0]
            layout = rule.layout(height, width)
            assert layout.n_sequences == out["pixel_values"].shape[1], (height, width)
            assert layout.n_sequences == (rows * cols + 1 if rows * cols else 1)
            assert layout.extra_tokens == 3 + rows * (2 * cols + 1), (height, width)


def test_llama4_canvas_is_the_processors():
    functions = _llama4_functions("get_factors", "find_supported_resolutions", "get_best_fit")
    tile = namedtuple("Size", "height width")(336, 336)
    canvases = torch.tensor(functions["find_supported_resolutions"](max_num_chunks=16, patch_size=tile))
    rule = CanvasTiles(336, 14, 2, 16)
    for height, width in sizes():
        canvas = tuple(functions["get_best_fit"]((height, width), canvases).tolist())
        layout = rule.layout(height, width)
        assert (layout.height_px, layout.width_px) == canvas, (height, width)
        tiles = canvas[0] * canvas[1] // 336**2
        assert layout.n_tokens == 144 * (tiles + (tiles > 1))
        assert layout.extra_tokens == (3 if tiles == 1 else 3 + tiles)


def _llama4_functions(*names):
    """The functions that choose a canvas, without the module around them, which needs torchvision."""
    spec = importlib.util.find_spec("transformers.models.llama4")
    tree = ast.parse((Path(spec.origin).parent / "image_processing_llama4.py").read_text())
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    space = {"torch": torch, "defaultdict": defaultdict, "lru_cache": lru_cache, "math": math, "SizeDict": object}
    exec(compile(ast.Module(wanted, []), spec.origin, "exec"), space)
    return space


def test_qwen2_audio_lengths_are_the_models():
    from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
    from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor

    numpy = pytest.importorskip("numpy")
    extractor, rule = WhisperFeatureExtractor(feature_size=128), PooledWindows(1500)
    for seconds in (0.01, 0.5, 1, 3.333, 7.77, 12.005, 29.99, 30):
        sound = numpy.zeros(int(seconds * 16_000), dtype=numpy.float32)
        mask = extractor(sound, sampling_rate=16_000, return_attention_mask=True, padding="max_length")
        frames = torch.tensor(int(numpy.asarray(mask["attention_mask"]).sum()))
        _, tokens = Qwen2AudioEncoder._get_feat_extract_output_lengths(None, frames)
        assert rule.layout(seconds).n_tokens == int(tokens), seconds
