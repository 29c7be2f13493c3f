"""A figure as an <svg> element of the page: accessible, as wide as its container, in colours of the page's CSS."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from drs_ray.report.figure import GRID, INK, PALETTE, PAPER, figure_bytes

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure


def inline_svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure's SVG without its XML header, metadata and style sheet; no text in it is markup.

    Args:
        figure: drawn in the colours of `figure`, which become the page's variables.
        name: prefix of all its ids, to make them unique in the page.
        title: its accessible name.
        description: its accessible description.
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
