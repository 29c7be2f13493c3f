"""Classifiers as programs: files of torch.export (.pt2), with weights and computation.

Such a file is code: torch evaluates expressions in it. So it is loaded only if the config says `architecture:
torch.export`, and is then trusted like a user's factory. TorchScript, which torch has deprecated, is not loaded.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from drs_ray.errors import ClassifierError
from drs_ray.models.building import PROGRAM, brief
from drs_ray.models.files import read_file


class Program(nn.Module):
    """An exported graph as a module; eval or train mode was decided when it was exported.

    The file's digest is a buffer, so that `module_digest` includes it like the weights.
    """

    def __init__(self, data: bytes) -> None:
        """Read the program as it was exported; torch raises nearly anything for a broken file."""
        super().__init__()
        self._data = data
        self.graph = _graph(data)
        digest = torch.tensor(list(hashlib.sha256(data).digest()), dtype=torch.uint8)
        self.register_buffer("file_digest", digest, persistent=False)
        self.training = False

    def train(self, mode: bool = True) -> Self:
        """Do nothing: a graph cannot change its mode, and torch's own method raises."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As of every module. On another device the graph is read anew, because devices also stand in its code.

        It then has the weights of the file. Nothing in drs-ray changes those of a program.
        """
        digest = self.get_buffer("file_digest")
        device = fn(digest).device
        if device != digest.device:
            trainable = any(parameter.requires_grad for parameter in self.graph.parameters())
            self.graph = _graph(self._data, device)
            if not trainable:
                self.graph.requires_grad_(False)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, x: Tensor) -> object:
        """[N, C, h, w] -> the graph's output, which should be logits."""
        return self.graph(x)


def load_program(location: str, remedy: str = "check the path") -> Program:
    """Read a .pt2 file, a local path or an s3:// URI, onto the CPU. remedy: what to do if there is no such file.

    Raises:
        ClassifierError: another suffix, or not a program of this version of torch.
    """
    if Path(location).suffix != ".pt2":
        raise ClassifierError(
            f"checkpoint {location}: the architecture {PROGRAM} takes a .pt2 file of torch.export.save; "
            "name one, or the architecture whose weights this file has"
        )
    data = read_file(location, remedy)
    try:
        return Program(data)
    except Exception as error:  # torch raises nearly anything for a broken file
        raise ClassifierError(
            f"checkpoint {location}: not a program that this torch {torch.__version__} can load ({brief(error)}); "
            "export it again, with this version and on the CPU"
        ) from error


def _graph(data: bytes, device: torch.device | None = None) -> nn.Module:
    """The program of a file as a module on a device; None: that on which it was exported."""
    with warnings.catch_warnings(), _no_pickled_code():
        warnings.simplefilter("ignore")
        program = torch.export.load(io.BytesIO(data))
        if device is not None:
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(device))
        graph = program.module()
    for part in graph.modules():
        part.training = False
    return graph


@contextmanager
def _no_pickled_code() -> Iterator[None]:
    """Forbid that torch.export falls back to full unpickling for unknown objects."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
