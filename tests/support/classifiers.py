"""User factories for the engine's tests: cheap, deterministic, and faulty on demand."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn


class Prototypes(nn.Module):
    """Nearest of ten fixed prototypes: cheap, deterministic, and uncertain enough that votes spread."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        weights = torch.randn(num_classes, *image_shape, generator=torch.Generator().manual_seed(7))
        self.weight = nn.Parameter(weights.flatten(1) / weights.flatten(1).norm(dim=1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


def prototypes(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A classifier without a checkpoint."""
    return Prototypes(image_shape, num_classes)


class _InPlace(Prototypes):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x.neg_())  # a second pass over the same tensor would turn every answer round


def in_place(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """`prototypes`, to the bit, that writes over what it is given."""
    return _InPlace(image_shape, num_classes)


def convolutions(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A small network that can be folded and compiled, with fixed random weights, whose votes spread."""
    generator = torch.Generator().manual_seed(5)
    network = nn.Sequential(
        nn.Conv2d(image_shape[0], 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * image_shape[1] * image_shape[2], num_classes),
    )
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
    network[1].running_var.abs_()  # type: ignore[union-attr, operator]
    return network.eval()


class _OnlyFloat32(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.first, self.rest = network[0], network[1:]  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.rest(torch.from_numpy(self.first(x).numpy()))
        return logits


def only_float32(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """`convolutions` with a step in numpy, which has no bfloat16."""
    return _OnlyFloat32(convolutions(image_shape, num_classes)).eval()


class HalfSpace(nn.Module):
    """Class 0 on one side of a plane, class 1 on the other: by how far its votes react to a perturbation is known."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, seed: int, offset: float) -> None:
        super().__init__()
        normal = torch.randn(image_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).flatten()
        self.register_buffer("normal", (normal / normal.norm()).float())
        self.offset, self._others = offset, num_classes - 2

    def forward(self, x: Tensor) -> Tensor:
        value = (x.flatten(1) @ self.normal + self.offset)[:, None]
        return torch.cat([value, -value, (-1 - value.abs()).expand(-1, self._others)], dim=1)


def half_space(image_shape: tuple[int, int, int], num_classes: int, seed: int, offset: float) -> nn.Module:
    """A classifier whose true radius is known."""
    return HalfSpace(image_shape, num_classes, seed, offset)


class _WithoutGradient(Prototypes):
    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, how: str) -> None:
        super().__init__(image_shape, num_classes)
        self._how = how

    def forward(self, x: Tensor) -> Tensor:
        if self._how == "numpy":
            return torch.from_numpy(x.numpy().reshape(len(x), -1) @ self.weight.detach().numpy().T)
        if self._how == "detach":
            return super().forward(x).detach()
        return super().forward(x.round())


def without_gradient(image_shape: tuple[int, int, int], num_classes: int, how: str) -> nn.Module:
    """Logits that torch cannot differentiate (numpy, detach), or whose gradient is 0 (round)."""
    return _WithoutGradient(image_shape, num_classes, how)


class _Faulty(Prototypes):
    """Misbehaves on forward passes of a whole batch of `trigger` samples (loading checks with fewer)."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, trigger: int) -> None:
        super().__init__(image_shape, num_classes)
        self._trigger = trigger

    def forward(self, x: Tensor) -> Tensor:
        if len(x) >= self._trigger:
            return self.misbehave(super().forward(x))
        return super().forward(x)

    def misbehave(self, logits: Tensor) -> Tensor:
        raise NotImplementedError


class _SignalsItselfWhileMarked(_Faulty):
    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        trigger: int,
        marker: str,
        once: bool,
        number: int,
        after: int = 1,
    ) -> None:
        super().__init__(image_shape, num_classes, trigger)
        self._marker, self._once, self._number = Path(marker), once, number
        self._left = after

    def misbehave(self, logits: Tensor) -> Tensor:
        self._left -= 1
        if self._left <= 0 and (_taken(str(self._marker)) if self._once else self._marker.exists()):
            os.kill(os.getpid(), self._number)
        return logits


def dies(
    image_shape: tuple[int, int, int], num_classes: int, trigger: int, marker: str, once: bool = True, after: int = 1
) -> nn.Module:
    """Kills its own process with SIGKILL while the marker file exists; `once` removes the marker first.

    after: it does so from the so-many-th whole batch on.
    """
    return _SignalsItselfWhileMarked(image_shape, num_classes, trigger, marker, once, signal.SIGKILL, after)


def hangs(image_shape: tuple[int, int, int], num_classes: int, trigger: int, marker: str) -> nn.Module:
    """Stops its own process once, without ending it, when the marker file exists."""
    return _SignalsItselfWhileMarked(image_shape, num_classes, trigger, marker, True, signal.SIGSTOP)


class _LosesItsDevice(_Faulty):
    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, trigger: int, marker: str) -> None:
        super().__init__(image_shape, num_classes, trigger)
        self._marker = marker

    def misbehave(self, logits: Tensor) -> Tensor:
        if _taken(self._marker):
            lose_device()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        return logits


def lose_device() -> None:
    """From now on all CUDA calls of this process fail, as after an illegal access of a kernel on a real GPU."""

    def fails() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    torch.cuda.is_initialized = lambda: True
    torch.cuda.synchronize = fails  # type: ignore[assignment]


def loses_device(image_shape: tuple[int, int, int], num_classes: int, trigger: int, marker: str) -> nn.Module:
    """Loses its process's GPU on a whole batch, once, when the marker file exists."""
    return _LosesItsDevice(image_shape, num_classes, trigger, marker)


class _Overflows(_Faulty):
    def misbehave(self, logits: Tensor) -> Tensor:
        return logits / 0.0


def overflows(image_shape: tuple[int, int, int], num_classes: int, trigger: int) -> nn.Module:
    """Gives infinite logits, but not while it is checked on loading."""
    return _Overflows(image_shape, num_classes, trigger)


class _Slow(_Faulty):
    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, trigger: int, seconds: float, gate: str | None
    ) -> None:
        super().__init__(image_shape, num_classes, trigger)
        self._seconds, self._gate = seconds, Path(gate) if gate else None

    def misbehave(self, logits: Tensor) -> Tensor:
        end = time.monotonic() + self._seconds
        while time.monotonic() < end and (self._gate is None or self._gate.exists()):
            time.sleep(min(0.05, self._seconds))
        return logits


def slow(
    image_shape: tuple[int, int, int], num_classes: int, trigger: int, seconds: float, gate: str | None = None
) -> nn.Module:
    """Takes its time for every full batch, so that a run can be disturbed in the middle; only while `gate` exists."""
    return _Slow(image_shape, num_classes, trigger, seconds, gate)


def only_in(image_shape: tuple[int, int, int], num_classes: int, process: int) -> nn.Module:
    """Loads in one process (the driver's) and fails in all others, like a checkpoint that only one node has."""
    if os.getpid() != process:
        raise FileNotFoundError("weights.safetensors is not on this node")
    return Prototypes(image_shape, num_classes)


def signs(image_shape: tuple[int, int, int], num_classes: int, directory: str) -> nn.Module:
    """Leaves a file with the name of the POSIX session in which it is loaded: a node of `RayCluster`, or the driver."""
    Path(directory, str(os.getsid(0))).touch()
    return Prototypes(image_shape, num_classes)


def dies_loading(image_shape: tuple[int, int, int], num_classes: int, process: int, marker: str) -> nn.Module:
    """Kills its process once while it is loaded, when the marker file exists; but not `process`, the driver."""
    if os.getpid() != process and _taken(marker):
        os.kill(os.getpid(), signal.SIGKILL)
    return Prototypes(image_shape, num_classes)


def dies_storing(
    image_shape: tuple[int, int, int], num_classes: int, process: int, marker: str, committed: bool
) -> nn.Module:
    """Kills its process once while a part is written to a directory, just before or after it gets its name."""
    if os.getpid() != process:
        replace = os.replace

        def fatal(source: Path, target: Path) -> None:
            dies = target.suffix == ".parquet" and _taken(marker)
            if committed or not dies:
                replace(source, target)
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = fatal  # type: ignore[assignment]
    return Prototypes(image_shape, num_classes)


def _taken(marker: str) -> bool:
    """Whether the marker file exists and this process was the one to remove it."""
    try:
        Path(marker).unlink()
    except FileNotFoundError:
        return False
    return True


def unseeded(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Other weights each time: no two workers would hold the same classifier."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


class _Raises(Prototypes):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("on purpose")


def raising(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Cannot even be tried."""
    return _Raises(image_shape, num_classes)


class _RaisesUnderLoad(_Faulty):
    def misbehave(self, logits: Tensor) -> Tensor:
        raise RuntimeError("only on full batches")


def raises_under_load(image_shape: tuple[int, int, int], num_classes: int, trigger: int) -> nn.Module:
    """Passes the check on loading, raises in the run."""
    return _RaisesUnderLoad(image_shape, num_classes, trigger)


class _SetsDefaults(Prototypes):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        return super().forward(x)


def sets_defaults(image_shape: tuple[int, int, int], num_classes: int, late: bool = False) -> nn.Module:
    """`prototypes` by code that changes torch's defaults as it loads; `late`: in every forward pass too."""
    made = (_SetsDefaults if late else Prototypes)(image_shape, num_classes)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    return made
