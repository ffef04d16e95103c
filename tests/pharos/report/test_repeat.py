"""The commands of a report do what they say: they train the trial again."""

import shlex

import pytest
from made_sweeps import fates

from pharos.config import make_plan
from pharos.report import repeat
from pharos.report.page import render
from pharos.single import new_run, run_from_sweep


@pytest.fixture
def story(sweeps):
    # A value that no space searches, another seed and scale, and a name with a blank in it.
    overrides = ["scale=tiny", "seed=7", "recipe.width=5", "engine.precision=bf16", "recipe.dropout=0.25"]
    return sweeps.tell(fates(12), overrides, name="toy sweep")


def test_the_command_without_the_sweep_has_the_trial_s_configuration_and_seed(story, sweeps):
    kinds = set()
    for record in story.records:
        words = shlex.split(" ".join(repeat.from_scratch(story, record)))
        assert words[:4] == ["python", "platform/train.py", "--family", "toy"]
        run = new_run("toy", [*words[4:], f"storage.url={sweeps.home}"])
        assert run.plan.config == story.plan.trial_config(record.params)
        assert run.plan.settings.seed == 7
        assert run.plan.settings.engine == story.plan.settings.engine
        kinds.add(record.params["recipe.kind"])
    assert kinds == {"plain", "noisy"}


def test_it_names_nothing_that_the_family_has_anyway(story):
    words = repeat.from_scratch(story, story.records[0])  # the recipe's own values
    expected = {"scale=tiny", "engine.precision=bf16", "seed=7", "recipe.dropout=0.25", "recipe.width=5"}
    assert set(words[2:]) == expected


def test_the_command_from_the_sweep_s_folder_finds_the_trial(story):
    words = shlex.split(repeat.from_sweep(story) + "00003")
    assert words[2] == "--from"
    assert words[4] == "--trial"
    single = run_from_sweep(words[3], words[5], [])
    assert single.params == story.trials[3].params
    assert single.plan.settings.seed == 7


def test_a_run_with_every_dimension_fixed_is_no_error_and_a_sweep_is(toy):
    fixed = ["recipe.lr=0.1", "recipe.kind=plain", "recipe.noise=0.1"]
    assert len(make_plan("toy", fixed, searches=False).space) == 0
    with pytest.raises(ValueError, match="nothing is left to search"):
        make_plan("toy", fixed)


def test_the_page_s_script_has_the_words_of_every_trial(story):
    from pharos.report import page

    details = page._details(story)
    for record in story.records:
        own = details["trials"][f"{record.number:05d}"]["alone"]
        assert sorted([*details["common"], *own]) == sorted(repeat.from_scratch(story, record))
    assert "--from" in details["again"]
    assert "sweep.yaml" in render(story, {}, {})
