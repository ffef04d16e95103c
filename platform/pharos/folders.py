"""Finding sweeps and runs by name, path or URL, and what `sweep.yaml` holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from pharos.config import reopen_plan, storage_of
from pharos.errors import InputError
from pharos.plan import Plan
from pharos.storage import Storage, StorageConfig
from pharos.summary import versions

SWEEP_FILE = "sweep.yaml"
# Commands look for what was named for so long, no longer: a wrong endpoint is a likely reason.
_LOOK_SECONDS = 15.0


def find_folder(name: str, file: str, overrides: Sequence[str] = ()) -> Storage:
    """The folder of a sweep or run, by its name below `storage.url` or by its path.

    Args:
        name: What was typed.
        file: What such a folder holds.
        overrides: May have a `storage.url=…` and what reaching it needs.

    Raises:
        InputError: There is none.
    """
    return find_in(storage_of(overrides), name, file)


def find_in(config: StorageConfig, name: str, file: str) -> Storage:
    """The same, where a configuration says."""
    home = config.open().patient(_LOOK_SECONDS)
    places = [config.open(name).patient(_LOOK_SECONDS)] if "://" in name else [Storage(name), home.sub(name)]
    for folder in places:
        if folder.exists(file):
            return folder
    if "://" in name:
        raise InputError(f"{name}: there is no {file}")
    known = [entry for entry in home.list() if home.exists(f"{entry}/{file}")]
    raise InputError(
        f"{name}: nothing of that name in {config.url}; "
        + (f"there are {', '.join(known[-5:])}" if known else "there is none; storage.url=… says where to look")
    )


def read_plan(name: str, overrides: Sequence[str] = (), allowed: tuple[str, ...] = ()) -> tuple[Storage, Plan]:
    """The folder and plan of a sweep, for commands that only read it; see `reopen_plan`."""
    folder = find_folder(name, SWEEP_FILE, overrides)
    return folder, reopen_plan(read_document(folder), without_url(overrides), allowed)


def without_url(overrides: Sequence[str]) -> list[str]:
    """The overrides but `storage.url=…`, which says where to look and changes nothing."""
    return [text for text in overrides if not text.startswith("storage.url=")]


def write_plan(folder: Storage, plan: Plan) -> None:
    """Writes a sweep's `sweep.yaml`."""
    document = {**plan.to_dict(), "versions": versions()}
    folder.write_bytes(SWEEP_FILE, yaml.safe_dump(document, sort_keys=False).encode())


def read_document(folder: Storage) -> dict[str, Any]:
    """What a sweep's `sweep.yaml` holds.

    Raises:
        InputError: It is not what it should be.
    """
    try:
        document = yaml.safe_load(folder.read_bytes(SWEEP_FILE))
    except yaml.YAMLError as error:
        raise InputError(f"{folder.path('sweep.yaml')}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or not {"settings", "recipe", "space", "first_trials"} <= set(document):
        raise InputError(f"{folder.path('sweep.yaml')}: not a sweep's; it needs settings, recipe, space, first_trials")
    return document
