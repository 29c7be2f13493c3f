"""Unfinished runs: what stands already, who is in it, and that nothing shows it as if it were complete."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from drs_ray.certificates.curve import failed_certificates
from drs_ray.cli import app
from drs_ray.counts.history import read_counts, read_reached_counts
from drs_ray.counts.run_record import RunRecord, create_or_join
from drs_ray.engine.outcome import Outcome
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.errors import ConfigError, CountsError
from drs_ray.report.columns import read_columns, read_partial_columns
from drs_ray.report.distributions import saving
from drs_ray.report.figure import SVG_KEY
from drs_ray.report.page import render_report
from drs_ray.report.summary import summarise
from drs_ray.report.test_sets import check_same_test_set
from drs_ray.results.reduce import RunResult, reduce_run, reduce_unfinished
from drs_ray.storage import LocalStore
from tests.unit.counts.factories import PART_KEY, MemoryStore, make_part, make_record
from tests.unit.counts.scale import ADAPTIVE, FIXED, copy_of, finish, own, stored
from tests.unit.engine.factories import part_of


def steps(record: RunRecord, share: Callable[[int], float] = own) -> Iterator[MemoryStore]:
    """The store as a driver fills it, after each unit."""
    store = MemoryStore()
    create_or_join(store, record)
    remaining = RemainingUnits(record, store)
    todo = remaining.missing()
    yield store
    while todo:
        unit = todo.pop(0)
        part = part_of(record, unit, share)
        store.put(unit.key, part)
        if remaining.adaptive:
            todo += remaining.done(unit, Outcome(1.0, 0.1, part))
        yield store


def so_far(store: MemoryStore, record: RunRecord) -> RunResult | None:
    """What stands already; None before any image does."""
    try:
        return reduce_unfinished(store, record)[0]
    except CountsError as error:
        if not re.search(r"no counts yet|no image is finished yet \(0 of", str(error)):
            raise
        return None


@pytest.mark.parametrize("record", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_what_stands_never_claims_more_than_the_finished_run(record: RunRecord) -> None:
    whole = stored(record)
    final = reduce_run(whole, record, record.config.certificate)
    by_id = {row["image_id"]: row for row in final.certificates.to_pylist()}
    seen: list[int] = []
    for store in steps(record):
        before = dict(store.objects)
        found = so_far(store, record)
        assert store.objects == before
        if found is None:
            assert not seen
            continue
        result = found
        seen.append(result.images)
        for row in result.certificates.to_pylist():
            assert row["radius"] <= by_id[row["image_id"]]["radius"]
            assert row["prediction"] in (-1, by_id[row["image_id"]]["prediction"])
        if result.progress is None:
            continue
        assert result.progress.certified == result.images <= result.progress.planned == final.images
        assert result.progress.waiting > 0 or result.images < final.images
        summary, complete = summarise(result, "run"), summarise(final, "run")
        for now, then in zip(summary.at_radii, complete.at_radii, strict=True):
            assert now.certified <= then.certified
            assert float(summary.when_finished_text(now)) <= then.certified / then.images
            assert now.guaranteed == max(now.certified - failed_certificates(final.images, final.alpha), 0)
        assert saving(result) is None
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert result.progress is None
    assert result.certificates.equals(final.certificates)
    assert result.curve.equals(final.curve)


@pytest.mark.parametrize("record", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_who_is_in_it_does_not_depend_on_votes(record: RunRecord) -> None:
    """The same units of the first stage give the same images, whatever the classifiers said about them."""
    keys = [unit.key for unit in RemainingUnits(record, MemoryStore()).missing()]
    rng = np.random.default_rng(0)
    stores = [list(steps(record, lambda _, share=share: share))[-1] for share in (0.0, 0.3, 0.7, 1.0)]
    for _ in range(10):
        there = set(rng.permutation(keys)[: rng.integers(2, len(keys))])
        found = []
        for full in map(copy_of, stores):
            late = {key for key in full.objects if key.startswith("counts/") and key not in keys}
            for key in set(keys) - there:
                full.delete(key)
            for key in sorted(late)[::2]:  # of later stages, any
                full.delete(key)
            result = so_far(full, record)
            found.append([] if result is None else result.certificates["image_id"].to_pylist())
        assert found[0] == found[1] == found[2] == found[3]


def test_a_stage_counts_only_where_all_sub_images_have_it() -> None:
    *_, store = steps(ADAPTIVE)
    complete = read_counts(store, ADAPTIVE)
    last = [key for key in store.objects if "/k1/s2/" in key]
    assert last
    for key in last:
        store.delete(key)
    reached = read_reached_counts(store, ADAPTIVE)
    assert reached.drawn.max() == ADAPTIVE.schedule.samples[1] < complete.drawn.max()
    result, _ = reduce_unfinished(store, ADAPTIVE)
    assert result.progress is not None
    assert result.progress.text == f"partial: 9 of 9 images, {result.progress.waiting} of them to be continued"


def test_samples_that_are_there_twice_or_of_another_budget_are_refused() -> None:
    record = make_record(6, 1, estimation=800)
    store = MemoryStore()
    store.put(PART_KEY, make_part(record, [400, 800, 1200]))
    with pytest.raises(CountsError, match="more samples than planned"):
        read_reached_counts(store, record)
    store.put(PART_KEY, make_part(record, [400]))
    store.put("counts/q.parquet", make_part(record, [400]).replace(b"counts/p.parquet", b"counts/q.parquet"))
    with pytest.raises(CountsError, match="twice"):
        read_reached_counts(store, record)


def test_certificates_of_a_run_that_was_extended_are_not_shown_as_its_own() -> None:
    """They are of the stages before; the run that is there now is not finished."""
    short = ADAPTIVE.model_copy(
        update={"config": ADAPTIVE.config.updated("budget", planned=400, estimation=200, stages=3)}
    )
    store = MemoryStore()
    create_or_join(store, short)
    finish(short, store)
    old = reduce_run(store, short, short.config.certificate)
    longer = short.model_copy(update={"config": short.config.updated("budget", estimation=400)})
    record, _ = create_or_join(store, longer)
    extended = type(old)(old.uri, record, old.certificates, old.curve)
    with pytest.raises(CountsError, match="not finished"):
        read_columns([(extended, store)], compare_rules=False)
    assert read_partial_columns(store, compare_rules=False).results[0].progress is not None


@pytest.fixture
def partial_run(tmp_path: Path) -> Path:
    """24 of 40 images."""
    place = tmp_path / "run"
    record = make_record(40, 2, estimation=800, uri=str(place))
    some = make_record(24, 2, estimation=800, uri=str(place)).model_copy(update={"run_id": record.run_id})
    create_or_join(LocalStore(place), record)
    LocalStore(place).put(PART_KEY, make_part(some, [400, 800]))
    return place


def test_command_marks_every_table_and_the_figure_as_partial(partial_run: Path, tmp_path: Path) -> None:
    arguments = ["report", str(partial_run), "--output", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, CountsError)
    assert "drs-ray report --partial" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*arguments, "--partial", "--compare-rules"])
    assert done.exit_code == 0, done.output
    assert "PARTIAL: 24 OF 40 IMAGES" in done.output
    page = (tmp_path / "out" / "report.html").read_text()
    for section in re.findall(r"<section.*?</section>", page, re.DOTALL):
        assert "Partial: 24 of 40 images." in section
    assert "run, partial: 24 of 40 images, p_A Bonferroni" in page
    assert "This run is not finished, and 16 planned images" in page
    assert f"{failed_certificates(40, 0.001)} of 40 planned." in page
    assert "partial: 24 of 40 images" in (tmp_path / "out" / SVG_KEY).read_text()
    assert not (partial_run / "certificates.parquet").exists()


def test_command_shows_an_unfinished_run_alone(partial_run: Path) -> None:
    refused = CliRunner().invoke(app, ["report", str(partial_run), str(partial_run), "--partial"])
    assert "takes one RUN" in str(refused.exception)


def test_an_unfinished_run_is_not_put_beside_another() -> None:
    *_, whole = steps(FIXED)
    finished, _ = reduce_unfinished(whole, FIXED)
    whole.delete(sorted(key for key in whole.objects if "/k1/" in key)[0])
    unfinished, _ = reduce_unfinished(whole, FIXED)
    for pair in ([finished, unfinished], [unfinished, finished]):
        with pytest.raises(ConfigError, match="is not finished"):
            check_same_test_set(pair)


def test_a_finished_run_is_not_partial_and_an_empty_one_is_one_line(tmp_path: Path) -> None:
    record = make_record(12, 2, estimation=800, uri=str(tmp_path))
    store = LocalStore(tmp_path)
    create_or_join(store, record)
    empty = CliRunner().invoke(app, ["report", str(tmp_path), "--partial"])
    assert str(empty.exception).startswith(f"{tmp_path}: no counts yet (0 of 12 images); run")
    store.put(PART_KEY, make_part(record, [400, 800]))
    with pytest.raises(CountsError, match="not there; finish the run"):
        read_partial_columns(store, compare_rules=False)  # finished, not reduced
    result = reduce_run(store, record, record.config.certificate)
    columns = read_partial_columns(store, compare_rules=False)
    assert render_report(columns) == render_report(read_columns([(result, store)], compare_rules=False))
    assert "artial:" not in render_report(columns)
