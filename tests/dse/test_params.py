from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse import params
from dse.errors import SpaceError
from dse.params import Choice, Float, Int


def test_levels_are_what_was_written():
    assert Choice(3, 4, 8).levels() == (3, 4, 8)
    assert Int(2, 9, step=3).levels() == (2, 5, 8)
    assert Float(0.5, 1.0, step=0.125).levels() == (0.5, 0.625, 0.75, 0.875, 1.0)
    # decimal sums: 0.1 + 0.2 is 0.3, not 0.30000000000000004
    assert Float(0.1, 0.5, step=0.1).levels() == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert Float(0.0, 1.0, step=0.3).levels() == (0.0, 0.3, 0.6, 0.9)
    assert Float(2.0, 2.0).levels() == (2.0,)


def test_a_float_without_a_step_gets_a_grid_with_both_ends():
    linear, log = Float(0.0, 2.0).levels(), Float(1e-3, 1e3, log=True).levels()
    assert len(linear) == len(log) == params.GRID_LEVELS
    assert (linear[0], linear[-1]) == (0.0, 2.0)
    assert (log[0], log[-1]) == (1e-3, 1e3)
    assert log[512] / log[511] == pytest.approx(log[1] / log[0])


def test_a_logarithmic_int_has_distinct_whole_numbers():
    levels = Int(1, 4096, log=True).levels()
    assert levels[0] == 1
    assert levels[-1] == 4096
    assert list(levels) == sorted(set(levels))
    assert all(isinstance(v, int) for v in levels)


@pytest.mark.parametrize(
    ("make", "law"),
    [
        (Choice, "no value"),
        (lambda: Choice(4, 4), "lists 4 twice"),
        (lambda: Choice([4, 8]), "one by one"),
        (lambda: Choice(4, None), "NoneType"),
        (lambda: Choice(float("nan")), "not finite"),
        (lambda: Int(5, 4), "is empty: 5 > 4"),
        (lambda: Int(1, 9, step=0), "not positive"),
        (lambda: Int(1, 2.5), "not an integer"),
        (lambda: Int(0, 8, log=True), "starts at 1"),
        (lambda: Int(0, 100_000), "100001 levels"),
        (lambda: Int(1, 64, step=2, log=True), "no step"),
        (lambda: Float(1.0, 0.0), "is empty"),
        (lambda: Float(0.0, 1.0, log=True), "starts above 0"),
        (lambda: Float(0.0, 1.0, step=-0.1), "not positive"),
        (lambda: Float(0.0, float("inf")), "not a finite number"),
        (lambda: Float(0.0, 1.0, step=1e-9), "levels, the limit is"),
    ],
)
def test_impossible_domains_are_refused(make, law):
    with pytest.raises(SpaceError, match=law):
        make()


@given(
    st.one_of(
        st.builds(lambda v: Choice(*v), st.lists(st.integers(-99, 99), min_size=1, max_size=5, unique=True)),
        st.builds(lambda a, b: Int(a, a + b, log=True), st.integers(1, 50), st.integers(0, 50)),
        st.builds(lambda a, b: Float(a, a + b, step=0.25, per="block"), st.integers(0, 9), st.integers(0, 9)),
        st.builds(lambda v: Choice(*v, when={"dataflow": ("ws", "os")}), st.just(("a", "b"))),
    )
)
def test_domains_survive_json(domain):
    again = params.from_json(domain.to_json())
    assert again == domain
    assert again.levels() == domain.levels()
    assert again.when == domain.when


def test_unknown_stored_domain_is_refused():
    with pytest.raises(SpaceError, match="newer version"):
        params.from_json({"type": "Quantum"})
    with pytest.raises(SpaceError, match="cannot be read"):
        params.from_json({"type": "Int", "low": 1})
