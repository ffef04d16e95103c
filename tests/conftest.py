"""What all tests share: determinism, one thread, and a family that trains in milliseconds."""

import gc
import importlib.machinery
import math
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
import pytest
import torch
from pair import Pair
from torch import Tensor, nn

from pharos import families
from pharos.errors import InputError
from pharos.learner import OptimConfig
from pharos.recipe import Recipe
from pharos.run import Epoch, Run
from pharos.trial import TrialSpec

hypothesis.settings.register_profile(
    "pharos",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("pharos")


_ALONE = ("backends/", "commands/test_real", "commands/test_bucket", "pharos/tracking/test_online.py")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What `make test` runs side by side: a file's tests, or a family's, stay together.

    Those that start processes of their own and look at clocks run alone, one by one.
    """
    here = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(here).as_posix()
        if path.startswith(_ALONE):
            item.add_marker("alone")
        values = getattr(item, "callspec", None)
        family = values.params.get("family", "") if values else ""
        item.add_marker(pytest.mark.xdist_group(f"{path}:{family}"))


os.environ["RAY_ADDRESS"] = "local"  # a sweep joins any Ray of the machine, also one of the tests beside it


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _what_is_left_stays():
    """Each trial ends with a walk over all objects of its process; those of the tests before took it half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_bucket_is_reached_with_the_credentials_of_another_test():
    """A file system is made once for its arguments, and keeps what the environment had then."""
    yield
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """Two processes for trials of two workers, warm from test to test."""
    pair = Pair()
    yield pair
    pair.close()


@dataclass
class ToyConfig:
    """Everything that a search space can ask of a family: a scale, a choice, a condition, an int."""

    lr: float = 0.1
    kind: str = "plain"
    noise: float = 0.0
    dropout: float = 0.1
    width: int = 4
    epochs: int = 4
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.kind not in ("plain", "noisy"):
            raise InputError(f"recipe.kind={self.kind} must be plain or noisy")


class ToyRecipe(Recipe):
    """A regression on 64 samples. What a test wants to happen inside happens through `Toy`."""

    Config = ToyConfig
    scales: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "small": {}, "tiny": {"epochs": 2}}
    toy: ClassVar["Toy"]

    def fidelity(self, config: ToyConfig) -> int:
        return config.epochs

    def train(self, run: Run, config: ToyConfig) -> None:
        toy = self.toy
        toy.started.append(config)
        x = torch.linspace(-1, 1, 64)[:, None]
        y = torch.sin(2 * x)
        module = nn.Sequential(
            nn.Linear(1, config.width), nn.Tanh(), nn.Dropout(config.dropout), nn.Linear(config.width, 1)
        )
        net = run.learner("net", module, OptimConfig(lr=config.lr))
        for epoch in run.epochs("fit", config.epochs):
            for batch, target in epoch.batches((x, y), config.batch_size):
                noisy = batch + config.noise * torch.randn(batch.shape)
                net.step(toy.loss(nn.functional.mse_loss(net(noisy), target), run, epoch))
            with net.evaluating():
                metrics = {"error": float(nn.functional.mse_loss(net(x), y))}
            epoch.report(metrics | (toy.in_epoch(run, epoch, config) or {}))

    def predict(self, run: Run, config: ToyConfig, folder: Path, output: Path) -> None:
        module = nn.Sequential(nn.Linear(1, config.width), nn.Tanh(), nn.Dropout(0.0), nn.Linear(config.width, 1))
        net = run.learner("net", module, OptimConfig())
        with net.evaluating():
            for path in sorted(folder.iterdir()):
                value = net(torch.tensor([[float(path.read_text())]]))
                (output / path.name).write_text(repr(float(value)))


ToyRecipe.__module__ = "trainables.toy.recipe"

_SPACE = """\
objective: {metric: error, mode: min}
space:
  recipe.lr: tag(log, interval(1e-3, 0.5))
  recipe.kind: choice(plain, noisy)
  recipe.noise:
    sweep: interval(0, 0.5)
    when: {recipe.kind: noisy}
first_trials:
  - {recipe.kind: noisy, recipe.noise: 0.25}
"""


class Toy:
    """The toy family as a test steers it.

    Attributes:
        url: A folder for sweeps.
        space_file: Its `default.yaml`, which a test may write anew.
        started: The configuration of each call of `train`, in order.
        in_epoch: Called before each report with the run, the epoch and the configuration; it may raise, and the
            metrics that it returns replace the true ones.
        loss: What becomes of each loss.
    """

    def __init__(self, home: Path):
        self.url = str(home / "sweeps")
        self.space_file = home / "search_spaces" / "toy" / "default.yaml"
        self.started: list[ToyConfig] = []
        self.in_epoch: Callable[[Run, Epoch, ToyConfig], Mapping[str, float] | None] = lambda run, epoch, config: None
        self.loss: Callable[[Tensor, Run, Epoch], Tensor] = lambda loss, run, epoch: loss

    def spec(self, folder: Path, **changes: Any) -> TrialSpec:
        """A trial of the toy family's own values."""
        spec = TrialSpec(
            sweep="toy-sweep",
            number=0,
            family="toy",
            params={},
            config={},
            seed=1,
            folder=str(folder),
            max_fidelity=4,
            objective="error",
            checkpoint_seconds=0.0,
            threads=1,
        )
        return replace(spec, **changes)

    def nan_at(self, epoch_index: int) -> None:
        """Makes the loss NaN in an epoch."""
        self.loss = lambda loss, run, epoch: loss * math.nan if epoch.index == epoch_index else loss


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Toy:
    """Adds a family called `toy` and takes the others away; found by name as any family is."""
    home = tmp_path / "checkout"
    module = types.ModuleType("trainables.toy.recipe")
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    module.ToyRecipe = ToyRecipe
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(families, "ROOT", home)
    toy = Toy(home)
    monkeypatch.setattr(ToyRecipe, "toy", toy, raising=False)
    for path, text in ((home / "trainables/toy/recipe.py", ""), (toy.space_file, _SPACE)):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return toy
