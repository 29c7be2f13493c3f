"""What long work shows that is no run: lines in a log, often enough; bars in a terminal; nothing when quiet."""

from __future__ import annotations

import re
import threading
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from drs_ray.cli import progress
from drs_ray.cli.progress import Lines, TrainingView, images_progress, train_with_progress
from drs_ray.config import RunConfig, parse_config


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _console(*, terminal: bool = False) -> tuple[Console, StringIO]:
    file = StringIO()
    return Console(file=file, force_terminal=terminal, width=120, _environ={}), file


def _config(folder: Path, epochs: int = 2) -> RunConfig:
    classifier = {"architecture": "digits-cnn", "arguments": {"width": 2}, "sigma": 0.5}
    return parse_config(
        {
            "dataset": {"name": "mnist5k"},
            "partition": {"name": "checkerboard"},
            "classifiers": [{**classifier, "checkpoint": str(folder / f"{k}.safetensors")} for k in (0, 1)],
            "training": {"epochs": epochs, "batch": 1000},
            "engine": {"device": "cpu"},
            "output": str(folder / "run"),
        }
    )


def test_work_that_says_nothing_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """One unit of hours, or Ray that starts slowly: the state is shown by a thread."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    console, file = _console()
    asked = threading.Semaphore(0)

    def state() -> str:
        asked.release()
        return "still loading"

    with Lines(console, "certify", quiet=False, state=state):
        assert all(asked.acquire(timeout=10) for _ in range(3))
    lines = file.getvalue().splitlines()
    assert len(lines) >= 3
    assert set(lines) == {"certify: still loading"}


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (False, True)])
def test_in_a_terminal_and_when_quiet_there_are_no_lines(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, quiet: bool
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    console, file = _console(terminal=terminal)
    with Lines(console, "certify", quiet, lambda: "state") as lines:
        lines.show("a line")
        lines.show_if_late()
    assert file.getvalue() == ""


def test_images_have_a_line_at_each_tenth() -> None:
    console, file = _console()
    with images_progress(console, "pack", quiet=False) as told:
        for done in range(1, 2001):
            told(done, 2000)
    lines = file.getvalue().splitlines()
    assert lines == [f"pack: {200 * tenth:,} of 2,000 images" for tenth in range(1, 11)]


def test_an_epoch_is_a_line_with_loss_accuracy_speed_and_time_left(tmp_path: Path) -> None:
    console, file = _console()
    clock = Clock()
    with TrainingView(_config(tmp_path), console, quiet=False, clock=clock) as view:
        clock.now += 1000  # loading
        for sub_image in (0, 1):
            for epoch in (1, 2):
                view.images(sub_image, epoch, 0, 4000)
                clock.now += 20
                view.images(sub_image, epoch, 2000, 4000)
                clock.now += 20
                view.epoch(sub_image, epoch, 2, 0.5 / epoch, 0.75)
    assert file.getvalue().splitlines() == [
        "train: sub-image 0, epoch 1 of 2: 0 of 4,000 images, - images/s",  # 1000 s without a line
        "train: sub-image 0, epoch 1 of 2: loss 0.500, accuracy under noise 0.750, 100 images/s, 2 min 00 s left",
        "train: sub-image 0, epoch 2 of 2: loss 0.250, accuracy under noise 0.750, 100 images/s, 1 min 20 s left",
        "train: sub-image 1, epoch 1 of 2: loss 0.500, accuracy under noise 0.750, 100 images/s, 40.0 s left",
        "train: sub-image 1, epoch 2 of 2: loss 0.250, accuracy under noise 0.750, 100 images/s",
    ]


def test_a_long_epoch_has_lines_within(tmp_path: Path) -> None:
    console, file = _console()
    clock = Clock()
    with TrainingView(_config(tmp_path, epochs=1), console, quiet=False, clock=clock) as view:
        for second in range(91):
            view.images(1, 1, 10 * second, 4000)
            clock.now += 1
    assert [line.split(": ")[2] for line in file.getvalue().splitlines()] == [
        f"{10 * second:,} of 4,000 images, 10 images/s, {left} left"
        for second, left in ((30, "6 min 10 s"), (60, "5 min 40 s"), (90, "5 min 10 s"))
    ]


def test_the_speed_is_that_since_a_training_went_on(tmp_path: Path) -> None:
    console, file = _console()
    clock = Clock()
    with TrainingView(_config(tmp_path, epochs=10), console, quiet=False, clock=clock) as view:
        for epoch in (9, 10, 9):  # a group that lost a worker begins again
            view.images(1, epoch, 0, 4000)
            clock.now += 4
            view.epoch(1, epoch, 10, 0.5, 0.75)
    assert [re.findall(r"[0-9,]+ images/s.*", line)[0] for line in file.getvalue().splitlines()] == [
        "1,000 images/s, 4.0 s left",
        "1,000 images/s",
        "1,000 images/s, 4.0 s left",
    ]


def test_a_training_in_a_terminal_has_bars_over_epochs_and_within_them(tmp_path: Path) -> None:
    console, file = _console(terminal=True)
    clock = Clock()
    with TrainingView(_config(tmp_path), console, quiet=False, clock=clock) as view:
        view.images(0, 1, 0, 4000)
        clock.now += 20
        view.epoch(0, 1, 2, 0.5, 0.75)
        view.images(0, 2, 1000, 4000)
        view.note("[red]slow[/red]")
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).replace("\r", "\n")
    assert re.search(r"^train digits-cnn 0 \S+ 1/2 +epochs loss 0.500, accuracy under noise 0.750 ", seen, re.MULTILINE)
    assert re.search(r"^this epoch +\S+ 1000/4000 images 250 images/s, 44.0 s left ", seen, re.MULTILINE)
    assert "train: [red]slow[/red]\n" in seen
    assert "epoch 1 of 2" not in seen


@pytest.mark.parametrize(
    ("method", "accuracy", "name", "note"),
    [
        ("clean", 0.75, "digits-cnn", "loss 0.012, accuracy without noise 0.750"),
        ("mse", None, "dncnn", "loss 0.0123"),
        ("stability", 0.75, "dncnn", "loss 0.012, accuracy under noise 0.750"),
    ],
)
def test_denoised_smoothing_shows_what_is_trained(
    tmp_path: Path, method: str, accuracy: float | None, name: str, note: str
) -> None:
    data = _config(tmp_path).model_dump(mode="json")
    data["training"]["method"] = method
    for number, classifier in enumerate(data["classifiers"]):
        classifier["denoiser"] = {"architecture": "dncnn", "checkpoint": f"{number}.safetensors"}
    console, file = _console(terminal=True)
    with TrainingView(parse_config(data), console, quiet=False, clock=Clock()) as view:
        view.images(0, 1, 0, 4000)
        view.epoch(0, 1, 2, 0.01234, accuracy)
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).replace("\r", "\n")
    assert re.search(rf"^train {name} 0 \S+ 1/2 +epochs {note} ", seen, re.MULTILINE)


def test_one_network_of_both_sub_images_is_shown_as_one(tmp_path: Path) -> None:
    data = _config(tmp_path).model_dump(mode="json")
    data["classifiers"] = [data["classifiers"][0]] * 2
    console, file = _console()
    clock = Clock()
    with TrainingView(parse_config(data), console, quiet=False, clock=clock) as view:
        view.images(0, 1, 0, 4000)
        clock.now += 4
        view.epoch(0, 1, 2, 0.5, 0.75)
    (line,) = file.getvalue().splitlines()
    assert line.startswith("train: sub-images 0 and 1, epoch 1 of 2: loss 0.500, ")
    assert line.endswith("1,000 images/s, 4.0 s left")


@pytest.mark.parametrize("quiet", [False, True])
def test_training_is_shown_as_it_goes(tmp_path: Path, quiet: bool) -> None:
    console, file = _console()
    train_with_progress(_config(tmp_path), console, quiet)
    lines = [line.partition(": loss")[0] for line in file.getvalue().splitlines()]
    expected = [f"train: sub-image {k}, epoch {epoch} of 2" for k in (0, 1) for epoch in (1, 2)]
    assert lines == ([] if quiet else expected)
