"""Every proposer of the catalogue passes the kit; what is particular to each."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import qmc

from agents.optuna_sampler import OptunaSampler, distributions
from agents.sampling import sobol_codes
from dse import catalogue
from dse.errors import NameUnknown, UserError
from dse.params import Choice
from dse.space import Space
from dse.testing.conformance import check_proposer
from dse.testing.samples import small_problem, small_space

SPACE = small_space()
FEW = Space(dataflow=Choice("ws", "os"), pe_rows=Choice(4, 8, 16), batch=Choice(*range(1, 40))).bind(small_problem())
NAMES = [
    "auto", "auto:arms=evolve+random+optuna:nsga2", "evolve", "tpe", "gp", "local", "enumerate", "allocate",
    "random", "sobol", "optuna:tpe", "optuna:nsga2", "optuna:nsga3", "optuna:random",
    "optuna:nsga2:population_size=6", "optuna:tpe:n_startup_trials=4,n_ei_candidates=8",
    "bottleneck", "auto:with=llm", "llm",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_conformance(name):
    space = FEW if name == "enumerate" else SPACE
    n_batches, k = (3, 8) if name.startswith("optuna:tpe") else (5, 16)
    check_proposer(catalogue.proposer(name), space, n_batches=n_batches, k=k)


def test_every_proposer_is_tried_here():
    assert {n.partition(":")[0] for n in NAMES} == set(catalogue.listing("proposer"))


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("optuna:tpee", "unknown Optuna sampler"),
        ("optuna", "unknown Optuna sampler"),
        ("optuna:cmaes", "one objective"),
        ("optuna:qmc", "use sobol"),
        ("optuna:nsga2:population=3", "unknown option"),
        ("optuna:nsga2:population_size=few", "not a whole number"),
        ("evolv", "unknown proposer"),
        ("auto:without=gp", "unknown option of auto"),
    ],
)
def test_names_that_are_none(name, law):
    with pytest.raises((NameUnknown, UserError), match=law):
        catalogue.proposer(name)


def test_the_sobol_sequence_is_that_of_scipy_and_goes_on():
    points = qmc.Sobol(SPACE.n_parameters, scramble=True, rng=np.random.default_rng([7, 0x50B01])).random(64)
    whole = sobol_codes(SPACE, 7, 0, 64)
    np.testing.assert_array_equal(whole, SPACE.from_unit(points))
    np.testing.assert_array_equal(whole[24:40], sobol_codes(SPACE, 7, 24, 16))


def test_sobol_covers_levels_more_evenly_than_chance():
    space = Space(pe_rows=Choice(*range(1, 9)), pe_cols=Choice(*range(1, 9))).bind(small_problem())
    codes = sobol_codes(space, 0, 0, 64)
    assert len({tuple(row) for row in codes.tolist()}) > 48  # 64 random cells of 64 are 40 on average


def test_optuna_sees_ordered_levels_as_integers_and_words_as_categories():
    space = Space(dataflow=Choice("ws", "os"), pe_rows=Choice(4, 8, 16), weight_bits=Choice(8, 4)).bind(small_problem())
    kinds = {name: type(d).__name__ for name, d in distributions(space).items()}
    assert kinds == {
        "dataflow": "CategoricalDistribution",
        "pe_rows": "IntDistribution",
        "weight_bits": "CategoricalDistribution",
    }


def test_a_window_is_honoured():
    assert OptunaSampler("tpe").window == 400
    assert OptunaSampler("nsga2").window == 0
