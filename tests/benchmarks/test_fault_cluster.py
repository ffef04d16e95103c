"""The parts of the fault suite's cluster that need no cluster: who is where, and what a job's log says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import cluster
from benchmarks.faults.cluster import Cluster, ClusterError, Plan
from benchmarks.faults.submitted import holders


@pytest.mark.parametrize("has_links", [True, False])
def test_two_clusters_share_no_address_and_no_name(has_links: bool) -> None:
    first, second = Plan(1, has_links), Plan(12, has_links)
    indices = (1, 10, 200, 254)
    assert not {first.address(i) for i in indices} & {second.address(i) for i in indices}
    assert not {first.link(i) for i in indices} & {second.link(i) for i in indices}
    assert first.bridge != second.bridge
    assert first.home != second.home
    # What a killed run has left is found by how it begins.
    assert not second.namespace("head").startswith(first.namespace(""))


def test_the_kernel_takes_the_names_of_links() -> None:
    assert len(Plan(250, True).link(254)) <= 15


def test_a_number_that_somebody_has_is_not_taken_and_without_one_the_next_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cluster, "why_no_links", lambda: "not in this test")
    monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(cluster, "_marked", lambda mark: [])  # a real cluster of that number may be at work beside
    first, same, other = Cluster(number=7), Cluster(number=7), Cluster()
    first._take()
    with pytest.raises(ClusterError, match="cluster 7 runs already"):
        same._take()
    other._take()
    assert other.plan.number == 1
    for each in (first, same, other):
        each.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pharos-faults-1.lock", "pharos-faults-7.lock"]


def test_what_a_killed_run_has_left_is_found_by_its_mark_and_only_that(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'], env={})"
    processes = [
        subprocess.Popen([sys.executable, "-c", child], env={"PHAROS_NODE": f"{number}-head-ab"})
        for number in (71, 711)
    ]
    try:
        while len(found := cluster._marked("71-")) < 2:  # the process, and its child, which has no mark
            pass
        assert processes[0].pid in found
        assert processes[1].pid not in found
        assert os.getpid() not in found
    finally:
        for process in processes:
            for number in cluster._marked(f"{71 if process is processes[0] else 711}-"):
                os.kill(number, signal.SIGKILL)
            process.wait()


def test_who_held_a_trial_is_read_from_what_was_written_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen:
        store: Any

        def name_of(self, address: str) -> str:
            return {"10.213.1.10": "worker1", "10.213.1.11": "worker2", "10.213.1.1": "head"}[address]

    def request(client: str, method: str, path: str) -> cluster.Request:
        return cluster.Request(0.0, f"10.213.1.{client}", method, f"/lab/sweeps/tipsy-1/trials/{path}")

    seen = Seen()
    seen.store = type(
        "",
        (),
        {
            "requests": [
                request("1", "PUT", "00000/trial.yaml"),
                request("11", "GET", "00000/log"),
                request("10", "PUT", "00000/log"),
                request("10", "PUT", "00000/checkpoints/00000001/rank-00000-000-ab.safetensors"),
                request("10", "PUT", "00001/checkpoints/00000001/rank-00000-000-ab.safetensors"),
                request("11", "PUT", "00001/checkpoints/00000001/rank-00001-000-ab.safetensors"),
                request("11", "PUT", "00001/log.1"),
            ]
        },
    )()
    assert holders(seen, "tipsy-1") == {  # type: ignore[arg-type]
        "00000": {0: {"worker1"}},
        "00001": {0: {"worker1"}, 1: {"worker2"}},
    }
