"""Ray and the clock as the dispatcher sees them: calls end as a script says, no time passes but what is waited for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from drs_ray.counts.plan import Unit

ANSWER_SECONDS = 0.01
Script = Callable[["Actor", Any], Any]


@dataclass(frozen=True)
class Actor:
    """The `number`-th actor that was started."""

    number: int
    sub_image: int


@dataclass(frozen=True)
class After:
    """The call ends so many seconds after it was made."""

    seconds: float
    outcome: Any = None


HANGS = After(float("inf"))


@dataclass(eq=False)
class Call:
    actor: Actor
    outcome: Any
    ends: float


class FakeRay:
    """`on_start(actor, nth of its sub-image)` and `on_unit(actor, unit)` say what a call returns, raises, or `After`.

    Calls end in the order they were made, at most `at_once` of them in one `wait`.
    """

    def __init__(
        self,
        on_start: Script = lambda actor, nth: None,
        on_unit: Script = lambda actor, unit: None,
        at_once: int = 1,
    ) -> None:
        self._on_start, self._on_unit, self._at_once = on_start, on_unit, at_once
        self._nth: Counter[int] = Counter()
        self.started: list[Actor] = []
        self.killed: list[Actor] = []
        self.alive: set[Actor] = set()
        self.units: list[tuple[Actor, Unit]] = []
        self.most_alive = 0
        self.now = 0.0

    def start(self, sub_image: int) -> tuple[Actor, Call]:
        actor = Actor(len(self.started), sub_image)
        self.started.append(actor)
        self.alive.add(actor)
        self._nth[sub_image] += 1
        self.most_alive = max(self.most_alive, len(self.alive))
        return actor, self._made(actor, self._on_start(actor, self._nth[sub_image]))

    def call(self, actor: Actor, unit: Unit) -> Call:
        assert actor in self.alive
        self.units.append((actor, unit))
        return self._made(actor, self._on_unit(actor, unit))

    def _made(self, actor: Actor, outcome: Any) -> Call:
        if isinstance(outcome, After):
            return Call(actor, outcome.outcome, self.now + outcome.seconds)
        return Call(actor, outcome, self.now)

    # what the dispatcher uses of the module `ray`

    def wait(self, calls: Sequence[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        assert calls
        assert all(call.actor in self.alive for call in calls)
        self.now = max(self.now, min(self.now + timeout, *(call.ends for call in calls)))
        ended = [call for call in calls if call.ends <= self.now][: min(num_returns, self._at_once)]
        return ended, [call for call in calls if call not in ended]

    def get(self, call: Call) -> Any:
        self.now += ANSWER_SECONDS
        if isinstance(call.outcome, BaseException):
            raise call.outcome
        return call.outcome

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)
        self.alive.discard(actor)

    def is_initialized(self) -> bool:
        return True

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 2.0, "memory": 1e9}

    # what it uses of the module `time`

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def died(message: str = "The actor is dead because its worker process has died.", preempted: bool = False) -> Exception:
    """What Ray raises when an actor's process is gone."""
    context = ActorDiedErrorContext(error_message=message, actor_id=b"a" * 16)
    if preempted:
        context.node_death_info.reason = NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED
    return ActorDiedError(context)


def node_died() -> Exception:
    """What Ray raises when an actor's node is gone."""
    return died("The actor died because its node has died. Node Id: 00ff\n\tthe actor's node was terminated")


def unreachable() -> Exception:
    """What Ray raises when an actor does not answer."""
    return ActorUnavailableError("RPC error: Connection reset by peer", b"a" * 16)


def raised(cause: Exception) -> Exception:
    """What Ray raises when a call raised `cause`."""
    trace = f"Traceback (most recent call last):\n{type(cause).__name__}: {cause}"
    return RayTaskError("run", trace, cause).as_instanceof_cause()  # type: ignore[no-any-return]
