"""Parts and their invariants: what is written comes back, and nothing else is believed."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drs_ray.counts.encoding import CountsRow, encode_part
from drs_ray.counts.history import Counts, read_counts
from drs_ray.counts.run_record import RunRecord
from drs_ray.counts.schema import COUNTS, with_metadata
from drs_ray.errors import CountsError
from tests.unit.counts.factories import CLASSES, MemoryStore, decode_part, make_record

SELECTION, ESTIMATION = 100, 1000
KEY = "counts/k0/part.parquet"


def random_votes(samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(samples, np.r_[0.7, 0.2, 0, 0, 0.1, np.zeros(CLASSES - 5)])


def row(
    image_id: int = 0, sub_image: int = 0, phase: str = "estimation", first: int = 0, samples: int = 10
) -> CountsRow:
    seed = abs(image_id * 1000 + sub_image * 100 + first) + (phase == "selection")
    return CountsRow(image_id, image_id % CLASSES, sub_image, phase, 0, first, samples, random_votes(samples, seed))


def rows_of(record: RunRecord, cuts: tuple[int, ...] = (0, ESTIMATION)) -> list[CountsRow]:
    """All rows of a run, the estimation samples cut at `cuts`."""
    rows = []
    for image_id in record.image_ids:
        for k in range(record.sub_images):
            rows.append(row(image_id, k, "selection", 0, SELECTION))
            rows += [row(image_id, k, "estimation", a, b - a) for a, b in itertools.pairwise(cuts)]
    return rows


def stored(record: RunRecord, rows: Iterable[CountsRow], parts: int = 3) -> MemoryStore:
    """A store that holds the rows, dealt over parts."""
    store, dealt = MemoryStore(), list(rows)
    for number in range(parts):
        key = f"counts/k0/p{number}.parquet"
        if dealt[number::parts]:
            store.put(key, encode_part(dealt[number::parts], record.run_id, key))
    return store


def part_of(columns: dict[str, list], run: str = "run", key: str = KEY) -> bytes:
    """A part with any content at all, to break rules that `encode_part` keeps."""
    schema = with_metadata(COUNTS, run, table="counts", unit=key)
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), sink)
    return sink.getvalue()


def columns(**changed: object) -> dict[str, list]:
    values: dict[str, object] = {
        "image_id": 0, "label": 0, "sub_image": 0, "phase": "estimation", "stage": 0, "first_sample": 0, "samples": 10,
        "votes": [(0, 7), (3, 3)],
    }  # fmt: skip
    return {name: [value] for name, value in (values | changed).items()}


def one_line(error: pytest.ExceptionInfo[CountsError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert ";" in message  # what is wrong; what to do
    return message


class TestOnePart:
    def test_round_trip(self) -> None:
        rows = [row(3, 0, "selection"), row(3, 1, "estimation", 0, 500), row(70_000, 1, "estimation", 500, 1)]
        table = decode_part(encode_part(rows, "run", KEY), KEY, "run", CLASSES)
        assert len(table) == 3
        for at, expected in enumerate(rows):
            found = table.slice(at, 1).to_pylist()[0]
            dense = np.zeros(CLASSES, np.int64)
            for label, votes in found.pop("votes"):
                dense[label] = votes
            assert dense.tolist() == expected.votes.tolist()
            assert found == {name: getattr(expected, name) for name in found}

    def test_the_same_rows_are_the_same_bytes(self) -> None:
        rows = [row(i) for i in range(5)]
        assert encode_part(iter(rows), "run", KEY) == encode_part(rows, "run", KEY)

    def test_classes_without_votes_cost_nothing(self) -> None:
        votes = np.zeros(100_000, np.int64)
        votes[[17, 99_999]] = 6, 4
        data = encode_part([dataclasses.replace(row(), votes=votes)], "run", KEY)
        assert len(data) < 10_000
        assert decode_part(data, KEY, "run", 100_000)["votes"].to_pylist() == [[(17, 6), (99_999, 4)]]

    def test_a_broken_off_part(self) -> None:
        data = encode_part([row(i) for i in range(20)], "run", KEY)
        for length in [0, 1, 4, 8, 100, len(data) // 2, len(data) - 8, len(data) - 4, len(data) - 1]:
            with pytest.raises(CountsError) as error:
                decode_part(data[:length], KEY, "run", CLASSES)
            assert one_line(error).startswith(
                f"counts part {KEY}: truncated, damaged or not Parquet; `drs-ray repair RUN`"
            )

    @pytest.mark.parametrize("data", [b"hello", b"PAR1" + b"\0" * 100 + b"PAR1", b"{}" * 1000])
    def test_not_parquet(self, data: bytes) -> None:
        with pytest.raises(CountsError) as error:
            decode_part(data, KEY, "run", CLASSES)
        assert "truncated, damaged or not Parquet" in one_line(error)

    def test_damaged_bytes_are_never_believed(self) -> None:
        """A flipped bit is caught, or it lies where nothing of the table is: the sum of the votes is no checksum."""
        data = encode_part([row(i) for i in range(20)], "run", KEY)
        whole = decode_part(data, KEY, "run", CLASSES)
        refused = 0
        for at in range(0, len(data), 7):
            for flip in (0x01, 0x80):
                damaged = bytearray(data)
                damaged[at] ^= flip
                try:
                    table = decode_part(bytes(damaged), KEY, "run", CLASSES)
                except CountsError:
                    refused += 1
                else:
                    assert table.equals(whole), at
        assert refused > 100

    def test_foreign_parquet(self) -> None:
        sink = io.BytesIO()
        pq.write_table(pa.table({"a": [1, 2]}), sink)
        with pytest.raises(CountsError) as error:
            decode_part(sink.getvalue(), KEY, "run", CLASSES)
        assert "schema_version is None, expected 1" in one_line(error)

    @pytest.mark.parametrize(
        ("run", "key", "message"),
        [
            ("other", KEY, "run_id is run, expected other"),
            ("run", "counts/k1/part.parquet", f"unit is {KEY}, expected counts/k1/part.parquet"),
        ],
    )
    def test_of_another_run_or_under_another_key(self, run: str, key: str, message: str) -> None:
        with pytest.raises(CountsError) as error:
            decode_part(encode_part([row()], "run", KEY), key, run, CLASSES)
        assert message in one_line(error)
        assert f"counts part {key}: " in str(error.value)

    def test_another_table_or_version_of_this_run(self) -> None:
        for name, value in (("table", "certificates"), ("schema_version", "2")):
            schema = with_metadata(COUNTS, "run", table="counts", unit=KEY)
            changed = schema.with_metadata({**schema.metadata, f"drs_ray.{name}".encode(): value.encode()})
            sink = io.BytesIO()
            pq.write_table(pa.table(columns(), schema=changed), sink)
            with pytest.raises(CountsError) as error:
                decode_part(sink.getvalue(), KEY, "run", CLASSES)
            assert f"{name} is {value}, expected" in one_line(error)

    def test_other_columns(self) -> None:
        metadata = with_metadata(COUNTS, "run", table="counts", unit=KEY).metadata
        sink = io.BytesIO()
        pq.write_table(pa.table({"image_id": [1]}).replace_schema_metadata(metadata), sink)
        with pytest.raises(CountsError) as error:
            decode_part(sink.getvalue(), KEY, "run", CLASSES)
        assert "its columns are not those of the counts table" in one_line(error)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"samples": 11}, "votes of image 0 sum to 10, expected 11"),
            ({"samples": 9}, "votes of image 0 sum to 10, expected 9"),
            ({"votes": []}, "votes of image 0 sum to 0, expected 10"),
            ({"votes": [(0, 13), (3, -3)]}, "negative votes"),
            ({"samples": 0, "votes": []}, "empty rows"),
            ({"samples": -10, "votes": [(0, -10)]}, "negative votes"),
            ({"votes": [(0, 7), (CLASSES, 3)]}, f"class outside 0..{CLASSES - 1}"),
            ({"votes": [(-1, 7), (3, 3)]}, f"class outside 0..{CLASSES - 1}"),
            ({"phase": "training"}, "unknown phase ['training']"),
        ],
    )
    def test_rows_that_do_not_add_up(self, changed: dict[str, object], message: str) -> None:
        with pytest.raises(CountsError) as error:
            decode_part(part_of(columns(**changed)), KEY, "run", CLASSES)
        assert message in one_line(error)
        decode_part(part_of(columns()), KEY, "run", CLASSES)  # unchanged, it is accepted

    def test_the_row_that_is_off_is_named(self) -> None:
        rows = [row(i) for i in range(5)]
        rows[3] = dataclasses.replace(rows[3], samples=12)
        with pytest.raises(CountsError, match="votes of image 3 sum to 10, expected 12"):
            decode_part(encode_part(rows, "run", KEY), KEY, "run", CLASSES)


def dense(counts: Counts) -> dict[tuple[str, int], np.ndarray]:
    return {
        (phase, k): part.toarray()
        for phase in ("selection", "estimation")
        for k, part in enumerate(getattr(counts, phase))
    }


class TestWholeRuns:
    @pytest.mark.parametrize("sub_images", [1, 2])
    @pytest.mark.parametrize("cuts", [(0, ESTIMATION), (0, 300, 301, ESTIMATION)], ids=str)
    @pytest.mark.parametrize("parts", [1, 4])
    def test_sparse_votes_are_the_dense_sums(self, sub_images: int, cuts: tuple[int, ...], parts: int) -> None:
        record = make_record(7, sub_images, first_id=100)
        rows = rows_of(record, cuts)
        np.random.default_rng(0).shuffle(rows)  # type: ignore[arg-type]
        counts = read_counts(stored(record, rows, parts), record).at(ESTIMATION)
        assert counts.image_ids.tolist() == list(record.image_ids)
        assert counts.labels.tolist() == [i % CLASSES for i in record.image_ids]
        expected = {name: np.zeros((7, CLASSES), np.int64) for name in dense(counts)}
        for item in rows:
            expected[item.phase, item.sub_image][item.image_id - 100] += item.votes
        for name, table in dense(counts).items():
            assert table.dtype == np.int64
            assert table.tolist() == expected[name].tolist()
        assert len(counts.selection) == len(counts.estimation) == sub_images

    def test_images_come_in_the_order_of_the_run(self) -> None:
        record = make_record(3)
        shuffled = record.model_copy(update={"image_ids": (2, 0, 1)})
        counts = read_counts(stored(shuffled, rows_of(record)), shuffled).at(ESTIMATION)
        assert counts.image_ids.tolist() == [2, 0, 1]
        assert counts.labels.tolist() == [2, 0, 1]
        assert counts.estimation[0].toarray()[1].tolist() == row(0, 0, "estimation", 0, ESTIMATION).votes.tolist()

    def test_other_objects_of_the_run_are_no_parts(self) -> None:
        record = make_record(2)
        store = stored(record, rows_of(record))
        store.put("run.json", b"{}")
        store.put("certificates.parquet", b"")
        read_counts(store, record)

    def test_no_counts_yet(self) -> None:
        with pytest.raises(CountsError, match=r"memory: no counts yet \(0 of 3 images\); run `drs-ray certify`"):
            read_counts(MemoryStore(), make_record(3))

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda rows: rows + rows[3:4], "samples are there twice for image 1, sub-image 1, selection"),
            (
                lambda rows: [*rows, row(0, 1, "estimation", 900, 50)],
                "samples are there twice for image 0, sub-image 1, estimation",
            ),
            (
                lambda rows: [*rows, row(0, 0, "estimation", -50, 50)],
                "samples are there twice for image 0, sub-image 0, estimation",
            ),
            (lambda rows: rows[1:], "1 of 3 images lacks samples, first image 0, sub-image 0, selection (0 of 100)"),
            (lambda rows: [r for r in rows if r.image_id == 1], "2 of 3 images lack samples, first image 0"),
            (
                lambda rows: [dataclasses.replace(r, image_id=9) if r.image_id == 2 else r for r in rows],
                "image 9, sub-image 0 is not part of this run",
            ),
            (
                lambda rows: [*rows, row(0, 2, "estimation", 0, ESTIMATION)],
                "image 0, sub-image 2 is not part of this run",
            ),
            (
                lambda rows: [*rows, row(0, -1, "estimation", 0, ESTIMATION)],
                "image 0, sub-image -1 is not part of this run",
            ),
            (
                lambda rows: [*rows, row(2, 1, "estimation", ESTIMATION, 5)],
                "more samples than planned for image 2, sub-image 1, estimation",
            ),
            (
                lambda rows: [dataclasses.replace(r, label=7) if r.phase == "selection" else r for r in rows],
                "different labels",
            ),
        ],
        ids=["duplicate", "overlap", "before 0", "row missing", "images missing", "foreign image", "sub-image",
             "negative sub-image", "too many", "labels"],
    )  # fmt: skip
    def test_every_sample_exactly_once(self, spoil: Callable[[list[CountsRow]], list[CountsRow]], message: str) -> None:
        record = make_record(3, 2)
        rows = sorted(rows_of(record), key=lambda r: (r.phase == "estimation", r.image_id, r.sub_image))
        read_counts(stored(record, rows), record)
        with pytest.raises(CountsError) as error:
            read_counts(stored(record, spoil(rows)), record)
        assert message in one_line(error)

    def test_a_gap_that_leaves_the_total_right(self) -> None:
        """Samples 600..999 and 1000..1399 in place of 600..999: 400 noise samples too far, 400 missing."""
        record = make_record(2)
        rows = rows_of(record, (0, 600, ESTIMATION))
        moved = [
            dataclasses.replace(r, first_sample=1000) if r.first_sample == 600 and r.image_id == 1 else r for r in rows
        ]
        with pytest.raises(CountsError) as error:
            read_counts(stored(record, moved), record)
        assert "more samples than planned for image 1, sub-image 0, estimation" in one_line(error)

    def test_a_gap_inside(self) -> None:
        record = make_record(2)
        rows = [r for r in rows_of(record, (0, 300, 600, ESTIMATION)) if r.first_sample != 300]
        with pytest.raises(CountsError) as error:
            read_counts(stored(record, rows), record)
        assert "first image 0, sub-image 0, estimation (700 of 1000)" in one_line(error)

    def test_one_bad_part_among_many_is_named(self) -> None:
        record = make_record(5)
        store = stored(record, rows_of(record), parts=4)
        store.objects["counts/k0/p2.parquet"] = store.objects["counts/k0/p2.parquet"][:-20]
        with pytest.raises(CountsError) as error:
            read_counts(store, record)
        assert "counts/k0/p2.parquet" in one_line(error)

    def test_a_copied_part_is_refused(self) -> None:
        record = make_record(5)
        store = stored(record, rows_of(record))
        store.objects["counts/k0/copy.parquet"] = store.objects["counts/k0/p1.parquet"]
        with pytest.raises(CountsError) as error:
            read_counts(store, record)
        assert "unit is counts/k0/p1.parquet, expected counts/k0/copy.parquet" in one_line(error)

    def test_parts_of_another_budget(self) -> None:
        record = make_record(2, estimation=500)
        with pytest.raises(CountsError, match="more samples than planned"):
            read_counts(stored(record, rows_of(record)), record)
