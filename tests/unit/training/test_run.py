"""`train_run`: checkpoints that load into their run, each sub-image on its own, mistakes found before training."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drs_ray.config import RunConfig, parse_config
from drs_ray.config.base import place_of
from drs_ray.data import datasets
from drs_ray.data.arrays import ArrayDataset, load_mnist5k
from drs_ray.errors import ClassifierError, ConfigError, DataError
from drs_ray.models.checkpoints import load_checkpoint
from drs_ray.models.factory import load_classifier
from drs_ray.storage import open_store
from drs_ray.training import loop
from drs_ray.training.run import TrainingReport, state_file, train_run
from tests.servers import BUCKET


@pytest.fixture(autouse=True)
def small_mnist5k(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 40th training digit: the real loader and path, in a fraction of a second."""

    def load(split: str) -> ArrayDataset:
        full = load_mnist5k(split)
        return ArrayDataset(full.name, split, 10, full.pixels[::40], full.targets[::40])

    monkeypatch.setattr(datasets, "load_mnist5k", load)


def _config(folder: Path, *, partition: str = "checkerboard", layout: str = "packed", **training: Any) -> RunConfig:
    count = 2 if partition == "checkerboard" else 1
    return parse_config(
        {
            "dataset": {"name": "mnist5k"},
            "partition": {"name": partition, "layout": layout},
            "classifiers": [
                {
                    "architecture": "digits-cnn",
                    "arguments": {"width": 4},
                    "checkpoint": str(folder / f"{partition}-{k}.safetensors"),
                    "sigma": 0.5,
                }
                for k in range(count)
            ],
            "training": {"epochs": 2, "batch": 32, "shift": 0, **training},
            "engine": {"device": "cpu"},
            "output": str(folder / "run"),
        }
    )


def _train(config: RunConfig, **options: Any) -> list[Path]:
    return [Path(file) for file in train_run(config, **options)]


def _changed(config: RunConfig, sub_image: int, **values: Any) -> RunConfig:
    data = config.model_dump(mode="json")
    data["classifiers"][sub_image] |= values
    return parse_config(data)


def test_checkpoints_load_into_the_run_that_trained_them(tmp_path: Path) -> None:
    config = _config(tmp_path / "new" / "folder")
    reports: list[tuple[int, int, int, float, float | None]] = []
    files = _train(config, on_progress=lambda *report: reports.append(report))
    assert files == [Path(str(c.checkpoint)) for c in config.classifiers]
    assert [(k, epoch, epochs) for k, epoch, epochs, _, _ in reports] == [(0, 1, 2), (0, 2, 2), (1, 1, 2), (1, 2, 2)]
    digests = set()
    for k, classifier in enumerate(config.classifiers):
        loaded = load_classifier(
            **classifier.model_dump(),
            sub_image=k,
            partition="checkerboard",
            layout="packed",
            image_shape=(1, 28, 14),
            num_classes=10,
            dataset="mnist5k",
        )
        assert loaded.warnings == ()
        digests.add(loaded.digest)
    assert len(digests) == 2
    metadata = load_checkpoint(files[1])[1]
    assert metadata is not None
    assert (metadata.sub_images, metadata.sigma, metadata.dataset) == ((1,), 0.5, "mnist5k")
    assert '"epochs":2' in metadata.training


def test_a_sub_image_learns_the_same_alone_and_seed_and_sigma_matter(tmp_path: Path) -> None:
    both = _train(_config(tmp_path / "both"))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    (alone,) = _train(_config(tmp_path / "alone"), sub_images=[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert alone.read_bytes() == both[1].read_bytes()
    assert not (tmp_path / "alone" / "checkerboard-0.safetensors").exists()
    (other,) = _train(_config(tmp_path / "other", seed=1), sub_images=[1])
    (noisier,) = _train(_changed(_config(tmp_path / "noisier"), 1, sigma=0.6), sub_images=[1])
    weights = [load_checkpoint(file)[0]["fc2.weight"] for file in (alone, other, noisier)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def _shared(config: RunConfig) -> RunConfig:
    """The same with the first checkpoint for every sub-image."""
    for k in range(1, len(config.classifiers)):
        config = _changed(config, k, checkpoint=config.classifiers[0].checkpoint)
    return config


@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_sub_images_that_name_one_checkpoint_have_one_network(tmp_path: Path, layout: str) -> None:
    config = _shared(_config(tmp_path, layout=layout))
    notes: list[str] = []
    reports: list[tuple[int, int]] = []
    (file,) = _train(config, on_note=notes.append, on_progress=lambda *report: reports.append(report[:2]))
    assert reports == [(0, 1), (0, 2)]
    assert notes == ["sub-images 0 and 1 name the same checkpoint: one network is trained for them"]
    metadata = load_checkpoint(file)[1]
    assert metadata is not None
    assert metadata.sub_images == (0, 1)
    sections = [
        {
            **classifier.model_dump(),
            "partition": "checkerboard",
            "layout": layout,
            "image_shape": (1, 28, 14 if layout == "packed" else 28),
            "num_classes": 10,
            "sub_image": k,
        }
        for k, classifier in enumerate(config.classifiers)
    ]
    loaded = [load_classifier(**section) for section in sections]
    assert loaded[0].digest == loaded[1].digest
    with pytest.raises(ClassifierError, match=r"trained for sub-images 0 and 1, the run needs 2; name the checkpoint"):
        load_classifier(**{**sections[0], "sub_image": 2})
    assert _train(config, sub_images=[1], on_note=notes.append) == [file]
    assert "and is kept" in notes[-1]


def test_a_network_of_one_sub_image_is_not_kept_for_two(tmp_path: Path) -> None:
    (file,) = _train(_config(tmp_path), sub_images=[0])
    alone = file.read_bytes()
    _train(_shared(_config(tmp_path)))
    assert file.read_bytes() != alone


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"sigma": 0.25},
            r"classifiers.1.sigma: must be equal for sub-images 0 and 1, .*, got 0.5 and 0.25; make",
        ),
        ({"arguments": {"width": 8}}, r"classifiers.1.arguments: must be equal .*, got {'width': 4} and {'width': 8};"),
        ({"members": ["a.safetensors"]}, r"classifiers.1.members: must be equal for sub-images 0 and 1"),
        ({"denoiser": {"architecture": "dncnn"}}, r"classifiers.1.denoiser: must be equal .*, got None and {'archit"),
    ],
)
def test_one_network_for_unlike_sub_images_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_run(_changed(_shared(_config(tmp_path)), 1, **values))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spelling", ["./{}", "{}/../{}", "link.safetensors"])
def test_two_spellings_of_one_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    """Two trainings would write it, one after the other."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.safetensors").symlink_to("both.safetensors")
    second = spelling.format("both.safetensors", "both.safetensors")
    config = _changed(_changed(_config(tmp_path), 0, checkpoint="both.safetensors"), 1, checkpoint=second)
    assert config.networks == ((0, 1),)
    with pytest.raises(ConfigError, match=r"classifiers.1.checkpoint: must be equal for sub-images 0 and 1"):
        train_run(config)
    assert [path.name for path in tmp_path.iterdir()] == ["link.safetensors"]


def test_networks_are_told_apart_by_place() -> None:
    places = ["s3://bucket/a//x.safetensors", "s3://bucket/a/x.safetensors", "s3://other/a/x.safetensors", "a/x"]
    assert [place_of(place) for place in places[:3]] == [places[1], places[1], places[2]]
    home = Path("~/a b/x").expanduser()
    assert place_of("~/a b/x") == place_of(home.as_uri()) == place_of(str(home))
    assert place_of("a/../a/x") == place_of(str(Path("a/x").absolute())) != place_of("b/x")


def test_one_network_is_trained_across_its_sub_images_and_goes_on(tmp_path: Path) -> None:
    across = {"method": "consistency", "consistency": {"across": True}}
    (undisturbed,) = _train(_shared(_config(tmp_path / "undisturbed", **across)))
    config = _shared(_config(tmp_path / "killed", **across))
    with pytest.raises(_Killed):
        train_run(config, on_progress=_killed_after(0, 1))
    (resumed,) = _train(config)
    assert resumed.read_bytes() == undisturbed.read_bytes()
    (apart,) = _train(_shared(_config(tmp_path / "apart", method="consistency")))
    settings = [_as_learned(file, "consistency") for file in (undisturbed, apart)]
    assert [each.get("across") for each in settings] == [True, None]  # without: as in files of earlier versions
    assert apart.read_bytes() != undisturbed.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {},
            r"training.consistency.across: needs one network for several sub-images, and .*-0.safetensors is for sub-",
        ),
        ({"copies": 3}, r"training.consistency.copies: across divides them among 2 sub-images, so .* of that, got 3$"),
        (
            {"layout": "masked", "interleave": [1, 3]},
            r"across: sub-images 0, 1 and 2 must have equally .* 280, 252, 252;",
        ),
    ],
)
def test_what_cannot_be_trained_across_sub_images(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = _config(tmp_path, method="consistency", consistency={"across": True}).model_dump(mode="json")
    data["training"]["consistency"]["copies"] = change.get("copies", 3 if "interleave" in change else 2)
    if "interleave" in change:
        data["partition"] = {**data["partition"], "name": "interleave", **change}
    if change:
        data["classifiers"] = [data["classifiers"][0]] * (3 if "interleave" in change else 2)
    with pytest.raises(ConfigError, match=message):
        train_run(parse_config(data))
    assert list(tmp_path.iterdir()) == []


def test_a_bad_second_network_is_refused_before_the_first_is_trained(tmp_path: Path) -> None:
    data = _config(tmp_path).model_dump(mode="json")
    data["partition"] |= {"name": "interleave", "interleave": [1, 5]}  # columns: 6, 6, 6, 5, 5
    first, second = data["classifiers"]
    data["classifiers"] = [first, *[second] * 4]
    with pytest.raises(ConfigError, match=r"sub-images 1, 2, 3 and 4 name one checkpoint, so their layouts must have"):
        train_run(parse_config(data))
    assert list(tmp_path.iterdir()) == []


def test_one_classifier_without_noise_may_serve_sub_images_of_other_sigmas(tmp_path: Path) -> None:
    (file,) = train_run(_changed(_shared(_config(tmp_path, method="clean")), 1, sigma=0.25))
    metadata = load_checkpoint(file)[1]
    assert metadata is not None
    assert (metadata.sub_images, metadata.sigma) == ((0, 1), 0.0)


def test_one_network_needs_layouts_of_one_size(tmp_path: Path) -> None:
    data = _config(tmp_path).model_dump(mode="json")
    data["partition"] |= {"name": "interleave", "interleave": [1, 3]}
    data["classifiers"] = [data["classifiers"][0]] * 3
    with pytest.raises(ConfigError, match=r"so their layouts must have one size, got 28x10, 28x9, 28x9; name a checkp"):
        train_run(parse_config(data))
    assert list(tmp_path.iterdir()) == []
    data["partition"]["layout"] = "masked"
    (file,) = train_run(parse_config(data))
    metadata = load_checkpoint(file)[1]
    assert metadata is not None
    assert metadata.sub_images == (0, 1, 2)


def test_plain_smoothing_sees_whole_images(tmp_path: Path) -> None:
    (file,) = _train(_config(tmp_path, partition="none"))
    metadata = load_checkpoint(file)[1]
    assert metadata is not None
    assert metadata.image_shape == (1, 28, 28)


def test_a_users_factory_is_trained_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_net.py").write_text(
        "from torch import nn\n"
        "def make(image_shape, num_classes, hidden):\n"
        "    c, h, w = image_shape\n"
        "    hidden_layers = nn.Linear(c * h * w, hidden), nn.ReLU()\n"
        "    return nn.Sequential(nn.Flatten(), *hidden_layers, nn.Linear(hidden, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    config = _changed(_config(tmp_path), 0, architecture="users_net:make", arguments={"hidden": 8})
    (file,) = _train(config, sub_images=[0])
    tensors, metadata = load_checkpoint(file)
    assert tensors["1.weight"].shape == (8, 392)
    assert metadata is not None
    assert metadata.architecture == "users_net:make"


class _Killed(BaseException):
    """What no handler may catch on its way out."""


def _killed_after(sub_image: int, epoch: int) -> TrainingReport:
    def report(at: int, done: int, *_: object) -> None:
        if (at, done) == (sub_image, epoch):
            raise _Killed

    return report


def test_an_interrupted_training_goes_on_to_the_same_checkpoints(tmp_path: Path) -> None:
    undisturbed = _train(_config(tmp_path / "undisturbed", epochs=3))
    config = _config(tmp_path / "killed", epochs=3)
    with pytest.raises(_Killed):
        train_run(config, on_progress=_killed_after(1, 2))
    finished, unfinished = (Path(str(classifier.checkpoint)) for classifier in config.classifiers)
    assert finished.exists()
    assert not unfinished.exists()
    notes: list[str] = []
    reports: list[tuple[int, int]] = []
    files = _train(config, on_note=notes.append, on_progress=lambda *report: reports.append(report[:2]))
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in undisturbed]
    assert reports == [(1, 3)]
    assert notes[0].startswith(f"sub-image 0: {finished} was trained with these settings, and is kept; delete it")
    assert notes[1].startswith("sub-image 1: going on after epoch 2 of 3 (")
    assert sorted(path.name for path in finished.parent.iterdir()) == [finished.name, unfinished.name]


def test_a_training_into_a_bucket_is_the_same_and_goes_on_there(
    tmp_path: Path, moto_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job's own disk is gone with the job: on a cluster, checkpoints and states are objects."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    (undisturbed,) = _train(_config(tmp_path, partition="none", epochs=3))
    place = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    config = _changed(_config(tmp_path, partition="none", epochs=3), 0, checkpoint=f"{place}/a.safetensors")
    with pytest.raises(_Killed):
        train_run(config, on_progress=_killed_after(0, 2))
    stored = open_store(place)
    assert [found.key for found in stored.list()] == ["a.training.safetensors"]
    notes: list[str] = []
    assert train_run(config, on_note=notes.append) == [f"{place}/a.safetensors"]
    assert notes == [f"sub-image 0: going on after epoch 2 of 3 ({place}/a.training.safetensors)"]
    assert [found.key for found in stored.list()] == ["a.safetensors"]
    assert stored.get("a.safetensors") == undisturbed.read_bytes()
    train_run(config, on_note=notes.append)
    assert "a.safetensors was trained with these settings, and is kept" in notes[1]


def test_a_training_that_was_killed_before_its_checkpoint_was_written_needs_no_epoch(tmp_path: Path) -> None:
    (undisturbed,) = _train(_config(tmp_path / "undisturbed", partition="none"))
    config = _config(tmp_path / "killed", partition="none")
    with pytest.raises(_Killed):
        train_run(config, on_progress=_killed_after(0, 2))
    reports: list[object] = []
    (file,) = _train(config, on_progress=lambda *report: reports.append(report))
    assert reports == []
    assert file.read_bytes() == undisturbed.read_bytes()


UNUSED: dict[str, Any] = {
    "consistency": {"kl_weight": 9.0},
    "smoothadv": {"epsilon": 9.0},
    "macer": {"margin": 9.0},
    "smoothmix": {"step_size": 9.0},
}


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(_Killed):
        train_run(_config(tmp_path, partition="none"), on_progress=_killed_after(0, 1))
    with pytest.raises(ConfigError, match=r"belongs to other settings \(training.epochs, training.seed\); restore"):
        train_run(_config(tmp_path, partition="none", epochs=5, seed=1))
    # What changes no weight may differ, also the section of a method that is not used.
    changed = _config(tmp_path, partition="none", checkpoint_every=2, loaders=1, **UNUSED)
    (file,) = _train(changed)
    assert not Path(state_file(str(file))).exists()


def _precision(monkeypatch: pytest.MonkeyPatch, has_units: bool) -> None:
    monkeypatch.setattr(loop, "has_bfloat16", lambda device: has_units)


def _as_learned(file: Path, key: str) -> Any:
    metadata = load_checkpoint(file)[1]
    assert metadata is not None
    return json.loads(metadata.training)[key]


@pytest.mark.parametrize("has_units", [True, False])
def test_a_training_goes_on_in_its_own_precision_on_any_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_units: bool
) -> None:
    _precision(monkeypatch, has_units)
    (undisturbed,) = _train(_config(tmp_path / "undisturbed", partition="none", epochs=3))
    assert _as_learned(undisturbed, "mixed_precision") is has_units
    config = _config(tmp_path / "killed", partition="none", epochs=3)
    with pytest.raises(_Killed):
        train_run(config, on_progress=_killed_after(0, 2))
    _precision(monkeypatch, not has_units)
    with pytest.raises(ConfigError, match=r"belongs to other settings \(training.mixed_precision\); restore"):
        train_run(_config(tmp_path / "killed", partition="none", epochs=3, mixed_precision=not has_units))
    notes: list[str] = []
    (file,) = _train(config, on_note=notes.append)
    assert file.read_bytes() == undisturbed.read_bytes()
    assert [note.partition(": ")[2][:20] for note in notes] == [
        "going on after epoch",
        *(["computes in bfloat16"] if has_units else []),
    ]
    train_run(config, on_note=notes.append)  # finished: auto does not train it again for this machine
    assert "was trained with these settings, and is kept" in notes[-1]
    train_run(_config(tmp_path / "killed", partition="none", epochs=3, mixed_precision=not has_units))
    assert _as_learned(file, "mixed_precision") is not has_units


def test_a_checkpoint_of_other_settings_is_replaced_and_a_broken_one_too(tmp_path: Path) -> None:
    (file,) = _train(_config(tmp_path, partition="none"))
    first = file.read_bytes()
    train_run(_config(tmp_path, partition="none", seed=1))
    assert file.read_bytes() != first
    file.write_bytes(first[:100])
    train_run(_config(tmp_path, partition="none"))
    assert file.read_bytes() == first


@pytest.mark.parametrize("method", ["consistency", "smoothadv", "macer", "smoothmix"])
def test_metadata_names_method_and_settings(tmp_path: Path, method: str) -> None:
    (file,) = _train(_config(tmp_path, partition="none", epochs=1, method=method))
    metadata = load_checkpoint(file)[1]
    assert metadata is not None
    learned = json.loads(metadata.training)
    assert learned["method"] == method
    own = _config(tmp_path).training.model_dump(mode="json")[method]
    assert learned[method] == {name: value for name, value in own.items() if name != "across"}
    assert learned["data"] == datasets.load_dataset("mnist5k", split="train").digest


def test_fine_tuning_starts_from_a_full_images_classifier(tmp_path: Path) -> None:
    """A ResNet's weights do not depend on the image's size: they fit the packed halves as they are."""
    resnet = {"architecture": "resnet20", "arguments": {}}
    brief = {"epochs": 1, "batch": 50, "learning_rate": 1e-12, "weight_decay": 0.0}
    (whole,) = _train(_changed(_config(tmp_path, partition="none", **brief), 0, **resnet))
    config = _changed(_changed(_config(tmp_path, start_from=str(whole), **brief), 0, **resnet), 1, **resnet)
    weights = load_checkpoint(whole)[0]
    for file in _train(config):
        tuned, metadata = load_checkpoint(file)
        assert metadata is not None
        assert metadata.image_shape == (1, 28, 14)
        # At this learning rate they are still where they started.
        assert torch.allclose(tuned["layer3.2.conv2.weight"], weights["layer3.2.conv2.weight"], atol=1e-6)


def test_what_cannot_be_started_from_is_said_in_one_line(tmp_path: Path) -> None:
    (whole,) = _train(_config(tmp_path, partition="none", epochs=1))
    halves = _config(tmp_path, start_from=str(whole), epochs=1)
    with pytest.raises(
        ClassifierError, match=r"training.start_from: .*fc1.weight .*only in the masked layout"
    ) as caught:
        train_run(halves)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        ClassifierError, match=r"training.start_from: .* holds digits-cnn, the architecture of sub-image 0 is r"
    ):
        train_run(_changed(halves, 0, architecture="resnet20", arguments={}))
    with pytest.raises(ClassifierError, match=r"nowhere.safetensors: not found; correct training.start_from$"):
        train_run(_config(tmp_path, start_from=str(tmp_path / "nowhere.safetensors")))


def test_in_the_masked_layout_any_architecture_starts_from_a_full_images(tmp_path: Path) -> None:
    (whole,) = _train(_config(tmp_path, partition="none", epochs=1))
    data = _config(tmp_path, start_from=str(whole), epochs=1, learning_rate=1e-12).model_dump(mode="json")
    data["partition"]["layout"] = "masked"
    (file,) = _train(parse_config(data), sub_images=[0])
    assert torch.allclose(load_checkpoint(file)[0]["fc1.weight"], load_checkpoint(whole)[0]["fc1.weight"], atol=1e-6)


@pytest.mark.parametrize(
    ("training", "engine", "message"),
    [
        (
            {"workers": 2},
            {"address": "inline"},
            r"training.workers: the address inline is one process, got 2 workers;",
        ),
        ({"workers": 3}, {}, r"training.batch must be a multiple of training.workers \(3\).* got 32"),
        pytest.param(
            {},
            {"device": "cuda"},
            r"engine.device: cuda needs a GPU, and torch finds none here; use cpu or auto",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_trained(
    tmp_path: Path, training: dict[str, Any], engine: dict[str, Any], message: str
) -> None:
    data = _config(tmp_path, partition="none", **training).model_dump(mode="json")
    data["engine"] |= engine
    with pytest.raises(ConfigError, match=message) as caught:
        train_run(parse_config(data), on_progress=_killed_after(0, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"method": "cutmix"}, r"training.method: must be 'gaussian', .* or 'stability', got 'cutmix'"),
        ({"consistency": {"copies": 1}}, r"training.consistency.copies: must be >= 2, got 1"),
        ({"consistency": {"lambda": 1}}, r"training.consistency.lambda: unknown key; allowed here: across, copies, e"),
        ({"smoothadv": {"epsilon": 0}}, r"training.smoothadv.epsilon: must be > 0"),
        ({"smoothadv": {"warm_up": 0}}, r"training.smoothadv.warm_up: must be >= 1, got 0"),
        ({"macer": {"inverse_temperature": 0}}, r"training.macer.inverse_temperature: must be > 0"),
        ({"macer": {"margin": 12}}, r"training.macer.margin: must be <= 10"),
        ({"smoothmix": {"steps": 0}}, r"training.smoothmix.steps: must be >= 1, got 0"),
        ({"smoothmix": {"step_size": -1}}, r"training.smoothmix.step_size: must be > 0"),
        ({"mixed_precision": "half"}, r"^config: training.mixed_precision: must be auto, true or false, got 'half'$"),
        ({"momentum": 1.0}, r"training.momentum: must be < 1"),
        ({"workers": 0}, r"training.workers: must be >= 1, got 0"),
        ({"start_from": ""}, r"training.start_from: "),
    ],
)
def test_bad_values_are_named(tmp_path: Path, training: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _config(tmp_path, **training)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (
            None,
            r"classifiers.1.checkpoint: training writes a .safetensors file, got null; give a path or s3://",
        ),
        ("gs://bucket/a.safetensors", r"classifiers.1.checkpoint: .* gs://bucket: cannot store there; allowed: a dir"),
        ("a.pt", r"classifiers.1.checkpoint: training writes a .safetensors file, got a.pt"),
        ("FOLDER/taken/a.safetensors", r"classifiers.1.checkpoint: .*taken/a.safetensors: cannot be written: "),
        (
            "FOLDER/directory.safetensors",
            r"1.checkpoint: .*directory.safetensors: cannot be written: a directory has",
        ),
    ],
)
def test_a_bad_checkpoint_is_refused_before_anything_is_trained(
    tmp_path: Path, checkpoint: str | None, message: str
) -> None:
    (tmp_path / "taken").touch()
    (tmp_path / "directory.safetensors").mkdir()
    given = checkpoint.replace("FOLDER", str(tmp_path)) if checkpoint else checkpoint
    config = _changed(_config(tmp_path), 1, checkpoint=given)

    def never(*report: object) -> None:
        raise AssertionError("training started")

    with pytest.raises(ConfigError, match=message) as caught:
        train_run(config, on_progress=never)
    assert "\n" not in str(caught.value)


def test_an_entry_is_for_files_of_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"classifiers.0.entry: training writes a file that has no other; remove it"):
        train_run(_changed(_config(tmp_path), 0, entry="ema"))


def test_pixels_are_trained_with(tmp_path: Path) -> None:
    config = _changed(_config(tmp_path), 0, arguments={}, pixels={"mean": [0.1], "std": [0.3]})
    (file,) = _train(config, sub_images=[0])
    metadata = load_checkpoint(file)[1]
    assert metadata is not None
    assert metadata.pixels == {"range": [0.0, 1.0], "mean": [0.1], "std": [0.3]}


def test_members_are_trained_one_by_one(tmp_path: Path) -> None:
    ensemble = _changed(_config(tmp_path), 1, members=["b.safetensors"])
    with pytest.raises(ConfigError, match=r"classifiers.1.members: training is of one network; remove them, and train"):
        train_run(ensemble)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_sub_image_or_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"partition checkerboard has the sub-images 0..1, got 2"):
        train_run(_config(tmp_path), sub_images=[2])
    with pytest.raises(ConfigError, match=r"split of mnist5k must be train or test, got 'val'"):
        train_run(_config(tmp_path, split="val"))
    data = _config(tmp_path).model_dump(mode="json")
    data["dataset"] |= {"name": "cifar10", "root": str(tmp_path / "nowhere")}
    with pytest.raises(DataError, match=r"nowhere is not a directory"):
        train_run(parse_config(data))


def test_images_held_out_change_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = {"skip": 4}
    files = _train(_config(tmp_path / "with", partition="none", hold_out=held_out))
    others = np.arange(100) % 4 != 0

    def load(split: str) -> ArrayDataset:
        full = load_mnist5k(split)
        pixels, targets = full.pixels[::40].copy(), full.targets[::40]
        pixels[~others] = 255 - pixels[~others]
        return ArrayDataset(full.name, split, 10, pixels, targets)

    monkeypatch.setattr(datasets, "load_mnist5k", load)
    again = _train(_config(tmp_path / "changed", partition="none", hold_out=held_out))
    whole = _train(_config(tmp_path / "whole", partition="none"))
    with_, changed, all_ = (load_checkpoint(file)[0] for (file,) in (files, again, whole))
    assert all(torch.equal(with_[name], changed[name]) for name in with_)
    assert not all(torch.equal(with_[name], all_[name]) for name in with_)


def test_a_training_with_other_images_held_out_is_another_training(tmp_path: Path) -> None:
    notes: list[str] = []
    for held_out in ({"skip": 4}, {"skip": 4}, {"skip": 5}, {"stop": 10}):
        _train(_config(tmp_path, partition="none", hold_out=held_out), on_note=notes.append)
    assert len(notes) == 1
    assert "is kept" in notes[0]


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ({}, r"training\.hold_out: holds out all of the split train, 100 images; set skip, or stop"),
        ({"stop": 200}, r"training\.hold_out\.stop must be <= 100"),
        ({"ids": [3, 400]}, r"training\.hold_out\.ids must be in 0\.\.99"),
    ],
)
def test_images_that_cannot_be_held_out(tmp_path: Path, held_out: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _train(_config(tmp_path, partition="none", hold_out=held_out))


def test_a_sigma_in_8_bit_steps_is_noted_before_training(tmp_path: Path) -> None:
    notes: list[str] = []
    config = _changed(_config(tmp_path, partition="none", epochs=1), 0, sigma=64)
    _train(config, on_note=notes.append)
    assert [note.partition(" is in")[0] for note in notes] == ["warning: classifiers.0.sigma: 64"]
