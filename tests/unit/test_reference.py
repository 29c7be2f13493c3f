"""The pages of docs/reference are what docs/make_reference.py makes of the package now."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from drs_ray.config import RunConfig

DOCS = Path(__file__).parents[2] / "docs"
MAKER = runpy.run_path(str(DOCS / "make_reference.py"))


@pytest.mark.parametrize("page", ["cli.md", "config.md", "api.md"])
def test_the_page_is_what_the_script_makes(page: str) -> None:
    made = MAKER["PAGES"][page]()
    assert (DOCS / "reference" / page).read_text() == made, "run: python docs/make_reference.py"


def test_every_section_and_key_is_in_the_page() -> None:
    page = MAKER["config"]()
    for section in RunConfig.model_fields:
        assert f"\n| `{section}` | " in page
        assert f"\n## {section}" in page
    keys = {key for known in RunConfig.model_json_schema()["$defs"].values() for key in known.get("properties", ())}
    assert all(f"\n| `{key}` | " in page for key in keys)
