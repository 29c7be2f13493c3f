"""Common parts of all sections of the config: a strict model, paths with variables, noise levels in float32.

sigma and radii are in pixel units: pixels lie in [0, 1], and an l2 distance of 1 is one full-scale pixel.
"""

from __future__ import annotations

import os
import posixpath
import re
import struct
from typing import Annotated, get_args
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator


def float32(value: float) -> float:
    """The nearest float32. Noise is added in float32, so sigma is a float32, in certificates too."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def expanded(text: str) -> str:
    """A path or URI with `$NAME` and `${NAME}` replaced by environment variables, and `$$` by a dollar sign.

    Raises:
        ValueError: a variable that is not set, or is empty.
    """

    def value_of(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        name = found[1] or found[2]
        if name is None:
            raise ValueError("a variable must be $NAME or ${NAME}; write $$ for a dollar sign")
        if not os.environ.get(name):
            raise ValueError(f"the environment variable {name} is not set; set it, or write $$ for a dollar sign")
        return os.environ[name]

    return re.sub(r"\$(?:\$|([A-Za-z_]\w*)|\{(?:([A-Za-z_]\w*)\})?)", value_of, text, flags=re.ASCII)


def expanded_where_read(text: str, info: ValidationInfo) -> str:
    """A validator: variables are expanded when a user's file is read, not when a run's record is read."""
    return expanded(text) if info.context == AS_READ else text


AS_READ = "as the user wrote it"
"""Context of a validation that expands variables. A run's record has them expanded, perhaps on another machine."""

Location = Annotated[str, AfterValidator(expanded_where_read)]
"""A path or URI; a config file may name environment variables in it."""


def place_of(location: str) -> str:
    """A path or URI in the one form that all spellings of a place share (`~`, file:// and links, too)."""
    scheme, separator, rest = location.partition("://")
    if separator and scheme != "file":
        return f"{scheme}://{posixpath.normpath(rest)}"
    path = unquote(f"/{rest.partition('/')[2]}") if separator else os.path.expanduser(location)  # noqa: PTH111
    return os.path.realpath(path)


Sigma = Annotated[float, Field(ge=1e-3, le=100), AfterValidator(float32)]
"""Noise standard deviation in pixel units; far below 1/255 the sum of pixel and noise is hardly Gaussian."""


class Section(BaseModel):
    """A part of the config: immutable; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_not_a_number(cls, value: object, info: ValidationInfo) -> object:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("must not be true or false")
        return value


def auto_or_bool(value: object) -> object:
    """A validator of keys that are `auto`, true or false."""
    if value != "auto" and not isinstance(value, bool):
        raise ValueError("must be auto, true or false")
    return value
