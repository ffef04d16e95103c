"""The two engines do the same with one worker, and each goes on from what the other has saved."""

import gc
import json
import sys
import weakref

import pytest
import torch
from torch import nn

from pharos.checkpoint import Checkpoints
from pharos.engines.base import EngineConfig
from pharos.errors import PharosError
from pharos.families import ROOT
from pharos.learner import Learner, OptimConfig
from pharos.saver import Saver
from pharos.storage import Storage
from pharos.world import World

ZEROS = [0, 1, 2, 3]
ENGINES = ["torch", *ZEROS]


def config_of(engine, **changes):
    """An engine's settings: `torch`, or DeepSpeed with a ZeRO stage."""
    if engine == "torch":
        return EngineConfig(**changes)
    file = ROOT / "cluster" / "deepspeed" / f"zero{engine}.json"
    return EngineConfig("deepspeed", zero=engine, deepspeed=json.loads(file.read_text()), **changes)


def make_module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 1))


def make_plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


@pytest.fixture
def make_learner():
    """Makes learners, and closes them at the end of the test."""
    made = []

    def make(engine, optim=None, *, module=None, saved=None, factors=None, **changes):
        optim = optim or OptimConfig(lr=0.03)
        engine = config_of(engine, **changes)
        made.append(Learner("net", module or make_module(), optim, engine=engine, saved=saved, factors=factors))
        return made[-1]

    yield make
    for learner in made:
        learner.close()


def loss_of(net, step):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    return (net(x) - x.sum(1, keepdim=True)).square().mean() * 10


def train(learner, steps):
    for step in steps:
        learner.step(loss_of(learner, step))


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6)


def saved(learner, folder):
    checkpoints = Checkpoints(Storage(str(folder)))
    Saver(checkpoints).save(1, {}, learner.parts())
    return checkpoints.newest()


@pytest.mark.parametrize(("clip", "accumulation"), [(0.0, 1), (0.1, 1), (0.0, 2), (0.1, 2)])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("zero", ZEROS)
def test_steps_of_deepspeed_equal_those_of_pytorch(make_learner, zero, name, clip, accumulation):
    optim = OptimConfig(name=name, lr=0.03, beta1=0.8, beta2=0.95, weight_decay=0.05, clip_norm=clip)
    ours, theirs = (make_learner(engine, optim, accumulation=accumulation) for engine in (zero, "torch"))
    for learner in (ours, theirs):
        train(learner, range(3 * accumulation))
    assert_close(ours.weights(), theirs.weights())
    assert ours.weights()["2.num_batches_tracked"] == 3 * accumulation
    assert ours.take_mean_loss() == pytest.approx(theirs.take_mean_loss(), abs=1e-6)


@pytest.mark.parametrize("zero", ZEROS)
def test_parts_of_a_batch_are_applied_together_only(make_learner, zero):
    learner = make_learner(zero, accumulation=2)
    parameters = [name for name, _ in learner.module.named_parameters()]
    before = learner.weights()
    train(learner, [0])
    assert all(torch.equal(learner.weights()[name], before[name]) for name in parameters)
    train(learner, [1])
    assert not any(torch.equal(learner.weights()[name], before[name]) for name in parameters)


@pytest.mark.parametrize("optim", [OptimConfig(lr=0.03), OptimConfig("adamw", lr=0.03), OptimConfig("sgd", lr=0.01)])
@pytest.mark.parametrize("between", [0, 1, 2, 3])
def test_what_one_engine_saved_another_goes_on_from(make_learner, tmp_path, between, optim):
    whole = make_learner("torch", optim)
    train(whole, range(9))
    first = make_learner("torch", optim)
    train(first, range(3))
    second = make_learner(between, optim, saved=saved(first, tmp_path / "a"))
    assert_close(second.weights(), first.weights())
    train(second, range(3, 6))
    third = make_learner("torch", optim, saved=saved(second, tmp_path / "b"))
    assert_close(third.weights(), second.weights())
    train(third, range(6, 9))
    assert_close(third.weights(), whole.weights())


@pytest.mark.parametrize("after", ENGINES)
@pytest.mark.parametrize("before", ENGINES)
def test_any_engine_saves_the_same_tensors_and_any_loads_them(make_learner, tmp_path, before, after):
    learner = make_learner(before)
    train(learner, range(3))
    checkpoint = saved(learner, tmp_path / "a")
    other = make_learner(after, saved=checkpoint)
    again = saved(other, tmp_path / "b")
    assert sorted(again.names("")) == sorted(checkpoint.names(""))
    for name in checkpoint.names(""):
        assert torch.equal(again.tensor(name), checkpoint.tensor(name)), name
        assert again.tensor(name).dtype == checkpoint.tensor(name).dtype, name
    kinds = {name.rpartition("/")[2] for name in checkpoint.names("learners/net/optimizer/")}
    assert kinds == {"exp_avg", "exp_avg_sq", "step"}


@pytest.mark.parametrize("zero", ZEROS)
def test_a_learner_that_was_never_stepped_is_saved_and_restored(make_learner, tmp_path, zero):
    restored = make_learner(zero, saved=saved(make_learner(zero), tmp_path))
    fresh = make_learner("torch")
    for learner in (restored, fresh):
        train(learner, range(3))
    assert_close(restored.weights(), fresh.weights())


@pytest.mark.parametrize("zero", ZEROS)
def test_parameters_that_are_not_trained_stay_and_come_back(make_learner, tmp_path, zero):
    def half_frozen():
        module = make_module()
        module[0].requires_grad_(False)
        return module

    learner, plain = (make_learner(engine, module=half_frozen()) for engine in (zero, "torch"))
    for each in (learner, plain):
        train(each, range(3))
    assert_close(learner.weights(), plain.weights())
    assert torch.equal(learner.weights()["0.weight"], make_module()[0].weight)
    restored = make_learner(zero, module=half_frozen(), saved=saved(learner, tmp_path))
    for each in (restored, plain):
        train(each, range(3, 6))
    assert_close(restored.weights(), plain.weights())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_frozen_learner_lets_gradients_through_and_none_in(make_learner, engine):
    learner = make_learner(engine)
    train(learner, range(2))
    before = learner.weights()
    plain = make_module()
    plain.load_state_dict(before)
    x, x_plain = (torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_() for _ in range(2))
    with learner.frozen():
        learner(x).square().sum().backward()
    plain(x_plain).square().sum().backward()
    assert x_plain.grad.abs().sum() > 0
    torch.testing.assert_close(x.grad, x_plain.grad)
    trained = [name for name, _ in plain.named_parameters()]
    assert all(torch.equal(learner.weights()[name], before[name]) for name in trained)
    learner.load_weights(before)
    twin = make_learner("torch")
    train(twin, range(2))
    for each in (learner, twin):
        train(each, [2])
    assert_close(learner.weights(), twin.weights())


def adversarial_step(critic, generator, step):
    """An update of each of two learners, as adversarial training makes them."""
    noise = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    critic.step((critic(generator(noise).detach()) - critic(noise)).mean())
    with critic.frozen():
        generator.step(-critic(generator(noise)).mean())


@pytest.mark.parametrize("zero", ZEROS)
def test_two_learners_train_against_each_other_alike(make_learner, zero):
    def pair(engine):
        torch.manual_seed(1)
        generator = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        return make_learner(engine, module=critic), make_learner(engine, module=generator)

    ours, theirs = pair(zero), pair("torch")
    for learners in (ours, theirs):
        for step in range(3):
            adversarial_step(*learners, step)
    for learner, twin in zip(ours, theirs, strict=True):
        assert_close(learner.weights(), twin.weights())


def penalised_loss(net, step):
    """A loss with the norm of its own gradient (R1) in it."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step)).requires_grad_()
    scores = net(x)
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return scores.square().mean() + gradient.square().sum(1).mean()


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_the_gradient_of_a_gradient_is_pytorch_s(make_learner, zero):
    def learner_of(engine):
        return make_learner(engine, module=make_plain())

    ours, theirs = learner_of(zero), learner_of("torch")
    for learner in (ours, theirs):
        for step in range(3):
            learner.step(penalised_loss(learner, step))
    assert_close(ours.weights(), theirs.weights())


def test_the_gradient_of_a_gradient_is_refused_by_the_stage_that_cannot(make_learner):
    learner = make_learner(3, module=make_plain())
    with pytest.raises(PharosError, match=r"engine\.zero=3.*take engine\.zero=2") as error:
        learner.step(penalised_loss(learner, 0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_are_loaded_are_those_that_are_trained_on(make_learner, engine):
    learner, twin = make_learner(engine), make_learner("torch")
    for each in (learner, twin):
        train(each, range(2))
        early = each.weights()
        train(each, range(2, 4))
        assert not torch.equal(early["0.weight"], each.weights()["0.weight"])
        each.load_weights(early)
        assert all(torch.equal(value, early[name]) for name, value in each.weights().items())
        train(each, [4])
    assert_close(learner.weights(), twin.weights())


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluating_gives_the_module_s_own_outputs(make_learner, engine):
    learner, plain = make_learner(engine), make_module()
    train(learner, range(2))
    plain.load_state_dict(learner.weights())
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    with learner.evaluating():
        out = learner(x)
    torch.testing.assert_close(out, plain.eval()(x))


@pytest.mark.parametrize("optim", [OptimConfig(lr=0.03), OptimConfig("sgd", lr=0.03)], ids=["adam", "sgd"])
@pytest.mark.parametrize("engine", ENGINES)
def test_an_optimiser_that_was_reset_steps_as_a_new_one(make_learner, engine, optim):
    used = make_learner(engine, optim)
    train(used, range(3))
    new = make_learner(engine, optim)
    new.load_weights(used.weights())
    used.reset_optimizer()
    train(used, range(3, 6))
    train(new, range(3, 6))
    assert_close(used.weights(), new.weights())


@pytest.mark.parametrize("zero", ZEROS)
def test_the_rate_of_an_epoch_is_set(make_learner, zero):
    optim = OptimConfig(lr=0.03, schedule="linear", hold=0.0)
    ours, theirs = (make_learner(engine, optim) for engine in (zero, "torch"))
    for learner in (ours, theirs):
        for epoch in range(3):
            learner.start_epoch(epoch / 3)
            train(learner, [epoch])
    assert_close(ours.weights(), theirs.weights())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_parameters_with_a_factor_have_that_times_the_rate(make_learner, engine, name):
    optim = OptimConfig(name, lr=0.03, schedule="linear", hold=0.0, weight_decay=0.01)
    learner = make_learner(engine, optim, factors={"bias": 3.0, "0.weight": 0.0})
    plain = make_module()
    kind = torch.optim.Adam if name == "adam" else torch.optim.SGD
    groups = [
        {"params": [p for n, p in plain.named_parameters() if n.endswith("bias")], "lr": 0.09},
        {"params": [p for n, p in plain.named_parameters() if n not in ("0.weight",) and "bias" not in n]},
    ]
    more = {} if name == "adam" else {"momentum": 0.9}
    theirs = kind(groups, lr=0.03, weight_decay=0.01, **more)
    before = learner.weights()["0.weight"]
    for step in range(4):
        learner.start_epoch(step / 4)
        for group, factor in zip(theirs.param_groups, (3, 1), strict=True):
            group["lr"] = 0.03 * factor * (1 - step / 4)
        theirs.zero_grad()
        loss_of(plain, step).backward()
        theirs.step()
        train(learner, [step])
    ours = learner.weights()
    assert torch.equal(ours["0.weight"], before)
    assert_close(ours, dict(plain.state_dict()))


@pytest.mark.parametrize("zero", ZEROS)
def test_bf16_is_autocast_and_the_weights_are_fp32(make_learner, zero):
    ours, theirs = (make_learner(engine, precision="bf16") for engine in (zero, "torch"))
    seen = []
    ours.module[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for learner in (ours, theirs):
        train(learner, range(3))
    assert set(seen) == {torch.bfloat16}
    assert {value.dtype for value in ours.weights().values()} == {torch.float32, torch.int64}
    assert_close(ours.weights(), theirs.weights())


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_fp16_trains_with_fp32_masters_and_remembers_its_loss_scale(make_learner, tmp_path, monkeypatch, zero):
    # DeepSpeed says no for a CPU without instructions for it; PyTorch computes in fp16 on any.
    monkeypatch.setattr("deepspeed.accelerator.cpu_accelerator.CPU_Accelerator.is_fp16_supported", lambda self: True)
    learner = make_learner(zero, module=make_plain(), precision="fp16")
    assert {parameter.dtype for parameter in learner.module.parameters()} == {torch.float16}
    losses = []
    for _ in range(40):
        loss = loss_of(learner, 0)
        losses.append(float(loss.detach()))
        learner.step(loss)
    assert losses[-1] < losses[0] / 2
    checkpoint = saved(learner, tmp_path)
    weights = checkpoint.tensors("learners/net/weights/")
    assert weights["0.weight"].dtype == torch.float32
    assert not torch.equal(weights["0.weight"], weights["0.weight"].half().float())
    assert checkpoint.tensor("learners/net/scaler/cur_scale") < 2**16
    restored = make_learner(zero, module=make_plain(), precision="fp16", saved=checkpoint)
    again = saved(restored, tmp_path / "again")
    for name in checkpoint.names(""):
        assert torch.equal(again.tensor(name), checkpoint.tensor(name)), name
    for each in (learner, restored):
        train(each, range(3))
    assert_close(restored.weights(), learner.weights())


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_an_optimiser_on_the_cpu_takes_the_same_steps(make_learner, zero):
    ours, theirs = make_learner(zero, offload=True), make_learner("torch")
    for learner in (ours, theirs):
        train(learner, range(3))
    assert_close(ours.weights(), theirs.weights())


@pytest.mark.parametrize("zero", ZEROS)
def test_activation_checkpointing_changes_no_number(make_learner, zero):
    def deep():
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2)]
        return nn.Sequential(nn.Linear(3, 4), *blocks, nn.Linear(4, 1))

    ours = make_learner(zero, module=deep(), activation_checkpointing=True)
    theirs = make_learner("torch", module=deep())
    for learner in (ours, theirs):
        train(learner, range(3))
    assert_close(ours.weights(), theirs.weights())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_closed_learner_gives_its_memory_back(engine):
    learner = Learner("net", make_module(), OptimConfig(), engine=config_of(engine))
    train(learner, range(2))
    module, parameter = weakref.ref(learner.module), weakref.ref(learner.module[0].weight)
    learner.close()
    del learner
    gc.collect()
    assert module() is None
    assert parameter() is None


def test_without_deepspeed_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(PharosError, match=r"engine=deepspeed needs DeepSpeed .*: pip install") as error:
        Learner("net", make_module(), OptimConfig(), engine=config_of(1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("zero", ZEROS)
def test_a_gradient_of_another_learner_s_loss_is_refused(make_learner, zero):
    judge, other = make_learner(zero), make_learner(zero, module=make_plain())
    train(judge, [0])
    with pytest.raises(PharosError, match=r"outside its own step; put that call of it into `with learner\.frozen"):
        judge.module(other(torch.ones(8, 3)) * torch.ones(8, 3)).sum().backward()
    with judge.frozen():
        other.step(judge(other(torch.ones(8, 3)) * torch.ones(8, 3)).square().mean())


def test_fp16_is_refused_in_one_line_where_deepspeed_cannot(make_learner, monkeypatch):
    monkeypatch.setattr("deepspeed.accelerator.cpu_accelerator.CPU_Accelerator.is_fp16_supported", lambda self: False)
    with pytest.raises(PharosError, match=r"^engine.precision=fp16: .*not supported on your device\. Take bf16\.$"):
        make_learner(1, module=make_plain(), precision="fp16")
    with pytest.raises(PharosError, match=r"no fp16 batch normalisation; take bf16$"):
        make_learner(1, precision="fp16")


@pytest.mark.parametrize("zero", ZEROS)
def test_of_two_workers_one_writes_what_is_not_trained(make_learner, tmp_path, zero):
    module = make_plain()
    module[0].weight.requires_grad_(False)
    frozen = module[0].weight.detach().clone()
    learner = make_learner(zero, module=module)
    written = []
    for rank in range(2):
        learner._engine._world = World(rank, 2)
        written += [part for part in learner.parts() if part.name == "learners/net/weights/0.weight"]
    assert len(written) == 1
    assert torch.equal(written[0].values.reshape(frozen.shape), frozen)
