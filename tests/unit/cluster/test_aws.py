"""cluster/aws.yaml: what `ray up` makes of it, and what AWS (as moto imitates it) makes of that."""

from __future__ import annotations

import copy
import json
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from moto import mock_aws

CLUSTER = Path(__file__).parents[3] / "cluster"
REGION = "us-east-1"
IMAGE = "ami-0123456789abcdef0"
GROUP = "sg-0123456789abcdef0"


def _config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def ray_util() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Ray's launcher warns of when imported is not ours
        from ray.autoscaler._private import util
    return util


def test_ray_up_takes_it_and_refuses_a_misspelt_key(ray_util: Any) -> None:
    ray_util.validate_config(ray_util.prepare_config(_config()))
    with pytest.raises(Exception, match="max_worker"):
        ray_util.validate_config(ray_util.prepare_config(_config() | {"max_worker": 8}))


def _request(node_config: dict[str, Any]) -> dict[str, Any]:
    return {"MinCount": 1, "MaxCount": 1, **node_config}


def _mistakes(node_config: dict[str, Any]) -> str:
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    report: str = ParamValidator().validate(_request(node_config), shape).generate_report()
    return report


def test_node_configs_are_requests_that_ec2_knows() -> None:
    for kind in _config()["available_node_types"].values():
        assert _mistakes(kind["node_config"]) == ""
    assert "Unknown parameter" in _mistakes({"InstanceTyp": "m6i.xlarge"})


def test_workers_are_spot_and_the_head_is_not() -> None:
    kinds = _config()["available_node_types"]
    assert kinds["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert (kinds["gpu"]["min_workers"], kinds["gpu"]["max_workers"]) == (0, _config()["max_workers"])
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]
    assert kinds["head"]["resources"] == {"CPU": 0}


def test_a_token_and_no_public_port() -> None:
    config = _config()
    options = config["docker"]["run_options"]
    path = "/home/ray/.ray/auth_token"
    assert "--env RAY_AUTH_MODE=token" in options
    assert f"--env RAY_AUTH_TOKEN_PATH={path}" in options
    assert config["file_mounts"] == {path: "~/.ray/auth_token"}
    assert config["provider"]["use_internal_ips"] is True
    assert config["auth"]["ssh_proxy_use_node_id"] is True
    start = shlex.split(config["head_start_ray_commands"][-1])
    assert "--dashboard-host=127.0.0.1" in start


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, str]]:
    """moto's AWS with the prerequisites of docs/clusters.md: group, private subnet, profiles with policies."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "moto")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("HOME", str(tmp_path))  # ray up keeps its ssh key there
    with mock_aws():
        ec2 = boto3.resource("ec2", region_name=REGION)
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")
        subnet = vpc.create_subnet(CidrBlock="10.0.0.0/24", AvailabilityZone=f"{REGION}a")
        group = ec2.create_security_group(GroupName="drs-ray", Description="drs-ray", VpcId=vpc.id)
        group.authorize_ingress(
            IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group.id}]}],
        )
        image = boto3.client("ec2", region_name=REGION).describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        iam = boto3.client("iam", region_name=REGION)
        for kind in ("head", "worker"):
            name = f"drs-ray-{kind}"
            trust = (CLUSTER / "iam" / "ec2-trust.json").read_text()
            iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)
            for policy in ("s3", "nodes", *(["head"] if kind == "head" else [])):
                document = (CLUSTER / "iam" / f"{policy}.json").read_text()
                iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=document)
            iam.create_instance_profile(InstanceProfileName=name)
            iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        yield {"subnet": subnet.id, GROUP: group.id, IMAGE: image}


def _with_own_values(account: dict[str, str]) -> dict[str, Any]:
    text = (CLUSTER / "aws.yaml").read_text()
    for placeholder in (GROUP, IMAGE):
        assert placeholder in text
        text = text.replace(placeholder, account[placeholder])
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def test_a_launch_of_a_head_and_a_worker(ray_util: Any, account: dict[str, str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        prepared = ray_util.prepare_config(_with_own_values(account))
        config = bootstrap_aws(copy.deepcopy(prepared))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for kind in ("head", "gpu"):
            node = config["available_node_types"][kind]["node_config"] | config.get("head_node", {})
            provider.create_node(node, {"ray-node-type": kind, "ray-user-node-type": kind}, 1)
    ec2 = boto3.resource("ec2", region_name=REGION)
    launched = list(ec2.instances.all())
    assert len(launched) == 2
    for instance in launched:
        tags = {tag["Key"]: tag["Value"] for tag in instance.tags}
        is_head = tags["ray-node-type"] == "head"
        assert tags["ray-cluster-name"] == "drs-ray"  # what cluster/iam/head.json lets the head end
        assert instance.image_id == account[IMAGE]
        assert instance.subnet_id == account["subnet"]
        assert instance.instance_lifecycle == (None if is_head else "spot")
        assert instance.iam_instance_profile["Arn"].endswith("drs-ray-head" if is_head else "drs-ray-worker")
        assert [group["GroupId"] for group in instance.security_groups] == [account[GROUP]]
    rules = [rule for group in ec2.security_groups.all() for rule in group.ip_permissions]
    assert not [source for rule in rules for source in rule["IpRanges"]]  # ray up has opened nothing to any address


def test_policies_are_well_formed_and_about_this_cluster() -> None:
    head = json.loads((CLUSTER / "iam" / "head.json").read_text())
    statements = {statement["Sid"]: statement for statement in head["Statement"]}
    name = statements["EndOwnNodes"]["Condition"]["StringEquals"]["ec2:ResourceTag/ray-cluster-name"]
    assert name == _config()["cluster_name"]
    passed = statements["GiveWorkersTheirRole"]["Resource"]
    worker = _config()["available_node_types"]["gpu"]["node_config"]["IamInstanceProfile"]["Name"]
    assert passed.endswith(f":role/{worker}")
    for file in sorted((CLUSTER / "iam").glob("*.json")):
        for statement in json.loads(file.read_text())["Statement"]:
            assert "*" not in json.dumps(statement["Action"]), file.name
