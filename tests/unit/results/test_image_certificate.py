"""One certificate in full: every printed number is computed again from what stands beside it, and gives no more."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy.special import ndtri
from scipy.stats import beta

from drs_ray.cli.certificate_text import certificate_values
from drs_ray.config import CertificateConfig, parse_config
from drs_ray.counts.compaction import compact_run
from drs_ray.counts.encoding import CountsRow, encode_part
from drs_ray.counts.run_record import RunRecord, identity, run_id
from drs_ray.counts.schema import CERTIFICATES_KEY, RUN_KEY
from drs_ray.engine.outcome import Outcome
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.errors import ConfigError, CountsError
from drs_ray.results.image_certificate import ImageCertificate, read_certificate
from drs_ray.results.reduce import reduce_run
from drs_ray.results.tables import parquet_bytes
from tests.unit.counts.factories import CLASSES, MemoryStore, make_record

IMAGES = 10
DIGITS = r"-?[\d.]+(?:e-?\d+)?"
BOUND = re.compile(
    rf"([\d,]+) of ([\d,]+) votes(?: of all sub-images)?; at level ({DIGITS}): "
    rf"(?:mean )?probability ([<>])= ({DIGITS}|-?inf), "
    rf"[ab]\S* = Phi\^-1 [<>]= ({DIGITS}|-?inf)"
)


DEFAULT = CertificateConfig()


@dataclass(frozen=True)
class Case:
    """A run, and how it is reduced."""

    sub_images: int = 2
    sigmas: tuple[float, ...] = ()
    stages: int = 1
    certificate: CertificateConfig = DEFAULT


CASES = {
    "K = 1, rivals": Case(1),
    "K = 1, p_A": Case(1, certificate=CertificateConfig(rivals=False)),
    "K = 2, staircase, rivals, pooled": Case(),
    "K = 2, staircase, p_A": Case(certificate=CertificateConfig(rivals=False, pooled=False)),
    "K = 2, Bonferroni": Case(sigmas=(0.36, 0.25), certificate=CertificateConfig(confidence="bonferroni")),
    "K = 2, weights": Case(sigmas=(0.36, 0.25), certificate=CertificateConfig(weights=(1.0, 0.3))),
    "K = 2, mean, rivals": Case(sigmas=(0.36, 0.25), certificate=CertificateConfig(vote="mean")),
    "K = 2, mean, p_A": Case(certificate=CertificateConfig(vote="mean", rivals=False, pooled=False, alpha=0.05)),
    "K = 4": Case(4),
    "K = 4, weights, p_A": Case(4, certificate=CertificateConfig(rivals=False, weights=(1.0, 2.0, 0.5, 1.0))),
    "K = 2, three stages": Case(stages=3),
    "K = 1, three stages": Case(1, stages=3, certificate=CertificateConfig(alpha=0.01)),
}  # fmt: skip


def record_of(case: Case) -> RunRecord:
    k = case.sub_images
    record = make_record(IMAGES)
    data = record.config.model_dump(mode="json", exclude={"certificate"})
    data["partition"] = {"name": {1: "none", 2: "checkerboard", 4: "interleave"}[k]}
    if k == 4:
        data["partition"]["interleave"] = [2, 2]
    sigmas = case.sigmas or (0.5,) * k
    data["classifiers"] = [data["classifiers"][0] | {"sigma": sigma} for sigma in sigmas]
    data["budget"] = {"selection": 50, "estimation": 2000, "stages": case.stages}
    data["noise"]["block"] = 50
    data["engine"] |= {"images_per_unit": 4, "batch": 50}
    data["certificate"] = {"radii": [0.0, 0.2, 0.4]}
    config = parse_config(data)
    digests = tuple(f"{number}" * 64 for number in range(k))
    return record.model_copy(
        update={
            "run_id": run_id(identity(config, record.dataset, record.image_ids, digests)),
            "config": config,
            "classifier_digests": digests,
            "stopping": config.certificate,
        }
    )


def shares(image_id: int, sub_image: int) -> list[float]:
    """From certain images to hopeless ones, some of them lopsided, one without a vote for its class."""
    own = [1.0, 0.999, 0.99, 0.95, 0.9, 0.8, 0.99, 0.6, 0.4, 0.0][image_id]
    if image_id == 6 and sub_image:
        own = 0.45
    return [own, (1 - own) * 0.8, (1 - own) * 0.2]


def votes_of(image_id: int, sub_image: int, phase: str, first: int, samples: int) -> np.ndarray:
    votes = np.zeros(CLASSES, np.int64)
    if phase == "selection":
        votes[0] = samples if image_id < 3 else samples - 2
        votes[2] = samples - votes[0]
        return votes
    rng = np.random.default_rng([image_id, sub_image, first])
    votes[:3] = rng.multinomial(samples, shares(image_id, sub_image))
    return votes


def finished(case: Case) -> tuple[MemoryStore, RunRecord]:
    record, store = record_of(case), MemoryStore("runs/demo")
    store.put(RUN_KEY, record.model_dump_json().encode())
    remaining = RemainingUnits(record, store)
    todo = remaining.missing()
    while todo:
        unit = todo.pop(0)
        rows = []
        for image_id in (record.image_ids[position] for position in unit.positions):
            for draw in unit.draws:
                votes = votes_of(image_id, unit.sub_image, draw.phase, draw.first_sample, draw.samples)
                where = (unit.sub_image, draw.phase, draw.stage, draw.first_sample, draw.samples)
                rows.append(CountsRow(image_id, image_id % CLASSES, *where, votes))
        part = encode_part(rows, record.run_id, unit.key)
        store.put(unit.key, part)
        if remaining.adaptive:
            todo += remaining.done(unit, Outcome(1.0, 0.1, part))
    reduce_run(store, record, case.certificate)
    return store, record


@dataclass(frozen=True)
class Run:
    """A reduced run and all its certificates."""

    store: MemoryStore
    record: RunRecord
    certificates: tuple[ImageCertificate, ...]


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def run(request: pytest.FixtureRequest) -> Run:
    store, record = finished(request.param)
    return Run(store, record, everything(store, record))


def everything(store: MemoryStore, record: RunRecord) -> tuple[ImageCertificate, ...]:
    return tuple(read_certificate(store, image_id) for image_id in record.image_ids)


def test_the_written_inequality_gives_the_stored_radius_and_never_more(run: Run) -> None:
    certified = 0
    for found in run.certificates:
        stored = found.row["radius"]
        if not found.expression:
            assert stored == 0
            assert found.written_radius == -math.inf
            continue
        value = eval(found.expression, {"sqrt": math.sqrt, "min": min})  # as whoever reads it would
        assert value == pytest.approx(found.written_radius, rel=1e-12, abs=1e-14)
        if stored > 0:
            certified += 1
            assert stored - 1e-8 < value <= stored
            assert stored - 1e-8 < found.written_radius <= stored
        else:
            assert value <= 0
    assert certified >= 4


def test_printed_bounds_follow_from_printed_votes_and_levels(run: Run) -> None:
    """By scipy's beta distribution: not the code that computed them."""
    for found in run.certificates:
        values = certificate_values(found)
        bounds = [fact for name, fact in values.items() if re.match(r"class \d|closest rival", name)]
        k = len(found.sigmas)
        assert len(bounds) == (1 if found.pooled else k if found.rival_levels is None else 2 * k)
        for text in bounds:
            match = BOUND.search(text)
            assert match, text
            votes, samples = (int(number.replace(",", "")) for number in match.groups()[:2])
            level, side, probability, quantile = float(match[3]), match[4], float(match[5]), float(match[6])
            if side == "<":
                votes = samples - votes
                probability, quantile = 1 - probability, -quantile
                if "what the class leaves" in text:
                    continue  # compared below
            if votes == 0:
                assert quantile == -math.inf
                continue
            exact = beta.isf(1 - level, votes, samples - votes + 1) if level > 0.5 else beta.ppf(
                level, votes, samples - votes + 1)  # fmt: skip
            assert probability <= exact + 1e-12, text
            assert probability >= exact - 1.1e-8, text
            assert quantile <= ndtri(exact) + 1e-9, text
            assert quantile >= ndtri(exact) - 2e-8, text
        rest = [a == -b for a, b in zip(found.a_lower, found.b_upper, strict=True)]
        assert [("what the class leaves" in text) for text in bounds if "<=" in text] == (
            [] if found.rival_levels is None or found.pooled else rest
        )


def test_the_printed_inequality_is_the_written_one(run: Run) -> None:
    for found in run.certificates:
        values = certificate_values(found)
        if not found.expression:
            assert "a bound is missing" in values["inequality"]
            continue
        formula, written, value = values["inequality"].split("\n")
        assert formula == found.formula
        assert written == f"R >= {found.expression}"
        shown = float(re.match(rf"  >= ({DIGITS})", value)[1])
        assert shown <= found.written_radius
        assert shown >= found.written_radius - 1.1e-9
        assert ("not above 0, so nothing is certified" in value) == (found.row["radius"] == 0)
        if found.row["radius"] > 0:
            printed = float(values["certified radius"].split(" ")[0])
            assert found.row["radius"] - 1.1e-9 <= printed <= found.row["radius"]
            assert values["answer"].startswith("class 0 (right" if found.row["label"] == 0 else "class 0 (wrong")
        else:
            assert (values["answer"], values["certified radius"]) == ("abstains", "none")


def test_boxes_and_stages_are_those_that_decide(run: Run) -> None:
    for found in run.certificates:
        k, stage = len(found.sigmas), found.stages[found.row["stage"]]
        assert found.row["radius"] == stage.radius == max(stage.radius for stage in found.stages)
        assert stage.samples == found.row["estimation_samples"][0]
        assert found.boxes == ({1: 1, 2: 24, 4: 3276}[k] if found.rule.confidence == "staircase" else 1)
        assert found.halved == (found.rule.pooled and found.unanimous)
        assert found.halved or not found.pooled
        alpha, levels = found.row["alpha"] / (2 if found.halved else 1), np.array(found.levels) / stage.share
        if found.rule.confidence == "staircase" and not found.pooled:  # docs/theory.md 5.4
            powers = np.log(levels) / np.log(beta.ppf(alpha, k + 22, k))
            assert powers == pytest.approx(powers.round(), abs=1e-6)
            assert powers.round().sum() == 2 * k + 21
        else:
            assert levels == pytest.approx([alpha] if found.pooled else [alpha / k] * k)
        if found.rival_levels is not None:  # docs/theory.md 5.5: half for the class, half for each rival
            assert found.class_levels == found.rival_levels == pytest.approx([level / 2 for level in found.levels])
        else:
            assert found.class_levels == found.levels
        values = certificate_values(found)
        assert ("stages" in values) == (len(found.stages) > 1)
        assert values["recompute"] == f"drs-ray verify runs/demo --image {found.image_id}"


def test_the_row_is_the_stored_one_and_the_units_hold_the_image(run: Run) -> None:
    store = run.store
    table = pa.BufferReader(store.get(CERTIFICATES_KEY))
    rows = pq.read_table(table).to_pylist()
    for found, row in zip(run.certificates, rows, strict=True):
        assert found.row == row
        assert found.selection_samples == 50
        assert found.unanimous == (found.image_id < 3) == (sum(found.selection_votes) == 50 * len(found.sigmas))
        for key in found.units:
            part = pq.read_table(pa.BufferReader(store.get(key)))
            assert found.image_id in part["image_id"].to_pylist()
        others = [key for key in store.objects if key.startswith("counts/k") and key not in found.units]
        for key in others:
            assert found.image_id not in pq.read_table(pa.BufferReader(store.get(key)))["image_id"].to_pylist()


def test_compacting_changes_nothing(run: Run) -> None:
    merged = MemoryStore(run.store.uri)
    merged.objects = dict(run.store.objects)
    compact_run(merged, run.record)
    assert not [key for key in merged.objects if key.startswith("counts/k")]
    assert everything(merged, run.record) == run.certificates


# One of them, word for word.


def test_what_is_printed() -> None:
    store, _ = finished(CASES["K = 2, staircase, rivals, pooled"])
    assert certificate_values(read_certificate(store, 6)) == {
        "run": "runs/demo",
        "image": "6, label 6",
        "answer": "class 0 (wrong)",
        "certified radius": "0.702498050 (l2, pixel units)",
        "votes": "of classifiers in float32",
        "alpha": "0.001",
        "rule": "probit pairs staircase",
        "selection": "class 0, 48 of 50 votes, sub-image 0, 48 of 50 votes, sub-image 1",
        "levels": "0.00024894721503, 0.322522548303 (staircase, the one of 24 boxes with the least radius)",
        "class 0, sub-image 0": "1,975 of 2,000 votes; at level 0.000124473607515: probability >= 0.9756854911, a_0 = "
        "Phi^-1 >= 1.9718299883",
        "closest rival, sub-image 0": "class 1, 18 of 2,000 votes; at level 0.000124473607515: probability <= "
        "0.0195074478, b_0 = Phi^-1 <= -2.0640297527",
        "class 0, sub-image 1": "895 of 2,000 votes; at level 0.161261274151: probability >= 0.4362798442, a_1 = "
        "Phi^-1 >= -0.1604079995",
        "closest rival, sub-image 1": "class 1, 899 of 2,000 votes; at level 0.161261274151: probability <= "
        "0.4607766325, b_1 = Phi^-1 <= -0.0984773394",
        "rivals": "each bounded as if it were alone: the radius is certified, not all of their bounds at once",
        "inequality": "R = sum_k m_k / ||w||, m_k = sigma_k (a_k - b_k) / 2\n"
        "R >= (0.5 * (1.9718299883 - (-2.0640297527)) / 2 + 0.5 * (-0.1604079995 - (-0.0984773394)) / 2) / sqrt(2)\n"
        "  >= 0.702498050",
        "units": "counts/k0/s0/i00000004-00000007-n0000000000.parquet\n"
        "counts/k1/s0/i00000004-00000007-n0000000000.parquet",
        "recompute": "drs-ray verify runs/demo --image 6",
    }
    pooled = certificate_values(read_certificate(store, 1))
    assert pooled["rule"] == "probit pairs staircase with pooled"
    assert pooled["levels"] == (
        "0.0005; selection was unanimous: pooled bound and boxes have half of alpha each, and the pooled bound gives "
        "more"
    )
    assert pooled["class 0"] == (
        "3,995 of 4,000 votes of all sub-images; at level 0.0005: mean probability >= 0.9956540879, a = Phi^-1 >= "
        "2.6239433499"
    )
    assert pooled["inequality"] == "R = sigma sqrt(K) a\nR >= 0.5 * sqrt(2) * 2.6239433499\n  >= 1.855408136"
    assert "rivals" not in pooled


@pytest.fixture(scope="module")
def plain() -> tuple[MemoryStore, RunRecord]:
    return finished(CASES["K = 2, Bonferroni"])


def test_an_image_that_is_not_of_the_run(plain: tuple[MemoryStore, RunRecord]) -> None:
    with pytest.raises(ConfigError, match=r"image 10 is not of the run in runs/demo \(10 images\); nearest: 7, 8, 9$"):
        read_certificate(plain[0], 10)


def changed(store: MemoryStore, key: str, data: bytes | None) -> MemoryStore:
    other = MemoryStore(store.uri)
    other.objects = dict(store.objects)
    if data is None:
        other.delete(key)
    else:
        other.put(key, data)
    return other


def test_a_radius_that_the_votes_do_not_give(plain: tuple[MemoryStore, RunRecord]) -> None:
    store, _ = plain
    table = pq.read_table(pa.BufferReader(store.get(CERTIFICATES_KEY)))
    at = table.schema.get_field_index("radius")
    table = table.set_column(at, table.schema.field(at), pc.add(table["radius"], 0.125))
    with pytest.raises(CountsError) as caught:
        read_certificate(changed(store, CERTIFICATES_KEY, parquet_bytes(table)), 0)
    assert re.fullmatch(
        r"runs/demo: image 0 has the stored radius [\d.]+, its votes give [\d.]+; write the certificates again with "
        r"`drs-ray reduce`",
        str(caught.value),
    )


@pytest.mark.parametrize(("of_image", "asked"), [(0, 0), (9, 9)])
def test_counts_that_are_missing_or_broken(plain: tuple[MemoryStore, RunRecord], of_image: int, asked: int) -> None:
    store, _ = plain
    key = read_certificate(store, of_image).units[0]
    with pytest.raises(CountsError, match=rf"the run is not finished: 1 of 1 image lacks samples, first image {asked}"):
        read_certificate(changed(store, key, None), asked)
    with pytest.raises(CountsError, match=key):
        read_certificate(changed(store, key, store.get(key)[:-9]), asked)
    nothing = store
    for part in read_certificate(store, of_image).units:
        nothing = changed(nothing, part, None)
    with pytest.raises(CountsError, match=f"no counts of image {asked}; resume the run with `drs-ray certify`"):
        read_certificate(nothing, asked)
    other = 9 - of_image  # of another block: these parts are none of its business
    assert read_certificate(changed(store, key, None), other).image_id == other


def test_a_run_that_is_not_reduced(plain: tuple[MemoryStore, RunRecord]) -> None:
    with pytest.raises(CountsError, match="not there; finish the run with `drs-ray certify`"):
        read_certificate(changed(plain[0], CERTIFICATES_KEY, None), 0)
