"""Batch normalisation over the batch of all workers, on any device.

PyTorch's own synchronised one needs GPUs. Here a batch is one batch however many workers share it, so that a trial on
several of them trains as it would on one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _AllReduce(torch.autograd.Function):
    """The sum over workers; each one's gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def normalised(
    module: nn.modules.batchnorm._BatchNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """The training pass of several workers: statistics of all their samples, running ones updated with them.

    Args:
        module: Whose statistics.
        x: (B, C, …).
        weight: Gain of each channel, (C,); None: 1.
        bias: Shift of each channel, (C,); None: 0.

    Returns:
        As `x`.
    """
    channels, shape = x.shape[1], [1, -1, *([1] * (x.dim() - 2))]
    axes = [0, *range(2, x.dim())]
    wide = x.float()
    count = x.numel() // channels
    mean = wide.mean(axes)
    spread = (wide - mean.view(shape)).square().sum(axes).double()
    # In float64, so that the difference of two large sums does not lose the variance.
    mean = mean.double()
    sums = torch.cat([count * mean, spread + count * mean.square(), mean.new_tensor([count])])
    sums = _AllReduce.apply(sums)  # type: ignore[no-untyped-call]
    total = sums[-1].detach()
    if total <= 1:
        raise ValueError(f"batch normalisation needs more than one value per channel to train; it got {tuple(x.shape)}")
    mean = sums[:channels] / total
    variance = (sums[channels:-1] / total - mean.square()).clamp_min(0)
    _average_in(module, mean.detach(), variance.detach() * (total / (total - 1)))
    scale = torch.rsqrt(variance + module.eps).float()
    out: Tensor = (wide - mean.float().view(shape)) * scale.view(shape)
    if weight is not None:
        out = out * weight.view(shape)
    if bias is not None:
        out = out + bias.view(shape)
    return out.to(x.dtype)


def _average_in(module: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert module.running_mean is not None
    assert module.running_var is not None
    assert module.num_batches_tracked is not None
    module.num_batches_tracked += 1
    # Without a momentum they are means over all batches, as in PyTorch.
    momentum = module.momentum if module.momentum is not None else 1 / float(module.num_batches_tracked)
    module.running_mean.lerp_(mean.to(module.running_mean.dtype), momentum)
    module.running_var.lerp_(variance.to(module.running_var.dtype), momentum)


def is_shared() -> bool:
    """Whether several workers train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, whose batch is that of all workers while it trains."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if not (self.training and is_shared()):
            return super().forward(x)
        return normalised(self, x, self.weight, self.bias)


class BatchNorm3d(nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, whose batch is that of all workers while it trains."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same shape."""
        if not (self.training and is_shared()):
            return super().forward(x)
        return normalised(self, x, self.weight, self.bias)
