"""The search spaces: their objectives are reported, and every corner of them is a configuration."""

import itertools

import pytest

from pharos.config import make_plan
from trainables.wfn.recipe import Wfn, WfnConfig


@pytest.mark.parametrize("space", ["default", "schedule"])
@pytest.mark.parametrize("scale", ["small", "paper"])
def test_two_objectives_and_the_paper_s_values_first(space, scale):
    plan = make_plan("wfn", [f"space={space}", f"scale={scale}", "tracking=none"])
    assert plan.settings.objectives.metrics == ["val/accuracy", "entropy"]
    assert plan.first_trials[0]["recipe.delta"] == WfnConfig().delta
    assert all(plan.recipe.fidelity(plan.build_config(params)) >= 12 for params in plan.first_trials)


def test_the_largest_distance_and_the_most_rounds_are_possible_together():
    for schedule, decay in itertools.product(("fine12", "geometric", "linear"), ("linear_T", "geometric", "constant")):
        config = WfnConfig(delta=0.07, schedule=schedule, delta_decay=decay, rounds=14, ratio=0.3)
        assert Wfn().fidelity(config) > 20
    assert max(WfnConfig(delta=0.08).deltas) < 1
