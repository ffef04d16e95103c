"""What each figure shows, and when it says instead why it shows nothing."""

import math
import random

import pytest
from made_sweeps import fates

from pharos.records import Span
from pharos.report import comparison, finals, machines, parameters, search, training
from pharos.report.importance import importances
from pharos.report.style import DARK, LIGHT, SYMBOLS, resolve, span
from pharos.report.write import figures_of
from pharos.trial import Outcome


def names_of(figure):
    return {trace["name"]: trace for panel in figure.panels for trace in panel["data"] if "name" in trace}


def good_below(limit):
    """Ends of trials whose value is decided by chance alone, a few of them much better."""
    rng = random.Random(1)
    return [(Outcome.COMPLETE, 4, (rng.uniform(0.5, 1.0) if n % limit else 0.1,)) for n in range(30)]


def test_a_pruned_trial_s_last_value_is_never_shown_as_final(sweeps):
    story = sweeps.tell([(Outcome.COMPLETE, 4, (0.5,)), (Outcome.PRUNED, 1, (0.1,)), (Outcome.COMPLETE, 4, (0.4,))])
    traces = names_of(search.history(story))
    assert traces["complete"]["y"] == [0.5, 0.4]
    assert traces["pruned (last value, not final)"]["y"] == [0.1]
    assert traces["best so far"]["y"] == [0.5, 0.4, 0.4]
    assert traces["best so far"]["x"] == [0, 2, 2]


def test_the_best_so_far_goes_up_where_more_is_better(sweeps):
    ends = [(Outcome.COMPLETE, 4, (value,)) for value in (0.5, 0.4, 0.9)]
    story = sweeps.tell(ends, ["objective={metric: error, mode: max}"])
    assert names_of(search.history(story))["best so far"]["y"] == [0.5, 0.9, 0.9]


def test_one_that_breaks_a_constraint_is_never_the_best(sweeps):
    ends = [(Outcome.COMPLETE, 4, (value,)) for value in (0.5, 0.4, 0.1)]
    story = sweeps.tell(ends, ['constraints={peak_memory_gb: "<= 2.5"}'])  # the third has 3 GB
    assert names_of(search.history(story))["best so far"]["y"] == [0.5, 0.4, 0.4]


def test_a_few_extreme_values_do_not_squash_the_others():
    limits, outside = span([*(n / 10 for n in range(20)), 1e6, math.inf])
    assert outside == 1
    assert limits is not None
    assert limits[1] < 3
    assert span([1.0, 2.0, 3.0, 4.0, 5.0]) == (None, 0)
    assert span([0.0] * 10 + [1.0]) == (None, 0)


def test_the_dimension_that_decides_is_the_most_important_one(sweeps):
    story = sweeps.tell(fates(60))
    judged = story.judged
    for index, record in enumerate(judged.records):
        judged.values[index] = abs(math.log(record.params["recipe.lr"] / 0.02))
    found = importances(story)
    assert found[0].name == "recipe.lr"
    assert sum(each.share for each in found) == pytest.approx(1)
    by_name = {each.name: each for each in found}
    assert by_name["recipe.noise"].trials == sum("recipe.noise" in r.params for r in judged.records)
    assert by_name["recipe.noise"].trials < by_name["recipe.lr"].trials
    sentence = parameters.importance(story, found).sentence
    assert sentence.startswith("lr sets the best trials apart")
    assert "* among the trials that have it" in sentence


def test_with_few_complete_trials_all_are_judged_at_an_epoch_that_they_reached(sweeps):
    ends = [(Outcome.COMPLETE, 4, (0.5,))] * 3 + [(Outcome.PRUNED, 2, (0.6,))] * 18 + [(Outcome.FAILED, 0, (0.1,))]
    judged = sweeps.tell(ends).judged
    assert (judged.fidelity, len(judged.records)) == (2, 21)
    assert judged.values[0] == pytest.approx(0.5 + 1 / 2 - 1 / 4)
    whole = sweeps.tell(fates(60), name="more").judged
    assert whole.fidelity is None
    assert {record.outcome for record in whole.records} == {Outcome.COMPLETE}


def test_parallel_lines_of_trials_without_a_dimension_pass_below_its_axis(sweeps):
    story = sweeps.tell(good_below(10))
    figure = parameters.parallel(story)
    lows = 0
    for trace in figure.panels[0]["data"]:
        lines = "".join("|" if y is None else "v" if y < -0.1 else "." for y in trace["y"]).split("|")
        assert {len(line) for line in lines if line} == {4}  # three dimensions and the objective
        lows += sum("v" in line for line in lines)
    assert lows == sum("recipe.noise" not in record.params for record in story.records)
    assert lows > 0


def test_slices_mark_what_has_no_value_and_the_paper(sweeps):
    story = sweeps.tell([*fates(20), (Outcome.DIVERGED, 1, (0.5,)), (Outcome.OUT_OF_MEMORY, 0, (0.5,))])
    figure = parameters.slices(story, [])
    assert [panel["label"] for panel in figure.panels] == ["lr", "kind", "noise"]
    rug = figure.panels[0]["data"][-1]
    bad = [r for r in story.records if r.outcome in (Outcome.DIVERGED, Outcome.OUT_OF_MEMORY)]
    assert len(rug["x"]) == len(bad)
    assert rug["marker"]["color"] == [f"@{r.outcome}" for r in bad]
    axis = story.axes[0]
    assert figure.panels[0]["layout"]["shapes"][0]["x0"] == axis.at(0.1)


def test_a_contour_is_empty_where_no_trial_is_near(sweeps):
    story = sweeps.tell(good_below(5), ["first_trials=[]", "recipe.kind=noisy", "recipe.lr=interval(0.001, 0.5)"])
    for record in story.records:
        record.params["recipe.lr"] = 0.001 + 0.2 * (record.params["recipe.lr"] - 0.001)
    found = importances(story)
    panel = parameters.contours(story, found).panels[0]
    surface, axis = panel["data"][0], panel["layout"]["xaxis"]["title"]["text"]
    rows = surface["z"] if axis == "lr" else list(zip(*surface["z"], strict=True))
    assert all(row[-1] is None for row in rows)
    assert any(row[2] is not None for row in rows)


def test_the_pareto_front_has_what_no_other_beats(sweeps):
    both = "objective=[{metric: error, mode: min}, {metric: peak_memory_gb, mode: min}]"
    values = [(0.5, 3.0), (0.4, 4.0), (0.6, 5.0), (0.3, 9.0)]
    story = sweeps.tell([(Outcome.COMPLETE, 4, each) for each in values], [both])
    traces = names_of(search.pareto(story))
    assert traces["front"]["customdata"] == ["00003", "00001", "00000"]
    assert traces["dominated"]["customdata"] == ["00002"]
    assert search.pareto(sweeps.tell(fates(3), name="single")) is None


def test_curves_have_gaps_between_trials_and_the_colour_of_their_outcome(sweeps):
    story = sweeps.tell(
        [(Outcome.COMPLETE, 4, (0.5,)), *[(Outcome.PRUNED, 2, (0.6,))] * 3, (Outcome.COMPLETE, 4, (0.3,))]
    )
    traces = names_of(training.curves(story))
    pruned = traces["pruned"]
    assert pruned["x"] == [1, 2, None] * 3
    assert pruned["line"]["color"] == "@pruned"
    assert traces["paper's values"]["customdata"][0] == "00000"
    assert traces["best, trial 00004"]["y"][-2] == 0.3


def test_too_many_curves_are_thinned_out_and_that_is_said(sweeps):
    story = sweeps.tell([(Outcome.COMPLETE, 2, (0.5 + n / 1000,)) for n in range(250)])
    figure = training.curves(story)
    drawn = {each for trace in figure.panels[0]["data"] for each in trace["customdata"] if each}
    assert {"00000", "00001"} <= drawn
    assert len(drawn) <= 240
    assert f"{len(drawn)} of 250 curves are drawn" in figure.sentence


def test_rungs_count_who_came_and_who_was_stopped(sweeps):
    ends = [(Outcome.COMPLETE, 4, (0.5,))] * 2 + [(Outcome.PRUNED, 1, (0.6,))] * 5 + [(Outcome.PRUNED, 2, (0.6,))]
    traces = names_of(training.rungs(sweeps.tell(ends)))
    assert traces["stopped here"]["x"] == ["epoch 1", "epoch 2", "epoch 4"]
    assert traces["stopped here"]["y"] == [5, 1, 0]
    assert traces["went on"]["y"] == [3, 2, 0]
    assert traces["complete"]["y"] == [0, 0, 2]


def test_the_timeline_has_every_attempt_in_the_row_of_its_process(sweeps):
    def lose(study):
        study.records[4].attempt = Span(7, 1e9 + 20, 1e9 + 26)
        study.lose(4)
        study.hand_out(4)

    story = sweeps.tell([*fates(4), (Outcome.RUNNING, 1, (0.5,))], act=lose)
    figure = machines.timeline(story)
    lost = names_of(figure)["lost"]
    assert (lost["y"], lost["x"], lost["customdata"]) == (["process 3"], [6.0], ["00004"])
    assert lost["base"] == [pytest.approx(19.5)]  # the first step was half a second after the beginning
    assert "3 processes" in figure.sentence
    useful = names_of(figure)["useful"]
    assert sorted(set(useful["y"])) == ["process 1", "process 2"]


def test_the_hours_add_up_to_the_summary_s(sweeps):
    story = sweeps.tell(fates(12))
    bars = machines.hours(story).panels[0]["data"][0]
    assert bars["y"] == ["useful", "pruned", "lost", "waiting"]
    total = sum(story.summary["cpu_hours"].values())
    assert sum(bars["x"]) == pytest.approx(3600 * total, rel=1e-3)


def test_finalists_have_their_intervals(sweeps):
    assert finals.finalists(sweeps.tell(fates(3))) is None
    row = {
        "trial": "00003",
        "n": 2,
        "runs": [
            {"trial": "00000", "seed": 5, "values": {"error": 1.0}},
            {"trial": "00001", "seed": 6, "values": None},
        ],
        "values": {"error": {"search": 0.5, "mean": 1.0, "low": 0.75, "high": 1.25}},
    }
    other = {**row, "trial": "00004", "n": 0, "runs": []}
    story = sweeps.tell(fates(3), name="more")
    story.summary["finalists"] = {"metric": "error", "finalists": [row, other], "verdict": "no clear winner"}
    figure = finals.finalists(story)
    traces = names_of(figure)
    assert traces["mean, 95 % interval"]["error_x"]["array"] == [0.25]
    assert traces["mean, 95 % interval"]["y"] == ["trial 00003"]
    assert traces["one seed"]["x"] == [1.0]
    assert figure.sentence == "No clear winner."


def test_sweeps_are_compared_in_the_order_in_which_trials_ended(sweeps):
    ends = [(Outcome.COMPLETE, 40, (0.5,)), (Outcome.COMPLETE, 4, (0.7,)), (Outcome.PRUNED, 1, (0.01,))]
    story = sweeps.tell(ends)
    trace = comparison.over_trials([story]).panels[0]["data"][0]
    assert (trace["x"], trace["y"]) == ([1.0, 2.0, 3.0], [0.7, 0.5, 0.5])  # the first to start was not the first to end
    hours = comparison.over_hours([story]).panels[0]["data"][0]
    assert hours["x"] == [pytest.approx(seconds / 3600, rel=1e-4) for seconds in (4, 44, 45)]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], ""),
        (["objective={metric: error, mode: max}"], "different objectives"),
        (["scale=tiny"], "different scales"),
    ],
)
def test_what_cannot_be_compared_is_said(sweeps, overrides, said):
    one, other = sweeps.tell(fates(3), name="a"), sweeps.tell(fates(3), overrides, name="b")
    found = comparison.difference([one, other])
    assert said in found
    assert bool(said) == bool(found)


def test_every_colour_that_a_figure_names_is_in_both_themes(sweeps):
    story = sweeps.tell(fates(40))
    for palette in (LIGHT, DARK):
        for group in figures_of(story).values():
            for figure in group:
                assert "'@" not in str(resolve(figure.panels, palette)), figure.id
    assert LIGHT.keys() == DARK.keys()
    assert set(SYMBOLS) == set(Outcome)
    assert len(set(SYMBOLS.values())) == len(Outcome)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_outcomes_stand_out_from_their_background(palette):
    def luminance(shade):
        parts = [int(shade[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one, other):
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    for outcome in Outcome:
        assert contrast(palette[outcome], palette["surface"]) >= 3, outcome
    for text in ("text", "muted", "accent"):
        assert contrast(palette[text], palette["surface"]) >= 4.5, text
