"""How much memory a trial has needed: of this process, as the system counts it."""

import math

import pytest
import torch

from pharos import memory
from pharos.memory import peak_memory, reset_peak

CPU = torch.device("cpu")


def test_the_peak_is_what_was_in_use_at_once_and_is_forgotten_when_it_is_reset():
    reset_peak(CPU)
    before = peak_memory(CPU)
    torch.ones(2**26).sum()  # a quarter of a unit
    peak = peak_memory(CPU)
    assert 0.2 < peak - before < 0.35
    assert peak_memory(CPU) == pytest.approx(peak, abs=0.01)  # it is gone, but it was needed
    reset_peak(CPU)
    assert peak_memory(CPU) < peak - 0.2


def test_where_the_system_does_not_tell_there_is_no_number(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_OWN", tmp_path / "nowhere")
    reset_peak(CPU)
    assert math.isnan(peak_memory(CPU))
