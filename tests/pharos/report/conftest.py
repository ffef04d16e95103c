from pathlib import Path
from typing import Any

import pytest
from made_sweeps import Sweeps


@pytest.fixture
def sweeps(toy: Any, tmp_path: Path) -> Sweeps:
    """Makes sweeps of the toy family."""
    return Sweeps(tmp_path / "sweeps")
