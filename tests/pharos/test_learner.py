"""A learner does what plain PyTorch does, and remembers all of it."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from pharos.checkpoint import Checkpoints
from pharos.engines import activations
from pharos.engines.base import EngineConfig
from pharos.errors import InputError
from pharos.learner import Learner, OptimConfig, _rate
from pharos.saver import Saver
from pharos.storage import Storage
from pharos.world import World

KINDS = {
    "adam": lambda p, c: torch.optim.Adam(p, c.lr, (c.beta1, c.beta2), c.eps, c.weight_decay),
    "adamw": lambda p, c: torch.optim.AdamW(p, c.lr, (c.beta1, c.beta2), c.eps, c.weight_decay),
    "sgd": lambda p, c: torch.optim.SGD(p, c.lr, c.beta1, weight_decay=c.weight_decay),
}


def make_module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def make_learner(precision="fp32", saved=None, **optim):
    return Learner("net", make_module(), OptimConfig(**optim), engine=EngineConfig(precision=precision), saved=saved)


def loss_of(net, step, part=slice(None)):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))[part]
    return (net(x) - x.sum(1, keepdim=True)).square().mean() * 10


def equal(a, b):
    return all(torch.equal(x, b[name]) for name, x in a.items()) and a.keys() == b.keys()


@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize("name", KINDS)
def test_steps_equal_those_of_plain_pytorch(name, clip):
    config = OptimConfig(name=name, lr=0.03, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.05, clip_norm=clip)
    learner, module = Learner("net", make_module(), config), make_module()
    optimizer = KINDS[name](module.parameters(), config)
    for step in range(3):
        learner.step(loss_of(learner, step))
        optimizer.zero_grad()
        loss_of(module, step).backward()
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    for ours, theirs in zip(learner.module.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_clipping_bounds_the_whole_gradient():
    learner = make_learner(name="sgd", lr=1.0, beta1=0.0, clip_norm=0.01)
    before = copy.deepcopy(learner.module)
    learner.step(loss_of(learner, 0))
    moved = [(a - b).detach() for a, b in zip(learner.module.parameters(), before.parameters(), strict=True)]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(0.01, rel=1e-3)


def test_bf16_computes_in_bf16_and_hands_back_float32():
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    seen = []
    learner, exact = make_learner("bf16"), make_learner()
    learner.module[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    out = learner(x)
    assert seen == [torch.bfloat16]
    assert out.dtype == torch.float32
    assert not torch.equal(out, exact(x))
    torch.testing.assert_close(out, exact(x), rtol=0.05, atol=0.05)
    learner.step(out.square().mean())
    assert {p.dtype for p in learner.module.parameters()} == {torch.float32}


def test_the_mean_loss_is_of_the_steps_since_it_was_last_taken():
    learner = make_learner()
    assert learner.take_mean_loss() is None
    losses = []
    for step in range(3):
        loss = loss_of(learner, step)
        losses.append(float(loss.detach()))
        learner.step(loss)
    assert learner.take_mean_loss() == pytest.approx(sum(losses) / 3)
    assert learner.take_mean_loss() is None


def test_gradients_of_the_step_before_are_cleared():
    learner, once = make_learner(name="sgd", beta1=0.0), make_learner(name="sgd", beta1=0.0)
    loss_of(learner, 7).backward()
    for each in (learner, once):
        each.step(loss_of(each, 0))
    assert equal(learner.module.state_dict(), once.module.state_dict())


def saved(learner, folder):
    """The checkpoint of a trial that has this learner alone."""
    checkpoints = Checkpoints(Storage(str(folder)))
    Saver(checkpoints).save(1, {}, learner.parts())
    return checkpoints.newest()


@pytest.mark.parametrize("name", KINDS)
def test_a_restored_learner_goes_on_exactly_moments_included(name, tmp_path):
    learner = make_learner(name=name)
    for step in range(3):
        learner.step(loss_of(learner, step))
    restored = make_learner(name=name, saved=saved(learner, tmp_path))
    fresh = make_learner(name=name)
    fresh.load_weights(learner.weights())
    for each in (learner, restored, fresh):
        each.step(loss_of(each, 3))
    assert equal(learner.module.state_dict(), restored.module.state_dict())
    assert not equal(learner.module.state_dict(), fresh.module.state_dict())  # the moments matter


def test_frozen_lets_gradients_through_but_none_in_and_restores_what_was_trainable():
    learner = make_learner()
    learner.module[0].bias.requires_grad_(False)
    x = torch.randn(4, 3, requires_grad=True)

    def fail_inside():
        with learner.frozen() as net:
            net(x).sum().backward()
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in learner.module.parameters())
    assert [p.requires_grad for p in learner.module.parameters()] == [True, False, True, True]


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_records_nothing_and_goes_back_to_the_mode_before(training):
    learner = make_learner()
    learner.module.train(training)

    def fail_inside():
        with learner.evaluating() as net:
            assert not net.module.training
            assert not net(torch.ones(1, 3)).requires_grad
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert learner.module.training is training
    assert learner(torch.ones(1, 3)).requires_grad


def test_an_unknown_optimiser_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="'adamm' is unknown; choose adam, adamw or sgd"):
        OptimConfig(name="adamm")


@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("name", KINDS)
def test_a_batch_in_parts_gives_the_update_of_the_whole_batch(name, parts, clip):
    config = OptimConfig(name=name, lr=0.03, clip_norm=clip)
    whole = Learner("net", make_module(), config)
    parted = Learner("net", make_module(), config, engine=EngineConfig(accumulation=parts))
    for step in range(3):
        before = parted.weights()
        for part in range(parts):
            assert equal(parted.module.state_dict(), before)
            parted.step(loss_of(parted, step, slice(part, None, parts)))
        whole.step(loss_of(whole, step))
        for ours, theirs in zip(parted.module.parameters(), whole.module.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert not equal(whole.module.state_dict(), make_module().state_dict())
    assert parted.take_mean_loss() == pytest.approx(whole.take_mean_loss(), rel=1e-6)


def test_the_share_s_weight_scales_the_update_and_the_loss_that_is_reported():
    world = World()
    weighted = Learner("net", make_module(), OptimConfig("sgd", beta1=0.0), world=world)
    scaled = make_learner(name="sgd", beta1=0.0)
    for step, weight in enumerate((0.5, 2.0, 1.0)):
        world.loss_weight = weight
        weighted.step(loss_of(weighted, step))
        scaled.step(loss_of(scaled, step) * weight)
    assert equal(weighted.module.state_dict(), scaled.module.state_dict())
    assert weighted.take_mean_loss() == scaled.take_mean_loss()


class Deep(nn.Module):
    """Two blocks of a `Sequential` and two of a `ModuleList`, among bare layers; one block has blocks of its own."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.first = nn.Sequential(nn.Linear(3, 6), self.block(0), nn.Sequential(self.block(1), nn.Tanh()))
        self.second = nn.ModuleList([self.block(2), self.block(3), nn.Linear(6, 1)])

    def block(self, number):
        block = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Tanh())
        block[0].register_forward_hook(lambda *what: self.calls.append(number))
        return block

    def forward(self, x):
        x = self.first(x)
        for layer in self.second:
            x = layer(x)
        return x


def make_deep(is_checkpointed):
    torch.manual_seed(0)
    engine = EngineConfig(activation_checkpointing=is_checkpointed)
    return Learner("net", Deep(), OptimConfig(), engine=engine)


def test_activation_checkpointing_computes_blocks_again_and_gives_the_same_gradients():
    plain, checkpointed = make_deep(False), make_deep(True)
    for step in range(2):
        for learner in (plain, checkpointed):
            torch.manual_seed(step)
            learner.step(loss_of(learner, step))
            gradients = [parameter.grad for parameter in learner.module.parameters()]
            expected = [parameter.grad for parameter in plain.module.parameters()]
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients, expected, strict=True))
    assert equal(plain.module.state_dict(), checkpointed.module.state_dict())
    assert sorted(plain.module.calls) == sorted([0, 1, 2, 3] * 2)
    once_more = [checkpointed.module.calls.count(number) for number in range(4)]
    assert once_more[0] == once_more[2] == once_more[3] == 4
    assert once_more[1] > 2


def test_activation_checkpointing_is_left_out_where_no_gradient_is_wanted(monkeypatch):
    monkeypatch.setattr(activations, "checkpoint", lambda *what, **how: pytest.fail("checkpointed"))
    learner = make_deep(True)
    with learner.evaluating():
        learner(torch.ones(2, 3))
    assert sorted(learner.module.calls) == [0, 1, 2, 3]


def test_checkpoints_with_and_without_activation_checkpointing_name_the_same_tensors():
    names = [[part.name for part in make_deep(is_checkpointed).parts()] for is_checkpointed in (False, True)]
    assert names[0] == names[1]
    assert "learners/net/weights/first.1.0.weight" in names[0]


def test_the_engine_is_called_only_where_a_gradient_will_reach_the_parameters(monkeypatch):
    learner = make_learner()
    x, called = torch.ones(1, 3), []

    class Recording:
        def __call__(self, x):
            called.append(where)
            return learner.module(x)

    monkeypatch.setattr(learner, "_engine", Recording())
    where = "training"
    learner(x)
    where = "frozen"
    with learner.frozen():
        learner(x)
        with learner.evaluating():
            learner(x)
        learner(x)
    where = "evaluating"
    with learner.evaluating():
        learner(x)
    where = "without gradients"
    with torch.no_grad():
        learner(x)
    where = "training again"
    learner(x)
    assert called == ["training", "training again"]


def test_weights_are_a_copy_and_come_back_with_the_optimiser_as_it_was():
    learner = make_learner()
    for step in range(3):
        learner.step(loss_of(learner, step))
    weights = learner.weights()
    assert equal(weights, learner.module.state_dict())
    twin = copy.deepcopy(learner)
    learner.load_weights({name: value + 1 for name, value in weights.items()})
    assert not equal(weights, learner.module.state_dict())
    learner.load_weights(weights)
    for each in (learner, twin):
        each.step(loss_of(each, 3))
    assert equal(learner.module.state_dict(), twin.module.state_dict())


def make_normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))


def test_one_worker_s_batch_statistics_are_its_own():
    learner, module = Learner("net", make_normed(), OptimConfig("sgd", lr=0.0)), make_normed()
    for step in range(3):
        learner.step(loss_of(learner, step))
        loss_of(module, step)
    with learner.evaluating():
        pass
    learner.share_statistics()
    assert equal(learner.weights(), module.state_dict())
    assert learner.weights()["1.num_batches_tracked"] == 3


def test_several_workers_batch_statistics_are_averaged_before_an_evaluation(monkeypatch):
    averaged = []

    class Doubling(World):
        def average(self, tensor):
            averaged.append(tensor.clone())
            tensor *= 2

    learner = Learner("net", make_normed(), OptimConfig())
    learner.step(loss_of(learner, 0))
    before = learner.weights()
    monkeypatch.setattr(learner, "_world", Doubling(0, 2))
    with learner.evaluating():
        after = learner.weights()
    names = ["1.running_mean", "1.running_var"]
    assert all(torch.equal(tensor, before[name]) for tensor, name in zip(averaged, names, strict=True))
    assert equal(after, before | {name: 2 * before[name] for name in names})


def test_fp16_computes_in_fp16_and_trains():
    seen = []
    learner = make_learner("fp16", lr=0.03)
    learner.module[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    losses = []
    for _ in range(30):
        loss = loss_of(learner, 0)
        losses.append(float(loss.detach()))
        learner.step(loss)
    assert set(seen) == {torch.float16}
    assert {p.dtype for p in learner.module.parameters()} == {torch.float32}
    assert losses[-1] < losses[0] / 2


def scaler_of(learner):
    return {part.name: part.values.item() for part in learner.parts() if "/scaler/" in part.name}


def test_fp16_skips_an_overflow_and_a_restored_learner_remembers_its_loss_scale(tmp_path):
    learner = make_learner("fp16")
    for step in range(8):  # the first few overflow: the scale starts high
        learner.step(loss_of(learner, step))
    settled = scaler_of(learner)
    assert settled["learners/net/scaler/_growth_tracker"] > 2
    before = learner.weights()
    learner.step(loss_of(learner, 0) * 1e38)
    assert equal(learner.weights(), before)
    learner.step(loss_of(learner, 2))
    state = scaler_of(learner)
    assert state["learners/net/scaler/scale"] == settled["learners/net/scaler/scale"] / 2
    assert state["learners/net/scaler/_growth_tracker"] == 1
    restored = make_learner("fp16", saved=saved(learner, tmp_path))
    assert scaler_of(restored) == state
    for each in (learner, restored):
        each.step(loss_of(each, 3))
    assert equal(learner.weights(), restored.weights())
    assert not equal(learner.weights(), before)


def test_a_checkpoint_of_fp32_is_resumed_in_fp16_and_the_other_way_round(tmp_path):
    for name, before, after in (("a", "fp32", "fp16"), ("b", "fp16", "fp32")):
        learner = make_learner(before)
        for step in range(8):
            learner.step(loss_of(learner, step))
        other = make_learner(after, saved=saved(learner, tmp_path / name))
        assert equal(other.weights(), learner.weights())
        for step in range(8):
            other.step(loss_of(other, step))
        assert not equal(other.weights(), learner.weights())


def test_a_learner_s_module_and_moments_go_when_it_does():
    learner = make_learner()
    learner.step(loss_of(learner, 0))
    module = weakref.ref(learner.module)
    learner.close()
    del learner
    gc.collect()
    assert module() is None


def test_the_one_cycle_rises_and_falls_as_pytorch_s_does() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    steps = 1001
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2.0, total_steps=steps)
    config = OptimConfig(lr=2.0, schedule="onecycle")
    for step in range(steps):
        ours = config.lr * _rate(config, step / (steps - 1))
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=2.0 * 1.2e-2)  # theirs peaks a step earlier
        optimizer.step()
        if step < steps - 1:
            theirs.step()
    assert [round(_rate(config, at), 6) for at in (0.0, 0.3, 1.0)] == [0.04, 1.0, round(1 / 25e4, 6)]


def test_an_exponential_rate_falls_by_the_same_factor_each_epoch() -> None:
    config = OptimConfig(schedule="exponential", final=0.97**380)
    rates = [_rate(config, epoch / 380) for epoch in range(381)]
    assert rates == pytest.approx([0.97**epoch for epoch in range(381)])
    with pytest.raises(InputError, match="final=0"):
        OptimConfig(final=0)


def test_the_rate_warms_up_over_updates_and_goes_on_so_after_a_resume(tmp_path):
    learner = make_learner(lr=0.1, warmup=4, schedule="linear", hold=0.0)
    rates = []

    def step(net, number):
        net.step(loss_of(net, number))
        rates.append(net._engine.optimizer.param_groups[0]["lr"])

    learner.start_epoch(0.0)
    for number in range(2):
        step(learner, number)
    checkpoints = Checkpoints(Storage(str(tmp_path)))
    Saver(checkpoints, World()).save(1, {}, learner.parts())
    resumed = make_learner(lr=0.1, warmup=4, schedule="linear", hold=0.0, saved=checkpoints.newest())
    resumed.start_epoch(0.5)
    for number in range(2, 6):
        step(resumed, number)
    assert rates == pytest.approx([0.025, 0.05, 0.0375, 0.05, 0.05, 0.05])


def test_a_warm_up_counts_updates_and_not_parts_of_a_batch():
    learner = Learner("net", make_module(), OptimConfig(lr=1.0, warmup=2), engine=EngineConfig(accumulation=2))
    rates = []
    for number in range(4):
        learner.step(loss_of(learner, number))
        rates.append(learner._engine.optimizer.param_groups[0]["lr"])
    assert rates == [0.5, 0.5, 1.0, 1.0]


def test_what_is_named_undecayed_does_not_decay_and_each_parameter_is_in_one_group():
    learner = make_learner(name="adamw", lr=0.1, weight_decay=0.5, undecayed=["bias"])
    groups = learner._engine.optimizer.param_groups
    names = {id(p): name for name, p in learner.module.named_parameters()}
    assert [[names[id(p)] for p in group["params"]] for group in groups] == [
        ["0.weight", "2.weight"],
        ["0.bias", "2.bias"],
    ]
    before = learner.weights()
    learner.step(sum(p.sum() * 0 for p in learner.module.parameters()))
    after = learner.weights()
    assert torch.equal(after["0.bias"], before["0.bias"])
    torch.testing.assert_close(after["0.weight"], before["0.weight"] * 0.95)
