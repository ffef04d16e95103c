"""A process that stalls, raises or dies ends only itself, and the next call finds another."""

import math
import operator
import os
import time

import pytest

from pharos.doctor.child import Child
from pharos.errors import PharosError


def test_whatever_happens_in_it_the_next_call_is_answered():
    child = Child()
    try:
        assert child.call(math.sqrt, 16, seconds=60) == 4
        with pytest.raises(PharosError, match="ZeroDivisionError: division by zero"):
            child.call(operator.truediv, 1, 0, seconds=60)
        with pytest.raises(PharosError, match=r"its process died of SIGABRT"):
            child.call(os.abort, seconds=60)
        assert child.call(math.sqrt, 9, seconds=60) == 3
        with pytest.raises(PharosError, match="ended with status 3"):
            child.call(os._exit, 3, seconds=60)
        began_at = time.monotonic()
        with pytest.raises(PharosError, match=r"no answer in 0.2 s"):
            child.call(time.sleep, 100, seconds=0.2)
        assert time.monotonic() - began_at < 50
        assert child.call(math.sqrt, 25, seconds=60) == 5
    finally:
        child.close()
    child.close()  # twice is once
