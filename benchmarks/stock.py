"""The family `tipsy` trained without Pharos, trial after trial, for `benchmarks/overhead.py`.

    python benchmarks/stock.py bare JOB     a plain PyTorch loop in one process: the floor
    python benchmarks/stock.py ray JOB      stock Ray Tune and Ray Train, each trial a DeepSpeed ZeRO-1 run over Gloo

JOB is a JSON file: `config` (the recipe's whole configuration), `trials`, `workers` (ray), `folder` (for what they
write) and `times` (a file that gets one JSON line a trial: `started_at`, the wall-clock time of the first training
step, and `reports`, that of the end of each epoch, evaluation included).

The ray job is what the documentation of Ray Train V2 shows for tuning: a Tuner over a plain function that builds a
TorchTrainer, whose TuneReportCallback brings the metrics back. It departs from it in two ways, both in its favour: the
optimisers are PyTorch's, and DeepSpeed is told that its shared-memory operation does not exist, so that neither is
compiled in a trial; over Gloo no training step uses that operation.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pharos.engines.optimizers import OptimConfig, make_optimizer
from pharos.recipe import build_config
from trainables.common.pose.adversarial import critic_objective, generator_objective
from trainables.common.pose.augmentation import chance, flipped
from trainables.common.pose.data import Poses, open_poses
from trainables.common.pose.evaluation import CollapseGuard, Judge
from trainables.common.pose.geometry import draw_rotations
from trainables.common.pose.networks import Critic
from trainables.tipsy.recipe import TipsyConfig, generator_networks, objective_settings

Job = dict[str, Any]
Times = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One of the two networks, and how it is trained.

    Attributes:
        module: The network.
        forward: What is called where its parameters get gradients: the network itself, or what wraps it.
        step: One update from a scalar loss.
        save: Writes weights and moments to a path.
    """

    module: nn.Module
    forward: Callable[[Tensor], Tensor]
    step: Callable[[Tensor], None]
    save: Callable[[str], object]


def networks(config: TipsyConfig) -> tuple[nn.Module, nn.Module]:
    """The generators and the critic, as the recipe builds them."""
    critic = Critic(config.data.joints, config.critic_width, config.critic_blocks, activation=config.activation)  # type: ignore[arg-type]
    return generator_networks(config), critic


def plain(module: nn.Module, optim: OptimConfig) -> Part:
    """A network trained in plain PyTorch."""
    optimizer = make_optimizer(module, optim)

    def step(loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return Part(module, module, step, lambda path: torch.save((module.state_dict(), optimizer.state_dict()), path))


def zero(module: nn.Module, optim: OptimConfig, batch_size: int) -> Part:
    """A network trained by DeepSpeed, ZeRO-1; `batch_size` is a worker's."""
    import deepspeed  # type: ignore[import-untyped]
    from deepspeed.ops import __compatible_ops__ as operations  # type: ignore[import-untyped]

    operations["deepspeed_shm_comm"] = False  # see above
    settings = {
        "train_micro_batch_size_per_gpu": batch_size,
        "zero_optimization": {"stage": 1},
        "steps_per_print": None,
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=make_optimizer(module, optim), config=settings)

    def step(loss: Tensor) -> None:
        engine.backward(loss)
        engine.step()

    return Part(module, engine, step, engine.save_checkpoint)


def train(
    config: TipsyConfig,
    poses: Poses,
    generators: Part,
    critic: Part,
    *,
    report: Callable[[dict[str, float]], None],
    rank: int = 0,
    workers: int = 1,
) -> Times:
    """The steps and evaluations of the recipe's adversarial stage; two generators, one critic step a step.

    Args:
        config: The recipe's configuration.
        poses: The data.
        generators: Two lifters that share nothing.
        critic: Of 2D poses.
        report: Gets an epoch's metrics; the epoch's time is taken before.
        rank: Which worker this is; each takes its share of every batch.
        workers: How many they are.

    Returns:
        `started_at` and `reports`, see above.
    """
    x_train, device = poses.train.x, torch.device("cpu")
    judge, guard = Judge(poses, device), CollapseGuard({}, config.gan_loss)
    objective = objective_settings(config)
    started_at, reports = 0.0, []
    for epoch in range(config.epochs):
        shared = torch.Generator().manual_seed(epoch)
        local = torch.Generator().manual_seed(workers * epoch + rank)
        order = torch.randperm(len(x_train), generator=shared)
        sums: dict[str, Tensor] = {}
        started_at = started_at or time.time()
        starts = range(0, len(x_train) - config.batch_size + 1, config.batch_size)
        for start in starts:
            batch = x_train.index_select(0, order[start : start + config.batch_size][rank::workers])
            x = flipped(batch, config.flip, shared)
            swap = chance(config.label_flip, shared)
            view = draw(config, len(x), local)
            loss, critic_terms = critic_objective(generators.module, critic.forward, x, view, objective, swap=swap)
            critic.step(loss)
            # Gradients pass through the critic to the generators; none reaches its own parameters.
            critic.module.requires_grad_(False)
            view = draw(config, len(x), local)
            loss, generator_terms = generator_objective(generators.forward, critic.module, x, view, objective)
            generators.step(loss)
            critic.module.requires_grad_(True)
            for name, value in (critic_terms | generator_terms).items():
                sums[name] = sums[name] + value if name in sums else value
        means = {f"train/{name}": float(total) / len(starts) for name, total in sums.items()}
        generators.module.eval()
        with torch.no_grad():
            scores = judge.validation(generators.module) | means | {"collapsed": guard.update(means)}
            if epoch == config.epochs - 1:
                scores |= judge.relative_sign(generators.module) | judge.tests(generators.module)
        generators.module.train()
        reports.append(time.time())
        report(scores)
    return {"started_at": started_at, "reports": reports}


def draw(config: TipsyConfig, count: int, generator: torch.Generator) -> Tensor:
    """New views (count, 3, 3)."""
    per: Any = config.rotation_per
    return draw_rotations(count, config.azimuth_max, config.elevation_max, per=per, generator=generator)


def write_times(job: Job, times: Times) -> None:
    """Appends a trial's line."""
    with Path(job["times"]).open("a") as file:
        file.write(json.dumps(times) + "\n")


def bare(job: Job) -> None:
    """All trials one after the other in this process, the data in memory; each saves its weights and moments once."""
    torch.set_num_threads(1)
    config: TipsyConfig = build_config(TipsyConfig, job["config"])
    poses = open_poses(config.data)
    for number in range(job["trials"]):
        torch.manual_seed(number)
        pair, judge = networks(config)
        generators, critic = plain(pair, config.optim), plain(judge, config.critic_optim)
        times = train(config, poses, generators, critic, report=lambda metrics: None)
        generators.save(f"{job['folder']}/generators-{number}.pt")
        critic.save(f"{job['folder']}/critic-{number}.pt")
        write_times(job, times)


def worker(job: Job) -> None:
    """What each worker of one Ray Train run does."""
    import ray.train

    torch.set_num_threads(1)
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    config: TipsyConfig = build_config(TipsyConfig, job["config"])
    poses = open_poses(config.data)
    share = config.batch_size // workers
    pair, judge = networks(config)
    generators, critic = zero(pair, config.optim, share), zero(judge, config.critic_optim, share)
    epochs = 0

    def report(metrics: dict[str, float]) -> None:
        nonlocal epochs
        epochs += 1
        if epochs < config.epochs:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            generators.save(f"{folder}/generators")
            critic.save(f"{folder}/critic")
            torch.distributed.barrier()
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    times = train(config, poses, generators, critic, report=report, rank=rank, workers=workers)
    if rank == 0:
        write_times(job, times)


def stock_ray(job: Job) -> None:
    """All trials by Ray Tune, one at a time, each a Ray Train run of its own.

    Raises:
        SystemExit: A trial failed.
    """
    import ray
    import ray.train
    import ray.train.torch
    import ray.tune
    from ray.tune.integration.ray_train import TuneReportCallback

    folder, workers = job["folder"], job["workers"]
    variables = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(workers)}
    # A trial's function asks for a CPU of its own beside its workers', though it only waits for them.
    ray.init(
        "local",
        num_cpus=workers + 2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": variables},
    )

    def trial(params: dict[str, float]) -> None:
        optim = {**job["config"]["optim"], "lr": params["lr"]}
        trainer = ray.train.torch.TorchTrainer(
            worker,
            train_loop_config={**job, "config": {**job["config"], "optim": optim}},
            scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=False),
            run_config=ray.train.RunConfig(
                name=f"train-{ray.tune.get_context().get_trial_id()}",
                storage_path=f"{folder}/train",
                callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call, list-item]
            ),
        )
        trainer.fit()

    tuner = ray.tune.Tuner(
        trial,
        param_space={"lr": ray.tune.loguniform(1e-4, 4e-4)},
        tune_config=ray.tune.TuneConfig(num_samples=job["trials"], max_concurrent_trials=1),
        run_config=ray.tune.RunConfig(name="tune", storage_path=f"{folder}/tune", verbose=0),
    )
    results = tuner.fit()
    ray.shutdown()  # type: ignore[no-untyped-call]
    if results.errors:
        raise SystemExit(str(results.errors[0]))


def main() -> None:
    """Runs one job."""
    kind, path = sys.argv[1:]
    os.environ["OMP_NUM_THREADS"] = "1"
    job = json.loads(Path(path).read_text())
    {"bare": bare, "ray": stock_ray}[kind](job)


if __name__ == "__main__":
    main()
