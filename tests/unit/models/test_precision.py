"""Bfloat16 units are found by the names that the system and the GPU give themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.backends import mkldnn

from drs_ray.models.precision import has_bfloat16


@pytest.mark.parametrize(
    ("avx512", "amx", "onednn", "has"),
    [(True, False, True, True), (False, True, True, True), (False, False, True, False), (True, True, False, False)],
)
def test_a_cpu_needs_units_and_a_library_that_uses_them(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, onednn: bool, has: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(mkldnn, "is_available", lambda: onednn)
    assert has_bfloat16("cpu") is has


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's file of CPU flags")
def test_this_cpu_is_seen_as_the_system_sees_it() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert has_bfloat16("cpu") is ("avx512_bf16" in flags or "amx_tile" in flags)


@pytest.mark.parametrize(
    ("present", "capability", "has"), [(True, (7, 5), False), (True, (8, 0), True), (False, (9, 0), False)]
)
def test_a_gpu_has_them_from_8_0_on(
    monkeypatch: pytest.MonkeyPatch, present: bool, capability: tuple[int, int], has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_bfloat16("cuda:0") is has
