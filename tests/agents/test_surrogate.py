"""Gaussian processes against finite differences, textbook formulas and held-out designs."""

from __future__ import annotations

import numpy as np
import pytest

from agents.surrogate import Features, Posterior, Process, Scale, _posterior, fit
from dse.testing.samples import small_space

SPACE = small_space()


def _data(n, seed=0):
    rng = np.random.default_rng(seed)
    codes = SPACE.sample(n, rng)
    share = codes / np.maximum(SPACE.n_levels - 1, 1)
    y = 3 * share[:, 0] + share[:, 1] ** 2 - 2 * share[:, 2] * share[:, 3]
    return codes, y


def test_the_slope_of_the_likelihood_is_its_finite_difference():
    codes, y = _data(25)
    features = Features(SPACE)
    f = features(codes)
    rng = np.random.default_rng(1)
    start = Process.start(SPACE.n_parameters)
    theta = np.concatenate([start.weights, start.rest]) + 0.5 * rng.normal(size=SPACE.n_parameters + 3)
    _, slope = _posterior(theta, f, features.knob, y)
    for j in (0, 3, len(theta) - 3, len(theta) - 2, len(theta) - 1):
        step = np.eye(len(theta))[j] * 1e-5
        up, down = (_posterior(theta + s, f, features.knob, y)[0] for s in (step, -step))
        assert slope[j] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-6)


def test_likelihood_and_prediction_are_those_of_the_textbook():
    # Rasmussen and Williams (2006), equations 2.23, 2.24 and 2.30, with a solver instead of an inverse.
    codes, y = _data(12)
    features, process = Features(SPACE), Process.start(SPACE.n_parameters)
    f, new = features(codes[:10]), features(codes[10:])
    total, rest = process.kernel(f, f, features.knob)
    covariance = total + rest + (np.exp(process.rest[2]) + 1e-5) * np.eye(10)
    value, _ = _posterior(np.concatenate([process.weights, process.rest]), f, features.knob, y[:10])
    expected = -0.5 * y[:10] @ np.linalg.solve(covariance, y[:10]) - 0.5 * np.linalg.slogdet(covariance)[1]
    assert value == pytest.approx(expected)
    cross = sum(process.kernel(new, f, features.knob))
    own = np.diag(sum(process.kernel(new, new, features.knob)))
    mean, deviation = Posterior(process, f, features.knob, y[:10]).mean_and_deviation(new)
    np.testing.assert_allclose(mean, cross @ np.linalg.solve(covariance, y[:10]))
    np.testing.assert_allclose(deviation**2, own - (cross * np.linalg.solve(covariance, cross.T).T).sum(axis=1))


def test_a_fit_finds_the_knobs_that_matter_and_predicts_what_it_has_not_seen():
    codes, y = _data(120)
    features = Features(SPACE)
    f, scale = features(codes), Scale.of(y[:80])
    z = scale.forward(y)
    process = fit(f[:80], features.knob, z[:80], Process.start(SPACE.n_parameters), 30)
    assert set(np.argsort(-process.weights)[:2].tolist()) <= {0, 1, 2, 3}
    mean = Posterior(process, f[:80], features.knob, z[:80]).mean(f[80:])
    assert np.corrcoef(mean, z[80:])[0, 1] > 0.9


@pytest.mark.parametrize(
    "column", [np.array([1.0, 10.0, 100.0]), np.array([-5.0, 0.0, 3.0]), np.array([-1.0, -100.0, -3.0]),
               np.array([0.0, 1.0, 50.0]), np.array([2.0, 2.0, 2.0])]
)  # fmt: skip
def test_scales_go_there_and_back(column):
    scale = Scale.of(column)
    np.testing.assert_allclose(scale.back(scale.forward(column)), column, rtol=1e-9, atol=1e-9)


def test_a_column_over_decades_is_modelled_by_its_logarithm():
    assert Scale.of(np.array([1.0, 10.0, 100.0])).log
    assert not Scale.of(np.array([100.0, 101.0, 110.0])).log
