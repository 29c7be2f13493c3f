"""A random schedule of kills and storage faults over real processes, for as long as is asked for.

    python -m tests.chaos --minutes 10 --seed 7      # or: make chaos MINUTES=10 SEED=7

A head, one to three Ray nodes, a real S3 server behind a proxy that spoils requests, and a driver that certifies one
run after the other. Meanwhile workers, nodes, drivers, compactors, the S3 server and the head are killed, stopped,
drained and interrupted. A driver that ends is started again, as its user would. Checked all the time: no traceback, no
unexplained exit code, no reader that sees a row twice or a wrong one. Checked at the end of every run: its counts and
certificates are those of the undisturbed run, and nothing lies about that does not belong there.

The seed decides what is done and when; what it meets depends on the machine as well.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from drs_ray import certify, read_certificates
from drs_ray.config import parse_config
from drs_ray.engine.status import run_status
from drs_ray.storage import open_store
from tests import servers
from tests.servers import BUCKET
from tests.support.fault_proxy import Fault, FaultProxy, Rule
from tests.support.ray_cluster import QUICK_HEALTH_CHECKS, Node, RayCluster
from tests.support.runs import BATCH, Driver, command, decoded_counts, run_data, write_config

MOST_NODES = 3
LAST_STARTS = 6
"""So many starts of a driver may fail once nothing is disturbed any more: nodes may still be taken for alive."""
FINISH_SECONDS = 300.0

BACKGROUND = [
    Rule(Fault.SLOW_DOWN, chance=0.03),
    Rule(Fault.RESET, chance=0.02),
    Rule(Fault.INTERNAL, chance=0.01),
    Rule(Fault.EXPIRED_TOKEN, chance=0.002),
    Rule(Fault.CUT_UPLOAD, "PUT", chance=0.02),
    Rule(Fault.LOST_REPLY, "PUT", chance=0.03),
    Rule(Fault.LOST_REPLY, "DELETE", chance=0.03),
    Rule(Fault.TRUNCATED, "GET", chance=0.02),
    Rule(Fault.DELAY, chance=0.02, seconds=1.0),
    Rule(Fault.STALL, chance=0.005, seconds=3.0),
]
STORM = [Rule(Fault.SLOW_DOWN, chance=0.5), Rule(Fault.RESET, chance=0.3)]


class Chaos:
    """One seed's schedule. `events` counts what was done and what was seen."""

    def __init__(self, seed: int, directory: Path, stack: ExitStack) -> None:
        self.events: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._directory = directory
        self._weed = stack.enter_context(servers.mortal_seaweed())
        credentials = {k: v for k, v in self._weed.server.environment.items() if k != "AWS_ENDPOINT_URL"}
        stack.enter_context(patch.dict(os.environ, credentials | {"AWS_EC2_METADATA_DISABLED": "true"}))
        self.proxy = stack.enter_context(FaultProxy(self._weed.server.endpoint, seed=seed))
        self._cluster = stack.enter_context(RayCluster(settings=QUICK_HEALTH_CHECKS))
        stack.callback(self._end_processes)
        self._drivers: dict[Driver, Path] = {}  # with the log of its events
        self._interrupted: set[Driver] = set()
        self._others: list[subprocess.Popen[str]] = []
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._gate = directory / "gate"
        self._expected = {stages: self._undisturbed(stages) for stages in (1, 3)}
        self._cluster.add_node()

    # The run at hand

    def _data(self, place: str, stages: int, address: str) -> dict[str, Any]:
        data = run_data(
            place, address=address, images=60, factory="slow", trigger=BATCH, seconds=0.1, gate=str(self._gate)
        )
        data["budget"] |= {"stages": stages}
        data["engine"] |= {"store_seconds": 6, "hang_seconds": 5, "stall_seconds": 120}
        return data

    def _undisturbed(self, stages: int) -> tuple[Counter[str], Any]:
        place = self._directory / f"undisturbed-{stages}"
        certify(parse_config(self._data(str(place), stages, "inline")))
        return Counter(decoded_counts(place)), read_certificates(str(place)).sort_by("image_id")

    def begin(self) -> None:
        """A run at a new place: every second one is adaptive."""
        self._stages = 3 if self.events["runs finished"] % 2 else 1
        name = uuid.uuid4().hex[:12]
        self._place = f"s3://{BUCKET}/{name}"
        data = self._data(self._place, self._stages, "auto")
        data["output"] = {"uri": self._place, "endpoint_url": self.proxy.endpoint}
        self._config = data
        self._name = name
        self._logs: list[Path] = []
        self._gate.touch()
        self._start_driver()

    def _start_driver(self) -> None:
        config = write_config(self._directory / f"{self._name}-{len(self._logs)}.yaml", self._config)
        log = config.with_suffix(".jsonl")
        self._drivers[Driver(config, self._cluster.environment(), "--log", str(log))] = log
        self._logs.append(log)
        self.events["drivers started"] += 1

    def step(self) -> bool:
        """Look after the drivers; returns whether the run at hand is done."""
        for moment, action in list(self._later):
            if moment <= time.monotonic():
                self._later.remove((moment, action))
                action()
        for other in [other for other in self._others if other.poll() is not None]:
            self._others.remove(other)
            self._check_command(other)
        done = False
        for driver in [driver for driver in self._drivers if driver.poll() is not None]:
            del self._drivers[driver]
            text = driver.text
            assert "Traceback" not in text, text
            assert driver.returncode in (0, 1, 3, 130, 143, -9), f"exit code {driver.returncode}: {text}"
            if driver.returncode == 1:
                assert "error: " in text.splitlines()[-1], text
            self.events[f"drivers ended with {driver.returncode}"] += 1
            done = done or driver.returncode == 0
        return done

    def resume(self) -> None:
        """Start a driver where none is left."""
        if not self._drivers:
            self._start_driver()

    def check(self) -> None:
        """The run at hand is done: compare it with the undisturbed one, by a way to the server without faults."""
        store = open_store(self._place, self._weed.server.endpoint)
        expected, certificates = self._expected[self._stages]
        got = Counter(decoded_counts(store))
        self.events["rows checked"] += expected.total()
        self.events["rows lost"] += (expected - got).total()
        self.events["rows duplicated or wrong"] += (got - expected).total()
        assert got == expected, f"{self._place}: {dict(self.events)}"
        table = read_certificates(self._place, endpoint_url=self._weed.server.endpoint).sort_by("image_id")
        assert table.equals(certificates), f"{self._place}: other certificates"
        status = run_status(store)
        assert status.units_done == status.units, status
        assert not status.unknown_parts, status.unknown_parts
        known = ("run.json", "counts/", "sessions/", "certificates.parquet", "curve.parquet")
        stray = [item.key for item in store.list() if not item.key.startswith(known)]
        assert not stray, stray
        for event in self._logged():
            if event["kind"] not in ("step", "began", "planned", "added", "workers", "ended", "resumed"):
                self.events[f"event {event['kind']}"] += 1
            self.events["PUT retries"] += event.get("put_retries", 0)
        self.events["runs finished"] += 1

    def _logged(self) -> Iterator[dict[str, Any]]:
        for log in self._logs:
            if log.exists():  # else the driver was killed before
                yield from map(json.loads, log.read_text(encoding="utf-8").splitlines())

    def finish(self, done: bool) -> None:
        """No more faults, nothing slow: the run at hand, unless it is done, must end by itself, and well."""
        self.proxy.enabled = False
        self._gate.unlink(missing_ok=True)
        for _, action in self._later:
            action()
        self._later.clear()
        if not self._nodes():
            self._cluster.add_node()
        deadline = time.monotonic() + FINISH_SECONDS
        starts = self.events["drivers started"]
        while not done:
            self.resume()
            done = self.step()
            assert self.events["drivers started"] - starts <= LAST_STARTS, next(iter(self._drivers)).text
            assert time.monotonic() < deadline, f"does not end: {next(iter(self._drivers)).text}"
            time.sleep(0.2)
        while self._drivers or self._others:  # a second driver, a compactor
            assert time.monotonic() < deadline, "does not end"
            self.step()
            time.sleep(0.2)
        self.check()

    # What is done to it

    def disturb(self) -> None:
        """One action, chosen at random."""
        actions: dict[Callable[[], str | None], float] = {
            self._kill_worker: 10,
            self._stop_worker: 1,
            self._kill_node: 2,
            self._stop_node: 2,
            self._drain_node: 1,
            self._add_node: 5,
            self._kill_driver: 1,
            self._interrupt_driver: 1,
            self._second_driver: 1,
            self._kill_server: 1.5,
            self._storm: 2,
            self._compact: 4,
            self._status: 2,
            self._read: 4,
            self._kill_head: 0.3,
        }
        (action,) = self._random.choices(list(actions), list(actions.values()))
        done = action()
        if done is not None:
            self.events[done] += 1
            print(f"  {time.strftime('%H:%M:%S')} {done}", flush=True)

    def _nodes(self) -> list[Node]:
        return [node for node in self._cluster.nodes if node.is_alive]

    def _soon(self, action: Callable[[], object], least: float, most: float) -> None:
        self._later.append((time.monotonic() + self._random.uniform(least, most), action))

    def _a_worker(self) -> int | None:
        workers = [process for node in self._nodes() for process in node.workers()]
        return self._random.choice(workers) if workers else None

    def _kill_worker(self) -> str | None:
        return self._signal(self._a_worker(), signal.SIGKILL, "workers killed")

    def _stop_worker(self) -> str | None:
        return self._signal(self._a_worker(), signal.SIGSTOP, "workers stopped")

    def _signal(self, process: int | None, number: signal.Signals, done: str) -> str | None:
        if process is None:
            return None
        try:
            os.kill(process, number)
        except ProcessLookupError:
            return None
        return done

    def _kill_node(self) -> str | None:
        nodes = self._nodes()
        if not nodes:
            return None
        self._cluster.kill(self._random.choice(nodes))
        if len(nodes) == 1:
            self._soon(self._add_node, 0, 5)
        return "nodes killed"

    def _stop_node(self) -> str | None:
        nodes = self._nodes()
        if not nodes:
            return None
        node = self._random.choice(nodes)
        self._cluster.stop(node)
        self._soon(lambda: self._cluster.resume(node), 0.5, 15)  # a hiccup, or long enough to be given up
        return "nodes stopped"

    def _drain_node(self) -> str | None:
        nodes = self._nodes()
        if len(nodes) < 2:
            return None
        node = self._random.choice(nodes)
        try:
            self._cluster.drain(node, seconds=10)
        except AssertionError as error:
            if "reject" not in str(error).lower() and self._cluster.head.is_alive:
                raise
            return None
        self._soon(lambda: self._cluster.kill(node) if node in self._cluster.nodes else None, 10, 12)
        return "nodes drained"

    def _add_node(self) -> str | None:
        if len(self._nodes()) >= MOST_NODES:
            return None
        for node in self._cluster.nodes:  # the remains of those that Ray gave up
            if not node.is_alive:
                self._cluster.kill(node)
        self._cluster.add_node()
        return "nodes added"

    def _kill_driver(self) -> str | None:
        return self._signal_driver(signal.SIGKILL, "drivers killed")

    def _interrupt_driver(self) -> str | None:
        number = self._random.choice([signal.SIGINT, signal.SIGTERM])
        return self._signal_driver(number, f"drivers sent {number.name}")

    def _signal_driver(self, number: signal.Signals, done: str) -> str | None:
        drivers = [driver for driver in self._drivers if driver not in self._interrupted]
        if number is not signal.SIGKILL:  # until its log is there, Python's own handlers end it
            drivers = [driver for driver in drivers if self._drivers[driver].exists()]
        if not drivers:
            return None
        driver = self._random.choice(drivers)
        driver.send_signal(number)
        self._interrupted.add(driver)  # the second signal would be met by no handler
        return done

    def _second_driver(self) -> str | None:
        if len(self._drivers) != 1:
            return None
        self._start_driver()
        return "second drivers started"

    def _kill_server(self) -> str:
        self._weed.kill()
        time.sleep(self._random.uniform(0, 10))
        self._weed.restart()
        return "S3 server killed"

    def _storm(self) -> str:
        self.proxy.play(*STORM)
        self._soon(lambda: self.proxy.play(*BACKGROUND), 2, 8)
        return "storms of storage faults"

    def _compact(self) -> str:
        process = self._command(["compact", self._place])
        if self._random.random() < 0.5:
            self._soon(process.kill, 0, 10)
            return "compactors started, to be killed"
        return "compactors started"

    def _status(self) -> str:
        self._command(["status", self._place])
        return "status asked for"

    def _command(self, arguments: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command([*arguments, "--endpoint-url", self.proxy.endpoint]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._others.append(process)
        return process

    def _check_command(self, process: subprocess.Popen[str]) -> None:
        """It did its work, or was killed, or says in one line that the store failed or that there is no run yet."""
        text = process.communicate()[0]
        assert "Traceback" not in text, text
        assert process.returncode in (0, 1, -9), text
        if process.returncode == 1:
            assert text.startswith("error: "), text
            assert len(text.splitlines()) == 1, text
            assert "cannot be trusted" not in text, text
            self.events["status or compact gave up with one line"] += 1

    def _read(self) -> str | None:
        """A reader, beside compactors and drivers: each row at most once, and as it should be."""
        store = open_store(self._place, self._weed.server.endpoint)
        if not list(store.list("run.json")):
            return None
        surplus = Counter(decoded_counts(store)) - self._expected[self._stages][0]
        assert not surplus, f"a reader of {self._place} saw rows twice, or wrong ones: {surplus}"
        return "reads of the counts meanwhile"

    def _kill_head(self) -> str:
        self._cluster.kill(self._cluster.head)
        for driver in self._drivers:  # they leave after half a minute; their user need not wait for it
            if self._random.random() < 0.5:
                driver.kill()
        for driver in self._drivers:
            driver.wait(timeout=120)
        for node in self._cluster.nodes:
            self._cluster.kill(node)
        self._cluster.start_head()
        self._cluster.add_node()
        return "heads killed"

    def _end_processes(self) -> None:
        for process in (*self._drivers, *self._others):
            process.kill()
            process.wait()


def run_chaos(minutes: float, seed: int) -> Counter[str]:
    """Disturb runs for so many minutes, then let the last one end.

    Returns:
        How often each thing was done or seen.

    Raises:
        AssertionError: something was lost, doubled, wrong, or ended without a reason.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="drs-chaos-")))
        chaos = Chaos(seed, directory, stack)
        pauses = random.Random(seed + 1)
        chaos.proxy.play(*BACKGROUND)
        deadline = time.monotonic() + 60 * minutes
        chaos.begin()
        while time.monotonic() < deadline:
            next_action = time.monotonic() + pauses.uniform(0.5, 6)
            while time.monotonic() < next_action:
                if chaos.step():
                    chaos.finish(done=True)
                    print(f"{time.strftime('%H:%M:%S')} a run is finished, with the undisturbed votes", flush=True)
                    chaos.proxy.enabled = True
                    chaos.begin()
                chaos.resume()
                time.sleep(0.1)
            chaos.disturb()
        chaos.finish(done=False)
        faults = {f"storage fault: {fault}": count for fault, count in chaos.proxy.counts.items()}
        return chaos.events + Counter(faults)


def main() -> None:
    """Run, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}, {options.minutes:g} minutes", flush=True)
    started = time.monotonic()
    events = run_chaos(options.minutes, seed)
    for name in ("rows lost", "rows duplicated or wrong"):
        events.setdefault(name, 0)
    print(f"seed {seed}: {(time.monotonic() - started) / 60:.1f} minutes, all checks passed")
    for name, count in sorted(events.items()):
        print(f"{count:8,}  {name}")


if __name__ == "__main__":
    sys.exit(main())
