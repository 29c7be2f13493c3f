"""What a worker asks for, and how many of them a node can hold."""

from __future__ import annotations

from typing import Any

import pytest

from drs_ray.config import EngineConfig
from drs_ray.engine.placement import Placement
from drs_ray.errors import ConfigError


def node(resources: dict[str, float], labels: dict[str, str] | None = None, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources, "Labels": labels or {}}


@pytest.mark.parametrize(
    ("cpus", "gpus", "resources", "workers"),
    [
        (0.1, 0, {"CPU": 1.0}, 10),  # 1 // 0.1 is 9
        (0.1, 0, {"CPU": 0.3}, 3),
        (0.3, 0, {"CPU": 1.0}, 3),
        (2, 0, {"CPU": 3.0}, 1),
        (1, 0, {}, 0),
        (1, 1, {"CPU": 64.0}, 0),
        (1, 1, {"CPU": 64.0, "GPU": 8.0}, 8),
        (4, 1, {"CPU": 16.0, "GPU": 8.0}, 4),
        (1, 2, {"CPU": 64.0, "GPU": 3.0}, 1),
        (1, 0.1, {"CPU": 64.0, "GPU": 1.0}, 10),
        (1, 0.4, {"CPU": 64.0, "GPU": 2.0}, 4),  # a worker's share is of one GPU
    ],
)
def test_workers_on_a_node(cpus: float, gpus: float, resources: dict[str, float], workers: int) -> None:
    assert Placement(cpus, gpus, {}, {}).workers_on(node(resources)) == workers
    assert Placement(cpus, gpus, {}, {}).workers_on(node(resources, alive=False)) == 0


def test_gpus_are_whole_or_a_share_of_one() -> None:
    assert Placement.of(EngineConfig(device="cuda", gpus_per_worker=2)).gpus == 2
    with pytest.raises(ConfigError, match=r"engine.gpus_per_worker: must be at most 1 or a whole number, got 1.5"):
        Placement.of(EngineConfig(device="cuda", gpus_per_worker=1.5))


def test_custom_resources_bound_the_workers_of_a_node() -> None:
    placement = Placement(1.0, 0.0, {"fast_disk": 0.5, "zone_a": 1}, {})
    assert placement.workers_on(node({"CPU": 8.0, "fast_disk": 1.0, "zone_a": 5.0})) == 2
    assert placement.workers_on(node({"CPU": 8.0, "fast_disk": 1.0})) == 0


@pytest.mark.parametrize(
    ("selector", "label", "fits"),
    [
        ("A100", "A100", True),
        ("A100", "H100", False),
        ("A100", None, False),
        ("!A100", "A100", False),
        ("!A100", "H100", True),
        ("!A100", None, True),
        ("in(A100, H100)", "H100", True),
        ("in(A100,H100)", "A10", False),
        ("in(A100)", None, False),
        ("!in(A100, H100)", "H100", False),
        ("!in(A100, H100)", "A10", True),
        ("!in(A100, H100)", None, True),
    ],
)
def test_label_selectors(selector: str, label: str | None, fits: bool) -> None:
    placement = Placement(1.0, 0.0, {}, {"accelerator": selector})
    labels = {"other": "A100"} | ({} if label is None else {"accelerator": label})
    assert placement.workers_on(node({"CPU": 2.0}, labels)) == (2 if fits else 0)


def test_all_labels_must_fit() -> None:
    placement = Placement(1.0, 0.0, {}, {"zone": "a", "kind": "!spot"})
    assert placement.allows(node({}, {"zone": "a"}))
    assert not placement.allows(node({}, {"zone": "a", "kind": "spot"}))
    assert not placement.allows(node({}, {"kind": "steady"}))


def test_a_worker_on_cuda_has_a_gpu_of_its_own_unless_the_config_says_otherwise() -> None:
    assert Placement.of(EngineConfig(device="cuda")).gpus == 1.0
    assert Placement.of(EngineConfig(device="cuda", gpus_per_worker=0.25)).gpus == 0.25
    assert Placement.of(EngineConfig(device="cpu")).gpus == 0.0


def test_what_is_asked_for_and_what_is_there_in_words() -> None:
    placement = Placement(2.0, 0.5, {"fast": 1}, {"zone": "a"})
    assert placement.needs == "2 CPUs and 0.5 GPUs and 1 fast per worker, on nodes labelled zone=a"
    nodes = [
        node({"CPU": 4.0, "fast": 2.0}, {"zone": "a"}),
        node({"CPU": 8.0, "GPU": 1.0}),
        node({"CPU": 99.0}, {"zone": "a"}, alive=False),
    ]
    assert placement.nodes_text(nodes) == "2 nodes with 12 CPUs, 1 GPU, 2 fast, 1 of them so labelled"
    assert placement.free({"CPU": 3.0, "memory": 1e9}, nodes) == "3 CPUs, 0 GPUs, 0 fast, 1 of 2 nodes so labelled"
    assert Placement(1.0, 1.0, {}, {}).free({"CPU": 3.0}, nodes) == "3 CPUs, 0 GPUs"


def test_options_of_the_actor() -> None:
    assert Placement(2.0, 0.5, {"fast": 1}, {"zone": "a"}).options == {
        "num_cpus": 2.0,
        "num_gpus": 0.5,
        "resources": {"fast": 1},
        "label_selector": {"zone": "a"},
    }


def test_resources_of_a_group_of_ray_train() -> None:
    assert Placement(2.0, 0.5, {"fast": 1}, {}).needed == {"CPU": 2.0, "GPU": 0.5, "fast": 1}
    assert Placement(1.0, 0.0, {}, {}).needed == {"CPU": 1.0}
