"""The search benchmark's own parts: frozen spaces stay what they are, fronts are true, statistics are textbook."""

from __future__ import annotations

import numpy as np
import pytest

from dse.pareto import is_dominated
from tests.benchmarks.search.__main__ import SPACES
from tests.benchmarks.search.play import Yard, play
from tests.benchmarks.search.spaces import FOLDER, load
from tests.benchmarks.search.statistics import a12, holm, median_interval, wilcoxon_p
from tests.benchmarks.search.truth import yard
from tests.benchmarks.search.tuning import tuning_spaces


@pytest.mark.parametrize("name", SPACES)
def test_a_snapshot_is_small_and_its_factors_give_what_its_tables_would(name):
    assert (FOLDER / f"{name}.npz").stat().st_size < 1_000_000
    frozen = load(name)
    codes = frozen.space.sample(50, np.random.default_rng(0))
    found = frozen.columns(codes)
    everywhere, *groups = frozen.columns_of
    for metric, (base, left, right) in frozen.tables.items():
        for i in (0, 17, 49):
            h, n_levels = 0, frozen.space.n_levels
            for j in everywhere:
                h = h * int(n_levels[j]) + int(codes[i, j])
            total, start = float(base[h]), 0
            for columns in groups:
                value, size = 0, 1
                for j in columns:
                    value, size = value * int(n_levels[j]) + int(codes[i, j]), size * int(n_levels[j])
                total += float(left[h].astype(float) @ right[:, start + value])
                start += size
            assert found[metric][i] == pytest.approx(max(total, 0.0), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", ["edge-vlm", "gpu-serving", "npu-mapping"])
def test_no_design_is_above_the_stored_front(name):
    frozen = load(name)
    with np.load(FOLDER / f"{name}.front.npz") as file:
        front, ids = file["points"], file["ids"].astype(np.int64)
    codes = np.stack(np.unravel_index(ids, tuple(frozen.space.n_levels)), axis=1)
    np.testing.assert_allclose(frozen.evaluate(codes)[0], front)
    objectives, violation = frozen.evaluate(frozen.space.sample(20_000, np.random.default_rng(1)))
    assert is_dominated(objectives[violation == 0], front).all()
    assert yard(name).ratio(front, np.zeros(len(front))) == pytest.approx(1.0)


def test_the_yard_by_hand():
    # Ideal (0, 0), nadir (2, 4): scaled points (0, 1), (1, 0), (0.5, 0.5); reference 1.1.
    measure = Yard.of(np.array([[0.0, 4.0], [2.0, 0.0], [1.0, 2.0]]))
    assert measure.volume == pytest.approx(1.1 * 0.1 + 0.6 * 0.5 + 0.1 * 0.5)
    assert measure.ratio(np.array([[1.0, 2.0]]), np.zeros(1)) == pytest.approx(0.6 * 0.6 / measure.volume)
    assert measure.ratio(np.array([[1.0, 2.0]]), np.ones(1)) == 0.0


def test_statistics_by_hand():
    assert a12(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == (0.5 + 1 + 1 + 1) / 4
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert wilcoxon_p(np.arange(1.0, 7.0), np.zeros(6)) == pytest.approx(2 / 2**6)  # all of one sign, exact
    assert wilcoxon_p(np.ones(3), np.ones(3)) == 1.0
    middle, low, high = median_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert low <= middle == 3.0 <= high


def test_all_arms_start_alike_and_pay_alike():
    target = tuning_spaces(5)[0]
    runs = [play(target, arm, 3, 40, 8, 16) for arm in ("random", "evolve")]
    np.testing.assert_array_equal(runs[0].objectives[:16], runs[1].objectives[:16])
    assert not np.array_equal(runs[0].objectives[16:], runs[1].objectives[16:])
    assert [len(r.violation) for r in runs] == [40, 40]


def test_generated_spaces_differ_by_seed():
    for one, other in zip(tuning_spaces(0), tuning_spaces(1), strict=True):
        codes = one.space.sample(5, np.random.default_rng(0))
        codes = other.space.repair(codes)
        a, b = one.columns(one.space.repair(codes)), other.columns(codes)
        assert set(a) == set(b)
        assert not np.allclose(a["energy_j"], b["energy_j"])
