"""Budgets as parameters: the maps are the best of their cost, and designs, files and resumes hold them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from dse import Choice, Float, Scenario, Space, Study
from dse.budgets import MOST_MAPS, resolved
from dse.errors import SpaceError
from dse.marginals import marginals
from dse.params import Maps
from dse.testing.samples import small_model


def quiet(_):
    pass


def study(name="budget", **changes):
    options = {
        "model": small_model(),
        "scenario": Scenario(images=1, image_px=(140, 84), prompt_tokens=7, output_tokens=5),
        "hardware": "npu-template",
        "space": Space(weight_bits=Choice(3, 4, 6, 8, per="budget:component"), pe_rows=Choice(8, 16)),
        "objectives": "min weight_bytes, min quality_loss",
        "ask_size": 8,
    } | changes
    return Study(name, **options)


def test_maps_are_the_best_of_their_cost_beside_all_maps_there_are():
    """Every map of three components and four widths, evaluated: none is smaller and loses less than one of the hull."""
    made = study()
    domain = made.space.declarations["weight_bits"]
    assert isinstance(domain, Maps)
    groups = len(domain.groups)
    every = list(product((3, 4, 6, 8), repeat=groups))
    plain = study(space=Space(weight_bits=Choice(3, 4, 6, 8, per="component"), pe_rows=Choice(8, 16)))
    labels = [f"weight_bits[{g}]" for g in domain.groups]
    codes = np.concatenate([plain.bound_space.codes_of(dict(zip(labels, one, strict=True)))[0] for one in every])
    summed = plain.evaluation.summed_loss(codes)
    if summed is None:
        summed = plain.evaluation.evaluate(codes)[1].values["quality_loss"]
    sizes = plain.evaluation.evaluate(codes)[0].values["weight_bytes"]
    chosen = [every.index(one) for one in domain.maps]
    assert len(chosen) > groups
    for i in chosen:
        better = (sizes <= sizes[i]) & (summed <= summed[i]) & ((sizes < sizes[i]) | (summed < summed[i] * (1 - 1e-9)))
        assert not better.any()
    assert domain.maps[0] == (3,) * groups
    assert domain.maps[-1] == (8,) * groups
    assert (domain.values[0], domain.values[-1]) == (3.0, 8.0)
    share = (sizes[chosen] - sizes[chosen[0]]) / (sizes[chosen[-1]] - sizes[chosen[0]])
    np.testing.assert_allclose(domain.values, 3 + 5 * share, rtol=1e-5)


def test_designs_carry_the_map_and_codes_come_back():
    made = study()
    space, domain = made.bound_space, made.space.declarations["weight_bits"]
    assert space.labels == ("weight_bits", "pe_rows")
    codes = np.array([[i, 0] for i in range(len(domain.maps))], dtype=np.uint16)
    batch = space.decode(codes)
    field = space.schema.fields["weight_bits"]
    for row, one in zip(batch["weight_bits"], domain.maps, strict=True):
        wanted = dict(zip(domain.groups, one, strict=True))
        assert [wanted[e.component] for e in field.entries] == row.tolist()
    assert (space.encode(batch) == codes).all()
    assert len(set(batch.hashes)) == len(codes)
    middle = domain.values[1]
    assert space.codes_of({"weight_bits": middle + 1e-9})[0][0, 0] == 1
    assert space.values(codes[1:2]) == [{"weight_bits": middle, "pe_rows": 8}]
    with pytest.raises(SpaceError, match="not a number"):
        space.codes_of({"weight_bits": "wide"})


@pytest.mark.parametrize(
    ("knob", "domain"),
    [
        ("ffn_keep", Float(0.5, 1.0, step=0.125, per="budget:block")),
        ("head_keep", Float(0.5, 1.0, step=0.25, per="budget:block")),
        ("kv_bits", Choice(4, 8, 16, per="budget:block")),
        ("weight_bits", Choice(2, 3, 4, 6, 8, per="budget")),
    ],
)
def test_widths_heads_and_caches(knob, domain):
    made = study(space=Space({knob: domain, "pe_rows": Choice(8, 16)}), objectives="min latency_s, min quality_loss")
    found = made.space.declarations[knob]
    assert 2 <= len(found.maps) <= MOST_MAPS
    sums = [sum(one) for one in found.maps]
    assert sums[0] == min(sums)
    assert sums[-1] == max(sums)
    rows = np.array([[i, 0] for i in range(len(found.maps))], dtype=np.uint16)
    assert (made.bound_space.encode(made.bound_space.decode(rows)) == rows).all()


def test_a_study_over_a_budget_is_stored_resumed_and_found_again(tmp_path):
    db = tmp_path / "a.db"
    first = study(proposers="auto").run(16, db=db, report=quiet, executor="local")
    whole = study(proposers="auto").run(24, db=db, report=quiet, executor="local")
    assert (whole.stored.codes[:16] == first.stored.codes).all()
    record = whole.front().records()[0]
    assert record["knobs"]["weight_bits"]["unit"] == "bit"
    assert len(whole.front()) > 3


@pytest.mark.parametrize(
    "proposer",
    ["gp", "tpe", "evolve", "local", "bottleneck", "allocate", "optuna:tpe", "llm:provider=random,wait_s=30,every=1"],
)
def test_every_proposer_takes_it(tmp_path, proposer):
    results = study(proposers=["auto" if proposer.startswith("llm") else "sobol", proposer]).run(
        24, db=tmp_path / "a.db", report=quiet, executor="local"
    )
    assert (results.violation == 0).all()
    assert not results.metrics.errors
    assert proposer.partition(":")[0] in " ".join(results.stored.proposers.values())


def test_what_has_no_budget_is_said():
    with pytest.raises(SpaceError, match="image_px has no budget to share out"):
        study(space=Space(image_px=Choice(112, 140, per="budget")))
    with pytest.raises(SpaceError, match="no depth of the hierarchy"):
        study(space=Space(weight_bits=Choice(4, 8, per="budget:layers")))
    space = Space(weight_bits=Choice(4, 8, per="budget:block"))
    with pytest.raises(SpaceError, match="resolved when a Study is made"):
        space.bind(study().problem)
    plain = Space(weight_bits=Choice(4, 8, per="block"))
    assert resolved(plain, study().problem) is plain
    with pytest.raises(SpaceError, match="do not ascend"):
        Maps((4, 4), ("a",), ((4,), (8,)), per="block")
    other = Space({"weight_bits": Maps((4, 8), ("nowhere",), ((4,), (8,)), per="block")})
    with pytest.raises(SpaceError, match="another model"):
        other.bind(study().problem)


def test_marginals_take_a_budget_as_one_place():
    made = study()
    table = marginals(made.bound_space, ("analytical", "prior"))
    assert table.levels.tolist() == [len(made.space.declarations["weight_bits"].maps)]
