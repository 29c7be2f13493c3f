"""The dispatcher against a Ray that fails as scripted: who is blamed, what is tried again, and that no actor stays."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from ray.exceptions import LocalRayletDiedError, NodeDiedError, OutOfMemoryError, RaySystemError

from drs_ray.counts.plan import Draw, Unit
from drs_ray.engine import unit_failures
from drs_ray.engine.outcome import Outcome
from drs_ray.engine.ray import dispatcher
from drs_ray.engine.ray.dispatcher import Dispatcher
from drs_ray.engine.ray.failures import node_was_lost
from drs_ray.errors import ClassifierError, CountsError, DeviceLostError, EngineError, InterruptedRunError, StoreError
from tests.unit.engine.factories import Recorder, unit
from tests.unit.engine.ray.fake_ray import HANGS, Actor, After, FakeRay, died, node_died, raised, unreachable

UNITS = [unit(number, sub_image) for number in range(6) for sub_image in (0, 1)]


def dispatched(
    monkeypatch: pytest.MonkeyPatch,
    fake: FakeRay,
    units: Sequence[Unit] = UNITS,
    *,
    workers: int | Callable[[], int] = 2,
    further: Callable[[Unit, Any], Sequence[Unit]] = lambda unit, result: [],
    stall_seconds: float = 900.0,
    hang_seconds: float = 1000.0,
    recorder: Recorder | None = None,
) -> tuple[dict[Unit, str], Recorder]:
    """Run to the end on the fake; no actor may be left then, however it ended."""
    monkeypatch.setattr(dispatcher, "ray", fake)
    monkeypatch.setattr(dispatcher, "time", fake)
    recorder = recorder or Recorder()

    def done(unit: Unit, outcome: Outcome) -> Sequence[Unit]:
        recorder.unit_done(unit, outcome)
        return further(unit, outcome)

    run = Dispatcher(
        units,
        start=fake.start,
        call=fake.call,
        done=done,
        limit=workers if callable(workers) else lambda: workers,
        hang_seconds=hang_seconds,
        needs="1 CPU and 1 GPU per worker",
        free=lambda available: f"{available['CPU']:g} CPUs, 0 GPUs",
        observer=recorder,
    )
    try:
        set_aside = run.run(stall_seconds)
    finally:
        assert not fake.alive
    assert not any(pool.starting or pool.working for pool in run._pools.values())
    return set_aside, recorder


def first_time(*failures: Any) -> Callable[[Actor, Any], Any]:
    """The first calls fail so; all later ones are well."""
    left = list(failures)
    return lambda actor, what: left.pop(0) if left else None


def always(unlucky: Unit, failure: Exception) -> Callable[[Actor, Any], Any]:
    """One unit always fails so."""
    return lambda actor, what: failure if what == unlucky else None


# units


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("workers", [1, 2, 5, 50])
def test_every_unit_is_done_once(monkeypatch: pytest.MonkeyPatch, workers: int, at_once: int) -> None:
    fake = FakeRay(at_once=at_once)
    set_aside, recorder = dispatched(monkeypatch, fake, workers=workers)
    assert set_aside == {}
    assert Counter(recorder.done) == Counter(UNITS)
    assert recorder.events == []
    assert fake.most_alive <= workers
    assert all(actor.sub_image == unit.sub_image for actor, unit in fake.units)


def test_nothing_to_do_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    assert dispatched(monkeypatch, fake, [])[0] == {}
    assert fake.started == []


def test_a_worker_that_dies_gives_its_unit_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=first_time(died()))
    set_aside, recorder = dispatched(monkeypatch, fake)
    assert set_aside == {}
    assert Counter(recorder.done) == Counter(UNITS)
    (first, lost), *others = fake.units
    assert [actor for actor, unit in others if unit == lost] != [first]
    assert first not in [actor for actor, _ in others]
    assert recorder.events == [
        f"lost a worker at {lost.key}: ActorDiedError: The actor is dead because its worker process has died.; "
        "the unit is tried again"
    ]


def test_a_worker_without_its_gpu_is_ended_and_its_unit_goes_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=first_time(raised(DeviceLostError("the GPU no longer works in this process"))))
    set_aside, recorder = dispatched(monkeypatch, fake)
    assert set_aside == {}
    assert Counter(recorder.done) == Counter(UNITS)
    (first, lost), *others = fake.units
    assert first not in [actor for actor, _ in others]
    assert recorder.events == [
        f"lost a worker at {lost.key}: the GPU no longer works in this process; the unit is tried again"
    ]


def test_a_worker_that_loses_its_gpu_while_starting_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = raised(DeviceLostError("the GPU no longer works in this process"))
    fake = FakeRay(on_start=first_time(lost))
    set_aside, recorder = dispatched(monkeypatch, fake)
    assert set_aside == {}
    assert Counter(recorder.done) == Counter(UNITS)
    assert len([event for event in recorder.events if "was lost while starting: the GPU no longer works" in event]) == 1


@pytest.mark.parametrize("failure", [died(), OutOfMemoryError("the node is low on memory")])
def test_five_kills_set_a_unit_aside(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    fake = FakeRay(on_unit=always(UNITS[3], failure))
    set_aside, recorder = dispatched(monkeypatch, fake)
    assert list(set_aside) == [UNITS[3]]
    assert set_aside[UNITS[3]].startswith("took down 5 workers, last: ")
    assert Counter(recorder.done) == Counter(UNITS) - Counter([UNITS[3]])
    assert [unit for _, unit in fake.units].count(UNITS[3]) == 5


@pytest.mark.parametrize(
    "failure", [node_died(), unreachable(), died("preempted", preempted=True), NodeDiedError("gone")]
)
def test_lost_nodes_are_not_blamed_on_the_unit(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    unlucky = first_time(*[failure] * 20, *[died()] * 4)
    fake = FakeRay(on_unit=lambda actor, what: unlucky(actor, what) if what == UNITS[0] else None)
    set_aside, recorder = dispatched(monkeypatch, fake)
    assert set_aside == {}
    assert Counter(recorder.done) == Counter(UNITS)


def test_a_unit_whose_nodes_are_lost_for_ever_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=always(UNITS[0], node_died()))
    set_aside, recorder = dispatched(monkeypatch, fake)
    assert [unit for _, unit in fake.units].count(UNITS[0]) == unit_failures.NODES_BEFORE_SET_ASIDE
    assert set_aside[UNITS[0]].startswith("lost 50 nodes, last: ActorDiedError: ")
    assert len(recorder.done) == len(UNITS) - 1


def test_what_tells_a_lost_node_from_a_dead_process() -> None:
    assert all(map(node_was_lost, [node_died(), unreachable(), died(preempted=True), NodeDiedError("gone")]))
    assert not any(map(node_was_lost, [died(), OutOfMemoryError("low")]))


def test_a_unit_that_raises_is_set_aside_and_its_worker_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=always(UNITS[0], raised(ClassifierError("NaN or infinite logits"))))
    set_aside, recorder = dispatched(monkeypatch, fake)
    assert set_aside == {UNITS[0]: "NaN or infinite logits"}
    assert len(fake.started) == 2
    assert len(recorder.done) == len(UNITS) - 1


def test_a_foreign_exception_is_named_by_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=always(UNITS[0], raised(KeyError("lost"))))
    assert dispatched(monkeypatch, fake)[0] == {UNITS[0]: "KeyError: 'lost'"}


def test_units_that_all_raise_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=lambda actor, what: raised(ClassifierError("NaN")), at_once=7)
    with pytest.raises(EngineError, match="the last 20 units all failed, giving up; last cause: NaN"):
        dispatched(monkeypatch, fake, [unit(number) for number in range(100)], workers=10)


def test_a_unit_that_could_not_be_stored_is_tried_again_after_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=first_time(raised(StoreError("503 Slow Down"))))
    units = [unit(number) for number in range(5)]
    set_aside, recorder = dispatched(monkeypatch, fake, units, workers=1)
    assert set_aside == {}
    assert Counter(recorder.done) == Counter(units)
    order = [unit for _, unit in fake.units]
    assert order.count(units[0]) == 2
    assert order[1] != units[0]
    assert recorder.events == [f"could not store {units[0].key}: 503 Slow Down; the unit is tried again"]


def test_a_last_unit_that_could_not_be_stored_is_tried_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=first_time(raised(StoreError("503"))))
    set_aside, recorder = dispatched(monkeypatch, fake, [unit(0)])
    assert set_aside == {}
    assert recorder.done == [unit(0)]


def test_a_unit_that_can_never_be_stored_is_set_aside_after_three_more_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=always(UNITS[0], raised(StoreError("disk full"))))
    set_aside, recorder = dispatched(monkeypatch, fake)
    assert set_aside == {UNITS[0]: "disk full"}
    assert [unit for _, unit in fake.units].count(UNITS[0]) == 4
    assert len(recorder.done) == len(UNITS) - 1


def test_a_store_that_is_gone_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=lambda actor, what: raised(StoreError("no such bucket")))
    with pytest.raises(EngineError, match="the last 20 units all failed, giving up; last cause: no such bucket"):
        dispatched(monkeypatch, fake)


def test_a_worker_that_hangs_is_ended_and_its_unit_done_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs_once = first_time(*[None] * 3, HANGS)
    fake = FakeRay(on_unit=lambda actor, what: hangs_once(actor, what) or After(10.0))
    set_aside, recorder = dispatched(monkeypatch, fake)
    assert set_aside == {}
    assert Counter(recorder.done) == Counter(UNITS)
    stuck, late = fake.units[3]
    assert stuck in fake.killed
    assert len([unit for _, unit in fake.units if unit == late]) == 2
    (event,) = recorder.events
    assert event.startswith(f"lost a worker at {late.key}: gave no answer for 1")
    assert 1000.0 < fake.now < 1500.0  # 1000 s more than twenty times the 10 s of a unit


def test_a_unit_on_which_every_worker_hangs_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=lambda actor, what: HANGS if what == UNITS[3] else None)
    set_aside, recorder = dispatched(monkeypatch, fake)
    assert set_aside[UNITS[3]].startswith("took down 5 workers, last: gave no answer for 1")
    assert Counter(recorder.done) == Counter(UNITS) - Counter([UNITS[3]])


def test_units_much_larger_than_the_first_are_given_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    large = Unit(0, (100, 100), (100,), (Draw("estimation", 0, 0, 10_000),))
    fake = FakeRay(on_unit=lambda actor, what: After(10_000.0 if what == large else 1.0))
    set_aside, recorder = dispatched(monkeypatch, fake, [*UNITS, large])
    assert set_aside == {}
    assert recorder.events == []


def test_a_slow_first_unit_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=first_time(After(50_000.0), After(50_000.0)))
    set_aside, recorder = dispatched(monkeypatch, fake)
    assert set_aside == {}
    assert [event.split(" in ")[0] for event in recorder.events] == [
        "sub-image 0: no unit was done",
        "sub-image 1: no unit was done",
    ]


# further units


def test_what_a_finished_unit_calls_for_is_done_before_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    further = [unit(100), unit(101)]
    fake = FakeRay(on_unit=lambda actor, what: f"part of {what.key}")
    seen = []

    def call_for(done: Unit, result: Any) -> list[Unit]:
        seen.append(result)
        return further if done == unit(0) else []

    units = [unit(number) for number in range(4)]
    _, recorder = dispatched(monkeypatch, fake, units, workers=1, further=call_for)
    assert recorder.done == [unit(0), *further, *units[1:]]
    assert recorder.further == further
    assert seen == [f"part of {done.key}" for done in recorder.done]


def test_further_units_of_a_sub_image_that_had_none_get_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    other = unit(0, sub_image=1)
    _, recorder = dispatched(
        monkeypatch, fake, [unit(0)], workers=1, further=lambda done, result: [other] if done == unit(0) else []
    )
    assert recorder.done == [unit(0), other]


def test_an_error_in_what_follows_leaves_no_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    def call_for(done: Unit, result: Any) -> list[Unit]:
        raise CountsError("a part that cannot be trusted")

    with pytest.raises(CountsError, match="cannot be trusted"):
        dispatched(monkeypatch, FakeRay(at_once=5), workers=5, further=call_for)


# workers


def test_the_sub_image_with_most_to_do_has_most_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    dispatched(monkeypatch, fake, [*(unit(n) for n in range(30)), *(unit(n, 1) for n in range(10))], workers=4)
    assert Counter(actor.sub_image for actor in fake.started[:4]) == {0: 3, 1: 1}


def test_places_move_to_the_sub_image_that_has_work_left(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=lambda actor, what: After(10.0 if what.sub_image else 1.0))
    units = [*(unit(number) for number in range(10)), *(unit(number, 1) for number in range(12))]
    dispatched(monkeypatch, fake, units, workers=2)
    assert [actor.sub_image for actor in fake.started] == [1, 0, 1]
    assert fake.most_alive == 2
    assert fake.now < 75  # 12 units of 10 s, by two workers after the first 10 s


def test_one_place_serves_both_sub_images_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    dispatched(monkeypatch, fake, [unit(0), unit(0, 1), unit(1, 1)], workers=1)
    assert [actor.sub_image for actor in fake.started] == [1, 0]


def test_no_more_workers_are_started_than_there_are_units(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    dispatched(monkeypatch, fake, [unit(0), unit(1), unit(0, 1)], workers=100)
    assert len(fake.started) == 3


def test_starts_that_nobody_needs_any_more_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three never get a node: the first does all their units, and they are ended without an answer."""
    fake = FakeRay(on_start=lambda actor, nth: None if nth == 1 else HANGS)
    units = [unit(number) for number in range(10)]
    set_aside, recorder = dispatched(monkeypatch, fake, units, workers=3)
    assert set_aside == {}
    assert recorder.done == units
    assert fake.killed.count(fake.started[1]) == 1


def test_a_cluster_that_grows_gets_more_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=lambda actor, what: After(1.0))
    dispatched(monkeypatch, fake, [unit(number) for number in range(50)], workers=lambda: 3 if fake.now > 10 else 0)
    assert fake.most_alive == 3
    assert 20 < fake.now < 30  # 10 units by one worker, 40 by three


def test_slow_and_fast_workers_are_all_busy_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit takes one second on two workers, five on the other two, which is no hanging."""
    units = [unit(number) for number in range(120)]
    fake = FakeRay(on_unit=lambda actor, what: After(5.0 if actor.number % 2 else 1.0), at_once=4)
    set_aside, recorder = dispatched(monkeypatch, fake, units, workers=4, hang_seconds=0.1)
    assert set_aside == {}
    assert recorder.events == []
    assert Counter(recorder.done) == Counter(units)
    assert len(fake.started) == 4
    done = Counter(actor.number for actor, _ in fake.units)
    assert 4 * done[1] < done[0] < 6 * done[1]
    assert (
        50 <= fake.now <= 57
    )  # 120 units at 2.4 a second, and at most the last unit of a slow worker; answers take time


def test_without_any_worker_the_run_says_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_start=lambda actor, nth: HANGS)
    with pytest.raises(
        EngineError,
        match=r"no worker could be had for 60 s: asked for 1 CPU and 1 GPU per worker; free: 2 CPUs, 0 GPUs; "
        r"free or add such nodes, .*then resume$",
    ):
        dispatched(monkeypatch, fake, stall_seconds=60)
    assert 60 < fake.now < 63


def test_starts_that_are_lost_for_ever_do_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_start=lambda actor, nth: After(5.0, node_died()))
    with pytest.raises(EngineError, match="no worker could be had"):
        dispatched(monkeypatch, fake, stall_seconds=60)
    assert 60 < fake.now < 70


def test_a_long_unit_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the clock run on while all workers work: losing the last one is not the end."""
    fake = FakeRay(on_unit=first_time(After(1000.0, died())), on_start=lambda actor, nth: After(50.0))
    set_aside, recorder = dispatched(monkeypatch, fake, [unit(0)], stall_seconds=60)
    assert set_aside == {}
    assert recorder.done == [unit(0)]


def test_units_that_pause_are_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=first_time(raised(StoreError("503"))))
    assert dispatched(monkeypatch, fake, [unit(0)], stall_seconds=0.5)[0] == {}
    assert fake.now > unit_failures.RETRY_SECONDS


# what is told of workers


def test_every_second_it_is_told_who_works(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_start=lambda actor, nth: After(3.5), on_unit=lambda actor, what: After(4.0))
    _, recorder = dispatched(monkeypatch, fake, [unit(0), unit(0, 1)], workers=1)
    told = list(zip(recorder.crews[::2], recorder.crews[1::2], strict=True))
    assert [both for both, _ in itertools.groupby(told)] == [
        ((0, 0, 1), (1, 0, 0)),
        ((0, 1, 0), (1, 0, 0)),
        ((0, 0, 0), (1, 0, 1)),
        ((0, 0, 0), (1, 1, 0)),
        ((0, 0, 0), (1, 0, 0)),
    ]
    assert fake.now / 2 < len(told) <= fake.now + 2


def test_answers_in_between_are_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that has hundreds of answers a second does not speak of its workers after each."""
    fake = FakeRay()
    _, recorder = dispatched(monkeypatch, fake, [unit(number) for number in range(500)], workers=1)
    assert fake.now > 5
    assert fake.now - 1 < len(recorder.crews) <= fake.now + 2


def test_a_sub_image_that_comes_later_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=lambda actor, what: After(1.5))
    later = unit(0, sub_image=1)
    _, recorder = dispatched(
        monkeypatch, fake, [unit(0)], workers=1, further=lambda done, result: [later] if done == unit(0) else []
    )
    assert {crew[0] for crew in recorder.crews[:2]} == {0}
    assert (1, 1, 0) in recorder.crews
    assert recorder.crews[-2:] == [(0, 0, 0), (1, 0, 0)]


def test_at_the_end_there_are_no_workers_however_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    fake = FakeRay(on_unit=lambda actor, what: RaySystemError("GCS is gone"))
    with pytest.raises(EngineError, match=LOST):
        dispatched(monkeypatch, fake, workers=4, recorder=recorder)
    assert recorder.crews[-2:] == [(0, 0, 0), (1, 0, 0)]


def test_an_observer_that_fails_at_the_end_does_not_hide_why_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Recorder):
        def workers(self, sub_image: int, working: int, starting: int) -> None:
            if not working and not starting:
                raise OSError(28, "No space left on device")

    fake = FakeRay(on_unit=lambda actor, what: RaySystemError("GCS is gone"))
    with pytest.raises(EngineError, match=LOST):
        dispatched(monkeypatch, fake, [unit(0)], recorder=Failing())


# starts


def test_three_starts_that_die_end_a_run_in_which_none_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_start=lambda actor, nth: died())
    with pytest.raises(EngineError, match=r"sub-image 0: 3 workers in a row died while starting; last: ActorDiedError"):
        dispatched(monkeypatch, fake, [unit(0), unit(1)], workers=1)
    assert len(fake.started) == 3


def test_starts_on_lost_nodes_are_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_start=first_time(*[node_died(), unreachable(), died("preempted", preempted=True)] * 10))
    set_aside, recorder = dispatched(monkeypatch, fake)
    assert set_aside == {}
    assert Counter(recorder.done) == Counter(UNITS)
    assert len(recorder.events) == 30


def test_one_bad_node_does_not_end_a_run_in_which_others_still_start(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_start=lambda actor, nth: died() if nth <= 8 else None)
    units = [unit(number) for number in range(40)]
    set_aside, recorder = dispatched(monkeypatch, fake, units, workers=10)
    assert set_aside == {}
    assert Counter(recorder.done) == Counter(units)


@pytest.mark.parametrize("failure", [died(), raised(ClassifierError("weights.safetensors: not found"))])
def test_one_bad_node_does_not_end_a_run_in_which_others_work(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """The first worker works for long; all others land on the bad node, and are not started without end."""
    fake = FakeRay(on_start=lambda actor, nth: None if nth == 1 else failure, on_unit=lambda actor, what: After(30.0))
    units = [unit(number) for number in range(200)]
    set_aside, recorder = dispatched(monkeypatch, fake, units, workers=3)
    assert set_aside == {}
    assert recorder.done == units
    assert 200 < len(fake.started) < 2 * 200 + 50  # two places, every 30 s


def test_starts_that_keep_dying_end_a_run_that_had_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_start=lambda actor, nth: None if nth == 1 else died(), on_unit=first_time(None, died()))
    with pytest.raises(EngineError, match="sub-image 0: 20 workers in a row died while starting"):
        dispatched(monkeypatch, fake, [unit(number) for number in range(9)], workers=1)
    assert len(fake.started) == 21


def test_after_a_failed_start_there_is_a_pause_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_start=first_time(*[died()] * 2))
    dispatched(monkeypatch, fake, [unit(0)], workers=1)
    assert 3.0 <= fake.now < 5.0  # 1 s and 2 s, looked at once a second


def test_the_first_start_that_raises_ends_the_run_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_start=lambda actor, nth: raised(ClassifierError("checkpoint x.safetensors: not found")))
    with pytest.raises(ClassifierError, match=r"^checkpoint x\.safetensors: not found$"):
        dispatched(monkeypatch, fake)


def test_a_start_that_raises_something_foreign_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_start=lambda actor, nth: raised(RuntimeError("CUDA error: out of memory")))
    with pytest.raises(EngineError, match=r"sub-image [01]: worker cannot start: RuntimeError: CUDA error: out of mem"):
        dispatched(monkeypatch, fake)


# Ray itself

LOST = r"^Ray was lost \(.*\); what is stored is kept: start Ray again and run the same command to resume$"


@pytest.mark.parametrize("failure", [RaySystemError("GCS is gone"), ConnectionError("client disconnected")])
@pytest.mark.parametrize("where", ["wait", "get", "available_resources"])
def test_a_lost_ray_is_one_line(monkeypatch: pytest.MonkeyPatch, where: str, failure: Exception) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise failure

    fake = FakeRay(on_start=lambda actor, nth: HANGS if where == "available_resources" else None)
    monkeypatch.setattr(fake, where, fails)
    with pytest.raises(EngineError, match=LOST) as caught:
        dispatched(monkeypatch, fake, stall_seconds=60)
    assert caught.value.__cause__ is failure


def test_a_lost_raylet_of_the_driver_is_no_units_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=lambda actor, what: LocalRayletDiedError())
    with pytest.raises(EngineError, match=LOST):
        dispatched(monkeypatch, fake)


def test_a_ray_that_is_lost_when_actors_are_made_or_counted_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> Any:
        raise ConnectionError("gone")

    with pytest.raises(EngineError, match=LOST):
        dispatched(monkeypatch, FakeRay(), workers=fails)
    fake = FakeRay()
    monkeypatch.setattr(fake, "start", fails)
    with pytest.raises(EngineError, match=LOST):
        dispatched(monkeypatch, fake)


def test_a_kill_that_fails_hides_nothing_and_the_others_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(on_unit=lambda actor, what: RaySystemError("GCS is gone"))
    kill = fake.kill

    def fails_after_all(actor: Actor) -> None:
        kill(actor)
        raise ValueError("not a handle of this session")

    monkeypatch.setattr(fake, "kill", fails_after_all)
    with pytest.raises(EngineError, match=LOST):
        dispatched(monkeypatch, fake, workers=5)
    assert len(fake.killed) == 5


def test_an_interrupt_ends_every_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting(Recorder):
        def unit_done(self, unit: Unit, outcome: Outcome) -> None:
            raise InterruptedRunError("interrupted by SIGTERM", 15)

    fake = FakeRay(at_once=3)
    with pytest.raises(InterruptedRunError):
        dispatched(monkeypatch, fake, workers=4, recorder=Interrupting())
    assert len(fake.started) == 4


def test_a_ray_that_has_been_shut_down_is_not_started_again_by_the_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    monkeypatch.setattr(dispatcher, "ray", fake)
    monkeypatch.setattr(fake, "is_initialized", lambda: False)
    dispatcher._kill("actor")
    assert fake.killed == []
