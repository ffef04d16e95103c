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


def _normalised(module: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """The training pass of several workers: statistics of all their samples, running ones updated with them."""
    shape = [1, -1, *([1] * (x.dim() - 2))]
    axes = [0, *range(2, x.dim())]
    wide = x.float()
    count = x.numel() / x.shape[1]
    # Shifted by what is known before, so that the difference of two large sums does not lose the variance.
    assert module.running_mean is not None
    assert module.running_var is not None
    shift = module.running_mean.detach().float()
    centred = wide - shift.view(shape)
    sums = torch.cat([centred.sum(axes), centred.square().sum(axes), centred.new_tensor([count])])
    channels = x.shape[1]
    sums = _AllReduce.apply(sums)  # type: ignore[no-untyped-call]
    total = sums[-1].detach()
    if total <= 1:
        raise ValueError(f"batch normalisation needs more than one value per channel to train; it got {tuple(x.shape)}")
    mean = sums[:channels] / total
    variance = (sums[channels:-1] / total - mean.square()).clamp_min(0)
    with torch.no_grad():
        momentum = module.momentum if module.momentum is not None else 0.1
        module.running_mean.lerp_((mean + shift).to(module.running_mean.dtype), momentum)
        unbiased = variance * (total / (total - 1))
        module.running_var.lerp_(unbiased.to(module.running_var.dtype), momentum)
        assert module.num_batches_tracked is not None
        module.num_batches_tracked += 1
    out: Tensor = (centred - mean.view(shape)) * torch.rsqrt(variance + module.eps).view(shape)
    if module.affine:
        out = out * module.weight.view(shape) + module.bias.view(shape)
    return out.to(x.dtype)


def _is_shared() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, whose batch is that of all workers while it trains."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if not (self.training and _is_shared()):
            return super().forward(x)
        return _normalised(self, x)


class BatchNorm3d(nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, whose batch is that of all workers while it trains."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same shape."""
        if not (self.training and _is_shared()):
            return super().forward(x)
        return _normalised(self, x)
