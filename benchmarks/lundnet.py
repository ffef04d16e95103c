"""How fast LundNet trains: jets a second, forward and backward, against the literal form of its definition.

    python benchmarks/lundnet.py [--batch 256] [--rounds 5] [--steps 3] [--json FILE]

The literal form computes every message from its edge (Theta (x_v - x_u) + Phi x_u) and adds them up with index_add.
Both have the same weights and are timed in the same run on one thread, in turns, by the processor time of this process;
best of the rounds. Says also how far their logits and gradients are apart.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from benchmarks.claims import table
from benchmarks.declustering import jets_like_pythia
from trainables.jetlov.declustering import Cuts
from trainables.jetlov.model import EdgeConv, Tagger
from trainables.jetlov.settings import ModelConfig
from trainables.jetlov.trees import Batch, build


def literal_edge_conv(block: EdgeConv, x: Tensor, batch: Batch) -> Tensor:
    """A block of LundNet as it is defined (section 3.1 of the reference notes)."""
    child = torch.arange(len(batch), len(x), device=x.device)
    source, target = torch.cat([batch.parent, child]), torch.cat([child, batch.parent])
    e = block.theta(x[target] - x[source]) + block.phi(x[source])
    e = F.relu(block.norms[0](e))
    e = F.relu(block.norms[1](block.linear(e)))
    count = x.new_zeros(len(x)).index_add(0, target, x.new_ones(len(target))).clamp_min(1)
    total = x.new_zeros(len(x), e.shape[1]).index_add(0, target, e)
    kept = x if block.shortcut is None else block.shortcut(x)
    return F.relu(total / count[:, None] + kept)


def literal(tagger: Tagger, batch: Batch) -> Tensor:
    """Logits (J, 2) of a tagger by the literal form."""
    net, outputs = tagger.lundnet, []
    x = net.norm(tagger.variables(batch))
    for block in net.blocks:
        assert isinstance(block, EdgeConv)
        x = literal_edge_conv(block, x, batch)
        outputs.append(x)
    if net.fusion is not None:
        x = net.fusion(torch.cat(outputs, dim=1))
    total = x.new_zeros(len(batch), x.shape[1]).index_add(0, batch.tree, x)
    logits: Tensor = net.head(total / (batch.below[:, None] + 1))
    return logits


def _gradients(tagger: Tagger, batch: Batch, forward: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    tagger.zero_grad()
    logits = forward()
    F.cross_entropy(logits, batch.label).backward()  # type: ignore[no-untyped-call]
    return logits.detach(), torch.cat([p.grad.flatten() for p in tagger.parameters() if p.grad is not None])


def main() -> None:
    """Measures, compares and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    trees = build(jets_like_pythia(options.batch, 56.0), Cuts())
    batch = trees.take(trees.index, torch.device("cpu"))
    rows, found = [], {}
    for features in ("lund5", "lov"):
        torch.manual_seed(0)
        tagger = Tagger(ModelConfig(features=features))
        ways = {"ours": lambda t=tagger: t(batch), "literal": lambda t=tagger: literal(t, batch)}
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(options.rounds):
            for name, forward in ways.items():
                start = time.process_time()
                for _ in range(options.steps):
                    _gradients(tagger, batch, forward)
                best[name] = min(best[name], (time.process_time() - start) / options.steps)
        (a, ga), (b, gb) = (_gradients(tagger, batch, forward) for forward in ways.values())
        apart, slopes = float((a - b).abs().max()), float((ga - gb).norm() / gb.norm())
        rates = [options.batch / best[name] for name in ("literal", "ours")]
        name = "LundNet-5" if features == "lund5" else "JetLOV"
        ratio = rates[1] / rates[0]
        rows.append([name, *(f"{rate:.0f}" for rate in rates), f"{ratio:.2f}", f"{apart:.1e}", f"{slopes:.1e}"])
        found[name] = {"literal": rates[0], "ours": rates[1]}
    head = ["jets a second, trained", "literal", "ours", "ratio", "logits apart", "gradients apart"]
    print(f"{options.batch} jets of {len(batch.raw) / len(batch):.0f} nodes\n\n{table(head, rows)}")
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
