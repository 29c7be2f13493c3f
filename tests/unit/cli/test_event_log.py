"""A run's events as JSON lines: what each line has, and what becomes of them when files, readers or writers fail."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jq
import pytest

from drs_ray.cli.event_log import EventLog
from drs_ray.engine.observer import Observer, Observers
from drs_ray.engine.outcome import Outcome
from drs_ray.errors import ConfigError, InterruptedRunError, UnitsSetAsideError
from tests.unit.engine.factories import Recorder, record_of, unit

RECORD = record_of()


def told(log: EventLog) -> None:
    """Everything that a log can be told."""
    log.step("loading data set and classifiers")
    log.began(RECORD)
    log.planned([unit(1), unit(2)], 3)
    log.workers(0, 0, 2)
    log.unit_done(unit(1), Outcome(1.23456, 0.123456, b"part", put_retries=2))
    log.added([unit(3)])
    log.event("lost a worker", "unit_retried", unit="counts/a", reason="killed")


def lines(text: str) -> list[dict[str, Any]]:
    """Each line by itself is a JSON object."""
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def read(file: Path) -> list[dict[str, Any]]:
    return lines(file.read_text(encoding="ascii"))


def without(found: list[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in keys} for line in found]


def test_each_event_is_one_line_with_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with EventLog(str(file)) as log:
        told(log)
    found = read(file)
    assert [line["run_id"] for line in found] == [None, *[RECORD.run_id] * 7]
    assert without(found, "time", "run_id") == [
        {"kind": "step", "message": "loading data set and classifiers"},
        {
            "kind": "began",
            "message": f"run {RECORD.run_id}",
            "output": "runs/demo",
            "images": 12,
            "sub_images": 2,
            "software": {"drs-ray": "0.1.0", "numpy": "2.0"},
        },
        {"kind": "planned", "message": "2 units to do", "todo": 2, "stored": 3, "samples": 20},
        {
            "kind": "workers",
            "message": "sub-image 0: 0 workers, 2 more starting",
            "sub_image": 0,
            "working": 0,
            "starting": 2,
        },
        {
            "kind": "unit_done",
            "message": f"stored {unit(1).key}",
            "unit": unit(1).key,
            "sub_image": 0,
            "samples": 10,
            "seconds": 1.235,
            "put_seconds": 0.1235,
            "put_retries": 2,
        },
        {"kind": "added", "message": "1 further unit to do", "units": 1, "samples": 10},
        {"kind": "unit_retried", "message": "lost a worker", "unit": "counts/a", "reason": "killed"},
        {"kind": "ended", "message": "done", "exit_code": 0},
    ]


def test_times_are_utc_and_in_order(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    before = datetime.now(UTC)
    with EventLog(str(file)) as log:
        told(log)
    times = [datetime.fromisoformat(line["time"]) for line in read(file)]
    assert all(time.utcoffset() is not None and not time.utcoffset() for time in times)
    assert sorted(times) == times
    assert (before - times[0]).total_seconds() < 0.001  # cut off after the millisecond


def test_workers_and_added_units_make_a_line_only_where_there_is_news(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with EventLog(str(file)) as log:
        for sub_image, working, starting in [(0, 1, 1), (1, 1, 1), (0, 1, 1), (0, 2, 0), (1, 1, 1), (0, 1, 1)]:
            log.workers(sub_image, working, starting)
        log.added([])
    found = read(file)
    assert [(line["sub_image"], line["working"]) for line in found[:-1]] == [(0, 1), (1, 1), (0, 2), (0, 1)]


def test_a_message_of_many_lines_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    message = 'a "quoted"\nreason\r\n\u2028 é \x00'
    with EventLog(str(file)) as log:
        log.event(message, "warning", reason=message)
    (line, _) = read(file)
    assert line["message"] == line["reason"] == message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnitsSetAsideError("2 units were set aside"), 3),
        (ConfigError("a bad key"), 2),
        (InterruptedRunError("interrupted by SIGTERM", 15), 143),
        (ZeroDivisionError("a bug"), 1),
    ],
)
def test_the_last_line_says_how_it_ended(tmp_path: Path, error: BaseException, code: int) -> None:
    file = tmp_path / "events.jsonl"
    with pytest.raises(type(error)), EventLog(str(file)):
        raise error
    assert without(read(file), "time") == [
        {
            "run_id": None,
            "kind": "ended",
            "message": str(error),
            "exit_code": code,
            "error": type(error).__name__,
        }
    ]


# the documents

OPERATIONS = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")


def test_the_documents_list_every_kind_of_line_and_its_keys(tmp_path: Path) -> None:
    table = OPERATIONS.split("| kind | further keys |\n|---|---|\n")[1].split("\n\n")[0]
    listed = {}
    for row in table.splitlines():
        kinds, keys = row.strip("| ").split(" | ")
        keys = re.sub(r"`(worker|node)`", "", keys)  # values
        listed.update({kind: set(re.findall(r"`(\w+)`", keys)) for kind in re.findall(r"`(\w+)`", kinds)})
    file = tmp_path / "events.jsonl"
    with EventLog(str(file)) as log:
        told(log)
    with pytest.raises(ConfigError), EventLog(str(file)):
        raise ConfigError("a bad key")
    written = {line["kind"]: set(line) - {"time", "run_id", "kind", "message"} for line in read(file)}
    assert {kind: listed[kind] for kind in written} == written
    named = re.search(r"kind: ([\w, ]+)\.", Observer.event.__doc__ or "")
    assert named is not None
    assert set(listed) == set(written) | set(re.findall(r"\w{3,}", named[1]))


def test_the_examples_for_jq_find_what_they_say(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with EventLog(str(file)) as log:
        told(log)
        log.unit_done(unit(2), Outcome(1.0, 0.1))
        log.event("set aside", "unit_set_aside", unit="counts/c", reason="NaN")
    commands = [shlex.split(line) for line in OPERATIONS.splitlines() if line.startswith("jq ")]
    assert [(option, name) for _, option, _, name in commands] == [("-sc", "events.jsonl"), ("-r", "events.jsonl")]
    done, set_aside = (jq.compile(program) for _, _, program, _ in commands)
    assert done.input_text(file.read_text(), slurp=True).all() == [{"units": 2, "samples": 20}]
    assert set_aside.input_text(file.read_text()).all() == ["counts/c: NaN"]


# files


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    for _ in range(2):
        with EventLog(str(file)) as log:
            log.step("loading")
    assert [line["kind"] for line in read(file)] == ["step", "ended"] * 2


def test_two_drivers_share_a_file(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with EventLog(str(file)) as first, EventLog(str(file)) as second:
        for number in range(20):
            first.event("first", number=number)
            second.event("second", number=number)
    found = read(file)[:40]
    assert [(line["message"], line["number"]) for line in found] == [
        (name, number) for number in range(20) for name in ("first", "second")
    ]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none/events.jsonl", "No such file or directory"),
        ("", "Is a directory"),
        ("file/events.jsonl", "Not a directory"),
        ("a\0b", "embedded null byte"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        EventLog(f"{tmp_path}/{name}")
    assert str(caught.value) == (
        f"--log: cannot write {tmp_path}/{name} ({why}); name a file in a directory that exists and that you may "
        "write to, or - for stderr"
    )
    assert caught.value.exit_code == 2


def test_a_dash_is_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with EventLog("-") as log:
        told(log)
    print("still open", file=sys.stderr)
    out, err = capfd.readouterr()
    assert out == ""
    assert len(lines(err.removesuffix("still open\n"))) == 8
    assert not Path("-").exists()


# what fails on the way


def test_a_descriptor_that_takes_little_at_a_time_gets_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    file = tmp_path / "events.jsonl"
    with EventLog(str(file)) as log:
        told(log)
    assert len(read(file)) == 8


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    """`mkfifo events; drs-ray certify --log events` with a collector that is killed in the middle of a line."""
    pipe = tmp_path / "events"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    recorder = Recorder()
    with EventLog(str(pipe)) as log:
        observers = Observers(recorder, log)
        observers.unit_done(unit(1), Outcome(1.0, 0.1))
        assert os.read(reader, 20).startswith(b'{"time": ')
        os.close(reader)
        for number in (2, 3):
            observers.unit_done(unit(number), Outcome(1.0, 0.1))
    assert recorder.done == [unit(1), unit(2), unit(3)]
    assert recorder.events == [
        "warning: EventLog failed and gets no more events (BrokenPipeError: [Errno 32] Broken pipe); the run goes on"
    ]


def test_a_full_disk_does_not_hide_how_a_run_ended() -> None:
    with pytest.raises(UnitsSetAsideError), EventLog("/dev/full"):
        raise UnitsSetAsideError("2 units were set aside")


def test_a_writer_that_is_killed_cuts_at_most_its_last_line(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    code = (
        "import sys; from drs_ray.cli.event_log import EventLog\n"
        "log = EventLog(sys.argv[1])\n"
        "while True: log.event('x' * 3000, number=1)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(file)])
    try:
        while not file.exists() or file.stat().st_size < 300_000:
            assert writer.poll() is None
            time.sleep(0.01)
    finally:
        writer.kill()
        writer.wait()
    assert writer.returncode == -signal.SIGKILL
    whole, _, _ = file.read_text(encoding="ascii").rpartition("\n")
    assert len(lines(whole + "\n")) >= 90


@pytest.mark.parametrize("cut", [b'{"message": "a"}\n', b'{"message": "a"}\n{"mess'])
def test_the_next_writer_begins_a_line_of_its_own(tmp_path: Path, cut: bytes) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(cut)
    with EventLog(str(file)) as log:
        log.event("b")
    added = file.read_bytes().removeprefix(cut).decode()
    messages = [line["message"] for line in lines(added.removeprefix("\n"))]
    assert messages == ["b", "done"]
    assert added.startswith("\n") == (not cut.endswith(b"\n"))


def test_a_full_disk_at_the_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"{")

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ConfigError, match=rf"^--log: cannot write {file} \(No space left on device\); "):
        EventLog(str(file))


def test_a_file_that_may_only_be_written_to_is_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"{")

    def refuse(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", refuse)
    with EventLog(str(file)) as log:
        log.event("b")
    monkeypatch.undo()
    assert file.read_bytes().startswith(b'{{"time"')
