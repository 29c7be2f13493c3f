"""Messages: numbers agree with what they count."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

from drs_ray.errors import counted

PACKAGE = Path(__file__).parents[2] / "drs_ray"


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (12_345, ("image",), "12,345 images"),
        (1, ("class",), "1 class"),
        (2, ("class",), "2 classes"),
        (2, ("branch",), "2 branches"),
        (1, ("entry", "entries"), "1 entry"),
        (2, ("unit is", "units are"), "2 units are"),
    ],
)
def test_a_number_agrees_with_what_it_counts(count: int, words: tuple[str, ...], text: str) -> None:
    assert counted(count, *words) == text


SEEN_TO = {"checks/balls.py", "checks/radii.py", "config/class_names.py", "published/plausibility.py"}


def test_no_message_puts_a_length_before_a_plural() -> None:
    """`{len(files)} files` would say "1 files": `counted` is for that. Pairs of numbers ("3 of 5 images") count too."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        if file.relative_to(PACKAGE).as_posix() in SEEN_TO:  # never one, or seen to there
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for value, text in itertools.pairwise(parts):
                if isinstance(value, ast.FormattedValue) and ast.unparse(value.value).startswith("len("):
                    after = str(text.value) if isinstance(text, ast.Constant) else ""
                    if re.match(r" ([a-z-]+ )?[a-z-]+[^s\W]s\b", after):
                        found.append(f"{file.name}:{value.lineno}: {ast.unparse(value.value)}{after[:30]}")
    assert not found
