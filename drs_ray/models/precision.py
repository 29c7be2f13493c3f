"""What torch computes in: the state that votes and weights are a function of, and whether a device has bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.backends import mkldnn


@contextmanager
def plain_torch() -> Iterator[None]:
    """Torch as a new process has it: default dtype float32, default device CPU, no autocast, gradients on.

    A notebook may have set all of these, and a user's factory the first two. On the way out they are as they were.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as before:
        if device.type != "cpu":  # only then: under such a context torch leaves some of its fast kernels
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


def has_bfloat16(device: str) -> bool:
    """Whether a device has units that multiply bfloat16, so that it may be faster than float32 there.

    device: cpu, cuda or cuda:N, one of this process's own. A CPU has them with AVX512-BF16 or AMX, and a torch with
    oneDNN, which uses them; a GPU from compute capability 8.0 on. Others compute in bfloat16 too, slower than float32.
    """
    if device == "cpu":
        # torch has no public name for these two.
        has_units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return has_units and bool(mkldnn.is_available())  # type: ignore[no-untyped-call]
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
