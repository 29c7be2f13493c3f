"""A training's state on its way through a file: exact, whole or not at all, and of these settings only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drs_ray.errors import ClassifierError, ConfigError
from drs_ray.models import checkpoints
from drs_ray.storage import local
from drs_ray.training.state import TrainingState, load_state, save_state

STATE = TrainingState(
    3,
    {"fc.weight": torch.rand(2, 3), "norm.num_batches_tracked": torch.tensor(7)},
    {"0/exp_avg": torch.rand(2, 3), "0/step": torch.tensor(21.0)},
    torch.Generator().manual_seed(5).get_state(),
)
SETTINGS = {"training.epochs": 5, "sigma": 0.1, "arguments": {"width": 4}, "image_shape": [1, 2, 3]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    saved = tmp_path / "deep" / "a.training.safetensors"
    save_state(str(saved), STATE, SETTINGS)
    return saved


def test_a_round_trip_is_exact(file: Path) -> None:
    state = load_state(str(file), {False: SETTINGS})
    assert state is not None
    assert state.epoch == 3
    for kept, saved in ((state.weights, STATE.weights), (state.optimizer, STATE.optimizer)):
        assert set(kept) == set(saved)
        assert all(torch.equal(kept[key], saved[key]) and kept[key].dtype == saved[key].dtype for key in saved)
    generator = torch.Generator()
    assert state.generator is not None
    generator.set_state(state.generator)
    assert torch.equal(torch.rand(4, generator=generator), torch.rand(4, generator=torch.Generator().manual_seed(5)))
    save_state(str(file), TrainingState(0, STATE.weights), SETTINGS)
    first = load_state(str(file), {False: SETTINGS})
    assert first is not None
    assert (first.epoch, first.optimizer, first.generator) == (0, {}, None)


def test_no_file_is_no_state(tmp_path: Path) -> None:
    assert load_state(str(tmp_path / "none.safetensors"), {False: SETTINGS}) is None


def test_other_settings_are_refused_and_named(file: Path) -> None:
    other = {**SETTINGS, "training.epochs": 6, "sigma": 0.2, "seed": 1}
    with pytest.raises(ConfigError, match=r"other settings \(seed, sigma, training.epochs\); restore them.* delete it"):
        load_state(str(file), {False: other})


@pytest.mark.parametrize("content", [b"", b"nonsense" * 10, None])
def test_a_broken_file_is_one_line(file: Path, content: bytes | None) -> None:
    file.write_bytes(file.read_bytes()[:-20] if content is None else content)
    with pytest.raises(
        ClassifierError, match=r"a.training.safetensors: cannot be read .*delete it to train anew"
    ) as caught:
        load_state(str(file), {False: SETTINGS})
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_not_a_state(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    module = torch.nn.Linear(1, 1)
    metadata = checkpoints.CheckpointMetadata("a", "none", "packed", (0,), 1.0, 2, (1, 2, 2), "mnist5k")
    checkpoints.save_checkpoint(file, module, metadata)
    with pytest.raises(ClassifierError, match="cannot be read"):
        load_state(str(file), {False: SETTINGS})


def test_a_failed_write_keeps_the_old_state(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local.os, "fsync", full)
    with pytest.raises(ClassifierError, match="no space left on the disk"):
        save_state(str(file), TrainingState(4, STATE.weights), SETTINGS)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]
