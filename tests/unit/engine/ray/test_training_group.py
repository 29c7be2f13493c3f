"""Between a group and its driver: what the mailbox keeps, who may begin, and what is said when it fails."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from drs_ray.config import EngineConfig
from drs_ray.engine.placement import Placement
from drs_ray.engine.ray import training_group
from drs_ray.engine.ray.training_group import Mailbox
from drs_ray.errors import ConfigError, DataError


def test_the_board_gives_each_message_once_and_keeps_the_last_state() -> None:
    mailbox = Mailbox("start")
    assert mailbox.begin() == "start"
    mailbox.send("first", None)
    assert mailbox.begin() == "start"
    mailbox.send("second", "state 2")
    assert mailbox.take() == (["first", "second"], None)
    mailbox.send("third", None)
    assert mailbox.begin() == "state 2"
    assert mailbox.take() == (["third"], None)
    assert mailbox.take() == ([], None)


def test_nobody_begins_again_after_an_error_or_a_stop() -> None:
    failed, stopped = Mailbox("start"), Mailbox("start")
    first = DataError("image 3 is gone")
    failed.fail(first)
    failed.fail(DataError("a neighbour's"))
    assert failed.begin() is None
    assert failed.take() == ([], first)
    stopped.stop()
    assert stopped.begin() is None


class _Failed(Exception):
    def __init__(self, worker_failures: dict[int, Exception]) -> None:
        super().__init__("a page of text\nwith a last line")
        self.worker_failures = worker_failures


def test_the_reason_is_the_first_workers_own_last_line() -> None:
    by_rank: dict[int, Exception] = {2: ValueError("later"), 1: RuntimeError("a traceback\nRuntimeError: on purpose")}
    assert training_group._reason(_Failed(by_rank)) == "worker 1: RuntimeError: on purpose"
    assert training_group._reason(_Failed({})) == "with a last line"


class _Cluster:
    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 3.0}}] * 2


def test_room_is_needed_for_all_workers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_group, "ray", _Cluster())
    notes: list[str] = []
    local, cluster = EngineConfig(cpus_per_worker=2), EngineConfig(cpus_per_worker=2, address="auto")
    for engine in (local, cluster):
        training_group._check_room(engine, Placement.of(engine), 2, notes.append)
    assert notes == []
    with pytest.raises(ConfigError, match=r"training.workers: this machine's Ray has room for 2: asked for 3 workers"):
        training_group._check_room(local, Placement.of(local), 3, notes.append)
    training_group._check_room(cluster, Placement.of(cluster), 3, notes.append)
    assert len(notes) == 1
    assert notes[0].startswith(
        "the cluster has no room for 3 workers with 2 CPUs and 0 GPUs per worker at once; there: 2"
    )


def test_workers_that_train_together_share_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_group, "ray", _Cluster())
    engine = EngineConfig(device="cuda", gpus_per_worker=0.5, address="auto")
    with pytest.raises(
        ConfigError, match=r"engine.gpus_per_worker: training.workers \(2\) need a whole GPU each, got 0.5"
    ):
        training_group._check_room(engine, Placement.of(engine), 2, lambda note: None)
    training_group._check_room(engine, Placement.of(engine), 1, lambda note: None)
    whole = engine.model_copy(update={"gpus_per_worker": 1.0})
    training_group._check_room(whole, Placement.of(whole), 2, lambda note: None)


class _Unended:
    """A group that goes on, and a mailbox whose job has failed for good."""

    cancelled = False
    stopped = False

    def wait(self, tasks: list[object], timeout: float) -> tuple[list[object], list[object]]:
        return [], tasks

    def get(self, reference: object) -> object:
        return reference

    def cancel(self, task: object, force: bool) -> None:
        self.cancelled = force


def test_a_group_whose_work_cannot_succeed_is_ended_before_ray_train_begins_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = _Unended()
    monkeypatch.setattr(training_group, "ray", ray)
    failure = DataError("image 3 is gone")
    mailbox = SimpleNamespace(
        take=SimpleNamespace(remote=lambda: (["last"], failure)), stop=SimpleNamespace(remote=lambda: None)
    )
    heard: list[str] = []
    with pytest.raises(DataError, match="image 3 is gone"):
        training_group._follow("fitting", mailbox, heard.append)
    assert heard == ["last"]
    assert ray.cancelled


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_fails_tells_and_waits_to_be_ended(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To raise at once would end the group while the driver does not know yet, and begin another."""
    told: list[object] = []
    waited: list[float] = []
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: workers)
    monkeypatch.setattr(training_group, "ray", _Unended())
    monkeypatch.setattr(training_group, "get_context", lambda: context)
    monkeypatch.setattr(training_group, "get_device", lambda: "cpu")
    monkeypatch.setattr(training_group.time, "sleep", lambda seconds: waited.append(seconds))
    failure = DataError("image 3 is gone")

    def work(*arguments: object) -> None:
        raise failure

    mailbox = SimpleNamespace(
        begin=SimpleNamespace(remote=lambda: "start"), fail=SimpleNamespace(remote=lambda error: told.append(error))
    )
    config = {"job": SimpleNamespace(work=work), "mailbox": mailbox, "directory": "/nowhere", "threads": 1}
    with nullcontext() if workers == 1 else pytest.raises(DataError):
        training_group._work(config)
    assert told == [failure]
    assert waited == ([] if workers == 1 else [training_group._END_SECONDS])
