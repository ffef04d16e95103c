"""Ways to people who are not watching, each with a thread that nobody waits for.

One that is slow, down or refuses neither delays a sweep nor fails it. What was given up is said in one line, by the
channel's name alone: a webhook's URL is a secret. It comes from the environment variable PHAROS_WEBHOOK, never from a
setting, and stands in no file, log or error.
"""

from __future__ import annotations

import http.client
import json
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from pharos.errors import InputError
from pharos.retry import reason

WEBHOOK = "PHAROS_WEBHOOK"
"""The environment variable that holds the URL."""

_TIMEOUT = 5.0
# Seconds before each further attempt. A message whose answer was lost may come twice.
_PAUSES = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Message:
    """What a channel is to bring."""

    title: str
    text: str


class Channel(Protocol):
    """A way to people.

    Attributes:
        name: For errors: where it leads, without anything secret.
    """

    name: str

    def send(self, message: Message) -> None:
        """Brings a message, in a thread that nobody waits for.

        Raises:
            NotSentError: It cannot be brought, or not now.
            Exception: Another attempt may help, too.
        """


class NotSentError(Exception):
    """Why a message was not sent, without anything secret.

    Args:
        text: In one line.
        is_final: Whether another attempt would not help.
    """

    def __init__(self, text: str, is_final: bool):
        super().__init__(text)
        self.is_final = is_final


class Webhook:
    """A webhook in Slack's format, which Mattermost, Rocket.Chat and others take too.

    Args:
        url: Where it listens. Shown to nobody; the host is.

    Raises:
        InputError: It is no URL that could be one.
    """

    def __init__(self, url: str):
        try:
            parts = urlsplit(url)
            host = parts.hostname
            _ = parts.port  # complains of one that is no number
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https") or re.search(r"[^!-~]", url):
            raise InputError(f"{WEBHOOK}: not a webhook's URL; such as https://host/path, without spaces")
        self.name = host
        self._url = url
        self._opener = urllib.request.build_opener(_NoRedirect)

    def send(self, message: Message) -> None:
        body = json.dumps({"text": f"*{_escaped(message.title)}*\n{_escaped(message.text)}"}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json; charset=utf-8"})
        try:
            self._opener.open(request, timeout=_TIMEOUT).close()
        except urllib.error.HTTPError as error:
            error.close()
            passes = error.code >= 500 or error.code in (408, 429)
            raise NotSentError(f"it answered {error.code}", is_final=not passes) from None
        # Their own words may have the URL, or parts of it, in them.
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, TimeoutError):
                why = f"no answer in {_TIMEOUT:g} s"
            else:
                why = getattr(cause, "strerror", None) or type(cause).__name__
            raise NotSentError(str(why), is_final=False) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A message that is sent on arrives as a question, without its text."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Mailer:
    """Brings messages in their order, in a thread that starts with the first.

    Args:
        channel: How.
        note: Hears in one line of each that was given up.
    """

    def __init__(self, channel: Channel, note: Callable[[str], None]):
        self._channel = channel
        self._note = note
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._waiting: list[Message] = []
        self._trouble = ""
        self._is_closed = threading.Event()

    def put(self, message: Message) -> None:
        """Comes back at once."""
        self._waiting.append(message)
        self._messages.put(message)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"notify-{self._channel.name}", daemon=True)
            self._thread.start()

    def close(self, deadline: float) -> None:
        """Waits for what is on its way, until then; what is not is left, and said."""
        if self._thread is None:
            return
        self._messages.put(None)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._is_closed.set()
        for message in list(self._waiting):
            self._give_up(message, self._trouble or "no answer yet")

    def _work(self) -> None:
        while (message := self._messages.get()) is not None:
            why = self._bring(message)
            self._waiting.remove(message)
            if why and not self._is_closed.is_set():
                self._give_up(message, why)

    def _bring(self, message: Message) -> str:
        """Sends a message, more than once if need be; why not, if not."""
        for pause in (*_PAUSES, None):
            try:
                self._channel.send(message)
            except Exception as error:  # whatever a channel does, the sweep goes on
                self._trouble = str(error) if isinstance(error, NotSentError) else reason(error)
                if pause is None or getattr(error, "is_final", False) or self._is_closed.wait(pause):
                    return self._trouble
            else:
                self._trouble = ""
                return ""
        raise AssertionError

    def _give_up(self, message: Message, why: str) -> None:
        self._note(f"not sent to {self._channel.name} ({why}): {message.title}")


def _escaped(text: str) -> str:
    """As Slack wants it; a trial's own words call nobody (`<!channel>`)."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
