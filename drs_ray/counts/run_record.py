"""run.json: what a run is. Its identity is a hash of all that changes a vote; the rest is provenance."""

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

_FIRST_RULES = 1  # of runs whose record does not name any


class DatasetRecord(Section):
    """What was loaded under the data set's name; image_shape is (C, H, W), size the number of images of the split.

    classes: names in order of class number; None where they are not known, and in runs of earlier versions. name: that
    of the source where the data set is a packed one; None in runs of earlier versions, which had none.
    """

    name: str | None = None
    digest: str
    num_classes: int
    classes: tuple[str, ...] | None = None
    image_shape: tuple[int, int, int]
    size: int | None = None


class RunRecord(Section):
    """The content of run.json: the resolved config, digests, and what software and device the first start had.

    `config` has device and batch filled in. `image_ids` are in the order in which units cut them. `stopping` is the
    certificate section of the first start: adaptive stages are decided by it for ever, whatever a later start or
    reduction asks for. `rules` is the version of the rules that it was read by.
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
        """What the images are, also where the config only says how they are stored (parquet)."""
        return self.dataset.name or self.config.dataset.name

    @property
    def sub_images(self) -> int:
        """Number of sub-images K."""
        return self.config.partition.sub_images

    @property
    def precision(self) -> Precision:
        """Of the convolutions and matrix products of the classifiers that vote.

        Raises:
            CountsError: the run was begun by an earlier version, whose votes this one does not repeat.
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
        """How the classifiers that vote compute their logits, in words."""
        engine = self.config.engine
        precision = "float32" if engine.precision == "auto" else engine.precision
        return f"{precision}, compiled" if engine.compile is True else precision

    @property
    def batch(self) -> int:
        """Samples of one forward pass."""
        return _resolved(self.config.engine.batch)

    @property
    def images_per_unit(self) -> int:
        """Images of one unit of work."""
        return _resolved(self.config.engine.images_per_unit)

    def failure_probability(self, alpha: float) -> float:
        """What one certificate fails with at most: alpha, and with lattice noise what its drawing adds (theory 7)."""
        return alpha + self.drawing_error(self.config.budget.planned or self.config.budget.estimation)

    def drawing_error(self, samples: int) -> float:
        """What drawing so many samples of an image adds to a failure probability (theory 7); 0 for Gaussian noise."""
        if self.config.noise.law != "lattice":
            return 0.0
        return drawing_error(self.config.sigmas, math.prod(self.dataset.image_shape), samples)

    @property
    def schedule(self) -> Schedule:
        """The stages of the budget; one stage for a fixed number of samples. Finer where one radius is asked for.

        On CUDA they end at multiples of noise.block, because a block is drawn whole there.
        """
        budget, looks = self.config.budget, 1 if self.stopping.radius is None else LOOKS
        block = self.config.noise.block if self.config.engine.device == "cuda" else 1
        return _schedule(budget.planned or budget.estimation, budget.stages, looks, block, budget.estimation)


def _resolved(size: int | None) -> int:
    assert size is not None, "engine/description.py and engine/sizing.py choose sizes before a run starts"
    return size


@lru_cache(maxsize=16)
def _schedule(planned: int, stages: int, looks: int, block: int, end: int) -> Schedule:
    return doubling_schedule(planned, stages, looks=looks, block=block).up_to(end)  # asked for with every unit of a run


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
        # Without what is None: so runs of earlier versions keep their ids.
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
    """How logits are computed; nothing for a run of an earlier version, which had no choice and keeps its id."""
    engine = config.engine
    return {} if engine.precision == "auto" else {"precision": engine.precision, "compile": engine.compile}


def _classifier_identity(classifier: ClassifierConfig) -> dict[str, Any]:
    """Without the paths of checkpoints: the digest says what was in them."""
    same: dict[str, Any] = {
        "architecture": classifier.architecture,
        "arguments": classifier.arguments,
        "sigma": classifier.sigma,
    }
    if classifier.pixels is not None:  # runs without them keep their ids
        same["pixels"] = classifier.pixels.record
    if classifier.denoiser is not None:
        same["denoiser"] = classifier.denoiser.model_dump(mode="json", exclude={"checkpoint", "entry"})
    return same


def with_engine(record: RunRecord, **changes: object) -> RunRecord:
    """The record of a run that is not stored yet with other values in `engine`, and the id that goes with them."""
    config = record.config.updated("engine", **changes)
    same = identity(config, record.dataset, record.image_ids, record.classifier_digests)
    return record.model_copy(update={"config": config, "run_id": run_id(same)})


def run_id(run_identity: Mapping[str, Any]) -> str:
    """16 hex digits of the identity's SHA-256."""
    text = json.dumps(run_identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def create_or_join(store: Store, record: RunRecord) -> tuple[RunRecord, bool]:
    """Write run.json unless it is there; if it is there and is the same run, join it.

    A larger `budget.estimation` extends the run, exactly where the stored stages were planned for it.

    Returns:
        The record in force, and whether it was there before (a resume). On a resume the sizes of units are the stored
        ones, for they name the parts; paths, workers and the certificate section are the caller's.

    Raises:
        ConfigError: the place holds another run, or the same with another budget; the differing keys are named. An
            adaptive run whose stages other rules decided.
    """
    data = record.model_dump_json(indent=1).encode()
    stored = store.create(RUN_KEY, data)
    there = _extended(parse_record(stored, store.uri), store)
    if there == record:
        return record, False
    if there.rules != record.rules and len(there.schedule.samples) > 1:
        raise ConfigError(
            f"output.uri: the stages of run {there.run_id} in {store.uri} were decided by the certificate rules of "
            "another version of drs-ray: it can be reduced as it is, not continued; choose another output"
        )
    differences = list(_differences(_comparable(there), _comparable(record)))
    classes = first_difference(there.dataset.classes, record.dataset.classes)
    if classes is not None:
        differences.insert(0, f"dataset.classes: {classes}")
    if [difference.split(":")[0] for difference in differences] == ["budget.estimation"]:
        _extend(store, there, record.config.budget.estimation)
    elif differences:
        raise ConfigError(
            f"output.uri: {store.uri} holds run {there.run_id}, which is not this one ({_first_few(differences)}); "
            "choose another output, restore the config, or delete what is there"
        )
    sizes = there.config.engine.model_dump(include={"images_per_unit", "samples_per_unit"})
    config = record.config.updated("engine", **sizes)
    return there.model_copy(update={"config": config}), True


def stored_record(store: Store) -> RunRecord | None:
    """The record of the run that has started in this place; None where none has.

    Raises:
        CountsError: something else lies where its run.json would.
    """
    try:
        data = store.get(RUN_KEY)
    except MissingObjectError:
        return None
    return parse_record(data, store.uri)


def read_record(store: Store) -> RunRecord:
    """The record of the run that is stored there.

    Raises:
        CountsError: no run is there, or its run.json cannot be read.
    """
    return _extended(parse_record(read_run_json(store), store.uri), store)


def read_run_json(store: Store) -> bytes:
    """run.json as it is stored, of a run or of an imported one.

    Raises:
        CountsError: no run is there.
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
        CountsError: not a record, one of another version, or one whose contents are not those it was made with.
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
    if run_id(same) != record.run_id:  # another sigma, for one, would scale every radius
        raise CountsError(f"{uri}/{RUN_KEY}: was changed after it was written; restore it, or choose another output")
    return record


def _extend(store: Store, there: RunRecord, estimation: int) -> None:
    """Note that the run goes on to a later one of its planned stages."""
    budget = there.config.budget
    if budget.planned is None or not budget.estimation < estimation <= budget.planned:
        raise ConfigError(
            f"budget.estimation: the run in {store.uri} has {budget.estimation} samples, got {estimation}; "
            "a run can only be extended to a later stage that its budget.planned foresaw, since certificates that "
            f"were seen have spent their alpha (planned: {budget.planned}); restore the budget or choose another "
            "output"
        )
    store.put(EXTENSION_KEY, json.dumps({"run_id": there.run_id, "estimation": estimation}).encode())


def _extended(record: RunRecord, store: Store) -> RunRecord:
    """The record with the budget that it was extended to, if it was."""
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
    """Name of the stream that noise keys mean: another name whenever one of them means other noise."""
    on_cuda = config.engine.device == "cuda"
    if config.engine.precision == "auto":  # of an earlier version, which had one name for both laws
        return "torch-philox" if on_cuda else "numpy-philox"
    if config.noise.law == "lattice":
        return "torch-philox-62" if on_cuda else "numpy-philox-16+46"
    return "torch-philox-float64" if on_cuda else "numpy-philox"


def _comparable(record: RunRecord) -> dict[str, Any]:
    same = identity(record.config, record.dataset, record.image_ids, record.classifier_digests)
    return same | {"budget": record.config.budget.model_dump(mode="json")}


def _differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            yield from _differences(there.get(key), here.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here) and len(there) <= 16:
        for index, (old, new) in enumerate(zip(there, here, strict=True)):
            yield from _differences(old, new, f"{path}.{index}")
    elif there != here:
        yield f"{path}: {_brief(there)} there, {_brief(here)} here"


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
