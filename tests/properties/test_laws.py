"""The laws that cost models declare, on drawn designs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse import catalogue
from dse.params import Choice
from dse.testing.laws import LAWS
from dse.testing.samples import small_problem, small_profile, small_space
from dse.testing.strategies import code_rows

# The cost model "measured" needs a checkpoint of the real model: its rows are compared in tests/costmodels/measured.
CASES = [
    (name, law)
    for name in sorted(set(catalogue.listing("cost model")) - {"measured"})
    for law in sorted(catalogue.cost_model(name).laws | {"row_equals_batch"})
]

SPACES = {
    "npu": small_space(),
    "gpu": small_space(small_problem(hardware="b200-sxm-180gb")),
    "text": small_space(small_problem("text", batch=3)),
    "fused": small_space(
        fuse_attention=Choice(False, True, per="component"),
        fuse_mlp=Choice(False, True, per="component"),
        fuse_norm=Choice(False, True, per="component"),
        attn_tile_q=Choice(0, 1, 3, 16),
        attn_tile_kv=Choice(0, 2, 16, 50),
        sram_bytes=Choice("64 KiB", "256 KiB", "1 MiB"),
    ),
}
# The simulator needs an array and refuses devices.
ALL = [(space, *case) for space in SPACES for case in CASES if (space, case[0]) != ("gpu", "simulated")]


@pytest.mark.validates(
    "analytical",
    "drawn designs: more bandwidth or memory, fewer bits, time-like inputs, parts of the breakdown",
    "the laws of each cost model",
    "hold",
)
@pytest.mark.parametrize(("space", "name", "law"), ALL)
@settings(max_examples=25)
@given(data=st.data())
def test_law(space, name, law, data):
    over = SPACES[space]
    if name == "surrogate":  # needs a profile of the model
        problem = over.schema.problem
        over = over.space.bind(replace(problem, quality={"target": small_profile(problem.target)}))
    LAWS[law](catalogue.cost_model(name), over, data.draw(code_rows(over)))


def test_laws_can_fail():
    """A law that nothing can break tests nothing: each is given a model that breaks it."""

    class Bent:
        """The analytical model with one column bent."""

        name, group, fidelity, version, laws = "bent", "hardware", "analytical", "1", frozenset()

        def __init__(self, bend):
            self.bend = bend
            self.inner = None

        def prepare(self, problem):
            made = Bent(self.bend)
            made.inner = catalogue.cost_model("analytical").prepare(problem)
            made.metrics, made.fingerprint = made.inner.metrics, "x"
            return made

        def evaluate(self, batch):
            result = self.inner.evaluate(batch)
            return replace(result, values=dict(result.values) | self.bend(result.values, batch))

        def breakdown(self, batch):
            parts = self.inner.breakdown(batch)
            bent = self.bend({p.metric: p.parts for p in parts}, batch)
            return [replace(p, parts=np.asarray(bent.get(p.metric, p.parts))) for p in parts]

    space = SPACES["npu"]
    codes = space.sample(40, np.random.default_rng(3))

    def by(column, factor):
        return lambda v, b: {column: v[column] * factor(b)} if v[column].ndim == 1 else {}

    broken = {
        "row_equals_batch": by("latency_s", lambda b: 1 + 1e-15 * len(b)),
        "more_bandwidth_never_costs_time": by("latency_s", lambda b: b["dram_bytes_per_s"] ** 2),
        "more_sram_never_costs_time": by("latency_s", lambda b: b["sram_bytes"].astype(float)),
        "more_sram_never_moves_more": by("dram_bytes", lambda b: b["sram_bytes"].astype(float)),
        "fewer_bits_never_cost_bytes": by("weight_bytes", lambda b: 1.0 / b["weight_bits"].mean(axis=1) ** 2),
        "traffic_at_least_compulsory": by("dram_bytes", lambda b: 0.001 + 0 * b["freq_hz"]),
        "time_scales_with_time": lambda v, _: {"latency_s": v["latency_s"] + 1e-6} if v["latency_s"].ndim == 2 else {},
        "breakdown_adds_up": by("energy_j", lambda b: 1.001 + 0 * b["freq_hz"]),
    }
    for law, bend in broken.items():
        with pytest.raises(AssertionError):
            LAWS[law](Bent(bend), space, codes)
    assert set(broken) | {"fewer_bits_never_gain_quality", "roofs_hold"} == set(LAWS)


@pytest.mark.parametrize("bent", ["compute_s", "traffic_s", "seconds"])
def test_roofs_can_fail(bent):
    """Work that its unit, or the memory, cannot do in the time; operators that do not take the latency together."""
    analytical = catalogue.cost_model("analytical")

    class Roofs:
        name = "bent"

        def prepare(self, problem):
            made = Roofs()
            made.inner = analytical.prepare(problem)
            made.metrics, made.fingerprint = made.inner.metrics, "x"
            made.evaluate, made.breakdown = made.inner.evaluate, made.inner.breakdown
            return made

        def roofline(self, batch):
            roof = self.inner.roofline(batch)
            return replace(roof, **{bent: 1.001 * np.maximum(getattr(roof, bent), roof.seconds)})

    space = SPACES["npu"]
    codes = space.sample(10, np.random.default_rng(3))
    LAWS["roofs_hold"](analytical, space, codes)
    with pytest.raises(AssertionError, match=r"faster than the peak|Not equal"):
        LAWS["roofs_hold"](Roofs(), space, codes)
