"""A Gaussian process over configurations and fidelities, in plain NumPy.

The loss of configuration x at fidelity r, standardised, is modelled as

    y(x, r) = trend(gap) + f(x) + gap * h(x) + noise

where `gap` says how far r is from a whole trial: 0 at the maximum fidelity, 1 at the lowest. `trend` is a quadratic in
the gap with wide priors, the learning curve of the average configuration; f, the loss of a whole trial, and h, how a
configuration's curve differs from the average one, are Matérn-5/2 processes with one lengthscale a dimension. So a
trial that was stopped early tells of f as much as its gap allows, and predictions are made at gap 0.

The hyperparameters are those most probable after the data (MAP), by L-BFGS with analytic gradients, under log-normal
priors; the lengthscales' priors grow with the root of the number of dimensions (Hvarfner et al., ICML 2024), as
distances do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, lapack, solve_triangular
from scipy.optimize import minimize

_TREND = (1.0, 4.0, 4.0)
"""Prior variances of the trend's terms 1, gap and gap²."""
_LENGTHSCALE = (0.4, 0.8)
"""Prior of a lengthscale in one dimension: its median and the standard deviation of its logarithm."""
_FULL = (1.0, 0.7)
"""The same of the standard deviation of f."""
_CURVE = (0.5, 0.8)
"""The same of the standard deviation of h."""
_NOISE = (0.02, 1.2)
"""The same of the standard deviation of the noise of whole trials."""
_EARLY = (0.05, 1.0)
"""The same of the noise that is added to it, times the gap."""
_BOUNDS = (
    (math.log(0.02), math.log(50.0)),
    (math.log(0.05), math.log(20.0)),
    (math.log(1e-3), math.log(20.0)),
)
"""Of the logarithms of a lengthscale and of the standard deviations of f and h."""
_MOST_NOISE = math.log(2.0)
_STEPS = 50
_JITTER = (0.0, 1e-8, 1e-6, 1e-4)


@dataclass(frozen=True)
class Kernel:
    """The hyperparameters, as their logarithms: D lengthscales, the standard deviations of f, of h and of the noise.

    Attributes:
        logs: [D + 4]
        groups: For each feature column, the dimension that it belongs to. [F]
    """

    logs: np.ndarray
    groups: np.ndarray

    def scaled(self, features: np.ndarray) -> np.ndarray:
        """Features in units of lengthscales. [N, F]"""
        return np.asarray(features / np.exp(self.logs[:-4])[self.groups])

    @property
    def variances(self) -> tuple[float, float, float, float]:
        """Of f, of h, of the noise of whole trials and of the noise that grows with the gap."""
        full, curve, noise, early = np.exp(2 * self.logs[-4:])
        return float(full), float(curve), float(noise), float(early)

    def noise(self, gaps: np.ndarray) -> np.ndarray:
        """Variance of the noise at gaps. [N]"""
        _, _, noise, early = self.variances
        return noise + early * gaps**2

    def between(self, a: np.ndarray, gaps_a: np.ndarray, b: np.ndarray, gaps_b: np.ndarray) -> np.ndarray:
        """Covariance, without noise, of scaled features at gaps. [N, F], [N], [M, F], [M] -> [N, M]"""
        full, curve, _, _ = self.variances
        root = _roots(a, b)
        return np.asarray((full + curve * np.outer(gaps_a, gaps_b)) * _matern(root) + _trend(gaps_a, gaps_b))


def prior(dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the hyperparameters' logarithms. [D + 4] each"""
    lengthscale = (_LENGTHSCALE[0] * math.sqrt(dimensions), _LENGTHSCALE[1])
    pairs = [lengthscale] * dimensions + [_FULL, _CURVE, _NOISE, _EARLY]
    return np.log([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])


def fit(
    features: np.ndarray,
    gaps: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    start: Kernel | None = None,
    least_noise: float = 1e-3,
) -> Kernel:
    """The most probable hyperparameters.

    Args:
        features: [N, F]
        gaps: [N]
        targets: Standardised losses. [N]
        groups: As in `Kernel`.
        start: Where to start from; None: from the prior's middle.
        least_noise: The noise's standard deviation is at least that.

    Raises:
        LinAlgError: The covariance has no Cholesky factor, whatever the jitter.
    """
    dimensions = int(groups.max()) + 1
    centre, _ = prior(dimensions)
    noise = (math.log(least_noise), _MOST_NOISE)
    bounds = np.array([_BOUNDS[0]] * dimensions + [*_BOUNDS[1:], noise, noise])
    result = minimize(
        loss_and_gradient,
        np.clip(centre if start is None else start.logs, bounds[:, 0], bounds[:, 1]),
        args=(features, gaps, targets, groups),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": _STEPS, "maxfun": 2 * _STEPS, "ftol": 1e-5},
    )
    return Kernel(result.x, groups)


def loss_and_gradient(
    logs: np.ndarray, features: np.ndarray, gaps: np.ndarray, targets: np.ndarray, groups: np.ndarray
) -> tuple[float, np.ndarray]:
    """The negative logarithm of the hyperparameters' posterior density, up to a constant, and its gradient. [D + 4]"""
    kernel = Kernel(logs, groups)
    scaled = kernel.scaled(features)
    full, curve, noise, early = kernel.variances
    root = _roots(scaled, scaled)
    matern = _matern(root)
    curves = curve * np.outer(gaps, gaps)
    covariance = (full + curves) * matern + _trend(gaps, gaps)
    covariance[np.diag_indices_from(covariance)] += kernel.noise(gaps)
    factor = _factor(covariance)
    weights = cho_solve((factor, True), targets, check_finite=False)
    centre, spread = prior(len(logs) - 4)
    deviation = (logs - centre) / spread
    loss = 0.5 * targets @ weights + np.log(np.diag(factor)).sum() + 0.5 * deviation @ deviation

    inverse, _ = lapack.dpotri(factor, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    slope = inverse - np.outer(weights, weights)
    gradient = deviation / spread
    # The derivative of the Matérn by the logarithm of a lengthscale is 5/3 (1 + root) exp(-root) times that dimension's
    # share of the squared distance; summed over pairs with symmetric weights A, sum A_ij (x_i - x_j)^2 is
    # 2 (sum_i a_i x_i^2 - x'Ax) with the row sums a: no [N, N, F] is needed.
    pairs = slope * (full + curves) * ((5 / 3) * (1 + root) * np.exp(-root))
    columns = pairs.sum(axis=1) @ scaled**2 - np.einsum("nf,nf->f", scaled, pairs @ scaled)
    gradient[:-4] += np.bincount(groups, weights=columns, minlength=len(logs) - 4)
    gradient[-4] += full * np.sum(slope * matern)
    gradient[-3] += np.sum(slope * curves * matern)
    gradient[-2] += noise * np.trace(slope)
    gradient[-1] += early * np.sum(np.diag(slope) * gaps**2)
    return float(loss), gradient


@dataclass(frozen=True)
class Posterior:
    """The process after observations, for any targets at them.

    Attributes:
        kernel: The hyperparameters.
        scaled: Features of the observations, in lengthscales. [N, F]
        gaps: [N]
        factor: Lower Cholesky factor of their covariance with noise. [N, N]
    """

    kernel: Kernel
    scaled: np.ndarray
    gaps: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, kernel: Kernel, features: np.ndarray, gaps: np.ndarray) -> Posterior:
        """After observations at these features and gaps."""
        scaled = kernel.scaled(features)
        covariance = kernel.between(scaled, gaps, scaled, gaps)
        covariance[np.diag_indices_from(covariance)] += kernel.noise(gaps)
        return cls(kernel, scaled, gaps, _factor(covariance))

    def extended(self, features: np.ndarray, gaps: np.ndarray) -> Posterior:
        """After more observations; costs what the new rows of the factor cost."""
        if not len(gaps):
            return self
        known, scaled = len(self.gaps), self.kernel.scaled(features)
        across = solve_triangular(
            self.factor,
            self.kernel.between(self.scaled, self.gaps, scaled, gaps),
            lower=True,
            check_finite=False,
        )
        rest = self.kernel.between(scaled, gaps, scaled, gaps) - across.T @ across
        rest[np.diag_indices_from(rest)] += self.kernel.noise(gaps)
        factor = np.zeros((known + len(gaps),) * 2)
        factor[:known, :known] = self.factor
        factor[known:, :known] = across.T
        factor[known:, known:] = _factor(rest)
        return Posterior(self.kernel, np.concatenate([self.scaled, scaled]), np.concatenate([self.gaps, gaps]), factor)

    def weights(self, targets: np.ndarray) -> np.ndarray:
        """What `means` multiplies covariances with, for targets at the observations. [N]"""
        return np.asarray(cho_solve((self.factor, True), targets, check_finite=False))

    def means(self, features: np.ndarray, weights: np.ndarray, gap: float = 0.0) -> np.ndarray:
        """Expected losses, of whole trials or at a gap. [M, F] -> [M]"""
        return np.asarray(self._across(features, gap) @ weights)

    def moments(self, features: np.ndarray, weights: np.ndarray, gap: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Expected losses, of whole trials or at a gap, and their standard deviations without noise.

        [M, F] -> [M], [M]
        """
        across = self._across(features, gap)
        mean = across @ weights  # before its memory is used again
        explained = solve_triangular(self.factor, across.T, lower=True, check_finite=False, overwrite_b=True)
        full, curve, _, _ = self.kernel.variances
        own = full + curve * gap**2 + _TREND[0] + _TREND[1] * gap**2 + _TREND[2] * gap**4
        variance = own - np.einsum("nm,nm->m", explained, explained)
        return mean, np.sqrt(np.maximum(variance, 1e-12))

    def _across(self, features: np.ndarray, gap: float) -> np.ndarray:
        """[M, N]"""
        gaps = np.full(len(features), gap)
        return self.kernel.between(self.kernel.scaled(features), gaps, self.scaled, self.gaps)


def _roots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The root of five times the squared distance. [N, F], [M, F] -> [N, M]"""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * (a @ b.T)
    return np.asarray(np.sqrt(5 * np.maximum(squares, 0.0)))


def _matern(root: np.ndarray) -> np.ndarray:
    """The Matérn-5/2 correlation."""
    return np.asarray((1 + root + root**2 / 3) * np.exp(-root))


def _trend(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Covariance of the trend at gaps. [N], [M] -> [N, M]"""
    both = np.outer(a, b)
    return np.asarray(_TREND[0] + _TREND[1] * both + _TREND[2] * both**2)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """The lower Cholesky factor, with as little added to the diagonal as makes it exist."""
    # LAPACK may let what is not a number pass.
    if np.isfinite(covariance).all():
        for jitter in _JITTER:
            try:
                jittered = covariance + jitter * np.eye(len(covariance)) if jitter else covariance
                return np.asarray(cholesky(jittered, lower=True, check_finite=False))
            except LinAlgError:
                continue
    raise LinAlgError("the covariance has no Cholesky factor")
