"""TIPSy-GAN: two generators lift the parts of a 2D pose apart, one critic judges the whole, one student learns both.

Hardy, Dasmahapatra, Kim, "Teaching Independent Parts Separately (TIPSy-GAN): Improving Accuracy and Stability in
Unsupervised Adversarial 2D to 3D Human Pose Estimation", arXiv 2205.05980. What the paper leaves open follows the
first author's public code (Aswarin/2D-to-3D-Pose). README.md lists the deviations and what we measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from pharos.errors import InputError
from pharos.learner import Learner, OptimConfig
from pharos.recipe import Recipe
from pharos.run import Epoch, Run
from trainables.common.pose.data import PoseDataConfig, open_poses
from trainables.common.pose.skeleton import SUBSETS
from trainables.tipsy.data import Views, chance, flipped
from trainables.tipsy.evaluation import CollapseGuard, Judge
from trainables.tipsy.losses import ObjectiveSettings, critic_objective, distillation_loss, generator_objective
from trainables.tipsy.model import Critic, Lifter, Pair


def _adam() -> OptimConfig:
    return OptimConfig(lr=2e-4, eps=1e-7)  # Keras' epsilon


@dataclass
class TipsyConfig:
    """Defaults are the paper's values, or the authors' code's where the paper is silent."""

    data: PoseDataConfig = field(default_factory=PoseDataConfig)
    """Which poses."""
    generators: str = "pair"
    """pair: legs and torso apart (the paper); solo: one for the whole pose (its baseline)."""
    optim: OptimConfig = field(default_factory=_adam)
    """Of the generators."""
    critic_optim: OptimConfig = field(default_factory=_adam)
    """Of the critic."""
    student_optim: OptimConfig = field(default_factory=_adam)
    """Of the distilled student."""
    epochs: int = 800
    """Of the adversarial stage."""
    student_epochs: int = 500
    """Of the distillation; 0 leaves it out."""
    batch_size: int = 8192
    """Poses a step, over all workers."""
    width: int = 1024
    """Features of the generators' layers."""
    blocks_legs: int = 3
    """Residual blocks of the legs' generator."""
    blocks_torso: int = 3
    """Residual blocks of the torso's generator."""
    blocks_solo: int = 6
    """Residual blocks of the solo generator."""
    student_width: int = 1024
    """Features of the student's layers."""
    student_blocks: int = 3
    """Residual blocks of the student."""
    critic_width: int = 1024
    """Features of the critic's layers."""
    critic_blocks: int = 3
    """Residual blocks of the critic."""
    norm: str = "affine"
    """affine (what the authors' batch norm amounts to), batch, layer or none."""
    dropout: float = 0.0
    """In the generators' and the student's blocks; 0.5 with norm=batch is the literal architecture."""
    activation: str = "relu"
    """relu, leaky_relu or gelu."""
    gan_loss: str = "bce_smooth"
    """bce_smooth, lsgan or hinge."""
    smooth: float = 0.2
    """bce_smooth: how far the real label is from 1."""
    label_flip: float = 10 / 99
    """Share of the critic's steps in which real and fake labels are exchanged."""
    w_adv: float = 1.0
    """Weight of the adversarial term; each part gets its share of the joints of it."""
    w_2d: float = 10.0
    """Weight of the 2D cycle."""
    w_90: float = 3.0
    """Weight of the 90-degree consistency; 0 takes it away."""
    w_90_180: bool = True
    """Whether the 90-degree consistency has its third term, the half turn."""
    reduction: str = "part_mean"
    """part_mean (the paper) or joint_mean: how a part's errors are averaged."""
    azimuth_max: float = 160.0
    """Largest turn of a reprojection, in degrees."""
    elevation_max: float = 10.0
    """Largest tilt of a reprojection, in degrees."""
    rotation_per: str = "batch"
    """batch: one view for all poses of a step (the paper); sample: one each."""
    flip: str = "naive"
    """Of half of the batches: naive mirrors x (the authors' code), swap also exchanges left and right, or none."""
    renorm_fake: bool = False
    """Whether reprojections are scaled to touch the unit box as the data do, before the critic sees them."""
    critic_steps: int = 1
    """Critic steps a generator step."""
    r1_gamma: float = 0.0
    """Weight of a gradient penalty on the critic; 0 leaves it out."""
    evaluate_every: int = 10
    """Epochs between two evaluations, which are what is reported; the last epoch of a stage always is."""
    select: str = "fixed"
    """Which weights the adversarial stage hands on: fixed (the last), label_free (the best label-free score,
    with early stopping) or oracle (the best labelled error on validation; for ablations only)."""
    patience: int = 10
    """label_free: evaluations without a better score before the stage ends."""

    def __post_init__(self) -> None:
        """Checks what the models and losses do not.

        Raises:
            InputError: A value is impossible.
        """
        choices = {
            "generators": ("pair", "solo"),
            "norm": ("affine", "batch", "layer", "none"),
            "activation": ("relu", "leaky_relu", "gelu"),
            "gan_loss": ("bce_smooth", "lsgan", "hinge"),
            "reduction": ("part_mean", "joint_mean"),
            "rotation_per": ("batch", "sample"),
            "flip": ("naive", "swap", "none"),
            "select": ("fixed", "label_free", "oracle"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"recipe.{name}={getattr(self, name)} must be one of {', '.join(allowed)}")
        least = dict.fromkeys(
            ("epochs", "batch_size", "width", "student_width", "critic_width", "critic_steps", "evaluate_every"), 1
        )
        for name, low in (least | {"student_epochs": 0}).items():
            if getattr(self, name) < low:
                raise InputError(f"recipe.{name}={getattr(self, name)} must be at least {low}")
        if self.data.joints == 17:
            raise InputError("recipe.data.joints=17 keeps the root, whose depth is no unknown; tipsy takes 16 or 14")


class Tipsy(Recipe):
    """The whole method: adversarial training of the generators, then distillation into one student."""

    Config = TipsyConfig
    scales: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {
            "width": 128,
            "student_width": 128,
            "critic_width": 128,
            "batch_size": 512,
            "rotation_per": "sample",
            "epochs": 40,
            "student_epochs": 24,
            # A hundredth of the paper's steps: at its 2e-4 the student would stop half-way to its teachers.
            "student_optim.lr": 1e-3,
            "evaluate_every": 2,
        },
        "tiny": {
            "width": 16,
            "student_width": 16,
            "critic_width": 16,
            "batch_size": 64,
            "rotation_per": "sample",
            "epochs": 4,
            "student_epochs": 2,
            "evaluate_every": 1,
            "data.train_subjects": 2,
            "data.train_sequences": 1,
            "data.train_frames": 20,
            "data.test_subjects": 1,
            "data.test_sequences": 1,
            "data.test_frames": 5,
        },
    }

    def fidelity(self, config: TipsyConfig) -> int:
        return config.epochs + config.student_epochs

    def check(self, config: TipsyConfig) -> None:
        if config.data.root:
            open_poses(config.data)

    def train(self, run: Run, config: TipsyConfig) -> None:
        poses = run.cached(("poses", repr(config.data)), lambda: open_poses(config.data))
        x_train = poses.train.x.to(run.device)
        judge = Judge(poses, run.device)
        guard = CollapseGuard(run.state.setdefault("guard", {}), config.gan_loss)
        objective = objective_settings(config)
        generators = run.learner("generators", generator_networks(config), config.optim)
        critic = run.learner(
            "critic",
            Critic(config.data.joints, config.critic_width, config.critic_blocks, activation=config.activation),  # type: ignore[arg-type]
            config.critic_optim,
        )

        for epoch in run.epochs("adversarial", config.epochs):
            seen = _Means()
            views = Views(config.azimuth_max, config.elevation_max, config.rotation_per, epoch, run.device)
            for batch in epoch.batches(x_train, config.batch_size):
                x = flipped(batch, config.flip, epoch.shared)
                for _ in range(config.critic_steps):
                    swap = chance(config.label_flip, epoch.shared)
                    loss, terms = critic_objective(generators, critic, x, views.draw(), objective, swap=swap)
                    critic.step(loss)
                    seen.add(terms)
                with critic.frozen():
                    loss, terms = generator_objective(generators, critic, x, views.draw(), objective)
                    generators.step(loss)
                seen.add(terms)
            if not _is_due(epoch, config.epochs, config):
                continue
            means = run.mean(seen.take())
            with generators.evaluating():
                scores = run.mean(judge.validation(generators)) | means | {"collapsed": guard.update(means)}
                if not config.student_epochs and epoch.index == config.epochs - 1:
                    scores |= judge.relative_sign(generators) | judge.tests(generators)
            if config.select != "fixed":
                _keep_best(run, config, generators, scores, epoch)
            epoch.report(scores)

        if config.select != "fixed":
            generators.load_weights(run.state["best"]["weights"])
        if not config.student_epochs:
            return

        # The teachers' own errors, to be reported beside the student's.
        with generators.evaluating():
            final = judge.validation(generators) | judge.relative_sign(generators) | judge.tests(generators)
        teachers = {f"teachers/{name}": value for name, value in final.items()}
        generators.module.eval()
        student = run.learner("student", _student(config), config.student_optim)
        for epoch in run.epochs("distil", config.student_epochs):
            for batch in epoch.batches(x_train, config.batch_size):
                x = flipped(batch, config.flip, epoch.shared)
                student.step(distillation_loss(student, generators, x))
            if _is_due(epoch, config.student_epochs, config):
                with student.evaluating():
                    scores = judge.validation(student)
                    if epoch.index == config.student_epochs - 1:
                        scores |= judge.tests(student) | teachers
                epoch.report(scores)


def objective_settings(config: TipsyConfig) -> ObjectiveSettings:
    """The weights and variants that a configuration asks for."""
    return ObjectiveSettings(
        parts=_parts(config),
        gan_loss=config.gan_loss,  # type: ignore[arg-type]
        smooth=config.smooth,
        w_adv=config.w_adv,
        w_2d=config.w_2d,
        w_90=config.w_90,
        w_90_180=config.w_90_180,
        reduction=config.reduction,  # type: ignore[arg-type]
        renorm_fake=config.renorm_fake,
        r1_gamma=config.r1_gamma,
        joint_calls=config.norm != "batch",
    )


def _parts(config: TipsyConfig) -> dict[str, tuple[int, ...]]:
    subset = SUBSETS[config.data.joints]
    return subset.two_parts if config.generators == "pair" else {"full": tuple(range(len(subset.ids)))}


def generator_networks(config: TipsyConfig) -> nn.Module:
    """The pair, or the solo generator, of a configuration."""
    kind: dict[str, Any] = {"norm": config.norm, "activation": config.activation, "dropout": config.dropout}
    if config.generators == "solo":
        return Lifter(config.data.joints, config.width, config.blocks_solo, **kind)
    sizes = {name: len(joints) for name, joints in SUBSETS[config.data.joints].two_parts.items()}
    return Pair(config.width, config.blocks_legs, config.blocks_torso, legs=sizes["legs"], torso=sizes["torso"], **kind)


def _student(config: TipsyConfig) -> nn.Module:
    return Lifter(
        config.data.joints,
        config.student_width,
        config.student_blocks,
        norm=config.norm,  # type: ignore[arg-type]
        activation=config.activation,  # type: ignore[arg-type]
        dropout=config.dropout,
    )


def _is_due(epoch: Epoch, epochs: int, config: TipsyConfig) -> bool:
    return (epoch.index + 1) % config.evaluate_every == 0 or epoch.index == epochs - 1


def _keep_best(run: Run, config: TipsyConfig, generators: Learner, scores: Mapping[str, float], epoch: Epoch) -> None:
    """Remembers the best weights so far, after a warm-up of a fifth of the stage (section 4.4)."""
    score = scores["val/label_free" if config.select == "label_free" else "val/pa_mpjpe"]
    best = run.state.get("best")
    if best is None or (epoch.index >= config.epochs // 5 and (score < best["score"] or not best["warm"])):
        run.state["best"] = {
            "score": score,
            "epoch": epoch.index,
            "warm": epoch.index >= config.epochs // 5,
            "weights": generators.weights(),
        }
    else:
        # Patience counts evaluations, not epochs.
        is_over = epoch.index - best["epoch"] >= config.patience * config.evaluate_every
        if config.select == "label_free" and best["warm"] and is_over:
            epoch.end_loop()


class _Means:
    """Means of named scalars over an epoch, summed on the device so that no step waits."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        return {f"train/{name}": float(total) / self._counts[name] for name, total in self._sums.items()}
