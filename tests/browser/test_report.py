"""report.html in a real browser: sorting, searching and paging work, nothing is fetched, nothing is cut off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drs_ray.report.image_table import Pictures
from drs_ray.report.page import render_report
from drs_ray.results.reduce import RunResult
from tests.unit.counts.factories import make_result

pytestmark = pytest.mark.browser

IMAGES, ROWS = 90, 20
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABc3UBGAAAAABJRU5ErkJggg=="
)


def runs() -> list[RunResult]:
    return [
        make_result(IMAGES, 1, uri="runs/rs", hardest=0.1),
        make_result(IMAGES, 2, uri="runs/drs", hardest=0.1, sigma=0.7071067811865476),
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs, in a file."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(render_report(runs(), lambda _, ids: Pictures(dict.fromkeys(ids, PIXEL))), encoding="utf-8")
    return file


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The page, opened; at the end, nothing may have been fetched or complained of."""
    context = browser.new_context()
    opened = context.new_page()
    told: list[str] = []
    opened.on("console", lambda message: told.append(message.text))
    opened.on("pageerror", lambda error: told.append(str(error)))
    opened.on("request", lambda request: told.append(request.url) if not request.url.startswith("data:") else None)
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert told == [report.as_uri()]


def shown(page: Any, column: int = 0) -> list[str]:
    """A column of the rows that are visible, in their order."""
    cells = f"rows => rows.filter(row => !row.hidden).map(row => row.cells[{column}].innerText.trim())"
    return page.eval_on_selector_all("#image-rows tbody tr", cells)


def test_the_first_page_has_the_first_images_and_buttons_turn_pages(page: Any) -> None:
    assert shown(page) == [str(image) for image in range(ROWS)]
    assert page.text_content("output") == f"1 to {ROWS} of {IMAGES}"
    assert page.is_disabled("text=‹ previous")
    page.click("text=next ›")
    assert shown(page) == [str(image) for image in range(ROWS, 2 * ROWS)]
    page.click("text=last »")
    assert shown(page) == [str(image) for image in range(80, IMAGES)]
    assert page.is_disabled("text=next ›")
    page.click("text=« first")
    assert shown(page)[0] == "0"


def test_search_finds_rows_by_words_of_all_runs(page: Any) -> None:
    rows = [result.certificates.to_pylist() for result in runs()]

    def kind(row: dict[str, Any]) -> str:
        return "abstains" if row["prediction"] == -1 else "correct" if row["correct"] else "wrong"

    kinds = list(zip(*([kind(row) for row in column] for column in rows), strict=True))
    expected = {
        "17": [17],
        "image:8": [8],
        "label:3": [row["image_id"] for row in rows[0] if row["label"] == 3],
        "wrong": [i for i, both in enumerate(kinds) if "wrong" in both],
        "wro": [i for i, both in enumerate(kinds) if "wrong" in both],
        "DRS:Abstains": [i for i, both in enumerate(kinds) if both[1] == "abstains"],
        "differ rs:correct": [i for i, both in enumerate(kinds) if both[0] == "correct" != both[1]],
        "no-such-word": [],
    }
    assert sum(map(bool, expected.values())) >= 6
    for typed, images in expected.items():
        page.fill("input[type=search]", typed)
        assert shown(page) == [str(image) for image in images][:ROWS], typed
        told = f"1 to {min(ROWS, len(images))} of {len(images)} found" if images else "nothing found"
        assert page.text_content("output") == told
    page.fill("input[type=search]", "")
    assert len(shown(page)) == ROWS


def test_columns_sort_both_ways_by_value(page: Any) -> None:
    radii = [result.radius.tolist() for result in runs()]
    for run, column in ((0, 3), (1, 6)):
        header = page.locator("#image-rows thead button", has_text="radius").nth(run)
        header.click()
        order = sorted(range(IMAGES), key=lambda image: radii[run][image])
        assert shown(page) == [str(image) for image in order[:ROWS]]
        assert page.locator("#image-rows [aria-sort=ascending]").count() == 1
        header.click()
        assert page.locator("#image-rows [aria-sort=descending]").inner_text().startswith("radius")
        largest = sorted(radii[run], reverse=True)[:ROWS]
        assert [float(text) for text in shown(page, column)] == pytest.approx(largest, abs=0.001)
    page.locator("#image-rows thead button", has_text="image").first.press("Enter")  # by keyboard
    assert shown(page) == [str(image) for image in range(ROWS)]
    page.fill("input[type=search]", "wrong")
    assert shown(page) == sorted(shown(page), key=int)


def test_classes_sort_too(page: Any) -> None:
    page.locator("#classes ~ details summary").first.click()
    table = page.locator("table[data-sortable]").first
    table.locator("button", has_text="ACR").click()
    values = [float(text) for text in table.locator("tbody tr td.first").all_inner_texts()]
    assert len(values) > 5
    assert values == sorted(values)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_and_can_be_read(browser: Any, report: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # tables scroll by themselves
    ratios = page.evaluate(_CONTRASTS)
    context.close()
    assert len(ratios) > 100
    assert min(ratios.values()) >= 4.5, sorted(ratios.items(), key=lambda item: item[1])[:5]


def test_without_script_all_is_there(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#image-rows tbody tr").count() == IMAGES
    assert page.locator("#image-rows tbody tr").nth(IMAGES - 1).is_visible()
    assert page.locator("button").count() == 0
    context.close()


def test_it_prints_without_controls(browser: Any, report: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    assert not page.is_visible("input[type=search]")
    assert not page.is_visible("nav")
    pdf = page.pdf(format="A4")
    context.close()
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 3


# WCAG contrast of every element with text of its own, against the nearest background that is not transparent.
_CONTRASTS = r"""
() => {
  const parse = text => (text.match(/[\d.]+/g) || []).map(Number);
  const linear = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const found = {};
  for (const closed of document.querySelectorAll("details")) closed.open = true;
  for (const element of document.querySelectorAll("body *:not(script, svg, svg *, button:disabled)")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const clear = one => parse(getComputedStyle(one).backgroundColor)[3] === 0;
    let place = element;
    while (clear(place)) place = place.parentElement;
    const ink = light(parse(getComputedStyle(element).color));
    const paper = light(parse(getComputedStyle(place).backgroundColor));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    found[`${element.tagName} ${element.className} ${element.textContent.trim().slice(0, 40)}`] = ratio;
  }
  return found;
}
"""
