"""report.html: one self-contained page about one or several runs, and the figure files beside it."""

from __future__ import annotations

import importlib.resources
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drs_ray.errors import ConfigError
from drs_ray.results.figure import (
    GRID,
    INK,
    PALETTE,
    PAPER,
    certified_accuracy_figure,
    figure_bytes,
    save_figures,
)
from drs_ray.results.reduce import ABSTAIN, RunResult
from drs_ray.results.rounding import format_down
from drs_ray.results.store import Store
from drs_ray.results.summary import SHARE_DIGITS, RunSummary, summarise_side_by_side

if TYPE_CHECKING:
    from markupsafe import Markup

REPORT_KEY = "report.html"
IMAGES_SHOWN = 200
"""Rows of the table of images, for each run; all of them are in certificates.parquet."""

_PALETTE_ON_DARK = ("#58a6ff", "#ff8f5a", "#3fc79a", "#e5a3cb", "#e0b050", "#9ad6f7")


@dataclass(frozen=True)
class ImageRow:
    """One certificate as text; votes: one entry per sub-image."""

    image_id: int
    label: int
    answer: str
    kind: str
    radius: str
    votes: tuple[str, ...]


def write_report(results: Sequence[RunResult], target: Store) -> list[str]:
    """Write report.html, certified_accuracy.svg and certified_accuracy.png to the store; returns their keys.

    Args:
        results: at least one run.
        target: where to write.

    Raises:
        ConfigError: no runs, runs over different test sets, or jinja2 or matplotlib is missing.
        StoreError: the place cannot be written.
    """
    page = render_report(results)
    figures = save_figures(results, target)
    target.put(REPORT_KEY, page.encode())
    return [REPORT_KEY, *figures]


def render_report(results: Sequence[RunResult]) -> str:
    """The HTML page: it opens offline, fetches nothing and runs no script. The same runs give the same page.

    Raises:
        ConfigError: no runs, runs over different test sets, or jinja2 or matplotlib is missing.
    """
    runs = summarise_side_by_side(results)
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError("the report needs jinja2: install drs-ray[report]") from error
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    colours = [(index, light, _PALETTE_ON_DARK[index]) for index, light in enumerate(PALETTE)]
    return environment.get_template("report.html.j2").render(
        runs=runs,
        colours=colours,
        figure=_inline_svg(results, runs),
        images=[list(_image_rows(result, IMAGES_SHOWN)) for result in results],
    )


def _template(name: str) -> str:
    return importlib.resources.files("drs_ray.results").joinpath("templates", name).read_text(encoding="utf-8")


def _image_rows(result: RunResult, limit: int) -> Iterator[ImageRow]:
    columns = ["image_id", "label", "prediction", "correct", "radius", "selected_class"]
    rows = result.certificates.slice(0, limit).select([*columns, "class_votes", "estimation_samples"]).to_pylist()
    for row in rows:
        abstains = row["prediction"] == ABSTAIN
        yield ImageRow(
            image_id=row["image_id"],
            label=row["label"],
            answer=f"abstains (selected {row['selected_class']})" if abstains else str(row["prediction"]),
            kind="abstains" if abstains else "correct" if row["correct"] else "wrong",
            radius="–" if abstains else format_down(row["radius"], SHARE_DIGITS),
            votes=tuple(
                f"{votes:,} / {samples:,}"
                for votes, samples in zip(row["class_votes"], row["estimation_samples"], strict=True)
            ),
        )


def _inline_svg(results: Sequence[RunResult], runs: Sequence[RunSummary]) -> Markup:
    """The figure as an <svg> element of the page: accessible, as wide as its place, in colours of the page's CSS."""
    from markupsafe import Markup

    svg = ET.fromstring(figure_bytes(certified_accuracy_figure(results, legend=False), "svg"))
    colours = {INK: "currentColor", GRID: "var(--grid)", PAPER: "none"}
    colours |= {colour: f"var(--run-{index})" for index, colour in enumerate(PALETTE)}
    pattern = re.compile("|".join(map(re.escape, colours)), re.IGNORECASE)
    for element in svg.iter():
        element.tag = element.tag.partition("}")[2]  # an HTML parser knows the namespaces of inline SVG by itself
        element.attrib = {name.partition("}")[2] or name: value for name, value in element.attrib.items()}
        if "style" in element.attrib:
            style = re.sub(r"font-family:[^;]*;\s*", "", element.attrib["style"])
            element.set("style", pattern.sub(lambda match: colours[match[0].lower()], style))
    for child in list(svg):
        if child.tag == "metadata" or child.find("style") is not None:  # its rule for `*` would reach the whole page
            svg.remove(child)
    svg.attrib = {
        "viewBox": svg.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": "figure-title figure-description",
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    title, description = ET.Element("title", id="figure-title"), ET.Element("desc", id="figure-description")
    title.text = "Certified accuracy against l2 radius"
    description.text = "Falling step curves, one per run. " + " ".join(_in_words(run) for run in runs)
    svg.insert(0, title)
    svg.insert(1, description)
    return Markup(ET.tostring(svg, encoding="unicode"))  # ElementTree has escaped every text


def _in_words(run: RunSummary) -> str:
    values = ", ".join(f"{row.accuracy_text} at radius {row.radius_text}" for row in run.at_radii)
    return f"{run.name} ({run.method}): {values}; ACR {run.acr_text}."
