"""Calls to W&B about a whole sweep, in a process of their own: one that W&B keeps waiting can be ended.

python -m pharos.tracking.calls    {"call": NAME, ...} on standard input, its answer on the last line of the output
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pharos
from pharos.errors import PharosError

if TYPE_CHECKING:
    from pharos.channels import Message

_ALERT_SECONDS = 30.0
_HERE = str(Path(pharos.__file__).parents[1])


def call(name: str, seconds: float, **arguments: Any) -> dict[str, Any]:
    """Calls a function of this module in a new process.

    Args:
        name: `create`, `conclude` or `alert`.
        seconds: How long it may take.
        arguments: JSON.

    Raises:
        PharosError: It took longer, or W&B refused.
    """
    # W&B keeps files of its own where it is started.
    with tempfile.TemporaryDirectory(prefix="pharos-wandb-") as scratch:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pharos.tracking.calls"],
                check=False,
                cwd=scratch,
                env={**os.environ, "PYTHONPATH": _HERE},
                input=json.dumps({"call": name, **arguments}),
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise PharosError(f"W&B did not answer for {seconds:g} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise PharosError(lines[-1])
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


class Alerts:
    """A channel of `pharos.channels`.

    Args:
        sweep: The sweep's name.
        project: Of W&B.
        entity: Of W&B.
    """

    name = "W&B"

    def __init__(self, sweep: str, project: str, entity: str | None):
        self._where = {"sweep": sweep, "project": project, "entity": entity}

    def send(self, message: Message) -> None:
        call("alert", _ALERT_SECONDS, title=message.title, text=message.text, **self._where)


def create(project: str, entity: str | None, config: dict[str, Any], runs: list[str]) -> dict[str, Any]:
    """Creates a sweep's page, of runs that are there already if any are given; returns its `id` and `url`."""
    import wandb

    identity = wandb.sweep(config, entity=entity, project=project, prior_runs=runs or None)
    api = wandb.Api()
    base = wandb.util.app_url(api.settings["base_url"])
    # W&B has put in what was left to the key's own default.
    where = f"{api.settings['entity'] or api.default_entity}/{api.settings['project'] or project}"
    return {"id": identity, "url": f"{base}/{where}/sweeps/{identity}"}


def conclude(
    *,
    project: str,
    entity: str | None,
    sweep: str,
    summary: dict[str, Any],
    checkpoint: str | None,
) -> dict[str, Any]:
    """The sweep's own run: its summary, and its best checkpoint as an artifact that only refers to it."""
    import wandb

    run = _open(project, entity, sweep)
    run.summary.update(summary)
    if checkpoint:
        artifact = wandb.Artifact(f"{sweep}-best", type="model", metadata=summary)
        # W&B reads neither the bucket nor the disk: the checkpoint's own manifest has its checksums.
        artifact.add_reference(checkpoint, name="checkpoint", checksum=False)
        run.log_artifact(artifact)
    run.finish()
    return {}


def alert(*, project: str, entity: str | None, sweep: str, title: str, text: str) -> dict[str, Any]:
    """An alert of the sweep's own run, which W&B sends by mail or to Slack as each person has it set."""
    run = _open(project, entity, sweep)
    run.alert(title=title, text=text)
    run.finish()
    return {}


def _open(project: str, entity: str | None, sweep: str) -> Any:
    """The sweep's own run."""
    import wandb

    return wandb.init(
        id=sweep,
        name=sweep,
        group=sweep,
        job_type="sweep",
        project=project,
        entity=entity,
        resume="allow",
        settings=wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            finish_timeout=60,
            finish_timeout_raises=True,
        ),
    )


_CALLS: dict[str, Callable[..., dict[str, Any]]] = {"create": create, "conclude": conclude, "alert": alert}


def main() -> None:
    """Answers one call."""
    asked = json.load(sys.stdin)
    try:
        print(json.dumps(_CALLS[asked.pop("call")](**asked)))
    except Exception as error:  # W&B's are many; the caller wants one line
        sys.exit(" ".join(str(error).split()) or type(error).__name__)


if __name__ == "__main__":
    main()
