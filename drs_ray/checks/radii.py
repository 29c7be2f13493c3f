"""Audit of a run: derives its certificates again from its counts, which are read as docs/results.md describes them."""

from __future__ import annotations

import io
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drs_ray.counts.schema import CERTIFICATES_KEY, COMPACTED_PREFIX, COUNTS_PREFIX, EXTENSION_KEY, RUN_KEY
from drs_ray.errors import ConfigError, CountsError, MissingObjectError, SoundnessError
from drs_ray.storage import Store, open_store

FAR_BELOW = 1e-6
"""A stored radius below the documented one by more than this share gives a warning: it is sound, but too small."""
_NAMED = 10


@dataclass(frozen=True)
class AuditReport:
    """The findings of an audit.

    images, certified: number of images, and of those with a radius > 0. rule, alpha: of the certificates. too_large: by
    image id, why its radius is not proved. inconsistent: by image id, what else of its row does not follow from the
    counts. far_below: by image id, a radius that is smaller than necessary. closest: the least difference between the
    exact formula's proved value and a stored radius, pixel units; None if nothing is certified.
    """

    uri: str
    run_id: str
    images: int
    certified: int
    rule: str
    alpha: float
    too_large: Mapping[int, str]
    inconsistent: Mapping[int, str]
    far_below: Mapping[int, str]
    closest: float | None

    def check(self) -> None:
        """Raise unless every radius is proved and every row follows from the counts.

        Raises:
            SoundnessError: naming the images.
        """
        for found, what in (
            (self.too_large, "radii are above what the counts prove"),
            (self.inconsistent, "rows do not follow from the counts"),
        ):
            if found:
                first, why = next(iter(found.items()))
                named = ", ".join(map(str, list(found)[:_NAMED])) + (", ..." if len(found) > _NAMED else "")
                raise SoundnessError(
                    f"{self.uri}: {len(found):,} of {self.images:,} {what}: images {named}; first image {first}: "
                    f"{why}; find out who changed counts or {CERTIFICATES_KEY} before you trust the run, then "
                    "`drs-ray certify` with its config computes counts that are missing, and certificates again"
                )


@dataclass
class _Image:
    """Votes of one image by phase and sub-image: lists of (first sample, samples, votes)."""

    label: int
    rows: dict[tuple[str, int], list[tuple[int, int, dict[int, int]]]]

    def votes(self, phase: str, sub_image: int, end: int) -> dict[int, int]:
        """Votes of all rows that end at or before `end`, without classes that have none."""
        summed: dict[int, int] = defaultdict(int)
        for first, samples, votes in self.rows[phase, sub_image]:
            if first + samples <= end:
                for class_, count in votes.items():
                    summed[class_] += count
        return {class_: count for class_, count in summed.items() if count}

    def drawn(self, phase: str, sub_image: int) -> int:
        """Samples of a phase; its rows must follow each other without gaps from 0 on, with one vote per sample."""
        end = 0
        for first, samples, votes in sorted(self.rows.get((phase, sub_image), []), key=lambda row: row[0]):
            if first != end or samples < 1 or sum(votes.values()) != samples or min(votes.values()) < 0:
                raise ValueError(f"{phase} votes of sub-image {sub_image} do not add up at sample {end}")
            end += samples
        return end


def audit(uri: str | os.PathLike[str] | Store, *, endpoint_url: str | None = None) -> AuditReport:
    """Derive every radius of a reduced run again from its counts, in ball arithmetic; `check()` the report.

    Nothing is written.

    Args:
        uri: directory (text or a Path), s3:// URI or store of a reduced run.
        endpoint_url: endpoint of an S3-compatible server, if not the default.

    Raises:
        ConfigError: python-flint is missing. CountsError: no reduced run of drs-ray, or unreadable files.
    """
    try:
        from drs_ray.checks.balls import SLACK, AuditedRule, StageVotes, radius_lower
    except ModuleNotFoundError as error:
        if error.name != "flint":
            raise
        raise ConfigError("audit: needs python-flint; install it with `pip install drs-ray[audit]`") from error

    store = open_store(uri, endpoint_url)
    run = _run_json(store)
    config, classes = run["config"], run["dataset"]["num_classes"]
    sigmas = [classifier["sigma"] for classifier in config["classifiers"]]
    schedule = _schedule(config["budget"])
    again = f"write it again with `drs-ray reduce {store.uri}`"
    table = _table(store, CERTIFICATES_KEY, f"run `drs-ray reduce {store.uri}` first", again)
    metadata = table.schema.metadata or {}
    if metadata.get(b"drs_ray.run_id", b"").decode() != run["run_id"]:
        raise CountsError(f"{store.uri}/{CERTIFICATES_KEY}: not of run {run['run_id']}; {again}")
    name = metadata.get(b"drs_ray.rule", b"").decode()
    try:
        rule = AuditedRule.named(name, sigmas)
        rows = table.to_pylist()
        alpha = rows[0]["alpha"]
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is {alpha}, not in (0, 1)")
    except (ValueError, IndexError, KeyError) as error:
        raise CountsError(f"{store.uri}/{CERTIFICATES_KEY}: cannot be audited: {error}; {again}") from error
    images = _images(store, run["run_id"])
    if sorted(row["image_id"] for row in rows) != sorted(run["image_ids"]) or images.keys() != set(run["image_ids"]):
        raise CountsError(
            f"{store.uri}: run.json, counts and certificates are not of the same images; `drs-ray certify` with "
            "the run's config computes counts that are missing, and certificates again"
        )

    too_large: dict[int, str] = {}
    inconsistent: dict[int, str] = {}
    far_below: dict[int, str] = {}
    slacks: list[float] = []
    for row in rows:
        image_id, image = row["image_id"], images[row["image_id"]]
        try:
            drawn, selected = _drawn(image, len(sigmas), config["budget"]["selection"], schedule, classes)
        except ValueError as error:
            inconsistent[image_id] = str(error)
            continue
        selection = [image.votes("selection", k, config["budget"]["selection"]) for k in range(len(sigmas))]
        unanimous = all(votes.keys() <= {selected} for votes in selection)
        exact = []  # by stage reached (5.7)
        for end, share in schedule:
            if end <= drawn:
                votes = tuple(image.votes("estimation", k, end) for k in range(len(sigmas)))
                ball = radius_lower(rule, StageVotes(votes, end, share), selected, classes, alpha, unanimous)
                exact.append(ball.lower())
        proved = max(exact)
        documented = float(proved) - SLACK * rule.scale
        stored = row["radius"]
        arithmetic = (1e-11 + 1e-18 * drawn) * rule.scale  # double precision in the bounds, theory 5.2
        if not (stored >= 0 and proved >= stored):
            too_large[image_id] = f"radius {stored!r}, proved is {float(proved)!r}"
        elif stored > max(documented, 0.0) + arithmetic:
            too_large[image_id] = f"radius {stored!r}, after the slack of theory 5.2 it is {documented!r}"
        elif stored < documented * (1 - FAR_BELOW) - arithmetic:
            far_below[image_id] = f"radius {stored!r}, the counts give {documented!r}"
        if stored > 0:
            slacks.append(float(proved - stored))
        at = schedule[row["stage"]][0] if 0 <= row["stage"] < len(schedule) else -1
        problem = _row_problem(row, image, selected, drawn, at, alpha, _name(name, unanimous), len(sigmas))
        if problem:
            inconsistent[image_id] = problem
    return AuditReport(
        uri=store.uri,
        run_id=run["run_id"],
        images=len(rows),
        certified=sum(row["radius"] > 0 for row in rows),
        rule=name,
        alpha=alpha,
        too_large=too_large,
        inconsistent=inconsistent,
        far_below=far_below,
        closest=min(slacks, default=None),
    )


def _drawn(
    image: _Image, sub_images: int, selection: int, schedule: list[tuple[int, Fraction]], classes: int
) -> tuple[int, int]:
    """Estimation samples of each sub-image of an image, and the class that its selection votes choose.

    Raises:
        ValueError: rows that do not add up, or numbers of samples that are not planned.
    """
    if {image.drawn("selection", k) for k in range(sub_images)} != {selection}:
        raise ValueError(f"not {selection} selection votes in every sub-image")
    ends = {image.drawn("estimation", k) for k in range(sub_images)}
    if len(ends) > 1 or not ends <= {end for end, _ in schedule}:
        raise ValueError(f"estimation votes end at {sorted(ends)}, which is not where a stage ends")
    if any(not 0 <= c < classes for rows in image.rows.values() for _, _, votes in rows for c in votes):
        raise ValueError(f"votes for a class outside 0..{classes - 1}")
    total: dict[int, int] = defaultdict(int)
    for k in range(sub_images):
        for class_, count in image.votes("selection", k, selection).items():
            total[class_] += count
    return ends.pop(), min(total, key=lambda class_: (-total[class_], class_))  # the smallest number on a tie


def _row_problem(
    row: Mapping[str, Any], image: _Image, selected: int, drawn: int, at: int, alpha: float, name: str, sub_images: int
) -> str | None:
    """The first column of a certificate, except radius and bounds, that does not follow from the counts."""
    prediction = selected if row["radius"] > 0 else -1
    votes = [image.votes("estimation", k, at) for k in range(sub_images)]
    drawn_in_all = sum(samples for rows in image.rows.values() for _, samples, _ in rows)
    expected = {
        "label": image.label,
        "selected_class": selected,
        "prediction": prediction,
        "correct": prediction == image.label,
        "alpha": alpha,
        "rule": name,
        "samples": drawn_in_all,
        "estimation_samples": [at] * sub_images,
        "class_votes": [mine.get(selected, 0) for mine in votes],
        "runner_up_votes": [mine.get(row["runner_up"], 0) for mine in votes],
    }
    if not 0 < at <= drawn:
        return f"stage is {row['stage']}, which the image has not reached"
    wrong = [column for column, value in expected.items() if row[column] != value]
    return f"{wrong[0]} is {row[wrong[0]]!r}, the counts give {expected[wrong[0]]!r}" if wrong else None


def _name(rule: str, unanimous: bool) -> str:
    return rule if unanimous else rule.removesuffix(" with pooled")


def _schedule(budget: Mapping[str, Any]) -> list[tuple[int, Fraction]]:
    """(n_j, w_j) of every stage up to the budget's end (docs/results.md, theory 5.7)."""
    planned, stages = budget["planned"] or budget["estimation"], budget["stages"]
    if stages == 1:
        return [(planned, Fraction(1))]
    ends = [-(-planned // 2 ** (stages - 1 - j)) for j in range(stages)]
    shares = [Fraction(1, 5 * (stages - 1))] * (stages - 1) + [Fraction(4, 5)]
    return [pair for pair in zip(ends, shares, strict=True) if pair[0] <= budget["estimation"]]


def _run_json(store: Store) -> dict[str, Any]:
    """run.json, with the budget that the run was extended to."""
    try:
        run: dict[str, Any] = json.loads(store.get(RUN_KEY))
        if "kind" in run:
            raise CountsError(f"{store.uri}: an imported run has no counts to audit; name a run of drs-ray's own")
        try:
            extension = json.loads(store.get(EXTENSION_KEY))
            if extension["run_id"] != run["run_id"]:
                raise ValueError(f"{EXTENSION_KEY} is of another run")
            run["config"]["budget"]["estimation"] = extension["estimation"]
        except MissingObjectError:
            pass
        _ = run["run_id"], run["image_ids"], run["config"]["classifiers"], run["dataset"]["num_classes"]
    except MissingObjectError as error:
        raise CountsError(
            f"{store.uri}: no drs-ray run here ({RUN_KEY} is missing); give the output of a run"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CountsError(f"{store.uri}/{RUN_KEY}: not a drs-ray run record; choose another place") from error
    return run


def _table(store: Store, key: str, missing: str, damaged: str) -> pa.Table:
    try:
        return pq.ParquetFile(io.BytesIO(store.get(key))).read(use_threads=False)
    except MissingObjectError as error:
        raise CountsError(f"{store.uri}/{key}: not there; {missing}") from error
    except (pa.ArrowException, OSError) as error:
        raise CountsError(f"{store.uri}/{key}: truncated or not Parquet; {damaged}") from error


def _unit_tables(store: Store, run_id: str) -> Iterator[pa.Table]:
    """The rows of every unit once: from a compacted object, if there is one, else from its part (docs/results.md)."""
    keys = [item.key for item in store.list(COUNTS_PREFIX)]
    seen: set[str] = set()
    for key in sorted(keys, key=lambda key: not key.startswith(COMPACTED_PREFIX)):
        if key in seen or not key.endswith(".parquet"):
            continue
        moved = f"`drs-ray repair {store.uri}` moves it aside, then `drs-ray certify` computes it again"
        table = _table(store, key, "it went while it was read; audit when no compactor is at work", moved)
        metadata = table.schema.metadata or {}
        if metadata.get(b"drs_ray.run_id", b"").decode() != run_id:
            raise CountsError(f"{store.uri}/{key}: not of run {run_id}; {moved}")
        first = 0
        for unit, count, _ in json.loads(metadata.get(b"drs_ray.units", json.dumps([[key, len(table), ""]]))):
            if unit not in seen:
                seen.add(unit)
                yield table.slice(first, count)
            first += count


def _images(store: Store, run_id: str) -> dict[int, _Image]:
    """All counts of a run, by image id."""
    images: dict[int, _Image] = {}
    columns = ("image_id", "label", "sub_image", "phase", "first_sample", "samples", "votes")
    for table in _unit_tables(store, run_id):
        try:
            values = [table[name].to_pylist() for name in columns]
        except KeyError as error:
            raise CountsError(
                f"{store.uri}: not a counts table: {error}; `drs-ray repair {store.uri}` moves it aside, "
                "then `drs-ray certify` computes it again"
            ) from error
        for image_id, label, sub_image, phase, first, samples, votes in zip(*values, strict=True):
            image = images.setdefault(image_id, _Image(label, defaultdict(list)))
            if image.label != label:
                raise CountsError(f"{store.uri}: image {image_id} has labels {image.label} and {label}")
            image.rows[phase, sub_image].append((first, samples, dict(votes)))
    return images
