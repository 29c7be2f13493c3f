"""Checks the working directory of a job before it is sent: its size, and the files that the config names."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env import packaging  # Ray has no public function for the list of packed files

from drs_ray.config import RunConfig, parse_config, read_config
from drs_ray.config.classifiers import DIRECTORY_FILES
from drs_ray.errors import ConfigError

LIMIT_BYTES = 100 * 2**20
"""Ray keeps packages in the head's memory and sends each as one message."""
NAMED, WORTH_NAMING = 3, 0.01
"""A message names at most `NAMED` large entries, each at least this share of the whole."""


def packed_files(directory: Path) -> dict[str, int]:
    """Sizes in bytes of the files that Ray packs of a directory: all but those in .gitignore and .rayignore.

    Raises:
        ConfigError: no such directory.
    """
    root = directory.absolute()
    if not root.is_dir():
        raise ConfigError(f"--working-dir {directory}: must be a directory; give the one that holds the config")
    found: dict[str, int] = {}

    def keep(path: Path) -> None:
        if path.is_file():
            found[path.relative_to(root).as_posix()] = path.stat().st_size

    quiet = logging.getLogger(__name__)
    quiet.setLevel(logging.ERROR)
    excludes = [packaging._get_excludes(root, get_runtime_env_default_excludes())]
    packaging._dir_travel(root, excludes, keep, include_gitignore=True, logger=quiet)
    return found


def check_size(files: Mapping[str, int], directory: Path) -> None:
    """Refuse a directory that is too large for Ray, before it is packed.

    Raises:
        ConfigError: the message names the largest entries.
    """
    total = sum(files.values())
    if total < LIMIT_BYTES:
        return
    entries: dict[str, int] = {}
    for name, size in files.items():
        top, below, _ = name.partition("/")
        entries[top + below] = entries.get(top + below, 0) + size
    largest = sorted(entries.items(), key=lambda entry: -entry[1])[:NAMED]
    said = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in largest if size >= WORTH_NAMING * total)
    raise ConfigError(
        f"--working-dir {directory}: must pack to less than {LIMIT_BYTES // 2**20} MiB, is {total / 2**20:.0f} MiB; "
        f"largest: {said}; name them in .rayignore, and give the nodes such data by s3:// or a path of their own"
    )


def path_within(config_file: Path, directory: Path) -> str:
    """The config's path in the package.

    Raises:
        ConfigError: the config is not below the working directory.
    """
    try:
        return config_file.resolve().relative_to(directory.resolve()).as_posix()
    except ValueError:
        raise ConfigError(
            f"config {config_file}: must be in the working directory {directory}, which is all that the job gets; "
            "move it there, or give its directory by --working-dir"
        ) from None


def checked_config(
    config_file: Path, overrides: Sequence[str], config_path: str, files: Mapping[str, int], directory: Path
) -> RunConfig:
    """The config as the job will read it. Variables in paths are not expanded, because they are the job's.

    Args:
        config_file: its path on this machine.
        overrides: `key=value`, as for `load_config`.
        config_path: its path in the package.
        files: the files in the package.
        directory: the working directory that is packed.

    Raises:
        ConfigError: a mistake in the config, a relative path that is not in the package, or an output that would be
            deleted with the package.
    """
    data = read_config(config_file, overrides)
    section = data.get("dataset")
    names = section.get("classes") if isinstance(section, dict) else None
    if isinstance(names, str) and isinstance(section, dict):  # a file, which is read together with the config
        _check_packed([("dataset.classes", names)], files, directory)
        here = directory / names
        data["dataset"] = section | {"classes": str(here) if _is_packed_name(names) else None}
    config = parse_config(data, source=str(config_file))
    _check_names(config, config_path, files, directory)
    return config


def _check_names(config: RunConfig, config_path: str, files: Mapping[str, int], directory: Path) -> None:
    """Check that relative paths in the config are in the package, and the output is not."""
    place = config.output.uri
    if "://" not in place and not place.startswith("$") and not Path(place).is_absolute():
        raise ConfigError(
            f"output: {place} would be thrown away with the job's working directory; use s3://bucket/prefix, or the "
            "absolute path of a directory that all nodes share"
        )
    checkpoints: list[tuple[str, str]] = []
    for number, classifier in enumerate(config.classifiers):
        checkpoints.append((f"classifiers.{number}.checkpoint", classifier.checkpoint or ""))
        for member, checkpoint in enumerate(classifier.members):
            checkpoints.append((f"classifiers.{number}.members.{member}", checkpoint))
        if classifier.denoiser is not None:
            checkpoints.append((f"classifiers.{number}.denoiser.checkpoint", classifier.denoiser.checkpoint or ""))
    named = [("config", config_path), *checkpoints]
    for key, place in checkpoints:  # of a directory, a part may be left out
        named += [(key, f"{place}/{file}") for file in DIRECTORY_FILES if (directory / place / file).is_file()]
    if not config.dataset.download:
        named.append(("dataset.root", config.dataset.root or ""))
    _check_packed(named, files, directory)


def _is_packed_name(name: str) -> bool:
    """Whether a path is relative to the package; nodes resolve other paths themselves."""
    return bool(name) and not name.startswith(("/", "~")) and "://" not in name and "$" not in name


def _check_packed(named: Iterable[tuple[str, str]], files: Mapping[str, int], directory: Path) -> None:
    for key, name in named:
        if not _is_packed_name(name):
            continue
        path = Path(name).as_posix()
        if path not in files and not any(file.startswith(f"{path}/") for file in files):
            why = "is left out by .gitignore or .rayignore" if (directory / path).exists() else "is not there"
            raise ConfigError(
                f"{key}: {name} {why} in the working directory {directory}, which is all that the job gets; put it "
                "there, or name an s3:// object or an absolute path that every node has"
            )
