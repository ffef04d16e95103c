"""Other jobs on the same cluster: whether they have what they want of it."""

from __future__ import annotations

from dataclasses import dataclass

import ray

_JOB_DIGITS = 8  # a placement group's id ends in its job's


@dataclass(frozen=True)
class Neighbours:
    """Other jobs that hold places in the cluster, or want some.

    Attributes:
        jobs: How many.
        waiting: Whether one of them waits for room that could be made.
    """

    jobs: int = 0
    waiting: bool = False


def neighbours() -> Neighbours:
    """Who else is there now; a call takes about a millisecond."""
    own = ray.get_runtime_context().get_job_id()
    jobs: set[str] = set()
    is_waiting = False
    for name, group in ray.util.placement_group_table().items():
        job, state = name[-_JOB_DIGITS:], group["state"]
        if job == own or state == "REMOVED":
            continue
        jobs.add(job)
        if state != "CREATED" and group["stats"]["scheduling_state"] != "INFEASIBLE":
            is_waiting = True
    return Neighbours(len(jobs), is_waiting)
