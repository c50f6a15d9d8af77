"""Speculation: spot values, limits, simulated guesses, logs, and what compression may do to acceptance."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.speculation import (
    fitted_loss_ratio,
    moments,
    n_steps,
    operations_growth,
    rates_of,
    speedup,
    survival,
    tokens_per_step,
)
from dse.acceptance import Acceptance
from dse.errors import TableError, UserError

NONE = (np.zeros(1), np.zeros(1))
NONE3 = (np.zeros(3), np.zeros(3))


@pytest.mark.parametrize(("rate", "guesses", "tokens"), [(0.8, 4, 3.3616), (0.7, 8, None), (0.6, 5, None)])
def test_tokens_of_a_step_at_published_spots(rate, guesses, tokens):
    """Leviathan et al.: 1 + a + ... + a^g, summed here term by term; 3.3616, 3.1988, 2.3834 to their four places."""
    by_terms = math.fsum(rate**j for j in range(guesses + 1))
    assert tokens_per_step(rate, guesses) == pytest.approx(by_terms, rel=1e-12)
    assert round(float(tokens_per_step(rate, guesses)), 4) == {4: 3.3616, 8: 3.1988, 5: 2.3834}[guesses]
    if tokens is not None:
        assert tokens_per_step(rate, guesses) == pytest.approx(tokens, rel=1e-12)


@given(a=st.floats(0, 1), g=st.integers(0, 40), c=st.floats(0, 2))
def test_laws_of_the_closed_forms(a, g, c):
    tokens = float(tokens_per_step(a, g))
    assert tokens == pytest.approx(math.fsum(a**j for j in range(g + 1)), rel=1e-12)
    assert 1.0 <= tokens <= g + 1
    assert float(speedup(a, g, c)) == pytest.approx(tokens / (g * c + 1), rel=1e-14)
    assert float(operations_growth(a, g, c)) >= 1.0 - 1e-12
    # A gain exists for some g if and only if a > c; for g = 1 that is (1 + a) / (1 + c) > 1.
    assert abs(a - c) < 1e-12 or (float(speedup(a, 1, c)) > 1.0) == (a > c)


def test_limits_of_the_rate():
    assert tokens_per_step(1.0, 7) == 8.0
    assert tokens_per_step(0.0, 7) == 1.0
    assert tokens_per_step(1 - 1e-14, 7) == pytest.approx(8.0, rel=1e-12)


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 7))
def test_simulated_guesses_agree_within_three_standard_errors(seed, n):
    """20,000 steps with a rate per position; one draw in 370 lies outside 3, so 4.5 is asked of 24 draws."""
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.1, 0.95, n)
    kept = (rng.random((20_000, n)) < rates).cumprod(axis=1).sum(axis=1) + 1
    mean, square = moments(survival(rates[None, :]), np.array([float(n)]))
    assert abs(kept.mean() - mean[0]) <= 4.5 * kept.std(ddof=1) / math.sqrt(len(kept))
    assert abs((kept**2).mean() - square[0]) <= 4.5 * (kept**2).std(ddof=1) / math.sqrt(len(kept))


@pytest.mark.parametrize(("rate", "guesses"), [(0.8, 4), (0.7, 8), (0.6, 5)])
def test_monte_carlo_at_the_spots_within_three_standard_errors(rate, guesses):
    kept = (np.random.default_rng(20).random((200_000, guesses)) < rate).cumprod(axis=1).sum(axis=1) + 1
    assert abs(kept.mean() - tokens_per_step(rate, guesses)) <= 3 * kept.std(ddof=1) / math.sqrt(len(kept))


@pytest.mark.validates("policy", "steps of an output under speculation", "the exact renewal recursion", "within 2e-4")
@pytest.mark.parametrize("tokens", [20, 47, 255])
def test_steps_of_an_output_against_the_renewal_recursion(tokens):
    """m(t) = 1 + sum_k P(K = k) m(t - k), exact, by hand over t."""
    rates = np.array([[0.8, 0.7, 0.9, 0.5]])
    alive = survival(rates)[0]
    chance = {k: alive[k - 1] - (alive[k] if k <= 4 else 0.0) for k in range(1, 6)}
    m = dict.fromkeys(range(-5, 1), 0.0)
    for t in range(1, tokens + 1):
        m[t] = 1.0 + sum(p * m[t - k] for k, p in chance.items())
    mean, square = moments(survival(rates), np.array([4.0]))
    assert n_steps(tokens, mean, square)[0] == pytest.approx(m[tokens], rel=2e-4)


def test_no_guesses_are_plain_decoding():
    mean, square = moments(survival(np.array([[0.9, 0.9]])), np.array([0.0]))
    assert (mean[0], square[0], n_steps(63.0, mean, square)[0]) == (1.0, 1.0, 63.0)


def test_a_distribution_of_lengths_keeps_its_mean():
    """0.2 x 0 + 0.3 x 1 + 0.1 x 2 + 0.4 x 3 = 1.7 guesses, plus the target's own token."""
    found = Acceptance.of_lengths([0.2, 0.3, 0.1, 0.4])
    rates = rates_of(found, 3, NONE, NONE)
    mean, _ = moments(survival(rates.value), np.array([3.0]))
    assert mean[0] == pytest.approx(2.7, rel=1e-12)
    # With two guesses lengths of 3 count as 2: 1 + 0.8 + 0.5.
    assert moments(survival(rates.value), np.array([2.0]))[0][0] == pytest.approx(2.3, rel=1e-12)


@given(tokens=st.floats(1.0, 5.9))
def test_a_mean_is_met(tokens):
    rates = rates_of(Acceptance.of_mean(tokens, 5), 5, NONE, NONE)
    assert moments(survival(rates.value), np.array([5.0]))[0][0] == pytest.approx(tokens, rel=1e-9)


def test_a_log_is_read_as_censored_lengths(tmp_path):
    """Steps (drafted, kept): (2, 2) says nothing of a third guess. h1 = 3/4, h2 = 2/3 of those that went on, h3 = 1."""
    log = tmp_path / "steps.csv"
    log.write_text("drafted,accepted\n2,2\n3,0\n3,1\n3,3\n")
    found = Acceptance.of_log(log)
    assert found.rates == (3 / 4, 2 / 3, 1.0)
    assert all(a <= r <= b for a, r, b in zip(found.low, found.rates, found.high, strict=True))
    lines = tmp_path / "steps.jsonl"
    lines.write_text("\n".join(json.dumps({"drafted": d, "accepted": k}) for d, k in ((2, 2), (3, 0), (3, 1), (3, 3))))
    assert Acceptance.of_log(lines).rates == found.rates
    assert Acceptance.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_simulated_log_gives_back_its_rates(tmp_path):
    rng = np.random.default_rng(5)
    rates = np.array([0.9, 0.6, 0.75])
    drafted = rng.integers(1, 4, 30_000)
    kept = np.minimum((rng.random((30_000, 3)) < rates).cumprod(axis=1).sum(axis=1), drafted)
    log = tmp_path / "log.csv"
    log.write_text("drafted,accepted\n" + "\n".join(f"{d},{k}" for d, k in zip(drafted, kept, strict=True)))
    found = Acceptance.of_log(log)
    for low, true, high in zip(found.low, rates, found.high, strict=True):
        assert low - 0.005 <= true <= high + 0.005


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("drafted,accepted\n3,4\n", "accepted=4 of drafted=3"),
        ("drafted,accepted\n3,nan\n", "not a whole number"),
        ("drafted,accepted\n3,\n", "accepted missing"),
        ("drafted,accepted\n", "no rows"),
        ("a,b\n1,2\n", "drafted and accepted missing"),
        ("drafted,accepted\n900,1\n", "more than 64"),
    ],
)
def test_logs_that_cannot_be(tmp_path, text, law):
    log = tmp_path / "log.csv"
    log.write_text(text)
    with pytest.raises(TableError, match=law):
        Acceptance.of_log(log)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Acceptance(()),
        lambda: Acceptance((1.2,)),
        lambda: Acceptance((float("nan"),)),
        lambda: Acceptance((0.5,), low=(0.6,), high=(0.7,)),
        lambda: Acceptance((0.5, 0.5), nodes=1),
        lambda: Acceptance.of_lengths([0.5, 0.6]),
        lambda: Acceptance.of_mean(7.0, 5),
    ],
)
def test_acceptance_that_cannot_be(make):
    with pytest.raises(UserError):
        make()


def _random_rows(rng, n, k, spread):
    p = np.exp(rng.normal(size=(n, k)) * spread)
    return p / p.sum(axis=1, keepdims=True)


def test_the_ends_of_acceptance_hold_for_distributions_of_every_shape():
    """Random target and drafter, perturbed at random: a from the overlap, d as the KL divergence, computed here."""
    rng = np.random.default_rng(11)
    for noise in (0.03, 0.2, 0.8, 2.0):
        p, q = _random_rows(rng, 400, 30, 2.0), _random_rows(rng, 400, 30, 2.0)
        p2 = p * np.exp(rng.normal(size=p.shape) * noise)
        p2 /= p2.sum(axis=1, keepdims=True)
        loss = np.array([(p * np.log(p / p2)).sum(axis=1).mean()])
        before, after = (np.minimum(x, q).sum(axis=1).mean() for x in (p, p2))
        found = rates_of(Acceptance.of_rate(before), 1, (loss, loss), NONE)
        assert found.low[0, 0] <= after <= found.high[0, 0]


def test_acceptance_falls_with_the_loss_of_either_model_and_stays_without_one():
    losses = np.array([0.0, 0.01, 0.1, 0.5, 2.0])
    for pair in (((losses, losses), (0 * losses, 0 * losses)), ((0 * losses, 0 * losses), (losses, losses))):
        found = rates_of(Acceptance.of_rate(0.8), 2, *pair)
        assert found.value[0, 0] == found.low[0, 0] == found.high[0, 0] == pytest.approx(0.8)
        assert (np.diff(found.value[:, 0]) < 0).all()
        assert (found.low <= found.value).all()
        assert (found.value <= found.high).all()


def test_the_share_of_a_loss_that_acceptance_feels_is_fitted_and_kept():
    """Three pairs that feel a quarter of their losses."""
    losses = np.array([0.01, 0.05, 0.2])
    felt = 1 - np.sqrt(0.3**2 + 0.25 * losses / np.pi)
    assert fitted_loss_ratio(0.7, losses, felt) == pytest.approx(0.25, rel=1e-12)
    assert fitted_loss_ratio(0.7, losses, np.full(3, 0.8)) == 0.0
    assert fitted_loss_ratio(0.7, np.zeros(3), felt) == 1.0
    given = replace(Acceptance.of_rate(0.7), loss_ratio=0.25)
    assert Acceptance.from_json(json.loads(json.dumps(given.to_json()))) == given
    found, plain = (rates_of(a, 1, (losses, losses), NONE3) for a in (given, Acceptance.of_rate(0.7)))
    assert found.value[:, 0] == pytest.approx(felt)
    # The ends are theory's, whatever was fitted.
    assert (found.low == plain.low).all()
    assert (found.high == plain.high).all()
    with pytest.raises(UserError):
        replace(given, loss_ratio=1.5)


def test_nothing_is_known_beyond_the_log():
    found = rates_of(Acceptance((0.9, 0.8)), 4, NONE, NONE)
    assert found.value[0].tolist() == pytest.approx([0.9, 0.8, 0.0, 0.0])
    assert found.high[0].tolist()[2:] == [0.0, 0.0]
