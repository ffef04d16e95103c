"""JetLOV: a network on the tree of a jet's splittings, whose variables another network makes of the raw momenta.

Diaz, Cerro, Chaplais, Dasmahapatra, Moretti, "JetLOV: Enhancing Jet Tree Tagging through Neural Network Learning of
Optimal LundNet Variables", arXiv 2311.14654. Its text was read in the abstract alone; what that leaves open follows the
authors' public code (GiorgioCerro/jetlov). README.md lists the deviations and what we measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from pharos.learner import Learner
from pharos.recipe import Recipe
from pharos.run import Run
from trainables.jetlov.data import Study, open_study
from trainables.jetlov.evaluation import (
    correlations,
    describe,
    generalisation,
    learned_variables,
    rotation_violation,
    scores,
)
from trainables.jetlov.model import Tagger, load_public, make_regnet, raw_form
from trainables.jetlov.pictures import draw_correlations, draw_lund_planes, lund_density
from trainables.jetlov.settings import JetlovConfig
from trainables.jetlov.trees import Trees, some

Weights = dict[str, Tensor]

_SHOWN = 2000  # jets


class Jetlov(Recipe):
    """The stages of one trial: RegNet learns the Lund variables, LundNet learns to tag by them, then both together."""

    Config = JetlovConfig
    scales: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {
            "data.source": "toy",
            "data.train": 3000,
            "data.val": 1500,
            "data.test": 3000,
            # What a search for taggers that carry over compares them by.
            "data.others": "kt2+ue",
            "regress.epochs": 4,
            "regress.train": 3000,
            "regress.val": 500,
            "pretrain.epochs": 3,
            "epochs": 6,
            "batch_size": 128,
            "model.width": 16,
            "model.blocks": 4,
            "model.regnet_hidden": 64,
            "model.fc_hidden": 64,
            "keep": "auc",
        },
        "tiny": {
            "data.source": "toy",
            "data.train": 32,
            "data.val": 24,
            "data.test": 24,
            "regress.epochs": 1,
            "regress.nodes": 64,
            "regress.train": 40,
            "pretrain.epochs": 2,
            "epochs": 3,
            "batch_size": 64,
            "model.width": 8,
            "model.blocks": 2,
            "model.regnet_hidden": 8,
            "model.fc_hidden": 8,
            "model.fc_dropout": 0.0,
            # RegNet's last biases stand before a batch normalisation: their gradient is rounding alone, and Adam would
            # make whole steps of it, other ones with two workers than with one.
            "optim.eps": 1e-2,
            "pretrain.optim.eps": 1e-2,
            "regress.optim.eps": 1e-2,
            "model.raw_form": "relative_log",
            "keep": "last",
        },
    }

    def fidelity(self, config: JetlovConfig) -> int:
        stages = config.stages(_loaded(config))
        return config.regress.epochs * ("R" in stages) + config.pretrain.epochs * ("T" in stages) + config.epochs

    def check(self, config: JetlovConfig) -> None:
        _loaded(config)
        if config.data.root:
            open_study(config.data)

    def train(self, run: Run, config: JetlovConfig) -> None:
        study = run.cached(("jetlov", repr(config.data)), lambda: open_study(config.data))
        tagger = Tagger(config.model)
        loaded = load_public(tagger, config.model.weights) if config.model.weights else []
        stages = config.stages(loaded)
        if "R" in stages:
            _take_up(tagger, "regnet.", _regressed(run, config, study))
        if "T" in stages:
            _take_up(tagger, "lundnet.", _pretrained(run, config, study))

        if tagger.regnet is not None and config.model.regnet_frozen:
            tagger.regnet.requires_grad_(False)
        names = [name for name, _ in tagger.named_parameters() if name.startswith("regnet.")]
        learner = run.learner("tagger", tagger, config.optim, dict.fromkeys(names, config.regnet_lr_mult))
        for epoch in run.epochs("tag", config.epochs):
            for (chosen,) in epoch.batches((study.train.index,), config.batch_size):
                batch = study.train.take(chosen, run.device)
                learner.step(F.cross_entropy(learner(batch), batch.label))
            found = _validated(run, learner, study)
            _keep_best(run, "tagger", config.keep, found, learner)
            if epoch.index == config.epochs - 1:
                if config.keep != "last":
                    learner.load_weights(run.state["tagger"]["network"])
                    found = _validated(run, learner, study)
                found |= _tested(run, learner, study) | _looked_at(run, config, learner, study)
            epoch.report(found)


def _loaded(config: JetlovConfig) -> list[str]:
    return load_public(Tagger(config.model), config.model.weights) if config.model.weights else []


def _take_up(tagger: Tagger, prefix: str, weights: Weights) -> None:
    tagger.load_state_dict(tagger.state_dict() | {name: w for name, w in weights.items() if name.startswith(prefix)})


class _Regressor(nn.Module):
    """RegNet by the name it has in a tagger."""

    def __init__(self, config: JetlovConfig):
        super().__init__()
        self.regnet = make_regnet(config.model)

    def forward(self, raw: Tensor) -> Tensor:
        out: Tensor = self.regnet(raw)
        return out


def _regressed(run: Run, config: JetlovConfig, study: Study) -> Weights:
    """Stage R: RegNet's weights when its mean squared error of the Lund variables was least."""
    learner = run.learner("regnet", _Regressor(config), config.regress.optim)
    form = config.model.raw_form
    train = _nodes(study.train, config.regress.train, form, run.device)
    val = _nodes(next(iter(study.val.values())), config.regress.val, form, run.device)
    variance = val[1].var(0)
    for epoch in run.epochs("regress", config.regress.epochs):
        for raw, lund in epoch.batches(train, config.regress.nodes):
            learner.step(F.mse_loss(learner(raw), lund))
        with learner.evaluating():
            errors = torch.cat([learner(part) for part in val[0].split(2**14)]).sub(val[1]).square().mean(0)  # type: ignore[no-untyped-call]
        found = {"val/regression_mse": float(errors.mean())}
        found |= {f"val/regression_r2/{k}": float(1 - errors[k] / variance[k]) for k in range(len(errors))}
        _keep_best(run, "regnet", "regression", found, learner)
        # A trial has no score yet, and pruners compare those that are: this stage says what a coin would.
        epoch.report({"val/auc": 0.5} | found)
    weights: Weights = run.state["regnet"]["network"]
    return weights


def _nodes(trees: Trees, count: int, form: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Raw momenta (N, 8) and Lund variables (N, 5) of the splittings of so many jets, spread over all."""
    step = max(1, len(trees) // count)
    batch = trees.take(trees.index[::step][:count], device)
    is_real = batch.raw[:, 0] > 0
    return raw_form(batch, form)[is_real], batch.lund[is_real]


def _pretrained(run: Run, config: JetlovConfig, study: Study) -> Weights:
    """Stage T: LundNet's weights when it told jets apart best by the five Lund variables."""
    learner = run.learner("lundnet", Tagger(config.model, "lund5"), config.pretrain.optim)
    for epoch in run.epochs("pretrain", config.pretrain.epochs):
        for (chosen,) in epoch.batches((study.train.index,), config.batch_size):
            batch = study.train.take(chosen, run.device)
            learner.step(F.cross_entropy(learner(batch), batch.label))
        found = _validated(run, learner, study)
        _keep_best(run, "lundnet", config.keep, found, learner)
        epoch.report(found)
    weights: Weights = run.state["lundnet"]["network"]
    return weights


def _keep_best(run: Run, name: str, by: str, found: Mapping[str, float], learner: Learner) -> None:
    """Puts a learner's weights into the run's state if none before were better."""
    value = -found["val/regression_mse"] if by == "regression" else 0.0 if by == "last" else found[f"val/{by}"]
    best = run.state.get(name)
    if best is None or by == "last" or value > best["value"]:
        weights = {key: weight.cpu() for key, weight in learner.weights().items()}
        run.state[name] = {"value": value, "network": weights}


def _validated(run: Run, learner: Learner, study: Study) -> dict[str, float]:
    """val/accuracy, val/auc and val/rejection_…, of the domains that are trained on, and how it goes on others."""
    results = {name: (scores(run, learner, trees), trees.label) for name, trees in study.val.items()}
    return _of_all("val", results, study)


def _tested(run: Run, learner: Learner, study: Study) -> dict[str, float]:
    results = {name: (scores(run, learner, trees), trees.label) for name, trees in study.test.items()}
    return _of_all("test", results, study)


def _of_all(split: str, results: dict[str, Any], study: Study) -> dict[str, float]:
    own = [describe(*results[name]) for name in study.trained]
    found = {name: sum(each[name] for each in own) / len(own) for name in own[0]}
    if len(results) > 1:
        found |= generalisation(results, study.trained)
    return {f"{split}/{name}": value for name, value in found.items()}


def _looked_at(run: Run, config: JetlovConfig, learner: Learner, study: Study) -> dict[str, float]:
    """Pictures, and what the learned variables are."""
    trees = next(iter(study.test.values()))
    planes = {}
    for label, name in ((1, "signal"), (0, "background")):
        chosen = (trees.label == label).nonzero()[0][:_SHOWN]
        planes[name] = lund_density(some(trees, chosen))
    run.log_image("lund_plane", draw_lund_planes(planes))
    tagger = Tagger(config.model)
    tagger.load_state_dict(learner.weights())
    tagger.to(run.device).eval()
    batch = trees.take(trees.index[:256], run.device)
    found = {"rotation_violation": rotation_violation(tagger, batch)}
    found["parameters"] = float(sum(p.numel() for p in tagger.parameters()))
    if tagger.regnet is None:
        return found
    about, made, lund = learned_variables(tagger, trees, run.device)
    table = correlations(made, lund)
    r2 = [about[f"variable/{k}/r2"] for k in range(len(table))]
    run.log_image("learned_variables", draw_correlations(table, r2))
    for k, row in enumerate(table.tolist()):
        about |= {f"variable/{k}/correlation_{index}": round(value, 4) for index, value in enumerate(row)}
    return found | about
