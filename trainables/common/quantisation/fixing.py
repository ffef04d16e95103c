"""Layers whose weights can be fixed one by one: they compute with `where(mask, value, weight)`.

The mask and the values are buffers, so a fixed weight keeps its value whatever the optimiser does to the parameter
below it (moments, weight decay), and its gradient is exactly zero under DDP, every ZeRO stage, accumulation and
autocast, without a hook (sections 8 of the reference notes on WFN, arXiv 2210.13554, and PWFN, arXiv 2309.13575).

    network = make_fixable(network, include_bn=True)      # before run.learner; parameters keep their names
    learner = run.learner("network", network, optim)
    layout = Layout.of(network)                           # before the engine: ZeRO 3 leaves only pieces
    ...
    weights = learner.weights()                           # whole, and the same on every worker
    vector = layout.vector(weights)                       # flat fp32 in the network's order, as it computes with them
    learner.load_weights(layout.fixed(weights, values, mask))
    check_alike(run, values[mask])                        # all workers decided the same

Every worker makes the same decision from the same whole weights; no worker sends its decision to another.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from pharos.errors import PharosError
from pharos.run import Run
from trainables.common.batchnorm import BatchNorm2d, is_shared, normalised

MASK, VALUE = "_mask", "_value"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

Vector = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)


class Fixable(nn.Module):
    """Mixed into a layer: its fixable parameters have buffers `<name>_mask` and `<name>_value` beside them."""

    fixable: tuple[str, ...]
    observer: Callable[[Tensor, Tensor], None] | None = None
    """Is shown each parameter and its mask in a training step, where it is whole under every engine."""

    def make_fixable(self, *names: str) -> None:
        """Adds the buffers of these of its parameters; nothing is fixed yet."""
        self.fixable = tuple(name for name in names if getattr(self, name) is not None)
        for name in self.fixable:
            parameter = getattr(self, name)
            self.register_buffer(name + MASK, torch.zeros_like(parameter, dtype=torch.bool))
            self.register_buffer(name + VALUE, torch.zeros_like(parameter.detach()))

    def effective(self, name: str) -> Tensor | None:
        """The parameter as the layer computes with it; None if it has none of that name."""
        parameter: Tensor | None = getattr(self, name)
        if parameter is None or name not in self.fixable:
            return parameter
        mask: Tensor = getattr(self, name + MASK)
        if self.observer is not None and self.training and torch.is_grad_enabled():
            self.observer(parameter, mask)
        return torch.where(mask, getattr(self, name + VALUE), parameter)


class FixableLinear(Fixable, nn.Linear):
    """`nn.Linear` with fixable parameters."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.effective("weight")
        assert weight is not None
        return F.linear(x, weight, self.effective("bias"))


class _FixableConvolution(Fixable):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(x, self.effective("weight"), self.effective("bias"))  # type: ignore[operator]
        return out


class FixableConv1d(_FixableConvolution, nn.Conv1d):
    """`nn.Conv1d` with fixable parameters."""


class FixableConv2d(_FixableConvolution, nn.Conv2d):
    """`nn.Conv2d` with fixable parameters."""


class FixableConv3d(_FixableConvolution, nn.Conv3d):
    """`nn.Conv3d` with fixable parameters."""


class _FixableBatchNorm(Fixable):
    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self, nn.modules.batchnorm._BatchNorm)
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        weight, bias = self.effective("weight"), self.effective("bias")
        if self.training and is_shared():
            return normalised(self, x, weight, bias)
        momentum = self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # a mean over all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        is_own = self.training or self.running_mean is None
        return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, is_own, momentum or 0.0, self.eps)


class FixableBatchNorm1d(_FixableBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` with fixable parameters."""


class FixableBatchNorm2d(_FixableBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` with fixable parameters."""


KINDS: dict[type[nn.Module], type[Fixable]] = {
    nn.Linear: FixableLinear,
    nn.Conv1d: FixableConv1d,
    nn.Conv2d: FixableConv2d,
    nn.Conv3d: FixableConv3d,
    nn.BatchNorm1d: FixableBatchNorm1d,
    nn.BatchNorm2d: FixableBatchNorm2d,
    BatchNorm2d: FixableBatchNorm2d,
}
"""The fixable kind of each layer. A subclass of a key that is not itself one (a fused attention, say) is left alone."""


def make_fixable(network: nn.Module, *, include_bn: bool, include_bias: bool = True) -> nn.Module:
    """Makes a network's convolutions and linear layers fixable, in place; parameters keep their names.

    Args:
        network: On one device, before any engine has it.
        include_bn: Whether gamma and beta of batch normalisation are fixable, too.
        include_bias: Whether biases are (those of batch normalisation are its beta, and follow `include_bn`).

    Returns:
        The network.
    """
    for module in network.modules():
        kind = KINDS.get(type(module))
        if kind is None or (issubclass(kind, _FixableBatchNorm) and not include_bn):
            continue
        module.__class__ = kind
        assert isinstance(module, Fixable)
        is_norm = isinstance(module, _FixableBatchNorm)
        module.make_fixable("weight", *(["bias"] if include_bias or is_norm else []))
    return network


@dataclass(frozen=True)
class Layout:
    """Where each quantised parameter lies in the flat vector: in the order of the modules, then of the parameters."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    total: int
    """Parameters of the network, quantised or not."""

    @classmethod
    def of(cls, network: nn.Module) -> Layout:
        """The layout of a network with fixable layers; a layer that occurs twice counts once.

        Raises:
            ValueError: It has none, or two layers share a parameter, which each would fix on its own.
        """
        found = [
            (f"{prefix}.{name}".lstrip("."), getattr(module, name))
            for prefix, module in network.named_modules()
            if isinstance(module, Fixable)
            for name in module.fixable
        ]
        if not found or len({id(parameter) for _, parameter in found}) < len(found):
            raise ValueError("the network has no fixable layer, or two that share a parameter")
        shapes = tuple(tuple(parameter.shape) for _, parameter in found)
        return cls(tuple(name for name, _ in found), shapes, sum(p.numel() for p in network.parameters()))

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(self._counts)

    def parts(self) -> list[slice]:
        """Where each parameter lies, in the order of the names."""
        ends = np.cumsum([0, *self._counts]).tolist()
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    @property
    def _counts(self) -> list[int]:
        return [int(np.prod(shape)) for shape in self.shapes]

    def vector(self, weights: Mapping[str, Tensor], suffix: str = "") -> Vector:
        """The quantised weights as the network computes with them, (size,), fp32 on the CPU.

        Args:
            weights: The state of the network.
            suffix: Of another parameter beside each, such as its standard deviation: that one's, as it is.
        """
        parts = []
        for name in self.names:
            value = weights[name + suffix]
            if not suffix:
                value = torch.where(weights[name + MASK], weights[name + VALUE].to(value.dtype), value)
            parts.append(value.detach().reshape(-1).to("cpu", torch.float32))
        return torch.cat(parts).numpy()

    def mask(self, weights: Mapping[str, Tensor]) -> Mask:
        """Which of them are fixed, (size,)."""
        return torch.cat([weights[name + MASK].reshape(-1).cpu() for name in self.names]).numpy()

    def fixed(self, weights: Mapping[str, Tensor], values: Vector, mask: Mask) -> dict[str, Tensor]:
        """A state in which exactly the weights of the mask are fixed, at these values; the others are as they were.

        The parameters below are set as well, so that who reads them alone sees what the network computes with.
        """
        state = dict(weights)
        for name, value, fixed in zip(self.names, self._split(values), self._split(mask), strict=True):
            old = torch.where(weights[name + MASK], weights[name + VALUE].to(weights[name].dtype), weights[name])
            new = torch.from_numpy(value).to(old)
            chosen = torch.from_numpy(fixed).to(old.device)
            state[name] = torch.where(chosen, new, old)
            state[name + MASK] = chosen
            state[name + VALUE] = torch.where(chosen, new, torch.zeros_like(new))
        return state

    def written(self, weights: Mapping[str, Tensor], values: Vector) -> dict[str, Tensor]:
        """A state with other weights, in which nothing is fixed."""
        state = self.fixed(weights, values, np.ones(self.size, dtype=bool))
        free = {name + end: torch.zeros_like(state[name + end]) for name in self.names for end in (MASK, VALUE)}
        return state | free

    def _split(self, vector: npt.NDArray[Scalar]) -> list[npt.NDArray[Scalar]]:
        parts = np.split(vector, np.cumsum(self._counts)[:-1])
        return [np.ascontiguousarray(part.reshape(shape)) for part, shape in zip(parts, self.shapes, strict=True)]


def check_alike(run: Run, decided: npt.NDArray[np.generic]) -> None:
    """Makes sure that all workers have decided the same.

    Args:
        run: The trial's; all workers call this.
        decided: What was decided from the whole weights.

    Raises:
        PharosError: They have not; going on would train different models.
    """
    digest = hashlib.blake2b(np.ascontiguousarray(decided).tobytes(), digest_size=6).digest()
    mine = float(int.from_bytes(digest, "big"))  # below 2**48: sums of them are exact in float64
    if run.mean({"digest": mine})["digest"] != mine:
        raise PharosError("the workers fixed different weights: their devices or libraries differ; take equal ones")
