"""Trains one configuration: in this process, where breakpoints work, or on several workers (resources.workers).

With --top or --seeds: a sweep's finalists, each on several fresh seeds, as a sweep of their own.
"""

from __future__ import annotations

import argparse
import json

from pharos.command import run_command
from pharos.families import families

_EPILOG = """\
settings are name=value, as for sweep.py (python platform/sweep.py --help); a run is not tracked unless tracking=wandb

examples:
  python platform/train.py --family tipsy
  python platform/train.py --family tipsy scale=paper recipe.optim.lr=1e-4 engine.precision=bf16
  python platform/train.py --from tipsy-2026-11-22-a1b2
  python platform/train.py --from tipsy-2026-11-22-a1b2 --top 3 --seeds 5
  python platform/train.py --family tipsy scale=paper resources.workers=4 engine=deepspeed engine.zero=1
  python platform/train.py --resume tipsy-run-2026-11-22-c3d4
  python platform/train.py --from tipsy-2026-11-22-a1b2 --export best/
  python platform/train.py --from ads_unet-2026-11-23-b2c3 --predict slides/ --output predictions/
"""


def main(arguments: list[str]) -> int:
    """Trains or goes on with a run; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--family", help=f"train this family's own values: {', '.join(families())}")
    what.add_argument("--from", dest="sweep", metavar="SWEEP", help="train a sweep's best trial again")
    what.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped")
    parser.add_argument("--trial", metavar="N", help="with --from: this trial instead of the best")
    parser.add_argument(
        "--export",
        metavar="DIR",
        help="with --from or --resume: do not train, write the weights as safetensors (no DeepSpeed needed)",
    )
    parser.add_argument(
        "--predict",
        metavar="FOLDER",
        help="with --from or --resume: do not train, predict the files of this folder (families that can: see theirs)",
    )
    parser.add_argument("--output", metavar="DIR", help="with --predict: where predictions go (predictions/)")
    parser.add_argument(
        "--top",
        metavar="N",
        help="with --from: train the N best (3) on fresh seeds, and say whether the winner really wins; "
        "runs as the sweep did, and goes on with sweep.py --resume",
    )
    parser.add_argument("--seeds", metavar="N", help="with --from: fresh seeds for each of the finalists (5)")
    parser.add_argument("--json", action="store_true", help="print the result alone on standard output, as JSON")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings, see below")
    options = parser.parse_intermixed_args(arguments)

    # Imported late: --help and a mistyped flag need no torch.
    from pharos.errors import InputError
    from pharos.single import as_dict, closing, new_run, reopen_run, run_from_sweep
    from pharos.trial import Outcome

    if options.output and not options.predict:
        raise InputError("--output: says where the predictions of --predict FOLDER go")
    if options.top is not None or options.seeds is not None:
        return _finalists(options)
    if options.export or options.predict:
        return _use(options)
    if options.family:
        single = new_run(options.family, options.settings)
    elif options.sweep:
        single = run_from_sweep(options.sweep, options.trial, options.settings)
    else:
        single = reopen_run(options.resume, options.settings)
    ending = single.train()
    print(json.dumps(as_dict(single, ending), indent=2) if options.json else closing(single, ending))
    return {Outcome.COMPLETE: 0, Outcome.INTERRUPTED: 130}.get(ending.outcome, 1)


def _finalists(options: argparse.Namespace) -> int:
    from pharos.backends import finish_sweep
    from pharos.console import closing
    from pharos.errors import InputError
    from pharos.finalists import start
    from pharos.live import make_console

    given = "--top" if options.top is not None else "--seeds"
    if not options.sweep:
        raise InputError(f"{given} goes with --from SWEEP; finalists that were stopped go on with sweep.py --resume")
    other = next((f for f in ("trial", "export", "predict") if getattr(options, f) is not None), None)
    if other is not None:
        raise InputError(f"{given} trains several trials on several seeds; --{other} is for one: give only one of them")
    top, seeds = _count("--top", options.top, 3), _count("--seeds", options.seeds, 5)
    sweep = start(options.sweep, top, seeds, options.settings, make_console(options.json))
    summary = finish_sweep(sweep)
    print(
        json.dumps(summary, indent=2) if options.json else closing(summary, sweep.storage.root, sweep.settings.trials)
    )
    if sweep.interrupted:
        return 130
    return 0 if summary["best"] else 1


def _count(flag: str, text: str | None, default: int) -> int:
    from pharos.errors import InputError

    try:
        return default if text is None else int(text)
    except ValueError:
        raise InputError(f"{flag} {text}: must be a whole number, such as {flag} {default}") from None


def _use(options: argparse.Namespace) -> int:
    """Takes a trained model out of its checkpoint, or has it predict."""
    from pharos import export, predict
    from pharos.errors import InputError
    from pharos.single import find_trial, reopen_run
    from pharos.trial import trial_id

    given = "--export" if options.export else "--predict"
    if options.family:
        raise InputError(f"{given}: says what to do with --from SWEEP or --resume RUN; --family has no weights yet")
    if options.export and options.predict:
        raise InputError("--export and --predict: give only one of them")
    if options.sweep:
        sweep, plan, record = find_trial(options.sweep, options.trial, options.settings)
        source, params = sweep.sub("trials", trial_id(record.number)), record.params
    else:
        run = reopen_run(options.resume, options.settings)
        source, plan, params = run.folder, run.plan, run.params
    if options.export:
        result = export.export_weights(source, plan, params, options.export)
        said = export.closing(result, options.export)
    else:
        result = predict.predict_folder(source, plan, params, options.predict, options.output or "predictions")
        said = predict.closing(result)
    print(json.dumps(result, indent=2) if options.json else said)
    return 0


if __name__ == "__main__":
    run_command(main)
