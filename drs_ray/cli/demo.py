"""`drs-ray demo`: compares RS and DRS on real digits, with only the packages of the `demo` extra.

DRS has two columns from the same counts, by the best rule and by the plain rule, to show what the rule gains. The
configs are written next to the results, so that the demo's runs can be continued, changed and run by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from drs_ray.cli.progress import train_with_progress
from drs_ray.cli.run_display import ConsoleObserver
from drs_ray.config import parse_config
from drs_ray.counts.history import read_counts
from drs_ray.engine.opening import open_executor
from drs_ray.engine.run import complete_run
from drs_ray.errors import ConfigError
from drs_ray.report.columns import Columns, columns_of
from drs_ray.report.page import write_report
from drs_ray.report.thumbnails import thumbnails
from drs_ray.results.reduce import reduce_history
from drs_ray.storage import open_store

TOTAL_SIGMA = 1.0
"""Sigma of RS in pixel units. DRS has sigma / sqrt(2) on each half: equal vote probabilities give equal radii."""


@dataclass(frozen=True)
class _Method:
    """One run of the demo. compare_rules: whether it has a column of the plain rule too."""

    name: str
    partition: str
    sigmas: tuple[float, ...]
    compare_rules: bool


_METHODS = (
    _Method("rs", "none", (TOTAL_SIGMA,), compare_rules=False),
    _Method("drs", "checkerboard", (TOTAL_SIGMA / 2**0.5, TOTAL_SIGMA / 2**0.5), compare_rules=True),
)


def run_demo(
    directory: Path, images: int, samples: int, address: str, console: Console, quiet: bool
) -> tuple[Columns, str]:
    """Train the classifiers that have no checkpoint yet, certify both methods, write the report.

    Returns:
        The columns (RS, DRS by the plain rule, DRS) and the path of the report.
    """
    contents = [_content(method, directory, images, samples, address) for method in _METHODS]
    configs = [parse_config(content, source="drs-ray demo") for content in contents]
    columns = Columns()
    with open_executor(configs[0].engine) as executor:
        for method, content, config in zip(_METHODS, contents, configs, strict=True):
            if not all(Path(str(classifier.checkpoint)).exists() for classifier in config.classifiers):
                train_with_progress(config, console, quiet)
            with ConsoleObserver(console, f"certify {method.name}", quiet) as observer:
                try:
                    store, record = complete_run(config, observer, executor)
                except ConfigError as error:
                    raise ConfigError(f"{error}; for a demo with other options, give another --directory") from error
                observer.step("reducing")
                history = read_counts(store, record)  # once, for certificates and report
                result = reduce_history(store, history, record, config.certificate)
                columns += columns_of(result, history, compare_rules=method.compare_rules)
            text = yaml.safe_dump(content, sort_keys=False)
            (directory / f"{method.name}.yaml").write_text(text, encoding="utf-8")
    target = open_store(str(directory))
    write_report(columns, target, thumbnails)
    return columns, f"{target.uri}/report.html"


def _content(method: _Method, directory: Path, images: int, samples: int, address: str) -> dict[str, object]:
    """The config of one method."""
    return {
        "dataset": {"name": "mnist5k", "images": {"stop": images}},
        "partition": {"name": method.partition},
        "classifiers": [
            {
                "architecture": "digits-cnn",
                "checkpoint": str(directory / "classifiers" / f"{method.name}-{index}.safetensors"),
                "sigma": sigma,
            }
            for index, sigma in enumerate(method.sigmas)
        ],
        "budget": {"estimation": samples},
        "engine": {"address": address},
        "output": str(directory / method.name),
    }
