"""The base classifier that votes: batch norm folded, bfloat16 or float32, laid out for its device, compiled if asked.

One function, `voting_classifier`, makes it for the batch system, `verify`, `attack` and `SmoothedClassifier`. What
comes out is the f^k of docs/theory.md: certificates are about it, not about the float32 network that it was made from.
"""

from __future__ import annotations

import copy
import operator
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
    """A classifier that torch.compile cannot do, or a machine without what it needs."""


@dataclass(frozen=True, eq=False)
class VotingClassifier:
    """module: what votes, without gradients. plain: the same before it was compiled; its inputs may have gradients."""

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
        module: float32 [N, C, h, w] -> logits [N, num_classes]; it stays as it is.
        precision: see `inference_module`.
        compile: see `compiled_module`.
        device: where it will vote.
        batch: the most samples of a batch.
        image_shape: (C, h, w) of the sub-image as laid out.
        num_classes: number of classes.
        sub_image: whose classifier it is, to name it in errors.

    Raises:
        ClassifierError: what comes out is no fixed function of each sample. CannotCompileError: see `compiled_module`.
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

    Batch norm is folded into the convolution or linear layer before it, in float32, where torch.fx can trace the
    module. bfloat16: convolutions and products of matrices take bfloat16 and add in float32 (torch.autocast); all that
    stands before the first of them, normalisation for one, is float32. The module itself stays as it is, unless it
    cannot be copied (then nothing is folded).

    Args:
        module: float32 [N, C, h, w] -> logits [N, num_classes].
        precision: float32 or bfloat16.
        device: where it will compute.
        image_shape: (C, h, w); the memory format is channels-last where C > 1: on grey images it is slower.
        num_classes: number of classes.
        sub_image: whose classifier it is, to name it in errors.

    Returns:
        float32 [N, C, h, w] -> logits in float32, in eval mode, without gradients of its own.

    Raises:
        ClassifierError: what comes out is no fixed function of each sample.
    """
    try:
        module, copied = copy.deepcopy(module), True
    except Exception:  # a module of the user's may hold what cannot be copied: a lock, an open file
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
            if type(part) in _MULTIPLY:  # as autocast would convert its weights in every pass
                part.to(torch.bfloat16)
    result = _Inference(module, precision, device.type).eval()
    check_classifier(result, image_shape, num_classes, sub_image, device, precision)
    return result


def compiled_module(
    module: nn.Module, batch: int, image_shape: tuple[int, int, int], device: torch.device
) -> nn.Module:
    """The module compiled by torch.compile for batches of exactly this size; smaller ones are filled up with zeros.

    Kernels are chosen by rule, never by timing: equal machines compile equal programs. Compiled kernels are kept in
    torch's own cache directory (TORCHINDUCTOR_CACHE_DIR), so that a second process is ready within seconds.

    Args:
        module: from `inference_module`.
        batch: N of the batches.
        image_shape: (C, h, w) of the sub-image as laid out.
        device: where the module is.

    Raises:
        CannotCompileError: no C++ compiler (CPU), a module that torch cannot make one graph of, compiling turned off.
    """
    try:
        return _Compiled(module, (batch, *image_shape), device)
    except Exception as error:  # the compiler may raise anything
        raise CannotCompileError(
            f"torch.compile failed ({brief(error)}); set engine.compile: false"
            + ("" if device.type == "cuda" else ", or see that every node has a C++ compiler")
        ) from error


class _Inference(nn.Module):
    """The network under autocast, or under none, whatever the caller has set."""

    def __init__(self, network: nn.Module, precision: Precision, device_type: str) -> None:
        super().__init__()
        self.network = network
        self._bfloat16 = precision == "bfloat16"
        self._device_type = device_type

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> logits [N, num_classes], float32 where they were of lower precision."""
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._bfloat16, cache_enabled=False):
            logits: Tensor = self.network(x)
        return logits.float() if self._bfloat16 and isinstance(logits, Tensor) else logits


class _Compiled(nn.Module):
    """One compiled graph, for one batch size."""

    def __init__(self, module: nn.Module, shape: tuple[int, int, int, int], device: torch.device) -> None:
        """Compile, which calls the module.

        Raises:
            Exception: of any kind.
        """
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
        if graphs != 1:  # TORCH_COMPILE_DISABLE, for one
            raise RuntimeError(f"it made {counted(graphs, 'graph')} instead of one: is it turned off?")

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] with N up to the batch that was compiled -> logits [N, num_classes]."""
        x = x if x.is_inference() else x.clone()  # the graph is of such tensors
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
    """Inductor as this module wants it: weights are constants, no kernel is chosen by how fast it just was."""
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
        "compile_threads": 1,  # no pool of processes, that a killed worker would leave behind
        "triton.cudagraphs": is_cuda,
    }
    known = inductor.get_config_copy()
    with ExitStack() as stack:
        stack.enter_context(inductor.patch({name: value for name, value in wanted.items() if name in known}))
        # Every frozen network is a graph of its own, but torch counts them all as recompilations of one function.
        stack.enter_context(tracing.patch(recompile_limit=1000, accumulated_recompile_limit=10_000))
        yield


def _fold_batch_norm(module: nn.Module) -> None:
    """Fold every batch norm that always follows one and the same layer into it, in place.

    torch.fx only finds the pairs; the module's own `forward` stays, with the batch norm replaced by an identity.
    """
    parts = dict(module.named_modules())
    try:
        graph = fx.Tracer().trace(module)
    except Exception:  # control flow that depends on data, or calls that torch.fx does not know: it stays unfolded
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
    """Whether something happens in a call of theirs besides their own `forward`."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def _replace(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(operator.attrgetter(parent)(module) if parent else module, name, new)
