"""What of a working directory a submitted job gets: checked before anything is sent, and said in one line if wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env import packaging  # Ray has no public way to say what it would pack

from drs_ray.config import RunConfig, parse_config, read_config
from drs_ray.errors import ConfigError

LIMIT_BYTES = 100 * 2**20
"""Ray keeps packages in the head's memory and sends each as one message."""
NAMED, WORTH_NAMING = 3, 0.01
"""How many large entries a message names, and from which share of the whole on."""


def packed_files(directory: Path) -> dict[str, int]:
    """Files that Ray packs of a working directory, and their bytes: all but what .gitignore and .rayignore name.

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
    """Refuse what Ray would not take, before it is packed.

    Raises:
        ConfigError: naming the largest entries of the directory.
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
        ConfigError: it is not below the working directory.
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
    """The config as the job will find it: variables in paths are the job's, so they are left as they are.

    Args:
        config_file: where it is here.
        overrides: `key=value`, as for `load_config`.
        config_path: where it is in the package.
        files: what is in the package.
        directory: the working directory that is packed.

    Raises:
        ConfigError: a mistake in it, a relative path of it that is not in the package, or an output that would be
            thrown away with the package.
    """
    data = read_config(config_file, overrides)
    section = data.get("dataset")
    names = section.get("classes") if isinstance(section, dict) else None
    if isinstance(names, str) and isinstance(section, dict):  # a file, which is read where the config is
        _check_packed({"dataset.classes": names}, files, directory)
        here = directory / names
        data["dataset"] = section | {"classes": str(here) if _is_packed_name(names) else None}
    config = parse_config(data, source=str(config_file))
    _check_names(config, config_path, files, directory)
    return config


def _check_names(config: RunConfig, config_path: str, files: Mapping[str, int], directory: Path) -> None:
    """Whatever the config names by a relative path must be in the package, and results must not."""
    place = config.output.uri
    if "://" not in place and not place.startswith("$") and not Path(place).is_absolute():
        raise ConfigError(
            f"output: {place} would be thrown away with the job's working directory; use s3://bucket/prefix, or the "
            "absolute path of a directory that all nodes share"
        )
    named = {"config": config_path}
    for number, classifier in enumerate(config.classifiers):
        named[f"classifiers.{number}.checkpoint"] = classifier.checkpoint or ""
        if classifier.denoiser is not None:
            named[f"classifiers.{number}.denoiser.checkpoint"] = classifier.denoiser.checkpoint or ""
    if not config.dataset.download:
        named["dataset.root"] = config.dataset.root or ""
    _check_packed(named, files, directory)


def _is_packed_name(name: str) -> bool:
    """Whether a path means something in the package; any other a node finds by itself."""
    return bool(name) and not name.startswith(("/", "~")) and "://" not in name and "$" not in name


def _check_packed(named: Mapping[str, str], files: Mapping[str, int], directory: Path) -> None:
    for key, name in named.items():
        if not _is_packed_name(name):
            continue
        path = Path(name).as_posix()
        if path not in files and not any(file.startswith(f"{path}/") for file in files):
            why = "is left out by .gitignore or .rayignore" if (directory / path).exists() else "is not there"
            raise ConfigError(
                f"{key}: {name} {why} in the working directory {directory}, which is all that the job gets; put it "
                "there, or name an s3:// object or an absolute path that every node has"
            )
