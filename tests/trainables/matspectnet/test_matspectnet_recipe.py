"""Invariants 10 to 12 and 15 of the reference notes: the phases, what each may change, and every ablation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from pharos.checkpoint import Checkpoint, Checkpoints
from pharos.config import make_plan
from pharos.errors import InputError
from pharos.execute import execute
from pharos.learner import Learner, OptimConfig
from pharos.run import Run
from pharos.storage import Storage
from pharos.trial import Outcome, Report, TrialSpec
from trainables.common.materials.evaluation import scores
from trainables.common.materials.losses import focal_sums
from trainables.matspectnet.adversarial import discriminator_adversarial, generator_adversarial
from trainables.matspectnet.networks import discriminator_networks, recovery_network, translation_network
from trainables.matspectnet.recipe import opponents
from trainables.matspectnet.settings import MatSpectNetConfig

SHORT = [
    *("recipe.recovery_epochs=1", "recipe.translation_epochs=1", "recipe.epochs=1"),
    *("recipe.data.spectral_images=4", "recipe.data.train_images=8"),
    *("recipe.data.validation_images=2", "recipe.data.test_images=2"),
]


# Judged once, so that the weights that are kept are the last ones.
LONGER = ["recipe.epochs=3", "recipe.evaluate_every=3", "recipe.optim.schedule=constant"]


def trained(folder: Path, *settings: str) -> tuple[Checkpoint, list[Report]]:
    plan = make_plan("matspectnet", ["scale=tiny", "tracking=none", *SHORT, *settings])
    reports: list[Report] = []
    ending = execute(
        TrialSpec(
            sweep="test",
            number=0,
            family="matspectnet",
            params={},
            config=plan.trial_config({}),
            seed=3,
            folder=str(folder),
            max_fidelity=plan.recipe.fidelity(plan.build_config()),
            objective="val/mean_acc",
            checkpoint_seconds=0.0,
            threads=1,
        ),
        reports.append,
    )
    assert ending.outcome == Outcome.COMPLETE, ending.reason
    assert ending.fidelity == plan.recipe.fidelity(plan.build_config())
    newest = Checkpoints(Storage(str(folder / "checkpoints"))).newest()
    assert newest is not None
    return newest, reports


def weights(saved: Checkpoint, learner: str) -> dict[str, Tensor]:
    return saved.tensors(f"learners/{learner}/weights/")


def test_segmentation_leaves_what_recovers_spectra_as_it_is(tmp_path: Path) -> None:
    """However long it lasts: the same trial with one epoch of it and with three ends with the same generators."""
    short, _ = trained(tmp_path / "one")
    longer, _ = trained(tmp_path / "three", *LONGER)
    for learner in ("recovery", "translation", "discriminators"):
        ours, theirs = weights(short, learner), weights(longer, learner)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    head = "segmenter.head.classify.weight"
    assert not torch.equal(weights(short, "segmentation")[head], weights(longer, "segmentation")[head])
    # The translation goes on from the recovery, and changes it.
    name = "stages.0.into.weight"
    assert not torch.equal(weights(short, "recovery")[name], weights(short, "translation")[f"recovery.{name}"])


@pytest.mark.parametrize(
    ("settings", "learners", "has_camera"),
    [
        (["recipe.adversarial=0"], {"recovery", "translation", "segmentation"}, True),
        (["recipe.physics=none"], {"recovery", "translation", "discriminators", "segmentation"}, False),
        (["recipe.translation_epochs=0"], {"recovery", "segmentation"}, False),
        (["recipe.spectra=none"], {"segmentation"}, False),
        (
            ["recipe.spectra=oracle", "recipe.flips=false", "recipe.perception=false", "recipe.filter_mode=static"],
            {"segmentation"},
            False,
        ),
        (
            ["recipe.band_gain=true", "recipe.isp=true", "recipe.judge_features=true", "recipe.shape=pairwise"],
            {"recovery", "translation", "discriminators", "segmentation"},
            True,
        ),
        (
            ["recipe.physics=nullspace", "recipe.filter_mode=batch", "recipe.recovery_residual=body"],
            {"recovery", "translation", "discriminators", "segmentation"},
            True,
        ),
    ],
    ids=["no domain", "no camera", "no translation", "no spectra", "oracle", "all parts", "hard camera"],
)
def test_each_part_can_be_switched_off_by_itself(
    tmp_path: Path, settings: list[str], learners: set[str], has_camera: bool
) -> None:
    saved, reports = trained(tmp_path, *settings)
    assert set(saved.state["learners"]) == learners
    assert any(name.startswith("camera") for name in weights(saved, "translation")) == has_camera
    assert ("train/accuracy" in {name for report in reports for name in report.metrics}) == (
        "discriminators" in learners
    )
    if "recipe.physics=nullspace" in settings:
        assert reports[-1].metrics["val/reprojection"] < 1e-5
        assert reports[-1].metrics["val/material_reprojection"] < 1e-5


def test_all_that_is_measured_is_in_the_last_report(tmp_path: Path) -> None:
    _, reports = trained(tmp_path)
    last = reports[-1].metrics
    recovery = {f"{p}{n}" for p in ("val/", "val/material_") for n in ("mrae", "rmse", "psnr", "angle", "reprojection")}
    accuracies = {f"{p}{n}" for p in ("val/", "test/") for n in ("pixel_acc", "mean_acc", "miou")}
    assert recovery | accuracies | {"parameters"} <= set(last)
    assert "val/mean_acc" not in reports[0].metrics


def config(**changes: Any) -> MatSpectNetConfig:
    plan = make_plan("matspectnet", ["scale=tiny", "tracking=none", *(f"recipe.{k}={v}" for k, v in changes.items())])
    built = plan.build_config()
    assert isinstance(built, MatSpectNetConfig)
    return built


def test_generators_and_discriminators_learn_apart() -> None:
    torch.manual_seed(0)
    made = config(judge_features="true")
    network = translation_network(made, torch.rand(3, 31))
    generators = Learner("g", network, OptimConfig())
    critics = Learner("d", discriminator_networks(made, network), OptimConfig())
    x, clean, other = torch.rand(3, 2, 3, 24, 24)
    spectra = torch.rand(2, 31, 24, 24)
    found = generators(x, spectra, clean, other)
    real, fake = opponents(found, spectra, other, made.judged)
    assert set(real) == set(fake) == {"spectra", "rgb", "features"}
    assert not any(image.requires_grad for image in real.values())
    before = critics.weights()
    with critics.frozen():
        generators.step(generator_adversarial(critics(fake)))
    assert all(torch.equal(before[name], value) for name, value in critics.weights().items())
    ours = generators.weights()
    for parameter in network.parameters():
        parameter.grad = None
    critics.step(discriminator_adversarial(critics(real), critics({k: image.detach() for k, image in fake.items()})))
    assert all(torch.equal(ours[name], value) for name, value in generators.weights().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert any(not torch.equal(before[name], value) for name, value in critics.weights().items())


def test_one_against_the_rest_without_focus_is_the_sum_of_cross_entropies() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 4, 4, requires_grad=True)
    labels = torch.randint(5, (2, 4, 4))
    labels[0, :2] = 255
    counted = labels != 255
    mean = focal_sums(logits, labels.to(torch.uint8), 0.0, "sigmoid").sum() / counted.sum()
    chosen, truth = logits.movedim(1, -1)[counted], functional.one_hot(labels[counted], 5).float()
    expected = sum(functional.binary_cross_entropy_with_logits(chosen[:, k], truth[:, k]) for k in range(5))
    torch.testing.assert_close(mean, torch.as_tensor(expected), rtol=1e-4, atol=1e-5)
    mean.backward()
    assert logits.grad is not None
    assert not logits.grad[0, :, :2].any()
    assert logits.grad[0, :, 2:].any()


def test_a_seventeenth_class_changes_a_score_only_where_it_is_predicted() -> None:
    """The authors' extra class: pixels predicted as it vanish from their scores, which is why there is none here."""
    matrix = torch.zeros(17, 17, dtype=torch.float64)
    matrix[:16, :16] = torch.eye(16) * 8 + 1
    whole, cut = scores(matrix, ""), scores(matrix[:16, :16], "")
    assert whole["pixel_acc"] == cut["pixel_acc"]
    assert whole["mean_acc"] == pytest.approx(cut["mean_acc"])
    matrix[3, 16] = 20
    whole, cut = scores(matrix, ""), scores(matrix[:16, :16], "")
    assert whole["pixel_acc"] < cut["pixel_acc"]


@pytest.mark.parametrize("prefix", ["", "recovery."])
def test_a_trained_recovery_is_taken_up(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(0)
    first = recovery_network(config())
    file = tmp_path / "recovery.safetensors"
    save_file({prefix + name: value for name, value in first.state_dict().items()}, file)
    again = recovery_network(config(recovery_weights=file))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    with pytest.raises(InputError, match="not the weights of this recovery"):
        recovery_network(config(recovery_weights=file, recovery_width=8))
    file.write_bytes(b"none")
    with pytest.raises(InputError, match="cannot be read"):
        recovery_network(config(recovery_weights=file))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"physics": "nullspace", "exposure": "affine"}, "exposure=none"),
        ({"scale": "minmax"}, "given, standard"),
        ({"recovery_crop": 16}, "at least 24"),
        ({"recovery_width": 7}, "must be 31, or even"),
        ({"spectral_width": 9}, "must be even"),
        ({"filter_mode": "mean"}, "sample, batch, static, identity"),
        ({"spectra": "oracle"}, "whole images"),
        ({"spectra": "oracle", "data.source": "matscale"}, "metascene"),
        ({"data.spectral_source": "arad"}, "spectral_root"),
        ({"data.normalise": "mean"}, "minmax, percentile, none"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


def test_a_folder_of_photographs_is_predicted(tmp_path: Path) -> None:
    settings = ["recipe.physics=nullspace", "recipe.data.normalise=none"]
    saved, _ = trained(tmp_path / "trial", *settings)
    plan = make_plan("matspectnet", ["scale=tiny", "tracking=none", *SHORT, *settings])
    photographs, output = tmp_path / "photographs", tmp_path / "output"
    photographs.mkdir()
    output.mkdir()
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (40, 51, 3), dtype=np.uint8)).save(photographs / "a.png")
    plan.recipe.predict(Run(seed=3, saved=saved), plan.build_config(), photographs, output)
    codes = np.asarray(Image.open(output / "a.png"))
    assert codes.shape == (40, 51)
    assert codes.max() < 8
    assert len(set(codes.flatten().tolist())) > 1
