"""Optimising 2D pose representation: one adversarial lifting cycle, five ways to give it a pose.

Hardy, Dasmahapatra, Kim, "Optimising 2D Pose Representation: Improve Accuracy, Stability and Generalisability Within
Unsupervised 2D-3D Human Pose Estimation", arXiv 2209.00618. What the paper leaves open follows the first author's
public code (Aswarin/2D-to-3D-Pose). README.md lists the deviations and what we measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from pharos.errors import InputError
from pharos.recipe import Recipe
from pharos.run import Run
from trainables.common.pose.adversarial import critic_objective, generator_objective
from trainables.common.pose.evaluation import CollapseGuard, Judge
from trainables.common.pose.networks import Critic
from trainables.common.pose.settings import AdversarialConfig
from trainables.common.settings import Means
from trainables.pose_representation.data import Views, chance, flipped, open_poses
from trainables.pose_representation.evaluation import CorrelationStudy, Stability
from trainables.pose_representation.model import Independent, Joined, Partition, partition, shared_features
from trainables.pose_representation.pictures import draw_correlations

_REPRESENTATIONS = (
    *("full", "two_independent", "two_shared", "five_independent", "five_shared"),
    *("left_right", "custom"),
)


@dataclass
class PoseRepresentationConfig(AdversarialConfig):
    """Defaults are the paper's values, or the authors' code's where the paper is silent."""

    representation: str = "two_independent"
    """How a pose is given to the lifter: full, two_independent (legs, torso), two_shared, five_independent (limbs,
    trunk), five_shared; beyond the paper's five: left_right (halves with a common trunk), custom (see parts)."""
    parts: list[list[int]] = field(default_factory=list)
    """custom: the joints of each independent part, such as [[0,1,2,3,4,5],[6,7,8,9],[10,11,12,13,14,15]]."""
    blocks: int = 6
    """Residual blocks of full, two_*, left_right and custom, over all networks: the paper's limit."""
    blocks_legs: int = 3
    """two_independent: how many of them the legs get; the torso gets the others."""
    blocks_shared: int = 2
    """two_shared: how many of them come after the parts are joined; the parts share the others evenly."""
    blocks_trunk: int = 1
    """five_independent: residual blocks of the trunk; 2 gives it as many parameters as full has. Limbs have 1."""
    adv_share: str = "by_joints"
    """Independent parts: how the adversarial weight is divided: by_joints, equal, or one (each gets all of it)."""
    seeds: int = 3
    """Trainings of the same configuration, side by side; what is reported are means, and how far they are apart."""

    def __post_init__(self) -> None:
        """Checks what the models and losses do not.

        Raises:
            InputError: A value is impossible.
        """
        super().__post_init__()
        self.check_choices(representation=_REPRESENTATIONS, adv_share=("by_joints", "equal", "one"))
        self.check_least(1, "blocks", "blocks_legs", "blocks_shared", "blocks_trunk", "seeds")
        try:
            parts = partition(self.representation, self.data.joints, self.parts)
            if self.representation.endswith("_shared"):
                shared_features(parts, self.width)
        except ValueError as error:
            raise InputError(f"recipe.representation={self.representation}: {error}") from None
        if self.representation == "two_independent" and self.blocks_legs >= self.blocks:
            raise InputError(f"recipe.blocks_legs={self.blocks_legs} leaves the torso none of {self.blocks} blocks")
        divided = {
            "two_shared": (self.blocks - self.blocks_shared, 2),
            "left_right": (self.blocks, 2),
            "custom": (self.blocks, len(parts)),
        }
        left, among = divided.get(self.representation, (1, 1))
        if left < among or left % among:
            name = f"recipe.representation={self.representation}"
            raise InputError(f"{name}: {left} blocks cannot be divided evenly among {among} parts")


class PoseRepresentation(Recipe):
    """One representation: lifters trained against a critic of the whole 2D pose, on several seeds; then the study."""

    Config = PoseRepresentationConfig
    scales: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {
            "width": 128,
            "critic_width": 128,
            "batch_size": 256,
            "rotation_per": "sample",
            "epochs": 16,
            "evaluate_every": 1,
            "seeds": 1,
            # Less than a hundredth of the paper's steps: at its constant 2e-4 training would stop half-way.
            "optim.lr": 1e-3,
            "critic_optim.lr": 1e-3,
            "optim.schedule": "linear",
            "critic_optim.schedule": "linear",
        },
        "tiny": {
            "width": 16,
            "critic_width": 16,
            "batch_size": 64,
            "rotation_per": "sample",
            "epochs": 5,
            "evaluate_every": 1,
            "seeds": 2,
            "data.train_subjects": 2,
            "data.train_sequences": 1,
            "data.train_frames": 10,
            "data.test_subjects": 1,
            "data.test_sequences": 1,
            "data.test_frames": 5,
        },
    }

    def fidelity(self, config: PoseRepresentationConfig) -> int:
        return config.epochs

    def check(self, config: PoseRepresentationConfig) -> None:
        if config.data.root or config.data.cross_root:
            open_poses(config.data)

    def train(self, run: Run, config: PoseRepresentationConfig) -> None:
        poses = run.cached(("poses", repr(config.data)), lambda: open_poses(config.data))
        x_train = poses.train.x.to(run.device)
        judge, study = Judge(poses, run.device), CorrelationStudy(poses, run.device)
        objective = config.objective(loss_groups(config), adv_share=config.adv_share)
        stability = Stability(run.state, config.seeds)
        guards = [CollapseGuard(run.state.setdefault(f"guard{k}", {}), config.gan_loss) for k in range(config.seeds)]
        # Critics first: with one seed, all representations meet the same critics, batches and views.
        critics = [run.learner(f"critic{k}", critic(config), config.critic_optim) for k in range(config.seeds)]
        networks = [lifter(config) for _ in range(config.seeds)]
        parameters = float(sum(parameter.numel() for parameter in networks[0].parameters()))
        lifters = [run.learner(f"lifter{k}", network, config.optim) for k, network in enumerate(networks)]

        for epoch in run.epochs("adversarial", config.epochs):
            found: list[dict[str, float]] = []
            is_last = epoch.index == config.epochs - 1
            for lift, score, guard in zip(lifters, critics, guards, strict=True):
                seen = Means()
                views = Views(config.azimuth_max, config.elevation_max, config.rotation_per, epoch, run.device)
                for batch in epoch.batches(x_train, config.batch_size):
                    x = flipped(batch, config.flip, epoch.shared)
                    swap = chance(config.label_flip, epoch.shared)
                    loss, terms = critic_objective(lift, score, x, views.draw(), objective, swap=swap)
                    score.step(loss)
                    seen.add(terms)
                    with score.frozen():
                        loss, terms = generator_objective(lift, score, x, views.draw(), objective)
                        lift.step(loss)
                    seen.add(terms)
                if not config.is_due(epoch, config.epochs):
                    continue
                means = run.mean(seen.take())
                with lift.evaluating():
                    scores = judge.validation(lift) | means | {"collapsed": guard.update(means)}
                    if is_last:
                        influences = judge.influences(lift)
                        correlations = study.of(lift, influences)
                        scores |= judge.tests(lift, influences) | study.measures(correlations, influences)
                        scores |= study.swap(lift)
                        if not found:
                            run.log_image("correlations", draw_correlations(correlations))
                found.append(scores)
            if found:
                epoch.report(stability.report(found, epoch.index, is_last) | {"parameters": parameters})


def lifter(config: PoseRepresentationConfig) -> nn.Module:
    """The lifter of a representation."""
    parts = partition(config.representation, config.data.joints, config.parts)
    size: dict[str, Any] = {"joints": config.data.joints, "width": config.width, **config.layers()}
    match config.representation:
        case "two_shared":
            apart = (config.blocks - config.blocks_shared) // len(parts)
            return Joined(parts, apart, config.blocks_shared, **size)
        case "five_shared":
            return Joined(parts, 1, 1, **size)
        case "two_independent":
            blocks = {"legs": config.blocks_legs, "torso": config.blocks - config.blocks_legs}
        case "five_independent":
            blocks = dict.fromkeys(parts, 1) | {"trunk": config.blocks_trunk}
        case _:
            blocks = dict.fromkeys(parts, config.blocks // len(parts))
    return Independent(parts, blocks, **size)


def critic(config: PoseRepresentationConfig) -> nn.Module:
    """The critic of the whole pose, the same for all representations."""
    return Critic(config.data.joints, config.critic_width, config.critic_blocks, activation=config.activation)  # type: ignore[arg-type]


def loss_groups(config: PoseRepresentationConfig) -> Partition:
    """Joints whose networks have an objective of their own: each independent part, or all that share features."""
    shared = config.representation.endswith("_shared")
    return partition("full" if shared else config.representation, config.data.joints, config.parts)
