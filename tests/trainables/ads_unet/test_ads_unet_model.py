"""Section 7 of the reference notes on ADS_UNet: sizes, shapes, layer weights, losses, freezing, votes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from trainables.ads_unet.boosting import Boosting, alpha_of, vote
from trainables.ads_unet.losses import MapLoss, class_weights, soft_targets, targets_at
from trainables.ads_unet.model import SCSE, Grid, Joint, LayerWeights, count
from trainables.common.histology.cost import saved_activations
from trainables.common.histology.metrics import image_iou
from trainables.common.histology.networks import baseline


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def plain(classes: int) -> MapLoss:
    return MapLoss("ce", torch.ones(classes))


def grid(classes: int = 3, width: int = 4, depth: int = 2, **settings: object) -> Grid:
    return Grid(classes, width, depth, plain(classes), **settings)  # type: ignore[arg-type]


def batch(size: int = 16, count: int = 4, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(count, 3, size, size), torch.randint(0, classes, (count, size, size)), torch.ones(count)


# 1


@pytest.mark.parametrize(
    ("width", "classes", "new"),
    [
        (64, 5, [410_159, 1_628_216, 6_649_025, 26_717_642]),
        (64, 2, [409_577, 1_626_863, 6_646_133, 26_711_675]),
        (32, 5, [103_711, 408_616, 1_665_649, 6_686_458]),
        (16, 5, [26_519, 102_944, 418_121, 1_675_154]),
        (8, 5, [6_931, 26_140, 105_397, 420_574]),
    ],
)
def test_parameters_of_the_grid_and_of_each_stage(width: int, classes: int, new: list[int]) -> None:
    total = {(64, 5): 35_405_042, (64, 2): 35_394_248, (32, 5): 8_864_434, (16, 5): 2_222_738, (8, 5): 559_042}
    with torch.device("meta"):
        network = grid(classes, width, 4)
    parts = [count(stage) + count(node) for stage, node in zip(network.stages, network.encoder[1:], strict=True)]
    parts[0] += count(network.encoder[0])
    assert parts == new
    assert count(network) == total[width, classes]
    network.train_last_stage(with_encoder=False)
    assert count(network, trained=True) == new[-1]
    network.train_last_stage(with_encoder=True)
    assert count(network, trained=True) == new[-1] + count(network.encoder[:-1])


def test_the_first_stage_trains_all_that_it_has() -> None:
    network = grid(5, 8, 1)
    network.train_last_stage(with_encoder=False)
    assert count(network, trained=True) == count(network) == 6_931


def test_parameters_of_smaller_grids_and_of_the_baselines() -> None:
    with torch.device("meta"):
        assert count(grid(5, 64, 4, skip="none")) == 34_937_108
        assert [count(grid(5, 8, depth)) for depth in (3, 2)] == [138_468, 33_071]
        for name, two, five in (
            ("unet", 31_043_586, 31_043_781),
            ("unete", 34_919_624, 34_920_404),
            ("unetpp", 36_173_000, 36_173_780),
        ):
            sizes = [count(Joint(baseline(name, classes, 64, 4), plain(classes))) for classes in (2, 5)]
            assert sizes == [two, five]


def test_an_unfrozen_encoder_is_trained_and_nothing_of_the_other_stages() -> None:
    network = grid(depth=3)
    network.train_last_stage(with_encoder=True)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[1] for name in trained if name.startswith("encoder")} == {"0", "1", "2", "3"}
    assert {name.split(".")[1] for name in trained if name.startswith("stages")} == {"2"}


# 2


def test_logits_come_deepest_first_and_probabilities_sum_to_one() -> None:
    network = grid(depth=3).eval()
    x = torch.randn(2, 3, 24, 16)
    nodes: list[Tensor] = []
    for level, block in enumerate(network.encoder):
        nodes.append(block(nn.functional.max_pool2d(nodes[-1], 2) if level else x))
    logits = network.stages[2].logits(network.stages[2].decode(nodes))
    assert [tuple(out.shape) for out in logits] == [(2, 3, 24 // 2**i, 16 // 2**i) for i in (3, 2, 1, 0)]
    with torch.no_grad():
        said = network(x)
    assert said.shape == (3, 2, 3, 24, 16)
    torch.testing.assert_close(said.sum(dim=2), torch.ones(3, 2, 24, 16), atol=1e-5, rtol=0)


def test_a_stage_s_vote_is_the_weighted_mean_of_its_raised_heads() -> None:
    network = grid(depth=2).eval()
    with torch.no_grad():
        network.stages[1].layer_weights.eta.copy_(torch.tensor([2.0, -1.0, 0.5]))
        x = torch.randn(2, 3, 16, 16)
        heads, said = network(x, want="heads"), network(x, stages=[2])[0]
        weights = network.stages[1].layer_weights(x)
    torch.testing.assert_close(said, (weights.view(3, 1, 1, 1, 1) * heads).sum(0))
    with torch.no_grad():
        torch.testing.assert_close(network(x, stages=[2], heads=[1])[0], heads[1])


def test_attention_of_both_kinds_is_added() -> None:
    attention = SCSE(4).eval()
    x = torch.randn(2, 4, 8, 8)
    one, both, inner = (attention.spatial[0], attention.channel[4], attention.channel[1])
    with torch.no_grad():
        for part in (one, both, inner):
            part.weight.zero_()
            part.bias.zero_()
        for norm in (attention.spatial[1], attention.channel[2], attention.channel[5]):
            norm.weight.fill_(1.0)
        torch.testing.assert_close(attention(x), x)  # a half and a half


# 3


@pytest.mark.parametrize("floor", [0.0, 0.25, 0.5])
def test_layer_weights_are_bounded_and_sum_to_one(floor: float) -> None:
    weights = LayerWeights(4, "bounded", floor)
    torch.testing.assert_close(weights(torch.zeros(1)), torch.full((4,), 0.25))
    for scale in (1.0, 5.0, 50.0):
        with torch.no_grad():
            weights.eta.copy_(scale * torch.randn(4))
        found = weights(torch.zeros(1)).detach()
        assert float(found.sum()) == pytest.approx(1.0)
        assert float(found.min()) >= floor / 4 - 1e-6
        assert float(found.max()) <= floor / 4 + 1 - floor + 1e-6


def test_half_a_floor_is_what_the_authors_normalise() -> None:
    weights = LayerWeights(3, "bounded", 0.5)
    with torch.no_grad():
        weights.eta.copy_(torch.tensor([1.0, 0.0, -2.0]))
    theirs = weights.eta.softmax(0) + 1 / 3
    torch.testing.assert_close(weights(torch.zeros(1)), theirs / theirs.sum())


def test_the_gradient_on_layer_weights_moves_them_to_the_layer_with_the_least_loss() -> None:
    network = grid(depth=2)
    loss, losses, _ = network(*batch())
    loss.backward()
    gradient = network.stages[1].layer_weights.eta.grad
    assert float(gradient.sum()) == pytest.approx(0.0, abs=1e-6)
    assert float(gradient[losses.argmin()]) < 0
    assert float(gradient[losses.argmax()]) > 0


@pytest.mark.parametrize(("mode", "heads", "learned"), [("softmax", 3, 3), ("uniform", 3, 0), ("top_only", 1, 0)])
def test_other_modes_of_layer_weights(mode: str, heads: int, learned: int) -> None:
    network = grid(eta_mode=mode)
    stage = network.stages[1]
    assert len(stage.heads) == heads
    assert count(stage.layer_weights) == learned
    loss, losses, weights = network(*batch())
    assert float(weights.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(loss.detach(), (losses * weights).sum())
    loss.backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


# 4 and 5


@pytest.mark.parametrize("frozen_bn", ["eval", "train"])
def test_a_frozen_stage_leaves_all_others_bit_identical(frozen_bn: str) -> None:
    network = grid(depth=3, frozen_bn=frozen_bn)
    network.train_last_stage(with_encoder=False)
    network.train()
    x, y, w = batch()
    kept = {name for name, p in network.named_parameters() if not p.requires_grad}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        said = network.eval()(x, stages=[1, 2])
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 0.01, weight_decay=0.1)
    network.train()
    for _ in range(2):
        optimizer.zero_grad()
        network(x, y, w)[0].backward()
        assert all(p.grad is None for name, p in network.named_parameters() if name in kept)
        optimizer.step()
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert not torch.equal(after["encoder.3.0.weight"], before["encoder.3.0.weight"])
    drifted = [n for n in after if "running" in n and "encoder.3" not in n and "stages.2" not in n]
    changed = [name for name in drifted if not torch.equal(after[name], before[name])]
    with torch.no_grad():
        is_same = torch.equal(network.eval()(x, stages=[1, 2]), said)
    if frozen_bn == "eval":
        assert not changed
        assert is_same
    else:  # the documented difference: the statistics of the encoder's frozen nodes drift, and with them the stages
        assert {name.split(".")[0] for name in changed} == {"encoder"}
        assert not is_same


def test_a_frozen_stage_saves_less_for_its_backward_pass() -> None:
    network = grid(width=8, depth=3)
    kept = []
    for is_frozen in (True, False):
        network.train_last_stage(with_encoder=not is_frozen)
        network.train()
        with saved_activations(network.parameters()) as saved:
            loss = network(*batch(32))[0]
        kept.append(saved.mib)
        del loss
    assert kept[0] < 0.85 * kept[1]


def test_saved_bytes_are_what_autograd_keeps() -> None:
    x = torch.randn(256, 1024, requires_grad=True)  # 1 MiB
    weight = torch.randn(1024, requires_grad=True)
    with saved_activations([weight]) as saved:
        (x * weight).exp().sum()  # keeps x and the result of exp; the weight is a parameter
    assert saved.mib == pytest.approx(2.0, rel=0.01)


# 6 and 7


def test_pooled_targets_are_soft_labels() -> None:
    masks = torch.randint(0, 4, (2, 16, 16))
    for factor in (1, 2, 8):
        target, _ = targets_at(soft_targets(masks, 4), torch.ones(2), factor)
        torch.testing.assert_close(target.sum(dim=1), torch.ones(2, 16 // factor, 16 // factor))
    constant, _ = targets_at(soft_targets(torch.full((1, 8, 8), 2), 4), torch.ones(1), 4)
    assert constant[0, :, 0, 0].tolist() == [0, 0, 1, 0]


def test_cross_entropy_on_constant_blocks_is_the_usual_one() -> None:
    coarse, logits = torch.randint(0, 3, (2, 4, 4)), torch.randn(2, 3, 4, 4)
    masks = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
    target, weight = targets_at(soft_targets(masks, 3), torch.ones(2), 4)
    ours = plain(3)(logits, target, weight)
    theirs = nn.functional.cross_entropy(logits, coarse, reduction="none").mean(dim=(1, 2))
    torch.testing.assert_close(ours, theirs)


def test_equal_weights_give_the_mean_loss_and_ignored_pixels_none() -> None:
    logits, masks = torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4, 8, 8))
    boosting = Boosting({}, (4,), classes=3, rule="samme", reweight="ada", strength=1.0)
    ours = plain(3)(logits, soft_targets(masks, 3), boosting.relative).mean()
    torch.testing.assert_close(ours, nn.functional.cross_entropy(logits, masks))
    masks[:, :4] = 255
    ours = plain(3)(logits, soft_targets(masks, 3), torch.ones(4)).mean()
    torch.testing.assert_close(ours, nn.functional.cross_entropy(logits, masks, ignore_index=255))
    # A weight for each pixel is one for each sample, if all of a sample's are equal.
    weights = torch.tensor([0.5, 2.0, 1.0, 0.5])
    by_pixel = weights.view(4, 1, 1).expand(4, 8, 8)
    for kind in ("ce", "ce+dice"):
        loss = MapLoss(kind, torch.ones(3))
        soft = soft_targets(masks, 3)
        if kind == "ce":
            torch.testing.assert_close(loss(logits, soft, by_pixel), loss(logits, soft, weights))
        assert loss(logits, soft, torch.ones(4)).shape == (4,)


def test_overlap_losses_are_nothing_for_a_perfect_prediction_and_much_for_a_wrong_one() -> None:
    masks = torch.randint(0, 3, (2, 8, 8))
    soft = soft_targets(masks, 3)
    right, wrong = 50 * soft, 50 * soft.roll(1, dims=1)
    loss = MapLoss("iou", torch.ones(3))
    assert float(loss(right, soft, torch.ones(2)).max()) < 1e-3
    assert float(loss(wrong, soft, torch.ones(2)).min()) > 0.999
    both = MapLoss("ce+dice", torch.ones(3))
    assert float(both(right, soft, torch.ones(2)).max()) < 1e-3


def test_class_weights() -> None:
    frequencies = torch.tensor([0.0502, 0.4016, 0.3674, 0.1180, 0.0628])
    expected = torch.tensor([0.9498, 0.5984, 0.6326, 0.8820, 0.9372])
    torch.testing.assert_close(class_weights("complement", frequencies), expected)
    assert float(class_weights("inverse_sqrt", frequencies).mean()) == pytest.approx(1.0)
    assert class_weights("none", frequencies).tolist() == [1.0] * 5


# 8, 9 and 10


def test_alpha_falls_with_the_error() -> None:
    for classes in (2, 5):
        alphas = [alpha_of(e, classes, "half_logodds") for e in torch.linspace(0.01, 0.49, 20).tolist()]
        assert alphas == sorted(set(alphas), reverse=True)
    assert alpha_of(0.5 - 1e-9, 2, "half_logodds") == pytest.approx(0.0, abs=1e-6)
    assert [round(alpha_of(e, 2, "half_logodds"), 3) for e in (0.05, 0.1, 0.2, 0.3)] == [1.472, 1.099, 0.693, 0.424]
    assert [round(alpha_of(e, 5, "half_logodds"), 3) for e in (0.1, 0.2, 0.3, 0.4)] == [2.485, 2.079, 1.810, 1.589]
    threshold = 0.8 - 1e-9
    assert alpha_of(threshold, 5, "half_logodds") == pytest.approx(0.5 * math.log(4), abs=1e-6)
    assert alpha_of(threshold, 5, "samme") == pytest.approx(0.0, abs=1e-6)
    assert alpha_of(0.3, 5, "uniform") == 1.0


def boosted(quality: list[float], **settings: object) -> Boosting:
    given = {"classes": 5, "rule": "half_logodds", "reweight": "ada", "strength": 1.0, **settings}
    boosting = Boosting({}, (len(quality),), **given)  # type: ignore[arg-type]
    boosting.end_stage(torch.tensor(quality, dtype=torch.float64), 0)
    return boosting


def test_samples_are_reweighted_by_their_deficit() -> None:
    quality = [0.9, 0.2, 0.5, 0.5]
    boosting = boosted(quality)
    w = boosting.weights
    assert bool((w > 0).all())
    assert float(w.sum()) == pytest.approx(1.0)
    for a in range(4):
        for b in range(4):
            assert float(w[a] / w[b]) == pytest.approx(math.exp(quality[b] - quality[a]))
    assert boosting.errors == pytest.approx([1 - sum(0.25 * m for m in quality)])
    assert float(w.max() / w.min()) <= math.e
    assert float(boosting.relative.mean()) == pytest.approx(1.0)
    torch.testing.assert_close(boosted([0.4] * 3).weights, torch.full((3,), 1 / 3, dtype=torch.float64))
    stronger = boosted(quality, strength=2.0).weights
    assert float(stronger[1] / stronger[0]) == pytest.approx(math.exp(2 * 0.7))
    assert boosted(quality, reweight="none").weights.tolist() == [0.25] * 4


def test_pixels_are_reweighted_by_being_right_or_wrong() -> None:
    state: dict[str, object] = {}
    boosting = Boosting(state, (1, 2, 2), classes=2, rule="half_logodds", reweight="pixel", strength=1.0)
    boosting.end_stage(torch.tensor([[[1.0, 1.0], [1.0, 0.0]]]), 0)
    alpha = boosting.alphas[0]
    assert alpha == pytest.approx(0.5 * math.log(3))
    assert float(boosting.weights[0, 1, 1] / boosting.weights[0, 0, 0]) == pytest.approx(math.exp(2 * alpha))


def test_perfect_and_hopeless_stages() -> None:
    perfect = boosted([1.0, 1.0])
    assert perfect.is_good
    assert perfect.alphas == pytest.approx([0.5 * math.log((1 - 1e-6) / 1e-6) + math.log(4)])
    hopeless = boosted([0.1, 0.15])
    assert not hopeless.is_good
    assert hopeless.alphas == [0.0]
    assert hopeless.weights.tolist() == [0.5, 0.5]
    assert boosted([float("nan"), 0.5]).alphas == [0.0]


def test_quality_counts_the_classes_that_are_there() -> None:
    truth = torch.tensor([[[0, 0], [1, 255]]])
    predicted = torch.tensor([[[0, 2], [1, 1]]])
    assert image_iou(predicted, truth, 3).tolist() == [(0.5 + 1.0) / 2]


# 11


def test_votes() -> None:
    said = torch.rand(3, 2, 4, 5, 5).softmax(dim=2)
    torch.testing.assert_close(vote(said[:1], [0.7], "soft"), said[0])
    torch.testing.assert_close(vote(said, [1.3] * 3, "soft"), said.mean(dim=0))
    torch.testing.assert_close(vote(said, [3.0, 2.0, 1.0], "mean"), said.mean(dim=0))
    torch.testing.assert_close(vote(said, [0.0] * 3, "soft"), said.mean(dim=0))
    torch.testing.assert_close(vote(said.flip(0), [3.0, 2.0, 1.0], "soft"), vote(said, [1.0, 2.0, 3.0], "soft"))
    sharp = (said.log() * 3).softmax(dim=2)
    torch.testing.assert_close(vote(said, [1.0, 2.0, 0.5], "hard"), vote(sharp, [1.0, 2.0, 0.5], "hard"))
    assert vote(said, [1.0, 1.0, 5.0], "hard").argmax(1).equal(said[2].argmax(1))
    torch.testing.assert_close(vote(said, [1.0, 2.0, 0.5], "soft").sum(1), torch.ones(2, 5, 5))


# 12


def test_all_stages_at_once_are_each_by_itself() -> None:
    network = grid(depth=3).eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        together = network(x)
        for depth in (1, 2, 3):
            torch.testing.assert_close(network(x, stages=[depth])[0], together[depth - 1])
        # A grid that is less deep has the same stages.
        less = grid(depth=2).eval()
        less.load_state_dict({k: v for k, v in network.state_dict().items() if k in less.state_dict()})
        assert torch.equal(less(x), network(x, stages=[1, 2]))


# 15


def test_it_learns_four_images_by_heart() -> None:
    network = grid(classes=2, width=8, depth=2)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    masks = torch.stack([((y - a) ** 2 + (x - b) ** 2 < 20).long() for a, b in ((5, 5), (8, 9), (11, 4), (6, 11))])
    images = masks[:, None] * torch.tensor([1.0, -0.5, 0.3]).view(1, 3, 1, 1) + 0.3 * torch.randn(4, 3, 16, 16)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        network(images, masks, torch.ones(4))[0].backward()
        optimizer.step()
    with torch.no_grad():
        predicted = network.eval()(images, stages=[2])[0].argmax(1)
    assert float(image_iou(predicted, masks, 2).mean()) > 0.9
