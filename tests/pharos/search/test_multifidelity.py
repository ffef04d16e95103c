"""Proposals: valid in any space, the same from the same seed, and better than random ones."""

import math
import time

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from test_encoding import spaces

from pharos.schedulers.asha import Asha
from pharos.schedulers.base import Action
from pharos.search import multifidelity
from pharos.search.acquisition import log_expected_improvement, perturbed
from pharos.search.multifidelity import MultiFidelitySampler
from pharos.space import parse_space

MAX = 27
ALPHA = np.array([1, 1.2, 3, 3.2])
A = np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]])
P = 1e-4 * np.array([[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]])
CUBE = parse_space(dict.fromkeys("xyz", "interval(0, 1)"), "test")


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def hartmann(params, fidelity):
    x = np.array([params[name] for name in "xyz"])
    lacking = 1 - math.log(fidelity) / math.log(MAX)
    return -float((ALPHA - 0.5 * lacking) @ np.exp(-(A * (x - P) ** 2).sum(axis=1))) + lacking


def reported(trial: FrozenTrial):
    if "curve" in trial.user_attrs:
        return {int(fidelity): tuple(losses) for fidelity, losses in trial.user_attrs["curve"].items()}
    return {fidelity: (loss,) for fidelity, loss in trial.intermediate_values.items()}


def make(space=CUBE, seed=0, startup=8, max_fidelity=MAX, defaults=None):
    return MultiFidelitySampler(space, defaults or {}, max_fidelity, seed=seed, startup=startup, curve_of=reported)


def search(sampler, space, loss, trials, budget=None):
    """One trial after another under ASHA; returns the study. The budget is in epochs."""
    study = optuna.create_study(sampler=sampler)
    asha, used = Asha(MAX, 0.1, 3), 0
    for _ in range(trials):
        trial = study.ask()
        params = space.ask(trial, {})
        for fidelity in range(1, MAX + 1):
            value = loss(params, fidelity)
            trial.report(value, fidelity)
            used += 1
            if asha.on_report(trial.number, fidelity, (value,)).action == Action.STOP:
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, value)
        if budget and used > budget:
            break
    return study


def past(space, count, loss=lambda row, rng: {MAX: (float(rng.random()),)}, seed=0, constraints=None):
    """A study that has had so many random trials."""
    rng = np.random.default_rng(seed)
    study = optuna.create_study(sampler=make(space))
    study.add_trials([told(space, space.sample(rng, {}), loss, rng, constraints) for _ in range(count)])
    return study


def told(space, params, loss, rng, constraints=None):
    curve = loss(params, rng)
    whole = MAX in curve
    trial = create_trial(
        state=TrialState.COMPLETE if whole else TrialState.PRUNED,
        value=curve[MAX][0] if whole else None,
        params=params,
        distributions={name: space.distributions[name] for name in params},
        user_attrs={"curve": {str(fidelity): losses for fidelity, losses in curve.items()}},
    )
    if constraints is not None:
        trial.set_constraint("diverged", constraints(params))
    return trial


def ask(study, sampler, space=CUBE):
    study.sampler = sampler
    return space.ask(study.ask(), {})


def test_much_better_than_random():
    """20 whole trainings' time on Hartmann-3, whose optimum is -3.86."""
    ends = {}
    for name, sampler in (("model", make), ("random", optuna.samplers.RandomSampler)):
        ends[name] = [
            search(sampler(seed=seed), CUBE, hartmann, 200, budget=20 * MAX).best_value + 3.86278 for seed in range(3)
        ]
    assert max(ends["model"]) < 0.02
    assert np.median(ends["model"]) < 0.1 * np.median(ends["random"])


@given(spaces(), st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_proposals_lie_in_any_space(space, seed):
    study = past(space, 14, lambda params, rng: {3: (float(rng.random()),), MAX: (float(rng.random()),)}, seed)
    for _ in range(3):
        params = ask(study, make(space, seed), space)
        assert space.contains(params, {}) == ""


@pytest.mark.parametrize(
    "entries",
    [
        {"x": "interval(0, 1)"},
        {"x": "choice(a, b, c)", "y": "choice(true, false)", "z": "choice(1, 2, 3, 4)"},
        {"x": "range(1, 2)"},
        {
            "kind": "choice(a, b)",
            "depth": {"sweep": "range(1, 5)", "when": {"kind": "a"}},
            "skip": {"sweep": "tag(log, interval(1e-3, 1))", "when": {"depth": ">= 3"}},
        },
    ],
    ids=["one dimension", "choices alone", "one value", "conditions"],
)
@pytest.mark.parametrize("max_fidelity", [1, MAX])
def test_a_whole_search_in(entries, max_fidelity):
    space = parse_space(entries, "test")
    study = optuna.create_study(sampler=make(space, max_fidelity=max_fidelity, defaults={"depth": 1}))
    for index in range(20):
        trial = study.ask()
        params = space.ask(trial, {"depth": 1})
        assert space.contains(params, {"depth": 1}) == ""
        trial.report(float(index % 3), max_fidelity)
        study.tell(trial, float(index % 3))


def test_no_dimension_at_all():
    assert ask(optuna.create_study(), make(parse_space({}, "test")), parse_space({}, "test")) == {}


@pytest.mark.parametrize("count", [0, 5, 14, 19])  # Sobol, Sobol, model, and the random one in ten
def test_a_proposal_follows_from_seed_and_number(count):
    def loss(params, rng):
        return {MAX: (hartmann(params, MAX),)}

    proposals = []
    for seed, noise in ((0, 1), (0, 2), (1, 3)):
        np.random.seed(noise)
        before = np.random.get_state()[1].copy()
        proposals.append(ask(past(CUBE, count, loss), make(seed=seed)))
        assert (np.random.get_state()[1] == before).all()
    assert proposals[0] == proposals[1] != proposals[2]


def test_a_new_sampler_goes_on_where_the_last_one_was():
    """As on a resume: nothing is repeated, and the Sobol sequence goes on."""
    study = optuna.create_study(sampler=make())
    first = [CUBE.ask(study.ask(), {}) for _ in range(4)]
    study.sampler = make()
    second = [CUBE.ask(study.ask(), {}) for _ in range(4)]
    whole = optuna.create_study(sampler=make())
    assert first + second == [CUBE.ask(whole.ask(), {}) for _ in range(8)]


def test_the_first_proposals_are_spread():
    study = optuna.create_study(sampler=make(startup=16))
    rows = np.array([list(CUBE.ask(study.ask(), {}).values()) for _ in range(16)])
    for column in rows.T:
        assert sorted((column * 16).astype(int)) == list(range(16))


def test_proposals_asked_for_at_once_differ():
    study = past(CUBE, 21, lambda params, rng: {MAX: (hartmann(params, MAX),)})
    sampler = make()
    asked = np.array([list(ask(study, sampler).values()) for _ in range(6)])
    distances = np.linalg.norm(asked[:, None] - asked[None], axis=2)[~np.eye(6, dtype=bool)]
    assert distances.min() > 1e-3


def test_a_trial_is_judged_by_what_it_will_be_not_by_what_it_is():
    """Losses at the first epoch are ever lower the nearer to 0, whole trials the nearer to 1."""
    space = parse_space({"x": "interval(0, 1)"}, "test")

    def loss(params, rng):
        curve = {1: (2 + params["x"],), 9: (1.0,)}
        return {**curve, MAX: (-params["x"],)} if rng.random() < 0.5 else curve

    study = past(space, 20, loss)
    assert ask(study, make(space), space)["x"] > 0.9


def test_infeasible_regions_are_avoided():
    space = parse_space({"x": "interval(0, 1)", "y": "interval(0, 1)"}, "test")

    def constraint(params):
        return 1.0 if params["x"] > 0.5 else 0.0

    def loss(params, rng):
        return {} if constraint(params) > 0 else {MAX: (-params["x"],)}

    study = past(space, 30, loss, constraints=constraint)
    sampler = make(space)
    rng = np.random.default_rng(0)
    proposed = []
    for _ in range(20):
        params = ask(study, sampler, space)
        proposed.append(params["x"])
        study.tell(study.trials[-1].number, state=TrialState.FAIL)
        study.add_trial(told(space, params, loss, rng, constraint))
    # At the border, where the best ones are, and not beyond it.
    assert np.mean([0.45 < x < 0.58 for x in proposed]) > 0.7
    assert max(x for x in proposed if x <= 0.5) > 0.47


def test_nothing_but_infeasible_trials():
    study = past(CUBE, 12, lambda params, rng: {}, constraints=lambda params: 1.0)
    assert CUBE.contains(ask(study, make()), {}) == ""


def test_several_objectives_spread_along_the_front():
    """Both are best at an end of x, and neither depends on y but for being worse away from 0.5."""
    space = parse_space({"x": "interval(0, 1)", "y": "interval(0, 1)"}, "test")

    def losses(params):
        return params["x"] ** 2 + (params["y"] - 0.5) ** 2, 100 * ((1 - params["x"]) ** 2 + (params["y"] - 0.5) ** 2)

    study = optuna.create_study(directions=["minimize"] * 2, sampler=make(space))
    for _ in range(40):
        trial = study.ask()
        params = space.ask(trial, {})
        trial.set_user_attr("curve", {str(f): [v + 1 / f for v in losses(params)] for f in (3, 9, MAX)})
        study.tell(trial, losses(params))
    late = [trial.params for trial in study.get_trials()[20:] if trial.number % 10 != 9]
    assert np.median([abs(params["y"] - 0.5) for params in late]) < 0.1
    counts, _ = np.histogram([params["x"] for params in late], bins=3, range=(0, 1))
    assert (counts > 0).all()


def test_nothing_is_tried_twice_while_something_is_left():
    space = parse_space({"x": "range(0, 4)", "y": "choice(a, b, c)"}, "test")
    study = optuna.create_study(sampler=make(space, startup=4))
    seen = []
    for _ in range(14):
        trial = study.ask()
        params = space.ask(trial, {})
        seen.append(tuple(params.values()))
        trial.report(params["x"] + ord(params["y"]), MAX)
        study.tell(trial, params["x"] + ord(params["y"]))
    assert len(set(seen[:12])) == 12


def test_thousands_of_trials():
    def loss(params, rng):
        last = rng.choice([1, 3, 9, MAX], p=[0.6, 0.2, 0.1, 0.1])
        return {f: (hartmann(params, f),) for f in (1, 3, 9, MAX) if f <= last}

    study = past(CUBE, 5000, loss)
    sampler = make()
    assert CUBE.contains(ask(study, sampler), {}) == ""
    began = time.process_time()
    # 5001 to 5004: the model, extended; far above what it takes, for a busy machine.
    proposals = [ask(study, sampler) for _ in range(4)]
    assert (time.process_time() - began) / 4 < 1
    assert len(sampler._model.points) <= multifidelity._POINTS * 1.2
    assert min(hartmann(params, MAX) for params in proposals) < -3.5


def test_a_kept_model_is_what_a_fresh_one_would_be():
    """Between fits the model is extended; with the same hyperparameters it says what one made anew says."""
    study = past(CUBE, 40, lambda params, rng: {MAX: (hartmann(params, MAX),)})
    sampler = make()
    ask(study, sampler)
    kernel, fitted = sampler._model.kernel, sampler._model.fitted
    study.add_trials(
        [told(CUBE, CUBE.sample(np.random.default_rng(5), {}), lambda p, r: {MAX: (hartmann(p, MAX),)}, None)]
    )
    ask(study, sampler)
    assert sampler._model.kernel is kernel
    assert len(sampler._model.points) == fitted + 1
    evidence = sampler._evidence(study, -1)
    fresh = multifidelity.Posterior.of(kernel, *sampler._inputs(evidence, sampler._model.points))
    np.testing.assert_allclose(sampler._model.posterior.factor, fresh.factor, atol=1e-9)


def test_running_trials_grow_and_failed_ones_are_forgotten():
    study = past(CUBE, 20, lambda params, rng: {MAX: (hartmann(params, MAX),)})
    sampler = make()
    study.sampler = sampler
    running = study.ask()
    CUBE.ask(running, {})
    running.report(1.0, 1)
    ask(study, sampler)
    assert (running.number, 1) in sampler._model.points
    running.report(0.9, 2)
    ask(study, sampler)
    assert (running.number, 2) in sampler._model.points
    study.tell(running, state=TrialState.FAIL)
    ask(study, sampler)
    assert running.number not in {number for number, _ in sampler._model.points}


def test_a_model_that_cannot_be_fitted_is_said_and_survived(monkeypatch, caplog):
    def broken(*arguments, **options):
        raise multifidelity.LinAlgError("no factor")

    monkeypatch.setattr(multifidelity, "fit", broken)
    study = past(CUBE, 21)
    assert CUBE.contains(ask(study, make()), {}) == ""
    assert "does not come from the model" in caplog.text


def test_equal_infinite_and_huge_losses():
    for values in ([1.0], [1.0, math.inf], [math.nan, 2.0], [0.1, 0.2, 1e30], [-1e6, 1e6]):
        rng = np.random.default_rng(0)
        study = past(CUBE, 21, lambda params, _, values=values, rng=rng: {9: (float(rng.choice(values)),)})
        assert CUBE.contains(ask(study, make()), {}) == ""


def test_trials_of_another_space_are_left_out():
    study = past(CUBE, 14)
    study.add_trial(create_trial(value=0.0, params={"other": 0.5}, distributions={"other": FloatDistribution(0, 1)}))
    sampler = make()
    assert CUBE.contains(ask(study, sampler), {}) == ""
    assert 14 not in {number for number, _ in sampler._model.points}


def test_what_is_no_dimension_is_drawn_all_the_same():
    drawn = []
    for _ in range(2):
        study = optuna.create_study(sampler=make())
        trial = study.ask()
        CUBE.ask(trial, {})
        drawn.append(trial.suggest_float("other", 2, 3))
    assert drawn[0] == drawn[1]
    assert 2 <= drawn[0] <= 3


def test_log_expected_improvement():
    mean, deviation = np.array([0.0, 1.0, 2.0, 60.0, 1e5]), np.array([1.0, 0.5, 0.1, 1.0, 1.0])
    values = log_expected_improvement(mean, deviation, 0.5)
    rng = np.random.default_rng(0)
    draws = np.maximum(0.5 - (mean[:2] + deviation[:2] * rng.standard_normal((200_000, 2))), 0)
    np.testing.assert_allclose(np.exp(values[:2]), draws.mean(axis=0), rtol=0.02)
    assert np.isfinite(values).all()
    assert (np.diff(values) < 0).all()
    # The three formulas meet.
    for z in (1.0, 1e3):
        at = log_expected_improvement(np.array([z * 0.999999, z * 1.000001]), np.ones(2), 0.0)
        assert at[0] - at[1] == pytest.approx(z * z * 2e-6 + 2e-6, rel=0.5)


def test_perturbed_rows_stay_in_the_cube():
    rows = perturbed(np.array([[0.0, 1.0, 0.5]]), 200, 3.0, np.random.default_rng(0))
    assert rows.shape == (200, 3)
    assert ((rows >= 0) & (rows <= 1)).all()
    small = perturbed(np.array([[0.3, 0.5, 0.5]]), 200, 0.01, np.random.default_rng(0))
    assert (small != [0.3, 0.5, 0.5]).any(axis=1).all()
    assert np.median(np.abs(small - [0.3, 0.5, 0.5]).max(axis=1)) < 0.03
