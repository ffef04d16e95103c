"""A process that does one thing after the other, each within a time: what stalls or dies in it ends only itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from pharos.doctor.sheet import in_a_line
from pharos.errors import PharosError

T = TypeVar("T")


class Child:
    """Calls functions in a process of its own, which is started when it is needed and replaced when it was ended."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None
        self._output = ""

    def call(self, function: Callable[..., T], *arguments: Any, seconds: float) -> T:
        """What a function, importable and with arguments that can be pickled, returns there.

        Raises:
            PharosError: It took longer and its process was ended; or it raised, or the process died.
        """
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send((function, arguments))
            if not self._pipe.poll(seconds):
                self.close()
                raise PharosError(f"no answer in {seconds:g} s")
            is_well, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(5)
            how, said = _cause(self._process.exitcode), self._last_words()
            self.close()
            raise PharosError(f"its process {how}{said}") from None
        if not is_well:
            raise PharosError(value)
        result: T = value
        return result

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join(5)
            assert self._pipe is not None
            self._pipe.close()
            os.unlink(self._output)  # noqa: PTH108
        self._process = self._pipe = None

    def _start(self) -> None:
        self.close()
        descriptor, self._output = tempfile.mkstemp(prefix="pharos-doctor-", suffix=".log")
        os.close(descriptor)
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._output), daemon=True)
        self._process.start()
        theirs.close()

    def _last_words(self) -> str:
        with open(self._output, errors="replace") as file:  # noqa: PTH123
            lines = [line.strip() for line in file if line.strip()]
        return f"; it said: {lines[-1][:200]}" if lines else ""


def _serve(pipe: Connection, output: str) -> None:
    """Does what it is asked for; what is printed meanwhile goes to a file."""
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, function(*arguments)
        except PharosError as error:
            answer = False, str(error)
        except Exception as error:
            answer = False, in_a_line(error)
        pipe.send(answer)


def _cause(status: int | None) -> str:
    if status == -signal.SIGKILL:
        return "was killed (SIGKILL), as Linux does with one that takes the last memory"
    if status is not None and status < 0:
        return f"died of {signal.Signals(-status).name}"
    return f"ended with status {status}"
