"""Integer Gaussian noise: exact probabilities, a look-up that is a search, and sums that come before the division."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from fractions import Fraction

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from drs_ray.certificates.lattice import drawing_error
from drs_ray.errors import DataError
from drs_ray.smoothing.keys import NoiseKey
from drs_ray.smoothing.lattice import LatticeTable, lattice_integers, lattice_noise, lattice_table
from drs_ray.smoothing.laws import LawName, NoiseLaw, make_law
from drs_ray.smoothing.partition import make_partition
from drs_ray.smoothing.voting import Sampler, count_votes

steady = settings(derandomize=True, deadline=None, database=None, max_examples=100)
CPU = torch.device("cpu")
KEY = NoiseKey(seed=1, image_id=42, sub_image=1, phase="estimation")
ONE = 2**62
LOW = 2**46  # integers that share the 16 bits which the table looks up
SIGMAS = [0.05, 0.25, 0.36, 1.0, 2.0]
WIDE = 4.8  # the first sigma, roughly, whose table does not fit int16
LEAST, MOST = 0.001, 100.0  # of a config


def exact_cdf(sigma: float, i: int) -> mp.mpf:
    """P(noise <= i) to 50 digits; sigma is the float's exact value."""
    with mp.workdps(50):
        return mp.ncdf(mp.mpf(2 * i + 1) / (510 * mp.mpf(sigma)))


def thresholds(table: LatticeTable) -> list[int]:
    return [int(t) for t in table.thresholds.tolist()]


def law_at(sigma: float) -> NoiseLaw:
    return make_law("lattice", sigma, CPU)


def noise_of(integers: Sequence[int], table: LatticeTable) -> list[int]:
    """What the look-up, and the low bits where it asks for them, make of 62-bit integers."""
    uniform = np.array(integers, np.int64)
    high, low = (uniform // LOW).astype(np.uint16), uniform % LOW
    asked = low[table.look_up.numpy()[high] > table.reach]

    def low_bits(count: int) -> NDArray[np.int64]:
        assert count == len(asked) > 0
        return asked

    out = np.empty(uniform.shape, table.look_up.numpy().dtype)
    lattice_noise(high, low_bits, table, out)
    return [int(i) for i in out.tolist()]


def drawn(table: LatticeTable, shape: tuple[int, ...]) -> Tensor:
    """The beginning of one block's stream."""
    integers = lattice_integers(table)
    out = torch.empty(shape, dtype=integers.dtype)
    integers.open(KEY.block_digest(0))(out)
    return out


@pytest.mark.parametrize("sigma", [0.05, 0.36, 1.0])
def test_thresholds_are_the_exact_probabilities_rounded_to_nearest(sigma: float) -> None:
    table = lattice_table(sigma)
    with mp.workdps(50):
        expected = [int(mp.nint(exact_cdf(sigma, i) * ONE)) for i in range(-table.reach, table.reach + 1)]
    assert thresholds(table) == expected


@pytest.mark.parametrize("sigma", [LEAST, 0.5, MOST])
def test_thresholds_at_the_edges_of_sigma(sigma: float) -> None:
    """Each is one Taylor step from the last: also the farthest must be right to the last bit."""
    table = lattice_table(sigma)
    chosen = {*np.linspace(-table.reach, table.reach, 400, dtype=int).tolist(), table.reach - 1}
    with mp.workdps(50):
        assert all(table.thresholds[i + table.reach] == int(mp.nint(exact_cdf(sigma, i) * ONE)) for i in chosen)
        assert mp.nint(exact_cdf(sigma, table.reach - 1) * ONE) < ONE


@pytest.mark.parametrize("sigma", [1e-5, LEAST, *SIGMAS, WIDE, MOST])
def test_table_cells_and_thresholds_give_every_integer_its_exact_probability(sigma: float) -> None:
    """As whole numbers of 2**-62: entries that know the noise, and entries that a threshold cuts, by what they hold."""
    table = lattice_table(sigma)
    reach, sorted_thresholds = table.reach, thresholds(table)
    held = [0] * (2 * reach + 1)
    for entry, value in enumerate(table.look_up.tolist()):
        start, end = entry * LOW, (entry + 1) * LOW
        below = value + reach
        if value > reach:
            below = value - reach - 1
            assert start < sorted_thresholds[below] < end  # else it would ask for bits without need
            while sorted_thresholds[below] < end:
                held[below] += sorted_thresholds[below] - start
                start = sorted_thresholds[below]
                below += 1
        held[below] += end - start
    assert held == [b - a for a, b in itertools.pairwise([0, *sorted_thresholds])]
    assert sum(held) == ONE


@pytest.mark.parametrize("sigma", SIGMAS)
def test_total_variation_is_what_the_docs_say(sigma: float) -> None:
    """Half the sum of |P - exact P| over all integers is at most (reach + 1) 2^-62 a coordinate: 40-digit sums."""
    table = lattice_table(sigma)
    reach, ours = table.reach, [0, *thresholds(table)]
    allowed = drawing_error([sigma / 2, sigma], values=1, samples=1)
    assert (reach + 1) * 2.0**-62 <= allowed <= (reach + 1) * 2.0**-62 * (1.001 + 3 / reach)
    with mp.workdps(50):
        # every i below 0, and by symmetry above; for the wide ones every 16th, for mpmath takes its time
        step = 1 if sigma < 0.5 else 16
        points = range(-reach, 0, step)
        errors = [abs(mp.mpf(ours[i + reach + 1]) / ONE - exact_cdf(sigma, i)) for i in points]
        assert max(errors) <= mp.mpf(2) ** -63 * (1 + mp.mpf(10) ** -15)
        beyond = 2 * exact_cdf(sigma, -reach - 1)
        assert beyond < mp.mpf(2) ** -62  # what is clamped
        if step == 1:
            exact = [exact_cdf(sigma, i) for i in range(-reach, reach)]
            cells = [b - a for a, b in itertools.pairwise([beyond / 2, *exact, 1 - beyond / 2])]
            drawn = [mp.mpf(b - a) / ONE for a, b in itertools.pairwise(ours)]
            total = sum(abs(p - cell) for p, cell in zip(drawn, cells, strict=True))
            assert 0 < (total + beyond) / 2 <= (reach + 1) * mp.mpf(2) ** -62
        else:
            assert 2 * reach * max(errors) + beyond <= (reach + 1) * mp.mpf(2) ** -62 * (1 + mp.mpf(10) ** -15)
    assert reach == pytest.approx(9.0 * 255 * sigma, rel=0.01)


@pytest.mark.parametrize("sigma", [*SIGMAS, WIDE])
def test_probabilities_sum_to_one_and_are_symmetric(sigma: float) -> None:
    table = lattice_table(sigma)
    cells = [b - a for a, b in itertools.pairwise([0, *thresholds(table)])]
    assert len(cells) == 2 * table.reach + 1
    assert sum(cells) == ONE
    assert cells == cells[::-1]
    assert cells[0] >= 1  # what the noise is said to reach, it reaches
    assert all(a <= b + 1 for a, b in itertools.pairwise(cells[: table.reach + 1]))  # rounding moves a cell by one


def edges(table: LatticeTable) -> list[int]:
    """Where a look-up could go wrong: both sides of every threshold and of every bucket, and the ends."""
    around = [t + d for t in thresholds(table) for d in (-1, 0, 1)]
    buckets = [(bucket << 46) + d for bucket in range(2**16) for d in (-1, 0, 1)]
    return [u for u in [*around, *buckets, 0, ONE - 1] if 0 <= u < ONE]


@pytest.mark.parametrize("sigma", [1e-5, LEAST, *SIGMAS, WIDE])
def test_the_look_up_is_the_search(sigma: float) -> None:
    table = lattice_table(sigma)
    integers = edges(table)
    integers += np.random.default_rng(0).integers(0, ONE, 50_000).tolist()
    sorted_thresholds = thresholds(table)
    expected = [bisect.bisect_right(sorted_thresholds, u) - table.reach for u in integers]
    assert noise_of(integers, table) == expected
    assert (min(expected), max(expected)) == (-table.reach, table.reach)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
        ),
    ],
)
@pytest.mark.parametrize("sigma", [0.25, WIDE])
def test_torch_draws_the_same_law(sigma: float, device: str) -> None:
    table, generator = lattice_table(sigma), torch.Generator(device)
    noise = lattice_integers(table.to(torch.device(device))).draw((50, 1, 999), generator.manual_seed(5))
    assert noise.dtype == table.look_up.dtype
    integers = torch.randint(0, ONE, (50, 1, 999), generator=generator.manual_seed(5), device=device)
    assert noise.flatten().tolist() == noise_of(integers.flatten().tolist(), table)


def test_noise_is_as_wide_as_it_must_be() -> None:
    """Noise, pixels and the marks of undecided entries never overflow the table's type."""
    for sigma, dtype in ((4.75, torch.int16), (WIDE, torch.int32)):
        table = lattice_table(sigma)
        assert table.look_up.dtype == dtype
        assert table.reach < int(table.look_up.max()) <= 3 * table.reach <= torch.iinfo(dtype).max
        assert table.reach + 255 <= torch.iinfo(dtype).max
        law = law_at(sigma)
        white = law.prepare(torch.ones(1, 2), KEY)
        noisy = law.add(white, torch.tensor([[noise_of([0, ONE - 1], table)]], dtype=dtype))
        assert (noisy * 255).round().flatten().tolist() == [255 - table.reach, 255 + table.reach]


def test_the_stream_is_16_bits_a_value_and_further_bits_where_they_are_needed() -> None:
    """By hand from numpy's raw streams: any shape and any cut of a block is the same stream."""
    table = lattice_table(0.5)
    whole = drawn(table, (7, 3, 11_000))
    sorted_thresholds, key = thresholds(table), np.frombuffer(KEY.block_digest(0), "<u8")
    words = np.random.Philox(key=key).random_raw(whole.numel() // 4)
    high = [int(word) >> shift & 0xFFFF for word in words for shift in (0, 16, 32, 48)]
    further = iter(np.random.Philox(key=key, counter=[0, 0, 0, 1]).random_raw(10_000).tolist())
    expected = []
    for bits in high:
        below, above = (bisect.bisect_right(sorted_thresholds, u) for u in (bits * LOW, (bits + 1) * LOW - 1))
        if below < above:
            below = bisect.bisect_right(sorted_thresholds, bits * LOW + (next(further) >> 18))
        expected.append(below - table.reach)
    assert whole.flatten().tolist() == expected
    fill, pieces = lattice_integers(table).open(KEY.block_digest(0)), []
    for size in (1, 2, 3, 5, 200_000, 30_989):
        pieces.append(torch.empty(size, dtype=whole.dtype))
        fill(pieces[-1])
    assert torch.cat(pieces).equal(whole.flatten())


def test_the_stream_is_what_it_was() -> None:
    """Stored counts can be extended only while a key means the same noise: a change here must be a new generator."""
    noise = drawn(lattice_table(0.5), (100_000,))
    assert noise[:1000:250].tolist() == [84, 134, -152, 165]
    assert int(noise.long().sum()) == 10730


def test_noise_so_small_that_it_is_none() -> None:
    table = lattice_table(1e-5)
    assert table.reach == 0
    assert not drawn(table, (1000,)).any()


@steady
@given(
    pixel=st.integers(0, 255),
    shift=st.integers(-255, 255),
    sigma=st.sampled_from(SIGMAS),
    uniform=st.integers(0, ONE - 1),
)
def test_any_split_of_the_sum_is_the_same_noisy_value(pixel: int, shift: int, sigma: float, uniform: int) -> None:
    """(x + s) + e and x + (s + e): the noisy value depends on the sum alone, and is the float32 next to sum / 255."""
    table = lattice_table(sigma)
    noise = bisect.bisect_right(thresholds(table), uniform) - table.reach
    first, second = (torch.tensor([value], dtype=table.look_up.dtype) for value in (pixel + shift, noise))
    ours = law_at(sigma).add(first, second)
    assert ours.dtype == torch.float32
    assert ours.item() == np.float32(pixel + (shift + noise)) / np.float32(255)


@steady
@given(pixel=st.integers(-300, 300), noise=st.fractions(-5000, 5000))
def test_rounding_commutes_with_the_shift(pixel: int, noise: Fraction) -> None:
    """round(x + e) = x + round(e) for integers x, in exact arithmetic (half up; a tie has probability 0)."""
    half = Fraction(1, 2)
    assert (pixel + noise + half).__floor__() == pixel + (noise + half).__floor__()


def test_noisy_values_are_8_bit_pixels_where_they_can_be() -> None:
    """What the classifier sees is what `uint8 / 255` gives, bit for bit: the noisy copy of one pixel is another."""
    law = law_at(0.25)
    pixels = np.arange(256, dtype=np.uint8)
    values = torch.from_numpy(pixels.astype(np.float32) / np.float32(255))
    prepared = law.prepare(values[None], KEY)
    assert prepared.tolist() == [pixels.tolist()]
    noisy = law.add(prepared, drawn(lattice_table(0.25), (50, 1, 256)))
    inside = (noisy >= 0) & (noisy <= 1)
    assert torch.isin(noisy[inside], values).all()
    assert 0.2 < inside.double().mean() < 0.9


@pytest.mark.parametrize(
    "value",
    [
        0.3,
        1 / 510,
        float(np.nextafter(np.float32(7) / np.float32(255), np.float32(1))),
        -1 / 255,
        256 / 255,
        float("nan"),
        float("inf"),
    ],
)
def test_pixels_off_the_lattice_are_refused_by_name(value: float) -> None:
    values = torch.zeros(3, 5)
    values[1, 2] = value
    with pytest.raises(DataError) as error:
        law_at(0.5).prepare(values, KEY)
    message = str(error.value)
    assert message.startswith("image 42: noise.law lattice needs pixels that are multiples of 1/255")
    assert f"sub-image 1 has {float(np.float32(value)):.9g}; " in message
    assert 'use noise.law: gaussian (SmoothedClassifier: law="gaussian"), or 8-bit images without resizing' in message
    assert "\n" not in message


class Linear(nn.Module):
    """A fixed random linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.randn((72, 4), generator=torch.Generator().manual_seed(3)))
        self.batches: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.batches.append(len(inputs))
        return inputs.flatten(1) @ self.weights


def image() -> Tensor:
    return torch.randint(0, 256, (3, 6, 8), generator=torch.Generator().manual_seed(0)) / 255.0


def votes(
    first: int, samples: int, batch: int = 32, law: LawName = "lattice", classifier: nn.Module | None = None
) -> list[int]:
    sampler = Sampler(make_partition("checkerboard", 6, 8, "packed"), 0.7, block=100, batch=batch, device=CPU, law=law)
    return count_votes(classifier or Linear(), image(), sampler, KEY, first, samples, 4).tolist()


def test_votes_are_the_same_for_any_cut_and_those_of_a_plain_loop() -> None:
    whole = votes(0, 500)
    assert sum(whole) == 500
    assert min(whole) > 0
    assert votes(0, 500, batch=1) == votes(0, 500, batch=77) == whole
    for cut in (100, 130, 499):
        assert [a + b for a, b in zip(votes(0, cut), votes(cut, 500 - cut), strict=True)] == whole

    partition, law, model = (
        make_partition("checkerboard", 6, 8, "packed"),
        lattice_integers(lattice_table(0.7)),
        Linear(),
    )
    pixels = (partition.extract(image(), 1).double() * 255).round().long().flatten()
    expected = [0] * 4
    for block in range(5):
        noise = torch.empty((100, 72), dtype=law.dtype)
        law.open(KEY.block_digest(block))(noise)
        for row in noise.tolist():
            noisy = (pixels + torch.tensor(row)).to(torch.float32) / 255
            expected[int((noisy[None] @ model.weights).argmax())] += 1
    assert whole == expected


def test_the_law_matters_and_memory_is_that_of_a_batch() -> None:
    model = Linear()
    assert votes(0, 500, classifier=model) != votes(0, 500, law="gaussian")
    assert max(model.batches) == 32


def test_an_image_off_the_lattice_never_gets_a_vote() -> None:
    sampler = Sampler(make_partition("none", 6, 8, "packed"), 0.7, block=100, batch=32, device=CPU, law="lattice")
    with pytest.raises(DataError, match=r"image 7: noise\.law lattice"):
        count_votes(Linear(), image() * 0.999, sampler, NoiseKey(0, 7, 0, "selection"), 0, 10, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sigma", [0.25, WIDE])
def test_cuda_makes_the_same_noisy_values_of_the_same_integers(sigma: float) -> None:
    device = torch.device("cuda")
    law, cuda_law = law_at(sigma), make_law("lattice", sigma, device)
    values, noise = torch.arange(256)[None] / 255.0, drawn(lattice_table(sigma), (100, 1, 256))
    expected = law.add(law.prepare(values, KEY), noise)
    for there in (values, values.to(device)):
        prepared = cuda_law.prepare(there, KEY).to(device)
        assert cuda_law.add(prepared, noise.to(device)).cpu().equal(expected)
