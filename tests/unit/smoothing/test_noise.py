"""Keyed noise: a function of the key and the sample number, and of nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drs_ray.smoothing import noise as noise_module
from drs_ray.smoothing.keys import NoiseKey
from drs_ray.smoothing.lattice import lattice_integers, lattice_table
from drs_ray.smoothing.noise import STANDARD_NORMAL, Distribution, keyed_batches

steady = settings(derandomize=True, deadline=None, database=None, max_examples=100)
KEY = NoiseKey(seed=1, image_id=2, sub_image=0, phase="estimation")
CPU = torch.device("cpu")
SHAPE = (3, 5)
KINDS = [STANDARD_NORMAL, lattice_integers(lattice_table(0.5)), lattice_integers(lattice_table(5.0))]
any_kind = pytest.mark.parametrize("kind", KINDS, ids=["normal", "lattice", "wide lattice"])


def batches(
    first: int,
    samples: int,
    block: int,
    batch: int,
    kind: Distribution = STANDARD_NORMAL,
    device: torch.device = CPU,
    key: NoiseKey = KEY,
) -> list[Tensor]:
    """All batches, copied: a yielded tensor may be overwritten."""
    drawn = keyed_batches(kind, key, first, samples, values_shape=SHAPE, block=block, batch=batch, device=device)
    return [part.clone() for part in drawn]


def noise(first: int, samples: int, block: int, batch: int, kind: Distribution = STANDARD_NORMAL) -> Tensor:
    return torch.cat(batches(first, samples, block, batch, kind))


@any_kind
@pytest.mark.parametrize("batch", [1, 7, 32, 99, 100, 101, 1000])
def test_the_same_for_any_batch(batch: int, kind: Distribution) -> None:
    whole = noise(0, 250, block=100, batch=100, kind=kind)
    assert whole.shape == (250, *SHAPE)
    assert whole.dtype == kind.dtype
    assert torch.equal(noise(0, 250, block=100, batch=batch, kind=kind), whole)


@any_kind
@steady
@given(first=st.integers(0, 300), samples=st.integers(1, 120), block=st.integers(1, 90), batch=st.integers(1, 100))
def test_a_range_is_a_part_of_the_stream(kind: Distribution, first: int, samples: int, block: int, batch: int) -> None:
    whole = noise(0, first + samples, block, batch=64, kind=kind)
    assert torch.equal(noise(first, samples, block, batch, kind), whole[first:])


@steady
@given(samples=st.integers(1, 200), block=st.integers(1, 90), batch=st.integers(1, 100), first=st.integers(0, 200))
def test_slices_are_fixed(samples: int, block: int, batch: int, first: int) -> None:
    """Every batch lies in one slice of one block, so that forward passes do not depend on how samples were cut."""
    at = first
    for part in batches(first, samples, block, batch):
        assert 1 <= len(part) <= batch
        within = at % block
        assert within // batch == (within + len(part) - 1) // batch
        assert at // block == (at + len(part) - 1) // block
        at += len(part)
    assert at == first + samples


def test_batches_of_whole_blocks_are_those_of_the_whole_stream() -> None:
    whole = batches(0, 300, block=100, batch=40)
    assert [len(part) for part in whole] == [40, 40, 20] * 3
    pieces = [part for first in (0, 100, 200) for part in batches(first, 100, block=100, batch=40)]
    assert all(torch.equal(one, other) for one, other in zip(whole, pieces, strict=True))


def test_blocks_are_keyed_not_continued() -> None:
    assert not torch.equal(noise(0, 20, block=10, batch=10), noise(0, 20, block=20, batch=10))
    assert torch.equal(noise(0, 10, block=10, batch=10), noise(0, 10, block=20, batch=10))  # block 0 begins the same
    first, second = noise(0, 10, block=10, batch=10), noise(10, 10, block=10, batch=10)
    assert not torch.isin(first, second).any()


def test_a_far_block_needs_no_other() -> None:
    far = 10**9
    assert torch.equal(noise(far, 10, block=1000, batch=10), noise(far - 1000, 1010, block=1000, batch=10)[1000:])


def test_repeatable_and_without_global_state() -> None:
    torch.manual_seed(0)
    before = noise(0, 50, block=100, batch=50)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(noise(0, 50, block=100, batch=50), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_stream_is_what_it_was() -> None:
    """Stored counts can be extended only while a key means the same noise: a change here must be a new generator."""
    assert KEY.block_digest(3).hex() == "a3e58a10537048beb15adb1a00d2a0f9"
    assert noise(0, 1, block=1000, batch=1)[0, 0, :3].tolist() == [
        pytest.approx(value, abs=1e-7) for value in (-0.2014095038175583, -1.1484464406967163, -1.2342774868011475)
    ]


@any_kind
def test_torch_noise_is_a_part_of_its_block(monkeypatch: pytest.MonkeyPatch, kind: Distribution) -> None:
    """What CUDA does, with torch's generator of the CPU: blocks are drawn whole, in pieces that no range changes."""
    monkeypatch.setattr(noise_module, "_DRAW", 7 * 15)

    def drawn(low: int, high: int, batch: int) -> Tensor:
        digest = KEY.block_digest(0)
        return torch.cat(list(noise_module._torch_slices(kind, digest, (low, high), SHAPE, 100, batch, CPU)))

    whole = drawn(0, 100, 100)
    assert whole.shape == (100, *SHAPE)
    assert whole.dtype == kind.dtype
    assert len(whole.flatten().unique()) > 100
    assert torch.equal(drawn(0, 100, 7), whole)
    assert torch.equal(drawn(33, 81, 10), whole[33:81])


def test_torch_normals_are_drawn_in_float64_for_their_tails() -> None:
    generator = torch.Generator()
    ours = STANDARD_NORMAL.draw((50, 3, 5), generator.manual_seed(3))
    assert ours.equal(torch.randn((50, 3, 5), generator=generator.manual_seed(3), dtype=torch.float64).float())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sigma", [None, 0.5, 5.0], ids=["normal", "lattice", "wide lattice"])
def test_cuda_noise_is_the_same_for_any_batch_and_range(sigma: float | None) -> None:
    device = torch.device("cuda")
    kind = STANDARD_NORMAL if sigma is None else lattice_integers(lattice_table(sigma).to(device))
    whole = torch.cat(batches(0, 250, block=100, batch=100, kind=kind, device=device))
    for batch in (1, 7, 1000):
        assert torch.equal(torch.cat(batches(0, 250, block=100, batch=batch, kind=kind, device=device)), whole)
        assert torch.equal(torch.cat(batches(130, 120, block=100, batch=batch, kind=kind, device=device)), whole[130:])
    other = NoiseKey(2, 2, 0, "estimation")
    assert not torch.equal(whole, torch.cat(batches(0, 250, 100, 100, kind=kind, device=device, key=other)))
