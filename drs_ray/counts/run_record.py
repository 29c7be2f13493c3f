"""run.json, the record of a run: its identity, which is a hash of everything that changes a vote, and provenance."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from drs_ray.certificates.lattice import drawing_error
from drs_ray.certificates.rule import RULES_VERSION
from drs_ray.certificates.stages import LOOKS, Schedule, doubling_schedule
from drs_ray.config import CertificateConfig, ClassifierConfig, Precision, RunConfig, Section
from drs_ray.config.class_names import first_difference
from drs_ray.counts.schema import EXTENSION_KEY, IMPORTED, RUN_KEY, SCHEMA_VERSION, check_version
from drs_ray.errors import ConfigError, CountsError, MissingObjectError, counted
from drs_ray.storage import Store

_FIRST_RULES = 1  # version of the rules of runs whose record names none


class DatasetRecord(Section):
    """The loaded data set. image_shape: (C, H, W). size: number of images of the split.

    classes: names in order of class number; None if unknown, and in runs of earlier versions. name: the name of the
    data set, or of the source of a packed data set; None in runs of earlier versions, which had no packed data sets.
    """

    name: str | None = None
    digest: str
    num_classes: int
    classes: tuple[str, ...] | None = None
    image_shape: tuple[int, int, int]
    size: int | None = None


class RunRecord(Section):
    """The content of run.json: the resolved config, digests, and software and device of the first start.

    `config` has device and batch filled in. Units are ranges of `image_ids` in their order. `stopping` is the
    certificate section of the first start. It always decides the adaptive stages, also if a later start or reduction
    has another one. `rules` is the version of the rules by which `stopping` was read.
    """

    schema_version: int = SCHEMA_VERSION
    run_id: str
    created: str
    config: RunConfig
    dataset: DatasetRecord
    image_ids: tuple[int, ...]
    classifier_digests: tuple[str, ...]
    classifier_probes: tuple[tuple[float, ...], ...] = ()
    stopping: CertificateConfig
    rules: int = RULES_VERSION
    software: dict[str, str]
    hardware: str

    @property
    def dataset_name(self) -> str:
        """Name of the data set, also if the config only gives its format (parquet)."""
        return self.dataset.name or self.config.dataset.name

    @property
    def sub_images(self) -> int:
        """Number of sub-images K."""
        return self.config.partition.sub_images

    @property
    def precision(self) -> Precision:
        """Precision of the convolutions and matrix products of the classifiers.

        Raises:
            CountsError: the run was begun by an earlier version, whose votes this version does not repeat.
        """
        precision = self.config.engine.precision
        if precision == "auto":
            raise CountsError(
                f"run {self.run_id} was begun by an earlier version of drs-ray, whose votes this one does not repeat; "
                "reduce and report it as it is, count on with that version, or begin a new run elsewhere"
            )
        return precision

    @property
    def arithmetic(self) -> str:
        """Precision and compilation of the classifiers, in words."""
        engine = self.config.engine
        precision = "float32" if engine.precision == "auto" else engine.precision
        return f"{precision}, compiled" if engine.compile is True else precision

    @property
    def batch(self) -> int:
        """Samples of one forward pass."""
        return _resolved(self.config.engine.batch)

    @property
    def images_per_unit(self) -> int:
        """Images of one unit of work, known once the run has started."""
        return _resolved(self.config.engine.images_per_unit)

    def failure_probability(self, alpha: float) -> float:
        """Largest failure probability of a certificate: alpha, plus the drawing error of lattice noise (theory 7)."""
        return alpha + self.drawing_error(self.config.budget.planned or self.config.budget.estimation)

    def drawing_error(self, samples: int) -> float:
        """What drawing `samples` samples of an image adds to a failure probability (theory 7); 0 for Gaussian noise."""
        if self.config.noise.law != "lattice":
            return 0.0
        return drawing_error(self.config.sigmas, math.prod(self.dataset.image_shape), samples)

    @property
    def schedule(self) -> Schedule:
        """The stages of the budget: one for a fixed number of samples; `LOOKS` in each doubling for a fixed radius.

        On CUDA stages end at multiples of noise.block, because a block is drawn whole there.
        """
        budget, looks = self.config.budget, 1 if self.stopping.radius is None else LOOKS
        block = self.config.noise.block if self.config.engine.device == "cuda" else 1
        return _schedule(budget.planned or budget.estimation, budget.stages, looks, block, budget.estimation)


def _resolved(size: int | None) -> int:
    assert size is not None, "engine/description.py and engine/sizing.py choose sizes before a run starts"
    return size


@lru_cache(maxsize=16)
def _schedule(planned: int, stages: int, looks: int, block: int, end: int) -> Schedule:
    return doubling_schedule(planned, stages, looks=looks, block=block).up_to(end)  # cached: needed for every unit


def identity(
    config: RunConfig, dataset: DatasetRecord, image_ids: tuple[int, ...], classifier_digests: tuple[str, ...]
) -> dict[str, Any]:
    """Everything that changes a vote, as plain JSON data. Budgets, alpha and the engine's sizes are not in it."""
    return {
        "dataset": {
            "name": config.dataset.name,
            "split": config.dataset.split,
            "image_size": config.dataset.image_size,
            "digest": dataset.digest,
            "image_ids": list(image_ids),
        },
        # Without keys that are None, so that runs of earlier versions keep their ids.
        "partition": config.partition.model_dump(mode="json", exclude_none=True),
        "classifiers": [
            _classifier_identity(classifier) | {"weights_digest": digest}
            for classifier, digest in zip(config.classifiers, classifier_digests, strict=True)
        ],
        "noise": config.noise.model_dump(mode="json") | {"generator": _generator(config)},
        "batch": config.engine.batch,
        **_inference_identity(config),
    }


def _inference_identity(config: RunConfig) -> dict[str, Any]:
    """Precision and compilation; empty for a run of an earlier version without these keys, which keeps its id."""
    engine = config.engine
    return {} if engine.precision == "auto" else {"precision": engine.precision, "compile": engine.compile}


def _classifier_identity(classifier: ClassifierConfig) -> dict[str, Any]:
    """The classifier without the paths of checkpoints; the digest identifies their content."""
    same: dict[str, Any] = {
        "architecture": classifier.architecture,
        "arguments": classifier.arguments,
        "sigma": classifier.sigma,
    }
    if classifier.pixels is not None:  # runs without this key keep their ids
        same["pixels"] = classifier.pixels.record
    if classifier.members:
        same["members"] = len(classifier.members)
    if classifier.denoiser is not None:
        same["denoiser"] = classifier.denoiser.model_dump(mode="json", exclude={"checkpoint", "entry"})
    return same


def with_engine(record: RunRecord, **changes: object) -> RunRecord:
    """A record that is not stored yet, with other values in `engine` and the new run id."""
    config = record.config.updated("engine", **changes)
    same = identity(config, record.dataset, record.image_ids, record.classifier_digests)
    return record.model_copy(update={"config": config, "run_id": run_id(same)})


def run_id(run_identity: Mapping[str, Any]) -> str:
    """16 hex digits of the identity's SHA-256."""
    text = json.dumps(run_identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def create_or_join(store: Store, record: RunRecord) -> tuple[RunRecord, bool]:
    """Write run.json if there is none; if it holds the same run, join this run.

    A larger `budget.estimation` extends the run, but only if the stored `budget.planned` includes it.

    Returns:
        The run's record, and whether it was already stored (a resume). On a resume the sizes of units are the stored
        ones, because they name the parts; paths, workers and the certificate section are the caller's.

    Raises:
        ConfigError: the store holds another run, or this run with another budget (the message names the keys), or other
            rules decided the stages of an adaptive run.
    """
    data = record.model_dump_json(indent=1).encode()
    found = store.create(RUN_KEY, data)
    stored = _extended(parse_record(found, store.uri), store)
    if stored == record:
        return record, False
    if stored.rules != record.rules and len(stored.schedule.samples) > 1:
        raise ConfigError(
            f"output.uri: the stages of run {stored.run_id} in {store.uri} were decided by the certificate rules of "
            "another version of drs-ray: it can be reduced as it is, not continued; choose another output"
        )
    differences = list(_differences(_comparable(stored), _comparable(record)))
    classes = first_difference(stored.dataset.classes, record.dataset.classes)
    if classes is not None:
        differences.insert(0, f"dataset.classes: {classes}")
    if [difference.split(":")[0] for difference in differences] == ["budget.estimation"]:
        _extend(store, stored, record.config.budget.estimation)
    elif differences:
        raise ConfigError(
            f"output.uri: {store.uri} holds run {stored.run_id}, which is not this one ({_first_few(differences)}); "
            "choose another output, restore the config, or delete what is there"
        )
    sizes = stored.config.engine.model_dump(include={"images_per_unit", "samples_per_unit"})
    config = record.config.updated("engine", **sizes)
    return stored.model_copy(update={"config": config}), True


def stored_record(store: Store) -> RunRecord | None:
    """The record of the run in this store; None if there is none.

    Raises:
        CountsError: run.json is not the record of a run.
    """
    try:
        data = store.get(RUN_KEY)
    except MissingObjectError:
        return None
    return parse_record(data, store.uri)


def read_record(store: Store) -> RunRecord:
    """The record of the stored run, with its extension.

    Raises:
        CountsError: the store has no run, or its run.json cannot be read.
    """
    return _extended(parse_record(read_run_json(store), store.uri), store)


def read_run_json(store: Store) -> bytes:
    """The bytes of run.json, of a run or of an imported run.

    Raises:
        CountsError: the store has no run.
    """
    try:
        return store.get(RUN_KEY)
    except MissingObjectError as error:
        raise CountsError(
            f"{store.uri}: no drs-ray run here ({RUN_KEY} is missing); give the output.uri of a run"
        ) from error


def parse_record(data: bytes, uri: str) -> RunRecord:
    """run.json's bytes -> record.

    Raises:
        CountsError: not a record, of another version, or changed after it was written.
    """
    try:
        content = json.loads(data)
        check_version(content["schema_version"], f"{uri}/{RUN_KEY}")
        if content.get("kind") == IMPORTED:
            raise CountsError(
                f"{uri}: was imported from {content['source']}: there are no counts behind its radii, so it can be "
                "reported and exported, and nothing else; name a run of drs-ray's own"
            )
        record = RunRecord.model_validate({"rules": _FIRST_RULES} | content)
        same = identity(record.config, record.dataset, record.image_ids, record.classifier_digests)
        if record.config.engine.images_per_unit is None:
            raise ValueError("a run that has started has units")
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise CountsError(f"{uri}/{RUN_KEY}: not a drs-ray run record; choose another place or remove it") from error
    if run_id(same) != record.run_id:  # for example, another sigma would scale every radius
        raise CountsError(f"{uri}/{RUN_KEY}: was changed after it was written; restore it, or choose another output")
    return record


def _extend(store: Store, stored: RunRecord, estimation: int) -> None:
    """Store the extension of the run to a later planned stage."""
    budget = stored.config.budget
    if budget.planned is None or not budget.estimation < estimation <= budget.planned:
        raise ConfigError(
            f"budget.estimation: the run in {store.uri} has {budget.estimation} samples, got {estimation}; "
            "a run can only be extended to a later stage that its budget.planned foresaw, since certificates that "
            f"were seen have spent their alpha (planned: {budget.planned}); restore the budget or choose another "
            "output"
        )
    store.put(EXTENSION_KEY, json.dumps({"run_id": stored.run_id, "estimation": estimation}).encode())


def _extended(record: RunRecord, store: Store) -> RunRecord:
    """The record with the budget of its extension, if there is one."""
    try:
        extension = json.loads(store.get(EXTENSION_KEY))
        if extension["run_id"] != record.run_id:
            raise KeyError(record.run_id)
        config = record.config.updated("budget", estimation=extension["estimation"])
    except MissingObjectError:
        return record
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise CountsError(f"{store.uri}/{EXTENSION_KEY}: not an extension of this run; remove it") from error
    return record.model_copy(update={"config": config})


def _generator(config: RunConfig) -> str:
    """Name of the noise stream. Streams that give different noise for any key have different names."""
    on_cuda = config.engine.device == "cuda"
    if config.engine.precision == "auto":  # an earlier version, which used one name for both laws
        return "torch-philox" if on_cuda else "numpy-philox"
    if config.noise.law == "lattice":
        return "torch-philox-62" if on_cuda else "numpy-philox-16+46"
    return "torch-philox-float64" if on_cuda else "numpy-philox"


def _comparable(record: RunRecord) -> dict[str, Any]:
    same = identity(record.config, record.dataset, record.image_ids, record.classifier_digests)
    return same | {"budget": record.config.budget.model_dump(mode="json")}


def _differences(stored: Any, given: Any, path: str = "") -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in sorted(stored.keys() | given.keys()):
            yield from _differences(stored.get(key), given.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given) and len(stored) <= 16:
        for index, (old, new) in enumerate(zip(stored, given, strict=True)):
            yield from _differences(old, new, f"{path}.{index}")
    elif stored != given:
        yield f"{path}: {_brief(stored)} there, {_brief(given)} here"


def _first_few(differences: list[str]) -> str:
    more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
    return "; ".join(differences[:4]) + more


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return (
            f"[{', '.join(map(str, value[:3]))}{', ...' if len(value) > 3 else ''}] "
            f"({counted(len(value), 'entry', 'entries')})"
        )
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."
