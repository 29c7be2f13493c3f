"""docs/reproduction.md: every number of its tables follows from the runs beside it, and these from the configs."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from drs_ray import audit, read_run
from drs_ray.certificates.curve import average_certified_radius
from drs_ray.config import load_config
from drs_ray.counts.history import read_counts
from drs_ray.errors import CountsError
from drs_ray.results.reduce import RunResult, certify_counts
from drs_ray.results.selected_votes import rule_of
from drs_ray.storage import LocalStore
from jobs import reproduction, reproduction_tables

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "reproduction.md"
RUNS = sorted((DOCS / "reproduction" / "runs").glob("*"))
TUNED = sorted((DOCS / "reproduction" / "tuning").glob("*"))
EXPERIMENTS = {experiment.name: experiment for experiment in (*reproduction.EXPERIMENTS, *reproduction.TUNING)}


def _run(folder: Path) -> RunResult:
    result = read_run(str(folder))
    assert isinstance(result, RunResult)
    return result


def test_the_tables_are_those_of_the_runs() -> None:
    _, _, rest = PAGE.read_text().partition(f"{reproduction_tables.BEGIN}\n")
    written, end, _ = rest.partition(reproduction_tables.END)
    assert end
    assert (
        written.strip()
        == reproduction_tables.tables(*map(DOCS.joinpath, ("reproduction/runs", "reproduction/tuning"))).strip()
    )


SUMMARY = {
    "one for each sub-image": [["rs-0.50", "rs-0.50-seed1"], ["drs-0.50", "drs-0.50-seed1"], ["k4-0.50"]],
    "one for all sub-images": [
        [],
        ["drs-shared-0.50", "drs-shared-0.50-seed1"],
        ["k4-shared-0.50", "k4-shared-0.50-seed1"],
    ],
    "one for all, cheaper (`unshuffle: 2`)": [
        ["rs-unshuffled-0.50", "rs-unshuffled-0.50-seed1"],
        ["drs-shared-unshuffled-0.50"],
        ["k4-shared-unshuffled-0.50"],
    ],
    "one for all, trained four times as long": [["rs-0.50-long"], [], ["k4-shared-0.50-long"]],
    "one for all (of RS the cheaper one), by `consistency`": [
        ["rs-unshuffled-0.50-consistency", "rs-unshuffled-0.50-consistency-seed1"],
        ["drs-shared-0.50-across"],
        ["k4-shared-0.50-across", "k4-shared-0.50-across-seed1"],
    ],
}


def test_the_summaries_are_of_the_runs() -> None:
    """Their figures are "on the grid from 12,500" of the table."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    heads = next(row for row in rows if row[0] == "run")
    at = heads.index("on the grid from 12,500")
    figures = {row[0]: row[at] for row in rows if len(row) == len(heads)}
    table = {name: [", ".join(figures[run] for run in runs) for runs in cells] for name, cells in SUMMARY.items()}
    lines = [f"| {name} | {' | '.join(cells)} |".replace("|  |", "| |") for name, cells in table.items()]
    for page in (PAGE, DOCS / "choosing.md"):
        assert "\n".join(lines) in page.read_text().replace("**", "").replace(" (four passes for each sample)", "")
    each, one, cheap, *_ = table.values()
    assert f"| {each[0]} | {cheap[0]} | {each[1]} | {one[1]} | {one[2]} (" in (DOCS.parent / "README.md").read_text()


@pytest.mark.parametrize("folder", [*RUNS, *TUNED], ids=lambda path: path.name)
def test_a_run_is_of_the_committed_config_and_of_the_published_data(folder: Path) -> None:
    result, experiment = _run(folder), EXPERIMENTS[folder.name]
    ours = load_config(experiment.file, experiment.settings(["dataset.root=data/cifar10"])).model_dump(mode="json")
    theirs = result.record.config.model_dump(mode="json")
    for section in ("dataset", "partition", "classifiers", "noise", "budget", "certificate", "training"):
        assert ours[section] == theirs[section], section
    assert result.as_planned
    assert result.record.dataset.digest.startswith(reproduction.PUBLISHED[result.record.config.dataset.split])
    assert all(result.record.classifier_digests)


@pytest.mark.parametrize("folder", [*RUNS, *TUNED], ids=lambda path: path.name)
def test_a_runs_radii_are_what_other_code_derives_from_its_votes(folder: Path) -> None:
    pytest.importorskip("flint")
    report = audit(str(folder))
    report.check()
    assert report.images == _run(folder).images


def test_what_the_published_code_prints_is_that_of_theory_9() -> None:
    votes = [[950_000, 600_000], [990_000, 300_000], [400_000, 300_000]]
    table = pa.table(
        {
            "class_votes": votes,
            "estimation_samples": [[10**6, 10**6]] * 3,
            "selected_class": [3, 3, 3],
            "label": [3, 4, 3],
        }
    )
    config = SimpleNamespace(sigmas=(1.0, 1.0))
    result = SimpleNamespace(certificates=table, alpha=0.001, record=SimpleNamespace(config=config))
    radius, correct = reproduction_tables.published(cast(Any, result))
    assert radius == pytest.approx([1.664, 2.326, 0.0], abs=0.02)
    assert correct.tolist() == [True, False, False]


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_radii_from_fewer_samples_are_those_of_the_run_where_it_has_no_more(folder: Path) -> None:
    result = _run(folder)
    limits, history = (
        (reproduction_tables.FEW, reproduction_tables.EQUAL),
        read_counts(LocalStore(folder), result.record),
    )
    few, equal = reproduction_tables.radii_from(limits, result, history)
    rows = sorted(result.certificates.to_pylist(), key=lambda row: row["image_id"])
    radii = np.array([row["radius"] if row["correct"] else 0.0 for row in rows])
    if result.record.schedule.samples == (reproduction_tables.FEW,):
        assert few == pytest.approx(radii)
        assert equal == pytest.approx(radii)
    else:  # the run's own radii pay for its stages
        stopped = np.array([max(row["estimation_samples"]) <= reproduction_tables.EQUAL for row in rows])
        assert (equal[stopped] >= radii[stopped] - 1e-9).mean() > 0.99
        assert few.mean() < equal.mean()
    with pytest.raises(CountsError, match=r"no stage ends at 10 samples or fewer; take runs with such a stage"):
        reproduction_tables.radii_from([10], result, history)


def test_rows_of_both_seeds_are_means_and_passes_are_those_of_all_sub_images() -> None:
    section = PAGE.read_text().partition("### Differences of the mean radius\n")[2].partition("###")[0]
    rows = {cells[0]: cells[1:] for line in section.splitlines() if len(cells := line.strip("| ").split(" | ")) == 5}
    both = [name for name in rows if name.endswith(": both seeds")]
    assert len(both) >= 5
    for name in both:
        first, second = name.removesuffix(": both seeds").split(", ")
        seeds = rows[f"{first}, {second}"], rows[f"{first}-seed1, {second}-seed1"]
        for cells in zip(rows[name], *seeds, strict=True):
            mean, one, other = (float(cell.split()[0]) for cell in cells)
            assert mean == pytest.approx((one + other) / 2, abs=0.0011)
    grid, passes = rows["rs-0.50, rs-unshuffled-0.50"][1:3]
    assert passes == grid
    fewer = {name: _on_grid(name, samples) for name, samples in (("rs-0.50", 12_500), ("k4-shared-0.50", 3125))}
    difference = (fewer["k4-shared-0.50"] - fewer["rs-0.50"]).mean()
    assert rows["rs-0.50, k4-shared-0.50"][2].startswith(f"{difference:+.3f} [")
    assert rows["rs-denoised-0.50, drs-denoised-0.50"][2] == "-"


def _on_grid(name: str, samples: int) -> NDArray[np.float64]:
    """Radii from the votes at so many samples, reduced as a run of one stage."""
    folder = DOCS / "reproduction" / "runs" / name
    result = _run(folder)
    counts = read_counts(LocalStore(folder), result.record).at(samples)
    table = certify_counts(counts, result.record, result.certified_by, result.alpha).sort_by("image_id")
    radii = np.where(table["correct"].to_numpy(), table["radius"].to_numpy(), 0.0)
    return reproduction_tables.on_grid(radii, result.curve["radius"].to_numpy())


def test_only_the_ratio_of_weights_counts() -> None:
    folder = DOCS / "reproduction" / "runs" / "drs-denoised-0.50"
    result = _run(folder)
    history = read_counts(LocalStore(folder), result.record)
    config = result.record.config.certificate.model_copy(update={"weights": (1.0, 0.5), "pooled": False})
    rule = rule_of(result.record.config, config)
    table = certify_counts(history.at(reproduction_tables.FEW), result.record, rule, result.alpha)
    expected = average_certified_radius(table["radius"].to_numpy(), table["correct"].to_numpy())
    assert reproduction_tables.mean_radius_of_weight(2.0, result, history) == pytest.approx(expected)
    assert reproduction_tables.mean_radius_of_weight(0.5, result, history) != pytest.approx(expected, abs=1e-4)


def test_radii_are_rounded_down_to_the_grid() -> None:
    grid = np.array([0.25, 0.5])
    radii = np.array([0.0, 0.24, 0.25, 0.49, 0.5, 3.0])
    assert reproduction_tables.on_grid(radii, grid).tolist() == [0.0, 0.0, 0.25, 0.25, 0.5, 0.5]


def test_a_run_alone_has_tables_without_pairs(tmp_path: Path) -> None:
    for name in ("rs-0.25", "drs-0.50"):
        shutil.copytree(DOCS / "reproduction" / "runs" / name, tmp_path / name / name)
        alone = reproduction_tables.tables(tmp_path / name)
        assert f"| {name} |" in alone
        assert "### Differences" not in alone
    with pytest.raises(CountsError, match=r"rs-0.25: no runs here; name a folder that has a directory for each run"):
        reproduction_tables.tables(tmp_path / "rs-0.25" / "rs-0.25")


def test_a_run_is_compared_with_rs_of_its_seed_and_with_a_network_for_each_sub_image() -> None:
    expected = {
        "rs-0.50": [],
        "k4-0.50": ["rs-0.50"],
        "drs-filled-0.25": ["rs-0.25", "drs-0.25"],
        "drs-0.50-seed1": ["rs-0.50-seed1"],
        "drs-denoised-masked-0.50": ["rs-denoised-0.50"],
        "k4-shared-0.50-seed1": [
            "rs-0.50-seed1",
            "k4-0.50-seed1",
            "rs-unshuffled-0.50-seed1",
            "rs-0.50-small-batch",
        ],
        "rs-unshuffled-0.50-seed1": ["rs-0.50-seed1"],
        "rs-unshuffled4-0.50": ["rs-0.50"],
        "k4-shared-unshuffled-0.50": ["rs-unshuffled-0.50"],
        "drs-columns-shared-0.50": ["rs-0.50"],
        "rs-unshuffled-0.50-rate-0.01": ["rs-unshuffled-0.50"],
        "k4-shared-0.50-rate-0.01": ["rs-unshuffled-0.50-rate-0.01", "k4-shared-0.50"],
        "rs-unshuffled-0.50-consistency": ["rs-unshuffled-0.50"],
        "rs-unshuffled-0.50-consistency-seed1": ["rs-unshuffled-0.50-seed1"],
        "k4-shared-0.50-across-seed1": ["rs-unshuffled-0.50-consistency-seed1", "k4-shared-0.50-seed1"],
        "k4-shared-0.50-consistency": ["rs-0.50-consistency", "k4-0.50-consistency", "rs-unshuffled-0.50-consistency"],
    }
    assert {name: reproduction_tables.partners(name) for name in expected} == expected
    for name in (experiment.name for experiment in reproduction.EXPERIMENTS):
        rs = reproduction_tables.partners(name)[:1]
        assert set(rs) <= EXPERIMENTS.keys()
        if (DOCS / "reproduction" / "runs" / name).exists():
            assert all((DOCS / "reproduction" / "runs" / partner).exists() for partner in rs)


@pytest.mark.parametrize("experiment", reproduction.TUNING, ids=lambda experiment: experiment.name)
def test_settings_are_tuned_on_images_that_are_held_out(experiment: reproduction.Experiment) -> None:
    config = load_config(experiment.file, experiment.settings([]))
    assert config.training.hold_out is not None
    assert config.dataset.split == "train"
    everyone = np.arange(50_000)
    certified, held_out = (
        everyone[each.start : each.stop : each.skip] for each in (config.dataset.images, config.training.hold_out)
    )
    assert len(certified) == 500
    assert set(certified) <= set(held_out)


def test_tables_of_tuning_compare_with_the_settings_of_all_runs(tmp_path: Path) -> None:
    runs = DOCS / "reproduction" / "runs"
    base, other = ("rs-0.50", "rs-unshuffled-0.50")
    for name, run in (("tuning-rs-rate-0.005", base), ("tuning-rs-shift-4", other)):
        shutil.copytree(runs / run, tmp_path / "tuned" / name)
    found = reproduction_tables.tables(tmp_path / "tuned")
    means = {name: _run(runs / name).average_certified_radius for name in (base, other)}
    assert found.startswith("### Settings on held-out images\n| setting | rs |\n")
    assert f"| rate-0.005 | {means[base] - 0.0005:.3f} |\n| shift-4 | {means[other] - 0.0005:.3f} (+0.044 [" in found
    shutil.copytree(runs / base, tmp_path / "others" / base)
    both = reproduction_tables.tables(tmp_path / "others", tmp_path / "tuned")
    assert both == f"{reproduction_tables.tables(tmp_path / 'others')}\n{found}"
    (tmp_path / "empty").mkdir()
    with pytest.raises(CountsError, match=r"empty: no runs here"):
        reproduction_tables.tables(tmp_path / "others", tmp_path / "empty")
    with pytest.raises(CountsError, match=r"the run rs-0.50 is in another folder too; name one of them"):
        reproduction_tables.tables(tmp_path / "others", runs)
    shutil.copytree(runs / base, tmp_path / "tuned" / "tuning-drs-shift-4")
    with pytest.raises(CountsError, match=r"tuning-drs-rate-0.005: not there, .*; run it"):
        reproduction_tables.tables(tmp_path / "tuned")
    shutil.copytree(runs / base, tmp_path / "named" / "tuning-rs-0.005")
    with pytest.raises(
        CountsError, match=r"tuning-rs-0.005: a run of tuning is called tuning-KIND-rate-0.005 or the like"
    ):
        reproduction_tables.tables(tmp_path / "named")
