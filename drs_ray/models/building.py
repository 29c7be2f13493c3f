"""From an architecture's name to an untrained module: built-in, of torchvision or timm, or a user's factory."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue
from torch import nn

from drs_ray.config import PixelsConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.architectures import build_architecture, need_colour
from drs_ray.models.pixel_convention import Shape, shape_seen, with_pixels
from drs_ray.models.torch_state import plain_torch

PROGRAM = "torch.export"
"""The name of the architecture whose checkpoint is a program (`drs_ray.models.programs`)."""
TRANSFORMERS = "transformers"
"""The name of the architecture whose checkpoint is a directory of that library, with the network's settings."""


def build_module(
    architecture: str,
    arguments: Mapping[str, JsonValue],
    image_shape: Shape,
    num_classes: int,
    pixels: PixelsConfig | None = None,
) -> nn.Module:
    """The untrained module of an architecture's name, or the module that the user's `module:function` returns.

    Args:
        architecture: a built-in name, `torchvision:<name>`, `timm:<name>`, or `module:function`. The function is called
            with `image_shape`, `num_classes` and the arguments; its module may be in the current directory.
        arguments: keyword arguments of the architecture or the function.
        image_shape: (C, h, w) of the sub-image as laid out.
        num_classes: number of logits.
        pixels: the pixel convention of the architecture, which becomes the first part of the module.

    Raises:
        ClassifierError: the architecture or function does not exist, raises, or returns no module.
    """
    network = _network(architecture, arguments, shape_seen(image_shape, pixels), num_classes)
    return with_pixels(network, pixels, image_shape[0])


def _network(architecture: str, arguments: Mapping[str, JsonValue], image_shape: Shape, num_classes: int) -> nn.Module:
    if architecture == PROGRAM:
        raise ClassifierError(
            f"classifier {PROGRAM}: is a finished program, there is nothing to build or to train; name an architecture"
        )
    if architecture == TRANSFORMERS:
        raise ClassifierError(
            f"classifier {TRANSFORMERS}: is the network of a directory, there is nothing to build or to train; name an "
            "architecture"
        )
    if ":" not in architecture:
        return build_architecture(architecture, image_shape, num_classes, arguments)
    library, _, name = architecture.partition(":")
    if not is_factory(architecture):
        for key in arguments:
            if key.startswith(("pretrained", "weights", "checkpoint", "num_classes", "in_chans")):
                raise ClassifierError(
                    f"classifier {architecture}: argument {key!r} is not for you to set: weights come from "
                    "the key checkpoint, classes and channels from the data set; remove it"
                )
        build = _LIBRARIES[library](name, image_shape)
        given: dict[str, object] = {"num_classes": num_classes}
    else:
        build = find_function(architecture)
        given = {"image_shape": image_shape, "num_classes": num_classes}
    return call(architecture, build, given, arguments)


def is_factory(architecture: str) -> bool:
    """Whether it names a user's function, which may return a module that needs no checkpoint."""
    return ":" in architecture and architecture.partition(":")[0] not in _LIBRARIES


def find_function(name: str) -> Callable[..., object]:
    """The user's `module:function`.

    Raises:
        ClassifierError: it cannot be imported, or is no function.
    """
    module_name, _, function_name = name.partition(":")
    with _current_directory_on_path(), plain_torch():
        try:
            imported = importlib.import_module(module_name)
        except Exception as error:  # user code may raise anything
            raise ClassifierError(
                f"classifier {name}: module {module_name!r} cannot be imported ({brief(error)}); "
                "start in the directory that holds it, or put it on PYTHONPATH"
            ) from error
    function: object = getattr(imported, function_name, None)
    if not callable(function):
        raise ClassifierError(
            f"classifier {name}: {imported.__name__} has no function {function_name!r}; "
            "give module:function with the function's name"
        )
    return function


def call(
    name: str, build: Callable[..., object], given: Mapping[str, object], arguments: Mapping[str, JsonValue]
) -> nn.Module:
    """The module that `build` returns for the arguments of drs-ray (`given`) and of the user.

    Raises:
        ClassifierError: `build` raises, or returns no module.
    """
    with _current_directory_on_path(), plain_torch():
        try:
            built = build(**given, **arguments)
        except Exception as error:  # user code, or a library that does not know an argument
            given_text = ", ".join(f"{key}={value}" for key, value in given.items())
            raise ClassifierError(
                f"classifier {name}: called with {given_text} and "
                f"the arguments {dict(arguments)}, it raised {brief(error)}; correct the function or the arguments"
            ) from error
    if not isinstance(built, nn.Module):
        raise ClassifierError(
            f"classifier {name}: must return a torch.nn.Module, got {type(built).__name__}; correct it"
        )
    return built


@contextlib.contextmanager
def library_errors(library: str, where: str) -> Iterator[None]:
    """Name the file whatever a library raises, and keep its notes, warnings and progress bars off the screen.

    library: diffusers or transformers, which have the same functions for this.

    Raises:
        ClassifierError: in one line, for any exception within the block.
    """
    logging = importlib.import_module(f"{library}.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ClassifierError as error:
        text = str(error)
        raise ClassifierError(text if text.startswith(where) else f"{where}: {text}") from error
    except Exception as error:  # for example a setting that this version of the library does not know
        raise ClassifierError(f"{where}: {library} cannot read it ({brief(error)})") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def brief(error: Exception) -> str:
    """An exception of foreign code in short: its type and its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _torchvision(name: str, image_shape: Shape) -> Callable[..., object]:
    from torchvision import models  # takes a second to import

    _look_up(f"torchvision:{name}", name, models.list_models(module=models))
    need_colour(f"torchvision:{name}", image_shape)
    return _quiet(models.get_model, name, weights=None)


def _timm(name: str, image_shape: Shape) -> Callable[..., object]:
    try:
        import timm
    except ImportError as error:
        raise ClassifierError(
            f"classifier timm:{name}: timm is not installed; install drs-ray with the extra timm (on every node)"
        ) from error
    _look_up(f"timm:{name}", name, timm.list_models())
    return _quiet(timm.create_model, name, pretrained=False, in_chans=image_shape[0])


def _look_up(architecture: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        raise ClassifierError(
            f"classifier {architecture}: there is no such model among its {len(known)}; "
            + (f"did you mean {' or '.join(close)}?" if close else "see the library's list of models")
        )


def _quiet(build: Callable[..., object], *names: str, **fixed: object) -> Callable[..., object]:
    """`build` without warnings: libraries warn about initial weights, which a checkpoint replaces."""

    def built(**arguments: object) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build(*names, **fixed, **arguments)

    return built


@contextlib.contextmanager
def _current_directory_on_path() -> Iterator[None]:
    """The current directory on sys.path, as with `python -m`, inside the context only."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


_LIBRARIES: Mapping[str, Callable[[str, Shape], Callable[..., object]]] = {"torchvision": _torchvision, "timm": _timm}
