"""The surrogate: measured groups are reproduced, sums are sums, and intervals say what is not known."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from costmodels.losses import Predictor
from dse import catalogue
from dse.coverage import check_coverage
from dse.errors import TableError, UserError
from dse.params import Choice, Float
from dse.problem import Problem
from dse.profile import (
    Configuration,
    Figures,
    Measurement,
    ProfiledModule,
    ProfileHeader,
    QualityProfile,
    TaskMetric,
)
from dse.space import Space
from dse.testing.samples import small_model, small_problem, small_profile

MODULES = (
    *(ProfiledModule(f"d.{b}.attention", "d", "block", b, "attention", "attention", 1) for b in range(2)),
    *(ProfiledModule(f"d.{b}.mlp", "d", "block", b, "mlp", "mlp", 3) for b in range(2)),
    ProfiledModule("head", "d", "head", -1, "head", "", 4),
)  # fmt: skip
HEADER = ProfileHeader("toy", "measured", MODULES, 1000, 0, {}, total_loss_nats=math.log(50))


def kl(group, value, nats, knob="weight_bits"):
    return Measurement(group, knob, value, Figures(nats, None, None, None, 1000))


def predict(rows, *maps, **changes):
    profile = QualityProfile(replace(HEADER, **changes), tuple(rows))
    return Predictor(profile).predict_maps(maps)


def test_measured_choices_add_up():
    rows = [kl("d.0.mlp", 4, 0.01), kl("d.0.mlp", 2, 0.3), kl("d.1.mlp", 4, 0.02), kl("d/1", 0.5, 0.05, "ffn_keep")]
    found = predict(
        rows,
        {},
        {"weight_bits": {"d.0.mlp": 2}},
        {"weight_bits": {"d.0.mlp": 2, "d.1.mlp": 4}, "ffn_keep": {"d/1": 0.5}},
    )
    assert found.kl == pytest.approx([0.0, 0.3, 0.3 + 0.02 + 0.05])
    assert (found.kl_low[0], found.kl_high[0]) == (0.0, 0.0)
    assert (found.kl_low < found.kl)[1:].all()


def test_between_measured_widths_the_loss_is_a_power():
    """0.16 nats at 2 bits, 0.01 at 4: falling 4 times per bit, so 0.04 at 3 and 0.01 / 4^4 at 8."""
    rows = [kl("d.0.mlp", 2, 0.16), kl("d.0.mlp", 4, 0.01)]
    found = predict(rows, *({"weight_bits": {"d.0.mlp": b}} for b in (3, 4, 8)))
    assert found.kl == pytest.approx([0.04, 0.01, 0.01 * math.exp(-1.39 * 4)])
    wide = found.kl_high / found.kl
    assert wide[0] == pytest.approx(2 * wide[1])  # interpolated: a factor 2 more than measured


def test_one_width_ranks_the_others_by_the_common_shape():
    """Three modules fall 10 times from 3 to 4 bits; the one measured at 4 bits alone is taken to do so, too."""
    rows = [kl(g, b, n / 10 ** (b - 3)) for g, n in (("d.0.mlp", 0.1), ("d.1.mlp", 0.2), ("head", 0.5)) for b in (3, 4)]
    found = predict([*rows, kl("d.0.attention", 4, 0.003)], {"weight_bits": {"d.0.attention": 3}})
    assert found.kl[0] == pytest.approx(0.03)


def test_a_coarser_group_is_shared_by_weights_and_bounded_by_its_extremes():
    rows = [kl("d/0", 4, 0.04), kl("d/0", 2, 0.8)]
    maps = [{"weight_bits": {"d/0": 4}}, {"weight_bits": {"d.0.mlp": 2, "d.0.attention": 4}}]
    found = predict(rows, *maps)
    assert found.kl == pytest.approx([0.04, 0.75 * 0.8 + 0.25 * 0.04])
    # Harshest all over: 0.8; mildest all over: 0.04; and the factor 3 of what is not calibrated.
    assert found.kl_high == pytest.approx([0.04 * 3, 0.8 * 3])
    assert found.kl_low == pytest.approx([0.04 / 3, 0.04 / 3])


def test_a_measured_group_corrects_the_sum_of_its_parts_at_its_mildest_value():
    rows = [kl("d.0.mlp", 4, 0.01), kl("d.0.attention", 4, 0.01), kl("d.0.mlp", 2, 0.1), kl("d.0.attention", 2, 0.1)]
    rows += [kl("d/0", 4, 0.05)]
    maps = [{"d.0.mlp": 4}, {"d/0": 4}, {"d.0.mlp": 2, "d.0.attention": 4}]
    found = predict(rows, *({"weight_bits": m} for m in maps))
    assert found.kl == pytest.approx([0.01, 0.05, 0.1 + 0.01 + 0.03])


def test_rising_measurements_are_pooled():
    """0.02 at 8 bits cannot be worse than 0.01 at 4: both are their mean."""
    found = predict([kl("head", 4, 0.01), kl("head", 8, 0.02)], *({"weight_bits": {"head": b}} for b in (4, 8)))
    assert found.kl == pytest.approx([0.015, 0.015])


def test_what_is_not_known_reaches_to_total_loss():
    rows = [kl("d.0.mlp", 4, 0.03)]
    found = predict(rows, {"weight_bits": {"d.0.attention": 4}}, {"weight_bits": {"d.0.mlp": 2}})
    assert found.is_open.tolist() == [True, True]  # never measured; harsher than measured
    assert found.kl_high == pytest.approx([math.log(50)] * 2)
    assert found.kl_low.tolist() == [0.0, 0.0]
    assert found.kl[0] == pytest.approx(0.03 / 3)  # by weights, 1 to 3


@pytest.mark.parametrize("kind", ["heuristic", "prior"])
def test_losses_that_nobody_measured_rank_but_bound_nothing(kind):
    found = predict(
        [kl("head", 4, 0.01), kl("head", 3, 0.03)], *({"weight_bits": {"head": b}} for b in (4, 3)), kind=kind
    )
    assert found.kl[0] < found.kl[1]
    assert found.kl_high == pytest.approx([math.log(50)] * 2)


def test_a_cliff_is_flagged_from_there_on():
    rows = [kl("head", b, n) for b, n in ((8, 0.001), (6, 0.004), (5, 0.9), (4, 1.4))]
    rows += [kl("d.0.mlp", b, 0.01 * 4.0 ** (4 - b)) for b in (4, 5, 6, 8)]
    found = predict(rows, *({"weight_bits": {"head": b, "d.0.mlp": 4}} for b in (8, 6, 5, 4)))
    assert found.cliff_ratio[:2].tolist() == [0.0, 0.0]
    assert found.cliff_ratio[2:] == pytest.approx([0.9 / 0.91, 1.4 / 1.41])


def test_scores_are_products_of_retained_parts_above_chance():
    """Base 0.9, chance 0.1: 0.5 is half of what there was above chance, and half of half is 0.3."""
    metric = TaskMetric("em", 0.9, chance=0.1)
    rows = [Measurement(g, "weight_bits", 4, Figures(None, None, 0.5, None, 1000)) for g in ("head", "d.0.mlp")]
    found = predict(rows, {"weight_bits": {"head": 4}}, {"weight_bits": {"head": 4, "d.0.mlp": 4}}, metric=metric)
    assert found.score * 0.9 == pytest.approx([0.5, 0.3])


def configurations(n, power, scale, seed, noise=0.15):
    """Real losses are scale * (sum of parts)^power times lognormal noise."""
    rng = np.random.default_rng(seed)
    singles = {"d.0.mlp": 0.02, "d.1.mlp": 0.05, "d.0.attention": 0.03, "d.1.attention": 0.1, "head": 0.01}
    rows = [kl(g, b, x * 4.0 ** (4 - b)) for g, x in singles.items() for b in (2, 3, 4, 8)]
    found = []
    for _ in range(n):
        bits = {g: int(rng.choice([2, 3, 4, 8])) for g in singles}
        total = sum(x * 4.0 ** (4 - bits[g]) for g, x in singles.items())
        nats = scale * total**power * float(rng.lognormal(0, noise))
        found.append(Configuration({"weight_bits": bits}, Figures(nats, None, None, None, 1000)))
    return rows, found


def test_real_configurations_fix_the_scale():
    rows, known = configurations(20, 0.8, 2.0, seed=1, noise=0.0)
    _, new = configurations(40, 0.8, 2.0, seed=2, noise=0.0)
    found = Predictor(QualityProfile(HEADER, tuple(rows), tuple(known))).predict_maps([c.map for c in new])
    assert found.kl == pytest.approx([c.figures.kl_nats for c in new], rel=0.08)


def test_intervals_cover_what_they_say(validated):
    """50 profiles of 20 configurations, 40 unseen each: 19 of 20 left-out ranks, 19 / 21 = 0.905 expected."""
    covered = []
    for seed in range(50):
        rows, known = configurations(20, 0.9, 1.5, seed=seed)
        _, new = configurations(40, 0.9, 1.5, seed=1000 + seed)
        found = Predictor(QualityProfile(HEADER, tuple(rows), tuple(known))).predict_maps([c.map for c in new])
        nats = np.array([c.figures.kl_nats for c in new])
        covered.append(((found.kl_low <= nats) & (nats <= found.kl_high)).mean())
    assert 0.87 <= np.mean(covered) <= 0.95
    validated(
        "surrogate", "90 % intervals of 50 drawn profiles, 20 configurations each", "40 unseen configurations each",
        2000, {"{} % inside": 100 * np.mean(covered)}, "90.5 %",
    )  # fmt: skip


def test_held_out_configurations_calibrate_nothing():
    rows, known = configurations(20, 0.8, 2.0, seed=1)
    hidden = tuple(replace(c, held_out=True) for c in known)
    assert Predictor(QualityProfile(HEADER, tuple(rows), hidden)).kl_curve.n == 0


# ------------------------------------------------------------------ as a cost model


def study_space(profile=None, **domains):
    problem = small_problem("text", "h100-sxm-80gb")
    problem = replace(problem, quality={"target": profile or small_profile(problem.target)})
    return Space(**(domains or {"weight_bits": Choice(2, 3, 4, 8, 16, per="module")})).bind(problem)


def evaluate(space, **values):
    codes, _ = space.codes_of(values)
    return catalogue.cost_model("surrogate").prepare(space.schema.problem).evaluate(space.decode(codes))


def test_a_single_choice_of_a_design_has_its_measured_loss():
    profile = small_profile(small_model("text"), with_configurations=False)
    space = study_space(profile)
    row = next(r for r in profile.rows if r.knob == "weight_bits" and r.value == 2)
    label = next(
        p.label
        for p in space.parameters
        if space.schema.fields["weight_bits"].entries[p.entries[0][0]].path == row.group
    )
    found = evaluate(space, **{label: 2})
    assert found.values["quality_loss"][0] == pytest.approx(row.figures.kl_nats)
    assert found.basis["quality_loss"] == "surrogate"


def test_whole_heads_and_channels_count():
    """0.6 of 160 channels is 96 of them, exactly 0.6; 0.503 is 81 channels, 0.50625."""
    profile = small_profile(small_model("text"), with_configurations=False)
    space = study_space(profile, ffn_keep=Float(0.5, 1.0))
    kept = {r.group: r.figures.kl_nats for r in profile.rows if r.knob == "ffn_keep" and r.value == 0.5}
    found = evaluate(space, ffn_keep=0.503)
    level = space.parameters[0].levels[space.codes_of({"ffn_keep": 0.503})[0][0, 0]]
    share = math.ceil(level * 160) / 160
    assert found.values["quality_loss"][0] == pytest.approx(sum(kept.values()) * ((1 - share) / 0.5) ** 1.7, rel=1e-6)


def test_a_knob_without_rows_is_the_priors_and_says_so():
    space = study_space(None, kv_bits=Choice(4, 16))
    found = evaluate(space, kv_bits=4)
    _, high = found.intervals["quality_loss"]
    assert found.values["quality_loss"][0] > 0
    assert high[0] == pytest.approx(math.log(256))


def test_the_breakdown_adds_up():
    space = study_space(None, weight_bits=Choice(2, 4, per="module"), ffn_keep=Choice(0.5, 1.0), kv_bits=Choice(4, 16))
    evaluator = catalogue.cost_model("surrogate").prepare(space.schema.problem)
    batch = space.decode(space.sample(20, np.random.default_rng(0)))
    part = evaluator.breakdown(batch)[0]
    assert part.parts.sum(axis=1) == pytest.approx(evaluator.evaluate(batch).values["quality_loss"])


def test_a_stored_problem_carries_its_profile():
    problem = study_space().schema.problem
    again = Problem.from_json(json.loads(json.dumps(problem.to_json())))
    assert again.quality["target"] == problem.quality["target"]
    assert again.content_hash == problem.content_hash == replace(problem, quality={}).content_hash


def test_no_profile_and_a_profile_of_another_model_are_refused():
    problem = small_problem("text", "h100-sxm-80gb")
    with pytest.raises(UserError, match="needs a quality profile of small-text"):
        catalogue.cost_model("surrogate").prepare(problem)
    with pytest.raises(TableError, match=r"only in the profile: model\.visual"):
        replace(problem, quality={"target": small_profile(small_model())})
    with pytest.raises(UserError, match="a profile for the role 'draft'"):
        replace(problem, quality={"draft": small_profile(problem.target)})


def test_missing_groups_that_the_space_varies_are_refused():
    whole = small_profile(small_model("text"))
    gone = "model.layers.1.mlp.up_proj"
    partly = replace(whole, rows=tuple(r for r in whole.rows if r.group != gone), configurations=())
    with pytest.raises(TableError, match=f"no measurement of weight_bits for {gone}, which the space varies"):
        check_coverage(partly, study_space(partly))
    check_coverage(partly, study_space(partly, ffn_keep=Choice(0.5, 1.0)))
    check_coverage(whole, study_space(whole))
