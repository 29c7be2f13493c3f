"""Whether a device has units for bfloat16."""

from __future__ import annotations

import torch
from torch.backends import mkldnn


def has_bfloat16(device: str) -> bool:
    """Whether a device has units that multiply bfloat16, so that it may be faster than float32 there.

    device: cpu, cuda or cuda:N, of this process. A CPU has such units with AVX512-BF16 or AMX, and a torch with oneDNN
    uses them; a GPU has them from compute capability 8.0 on. Other devices compute bfloat16 more slowly than float32.
    """
    if device == "cpu":
        # torch has no public name for these two.
        has_units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return has_units and bool(mkldnn.is_available())  # type: ignore[no-untyped-call]
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
