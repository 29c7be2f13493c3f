"""Runs read by others: the examples of the documents in DuckDB, pandas, polars and Ray Data, and the notebook."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import drs_ray
from drs_ray.results.reduce import RunResult
from drs_ray.results.tables import parquet_bytes
from tests.support.runs import run_data
from tests.unit.counts.factories import make_result

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunResult:
    """The tables of two runs where the examples look for them; those of the second run."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("rs", "drs")):
        run = make_result(70, 1 + seed, seed=seed)
        place = tmp_path / "runs" / "demo" / name
        place.mkdir(parents=True)
        (place / "certificates.parquet").write_bytes(parquet_bytes(run.certificates))
        (place / "curve.parquet").write_bytes(parquet_bytes(run.curve))
    return run


def examples(document: str, importing: str) -> list[str]:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    found = [block for block in blocks if block.startswith(f"import {importing}")]
    assert found, importing
    return found


def printed(code: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        exec(code, {})
    return out.getvalue()


def at_half(run: RunResult) -> float:
    share = dict(zip(run.curve["radius"].to_pylist(), run.curve["certified_accuracy"].to_pylist(), strict=True))[0.5]
    assert 0 < share < 1
    return share


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow.compute"])
def test_a_table_in_another_library(demo: RunResult, library: str) -> None:
    (code,) = examples("docs/results.md", library)
    assert float(printed(code).splitlines()[0]) == at_half(demo)


def test_several_runs_in_duckdb(demo: RunResult) -> None:
    (code,) = examples("docs/results.md", "duckdb")
    text = printed(code)
    shares = dict(re.findall(r"runs/demo/(\w+)/certificates\.parquet\W+([\d.]+)", text))
    assert set(shares) == {"rs", "drs"}
    assert float(shares["drs"]) == pytest.approx(at_half(demo), rel=1e-12)


def test_the_four_lines_of_duckdb(demo: RunResult) -> None:
    (code,) = examples("docs/python.md", "duckdb")
    assert len([line for line in code.splitlines() if line]) == 4
    rows = re.findall(r"│ +(\d) │ +(\d+) │ +([\d.]+) │", printed(code))
    frame = demo.certificates.to_pandas()
    held = frame["correct"] & (frame["radius"] >= 0.5)
    assert {int(label): int(images) for label, images, _ in rows} == frame.groupby("label").size().to_dict()
    shown = {int(label): float(share) for label, _, share in rows}
    assert shown == pytest.approx(held.groupby(frame["label"]).mean().to_dict())
    shares = [float(share) for *_, share in rows]
    assert shares == sorted(shares)


def test_the_four_lines_of_pandas(demo: RunResult) -> None:
    (code,) = examples("docs/python.md", "pandas")
    assert len([line for line in code.splitlines() if line]) == 4
    row = next(line for line in printed(code).splitlines() if line.startswith("0.5"))
    assert float(row.split()[2]) == pytest.approx(at_half(demo), abs=1e-6)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Data's own settings
def test_a_table_in_ray_data(demo: RunResult, local_ray: None) -> None:
    (code,) = examples("docs/results.md", "ray")
    code = code.replace("runs/demo", f"{Path.cwd()}/runs/demo")  # this Ray was started elsewhere
    assert float(printed(code)) == pytest.approx(at_half(demo), rel=1e-12)


@pytest.mark.parametrize("name", ["duckdb", "pandas", "polars"])
def test_what_reads_a_table_is_needed_by_no_one(name: str) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    needed, dev = project.split("[dependency-groups]")
    assert f'"{name}' not in needed
    assert f'"{name}' in dev


def test_the_notebook_runs(tmp_path: Path) -> None:
    """On two small real runs; it checks one certificate by hand itself."""
    for seed, name in enumerate(("rs", "drs")):
        data = run_data(tmp_path / "runs" / "demo" / name, images=8)
        data["noise"]["seed"] = seed
        data["classifiers"] = [classifier | {"sigma": 0.12} for classifier in data["classifiers"]]
        drs_ray.certify(drs_ray.config.parse_config(data))
    (tmp_path / "examples").mkdir()
    notebook = nbformat.read(ROOT / "examples" / "analysis.ipynb", as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(tmp_path / "examples")}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert re.search(r"^R >= \S", text, re.MULTILINE)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("| run | sigma |" in output.get("data", {}).get("text/markdown", "") for output in outputs)
