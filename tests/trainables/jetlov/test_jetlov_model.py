"""The networks: their sizes, the literal form, precision, what batches may hold, and the authors' files."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

from benchmarks.declustering import jets_like_pythia
from benchmarks.lundnet import literal
from pharos.config import make_plan
from pharos.errors import InputError
from trainables.common.batchnorm import BatchNorm1d
from trainables.jetlov.data import open_study
from trainables.jetlov.declustering import Cuts
from trainables.jetlov.evaluation import (
    auc,
    background_efficiency,
    describe,
    generalisation,
    rejection,
    rotation_violation,
)
from trainables.jetlov.jets import cartesian, from_counts
from trainables.jetlov.model import RegNet, Tagger, load_public, make_regnet, raw_form
from trainables.jetlov.recipe import Jetlov
from trainables.jetlov.settings import JetDataConfig, JetlovConfig, ModelConfig
from trainables.jetlov.trees import Batch, build

CPU = torch.device("cpu")
SMALL = {"width": 4, "blocks": 3, "regnet_hidden": 8, "fc_hidden": 8, "fc_dropout": 0.0}


@pytest.fixture(scope="module")
def trees():
    return build(jets_like_pythia(40, 12.0), Cuts())


def size(module):
    return sum(p.numel() for p in module.parameters())


def test_the_networks_have_the_papers_sizes():
    counts = {name: size(Tagger(ModelConfig(features=name))) for name in ("lund5", "lund3", "lov", "raw8")}
    assert counts == {"lund5": 391_724, "lund3": 391_528, "lov": 447_665, "raw8": 391_234 + 98 * 8}
    assert size(make_regnet(ModelConfig())) == 55_941
    assert size(make_regnet(ModelConfig(regnet_kind="shared"))) == 18_309
    for width, blocks, expected in ((16, 6, 93_148), (16, 4, 53_596)):
        assert size(Tagger(ModelConfig(features="lund5", width=width, blocks=blocks))) == expected


@pytest.mark.parametrize("features", ["lund5", "lov", "raw8"])
def test_it_is_the_literal_form_gradients_and_statistics_included(trees, features):
    batch = trees.take(trees.index, CPU)
    results = []
    for forward in (lambda t: t(batch), lambda t: literal(t, batch)):
        torch.manual_seed(0)
        tagger = Tagger(ModelConfig(features=features, **SMALL))
        logits = forward(tagger)
        F.cross_entropy(logits, batch.label).backward()
        gradients = torch.cat([p.grad.flatten() for p in tagger.parameters()])
        results.append((logits.detach(), gradients, *tagger.buffers()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_jet_s_logits_do_not_depend_on_its_company(trees):
    torch.manual_seed(0)
    tagger = Tagger(ModelConfig(**SMALL))
    tagger(trees.take(trees.index, CPU))
    tagger.eval()
    with torch.no_grad():
        whole = tagger(trees.take(trees.index, CPU))
        alone = torch.cat([tagger(trees.take(trees.index[k : k + 1], CPU)) for k in range(12)])
        backwards = tagger(trees.take(trees.index.flip(0), CPU)).flip(0)
    torch.testing.assert_close(alone, whole[:12], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backwards, whole, rtol=1e-5, atol=1e-5)


def test_jets_without_splittings_alone_or_in_company():
    p4 = cartesian(np.array([50.0, 30.0, 20.0, 10.0]), np.array([0, 0.1, 0.4, 0.2]), 1.0, 0.0)
    trees = build(from_counts(p4, np.array([1, 1, 2]), np.array([0, 1, 1]), "nominal"), Cuts())
    tagger = Tagger(ModelConfig(**SMALL))
    for jets in ([0, 1], [0, 1, 2]):  # none of them has an edge
        batch = trees.take(torch.tensor(jets), CPU)
        F.cross_entropy(tagger(batch), batch.label).backward()
        assert all(torch.isfinite(p.grad).all() for p in tagger.parameters() if p.grad is not None)
        assert all(p.grad is not None for p in tagger.parameters())  # else workers would wait for each other
        assert all(torch.isfinite(b).all() for b in tagger.buffers())
    tagger.eval()
    assert torch.isfinite(tagger(trees.take(torch.tensor([0]), CPU))).all()


def test_batch_norm_of_rows_is_pytorch_s_and_takes_none():
    ours, theirs = BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    x = torch.randn(7, 3)
    assert torch.equal(ours(x), theirs(x))
    assert ours(x[:0]).shape == (0, 3)
    assert torch.equal(ours.running_mean, theirs.running_mean)


def test_regnet_keeps_its_digits_under_autocast_and_without_exact_products(trees):
    torch.manual_seed(0)
    tagger = Tagger(ModelConfig(**SMALL))
    batch = trees.take(trees.index, CPU)
    gradients = []
    for enabled in (False, True):
        tagger.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            made = tagger.variables(batch)
            normed = tagger.lundnet.norm(made)
            logits = tagger(batch)
        assert made.dtype == normed.dtype == torch.float32
        made.square().mean().backward()
        gradients.append([made.detach(), normed.detach(), *(p.grad.clone() for p in tagger.regnet.parameters())])
    for exact, cast in zip(*gradients, strict=True):
        assert torch.equal(exact, cast)
    assert tagger.lundnet.blocks[0].theta(normed).dtype == torch.float32
    assert torch.isfinite(logits.float()).all()


def test_regnet_forbids_tf32_forward_and_backward_and_gives_the_setting_back(monkeypatch):
    seen, kind = [], torch.backends.cuda.matmul
    before = kind.fp32_precision
    real = F.linear
    monkeypatch.setattr(F, "linear", lambda *args: (seen.append(kind.fp32_precision), real(*args))[1])
    try:
        kind.fp32_precision = "tf32"
        RegNet("shared", 5, 4, 1, 0.0)(torch.randn(3, 8)).sum().backward()
        assert kind.fp32_precision == "tf32"
    finally:
        kind.fp32_precision = before
    assert seen == ["ieee", "ieee"]


def test_the_gradient_reaches_every_branch_and_is_that_of_finite_differences(trees):
    torch.manual_seed(0)
    tagger = Tagger(ModelConfig(**SMALL)).eval()
    batch = trees.take(trees.index[:8], CPU)
    F.cross_entropy(tagger(batch), batch.label).backward()
    assert all(branch[0].weight.grad.abs().sum() > 0 for branch in tagger.regnet.branches)
    x = torch.randn(5, 8, dtype=torch.float64)
    layer = torch.nn.Linear(8, 3).double()
    from trainables.jetlov.model import _FromParents, _FullLinear, _ToParents

    assert torch.autograd.gradcheck(_FullLinear.apply, (x.requires_grad_(), layer.weight, layer.bias))
    rows = torch.randn(len(batch.raw), 2, requires_grad=True)
    messages = torch.randn(len(batch.parent), 2)
    # One look-up is the other's adjoint: <P x, y> = <x, P' y>.
    looked = _FromParents.apply(rows, batch.parent, batch.children)
    summed = _ToParents.apply(messages, batch.parent, batch.children)
    assert float((looked * messages).sum().detach()) == pytest.approx(float((rows * summed).sum().detach()), rel=1e-4)
    (gradient,) = torch.autograd.grad((looked * messages).sum(), rows)
    torch.testing.assert_close(gradient, summed)


def test_with_the_lund_variables_for_regnet_it_is_lundnet_to_the_bit(trees):
    torch.manual_seed(0)
    lund, lov = Tagger(ModelConfig(features="lund5", **SMALL)).eval(), Tagger(ModelConfig(**SMALL)).eval()
    lov.lundnet.load_state_dict(lund.lundnet.state_dict())
    batch = trees.take(trees.index, CPU)
    lov.regnet.forward = lambda raw: batch.lund
    assert torch.equal(lov(batch), lund(batch))


def turned(batch: Batch, angle: float) -> Batch:
    raw = batch.raw.clone()
    raw[:, [2, 6]] = (raw[:, [2, 6]] + angle) % (2 * torch.pi)
    return Batch(**{**vars(batch), "raw": raw})


def test_lundnet_and_relative_momenta_know_no_azimuth_and_jetlov_does(trees):
    batch = trees.take(trees.index, CPU)
    for form, is_free in (("relative_log", True), ("ptetaphim", False)):
        torch.manual_seed(0)
        tagger = Tagger(ModelConfig(raw_form=form, **SMALL)).eval()
        assert (rotation_violation(tagger, batch) < 1e-4) == is_free
    assert rotation_violation(Tagger(ModelConfig(features="lund5", **SMALL)).eval(), batch) == 0


def test_the_forms_of_momenta_agree(trees):
    batch = trees.take(trees.index, CPU)
    cart = raw_form(batch, "pxpypzE").double().view(-1, 2, 4)
    pt = cart[..., :2].norm(dim=2)
    torch.testing.assert_close(pt.float(), batch.raw[:, [0, 4]], rtol=1e-5, atol=1e-5)
    mass2 = cart[..., 3] ** 2 - cart[..., :3].square().sum(2)
    assert (mass2 - batch.raw[:, [3, 7]].double() ** 2).abs().max() < 1e-3 * cart[..., 3].max() ** 2 * 1e-2
    relative = raw_form(batch, "relative_log").view(-1, 2, 4)
    assert relative[..., 2].abs().max() <= torch.pi + 1e-5
    torch.testing.assert_close(relative[batch.raw[:, 0] > 0][..., 0].exp(), batch.raw[batch.raw[:, 0] > 0][:, [0, 4]])


def public_names(tagger):
    """A tagger's weights under the names of the authors' files."""
    names = {}
    for name, value in tagger.state_dict().items():
        part, _, rest = name.partition(".")
        for ours, theirs in (
            ("norms.", "bns."),
            (".linear.", ".fcs.0."),
            ("norm.", "bn_fts."),
            ("blocks.", "edge_convs."),
            ("shortcut.0.", "sc."),
            ("shortcut.1.", "sc_bn."),
            ("fusion.", "fusion_block."),
            ("head.0.", "fc.0.0."),
            ("head.3.", "fc.1."),
        ):
            if ours == "norm." and not rest.startswith("norm."):
                continue
            rest = rest.replace(ours, theirs) if part == "lundnet" else rest
        names[{"lundnet": "network_b.", "regnet": "network_a."}[part] + rest] = value
    return names


def test_the_authors_files_load_whole_or_in_part(trees, tmp_path):
    config = ModelConfig(**SMALL)
    torch.manual_seed(0)
    known = Tagger(config)
    names = public_names(known)
    assert {"network_b.bn_fts.weight", "network_b.edge_convs.0.fcs.0.weight", "network_b.fc.1.bias"} <= set(names)
    assert {"network_b.edge_convs.0.bns.1.running_var", "network_b.edge_convs.0.sc_bn.weight"} <= set(names)
    assert {"network_a.branches.1.2.weight", "network_b.fusion_block.2.running_mean"} <= set(names)
    torch.save(names, tmp_path / "composite.pt")
    fresh = Tagger(config)
    assert load_public(fresh, str(tmp_path / "composite.pt")) == ["lundnet", "regnet"]
    batch = trees.take(trees.index, CPU)
    assert torch.equal(fresh.eval()(batch), known.eval()(batch))
    lund = {name.removeprefix("network_b."): w for name, w in names.items() if name.startswith("network_b.")}
    torch.save(lund, tmp_path / "lundnet.pt")
    assert load_public(Tagger(config), str(tmp_path / "lundnet.pt")) == ["lundnet"]
    config = JetlovConfig(model=ModelConfig(**SMALL, weights=str(tmp_path / "lundnet.pt")))
    assert config.stages(["lundnet"]) == ["R"]
    assert Jetlov().fidelity(config) == config.regress.epochs + config.epochs
    for state, reason in (
        ({**lund, "bn_fts.weight": torch.ones(3)}, r"norm\.weight is \(3,\), this network has \(5,\)"),
        ({k: v for k, v in lund.items() if k != "fc.1.bias"}, r"head\.3\.bias is missing \(1 such names\)"),
        ({"nothing.at": torch.ones(1)}, "has nothing, this network has lundnet, regnet"),
        ([1, 2], "not a state dict"),
    ):
        torch.save(state, tmp_path / "wrong.pt")
        with pytest.raises(InputError, match=reason):
            load_public(Tagger(ModelConfig(**SMALL)), str(tmp_path / "wrong.pt"))
    with pytest.raises(InputError, match="no such file"):
        load_public(Tagger(ModelConfig(**SMALL)), str(tmp_path / "none.pt"))


def test_metrics_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    score, label = np.round(rng.normal(size=400), 1), (rng.random(400) < 0.4).astype(np.int8)
    is_signal = label == 1
    pairs = score[is_signal][:, None] - score[~is_signal]
    assert auc(score, is_signal) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-12)
    assert auc(-score, is_signal) == pytest.approx(1 - auc(score, is_signal), abs=1e-12)
    assert abs(auc(score, is_signal) - 0.5) < 3 * 0.03
    efficiencies = [background_efficiency(score, is_signal, e) for e in np.linspace(0, 1, 21)]
    assert all(a <= b for a, b in pairwise(efficiencies))
    perfect = np.where(is_signal, 1.0, -1.0)
    assert describe(perfect, label)["accuracy"] == describe(perfect, label)["auc"] == 1
    assert rejection(perfect, is_signal, 0.5) == (~is_signal).sum()  # a lower bound


def test_generalisation_is_zero_gap_on_the_same_and_grows_with_a_shift():
    rng = np.random.default_rng(0)
    label = (np.arange(2000) % 2).astype(np.int8)
    score = rng.normal(size=2000) + 2 * label
    found = generalisation({"a": (score, label), "b": (score, label), "c": (score * 0.2 + 1, label)}, ["a"])
    assert found["gap/b"] == 0
    assert found["zeta/b"] > 1e5
    assert found["zeta/c"] < 10
    assert found["worst_gap"] == pytest.approx(0, abs=1e-12)  # a scaled score ranks alike: only thresholds move
    assert "worst_gap" not in generalisation({"a": (score, label)}, ["a"])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda: JetDataConfig(source="root"), "recipe.data.source=root must be one of"),
        (lambda: JetDataConfig(domains="a+b", others="b"), "b is named twice"),
        (lambda: JetDataConfig(domains=" "), "names at least one"),
        (lambda: JetlovConfig(model=ModelConfig(n_vars=3)), "take n_vars=5 or init=scratch"),
        (lambda: JetlovConfig(init="scratch", model=ModelConfig(regnet_frozen=True)), "would never learn"),
        (lambda: ModelConfig(features="lund6"), "recipe.model.features=lund6 must be one of"),
    ],
)
def test_impossible_settings_are_refused(wrong, reason):
    with pytest.raises(InputError, match=reason):
        wrong()


def test_an_unknown_domain_and_a_missing_root_are_named():
    with pytest.raises(InputError, match=r"recipe\.data\.root: source=lundnet needs it"):
        open_study(JetDataConfig())
    with pytest.raises(InputError, match="mars is none of the toy's"):
        open_study(JetDataConfig(source="toy", domains="mars", train=5, val=5, test=5))


@pytest.mark.parametrize("space", ["default", "generalisation"])
@pytest.mark.parametrize("scale", ["small", "paper"])
def test_the_search_spaces_have_trials(space, scale):
    plan = make_plan("jetlov", [f"space={space}", f"scale={scale}", "tracking=none"])
    assert plan.settings.objectives.first.metric == "val/auc"
    assert all(plan.recipe.fidelity(plan.build_config(params)) >= 6 for params in plan.first_trials)
