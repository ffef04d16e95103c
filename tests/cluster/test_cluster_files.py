"""The files in `cluster/` are what their own tools take, and name the versions that are tested."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pharos.families import ROOT

CLUSTER = ROOT / "cluster"
LAUNCHER = ["aws", "gcp", "ssh"]
SCRIPTS = ["local.sh", "slurm/sweep.sbatch", "slurm/try.sh"]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)
# Secrets as they begin, and names that are given a value in place.
SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|(WANDB_API_KEY|AWS_SECRET_ACCESS_KEY|RAY_AUTH_TOKEN|PGPASSWORD)\s*[=:]\s*\w[\w+/]{7}"
)


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTER / name).read_text()))


def run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    beside = Path(sys.executable).parent / tool
    path = str(beside) if beside.exists() else shutil.which(tool)
    assert path, f"{tool} is not installed: make install"
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("name", LAUNCHER)
def test_rays_own_validator_takes_the_launchers_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    document = read(f"{name}.yaml")
    validate_config(prepare_config(copy.deepcopy(document)))
    document["available_node_typs"] = {}
    with pytest.raises(Exception, match="available_node_typs"):
        validate_config(prepare_config(document))


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_launched_cluster_has_a_head_without_trials_token_authentication_and_a_dashboard_on_loopback(
    name: str,
) -> None:
    document = read(f"{name}.yaml")
    (start,) = [line for line in document["head_start_ray_commands"] if "ray start" in line]
    if "available_node_types" in document:
        head = document["available_node_types"][document["head_node_type"]]
        assert head["resources"] == {"CPU": 0, "GPU": 0}
        assert head["max_workers"] == 0
    else:
        assert "--num-cpus=0 --num-gpus=0" in start
    assert "--dashboard-host=127.0.0.1" in start
    assert "RAY_JOB_STOP_WAIT_TIME_S=300" in start
    assert document["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    setup = "\n".join(document["setup_commands"])
    assert "chmod 600 ~/.ray/auth_token" in setup
    assert "RAY_AUTH_MODE=token" in setup


def test_from_elsewhere_an_aws_cluster_has_ssh_alone() -> None:
    (rule,) = read("aws.yaml")["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) == (22, 22, "tcp")
    assert "0.0.0.0/0" not in str(rule)


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_launched_cluster_installs_what_pharos_needs_by_the_pinned_versions(name: str) -> None:
    import tomllib

    (install,) = [line for line in read(f"{name}.yaml")["setup_commands"] if "pip install" in line]
    assert "-c ~/pharos/constraints.txt" in install
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        *project["dependencies"],
        *(each for extra in ("tune", "deepspeed", "wandb", "pose", "vision") for each in extras[extra]),
    }
    installed = {word.strip("'") for word in install.split()}
    assert wanted <= installed, wanted - installed


def test_a_rayjob_names_the_pinned_ray_keeps_trials_from_its_head_and_has_secrets_by_reference() -> None:
    spec = read("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == PINS["ray"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for container in [each for group in groups for each in group["template"]["spec"]["containers"]]:
        secrets = [each for each in container["env"] if re.search("KEY|TOKEN|PASS", each["name"])]
        assert secrets
        assert all(set(each) == {"name", "valueFrom"} and "secretKeyRef" in each["valueFrom"] for each in secrets)


@pytest.mark.skipif("CRD" not in os.environ, reason="make cluster-check CRD=ray.io_rayjobs.yaml")
def test_the_rayjob_is_what_kuberays_crd_says() -> None:
    import jsonschema

    crd = yaml.safe_load(Path(os.environ["CRD"]).read_text())
    (version,) = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    document = read("kuberay/rayjob.yaml")
    errors = [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]
    assert errors + _unknown(document, schema) == []
    document["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParam"] = {}
    assert _unknown(document, schema) == ["spec.rayClusterSpec.headGroupSpec.rayStartParam"]


def _unknown(value: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """Fields that the schema has not, which Kubernetes would drop without a word."""
    if isinstance(value, list):
        return [name for each in value for name in _unknown(each, schema["items"], path)]
    if not isinstance(value, dict) or not {"properties", "additionalProperties"} & set(schema):
        return []
    known = schema.get("properties", {})
    found = []
    for key, each in value.items():
        name = f"{path}.{key}".lstrip(".")
        below = known.get(key, schema.get("additionalProperties"))
        found += [name] if below is None else _unknown(each, below, name) if isinstance(below, dict) else []
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_has_nothing_to_say(name: str) -> None:
    done = run("shellcheck", str(CLUSTER / name))
    assert done.returncode == 0, done.stdout


def test_hadolint_has_nothing_to_say_and_the_container_has_pins_and_no_root() -> None:
    done = run("hadolint", str(CLUSTER / "Dockerfile"))
    assert done.returncode == 0, done.stdout
    text = (CLUSTER / "Dockerfile").read_text()
    assert "-c constraints.txt" in text
    assert text.rindex("USER 1000") > text.rindex("apt-get")


def test_no_file_holds_a_secret() -> None:
    assert SECRETS.search("export WANDB_API_KEY=0123456789abcdef")
    for path in (each for each in CLUSTER.rglob("*") if each.is_file()):
        assert not SECRETS.search(path.read_text()), path


def test_local_sh_says_what_it_wants() -> None:
    done = subprocess.run([CLUSTER / "local.sh", "1"], capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
