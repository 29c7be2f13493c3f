"""Small reduced runs from synthetic votes, and a store in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from drs_ray.certificates.rule import Rule
from drs_ray.config import CertificateConfig, parse_config
from drs_ray.counts.encoding import CountsRow, decode_parts, encode_part
from drs_ray.counts.history import Counts, CountsHistory, assemble
from drs_ray.counts.rows import rows_of
from drs_ray.counts.run_record import DatasetRecord, RunRecord, identity, run_id
from drs_ray.errors import MissingObjectError
from drs_ray.results.reduce import RunResult, certify_counts, reduce_history
from drs_ray.results.selected_votes import open_images
from drs_ray.results.tables import curve_table
from drs_ray.storage import StoredObject

CLASSES = 10
PART_KEY = "counts/p.parquet"
RADII = (0.0, 0.25, 0.5, 0.75, 1.0)


class MemoryStore:
    """The store's protocol over a dict."""

    def __init__(self, uri: str = "memory") -> None:
        self.uri = uri
        self.objects: dict[str, bytes] = {}

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise MissingObjectError(f"{self.uri}/{key}: not found")
        return self.objects[key]

    def get_range(self, key: str, first: int, size: int) -> bytes:
        return self.get(key)[first : first + size]

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def create(self, key: str, data: bytes) -> bytes:
        return self.objects.setdefault(key, data)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        for key, data in sorted(self.objects.items()):
            if key.startswith(prefix):
                yield StoredObject(key, len(data), 0.0)

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def check_writable(self) -> None:
        pass


def make_record(
    images: int = 40,
    sub_images: int = 1,
    *,
    sigma: float = 0.5,
    estimation: int = 1000,
    first_id: int = 0,
    digest: str = "d" * 64,
    root: str | None = None,
    name: str = "mnist5k",
    split: str = "test",
    radii: Sequence[float] = RADII,
    uri: str = "runs/demo",
) -> RunRecord:
    classifier = {"architecture": "small-cnn", "checkpoint": "weights.safetensors", "sigma": sigma}
    data: dict[str, Any] = {
        "dataset": {"name": name, "root": root, "split": split},
        "partition": {"name": "none" if sub_images == 1 else "checkerboard"},
        "classifiers": [classifier] * sub_images,
        "budget": {"selection": 100, "estimation": estimation},
        "engine": {"batch": 100, "device": "cpu", "precision": "float32", "images_per_unit": 16},
        "certificate": {"radii": list(radii)},
        "output": uri,
    }
    config = parse_config(data)
    dataset = DatasetRecord(digest=digest, num_classes=CLASSES, image_shape=(1, 28, 28))
    ids = tuple(range(first_id, first_id + images))
    digests = tuple(f"{k}" * 64 for k in range(sub_images))
    return RunRecord(
        run_id=run_id(identity(config, dataset, ids, digests)),
        created="2026-01-02T03:04:05+00:00",
        config=config,
        dataset=dataset,
        image_ids=ids,
        classifier_digests=digests,
        stopping=config.certificate,
        software={"drs-ray": "0.1.0", "numpy": "2.0"},
        hardware="2 CPU cores",
    )


def make_counts(record: RunRecord, seed: int = 0, hardest: float = 0.3) -> Counts:
    """Votes for the label with a probability between `hardest` and 1 by image; the other votes go to one rival."""
    rng = np.random.default_rng(seed)
    images = len(record.image_ids)
    labels = np.asarray(record.image_ids) * 7 % CLASSES  # of the images, whatever the votes
    probability = np.sort(rng.uniform(hardest, 1.0, images))[::-1]

    def votes(samples: int) -> csr_array:
        dense = np.zeros((images, CLASSES), np.int64)
        own = rng.binomial(samples, probability)
        dense[np.arange(images), labels] = own
        dense[np.arange(images), (labels + 1) % CLASSES] = samples - own
        return csr_array(dense)

    budget, k = record.config.budget, record.sub_images
    return Counts(
        np.asarray(record.image_ids, np.int64),
        labels.astype(np.int64),
        selection=tuple(votes(budget.selection) for _ in range(k)),
        estimation=tuple(votes(budget.estimation) for _ in range(k)),
    )


def make_part(record: RunRecord, ends: Sequence[int], drawn: Sequence[int] | None = None, seed: int = 0) -> bytes:
    """One part with all the run's rows, cut at `ends`; drawn: estimation samples of each image, its last row's end.

    Labels are image ids modulo CLASSES; votes go to the label and to two rivals.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for position, image_id in enumerate(record.image_ids):
        label = image_id % CLASSES
        share = np.zeros(CLASSES)
        share[[label, (label + 1) % CLASSES, (label + 2) % CLASSES]] = rng.dirichlet([6.0, 0.7, 0.2])
        last = ends[-1] if drawn is None else drawn[position]
        for k in range(record.sub_images):
            selection = record.config.budget.selection
            rows.append(CountsRow(image_id, label, k, "selection", 0, 0, selection, rng.multinomial(selection, share)))
            for first, end in itertools.pairwise([0, *ends]):
                votes = rng.multinomial(end - first, share)  # drawn in any case: an image's votes are always the same
                if end <= last:
                    rows.append(CountsRow(image_id, label, k, "estimation", 0, first, end - first, votes))
    return encode_part(rows, record.run_id, PART_KEY)


def make_history(
    record: RunRecord, ends: Sequence[int], drawn: Sequence[int] | None = None, seed: int = 0
) -> CountsHistory:
    """The votes of `make_part`."""
    part = decode_part(make_part(record, ends, drawn, seed), PART_KEY, record.run_id, CLASSES)
    return assemble(rows_of(part), record, record.image_ids)


def make_result(
    images: int = 40,
    sub_images: int = 1,
    *,
    alpha: float = 0.001,
    seed: int = 0,
    hardest: float = 0.3,
    **record_values: Any,
) -> RunResult:
    """A reduced run with real certificates of synthetic votes; see `make_record` for the other arguments."""
    record = make_record(images, sub_images, **record_values)
    certificates = certify_counts(make_counts(record, seed, hardest), record, Rule(), alpha)
    return result_of(record, certificates, alpha)


def result_of(record: RunRecord, certificates: pa.Table, alpha: float = 0.001) -> RunResult:
    """The result with the curve that belongs to the certificates."""
    curve = curve_table(certificates, record.run_id, record.config.certificate.radii, alpha, "as in certificates")
    return RunResult(record.config.output.uri, record, certificates, curve)


def with_radii(result: RunResult, radius: Sequence[float]) -> RunResult:
    """The same run with these radii, every image correct where its radius is > 0."""
    values = np.asarray(radius, np.float64)
    table = result.certificates
    label = table["label"].to_numpy()
    prediction = np.where(values > 0, label, -1)
    for name, column in {"radius": values, "prediction": prediction, "correct": values > 0}.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(column, table.schema.field(at).type))
    return result_of(result.record, table, result.alpha)


def reduced(record: RunRecord, history: CountsHistory, **certificate: object) -> RunResult:
    """A run reduced from its counts, under some other keys of the certificate section."""
    config = CertificateConfig.model_validate(record.config.certificate.model_dump() | certificate)
    return reduce_history(MemoryStore(record.config.output.uri), history, record, config)


def adaptive(images: int = 60, samples: int = 800, stages: int = 4) -> tuple[RunRecord, CountsHistory]:
    """A run whose images stopped where its own rule says that they may."""
    record = make_record(images, 2, estimation=samples, radii=(0.0, 0.25, 0.5))
    record = record.model_copy(update={"config": record.config.updated("budget", stages=stages)})
    ends = record.schedule.samples
    drawn = np.full(images, ends[0])
    for end in ends[1:]:
        history = make_history(record, ends, drawn.tolist())
        drawn[open_images(history, record)] = end
    return record, make_history(record, ends, drawn.tolist())


def decode_part(data: bytes, key: str, run_id: str, num_classes: int) -> pa.Table:
    """The bytes of one part -> its table, checked on its own."""
    return decode_parts([(key, data)], run_id, num_classes).table
