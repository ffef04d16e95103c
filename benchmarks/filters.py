"""What filters of Gaussian derivatives cost: images a second of whole networks, and each kind of layer by itself.

    python benchmarks/filters.py [--rounds 5] [--side 64] [--batch 4] [--json FILE]

Everything is timed in one run on one thread, in turns, by the processor time of this process, so that whatever else the
machine does counts for little; best of the rounds. Prints two Markdown tables:

    networks    images a second in use (evaluation, no gradients) and in training (forward and backward), against a UNet
                at equal input. "Plain" has its filters made anew in each call, as k x k convolutions: what the authors'
                code does. RSESF is used with 8 orientations and trained with one.
    layers      forward and backward of a layer, in ms: a plain grouped convolution of the same size whose weights are
                there, making the filters alone, the layer, and the layer in each of its two forms
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.claims import table
from trainables.common.histology import filters
from trainables.common.histology.branches import BranchLogits, OneBranch
from trainables.common.histology.filters import GaussianConv, ladder
from trainables.rsesf import recipe as rsesf
from trainables.seunet import recipe as seunet

_CLASSES = 5
_LAYERS = [
    # branches, channels before and after, side of the image, lowest scale
    *((3, 3, 8, 64, 0.5), (3, 4, 4, 64, 0.5), (3, 8, 8, 64, 0.5), (3, 16, 8, 64, 0.5), (3, 16, 16, 32, 0.5)),
    *((3, 32, 32, 16, 0.9), (4, 16, 16, 128, 0.4), (4, 64, 64, 32, 0.8)),
]


def _networks() -> dict[str, nn.Module]:
    small_rsesf: Any = {"width": 8, "branches": 3, "depth": 2, "sigma_low": 0.5}
    return {
        "UNet, 16 channels": OneBranch("unet_bilinear", _CLASSES, 16, 2),
        "SEUNet, 3 branches of 4": seunet.make_network(
            seunet.SEUNetConfig(branches=3, branch_width=4, depth=2), _CLASSES
        ),
        "SEUNet, 3 branches of 8": seunet.make_network(
            seunet.SEUNetConfig(branches=3, branch_width=8, depth=2), _CLASSES
        ),
        "RSESF, 3 scales of 8": rsesf.make_network(rsesf.RSESFConfig(**small_rsesf), _CLASSES),
    }


@contextmanager
def _plain() -> Iterator[None]:
    """Within the block, every call of a layer makes its filters and convolves with them."""

    def filtered(self: GaussianConv, x: Tensor, angle: float) -> Tensor:
        return filters._direct(x, self.filters(angle))

    with patch.object(GaussianConv, "_filtered", filtered):
        yield


def _train(network: nn.Module, x: Tensor, y: Tensor) -> None:
    network.train()
    branches: BranchLogits = network(x)
    branches.loss(y).backward()  # type: ignore[no-untyped-call]


def _use(network: nn.Module, x: Tensor) -> None:
    if network.training:  # else filters that were kept would be forgotten
        network.eval()
    with torch.no_grad():
        network(x)


def _plainly(work: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with _plain():
            work()

    return run


def fastest(tasks: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Seconds of each task, the least of so many rounds, in which they take turns after one that is not counted."""
    seconds = dict.fromkeys(tasks, float("inf"))
    for turn in range(rounds + 1):
        for name, task in tasks.items():
            before = time.process_time()
            task()
            if turn:
                seconds[name] = min(seconds[name], time.process_time() - before)
    return seconds


def of_networks(rounds: int, side: int, batch: int) -> list[list[str]]:
    """The rows of the first table."""
    x, y = torch.rand(batch, 3, side, side), torch.randint(0, _CLASSES, (batch, side, side))
    rows = []
    networks = _networks()
    used = fastest(
        {
            name + how: (_plainly(work) if how else work)
            for name, network in networks.items()
            for work in [lambda network=network: _use(network, x)]
            for how in ("", "/plain")
        },
        rounds,
    )
    trained = fastest(
        {
            name + how: (_plainly(work) if how else work)
            for name, network in networks.items()
            for work in [lambda network=network: _train(network, x, y)]
            for how in ("", "/plain")
        },
        rounds,
    )
    unet = next(iter(networks))
    for name, network in networks.items():
        cells = [name, f"{sum(p.numel() for p in network.parameters()):,}"]
        for seconds in (used, trained):
            ours, plain = seconds[name], seconds[f"{name}/plain"]
            cells += [f"{batch / ours:.0f}", f"{seconds[unet] / ours:.2f}"]
            cells += [f"{plain / ours:.1f}" if name != unet else ""]
        rows.append(cells)
    return rows


def of_layers(rounds: int, batch: int) -> list[list[str]]:
    """The rows of the second table."""
    rows = []
    for branches, inputs, outputs, side, low in _LAYERS:
        layer = GaussianConv(inputs, outputs, ladder("arithmetic", low, 0.4, branches), truncation=2.5)
        x = torch.rand(branches, batch, inputs, side, side, requires_grad=True)
        stacked = x.detach().transpose(0, 1).flatten(1, 2).requires_grad_()
        weights = layer.filters().detach().flatten(0, 1).requires_grad_()
        k = weights.shape[-1]

        def plain(stacked: Tensor = stacked, weights: Tensor = weights, k: int = k, branches: int = branches) -> None:
            _back(nn.functional.conv2d(stacked, weights, padding=k // 2, groups=branches))

        def of(form: str, layer: GaussianConv = layer, x: Tensor = x, side: int = side) -> None:
            if form == "filters":
                _back(layer.filters())
            elif form == "layer":
                _back(layer(x))
            elif form == "direct":
                _back(filters._direct(x, *layer._make("filters", 0.0)))
            else:
                _back(filters._separable(x, *layer._make("bands", 0.0, side, side)))

        names = ("filters", "layer", "direct", "separable")
        found = fastest({"plain": plain, **{name: functools.partial(of, name) for name in names}}, rounds)
        milliseconds = [f"{1000 * found[name]:.1f}" for name in ("plain", *names)]
        taken = "separable" if layer._is_separable(side, side) else "direct"
        ratio = found["layer"] / (found["plain"] + found["filters"])
        rows.append([f"{branches} x ({inputs} -> {outputs}), {side} px, k={k}", *milliseconds, taken, f"{ratio:.2f}"])
    return rows


def _back(y: Tensor) -> None:
    y.sum().backward()  # type: ignore[no-untyped-call]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="best of so many")
    parser.add_argument("--side", type=int, default=64, help="of the networks' images, in pixels")
    parser.add_argument("--batch", type=int, default=4, help="images at a time")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    networks = of_networks(options.rounds, options.side, options.batch)
    layers = of_layers(options.rounds, options.batch)
    head = ["network", "parameters"]
    head += [
        cell for how in ("used", "trained") for cell in (f"{how}, images/s", "of UNet's", "times as fast as plain")
    ]
    print(table(head, networks))
    head = ["layer", "plain convolution, ms", "filters alone", "layer", "direct form", "separable form", "taken"]
    print("\n" + table([*head, "layer / (plain + filters)"], layers))
    if options.json:
        Path(options.json).write_text(json.dumps({"networks": networks, "layers": layers}, indent=1))


if __name__ == "__main__":
    main()
