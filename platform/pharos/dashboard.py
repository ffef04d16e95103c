"""Optuna's own dashboard on a sweep's study, for looking only.

The driver alone writes a study. What the dashboard reads is a copy of the journal, to which what is new is added every
few seconds, so that it neither locks nor changes anything; and it is kept from changing a database by refusing all that
is not a question. It runs in this process: a database's password is in no list of processes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.storages import BaseStorage

from pharos.errors import InputError, PharosError
from pharos.journal import JOURNAL, open_journal
from pharos.mirror import fetch_news
from pharos.rdb import open_rdb
from pharos.storage import Storage

_HOST = "127.0.0.1"
# Seconds between two looks for what is new.
_LOCAL_SECONDS = 2.0
_STORE_SECONDS = 10.0

_Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class JournalCopy:
    """A copy of a sweep's journal that follows it, while its driver writes or not.

    Args:
        home: The sweep's folder.
        path: Where the copy lies.

    Raises:
        InputError: There is no journal, or it is damaged.
    """

    def __init__(self, home: Storage, path: Path):
        self.path = path
        self._home = home
        self._size = 0
        path.touch()
        self.refresh()

    def refresh(self) -> int:
        """Adds what is new, in whole lines; how many bytes that was.

        Raises:
            InputError: There is no journal, or another one.
            StorageError: The store does not answer.
        """
        news = self._read()
        news = news[: news.rfind(b"\n") + 1]
        with self.path.open("ab") as file:
            file.write(news)
        self._size += len(news)
        return len(news)

    def _read(self) -> bytes:
        if not self._home.is_local:
            return fetch_news(self._home, self._size)
        try:
            with Path(self._home.path(JOURNAL)).open("rb") as file:
                file.seek(self._size)
                return file.read()
        except FileNotFoundError:
            raise InputError(
                f"{self._home.path(JOURNAL)}: no such study; name a sweep's folder that holds it"
            ) from None


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(home: Storage, name: str, rdb: str | None, port: int, note: Callable[[str], None]) -> Iterator[str]:
    """Serves the dashboard of a sweep on this machine's loopback for the length of a block.

    Args:
        home: The sweep's folder.
        name: The sweep's.
        rdb: The database that its study is in; None: it is in a journal.
        port: To listen at; 0: any that is free.
        note: Hears when what is new cannot be had, once each time.

    Yields:
        The URL of the study.

    Raises:
        InputError: There is no study, the port is taken, or the dashboard is not installed.
    """
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise InputError("the dashboard needs: pip install -c constraints.txt 'pharos-sweeps[dashboard]'")
    from optuna_dashboard import wsgi

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with contextlib.ExitStack() as stack:
        storage: BaseStorage
        if rdb:
            storage = open_rdb(rdb)
        else:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="pharos-"))
            copy = JournalCopy(home, Path(scratch) / JOURNAL)
            storage, _ = open_journal(copy.path)
            stack.enter_context(_following(copy, _LOCAL_SECONDS if home.is_local else _STORE_SECONDS, note))
        study = _study(storage, name if rdb else None)
        if study is None:
            raise InputError(f"{home.root}: its study has no trial yet")
        application = _looking_only(wsgi(storage))
        try:
            server = make_server(_HOST, port, application, server_class=_Server, handler_class=_Silent)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or "0 to 65535"
            raise InputError(f"--port {port}: {why}; take another, or --port 0 for any that is free") from None
        stack.callback(server.server_close)
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="dashboard", daemon=True)
        thread.start()
        stack.callback(server.shutdown)
        yield f"http://{_HOST}:{server.server_port}/dashboard/studies/{study}"


def _study(storage: BaseStorage, name: str | None) -> int | None:
    """Optuna's number of the study: by its name, or the one of the newest space."""
    numbers = {study.study_name: study._study_id for study in storage.get_all_studies()}
    return numbers.get(name) if name else max(numbers.values(), default=None)


@contextlib.contextmanager
def _following(copy: JournalCopy, seconds: float, note: Callable[[str], None]) -> Iterator[None]:
    is_over = threading.Event()

    def work() -> None:
        trouble = ""
        while not is_over.wait(seconds):
            try:
                copy.refresh()
            except (PharosError, OSError) as error:
                if not trouble:
                    note(f"shown is what was there before: {error}")
                trouble = str(error)
            else:
                trouble = ""

    thread = threading.Thread(target=work, name="dashboard-journal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(5.0)


def _looking_only(application: _Application) -> _Application:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return application(environ, start_response)
        start_response("405 Method Not Allowed", [("Content-Type", "application/json"), ("Allow", "GET, HEAD")])
        return [b'{"reason": "This dashboard is for looking: only a sweep\'s driver changes its study."}']

    return answer
