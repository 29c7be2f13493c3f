"""The classifier that votes: what folding, bfloat16 and compiling leave as it was, and what they refuse."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor, nn

from drs_ray.errors import ClassifierError
from drs_ray.models.architectures import build_architecture
from drs_ray.models.inference import CannotCompileError, compiled_module, inference_module, voting_classifier
from drs_ray.models.torch_state import fixed_kernels

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)
CLASSES = 10
BATCH = 16


def trained(network: nn.Module) -> nn.Module:
    """Batch norms as training leaves them: none of their four vectors is trivial."""
    generator = torch.Generator().manual_seed(1)
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            for vector, low, high in (
                (part.running_mean, -1.0, 1.0),
                (part.running_var, 0.5, 2.0),
                (part.weight, 0.5, 2.0),
                (part.bias, -1.0, 1.0),
            ):
                vector.data.uniform_(low, high, generator=generator)
    return network.eval()


def resnet(**arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return trained(build_architecture("resnet20", SHAPE, CLASSES, arguments))  # type: ignore[arg-type]


def noisy(count: int = BATCH) -> Tensor:
    inputs = torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(2))
    inputs += torch.randn(inputs.shape, generator=torch.Generator().manual_seed(3))
    return inputs.contiguous(memory_format=torch.channels_last)


def plain(module: nn.Module, precision: str = "float32") -> nn.Module:
    return inference_module(module, precision, CPU, SHAPE, CLASSES, 0)  # type: ignore[arg-type]


@torch.inference_mode()
def logits(module: nn.Module, inputs: Tensor) -> Tensor:
    return module(inputs)  # type: ignore[no-any-return]


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


# folding


def test_all_batch_norms_of_a_resnet_are_folded_and_the_logits_stay() -> None:
    module = resnet(mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.3])
    before = copy.deepcopy(module.state_dict())
    folded = plain(module)
    assert (norms(module), norms(folded)) == (21, 0)
    expected = logits(module, noisy())
    assert torch.allclose(logits(folded, noisy()), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Twice(nn.Module):
    """A convolution whose output is used besides its batch norm, one that is called twice, and a hooked one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(192, CLASSES)
        self._how = how
        if how == "hooked":
            self.conv.register_forward_hook(lambda module, inputs, output: output + 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self._how == "called twice":
            y = self.conv(y)
        z = self.norm(y)
        if self._how == "used besides":
            z = z + y
        return self.fc(z.flatten(1))  # type: ignore[no-any-return]


class Branching(Twice):
    """Control flow that depends on the numbers: torch.fx cannot trace it, and torch.compile makes no one graph."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.abs() if bool((x.abs() > 100).any()) else x)


@pytest.mark.parametrize("how", ["used besides", "called twice", "hooked"])
def test_what_cannot_be_folded_is_left_as_it_is(how: str) -> None:
    module = trained(Twice(how))
    assert norms(plain(module)) == 1
    assert torch.equal(logits(plain(module), noisy()), logits(module, noisy()))


def test_a_module_that_cannot_be_traced_votes_unfolded() -> None:
    module = trained(Branching(""))
    assert norms(plain(module)) == 1
    assert norms(plain(trained(Twice("")))) == 0
    assert torch.equal(logits(plain(module), noisy()), logits(module, noisy()))


@pytest.mark.parametrize("layer", [nn.Linear(192, 32), nn.Linear(192, 32, bias=False)])
def test_a_linear_layer_takes_its_batch_norm_in(layer: nn.Module) -> None:
    module = trained(nn.Sequential(nn.Flatten(), layer, nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, CLASSES)))
    assert norms(plain(module)) == 0
    assert torch.allclose(logits(plain(module), noisy()), logits(module, noisy()), atol=1e-5)


def test_a_module_that_cannot_be_copied_votes_all_the_same() -> None:
    module = resnet()
    module.lock = threading.Lock()
    assert norms(plain(module, "bfloat16")) == 21
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


# bfloat16


def test_bfloat16_logits_are_float32_and_near() -> None:
    module = resnet()
    exact, rounded = logits(module, noisy(200)), logits(plain(module, "bfloat16"), noisy(200))
    assert rounded.dtype == torch.float32
    error = (rounded - exact).abs().max() / exact.std()
    assert 1e-4 < error < 0.1  # it is bfloat16, and it is the same network
    assert (rounded.argmax(dim=1) != exact.argmax(dim=1)).float().mean() < 0.05


class Seen(nn.Module):
    """Notes the dtypes that reach it before its convolution and after."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(144, CLASSES)
        self.dtypes: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.dtypes += [x.dtype, y.dtype]
        return self.fc(y.flatten(1))  # type: ignore[no-any-return]


def test_inputs_are_float32_until_the_first_convolution() -> None:
    module = plain(Seen(), "bfloat16")
    module.network.dtypes.clear()  # type: ignore[union-attr, operator]
    logits(module, noisy())
    assert module.network.dtypes == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_autocast_of_the_caller_changes_nothing(precision: str) -> None:
    module = plain(resnet(), precision)
    with torch.autocast("cpu", torch.bfloat16):
        inside = logits(module, noisy())
    assert torch.equal(inside, logits(module, noisy()))


class OnlyFloat32(nn.Module):
    """A kernel that knows float32 alone, behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(144, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.from_numpy(self.conv(x).detach().numpy()).flatten(1))  # type: ignore[no-any-return]


def test_a_module_that_cannot_do_bfloat16_is_refused_by_name() -> None:
    assert logits(plain(OnlyFloat32()), noisy()).shape == (BATCH, CLASSES)
    with pytest.raises(ClassifierError, match=r"^sub-image 0: the classifier failed .*BFloat16"):
        plain(OnlyFloat32(), "bfloat16")


# compiled


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """The same network before and after compiling."""
    made = voting_classifier(
        resnet(),
        precision=request.param,
        compile=True,
        device=CPU,
        batch=BATCH,
        image_shape=SHAPE,
        num_classes=CLASSES,
        sub_image=0,
    )
    return made.plain, made.module


def test_compiled_logits_are_near(pair: tuple[nn.Module, nn.Module]) -> None:
    before, after = (logits(module, noisy()) for module in pair)
    assert (after - before).abs().max() < 0.05 * before.std()
    assert after.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 7, BATCH])
def test_smaller_batches_are_rows_of_the_whole_one(pair: tuple[nn.Module, nn.Module], count: int) -> None:
    assert torch.equal(logits(pair[1], noisy()[:count]), logits(pair[1], noisy())[:count])


def test_the_callers_tensors_may_be_of_any_kind(pair: tuple[nn.Module, nn.Module]) -> None:
    with torch.inference_mode():
        made_inside = noisy()
    assert torch.equal(pair[1](made_inside), pair[1](noisy()))


def test_networks_of_one_shape_are_told_apart() -> None:
    """Frozen weights are constants of a graph: two networks must not share one, however many there are."""
    modules = []
    for seed in range(10):  # more than torch would compile of one function
        torch.manual_seed(seed)
        modules.append(plain(nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))))
    compiled = [compiled_module(module, BATCH, SHAPE, CPU) for module in modules]
    for module, other in zip(modules, compiled, strict=True):
        assert torch.allclose(logits(other, noisy()), logits(module, noisy()), atol=1e-5)


def test_a_graph_that_would_be_compiled_again_is_an_error(pair: tuple[nn.Module, nn.Module]) -> None:
    with pytest.raises(RuntimeError, match="recompile"):
        logits(pair[1], torch.zeros(BATCH, 3, 8, 4))


def test_a_module_of_more_than_one_graph_is_refused() -> None:
    with pytest.raises(CannotCompileError, match=r"^torch\.compile failed .*set engine\.compile: false"):
        compiled_module(plain(trained(Branching(""))), BATCH, SHAPE, CPU)


@pytest.mark.parametrize(
    ("variable", "value", "cause"),
    [("CXX", "/no/such/compiler", "C++ compiler"), ("TORCH_COMPILE_DISABLE", "1", "no compiled frames")],
)
def test_a_machine_that_cannot_compile_says_so(tmp_path, variable: str, value: str, cause: str) -> None:
    script = f"""
import os
os.environ |= {{{variable!r}: {value!r}, "TORCHINDUCTOR_CACHE_DIR": {str(tmp_path)!r}}}
import torch
from torch import nn
from drs_ray.models.inference import CannotCompileError, compiled_module
module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Softmax(dim=1)).eval()
try:
    compiled_module(module, 4, (3, 8, 8), torch.device("cpu"))
except CannotCompileError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.startswith("torch.compile failed ("), done.stderr
    assert cause in done.stdout
    assert done.stdout.count("\n") == 1
    assert "set engine.compile: false" in done.stdout


# devices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compile", [False, True])
def test_a_gpu_gives_the_logits_of_the_cpu(precision: str, compile: bool) -> None:
    device = torch.device("cuda")
    made = voting_classifier(
        resnet(),
        precision=precision,  # type: ignore[arg-type]
        compile=compile,
        device=device,
        batch=BATCH,
        image_shape=SHAPE,
        num_classes=CLASSES,
        sub_image=0,
    )
    expected = logits(resnet(), noisy())
    tolerance = 0.1 if precision == "bfloat16" else 1e-3
    for _ in range(3):  # a CUDA graph's memory is used again
        with fixed_kernels("cuda"):  # no TF32
            got = logits(made.module, noisy().to(device)).cpu()
        assert (got - expected).abs().max() < tolerance * expected.std()
