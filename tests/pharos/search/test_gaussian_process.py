"""The process is what its formula says: gradient, posterior, and updates that equal a fresh start."""

import numpy as np
import pytest
from scipy.linalg import LinAlgError
from scipy.optimize import check_grad

from pharos.search.gaussian_process import Kernel, Posterior, _factor, fit, loss_and_gradient, prior

GROUPS = np.array([0, 1, 2, 2])


def data(count=30, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.random((count, 4))
    gaps = rng.choice([0.0, 0.3, 1.0], size=count)
    targets = np.sin(5 * features[:, 0]) + features[:, 2] * gaps + 0.05 * rng.standard_normal(count)
    return features, gaps, (targets - targets.mean()) / targets.std()


def kernel(seed=0):
    rng = np.random.default_rng(seed)
    centre, spread = prior(3)
    return Kernel(centre + 0.3 * spread * rng.standard_normal(7), GROUPS)


def covariance(kernel, a, gaps_a, b, gaps_b):
    """The model's, as the module's docstring has it, one pair at a time."""
    lengthscales = np.exp(kernel.logs[:3])[GROUPS]
    full, curve = np.exp(2 * kernel.logs[3]), np.exp(2 * kernel.logs[4])
    result = np.empty((len(a), len(b)))
    for i in range(len(a)):
        for j in range(len(b)):
            root = np.sqrt(5 * np.sum(((a[i] - b[j]) / lengthscales) ** 2))
            matern = (1 + root + root**2 / 3) * np.exp(-root)
            both = gaps_a[i] * gaps_b[j]
            result[i, j] = (full + curve * both) * matern + 1 + 4 * both + 4 * both**2
    return result


@pytest.mark.parametrize("seed", range(3))
def test_gradient(seed):
    features, gaps, targets = data(seed=seed)
    arguments = (features, gaps, targets, GROUPS)
    error = check_grad(
        lambda logs: loss_and_gradient(logs, *arguments)[0],
        lambda logs: loss_and_gradient(logs, *arguments)[1],
        kernel(seed).logs,
    )
    assert error < 1e-3 * np.linalg.norm(loss_and_gradient(kernel(seed).logs, *arguments)[1])


@pytest.mark.parametrize("gap", [0.0, 0.5])
def test_posterior_is_the_closed_form(gap):
    features, gaps, targets = data(8)
    at = np.random.default_rng(1).random((5, 4))
    k = kernel()
    noise = np.exp(2 * k.logs[5]) + np.exp(2 * k.logs[6]) * gaps**2
    inverse = np.linalg.inv(covariance(k, features, gaps, features, gaps) + np.diag(noise))
    across = covariance(k, at, np.full(5, gap), features, gaps)
    own = covariance(k, at, np.full(5, gap), at, np.full(5, gap))
    posterior = Posterior.of(k, features, gaps)
    mean, deviation = posterior.moments(at, posterior.weights(targets), gap)
    np.testing.assert_allclose(mean, across @ inverse @ targets, atol=1e-9)
    np.testing.assert_allclose(deviation**2, np.diag(own - across @ inverse @ across.T), atol=1e-8)
    np.testing.assert_allclose(posterior.means(at, posterior.weights(targets), gap), mean)


def test_an_extended_posterior_is_a_fresh_one():
    features, gaps, targets = data(30)
    whole = Posterior.of(kernel(), features, gaps)
    grown = Posterior.of(kernel(), features[:10], gaps[:10])
    for start, end in ((10, 11), (11, 25), (25, 25), (25, 30)):
        grown = grown.extended(features[start:end], gaps[start:end])
    np.testing.assert_allclose(grown.factor, whole.factor, atol=1e-9)
    at = np.random.default_rng(1).random((5, 4))
    for mine, fresh in zip(
        grown.moments(at, grown.weights(targets)), whole.moments(at, whole.weights(targets)), strict=True
    ):
        np.testing.assert_allclose(mine, fresh, atol=1e-9)


def test_moments_at_observations_are_what_was_observed():
    features, _, targets = data(20)
    quiet = Kernel(np.concatenate([kernel().logs[:-2], np.log([1e-3, 1e-3])]), GROUPS)
    posterior = Posterior.of(quiet, features, np.zeros(20))
    mean, deviation = posterior.moments(features, posterior.weights(targets))
    np.testing.assert_allclose(mean, targets, atol=1e-2)
    assert (deviation < 0.01).all()


def test_a_fit_finds_what_matters_and_how_noisy_it_is():
    rng = np.random.default_rng(0)
    features = rng.random((60, 4))
    targets = np.sin(6 * features[:, 0])
    found = fit(features, np.zeros(60), (targets - targets.mean()) / targets.std(), GROUPS)
    lengthscales = np.exp(found.logs[:3])
    assert lengthscales[0] < 0.5 * lengthscales[1:].min()
    assert found.noise(np.zeros(1))[0] < 1e-3
    noisy = targets + 0.5 * rng.standard_normal(60)
    found = fit(features, np.zeros(60), (noisy - noisy.mean()) / noisy.std(), GROUPS)
    assert 0.1 < found.noise(np.zeros(1))[0] * noisy.var() < 0.4


def test_noise_can_be_asked_for():
    features, gaps, targets = data()
    assert fit(features, gaps, targets, GROUPS, least_noise=0.5).noise(np.zeros(1))[0] >= 0.25 - 1e-9


def test_early_losses_tell_of_the_end():
    """A trend in the gap and an f that is common to all: whole trials are predicted where none was."""
    rng = np.random.default_rng(0)
    features, gaps = rng.random((60, 1)), np.repeat([1.0, 0.6], 30)
    gaps[:3] = 0.0
    truth = np.cos(5 * features[:, 0])
    targets = truth + 2 * gaps
    mean, spread = targets.mean(), targets.std()
    groups = np.array([0])
    found = fit(features, gaps, (targets - mean) / spread, groups)
    posterior = Posterior.of(found, features, gaps)
    at = np.linspace(0.05, 0.95, 10)[:, None]
    predicted = posterior.means(at, posterior.weights((targets - mean) / spread)) * spread + mean
    np.testing.assert_allclose(predicted, np.cos(5 * at[:, 0]), atol=0.15)


def test_the_same_configuration_twice_needs_no_jitter_or_gets_it():
    features = np.zeros((5, 4))
    assert np.isfinite(Posterior.of(kernel(), features, np.zeros(5)).factor).all()
    assert np.isfinite(_factor(np.ones((4, 4)))).all()
    with pytest.raises(LinAlgError):
        _factor(np.full((3, 3), np.nan))
