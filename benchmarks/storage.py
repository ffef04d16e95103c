"""How long a checkpoint in a bucket keeps training waiting, and how fast it goes there and back.

    python benchmarks/storage.py [--mb 16 64 256] [--rounds 5] [--url s3://bucket/prefix]

Without --url a server of moto's is started on this machine, in a process of its own; it has one of the cores, so that
rates are its rates. Each round measures, one after the other on the same server and of the same size:

    blocked     a checkpoint that training waits for (`Saver.save`), and one that is written meanwhile (`Saver.begin`)
    up          that second one, from `begin` until all is done, against `S3FileSystem.pipe_file` of as many bytes
    down        `Checkpoints.newest`, which checks every byte, and all its tensors, against `S3FileSystem.cat_file`

A round is left out at the start (buffers, connections); medians over the rounds, ratios within each.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import boto3
import fsspec
import torch

from pharos.checkpoint import Checkpoints, Part
from pharos.retention import Keep
from pharos.saver import Saver
from pharos.storage import Storage

_TENSOR_BYTES = 4 * 2**20


def seconds(act: Callable[[], object]) -> float:
    """How long something takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A bucket on a server of its own; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ.update(environment)
    with subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            boto3.client("s3").create_bucket(Bucket="benchmark")
            yield "s3://benchmark"
        finally:
            process.kill()


def measure(url: str, megabytes: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind, a value a round."""
    home = Storage(f"{url}/{secrets.token_hex(4)}")
    plain = fsspec.core.url_to_fs(url)[0]
    count = max(1, megabytes * 2**20 // _TENSOR_BYTES)
    parts = [Part.whole(f"w{index}", torch.randn(_TENSOR_BYTES // 4)) for index in range(count)]
    data = os.urandom(count * _TENSOR_BYTES)
    checkpoints = Checkpoints(home.sub("checkpoints"))
    saver = Saver(checkpoints, keep=Keep(last=2 * rounds + 2), attempt="benchmark")
    found: dict[str, list[float]] = {}

    def finish() -> None:
        while not saver.wait(1):
            assert not saver.failure, saver.failure

    def load() -> None:
        newest = checkpoints.newest()
        assert newest is not None
        assert len(newest.tensors("w")) == count

    for turn in range(rounds + 1):
        took = {"waited for": seconds(lambda: saver.save(2 * turn, {}, parts))}  # noqa: B023
        took["begun"] = seconds(lambda: saver.begin(2 * turn + 1, {}, parts))  # noqa: B023
        took["up"] = took["begun"] + seconds(finish)
        took["plain up"] = seconds(lambda: plain.pipe_file(f"{home.root}/plain", data))
        took["down"] = seconds(load)
        took["plain down"] = seconds(lambda: plain.cat_file(f"{home.root}/plain"))
        for name, value in took.items() if turn else ():
            found.setdefault(name, []).append(value)
        print(f"{megabytes} MB, round {turn} of {rounds}", file=sys.stderr)
    home.remove()
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, nargs="+", default=[16, 64, 256], help="sizes of a checkpoint, in MiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--url", help="a bucket, or a folder in one, instead of a server on this machine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [("MiB", "waited for, s", "begun, s", "of it", "up, MB/s", "of plain", "down, MB/s", "of plain")]
    with contextlib.nullcontext(options.url) if options.url else server() as url:
        for megabytes in options.mb:
            found = measure(url, megabytes, options.rounds)
            middle = {name: statistics.median(values) for name, values in found.items()}

            def ratio(one: str, other: str, found: dict[str, list[float]] = found) -> float:
                return statistics.median(a / b for a, b in zip(found[one], found[other], strict=True))

            size = megabytes * 2**20 / 1e6
            rows.append(
                (
                    str(megabytes),
                    f"{middle['waited for']:.3f}",
                    f"{middle['begun']:.4f}",
                    f"{100 * ratio('begun', 'waited for'):.1f} %",
                    f"{size / middle['up']:.0f}",
                    f"{100 * ratio('plain up', 'up'):.0f} %",
                    f"{size / middle['down']:.0f}",
                    f"{100 * ratio('plain down', 'down'):.0f} %",
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
