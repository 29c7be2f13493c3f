"""Logs of other code: what is read, and the one line that each mistake gets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drs_ray.errors import ConfigError, DataError
from drs_ray.published.log import parse_log

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
# As certify.py of Cohen et al. 2019 writes: {:.3} has three significant digits and no trailing zeros.
LOG = HEADER + (
    "0\t3\t3\t1.53\t1\t0:00:15.2\n"
    "20\t8\t8\t0.5\t1\t0:00:14.9\n"
    "40\t0\t-1\t0.0\t0\t0:00:15.0\n"
    "60\t6\t2\t0.0123\t0\t0:00:15.1\n"
)

steady = settings(derandomize=True, deadline=None, database=None, max_examples=200)


def test_a_log_of_certify_py() -> None:
    log = parse_log(LOG.encode(), "log.tsv")
    assert log.image_id.tolist() == [0, 20, 40, 60]
    assert log.label.tolist() == [3, 8, 0, 6]
    assert log.prediction.tolist() == [3, 8, -1, 2]
    assert log.radius.tolist() == [1.53, 0.5, 0.0, 0.0123]
    assert log.correct.tolist() == [True, True, False, False]
    assert log.notes == ()
    assert log.step[[0, 1, 3]].tolist() == [0.01, 0.001, 0.0001]  # 0.5 is 0.500: others have three digits


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\t", ","),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text + "\n \n",
        lambda text: text.replace("\ttime", "\tseconds"),
        lambda text: "\n".join("\t".join(reversed(line.split("\t"))) for line in text.splitlines()),
        lambda text: text.replace("1.53", " 1.53 "),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace("\n", "\t\n"),
        lambda text: text.replace("14.9\n", "14.9\t\n"),
        lambda text: text.replace("\t", ",").replace("0:00:14.9", '"1 day, 0:00:14.9"'),
        lambda text: "\n".join(",".join(f'"{field}"' for field in line.split("\t")) for line in text.splitlines()),
    ],
    ids=[
        "commas",
        "line ends of Windows",
        "byte order mark",
        "blank end",
        "another last column",
        "any order",
        "spaces",
        "line ends of old Macs",
        "a tab at the end of each line",
        "a tab at the end of one line",
        "a quoted field",
        "all fields quoted",
    ],
)
def test_logs_that_say_the_same(change) -> None:
    plain, changed = parse_log(LOG.encode(), "x"), parse_log(change(LOG).encode(), "x")
    assert changed.kind == "radii"
    for name in ("image_id", "label", "prediction", "radius", "step", "correct"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(changed, name))


@pytest.mark.parametrize(
    ("radii", "steps"),
    [
        (["0.52", "1.91"], [0.01, 0.01]),  # two decimals, or three digits: the coarser
        (["0.520000", "11.000000"], [1e-6, 1e-6]),
        (["0.1234567890123", "1"], [1e-13, 1e-12]),
        (["12", "0.5"], [1.0, 0.1]),
        (["1e-3", "0.25"], [1e-3, 0.01]),
    ],
)
def test_how_far_apart_radii_are(radii: list[str], steps: list[float]) -> None:
    rows = "".join(f"{number}\t1\t1\t{radius}\t1\t0\n" for number, radius in enumerate(radii))
    np.testing.assert_allclose(parse_log((HEADER + rows).encode(), "x").step, steps, rtol=1e-9)


@steady
@given(st.lists(st.floats(1e-4, 9.0), min_size=2, max_size=9), st.sampled_from([".3", ".2f", ".6f", ""]))
def test_what_was_rounded_lies_within_half_a_step(radii: list[float], shown: str) -> None:
    rows = "".join(f"{number}\t1\t1\t{radius:{shown}}\t1\t0\n" for number, radius in enumerate(radii))
    log = parse_log((HEADER + rows.replace("\t0.00\t1", "\t0.00\t0")).encode(), "x")
    printed = log.radius > 0
    off = np.abs(log.radius - radii)[printed]
    assert (off <= log.step[printed] / 2 * (1 + 1e-9)).all()


def test_a_class_with_radius_0_is_an_abstention() -> None:
    log = parse_log((HEADER + "0\t3\t3\t0.0\t1\t0\n1\t3\t3\t0.25\t1\t0\n").encode(), "x")
    assert log.prediction.tolist() == [-1, 3]
    assert log.correct.tolist() == [False, True]
    assert log.notes == ("a class with radius 0, which certifies nothing, counts as an abstention (images: 1)",)


def test_a_running_total_of_right_answers() -> None:
    rows = "0\t3\t3\t0.3\t1\t0\n1\t3\t3\t0.25\t2\t0\n2\t5\t1\t0.25\t2\t0\n"
    log = parse_log((HEADER + rows).encode(), "x")
    assert log.correct.tolist() == [True, True, False]
    assert log.notes == ("the column correct is a running total; what is correct was taken from label and predict",)


PREDICTIONS = (
    "idx\tlabel\tpredict\tcorrect\ttime\n0\t3\t3\t1\t0:00:15.2\n20\t8\t-1\t0\t0:00:14.9\n40\t0\t2\t0\t0:00:15\n"
)
# As certify_ensemble_adaptive.py of smoothing-ensembles writes: 1 where the radius was certified, -1 elsewhere.
ADAPTIVE = (
    "idx\tlabel\tpredict\tradius proved\tcorrect\tlevels_needed\testimated_pr\ttime\n"
    "0\t3\t3\t1\t1\t0\t0.999\t0:00:01\n"
    "20\t8\t-1\t-1\t0\t2\t0.71\t0:00:09\n"
    "40\t0\t2\t1\t0\t1\t0.98\t0:00:04\n"
)


def test_a_log_of_predict_py() -> None:
    log = parse_log(PREDICTIONS.encode(), "log.tsv")
    assert log.kind == "predictions"
    assert log.prediction.tolist() == [3, -1, 2]
    assert log.correct.tolist() == [True, False, False]
    assert log.radius.tolist() == [0, 0, 0]
    assert log.time == ("0:00:15.2", "0:00:14.9", "0:00:15")
    assert log.notes == ()
    without_time = "\n".join(line.rpartition("\t")[0] for line in PREDICTIONS.splitlines())
    assert parse_log(without_time.encode(), "x").time is None
    with pytest.raises(DataError, match=r"line 3: correct is 1, but label is 8 and predict -1"):
        parse_log(PREDICTIONS.replace("-1\t0", "-1\t1").encode(), "x")
    with pytest.raises(DataError, match="has a header alone, in line 1"):
        parse_log(PREDICTIONS.splitlines()[0].encode(), "x")


def test_a_log_of_one_radius() -> None:
    log = parse_log(ADAPTIVE.encode(), "log.tsv", 0.25)
    assert log.kind == "one radius"
    assert log.prediction.tolist() == [3, -1, 2]
    assert log.radius.tolist() == [0.25, 0, 0.25]
    assert log.correct.tolist() == [True, False, False]
    assert log.notes == ()
    silent = parse_log(ADAPTIVE.replace("\t3\t1\t1", "\t3\t-1\t1").encode(), "log.tsv", 0.25)
    assert silent.prediction.tolist() == [-1, -1, 2]
    assert silent.notes == ("a class with no proved radius counts as an abstention (images: 1)",)
    with pytest.raises(
        ConfigError, match=r"log.tsv: its column `radius proved` says whether .*; name it: --radius 0.5"
    ):
        parse_log(ADAPTIVE.encode(), "log.tsv")
    with pytest.raises(ConfigError, match=r"radius is for a log with the column `radius proved`.*leave it out"):
        parse_log(LOG.encode(), "log.tsv", 0.25)
    with pytest.raises(DataError, match=r"line 2: radius proved must be 1 \(certified\) or -1, got '0.3'"):
        parse_log(ADAPTIVE.replace("\t3\t1\t1", "\t3\t0.3\t1").encode(), "x", 0.25)
    with pytest.raises(DataError, match=r"line 3: an abstention \(predict -1\) has radius proved 1; it must be -1"):
        parse_log(ADAPTIVE.replace("-1\t-1", "-1\t1").encode(), "x", 0.25)


def test_an_image_without_a_label_is_never_right() -> None:
    assert not parse_log((HEADER + "0\t-1\t-1\t0.0\t1\t0\n").encode(), "x").correct.any()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("radius\t", "", "line 2: 6 fields, the header has 5; mend or remove the line"),
        ("radius\t", "certified_radius\t",
         "line 1: the header lacks radius; it must name idx, label, predict, radius, correct once"),
        ("idx\tlabel", "label", "line 1: the header lacks idx"),
        ("time\n", "idx\n", "line 1: the header names a column twice"),
        (HEADER, "", "line 1: the header lacks idx, label, predict, radius, correct"),
        (HEADER, HEADER.replace("\t", " "), "line 1: the header lacks idx, label, predict, radius, correct"),
        ("20\t8\t8\t0.5\t1\t0:00:14.9", "20,8,8,0.5,1,0:00:14.9", "line 3: 1 field, the header has 6: it is separated "
         "by commas, the header by tabs; use one of them"),
        ("20\t8\t8\t0.5\t1\t0:00:14.9", "20 8 8 0.5 1 0:00:14.9", "separated by spaces, the header by tabs"),
        ("14.9\n", "14.9\t\t\n", "line 3: 8 fields, the header has 6; mend or remove the line"),
        ("0:00:14.9", '"0:00:14.9', "line 3: its quotes do not match (unexpected end of data); mend or"),
        ("20\t8\t8", "20\t8", "line 3: 5 fields, the header has 6; mend or remove the line"),
        ("\t0:00:15.0\n", "\t0:00:15.0\n\n", "line 5: 1 field, the header has 6"),
        ("40\t0", "20\t0", "line 4: image 20 is there a second time, first in line 3; an image has one certificate"),
        ("0.5\t", "half\t", "line 3: radius must be a finite number >= 0, got 'half'; mend or remove the line"),
        ("0.5\t", "nan\t", "line 3: radius must be a finite number >= 0, got 'nan'"),
        ("0.5\t", "inf\t", "line 3: radius must be a finite number >= 0, got 'inf'"),
        ("0.5\t", "1e999\t", "line 3: radius must be a finite number >= 0, got 1e999"),
        ("0.5\t", "-0.5\t", "line 3: radius must be a finite number >= 0, got '-0.5'"),
        ("0.5\t", "0_5\t", "line 3: radius must be a finite number >= 0, got '0_5'"),
        ("0.5\t", "0,5\t", "line 3: radius must be a finite number >= 0, got '0,5'"),
        ("0.5\t", "\t", "line 3: radius must be a finite number >= 0, got ''"),
        ("20\t8", "20.0\t8", "line 3: idx must be a whole number, got '20.0'"),
        ("20\t8", "-20\t8", "line 3: idx must be the number of an image, >= 0, got -20"),
        ("20\t8", "20\teight", "line 3: label must be a whole number, got 'eight'"),
        ("20\t8", "20\t-2", "line 3: label must be a class (or -1: none), got -2"),
        ("8\t0.5", "4294967296\t0.5", "line 3: predict must be a class (or -1: none), got 4294967296"),
        ("0.5\t1", "0.5\tTrue", "line 3: correct must be a whole number, got 'True'"),
        ("0.5\t1", "0.5\t0", "line 3: correct is 0, but label is 8 and predict 8; mend the line"),
        ("0.0123\t0", "0.0123\t1", "line 5: correct is 1, but label is 6 and predict 2; mend the line"),
        ("-1\t0.0", "-1\t0.1", "line 4: an abstention (predict -1) has radius 0.1; it must be 0"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_line_that_names_its_line(old: str, new: str, message: str) -> None:
    assert old in LOG
    with pytest.raises(DataError) as caught:
        parse_log(LOG.replace(old, new, 1).encode(), "log.tsv")
    text = str(caught.value)
    assert text.startswith("log.tsv: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "log.tsv: is empty; give a log in the format of certify.py"),
        (b"\n \n", "log.tsv: is empty"),
        (HEADER.encode(), "log.tsv: has a header alone, in line 1, and no image; give the log of a run that has some"),
        (b"\xff\xfe\x00PAR1", r"log.tsv: is not text \(UTF-8\); give a log"),
    ],
)
def test_files_that_are_no_logs(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_log(data, "log.tsv")


@steady
@given(st.binary(max_size=80) | st.text("0123456789.\t-,eidxlabprcut \n", max_size=80).map(str.encode))
def test_anything_else_is_refused_on_purpose(data: bytes) -> None:
    with pytest.raises(DataError):
        parse_log(data, "x")
    with pytest.raises(DataError):
        parse_log(HEADER.encode() + b"x" + data, "x")
