"""LundNet, the network on the tree of splittings, and RegNet, the one that makes its variables.

Section 3 of the reference notes on JetLOV (arXiv 2311.14654); LundNet is that of arXiv 2012.08526.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pharos.errors import InputError
from trainables.common.batchnorm import BatchNorm1d
from trainables.common.weights import SETTING, check_shapes, read_weights
from trainables.jetlov.settings import LUND_COLUMNS, ModelConfig
from trainables.jetlov.trees import Batch

_SHALLOW = (0, 3)  # branches of a layer less: ln z and ln m, when they are trained to be those
_EPS = 1e-6  # GeV, in logarithms of masses


class EdgeConv(nn.Module):
    """A message along each edge of the trees, both ways, and their mean at each node (section 3.1).

    Every node but a root has one edge to the node before it, so the messages down the trees are rows in the nodes' own
    order and those up are too: there is no padding, and each sum over children is the adjoint of a look-up of parents.
    Linear maps are applied to nodes, not to edges: Theta (x_v - x_u) + Phi x_u = Theta x_v + (Phi - Theta) x_u.

    Args:
        before: Features of a node.
        after: The same of the output.
    """

    def __init__(self, before: int, after: int):
        super().__init__()
        self.theta = nn.Linear(before, after, bias=False)
        self.phi = nn.Linear(before, after, bias=False)
        self.norms = nn.ModuleList([BatchNorm1d(after), BatchNorm1d(after)])
        self.linear = nn.Linear(after, after, bias=False)
        self.shortcut: nn.Module | None = None
        if before != after:
            self.shortcut = nn.Sequential(nn.Linear(before, after, bias=False), BatchNorm1d(after))

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """(N, before) -> (N, after)."""
        trees = len(batch)
        receiving = self.theta(x)
        sending = self.phi(x) - receiving
        below_receiving, below_sending = receiving[trees:], sending[trees:]
        above = _from_parents(torch.cat([sending, receiving], dim=1), batch)
        above_sending, above_receiving = above.chunk(2, dim=1)
        e = torch.cat([below_receiving + above_sending, above_receiving + below_sending])
        e = functional.relu(self.norms[0](e))
        e = functional.relu(self.norms[1](self.linear(e)))
        down, up = e.chunk(2)
        total = _to_parents(up, batch) + functional.pad(down, (0, 0, trees, 0))
        kept = x if self.shortcut is None else self.shortcut(x)
        return functional.relu(total / batch.degree + kept)


def _from_parents(x: Tensor, batch: Batch) -> Tensor:
    out: Tensor = _FromParents.apply(x, batch.parent, batch.children)  # type: ignore[no-untyped-call]
    return out


def _to_parents(x: Tensor, batch: Batch) -> Tensor:
    out: Tensor = _ToParents.apply(x, batch.parent, batch.children)  # type: ignore[no-untyped-call]
    return out


class _FromParents(torch.autograd.Function):
    """What stands at the parent of each node that has one, (N, c) -> (N - J, c)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parent: Tensor, children: Tensor) -> Tensor:
        ctx.save_for_backward(children)
        return x.index_select(0, parent)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _sum_of_children(gradients[0], *ctx.saved_tensors), None, None


class _ToParents(torch.autograd.Function):
    """The sum over each node's children, (N - J, c) -> (N, c): in a fixed order on any device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parent: Tensor, children: Tensor) -> Tensor:
        ctx.save_for_backward(parent)
        return _sum_of_children(x, children)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0].index_select(0, *ctx.saved_tensors), None, None


def _sum_of_children(x: Tensor, children: Tensor) -> Tensor:
    """Rows of x by `children` (N, 2), whose 0 is no child."""
    # embedding_bag knows no bf16 everywhere; the sum of two rows is taken in fp32.
    padded = functional.pad(x.float(), (0, 0, 1, 0))
    return functional.embedding_bag(children, padded, mode="sum", padding_idx=0).to(x.dtype)


class LundNet(nn.Module):
    """Features of the splittings of trees -> logits of background and signal (section 3.2).

    Args:
        features: Of a node.
        channels: Of each block.
        hidden: Of the head.
        dropout: In the head.
        use_fusion: Whether all blocks' outputs are brought together; else the last one's is used alone.
    """

    def __init__(self, features: int, channels: list[int], *, hidden: int, dropout: float, use_fusion: bool):
        super().__init__()
        self.norm = BatchNorm1d(features)
        self.blocks = nn.ModuleList(
            EdgeConv(before, after) for before, after in zip([features, *channels[:-1]], channels, strict=True)
        )
        self.fusion: nn.Module | None = None
        width = channels[-1]
        if use_fusion:
            width = min(max(sum(channels) // 128 * 128, 128), 1024)
            self.fusion = nn.Sequential(nn.Linear(sum(channels), width), nn.ReLU(), BatchNorm1d(width))
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 2))

    def forward(self, features: Tensor, batch: Batch) -> Tensor:
        """(N, features) -> logits (J, 2)."""
        x = self.norm(features)
        outputs = []
        for block in self.blocks:
            x = block(x, batch)
            outputs.append(x)
        if self.fusion is not None:
            x = self.fusion(torch.cat(outputs, dim=1))
        logits: Tensor = self.head(_mean_of_trees(x, batch))
        return logits


def _mean_of_trees(x: Tensor, batch: Batch) -> Tensor:
    """(N, c) -> (J, c), in fp32."""
    below = torch.segment_reduce(x[len(batch) :].float(), "sum", lengths=batch.below, axis=0, unsafe=True)
    return (x[: len(batch)].float() + below) / (batch.below[:, None] + 1)


class FullLinear(nn.Linear):
    """A linear map in true fp32: neither autocast nor TF32, forward and backward.

    The angles of two subjets differ in their fourth digit, which is gone in half precision (section 8).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = _FullLinear.apply(x.float(), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out


class _FullLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        with _ieee():
            return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        with _ieee():
            to_x = gradients[0] @ weight if ctx.needs_input_grad[0] else None
            return to_x, gradients[0].T @ x, gradients[0].sum(0)


@contextlib.contextmanager
def _ieee() -> Iterator[None]:
    """Matrix products as their fp32 operands say, whatever the process allows."""
    kinds: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


class RegNet(nn.Module):
    """The two subjets of a splitting -> the variables of the splitting (section 3.3).

    Args:
        kind: branched (a network for each variable), or shared.
        variables: How many it makes.
        hidden: Width of its layers.
        depth: Hidden layers; the branches of ln z and ln m have one less, if they can.
        dropout: After each hidden layer.
    """

    def __init__(self, kind: str, variables: int, hidden: int, depth: int, dropout: float):
        super().__init__()
        if kind == "branched":
            depths = [max(1, depth - (index in _SHALLOW)) for index in range(variables)]
            self.branches = nn.ModuleList(_perceptron(hidden, each, 1, dropout) for each in depths)
        else:
            self.branches = nn.ModuleList([_perceptron(hidden, depth, variables, dropout)])

    def forward(self, raw: Tensor) -> Tensor:
        """(N, 8) -> (N, variables), fp32."""
        return torch.cat([branch(raw) for branch in self.branches], dim=1)


def _perceptron(hidden: int, depth: int, outputs: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [FullLinear(hidden if index else 8, hidden), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, FullLinear(hidden, outputs))


class Tagger(nn.Module):
    """Trees -> logits: LundNet on Lund variables, on raw momenta, or on what RegNet makes of these.

    Args:
        config: Which of them, and how large.
        features: Of `config`, or what is to be trained beforehand.
    """

    def __init__(self, config: ModelConfig, features: str = ""):
        super().__init__()
        self._features, self._form = features or config.features, config.raw_form
        self.regnet = make_regnet(config) if self._features == "lov" else None
        self.lundnet = LundNet(
            config.inputs(self._features),
            config.channels,
            hidden=config.fc_hidden,
            dropout=config.fc_dropout,
            use_fusion=config.use_fusion,
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits (J, 2)."""
        return cast(Tensor, self.lundnet(self.variables(batch), batch))

    def variables(self, batch: Batch) -> Tensor:
        """What LundNet is given, (N, features), fp32."""
        if self._features in LUND_COLUMNS:
            return batch.lund[:, LUND_COLUMNS[self._features]]
        raw = raw_form(batch, self._form)
        return raw if self.regnet is None else cast(Tensor, self.regnet(raw))


def make_regnet(config: ModelConfig) -> RegNet:
    """The network of a configuration."""
    return RegNet(config.regnet_kind, config.n_vars, config.regnet_hidden, config.regnet_depth, config.regnet_dropout)


def raw_form(batch: Batch, form: str) -> Tensor:
    """The momenta of each splitting's two subjets in one of their forms, (N, 8), the harder first.

    Args:
        batch: Trees.
        form: ptetaphim (as they are stored), pxpypzE, or relative_log: ln pT, pseudorapidity and azimuth (wrapped)
            relative to the jet's first splitting, and the logarithm of the mass's size.
    """
    if form == "ptetaphim":
        return batch.raw
    pt, eta, phi, mass = batch.raw.view(-1, 2, 4).unbind(2)
    px, py, pz = pt * phi.cos(), pt * phi.sin(), pt * eta.sinh()
    if form == "pxpypzE":
        energy = (px**2 + py**2 + pz**2 + mass * mass.abs()).clamp_min(0).sqrt()
        return torch.stack([px, py, pz, energy], dim=2).flatten(1)
    axis = torch.stack([px, py, pz], dim=2)[: len(batch)].sum(1)
    axis_pt = axis[:, 0].hypot(axis[:, 1]).clamp_min(_EPS)
    axis_eta, axis_phi = (axis[:, 2] / axis_pt).asinh(), torch.atan2(axis[:, 1], axis[:, 0])
    tree = batch.tree
    is_real = pt > 0  # jets without a splitting have one of zeros
    turned = phi - axis_phi[tree, None]
    turned = turned - 2 * torch.pi * (turned / (2 * torch.pi)).round()
    parts = (pt.clamp_min(_EPS).log(), eta - axis_eta[tree, None], turned, (mass.abs() + _EPS).log())
    return torch.where(is_real[..., None], torch.stack(parts, dim=2), 0.0).flatten(1)


_PUBLIC = (
    # The names in the files of fdreyer/LundNet and GiorgioCerro/jetlov -> ours
    (r"^network_a\.", "regnet."),
    (r"^network_b\.", "lundnet."),
    (r"^branches\.", "regnet.branches."),
    (r"^(bn_fts|edge_convs|fusion_block|fc)\.", r"lundnet.\1."),
    (r"^lundnet\.bn_fts\.", "lundnet.norm."),
    (r"^lundnet\.fusion_block\.", "lundnet.fusion."),
    (r"^lundnet\.fc\.0\.0\.", "lundnet.head.0."),
    (r"^lundnet\.fc\.1\.", "lundnet.head.3."),
    (r"^lundnet\.edge_convs\.(\d+)\.fcs\.0\.", r"lundnet.blocks.\1.linear."),
    (r"^lundnet\.edge_convs\.(\d+)\.bns\.", r"lundnet.blocks.\1.norms."),
    (r"^lundnet\.edge_convs\.(\d+)\.sc\.", r"lundnet.blocks.\1.shortcut.0."),
    (r"^lundnet\.edge_convs\.(\d+)\.sc_bn\.", r"lundnet.blocks.\1.shortcut.1."),
    (r"^lundnet\.edge_convs\.", "lundnet.blocks."),
)


def load_public(tagger: Tagger, url: str) -> list[str]:
    """Takes up trained weights: of LundNet, of RegNet, or of both, under our names or the authors' (see README.md).

    Args:
        tagger: Whose parts.
        url: A state dict of `torch.save`, or safetensors.

    Returns:
        Which parts the file had: lundnet, regnet.

    Raises:
        InputError: It is no such file, or does not fit.
    """
    found = {_our_name(name): value for name, value in read_weights(url).items()}
    ours = tagger.state_dict()
    parts = sorted({name.partition(".")[0] for name in found})
    if not parts or not set(parts) <= {name.partition(".")[0] for name in ours}:
        has = ", ".join(sorted({name.partition(".")[0] for name in ours}))
        raise InputError(f"{SETTING}={url}: has {', '.join(parts) or 'nothing'}, this network has {has}")
    wanted = {name: value for name, value in ours.items() if name.partition(".")[0] in parts}
    if wrong := sorted(wanted.keys() ^ found.keys()):
        side = "is missing" if wrong[0] in wanted else "is not in this network"
        raise InputError(f"{SETTING}={url}: {wrong[0]} {side} ({len(wrong)} such names)")
    check_shapes(found, wanted, url)
    tagger.load_state_dict({**ours, **found})
    return parts


def _our_name(name: str) -> str:
    for pattern, ours in _PUBLIC:
        name = re.sub(pattern, ours, name)
    return name
