"""The default source of new trials: a Gaussian process that learns from trials at every fidelity.

Stock samplers see one number a trial. Under early stopping most trials have a loss at a low fidelity only, which is no
loss of a whole trial, but evidence of one: this sampler models learning curves (`pharos.search.gaussian_process`) and
proposes the configuration whose whole trial improves most on the best in expectation. Around that:

    first trials          a scrambled Sobol sequence, spread evenly over the space
    running trials        count as if they were to end as predicted, so that trials asked for at once differ
    infeasible trials     (a violated constraint: diverged, out of memory) lower the probability around them of being
                          feasible, by which the improvement is multiplied
    several objectives    one random weighting at a time (ParEGO, Knowles 2006): proposals spread along the front
    a misled model        one proposal in ten is random all the same
    many trials           the model has the most telling few hundred of their losses

The randomness of a proposal follows from the seed and the trial's number alone. What is kept between proposals only
saves time: a sampler made anew, as on a resume, goes on from the study's trials.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.linalg import LinAlgError
from scipy.special import log_ndtr
from scipy.stats import qmc

from pharos.ranges import draw
from pharos.search.acquisition import log_expected_improvement, most_promising
from pharos.search.encoding import Encoder
from pharos.search.fronts import Losses
from pharos.search.gaussian_process import Kernel, Posterior, fit
from pharos.space import Params, Space

logger = logging.getLogger(__name__)

Point = tuple[int, int]
"""A trial's number and a fidelity that it has reported at."""

_RANDOM_EVERY = 10
_LEVELS = 4
"""Of a trial the model has its losses at a whole trial, a quarter of it, ..., and its last one."""
_POINTS = 300
_FIT_POINTS = 200
"""Hyperparameters are fitted to no more than these; a fit costs their number cubed, some dozen times."""
_BELIEVED = 60
_GROWTH = 1.1
"""The points are chosen and the hyperparameters fitted again when there are so many times those of the last time."""
_LABELS = 100
"""Of feasible trials and of infeasible ones, that the model of feasibility has."""
_LABEL_NOISE = 0.5
"""Without it a border would be fitted by short lengthscales, which say nothing between two infeasible trials."""
_LEAST_FEASIBLE = 0.25
"""What is less probably feasible is proposed only if all else is, too."""
_CEILING = 3.0
_AUGMENTED = 0.05
_TRIES = 1000


@dataclass(frozen=True)
class _Evidence:
    """What a trial tells.

    Attributes:
        number: The trial's.
        row: Its configuration, as the encoder has it. [D]
        losses: All that it has reported and that is finite, by fidelity.
        levels: The fidelities that the model is to have, in rising order.
        ended: It will tell no more.
        feasible: It has violated no constraint.
    """

    number: int
    row: np.ndarray
    losses: Mapping[int, Losses]
    levels: tuple[int, ...]
    ended: bool
    feasible: bool


@dataclass
class _Model:
    """The process of the last proposal, to be extended for the next.

    Attributes:
        kernel: Its hyperparameters.
        posterior: After `points`.
        points: In the posterior's order.
        known: By trial, the last fidelity that was known when the points were chosen or added.
        fitted: How many points there were when the hyperparameters were fitted.
    """

    kernel: Kernel
    posterior: Posterior
    points: list[Point]
    known: dict[int, int]
    fitted: int


@dataclass
class _Feasibility:
    """The process of labels, 1 for feasible and -1 for infeasible, while there are so many of each."""

    counts: tuple[int, int] = (0, 0)
    fitted: int = 0
    kernel: Kernel | None = None
    posterior: Posterior | None = None
    weights: np.ndarray = field(default_factory=lambda: np.empty(0))


class MultiFidelitySampler(optuna.samplers.BaseSampler):
    """Proposes configurations from the trials' learning curves.

    Args:
        space: What is searched.
        defaults: The configuration's value of every name that a condition may refer to.
        max_fidelity: Of a whole trial.
        seed: Of everything random.
        startup: Trials that are spread over the space before the model is asked.
        curve_of: A trial's losses by fidelity, lower is better, one number an objective.
    """

    def __init__(
        self,
        space: Space,
        defaults: Mapping[str, Any],
        max_fidelity: int,
        *,
        seed: int,
        startup: int = 8,
        curve_of: Callable[[FrozenTrial], Mapping[int, Losses]],
    ):
        self._encoder = Encoder(space, defaults)
        self._distributions = {dimension.name: dimension.distribution for dimension in space.dimensions}
        self._max_fidelity = max_fidelity
        self._seed = seed
        self._startup = startup
        self._curve_of = curve_of
        self._read: dict[int, _Evidence] = {}
        self._open: set[int] = set()  # trials that had not ended when they were looked at
        self._seen = 0
        self._model: _Model | None = None
        self._feasibility = _Feasibility()
        self._sobol = np.empty((0, len(space)))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        """The values of those dimensions that exist in the proposal."""
        number = trial.number
        if not self._distributions:
            return {}
        if number < self._startup and math.isinf(self._encoder.size):
            return self._encoder.params(self._spread(number))
        rng = np.random.default_rng((self._seed, number))
        evidence = self._evidence(study, number)
        row = self._encoder.settle(self._propose(evidence, number, rng)[None])[0]
        return self._encoder.params(self._untried(row, evidence, rng))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform draw: of what is no dimension of the space, nothing is known."""
        return draw(
            param_distribution, np.random.default_rng((self._seed, trial.number, zlib.crc32(param_name.encode())))
        )

    # What the trials tell.

    def _evidence(self, study: optuna.Study, asking: int) -> dict[int, _Evidence]:
        """Of all trials but the one that is asked for, in their order; one that has ended is read once."""
        trials = study.get_trials(deepcopy=False)
        self._open.update(range(self._seen, len(trials)))
        self._seen = len(trials)
        for number in sorted(self._open - {asking}):
            trial = trials[number]
            state = trial.state
            if state.is_finished():
                self._open.remove(number)
            if state not in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING):
                self._read.pop(number, None)
            elif (known := self._understood(trial, self._read.get(number))) is not None:
                is_late = number not in self._read and number < next(reversed(self._read), 0)
                self._read[number] = known
                if is_late:
                    self._read = dict(sorted(self._read.items()))
        return self._read

    def _understood(self, trial: FrozenTrial, before: _Evidence | None) -> _Evidence | None:
        """What a trial tells now; None: its values do not lie in the space."""
        ended = trial.state != TrialState.RUNNING
        curve = self._curve_of(trial)
        if before is not None and not ended and len(curve) == len(before.losses):
            return before
        row = before.row if before is not None else self._encoder.row(trial.params)
        if row is None:
            return None
        losses = {f: tuple(curve[f]) for f in sorted(curve) if all(map(math.isfinite, curve[f]))}
        levels = set(list(losses)[-1:])
        for level in range(_LEVELS):
            levels.update([f for f in losses if f >= self._max_fidelity / 4**level][:1])
        feasible = all(value <= 0 for value in trial.constraints.values())
        return _Evidence(trial.number, row, losses, tuple(sorted(levels)), ended, feasible)

    # The proposal.

    def _propose(self, evidence: Mapping[int, _Evidence], number: int, rng: np.random.Generator) -> np.ndarray:
        telling = sum(1 for each in evidence.values() if each.losses or not each.feasible)
        if number < self._startup or telling < max(2, self._startup // 2):
            return self._spread(number)
        if number % _RANDOM_EVERY == _RANDOM_EVERY - 1:
            return rng.random(len(self._distributions))
        try:
            return self._modelled(evidence, rng)
        except LinAlgError as error:
            logger.warning("trial %d does not come from the model, which cannot be fitted: %s", number, error)
            self._model, self._feasibility = None, _Feasibility()
            return self._spread(number)

    def _spread(self, number: int) -> np.ndarray:
        """A place of the Sobol sequence. [D]"""
        if number >= len(self._sobol):
            sobol = qmc.Sobol(len(self._distributions), scramble=True, rng=np.random.default_rng(self._seed))
            self._sobol = sobol.random_base2(max(6, number.bit_length()))
        return np.asarray(self._sobol[number])

    def _untried(self, row: np.ndarray, evidence: Mapping[int, _Evidence], rng: np.random.Generator) -> np.ndarray:
        """The row; in a space of countable size, if it was tried before, one that was not."""
        tried = self._tried(evidence)
        if self._encoder.key(row) not in tried:
            return row
        others = self._encoder.settle(rng.random((_TRIES, len(row))))
        return next((np.asarray(other) for other in others if self._encoder.key(other) not in tried), row)

    def _tried(self, evidence: Mapping[int, _Evidence]) -> set[Hashable]:
        """Keys of the configurations that there were; none, if the space has more of them than can be counted."""
        countable = math.isfinite(self._encoder.size)
        return {self._encoder.key(each.row) for each in evidence.values()} if countable else set()

    def _modelled(self, evidence: Mapping[int, _Evidence], rng: np.random.Generator) -> np.ndarray:
        """The configuration whose whole trial improves most on the best in expectation. [D]"""
        log_feasible = self._log_feasible(evidence)
        if not any(each.losses for each in evidence.values()):
            none = np.empty((0, len(self._distributions)))
            return most_promising(log_feasible or (lambda rows: np.zeros(len(rows))), self._encoder.settle, none, rng)
        objectives = len(next(losses for each in evidence.values() for losses in each.losses.values()))
        weighting = rng.dirichlet(np.ones(objectives))
        model = self._updated(evidence, weighting, rng)
        targets = _standardised(self._weighed(evidence, model.points, weighting))
        weights = model.posterior.weights(targets)

        numbers = list(dict.fromkeys([n for n, _ in model.points] + [n for n, e in evidence.items() if not e.ended]))
        rows = np.array([evidence[n].row for n in numbers])
        features = self._encoder.features(rows)
        expected = model.posterior.means(features, weights)
        feasible = np.array([evidence[n].feasible for n in numbers])
        best = float(expected[feasible].min()) if feasible.any() else float(expected.min())

        # Those whose end is still to come, the best of them if they are many (paused trials can be hundreds).
        open_ = np.flatnonzero([not evidence[n].ended for n in numbers])
        believed = open_[np.argsort(expected[open_], kind="stable")[:_BELIEVED]]
        posterior = model.posterior.extended(features[believed], np.zeros(len(believed)))
        weights = posterior.weights(np.concatenate([targets, expected[believed]]))
        tried = self._tried(evidence)

        def score(rows: np.ndarray) -> np.ndarray:
            value = log_expected_improvement(*posterior.moments(self._encoder.features(rows), weights), best)
            if log_feasible is not None:
                log_probability = log_feasible(rows)
                value = value + log_probability - 1e6 * (log_probability < math.log(_LEAST_FEASIBLE))
            if tried:
                value = np.where([self._encoder.key(row) in tried for row in rows], -np.inf, value)
            return value

        return most_promising(score, self._encoder.settle, rows[np.argsort(expected, kind="stable")[:5]], rng)

    # The model of the losses.

    def _updated(self, evidence: Mapping[int, _Evidence], weighting: np.ndarray, rng: np.random.Generator) -> _Model:
        """The last model with what is new; now and then one that is chosen and fitted afresh."""
        model = self._model
        if model is not None:
            new = [
                (number, fidelity)
                for number, each in evidence.items()
                if each.levels and each.levels[-1] > model.known.get(number, 0)
                for fidelity in each.levels
                if fidelity > model.known.get(number, 0)
            ]
            grown = len(model.points) + len(new)
            if grown < _GROWTH * model.fitted and all(number in evidence for number, _ in model.points):
                model.posterior = model.posterior.extended(*self._inputs(evidence, new))
                model.points = model.points + new
                model.known.update(new)
                return model
        points = [(number, fidelity) for number, each in evidence.items() for fidelity in each.levels]
        losses = dict(zip(points, self._weighed(evidence, points, weighting).tolist(), strict=True))
        chosen = self._chosen(losses, rng)
        features, gaps = self._inputs(evidence, chosen)
        targets = _standardised(np.array([losses[point] for point in chosen]))
        some = slice(_FIT_POINTS)
        start = model.kernel if model is not None else None
        kernel = fit(features[some], gaps[some], targets[some], self._encoder.groups, start=start)
        posterior = Posterior.of(kernel, features, gaps)
        self._model = _Model(kernel, posterior, chosen, dict(points), len(chosen))
        return self._model

    def _chosen(self, losses: Mapping[Point, float], rng: np.random.Generator) -> list[Point]:
        """As many points as the model can have, the most telling first: in turn the best whole trials, the best last
        losses of trials at each fidelity, the newest, and any."""
        points = list(losses)
        if len(points) <= _FIT_POINTS:
            return points
        by_fidelity: dict[int, list[Point]] = {}
        for point in sorted(dict(points).items(), key=losses.__getitem__):
            by_fidelity.setdefault(point[1], []).append(point)
        whole = sorted((point for point in points if point[1] >= self._max_fidelity), key=losses.__getitem__)
        last = (point for level in zip_longest(*by_fidelity.values()) for point in level if point is not None)
        some = [points[place] for place in rng.permutation(len(points))]
        return _in_turn([whole, last, reversed(points), some], _POINTS)

    def _inputs(self, evidence: Mapping[int, _Evidence], points: list[Point]) -> tuple[np.ndarray, np.ndarray]:
        """Features and gaps of points. [N, F], [N]"""
        rows = np.array([evidence[number].row for number, _ in points]).reshape(-1, len(self._distributions))
        fidelities = np.array([max(1, fidelity) for _, fidelity in points], dtype=float)
        gaps = 1 - np.log(fidelities) / math.log(max(2, self._max_fidelity))
        return self._encoder.features(rows), np.maximum(gaps, 0.0) if self._max_fidelity > 1 else np.zeros(len(points))

    def _weighed(self, evidence: Mapping[int, _Evidence], points: list[Point], weighting: np.ndarray) -> np.ndarray:
        """One loss a point: the only one, or the augmented Tchebycheff norm of several (ParEGO). [N]"""
        losses = np.array([evidence[number].losses[fidelity] for number, fidelity in points], dtype=float)
        if len(weighting) == 1:
            return losses[:, 0]
        whole = losses[[fidelity >= self._max_fidelity for _, fidelity in points]]
        ends = whole if len(whole) > 1 else losses
        low, high = ends.min(axis=0), ends.max(axis=0)
        weighed = weighting * (losses - low) / np.where(high > low, high - low, 1.0)
        return np.asarray(weighed.max(axis=1) + _AUGMENTED * weighed.sum(axis=1))

    # The model of feasibility.

    def _log_feasible(self, evidence: Mapping[int, _Evidence]) -> Callable[[np.ndarray], np.ndarray] | None:
        """The logarithm of the probability that rows are feasible; None: all have been."""
        ended = [each for each in evidence.values() if each.ended]
        broken = [each for each in ended if not each.feasible]
        if not broken:
            return None
        counts = (len(ended), len(broken))
        state = self._feasibility
        if counts != state.counts:
            kept = broken[-_LABELS:] + [each for each in ended if each.feasible][-_LABELS:]
            features = self._encoder.features(np.array([each.row for each in kept]))
            labels = np.array([1.0 if each.feasible else -1.0 for each in kept])
            gaps = np.zeros(len(kept))
            if state.kernel is None or counts[0] >= _GROWTH * state.fitted:
                state.kernel = fit(
                    features, gaps, labels, self._encoder.groups, start=state.kernel, least_noise=_LABEL_NOISE
                )
                state.fitted = counts[0]
            state.posterior = Posterior.of(state.kernel, features, gaps)
            state.weights, state.counts = state.posterior.weights(labels), counts
        posterior, weights = state.posterior, state.weights
        assert posterior is not None
        noise = float(posterior.kernel.noise(np.zeros(1))[0])

        def log_probability(rows: np.ndarray) -> np.ndarray:
            mean, deviation = posterior.moments(self._encoder.features(rows), weights)
            return np.asarray(log_ndtr(mean / np.sqrt(deviation**2 + noise)))

        return log_probability


def _standardised(losses: np.ndarray) -> np.ndarray:
    """Losses of mean 0 and variance 1, the bad ones cut off: how bad they are says little of where the good ones are.

    The scale is the distance from the best to the median; `_CEILING` times that is as bad as it gets.
    """
    low = losses.min()
    middle = np.median(losses) - low
    scale = middle if middle > 0 else losses.mean() - low
    if not scale > 0:
        return np.zeros(len(losses))
    cut = np.minimum((losses - low) / scale, _CEILING)
    return np.asarray((cut - cut.mean()) / cut.std())


def _in_turn(queues: list[Iterable[Point]], count: int) -> list[Point]:
    """The first of each queue, the second of each and so on, each point once, until there are so many."""
    chosen: dict[Point, None] = {}
    for round_ in zip_longest(*queues):
        for point in round_:
            if point is not None and len(chosen) < count:
                chosen[point] = None
        if len(chosen) >= count:
            break
    return list(chosen)
