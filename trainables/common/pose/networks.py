"""Networks of the adversarial lifting families: residual blocks, the lifter of one part, the 2D critic.

Source: section 3.2 of the reference notes on TIPSy-GAN (arXiv 2205.05980) and section 3.1 of those on "Optimising
2D Pose Representation" (arXiv 2209.00618), which follow the first author's public code (Aswarin/2D-to-3D-Pose).

Deviation: `norm="affine"`. The authors' code has batch normalisation and dropout .5, but calls the
sub-networks in inference mode while training; so batch normalisation keeps its initial statistics (mean 0,
variance 1) for ever and dropout never fires. `affine` is what is left, with the same parameters: a gain and
a shift per feature, and the constant 1 / sqrt(1 + eps). `norm="batch"` with `dropout=.5` is the literal
architecture.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["affine", "batch", "layer", "none"]
Activation = Literal["relu", "leaky_relu", "gelu"]

# Keras' epsilon, and its momentum of .9 in PyTorch's convention.
_NORM_EPS = 1e-3
_NORM_MOMENTUM = 0.1
_INERT_SCALE = (1 + _NORM_EPS) ** -0.5


def _activate(values: Tensor, activation: str) -> Tensor:
    # In place where the gradient can be read off the result: saves one write of the activations.
    match activation:
        case "relu":
            return functional.relu(values, inplace=True)
        case "leaky_relu":
            return functional.leaky_relu(values, inplace=True)
        case _:
            return functional.gelu(values)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Linear layer with Keras' initialisation: Glorot-uniform weights, zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Affine(nn.Module):
    """Gain and shift per feature: batch normalisation frozen at mean 0 and variance 1."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(features))
        self.shift = nn.Parameter(torch.zeros(features))

    def after(self, linear: nn.Linear, h: Tensor) -> Tensor:
        """Apply `linear` and then the affine map, as one linear layer.

        Folding the gain into the weight costs H^2 products; applying it to the output would cost B H of them,
        and as many again for each of three gradients.

        Args:
            linear: The layer whose output is mapped.
            h: (B, inputs).

        Returns:
            (B, features).
        """
        gain = self.gain * _INERT_SCALE
        return functional.linear(h, linear.weight * gain[:, None], torch.addcmul(self.shift, linear.bias, gain))


class Dense(nn.Module):
    """`f = dropout(activation(norm(linear(h))))`: the unit that stems and blocks are made of.

    Args:
        inputs: Input features.
        width: Output features H.
        norm: Kind of normalisation.
        activation: Kind of activation.
        dropout: Probability of dropping a feature.

    Raises:
        ValueError: The normalisation or activation is unknown.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        norm: Norm = "affine",
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise ValueError(f"activation={activation!r} must be one of {', '.join(get_args(Activation))}")
        self.linear = linear(inputs, width)
        self.norm: nn.Module | None
        match norm:
            case "affine":
                self.norm = Affine(width)
            case "batch":
                self.norm = nn.BatchNorm1d(width, eps=_NORM_EPS, momentum=_NORM_MOMENTUM)
            case "layer":
                self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
            case "none":
                self.norm = None
            case _:
                raise ValueError(f"norm={norm!r} must be one of {', '.join(get_args(Norm))}")
        self.activation = activation
        self.dropout = dropout

    def forward(self, h: Tensor) -> Tensor:
        """(B, inputs) -> (B, width)."""
        if isinstance(self.norm, Affine):
            h = self.norm.after(self.linear, h)
        else:
            h = self.linear(h)
            h = h if self.norm is None else self.norm(h)
        h = _activate(h, self.activation)
        return functional.dropout(h, self.dropout, self.training) if self.dropout else h


class Block(nn.Module):
    """Residual block `h + f(f(h))`, nothing after the addition.

    Args:
        width: Features H.
        norm: Kind of normalisation.
        activation: Kind of activation.
        dropout: Probability of dropping a feature, after both layers.

    Raises:
        ValueError: The normalisation or activation is unknown.
    """

    def __init__(
        self,
        width: int,
        *,
        norm: Norm = "affine",
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.first = Dense(width, width, norm=norm, activation=activation, dropout=dropout)
        self.second = Dense(width, width, norm=norm, activation=activation, dropout=dropout)

    def forward(self, h: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        residual: Tensor = h + self.second(self.first(h))
        return residual


class Lifter(nn.Module):
    """Depths of n joints from their image positions.

    flatten (joint-major: x1, y1, x2, ...) -> Linear H -> norm -> activation -> blocks -> Linear n -> tanh.
    Parameters with `affine`, `batch` or `layer`: (2n+1)H + 2H + B(2H(H+1) + 4H) + (H+1)n; with `none` without
    2H and 4H. The solo baseline has 16 joints and 6 blocks, the TIPSy student 16 joints and 3 blocks.

    Args:
        joints: Number of joints n, in and out.
        width: Features H.
        blocks: Residual blocks B.
        norm: Kind of normalisation.
        activation: Kind of activation.
        dropout: Probability of dropping a feature in the blocks.

    Raises:
        ValueError: The normalisation or activation is unknown.
    """

    def __init__(
        self,
        joints: int = 16,
        width: int = 1024,
        blocks: int = 6,
        *,
        norm: Norm = "affine",
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = Dense(2 * joints, width, norm=norm, activation=activation)
        self.blocks = nn.Sequential(
            *(Block(width, norm=norm, activation=activation, dropout=dropout) for _ in range(blocks))
        )
        self.head = linear(width, joints)

    def forward(self, x: Tensor) -> Tensor:
        """Image positions (B, n, 2) -> depths (B, n) in (-1, 1), both in units of the pose's scale."""
        depths: Tensor = self.head(self.blocks(self.stem(x.flatten(1))))
        return depths.tanh()


class Critic(nn.Module):
    """Scores how real a full 2D pose looks; no normalisation.

    flatten -> Linear H -> activation -> blocks -> Linear 1. The score is linear; for `bce_smooth` it is a
    logit, the sigmoid is part of the loss.

    Args:
        joints: Number of joints n.
        width: Features H.
        blocks: Residual blocks.
        activation: Kind of activation.

    Raises:
        ValueError: The activation is unknown.
    """

    def __init__(
        self, joints: int = 16, width: int = 1024, blocks: int = 3, *, activation: Activation = "relu"
    ) -> None:
        super().__init__()
        self.stem = Dense(2 * joints, width, norm="none", activation=activation)
        self.blocks = nn.Sequential(*(Block(width, norm="none", activation=activation) for _ in range(blocks)))
        self.head = linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """2D poses (B, n, 2) -> scores (B,)."""
        scores: Tensor = self.head(self.blocks(self.stem(x.flatten(1))))
        return scores.squeeze(-1)
