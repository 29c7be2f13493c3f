"""Denoised smoothing from training to certificates: classifiers without noise, and denoisers before them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from drs_ray import certify, verify
from drs_ray.config import ClassifierConfig, RunConfig, TrainingConfig, parse_config
from drs_ray.data import datasets
from drs_ray.data.arrays import ArrayDataset, load_mnist5k
from drs_ray.errors import ClassifierError, ConfigError
from drs_ray.models.architectures import DigitsCNN
from drs_ray.models.checkpoints import CheckpointMetadata, load_checkpoint
from drs_ray.models.denoisers import load_denoiser
from drs_ray.models.factory import load_classifier
from drs_ray.smoothing.partition import make_partition
from drs_ray.training import methods
from drs_ray.training.denoised import clean_loss, mse_loss, stability_loss
from drs_ray.training.methods import loss_of
from drs_ray.training.run import state_file, train_run
from drs_ray.training.trainee import Trainee
from tests.support.runs import drs_ray_here

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of diffusers

DNCNN = {"depth": 3, "width": 8}
UNET = {
    "block_out_channels": [4, 8],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": 4,
}


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 40th digit of the real data set."""

    def load(split: str) -> ArrayDataset:
        full = load_mnist5k(split)
        return ArrayDataset(full.name, split, 10, full.pixels[::40], full.targets[::40])

    monkeypatch.setattr(datasets, "load_mnist5k", load)


def config_of(folder: Path, layout: str = "packed", denoiser: str = "dncnn", **training: Any) -> RunConfig:
    """Both halves of a checkerboard. In the masked layout they share a classifier of whole digits."""
    suffix = "" if denoiser == "diffusers" else ".safetensors"
    return parse_config(
        {
            "dataset": {"name": "mnist5k", "images": {"stop": 2}},
            "partition": {"name": "checkerboard", "layout": layout},
            "classifiers": [
                {
                    "architecture": "digits-cnn",
                    "arguments": {"width": 4},
                    "checkpoint": str(folder / ("whole" if layout == "masked" else f"half-{k}")) + ".safetensors",
                    "denoiser": {
                        "architecture": denoiser,
                        "arguments": UNET if denoiser == "diffusers" else DNCNN,
                        "checkpoint": str(folder / f"denoiser-{k}{suffix}"),
                    },
                    "sigma": 0.5,
                }
                for k in range(2)
            ],
            "budget": {"selection": 10, "estimation": 30},
            "noise": {"block": 10},
            "training": {"epochs": 1, "batch": 32, **training},
            "engine": {"address": "inline", "device": "cpu"},
            "output": str(folder / "run"),
        }
    )


def changed(config: RunConfig, **values: Any) -> RunConfig:
    """Other values of the first classifier's section, and of the sections within it."""
    data = config.model_dump(mode="json")
    section = data["classifiers"][0]
    for key, value in values.items():
        section[key] = {**(section[key] or {}), **value} if isinstance(value, dict) else value
    return parse_config(data)


def train_classifiers(folder: Path, layout: str) -> None:
    if layout == "packed":
        train_run(config_of(folder, method="clean"))
        return
    data = config_of(folder, layout, method="clean").model_dump(mode="json")
    data |= {"partition": {"name": "none"}, "classifiers": data["classifiers"][:1]}
    train_run(parse_config(data))


def denoiser_of_both(folder: Path) -> dict[str, Any]:
    """Changes the first denoiser's section, so that both halves share the denoiser of the second."""
    return {"checkpoint": str(folder / "denoiser-1.safetensors")}


def metadata_of(file: Path) -> CheckpointMetadata:
    metadata = load_checkpoint(file)[1]
    assert metadata is not None
    return metadata


# --- losses


def test_the_losses_by_hand() -> None:
    partition = make_partition("checkerboard", 2, 2, "masked")  # sub-image 0 has the cells 0 and 3
    values = torch.tensor([[[0.2, 0.4]], [[0.6, 0.8]]])
    noises = torch.tensor([[[0.1, -0.3]], [[0.5, 0.25]]])
    whole = torch.tensor([[[[0.2, 0.9], [0.7, 0.4]]], [[[0.6, 0.3], [0.1, 0.8]]]])
    labels = torch.tensor([0, 0])
    double = nn.Conv2d(1, 1, 1, bias=False)
    double.weight.data.fill_(2.0)
    trainee = Trainee(double, partition, (0,))
    denoised = 2 * torch.tensor([[0.3, 0, 0, 0.1], [1.1, 0, 0, 1.05]])

    loss, none = mse_loss(trainee, values, whole, lambda _: noises)
    assert none is None
    assert loss.item() == pytest.approx(((denoised - whole.view(2, 4)) ** 2).mean().item())

    weight = torch.tensor([[1.0, -1.0, 0.5, 2.0], [0.25, 3.0, -1.0, 0.0]])
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    linear[1].weight.data = weight
    chosen = (whole.view(2, 4) @ weight.T).argmax(1)
    assert chosen.tolist() == [1, 0]  # not the labels
    loss, logits = stability_loss(trainee, values, whole, lambda _: noises, classifier=linear)
    assert torch.allclose(logits, denoised @ weight.T)
    expected = -(denoised @ weight.T).log_softmax(1)[[0, 1], chosen].mean()
    assert loss.item() == pytest.approx(expected.item())

    loss, logits = clean_loss(
        Trainee(linear, make_partition("none", 2, 2, "packed"), (0,)), whole.flatten(2), labels, label_smoothing=0
    )
    assert loss.item() == pytest.approx(-(whole.view(2, 4) @ weight.T).log_softmax(1)[:, 0].mean().item())

    with pytest.raises(ValueError, match="stability needs the classifier"):
        loss_of(TrainingConfig(method="stability"), 0.5)


# --- whole runs


@pytest.mark.parametrize(("layout", "denoiser"), [("packed", "dncnn"), ("packed", "diffusers"), ("masked", "dncnn")])
def test_from_training_to_a_certificate(tmp_path: Path, layout: str, denoiser: str) -> None:
    train_classifiers(tmp_path, layout)
    mse = config_of(tmp_path, layout, denoiser, method="mse")
    accuracies: list[float | None] = []
    files = train_run(mse, on_progress=lambda *report: accuracies.append(report[4]))
    assert accuracies == [None, None]
    for k, file in enumerate(files):
        metadata = metadata_of(Path(file))
        assert (metadata.sub_images, metadata.sigma, metadata.layout, metadata.num_classes) == ((k,), 0.5, layout, 0)
    first = certify(mse)
    shape = (1, 28, 14 if layout == "packed" else 28)
    assert loaded(mse, layout=layout, image_shape=shape) == ()
    verify(first.uri, 2).check()

    start = str(tmp_path / "denoiser-{sub_image}") + ("" if denoiser == "diffusers" else ".safetensors")
    stability = config_of(tmp_path, layout, denoiser, method="stability", start_from=start)
    data = stability.model_dump(mode="json")
    for k, classifier in enumerate(data["classifiers"]):
        classifier["denoiser"]["checkpoint"] = start.replace("denoiser-{sub_image}", f"stable-{k}")
    stable = parse_config({**data, "output": str(tmp_path / "stable")})
    accuracies.clear()
    train_run(stable, on_progress=lambda *report: accuracies.append(report[4]))
    assert None not in accuracies
    second = certify(stable)
    assert len({*first.record.classifier_digests, *second.record.classifier_digests}) == 4


def test_a_unet_is_stored_as_diffusers_stores_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, denoiser="diffusers", method="mse")
    file, _ = train_run(config)
    place = tmp_path / "denoiser-0"
    assert file == str(place / "diffusion_pytorch_model.safetensors")
    network, scheduler = UNet2DModel.from_pretrained(place), DDPMScheduler.from_pretrained(place)
    assert tuple(network.config.sample_size) == (28, 14)
    section = config.classifiers[0].denoiser
    assert section is not None
    ours, _ = load_denoiser(section, 0.5, (1, 28, 14), 0, "checkerboard", "packed")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[f"network.{name}"])
    assert len(scheduler.betas) == 1000


@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_a_denoiser_learns_to_return_the_clean_image(tmp_path: Path, layout: str) -> None:
    """In the masked layout also the pixels that it does not see, to less than their own spread."""
    config = config_of(tmp_path, layout, method="mse", epochs=25, learning_rate=0.02)
    losses: list[float] = []
    train_run(config, sub_images=[0], on_progress=lambda *report: losses.append(report[3]))
    section = config.classifiers[0].denoiser
    assert section is not None
    shape = (1, 28, 14 if layout == "packed" else 28)
    denoiser, _ = load_denoiser(section, 0.5, shape, 0, "checkerboard", layout)
    cut = make_partition("checkerboard", 28, 28, layout)
    whole = torch.from_numpy(load_mnist5k("test").images(range(50)))
    values = cut.extract(whole, 0)
    noisy = values + 0.5 * torch.randn(values.shape, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        denoised = denoiser(cut.arrange(noisy, 0))
    target = cut.arrange(values, 0) if layout == "packed" else whole
    error = (denoised - target).square().mean().item()
    assert error < 0.5 * target.var().item()
    assert losses[-1] == pytest.approx(error, rel=0.5)


@pytest.mark.parametrize("layout", ["packed", "masked"])
@pytest.mark.parametrize("both", [False, True])
def test_the_target_is_the_image_as_it_was_augmented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, both: bool
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(trainee: Trainee, values: Tensor, clean: Tensor, noise: Any) -> tuple[Tensor, None]:
        seen.append((values, clean))
        return mse_loss(trainee, values, clean, noise)

    monkeypatch.setattr(methods, "mse_loss", spy)
    config = config_of(tmp_path, layout, method="mse", shift=3, flip=True)
    train_run(changed(config, denoiser=denoiser_of_both(tmp_path)) if both else config, sub_images=[0])
    cut = make_partition("checkerboard", 28, 28, layout)
    assert len(seen) == 4
    for step, (values, clean) in enumerate(seen):
        sub_image = step % 2 if both else 0
        if layout == "packed":
            assert torch.equal(clean, cut.arrange(values, sub_image))
        else:
            assert torch.equal(cut.extract(clean, sub_image), values)


@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_a_clean_classifier_learns_what_the_denoiser_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    seen: list[Tensor] = []
    forward = DigitsCNN.forward

    def spy(self: DigitsCNN, x: Tensor) -> Tensor:
        if self.training:
            seen.append(x.detach().clone())
        return forward(self, x)

    monkeypatch.setattr(DigitsCNN, "forward", spy)
    config = changed(config_of(tmp_path, layout, method="clean"), checkpoint=str(tmp_path / "own.safetensors"))
    (file,) = train_run(config, sub_images=[0])
    assert metadata_of(Path(file)).sigma == 0
    inputs = torch.cat(seen)
    levels = inputs * 255
    assert torch.equal(levels.round(), levels)  # 8-bit pixels, without noise
    assert inputs.shape[1:] == (1, 28, 14 if layout == "packed" else 28)
    if layout == "masked":
        unseen = make_partition("checkerboard", 28, 28, "packed").pixels(1)
        assert inputs.flatten(1)[:, unseen].max() > 0.9


def test_an_interrupted_training_of_a_unet_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(sub_image: int, epoch: int, *_: object) -> None:
        if epoch == 2:
            raise Killed

    undisturbed = config_of(tmp_path / "undisturbed", denoiser="diffusers", method="mse", epochs=3)
    killed = config_of(tmp_path / "killed", denoiser="diffusers", method="mse", epochs=3)
    (expected,) = train_run(undisturbed, sub_images=[0])
    with pytest.raises(Killed):
        train_run(killed, sub_images=[0], on_progress=kill)
    place = tmp_path / "killed" / "denoiser-0"
    assert [path.name for path in place.iterdir()] == [Path(state_file(expected)).name]
    notes: list[str] = []
    (file,) = train_run(killed, sub_images=[0], on_note=notes.append)
    assert notes[0].startswith("sub-image 0: going on after epoch 2 of 3 (")
    assert Path(file).read_bytes() == Path(expected).read_bytes()
    train_run(killed, sub_images=[0], on_note=notes.append)
    assert "was trained with these settings, and is kept" in notes[1]


def test_another_classifier_behind_it_makes_another_training(tmp_path: Path) -> None:
    train_classifiers(tmp_path, "packed")
    save_file(load_checkpoint(tmp_path / "half-0.safetensors")[0], tmp_path / "half-0.safetensors")  # no metadata
    config = changed(config_of(tmp_path, method="stability"), pixels={"range": [0, 1]})
    notes: list[str] = []
    for other in (config, config, changed(config, pixels={"range": [0, 255]})):  # of one digest
        train_run(other, sub_images=[0], on_note=notes.append)
    assert ["kept" in note for note in notes] == [True]  # with other pixels it is trained again
    train_run(config, sub_images=[0])
    train_run(changed(config_of(tmp_path, method="clean", seed=1), pixels={"range": [0, 1]}), sub_images=[0])
    train_run(config, sub_images=[0], on_note=notes.append)
    assert len(notes) == 1  # trained again, not kept


def test_another_start_under_the_same_name_makes_another_training(tmp_path: Path) -> None:
    start = str(tmp_path / "denoiser-1.safetensors")
    config = config_of(tmp_path, method="mse", start_from=start)
    notes: list[str] = []
    for seed in (1, 1, 2):
        train_run(config_of(tmp_path, method="mse", seed=seed), sub_images=[1])
        train_run(config, sub_images=[0], on_note=notes.append)
    assert ["kept" in note for note in notes] == [True]


def test_a_unet_is_not_trained_into_the_directory_of_a_pipeline(tmp_path: Path) -> None:
    """certify would load the pipeline's."""
    DDPMPipeline(UNet2DModel(**{**UNET, "in_channels": 1, "out_channels": 1}), DDPMScheduler()).save_pretrained(
        tmp_path / "denoiser-0"
    )
    with pytest.raises(ConfigError, match=r"denoiser-0 has model_index.json, a pipeline's: name another directory for"):
        train_run(config_of(tmp_path, denoiser="diffusers", method="mse"), sub_images=[0])
    start = str(tmp_path / "denoiser-{sub_image}")
    config = config_of(tmp_path, denoiser="diffusers", method="mse", start_from=start)
    train_run(changed(config, denoiser={"checkpoint": str(tmp_path / "new")}), sub_images=[0])


EXAMPLES = Path(__file__).parents[3] / "jobs" / "configs" / "denoised"


def test_the_commands_of_the_examples_certify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer epochs, images and samples; all else is as in the files."""
    monkeypatch.chdir(tmp_path)
    small = ["--set", "training.epochs=1", "--set", "dataset.images.stop=2", "--set", "budget.estimation=30"]
    small += ["--set", "budget.selection=10", "--set", "noise.block=10", "--quiet"]
    for example in ("rs.yaml", "drs.yaml"):
        commands = re.findall(r"^#   drs-ray (.*)$", (EXAMPLES / example).read_text(), re.MULTILINE)
        assert len(commands) == 3
        for command in commands:
            arguments = command.replace("jobs/configs/denoised", str(EXAMPLES)).split()
            done = drs_ray_here([*arguments, *small])
            assert done.returncode == 0, done.stderr
    for run in ("rs", "drs"):
        verify(str(tmp_path / "runs" / "denoised" / run), 1).check()


# --- mistakes


def loaded(config: RunConfig, sub_image: int = 0, **others: Any) -> tuple[str, ...]:
    section: ClassifierConfig = config.classifiers[sub_image]
    given = {
        "sub_image": sub_image,
        "partition": "checkerboard",
        "layout": "packed",
        "image_shape": (1, 28, 14),
        "num_classes": 10,
    }
    return load_classifier(**{**dict(section), **given, **others}).warnings


def test_what_was_trained_for_something_else_is_named(tmp_path: Path) -> None:
    train_classifiers(tmp_path, "packed")
    config = config_of(tmp_path, method="mse")
    train_run(config)
    assert loaded(config) == ()
    (warning,) = loaded(config, sigma=0.25)
    assert "denoiser-0.safetensors was trained with sigma 0.5, the run uses 0.25" in warning
    swapped = changed(config, denoiser={"checkpoint": str(tmp_path / "denoiser-1.safetensors")})
    with pytest.raises(ClassifierError, match=r"denoiser-1.safetensors: trained for sub-image 1, the run needs 0"):
        loaded(swapped)
    with pytest.raises(ClassifierError, match=r"half-0.safetensors: trained for layout packed, the run needs masked"):
        loaded(config, layout="masked")
    (warning,) = loaded(config, denoiser=None)  # a classifier that never saw noise
    assert "half-0.safetensors was trained with sigma 0, the run uses 0.5" in warning


def test_a_classifier_of_whole_images_fits_only_behind_a_denoiser_of_full_size(tmp_path: Path) -> None:
    train_classifiers(tmp_path, "masked")
    config = config_of(tmp_path, "masked", method="mse")
    train_run(config)
    given = {"layout": "masked", "image_shape": (1, 28, 28)}
    assert loaded(config, **given) == ()
    with pytest.raises(ClassifierError, match=r"whole.safetensors: trained for partition none, the run needs checker"):
        loaded(config, **given, denoiser=None)


def test_arguments_must_agree_with_the_stored_settings(tmp_path: Path) -> None:
    config = config_of(tmp_path, denoiser="diffusers", method="mse")
    train_classifiers(tmp_path, "packed")
    train_run(config, sub_images=[0])
    assert loaded(changed(config, denoiser={"arguments": {}})) == ()
    section = changed(config, denoiser={"arguments": {**UNET, "layers_per_block": 2}}).classifiers[0].denoiser
    assert section is not None
    with pytest.raises(ClassifierError, match=r"config.json: layers_per_block is 1, the config has 2; remove it from"):
        load_denoiser(section, 0.5, (1, 28, 14), 0, "checkerboard", "packed")


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("gaussian", {}, r"classifiers.0.denoiser: training under noise is without one; set training.method to clean"),
        (
            "mse",
            {"denoiser": None},
            r"classifiers.0.denoiser: the method mse trains denoisers, and the config has none",
        ),
        (
            "mse",
            {"denoiser": {"checkpoint": "best.pth.tar"}},
            r"classifiers.0.denoiser.checkpoint: training writes a .safetensors file, got best.pth.tar; give a path",
        ),
        (
            "mse",
            {"denoiser": {"architecture": "diffusers", "checkpoint": None}},
            r"classifiers.0.denoiser.checkpoint: training writes a directory, got null; give a path or s3:// URI such "
            r"as checkpoints/denoiser-checkerboard-0$",
        ),
        ("mse", {"denoiser": {"entry": "ema"}}, r"classifiers.0.denoiser.entry: training writes a file that has no"),
        ("stability", {}, r"checkpoint .*half-0.safetensors: not found; correct classifiers.0.checkpoint, or train it"),
        (
            "mse",
            {"denoiser": {"architecture": "diffusers", "arguments": {**UNET, "blocks": 3}}},
            r"sub-image 0: denoiser diffusers: arguments: diffusers cannot read it \(TypeError: .*blocks",
        ),
        (
            "mse",
            {"denoiser": {"architecture": "diffusers", "arguments": {}}},
            r"arguments: takes sizes that are multiples of 8, the sub-image is 28x14",
        ),
        (
            "mse",
            {"denoiser": {"architecture": "guided-diffusion", "arguments": {}}},
            r"denoiser.architecture: guided-diffusion is only read, not trained; certify with it, or name an archite",
        ),
    ],
)
def test_mistakes_are_named_before_training(tmp_path: Path, method: str, values: Any, message: str) -> None:
    config = changed(config_of(tmp_path, method=method), **values)
    with pytest.raises((ConfigError, ClassifierError), match=message):
        train_run(config, sub_images=[0])


def test_one_denoiser_for_two_unlike_sub_images_is_refused(tmp_path: Path) -> None:
    one = changed(config_of(tmp_path, method="mse"), denoiser=denoiser_of_both(tmp_path), sigma=0.25)
    with pytest.raises(ConfigError, match=r"classifiers.1.sigma: must be equal for sub-images 0 and 1, which name one"):
        train_run(one)
    behind = changed(config_of(tmp_path, method="stability"), denoiser=denoiser_of_both(tmp_path))
    with pytest.raises(ConfigError, match=r"classifiers.1.checkpoint: must be equal for sub-images 0 and 1, which nam"):
        train_run(behind)


def test_halves_of_full_size_share_a_classifier_of_whole_images(tmp_path: Path) -> None:
    """That of both halves is that of whole images, but for its metadata."""
    (of_both,) = train_run(config_of(tmp_path, "masked", method="clean"))
    weights = load_checkpoint(of_both)[0]
    train_classifiers(tmp_path / "none", "masked")
    assert metadata_of(Path(of_both)).sub_images == (0, 1)
    other = load_checkpoint(tmp_path / "none" / "whole.safetensors")[0]
    assert all(torch.equal(weights[name], other[name]) for name in weights)


def test_the_classifier_behind_one_denoiser_must_be_for_all_its_sub_images(tmp_path: Path) -> None:
    train_classifiers(tmp_path, "packed")
    data = config_of(tmp_path, method="stability").model_dump(mode="json")
    data["classifiers"] = data["classifiers"][:1] * 2
    with pytest.raises(ClassifierError, match=r"half-0.safetensors: trained for sub-image 0, the run needs 1"):
        train_run(parse_config(data))
    assert not list(tmp_path.glob("denoiser*"))
    train_run(parse_config(data | {"training": data["training"] | {"method": "clean"}}))
    (file,) = train_run(parse_config(data))
    assert metadata_of(Path(file)).sub_images == (0, 1)


@pytest.mark.parametrize("method", ["clean", "mse"])
def test_one_file_for_classifier_and_denoiser_is_refused(tmp_path: Path, method: str) -> None:
    """The second training would replace what the first wrote."""
    config = config_of(tmp_path, method=method)
    checkpoint = str(config.classifiers[0].checkpoint)
    for spelling in (checkpoint, str(Path(checkpoint).parent / "." / "x" / ".." / Path(checkpoint).name)):
        both = changed(config, denoiser={"checkpoint": spelling})
        with pytest.raises(ConfigError, match=r"a classifier and a denoiser need a checkpoint each, got .*half-0.safe"):
            train_run(both, sub_images=[0])
