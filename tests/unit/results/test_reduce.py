"""Counts to certificates and curve, against a slow loop that is plainly right."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import beta, norm

from drs_ray.certificates.rule import Rule
from drs_ray.config import CertificateConfig
from drs_ray.counts.encoding import CountsRow, encode_part
from drs_ray.counts.history import Counts
from drs_ray.counts.run_record import RunRecord, create_or_join
from drs_ray.counts.sessions import SESSIONS_PREFIX
from drs_ray.errors import CountsError
from drs_ray.results.reduce import certify_counts, read_result, reduce_run, reduce_unfinished
from drs_ray.results.tables import ABSTAIN
from drs_ray.storage import LocalStore, Store
from tests.unit.counts.factories import CLASSES, MemoryStore, make_record

IMAGES = 30
Votes = dict[str, NDArray[np.int64]]


def random_votes(record: RunRecord, seed: int = 0) -> Votes:
    """Dense votes [K, N, C] by phase: clear and hopeless ones, disagreement, a tie, no rival at all."""
    rng = np.random.default_rng(seed)
    shape = (record.sub_images, len(record.image_ids))
    share = rng.dirichlet([3.0, 0.6, 0.2], size=shape) ** 1.5
    share /= share.sum(axis=-1, keepdims=True)
    share[:, :4] = [1, 0, 0]
    classes = rng.permuted(np.broadcast_to(np.arange(CLASSES), (*shape, CLASSES)), axis=-1)[..., :3]
    classes[:, ::2] = classes[:1, ::2]  # every other image has the same classes in all its sub-images
    votes = {}
    for phase, n in (("selection", record.config.budget.selection), ("estimation", record.config.budget.estimation)):
        votes[phase] = np.zeros((*shape, CLASSES), np.int64)
        np.put_along_axis(votes[phase], classes, rng.multinomial(n, share), axis=-1)
    votes["selection"][:, 5] = 0
    votes["selection"][:, 5, [8, 2]] = record.config.budget.selection // 2  # a tie
    return votes


def labels_of(record: RunRecord, votes: Votes) -> list[int]:
    """Three in four right."""
    best = votes["estimation"].sum(axis=0).argmax(axis=1)
    return [int(c) if i % 4 else int(c + 1) % CLASSES for i, c in enumerate(best)]


def counts_of(record: RunRecord, votes: Votes) -> Counts:
    return Counts(
        np.array(record.image_ids),
        np.array(labels_of(record, votes)),
        selection=tuple(csr_array(part) for part in votes["selection"]),
        estimation=tuple(csr_array(part) for part in votes["estimation"]),
    )


def fill(store: Store, record: RunRecord, votes: Votes) -> None:
    """run.json and one part."""
    create_or_join(store, record)
    rows = [
        CountsRow(image_id, label, k, phase, 0, 0, int(votes[phase][k, i].sum()), votes[phase][k, i])
        for i, (image_id, label) in enumerate(zip(record.image_ids, labels_of(record, votes), strict=True))
        for k in range(record.sub_images)
        for phase in ("selection", "estimation")
    ]
    store.put("counts/p.parquet", encode_part(rows, record.run_id, "counts/p.parquet"))


def slow_certificate(record: RunRecord, votes: Votes, at: int, alpha: float) -> dict[str, object]:
    """One image, step by step, as docs/theory.md says it: scipy's beta quantiles, plain sums."""
    k, sigmas = record.sub_images, record.config.sigmas
    total = [sum(int(votes["selection"][j, at, c]) for j in range(k)) for c in range(CLASSES)]
    selected = total.index(max(total))
    rivals = [sum(int(votes["estimation"][j, at, c]) for j in range(k)) for c in range(CLASSES)]
    rivals[selected] = 0
    runner_up = rivals.index(max(rivals)) if max(rivals) else -1
    margins = []
    for j in range(k):
        x, n = int(votes["estimation"][j, at, selected]), int(votes["estimation"][j, at].sum())
        p_lower = float(beta.ppf(alpha / k, x, n - x + 1)) if x else 0.0
        margins.append(sigmas[j] * float(norm.ppf(p_lower)))
    radius = sum(margins) / math.sqrt(k)
    return {
        "selected_class": selected,
        "runner_up": runner_up,
        "prediction": selected if radius > 0 else ABSTAIN,
        "radius": max(radius, 0.0),
        "margin": margins,
        "class_votes": [int(votes["estimation"][j, at, selected]) for j in range(k)],
        "runner_up_votes": [int(votes["estimation"][j, at, runner_up]) if runner_up >= 0 else 0 for j in range(k)],
        "samples": sum(int(part[:, at].sum()) for part in votes.values()),
    }


@pytest.mark.parametrize("sub_images", [1, 2])
@pytest.mark.parametrize("alpha", [0.001, 0.1])
def test_certificates_are_those_of_the_slow_loop(sub_images: int, alpha: float) -> None:
    record = make_record(IMAGES, sub_images, first_id=500)
    votes = random_votes(record)
    table = certify_counts(counts_of(record, votes), record, Rule(), alpha)
    assert table["image_id"].to_pylist() == list(record.image_ids)
    abstained = 0
    for at, found in enumerate(table.to_pylist()):
        expected = slow_certificate(record, votes, at, alpha)
        margins, exact = found["margin"], expected.pop("margin")
        radius = expected.pop("radius")
        assert found["radius"] <= radius
        assert found["radius"] >= radius - 2e-8  # the slack, sigma <= 1
        for mine, theirs in zip(margins, exact, strict=True):  # type: ignore[call-overload]
            assert mine <= theirs
            assert mine >= theirs - 2e-8 or theirs == -math.inf
        assert {name: found[name] for name in expected} == expected
        assert found["label"] == labels_of(record, votes)[at]
        assert found["correct"] == (found["prediction"] == found["label"])
        assert found["estimation_samples"] == [1000] * sub_images
        assert (found["radius"] == 0) == (found["prediction"] == ABSTAIN)
        for margin, p_lower, rival in zip(margins, found["p_lower"], found["rival_upper"], strict=True):
            assert p_lower == pytest.approx(norm.cdf(margin / 0.5), abs=1e-12)
            assert p_lower + rival == pytest.approx(1, abs=1e-12)
        abstained += found["prediction"] == ABSTAIN
    assert 0 < abstained < IMAGES
    assert set(table["alpha"].to_pylist()) == {alpha}
    assert set(table["rule"].to_pylist()) == {"probit p_A bonferroni"}
    assert table["runner_up"].to_pylist()[0] == -1  # all samples for one class


def test_a_tie_of_the_selection_goes_to_the_smaller_class() -> None:
    record = make_record(IMAGES, 2)
    table = certify_counts(counts_of(record, random_votes(record)), record, Rule(), 0.001)
    assert table["selected_class"].to_pylist()[5] == 2


def test_the_class_comes_from_the_selection_samples_alone() -> None:
    """Choosing by the estimation votes would use them twice, and spend more than alpha."""
    record = make_record(1)
    votes = {phase: np.zeros((1, 1, CLASSES), np.int64) for phase in ("selection", "estimation")}
    votes["selection"][0, 0, [3, 4]] = 51, 49
    votes["estimation"][0, 0, 4] = 1000
    found = certify_counts(counts_of(record, votes), record, Rule(), 0.001).to_pylist()[0]
    assert (found["selected_class"], found["prediction"], found["radius"]) == (3, ABSTAIN, 0)
    assert (found["class_votes"], found["runner_up"], found["runner_up_votes"]) == ([0], 4, [1000])
    assert found["margin"] == [-math.inf]


def test_sub_images_are_summed_in_the_selection() -> None:
    record = make_record(1, 2)
    votes = {phase: np.zeros((2, 1, CLASSES), np.int64) for phase in ("selection", "estimation")}
    votes["selection"][0, 0, [1, 2]] = 60, 40
    votes["selection"][1, 0, [1, 2]] = 30, 70
    votes["estimation"][:, 0, 2] = 1000
    assert certify_counts(counts_of(record, votes), record, Rule(), 0.001)["prediction"].to_pylist() == [2]


def test_an_unlabelled_image_is_never_correct() -> None:
    record = make_record(IMAGES)
    votes = random_votes(record)
    votes["estimation"][0, 1] = 100  # hopeless: abstains, with prediction -1
    counts = counts_of(record, votes)
    unlabelled = Counts(counts.image_ids, np.full(IMAGES, -1), counts.selection, counts.estimation)
    table = certify_counts(unlabelled, record, Rule(), 0.001)
    assert table["prediction"].to_pylist()[1] == ABSTAIN
    assert not any(table["correct"].to_pylist())


@pytest.mark.parametrize("sub_images", [1, 2])
def test_what_is_stored_is_what_is_returned(sub_images: int) -> None:
    store, record = MemoryStore(), make_record(IMAGES, sub_images)
    fill(store, record, random_votes(record))
    result = reduce_run(store, record, record.config.certificate)
    again = read_result(store)
    assert again.certificates.equals(result.certificates)
    assert again.curve.equals(result.curve)
    assert again.record == record
    assert result.images == IMAGES
    radius, correct = result.radius, result.correct
    assert result.average_certified_radius == pytest.approx((radius * correct).sum() / IMAGES, rel=1e-15)
    assert result.accuracy == correct.mean()
    assert result.abstention_rate == np.mean(np.array(result.certificates["prediction"].to_pylist()) == ABSTAIN)
    assert result.samples == IMAGES * sub_images * 1100
    for point in result.curve.to_pylist():
        assert point["certified_accuracy"] == (correct & (radius >= point["radius"])).sum() / IMAGES
        assert point["ci_low"] <= point["certified_accuracy"] <= point["ci_high"]
        assert point["guaranteed_low"] <= point["certified_accuracy"]


def test_the_time_of_a_run_lacks_that_of_a_killed_session() -> None:
    store, record = MemoryStore(), make_record(IMAGES, 2)
    fill(store, record, random_votes(record))
    for number, session in enumerate(['{"started": "-", "seconds": 4.0}', '{"started": "-"}']):
        store.put(f"{SESSIONS_PREFIX}{number}.json", session.encode())
        timed = (4.0, number == 0)
        reduced = reduce_run(store, record, record.config.certificate)
        stored = read_result(store)
        unfinished, _ = reduce_unfinished(store, record)
        assert {(result.seconds, result.all_timed) for result in (reduced, stored, unfinished)} == {timed}


def test_the_same_counts_at_another_alpha() -> None:
    store, record = MemoryStore(), make_record(IMAGES, 2)
    fill(store, record, random_votes(record))
    counts = dict(store.objects)
    strict = reduce_run(store, record, CertificateConfig(alpha=0.001))
    objects = dict(store.objects)
    loose = reduce_run(store, record, CertificateConfig(alpha=0.2, radii=(0.0, 0.1)))
    assert np.all(loose.radius >= strict.radius)
    assert loose.radius.sum() > strict.radius.sum()
    assert (strict.alpha, loose.alpha) == (0.001, 0.2)
    assert read_result(store).alpha == 0.2
    assert read_result(store).curve["radius"].to_pylist() == [0.0, 0.1]
    assert {key: store.objects[key] for key in counts} == counts  # the facts are not touched
    reduce_run(store, record, CertificateConfig(alpha=0.001))
    assert store.objects == objects  # and the same question has the same bytes for an answer


def test_the_rule_is_applied_and_named() -> None:
    store, record = MemoryStore(), make_record(IMAGES, 2)
    fill(store, record, random_votes(record))
    weighted = reduce_run(store, record, CertificateConfig(weights=(1.0, 3.0)))
    margin = np.array(weighted.certificates["margin"].to_pylist())
    assert weighted.radius == pytest.approx(np.maximum(margin @ [1, 3] / np.sqrt(10), 0), rel=1e-12)
    assert weighted.rule == "probit pairs staircase w=1.0,3.0"
    paper = {"rivals": False, "confidence": "bonferroni", "pooled": False}
    mean = reduce_run(store, record, CertificateConfig(vote="mean", **paper))
    plain = reduce_run(store, record, CertificateConfig(**paper))
    assert mean.radius == pytest.approx(plain.radius, rel=1e-12)  # equal sigmas
    assert mean.rule == "mean p_A bonferroni"


def test_counts_that_cannot_be_trusted_leave_the_old_tables() -> None:
    store, record = MemoryStore(), make_record(IMAGES)
    fill(store, record, random_votes(record))
    reduce_run(store, record, record.config.certificate)
    store.objects["counts/p.parquet"] = store.objects["counts/p.parquet"][:-1]
    before = dict(store.objects)
    with pytest.raises(CountsError):
        reduce_run(store, record, CertificateConfig(alpha=0.1))
    assert store.objects == before


@pytest.mark.parametrize("key", ["certificates.parquet", "curve.parquet"])
def test_missing_broken_and_foreign_tables(key: str) -> None:
    def reduced(first_id: int) -> MemoryStore:
        store, record = MemoryStore(), make_record(IMAGES, first_id=first_id)
        fill(store, record, random_votes(record))
        reduce_run(store, record, record.config.certificate)
        return store

    here, other = reduced(0), reduced(1000)
    whole = here.objects[key]
    for data, message in [
        (None, f"memory/{key}: not there; finish the run with `drs-ray certify`, then `drs-ray reduce`"),
        (b"", f"memory/{key}: truncated or not Parquet; "),
        (whole[: len(whole) // 2], f"memory/{key}: truncated or not Parquet; "),
        (other.objects[key], f"memory/{key}: not a table of run "),
        (here.objects["counts/p.parquet"], f"memory/{key}: not a table of run "),
    ]:
        here.delete(key)
        if data is not None:
            here.put(key, data)
        with pytest.raises(CountsError) as error:
            read_result(here)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    here.put(key, whole)
    read_result(here)


def test_tables_of_two_reductions_do_not_pass_for_one() -> None:
    """A reduction that is killed between its two writes leaves certificates and curve of different alphas."""
    store, record = MemoryStore(), make_record(IMAGES)
    fill(store, record, random_votes(record))
    reduce_run(store, record, CertificateConfig(alpha=0.001))
    old_curve = store.objects["curve.parquet"]
    reduce_run(store, record, CertificateConfig(alpha=0.2))
    store.put("curve.parquet", old_curve)
    with pytest.raises(CountsError, match="another alpha or rule than the certificates"):
        read_result(store)


def test_reducing_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    record = make_record(IMAGES, 2, uri=str(tmp_path))
    fill(LocalStore(tmp_path), record, random_votes(record))
    script = f"""
import sys, drs_ray
result = drs_ray.reduce({str(tmp_path)!r}, alpha=0.01)
assert result.alpha == 0.01 and result.images == {IMAGES}
loaded = {{name.partition(".")[0] for name in sys.modules}} & {{"torch", "torchvision", "ray", "matplotlib"}}
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert read_result(LocalStore(tmp_path)).alpha == 0.01
