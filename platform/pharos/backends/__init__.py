"""Ways to run a sweep's trials: `local`, in this process, and `tune`, on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pharos.sweep import Sweep


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
        from pharos.backends.tune import run_sweep as run
    run(sweep)
