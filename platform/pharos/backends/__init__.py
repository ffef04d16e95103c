"""Ways to run trials: `local`, in this process, and on Ray, `tune` for a sweep's and `single` for one of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

from pharos.command import on_stop_signal
from pharos.errors import InputError

if TYPE_CHECKING:
    from pharos.sweep import Sweep
    from pharos.tracking.page import Page

# Read by Ray when it is imported, which the modules of this package do.
for _name, _value in {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables: the console has ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its csv, json and TensorBoard files: metrics.jsonl has it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: running trials save first
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # its pickled driver state: the study is the only record
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in a trial as on the driver
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)


def check_ray(wanted_by: str) -> None:
    """Complains if Ray is not installed.

    Raises:
        InputError: It is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError(f"{wanted_by} needs Ray: pip install -c constraints.txt 'pharos-sweeps[tune]'")


def finish_sweep(sweep: Sweep) -> dict[str, Any]:
    """Runs what is left of a sweep, closes it and returns its summary; Ctrl-C lets running trials save and stop.

    Raises:
        InputError: It cannot be run; a new sweep of which no trial was started leaves nothing behind.
    """
    page = _page(sweep)
    try:
        # Standard output is for the result alone; Ray prints there what it has to say of a process that died.
        with on_stop_signal(sweep.interrupt), contextlib.redirect_stdout(sys.stderr):
            run_sweep(sweep)
    except InputError:
        sweep.discard()
        raise
    except BaseException:
        sweep.close()
        raise
    summary = sweep.close()
    if page is not None:
        for line in page.close(summary, list(sweep.study.records.values())):
            sweep.listener.note(line)
    return summary


def _page(sweep: Sweep) -> Page | None:
    """Its page in W&B, which is being made from now on."""
    if sweep.settings.tracking.name != "wandb":
        return None
    from pharos.tracking.page import Page

    page = Page(sweep.name, sweep.plan, sweep.storage)
    page.open()
    return page


def run_sweep(sweep: Sweep) -> None:
    """Runs what is left of a sweep, on the backend that its settings name.

    Raises:
        InputError: The backend's packages are missing, or no trial fits the cluster.
    """
    if sweep.finished:
        return
    if sweep.settings.backend == "local":
        from pharos.backends.local import run_sweep as run
    else:
        check_ray("backend=tune (there is backend=local, too)")
        from pharos.backends.tune import run_sweep as run
    run(sweep)
