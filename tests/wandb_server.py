"""A recording W&B server on loopback, for the real client: keeps what it is sent, and can stall, fail and go."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

ENTITY = "lab"
KEY = "0123456789abcdef" * 2 + "01234567"


@dataclass
class Recorded:
    """A run as the server has it."""

    project: str = ""
    group: str = ""
    job_type: str = ""
    sweep: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    exit_code: int | None = None
    is_preempting: bool = False

    def setting(self, name: str) -> Any:
        """A value of its configuration."""
        return self.config[name]["value"]

    @property
    def fidelities(self) -> list[int]:
        """The platform's own step of each row of history."""
        return [row["fidelity"] for row in self.history if "fidelity" in row]


class WandbServer:
    """Serves until closed.

    Attributes:
        runs: What it has of each run, by id.
        sweeps: The configuration of each sweep, by id; with `prior_runs`.
        artifacts: What was said of each artifact that was logged.
        manifests: What they hold, or refer to.
        alerts: Titles and texts.
        received: Every byte of every body and header.
        mode: "well", "stall" (answers when it is well again), "fail" (500) or "refuse" (401).
    """

    def __init__(self) -> None:
        self.runs: dict[str, Recorded] = {}
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.manifests: list[dict[str, Any]] = []
        self.alerts: list[tuple[str, str]] = []
        self.received: list[bytes] = []
        self.mode = "well"
        self._well = threading.Event()
        self._well.set()
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.wandb = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What lets the real client find it."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def become(self, mode: str) -> None:
        """Changes how it answers from now on; what was stalled goes on as the new mode says."""
        self.mode = mode
        if mode == "stall":
            self._well.clear()
        else:
            self._well.set()

    def close(self) -> None:
        """Goes: connections are refused from now on."""
        self.become("fail")
        self._http.shutdown()
        self._http.server_close()

    # What it does with what it is sent

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Answers a query."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        answer = getattr(self, f"_{found[1]}", None) if found else None
        if answer is not None:
            return {"data": answer(variables)}
        if "viewer" in query:
            return {"data": {"viewer": {"id": "user", "entity": ENTITY, "username": "user", "teams": {"edges": []}}}}
        return {"data": {}}

    def stream(self, run: str, body: dict[str, Any]) -> None:
        """Takes lines of a run's files."""
        with self._lock:
            record = self.runs[run]
            for name, chunk in body.get("files", {}).items():
                lines = [json.loads(line) for line in chunk["content"] if name.endswith(("jsonl", "json"))]
                kept = {"wandb-history.jsonl": record.history, "wandb-events.jsonl": record.events}.get(name)
                if kept is not None:
                    kept[chunk["offset"] :] = lines
                elif name == "wandb-summary.json":
                    record.summary = lines[-1]
            record.is_preempting = record.is_preempting or bool(body.get("preempting"))
            if body.get("complete"):
                record.exit_code = body["exitcode"]

    def _RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        record = self.runs.get(variables["name"])
        bucket = (
            None
            if record is None
            else self._bucket(variables["name"])
            | {
                "summaryMetrics": json.dumps(record.summary),
                "historyTail": json.dumps([json.dumps(row) for row in record.history[-1:]]),
                "eventsTail": json.dumps([json.dumps(row) for row in record.events[-1:]]),
                "historyLineCount": len(record.history),
                "eventsLineCount": len(record.events),
                "logLineCount": 0,
                "config": json.dumps(record.config),
                "wandbConfig": json.dumps({"t": 1}),
                "tags": record.tags,
            }
        )
        return {"model": {"id": "project", "name": variables["project"], **_entity(), "bucket": bucket}}

    def _EntityAndProject(self, variables: dict[str, Any]) -> dict[str, Any]:
        has_project = any(record.project == variables["project"] for record in self.runs.values())
        return {
            "entity": {"id": "entity"} if variables["entity"] == ENTITY else None,
            "project": {"id": "project"} if has_project else None,
        }

    def _UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            name = variables["name"]
            is_new = name not in self.runs
            record = self.runs.setdefault(name, Recorded())
            record.project = variables["project"]
            record.group = variables.get("groupName") or record.group
            record.job_type = variables.get("jobType") or record.job_type
            record.sweep = variables.get("sweep") or record.sweep
            record.tags = variables.get("tags") or record.tags
            if variables.get("config"):
                record.config = json.loads(variables["config"])
        return {"upsertBucket": {"bucket": self._bucket(name), "inserted": is_new}}

    def _bucket(self, name: str) -> dict[str, Any]:
        project = {"id": "project", "name": self.runs[name].project, **_entity()}
        return {"id": name, "name": name, "displayName": name, "sweepName": self.runs[name].sweep, "project": project}

    def _UpsertSweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = {
            **yaml.safe_load(variables["config"]),
            "prior_runs": [each["name"] for each in json.loads(variables["priorRunsFilters"] or '{"$or": []}')["$or"]],
        }
        for run in self.sweeps[name]["prior_runs"]:
            self.runs[run].sweep = name
        project = {"id": "project", "name": variables["projectName"], **_entity()}
        return {"upsertSweep": {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}}

    def _CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [
            {"name": name, "uploadUrl": f"{self.url}/file/{variables['run']}/{name}"} for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def _NotifyScriptableRunAlert(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.alerts.append((variables["title"], variables["text"]))
        return {"notifyScriptableRunAlert": {"success": True}}

    def _ArtifactType(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.artifacts.append(variables["input"])
        sequence = {"id": "sequence", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": "artifact", "state": "PENDING", "artifactSequence": sequence}}}

    def _CreateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        file = {"id": "file", "uploadUrl": f"{self.url}/manifest", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "manifest", "file": file}}}

    def _CommitArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": "artifact", "digest": "digest"}}}


def _entity() -> dict[str, Any]:
    return {"entity": {"id": "entity", "name": ENTITY}, "entityName": ENTITY}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    wandb: WandbServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client may go at any time."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        wandb = self.server.wandb
        wandb.received += [body, str(self.headers).encode(), self.path.encode()]
        wandb._well.wait()
        if wandb.mode in ("fail", "refuse"):
            self._answer({"errors": [{"message": "no"}]}, 500 if wandb.mode == "fail" else 401)
            return
        parts = self.path.strip("/").split("/")
        if self.path == "/graphql":
            asked = json.loads(body)
            self._answer(wandb.graphql(asked["query"], asked.get("variables") or {}))
            return
        if parts[-1] == "file_stream":
            wandb.stream(parts[-2], json.loads(body))
        elif parts[0] == "manifest":
            wandb.manifests.append(json.loads(body))
        elif parts[0] == "file":
            wandb.runs[parts[1]].files.add("/".join(parts[2:]))
        self._answer({"exitcode": None, "limits": {}})

    do_GET = do_POST = do_PUT = _handle  # noqa: N815

    def _answer(self, answer: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(answer).encode()
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""
