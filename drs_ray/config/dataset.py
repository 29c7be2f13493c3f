"""Which images are certified, and how they are split into sub-images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from drs_ray.config.base import Location, Section, expanded_where_read
from drs_ray.config.class_names import read_class_names

DatasetName = Literal[
    "mnist5k",
    "mnist",
    "cifar10",
    "cifar100",
    "svhn",
    "stl10",
    "tiny-imagenet",
    "imagenet",
    "folder",
    "huggingface",
    "parquet",
]
PartitionName = Literal["none", "checkerboard", "checkerboard-2024", "interleave"]
LayoutName = Literal["packed", "masked", "filled"]

_IMAGE_FILES = ("folder", "imagenet", "tiny-imagenet", "huggingface")
KEYS_OF: Mapping[str, tuple[str, ...]] = {
    "image_size": _IMAGE_FILES,
    "classes": _IMAGE_FILES,
    "image_column": ("huggingface",),
    "label_column": ("huggingface",),
    "channels": ("huggingface",),
    "endpoint_url": ("parquet",),
}
"""Keys of `dataset` that not all data sets have, and the data sets that have them."""

MOST_SUB_IMAGES = 64
"""Largest K of an interleaved partition."""


class ImagesConfig(Section):
    """Which images of the split are certified: a range with a step, or an explicit list of ids."""

    start: int = Field(0, ge=0, description="First image id.")
    stop: int | None = Field(None, ge=1, description="End of the range (exclusive); null: end of the split.")
    skip: int = Field(1, ge=1, description="Every skip-th image of the range (Cohen et al. use 20).")
    ids: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="Explicit image ids, instead of the range."
    )

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if self.ids is not None:
            if (self.start, self.stop, self.skip) != (0, None, 1):
                raise ValueError("give either ids or start/stop/skip, not both")
            if not self.ids:
                raise ValueError("ids is empty: name at least one image id, or remove the key for all images")
            if len(set(self.ids)) != len(self.ids):
                raise ValueError("ids has duplicates: an image is certified once per run")
        elif self.stop is not None and self.stop <= self.start:
            raise ValueError(f"the range start={self.start} stop={self.stop} selects no image; stop must be > start")
        return self


class DatasetConfig(Section):
    """Which images: a data set by name, its split, and the image ids."""

    name: DatasetName = Field(description="mnist5k comes with the `demo` extra; the others are read from root.")
    root: Location | None = Field(
        None, description="Directory that holds the data set (not needed for mnist5k); parquet: or an s3:// URI."
    )
    endpoint_url: str | None = Field(
        None,
        pattern=r"^https?://[^@\s]+$",
        description="parquet: endpoint of an S3-compatible server; null: AWS_ENDPOINT_URL or AWS.",
    )
    split: str = Field(
        "test",
        description="train or test; folder: a sub-directory of root; huggingface: as the data set names it; "
        "parquet: as packed.",
    )
    download: bool = Field(False, description="Let torchvision download the data set into root.")
    image_size: int | None = Field(
        None,
        ge=1,
        description="folder, imagenet, tiny-imagenet, huggingface: resize the short side to 8/7 of this, then crop the "
        "centre.",
    )
    classes: tuple[str, ...] | None = Field(
        None,
        min_length=2,
        json_schema_extra={"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": ["string", "null"]}]},
        description="folder, imagenet, tiny-imagenet, huggingface: names of all classes in order of class number, as a "
        "list or as a file with a name per line; null: the class directories in text order, or as stored.",
    )
    image_column: str | None = Field(None, description="huggingface: the column of images; null: the only one.")
    label_column: str | None = Field(None, description="huggingface: the column of labels; null: the only ClassLabel.")
    channels: Literal[1, 3] | None = Field(
        None, description="huggingface: 1 (grey) or 3 (RGB); null: 1 if the first image of the split is grey."
    )
    images: ImagesConfig = Field(default_factory=lambda: ImagesConfig())

    @field_validator("classes", mode="before")
    @classmethod
    def _names_in_a_file(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            return read_class_names(Path(expanded_where_read(value, info)).expanduser())
        if isinstance(value, list | tuple):  # YAML reads the names 0, 1, 10 as numbers
            return [str(name) if type(name) is int else name for name in value]
        return value

    @field_validator("classes")
    @classmethod
    def _names_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        twice = [name for name, count in Counter(value or ()).items() if count > 1]
        if twice:
            raise ValueError(f"names {twice[0]!r} twice: a class has one number")
        return value

    @model_validator(mode="after")
    def _root_is_named(self) -> Self:
        if self.name != "mnist5k" and self.root is None:
            raise ValueError(f"{self.name} needs root: the directory that holds the data set")
        for key, names in KEYS_OF.items():
            if getattr(self, key) is not None and self.name not in names:
                raise ValueError(f"{key} applies to {', '.join(names)}, not to {self.name}")
        return self


class PartitionConfig(Section):
    """How pixels are split into sub-images, and how a sub-image is laid out for its classifier."""

    name: PartitionName = Field(
        description="none: the whole image (randomized smoothing); checkerboard: two halves (dual r. s.); "
        "checkerboard-2024: the mask that the DRS authors' checkpoints need; interleave: rows x columns sub-images."
    )
    interleave: tuple[int, int] | None = Field(
        None,
        description="[rows, columns], for the name interleave: pixel (r, c) belongs to sub-image "
        "(r mod rows) * columns + (c mod columns).",
    )
    layout: LayoutName = Field(
        "packed",
        description="packed: the own pixels of each row pushed together; masked: full size, other pixels 0; "
        "filled: masked, and each own pixel has the maximum of its 2x2 block added (the DRS authors' CIFAR-10 input).",
    )

    @field_validator("interleave", mode="before")
    @classmethod
    def _two_whole_numbers(cls, value: object) -> object:
        if value is None or (
            isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int and n >= 1 for n in value)
        ):
            return value
        raise ValueError("must be two whole numbers >= 1, [rows, columns], for example [2, 2]")

    @model_validator(mode="after")
    def _interleave_fits(self) -> Self:
        if self.name == "interleave" and self.interleave is None:
            raise ValueError("the name interleave needs interleave: [rows, columns], for example [2, 2]")
        if self.name != "interleave" and self.interleave is not None:
            raise ValueError(f"interleave applies to the name interleave, not to {self.name}; remove it")
        if self.interleave is not None and not 2 <= self.sub_images <= MOST_SUB_IMAGES:
            rows, columns = self.interleave
            raise ValueError(
                f"interleave must make 2 to {MOST_SUB_IMAGES} sub-images, [{rows}, {columns}] makes {self.sub_images}"
            )
        return self

    @property
    def sub_images(self) -> int:
        """Number of sub-images K."""
        if self.interleave is not None:
            return self.interleave[0] * self.interleave[1]
        return 2 if self.name.startswith("checkerboard") else 1

    @property
    def label(self) -> str:
        """The unique name of the partition, for example interleave-2x2; checkpoints have it in their metadata."""
        return self.name if self.interleave is None else f"{self.name}-{self.interleave[0]}x{self.interleave[1]}"
