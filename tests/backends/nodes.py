"""A sweep on a cluster of several nodes, of which one goes and another comes: what `test_nodes.py` starts and reads."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2] / "platform"), str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from helpers import TINY, Listener  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from pharos.backends import tune  # noqa: E402 # sets what Ray reads at its import
from pharos.records import TrialRecord  # noqa: E402
from pharos.sweep import start  # noqa: E402
from pharos.trial import Report  # noqa: E402

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
# A node that does not answer for two seconds is dead; Ray's own figures come to a quarter of a minute.
FAST = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


def main(folder: str, *settings: str) -> None:
    """Prints what became of it."""
    cluster = Cluster(True, head_node_args={**NODE, "num_cpus": 0, "_system_config": FAST})
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    killed: list[int] = []

    def lose_a_node(record: TrialRecord, report: Report) -> None:
        if report.fidelity != 4 or killed:
            return
        raylets = {(process := node.all_processes["raylet"][0].process).pid: process for node in nodes}
        parent = int(Path(f"/proc/{report.process}/stat").read_text().rpartition(")")[2].split()[1])
        assert parent in raylets, "the trial's process is no child of a node's raylet"
        killed.append(record.number)
        raylets[parent].kill()
        raylets[parent].wait()  # while a process is still listed, its children take it for alive
        cluster.add_node(**NODE)

    os.environ["RAY_ADDRESS"] = cluster.address
    listener = Listener(lose_a_node)
    sweep = start(
        "tipsy", [*TINY[:3], f"storage.url={folder}", "tracking=none", "checkpoint_seconds=0", *settings], listener
    )
    tune.run_sweep(sweep)
    records: list[dict[str, Any]] = [
        {
            "outcome": str(record.outcome),
            "attempts": record.attempts,
            "preemptions": record.preemptions,
            "params": record.params,
            "reason": record.reason,
        }
        for record in sweep.study.records.values()
    ]
    sweep.close()
    cluster.shutdown()
    print(json.dumps({"killed": killed, "records": records, "notes": listener.notes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
