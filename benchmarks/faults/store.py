"""An S3 server in a process of its own, which says each request: what `benchmarks.faults.cluster.Store` starts.

    python benchmarks/faults/store.py ADDRESS PORT BUCKET

prints a line when it listens, then one a request (JSON: the fields of `benchmarks.faults.cluster.Request`).
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.test import Client


class Watched:
    """A WSGI application that says each request before it is done."""

    def __init__(self, app: Any):
        self._app = app
        self._saying = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        line = {
            "at": time.time(),
            "client": environ["REMOTE_ADDR"],
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
        }
        with self._saying:
            print(json.dumps(line), flush=True)
        result: Iterable[bytes] = self._app(environ, start_response)
        return result


def main(host: str, port: str, bucket: str) -> None:
    """Serves for ever."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = DomainDispatcherApplication(create_backend_app)
    Client(app).put(f"/{bucket}", base_url=f"http://{host}:{port}")
    server = make_server(host, int(port), Watched(app), threaded=True)
    print("listening", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
