"""The proxy before the bucket: without faults nobody notices it, and each fault is what it says."""

import http.client
import os
import random
import re
import socket
import threading
import time
from contextlib import closing

import pytest
import s3fs

from benchmarks.bucket import Fault, FaultyProxy, Server, aws_environment

# The server looks at who asks, and not at the signature.
SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=testing-key/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
}
BROKEN = (ConnectionResetError, http.client.RemoteDisconnected)


@pytest.fixture(scope="module")
def server():
    with Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in aws_environment(server.url).items():
            patch.setenv(name, value)
        server.reset()
        server.make("lab")
        yield server
        server.reset()


@pytest.fixture
def proxy(server, capfd):
    with FaultyProxy(server.url, stall_seconds=0.3) as proxy:
        yield proxy
    assert capfd.readouterr().err == ""


def connect(url):
    return closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=20))


def ask(connection, method, path, body=None, **options):
    connection.request(method, path, body, SIGNED, **options)
    answer = connection.getresponse()
    return answer.status, answer.read()


def ask_once(url, method, path, body=None, **options):
    with connect(url) as connection:
        return ask(connection, method, path, body, **options)


def filesystem(url, read_timeout=1.0):
    """S3FS without retries of its own; the library below it still sends once more what may be sent twice."""
    config = {"retries": {"total_max_attempts": 1}, "connect_timeout": 1, "read_timeout": read_timeout}
    fs = s3fs.S3FileSystem(client_kwargs={"endpoint_url": url}, config_kwargs=config, skip_instance_cache=True)
    fs.retries = 1
    return fs


@pytest.mark.parametrize("size", [0, 1, 20_000_000])
def test_files_go_through_byte_for_byte(server, proxy, size, tmp_path):
    data = random.Random(size).randbytes(size)
    fs = filesystem(proxy.url)
    fs.pipe_file("lab/file", data)
    assert fs.cat_file("lab/file") == data
    assert ask_once(server.url, "GET", "/lab/file") == (200, data)
    (tmp_path / "ours").write_bytes(data)
    fs.put_file(str(tmp_path / "ours"), "lab/file-2")
    fs.get_file("lab/file-2", str(tmp_path / "theirs"))
    assert (tmp_path / "theirs").read_bytes() == data
    assert not proxy.counts


def test_a_file_in_parts_goes_through_byte_for_byte(server, proxy):
    data = os.urandom(13_000_000)
    filesystem(proxy.url).pipe_file("lab/parts", data, chunksize=6 << 20)
    assert sum("partNumber" in path for _, path in proxy.requests) == 3
    assert ask_once(server.url, "GET", "/lab/parts") == (200, data)


def test_many_clients_at_once(proxy):
    def client(number):
        with connect(proxy.url) as connection:
            for index in range(5):
                data = random.Random(f"{number} {index}").randbytes(100_000)
                ask(connection, "PUT", f"/lab/client-{number}", data)
                if ask(connection, "GET", f"/lab/client-{number}") == (200, data):
                    good.append(number)

    good = []
    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(good) == 40


BIG = os.urandom(1_000_000)


@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("GET /lab/%C3%A9%2B?list-type=2&prefix=a%2Fb&delimiter= HTTP/1.1\nHost: else.where:80\nX-A: 1\nx-a: 2\n", b""),
        ("PUT /lab/a HTTP/1.1\nHost: h\nContent-Length: 1000000\nExpect: 100-continue\n", BIG),
        (
            "PUT /lab/a HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\nContent-Encoding: aws-chunked\n",
            b"f4240;chunk-signature=0\r\n%b\r\n1\r\nx\r\n0\r\nx-amz-checksum-crc32: AAAA\r\n\r\n" % BIG,
        ),
    ],
)
@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\nServer: some\r\nX-B: 1\r\nx-b: 2\r\nContent-Length: 1000000\r\n%b\r\n" + BIG, True),
        (b"HTTP/1.1 404 Not here\r\nTransfer-Encoding: chunked\r\n%b\r\n3\r\nabc\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 204 No Content\r\n%b\r\n", True),
        (b"HTTP/1.0 200 OK\r\n%b\r\nuntil the end", False),
    ],
)
def test_requests_and_answers_are_not_changed(head, body, answer, whole, head_first):
    request = [head.replace("\n", "\r\n").encode() + b"\r\n", body]
    seen = []

    def upstream():
        connection, _ = listener.accept()
        with connection:
            seen.append(receive(connection, sum(map(len, request))))
            connection.sendall(answer.replace(b"%b", b"Connection: close\r\n", 1))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=upstream)
        thread.start()
        with FaultyProxy(f"http://127.0.0.1:{listener.getsockname()[1]}") as proxy:
            host, port = proxy.url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=20) as client:
                expects = "Expect" in head
                if head_first or expects:
                    client.sendall(request[0])
                    assert receive(client, 25 if expects else 0) == b"HTTP/1.1 100 Continue\r\n\r\n" * expects
                    client.sendall(request[1])
                else:
                    client.sendall(b"".join(request))
                expected = answer.replace(b"%b", b"" if whole else b"Connection: close\r\n", 1)
                expected = re.sub(rb"^HTTP/1.0", b"HTTP/1.1", expected)
                assert receive(client, len(expected)) == expected
                if not whole:
                    assert client.recv(1) == b""
        thread.join()
    assert seen == [b"".join(request)]


def receive(connection, size):
    pieces = b""
    while len(pieces) < size:
        piece = connection.recv(size - len(pieces))
        assert piece, pieces[:1000]
        pieces += piece
    return pieces


def test_a_connection_serves_many_requests(proxy):
    proxy.kinds = [Fault.SLOW_DOWN, Fault.SKEW]
    with connect(proxy.url) as connection:
        assert ask(connection, "PUT", "/lab/kept", b"some")[0] == 200
        first = connection.sock
        for proxy.rate in (0.0, 1.0):
            for method, body in (("PUT", b"some"), ("GET", None), ("HEAD", None), ("GET", None), ("DELETE", None)):
                ask(connection, method, "/lab/kept", body)
        assert connection.sock is first is not None


@pytest.mark.parametrize("lands", [True, False])
def test_a_reset(proxy, server, lands):
    ask_once(server.url, "PUT", "/lab/reset", b"old")
    proxy.rate, proxy.kinds, proxy.lands = 1.0, [Fault.RESET], lands
    with pytest.raises(ConnectionResetError):
        ask_once(proxy.url, "PUT", "/lab/reset", b"new")
    assert ask_once(server.url, "GET", "/lab/reset") == (200, b"new" if lands else b"old")
    with pytest.raises(ConnectionResetError):
        ask_once(proxy.url, "GET", "/lab/reset")


@pytest.mark.parametrize(
    ("fault", "status", "code"), [(Fault.SLOW_DOWN, 503, b"SlowDown"), (Fault.SKEW, 403, b"RequestTimeTooSkewed")]
)
def test_a_refusal(proxy, server, fault, status, code):
    ask_once(server.url, "PUT", "/lab/refused", b"old")
    proxy.rate, proxy.kinds = 1.0, [fault]
    with connect(proxy.url) as connection:
        found, body = ask(connection, "PUT", "/lab/refused", b"new" * 100_000)
        assert found == status
        assert b"<Error><Code>%b</Code>" % code in body
        connection.request("HEAD", "/lab/refused", headers=SIGNED | {"Connection": "close"})
        with connection.sock.makefile("rb") as answer:
            assert re.fullmatch(rb"HTTP/1.1 %d .*\r\n\r\n" % status, answer.read(), re.DOTALL)
    assert ask_once(server.url, "GET", "/lab/refused") == (200, b"old")


def test_a_stall(proxy, server):
    ask_once(server.url, "PUT", "/lab/stall", b"old")
    proxy.rate, proxy.kinds = 1.0, [Fault.STALL]
    for body in (b"new", None):
        start = time.monotonic()
        with pytest.raises(BROKEN):
            ask_once(proxy.url, "PUT" if body else "GET", "/lab/stall", body)
        assert 0.3 <= time.monotonic() - start < 2
    assert ask_once(server.url, "GET", "/lab/stall") == (200, b"old")


def test_half_an_answer(proxy, server):
    ask_once(server.url, "PUT", "/lab/half", bytes(range(100)))
    proxy.rate, proxy.kinds = 1.0, [Fault.TRUNCATE]
    with connect(proxy.url) as connection:
        connection.request("GET", "/lab/half", headers=SIGNED)
        answer = connection.getresponse()
        assert answer.headers["Content-Length"] == "100"
        with pytest.raises(http.client.IncompleteRead) as caught:
            answer.read()
        assert caught.value.partial == bytes(range(50))
    for method in ("HEAD", "DELETE"):
        with pytest.raises(ConnectionResetError):
            ask_once(proxy.url, method, "/lab/half")
    assert ask_once(server.url, "GET", "/lab/half")[0] == 404


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_half_an_upload_is_not_stored(proxy, server, size, chunked):
    ask_once(server.url, "PUT", "/lab/upload", b"old")
    body = b"n" * size
    proxy.rate, proxy.kinds, proxy.lands = 1.0, [Fault.TRUNCATE], False
    with pytest.raises(ConnectionResetError):
        ask_once(proxy.url, "PUT", "/lab/upload", iter([body]) if chunked else body, encode_chunked=chunked)
    is_empty = size == 0 and not chunked  # what has no half
    assert ask_once(server.url, "GET", "/lab/upload") == (200, b"" if is_empty else b"old")
    proxy.lands = True
    with pytest.raises(ConnectionResetError):
        ask_once(proxy.url, "PUT", "/lab/upload", body)
    assert ask_once(server.url, "GET", "/lab/upload") == (200, body)


def test_what_s3fs_makes_of_each_fault(proxy, server, tmp_path):
    """Who upgrades S3FS sees here whether its errors are still those that our storage expects."""
    expected = {
        Fault.RESET: ["EndpointConnectionError", "EndpointConnectionError"],
        Fault.SLOW_DOWN: ["OSError", "OSError"],
        Fault.STALL: ["ConnectionClosedError", "ConnectionClosedError"],
        Fault.TRUNCATE: ["EndpointConnectionError", "ClientPayloadError"],
        Fault.SKEW: ["PermissionError", "PermissionError"],
    }
    ask_once(server.url, "PUT", "/lab/file", b"old" * 1000)
    fs = filesystem(proxy.url)
    proxy.rate, proxy.lands = 1.0, False
    found = {fault: [] for fault in Fault}
    for fault in Fault:
        proxy.kinds = [fault]
        for call, *arguments in ((fs.pipe_file, b"new" * 1000), (fs.get_file, str(tmp_path / "file"))):
            try:
                call("lab/file", *arguments)
            except Exception as error:
                found[fault].append(type(error).__name__)
    assert found == expected
    assert ask_once(server.url, "GET", "/lab/file") == (200, b"old" * 1000)
    assert set(proxy.counts) == set(Fault)
    proxy.rate = 0.0
    fs.pipe_file("lab/file", b"new")
    assert fs.cat_file("lab/file") == b"new"


def test_s3fs_waits_for_an_answer_as_long_as_it_is_told(proxy):
    proxy.stalled = True
    with pytest.raises(OSError, match="Read timeout"):
        filesystem(proxy.url, read_timeout=0.2).cat_file("lab/file")


def test_what_is_down_refuses_all_until_it_is_up(proxy):
    with connect(proxy.url) as connection:
        assert ask(connection, "PUT", "/lab/down", b"some")[0] == 200
        proxy.down = True
        with pytest.raises(ConnectionResetError):
            ask(connection, "GET", "/lab/down")
    for _ in range(3):
        with pytest.raises(ConnectionResetError):
            ask_once(proxy.url, "GET", "/lab/down")
    with pytest.raises(Exception, match="Could not connect"):
        filesystem(proxy.url).cat_file("lab/down")
    assert proxy.requests == [("PUT", "/lab/down"), ("GET", "/lab/down")]
    proxy.down = False
    assert ask_once(proxy.url, "GET", "/lab/down") == (200, b"some")
    assert filesystem(proxy.url).cat_file("lab/down") == b"some"


def test_what_is_stalled_goes_on_afterwards(proxy):
    ask_once(proxy.url, "PUT", "/lab/stalled", b"some")
    found = []
    proxy.stalled = True
    threads = [
        threading.Thread(target=lambda: found.append(ask_once(proxy.url, "GET", "/lab/stalled"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert found == []
    assert len(proxy.requests) == 4
    proxy.stalled = False
    for thread in threads:
        thread.join(5)
    assert found == [(200, b"some")] * 3


@pytest.mark.parametrize("how", ["stalled", "fault", "idle"])
def test_a_proxy_that_closes_waits_for_nobody(server, how):
    proxy = FaultyProxy(server.url, stall_seconds=60)
    with connect(proxy.url) as connection:
        ask(connection, "GET", "/lab")
        if how == "stalled":
            proxy.stalled = True
        elif how == "fault":
            proxy.before = lambda method, path: Fault.STALL
        connection.request("PUT", "/lab/never", b"some", SIGNED)
        if how == "idle":
            connection.getresponse().read()
        time.sleep(0.1)
        start = time.monotonic()
        proxy.close()
        if how == "idle":
            assert connection.sock.recv(1) == b""
        else:
            with pytest.raises(BROKEN):
                connection.getresponse()
        assert time.monotonic() - start < 1
    with pytest.raises(ConnectionRefusedError):
        ask_once(proxy.url, "GET", "/lab")
    assert ask_once(server.url, "GET", "/lab/never")[0] == (200 if how == "idle" else 404)
    ask_once(server.url, "DELETE", "/lab/never")


@pytest.mark.parametrize("fault", ["down", Fault.RESET])
def test_one_request_fails_and_no_other(proxy, server, fault):
    def before(method, path):
        return fault if (method, path) == ("PUT", "/lab/manifest-2") else None

    proxy.before, proxy.lands = before, False
    for index in range(4):
        if index == 2:
            with pytest.raises(ConnectionResetError):
                ask_once(proxy.url, "PUT", "/lab/manifest-2", b"some")
        else:
            assert ask_once(proxy.url, "PUT", f"/lab/manifest-{index}", b"some")[0] == 200
    assert proxy.requests == [("PUT", f"/lab/manifest-{index}") for index in range(4)]
    assert proxy.counts == ({} if fault == "down" else {fault: 1})
    assert [ask_once(server.url, "GET", f"/lab/manifest-{index}")[0] for index in range(4)] == [200, 200, 404, 200]


def test_before_comes_before_chance(proxy):
    proxy.rate, proxy.kinds = 1.0, [Fault.SKEW]
    proxy.before = lambda method, path: Fault.SLOW_DOWN if method == "PUT" else None
    assert [ask_once(proxy.url, method, "/lab/both")[0] for method in ("GET", "PUT", "GET")] == [403, 503, 403]


def test_before_may_take_the_bucket_down(proxy):
    def before(method, path):
        proxy.down |= path == "/lab/last"

    proxy.before = before
    assert ask_once(proxy.url, "PUT", "/lab/first", b"some")[0] == 200
    for path in ("/lab/last", "/lab/first"):
        with pytest.raises(ConnectionResetError):
            ask_once(proxy.url, "PUT", path, b"some")


def test_faults_come_as_often_as_asked_and_the_same_for_a_seed(server):
    ask_once(server.url, "PUT", "/lab/cheap", b"some")

    def outcome(connection):
        try:
            return ask(connection, "GET", "/lab/cheap")[0]
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return type(error).__name__

    def outcomes(seed, size):
        with FaultyProxy(server.url, rate=0.1, seed=seed, stall_seconds=0.01) as proxy, connect(proxy.url) as client:
            found = [outcome(client) for _ in range(size)]
            assert proxy.counts.total() == size - found.count(200)
            return found, set(proxy.counts)

    found, kinds = outcomes(5, 300)
    assert 20 <= 300 - found.count(200) <= 40
    assert kinds == set(Fault)
    assert outcomes(5, 60)[0] == found[:60]
    assert outcomes(6, 60)[0] != found[:60]


def test_a_server_that_is_gone_is_a_reset(capfd):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with FaultyProxy(f"http://127.0.0.1:{port}") as proxy, pytest.raises(ConnectionResetError):
        ask_once(proxy.url, "PUT", "/lab/a", b"some")
    assert capfd.readouterr().err == ""


def test_a_server_forgets(server):
    server.make("lab")  # once more
    ask_once(server.url, "PUT", "/lab/a", b"some")
    server.reset()
    assert ask_once(server.url, "GET", "/lab/a")[0] == 404
    server.make("lab")
    assert ask_once(server.url, "GET", "/lab/a")[0] == 404
