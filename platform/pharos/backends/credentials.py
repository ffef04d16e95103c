"""Credentials of the driver for trials on other nodes: handed on in memory, never in a file, a setting or a log."""

from __future__ import annotations

import os
from collections.abc import Mapping

# Of the stores that fsspec knows, and of W&B. Whatever else the driver has in its environment is its own.
_NAMES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_SAS_TOKEN",
    "WANDB_API_KEY",
    "WANDB_BASE_URL",
)


def credentials() -> dict[str, str]:
    """Those that this process has in its environment."""
    return {name: os.environ[name] for name in _NAMES if os.environ.get(name)}


def take(given: Mapping[str, str]) -> None:
    """Puts a driver's into this process's environment; what its node has of its own stays."""
    for name, value in given.items():
        os.environ.setdefault(name, value)
