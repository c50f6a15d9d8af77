"""The quality prior: what the published rows say, and what they do not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from costmodels.prior import ACCURACY_PER_NAT, KNOWN_FACTOR, UNKNOWN_FACTOR, fits
from dse import catalogue
from dse.hardware import read_hardware
from dse.model import read_model
from dse.params import Choice
from dse.problem import Problem
from dse.scenario import Scenario
from dse.space import Space
from tests.benchmarks import quality


def evaluate(model="llama", hardware="h100-sxm-80gb", **values):
    read = llama() if model == "llama" else read_model(model)
    images = int(read.image_rule is not None)
    scenario = Scenario(images=images, image_px=(336, 336))
    problem = Problem({"target": read}, scenario, read_hardware(hardware))
    space = Space({n: Choice(v) for n, v in values.items()} or {"batch": Choice(1)}).bind(problem)
    result = catalogue.cost_model("prior").prepare(problem).evaluate(space.decode(space.reference_codes()))
    low, high = result.intervals["quality_loss"]
    return float(result.values["quality_loss"][0]), float(low[0]), float(high[0]), read


def llama():
    from dse.model import Model

    config = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }  # fmt: skip
    return Model.from_config(config, name="llama-1-7b")


DECODER_ONLY = {"embed_tokens/weight_bits": 16, "lm_head/weight_bits": 16}


@pytest.mark.parametrize("bits", [6, 8])
def test_milder_than_published_is_bounded_by_the_mildest_published(bits):
    """No row has more than 4 bits: the interval reaches from nothing to what 4 bits may lose, and is not total loss."""
    loss, low, high, model = evaluate(**{"decoder/weight_bits": bits}, **DECODER_ONLY)
    at_4 = evaluate(**{"decoder/weight_bits": 4}, **DECODER_ONLY)
    assert low == 0.0
    assert 0 < loss < at_4[0]
    assert high == pytest.approx(at_4[2])
    assert high < math.log(model.vocab_size)


def test_mild_pruning_is_bounded_by_the_mildest_published():
    loss, low, high, _ = evaluate(ffn_keep=0.95)
    least = fits().pruning_ratio[0]
    assert least == pytest.approx(0.2)
    p, q, s = fits().pruning
    assert low == 0.0
    assert (
        loss < high == pytest.approx(KNOWN_FACTOR * math.exp(p + q * math.log(least) + s * math.log(6.738)), rel=1e-3)
    )


def test_the_lineage_at_another_size_is_not_known():
    from dse.model import Model

    config = {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }  # fmt: skip
    small = Model.from_config(config, name="llama-1.1b")
    problem = Problem({"target": small}, Scenario(), read_hardware("h100-sxm-80gb"))
    space = Space({"decoder/weight_bits": Choice(4), **{n: Choice(v) for n, v in DECODER_ONLY.items()}}).bind(problem)
    result = catalogue.cost_model("prior").prepare(problem).evaluate(space.decode(space.reference_codes()))
    _, high = result.intervals["quality_loss"]
    assert high[0] / result.values["quality_loss"][0] == pytest.approx(UNKNOWN_FACTOR)


def test_nothing_compressed_loses_nothing():
    assert evaluate()[:3] == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("bits", "published"), [(4, 5.85), (4, 5.81), (3, 6.55), (3, 6.46)])
def test_published_perplexities_of_llama_7b_are_inside_the_interval(bits, published):
    """WikiText2 perplexity 5.68 uncompressed; GPTQ and AWQ in groups of 128 (OmniQuant's table)."""
    values = {"decoder/weight_bits": bits, "embed_tokens/weight_bits": 16, "lm_head/weight_bits": 16}
    loss, low, high, _ = evaluate(**values)
    assert low <= math.log(published / 5.68) <= high
    assert high / loss == pytest.approx(KNOWN_FACTOR)


def test_a_family_that_the_table_does_not_have_gets_a_wider_interval():
    values = {"decoder/weight_bits": 4, "embed_tokens/weight_bits": 16, "lm_head/weight_bits": 16}
    loss, low, high, _ = evaluate("qwen2.5-coder-7b", **values)
    assert high / loss == pytest.approx(UNKNOWN_FACTOR)
    assert loss / low == pytest.approx(UNKNOWN_FACTOR)


@pytest.mark.parametrize(
    "values",
    [
        {"vision/weight_bits": 8},
        {"projector/weight_bits": 8},
        {"embed_tokens/weight_bits": 8},
        {"lm_head/weight_bits": 8},
        {"decoder/weight_bits": 2, "embed_tokens/weight_bits": 16, "lm_head/weight_bits": 16},
        {"decoder/act_bits": 4},
        {"vision/act_bits": 8},
        {"kv_bits": 8},
        {"vision/ffn_keep": 0.9},
        {"decoder/block_keep": 0.9},
        {"token_stride": 2},
    ],
)
def test_where_no_data_supports_it_the_interval_spans_to_total_loss(values):
    loss, low, high, model = evaluate("llava-1.5-7b", **values)
    assert 0 < loss < high
    assert high == pytest.approx(math.log(model.vocab_size))
    assert low < loss


@pytest.mark.parametrize("share", [192 / 576, 128 / 576, 64 / 576])
def test_published_token_budgets_of_llava(share):
    loss, low, high, _ = evaluate("llava-1.5-7b", visual_token_keep=share)
    assert low < loss < high < math.log(32_064)
    rows = {192: (88.2, 97.6), 128: (80.4, 94.0), 64: (69.7, 86.9)}[round(share * 576)]
    assert low == pytest.approx((1 - rows[1] / 100) / ACCURACY_PER_NAT)
    assert high == pytest.approx((1 - rows[0] / 100) / ACCURACY_PER_NAT)


def test_a_smaller_image_of_another_model_is_unsupported():
    loss, low, high, model = evaluate("qwen2.5-vl-3b", image_px=112)
    assert loss > 0
    assert (low, high) == (0.0, pytest.approx(math.log(model.vocab_size)))


def test_published_pruning_of_llama_7b():
    """FLAP: 20 % of the block weights gone, perplexity 12.62 -> 14.62 (context 128)."""
    loss, low, high, _ = evaluate(head_keep=0.8, ffn_keep=0.8)
    assert low <= math.log(14.62 / 12.62) <= high
    assert loss < high


def test_loss_never_exceeds_total_loss():
    loss, low, high, model = evaluate(
        "llava-1.5-7b", weight_bits=2, act_bits=4, kv_bits=2, head_keep=0.05, ffn_keep=0.05
    )
    assert loss == high == pytest.approx(math.log(model.vocab_size))
    assert 0 <= low < loss


def test_the_fits_are_those_of_the_table():
    """GPTQ and AWQ rows of LLaMA-1, 3 and 4 bits: loss falls 4 to 6 times per bit and hardly depends on size."""
    a, per_bit, size = fits().weight
    assert 4 < math.exp(per_bit) < 6
    assert abs(size) < 0.25
    assert 0.02 < math.exp(a - 4 * per_bit + size * math.log(6.7)) < 0.04
    assert 1.0 < fits().pruning[1] < 2.0
    assert list(fits().token_share) == sorted(fits().token_share)
    assert np.all(np.diff(fits().token_loss) < 0)


@pytest.mark.parametrize("part", ["sizes_left_out", "families_unseen"])
def test_published_rows_that_were_left_out_of_the_fit(part, validated):
    """Sizes of LLaMA-1 in turn by the fit to the others, and two families that the table of weights does not have."""
    for name, (loss, told, factor) in getattr(quality, part)().items():
        off = np.exp(np.abs(np.log(told / loss)))
        error = 100 * np.abs(np.exp(told - loss) - 1)
        assert off.max() <= factor
        validated(
            "prior", f"loss of weights at 3 and 4 bits, {name} left out", "tables of OmniQuant, EfficientQAT, GPTQ",
            len(loss), {"factor on the loss: median {}": np.median(off), "most {}": off.max(),
                        "error of perplexity: median {} %": np.median(error), "most {} %": error.max()},
            f"interval: factor {factor:g}", digits=2,
        )  # fmt: skip
