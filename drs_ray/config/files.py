"""Reading a config: YAML files, `--set` overrides, mappings, and the JSON schema for editors."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from drs_ray.arguments import checked, shown, texts
from drs_ray.config.base import AS_READ
from drs_ray.config.dataset import DatasetConfig
from drs_ray.config.messages import short, validated
from drs_ray.config.run import RunConfig
from drs_ray.errors import ConfigError


@checked(overrides=texts)
def load_config(path: str | os.PathLike[str] | Mapping[str, Any], overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML file, apply `a.b=c` overrides (values are YAML), expand variables in paths, validate.

    Args:
        path: path of the file, or its content as a mapping.
        overrides: `key.path=value` each.

    Raises:
        ConfigError: naming the file, the key, the rule, the value and the remedy.
    """
    if isinstance(path, Mapping):
        return parse_config(apply_overrides(path, overrides))
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"a config must be the path of a YAML file, a mapping or a RunConfig, got {shown(path)}")
    return validated(RunConfig, read_config(Path(path), overrides), str(path), AS_READ)


def config_of(config: RunConfig | str | os.PathLike[str] | Mapping[str, Any]) -> RunConfig:
    """A RunConfig unchanged; anything else as loaded by `load_config`."""
    return config if isinstance(config, RunConfig) else load_config(config)


def load_dataset_config(path: str | Path, overrides: Iterable[str] = ()) -> DatasetConfig:
    """The section `dataset` of a YAML file, which need not have any other. Errors: see `load_config`."""
    return validated(_DatasetAlone, read_config(path, overrides), str(path), AS_READ).dataset


class _DatasetAlone(BaseModel):
    model_config = ConfigDict(extra="ignore")

    dataset: DatasetConfig


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A YAML file with `a.b=c` overrides, not validated. Errors: see `load_config`."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {file}: cannot be read ({error}); give the path of a YAML file") from error
    try:
        data = _read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"config {file}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"config {file}: must be a mapping of sections (dataset, partition, ...), got {short(data)}")
    return apply_overrides(data, overrides)


def parse_config(data: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Validate a mapping; `source` names it in messages. Variables in its paths are not expanded.

    Raises:
        ConfigError: one line per mistake.
    """
    return validated(RunConfig, data, source)


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `data` with each `a.b.0.c=value` set; the value is read as YAML (`null`, `[1, 2]`, `0.5`).

    Raises:
        ConfigError: an override that is not `key=value`, or whose path runs through a scalar or a missing entry.
    """
    result: dict[str, Any] = copy.deepcopy(dict(data))
    for override in overrides:
        path, separator, raw = override.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise ConfigError(f"--set {override}: must be key.path=value, for example --set budget.estimation=1000")
        try:
            value = _read_yaml(raw)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML; quote it") from error
        _set(result, keys, value, override)
    return result


def json_schema() -> str:
    """The JSON schema of the config file, for editors and validators."""
    return json.dumps(RunConfig.model_json_schema(), indent=2)


class _Loader(yaml.SafeLoader):
    """YAML, with 1e5 read as a number (YAML 1.1 requires 1.0e+5), and each alias (*name) a value of its own.

    Otherwise an override of one of two equal sections would change both.
    """

    def construct_object(self, node: yaml.Node, deep: bool = True) -> Any:
        value = super().construct_object(node, deep=True)
        self.constructed_objects.pop(node, None)
        return value


def _unique_keys(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Construct a mapping and refuse duplicate keys: PyYAML would silently take the last one."""
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_keys)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _set(target: Any, keys: Sequence[str], value: object, override: str) -> None:
    head, *rest = keys
    if isinstance(target, list):
        if not head.isdigit() or int(head) >= len(target):
            raise ConfigError(f"--set {override}: '{head}' must be an index below {len(target)}")
        index = int(head)
        if rest:
            _set(target[index], rest, value, override)
        else:
            target[index] = value
    elif isinstance(target, dict):
        if not rest:
            target[head] = value
            return
        if head == "output" and isinstance(target.get(head), str):
            target[head] = {"uri": target[head]}
        if target.get(head) is None:
            target[head] = {}
        _set(target[head], rest, value, override)
    else:
        raise ConfigError(f"--set {override}: '{head}' lies below a plain value ({short(target)}); check the path")
