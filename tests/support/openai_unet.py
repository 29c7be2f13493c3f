"""A second implementation of the `UNetModel` of improved-diffusion and guided-diffusion: its tensors and values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


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
