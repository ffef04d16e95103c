"""What every command shares: errors in one line, exit statuses, Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from pharos.errors import PharosError


def run_command(main: Callable[[list[str]], int]) -> None:
    """Runs a command and exits: 0 done, 1 failed, 2 wrong request, 130 stopped by hand."""
    try:
        status = main(sys.argv[1:])
    except PharosError as error:
        print(f"error: {error}", file=sys.stderr)
        status = error.exit_code
    except OSError as error:  # a full disk, a folder that went away: the system's own words say it
        print(f"error: {error.filename or 'storage'}: {error.strerror or error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = 130
    sys.exit(status)


@contextlib.contextmanager
def on_stop_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop` at the first Ctrl-C or SIGTERM; a second Ctrl-C ends the process as ever."""

    def handle(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
