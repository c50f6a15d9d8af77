"""The cost model "measured": designs on the real model."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from costmodels.measured.bench import Bench  # noqa: E402
from costmodels.measured.compress import Settings  # noqa: E402
from costmodels.measured.cost_model import Measured  # noqa: E402
from costmodels.measured.target import Source  # noqa: E402
from dse import Choice, Float, Scenario, Space, Study, profilefile  # noqa: E402
from dse.capabilities import ProfileOrder  # noqa: E402
from dse.errors import TableError, UserError  # noqa: E402
from dse.hardware import read_hardware  # noqa: E402
from dse.model import read_model  # noqa: E402
from dse.problem import Problem  # noqa: E402
from dse.profile import QualityProfile  # noqa: E402
from dse.testing.conformance import check_cost_model  # noqa: E402

pytestmark = pytest.mark.torch

SCENARIO = Scenario(prompt_tokens=8, output_tokens=2)
SPACE = Space(
    weight_bits=Choice(2, 4, 16, per="block.kind"),
    act_bits=Choice(4, 16, per="component"),
    kv_bits=Choice(2, 16, per="block"),
    head_keep=Float(0.5, 1.0, step=0.5, per="block"),
    ffn_keep=Float(0.5, 1.0, step=0.25, per="block"),
)


@pytest.fixture
def profile(checkpoint, user_file, tmp_path):
    """A profile with its model and samples beside it."""
    weights, file = tmp_path / "weights", tmp_path / "mine.py"
    shutil.copytree(checkpoint, weights)
    shutil.copy(user_file, file)
    out = tmp_path / "p.jsonl"
    order = ProfileOrder(str(file), str(weights), out=str(out), model=read_model(checkpoint))
    profilefile.start(out, Measured().profiling(order).header)
    return out


def problem(checkpoint):
    return Problem({"target": read_model(checkpoint)}, SCENARIO, read_hardware("npu-template"))


def test_it_passes_the_kit(checkpoint, profile):
    check_cost_model(Measured(str(profile)), SPACE.bind(problem(checkpoint)), n_rows=8)


def test_a_design_is_measured_as_what_it_is(checkpoint, profile, tmp_path):
    space = SPACE.bind(problem(checkpoint))
    codes = space.sample(6, np.random.default_rng(0))
    designs = space.decode(codes)
    found = Measured(str(profile)).prepare(problem(checkpoint)).evaluate(designs)
    bench = Bench(Source(str(tmp_path / "mine.py"), str(tmp_path / "weights")), read_model(checkpoint))
    for row in range(6):
        settings = Settings()
        for knob in ("k_bits", "v_bits", "head_keep", "ffn_keep"):
            settings.blocks[knob] = {("decoder", i): float(v) for i, v in enumerate(designs[knob][row])}
        paths = [e.path for e in designs.schema.fields["weight_bits"].entries]
        settings.weight_bits = {p: (int(v),) for p, v in zip(paths, designs["weight_bits"][row], strict=True)}
        paths = [e.path for e in designs.schema.fields["act_bits"].entries]
        settings.act_bits = {p: int(v) for p, v in zip(paths, designs["act_bits"][row], strict=True)}
        expected = bench.measure(settings, "test_samples")
        assert found.values["quality_loss"][row] == pytest.approx(expected.kl_nats, rel=1e-9, abs=1e-12)
        base = bench.metric("test_samples").base
        assert found.values["accuracy_ratio"][row] == pytest.approx(expected.metric / base)
    assert found.basis["quality_loss"] == "measured"


def test_the_uncompressed_design_loses_nothing(checkpoint, profile):
    space = SPACE.bind(problem(checkpoint))
    found = Measured(str(profile)).prepare(problem(checkpoint)).evaluate(space.decode(space.reference_codes()))
    assert found.values["quality_loss"][0] == 0.0
    assert found.values["accuracy_ratio"][0] == 1.0


def test_a_study_measures_in_processes(checkpoint, profile, tmp_path):
    """Workers build the model from the profile: nothing of the user's is pickled, rows are the same."""
    kept = []
    for executor in ("local", "process"):
        study = Study(
            "measured", model=read_model(checkpoint), scenario=SCENARIO, hardware="npu-template", space=SPACE,
            objectives="min latency_s, min quality_loss", cost_models=("analytical", f"measured:{profile}"),
        )  # fmt: skip
        workers = 1 if executor == "process" else 0
        db = tmp_path / f"{executor}.db"
        results = study.run(8, db=db, executor=executor, workers=workers, report=lambda _: None)
        kept.append(results.frame()["quality_loss"].to_numpy())
    assert np.isfinite(kept[0]).all()
    assert np.array_equal(kept[0], kept[1])


def test_what_has_changed_is_not_measured(checkpoint, profile, tmp_path):
    model = Measured(str(profile))
    model.prepare(problem(checkpoint))
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "\n# changed\n")
    with pytest.raises(UserError, match=r"mine\.py' has changed"):
        model.prepare(problem(checkpoint))
    (tmp_path / "mine.py").unlink()
    with pytest.raises(UserError, match="not there"):
        model.prepare(problem(checkpoint))


def test_a_profile_that_moved_with_all_it_is_about(checkpoint, profile, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("p.jsonl", "mine.py", "weights"):
        shutil.move(tmp_path / name, moved / name)
    Measured(str(moved / "p.jsonl")).prepare(problem(checkpoint))


def test_a_profile_of_another_model(profile):
    other = Problem({"target": read_model("qwen2.5-0.5b")}, SCENARIO, read_hardware("npu-template"))
    with pytest.raises(TableError, match="only in"):
        Measured(str(profile)).prepare(other)


def test_without_a_profile(checkpoint):
    with pytest.raises(UserError, match="needs a profile"):
        Measured().prepare(problem(checkpoint))


def test_a_profile_that_was_not_measured(checkpoint, profile, tmp_path):
    from dataclasses import replace

    header = profilefile.read(profile).header
    path = tmp_path / "h.jsonl"
    profilefile.write(path, QualityProfile(replace(header, kind="heuristic")))
    with pytest.raises(UserError, match="heuristic profile"):
        Measured(str(path)).prepare(problem(checkpoint))


def test_a_design_that_cannot_be_measured_fails_alone(checkpoint, profile):
    """Channels of a block that is one fused tensor, say: here a knob that the forward does not take."""
    evaluator = Measured(str(profile)).prepare(problem(checkpoint))
    space = SPACE.bind(problem(checkpoint))
    designs = space.decode(space.sample(3, np.random.default_rng(0)))
    evaluator._bench.anatomy.blocks["decoder", 0].__dict__["channels"] = ()
    found = evaluator.evaluate(designs)
    pruned = designs["ffn_keep"][:, 0] < 1
    assert pruned.any()
    assert set(found.errors) == set(np.flatnonzero(pruned))
    assert "not measurable on this model: ffn_keep of decoder block 0" in found.errors[int(np.flatnonzero(pruned)[0])]
