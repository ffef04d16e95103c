"""One small Ray for the whole run of the tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import pytest

from benchmarks.bucket import aws_environment
from pharos.sweep import Sweep


@pytest.fixture(scope="session")
def run_sweep() -> Iterator[Callable[[Sweep], None]]:
    from pharos.backends import tune

    os.environ.update(aws_environment("http://127.0.0.1:1"))  # the endpoint is each test's own
    tune.ray.init(
        "local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level=logging.ERROR
    )
    yield tune.run_sweep
    tune.ray.shutdown()
