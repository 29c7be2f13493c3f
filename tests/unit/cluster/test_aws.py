"""cluster/aws.yaml: what `ray up` makes of it, and what AWS (as moto imitates it) makes of that."""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import boto3
import botocore.session
import pytest
import yaml
from botocore.client import BaseClient
from botocore.validate import ParamValidator
from moto import mock_aws

CLUSTER = Path(__file__).parents[3] / "cluster"
REGION = "us-east-1"
IMAGE = "ami-0123456789abcdef0"
GROUP = "sg-0123456789abcdef0"
SUBNET = "subnet-0123456789abcdef0"


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
    """What Ray asks of EC2: it tries the subnets, its own key, one after another."""
    rest = {key: value for key, value in node_config.items() if key != "SubnetIds"}
    return {"MinCount": 1, "MaxCount": 1, **rest, "SubnetId": node_config.get("SubnetIds", [SUBNET])[0]}


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


class Machines:
    """In place of `subprocess`: writes down what Ray's launcher would do over ssh, answers as a new machine would."""

    PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
    CalledProcessError = subprocess.CalledProcessError
    ANSWERS: ClassVar = {
        "command -v docker": b"/usr/bin/docker",
        "cat /proc/meminfo": b"MemAvailable: 16000000 kB",
        ".Config.Env": b'["PATH=/usr/local/bin:/usr/bin:/bin"]',
        "printenv HOME": b"/home/ray",
    }

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.sent: dict[str, bytes] = {}

    def check_output(self, command: Sequence[str], **options: object) -> bytes:
        self.commands.append(" ".join(command))
        if command[0] == "rsync":
            self.sent[command[-1].rpartition("/")[2]] = Path(command[-2]).read_bytes()
        return next((answer for part, answer in self.ANSWERS.items() if part in self.commands[-1]), b"")

    def check_call(self, command: Sequence[str], **options: object) -> int:
        self.check_output(command)
        return 0

    def first(self, *parts: str) -> int:
        """Position of the first command that has all parts."""
        return next(n for n, command in enumerate(self.commands) if all(part in command for part in parts))


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
        yield {SUBNET: subnet.id, GROUP: group.id, IMAGE: image}


def _with_own_values(account: dict[str, str]) -> dict[str, Any]:
    text = (CLUSTER / "aws.yaml").read_text()
    for placeholder in (GROUP, SUBNET, IMAGE):
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
        assert instance.subnet_id == account[SUBNET]
        assert instance.instance_lifecycle == (None if is_head else "spot")
        assert instance.iam_instance_profile["Arn"].endswith("drs-ray-head" if is_head else "drs-ray-worker")
        assert [group["GroupId"] for group in instance.security_groups] == [account[GROUP]]
    rules = [rule for group in ec2.security_groups.all() for rule in group.ip_permissions]
    assert not [source for rule in rules for source in rule["IpRanges"]]  # ray up has opened nothing to any address


def test_what_ray_up_does_on_the_machines(ray_util: Any, account: dict[str, str], tmp_path: Path) -> None:
    """A head and a worker set up by Ray's own launcher; nothing is executed, all commands are seen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
        from ray.autoscaler._private.commands import get_or_create_head_node

        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("the token")
        config = bootstrap_aws(ray_util.prepare_config(_with_own_values(account)))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        head = Machines()
        get_or_create_head_node(
            config, "aws.yaml", False, False, True, config["cluster_name"], _provider=provider, _runner=head
        )
        (node,) = provider.create_node(
            config["available_node_types"]["gpu"]["node_config"],
            {"ray-node-type": "worker", "ray-user-node-type": "gpu"},
            1,
        )
        remote = json.loads(head.sent["ray_bootstrap_config.yaml"])
        worker = Machines()
        runner = provider.get_command_runner(
            "", node, remote["auth"], remote["cluster_name"], worker, True, remote["docker"]
        )
        runner.run_init(as_head=False, file_mounts=remote["file_mounts"], sync_run_yet=True)
    assert head.sent["auth_token"] == b"the token"
    begun = head.first("docker run", "--env RAY_AUTH_MODE=token", ":/home/ray/.ray/auth_token")
    assert (
        head.first("rsync --rsh", "auth_token") < begun < head.first("ray start --head", "--dashboard-host=127.0.0.1")
    )
    assert worker.first("docker run", "--env RAY_AUTH_MODE=token", ":/home/ray/.ray/auth_token", "--gpus all")
    assert "--gpus" not in head.commands[begun]
    # From outside by Session Manager and instance id; from the head to its workers by their private addresses.
    assert all("aws ssm start-session" in command for command in head.commands)
    assert not {"ssh_proxy_command", "ssh_proxy_use_node_id"} & set(remote["auth"])
    assert all(f"ubuntu@{provider.internal_ip(node)}" in command for command in worker.commands)


def test_the_heads_policy_is_what_its_autoscaler_asks_of_ec2(
    ray_util: Any, account: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        config = bootstrap_aws(ray_util.prepare_config(_with_own_values(account)))
    asked = set()
    genuine = BaseClient._make_api_call  # type: ignore[attr-defined]

    def recorded(client: BaseClient, operation: str, parameters: dict[str, object]) -> object:
        asked.add(f"{client.meta.service_model.service_name}:{operation}")
        return genuine(client, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", recorded)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    tags = {"ray-node-type": "worker", "ray-user-node-type": "gpu"}
    (node,) = provider.create_node(config["available_node_types"]["gpu"]["node_config"], tags, 1)
    assert provider.non_terminated_nodes(tags) == [node]
    assert provider.internal_ip(node)
    provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
    provider.terminate_node(node)
    statements = json.loads((CLUSTER / "iam" / "head.json").read_text())["Statement"]
    allowed = {action for statement in statements for action in statement["Action"]}
    assert allowed == asked | {"iam:PassRole"}  # what RunInstances with a profile needs besides


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
