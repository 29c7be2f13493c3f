"""docs/clusters.md says what is in cluster/ and jobs/: files, commands, the policy, the sizing table by its formula."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "clusters.md").read_text()
REPRODUCTION = (ROOT / "docs" / "reproduction.md").read_text()
FILES = [
    path
    for folder in ("cluster", "jobs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.is_file() and "__pycache__" not in path.parts and "local" not in path.parts
]
COMMAND = r"(?:ray up|kubectl apply -f|sbatch|docker build) [\w./-]*(?:cluster/[\w./-]+|-f cluster/[\w./-]+)"


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_is_named(file: Path) -> None:
    if file.suffix == ".dockerignore":
        return  # belongs to the Dockerfile
    if "reproduction" in str(file.relative_to(ROOT)):
        assert (file.stem if "configs" in file.parts else str(file.relative_to(ROOT))) in REPRODUCTION
        return
    named = file.name if "configs" in file.parts else str(file.relative_to(ROOT))
    assert named in TEXT


def test_the_commands_of_the_files_are_in_the_page() -> None:
    found = {command for file in FILES for command in re.findall(COMMAND, file.read_text())}
    assert len(found) >= 5
    for command in found:
        assert command in TEXT, command


def test_every_path_in_the_page_is_there() -> None:
    for path in set(re.findall(r"(?<![/\w])(?:cluster|jobs)/[\w./-]*\w", TEXT)):
        assert (ROOT / path).exists(), path


def test_the_policy_in_the_page_is_the_file() -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert json.loads(block) == json.loads((ROOT / "cluster" / "iam" / "s3.json").read_text())


def test_the_table_is_the_formula_of_the_measured_figure() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    pairs = re.findall(r"packed DRS, ResNet-20, bfloat16 and compiled, ([\d,]+) sample pairs/s", page)
    speed = 2 * _number(pairs[0])
    assert f"{pairs[0]} sample pairs, which are {speed:,} samples" in TEXT
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| ([\d.]+) h \| ([\d.]+) h \| ([\d.]+) h \|$", TEXT, re.MULTILINE)
    assert len(rows) == 4
    for images, n, *hours in rows:
        for workers, printed in zip((1, 8, 64), hours, strict=True):
            exact = _number(images) * 2 * (100 + _number(n)) / (speed * workers * 3600)
            assert printed == f"{exact:.2f}"


def _number(text: str) -> int:
    return int(text.replace(",", ""))
