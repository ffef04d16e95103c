"""How many trials a cluster holds at a time, from what its nodes have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharos.backends.cluster import fit_together, share_of, trials_that_fit
from pharos.resources import Shape

CPU = {"CPU": 1.0}
GPU = {"CPU": 1.0, "GPU": 1.0}


def node(cpus, gpus=None):
    return {"CPU": float(cpus), "memory": 1e9} | ({} if gpus is None else {"GPU": float(gpus)})


@pytest.mark.parametrize(
    ("nodes", "bundle", "workers", "placement", "trials"),
    [
        ([node(8)], CPU, 1, "pack", 8),
        ([node(8)], {"CPU": 3.0}, 1, "pack", 2),
        ([node(8)], CPU, 3, "pack", 2),
        ([node(8)], CPU, 3, "strict_pack", 2),
        ([node(8, 2)], GPU, 1, "pack", 2),
        ([node(1, 2)], GPU, 1, "pack", 1),
        ([node(8, 2)], GPU, 2, "strict_pack", 1),
        ([node(4), node(4)], CPU, 3, "pack", 2),
        ([node(4), node(4)], CPU, 3, "spread", 2),
        ([node(4), node(4)], CPU, 3, "strict_pack", 2),
        ([node(2), node(2), node(2)], CPU, 3, "pack", 2),
        ([node(2), node(2), node(2)], CPU, 3, "spread", 2),
        ([node(2), node(2), node(2)], CPU, 3, "strict_pack", 0),
        ([node(5), node(4)], CPU, 3, "pack", 3),
        ([node(5), node(4)], CPU, 3, "strict_pack", 2),
        ([node(3), node(3)], {"CPU": 2.0}, 1, "pack", 2),  # a worker is on one node
        ([node(8, 4), node(64)], GPU, 2, "pack", 2),  # the node without GPUs holds none
        ([node(8, 1), node(8, 1)], GPU, 2, "pack", 1),
        ([node(8, 1), node(8, 1)], GPU, 2, "strict_pack", 0),
    ],
)
def test_trials_fit_where_their_workers_do(nodes, bundle, workers, placement, trials):
    assert trials_that_fit(nodes, bundle, workers, placement) == trials


@pytest.mark.parametrize(
    ("share", "trials"), [(0.5, 4), (0.25, 8), (0.1, 20), (0.3, 6), (1 / 3, 6), (1 / 93, 186), (0.7, 2)]
)
def test_trials_share_gpus_in_fractions(share, trials):
    assert trials_that_fit([node(200, 2)], {"CPU": 1.0, "GPU": share}, 1, "pack") == trials


@pytest.mark.parametrize("placement", ["pack", "strict_pack", "spread"])
@pytest.mark.parametrize(
    ("nodes", "bundle", "workers"),
    [
        ([], CPU, 1),
        ([node(2)], {"CPU": 4.0}, 1),
        ([node(2)], CPU, 3),
        ([node(8)], GPU, 1),
        ([node(8, 0.5)], GPU, 1),
        ([node(0, 8)], GPU, 1),
        ([{}], CPU, 1),
    ],
)
def test_what_does_not_fit_fits_no_time(nodes, bundle, workers, placement):
    assert trials_that_fit(nodes, bundle, workers, placement) == 0


@given(
    nodes=st.lists(st.integers(0, 9), max_size=4),
    cpus=st.integers(1, 4),
    workers=st.integers(1, 4),
)
def test_one_node_for_all_workers_never_holds_more_trials_than_many(nodes, cpus, workers):
    def fit(placement, workers=workers):
        return trials_that_fit([node(has) for has in nodes], {"CPU": float(cpus)}, workers, placement)

    assert fit("strict_pack") <= fit("pack") == fit("spread")
    assert fit("pack") * workers <= fit("pack", 1) < (fit("pack") + 1) * workers
    assert fit("strict_pack", 1) == fit("pack", 1)


def shape(workers, cpus=1, gpus=0.0, placement="pack"):
    return Shape(workers, cpus, gpus, placement)


@pytest.mark.parametrize(
    ("nodes", "shapes", "fits"),
    [
        ([node(2), node(2)], [shape(2), shape(1), shape(1)], True),
        ([node(2), node(2)], [shape(2), shape(1), shape(1), shape(1)], False),
        ([node(2), node(2)], [shape(1), shape(2, placement="strict_pack"), shape(1)], True),
        ([node(3), node(2)], [shape(2, placement="strict_pack"), shape(3, placement="strict_pack")], True),
        ([node(1), node(1)], [shape(2, placement="strict_pack")], False),
        ([node(4, 1), node(4)], [shape(1, gpus=1.0), shape(7)], True),
        ([node(4, 1), node(4)], [shape(1, gpus=1.0), shape(1, gpus=0.5)], False),
        ([], [shape(1)], False),
    ],
)
def test_trials_of_several_shapes_fit_side_by_side(nodes, shapes, fits):
    before = [dict(each) for each in nodes]
    assert fit_together(nodes, shapes) == fits
    assert nodes == before


@given(
    st.lists(st.integers(0, 6), max_size=4),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from(["pack", "strict_pack"])), max_size=5),
)
def test_no_more_fits_than_there_is_and_less_always_fits_where_more_does(cpus, wanted):
    nodes, shapes = [node(n) for n in cpus], [shape(w, c, 0.0, p) for w, c, p in wanted]
    if fit_together(nodes, shapes):
        assert sum(each.devices for each in shapes) <= sum(cpus)
        assert all(trials_that_fit(nodes, s.bundle, s.workers, s.placement) for s in shapes)


@pytest.mark.parametrize(
    ("others", "spare", "share"),
    [
        (0, 0.0, 8.0),
        (1, 0.0, 4.0),  # another waits: half of it
        (3, 0.0, 2.0),
        (1, 7.0, 7.0),  # nobody waits: what one has and what is free
        (3, 1.0, 2.0),
    ],
)
def test_a_job_has_its_share_and_what_nobody_wants(others, spare, share):
    assert share_of(8.0, others, spare) == share
