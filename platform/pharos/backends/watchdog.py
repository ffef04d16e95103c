"""Kills this process when it stands still as a whole, so that nothing in it could notice that it does.

Native code that never comes back may keep the interpreter, and a process may be stopped by the system: then no thread
of it looks at the clock any more. A second process does, a small one, which hears from this one through a pipe.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

# It looks four times in the time allowed, so that one that was stopped together with its parent (a machine that was
# suspended) does not take that for silence. A parent that is gone is no parent any more: its number may be another's.
_CODE = """
import os, select, signal, sys
parent, allowed, silent = int(sys.argv[1]), float(sys.argv[2]), 0
while os.getppid() == parent:
    if select.select([0], [], [], allowed / 4)[0]:
        said = os.read(0, 4096)
        if not said:
            break
        allowed, silent = float(said.split()[-1]), 0
    else:
        silent += 1
        if silent == 4 and os.getppid() == parent:
            os.kill(parent, signal.SIGKILL)
"""


def watch(allowed: Callable[[], float]) -> None:
    """Watches this process from now on, until it ends.

    Args:
        allowed: Asked again and again: for how many seconds from now the process may be silent.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _CODE, str(os.getpid()), str(allowed())], stdin=subprocess.PIPE
    )
    threading.Thread(target=_speak, args=(process, allowed), daemon=True).start()


def _speak(process: subprocess.Popen[bytes], allowed: Callable[[], float]) -> None:
    assert process.stdin is not None
    pause = threading.Event()
    while process.poll() is None:
        seconds = allowed()
        try:
            os.write(process.stdin.fileno(), f"{seconds:g}\n".encode())
        except BrokenPipeError:
            return
        pause.wait(min(seconds / 8, 1.0))  # often, as what is allowed changes
