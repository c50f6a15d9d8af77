"""The event loop: queueing theory, Little's law, tokens, and runs worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.batching import simulate
from costmodels.batchloop import Limits
from costmodels.steptable import Curve, Surface, flat, plane, step_table

ONE = Limits(requests=1, positions=1 << 40, blocks=1 << 40, block_tokens=16, cuts=False, reserves=False)


def _waits(rate, prompt, table, seed):
    """Mean wait and its standard error by batch means, for Poisson arrivals at a rate."""
    n = len(prompt)
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n))
    run = simulate(arrivals, prompt, np.ones(n), ONE, table)
    waits = run.start_s - run.arrival_s
    means = waits.reshape(100, -1).mean(axis=1)
    return waits.mean(), means.std(ddof=1) / 10.0, run


def _little(run):
    present = run.sums.running_s + run.sums.waiting_s
    np.testing.assert_allclose((run.end_s - run.arrival_s).sum(), present, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.5, 0.7])
def test_one_place_and_equal_steps_wait_as_in_m_d_1(rate, validated):
    """M/D/1: W = rho s / (2 (1 - rho)) with s = 1 (Pollaczek, Khinchine)."""
    mean, error, run = _waits(rate, np.ones(1_500_000), step_table(linear=flat(1.0)), seed=11)
    expected = rate / (2 * (1 - rate))
    assert error <= 0.007 * expected
    assert abs(mean - expected) <= 3 * error
    validated(
        "serving", f"mean wait at one place, equal lengths, load {rate}", "M/D/1 (Pollaczek, Khinchine)", 1_500_000,
        {"off by {} standard errors": abs(mean - expected) / error, "of {} % of the mean": 100 * error / expected},
        "3 standard errors of at most 0.7 %", digits=2,
    )  # fmt: skip
    _little(run)


@pytest.mark.slow
def test_one_place_and_random_lengths_wait_as_in_m_g_1(validated):
    """M/G/1: W = lambda E[S^2] / (2 (1 - rho)); a service takes 1 ms per position, of 1 to 1,000 positions."""
    prompt = np.random.default_rng(5).integers(1, 1001, 3_000_000)
    table = step_table(linear=Curve(np.array([0.0, 1000.0]), np.array([0.0, 1.0]), np.zeros(2)))
    mean, square = 500.5e-3, (1001 * 2001 / 6) * 1e-6
    rate = 0.6 / mean
    found, error, run = _waits(rate, prompt, table, seed=6)
    expected = rate * square / (2 * (1 - 0.6))
    assert error <= 0.007 * expected
    assert abs(found - expected) <= 3 * error
    validated(
        "serving", "mean wait at one place, lengths of 1 to 1,000, load 0.6", "M/G/1 (Pollaczek, Khinchine)", 3_000_000,
        {"off by {} standard errors": abs(found - expected) / error, "of {} % of the mean": 100 * error / expected},
        "3 standard errors of at most 0.7 %", digits=2,
    )  # fmt: skip
    _little(run)


@pytest.mark.validates(
    "serving",
    "sojourn times, positions computed, drawn engines and loads",
    "Little's law; a count of positions",
    "equal to 1e-9",
)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=30),
    st.integers(1, 6), st.integers(1, 50), st.integers(6, 40), st.booleans(), st.booleans(), st.integers(0, 3),
)  # fmt: skip
def test_every_run_keeps_its_laws(requests, places, positions, blocks, cuts, reserves, guesses):
    gaps, prompt, output = (np.array(column) for column in zip(*requests, strict=True))
    arrivals = np.cumsum(gaps)
    blocks = max(blocks, -(-int((prompt + output).max() + guesses) // 4))
    limits = Limits(places, positions, blocks, 4, cuts, reserves)
    table = step_table(linear=Curve(np.array([0.0, 10.0]), np.array([0.1, 0.3]), np.array([1.0, 2.0])))
    kept = np.array([0.8, 0.5, 0.1])[:guesses]
    run = simulate(arrivals, prompt, output, limits, table, kept, seed=3, with_timeline=True)
    _little(run)
    assert (run.start_s >= arrivals).all()
    assert (run.first_s > run.start_s).all()
    assert (run.end_s >= run.first_s).all()
    assert run.sums.peak_blocks <= blocks
    assert (run.timeline[:, 1] <= places).all()
    if not guesses:
        # Every position once, and again what preemption threw away; the last token's own is never computed.
        assert run.sums.positions == (prompt + output - 1).sum() + run.sums.lost
    assert bool(run.sums.lost) == bool(run.sums.preemptions)
    assert not (reserves and run.sums.preemptions)
    assert run.sums.busy_s <= run.sums.end_s + 1e-9
    assert len(run.timeline) == run.sums.steps


@pytest.mark.validates("serving", "three requests", "by hand", "equal")
def test_three_requests_by_hand():
    """Steps of 1 s, two places: A and B run while C waits for a place.

    A (2 tokens out) and B (4) arrive at 0, C (2) at 0.5. Steps end at 1, 2, 3, 4: A writes at 1 and 2 and leaves, C
    takes its place and writes at 3 and 4, B writes at 1, 2, 3, 4.
    """
    limits = Limits(2, 100, 100, 16, True, False)
    run = simulate(np.array([0.0, 0.0, 0.5]), np.full(3, 8), np.array([2, 4, 2]), limits, step_table(linear=flat(1.0)))
    assert run.first_s.tolist() == [1.0, 1.0, 3.0]
    assert run.end_s.tolist() == [2.0, 4.0, 4.0]
    assert run.start_s.tolist() == [0.0, 0.0, 2.0]
    assert run.sums.waiting_s == 1.5  # C, from 0.5 to 2
    assert run.sums.running_s == 8.0


@pytest.mark.validates("serving", "preemption", "by hand", "equal")
def test_preemption_by_hand():
    """Four blocks of 4, two prompts of 8: at the ninth position both need a third block, and there is none.

    Step 1 computes both prompts (2 blocks each) and writes a token each. In step 2 A needs a block: B, admitted last,
    gives up its 8 positions. A writes at 1, 2, 3, and ends; B then reads 8 + 1 again and writes at 4, 5.
    """
    limits = Limits(2, 100, 4, 4, True, False)
    run = simulate(np.zeros(2), np.array([8, 8]), np.array([3, 3]), limits, step_table(linear=flat(1.0)))
    assert run.end_s.tolist() == [3.0, 5.0]
    assert (run.sums.preemptions, run.sums.lost) == (1, 8)
    assert run.sums.positions == 2 * (8 + 2) + 8
    kept = simulate(np.zeros(2), np.array([8, 8]), np.array([3, 3]), limits._replace(reserves=True),
                    step_table(linear=flat(1.0)))  # fmt: skip
    assert (kept.sums.preemptions, kept.end_s.tolist()) == (0, [3.0, 6.0])


def test_chunks_share_a_step_with_tokens():
    """A budget of 4: a prompt of 10 takes three steps; while another decodes, one position of each step is its own."""
    table = step_table(linear=flat(1.0))
    alone = simulate(np.zeros(1), np.array([10]), np.array([1]), Limits(4, 4, 99, 16, True, False), table)
    assert alone.first_s.tolist() == [3.0]
    both = simulate(np.zeros(2), np.array([4, 10]), np.array([9, 1]), Limits(4, 4, 99, 16, True, False), table,
                    with_timeline=True)  # fmt: skip
    assert both.first_s.tolist() == [1.0, 5.0]  # 3 positions a step from the second on, 10 of them in four
    assert both.timeline[1:5, 5].tolist() == [3, 3, 3, 1]


def test_the_table_is_read_between_its_nodes():
    """Rows 3, two decode logits: 0.1 + 0.2 3 + 0.5 (2) ...; worked out by hand for a step of one chunk of 3 rows."""
    table = step_table(
        linear=Curve(np.array([1.0, 5.0]), np.array([0.3, 1.1]), np.array([3.0, 11.0])),
        context=Surface(
            np.array([1.0, 5.0]), np.array([0.0, 4.0]), np.array([[0.0, 4.0], [0.0, 20.0]]), np.zeros((2, 2))
        ),
        encode=flat(0.25, 7.0),
    )
    run = simulate(np.zeros(1), np.array([3]), np.array([1]), ONE, table, encodes=True)
    # linear(3) = 0.7; keys seen: (1 + 2 + 3) / 3 = 2, context(3, 2) = half of (4 + 20) / 2
    assert run.end_s[0] == pytest.approx(0.7 + 6.0 + 0.25)
    assert run.sums.joules == pytest.approx(7.0 + 7.0)


def test_guesses_are_kept_as_often_as_they_should_be():
    """With S = (0.8, 0.64), steps write 1 + 0.8 + 0.64 tokens on average, and seeds change which."""
    n = 2000
    args = (np.arange(n) * 1e6, np.ones(n), np.full(n, 400), ONE, step_table(linear=flat(1.0)), np.array([0.8, 0.64]))
    run, again, other = simulate(*args, seed=1), simulate(*args, seed=1), simulate(*args, seed=2)
    steps = run.end_s - run.first_s
    assert 399 / 2.44 < steps.mean() < 399 / 2.44 + 1  # and the last step's overshoot
    assert (run.end_s == again.end_s).all()
    assert (run.end_s != other.end_s).any()


def test_what_never_fits_is_refused():
    table = step_table(linear=flat(1.0), attend=plane(0.0))
    with pytest.raises(ValueError, match="never fits"):
        simulate(np.zeros(1), np.array([100]), np.array([1]), Limits(1, 10, 6, 16, True, False), table)
    with pytest.raises(ValueError, match="ascending"):
        simulate(np.array([1.0, 0.0]), np.ones(2), np.ones(2), ONE, table)
