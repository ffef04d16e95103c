"""A study in a lab's database: its URL has no password, and the environment has it."""

from __future__ import annotations

import os
import re
from typing import Any

from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from pharos.errors import InputError
from pharos.retry import redact

_PASSWORD = "PHAROS_STUDY_PASSWORD"


def check_rdb(url: str) -> None:
    """Complains of a database URL that holds a password, without showing it.

    Raises:
        InputError: It does, or is no URL.
    """
    try:
        parts = make_url(url)
    except ArgumentError:
        raise InputError("study.storage: not a database URL; such as postgresql://user@host/database") from None
    if parts.password is not None or any(re.search("pass|secret|token", key, re.IGNORECASE) for key in parts.query):
        raise InputError(
            f"study.storage={parts.set(query={}).render_as_string()}: a password in it; "
            f"it comes from the environment: PGPASSWORD, ~/.pgpass or {_PASSWORD}"
        )


def open_rdb(url: str) -> RDBStorage:
    """A lab's database, with the password that the environment has for it.

    Raises:
        InputError: It cannot be opened.
    """
    check_rdb(url)
    arguments: dict[str, Any] = {"pool_pre_ping": True}
    if _PASSWORD in os.environ and not url.startswith("sqlite"):
        arguments["connect_args"] = {"password": os.environ[_PASSWORD]}
    try:
        return RDBStorage(url, engine_kwargs=arguments)
    except ImportError as error:
        what = str(error).splitlines()[0]
        raise InputError(
            f"study.storage={url}: {what} For PostgreSQL: pip install -c constraints.txt 'pharos-sweeps[postgresql]'"
        ) from None
    except SQLAlchemyError as error:
        why = redact(" ".join(str(error.__cause__ or error).split()))
        raise InputError(f"study.storage={url}: cannot be opened: {why}") from None
