"""cluster/kuberay/: every manifest against its schema, and what must hold across them."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from drs_ray.cli import app

FOLDER = Path(__file__).parents[3] / "cluster" / "kuberay"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
RAY_FILES = ["raycluster.yaml", "rayjob.yaml", "rayjob-s3-compatible.yaml"]
SCHEMA = json.loads(Path(__file__).with_name("kuberay.v1.json").read_text())
KUBERNETES = "1.33"


def _read(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return loaded


def _cluster(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = _read(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def _pods(name: str) -> dict[str, dict[str, Any]]:
    cluster = _cluster(name)
    groups = {"head": cluster["headGroupSpec"], **{g["groupName"]: g for g in cluster["workerGroupSpecs"]}}
    return {kind: group["template"] for kind, group in groups.items()}


def _check(manifest: dict[str, Any]) -> None:
    if manifest["apiVersion"] == "ray.io/v1":
        schema = {**SCHEMA, "$ref": f"#/$defs/{manifest['kind']}"}
        jsonschema.Draft202012Validator(schema).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def _check_pod(template: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", **template["metadata"]}}
    kubernetes_validate.validate(pod | {"spec": template["spec"]}, KUBERNETES, strict=True)


def test_all_files_are_known() -> None:
    assert set(RAY_FILES) < set(FILES)
    assert "https://github.com/ray-project/kuberay" in SCHEMA["$comment"]  # it says where it comes from


@pytest.mark.parametrize("name", FILES)
def test_manifests_fit_their_schema(name: str) -> None:
    _check(_read(name))


@pytest.mark.parametrize("name", RAY_FILES)
def test_pods_fit_kubernetes(name: str) -> None:
    for template in _pods(name).values():
        _check_pod(template)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayClusterSpec", "authOption"), {"mode": "token"}),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "autoscalerOptions", "version"), "v3"),
        (("spec", "submissionMode"), "K8sMode"),
        (("spec", "backoffLimit"), "two"),
    ],
)
def test_the_schema_refuses_mistakes(path: tuple[str, ...], value: object) -> None:
    manifest = copy.deepcopy(_read("rayjob.yaml"))
    place = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        _check(manifest)


def test_the_pod_check_refuses_mistakes() -> None:
    template = copy.deepcopy(_pods("rayjob.yaml")["gpu"])
    template["spec"]["toleration"] = template["spec"].pop("tolerations")
    with pytest.raises(kubernetes_validate.ValidationError):
        _check_pod(template)


@pytest.mark.parametrize("name", RAY_FILES)
def test_token_autoscaler_and_gpus(name: str) -> None:
    cluster = _cluster(name)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert (group["minReplicas"], group["replicas"]) == (0, 0)
        spec = group["template"]["spec"]
        assert spec["restartPolicy"] == "Never"
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
        assert [box["resources"]["limits"]["nvidia.com/gpu"] for box in spec["containers"]] == ["1"]


@pytest.mark.parametrize("name", RAY_FILES)
def test_pods_have_no_more_rights_than_they_need(name: str) -> None:
    for template in _pods(name).values():
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for box in template["spec"]["containers"]:
            assert box["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(template["spec"])


def test_access_to_the_store() -> None:
    account = _read("service-account.yaml")
    assert list(account["metadata"]["annotations"]) == ["eks.amazonaws.com/role-arn"]
    secret = _read("s3-secret.yaml")
    for name in RAY_FILES:
        for template in _pods(name).values():
            sources = [source for box in template["spec"]["containers"] for source in box.get("envFrom", [])]
            if name == "rayjob-s3-compatible.yaml":
                assert "serviceAccountName" not in template["spec"]
                assert sources == [{"secretRef": {"name": secret["metadata"]["name"]}}]
            else:
                assert template["spec"]["serviceAccountName"] == account["metadata"]["name"]
                assert sources == []


def test_the_network_policy_is_about_these_pods() -> None:
    chosen = _read("network-policy.yaml")["spec"]["podSelector"]["matchLabels"]
    for name in RAY_FILES:
        for template in _pods(name).values():
            assert chosen.items() <= template["metadata"]["labels"].items()


@pytest.mark.parametrize("name", ["rayjob.yaml", "rayjob-s3-compatible.yaml"])
def test_the_entrypoint_is_a_command_whose_config_is_mounted(name: str) -> None:
    python, option, package, command, *arguments = shlex.split(_read(name)["spec"]["entrypoint"])
    assert (python, option, package, command) == ("python", "-m", "drs_ray", "certify")
    typer.main.get_command(app).commands[command].make_context(command, list(arguments))
    head = _pods(name)["head"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]}
    config_map = next(v["name"] for v in head["volumes"] if v.get("configMap") == {"name": "drs-ray-config"})
    assert arguments[0] == f"{mounts[config_map]}/config.yaml"
