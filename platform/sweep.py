"""Searches a family's hyperparameters."""

from __future__ import annotations

import argparse
import json
import sys

from pharos.command import run_command
from pharos.families import families

_EPILOG = """\
settings are name=value and documented where they are defined, in platform/pharos/conf/:
  trials=16  seed=0  scale=small|paper  space=default  backend=tune|local
  hours=2  gpu_hours=8  stop_at=0.95  plateau=30      what ends it before the last trial
  sampler=multifidelity|tpe|gp|cmaes|nsga2|nsga3|quasi_random|random|grid
  scheduler=asha|promotion|hyperband|median|pbt|none  warm_start=auto|[SWEEP,...]
  'objective=[{metric: NAME, mode: min}, ...]'  'constraints={peak_memory_gb: "<= 20"}'
  storage.url=sweeps  tracking.mode=auto|online|offline  tracking=none
  notify.webhook=true  'notify.on=[end, breaker, stall]'     a message to the webhook in $PHAROS_WEBHOOK
  resources.workers=1  resources.cpus_per_worker=1  resources.gpus_per_worker=1  resources.concurrency=2
  engine=torch|deepspeed  engine.precision=fp32|bf16|fp16  engine.zero=0|1|2|3 (deepspeed)
  recipe.NAME=VALUE             fix a value of the family's recipe
  'recipe.NAME=interval(0, 1)'  search it; also tag(log, interval(1e-5, 1e-3)), range(1, 5), choice(a, b)
  data.NAME=VALUE               short for recipe.data.NAME=VALUE

examples:
  python platform/sweep.py --family tipsy
  python platform/sweep.py --family tipsy trials=50 'recipe.optim.lr=tag(log, interval(1e-5, 1e-3))' recipe.w_90=3
  python platform/sweep.py --resume tipsy-2026-11-22-a1b2
  python platform/sweep.py --extend tipsy-2026-11-22-a1b2 trials=+50
  python platform/sweep.py --extend tipsy-2026-11-22-a1b2 trials=+20 'recipe.w_90=interval(0, 20)'
  python platform/sweep.py --family tipsy --show-space
"""


def main(arguments: list[str]) -> int:
    """Starts, resumes or extends a sweep; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="sweep.py", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--family", help=f"start a sweep of this family: {', '.join(families())}")
    what.add_argument("--resume", metavar="SWEEP", help="finish a sweep that was stopped or crashed")
    what.add_argument(
        "--extend", metavar="SWEEP", help="add trials to a sweep (trials=+50), raise its limits, change its dimensions"
    )
    parser.add_argument(
        "--show-space", action="store_true", help="with --family: show what would be searched, and do nothing"
    )
    parser.add_argument("--json", action="store_true", help="print the summary alone on standard output")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings, see below")
    options = parser.parse_intermixed_args(arguments)

    # Imported late: --help and a mistyped flag need no torch.
    from pharos.backends import finish_sweep
    from pharos.console import closing
    from pharos.live import make_console
    from pharos.sweep import reopen, start

    if options.show_space:
        return _show_space(options)
    console = make_console(options.json)
    if options.family:
        sweep = start(options.family, options.settings, console)
    else:
        sweep = reopen(options.resume or options.extend, options.settings, console, extend=bool(options.extend))
    summary = finish_sweep(sweep)
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        print(closing(summary, sweep.storage.root, sweep.settings.trials))
    if sweep.search.fault:
        print(sweep.search.fault, file=sys.stderr)
        return 1
    if sweep.stopped_by_hand:
        return 130
    return 0 if summary["best"] else 1


def _show_space(options: argparse.Namespace) -> int:
    from pharos.config import make_plan
    from pharos.errors import InputError
    from pharos.space import show

    if not options.family:
        raise InputError("--show-space goes with --family; what a sweep searches is in its sweep.yaml")
    plan = make_plan(options.family, options.settings)
    if options.json:
        print(json.dumps([row.to_dict() for row in plan.space.explain(plan.defaults)], indent=2))
    else:
        print(show(plan.space, plan.defaults))
    return 0


if __name__ == "__main__":
    run_command(main)
