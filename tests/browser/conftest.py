"""A real browser for the tests that are marked `browser`: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """One headless chromium for a module: while Playwright runs, so does its event loop, and asyncio.run refuses."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed here (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group dev)")
    with playwright.sync_playwright() as driver:
        # Without a sandbox: containers run tests as root, and the page is our own.
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
