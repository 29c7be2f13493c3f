import dataclasses

import pytest

from drs_ray.certificates.curve import failed_certificates
from drs_ray.certificates.rule import Rule
from drs_ray.config import parse_config
from drs_ray.errors import ConfigError
from drs_ray.report.summary import duration_text, exact_text, radius_grid, run_names, summarise, summarise_side_by_side
from drs_ray.report.test_sets import check_same_test_set
from drs_ray.results.reduce import RunResult, certify_counts
from tests.unit.counts.factories import make_counts, make_record, make_result, result_of, with_radii


def test_numbers_of_a_run_are_those_of_its_result() -> None:
    result = make_result(40, 2, sigma=0.5, estimation=1000, alpha=0.01)
    run = summarise(dataclasses.replace(result, seconds=8.0), "drs")
    assert (run.name, run.method, run.dataset, run.split, run.images) == ("drs", "DRS (K = 2)", "mnist5k", "test", 40)
    assert (run.sigmas, run.selection, run.estimation, run.alpha) == ((0.5, 0.5), 100, 1000, 0.01)
    assert run.rule == "probit p_A bonferroni"
    assert run.acr == result.average_certified_radius
    assert run.accuracy == result.accuracy
    assert run.abstention_rate == result.abstention_rate
    assert run.samples == result.samples == 40 * 2 * 1100
    assert (run.seconds, run.time_text) == (8.0, "8.0 s")
    killed = summarise(dataclasses.replace(result, seconds=8.0, all_timed=False), "drs")
    assert killed.time_text == ">= 8.0 s"
    assert run.run_id == result.record.run_id
    curve = result.curve.to_pylist()
    assert [row.radius for row in run.at_radii] == [row["radius"] for row in curve]
    assert [row.certified / 40 for row in run.at_radii] == [row["certified_accuracy"] for row in curve]
    assert [row.guaranteed / 40 for row in run.at_radii] == [row["guaranteed_low"] for row in curve]
    assert [(row.ci_low, row.ci_high) for row in run.at_radii] == [(row["ci_low"], row["ci_high"]) for row in curve]


def test_provenance_names_everything_that_changes_a_vote() -> None:
    run = summarise(make_result(40, 2, root="/data/digits", first_id=100), "drs")
    provenance = dict(run.provenance)
    assert provenance["run id"] == run.run_id
    assert provenance["data digest"] == "d" * 64
    assert "/data/digits" in provenance["data set"]
    assert provenance["images"] == "40 (ids 100, 101, 102, ..., 139)"
    assert [value for name, value in run.provenance if name == "weights digest"] == ["0" * 64, "1" * 64]
    assert "seed 0" in provenance["noise"]
    assert "1,000 samples" in provenance["noise"]
    assert provenance["forward batch"] == "100"
    assert provenance["hardware"] == "2 CPU cores"
    assert provenance["software"] == "drs-ray 0.1.0, numpy 2.0"


def test_provenance_names_all_members_of_an_ensemble() -> None:
    result = make_result()
    data = result.record.config.model_dump(mode="json")
    data["classifiers"][0]["members"] = ["b.pt", "c.pt"]
    record = result.record.model_copy(update={"config": parse_config(data)})
    provenance = dict(summarise(dataclasses.replace(result, record=record), "rs").provenance)
    assert provenance["classifier"] == "small-cnn, sigma 0.5, weights.safetensors, b.pt, c.pt"


@pytest.mark.parametrize(("size", "text"), [(None, "40 images"), (1000, "40 of 1,000 images"), (40, "all 40 images")])
def test_a_subset_is_called_a_subset(size: int | None, text: str) -> None:
    result = make_result(40)
    dataset = result.record.dataset.model_copy(update={"size": size})
    record = result.record.model_copy(update={"dataset": dataset})
    assert summarise(dataclasses.replace(result, record=record), "rs").scope_text == text


def test_rules_that_images_got_are_counted() -> None:
    record = make_record(40, 2)
    rule = Rule(confidence="staircase", rivals=True, pooled=True)
    result = result_of(record, certify_counts(make_counts(record), record, rule, 0.001))
    rules = result.certificates["rule"].to_pylist()
    run = summarise(result, "drs")
    assert run.rule == "probit pairs staircase with pooled"
    assert dict(run.image_rules) == {
        name: rules.count(name) for name in ("probit pairs staircase", "probit pairs staircase with pooled")
    }
    assert min(dict(run.image_rules).values()) > 0


def test_comparisons_are_named_after_their_run() -> None:
    result = make_result(5, uri="a/rs")
    plain = dataclasses.replace(result, variant="plain")
    assert run_names([plain, result, _at(result, "b/rs")]) == ["a/rs, plain", "a/rs", "b/rs"]
    assert run_names([plain, plain]) == ["rs, plain", "rs, plain (2)"]
    assert summarise(plain, "x").variant == "plain"


def test_shares_are_displayed_exactly_or_rounded_to_the_safe_side() -> None:
    run = summarise(with_radii(make_result(100), [0.4996] * 57 + [0.0] * 43), "rs", radii=[0, 0.4996, 0.5])
    at_zero, at_radius, beyond = run.at_radii
    assert at_zero.accuracy_text == at_radius.accuracy_text == "0.570"  # not 0.569, the float's
    assert beyond.accuracy_text == "0.000"
    allowed = failed_certificates(100, 0.001)
    assert run.failures_allowed == allowed
    assert at_radius.guaranteed == 57 - allowed
    assert beyond.guaranteed == 0
    low, high = (float(end) for end in at_radius.interval_text.strip("[]").split(", "))
    assert low <= at_radius.ci_low < at_radius.ci_high <= high
    assert beyond.interval_text.startswith("[0.000, ")
    assert run.abstention_text == "0.430"
    assert run.acr_text == "0.284"  # 0.284772 rounded down
    thirds = summarise(with_radii(make_result(3), [1.0, 1.0, 0.0]), "rs")
    assert (thirds.accuracy_text, thirds.abstention_text) == ("0.666", "0.334")


def test_radius_zero_is_always_there() -> None:
    run = summarise(make_result(20, radii=(0.5, 1.0)), "rs")
    assert [row.radius for row in run.at_radii] == [0.0, 0.5, 1.0]
    assert run.at_radii[0].accuracy_text == run.accuracy_text


def test_runs_side_by_side_share_the_union_of_their_radii() -> None:
    first, second = make_result(20, radii=(0.0, 0.5)), make_result(20, 2, radii=(0.25, 0.5, 2.0), uri="runs/other")
    runs = summarise_side_by_side([dataclasses.replace(first, seconds=1.0), second])
    assert radius_grid([first, second]) == [0.0, 0.25, 0.5, 2.0]
    assert [[row.radius for row in run.at_radii] for run in runs] == [[0.0, 0.25, 0.5, 2.0]] * 2
    assert [run.method for run in runs] == ["RS (K = 1)", "DRS (K = 2)"]
    assert [run.seconds for run in runs] == [1.0, None]
    expected = int((second.correct & (second.radius >= 0.25)).sum())
    assert runs[1].at_radii[1].certified == expected


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"name": "cifar10", "root": "/data"}, "data set names differ: mnist5k there, cifar10 here"),
        ({"split": "train"}, "splits differ: test there, train here"),
        ({"digest": "e" * 64}, "digests of the data differ: dddddddddddd... there, eeeeeeeeeeee... here"),
        ({"first_id": 5}, "image ids differ"),
        ({"images": 21}, "image ids differ"),
    ],
)
def test_other_test_sets_are_refused(change: dict[str, object], what: str) -> None:
    first = make_result(20, uri="runs/a")
    other = make_result(**{"images": 20, "uri": "runs/b"} | change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as error:
        check_same_test_set([first, other])
    assert what in str(error.value)
    assert "runs/a and runs/b" in str(error.value)
    assert "\n" not in str(error.value)


def test_no_runs_are_refused() -> None:
    with pytest.raises(ConfigError, match="no runs"):
        summarise_side_by_side([])


@pytest.mark.parametrize(
    ("uris", "names"),
    [
        (["/runs/rs", "s3://bucket/runs/drs"], ["rs", "drs"]),
        (["/a/rs", "/b/rs", "/c/drs"], ["a/rs", "b/rs", "drs"]),
        (["/x/a/rs", "/y/a/rs"], ["x/a/rs", "y/a/rs"]),
        (["/a/rs", "/a/rs"], ["rs", "rs (2)"]),
        (["/a/rs", "/a/rs", "/b/rs"], ["a/rs", "a/rs (2)", "b/rs"]),
        (["rs", "/a/rs"], ["rs", "a/rs"]),
        (["s3://a/rs", "/a/rs"], ["a/rs", "a/rs (2)"]),
        (["/"], ["/"]),
    ],
)
def test_names_are_short_and_unique(uris: list[str], names: list[str]) -> None:
    result = make_result(5)
    assert run_names([_at(result, uri) for uri in uris]) == names


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.44, "8.4 s"), (59.96, "1 min 00 s"), (125, "2 min 05 s"), (3599.7, "1 h 00 min"), (11245, "3 h 07 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_exact_text() -> None:
    assert [exact_text(value) for value in (0.0, 0.25, 1.0, 0.1 + 0.2, 1e-5)] == [
        "0",
        "0.25",
        "1",
        "0.30000000000000004",
        "0.00001",
    ]


def _at(result: RunResult, uri: str) -> RunResult:
    return dataclasses.replace(result, uri=uri)
