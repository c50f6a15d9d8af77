"""The small model of studies/digits_vlm: trained, profiled, predicted, allocated. About two minutes on one core."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from costmodels.losses import Predictor  # noqa: E402
from costmodels.measured import plan  # noqa: E402
from costmodels.measured.profiling import MeasuredProfiling, errors  # noqa: E402
from dse.allocation import Choices, solve  # noqa: E402
from dse.capabilities import ProfileOrder  # noqa: E402
from dse.model import read_model  # noqa: E402
from dse.profile import Configuration, QualityProfile  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]

USER_FILE = Path(__file__).resolve().parents[3] / "studies" / "digits_vlm" / "digits.py"
VALUES = {"weight_bits": (2, 3, 4, 6), "head_keep": (0.75, 0.5), "ffn_keep": (0.75, 0.5)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.set_num_threads(1)
    return runpy.run_path(str(USER_FILE))["train"](tmp_path_factory.mktemp("digits") / "small", "small", 3, 900)


@pytest.fixture(scope="module")
def profiling(weights):
    return MeasuredProfiling(ProfileOrder(str(USER_FILE), str(weights), model=read_model(weights), values=VALUES))


@pytest.fixture(scope="module")
def profile(profiling):
    rows = QualityProfile(profiling.header, tuple(profiling.singles([])))
    return QualityProfile(rows.header, rows.rows, tuple(profiling.configurations(rows, 20, 0)))


def test_it_is_a_llava(weights, profiling):
    """transformers' own forward pass, with the visual tokens in their places, gives the same logits."""
    net = transformers.LlavaForConditionalGeneration.from_pretrained(weights).eval()
    batch = profiling.bench.target.samples[0]
    n = len(batch["question"])
    image = torch.full((n, 16), net.config.image_token_id)
    words = torch.cat([image, batch["question"][:, None], batch["answer"][:, :-1]], dim=1)
    with torch.no_grad():
        logits = net(input_ids=words, pixel_values=batch["pixels"]).logits[:, 16:]
        found, _ = profiling.bench.target.forward(batch)
    assert torch.allclose(found, logits, atol=1e-4)
    description = read_model(weights)
    assert description.n_params == sum(p.numel() for p in net.parameters())


def test_visual_tokens_cost_something(profiling):
    for knob, value in (("visual_token_keep", 0.5), ("token_stride", 2)):
        settings = profiling.settings({knob: {"": value}})
        assert profiling.bench.measure(settings).kl_nats > 0.01


def test_the_surrogate_on_configurations_it_never_saw(profiling, profile):
    rng = np.random.default_rng(11)
    unseen = []
    for _ in range(30):
        chosen = plan.draw(profiling.choices, rng)
        figures = profiling.bench.measure(profiling.settings(chosen), "test_samples")
        unseen.append(Configuration(chosen, figures, held_out=True))
    found = errors(Predictor(profile), unseen)
    assert found["rank"] >= 0.90
    assert found["r2"] >= 0.85
    assert found["kl_rank"] >= 0.90


def test_an_allocated_map_beats_the_uniform_one_of_its_size(profiling, profile):
    rows = [r for r in profile.rows if r.knob == "weight_bits"]
    at = {(r.group, r.value): r.figures.kl_nats for r in rows}
    groups, widths = list(dict.fromkeys(r.group for r in rows)), (2, 3, 4, 6)
    size = {m.path: m.n_weights for m in profiling.bench.anatomy.modules}
    loss = np.array([[at[g, b] for b in widths] for g in groups])
    cost = np.array([[size[g] * b for b in widths] for g in groups], dtype=np.float64)
    best = solve(Choices(loss, cost), 3.0 * sum(size[g] for g in groups))
    maps = {g: widths[c] for g, c in zip(groups, best.chosen, strict=True)}, dict.fromkeys(groups, 3)
    allocated, uniform = (
        profiling.bench.measure(profiling.settings({"weight_bits": m}), "test_samples").kl_nats for m in maps
    )
    assert allocated < uniform
