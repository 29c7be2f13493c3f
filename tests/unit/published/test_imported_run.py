"""Imported runs: what is stated, what is doubted, and that nobody can take them for runs with counts."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy.stats import beta, norm

from drs_ray.counts.compaction import compact_run
from drs_ray.counts.run_record import create_or_join, read_record
from drs_ray.counts.schema import CERTIFICATES_KEY, CURVE_KEY, RUN_KEY, metadata
from drs_ray.errors import ConfigError, CountsError, DataError
from drs_ray.published.imported_run import ImportedResult, import_log, parse_imported, read_log, read_reported_run
from drs_ray.report.comparison import paired_differences
from drs_ray.report.export import tsv
from drs_ray.report.figure import certified_accuracy_figure
from drs_ray.report.page import render_report
from drs_ray.report.summary import run_names, summarise, summarise_side_by_side
from drs_ray.report.terminal_table import render_table
from drs_ray.report.test_sets import in_common
from drs_ray.results.image_certificate import read_certificate
from drs_ray.results.reduce import RunResult, read_result
from drs_ray.results.tables import parquet_bytes
from tests.unit.counts.factories import MemoryStore, make_record, make_result

STATED: dict[str, Any] = {"dataset": "mnist5k", "sigmas": [0.5], "estimation": 1000, "alpha": 0.001}


def log_of(radii: list[float], labels: list[int] | None = None, shown: str = ".3") -> bytes:
    """As certify.py prints these radii, all of them right; 0 abstains."""
    rows = []
    for number, radius in enumerate(radii):
        label = number % 10 if labels is None else labels[number]
        rows.append(f"{number}\t{label}\t{label if radius else -1}\t{radius:{shown}}\t{int(radius > 0)}\t0:00:01\n")
    return ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n" + "".join(rows)).encode()


def radii_of(counts: list[int], samples: int = 1000, sigma: float = 0.5) -> list[float]:
    """What certify.py computes of these counts, as it does, by scipy: Clopper-Pearson at alpha = 0.001."""
    p_lower = beta.ppf(0.001, counts, samples - np.array(counts) + 1)
    return [max(float(radius), 0.0) for radius in sigma * norm.ppf(p_lower)]


def imported(found: list[float], store: MemoryStore | None = None, shown: str = ".3", **stated: Any) -> ImportedResult:
    return import_log(store or MemoryStore("runs/cohen"), log_of(found, shown=shown), "log.tsv", **{**STATED, **stated})


def test_what_an_imported_run_is() -> None:
    store = MemoryStore("runs/cohen")
    run = imported([0.0, *radii_of([700, 990, 1000])], store, radii=[0.0, 0.5, 1.0])
    again = read_reported_run(store)
    assert isinstance(again, ImportedResult)
    assert again.record == run.record
    assert again.certificates.equals(run.certificates)
    assert again.curve.equals(run.curve)
    assert run.certificates.column_names == [
        "image_id", "label", "prediction", "correct", "radius", "samples", "alpha", "time"
    ]  # fmt: skip
    assert run.certificates["samples"].to_pylist() == [1100] * 4
    assert run.curve["certified_accuracy"].to_pylist() == [0.75, 0.5, 0.25]
    assert metadata(run.curve.schema)["alpha"] == "0.001"
    assert (run.accuracy, run.abstention_rate, run.alpha, run.samples) == (0.75, 0.25, 0.001, 4400)
    published = [float(f"{radius:.3}") for radius in [0.0, *radii_of([700, 990, 1000])]]
    assert run.average_certified_radius == pytest.approx(np.mean(published))
    assert run.record.warnings == ()
    summary = summarise(run, "cohen")
    assert summary.imported
    assert summary.method == "imported (K = 1)"
    assert summary.budget_text == "100 + 1,000"
    assert summary.time_text == "not recorded"


def shown(results: list[Any]) -> str:
    """The table of the terminal, as one line."""
    console = Console(width=120, file=io.StringIO())
    with console.capture() as captured:
        console.print(render_table(results))
    return " ".join(captured.get().split())


def test_the_mark_is_wherever_it_is_shown() -> None:
    labels = make_result(4, radii=[0, 0.5]).certificates["label"].to_pylist()
    store = MemoryStore("runs/cohen")
    theirs = import_log(store, log_of(radii_of([1000] * 4), labels), "log.tsv", **STATED, radii=[0, 0.5])
    ours = make_result(4, radii=[0, 0.5])
    assert run_names([ours, theirs]) == ["demo", "cohen, imported, not verified"]
    page = render_report([ours, theirs])
    assert "cohen, imported, not verified" in page
    assert "nothing on this page vouches for them" in page
    assert "Nothing is guaranteed of a log whose votes nobody has." in page
    cells = re.findall(r'<td class="first strong">(.*?)</td><td class="soft">.*?</td><td>(.*?)</td>', page)
    assert [guaranteed for _, guaranteed in cells[:4]] == [cells[0][1], "–", cells[2][1], "–"]
    text = shown([ours, theirs])
    assert "not verified" in text
    assert "Imported: radii, alpha and samples as published and stated" in text
    assert text.count(">= 0.") == 2  # of our run, at both radii: nobody guarantees anything of the log
    many = shown([ours, theirs, replace(ours, variant="once more")])
    assert many.count("<= ") == 2
    assert many.count("not known") == 1


@pytest.mark.parametrize(
    "use",
    [
        read_record,
        read_result,
        lambda store: read_certificate(store, 0),
        lambda store: compact_run(store, read_record(store)),
    ],
)
def test_what_needs_counts_refuses_it_in_one_line(use: Callable[[Any], object]) -> None:
    store = MemoryStore("runs/cohen")
    imported([1.23], store)
    with pytest.raises(CountsError) as caught:
        use(store)
    assert str(caught.value) == (
        "runs/cohen: was imported from log.tsv: there are no counts behind its radii, so it can be reported and "
        "exported, and nothing else; name a run of drs-ray's own"
    )


def test_a_run_does_not_go_where_an_imported_one_is() -> None:
    store = MemoryStore("runs/cohen")
    imported([1.23], store)
    with pytest.raises(CountsError, match=r"was imported from log\.tsv"):
        create_or_join(store, make_record())


def test_an_imported_run_goes_nowhere_else() -> None:
    store = MemoryStore("runs/demo")
    create_or_join(store, make_record())
    with pytest.raises(CountsError, match="runs/demo: holds another run already; choose another place"):
        imported([1.23], store)
    assert list(store.objects) == [RUN_KEY]
    assert parse_imported(store.get(RUN_KEY), store.uri) is None


def test_the_same_log_again_is_the_same_run_and_another_is_none() -> None:
    store = MemoryStore("runs/cohen")
    first = imported([1.23], store)
    assert imported([1.23], store).record == first.record
    for change in ({"sigmas": [0.25]}, {"estimation": 10}, {"alpha": 0.01}, {"split": "train"}, {"dataset": "mnist"}):
        with pytest.raises(CountsError, match="holds another run already"):
            imported([1.23], store, **change)
    with pytest.raises(CountsError, match="holds another run already"):
        imported([1.22], store)


def test_nothing_is_written_for_a_log_that_cannot_be_read() -> None:
    store = MemoryStore("runs/cohen")
    with pytest.raises(DataError):
        import_log(store, b"idx\tlabel\n", "log.tsv", **STATED)
    assert not store.objects


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": []}, "import: sigmas: "),
        ({"sigmas": [0.5, 0.0]}, "import: sigmas.1: "),
        ({"sigmas": [float("nan")]}, "import: sigmas.0: "),
        ({"sigmas": [float("inf")]}, "import: sigmas.0: "),
        ({"estimation": 0}, "import: estimation: "),
        ({"selection": -1}, "import: selection: "),
        ({"alpha": 1.0}, "import: alpha: "),
        ({"alpha": float("nan")}, "import: alpha: "),
        ({"dataset": ""}, "import: dataset: "),
        ({"split": ""}, "import: split: "),
        ({"radius_rule": "best"}, "import: radius_rule: "),
        ({"radii": [1.0, 0.5]}, "import: radii: "),
    ],
)
def test_stated_values_that_cannot_be(change: dict[str, Any], message: str) -> None:
    store = MemoryStore()
    with pytest.raises(ConfigError) as caught:
        imported([1.23], store, **change)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not store.objects


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"none.tsv: cannot be read \(No such file or directory\); give the path"):
        read_log(Path("none.tsv"))


# What is stored is trusted as far as it says itself.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.01}, "run.json: was changed after it was written"),
        ({"schema_version": 2}, "schema version 2, this drs-ray reads up to 1; use the newer that wrote it"),
        ({"schema_version": "new"}, "schema version new; versions are whole numbers"),
        ({"alpha": "much"}, "run.json: not the record of an imported run"),
        ({"colour": "red"}, "run.json: not the record of an imported run"),
    ],
)
def test_a_record_that_was_changed(change: dict[str, Any], message: str) -> None:
    store = MemoryStore("runs/cohen")
    imported([1.23], store)
    store.put(RUN_KEY, json.dumps(json.loads(store.get(RUN_KEY)) | change).encode())
    with pytest.raises(CountsError, match=message):
        read_reported_run(store)


@pytest.mark.parametrize("key", [CERTIFICATES_KEY, CURVE_KEY])
def test_tables_that_are_missing_or_of_another_run(key: str) -> None:
    store, other = MemoryStore("runs/cohen"), MemoryStore("runs/other")
    imported([1.23], store)
    imported([1.23], other, alpha=0.002)
    store.put(key, other.get(key))
    with pytest.raises(CountsError, match=f"{key}: not a table of run [0-9a-f]+; write it again with `drs-ray import`"):
        read_reported_run(store)
    newer = pq.read_table(pa.BufferReader(other.get(key)))
    store.put(key, parquet_bytes(newer.replace_schema_metadata({"drs_ray.schema_version": "7"})))
    with pytest.raises(CountsError, match=f"{key}: schema version 7, this drs-ray reads up to 1"):
        read_reported_run(store)
    store.put(key, b"PAR1")
    with pytest.raises(CountsError, match=f"{key}: truncated or not Parquet"):
        read_reported_run(store)
    store.delete(key)
    with pytest.raises(CountsError, match=f"{key}: not there; write it again with `drs-ray import`"):
        read_reported_run(store)
    imported([1.23], store)
    assert isinstance(read_reported_run(store), ImportedResult)


def test_a_run_of_ones_own_is_read_as_ever() -> None:
    with pytest.raises(CountsError, match="no drs-ray run here"):
        read_reported_run(MemoryStore())
    store = MemoryStore()
    create_or_join(store, make_record())
    with pytest.raises(CountsError, match="not there; finish the run"):
        read_reported_run(store)


# Side by side.


def beside(ours: RunResult, **change: Any) -> list[Any]:
    labels = change.pop("labels", ours.certificates["label"].to_pylist())
    stated = STATED | {"radii": [0.0, 0.5]} | change
    theirs = import_log(MemoryStore("runs/cohen"), log_of(radii_of([1000] * len(labels)), labels), "log.tsv", **stated)
    return [theirs, ours]


def test_an_imported_run_stands_beside_one_on_the_same_images() -> None:
    both = summarise_side_by_side(beside(make_result(5)))
    assert [run.imported for run in both] == [True, False]
    assert [row.radius for row in both[0].at_radii] == [row.radius for row in both[1].at_radii]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"dataset": "mnist"}, r"data set names differ: mnist5k there, mnist here"),
        ({"split": "train"}, r"splits differ: test there, train here"),
        ({"labels": [1, 1, 1, 1, 1]}, r"labels differ"),
        ({"labels": [0, 7, 4, 1]}, r"image ids differ"),
    ],
)
def test_an_imported_run_of_another_test_set_is_refused(change: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=rf"runs/demo and runs/cohen: certified on different test sets \({what}"):
        summarise_side_by_side(beside(make_result(5), **change))


# Doubts. At K = 1 every radius must be one that a count gives; at any K none may be above what all counts can give.


def test_radii_as_certify_py_computes_and_prints_them_are_not_doubted() -> None:
    counts = [*range(560, 1000, 7), 998, 999, 1000]
    for shown in (".3", ".2f", ".6f", ""):
        assert not imported(radii_of(counts), shown=shown, radii=[0.0]).record.warnings, shown


def test_our_own_export_is_not_doubted() -> None:
    ours = make_result(200, sigma=0.5, estimation=1000)
    stated = STATED | {"radii": [0.0]}
    assert not import_log(MemoryStore(), tsv(ours).encode(), "own.tsv", **stated).record.warnings


def test_counts_that_were_multiplied_are_doubted() -> None:
    """n = 200 treated as 100,000: at the n that was drawn these radii are above all that it can certify."""
    claimed = radii_of([500 * count for count in (150, 190, 199, 200)], 100_000)
    assert [f"{radius:.3}" for radius in claimed] == ["0.331", "0.812", "1.26", "1.91"]
    (inflated, other) = imported(claimed, estimation=200, radii=[0.0]).record.warnings
    assert inflated == (
        "2 radii (first 1.26, image 2) are larger than 0.913, the most that counts alone can certify at n = 200, alpha "
        "= 0.001, sigma = 0.5: a randomised bound (Voracek 2024), which is sound, or more samples were claimed than "
        "drawn, or what is stated is of another log; counts give every radius of the log at n = 100,000"
    )
    assert other.startswith("1 radius (0.812, image 1) is what no count gives at n = 200, alpha = 0.001, sigma = 0.5 ")
    assert not imported(claimed, estimation=100_000, radii=[0.0]).record.warnings


@pytest.mark.parametrize(
    "change", [{"estimation": 999}, {"alpha": 0.002}, {"alpha": 0.0005}, {"sigmas": [0.49]}, {"sigmas": [0.51]}]
)
def test_other_numbers_than_the_logs_are_doubted(change: dict[str, Any]) -> None:
    radii = radii_of([1000 - failed for failed in range(40)])
    assert not imported(radii, shown=".6f", radii=[0.0]).record.warnings
    assert imported(radii, shown=".6f", radii=[0.0], **change).record.warnings


def test_the_alpha_or_n_that_fits_radii_above_the_claim_is_said() -> None:
    """As of a log that was made with alpha = 0.01 at n = 100,000, and is said to be of alpha = 0.001."""
    counts = 100_000 - np.r_[:30, 1000, 10_000]
    at_cents = [float(radius) for radius in 0.25 * norm.ppf(beta.ppf(0.01, counts, 100_000 - counts + 1))]
    stated = {"sigmas": [0.25], "estimation": 100_000, "radii": [0.0]}
    for shown in (".3", ".6f"):
        (said, *_) = imported(at_cents, shown=shown, **stated).record.warnings
        assert said.endswith("of another log; counts give every radius of the log at alpha = 0.01"), said
        assert not imported(at_cents, shown=shown, **stated, alpha=0.01).record.warnings
    # K = 2: what would allow the largest radius is said, and no more can be.
    pooled = np.sqrt(2) * norm.ppf(0.01 ** (1 / 200_000))
    two = {"sigmas": [1.0, 1.0], "radius_rule": "linear", "radii": [0.0], "shown": ".6f"}
    (said, *_) = imported([pooled], **two, estimation=100_000).record.warnings
    assert said.endswith("of another log; alpha = 0.01 or n = 150,000 would allow them")
    # Neither an alpha of 1/2 nor 1e9 samples.
    (said, *_) = imported([8.5], **{**two, "sigmas": [1.0]}).record.warnings
    assert said.endswith("or what is stated is of another log")


@pytest.mark.parametrize("most", [0.97761, 0.977997])
def test_the_limit_is_shown_on_its_side_of_the_radius(most: float) -> None:
    """0.977999 is not "larger than 0.978"."""
    alpha = float(norm.cdf(most / 0.25)) ** 100_000
    (said,) = imported(
        [0.977999], shown=".6f", sigmas=[0.25], estimation=100_000, alpha=alpha, radii=[0.0]
    ).record.warnings
    radius, limit = re.findall(r"first|(\d\.\d+), image 0\) is larger than (\d\.\d+)", said)[0]
    assert most < float(limit) < float(radius)


def test_the_largest_radius_is_not_doubted_for_being_rounded_up() -> None:
    most = radii_of([1000])[0]  # 1.2316: as 1.24 it is doubted, as 1.23 and, printed to two digits, 1.2 it is not
    assert f"{most:.4f}" == "1.2316"
    for radius, shown, doubted in (
        (1.23, ".3", 0),
        (1.2, ".2", 0),
        (1.24, ".3", 1),
        (1.232, ".3f", 0),
        (1.234, ".3f", 1),
    ):
        warnings = imported([radius], shown=shown, radii=[0.0]).record.warnings
        assert len(warnings) == doubted, (radius, warnings)


def test_alpha_that_was_spent_in_full_on_each_sub_image_is_doubted() -> None:
    """Both bounds at alpha: 5.390 sigma at n = 1e5, where bounds that share alpha give at most 5.357 sigma."""
    both = 2 * 3.81145656339 / np.sqrt(2)
    (said,) = imported([both], sigmas=[1.0, 1.0], estimation=100_000, radius_rule="linear", radii=[0.0], shown=".4"
                       ).record.warnings  # fmt: skip
    assert said == (
        "1 radius (5.39, image 0) is larger than 5.357, the most at n = 100,000, alpha = 0.001, sigma = 1, 1 if each "
        "of the 2 bounds has its share of alpha: a joint bound (docs/theory.md 5.4, 5.6) or a randomised one (Voracek "
        "2024), which are sound, or each had all of alpha, which makes the failure probability up to 2 alpha"
    )
    sound = 2 * 3.78775886594 / np.sqrt(2)
    for rule, doubted in (("linear", 0), ("square-root", 1), ("clipped", 1), ("unknown", 1)):
        warnings = imported(
            [sound], sigmas=[1.0, 1.0], estimation=100_000, radius_rule=rule, radii=[0.0], shown=".4"
        ).record.warnings
        assert len(warnings) == doubted


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("square-root", "the square-root rule is no certificate"),
        ("clipped", "negative margins set to 0 are no certificate"),
        ("unknown", "how margins were joined is not stated"),
    ],
)
def test_rules_that_are_no_certificates_are_named(rule: str, said: str) -> None:
    """With the numbers of docs/theory.md 4.5, which are computed here again."""
    (warning,) = imported([0.5], sigmas=[0.5, 0.5], radius_rule=rule, radii=[0.0]).record.warnings
    assert warning.startswith(said)
    assert "docs/theory.md 4.5" in warning
    a = {0.95: 1.6449, 0.6: 0.2533, 0.99: 2.3263, 0.3: -0.5244}
    numbers = {
        "square-root": (np.hypot(a[0.95], a[0.6]), (a[0.95] + a[0.6]) / np.sqrt(2)),
        "clipped": (a[0.99] / np.sqrt(2), (a[0.99] + a[0.3]) / np.sqrt(2)),
    }
    if rule in numbers:
        wrong, true = (float(text) for text in re.findall(r"(\d\.\d+) sigma where (\d\.\d+)", warning)[0])
        assert (wrong, true) == pytest.approx(numbers[rule], abs=1e-3)
    assert imported([0.5], sigmas=[0.5, 0.5], radius_rule=rule, radii=[0.0]).rule == f"as published ({rule})"


def test_rounding_that_may_carry_a_radius_over_the_curve_is_said() -> None:
    """0.4996 is printed as 0.5 and then counts as certified at 0.5."""
    assert f"{0.4996:.3}" == "0.5"
    radii = [radii_of([count])[0] for count in (850, 900, 1000)]
    (said,) = imported([0.4996, *radii], estimation=100_000, radii=[0.0, 0.5, 1.0]).record.warnings
    assert said == (
        "1 radius (0.5, image 0) is less than half a step of the last digit above a radius of the curve: unless the "
        "log was rounded down, they may not reach it, and certified accuracy there may be too high"
    )
    assert not imported([0.502, *radii], estimation=100_000, radii=[0.0, 0.5, 1.0]).record.warnings


# Images and classes that the named data set has.


@pytest.mark.parametrize(
    ("labels", "stated", "said"),
    [
        ([500, 1, 2], {"dataset": "cifar10"}, ["1 of its labels (first 500, image 0) cannot be: cifar10 has 10 cl",
         "1 of its predictions (first 500, image 0) cannot be: cifar10 has 10 classes"]),
        ([500, 1, 2], {"dataset": "imagenet", "split": "val"}, []),
        ([9, 1, 2], {"dataset": "cifar10"}, []),
        ([500, 1, 2], {"dataset": "our own"}, []),
    ],
)  # fmt: skip
def test_classes_that_the_data_set_cannot_have_are_doubted(
    labels: list[int], stated: dict[str, str], said: list[str]
) -> None:
    log = log_of(radii_of([1000] * 3), labels)
    found = import_log(MemoryStore(), log, "log.tsv", **{**STATED, **stated, "radii": [0.0]}).record.warnings
    assert len(found) == len(said)
    assert all(one.startswith(start) for one, start in zip(found, said, strict=True))


def test_ids_that_the_split_cannot_have_are_doubted() -> None:
    log = log_of(radii_of([1000] * 3)).replace(b"\n2\t", b"\n60000\t")

    def warnings(**stated: str) -> tuple[str, ...]:
        return import_log(MemoryStore(), log, "log.tsv", **{**STATED, **stated, "radii": [0.0]}).record.warnings

    (said,) = warnings(dataset="cifar10")
    assert said == (
        "1 of its image ids (first 60000) cannot be: split test of cifar10 has 10,000 images, from 0 on: what is "
        "stated is of another log, or the ids count something else"
    )
    assert len(warnings(dataset="mnist", split="train")) == 1
    assert not warnings(dataset="imagenet", split="train")
    assert not warnings(dataset="cifar10", split="my own")


def test_sizes_are_those_of_the_data_sets() -> None:
    from drs_ray.data.arrays import load_mnist5k
    from drs_ray.data.torchvision_sets import TORCHVISION_SETS
    from drs_ray.published.plausibility import _SIZES

    for name, files in TORCHVISION_SETS.items():
        assert _SIZES[name][0] == files.num_classes
    for split, images in _SIZES["mnist5k"][1].items():
        assert len(load_mnist5k(split)) == images


# Logs without a radius for each image.

PREDICTIONS = "idx\tlabel\tpredict\tcorrect\ttime\n0\t3\t3\t1\t0:00:15\n20\t8\t-1\t0\t0:00:14\n40\t0\t2\t0\t0:00:15\n"


def test_predictions_have_accuracy_and_abstentions_and_no_curve_beyond_0() -> None:
    store = MemoryStore("runs/predicted")
    run = import_log(store, PREDICTIONS.encode(), "predict.tsv", **STATED)
    assert read_reported_run(store).certificates.equals(run.certificates)
    assert (run.record.selection, run.record.log) == (0, "predictions")
    assert run.curve["radius"].to_pylist() == [0.0]
    assert run.curve["certified_accuracy"].to_pylist() == [1 / 3]
    summary = summarise(run, "predicted", radii=[0.0, 0.5])
    assert [row.accuracy_text for row in summary.at_radii] == ["0.333", "-"]
    assert [row.interval_text for row in summary.at_radii] == ["[0.008, 0.906]", ""]
    assert (summary.acr_text, summary.abstention_text) == ("-", "0.334")
    assert "-: a log of predictions has no radii." in shown([run])
    page = render_report([run])
    assert "3 images of mnist5k (test), predictions as published</h1>" in " ".join(page.split())
    assert "it has no radii, and says nothing beyond radius 0;" in page
    assert tsv(run) == PREDICTIONS


def test_predictions_beside_a_run_are_compared_at_radius_0_alone() -> None:
    ours = make_result(40, radii=[0, 0.5])
    labels = ours.certificates["label"].to_pylist()
    rows = "".join(f"{index}\t{label}\t{label}\t1\n" for index, label in enumerate(labels))
    log = f"idx\tlabel\tpredict\tcorrect\n{rows}".encode()
    theirs = import_log(MemoryStore("runs/predicted"), log, "predict.tsv", **STATED)
    (pair,) = paired_differences([ours, theirs], [0.0, 0.5])
    assert [row.radius for row in pair.at_radii] == [0.0]
    assert pair.in_mean == ()
    (both,) = paired_differences([ours, replace(ours, variant="again")], [0.0, 0.5])
    assert [row.radius for row in both.at_radii] == [0.0, 0.5]
    figure = certified_accuracy_figure([ours, theirs])
    point = figure.axes[0].lines[-1]
    assert point.get_xydata().tolist() == [[0.0, theirs.accuracy]]
    assert "predictions alone (a point)" in render_report([ours, theirs])


def test_a_log_of_one_radius_says_nothing_beyond_it() -> None:
    log = (
        b"idx\tlabel\tpredict\tradius proved\tcorrect\tlevels_needed\testimated_pr\ttime\n"
        b"0\t3\t3\t1\t1\t0\t1.0\t0:00:01\n1\t8\t-1\t-1\t0\t2\t0.71\t0:00:09\n"
    )
    store = MemoryStore("runs/adaptive")
    run = import_log(store, log, "adaptive.tsv", **STATED, radius=0.6, radii=[0.0, 0.5, 1.0])
    assert run.record.warnings == ()  # 0.6 is asked for: no count need give it
    assert run.curve["radius"].to_pylist() == [0.0, 0.5, 0.6]
    assert run.curve["certified_accuracy"].to_pylist() == [0.5, 0.5, 0.5]
    assert summarise(run, "adaptive").asked == 0.6
    assert "whether the radius 0.6 was certified, and nothing of larger ones" in render_report([run])
    with pytest.raises(CountsError, match="holds another run already"):
        import_log(store, log, "adaptive.tsv", **STATED, radius=0.5)
    (inflated,) = import_log(MemoryStore(), log, "adaptive.tsv", **STATED, radius=1.5).record.warnings
    assert inflated.startswith("1 radius (1.5, image 0) is larger than 1.232, the most that counts alone can certify")
    assert inflated.endswith("or what is stated is of another log; alpha = 0.26 or n = 5,200 would allow them")
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="import: radius: "):
            import_log(MemoryStore(), log, "adaptive.tsv", **STATED, radius=bad)


def test_an_import_of_before_is_still_read() -> None:
    """run.json without what was added since, and a table without times."""
    store = MemoryStore("runs/cohen")
    run = import_log(store, log_of(radii_of([1000])).replace(b"\ttime", b"").replace(b"\t0:00:01", b""), "x", **STATED)
    assert "time" not in run.certificates.column_names
    before = {name: value for name, value in json.loads(store.get(RUN_KEY)).items() if name not in ("log", "radius")}
    store.put(RUN_KEY, json.dumps(before).encode())
    again = read_reported_run(store)
    assert again.record.run_id == run.record.run_id
    assert again.certificates.equals(run.certificates)


def test_imported_logs_alone_make_a_report() -> None:
    radii = radii_of([1000, 900, 800])
    one, other = (import_log(MemoryStore(f"runs/{name}"), log_of(radii), "x", **STATED) for name in "ab")
    page = " ".join(render_report([one, other]).split())
    assert "<h1>2 published logs on the same 3 images of mnist5k (test), certified against l2 perturbations as " in page
    assert page.count("Nothing is guaranteed of a log whose votes nobody has.") == 1
    assert 'id="guarantee"' not in page
    assert 'href="#guarantee"' not in page
    assert page.count(f"<code>{one.record.source_digest}</code>") == 2  # the provenance of each


# Different images.


def test_what_all_have_is_compared_when_asked_for() -> None:
    ours = make_result(40, radii=[0, 0.5])
    ids, labels = (ours.certificates[name].to_pylist() for name in ("image_id", "label"))

    def every(step: int) -> ImportedResult:
        rows = [f"{i}\t{label}\t{label}\t1.23\t1\n" for i, label in list(zip(ids, labels, strict=True))[::step]]
        log = "idx\tlabel\tpredict\tradius\tcorrect\n" + "".join(reversed(rows))
        return import_log(MemoryStore(f"runs/every-{step}"), log.encode(), "x", **STATED, radii=[0, 0.5])

    runs = [every(2), ours, every(5)]
    with pytest.raises(
        ConfigError, match=r"image ids differ\), so they .* or those images that all have with `drs-ray rep"
    ):
        summarise_side_by_side(runs)
    common = in_common(runs)
    assert [sorted(run.certificates["image_id"].to_pylist()) for run in common] == [[0, 10, 20, 30]] * 3
    assert [run.whole for run in common] == [20, 40, 8]
    kept = ours.certificates.filter(pa.array([image in (0, 10, 20, 30) for image in ids]))
    assert common[1].certificates.equals(kept)
    assert common[1].curve["certified_accuracy"].to_pylist() == [
        float(np.mean([right and radius >= limit for right, radius in zip(
            kept["correct"].to_pylist(), kept["radius"].to_pylist(), strict=True)]))
        for limit in (0, 0.5)
    ]  # fmt: skip
    text = shown(common)
    assert "Certified accuracy on 4 common images of mnist5k (test)" in text
    assert all(f"4 of its {whole} images" in text for whole in (20, 40, 8))
    page = " ".join(render_report(common).split())
    assert "<h1>1 run on the 4 common images of mnist5k (test)" in page
    sections = page.count("<h2 id=")
    assert page.count('<p class="partial">Only the 4 images that all of these have.</p>') == sections + 1
    assert certified_accuracy_figure(common).axes[0].get_title("left") == "only the 4 images that all of these have"
    again = [ours, replace(ours, variant="again")]
    assert in_common(again) == again
    assert in_common(again)[0].whole is None


def test_what_has_nothing_in_common_is_refused() -> None:
    ours = make_result(4, radii=[0, 0.5])
    log = log_of(radii_of([1000])).replace(b"\n0\t", b"\n7\t")
    theirs = import_log(MemoryStore("runs/other"), log, "x", **STATED)
    with pytest.raises(ConfigError, match="there is no image that all 2 have; report each on its own"):
        in_common([ours, theirs])
    wrong = import_log(MemoryStore("runs/wrong"), log_of(radii_of([1000]), [5]), "x", **STATED)
    with pytest.raises(ConfigError, match="labels differ"):
        in_common([ours, wrong])
    with pytest.raises(ConfigError, match="no runs to show"):
        in_common([])
