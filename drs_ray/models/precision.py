"""What torch computes in: the state that votes and weights are a function of, and whether a device has bfloat16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import overrides
from torch.backends import mkldnn
from torch.overrides import TorchFunctionMode
from torch.utils import _device


@contextmanager
def plain_torch() -> Iterator[None]:
    """Torch as a new process has it: default dtype float32, default device CPU, no autocast, gradients on.

    A notebook may have set all of these, and a user's factory the first two. On the way out they are as they were.
    """
    dtype, device = torch.get_default_dtype(), _device.CURRENT_DEVICE
    modes = _replaced([])
    _replaced([mode for mode in modes if not isinstance(mode, _device.DeviceContext)])
    torch.set_default_dtype(torch.float32)
    _device.CURRENT_DEVICE = None
    autocast = {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")}
    depth = _autocast_depth()  # where it is not 0, an autocast of ours would keep converted weights when it is left
    _enter_autocast(-depth)
    for kind in autocast:
        torch.set_autocast_enabled(kind, False)
    try:
        with torch.inference_mode(False):
            yield
    finally:
        for kind, enabled in autocast.items():
            torch.set_autocast_enabled(kind, enabled)
        _enter_autocast(depth)
        torch.set_default_dtype(dtype)
        _device.CURRENT_DEVICE = device
        _replaced(modes)


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _enter_autocast(times: int) -> None:
    """Count so many contexts more, or less."""
    for _ in range(abs(times)):
        (torch.autocast_increment_nesting if times > 0 else torch.autocast_decrement_nesting)()


def _replaced(modes: Sequence[TorchFunctionMode]) -> list[TorchFunctionMode]:
    """Put other modes in the place of those that torch functions are called in now; returns these, outermost first.

    A default device is such a mode. Another one for the CPU would do too, but under any mode torch leaves some of its
    fast kernels, and compiles anew.
    """
    before = [overrides._pop_mode() for _ in range(torch._C._len_torch_function_stack())]  # type: ignore[no-untyped-call]
    for mode in modes:
        overrides._push_mode(mode)  # type: ignore[no-untyped-call]
    return before[::-1]


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
