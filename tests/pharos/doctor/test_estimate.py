"""Times of trials and sweeps from a few epochs: worked by hand."""

import pytest

from pharos.doctor.estimate import duration, epoch_seconds, least_seconds, sweep_seconds
from pharos.schedulers.choice import SchedulerConfig


def seen(index, other, *steps, batches=10):
    return {"index": index, "batches": batches, "steps": list(steps), "other": other}


def test_epochs_that_were_not_seen_take_what_those_between_the_first_and_the_last_took():
    loop = {"name": "a", "epochs": 5, "seen": [seen(0, 0.5, 9.0, 0.1), seen(1, 1.0, 0.1), seen(4, 3.0, 0.1)]}
    assert epoch_seconds([loop]) == pytest.approx([1.5, 2.0, 2.0, 2.0, 4.0])


def test_of_two_that_were_seen_the_first_stands_for_the_others_and_loops_follow_each_other():
    loops = [
        {"name": "a", "epochs": 3, "seen": [seen(0, 1.0, 0.1, batches=1), seen(2, 5.0, 0.1, batches=1)]},
        {"name": "b", "epochs": 1, "seen": [seen(0, 2.0, batches=0)]},
    ]
    assert epoch_seconds(loops) == pytest.approx([1.1, 1.1, 5.1, 2.0])


@pytest.mark.parametrize(
    ("scheduler", "least"),
    [
        (SchedulerConfig("none"), 100),
        # Rungs at 10, 30 and 90 epochs: all, a third, a ninth and a 27th get so far.
        (SchedulerConfig("asha"), 10 + 20 / 3 + 60 / 9 + 10 / 27),
        (SchedulerConfig("median"), 55),
        (SchedulerConfig("pbt", population=8), 50),
    ],
)
def test_early_stopping_saves_at_best_so_much(scheduler, least):
    assert least_seconds([1.0] * 100, scheduler, trials=16) == pytest.approx(least)


def test_epochs_that_are_dear_count_for_what_they_are():
    assert least_seconds([1.0] * 9 + [91.0], SchedulerConfig("asha", grace=0.9), 16) == pytest.approx(9 + 91 / 3)


def test_a_sweep_takes_its_trials_in_turns_and_one_trial_at_least():
    assert sweep_seconds(60, trials=16, slots=2, start=5) == 485
    assert sweep_seconds(60, trials=2, slots=8, start=5) == 65


def test_lengths_of_time_are_for_people():
    assert [duration(each) for each in (0.123, 42, 600, 7200)] == ["0.12 s", "42 s", "10 min", "2.0 h"]
