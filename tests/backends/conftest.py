"""One small Ray for the whole run of the tests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from pharos.sweep import Sweep


@pytest.fixture(scope="session")
def run_sweep() -> Iterator[Callable[[Sweep], None]]:
    from pharos.backends import tune

    tune.ray.init(
        "local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level=logging.ERROR
    )
    yield tune.run_sweep
    tune.ray.shutdown()
