"""Files of improved- and guided-diffusion: against a second implementation of their network, name by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from drs_ray.config import DenoiserConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.denoisers import load_denoiser
from drs_ray.models.diffusion import OneShotDenoiser
from drs_ray.models.openai_diffusion import FLAGS, as_diffusers
from drs_ray.models.tensors import module_digest
from tests.support.openai_unet import Network, Sizes

SHAPE = (3, 16, 8)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of diffusers


TINY: dict[str, tuple[str, Sizes, dict[str, Any]]] = {
    "as CIFAR-10": ("improved-diffusion", Sizes(((32, False), (64, True), (64, True)), 3), {}),
    "as ImageNet-64": ("improved-diffusion", Sizes(((32, False), (64, True), (96, True)), 1), {}),
    "as LSUN": (
        "improved-diffusion",
        Sizes(((32, False), (32, False), (64, True)), 2, scale_shift=False),
        {"num_heads": 1, "diffusion_steps": 2000, "noise_schedule": "linear"},
    ),
    "as ImageNet-256": (
        "guided-diffusion",
        Sizes(((32, False), (32, True), (64, True)), 2, resnets=True),
        {"num_head_channels": 16},
    ),
    "without variances": (
        "guided-diffusion",
        Sizes(((32, True), (64, False)), 1, outputs=3),
        {"num_heads": 2, "use_new_attention_order": True, "noise_schedule": "cosine"},
    ),
    "one level": ("guided-diffusion", Sizes(((32, True),), 1, resnets=True), {"num_head_channels": 32}),
}


def saved(place: Path, tensors: dict[str, Tensor]) -> str:
    torch.save(tensors, place / "model.pt")
    return str(place / "model.pt")


def loaded(name: str, file: str, sigma: float = 0.5, **arguments: Any) -> OneShotDenoiser:
    config = DenoiserConfig(architecture=name, checkpoint=file, arguments=arguments)
    denoiser, warnings = load_denoiser(config, sigma, SHAPE, 0, "none", "packed")
    assert isinstance(denoiser, OneShotDenoiser)
    assert warnings == []
    return denoiser


@pytest.mark.parametrize("case", TINY)
def test_the_network_computes_what_theirs_does(tmp_path: Path, case: str) -> None:
    name, sizes, flags = TINY[case]
    tensors = sizes.tensors()
    denoiser = loaded(name, saved(tmp_path, tensors), **flags)
    heads = None if "num_head_channels" in flags else flags.get("num_heads", 4)
    network = Network(
        sizes, tensors, heads, flags.get("num_head_channels", 0), flags.get("use_new_attention_order", False)
    )
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    ours = denoiser.network
    with torch.inference_mode():
        for timestep in (0.0, 7.25, 400.0, 999.0):
            found = ours(x, torch.full((3,), timestep), return_dict=False)[0]
            expected = network(x, timestep)
            assert found.shape == (3, sizes.outputs, *SHAPE[1:])
            assert expected.std() > 0.5
            assert torch.allclose(found.double(), expected, atol=1e-5, rtol=1e-5)
            precise = ours.double()(x.double(), torch.full((3,), timestep), return_dict=False)[0]
            assert torch.allclose(precise, expected, atol=1e-10)
            ours.float()


def alpha_bar(flags: dict[str, Any]) -> Tensor:
    """Of their schedules: linear betas, or the cosine of Nichol and Dhariwal (2021)."""
    steps = flags["diffusion_steps"]
    if flags["noise_schedule"] == "linear":
        return (1 - torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)).cumprod(0)
    kept = ((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return (1 - (1 - kept[1:] / kept[:-1]).clamp(max=0.999)).cumprod(0)


@pytest.mark.parametrize("sigma", [0.12, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("case", ["as CIFAR-10", "as ImageNet-256", "as LSUN"])
def test_the_estimate_is_theirs_at_the_timestep_of_the_noise(tmp_path: Path, case: str, sigma: float) -> None:
    name, sizes, flags = TINY[case]
    tensors = sizes.tensors()
    denoiser = loaded(name, saved(tmp_path, tensors), sigma, **flags)
    given = FLAGS[name] | flags
    levels = ((1 - alpha_bar(given)) / alpha_bar(given)).sqrt() / 2
    timestep = int((levels / sigma).log().abs().argmin())
    assert denoiser.timestep == (timestep * 1000 / given["diffusion_steps"] if given["rescale_timesteps"] else timestep)
    kept = alpha_bar(given)[timestep]
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    noisy = kept.sqrt() * (2 * x.double() - 1)
    network = Network(sizes, tensors, flags.get("num_heads", 4), 0)
    if "num_head_channels" in flags:
        network = Network(sizes, tensors, None, flags["num_head_channels"])
    epsilon = network(noisy, denoiser.timestep)[:, :3]
    clean = ((noisy - (1 - kept).sqrt() * epsilon) / kept.sqrt()).clamp(-1, 1) / 2 + 0.5
    with torch.inference_mode():
        assert torch.allclose(denoiser(x).double(), clean, atol=1e-4)


PUBLISHED = {
    "cifar10_uncond_50M_500K.pt": (
        "improved-diffusion",
        Sizes(((128, False), (256, True), (256, True), (256, False)), 3),
        52_546_438,
    ),
    "256x256_diffusion_uncond.pt": (
        "guided-diffusion",
        Sizes(((256, False), (256, False), (512, False), (512, True), (1024, True), (1024, True)), 2, resnets=True),
        552_814_086,
    ),
}


@pytest.mark.parametrize("file", PUBLISHED)
def test_the_published_files_have_these_names_and_sizes(file: str) -> None:
    """Names, shapes and numbers of parameters, on a device without memory."""
    name, sizes, parameters = PUBLISHED[file]
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in sizes.shapes().items()}
        network, _ = as_diffusers(tensors, FLAGS[name], (3, 256, 256), file)
    assert sum(tensor.numel() for tensor in tensors.values()) == parameters
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    name, sizes, flags = TINY["as ImageNet-256"]
    halves = sizes.tensors(torch.float16)
    denoiser = loaded(name, saved(tmp_path, halves), **flags)
    assert {parameter.dtype for parameter in denoiser.parameters()} == {torch.float32}
    assert torch.equal(denoiser.network.state_dict()["conv_in.weight"], halves["input_blocks.0.0.weight"].float())


def test_the_digest_covers_the_flags(tmp_path: Path) -> None:
    name, sizes, _ = TINY["as CIFAR-10"]
    file = saved(tmp_path, sizes.tensors())
    flags: list[dict[str, Any]] = [{}, {"noise_schedule": "linear"}, {"rescale_timesteps": False}]
    flags += [{"use_new_attention_order": True, "num_heads": heads} for heads in (2, 4)]  # the weights are the same
    assert len({module_digest(loaded(name, file, **some)) for some in flags}) == 5
    assert module_digest(loaded(name, file, num_heads=4)) == module_digest(loaded(name, file))


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in TINY["as CIFAR-10"][1].tensors().items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without("") | {"label_emb.weight": torch.zeros(10, 128)}, "the model needs a class of each image"),
        (Sizes(((32, False), (64, True)), 1, inputs=6).tensors(), "from 6 to 6 channels, but the sub-image has 3"),
        (without("out.2.weight"), "has no 'out.2.weight': it is no UNetModel of improved-diffusion or guided-"),
        (without("input_blocks.1.0.out_layers.3.weight"), "has no 'input_blocks.1.0.out_layers.3.weight': it is no"),
        (without("middle_block.1.norm.bias"), r"missing: mid_block.attentions.0.group_norm.bias; unexpected: none"),
        (without("") | {"out.3.weight": torch.zeros(1)}, r"missing: none; unexpected: out.3.weight"),
        ({"weight": torch.zeros(1)}, "has no 'input_blocks.1.0.out_layers.3.weight': it is no UNetModel"),
        (Sizes(((32, False),) * 5, 1).tensors(), "takes sizes that are multiples of 16, the sub-image is 16x8"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ClassifierError, match=message) as caught:
        loaded("improved-diffusion", saved(tmp_path, tensors))
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("model.pt") == 1


def test_pooling_in_place_of_convolutions_is_refused(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in without("").items() if ".op." not in name and ".conv." not in name}
    with pytest.raises(
        ClassifierError, match=r"its tensors are not those of the architecture .*missing: \w+"
    ) as caught:
        loaded("improved-diffusion", saved(tmp_path, tensors))
    assert "\n" not in str(caught.value)


def test_a_first_level_of_another_width_than_the_embedding_is_refused(tmp_path: Path) -> None:
    tensors = Sizes(((32, False), (64, True)), 1, resnets=True).tensors()
    tensors |= {"time_embed.0.weight": torch.zeros(256, 64)}
    with pytest.raises(ClassifierError, match=r"its time embedding has 64 channels and its first level 32; diffusers"):
        loaded("guided-diffusion", saved(tmp_path, tensors))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"heads": 4},
            "unknown argument 'heads'; allowed: diffusion_steps, noise_schedule, rescale_timesteps, use_new",
        ),
        ({"diffusion_steps": 0}, "argument diffusion_steps must be a whole number >= 1, got 0"),
        ({"num_heads": True}, "argument num_heads must be a whole number >= 1, got True"),
        ({"noise_schedule": "sqrt"}, "argument noise_schedule must be one of linear, cosine, got 'sqrt'"),
        ({"noise_schedule": ["linear"]}, "argument noise_schedule must be one of linear, cosine, got \\['linear'\\]"),
        ({"rescale_timesteps": 1}, "argument rescale_timesteps must be true or false, got 1"),
        ({"num_heads": 4, "num_head_channels": 64}, "num_heads and num_head_channels exclude each other"),
        ({"num_heads": 3}, "num_heads must divide the 64 channels of its attention, got 3"),
        ({"num_head_channels": 48}, "num_head_channels must divide the 64 channels of its attention, got 48"),
    ],
)
def test_mistakes_in_flags(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ClassifierError, match=message) as caught:
        loaded("improved-diffusion", saved(tmp_path, without("")), **arguments)
    assert "\n" not in str(caught.value)


def test_a_file_is_needed() -> None:
    with pytest.raises(ClassifierError, match=r"guided-diffusion needs a checkpoint; set classifiers\.0\.denoiser"):
        load_denoiser(DenoiserConfig(architecture="guided-diffusion"), 0.5, SHAPE, 0, "none", "packed")
    with pytest.raises(ClassifierError, match=r"none\.pt: not found; correct classifiers\.0\.denoiser\.checkpoint"):
        loaded("guided-diffusion", "none.pt")
