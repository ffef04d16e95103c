"""What a machine is: versions, the code, GPUs, memory and disks."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pharos
from pharos.families import ROOT

_NEEDED = ("torch", "numpy", "optuna", "hydra-core", "ray", "deepspeed", "wandb", "fsspec", "s3fs", "safetensors")
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def about(cache: str) -> dict[str, Any]:
    """This machine, as JSON.

    Args:
        cache: Its own folder for copies of data (`storage.cache`).
    """
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _NEEDED},
        "code": code(),
        "gpus": gpus(),
        "memory_gb": memory_gb(),
        "cache_free_gb": shutil.disk_usage(nearest(Path(cache).expanduser())).free / 1e9,
    }


def code() -> str:
    """A digest of the sources of Pharos and of the families, as this process imports them."""
    digest = hashlib.sha256()
    folders = [Path(pharos.__file__).parent]
    spec = importlib.util.find_spec("trainables")
    folders += [Path(path) for path in (spec.submodule_search_locations or [])] if spec else [ROOT / "trainables"]
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def gpus() -> list[dict[str, Any]]:
    """Model, driver and memory of each GPU, as the driver's own tool has them."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"],
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 2]
    return [{"name": name, "driver": driver, "memory_gb": float(mib) / 1024} for name, driver, mib in rows]


def memory_gb() -> float:
    """The memory that is free here, in units of 2**30 bytes, a container's limit counted."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    free = int(found[1]) / 2**20 if found else float("inf")
    with contextlib.suppress(OSError, ValueError):
        used = int((_CGROUP.parent / "memory.current").read_text())
        free = min(free, (int(_CGROUP.read_text()) - used) / 2**30)
    return free


def nearest(path: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    while not path.is_dir():
        path = path.parent
    return path


def off_constraints(packages: Mapping[str, str | None]) -> list[str]:
    """What differs from `constraints.txt`, as `name 1.0 instead of 2.0`; empty too if that file is not here."""
    path = ROOT / "constraints.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return [
        f"{name} {version} instead of {pinned[name]}"
        for name, version in packages.items()
        if version and name in pinned and version.split("+")[0] != pinned[name]
    ]


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None
