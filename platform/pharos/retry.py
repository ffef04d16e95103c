"""What goes wrong between here and a store: whether asking again may help, and what to say of it."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pharos.errors import StorageError

T = TypeVar("T")

_LONGEST_PAUSE = 5.0
# Not the global one: that is the trial's, and its numbers must not depend on what is written meanwhile.
_chance = random.SystemRandom()
# A file system's own words for "asking again would not help"; all other OSErrors may pass.
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
# The networks' errors that are no OSErrors, by name: their packages are not the core's.
_PASSING = {
    "ConnectionError",
    "HTTPClientError",
    "ClientError",
    "ResponseParserError",
    "IncompleteReadError",
    "HttpError",
}
# A bare 403 answers a HEAD request, which cannot say whether it is access or the clock.
_PASSING_CODES = {"403", "RequestTimeTooSkewed", "SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable"}
_FINAL_CODES = {
    "NoSuchBucket",
    "AccessDenied",
    "InvalidBucketName",
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
}
_WORDS = {
    "NoSuchBucket": "there is no such bucket",
    "403": "refused (403); check the credentials of this machine and its clock",
    "AccessDenied": "access denied; check the credentials of this machine and the bucket's policy",
    "InvalidAccessKeyId": "the access key is unknown there; check the credentials and the endpoint",
    "SignatureDoesNotMatch": "the secret key does not fit; check the credentials",
    "ExpiredToken": "the credentials have expired",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the store's; set it",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "NoCredentialsError": "no credentials; set AWS_PROFILE or AWS_ACCESS_KEY_ID and _SECRET_ACCESS_KEY, or use a role",
    "ParamValidationError": "not a valid bucket or key",
}
_SECRET_NAMES = re.compile(
    r"(SECRET|TOKEN|PASSWORD|PGPASS|API_KEY|ACCESS_KEY|ACCOUNT_KEY|CONNECTION_STRING|WEBHOOK)", re.IGNORECASE
)
_IN_URLS = re.compile(r"(?<=://)[^/\s]+(?=@)|(?<=Signature=)[^&\s]+|(?<=X-Amz-Credential=)[^&\s]+|(?<=sig=)[^&\s]+")


def is_final(error: BaseException) -> bool:
    """Whether what failed would fail again."""
    if isinstance(error, StorageError):
        return error.is_final
    code = _code(error)
    if code in _PASSING_CODES | _FINAL_CODES:
        return code in _FINAL_CODES
    if isinstance(error, (OSError, TimeoutError)):
        return isinstance(error, _FINAL)
    return not _PASSING & {kind.__name__ for kind in type(error).__mro__}


def reason(error: BaseException) -> str:
    """What an error says, in one line and without secrets."""
    code = _code(error)
    if code in _WORDS:
        return _WORDS[code]
    text = getattr(error, "strerror", None) or str(error) or (isinstance(error, TimeoutError) and "no answer in time")
    text = text or type(error).__name__
    line = redact(text.strip()).split("\n", maxsplit=1)[0]
    return line if not code or code in line else f"{code}: {line}"


def redact(text: str) -> str:
    """A text without what must not be seen: secrets of the environment, and those that URLs may have."""
    secrets = {value for name, value in os.environ.items() if len(value) >= 6 and _SECRET_NAMES.search(name)}
    for value in sorted(secrets, key=len, reverse=True):  # one may begin like another
        text = text.replace(value, "***")
    return _IN_URLS.sub("***", text)


def pauses() -> Iterator[float]:
    """Seconds to wait before each further attempt: they grow, and differ between those who wait."""
    pause = 0.1
    while True:
        yield pause * _chance.uniform(0.5, 1.0)
        pause = min(2 * pause, _LONGEST_PAUSE)


def again(act: Callable[[], T], what: str, patience: float) -> T:
    """Does something, again and again while it fails in a way that may pass.

    Args:
        act: What to do; doing it twice must be the same as once.
        what: For the error: what was wanted and where.
        patience: Seconds after which no further attempt is made; 0: there is one.

    Raises:
        FileNotFoundError: There is nothing there.
        StorageError: It cannot be done, or could not for so long.
    """
    deadline = time.monotonic() + patience
    for attempt, pause in enumerate(pauses(), start=1):
        try:
            return act()
        except Exception as error:
            if isinstance(error, FileNotFoundError) and _code(error) != "NoSuchBucket":
                raise
            if is_final(error):
                raise StorageError(f"{what}: {reason(error)}", is_final=True) from error
            if time.monotonic() + pause > deadline:
                tried = f" ({attempt} attempts in {patience:g} s)" if attempt > 1 else ""
                raise StorageError(f"{what}: {reason(error)}{tried}", is_final=False) from error
        time.sleep(pause)
    raise AssertionError


def _code(error: BaseException) -> str:
    """The store's own name for an error; s3fs keeps it in what it translates from."""
    for each in (error, error.__cause__):
        response: Any = getattr(each, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    name = type(error).__name__
    return name if name in _WORDS else ""
