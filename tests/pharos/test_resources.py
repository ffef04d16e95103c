"""What trials get of a cluster, and that their values may decide it."""

import pytest

from pharos.config import make_plan, reopen_plan
from pharos.errors import InputError
from pharos.resources import ResourcesConfig, Shape
from pharos.settings import Settings


def resources(**values) -> ResourcesConfig:
    return ResourcesConfig(**{"gpus_per_worker": 0.0, **values})


WIDE = [
    {"when": {"recipe.width": ">= 512", "recipe.kind": "deep"}, "workers": 4, "placement": "strict_pack"},
    {"when": {"recipe.width": ">= 512"}, "workers": 2},
]


@pytest.mark.parametrize(
    ("width", "kind", "workers", "placement"),
    [(256, "deep", 1, "pack"), (512, "flat", 2, "pack"), (600, "deep", 4, "strict_pack")],
)
def test_the_first_entry_whose_conditions_all_hold_counts(width, kind, workers, placement):
    shape = resources(shapes=WIDE, cpus_per_worker=3).shape_of({"recipe.width": width, "recipe.kind": kind})
    assert shape == Shape(workers, 3, 0.0, placement)


def test_all_shapes_are_known_beforehand():
    assert [shape.workers for shape in resources(shapes=WIDE).all_shapes] == [1, 4, 2]


def test_a_shape_in_words_and_in_devices():
    assert str(Shape(1, 2, 0.5, "pack")) == "2 CPU and 0.5 GPU"
    assert str(Shape(4, 2, 0, "strict_pack")) == "4 workers on one node of 2 CPU"
    assert [Shape(4, 2, 0, "pack").devices, Shape(4, 2, 1, "pack").devices] == [8, 4]
    assert Shape(4, 2, 0, "pack").bundle == {"CPU": 2.0}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ("[{workers: 2}]", "resources.shapes[0]: must say which trials it is for"),
        ("[{when: {}, workers: 2}]", "resources.shapes[0]: must say which trials it is for"),
        ("[{when: {recipe.w_90: 3}, worker: 2}]", "resources.shapes[0]: worker: did you mean workers?"),
        ("[{when: {recipe.w_90: 3}, workers: 0}]", "resources.shapes[0]: workers=0: must be a whole number"),
        ("[{when: {recipe.w_90: 3}, workers: many}]", "resources.shapes[0]: workers=many: must be a whole number"),
        ("[{when: {recipe.w_90: 3}, gpus_per_worker: -1}]", "gpus_per_worker=-1: must be a number of at least 0"),
        ("[{when: {recipe.w_90: 3}, gpus_per_worker: 2}]", "gpus_per_worker=2: a worker uses one GPU"),
        ("[{when: {recipe.w_90: 3}, gpus_per_worker: 0.5, workers: 2}]", "only trials of one worker can share a GPU"),
        ("[{when: {recipe.w_90: 3}, placement: pak}]", "placement=pak: did you mean pack?"),
        ("[{when: {recipe.w_90: '>> 3'}, workers: 2}]", "'>> 3' is no comparison"),
        ("[{when: {recipe.w_91: 3}, workers: 2}]", "recipe.w_91: no such value; did you mean recipe.w_90?"),
        ("[{when: {recipe.w_90: 3}, workers: 2}] backend=local", "resources.workers=2 needs backend=tune"),
        ("2", "must be a list"),
    ],
)
def test_wrong_shapes_end_in_one_line(shapes, message):
    typed, *others = shapes.split(" backend")
    with pytest.raises(InputError) as caught:
        make_plan("tipsy", ["tracking=none", f"resources.shapes={typed}", *(f"backend{rest}" for rest in others)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nodes_on_demand_need_to_know_for_how_many_trials():
    with pytest.raises(InputError, match=r"resources\.autoscaling=true needs resources\.concurrency"):
        make_plan("tipsy", ["tracking=none", "resources.autoscaling=true"])


def test_a_trial_s_specification_follows_its_shape_and_outlives_the_driver():
    typed = ["tracking=none", "resources.shapes=[{when: {recipe.w_90: '>= 5'}, cpus_per_worker: 3}]"]
    plan = make_plan("tipsy", typed)
    for each in (plan, reopen_plan(plan.to_dict(), [])):
        assert isinstance(each.settings, Settings)
        specs = [each.trial_spec("s", 0, {"recipe.w_90": w}, folder="f", tracking_folder="f") for w in (1.0, 7.0)]
        assert [spec.threads for spec in specs] == [1, 3]
