"""Errors that people read: one line that says what is wrong, where, and what would be right."""


class PharosError(Exception):
    """Something a person must act on; commands print it as one line, without a traceback."""

    exit_code = 1


class InputError(PharosError, ValueError):
    """The request itself is wrong (a typo, a missing file, an impossible value): exit status 2."""

    exit_code = 2


class StorageError(PharosError):
    """Where sweeps or data lie does not do what it was asked for.

    Args:
        text: What, where and why, in one line.
        is_final: Whether asking again would not help.
    """

    def __init__(self, text: str, is_final: bool):
        super().__init__(text)
        self.is_final = is_final
