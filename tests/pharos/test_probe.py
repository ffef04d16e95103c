"""What a trial that is only tried runs of each loop, and what it says of it."""

import itertools
import math

import pytest
from torch import nn

from pharos.execute import execute
from pharos.learner import OptimConfig
from pharos.probe import Probe
from pharos.run import Run
from pharos.trial import Outcome
from pharos.world import World


def try_toy(toy, folder, seconds, **changes):
    return execute(toy.spec(folder, probe=seconds, **changes), lambda report: None)


def test_the_first_and_the_last_epoch_are_run_with_a_batch_each(toy, tmp_path):
    seen = []
    toy.in_epoch = lambda run, epoch, config: seen.append(epoch.index)
    ending = try_toy(toy, tmp_path, 0.0)
    assert (ending.outcome, seen) == (Outcome.COMPLETE, [0, 3])
    (loop,) = ending.probe["loops"]
    assert (loop["name"], loop["epochs"]) == ("fit", 4)
    for each in loop["seen"]:
        assert (each["batches"], len(each["steps"])) == (4, 1)
        assert each["steps"][0] > 0
        assert each["other"] > 0
    assert ending.probe["outside"] > 0


def test_with_more_time_more_is_run(toy, tmp_path):
    (loop,) = try_toy(toy, tmp_path, 1000.0).probe["loops"]
    assert [(each["index"], len(each["steps"])) for each in loop["seen"]] == [(i, 4) for i in range(4)]


def test_what_did_not_get_through_says_how_far_it_came(toy, tmp_path):
    toy.nan_at(3)
    ending = try_toy(toy, tmp_path, 0.0)
    assert ending.outcome == Outcome.DIVERGED
    assert [each["index"] for each in ending.probe["loops"][0]["seen"]] == [0, 3]


def test_a_whole_trial_says_nothing_of_it(toy, tmp_path):
    assert execute(toy.spec(tmp_path), lambda report: None).probe == {}


def test_all_stages_are_run_and_a_loop_that_ends_early_is_not_gone_on_with():
    probe = Probe(0.0, World())
    run = Run(seed=0, probe=probe)
    seen = []
    for stage in run.stages("stage", 3):
        for epoch in run.epochs("train", 5):
            seen.append((stage, epoch.index))
            if stage == 1:
                epoch.end_loop()
    assert seen == [(0, 0), (0, 4), (1, 0), (2, 0), (2, 4)]
    assert [loop["name"] for loop in probe.found()["loops"]] == [f"stage:{stage}/train" for stage in range(3)]


def test_a_recipe_that_takes_fewer_batches_than_there_are_is_believed():
    import torch

    data = torch.zeros(40, 1)
    probe = Probe(1000.0, World())
    run = Run(seed=0, probe=probe)
    learner = run.learner("net", nn.Linear(1, 1), OptimConfig())
    for epoch in run.epochs("train", 1):
        for batch in itertools.islice(epoch.batches(data, 4), 3):
            learner.step(learner(batch).square().mean())
    (seen,) = probe.loops[0].seen
    assert (seen.batches, len(seen.steps)) == (3, 3)
    assert math.isfinite(seen.other)


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_two_passes_over_data_in_an_epoch_count_together(seconds):
    import torch

    data = torch.zeros(8, 1)
    probe = Probe(seconds, World())
    for epoch in Run(seed=0, probe=probe).epochs("train", 1):
        for _ in range(2):
            for _ in epoch.batches(data, 2):
                pass
    (seen,) = probe.loops[0].seen
    assert (seen.batches, len(seen.steps)) == (8, 8 if seconds else 2)
