"""The settings of torch on which votes and weights depend: set, and restored."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


def fix_kernels(device: str, cpus: float | None = None) -> None:
    """Make this process compute as a worker does: fixed kernels, and no TF32 in place of float32.

    So the same kind of device gives the same votes.

    Args:
        device: cpu or cuda.
        cpus: `engine.cpus_per_worker`, which sets the torch threads (see `threads_of`); None: do not change them.
    """
    if cpus is not None:
        torch.set_num_threads(threads_of(cpus))
    if device != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False  # torch's older name, which must agree: a user's module may read it
    for kernels in _multiplying():
        kernels.fp32_precision = "ieee"  # TF32 would keep 10 bits of float32's 23


@contextmanager
def fixed_kernels(device: str, cpus: float | None = None) -> Iterator[None]:
    """`fix_kernels` inside a context; restores the settings at its end."""
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    precisions = [kernels.fp32_precision for kernels in _multiplying()]
    fix_kernels(device, cpus)
    try:
        yield
    finally:
        if cpus is not None:
            torch.set_num_threads(threads)
        if device == "cuda":
            cudnn.benchmark, cudnn.deterministic = before
            cudnn.allow_tf32 = precisions[1] == "tf32"  # it cannot be read where the names below do not agree
            for kernels, precision in zip(_multiplying(), precisions, strict=True):
                kernels.fp32_precision = precision


def device_is_lost() -> bool:
    """Whether all CUDA calls of this process fail from now on, as after a fault of the hardware or of a kernel.

    After an error that is over, such as too little memory, they do not.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()
    except Exception:  # torch has several types
        return True
    return False


def out_of_memory(error: BaseException) -> torch.OutOfMemoryError | None:
    """The error, or its cause, if it says that a GPU's memory ran out."""
    found = (each for each in (error, error.__cause__) if isinstance(each, torch.OutOfMemoryError))
    return next(found, None)


def threads_of(cpus_per_worker: float) -> int:
    """Torch threads of a worker: its whole CPUs, at least one."""
    return max(1, math.floor(cpus_per_worker))


@contextmanager
def plain_torch() -> Iterator[None]:
    """Torch with the settings of a new process: default dtype float32, default device CPU, no autocast, gradients on.

    A notebook may have set all of these, and a user's factory the first two. The context restores them at its end.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as before:
        if device.type != "cpu":  # only then, because torch does not use some fast kernels under a device context
            before.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):  # no cache: converted weights would outlive an optimizer's step
                before.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        before.enter_context(torch.inference_mode(False))
        before.enter_context(torch.enable_grad())
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            if device.type == "cpu" != torch.get_default_device().type:  # set within
                torch.set_default_device(None)


def _multiplying() -> tuple[Any, ...]:
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
