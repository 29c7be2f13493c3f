"""Whether a device computes in bfloat16 by units of its own."""

from __future__ import annotations

import torch
from torch.backends import mkldnn


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
