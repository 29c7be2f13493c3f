"""Checks of the arguments of public functions: a check converts a value, or raises an error of one line."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

from drs_ray.errors import ConfigError

Check = Callable[[str, Any], Any]
"""A function from an argument's name and value to the converted value; it raises ConfigError for an invalid value."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def checked(**checks: Check) -> Callable[[_Function], _Function]:
    """Check the named arguments before the function is called, also those among its `**options`.

    Default values are not checked. Python itself refuses missing arguments and unknown names.
    """

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)
        rest = next((name for name, one in signature.parameters.items() if one.kind is one.VAR_KEYWORD), "")

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            for given in (bound.arguments, bound.arguments.get(rest, {})):
                for name in given.keys() & checks.keys():
                    given[name] = checks[name](name, given[name])
            return function(*bound.args, **bound.kwargs)

        return call  # type: ignore[return-value]

    return decorate


def whole(name: str, value: Any, least: int | None = None, below: int | None = None) -> int:
    """A whole number, of Python or numpy."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if is_whole and below is not None and value >= below:
        raise ConfigError(f"{name} must be a whole number < {below}, got {shown(value)}")
    if not is_whole or (least is not None and value < least):
        at_least = "" if least is None else f" >= {least}"
        raise ConfigError(f"{name} must be a whole number{at_least}, got {shown(value)}")
    return int(value)


def number(name: str, value: Any) -> float:
    """A finite real number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a number, got {shown(value)}")
    return float(value)


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be text, got {shown(value)}")
    return value


def path(name: str, value: Any) -> str:
    """A path, as text."""
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(found, str):
        raise ConfigError(f"{name} must be a path, as text or pathlib.Path, got {shown(value)}")
    return found


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {shown(value)}")
    return value


def function(name: str, value: Any) -> Callable[..., Any]:
    """A callable."""
    if not callable(value):
        raise ConfigError(f"{name} must be a function, got {shown(value)}")
    return value  # type: ignore[no-any-return]


def optional(check: Check) -> Check:
    """None, or a value that the check accepts."""
    return lambda name, value: None if value is None else check(name, value)


def several(check: Check, what: str, *, or_one: bool = False) -> Check:
    """A list, a tuple or any other iterable except text, as a tuple; `or_one`: any other value becomes a 1-tuple."""

    def listed(name: str, value: Any) -> tuple[Any, ...]:
        plain = value.tolist() if hasattr(value, "tolist") else value  # arrays and tensors
        if isinstance(plain, str | bytes | Mapping) or not isinstance(plain, Iterable):
            if not or_one:
                raise ConfigError(f"{name} must be a list of {what}, got {shown(value)}")
            plain = (plain,)
        return tuple(check(name, item) for item in plain)

    return listed


def instance_of(kind: str, described: str) -> Check:
    """An instance of `module:class`; the module is imported at the first check."""

    def is_one(name: str, value: Any) -> Any:
        module, _, cls = kind.partition(":")
        if not isinstance(value, getattr(importlib.import_module(module), cls)):
            raise ConfigError(f"{name} must be {described}, got {shown(value)}")
        return value

    return is_one


def shown(value: object) -> str:
    """A value for an error message: its repr if that is short, else its type."""
    plain = isinstance(value, str | int | float | list | tuple | dict | os.PathLike | None)
    written = repr(value) if plain else ""
    return written if 0 < len(written) <= 80 and written.isprintable() else f"a {type(value).__name__}"


observer = optional(instance_of("drs_ray.engine.observer:Observer", "a drs_ray.engine.observer.Observer"))
numbers = several(number, "numbers")
numbers_or_one = several(number, "numbers", or_one=True)
texts = several(text, "texts")
of_checks: dict[str, Check] = {
    "images": whole,
    "seed": optional(whole),
    "level": number,
    "device": optional(text),
    "overrides": texts,
}
"""What `verify` and `attack` have in common."""
run = instance_of("drs_ray.results.tables:CertifiedImages", "a run of drs_ray.read_run or drs_ray.certify")
runs = several(run, "runs of drs_ray.read_run or drs_ray.certify")
