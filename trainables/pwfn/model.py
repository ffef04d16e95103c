"""Networks whose weights are Gaussians: every forward pass draws them anew, mu alone is what is kept in the end.

Source: sections 3.2 and 4.4 of the reference notes on PWFN (arXiv 2309.13575). mu is the layer's own parameter and
keeps its name; sigma lies beside it as `<name>_sigma`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainables.common.quantisation.fixing import (
    MASK,
    VALUE,
    Fixable,
    FixableConv1d,
    FixableConv2d,
    FixableConv3d,
    FixableLinear,
    make_fixable,
)
from trainables.pwfn.sigma import LEAST, PenaltyForm, initial_sigma, sigma_penalty

SIGMA = "_sigma"
"""The end of the names of the standard deviations."""

Trained = Literal["both", "mu", "sigma"]
"""What a forward pass gives gradients to: `mu` is without noise, `sigma` takes mu as a constant."""


@dataclass
class Pass:
    """One forward pass, as all layers of a network see it.

    Attributes:
        seed: Of the noise; None: the weights are mu.
        trained: What gets a gradient. The other gets zeros, since no engine likes parameters that take no part.
        cut_off: S of the penalty.
        form: Of the penalty.
    """

    seed: int | None
    trained: Trained
    cut_off: float
    form: PenaltyForm


class Probabilistic(Fixable):
    """Mixed into a fixable layer: its weights are mu + eps sigma, with eps drawn once a forward pass for all samples.

    A fixed weight has a fixed sigma, too, unless sigmas are `retrained`.
    """

    number: int
    now: Pass
    retrained: bool
    penalty: Tensor

    def make_probabilistic(self, number: int, now: Pass, retrained: bool) -> None:
        """Adds sigmas of 0 and their buffers.

        Args:
            number: Of the layer in its network: each draws noise of its own.
            now: Shared by the layers.
            retrained: Whether sigmas of fixed weights go on being trained.
        """
        self.number, self.now, self.retrained = number, now, retrained
        for name in self.fixable:
            sigma = torch.zeros_like(getattr(self, name), requires_grad=False)
            self.register_parameter(name + SIGMA, nn.Parameter(sigma))
            self.register_buffer(name + SIGMA + VALUE, torch.zeros_like(sigma))

    def effective(self, name: str) -> Tensor | None:
        mu: Tensor | None = super().effective(name)
        if mu is None or name not in self.fixable:
            return mu
        if self.now.seed is None and not torch.is_grad_enabled():
            return mu
        is_fixed, sigma = getattr(self, name + MASK), getattr(self, name + SIGMA)
        if self.now.seed is None or self.now.trained == "mu":
            if name == "weight":
                self.penalty = sigma.new_zeros(())
            still: Tensor = mu + 0 * sigma
            return still
        held = sigma if self.retrained else torch.where(is_fixed, getattr(self, name + SIGMA + VALUE), sigma)
        noise = self._noise(name, mu)
        if name == "weight":  # biases' sigmas have no regulariser
            pushed = sigma if self.retrained else sigma.masked_fill(is_fixed, self.now.cut_off)
            self.penalty = sigma_penalty(pushed, noise, self.now.cut_off, self.now.form)
        centre = mu.detach() + 0 * mu if self.now.trained == "sigma" else mu
        drawn: Tensor = centre + noise * held.clamp_min(LEAST)
        return drawn

    def _noise(self, name: str, like: Tensor) -> Tensor:
        # Of the pass, the layer and the parameter alone: a recomputed activation has the same, and so has every worker.
        assert self.now.seed is not None
        generator = torch.Generator(like.device).manual_seed(
            (self.now.seed * 1_000_003 + 2 * self.number + (name == "bias")) % 2**63
        )
        return torch.randn(like.shape, generator=generator, device=like.device)


class ProbabilisticLinear(Probabilistic, FixableLinear):
    """`nn.Linear` with Gaussian weights."""


class ProbabilisticConv1d(Probabilistic, FixableConv1d):
    """`nn.Conv1d` with Gaussian weights."""


class ProbabilisticConv2d(Probabilistic, FixableConv2d):
    """`nn.Conv2d` with Gaussian weights."""


class ProbabilisticConv3d(Probabilistic, FixableConv3d):
    """`nn.Conv3d` with Gaussian weights."""


_KINDS: dict[type[nn.Module], type[Probabilistic]] = {
    FixableLinear: ProbabilisticLinear,
    FixableConv1d: ProbabilisticConv1d,
    FixableConv2d: ProbabilisticConv2d,
    FixableConv3d: ProbabilisticConv3d,
}


class ProbabilisticNetwork(nn.Module):
    """A network whose linear and convolutional layers have Gaussian weights; all other parameters stay as they are.

    Args:
        network: The plain network, made probabilistic in place.
        cut_off: S, the sigma above which the penalty ends.
        form: Of the penalty.
        retrained: Whether sigmas of fixed weights go on being trained.
    """

    def __init__(
        self, network: nn.Module, *, cut_off: float = 0.05, form: PenaltyForm = "linear", retrained: bool = False
    ):
        super().__init__()
        self.network = make_fixable(network, include_bn=False)
        self._now = Pass(None, "both", cut_off, form)
        layers = [module for module in self.network.modules() if type(module) in _KINDS]
        for number, layer in enumerate(layers):
            layer.__class__ = _KINDS[type(layer)]
            assert isinstance(layer, Probabilistic)
            layer.make_probabilistic(number, self._now, retrained)

    @property
    def layers(self) -> list[Probabilistic]:
        """Those with Gaussian weights, in the order of the modules."""
        return [module for module in self.network.modules() if isinstance(module, Probabilistic)]

    @property
    def penalty(self) -> Tensor:
        """R / lambda of the sigmas in the last pass with gradients; 0 if that was without noise."""
        return torch.stack([layer.penalty for layer in self.layers]).sum()

    def forward(self, x: Tensor, seed: int | None = None, trained: Trained = "both") -> Tensor:
        """The network's output.

        Args:
            x: A batch.
            seed: Of the noise, the same for the whole batch and on all workers; None: without.
            trained: What gets a gradient.
        """
        self._now.seed, self._now.trained = seed, trained
        out: Tensor = self.network(x)
        return out


def set_sigmas(network: ProbabilisticNetwork, scale: float, largest: float, constant: float | None = None) -> None:
    """Sets every sigma to where it starts, from the weights that the layers have now (section 3.2).

    Args:
        network: On one device, before any engine has it.
        scale: See `initial_sigma`.
        largest: S.
        constant: If given, the sigma of all weights.
    """
    with torch.no_grad():
        for layer in network.layers:
            for name in layer.fixable:
                sigma, mu = getattr(layer, name + SIGMA), getattr(layer, name)
                sigma.copy_(initial_sigma(mu, scale, largest) if constant is None else torch.full_like(mu, constant))
