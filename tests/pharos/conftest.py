"""A bucket for the tests that want one: one server for all of them, and a bucket for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from benchmarks.bucket import OPTIONS, Fault, FaultyProxy, Server, aws_environment
from pharos.storage import Storage


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Credentials as they should be, and no others; the endpoint is each test's own."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    files = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"), "AWS_CONFIG_FILE": str(tmp_path / "none")}
    for name, value in {**aws_environment("http://127.0.0.1:1"), **files, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def _proxy(server: Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def proxy(aws: None, _proxy: FaultyProxy) -> FaultyProxy:
    """A way to the server that a test may make unreliable: one for all, as each new one is a new client to s3fs."""
    _proxy.rate, _proxy.kinds, _proxy.stall_seconds, _proxy.lands, _proxy.before = 0.0, tuple(Fault), 0.2, None, None
    _proxy.down = _proxy.stalled = False
    _proxy.requests.clear()
    _proxy.counts.clear()
    return _proxy


@pytest.fixture
def url(aws: None, server: Server, request: pytest.FixtureRequest) -> str:
    """A folder in a bucket of the test's own."""
    bucket = f"b{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}"
    server.make(bucket)
    return f"s3://{bucket}/sweeps"


@pytest.fixture
def direct(url: str, server: Server) -> Storage:
    """The folder, past the proxy."""
    return Storage(url, {"endpoint_url": server.url})


@pytest.fixture
def home(url: str, proxy: FaultyProxy) -> Storage:
    """The folder, through the proxy."""
    return Storage(url, {"endpoint_url": proxy.url, **OPTIONS}, patience=0)


class Answers(ThreadingHTTPServer):
    """A server that has one answer to all requests.

    Attributes:
        url: Where it listens.
        status: The answer's.
        body: The answer's, except to HEAD requests.
        length: What it says of the body's length; None: the truth.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.say(200)

    def say(self, status: int, code: str = "", body: bytes = b"", length: int | None = None) -> None:
        """Sets the answer; an error by its name, or any body."""
        self.status = status
        self.body = _ERROR.format(code=code).encode() if code else body
        self.length = len(self.body) if length is None else length

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the client has left


_ERROR = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>{code}</Code><Message>Not so.
Really.</Message><RequestId>0123456789ABCDEF</RequestId></Error>"""


class _Handler(BaseHTTPRequestHandler):
    server: Answers
    protocol_version = "HTTP/1.1"

    def handle_expect_100(self) -> bool:
        return True  # the answer is the same whatever it sends

    def answer(self) -> None:
        if "Expect" not in self.headers:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.close_connection = True
        self.send_response_only(self.server.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(self.server.length))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.server.body)

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815


@pytest.fixture(scope="session")
def _answers() -> Iterator[Answers]:
    with Answers() as answers:
        thread = Thread(target=answers.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield answers
        answers.shutdown()
        thread.join()


@pytest.fixture
def answers(aws: None, _answers: Answers) -> Answers:
    """A server that has one answer to all requests; a test says which."""
    return _answers
