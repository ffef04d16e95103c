"""A bucket for tests and for the fault suite: a server of S3 on this machine, and a proxy that makes it unreliable."""

from __future__ import annotations

import logging
import random
import socket
import socketserver
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from enum import StrEnum
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import urlsplit

OPTIONS = {"config_kwargs": {"connect_timeout": 1, "read_timeout": 1}}
"""A file system with which a request that hangs is given up soon."""

_PIECE = 1 << 18
_LINE = 1 << 16
_ERROR = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>{}</Code><Message>{}</Message><RequestId>0123456789ABCDEF</RequestId></Error>"""


def aws_environment(url: str) -> dict[str, str]:
    """What a process needs in its environment to find the bucket there."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing-key",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


class Server:
    """Moto's S3 server in a thread. What it stores is one for all servers of the process."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self._moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)

    @property
    def url(self) -> str:
        host, port = self._moto.get_host_and_port()
        return f"http://{host}:{port}"

    def start(self) -> Self:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else it says each request
        self._moto.start()
        return self

    def stop(self) -> None:
        self._moto.stop()

    def make(self, bucket: str) -> None:
        """Makes a bucket; one that is there stays as it is."""
        self._ask("PUT", f"/{bucket}")

    def reset(self) -> None:
        """Forgets all buckets."""
        self._ask("POST", "/moto-api/reset")

    def _ask(self, method: str, path: str) -> None:
        with closing(HTTPConnection(*self._moto.get_host_and_port())) as connection:
            connection.request(method, path)
            response = connection.getresponse()
            answer = response.read()
        assert response.status == HTTPStatus.OK, answer

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()


class Fault(StrEnum):
    """What may happen to a request."""

    RESET = "reset"  # the connection is reset, before the server has seen the request or after it has done it
    SLOW_DOWN = "slow-down"  # 503, as a store answers that is asked too often
    STALL = "stall"  # nothing is read or answered for a while, then the connection is closed
    TRUNCATE = "truncate"  # half of the body arrives: of the request's, or else of the answer's
    SKEW = "skew"  # 403, as a store answers whose clock shows another time


_REFUSALS: dict[str, tuple[int, str, str]] = {
    "denied": (403, "Forbidden", _ERROR.format("AccessDenied", "Access Denied")),
    Fault.SLOW_DOWN: (503, "Slow Down", _ERROR.format("SlowDown", "Please reduce your request rate.")),
    Fault.SKEW: (
        403,
        "Forbidden",
        _ERROR.format(
            "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."
        ),
    ),
}


class FaultyProxy:
    """An HTTP proxy before a server, with faults; works from its construction until `close`.

    Attributes:
        url: Where it listens.
        rate: The probability that a request gets a fault. The n-th request's fate depends on the seed and n alone.
        kinds: The faults that are drawn, all equally often.
        stall_seconds: How long `Fault.STALL` lasts.
        lands: Whether a request that is reset, or an upload that is truncated, reaches the server whole all the same
            (its answer is lost then); None leaves it to chance.
        down: While true, new connections are reset at once and the others at their next request.
        before: Called first with each request's method and path (with its query); the fault that it returns happens,
            "down" refuses this one request, "denied" answers it with 403 AccessDenied, and None leaves it to chance.
            It may also set `down` or `stalled`.
        requests: Method and path of all requests that came, those refused included.
        counts: How many faults of each kind happened.
    """

    def __init__(
        self,
        url: str,
        rate: float = 0.0,
        seed: int = 0,
        kinds: Sequence[Fault] = tuple(Fault),
        stall_seconds: float = 5.0,
    ) -> None:
        self.rate = rate
        self.kinds = kinds
        self.stall_seconds = stall_seconds
        self.lands: bool | None = None
        self.down = False
        self.before: Callable[[str, str], Fault | Literal["down", "denied"] | None] | None = None
        self.requests: list[tuple[str, str]] = []
        self.counts: Counter[Fault] = Counter()
        self.closed = threading.Event()
        self.upstream = urlsplit(url).netloc
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._listener = _Listener(self)
        self.url = f"http://127.0.0.1:{self._listener.server_port}"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def stalled(self) -> bool:
        """While true, every request hangs. It goes on when this ends, even if its client has left by then."""
        return not self._flows.is_set()

    @stalled.setter
    def stalled(self, stalled: bool) -> None:
        if stalled:
            self._flows.clear()
        else:
            self._flows.set()

    def fate(self, method: str, path: str) -> tuple[Fault | Literal["down", "denied"] | None, bool]:
        """What happens to a request that came, and whether the server sees it whole if that is left open."""
        with self._lock:
            self.requests.append((method, path))
            chance, kind, lands = (self._random.random() for _ in range(3))
        fault = self.before(method, path) if self.before else None
        self._flows.wait()
        if self.down or self.closed.is_set():
            fault = "down"
        elif fault is None and chance < self.rate:
            fault = self.kinds[int(kind * len(self.kinds))]
        if isinstance(fault, Fault):
            with self._lock:
                self.counts[fault] += 1
        return fault, lands < 0.5 if self.lands is None else self.lands

    def close(self) -> None:
        """Ends all connections, those of requests that hang included."""
        self.closed.set()
        self._flows.set()
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()
        for connection in self._listener.connections.copy():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _reset_when_closed(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, proxy: FaultyProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy
        self.connections: set[socket.socket] = set()

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # the class between asks for this machine's name, which may take long
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def verify_request(self, request: Any, client_address: object) -> bool:
        if self.proxy.down:
            _reset_when_closed(request)
            return False
        self.connections.add(request)
        return True

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        self.close_request(request)  # without the orderly end that comes before it elsewhere

    def handle_error(self, request: Any, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError | HTTPException):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = _LINE

    def log_message(self, *arguments: object) -> None:
        pass

    def handle_expect_100(self) -> bool:
        return True  # `_body` answers it, when the body is wanted

    def _serve(self) -> None:
        try:
            self._meet(*self.server.proxy.fate(self.command, self.path))
        except (OSError, HTTPException):  # the client or the server has left
            self._reset()

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def _meet(self, fault: Fault | Literal["down", "denied"] | None, lands: bool) -> None:
        if fault is None:
            self._forward(self._send)
        elif fault in _REFUSALS:
            self._refuse(*_REFUSALS[fault])
        elif fault == Fault.STALL:
            self.server.proxy.closed.wait(self.server.proxy.stall_seconds)
            self.close_connection = True
        elif fault == Fault.TRUNCATE and (lands or not self._has_body()):
            self._forward(self._send_half)
        elif fault == Fault.TRUNCATE:
            self._forward_half()
        elif fault == Fault.RESET and lands:
            self._forward(lambda answer: self._reset())
        else:
            self._reset()

    def _reset(self) -> None:
        _reset_when_closed(self.connection)
        self.close_connection = True

    def _refuse(self, status: int, reason: str, text: str) -> None:
        for _ in self._body():
            pass
        self.send_response_only(status, reason)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def _has_body(self) -> bool:
        return "Transfer-Encoding" in self.headers or self.headers.get("Content-Length", "0") != "0"

    def _body(self) -> Iterator[bytes]:
        """The request's body as it is on the wire, in pieces."""
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "Transfer-Encoding" not in self.headers:
            yield from self._read(int(self.headers.get("Content-Length", 0)))
            return
        size = 1
        while size:
            yield (line := self._line())
            size = int(line.partition(b";")[0], 16)
            if size:
                yield from self._read(size + 2)
        while line != b"\r\n":
            yield (line := self._line())

    def _read(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self.rfile.read(min(size, _PIECE))
            if not piece:
                raise ConnectionResetError("the client has left")
            size -= len(piece)
            yield piece

    def _line(self) -> bytes:
        line = self.rfile.readline(_LINE)
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the client has left")
        return line

    @contextmanager
    def _asking(self) -> Iterator[HTTPConnection]:
        """The server, with the request up to its body."""
        with closing(HTTPConnection(self.server.proxy.upstream)) as upstream:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders()
            yield upstream

    def _forward(self, then: Callable[[HTTPResponse], None]) -> None:
        with self._asking() as upstream:
            for piece in self._body():
                with suppress(OSError):  # a server may answer before it has all
                    upstream.send(piece)
            with upstream.getresponse() as answer:
                then(answer)

    def _forward_half(self) -> None:
        body = b"".join(self._body())
        with self._asking() as upstream:
            upstream.send(body[: len(body) // 2])
            upstream.sock.shutdown(socket.SHUT_WR)
            upstream.sock.recv(1)  # the server has noticed
        self._reset()

    def _send_head(self, answer: HTTPResponse) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() != "connection":  # with the proxy; the client's has its own
                self.send_header(name, value)
        if answer.length is None and not answer.chunked:
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _send(self, answer: HTTPResponse) -> None:
        self._send_head(answer)
        while piece := answer.read(_PIECE):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.chunked else piece)
        if answer.length:
            raise ConnectionResetError("the server has left")
        if answer.chunked and self.command != "HEAD":
            self.wfile.write(b"0\r\n\r\n")

    def _send_half(self, answer: HTTPResponse) -> None:
        body = answer.read()
        if not body:
            self._reset()
            return
        self._send_head(answer)
        self.wfile.write((b"%x\r\n" % len(body) if answer.chunked else b"") + body[: len(body) // 2])
        self.close_connection = True
