"""A learner does what plain PyTorch does, and remembers all of it."""

import copy

import pytest
import torch
from torch import nn

from pharos.errors import InputError
from pharos.learner import Learner, OptimConfig

CPU = torch.device("cpu")
KINDS = {
    "adam": lambda p, c: torch.optim.Adam(p, c.lr, (c.beta1, c.beta2), c.eps, c.weight_decay),
    "adamw": lambda p, c: torch.optim.AdamW(p, c.lr, (c.beta1, c.beta2), c.eps, c.weight_decay),
    "sgd": lambda p, c: torch.optim.SGD(p, c.lr, c.beta1, weight_decay=c.weight_decay),
}


def make_module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def make_learner(precision="fp32", **optim):
    return Learner("net", make_module(), OptimConfig(**optim), CPU, precision)


def loss_of(net, step):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    return (net(x) - x.sum(1, keepdim=True)).square().mean() * 10


def equal(a, b):
    return all(torch.equal(x, b[name]) for name, x in a.items()) and a.keys() == b.keys()


@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize("name", KINDS)
def test_steps_equal_those_of_plain_pytorch(name, clip):
    config = OptimConfig(name=name, lr=0.03, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.05, clip_norm=clip)
    learner, module = Learner("net", make_module(), config, CPU, "fp32"), make_module()
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


@pytest.mark.parametrize("name", KINDS)
def test_a_restored_learner_goes_on_exactly_moments_included(name):
    learner = make_learner(name=name)
    for step in range(3):
        learner.step(loss_of(learner, step))
    state = copy.deepcopy(learner.state_dict())
    restored = make_learner(name=name)
    restored.load_state_dict(state)
    fresh = make_learner(name=name)
    fresh.module.load_state_dict(state["module"])
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
