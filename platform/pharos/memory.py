"""How much memory a trial has needed, at most, since it started in this process."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import torch

PEAK_MEMORY = "peak_memory_gb"
"""The metric, in units of 2**30 bytes: of the device where training is on one, else of the process."""
_OWN = Path("/proc/self")


def reset_peak(device: torch.device) -> None:
    """Starts to measure anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # where Linux does not let us, the process's own peak counts
            (_OWN / "clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """The peak since `reset_peak`, in units of 2**30 bytes; NaN where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", (_OWN / "status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) / 2**20 if found else float("nan")
