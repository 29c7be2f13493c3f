"""Which runs can be compared side by side: runs over one test set, or over the images that all have."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from drs_ray.errors import ConfigError
from drs_ray.published.imported_run import ImportedResult, ReportedRun
from drs_ray.results.tables import curve_table

COMMON_OPTION = "`drs-ray report --common`"
_IDS = "image ids"


def check_same_test_set(results: Sequence[ReportedRun]) -> None:
    """Refuse to compare runs over different images.

    Settings that an imported run does not state are not compared; its labels are compared, image by image.

    Raises:
        ConfigError: no runs, runs that differ in data set, split, preprocessing, content, image ids, labels or
        progress.
    """
    if not results:
        raise ConfigError("no runs to show: name at least one run (a directory or s3:// URI)")
    first = min(results, key=lambda result: isinstance(result, ImportedResult))  # imported runs have fewer settings
    there = _test_set(first)
    for other in results:
        if other.progress != first.progress:
            unfinished = other if other.progress is not None else first
            raise ConfigError(
                f"{unfinished.uri}: is not finished, so that it cannot be put side by side with another run: they have "
                "come to different images; report it on its own, or finish it"
            )
        here = _test_set(other)
        for what, ours in there.items():
            theirs = here.get(what, ours)
            if ours != theirs:
                detail = "" if isinstance(ours, bytes) else f": {_brief(ours)} there, {_brief(theirs)} here"
                remedy = f", or those images that all have with {COMMON_OPTION}" if what == _IDS else ""
                raise ConfigError(
                    f"{first.uri} and {other.uri}: certified on different test sets ({what} differ{detail}), so they "
                    f"cannot be put side by side; report each on its own{remedy}"
                )


def in_common(results: Sequence[ReportedRun]) -> list[ReportedRun]:
    """The runs reduced to the images that all of them have, each with its own number of images (`whole`).

    The choice depends only on ids, so every certificate and every guarantee stays valid. If all runs have the same
    images, they are returned unchanged.

    Raises:
        ConfigError: no runs, no common image, or runs that differ in more than their images.
    """
    ids = [result.certificates["image_id"].to_numpy() for result in results]
    common = functools.reduce(np.intersect1d, ids) if ids else np.array([])
    if all(len(own) == len(common) for own in ids):
        check_same_test_set(results)
        return list(results)
    if not len(common):
        raise ConfigError(f"{COMMON_OPTION}: there is no image that all {len(results)} have; report each on its own")
    cut = [_only(result, np.isin(own, common)) for result, own in zip(results, ids, strict=True)]
    check_same_test_set(cut)
    return cut


def _only(result: ReportedRun, which: NDArray[np.bool_]) -> ReportedRun:
    certificates = result.certificates.filter(pa.array(which))
    curve = curve_table(
        certificates,
        result.record.run_id,
        result.curve["radius"].to_numpy().tolist(),
        result.alpha,
        result.rule,
        failure_probability=result.failure_probability,
    )
    return replace(result, certificates=certificates, curve=curve, whole=result.images)


def _test_set(result: ReportedRun) -> dict[str, object]:
    """The facts that must be equal in runs side by side, as far as they are known."""
    ids = result.certificates["image_id"].to_numpy()
    order = np.argsort(ids, kind="stable")
    common: dict[str, object] = {
        _IDS: ids[order].tobytes(),
        "labels": result.certificates["label"].to_numpy()[order].tobytes(),
    }
    if isinstance(result, ImportedResult):
        return {"data set names": result.record.dataset, "splits": result.record.split, **common}
    config, dataset = result.record.config.dataset, result.record.dataset
    return {
        "data set names": result.record.dataset_name,
        "splits": config.split,
        "image sizes": config.image_size,
        "digests of the data": dataset.digest,
        **common,
    }


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."
