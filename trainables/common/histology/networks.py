"""The UNets that the segmentation families build on and are compared with.

Source: section 3 of the reference notes on ADS_UNet (blocks, UNet, UNet^e, UNet++), and section 3.5 of those on SEUNet
(UNet with bilinear up-sampling and other kernels). Sides of the input are multiples of 2^depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.common.batchnorm import BatchNorm2d


class DoubleConv(nn.Sequential):
    """[Convolution with bias, batch norm, ReLU] twice; weights as the authors of ADS_UNet start them.

    Args:
        inward: Channels in.
        outward: Channels out.
        kernel: Side of the filters.
    """

    def __init__(self, inward: int, outward: int, kernel: int = 3):
        super().__init__(
            nn.Conv2d(inward, outward, kernel, padding=kernel // 2),
            BatchNorm2d(outward),
            nn.ReLU(inplace=True),
            nn.Conv2d(outward, outward, kernel, padding=kernel // 2),
            BatchNorm2d(outward),
            nn.ReLU(inplace=True),
        )
        start(self)


def start(module: nn.Module) -> None:
    """Convolutions Kaiming-normal by fan-in, gains of batch norms N(1, 0.02²); biases as PyTorch starts them."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, a=0, mode="fan_in")
        elif isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(part.weight, 1.0, 0.02)


def up(inward: int, outward: int, how: str = "transposed") -> nn.Module:
    """Twice the resolution: a transposed 2x2 convolution, or bilinear and a 1x1 convolution.

    Args:
        inward: Channels in.
        outward: Channels out.
        how: transposed or bilinear.
    """
    if how == "transposed":
        return nn.ConvTranspose2d(inward, outward, 2, stride=2)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(inward, outward, 1)
    )


class UNet(nn.Module):
    """The plain UNet.

    Args:
        classes: K.
        width: Channels of the first level, doubled by each.
        depth: How often the resolution is halved.
        how: transposed or bilinear up-sampling.
        kernel: Side of the filters.
    """

    def __init__(self, classes: int, width: int = 64, depth: int = 4, *, how: str = "transposed", kernel: int = 3):
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(DoubleConv(a, b, kernel) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        self.ups = nn.ModuleList(up(2 * c, c, how) for c in reversed(widths[:-1]))
        self.decoder = nn.ModuleList(DoubleConv(2 * c, c, kernel) for c in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    def top_nodes(self, x: Tensor) -> list[Tensor]:
        """Features at full resolution, before the head: one (B, f, H, W)."""
        skips = encoded(self.encoder, x)
        out = skips.pop()
        for raised, block in zip(self.ups, self.decoder, strict=True):
            out = block(torch.cat([skips.pop(), raised(out)], dim=1))
        return [out]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> one map of logits (B, K, H, W), in a list."""
        return [self.head(node) for node in self.top_nodes(x)]


class NestedUNet(nn.Module):
    """UNet^e and UNet++: UNets of every depth up to the largest on one encoder, a head on the top node of each.

    UNet++ gives a node all that are left of it in its row, UNet^e only the encoder's.

    Args:
        classes: K.
        width: Channels of the first level, doubled by each.
        depth: Of the largest UNet.
        dense: Whether it is UNet++.
    """

    def __init__(self, classes: int, width: int = 64, depth: int = 4, *, dense: bool):
        super().__init__()
        self.depth, self.dense = depth, dense
        widths = [width * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(DoubleConv(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        places = [(d - j, j) for d in range(1, depth + 1) for j in range(1, d + 1)]  # (level, column)
        self.ups = nn.ModuleDict({f"{i}_{j}": up(widths[i + 1], widths[i]) for i, j in places})
        self.nodes = nn.ModuleDict(
            {f"{i}_{j}": DoubleConv((j + 1 if dense else 2) * widths[i], widths[i]) for i, j in places}
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in range(depth))

    def top_nodes(self, x: Tensor) -> list[Tensor]:
        """Features at full resolution of the UNets, the shallowest first: (B, f, H, W) each."""
        rows = [[node] for node in encoded(self.encoder, x)]
        for d in range(1, self.depth + 1):
            for j in range(1, d + 1):
                i = d - j
                left = rows[i] if self.dense else rows[i][:1]
                raised = self.ups[f"{i}_{j}"](rows[i + 1][j - 1])
                rows[i].append(self.nodes[f"{i}_{j}"](torch.cat([*left, raised], dim=1)))
        return rows[0][1:]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> logits of each UNet (B, K, H, W), the shallowest first."""
        return [head(node) for head, node in zip(self.heads, self.top_nodes(x), strict=True)]


def encoded(encoder: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """The nodes of an encoder: (B, c_i, H / 2^i, W / 2^i) of each level i."""
    nodes: list[Tensor] = []
    for level, block in enumerate(encoder):
        nodes.append(block(functional.max_pool2d(nodes[-1], 2) if level else x))
    return nodes


def mean_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """What several heads say together: the mean of their probabilities (B, K, H, W)."""
    return torch.stack([head.softmax(dim=1) for head in logits]).mean(dim=0)


def baseline(name: str, classes: int, width: int, depth: int) -> nn.Module:
    """A network to compare with, which gives a list of maps of logits.

    Args:
        name: unet, unete or unetpp (all with transposed convolutions), or unet_bilinear.
        classes: K.
        width: Channels of the first level.
        depth: How often the resolution is halved.
    """
    if name in ("unete", "unetpp"):
        return NestedUNet(classes, width, depth, dense=name == "unetpp")
    return UNet(classes, width, depth, how="bilinear" if name == "unet_bilinear" else "transposed")
