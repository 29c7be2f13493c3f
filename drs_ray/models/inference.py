"""The base classifier that votes: batch norm folded, bfloat16 or float32, laid out for its device, perhaps compiled.

`voting_classifier` makes it for the batch system, `verify`, `attack` and `SmoothedClassifier`. The result is the f^k of
docs/theory.md: certificates are about it, not about the float32 network from which it was made.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from drs_ray.config import Precision
from drs_ray.errors import ClassifierError, counted
from drs_ray.models.building import brief
from drs_ray.models.check import check_classifier

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MULTIPLY = (nn.Linear, *_CONVOLUTIONS)


class CannotCompileError(ClassifierError):
    """A classifier that torch.compile cannot compile, or a machine without what that needs."""


@dataclass(frozen=True, eq=False)
class VotingClassifier:
    """module: votes, without gradients. plain: `module` before it was compiled; its inputs may have gradients."""

    module: nn.Module
    plain: nn.Module


def voting_classifier(
    module: nn.Module,
    *,
    precision: Precision,
    compile: bool,
    device: torch.device,
    batch: int,
    image_shape: tuple[int, int, int],
    num_classes: int,
    sub_image: int,
) -> VotingClassifier:
    """The classifier that votes, made from a loaded base classifier and checked as that was.

    Args:
        module: float32 [N, C, h, w] -> logits [N, num_classes]; it is not changed (see `inference_module`).
        precision: see `inference_module`.
        compile: see `compiled_module`.
        device: device on which it votes.
        batch: largest number of samples of a batch.
        image_shape: (C, h, w) of the sub-image as laid out.
        num_classes: number of classes.
        sub_image: index of the classifier's sub-image, for errors.

    Raises:
        ClassifierError: the result is no fixed function of each sample. CannotCompileError: see `compiled_module`.
    """
    plain = inference_module(module, precision, device, image_shape, num_classes, sub_image)
    if not compile:
        return VotingClassifier(plain, plain)
    compiled = compiled_module(plain, batch, image_shape, device)
    return VotingClassifier(compiled, plain)


def inference_module(
    module: nn.Module,
    precision: Precision,
    device: torch.device,
    image_shape: tuple[int, int, int],
    num_classes: int,
    sub_image: int,
) -> nn.Module:
    """A copy of a base classifier that computes logits as fast as the device can without compiling, checked.

    Batch norm is folded into the convolution or linear layer before it, in float32, if torch.fx can trace the module.
    bfloat16: convolutions and products of matrices take bfloat16 and add in float32 (torch.autocast); everything before
    the first of them, such as normalisation, is float32. A module that cannot be copied is used itself, unfolded.

    Args:
        module: float32 [N, C, h, w] -> logits [N, num_classes].
        precision: float32 or bfloat16.
        device: device on which it computes.
        image_shape: (C, h, w); the memory format is channels-last if C > 1: it is slower for grey images.
        num_classes: number of classes.
        sub_image: index of the classifier's sub-image, for errors.

    Returns:
        float32 [N, C, h, w] -> logits in float32, in eval mode, without gradients of its own.

    Raises:
        ClassifierError: the result is no fixed function of each sample.
    """
    try:
        module, copied = copy.deepcopy(module), True
    except Exception:  # a user's module may hold a lock or an open file
        copied = False
    module.eval()
    if copied:
        module.requires_grad_(False)
        _fold_batch_norm(module)
    module.to(device)
    if image_shape[0] > 1:
        module.to(memory_format=torch.channels_last)
    if precision == "bfloat16" and copied:
        for part in module.modules():
            if type(part) in _MULTIPLY:  # else autocast would convert its weights in every pass
                part.to(torch.bfloat16)
    result = _Inference(module, precision, device.type).eval()
    check_classifier(result, image_shape, num_classes, sub_image, device, precision)
    return result


def compiled_module(
    module: nn.Module, batch: int, image_shape: tuple[int, int, int], device: torch.device
) -> nn.Module:
    """The module compiled by torch.compile for batches of exactly this size; smaller batches are padded with zeros.

    Kernels are chosen by rules, not by timing, so that equal machines compile equal programs. They are kept in torch's
    cache directory (TORCHINDUCTOR_CACHE_DIR), so that a second process is ready within seconds.

    Args:
        module: from `inference_module`.
        batch: N of the batches.
        image_shape: (C, h, w) of the sub-image as laid out.
        device: the module's device.

    Raises:
        CannotCompileError: no C or C++ compiler, a module that is not one graph, or compilation turned off.
    """
    try:
        return _Compiled(module, (batch, *image_shape), device)
    except Exception as error:  # the compiler may raise anything
        raise CannotCompileError(
            f"torch.compile failed ({brief(error)}); set engine.compile: false, "
            "or see that every node has a C++ compiler"
        ) from error


class _Inference(nn.Module):
    """The network with or without autocast, independent of the caller's autocast."""

    def __init__(self, network: nn.Module, precision: Precision, device_type: str) -> None:
        super().__init__()
        self.network = network
        self._bfloat16 = precision == "bfloat16"
        self._device_type = device_type

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> logits [N, num_classes]; float32 if the precision is bfloat16."""
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._bfloat16, cache_enabled=False):
            logits: Tensor = self.network(x)
        return logits.float() if self._bfloat16 and isinstance(logits, Tensor) else logits


class _Compiled(nn.Module):
    """One compiled graph, for one batch size."""

    def __init__(self, module: nn.Module, shape: tuple[int, int, int, int], device: torch.device) -> None:
        """Compile, which calls the module; it may raise any exception."""
        super().__init__()
        self._batch = shape[0]
        self._is_cuda = device.type == "cuda"
        graphs = 0

        def backend(graph: fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
            from torch._inductor.compile_fx import compile_fx

            nonlocal graphs
            graphs += 1
            return compile_fx(graph, example)  # type: ignore[return-value]

        self._run = torch.compile(module, dynamic=False, fullgraph=True, backend=backend)
        with _fixed_choices(self._is_cuda), torch.inference_mode():
            self._run(torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last))
        if graphs != 1:  # for example with TORCH_COMPILE_DISABLE
            raise RuntimeError(f"it made {counted(graphs, 'graph')} instead of one: is it turned off?")

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] with N up to the compiled batch -> logits [N, num_classes]."""
        x = x if x.is_inference() else x.clone()  # the graph takes inference tensors
        missing = self._batch - len(x)
        if missing:
            x = functional.pad(x, (0, 0, 0, 0, 0, 0, 0, missing)).contiguous(memory_format=torch.channels_last)
        if self._is_cuda:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.compiler.set_stance("fail_on_recompile"):  # another graph would be another classifier
            logits: Tensor = self._run(x)
        return logits[: self._batch - missing]


@contextmanager
def _fixed_choices(is_cuda: bool) -> Iterator[None]:
    """Inductor's settings: weights are constants, and no kernel is chosen by timing."""
    from torch._dynamo import config as tracing
    from torch._inductor import config as inductor

    wanted: dict[str, Any] = {
        "freezing": True,
        "deterministic": True,
        "max_autotune": False,
        "max_autotune_gemm": False,
        "max_autotune_pointwise": False,
        "coordinate_descent_tuning": False,
        "benchmark_kernel": False,
        "compile_threads": 1,  # a killed worker would leave a pool of processes behind
        "triton.cudagraphs": is_cuda,
    }
    known = inductor.get_config_copy()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")  # a pure function's
        stack.enter_context(inductor.patch({name: value for name, value in wanted.items() if name in known}))
        # Every frozen network is a graph of its own, but torch counts all as recompilations of one function.
        stack.enter_context(tracing.patch(recompile_limit=1000, accumulated_recompile_limit=10_000))
        yield


def _fold_batch_norm(module: nn.Module) -> None:
    """Fold every batch norm that always follows the same layer into this layer, in place.

    torch.fx only finds the pairs; the module's own `forward` stays, with the batch norm replaced by an identity.
    """
    parts = dict(module.named_modules())
    try:
        graph = fx.Tracer().trace(module)
    except Exception:  # control flow that depends on data, or calls that torch.fx does not know
        return
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        layer, norm = parts[str(before.target)], parts[str(node.target)]
        if calls.count(str(before.target)) != 1 or calls.count(str(node.target)) != 1 or _is_hooked(layer, norm):
            continue
        if type(norm) not in _BATCH_NORMS or norm.training or norm.running_mean is None:
            continue
        if type(layer) in _CONVOLUTIONS:
            _replace(module, str(before.target), fuse_conv_bn_eval(layer, norm))
        elif type(layer) is nn.Linear:
            _replace(module, str(before.target), fuse_linear_bn_eval(layer, norm))
        else:
            continue
        _replace(module, str(node.target), nn.Identity().eval())


def _is_hooked(*modules: nn.Module) -> bool:
    """Whether hooks run in a call of the modules."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def _replace(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(operator.attrgetter(parent)(module) if parent else module, name, new)
