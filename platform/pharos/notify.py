"""Messages to people who are not watching: a sweep has ended, its breaker has tripped, it stands still."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pharos.channels import WEBHOOK, Channel, Mailer, Message, Webhook
from pharos.console import clock, last_line, progress, results
from pharos.errors import InputError
from pharos.families import suggest
from pharos.retry import redact
from pharos.trial import Outcome, Report, trial_id

if TYPE_CHECKING:
    from pharos.records import TrialRecord
    from pharos.settings import Settings
    from pharos.sweep import Sweep

OCCASIONS = ("end", "breaker", "stall")

# How long a sweep that has ended waits for what is still on its way.
_LAST_SECONDS = 5.0
# How often a stall is looked for.
_LOOK_SECONDS = 15.0
_REASON_CHARACTERS = 500

logger = logging.getLogger(__name__)


@dataclass
class NotifyConfig:
    """Who is told of what."""

    webhook: bool = False
    wandb: bool = False
    on: list[str] = field(default_factory=lambda: list(OCCASIONS))
    stall_minutes: float = 30.0

    def check(self) -> None:
        """Refuses what does not exist.

        Raises:
            InputError: There is no such occasion, or a stall would take no time.
        """
        for occasion in self.on:
            if occasion not in OCCASIONS:
                raise InputError(f"notify.on={occasion}: {suggest(occasion, OCCASIONS)}")
        if not self.stall_minutes > 0:
            raise InputError(f"notify.stall_minutes={self.stall_minutes:g}: must be above 0")

    def check_used(self) -> None:
        """Complains of settings that mean nothing, as nobody is told; a sweep of before may have its own defaults.

        Raises:
            InputError: There is such a thing.
        """
        if self != NotifyConfig() and not (self.webhook or self.wandb):
            raise InputError(
                "notify: nobody is told of anything; "
                f"add notify.webhook=true, its URL in {WEBHOOK}, or notify.wandb=true"
            )


def check_no_url(settings: Iterable[str]) -> None:
    """Refuses a webhook's URL in what was typed or lies in a file, without showing it.

    Args:
        settings: As name=value.

    Raises:
        InputError: One has a URL, or what may be one without its scheme.
    """
    for text in settings:
        name, _, value = text.partition("=")
        if re.search("notify|webhook", name, re.IGNORECASE) and "/" in value:
            raise InputError(
                f"{name}: a URL, which is a secret of whoever may write there; "
                f"put it into the environment variable {WEBHOOK} and write notify.webhook=true"
            )


def open_channels(
    config: NotifyConfig, alerts: Channel | None = None, environment: Mapping[str, str] = os.environ
) -> list[Channel]:
    """The channels that the settings ask for.

    Args:
        config: The settings.
        alerts: W&B's, if the sweep is tracked there.
        environment: Has the webhook's URL.

    Raises:
        InputError: The webhook is wanted and the environment has no URL for it, or none that could be one; alerts are
            and the sweep is not tracked.
    """
    channels: list[Channel] = []
    if config.webhook:
        if not environment.get(WEBHOOK):
            raise InputError(f"notify.webhook=true: the environment variable {WEBHOOK} is to hold the webhook's URL")
        channels.append(Webhook(environment[WEBHOOK]))
    if config.wandb:
        if alerts is None:
            raise InputError("notify.wandb=true: needs tracking=wandb, and a key or tracking.mode=online")
        channels.append(alerts)
    return channels


def open_notifiers(name: str, settings: Settings, note: Callable[[str], None]) -> list[Notifier]:
    """What listens to a sweep for those who are to be told: one notifier, or none.

    Args:
        name: The sweep's.
        settings: Its settings.
        note: Hears in one line what could not be sent.

    Raises:
        InputError: See `open_channels`.
    """
    channels = open_channels(settings.notify, _alerts(name, settings))
    return [Notifier(settings.notify, channels, note)] if channels else []


def _alerts(name: str, settings: Settings) -> Channel | None:
    """W&B's alerts, of the sweep's own run there."""
    tracking = settings.tracking
    if not settings.notify.wandb or tracking.name != "wandb":
        return None
    from pharos.tracking.calls import Alerts
    from pharos.tracking.wandb_run import is_online

    return Alerts(name, tracking.project, tracking.entity) if is_online(tracking.mode) else None


class Notifier:
    """Hears of a sweep's events and tells people of those that matter.

    Args:
        config: What is told.
        channels: How.
        note: Hears in one line what could not be sent.
    """

    def __init__(self, config: NotifyConfig, channels: Sequence[Channel], note: Callable[[str], None]):
        self._config = config
        self._note = note
        self._mailers = [Mailer(channel, note) for channel in channels]
        self._sweep: Sweep | None = None
        self._opened_at = time.monotonic()
        self._heard_at = time.monotonic()
        self._lock = threading.Lock()  # the watching thread and the sweep's own
        self._stalled = False
        self._has_tripped = False
        self._over = threading.Event()

    def start(self, sweep: Sweep, slots: int) -> None:
        self._sweep = sweep
        self._opened_at = self._heard_at = time.monotonic()
        if "stall" in self._config.on:
            threading.Thread(target=self._watch, name="notify-stall", daemon=True).start()

    def started(self, record: TrialRecord) -> None:
        """No sign of life: a trial that only ever starts stands still, too."""

    def reported(self, record: TrialRecord, report: Report) -> None:
        self._hear()

    def ended(self, record: TrialRecord) -> None:
        self._hear()
        if self._sweep is not None and self._sweep.search.fault and not self._has_tripped:
            self._has_tripped = True
            self._tell("breaker", self._broken)

    def note(self, text: str) -> None:
        """For those who watch."""

    def stop(self) -> None:
        self._over.set()

    def closed(self) -> None:
        """Tells of the end, and waits a moment for what is on its way."""
        self._over.set()
        if self._sweep is None:  # it was never run
            return
        self._tell("end", self._ended)
        deadline = time.monotonic() + _LAST_SECONDS
        for mailer in self._mailers:
            mailer.close(deadline)

    # When

    def _hear(self) -> None:
        with self._lock:
            quiet, self._heard_at = time.monotonic() - self._heard_at, time.monotonic()
            was_stalled, self._stalled = self._stalled, False
        if was_stalled:
            self._tell("stall", lambda sweep: self._goes_on(sweep, quiet))

    def _watch(self) -> None:
        limit = 60 * self._config.stall_minutes
        while not self._over.wait(min(_LOOK_SECONDS, limit / 4)):
            with self._lock:
                quiet = time.monotonic() - self._heard_at
                is_new = quiet >= limit and not self._stalled
                self._stalled |= is_new
            if is_new:
                self._tell("stall", lambda sweep, quiet=quiet: self._stands_still(sweep, quiet))  # type: ignore[misc]

    def _tell(self, occasion: str, make: Callable[[Sweep], Message]) -> None:
        if occasion not in self._config.on or self._sweep is None:
            return
        try:
            message = make(self._sweep)
        except Exception:  # a fault of ours: the sweep goes on
            logger.exception("the message about %s", occasion)
            return
        for mailer in self._mailers:
            mailer.put(message)

    # What

    def _ended(self, sweep: Sweep) -> Message:
        final = sum(count for outcome, count in sweep.study.counts.items() if outcome.is_final)
        error = sys.exception()  # that the sweep is being closed for
        if sweep.search.over:
            why = sweep.search.over
        elif error is not None:
            why = redact(last_line(str(error))) or type(error).__name__
        elif sweep.interrupted or final < sweep.settings.trials:
            why = "stopped before its last trial; --resume goes on"
        else:
            why = f"all {final} trials have ended"
        return Message(f"{_name(sweep)} has ended", "\n".join([why, *_standing(sweep), _more(sweep)]))

    def _broken(self, sweep: Sweep) -> Message:
        fault = redact(last_line(sweep.search.fault))[:_REASON_CHARACTERS]
        lines = [f"{sweep.search.over}: {fault}", "no more trials are started", *_standing(sweep), _more(sweep)]
        return Message(f"{_name(sweep)}: breaker", "\n".join(lines))

    def _stands_still(self, sweep: Sweep, quiet: float) -> Message:
        running = sweep.study.having(Outcome.RUNNING)
        names = ", ".join(map(trial_id, running[:8])) + (f" and {len(running) - 8} more" if len(running) > 8 else "")
        lines = [
            f"no report and no ending for {clock(quiet)}; running: {names or 'none'}",
            progress(sweep, self._opened_at),
            _more(sweep),
        ]
        return Message(f"{_name(sweep)} stands still", "\n".join(lines))

    def _goes_on(self, sweep: Sweep, quiet: float) -> Message:
        return Message(f"{_name(sweep)} goes on", f"after {clock(quiet)}; {progress(sweep, self._opened_at)}")


def _name(sweep: Sweep) -> str:
    return f"sweep {sweep.name} ({sweep.settings.family})"


def _standing(sweep: Sweep) -> list[str]:
    """The best beside the paper's values, and what came of the trials in which time."""
    records = list(sweep.study.records.values())
    metrics = sweep.objectives.metrics
    best = sweep.search.best
    paper = next((record for record in records if sweep.plan.is_paper_trial(record.params)), None)
    line = f"best {results(metrics, best.last_values)} ({trial_id(best.number)})" if best else "no trial is complete"
    if paper is not None and paper is best:
        line += ", which are the paper's values"
    elif paper is not None:
        state = "" if paper.outcome == Outcome.COMPLETE else f", {paper.outcome} at {paper.fidelity}"
        line += f"; paper's values {results(metrics, paper.last_values)} ({trial_id(paper.number)}{state})"
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sweep.study.counts.items() if count)
    usage = sweep.usage
    unit = "GPU" if sweep.settings.resources.gpus_per_worker else "CPU"
    spent = f"{usage.slot_seconds * sweep.settings.devices / 3600:.3g} {unit} hours"
    return [line, f"{counts or 'no trial'}; {clock(usage.seconds)}, {spent}"]


def _more(sweep: Sweep) -> str:
    return f"more: python platform/report.py {sweep.storage.root} (on {socket.gethostname()})"
