"""The process that trains trials for the Ray Tune backend. It imports nothing of the search, to start quickly."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import queue
import threading
from pathlib import Path
from typing import Any

from ray import tune

from pharos.trial import Ending, Outcome, Report, TrialSpec

_STOP_SECONDS = 60.0


class TrialActor(tune.Trainable):
    """One process that trains one trial after the other.

    A trial trains in a thread of its own and goes on while the driver makes up its mind about its last report, one
    report ahead at most.
    """

    def setup(self, config: dict[str, Any]) -> None:
        logging.getLogger("ray").setLevel(logging.ERROR)
        self._start(TrialSpec(**config["spec"]))

    def step(self) -> dict[str, Any]:
        message = self._messages.get()
        if isinstance(message, Report):
            return {"report": dataclasses.asdict(message)}
        return {"ending": dataclasses.asdict(message), "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._stop()
        self._start(TrialSpec(**new_config["spec"]))
        return True

    def cleanup(self) -> None:
        from pharos.tracking import wait_for_trackers

        self._stop()
        wait_for_trackers(3)

    def interrupt(self) -> None:
        """Lets the trial save at the end of its epoch and stop."""
        self._interrupted = True
        if self._run is not None:
            self._run.interrupt()

    def _start(self, spec: TrialSpec) -> None:
        self._messages: queue.Queue[Report | Ending] = queue.Queue(maxsize=1)
        self._run: Any = None
        self._stopped = self._interrupted = False
        self._thread = threading.Thread(target=self._train, args=(spec, self._messages), daemon=True)
        self._thread.start()

    def _train(self, spec: TrialSpec, messages: queue.Queue[Report | Ending]) -> None:
        from pharos.execute import execute

        log = Path(spec.folder) / "log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            handler = logging.StreamHandler(file)
            logging.getLogger("pharos").addHandler(handler)
            try:
                messages.put(execute(spec, messages.put, self._take_run))
            finally:
                logging.getLogger("pharos").removeHandler(handler)

    def _take_run(self, run: Any) -> None:
        # Kept for `interrupt` and `_stop`, which may have been called before there was a run.
        self._run = run
        if self._interrupted:
            run.interrupt()
        if self._stopped:
            run.stop(Outcome.PRUNED)

    def _stop(self) -> None:
        """Ends the trial's thread, so that nothing of it runs beside the next trial."""
        self._stopped = True
        if self._run is not None:
            self._run.stop(Outcome.PRUNED, "stopped early")
        for _ in range(int(_STOP_SECONDS * 20)):
            with contextlib.suppress(queue.Empty):
                self._messages.get_nowait()
            self._thread.join(0.05)
            if not self._thread.is_alive():
                return
        # It hangs in a batch. Python cannot end a thread; the driver starts a new process in this one's place.
        os._exit(1)
