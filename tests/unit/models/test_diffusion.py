"""Diffusion models as denoisers: against the best denoiser of Gaussian data, and every mistake in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from drs_ray import certify, verify
from drs_ray.config import DenoiserConfig, parse_config
from drs_ray.config.classifiers import DIRECTORY_FILES
from drs_ray.errors import ClassifierError
from drs_ray.models import diffusion
from drs_ray.models.denoisers import load_denoiser
from drs_ray.models.diffusion import OneShotDenoiser, load_diffusion
from drs_ray.models.inference import voting_classifier
from drs_ray.models.pixel_convention import Shape
from drs_ray.models.tensors import module_digest
from drs_ray.storage import open_store
from tests.support.runs import counts_digest, run_data

SHAPE = (1, 28, 14)
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of diffusers


def tiny(channels: int = 1, **settings: Any) -> UNet2DModel:
    torch.manual_seed(0)
    sizes = {"in_channels": channels, "out_channels": channels, "block_out_channels": (8, 8), "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    network = UNet2DModel(
        **{**sizes, **blocks, "layers_per_block": 1, "attention_head_dim": 4, "sample_size": 28, **settings}
    )
    for parameter in network.parameters():  # the last layer starts at zero, which would hide the others
        nn.init.normal_(parameter, std=0.1)
    return network


def saved(place: Path, network: UNet2DModel | None = None, **schedule: Any) -> str:
    DDPMPipeline(network or tiny(), DDPMScheduler(**schedule)).save_pretrained(place)
    return str(place)


def found_in(place: str, sigma: float, shape: Shape, who: str) -> tuple[OneShotDenoiser, list[str]]:
    denoiser, warnings, _ = load_diffusion(place, {}, sigma, shape, who)
    return denoiser, warnings


class Best(nn.Module):
    """The best predictor for data N(mean, spread^2) in [-1, 1], for each kind of prediction, in closed form."""

    def __init__(self, prediction: str, alpha_bar: Tensor, mean: float, spread: float) -> None:
        super().__init__()
        self.prediction, self.alpha_bar, self.mean, self.spread = prediction, alpha_bar, mean, spread

    def forward(self, noisy: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        kept = self.alpha_bar[timestep].double().view(-1, 1, 1, 1)
        weight = kept.sqrt() * self.spread**2 / (kept * self.spread**2 + 1 - kept)
        clean = self.mean + weight * (noisy - kept.sqrt() * self.mean)
        epsilon = (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()
        found = {"sample": clean, "epsilon": epsilon, "v_prediction": kept.sqrt() * epsilon - (1 - kept).sqrt() * clean}
        return (torch.cat([found[self.prediction], torch.full_like(noisy, 7.0)], dim=1),)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sigma", [0.12, 0.25, 0.5, 1.0])
def test_it_is_the_best_denoiser_of_gaussian_data(prediction: str, schedule: str, sigma: float) -> None:
    """E[x | x + sigma noise] for pixels N(1/2 + mean/2, (spread/2)^2) is a mean of the two, weighted by variances."""
    alpha_bar = DDPMScheduler(**SCHEDULES[schedule]).alphas_cumprod.double()
    levels = ((1 - alpha_bar) / alpha_bar).sqrt() / 2
    timestep = int((levels / sigma).log().abs().argmin())
    level, mean, spread = levels[timestep].item(), 0.1, 0.3
    assert level == pytest.approx(sigma, rel=0.02)
    network = Best(prediction, alpha_bar, mean, spread)
    denoiser = OneShotDenoiser(network, timestep, level, prediction, {})
    centre, variance = (1 + mean) / 2, (spread / 2) ** 2
    x = (centre + spread / 2 * torch.randn(4, 1, 5, 3, dtype=torch.float64)).clamp(0.3, 0.7)
    expected = centre + variance / (variance + level**2) * (x - centre)
    assert torch.allclose(denoiser(x), expected, atol=1e-9)


def test_a_clipped_pixel_has_a_gradient_in_training() -> None:
    """Its value is the same in training and in voting."""
    denoiser = OneShotDenoiser(nn.Identity(), 500, 0.5, "sample", {})

    def scaled(noisy: Tensor, timesteps: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (denoiser.gain * noisy,)

    denoiser.gain = nn.Parameter(torch.tensor(3.0))
    denoiser.network.forward = scaled  # type: ignore[method-assign, assignment]
    x = torch.tensor([[[[0.0, 0.45, 1.0]]]])  # the outer two are clipped
    trained = denoiser.train()(x)
    voted = denoiser.eval()(x)
    assert voted[0, 0, 0, 0] == 0
    assert voted[0, 0, 0, 2] == 1
    assert torch.allclose(trained, voted, atol=1e-6)
    for pixel, is_clipped in ((0, True), (1, False), (2, True)):
        for outputs, has_gradient in ((trained, True), (voted, not is_clipped)):
            (slope,) = torch.autograd.grad(outputs[0, 0, 0, pixel], denoiser.gain, retain_graph=True)
            assert (slope != 0) == has_gradient


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_timestep_is_the_one_with_the_noise_of_the_run(tmp_path: Path, schedule: str) -> None:
    place = saved(tmp_path / "model", **SCHEDULES[schedule])
    for sigma in (0.12, 0.25, 0.5, 1.0):
        denoiser, warnings = found_in(place, sigma, (1, 28, 28), "denoiser")
        assert warnings == []
        noise, signal = denoiser.noise, denoiser.signal
        assert noise**2 + signal**2 == pytest.approx(1, abs=1e-12)
        assert noise / signal / 2 == pytest.approx(sigma, rel=0.02)
        expected = DDPMScheduler(**SCHEDULES[schedule]).alphas_cumprod[denoiser.timestep]
        assert signal**2 == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("layout", ["pipeline", "flat"])
def test_the_network_is_the_one_that_was_saved(tmp_path: Path, layout: str) -> None:
    network = tiny(3, sample_size=8, out_channels=6).eval()
    if layout == "pipeline":
        saved(tmp_path, network)
    else:
        network.save_pretrained(tmp_path)
        DDPMScheduler().save_pretrained(tmp_path)
    config = DenoiserConfig(architecture="diffusers", checkpoint=str(tmp_path))
    denoiser, warnings = load_denoiser(config, 0.5, (3, 8, 4), 0, "checkerboard", "packed")
    (warning,) = warnings
    assert warning.endswith(f"{tmp_path} was trained on 8x8 pixels, the sub-image has 8x4")
    assert isinstance(denoiser, OneShotDenoiser)
    x = torch.rand(2, 3, 8, 4, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = denoiser(x)
        noisy = denoiser.signal * (2 * x - 1)
        epsilon = network(noisy, denoiser.timestep).sample[:, :3]  # then variances
        clean = (noisy - denoiser.noise * epsilon) / denoiser.signal
    assert torch.allclose(found, (clean.clamp(-1, 1) + 1) / 2, atol=1e-6)
    assert found.dtype == torch.float32


def test_the_files_that_are_read_are_those_that_a_job_is_checked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "pipeline")
    tiny().save_pretrained(tmp_path / "flat")
    DDPMScheduler().save_pretrained(tmp_path / "flat")
    read: set[str] = set()

    def noting(reader: Any) -> Any:
        def note(location: str, *rest: str) -> Any:
            found = reader(location, *rest)
            read.update([] if found is None else [Path(location).relative_to(tmp_path).as_posix().partition("/")[2]])
            return found

        return note

    for reader in ("read_file", "read_json"):
        monkeypatch.setattr(diffusion, reader, noting(getattr(diffusion, reader)))
    for layout in ("pipeline", "flat"):
        found_in(str(tmp_path / layout), 0.5, (1, 28, 28), "denoiser")
    assert read == set(DIRECTORY_FILES) - {"preprocessor_config.json", "model.safetensors"}  # of transformers and timm


@pytest.mark.parametrize("sub_images", [1, 2])
def test_a_run_with_diffusion_models_is_certified_and_verified(tmp_path: Path, sub_images: int) -> None:
    data = run_data(tmp_path / "run", images=3)
    data["partition"] = {"name": "none"} if sub_images == 1 else {"name": "checkerboard", "layout": "packed"}
    places = [saved(tmp_path / f"model-{k}") for k in range(sub_images)]
    data["classifiers"] = [
        classifier | {"denoiser": {"architecture": "diffusers", "checkpoint": place}}
        for classifier, place in zip(data["classifiers"], places, strict=False)
    ]
    data["budget"] = {"selection": 10, "estimation": 40}
    data["engine"] |= {"images_per_unit": 1, "batch": 20, "precision": "float32"}
    result = certify(parse_config(data))
    verify(result.uri, 2).check()
    assert result.record.software["diffusers"] == diffusers.__version__
    digest = counts_digest(open_store(result.uri))
    data["output"] = str(tmp_path / "again")
    data["engine"]["images_per_unit"] = 3
    certify(parse_config(data))
    assert counts_digest(tmp_path / "again") == digest
    saved(tmp_path / "model-0", beta_schedule="squaredcos_cap_v2")  # the same weights under another schedule
    other = parse_config({**data, "output": str(tmp_path / "other")})
    assert certify(other).record.classifier_digests[0] != result.record.classifier_digests[0]


@pytest.mark.slow
def test_it_is_compiled_as_one_graph_with_nearly_the_same_logits(tmp_path: Path) -> None:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    network = tiny(block_out_channels=(8,), **blocks)  # one level, and attention in the middle: quick to compile
    denoiser, _ = found_in(saved(tmp_path / "model", network), 0.5, SHAPE, "denoiser")
    module = nn.Sequential(denoiser, nn.Flatten(), nn.Linear(28 * 14, 10))
    options: dict[str, Any] = {"device": torch.device("cpu"), "batch": 8, "image_shape": SHAPE}
    options |= {"num_classes": 10, "sub_image": 0}
    plain = voting_classifier(module, precision="float32", compile=False, **options)
    compiled = voting_classifier(module, precision="bfloat16", compile=True, **options)
    x = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        assert torch.allclose(compiled.module(x), plain.module(x), atol=0.05)


def changed(place: Path, file: str, **values: Any) -> str:
    path = place / file
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (content | values).items() if value != "remove it"}))
    return str(place)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "is a UNet2DConditionModel; an unconditional"),
        ("unet/config.json", {"num_class_embeds": 10}, "needs a class of each image"),
        ("unet/config.json", {"in_channels": 3}, "from 3 to 1 channels, but the sub-image has 1; from 1 to 1 are"),
        ("unet/config.json", {"block_out_channels": [8] * 4}, "multiples of 8, the sub-image is 28x14"),
        (
            "model_index.json",
            {"vae": ["diffusers", "AutoencoderKL"]},
            "contains vae; only models that denoise pixels",
        ),
        (
            "model_index.json",
            {"image_encoder": ["transformers", "CLIP"]},
            "contains image_encoder; only models that",
        ),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "is given noise levels, not timesteps"),
        ("unet/config.json", {"down_block_types": ["NoBlock", "DownBlock2D"]}, "config.json: diffusers cannot read it"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 100}, r"sigma 0\.005\d* to 0\.6615, got 1"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "remove it"}, "a DDPMScheduler without betas"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": True}, "a DDPMScheduler without betas"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "other"}, "model: diffusers cannot read it"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "flow_prediction"},
            "epsilon, sample, v_prediction, got",
        ),
    ],
)
def test_other_models_are_refused_with_the_reason(
    tmp_path: Path, file: str, values: dict[str, Any], message: str
) -> None:
    place = saved(tmp_path / "model")
    changed(Path(place), file, **values)
    with pytest.raises(ClassifierError, match=message) as caught:
        found_in(place, 1.0, SHAPE, "sub-image 0: denoiser diffusers")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "not found; save it with .*in one file; pickles are not read"),
        (
            "scheduler/scheduler_config.json",
            "no scheduler_config.json in .*; name a directory that diffusers",
        ),
        ("unet/config.json", "no config.json in "),
    ],
)
def test_missing_files_are_named(tmp_path: Path, missing: str, message: str) -> None:
    place = saved(tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(ClassifierError, match=message):
        found_in(place, 0.5, SHAPE, "sub-image 0: denoiser diffusers")


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    place = saved(tmp_path / "model")
    file = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ClassifierError, match=r"diffusion_pytorch_model\.safetensors") as caught:
        found_in(place, 0.5, SHAPE, "denoiser")
    assert "\n" not in str(caught.value)


def test_names_of_attention_layers_from_earlier_versions_are_read(tmp_path: Path) -> None:
    network = tiny()
    place = saved(tmp_path / "model", network)
    before = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = dict(network.state_dict())
    for present, old in before.items():
        for name in [name for name in tensors if f".{present}." in name]:
            tensors[name.replace(f".{present}.", f".{old}.")] = tensors.pop(name)
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, tmp_path / "model/unet/diffusion_pytorch_model.safetensors")
    denoiser, _ = found_in(place, 0.5, SHAPE, "denoiser")
    found = denoiser.network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("file", "values"),
    [("scheduler/scheduler_config.json", {"prediction_type": "sample"}), ("unet/config.json", {"norm_eps": 1e-3})],
)
def test_the_digest_covers_what_is_in_no_weight(tmp_path: Path, file: str, values: dict[str, Any]) -> None:
    place = saved(tmp_path / "model")
    first, _ = found_in(place, 0.5, SHAPE, "denoiser")
    second, _ = found_in(changed(tmp_path / "model", file, **values), 0.5, SHAPE, "denoiser")
    again, _ = found_in(place, 0.5, SHAPE, "denoiser")
    assert module_digest(second) == module_digest(again) != module_digest(first)


def test_a_coarse_schedule_is_warned_of(tmp_path: Path) -> None:
    place = saved(tmp_path / "model", num_train_timesteps=10, beta_start=0.01, beta_end=0.9)
    denoiser, warnings = found_in(place, 1.0, (1, 28, 28), "denoiser")
    level = denoiser.noise / denoiser.signal / 2
    assert not 0.95 < level < 1.05
    assert warnings == [f"denoiser: {place} has noise of sigma {level:.6g}, not 1"]


def test_a_schedule_that_ends_in_noise_alone_is_used_below_its_end(tmp_path: Path) -> None:
    place = saved(tmp_path / "model", rescale_betas_zero_snr=True, beta_schedule="scaled_linear")
    assert found_in(place, 0.5, (1, 28, 28), "denoiser")[1] == []
    with pytest.raises(ClassifierError, match=r"to \d+\.?\d*(e\+\d+)?, got 1e\+09"):
        found_in(place, 1e9, SHAPE, "denoiser")


def test_noise_beyond_the_schedule_names_what_the_model_knows(tmp_path: Path) -> None:
    place = saved(tmp_path / "model")
    for sigma in (1e-3, 200.0):
        with pytest.raises(ClassifierError, match=r"the model knows noise of sigma 0\.005\d* to 78\.7, got "):
            found_in(place, sigma, SHAPE, "denoiser")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"denoiser diffusers needs a checkpoint; set classifiers.0.denoiser.checkpoint"),
        ({"checkpoint": "nowhere", "entry": "ema"}, "denoiser diffusers takes no entry; remove it"),
        ({"checkpoint": "nowhere"}, "no config.json in nowhere"),
    ],
)
def test_mistakes_in_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Any, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClassifierError, match=message):
        load_denoiser(DenoiserConfig(architecture="diffusers", **config), 0.5, SHAPE, 0, "checkerboard", "packed")


def test_without_diffusers_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ClassifierError, match=r"needs diffusers; install it with `pip install drs-ray\[diffusion\]`"):
        found_in(str(tmp_path), 0.5, SHAPE, "denoiser")
