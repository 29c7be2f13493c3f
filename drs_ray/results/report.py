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
    convergence_figure,
    figure_bytes,
    save_figures,
)
from drs_ray.results.imported import Shown
from drs_ray.results.readouts import (
    AtSamples,
    ClassRow,
    Columns,
    Histogram,
    RadiusHistogram,
    Saving,
    p_lower_histograms,
    per_class,
    radius_edges,
    radius_histogram,
    rule_gains,
    rule_in_words,
    rule_named,
    saving,
)
from drs_ray.results.reduce import RunResult
from drs_ray.results.rounding import exact_text, format_down
from drs_ray.results.store import Store
from drs_ray.results.summary import SHARE_DIGITS, AtRadius, RunSummary, summarise_side_by_side
from drs_ray.results.tables import ABSTAIN

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

REPORT_KEY = "report.html"
IMAGES_SHOWN = 200
"""Rows of the table of images, for each run; all of them are in certificates.parquet."""

CLASSES_SHOWN = 30
"""Rows of the table of classes, for each run: of more classes, those with the smallest ACR."""

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
    stage: int
    rule: str


@dataclass(frozen=True, eq=False)
class RunDetails:
    """What the page says about one run's own certificates, beside its summary.

    classes: those that are shown; classes_left: how many are not. class_radii: the radii of their table.
    """

    position: int
    run: RunSummary
    rule_in_words: tuple[str, ...]
    images: tuple[ImageRow, ...]
    p_lower: tuple[Histogram, ...]
    radii: RadiusHistogram
    classes: tuple[ClassRow, ...]
    classes_left: int
    class_radii: tuple[float, ...]
    saving: Saving | None
    convergence: tuple[AtSamples, ...]

    def at_grid(self, point: AtSamples) -> tuple[AtRadius, ...]:
        """Certified accuracy at fewer samples, on the page's grid of radii."""
        return point.at_radii([row.radius for row in self.run.at_radii])

    def at_class_radii(self, row: ClassRow) -> tuple[AtRadius, ...]:
        """Certified accuracy of one class."""
        return row.at_radii(self.class_radii)[1:]


def write_report(columns: Columns | Sequence[Shown], target: Store) -> list[str]:
    """Write report.html, certified_accuracy.svg and certified_accuracy.png to the store; returns their keys.

    Args:
        columns: at least one run; with `readouts.read_columns`, convergence and comparisons too.
        target: where to write.

    Raises:
        ConfigError: no runs, runs over different test sets, or jinja2 or matplotlib is missing.
        StoreError: the place cannot be written.
    """
    page = render_report(columns)
    figures = save_figures(_results(columns), target)
    target.put(REPORT_KEY, page.encode())
    return [REPORT_KEY, *figures]


def render_report(columns: Columns | Sequence[Shown]) -> str:
    """The HTML page: it opens offline, fetches nothing and runs no script. The same runs give the same page.

    Raises:
        ConfigError: no runs, runs over different test sets, or jinja2 or matplotlib is missing.
    """
    results = _results(columns)
    runs = summarise_side_by_side(results)
    if all(run.imported for run in runs):
        raise ConfigError("a report needs a run of drs-ray's own: these are imported, and `drs-ray export` shows them")
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
    details = list(_details(results, runs, dict(columns.convergence if isinstance(columns, Columns) else ())))
    shrinking = [(one.run.name, one.convergence) for one in details if one.convergence]
    colours = [(index, light, _PALETTE_ON_DARK[index]) for index, light in enumerate(PALETTE)]
    return environment.get_template("report.html.j2").render(
        runs=runs,
        colours=colours,
        details=details,
        gains=rule_gains(results),
        figure=_inline_svg(
            certified_accuracy_figure(results, legend=False),
            "figure",
            "Certified accuracy against l2 radius",
            "Falling step curves, one per run. " + " ".join(_in_words(run) for run in runs),
        ),
        convergence_figure=shrinking
        and _inline_svg(
            convergence_figure(shrinking),
            "convergence",
            "Certified accuracy against l2 radius after fewer samples",
            "Falling step curves, one per number of samples; the numbers are in the tables below.",
        ),
        exact_text=exact_text,
    )


def _results(columns: Columns | Sequence[Shown]) -> tuple[Shown, ...]:
    return columns.results if isinstance(columns, Columns) else tuple(columns)


def _details(
    results: Sequence[Shown], runs: Sequence[RunSummary], convergence: dict[RunResult, tuple[AtSamples, ...]]
) -> Iterator[RunDetails]:
    edges = radius_edges(results)
    for position, (result, run) in enumerate(zip(results, runs, strict=True)):
        if run.variant or not isinstance(result, RunResult):
            continue
        classes = per_class(result)
        shown = classes
        if len(classes) > CLASSES_SHOWN:
            shown = tuple(sorted(classes, key=lambda row: row.acr)[:CLASSES_SHOWN])
        yield RunDetails(
            position=position,
            run=run,
            rule_in_words=rule_in_words(rule_named(run.rule), run.sub_images),
            images=tuple(_image_rows(result, IMAGES_SHOWN)),
            p_lower=p_lower_histograms(result),
            radii=radius_histogram(result, edges),
            classes=shown,
            classes_left=len(classes) - len(shown),
            class_radii=_three_of([row.radius for row in run.at_radii if row.radius > 0]),
            saving=saving(result),
            convergence=convergence.get(result, ()),
        )


def _three_of(radii: Sequence[float]) -> tuple[float, ...]:
    """The radii a quarter, half and three quarters up the grid."""
    return tuple(dict.fromkeys(radii[(len(radii) - 1) * quarter // 4] for quarter in (1, 2, 3))) if radii else ()


def _template(name: str) -> str:
    return importlib.resources.files("drs_ray.results").joinpath("templates", name).read_text(encoding="utf-8")


def _image_rows(result: RunResult, limit: int) -> Iterator[ImageRow]:
    columns = ["image_id", "label", "prediction", "correct", "radius", "selected_class", "stage", "rule"]
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
            stage=row["stage"],
            rule=row["rule"],
        )


def _inline_svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure as an <svg> element of the page: accessible, as wide as its place, in colours of the page's CSS.

    `name` comes before all its ids, which are one page's.
    """
    from markupsafe import Markup

    svg = ET.fromstring(figure_bytes(figure, "svg"))
    colours = {INK: "currentColor", GRID: "var(--grid)", PAPER: "none"}
    colours |= {colour: f"var(--run-{index})" for index, colour in enumerate(PALETTE)}
    pattern = re.compile("|".join(map(re.escape, colours)), re.IGNORECASE)
    for element in svg.iter():
        element.tag = element.tag.partition("}")[2]  # an HTML parser knows the namespaces of inline SVG by itself
        element.attrib = {
            key.partition("}")[2] or key: _own_id(key, value, name) for key, value in element.attrib.items()
        }
        if "style" in element.attrib:
            style = re.sub(r"font-family:[^;]*;\s*", "", element.attrib["style"])
            element.set("style", pattern.sub(lambda match: colours[match[0].lower()], style))
    for child in list(svg):
        if child.tag == "metadata" or child.find("style") is not None:  # its rule for `*` would reach the whole page
            svg.remove(child)
    svg.attrib = {
        "viewBox": svg.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-description",
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    for position, (tag, text) in enumerate({"title": title, "desc": description}.items()):
        element = ET.Element(tag, id=f"{name}-{'title' if tag == 'title' else 'description'}")
        element.text = text
        svg.insert(position, element)
    return Markup(ET.tostring(svg, encoding="unicode"))  # ElementTree has escaped every text


def _own_id(attribute: str, value: str, name: str) -> str:
    if attribute == "id":
        return f"{name}-{value}"
    if attribute.endswith("href") and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    return value.replace("url(#", f"url(#{name}-")


def _in_words(run: RunSummary) -> str:
    values = ", ".join(f"{row.accuracy_text} at radius {row.radius_text}" for row in run.at_radii)
    return f"{run.name} ({run.method}): {values}; ACR {run.acr_text}."
