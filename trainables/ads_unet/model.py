"""The grid of nodes: sub-UNets of depth 1 to D, which share an encoder and each have a decoder of their own.

Source: section 3 of the reference notes on ADS_UNet (arXiv 2304.04567), which follow the authors' code
(ynulonger/ADS_UNet). `X^{i,j}` is the node at level i (resolution H / 2^i) and column j; the decoder of stage d is the
diagonal i + j = d.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.ads_unet.losses import MapLoss, soft_targets, targets_at
from trainables.common.batchnorm import BatchNorm2d
from trainables.common.histology.networks import DoubleConv, encoded, mean_probabilities, start, up


class SCSE(nn.Module):
    """Concurrent spatial and channel squeeze and excitation: the sum of both, all convolutions with bias and norm.

    Args:
        channels: c; even.
    """

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.spatial = nn.Sequential(nn.Conv2d(channels, 1, 1), BatchNorm2d(1), nn.Sigmoid())
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            *(nn.Conv2d(channels, half, 1), BatchNorm2d(half), nn.ReLU(inplace=True)),
            *(nn.Conv2d(half, channels, 1), BatchNorm2d(channels), nn.Sigmoid()),
        )
        start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, H, W) -> the same shape."""
        return self.spatial(x) * x + self.channel(x) * x  # type: ignore[no-any-return]


class Node(nn.Module):
    """X^{i,j}: what lies below, raised, beside the encoder's node of the same level.

    Args:
        inward: Channels of X^{i+1,j-1}.
        outward: Channels of X^{i,0} and of the result.
        skip: scse or none.
    """

    def __init__(self, inward: int, outward: int, skip: str):
        super().__init__()
        self.up = up(inward, outward)
        self.skip = SCSE(outward) if skip == "scse" else nn.Identity()
        self.conv = DoubleConv(2 * outward, outward)

    def forward(self, across: Tensor, below: Tensor) -> Tensor:
        """X^{i,0} (B, c, H, W) and X^{i+1,j-1} (B, 2c, H/2, W/2) -> (B, c, H, W)."""
        return self.conv(torch.cat([self.skip(across), self.up(below)], dim=1))  # type: ignore[no-any-return]


class LayerWeights(nn.Module):
    """η^d: what each supervised layer of a stage counts in its loss and in its vote.

    `bounded`: `(1 - u) softmax(η) + u / n`, so that no layer can be switched off; `softmax` has u = 0, `uniform` u = 1.

    Args:
        count: Layers n, the deepest first.
        mode: bounded, softmax, uniform, or top_only (one layer).
        floor: u of bounded.
    """

    def __init__(self, count: int, mode: str, floor: float):
        super().__init__()
        self.count = count
        self.floor = {"bounded": floor, "softmax": 0.0}.get(mode, 1.0)
        if self.floor < 1:
            self.eta = nn.Parameter(torch.full((count,), 1 / count))

    def forward(self, like: Tensor) -> Tensor:
        """The weights (n,), which sum to 1, on the device of a tensor; float32 whatever the precision."""
        even = torch.full((self.count,), 1 / self.count, device=like.device)
        return even if self.floor == 1 else (1 - self.floor) * self.eta.float().softmax(dim=0) + self.floor * even


class Stage(nn.Module):
    """What only stage d has: its decoder, its heads and its layer weights.

    Args:
        widths: Channels of the levels 0 to d.
        classes: K.
        skip: scse or none.
        eta_mode: Of `LayerWeights`; top_only has the head of X^{0,d} alone.
        eta_floor: Of `LayerWeights`.
    """

    def __init__(self, widths: Sequence[int], classes: int, skip: str, eta_mode: str, eta_floor: float):
        super().__init__()
        upwards = list(reversed(widths))
        self.nodes = nn.ModuleList(Node(a, b, skip) for a, b in itertools.pairwise(upwards))
        supervised = upwards[-1:] if eta_mode == "top_only" else upwards
        self.heads = nn.ModuleList(nn.Conv2d(width, classes, 1) for width in supervised)
        self.layer_weights = LayerWeights(len(supervised), eta_mode, eta_floor)

    def decode(self, encoder_nodes: Sequence[Tensor]) -> list[Tensor]:
        """X^{d,0}, X^{d-1,1}, ..., X^{0,d} from X^{0,0}, ..., X^{d,0}."""
        features = [encoder_nodes[-1]]
        for node, across in zip(self.nodes, reversed(encoder_nodes[:-1]), strict=True):
            features.append(node(across, features[-1]))
        return features

    def logits(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Of each head, deepest first, at the resolution of its layer: (B, K, H / 2^i, W / 2^i)."""
        return [head(node) for head, node in zip(self.heads, features[-len(self.heads) :], strict=True)]


class Grid(nn.Module):
    """All sub-UNets up to depth d, of which the last one is trained.

    Args:
        classes: K.
        width: f, channels of the first level.
        depth: d.
        loss: What each head is trained with.
        skip: scse or none.
        eta_mode: bounded, softmax, uniform or top_only.
        eta_floor: u of bounded.
        frozen_bn: eval: frozen nodes keep their statistics; train: they go on averaging, as in the authors' code.
    """

    def __init__(
        self,
        classes: int,
        width: int,
        depth: int,
        loss: MapLoss,
        *,
        skip: str = "scse",
        eta_mode: str = "bounded",
        eta_floor: float = 0.5,
        frozen_bn: str = "eval",
    ):
        super().__init__()
        self.depth, self.loss, self._frozen_bn = depth, loss, frozen_bn
        widths = [width * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(DoubleConv(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        self.stages = nn.ModuleList(
            Stage(widths[: d + 1], classes, skip, eta_mode, eta_floor) for d in range(1, depth + 1)
        )
        self.train_last_stage(with_encoder=True)

    def train_last_stage(self, *, with_encoder: bool) -> None:
        """Freezes all but what stage d trains: X^{d,0}, its decoder, heads and layer weights.

        Args:
            with_encoder: Whether X^{0,0} to X^{d-1,0} are trained too; the first stage always trains both its nodes.
        """
        self.requires_grad_(False)
        self.stages[-1].requires_grad_(True)
        self.encoder[-1].requires_grad_(True)
        if with_encoder or self.depth == 1:
            self.encoder.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Grid:
        """As every module's, but that frozen nodes stay in evaluation mode under `frozen_bn=eval`."""
        super().train(mode)
        if self._frozen_bn == "eval":
            for part in (*self.encoder, *self.stages):
                if not any(parameter.requires_grad for parameter in part.parameters()):
                    part.eval()
        return self

    def forward(
        self,
        x: Tensor,
        masks: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        stages: Sequence[int] = (),
        heads: Sequence[int] = (),
        want: str = "",
    ) -> Any:
        """The loss of the last stage, or what stages say.

        The loss is taken here, because a parameter that is read outside of a module is not whole under ZeRO 3.

        Args:
            x: (B, 3, H, W).
            masks: (B, H, W), to train with.
            weights: (B,), or (B, H, W) of pixels; 1 on average.
            stages: Which stages are asked, from 1; none: all.
            heads: The head that speaks for each of them, -1 for all by their weights; none: all for each.
            want: heads: each head of the last stage by itself; nodes: the features X^{0,1}, ..., X^{0,d}.

        Returns:
            With masks the loss, the loss of each head (n,) and the layer weights (n,). Else probabilities (S, B, K, H,
            W) of each stage, or of each head of the last one; or a list of features.
        """
        nodes = encoded(self.encoder, x)
        if masks is not None:
            assert weights is not None
            logits = self._last.logits(self._last.decode(nodes))
            return self._loss(logits, masks, weights)
        if want == "heads":
            return torch.stack(self._probabilities(self._last, nodes, x))
        if want == "nodes":
            return [self._at(d).decode(nodes[: d + 1])[-1] for d in range(1, self.depth + 1)]
        asked = list(stages) or list(range(1, self.depth + 1))
        speaking = heads or [-1] * len(asked)
        return torch.stack([self._said(d, nodes, x, head) for d, head in zip(asked, speaking, strict=True)])

    @property
    def _last(self) -> Stage:
        return self._at(self.depth)

    def _at(self, depth: int) -> Stage:
        stage = self.stages[depth - 1]
        assert isinstance(stage, Stage)
        return stage

    def _loss(self, logits: list[Tensor], masks: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        soft = soft_targets(masks, logits[0].shape[1])
        losses = []
        for out in logits:
            target, weight = targets_at(soft, weights, soft.shape[-1] // out.shape[-1])
            losses.append(self.loss(out.float(), target, weight).mean())
        each = torch.stack(losses)
        counted = self._last.layer_weights(each)
        return (counted * each).sum(), each.detach(), counted.detach()

    def _said(self, depth: int, nodes: Sequence[Tensor], x: Tensor, head: int) -> Tensor:
        """P^d (B, K, H, W), or the probabilities of one head of stage d."""
        stage = self._at(depth)
        probabilities = self._probabilities(stage, nodes[: depth + 1], x)
        if head >= 0:
            return probabilities[head]
        counted = stage.layer_weights(x)
        return torch.einsum("h,hbkyx->bkyx", counted, torch.stack(probabilities))

    def _probabilities(self, stage: Stage, nodes: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        size = x.shape[-2:]
        return [
            functional.interpolate(out.float().softmax(dim=1), size, mode="bilinear", align_corners=True)
            for out in stage.logits(stage.decode(nodes))
        ]


class Joint(nn.Module):
    """A baseline in the place of the grid: all of it trained at once, every head at full resolution.

    Args:
        network: Gives a list of maps of logits, and `top_nodes`.
        loss: What each head is trained with; their mean is the loss.
    """

    def __init__(self, network: nn.Module, loss: MapLoss):
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, x: Tensor, masks: Tensor | None = None, weights: Tensor | None = None, **asked: Any) -> Any:
        """See `Grid.forward`; the one stage is all of the network, its probabilities are the heads' mean."""
        if asked.get("want") == "nodes":
            return self.network.top_nodes(x)  # type: ignore[operator]
        logits: list[Tensor] = self.network(x)
        if masks is None:
            return mean_probabilities([out.float() for out in logits])[None]
        assert weights is not None
        target = soft_targets(masks, logits[0].shape[1])
        each = torch.stack([self.loss(out.float(), target, weights).mean() for out in logits])
        return each.mean(), each.detach(), torch.full_like(each, 1 / len(each))


def count(module: nn.Module, *, trained: bool = False) -> int:
    """How many parameters there are, or are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained)
