"""Files of improved- and guided-diffusion: against a second implementation of their network, name by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from drs_ray.config import DenoiserConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.denoisers import load_denoiser
from drs_ray.models.diffusion import OneShotDenoiser
from drs_ray.models.openai_diffusion import FLAGS, as_diffusers
from drs_ray.models.tensors import module_digest

SHAPE = (3, 16, 8)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of diffusers


@dataclass(frozen=True)
class Sizes:
    """Of a `UNetModel`. levels: (width, whether there is attention) of each level, highest resolution first."""

    levels: tuple[tuple[int, bool], ...]
    blocks: int
    scale_shift: bool = True
    resnets: bool = False
    inputs: int = 3
    outputs: int = 6

    @property
    def width(self) -> int:
        return self.levels[0][0]

    def layers(self) -> Iterator[tuple[str, str, int, int]]:
        """Name, kind, input and output channels of each layer of the blocks, in the order of the computation."""
        resizing = "residual" if self.resnets else "convolution"
        yield "input_blocks.0.0", "layer", self.inputs, self.width
        number, channels, skipped = 1, self.width, [self.width]
        for level, (width, attends) in enumerate(self.levels):
            for _ in range(self.blocks):
                yield f"input_blocks.{number}.0", "residual", channels, width
                if attends:
                    yield f"input_blocks.{number}.1", "attention", width, width
                number, channels = number + 1, width
                skipped.append(width)
            if level < len(self.levels) - 1:
                name = f"input_blocks.{number}.0" + ("" if self.resnets else ".op")
                yield name, resizing, width, width
                number += 1
                skipped.append(width)
        yield "middle_block.0", "residual", channels, channels
        yield "middle_block.1", "attention", channels, channels
        yield "middle_block.2", "residual", channels, channels
        number = 0
        for level, (width, attends) in reversed(list(enumerate(self.levels))):
            for block in range(self.blocks + 1):
                yield f"output_blocks.{number}.0", "residual", channels + skipped.pop(), width
                if attends:
                    yield f"output_blocks.{number}.1", "attention", width, width
                if level and block == self.blocks:
                    name = f"output_blocks.{number}.{1 + attends}" + ("" if self.resnets else ".conv")
                    yield name, resizing, width, width
                number, channels = number + 1, width

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the state_dict's tensors by name."""
        embedding = 4 * self.width
        found: dict[str, tuple[int, ...]] = {
            "time_embed.0.weight": (embedding, self.width),
            "time_embed.2.weight": (embedding, embedding),
            "out.0.weight": (self.width,),
            "out.2.weight": (self.outputs, self.width, 3, 3),
        }
        for name, kind, given, made in self.layers():
            if kind == "residual":
                found[f"{name}.in_layers.0.weight"] = (given,)
                found[f"{name}.in_layers.2.weight"] = (made, given, 3, 3)
                found[f"{name}.emb_layers.1.weight"] = ((1 + self.scale_shift) * made, embedding)
                found[f"{name}.out_layers.0.weight"] = (made,)
                found[f"{name}.out_layers.3.weight"] = (made, made, 3, 3)
                if given != made:
                    found[f"{name}.skip_connection.weight"] = (made, given, 1, 1)
            elif kind == "attention":
                found[f"{name}.norm.weight"] = (given,)
                found[f"{name}.qkv.weight"] = (3 * given, given, 1)
                found[f"{name}.proj_out.weight"] = (given, given, 1)
            else:
                found[f"{name}.weight"] = (made, given, 3, 3)
        return found | {name.replace("weight", "bias"): shape[:1] for name, shape in found.items()}

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Random tensors, of which none is without effect."""
        torch.manual_seed(0)
        return {
            name: ((len(shape) == 1) * name.endswith("weight") + 0.2 * torch.randn(shape)).to(dtype)
            if len(shape) == 1
            else (torch.randn(shape) / math.prod(shape[1:]) ** 0.5).to(dtype)
            for name, shape in self.shapes().items()
        }


@dataclass(frozen=True)
class Network:
    """What a `UNetModel` computes, in float64."""

    sizes: Sizes
    tensors: dict[str, Tensor]
    heads: int | None = None
    head_channels: int = 0
    new_order: bool = False

    def __call__(self, x: Tensor, timestep: float) -> Tensor:
        """[N, C, h, w] -> [N, outputs, h, w]."""
        half = self.sizes.width // 2
        # Float32, as there: the last digits of a large timestep's angles are lost in it.
        angles = torch.tensor(timestep) * torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        embedding = torch.cat([angles.cos(), angles.sin()]).double()[None]
        embedding = self._linear("time_embed.2", functional.silu(self._linear("time_embed.0", embedding)))
        kept: list[Tensor] = []
        x = x.double()
        layers = list(self.sizes.layers())
        for position, (name, kind, _, _) in enumerate(layers):
            room, *place = name.split(".")
            if room == "output_blocks" and place[1] == "0":
                x = torch.cat([x, kept.pop()], dim=1)
            per_level = self.sizes.blocks + 1
            down = room == "input_blocks" and int(place[0]) > 0 and int(place[0]) % per_level == 0
            up = room == "output_blocks" and place[1] != "0"
            if kind == "residual":
                x = self._residual(name, x, embedding, down, up)
            elif kind == "attention":
                x = self._attention(name, x)
            elif up:
                x = self._convolution(name, self._resized(x, False, True))
            else:
                x = self._convolution(name, x, 2 if down else 1)
            if room == "input_blocks" and layers[position + 1][0].split(".")[:2] != name.split(".")[:2]:
                kept.append(x)
        assert not kept
        return self._convolution("out.2", functional.silu(self._norm("out.0", x)))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.tensors[f"{name}.weight"].double().T + self.tensors[f"{name}.bias"].double()

    def _convolution(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = (self.tensors[f"{name}.{kind}"].double() for kind in ("weight", "bias"))
        return functional.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (self.tensors[f"{name}.{kind}"].double()[:, None, None] for kind in ("weight", "bias"))
        groups = x.unflatten(1, (32, -1))
        mean = groups.mean(dim=(2, 3, 4), keepdim=True)
        variance = ((groups - mean) ** 2).mean(dim=(2, 3, 4), keepdim=True)
        return ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2) * weight + bias

    def _resized(self, x: Tensor, down: bool, up: bool) -> Tensor:
        if down:
            return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) if up else x

    def _residual(self, name: str, x: Tensor, embedding: Tensor, down: bool, up: bool) -> Tensor:
        inner = self._resized(functional.silu(self._norm(f"{name}.in_layers.0", x)), down, up)
        inner = self._convolution(f"{name}.in_layers.2", inner)
        shift = self._linear(f"{name}.emb_layers.1", functional.silu(embedding))[:, :, None, None]
        if self.sizes.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            inner = self._norm(f"{name}.out_layers.0", inner) * (1 + scale) + shift
        else:
            inner = self._norm(f"{name}.out_layers.0", inner + shift)
        inner = self._convolution(f"{name}.out_layers.3", functional.silu(inner))
        outer = self._resized(x, down, up)
        if f"{name}.skip_connection.weight" in self.tensors:
            outer = self._convolution(f"{name}.skip_connection", outer)
        return outer + inner

    def _attention(self, name: str, x: Tensor) -> Tensor:
        channels = x.shape[1]
        heads = self.heads or channels // self.head_channels
        rows = self._linear_rows(f"{name}.qkv", self._norm(f"{name}.norm", x).flatten(2))
        found = torch.empty_like(x.flatten(2))
        width = channels // heads
        for head in range(heads):
            starts = [(part * heads + head if self.new_order else 3 * head + part) * width for part in range(3)]
            query, key, value = (rows[:, start : start + width] for start in starts)
            weights = (query.transpose(1, 2) @ key / width**0.5).softmax(dim=2)
            found[:, head * width : (head + 1) * width] = value @ weights.transpose(1, 2)
        return x + self._linear_rows(f"{name}.proj_out", found).view_as(x)

    def _linear_rows(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (self.tensors[f"{name}.{kind}"].double() for kind in ("weight", "bias"))
        return weight[..., 0] @ x + bias[:, None]


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
    denoiser, warnings = load_denoiser(config, sigma, SHAPE, 0)
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
        load_denoiser(DenoiserConfig(architecture="guided-diffusion"), 0.5, SHAPE, 0)
    with pytest.raises(ClassifierError, match=r"none\.pt: not found; correct classifiers\.0\.denoiser\.checkpoint"):
        loaded("guided-diffusion", "none.pt")
