"""Accuracy of a whole split, and statistics of batch normalisation taken anew."""

import dataclasses

import pytest
import torch
from torch import nn

from pharos.learner import Learner, OptimConfig
from pharos.run import Run
from trainables.common.quantisation.images import ImageDataConfig, draw_augmentation, open_images
from trainables.common.quantisation.training import accuracy, recalibrate


@pytest.fixture(scope="module")
def images():
    return open_images(ImageDataConfig(source="digits"))


def make_learner():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 10))
    return Learner("net", network, OptimConfig())


def test_accuracy_is_of_every_image_once(images):
    learner = make_learner()
    run = Run(seed=0)
    learner.module.train()
    found = accuracy(run, learner, images.val, "val")
    assert learner.module.training
    learner.module.eval()
    x, y = images.val.take(images.val.index, run.device)
    with torch.no_grad():
        logits = learner(x)
    assert found["val/accuracy"] == pytest.approx(100 * float((logits.argmax(1) == y).float().mean()))
    assert found["val/cross_entropy"] == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)


@pytest.mark.parametrize("augment", [True, False])
def test_statistics_are_those_of_the_images_that_the_network_was_trained_on(images, augment):
    images, size = dataclasses.replace(images, augment=augment), 359
    learner, run = make_learner(), Run(seed=0)
    norm = learner.module[1]
    norm.running_mean.fill_(7.0)
    learner.module.train()
    before = [parameter.clone() for parameter in learner.module.parameters()]
    recalibrate(run, learner, images, size)
    generator = torch.Generator().manual_seed(0)
    means, variances = [], []
    for part in images.train.index.split(size)[: len(images.train) // size]:
        x, _ = images.train.take(part, run.device, draw_augmentation(size, generator) if augment else None)
        out = learner.module[0](x).detach()
        means.append(out.mean(dim=(0, 2, 3)))
        variances.append(out.var(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0), rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1
    assert all(module.training for module in learner.module.modules())
    assert all(torch.equal(now, then) for now, then in zip(learner.module.parameters(), before, strict=True))


def test_a_network_without_batch_normalisation_is_left_alone(images):
    learner = Learner("net", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), OptimConfig())
    before = learner.weights()
    recalibrate(Run(seed=0), learner, images, 64)
    assert all(torch.equal(value, before[name]) for name, value in learner.weights().items())
