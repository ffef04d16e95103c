"""Probabilistic weight fixing: each weight learns how far it may move before it is snapped to a shared value.

Subia-Waud, Dasmahapatra, "Probabilistic Weight Fixing: Large-scale training of neural network weight uncertainties for
quantization", NeurIPS 2023, arXiv 2309.13575. What the paper leaves open follows the authors' public code
(subiawaud/PWFN). README.md lists the deviations and what we measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from pharos.errors import InputError
from pharos.learner import Learner, OptimConfig
from pharos.recipe import Recipe
from pharos.run import Epoch, Run
from trainables.common.quantisation.fixing import Layout, check_alike
from trainables.common.quantisation.measures import describe, sizes
from trainables.common.quantisation.settings import QuantisationConfig
from trainables.common.quantisation.training import accuracy, batches, pretrained, recalibrate
from trainables.pwfn import evaluation
from trainables.pwfn.clustering import Rules
from trainables.pwfn.data import BUILT_IN, Images, open_images
from trainables.pwfn.model import SIGMA, ProbabilisticNetwork, Trained, set_sigmas
from trainables.pwfn.pictures import draw_codebook, draw_weights
from trainables.pwfn.rounds import JOINS, PAPER10, SIGMA_MODES, Fixed, Fixing, fix, sigmas, state, tolerances

_DIVERGED = 2.0**30  # weights as large have no centre that is worth looking for
_TRAIN_MODES = ("joint", "mu_then_sigma", "no_bnn")


def paper_sgd() -> OptimConfig:
    """The optimiser of the authors' code."""
    return OptimConfig(name="sgd", lr=1e-3, beta1=0.9, weight_decay=1e-4, clip_norm=1.0)


@dataclass
class PwfnConfig(QuantisationConfig):
    """Defaults are the paper's values (the commands of the authors' README), or their code's where both are silent."""

    batch_size: int = 128
    """Images a step, over all workers."""
    optim: OptimConfig = field(default_factory=paper_sgd)
    """Of mu, sigma and all that is not quantised; made anew every round."""
    lr_sigma_mult: float = 1.0
    """Factor of the learning rate for sigmas."""
    train_mode: str = "joint"
    """joint: mu and sigma together (the paper); mu_then_sigma: in each round mu without noise, then as long sigma
    alone; no_bnn: mu without noise, sigmas stay where they start and only measure distances."""
    baseline_epochs: int = 1
    """Of training with noise before the first round; its length in the paper is not known."""
    start_fraction: float = 0.05
    """Share of an epoch that is trained before the first round's fixing."""
    rest_epochs: int = 3
    """Of training before the fixing of each other round."""
    reg: float = 2.0**-11
    """Strength lambda of the regulariser that raises sigmas."""
    reg_form: str = "linear"
    """linear: lambda/2 |eps| relu(S - sigma)^2, the authors' push on the gradient; constant: lambda relu(S - sigma);
    none."""
    cut_off: float = 0.05
    """S: nothing pushes a sigma beyond it, and none starts above."""
    sigma_init: str = "pow2"
    """pow2: from the distance to powers of two (the paper); const: sigma_const."""
    sigma_scale: float = 0.0025
    """pow2: sigma of the weight at a tensor's upper quartile."""
    sigma_const: float = 1e-4
    """const: the sigma of all weights."""
    delta_start: float = 1.0
    """Sigmas that a weight may move in the first round."""
    delta_end: float = 1.0
    """The same in the last round; in between linearly."""
    inc: float = 2.0
    """Factor of delta when nothing more can be assigned."""
    b: int = 7
    """Centres are multiples of 2^-b."""
    max_powl: int = 4
    """Most powers of two in a centre."""
    zero_fix: bool = True
    """Whether weights below 2^-b have distance 0 to the centre 0."""
    join: str = "std_mu"
    """Sigma of weights that were assigned together: std_mu, the standard deviation of their mu before; keep_half or
    keep_tenth of each one's own; allow_retraining, its own, still trained; rms_sigma, the root of their mean square;
    none, no noise on fixed weights."""
    sigma_mode: str = "learned"
    """Sigmas that distances are measured in: learned; for ablations layer_mean, permuted (within each tensor), const
    (the mean over the network)."""

    def __post_init__(self) -> None:
        """Checks what the parts do not.

        Raises:
            InputError: A value is impossible.
        """
        super().__post_init__()
        self.check_choices(
            train_mode=_TRAIN_MODES,
            reg_form=("linear", "constant", "none"),
            sigma_init=("pow2", "const"),
            join=JOINS,
            sigma_mode=SIGMA_MODES,
        )
        for name in ("cut_off", "sigma_scale", "sigma_const", "delta_start", "delta_end"):
            if not getattr(self, name) > 0:
                raise InputError(f"recipe.{name}={getattr(self, name)} must be above 0")
        for name in ("reg", "lr_sigma_mult", "baseline_epochs"):
            if not getattr(self, name) >= 0:
                raise InputError(f"recipe.{name}={getattr(self, name)} must be at least 0")
        if not self.inc > 1:
            raise InputError(f"recipe.inc={self.inc} must be above 1, or the search for centres never ends")
        if not 0 < self.start_fraction <= 1:
            raise InputError(f"recipe.start_fraction={self.start_fraction} must be above 0 and at most 1")
        if self.rest_epochs < 1:
            raise InputError(f"recipe.rest_epochs={self.rest_epochs} must be at least 1")
        if not 1 <= self.max_powl <= 6:
            raise InputError(f"recipe.max_powl={self.max_powl} must be 1 to 6")
        if not 1 <= self.b <= 16:
            raise InputError(f"recipe.b={self.b} must be 1 to 16")
        if self.sigma_init == "pow2" and self.sigma_scale > self.cut_off:
            raise InputError(f"recipe.sigma_scale={self.sigma_scale} must be at most cut_off={self.cut_off}")
        if self.optim.name != "sgd" and self.optim.lr * self.lr_sigma_mult > 1e-4 and self.train_mode != "no_bnn":
            raise InputError(
                f"recipe.optim.name={self.optim.name} moves sigmas by about the learning rate a step, whatever reg is: "
                "take sgd, or lr_sigma_mult so that optim.lr * lr_sigma_mult is at most 1e-4"
            )

    @property
    def fractions(self) -> list[float]:
        """Cumulative shares of fixed weights, by round."""
        return self.shares(PAPER10)

    @property
    def phases(self) -> list[Trained]:
        """What is trained in the parts of a round, one after the other."""
        phases: dict[str, list[Trained]] = {"joint": ["both"], "mu_then_sigma": ["mu", "sigma"], "no_bnn": ["mu"]}
        return phases[self.train_mode]

    @property
    def fixing(self) -> Fixing:
        """How weights are fixed."""
        rules = Rules(self.b, self.max_powl, self.inc, self.zero_fix)
        return Fixing(rules, self.join, self.sigma_mode, self.recluster == "free_only")


class Pwfn(Recipe):
    """Training of Gaussian weights, in rounds at whose ends more of them are fixed to shared values."""

    Config = PwfnConfig
    scales: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {
            "data.source": "digits",
            "model.name": "cnn_s",
            "pretrain.epochs": 30,
            "batch_size": 64,
            "bn_recalibrate": True,
            "optim.lr": 0.01,
            "baseline_epochs": 5,
            "rest_epochs": 12,
            # Steps times rate times lambda stay about those of the paper's rounds (section 4.1 of the notes).
            "reg": 2.0**-7,
        },
        "tiny": {
            "data.source": "digits",
            "data.limit": 64,
            "model.name": "cnn_s",
            "model.width": 2,
            "pretrain.epochs": 1,
            "batch_size": 32,
            "optim.lr": 0.01,
            "baseline_epochs": 1,
            "start_fraction": 1.0,
            "rest_epochs": 1,
            "schedule": "linear",
            "rounds": 3,
        },
    }

    def fidelity(self, config: PwfnConfig) -> int:
        before = config.pretrain.epochs + config.baseline_epochs * len(config.phases)
        return before + sum(_epochs(config, number) for number in range(len(config.fractions)))

    def check(self, config: PwfnConfig) -> None:
        if config.data.root or config.data.source in BUILT_IN:
            config.pretrain.check(config.model)
            open_images(config.data)

    def train(self, run: Run, config: PwfnConfig) -> None:
        images = run.cached(("images", repr(config.data)), lambda: open_images(config.data))
        plain = pretrained(run, config.pretrain, config.model, images, config.batch_size)
        network = probabilistic(plain, config)
        layout = Layout.of(network)
        factor = 0.0 if config.train_mode == "no_bnn" else config.lr_sigma_mult
        net = run.learner("network", network, config.optim, {SIGMA: factor})
        trial = _Trial(run, config, images, net, layout)

        for epoch in run.epochs("baseline", config.baseline_epochs * len(config.phases)):
            trial.train(epoch, config.phases[epoch.index // config.baseline_epochs])
            scores, _ = trial.as_if_fixed(epoch, trial.weights(epoch), config.delta_start)
            epoch.report(scores)

        deltas = tolerances(config.delta_start, config.delta_end, len(config.fractions))
        for number in run.stages("rounds", len(config.fractions)):
            epochs = _epochs(config, number)
            for epoch in run.epochs("train", epochs):
                trained = config.phases[epoch.index * len(config.phases) // epochs]
                if epoch.index * len(config.phases) % epochs == 0:
                    net.reset_optimizer()
                trial.train(epoch, trained, config.start_fraction if number == 0 else 1.0)
                if epoch.index == epochs - 1:
                    epoch.report(trial.fix(epoch, number, config.fractions[number], deltas[number]))


def probabilistic(plain: torch.nn.Module, config: PwfnConfig) -> ProbabilisticNetwork:
    """A trained network with Gaussian weights around its own."""
    network = ProbabilisticNetwork(
        plain,
        cut_off=config.cut_off,
        form="constant" if config.reg_form == "constant" else "linear",
        retrained=config.join == "allow_retraining",
    )
    constant = config.sigma_const if config.sigma_init == "const" else None
    set_sigmas(network, config.sigma_scale, config.cut_off, constant)
    return network


def _epochs(config: PwfnConfig, number: int) -> int:
    """Of training before the fixing of a round."""
    return (config.rest_epochs if number else 1) * len(config.phases)


class _Trial:
    """What the parts of the algorithm have in common."""

    def __init__(self, run: Run, config: PwfnConfig, images: Images, net: Learner, layout: Layout):
        self._run, self._config, self._images, self._net, self._layout = run, config, images, net, layout

    def train(self, epoch: Epoch, trained: Trained, share: float = 1.0) -> None:
        """One epoch, or its first part: cross-entropy and the penalty of the sigmas, one draw of noise a step."""
        config, images, net = self._config, self._images, self._net
        network = cast(ProbabilisticNetwork, net.module)
        steps = math.ceil(share * max(1, len(images.train) // config.batch_size))
        parts = batches(epoch, images, config.batch_size, self._run.device)
        for x, y in itertools.islice(parts, steps):
            # All workers draw the same noise: it is the batch's, and R raises sigmas alike everywhere.
            seed = None if trained == "mu" else int(torch.randint(2**40, (), generator=epoch.shared))
            loss = F.cross_entropy(net(x, seed=seed, trained=trained).float(), y)
            if config.reg_form != "none" and config.reg and seed is not None:
                loss = loss + config.reg * network.penalty
            net.step(loss)

    def weights(self, epoch: Epoch) -> dict[str, Tensor]:
        """The network's; the trial ends as diverged where there is nothing to fix."""
        weights = self._net.weights()
        vectors = self._layout.vector(weights), self._layout.vector(weights, SIGMA)
        if not all((np.abs(vector) < _DIVERGED).all() for vector in vectors):
            epoch.report({"loss/weights": math.nan})
        return weights

    def as_if_fixed(self, epoch: Epoch, weights: dict[str, Tensor], delta: float) -> tuple[dict[str, float], Fixed]:
        """What the network would be if all weights were fixed now; it is as it was in the end."""
        after = fix(weights, self._layout, 1.0, delta, self._config.fixing, epoch.shared)
        self._net.load_weights(state(weights, self._layout, after))
        scores = self._scores(after)
        self._net.load_weights(weights)
        return scores, after

    def fix(self, epoch: Epoch, number: int, fraction: float, delta: float) -> dict[str, float]:
        """Ends a round: fixes the share of the weights, and tells of the network before and after.

        Returns:
            `val/accuracy` and the measures of all weights as if all were fixed now, which after the last round they
            are; `round/*` of the network before, partly fixed and frozen, and of the fixing.
        """
        run, net, layout, config = self._run, self._net, self._layout, self._config
        weights = self.weights(epoch)
        sigma, was_fixed = sigmas(weights, layout, config.join), layout.mask(weights)
        figures = {"fraction": fraction, "delta": delta}
        figures |= evaluation.sigma_figures(sigma, was_fixed, config.cut_off)
        self._recalibrate()
        figures["accuracy_before"] = self._accuracy("val")["val/accuracy"]
        with net.evaluating():
            figures |= evaluation.noisy(net, self._images.val, run.device)
        net.load_weights(weights)
        scores, whole = self.as_if_fixed(epoch, weights, delta)
        if number == 0:
            run.log_image("weights if all were fixed", draw_weights(layout.vector(weights), sigma, whole))
        after = fix(weights, layout, fraction, delta, config.fixing, epoch.shared)
        net.load_weights(state(weights, layout, after))
        # What each worker has now: the same weights, and sigmas that the regulariser has raised alike.
        held = net.weights()
        check_alike(run, np.stack([layout.vector(held), sigmas(held, layout, config.join)]))
        figures |= after.figures
        if fraction == 1:
            scores = self._scores(after) | self._final()
            run.log_image("codebook", draw_codebook(after.mu))
        run.log_image("weights", draw_weights(layout.vector(weights), sigma, after))
        return scores | {f"round/{name}": value for name, value in figures.items()}

    def _scores(self, after: Fixed) -> dict[str, float]:
        self._recalibrate()
        return self._accuracy("val") | describe(after.mu) | {"late": after.figures["late"]}

    def _final(self) -> dict[str, float]:
        """Of the network that is left, all of whose weights are fixed."""
        run, net, layout, images = self._run, self._net, self._layout, self._images
        scores = self._accuracy("test")
        with net.evaluating():
            found = evaluation.calibration(*evaluation.logits(net, images.val, run.device))
            found |= evaluation.noisy(net, images.val, run.device) | evaluation.ensemble(net, images.val, run.device)
            found |= evaluation.resilience(net, layout, images.val, run.device)
        vector = layout.vector(net.weights())
        others = layout.total - 2 * layout.size  # sigmas are not kept
        return scores | {f"val/{name}": value for name, value in found.items()} | sizes(vector, others)

    def _accuracy(self, name: str) -> dict[str, float]:
        return accuracy(self._run, self._net, getattr(self._images, name), name)

    def _recalibrate(self) -> None:
        if self._config.bn_recalibrate:
            recalibrate(self._run, self._net, self._images, self._config.batch_size)
