"""TIPSy-GAN: two generators lift the parts of a 2D pose apart, one critic judges the whole, one student learns both.

Hardy, Dasmahapatra, Kim, "Teaching Independent Parts Separately (TIPSy-GAN): Improving Accuracy and Stability in
Unsupervised Adversarial 2D to 3D Human Pose Estimation", arXiv 2205.05980. What the paper leaves open follows the
first author's public code (Aswarin/2D-to-3D-Pose). README.md lists the deviations and what we measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from pharos.errors import InputError
from pharos.learner import Learner, OptimConfig
from pharos.recipe import Recipe
from pharos.run import Epoch, Run
from trainables.common.pose.adversarial import ObjectiveSettings, critic_objective, generator_objective
from trainables.common.pose.evaluation import CollapseGuard, Judge
from trainables.common.pose.networks import Critic, Lifter
from trainables.common.pose.settings import AdversarialConfig, keras_adam
from trainables.common.pose.skeleton import SUBSETS
from trainables.common.settings import Means
from trainables.tipsy.data import Views, chance, flipped, open_poses
from trainables.tipsy.losses import distillation_loss
from trainables.tipsy.model import Pair


@dataclass
class TipsyConfig(AdversarialConfig):
    """Defaults are the paper's values, or the authors' code's where the paper is silent."""

    generators: str = "pair"
    """pair: legs and torso apart (the paper); solo: one for the whole pose (its baseline)."""
    student_optim: OptimConfig = field(default_factory=keras_adam)
    """Of the distilled student."""
    student_epochs: int = 500
    """Of the distillation; 0 leaves it out."""
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
    gan_loss: str = "bce_smooth"
    """bce_smooth, lsgan or hinge."""
    w_90_180: bool = True
    """Whether the 90-degree consistency has its third term, the half turn."""
    critic_steps: int = 1
    """Critic steps a generator step."""
    r1_gamma: float = 0.0
    """Weight of a gradient penalty on the critic; 0 leaves it out."""
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
        super().__post_init__()
        self.check_choices(generators=("pair", "solo"), select=("fixed", "label_free", "oracle"))
        self.check_least(1, "student_width", "critic_steps")
        self.check_least(0, "student_epochs")
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
        if config.data.root or config.data.cross_root:
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
            seen = Means()
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
            if not config.is_due(epoch, config.epochs):
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
            if config.is_due(epoch, config.student_epochs):
                with student.evaluating():
                    scores = judge.validation(student)
                    if epoch.index == config.student_epochs - 1:
                        scores |= judge.tests(student) | teachers
                epoch.report(scores)


def objective_settings(config: TipsyConfig) -> ObjectiveSettings:
    """The weights and variants that a configuration asks for."""
    return config.objective(_parts(config), w_90_180=config.w_90_180, r1_gamma=config.r1_gamma)


def _parts(config: TipsyConfig) -> dict[str, tuple[int, ...]]:
    subset = SUBSETS[config.data.joints]
    return subset.two_parts if config.generators == "pair" else {"full": tuple(range(len(subset.ids)))}


def generator_networks(config: TipsyConfig) -> nn.Module:
    """The pair, or the solo generator, of a configuration."""
    if config.generators == "solo":
        return Lifter(config.data.joints, config.width, config.blocks_solo, **config.layers())
    sizes = {name: len(joints) for name, joints in SUBSETS[config.data.joints].two_parts.items()}
    blocks = config.blocks_legs, config.blocks_torso
    return Pair(config.width, *blocks, legs=sizes["legs"], torso=sizes["torso"], **config.layers())


def _student(config: TipsyConfig) -> nn.Module:
    return Lifter(config.data.joints, config.student_width, config.student_blocks, **config.layers())


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
