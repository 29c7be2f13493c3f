"""Denoised smoothing: votes of a one-step diffusion model and a classifier beside the bare pass of its U-Net."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from diffusers import DDPMScheduler, UNet2DModel

from benchmarks.models import resnet20, voting
from drs_ray.models.diffusion import OneShotDenoiser, matching_timestep
from drs_ray.smoothing.keys import NoiseKey
from drs_ray.smoothing.partition import make_partition
from drs_ray.smoothing.voting import Sampler, count_votes

SIGMA, SIZE, CLASSES, BATCH, ROUNDS = 0.5, 32, 10, 25, 20


def measure() -> Iterator[tuple[str, str, str]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker with one CPU
    network = small_unet()
    contestants = {
        "bare": bare(network, torch.contiguous_format),
        "bare, channels last": bare(network, torch.channels_last),
        "votes": votes(network),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()  # warm up
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            started = time.process_time()  # of one thread: other programs on this machine do not count
            run()
            seconds[name].append(time.process_time() - started)
    rates = {name: BATCH / statistics.median(values) for name, values in seconds.items()}
    ours = rates.pop("votes")
    best = max(rates, key=lambda name: rates[name])
    yield (
        f"denoised smoothing, {SIZE}x{SIZE}, float32, 1 thread, batch {BATCH}: keyed noise, one step of a diffusion "
        f"model and ResNet-20 ({ours:.1f} samples/s of CPU time) against its U-Net {best} ({rates[best]:.1f})",
        f"{ours / rates[best]:.2f}x",
        ">= 0.92x",
    )
    torch.set_num_threads(threads)


def small_unet() -> UNet2DModel:
    """A U-Net like CIFAR-10's published ones with a quarter of their width, and random weights."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
    ).eval()


def bare(network: UNet2DModel, order: torch.memory_format) -> Callable[[], None]:
    """As a program without drs-ray would call it: one batch that is already there, in this order of pixels."""
    network = copy.deepcopy(network).to(memory_format=order)
    x = torch.rand(BATCH, 3, SIZE, SIZE).contiguous(memory_format=order)
    timesteps = torch.full((BATCH,), 100)

    @torch.inference_mode()
    def run() -> None:
        network(x, timesteps, return_dict=False)

    return run


def votes(network: UNet2DModel) -> Callable[[], None]:
    timestep, level, _ = matching_timestep(DDPMScheduler().betas, SIGMA, "benchmark")
    denoiser = OneShotDenoiser(network, timestep, level, "epsilon", {})
    shape = (3, SIZE, SIZE)
    module = torch.nn.Sequential(denoiser, resnet20(shape, CLASSES)).eval()
    classifier = voting(module, shape, BATCH, "float32", False)
    partition = make_partition("none", SIZE, SIZE, "packed")
    sampler = Sampler(partition, SIGMA, BATCH, BATCH, torch.device("cpu"), "lattice")
    image = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)) / 255.0

    def run() -> None:
        count_votes(classifier, image, sampler, NoiseKey(0, 0, 0, "estimation"), 0, BATCH, CLASSES)

    return run
