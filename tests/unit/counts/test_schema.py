"""The tables as they are documented: every column, its type, and versions that a reader can know."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from drs_ray.counts.schema import (
    ATTACKS,
    CERTIFICATES,
    COUNTS,
    CURVE,
    IMPORTED_CERTIFICATES,
    IMPORTED_TIME,
    SCHEMA_VERSION,
    check_version,
    metadata,
    with_metadata,
)
from drs_ray.errors import CountsError

PAGE = (Path(__file__).parents[3] / "docs" / "results.md").read_text(encoding="utf-8")
TABLES = {
    "counts": COUNTS,
    "certificates": CERTIFICATES,
    "curve": CURVE,
    "attacks": ATTACKS,
    "Exchange": IMPORTED_CERTIFICATES.append(IMPORTED_TIME),
}


def documented(section: str) -> list[tuple[str, str, str, str]]:
    """Column, type, unit and range, and example of the table of a section; a row may document several columns."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert text
    lines = text[1].split("| column | type | unit and range | example |\n|---|---|---|---|\n")[1].splitlines()
    rows = []
    for line in lines[: lines.index("")]:
        names, kinds, meaning, example = (cell.strip() for cell in line.strip("|").split("|"))
        columns, types = re.findall(r"`(\w+)`", names), kinds.split(", ")
        kinds_of = types if len(types) == len(columns) else [kinds] * len(columns)
        rows += [(column, kind, meaning, example) for column, kind in zip(columns, kinds_of, strict=True)]
    return rows


def name_of(kind: pa.DataType) -> str:
    """A type as the page has it: what lists and maps hold is never null."""
    if pa.types.is_list(kind):
        return f"list<{name_of(kind.value_type)}>"
    if pa.types.is_map(kind):
        return f"map<{name_of(kind.key_type)}, {name_of(kind.item_type)}>"
    return {"double": "float64", "float": "float32"}.get(str(kind), str(kind))


@pytest.mark.parametrize("section", TABLES)
def test_every_column_is_documented_with_its_type_unit_and_example(section: str) -> None:
    rows, schema = documented(section), TABLES[section]
    assert [column for column, *_ in rows] == schema.names
    for (column, kind, meaning, example), field in zip(rows, schema, strict=True):
        assert kind == name_of(field.type), column
        assert meaning, column
        assert example, column


@pytest.mark.parametrize("schema", TABLES.values(), ids=TABLES)
def test_every_column_carries_its_unit_and_is_never_null(schema: pa.Schema) -> None:
    for field in schema:
        assert field.metadata[b"unit"], field.name
        assert not field.nullable, field.name


def test_every_key_of_the_metadata_is_documented() -> None:
    section = PAGE.split("**Metadata.**")[1].split("**Versions.**")[0]
    keys = re.findall(r"^\| `drs_ray\.(\w+)`", section, re.MULTILINE)
    assert keys == ["schema_version", "run_id", "table", "unit", "units", "rule", "alpha"]
    written = metadata(
        with_metadata(CURVE, "0123456789abcdef", table="curve", rule="probit p_A bonferroni", alpha="0.001")
    )
    assert written["schema_version"] == str(SCHEMA_VERSION)
    assert set(written) <= set(keys)


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_all_versions_up_to_todays_are_read(version: int) -> None:
    check_version(version, "run.json")
    check_version(str(version), "run.json")


def test_a_newer_version_is_refused_in_one_line() -> None:
    with pytest.raises(CountsError) as caught:
        check_version(SCHEMA_VERSION + 1, "runs/x/curve.parquet")
    assert str(caught.value) == (
        f"runs/x/curve.parquet: schema version {SCHEMA_VERSION + 1}, this drs-ray reads up to {SCHEMA_VERSION}; "
        "use the newer that wrote it"
    )


@pytest.mark.parametrize("version", [0, -1, 1.5, "", "one", None, "²"])
def test_what_is_no_version_is_refused(version: object) -> None:
    with pytest.raises(CountsError, match="versions are whole numbers from 1 on; restore it"):
        check_version(version, "run.json")
