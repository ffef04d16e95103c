"""A trial alone in its process that stands still: its thread, or the process as a whole."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import ObjectRef
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayTaskError
from ray.tune.experiment import Trial

from pharos.backends import actor, eviction, losses
from pharos.trial import Outcome

_START = "import ctypes, time; from pharos.backends import watchdog; watchdog.watch(lambda: 1.0); print(1, flush=True);"


@pytest.mark.parametrize("then", ["ctypes.PyDLL(None).pause()", "time.sleep(60)"])
def test_a_process_in_which_no_thread_gets_on_is_killed(then):
    with subprocess.Popen([sys.executable, "-c", _START + then], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        if "sleep" in then:
            os.kill(process.pid, signal.SIGSTOP)
        assert process.wait(30) == -signal.SIGKILL


def test_one_that_only_waits_lives_and_its_watchdog_ends_with_it():
    code = _START + "time.sleep(3)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (child,) = subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(process.pid)], text=True).split()
        assert process.wait(30) == 0
    deadline = time.monotonic() + 20
    while (there := Path(f"/proc/{child}").exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not there


def test_a_process_whose_trial_hangs_ends_at_once_so_that_the_next_finds_the_trials_folder_free(monkeypatch):
    monkeypatch.setattr(actor.watchdog, "watch", lambda allowed: None)
    monkeypatch.setattr("pharos.backends.worker.START_SECONDS", 0.0)
    ended = []
    monkeypatch.setattr(actor.os, "_exit", ended.append)
    alone = actor._Alone(0.2)
    alone._is_idle.clear()  # a trial is on, which never says anything
    with pytest.raises(TimeoutError, match=r"did not get on for 0\.2 s"):
        alone.next()
    began = time.monotonic()
    alone.stop()
    assert ended == [1]
    assert time.monotonic() - began < 10


def test_the_user_reads_why_it_hangs_and_not_where_ray_ran_it():
    text = "ray::TrialActor.train() (pid=1, ip=127.0.0.1)\n  File ...\nTimeoutError: it did not get on for 10 s"
    error = RayTaskError("train", text, TimeoutError("it did not get on for 10 s"))
    assert losses.why(error.as_instanceof_cause()) == "TimeoutError: it did not get on for 10 s"
    assert not losses.is_node_lost(error.as_instanceof_cause())


def test_what_a_gang_says_of_a_lost_node_comes_through_as_it_is():
    cause = losses.NodeLostError("worker 1 of 2 died: its node has died")
    error = RayTaskError("step", "Traceback …\npharos.backends.losses.NodeLostError: worker 1 of 2 died", cause)
    found = pickle.loads(pickle.dumps(error)).as_instanceof_cause()
    assert losses.why(found) == str(cause)
    assert losses.is_node_lost(found)


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (ActorUnavailableError("Socket closed", b"1" * 16), True),  # says nothing of where
        (ActorDiedError(ActorDiedErrorContext(actor_id=b"1" * 16, node_ip_address="127.0.0.1")), False),
        (ActorDiedError(ActorDiedErrorContext(actor_id=b"1" * 16, node_ip_address="127.0.0.2")), True),
        (
            ActorDiedError(ActorDiedErrorContext(actor_id=b"1" * 16, node_ip_address="127.0.0.3")),
            False,
        ),  # Ray knows that it is gone
    ],
)
def test_a_node_that_does_not_answer_is_lost_also_before_ray_says_so(monkeypatch, error, is_lost):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        alive = {"127.0.0.1": True, "127.0.0.2": True, "127.0.0.3": False}
        nodes = [
            {"Alive": there, "NodeManagerAddress": address, "NodeManagerPort": port} for address, there in alive.items()
        ]
        monkeypatch.setattr(losses.ray, "nodes", lambda: nodes)
        assert losses.is_node_lost(error) is is_lost


def test_a_process_killed_for_memory_is_a_lost_one_with_its_reason_and_does_not_end_the_sweep():
    told = []
    task = SimpleNamespace(
        _tracked_actor=SimpleNamespace(actor_id=1, _on_error=lambda actor, error: None),
        _on_error=lambda actor, error: told.append(pickle.loads(pickle.dumps(error))),
    )
    manager = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    eviction.take_for_losses()
    text = "2 worker(s) were killed\nOOM kill reason: Memory usage 7B exceeded threshold of 6B"
    RayActorManager._actor_task_failed(manager, task, OutOfMemoryError(text))
    (error,) = told
    assert losses.why(error) == "OOM kill reason: Memory usage 7B exceeded threshold of 6B"
    assert losses.outcome_of(error) == Outcome.OUT_OF_MEMORY
    assert not losses.is_node_lost(error)
    assert not error.preempted  # which Tune asks


def test_tune_may_ask_again_what_a_process_said_that_was_killed_for_memory(monkeypatch):
    def gone(reference):
        raise OutOfMemoryError("1 worker(s) were killed")

    eviction.take_for_losses()
    trial = SimpleNamespace(
        _default_result_or_future=ObjectRef(b"0" * ObjectRef.size()), temporary_state=SimpleNamespace(ray_actor=None)
    )
    monkeypatch.setattr("ray.get", gone)
    assert Trial._get_default_result_or_future(trial) is None
