"""Messages for pydantic's errors, one line per mistake: the path of the key, the rule, the value and the remedy."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from drs_ray.certificates.rule import LEAST_ALPHA
from drs_ray.errors import ConfigError, counted

_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], data: Mapping[str, Any], source: str, context: str | None = None) -> _Model:
    """Validate a mapping by a model; raises ConfigError with one line per mistake. `source` names it in messages."""
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        raise ConfigError(explain(error, source, model)) from error


def explain(error: ValidationError, source: str, model: type[BaseModel]) -> str:
    """The message of an error of `model`: one line per mistake, each beginning with `source`."""
    found = error.errors()
    return "\n".join(f"{source}: {_explain(item, model)}" for item in found if not _is_echo(item, found))


def _explain(item: Any, model: type[BaseModel]) -> str:
    """One pydantic error as `path: rule, got value; remedy`."""
    location = tuple(item["loc"])
    path = ".".join(str(part) for part in location) or "config"
    kind = item["type"]
    value = short(item.get("input"))
    if kind == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"allowed here: {', '.join(known)}"
        if location[0] == "certificate" and _OTHER_NORMS.search(str(location[-1])):
            remedy = (
                "certificates are of l2 norms; one of radius r also holds for l1 norms below r, and for linf norms "
                "below r / sqrt(d), d = channels x height x width"
            )
        return f"{path}: unknown key; {remedy}"
    if kind == "missing":
        return f"{path}: required key is missing; add it (`drs-ray schema` lists all keys)"
    if kind == "value_error":
        message = str(item["ctx"]["error"])
        return (
            message
            if path == "config"
            else f"{path}: {message}" + ("" if isinstance(item.get("input"), dict) else f", got {value}")
        )
    rules = {
        "greater_than": "must be > {gt}",
        "greater_than_equal": "must be >= {ge}",
        "less_than": "must be < {lt}",
        "less_than_equal": "must be <= {le}",
        "literal_error": "must be {expected}",
        "finite_number": "must be a finite number",
        "too_short": "must have at least {least}",
        "tuple_type": "must be a list, for example [0, 1]",
        "string_type": "must be text",
        "int_parsing": "must be a whole number",
        "int_type": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_parsing": "must be a number",
        "float_type": "must be a number",
        "bool_parsing": "must be true or false",
        "bool_type": "must be true or false",
        "model_type": "must be a mapping of keys to values",
        "dict_type": "must be a mapping of keys to values",
        "model_attributes_type": "must be a mapping of keys to values",
    }
    context = item.get("ctx", {})
    context |= {"least": counted(context.get("min_length", 0), "entry", "entries")}
    rule = rules[kind].format(**context) if kind in rules else str(item["msg"]).lower()
    if path == "certificate.alpha" and kind in ("greater_than_equal", "less_than"):
        rule = "must be in (0, 1)" if kind == "less_than" else f"must be in (0, 1), at least {LEAST_ALPHA:g}"
    return f"{path}: {rule}, got {value}"


_OTHER_NORMS = re.compile(r"norm|threat|attack|perturbation|(^|_)l_?(inf|[0-9p])|^p$|linf|patch|epsilon|^eps$", re.I)
"""Unknown keys by which a user may ask for certificates against other perturbations."""


def _is_echo(item: Any, found: Sequence[Any]) -> bool:
    """Whether an error repeats another: pydantic also reports a list as too short if its only entry is invalid."""
    at = tuple(item["loc"])
    return item["type"] == "too_short" and any(
        len(other["loc"]) > len(at) and tuple(other["loc"][: len(at)]) == at for other in found
    )


def _known_keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part))
        found = _section_of(field.annotation) if field is not None else None
        if found is None:
            return []
        model = found
    return sorted(model.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_of(argument)
        if found is not None:
            return found
    return None


def short(value: object) -> str:
    """The repr of a value for a message, cut to 80 characters."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
