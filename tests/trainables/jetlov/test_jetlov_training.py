"""Training: stages, domains, the generator's command, and Pythia's own jets where it is installed."""

from pathlib import Path

import numpy as np
import pytest

from pharos.cache import configure
from pharos.config import make_plan
from pharos.recipe import build_config
from pharos.run import Run
from pharos.storage import StorageConfig
from trainables.jetlov import generate as command
from trainables.jetlov.data import open_study
from trainables.jetlov.declustering import Cuts, decluster
from trainables.jetlov.jets import save
from trainables.jetlov.recipe import Jetlov, _regressed
from trainables.jetlov.settings import JetDataConfig, JetlovConfig, ModelConfig, RegressConfig
from trainables.jetlov.toy import make_jets


def train(**changes):
    plan = make_plan("jetlov", ["scale=tiny", "tracking=none"])
    config = build_config(JetlovConfig, plan.trial_config({f"recipe.{k}": v for k, v in changes.items()}))
    reports = []
    run = Run(seed=1, objective="val/auc", on_report=reports.append)
    Jetlov().train(run, config)
    assert reports[-1].fidelity == Jetlov().fidelity(config)
    return run, reports[-1].metrics


def test_the_stages_follow_each_other_and_a_frozen_regnet_stays():
    run, metrics = train(**{"model.regnet_frozen": True})
    assert set(run._learners) == {"regnet", "lundnet", "tagger"}
    before, after = run.state["regnet"]["network"], run._learners["tagger"].weights()
    assert all((after[name] == value).all() for name, value in before.items())
    lundnet = run.state["lundnet"]["network"]
    assert any((after[name] != value).any() for name, value in lundnet.items() if name.startswith("lundnet."))
    assert {"test/auc", "test/rejection_0.5", "variable/4/r2", "effective_rank"} <= set(metrics)


def test_baselines_need_no_stage_and_other_domains_are_told():
    run, metrics = train(**{"model.features": "lund3", "data.domains": "nominal+alpha118", "data.others": "ue"})
    assert set(run._learners) == {"tagger"}
    assert {"val/worst_gap", "test/gap/ue", "test/zeta/ue", "test/auc/alpha118"} <= set(metrics)
    assert "test/gap/alpha118" not in metrics


def test_the_best_epoch_s_network_is_what_stays():
    run, metrics = train(keep="auc", epochs=4, **{"optim.lr": 0.02})
    assert metrics["val/auc"] == run.state["tagger"]["value"]


def test_stage_r_learns_the_lund_variables():
    run, reports = Run(seed=1), []
    run._on_report = reports.append
    config = JetlovConfig(
        data=JetDataConfig(source="toy", train=3000, val=200, test=5),
        model=ModelConfig(regnet_kind="shared", regnet_hidden=48, raw_form="relative_log"),
        regress=RegressConfig(epochs=10, train=6000, nodes=256),
    )
    config.regress.optim.lr = 1e-2
    _regressed(run, config, open_study(config.data))
    r2 = [reports[-1].metrics[f"val/regression_r2/{k}"] for k in range(5)]
    assert min(r2[k] for k in (1, 3, 4)) > 0.9, r2


def test_shards_are_declustered_once_and_drawn_in_equal_numbers(tmp_path, monkeypatch):
    configure(StorageConfig(cache=str(tmp_path / "cache")))
    try:
        for split in ("train", "val", "test"):
            jets = make_jets("w", 20, "nominal", 0)
            for label, process in ((1, "w"), (0, "qcd")):
                own = jets.take(np.flatnonzero(jets.label == label))
                save(own, tmp_path / f"jets-{split}-{process}-nominal-0000.npz", {})
        config = JetDataConfig(source="shards", root=str(tmp_path), train=7, seed=3)
        study = open_study(config)
        assert np.bincount(study.train.label).tolist() == [7, 7]
        assert len(study.test["nominal"]) == 40
        monkeypatch.setattr("trainables.jetlov.data.build", None)  # it would be called again
        assert np.array_equal(open_study(config).train.raw, study.train.raw)
    finally:
        configure()


def test_every_shard_has_a_seed_of_its_own():
    shards = command.plan((100_000, 10_000, 20_000), ["qcd", "w", "top"], ["nominal", "mpi"], 0)
    assert len({shard.seed for shard in shards}) == len(shards) == 780
    assert len({shard.name for shard in shards}) == len(shards)
    assert sum(s.count for s in shards if s.split == "train" and s.process == "w") == 200_000
    assert all(1 <= shard.seed <= 900_000_000 for shard in shards)


def test_an_interrupted_generation_goes_on_with_what_is_missing(tmp_path, monkeypatch, capsys):
    made = []

    class Here:
        """A pool of this process."""

        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def shutdown(self, **kwargs):
            pass

        def submit(self, call, *args):
            from concurrent.futures import Future

            future = Future()
            future.set_result(call(*args))
            return future

    def make(shard: command.Shard, folder: Path) -> int:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(shard.name)
        save(make_jets("w", shard.count // 2, "nominal", shard.seed), folder / shard.name, {})
        return shard.count

    monkeypatch.setattr(command, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(command, "make", make)
    shards = command.plan((4, 4, 4), ["w"], ["nominal"], 0)
    (tmp_path / "jets-train-w-nominal-0009.part").touch()
    with pytest.raises(KeyboardInterrupt):
        command.make_all(shards, tmp_path, 1)
    made.pop(0)
    command.make_all(shards, tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(shard.name for shard in shards)
    assert "2 of 3 shards are there, 4 jets to make" in capsys.readouterr().out


def test_pythia_s_jets_look_like_its_w_and_qcd():
    pytest.importorskip("pythia8mc")
    from trainables.jetlov.pythia import PT_MIN, RAPIDITY, generate

    mass = {}
    for process in ("w", "qcd"):
        jets = generate(process, "nominal", 40, 11)
        total = np.add.reduceat(jets.p4.astype(np.float64), jets.offsets[:-1])
        pt, y = np.hypot(total[:, 0], total[:, 1]), np.arctanh(total[:, 2] / total[:, 3])
        assert (pt > PT_MIN * 0.999).all()
        assert (np.abs(y) < RAPIDITY).all()
        mass[process] = np.sqrt(total[:, 3] ** 2 - (total[:, :3] ** 2).sum(1))
        nodes = decluster(jets, Cuts())
        assert 20 < np.diff(jets.offsets).mean() < 80
        assert -3.5 < nodes.lund[:, 1].mean() < -2.4
    assert np.mean((mass["w"] > 65) & (mass["w"] < 105)) > 0.55
    assert np.mean((mass["qcd"] > 65) & (mass["qcd"] < 105)) < 0.45
    assert np.array_equal(generate("qcd", "nominal", 40, 11).p4, jets.p4)  # a seed is a shard
