"""Declustering: the reference's trees, the rules' invariants, and what becomes of jets that have no splitting."""

import gzip
import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from benchmarks.declustering import compare, jets_like_pythia, plain
from pharos.errors import InputError
from trainables.jetlov import readers
from trainables.jetlov.declustering import Cuts, decluster, directions
from trainables.jetlov.jets import Jets, cartesian, from_counts, joined, load, save
from trainables.jetlov.pictures import lund_density, primary
from trainables.jetlov.readers import Source
from trainables.jetlov.toy import DOMAINS, Domain, Partons, _power_law, alpha_s, make_jets, shower
from trainables.jetlov.trees import Trees, build, some, together

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def jets() -> Jets:
    return jets_like_pythia(60, 20.0)


def test_trees_are_the_reference_algorithm_s(jets):
    assert compare(jets) == len(jets)


@pytest.mark.parametrize(
    "cuts",
    [Cuts(kt_min=1.0), Cuts(kt_min=0.5, delta_min=0.1), Cuts(secondary=False), Cuts(kt_min=0.3, secondary=False)],
)
def test_cuts_are_those_of_the_recursive_rules(jets, cuts):
    whole, cut = decluster(jets), decluster(jets, cuts)
    for jet in range(len(jets)):
        own, theirs = slice(*whole.offsets[jet : jet + 2]), slice(*cut.offsets[jet : jet + 2])
        kept = by_the_rules(whole.lund[own], whole.raw[own, ::4], whole.parent[own], cuts)
        if not kept:
            assert theirs.stop - theirs.start == 1
            assert not cut.lund[theirs].any()
            continue
        assert cut.parent[theirs].tolist() == [up for _, up in kept]
        assert np.array_equal(cut.lund[theirs], whole.lund[own][[node for node, _ in kept]])


def by_the_rules(lund, pt, parent, cuts):
    """Which nodes of a whole tree stay, and their new parents, by the recursion of section 2.4."""
    kept = []

    def visit(node, up):
        if np.exp(lund[node, 1]) < cuts.delta_min:
            return
        is_node = np.exp(lund[node, 4]) >= cuts.kt_min
        own = len(kept) if is_node else up
        if is_node:
            kept.append((node, up))
        for child in np.flatnonzero(parent == node):
            off = np.abs(pt[child].sum() - pt[node])  # of which of the two subjets this is the splitting
            if off[0] < off[1] or (is_node and cuts.secondary):
                visit(child, own)

    if lund.any():
        visit(0, -1)
    return kept


def test_nodes_are_one_less_than_constituents_and_form_one_tree(jets):
    nodes = decluster(jets)
    counts = np.diff(jets.offsets)
    assert np.array_equal(np.diff(nodes.offsets), np.maximum(1, counts - 1))
    for jet in range(len(jets)):
        parent = nodes.parent[nodes.offsets[jet] : nodes.offsets[jet + 1]]
        assert parent[0] == -1
        assert (parent[1:] >= 0).all()
        assert (parent[1:] < np.arange(1, len(parent))).all()
        assert np.bincount(parent[1:], minlength=1).max(initial=0) <= 2


def test_more_severe_cuts_leave_no_more_nodes(jets):
    for name, values in (("kt_min", (0, 0.3, 1, 3, 1e9)), ("delta_min", (0, 0.01, 0.1, 0.5, 99.0))):
        sizes = [np.diff(decluster(jets, Cuts(**{name: value})).offsets) for value in values]
        assert all((a >= b).all() for a, b in pairwise(sizes))
        assert (sizes[-1] == 1).all()


def test_identities_of_the_lund_variables(jets):
    nodes = decluster(jets)
    real = nodes.raw[:, 0] > 0
    ln_z, ln_delta, psi, _, ln_kt = nodes.lund[real].astype(np.float64).T
    pt = nodes.raw[real, 0].astype(np.float64) + nodes.raw[real, 4]
    assert np.abs(ln_kt - ln_z - ln_delta - np.log(pt)).max() < 1e-4
    assert (nodes.raw[real, 0] >= nodes.raw[real, 4]).all()
    assert (ln_z <= np.log(0.5) + 1e-6).all()
    assert (np.abs(psi) <= np.pi / 2).all()
    assert ((nodes.raw[:, [2, 6]] >= 0) & (nodes.raw[:, [2, 6]] < np.float32(2 * np.pi) + 1e-6)).all()


def moved(jets: Jets, *, turn=0.0, boost=0.0, mirror=1) -> Jets:
    y, phi = directions(jets.p4.astype(np.float64))
    pt = np.hypot(jets.p4[:, 0], jets.p4[:, 1])
    return Jets(cartesian(pt, mirror * y + boost, mirror * phi + turn, 0.14), jets.offsets, jets.label)


@pytest.mark.parametrize("change", [{"turn": 1.0}, {"turn": 4.5}, {"boost": 0.7}, {"mirror": -1}])
def test_lund_variables_know_neither_azimuth_nor_a_boost_along_the_beam(jets, change):
    before, after = decluster(moved(jets)), decluster(moved(jets, **change))
    assert np.array_equal(before.parent, after.parent)
    assert np.abs(before.lund - after.lund).max() < 2e-6 * (1 + np.abs(before.lund).max())


def test_the_order_of_constituents_is_irrelevant(jets):
    rng = np.random.default_rng(0)
    order = np.concatenate([a + rng.permutation(b - a) for a, b in zip(jets.offsets, jets.offsets[1:], strict=False)])
    shuffled = decluster(Jets(jets.p4[order], jets.offsets, jets.label))
    assert np.array_equal(decluster(jets).parent, shuffled.parent)
    assert np.abs(decluster(jets).lund - shuffled.lund).max() < 1e-4


def test_one_constituent_and_collinear_ones_are_jets():
    one, pair = cartesian(np.array([50.0]), 0.1, 1.0, 0.0), cartesian(np.array([50.0, 20.0]), 0.1, 1.0, 0.0)
    nodes = decluster(from_counts(np.concatenate([one, pair]), np.array([1, 2]), np.array([0, 1]), "nominal"))
    assert np.diff(nodes.offsets).tolist() == [1, 1]
    assert not nodes.lund[0].any()
    assert not nodes.raw[0].any()
    assert nodes.lund[1, 1] == pytest.approx(np.log(1e-6 + 1e-8), abs=1e-5)
    assert np.isfinite(nodes.lund).all()


def test_a_jet_of_nothing_is_an_error():
    with pytest.raises(InputError, match="jet 1 has no constituents"):
        from_counts(np.ones((1, 4)), np.array([1, 0]), np.zeros(2), "nominal")


def test_batches_have_the_trees_of_their_jets(jets):
    trees = build(jets, Cuts())
    batch = trees.take(torch.tensor([7, 3, 11]), CPU)
    for place, jet in enumerate((7, 3, 11)):
        own = slice(trees.offsets[jet], trees.offsets[jet + 1])
        rows = torch.nonzero(batch.tree == place)[:, 0]
        assert np.array_equal(batch.lund[rows].numpy(), trees.lund[own])
        for local, row in enumerate(rows.tolist()):
            up = trees.parent[own][local]
            if up >= 0:
                assert batch.parent[row - len(batch)] == rows[up]
                assert row - len(batch) + 1 in batch.children[rows[up]].tolist()
    edges = (batch.children > 0).sum(1) + (torch.arange(len(batch.raw)) >= len(batch))
    assert torch.equal(edges.clamp_min(1).float(), batch.degree[:, 0])
    assert batch.degree.max() <= 3


def test_trees_are_saved_joined_and_chosen(jets, tmp_path):
    trees = build(jets, Cuts())
    trees.save(tmp_path)
    both = together([Trees.load(tmp_path), some(trees, np.array([2, 0]))])
    assert np.array_equal(both.raw[: len(trees.raw)], trees.raw)
    assert np.array_equal(
        both.lund[both.offsets[-3] : both.offsets[-2]], trees.lund[trees.offsets[2] : trees.offsets[3]]
    )
    assert both.counts[-2:].tolist() == [trees.counts[2], trees.counts[0]]


def test_the_toy_s_primary_plane_has_the_density_of_its_coupling():
    """2 alpha_s C / pi where z is small, by exact thinning; the emissions themselves, one quark a jet."""
    rng, count = np.random.default_rng(1), 40_000
    pt, zeros = _power_law(rng, count), np.zeros(count)
    start = Partons(np.arange(count), pt, zeros.copy(), zeros.copy(), np.full(count, 4 / 3), zeros.copy())
    leaves = shower(rng, start, Domain(is_hard=False, kt_cut=2.0))
    p4 = cartesian(leaves.pt, leaves.y, leaves.phi, 0.0)
    order = np.argsort(leaves.jet, kind="stable")
    trees = build(from_counts(p4[order], np.bincount(leaves.jet), zeros, "nominal"), Cuts())
    chosen = primary(trees)
    x, kt = -trees.lund[chosen, 1], trees.lund[chosen, 4]
    inside = (x > 0.5) & (x < 1.5) & (kt > 1.5) & (kt < 2.5)
    expected = np.mean(2 * alpha_s(np.exp(np.linspace(1.5, 2.5, 101)), 0.1365) * 4 / 3 / np.pi)
    assert inside.sum() / count == pytest.approx(expected, rel=0.05)
    assert not ((x > 2.5) & (kt > np.log(600 / 2) - 2.5 + 0.1)).any()  # beyond z = 1/2


def test_the_toy_s_masses_and_planes_are_those_of_w_and_top():
    for task, mass, window in (("w", 80.4, 15), ("top", 173.0, 25)):
        jets = make_jets(task, 300, "nominal", 0)
        total = np.add.reduceat(jets.p4.astype(np.float64), jets.offsets[:-1])
        own = np.sqrt(np.maximum(total[:, 3] ** 2 - (total[:, :3] ** 2).sum(1), 0))
        near = np.abs(own - mass) < window
        assert np.median(own[jets.label == 1]) == pytest.approx(mass, rel=0.1)
        assert near[jets.label == 1].mean() > 3 * near[jets.label == 0].mean()
    trees = build(make_jets("w", 1000, "nominal", 0), Cuts())
    signal, background = (lund_density(some(trees, np.flatnonzero(trees.label == k))) for k in (1, 0))
    decay = (slice(8, 12), slice(38, 43))  # 1 < ln 1/Delta < 1.5, 3.6 < ln kt < 4.6
    assert signal[decay].mean() > 2 * background[decay].mean()


def test_the_toy_s_domains_differ_and_the_same_seed_does_not():
    sizes = {name: len(make_jets("w", 300, name, 0).p4) for name in DOMAINS}
    assert sizes["alpha118"] < sizes["nominal"] < sizes["alpha150"]
    assert sizes["kt2"] < sizes["nominal"] < sizes["kt07"]
    assert sizes["ue"] > sizes["nominal"] + 600 * 4.5
    assert np.array_equal(make_jets("qg", 5, "ue", 3).p4, make_jets("qg", 5, "ue", 3).p4)


def test_shards_come_back_and_damaged_ones_are_named(jets, tmp_path):
    path = tmp_path / "jets-train-w-nominal-0000.npz"
    save(jets, path, {"seed": 1})
    assert np.array_equal(load(path).p4, jets.p4)
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(InputError, match=r"no jets-val-w-nominal-\*\.npz"):
        readers.find("shards", tmp_path, "w", "val", "nominal")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="not a file of jets"):
        load(path)


def _momenta(count=3):
    rng = np.random.default_rng(0)
    return cartesian(
        rng.uniform(10, 50, (4, count)), rng.normal(0, 0.3, (4, count)), rng.uniform(0, 6, (4, count)), 0.1
    )


def test_lundnet_s_files_skip_headers_and_end_where_they_are_cut_off(tmp_path):
    folder, p4 = tmp_path / "train", _momenta()
    folder.mkdir()
    for name in ("WW_500GeV", "QCD_500GeV"):
        rows = [[{"event": 1}, *({"px": x, "py": y, "pz": z, "E": e} for x, y, z, e in jet)] for jet in p4.tolist()]
        text = "\n".join([json.dumps("header"), *map(json.dumps, rows)]) + "\n"
        (folder / f"{name}.json.gz").write_bytes(gzip.compress(text.encode()))
    files = readers.find("lundnet", tmp_path, "w", "train", "nominal")
    jets = readers.read("lundnet", files, "w", "nominal")
    assert jets.label.tolist() == [1] * 4 + [0] * 4
    np.testing.assert_allclose(jets.p4[:3], p4[0], rtol=1e-6)
    long = gzip.compress("\n".join(json.dumps(row) for row in rows * 400).encode(), 0)
    files[0].path.write_bytes(long[: len(long) // 2])
    assert 100 < len(readers.read("lundnet", files[:1], "w", "nominal")) < 1600
    files[0].path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"WW_500GeV\.json\.gz: cannot be read as source=lundnet"):
        readers.read("lundnet", files, "w", "nominal")


def test_toptagging_reads_hdf5_and_parquet_alike(tmp_path):
    h5py = pytest.importorskip("h5py")
    p4 = _momenta()
    p4[1, 2] = 0
    columns = p4[..., [3, 0, 1, 2]].reshape(4, -1)
    table = np.zeros(4, dtype=[("index", "i8"), ("values_block_0", "f4", (16,)), ("values_block_1", "i8", (2,))])
    table["values_block_0"][:, :12] = columns
    table["values_block_1"][:, 1] = [0, 1, 1, 0]
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file.create_dataset("table/table", data=table)
    files = readers.find("toptagging", tmp_path, "top", "train", "nominal")
    jets = readers.read("toptagging", files, "top", "nominal")
    assert np.diff(jets.offsets).tolist() == [3, 2, 3, 3]
    assert jets.label.tolist() == [0, 1, 1, 0]
    np.testing.assert_allclose(jets.p4[:3], p4[0], rtol=1e-6)
    with pytest.raises(InputError, match="take task=top"):
        readers.read("toptagging", files, "w", "nominal")
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = [f"{axis}_{slot}" for slot in range(3) for axis in ("E", "PX", "PY", "PZ")]
    arrays = {name: columns[:, k] for k, name in enumerate(names)} | {"is_signal_new": np.array([0, 1, 1, 0])}
    parquet.write_table(pyarrow.table(arrays), tmp_path / "test.parquet")
    again = readers.read("toptagging", [Source(tmp_path / "test.parquet")], "top", "nominal")
    np.testing.assert_allclose(again.p4, jets.p4, rtol=1e-6)


def test_npz_of_transverse_momenta_gets_masses_and_whole_blocks_as_splits(tmp_path):
    x = np.zeros((10, 4, 4))
    x[:, :2] = [[20.0, 0.1, 1.0, 211], [10.0, 0.2, 1.1, -2112]]
    np.savez(tmp_path / "a.npz", X=x, y=np.arange(10) % 2)
    parts = [
        readers.read("npz", readers.find("npz", tmp_path, "qg", split, "nominal"), "qg", "nominal")
        for split in ("train", "val", "test")
    ]
    assert [len(part) for part in parts] == [8, 1, 1]
    p4 = joined(parts).p4.astype(np.float64)
    mass = np.sqrt(p4[:, 3] ** 2 - (p4[:, :3] ** 2).sum(1))
    np.testing.assert_allclose(mass[:2], [0.1396, 0.9396], atol=2e-3)


def test_jetclass_s_branches(tmp_path):
    uproot = pytest.importorskip("uproot")
    ak = pytest.importorskip("awkward")
    p4 = _momenta()
    ragged = {f"part_{axis}": ak.Array(list(p4[..., k])) for k, axis in enumerate(("px", "py", "pz", "energy"))}
    labels = {"label_Wqq": np.array([1, 0, 0, 1]), "label_QCD": np.array([0, 1, 0, 0]), "label_Tbqq": np.zeros(4)}
    with uproot.recreate(tmp_path / "train_a.root") as file:
        file["tree"] = ragged | labels
    files = readers.find("jetclass", tmp_path, "w", "train", "nominal")
    jets = readers.read("jetclass", files, "w", "nominal")
    assert jets.label.tolist() == [1, 0, 1]
    np.testing.assert_allclose(jets.p4, p4[[0, 1, 3]].reshape(-1, 4), rtol=1e-6)


def test_the_plain_algorithm_of_the_benchmark_knows_jets_without_a_splitting():
    assert plain(cartesian(np.array([5.0]), 0.0, 0.0, 0.0))[0] == [-1]
