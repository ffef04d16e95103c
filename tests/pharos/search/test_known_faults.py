"""Nine known faults of Ray Tune with Optuna as they come, each as a behaviour: theirs is seen to fail, ours holds.

`stock` is Tune's own controller, search generator, AsyncHyperBandScheduler and OptunaSearch (Ray 2.60, Optuna 5), with
Optuna's journal; only the actors are missing, whose results the tests give to the controller. `pharos` is a sweep of
the toy family, run by the local backend. What Optuna's study says is looked at, as it lies on disk.
"""

import contextlib
import functools
import gc
import inspect
import math
import os
import shutil
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from pharos import summary as summary_module
from pharos import sweep as sweep_module
from pharos.backends import local
from pharos.console import Console
from pharos.errors import InputError
from pharos.records import curve_of
from pharos.space import parse_space

MAX = 4  # epochs of the toy family
PAPER = {"recipe.lr": 0.1, "recipe.width": 4}
SPACE = {"recipe.lr": "tag(log, interval(1e-3, 0.5))", "recipe.width": "choice(2, 4)"}


class Fault(AssertionError):  # noqa: N818
    """The fault itself: whatever else fails in a stock test is no expected failure."""


@contextlib.contextmanager
def the_fault(*errors):
    """What the stock pairing must fail in."""
    try:
        yield
    except (AssertionError, *errors) as error:
        raise Fault(f"{type(error).__name__}: {error}") from error


def load_study(journal, name="sweep"):
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(journal))))


def violation(bound, trial):
    """The best that can be done with OptunaSearch: it is given Optuna's trial, and nothing of what was reported."""
    metric, most = bound
    return [trial.user_attrs.get(metric, 0.0) - most]


class Stock:
    """Tune with Optuna; a driver after the other on one experiment and one study."""

    def __init__(self, folder, toy):
        self.folder = folder
        self.journal = folder / "study.journal"
        self.epochs = {}

    def start(self, objectives=("error",), first=(), bound=None, trials=99):
        """A driver: `Tuner(…).fit()`."""
        self._options = {"metrics": objectives, "bound": bound}
        self._drive(trials, SPACE, [PAPER, *first])

    def _drive(self, trials, space, points, resume=None):
        from ray.train._internal.storage import StorageContext
        from ray.tune.execution.tune_controller import TuneController
        from ray.tune.experiment import Experiment
        from ray.tune.schedulers import AsyncHyperBandScheduler
        from ray.tune.search import SearchGenerator
        from ray.tune.search.optuna import OptunaSearch

        metrics, bound = self._options["metrics"], self._options["bound"]
        is_single = len(metrics) == 1
        searcher = OptunaSearch(
            parse_space(space, "test").distributions,
            metric=metrics[0] if is_single else list(metrics),
            mode="min" if is_single else ["min"] * len(metrics),
            points_to_evaluate=points,
            study_name="sweep",
            storage=JournalStorage(JournalFileBackend(str(self.journal))),
            sampler=TPESampler(seed=0, constraints_func=functools.partial(violation, bound) if bound else None),
        )
        generator = SearchGenerator(searcher)
        generator.add_configurations(
            Experiment("tune", lambda config: None, num_samples=trials, storage_path=str(self.folder))
        )

        class Controller(TuneController):
            def _schedule_trial_train(self, trial):
                """The next result is asked of the actor: it comes from the test."""

        self._controller = Controller(
            search_alg=generator,
            scheduler=AsyncHyperBandScheduler(metric=metrics[0], mode="min", max_t=MAX),
            storage=StorageContext(str(self.folder), "tune"),
            resume_config=resume,
        )

    def begin(self):
        """Starts a trial, and gives its values; None: there is none."""
        if not self._controller._update_trial_queue():
            return None
        trial = self._controller.get_trials()[-1]
        self._controller._set_trial_status(trial, "RUNNING")
        return trial.config

    def run(self, metrics_of, count):
        for _ in range(count):
            params = self.begin()
            if params is None:
                return
            trials = self._controller.get_trials()
            for epoch in range(1, MAX + 1):
                metrics = metrics_of(len(trials) - 1, epoch, params)
                self._controller._on_training_result(trials[-1], {**metrics, "training_iteration": epoch})
                self.epochs[len(trials) - 1] = epoch
                if trials[-1].status != "RUNNING":
                    break

    def save(self):
        """What the controller does every ten seconds."""
        self._controller.checkpoint(force=True, wait=True)

    def close(self):
        self.save()
        # What the searcher is restored from.
        self.state = max((self.folder / "tune").glob("searcher-state*.pkl"))

    def crash(self):
        del self._controller

    def resume(self, trials=99):
        """A driver that takes the experiment up: `Tuner.restore(…).fit()`."""
        from ray.tune.impl.tuner_internal import ResumeConfig

        shutil.rmtree(self.folder / "session", ignore_errors=True)  # each cluster has its own
        self._drive(trials, SPACE, [], ResumeConfig())

    def extend(self, trials):
        """The same; `Tuner.restore` does not even take a number."""
        self.resume(trials)

    def change(self, space, trials):
        """A new experiment that goes on with the study; one that is restored has its old space."""
        self._drive(trials, SPACE | space, [])

    @property
    def known(self):
        """How many trials the driver knows of."""
        return len(self._controller.get_trials())

    def study(self, generation=0):
        return load_study(self.journal)


class Pharos:
    """A sweep of the toy family; a driver after the other."""

    def __init__(self, folder, toy):
        self._toy = toy
        self._at = [f"storage.url={toy.url}"]
        self.epochs = {}

    def start(self, objectives=("error",), first=(), bound=None, trials=99):
        document = {"objective": [{"metric": name} for name in objectives], "space": SPACE, "first_trials": list(first)}
        if bound:
            document["constraints"] = {bound[0]: f"<= {bound[1]}"}
        self._toy.space_file.write_text(yaml.safe_dump(document))
        settings = ["backend=local", "tracking=none", "scheduler.grace=0.25", f"trials={trials}"]
        self.sweep = sweep_module.start("toy", [*self._at, *settings], Console())
        self.sweep.open(slots=1)
        self.state = self.journal = Path(self.sweep.storage.path("study.journal"))

    def begin(self):
        spec = self.sweep.next_trial()
        return spec and spec.params

    def run(self, metrics_of, count):
        for _ in range(count):
            spec = self.sweep.next_trial()
            if spec is None:
                return

            def in_epoch(run, epoch, config, spec=spec):
                self.epochs[spec.number] = epoch.index + 1
                return metrics_of(spec.number, epoch.index + 1, spec.params)

            self._toy.in_epoch = in_epoch
            local._run_trial(self.sweep, spec)

    def save(self):
        """There is nothing that is not on disk."""

    def close(self):
        self.summary = self.sweep.close()

    def crash(self):
        self.sweep.study._unlock()  # as the system does with the lock of a process that is gone

    def resume(self, *overrides, extend=False):
        self.sweep = sweep_module.reopen(self.sweep.name, [*self._at, *overrides], Console(), extend)
        self.sweep.open(slots=1)

    def extend(self, trials):
        self.resume(f"trials={trials}", extend=True)

    def change(self, space, trials):
        self.resume(f"trials={trials}", *(f"{name}={entry}" for name, entry in space.items()), extend=True)

    @property
    def known(self):
        return len(self.sweep.study.records)

    def study(self, generation=0):
        return load_study(self.journal, "sweep" if generation == 0 else f"sweep/{generation + 1}")


@pytest.fixture(scope="module", autouse=True)
def _tune():
    """Imported before the tests, and frozen as what was there before: each trial walks over all other objects."""
    import ray
    import ray.tune.search.optuna
    import torch._dynamo  # noqa: F401  what PyTorch's first optimiser imports

    gc.collect()
    gc.freeze()
    before = ray.is_initialized()  # the tests of the backends share one
    yield
    assert ray.is_initialized() == before


@pytest.fixture
def platform(request, tmp_path, toy, monkeypatch):
    monkeypatch.setattr(summary_module, "_revision", lambda: "abc")
    folder = tmp_path / "stock"
    folder.mkdir()
    if request.param is Stock:
        from ray.train._internal import storage

        # The one thing that wants a cluster: the path of a scratch folder.
        monkeypatch.setattr(storage, "_get_ray_train_session_dir", lambda: str(folder / "session"))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return request.param(folder, toy)


def known_fault(reason):
    """Both run the test; the stock pairing has the fault."""
    stock = pytest.mark.xfail(strict=True, raises=Fault, reason=reason)
    return pytest.mark.parametrize(
        "platform", [pytest.param(Stock, marks=stock, id="stock"), pytest.param(Pharos, id="pharos")], indirect=True
    )


def states(study):
    return [trial.state for trial in study.trials]


def rising(number, epoch, params):
    """Each trial is worse than the one before, and each epoch, too: a bad one begins better than a good one ends."""
    return {"error": number + 10.0 * epoch}


# 1


@known_fault("Tune tells its searcher of a stopped trial as of a finished one, and OptunaSearch takes it as COMPLETE")
def test_a_trial_that_is_stopped_early_is_pruned_and_never_the_best(platform):
    platform.start()
    platform.run(rising, 4)
    platform.close()
    assert platform.epochs == {0: MAX, 1: 1, 2: 1, 3: 1}
    study = platform.study()
    with the_fault():
        assert states(study) == [TrialState.COMPLETE, *[TrialState.PRUNED] * 3]
    assert (study.best_trial.number, study.best_value) == (0, 40.0)
    assert [trial.intermediate_values for trial in study.trials[1:]] == [{1: 11.0}, {1: 12.0}, {1: 13.0}]


# 2


def nan_in_the_last(number, epoch, params):
    return {"error": math.nan if number == 2 and epoch >= 2 else 10.0 - number - epoch / 10}


@known_fault("AsyncHyperBandScheduler compares with <, which is false of NaN")
def test_a_trial_that_turns_nan_is_stopped_there(platform):
    platform.start()
    platform.run(nan_in_the_last, 3)
    assert (platform.epochs[0], platform.epochs[1]) == (MAX, MAX)
    with the_fault():
        assert platform.epochs[2] == 2
    platform.close()


@known_fault("Optuna takes no NaN, OptunaSearch logs that, and the trial stays as it was")
def test_a_trial_that_turned_nan_has_ended_in_the_study_and_says_that_it_is_no_good(platform):
    platform.start()
    platform.run(nan_in_the_last, 3)
    platform.close()
    trial = platform.study().trials[2]
    with the_fault():
        assert trial.state != TrialState.RUNNING
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, None, {1: 7.9})
    assert trial.constraints == {"diverged": 1.0}
    assert states(platform.study()) == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED]


# 3


LEFT = {"recipe.lr": 0.02, "recipe.width": 2}
DESIGN = [{"recipe.lr": lr, "recipe.width": width} for lr in (0.004, 0.03, 0.2) for width in (2, 4)]


def near_left(number, epoch, params):
    return {
        "error": abs(math.log10(params["recipe.lr"] / LEFT["recipe.lr"])) + params["recipe.width"] / 10 - epoch / 100
    }


def suggestions(study, without=None):
    """What Optuna's default sampler asks for next, by seed; trials that wait are no evidence to it."""
    evidence = [t for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)]
    found = []
    for seed in range(30):
        copy = optuna.create_study(sampler=TPESampler(seed=seed, n_startup_trials=5))
        copy.add_trials([trial for trial in evidence if trial.params != without])
        found.append(copy.ask(parse_space(SPACE, "test").distributions).params)
    return found


def near(params):
    return params["recipe.width"] == LEFT["recipe.width"] and 0.5 < params["recipe.lr"] / LEFT["recipe.lr"] < 2


def test_a_running_trial_repels_what_optuna_asks_for_next():
    space = parse_space(SPACE, "test").distributions
    study = optuna.create_study()
    for number, params in enumerate([PAPER, *DESIGN]):
        value = near_left(number, MAX, params)["error"]
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value))
    study.add_trial(optuna.trial.create_trial(params=LEFT, distributions=space, state=TrialState.RUNNING))
    with_it, without = suggestions(study), suggestions(study, without=LEFT)
    assert sum(map(near, with_it)) < 0.75 * sum(map(near, without))
    assert inspect.signature(TPESampler).parameters["constant_liar"].default is True


@known_fault("a trial that was asked for after the last snapshot stays RUNNING for ever, and repels what is near it")
def test_what_a_dead_driver_left_running_does_not_repel_what_is_asked_for_next(platform):
    platform.start(first=[*DESIGN, LEFT])
    platform.run(near_left, 1 + len(DESIGN))
    platform.save()
    assert platform.begin() == LEFT
    platform.crash()
    assert platform.study().trials[-1].state == TrialState.RUNNING
    platform.resume()
    study = platform.study()
    with the_fault():
        assert suggestions(study) == suggestions(study, without=LEFT)
    assert TrialState.RUNNING not in states(study)
    assert platform.begin() == LEFT  # it was not forgotten, either
    assert len(platform.study().trials) == len(study.trials)
    platform.close()


# 4


def large(number, epoch, params):
    """The wider a model, the more memory it takes, the slower it learns and the better it is in the end."""
    width = params["recipe.width"]
    return {"error": 1.0 - width / 10 if epoch == MAX else 1.0 + width, "memory": 2.0 * width}


@pytest.mark.filterwarnings("ignore:.constraints_func. has been deprecated:FutureWarning")
@known_fault("OptunaSearch has no constraints, and what a constraints_func is given has no metric but the objective")
def test_a_trial_that_breaks_a_bound_on_another_metric_is_infeasible_in_the_study(platform):
    platform.start(first=[{"recipe.lr": 0.1, "recipe.width": 2}], bound=("memory", 5.0))
    platform.run(large, 2)
    platform.close()
    study = platform.study()
    assert [trial.params["recipe.width"] for trial in study.trials] == [4, 2]
    with the_fault():
        assert [max(trial.constraints.values()) for trial in study.trials] == [3.0, -1.0]
    assert [trial.constraints for trial in study.trials] == [{"memory": 3.0}, {"memory": -1.0}]
    assert study.best_trial.params["recipe.width"] == 2  # by Optuna's own rule, though the other's error is smaller


def test_optuna_search_takes_no_constraints():
    from ray.tune.search.optuna import OptunaSearch

    assert not [name for name in inspect.signature(OptunaSearch).parameters if "constrain" in name or "bound" in name]


# 5


@known_fault("OptunaSearch.on_trial_result returns at once if there are several objectives")
def test_several_objectives_keep_what_was_reported_at_each_epoch(platform):
    platform.start(objectives=("error", "size"))
    platform.run(lambda number, epoch, params: {"error": 10.0 - epoch, "size": 1.0 * epoch}, 1)
    platform.close()
    (trial,) = [trial for trial in platform.study().trials if trial.state != TrialState.WAITING]
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [6.0, 4.0])
    with the_fault():
        assert trial.intermediate_values or trial.user_attrs or trial.system_attrs.keys() - {"fixed_params"}
    assert curve_of(trial) == {1: (9.0, 1.0), 2: (8.0, 2.0), 3: (7.0, 3.0), 4: (6.0, 4.0)}


# 6


def asked_for(study):
    """The values of each trial, of those that wait, too."""
    return [trial.params or trial.system_attrs["fixed_params"] for trial in study.trials]


@known_fault("OptunaSearch enqueues its points_to_evaluate whenever it opens a study")
def test_first_trials_are_asked_for_once_however_often_a_sweep_is_started(platform):
    first = [{"recipe.lr": 0.2, "recipe.width": 2}, {"recipe.lr": 0.3, "recipe.width": 4}]
    platform.start(first=first)
    platform.run(rising, 1)
    platform.close()
    assert asked_for(platform.study()) == [PAPER, *first]
    for _ in range(2):
        if isinstance(platform, Stock):
            platform.start(first=first)
        else:
            platform.resume()
        platform.close()
    with the_fault():
        assert asked_for(platform.study()) == [PAPER, *first]
    assert states(platform.study()) == [TrialState.COMPLETE, TrialState.WAITING, TrialState.WAITING]


# 7


def spoil(path):
    """A few bytes at its beginning."""
    with path.open("r+b") as file:
        file.write(bytes(20))


def lose(path):
    """The second half."""
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    "spoilt": spoil,
    "half lost": lose,
    "overwritten": lambda path: path.write_bytes(bytes(4096)),
    "emptied": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@known_fault("TuneController logs that it failed to restore the run state, and starts afresh")
def test_a_sweep_whose_state_is_damaged_does_not_start_afresh_in_silence(platform, damage):
    platform.start(trials=2)
    platform.run(rising, 2)
    platform.close()
    before = platform.state.read_bytes()
    damage(platform.state)
    damaged = platform.state.read_bytes() if platform.state.exists() else None
    with the_fault():
        message = None
        try:
            platform.resume()
        except InputError as error:
            message = str(error)
        assert message is not None or platform.known == 2
    assert message is not None
    assert "study.journal" in message
    assert "\n" not in message
    # Nothing was written over it. What looks like a kill was mended: a torn last line, a trial that still runs.
    left = platform.state.read_bytes() if platform.state.exists() else None
    assert left == damaged or left.startswith(damaged[: damaged.rfind(b"\n") + 1] or damaged)
    platform.state.write_bytes(before)
    platform.resume()
    assert states(platform.study()) == [TrialState.COMPLETE, TrialState.PRUNED]
    platform.close()


# 8


@known_fault("what is restored is finished, and brings its old number of trials")
def test_a_finished_sweep_is_extended_by_two_trials(platform):
    platform.start(trials=3)
    platform.run(rising, 3)
    assert platform.begin() is None
    platform.close()
    before = platform.study().trials
    platform.extend(trials=5)
    platform.run(rising, 5)
    platform.close()
    study = platform.study()
    with the_fault():
        assert len(study.trials) == 5
    assert study.trials[:3] == before
    assert all(state.is_finished() for state in states(study))
    assert sum(platform.summary["trials"].values()) == 5
    assert (study.best_trial.number, platform.summary["best"]["trial"]) == (0, "00000")


# 9


@known_fault("Optuna refuses other choices than the study began with")
def test_a_space_that_changes_goes_on_and_what_fits_of_before_is_known(platform):
    """The learning rate may be smaller and larger; a width of 2 is given up, one of 8 is new."""
    platform.start(first=[{"recipe.lr": 0.05, "recipe.width": 2}, {"recipe.lr": 0.02, "recipe.width": 4}], trials=3)
    platform.run(near_left, 3)
    platform.close()
    before = platform.study().trials
    wider = {"recipe.lr": "tag(log, interval(1e-4, 1))", "recipe.width": "choice(4, 8)"}
    with the_fault(ValueError):
        platform.change(wider, trials=6)
        platform.run(near_left, 6)
    platform.close()
    study = platform.study(generation=1)
    told = [trial for trial in study.trials if "evidence" in trial.user_attrs]
    new = [trial for trial in study.trials if "evidence" not in trial.user_attrs]
    assert [trial.params for trial in told] == [PAPER, {"recipe.lr": 0.02, "recipe.width": 4}]
    assert [trial.values for trial in told] == [before[0].values, before[2].values]
    assert [trial.intermediate_values for trial in told] == [before[n].intermediate_values for n in (0, 2)]
    assert len(new) == 3
    for trial in study.trials:
        assert trial.state.is_finished()
        assert trial.distributions == {
            "recipe.lr": FloatDistribution(1e-4, 1, log=True),
            "recipe.width": CategoricalDistribution((4, 8)),
        }
    assert platform.study().trials == before
    assert sum(platform.summary["trials"].values()) == 6
    assert platform.summary["best"]["params"] == {"recipe.lr": 0.02, "recipe.width": 4}
