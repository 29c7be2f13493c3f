"""Runs in other formats: the field's log (tsv), all columns (csv), and tables of certified accuracy for papers.

Numbers are rounded down, so that the text never claims more than was computed. Imported radii were published as
decimals, which a log repeats unchanged.
"""

from __future__ import annotations

import datetime
import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from drs_ray.certificates.radius import Floats
from drs_ray.certificates.rounding import exact_text, format_down
from drs_ray.errors import ConfigError
from drs_ray.published.imported_run import ImportedResult, ReportedRun
from drs_ray.report.summary import RunSummary, radius_grid, run_names, summarise
from drs_ray.report.test_sets import check_same_test_set

RADIUS_DIGITS = 6
"""Decimals of radii in a log, rounded down."""


def export(results: Sequence[ReportedRun], kind: str, radii: Sequence[float] | None = None) -> str:
    """Runs as text.

    Args:
        results: one run for tsv and csv, one or several over one test set for markdown and latex.
        kind: one of `FORMATS`.
        radii: columns of a table, increasing, pixel units; None: the runs' own radii. Not for tsv and csv.

    Raises:
        ConfigError: an unknown format, several runs for a format of one, radii for a format without, or runs over
        different test sets.
    """
    if kind not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got '{kind}'")
    if kind in _TABLES:
        check_same_test_set(results)
        grid = radius_grid(results) if radii is None else list(radii)
        _check_grid(grid)
        names = run_names(results)
        return _TABLES[kind]([summarise(run, name, radii=grid) for run, name in zip(results, names, strict=True)])
    if len(results) != 1:
        raise ConfigError(f"{kind} holds the images of one run, got {len(results)}; name one, or use markdown or latex")
    if radii is not None:
        raise ConfigError(
            f"radii are columns of markdown and latex tables, {kind} has every image's own; leave them out"
        )
    return _LOGS[kind](results[0])


def tsv(result: ReportedRun) -> str:
    """One row per image, `idx label predict radius correct time`, as certify.py of Cohen et al. 2019 writes.

    predict is -1 and radius 0 where abstaining. time: of a batch run, its wall time divided by its images, `nan` if the
    time of a session is not known; of an imported log, as published. A log of predictions has no radius, as predict.py
    writes.
    """
    table = result.certificates
    time = "nan"
    if result.seconds is not None and result.all_timed:
        time = str(datetime.timedelta(seconds=result.seconds / result.images))
    columns = {
        "idx": table["image_id"].to_pylist(),
        "label": table["label"].to_pylist(),
        "predict": table["prediction"].to_pylist(),
        **({"radius": _log_radii(result)} if result.has_radii else {}),
        "correct": result.correct.astype(np.int64).tolist(),
        "time": table["time"].to_pylist() if "time" in table.column_names else [time] * result.images,
    }
    rows = ("\t".join(map(str, row)) for row in (columns, *zip(*columns.values(), strict=True)))
    return "\n".join([*rows, ""])


def _log_radii(result: ReportedRun) -> list[str]:
    if isinstance(result, ImportedResult):  # rounding the binary value down would change 0.3 to 0.299999
        return [exact_text(radius) for radius in result.radius.tolist()]
    return radii_down(result.radius)


def csv(result: ReportedRun) -> str:
    """Every column of certificates.parquet, floats in full; a list has a column per sub-image, `class_votes_0`, ..."""
    columns: dict[str, pa.ChunkedArray] = {}
    for name in result.certificates.column_names:
        column = result.certificates[name]
        if pa.types.is_list(column.type):
            for k in range(result.record.sub_images):
                columns[f"{name}_{k}"] = pc.list_element(column, k)
        else:
            columns[name] = column
    sink = io.BytesIO()
    pyarrow.csv.write_csv(pa.table(columns), sink, pyarrow.csv.WriteOptions(quoting_style="needed"))
    return sink.getvalue().decode()


def radii_down(radius: Floats, digits: int = RADIUS_DIGITS) -> list[str]:
    """`rounding.format_down` of many radii >= 0: the same text, a hundred times faster."""
    scaled = radius * 10.0**digits
    whole = np.floor(scaled)
    # The relative error of a product is below 1e-15: its floor is exact, except near whole numbers.
    doubtful = (np.abs(scaled - np.rint(scaled)) <= 1e-15 * scaled + 1e-300) | (scaled >= 2**53)
    texts = [
        f"{value // 10**digits}.{value % 10**digits:0{digits}d}"
        for value in np.where(doubtful, 0, whole).astype(int).tolist()
    ]
    for position in np.flatnonzero(doubtful & (radius > 0)).tolist():
        texts[position] = format_down(float(radius[position]), digits)
    return texts


def markdown_table(runs: Sequence[RunSummary]) -> str:
    """Certified accuracy at the radii, one row per run, as a Markdown table."""
    head = _head(runs)
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *(_cells(run) for run in runs)]
    lines = ["| " + " | ".join(re.sub(r"([|\\])", r"\\\1", cell) for cell in row) + " |" for row in rows]
    return "\n".join([*lines, "", _caption(runs), ""])


def latex_table(runs: Sequence[RunSummary]) -> str:
    """Certified accuracy at the radii, one row per run, as a LaTeX tabular (package booktabs)."""
    head = [f"$r = {cell[4:]}$" if cell.startswith("r = ") else _tex(cell) for cell in _head(runs)]
    rows = [" & ".join(map(_tex, _cells(run))) + r" \\" for run in runs]
    return "\n".join(
        [
            f"% {' '.join(_caption(runs).split())}",  # a line break would end the comment
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


_LOGS: Mapping[str, Callable[[ReportedRun], str]] = {"tsv": tsv, "csv": csv}
_TABLES: Mapping[str, Callable[[Sequence[RunSummary]], str]] = {"markdown": markdown_table, "latex": latex_table}
FORMATS = (*_LOGS, *_TABLES)
"""Names of the formats."""

_TEX = (
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {character: f"\\{character}" for character in "&%$#_{}"}
    | {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}
    | {"[": "{[}", "*": "{*}"}  # at the start of a row they would be arguments of the `\\` before
)


def _check_grid(radii: Sequence[float]) -> None:
    increasing = all(low < high for low, high in itertools.pairwise(radii))
    if not radii or not increasing or not np.isfinite(radii).all() or radii[0] < 0:
        raise ConfigError(f"radii must be finite, >= 0 and increasing, for example 0,0.5,1; got {list(radii)}")


def _head(runs: Sequence[RunSummary]) -> list[str]:
    return ["run", "sigma", "n", "alpha", *(f"r = {row.radius_text}" for row in runs[0].at_radii), "ACR"]


def _cells(run: RunSummary) -> list[str]:
    alpha = exact_text(run.alpha)
    return [
        run.name,
        run.sigma_text,
        run.budget_text,
        alpha,
        *(row.accuracy_text for row in run.at_radii),
        run.acr_text,
    ]


def _caption(runs: Sequence[RunSummary]) -> str:
    first = runs[0]
    imported = " Imported rows are as published and stated, not verified." if any(run.imported for run in runs) else ""
    return (
        f"Certified accuracy at l2 radius r (pixel units, images in [0, 1]) on {first.scope_text} of {first.dataset} "
        f"({first.split}); n: selection + estimation samples per image and sub-image. Rounded down.{imported}"
    )


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in " ".join(text.split()))
