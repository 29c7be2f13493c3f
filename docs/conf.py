"""Settings of the site that `make docs` builds from the same Markdown; its start page is README.md."""

import re
from pathlib import Path

from sphinx.application import Sphinx

import drs_ray

project = "drs-ray"
author = "the authors of drs-ray"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["*.md", "docs/**"]
exclude_patterns = [".*", "build", "runs"]
root_doc = "README"
html_theme = "furo"
html_title = project

myst_heading_anchors = 4  # links to headings, as code-hosting sites resolve them
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
default_role = "code"  # docstrings mark code by single backquotes

CONTENTS = {
    "Use": "commands coming-from python data classifiers training choosing results",
    "Operate": "operations clusters",
    "Understand": "theory architecture reproduction benchmarks",
    "Look up": "reference/cli reference/config reference/api",
}


def _adapt(app: Sphinx, page: str, source: list[str]) -> None:
    """What code-hosting sites would show as code, or show and this site does not."""
    folder = (Path(app.srcdir) / page).parent
    found = re.compile(r"\[([^]]+)\]\(([^)#:\s]+)\)")  # of a link to a directory only the text is left
    source[0] = found.sub(lambda link: link[1] if (folder / link[2]).is_dir() else link[0], source[0])
    if page == root_doc:
        for caption, names in CONTENTS.items():
            source[0] += _contents(caption, [f"docs/{name}" for name in names.split()])
        source[0] += _contents("Project", ["CONTRIBUTING", "CHANGELOG"])
    if page == "docs/reference/api":
        source[0] += "\n```{eval-rst}\n" + "\n\n".join(_docstrings()) + "\n```\n"


def _contents(caption: str, pages: list[str]) -> str:
    """A part of the side bar."""
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def _docstrings() -> list[str]:
    """A directive for each name that drs_ray exports."""
    found = []
    for name in sorted(set(drs_ray.__all__) - {"__version__"}, key=str.lower):
        if name == "RunConfig":
            found.append(f".. autoclass:: drs_ray.{name}")  # its keys are in config.md
        elif isinstance(getattr(drs_ray, name), type):
            found.append(f".. autoclass:: drs_ray.{name}\n   :members:")
        else:
            found.append(f".. autofunction:: drs_ray.{name}")
    return found


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _adapt)
