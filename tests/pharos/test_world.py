import os

import pytest

from pharos.world import talk_over


def test_workers_talk_over_the_network_of_the_address_that_others_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    talk_over("203.0.113.7")  # nobody's
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    talk_over("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_network_that_was_chosen_by_hand_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    talk_over("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
