"""What the documents say is true: links lead somewhere, configs are valid, every command and every snippet runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import boto3
import pytest
import typer
import yaml

from drs_ray import certify
from drs_ray.cli import app, demo
from drs_ray.config import parse_config
from tests.support.runs import drs_ray_here, run_config, run_data, write_config

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def _blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def _commands(document: Path) -> list[list[str]]:
    lines = "\n".join(_blocks(document, "bash")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_yaml_examples_are_valid_configs(document):
    for block in _blocks(document, "yaml"):
        parse_config(yaml.safe_load(block))


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    named = set(re.findall(r"(?:`|^ {4})make ([\w-]+)", text, re.MULTILINE))
    assert named >= {"demo", "test", "check", "bench"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_tests_that_documents_name_are_there():
    named = {
        name for document in DOCUMENTS for name in re.findall(r"\btests/[\w/]+\.py(?:::\w+)*", document.read_text())
    }
    assert len(named) > 20
    for name in sorted(named):
        file, *inside = name.split("::")
        text = (ROOT / file).read_text()
        for part in inside:
            assert re.search(rf"^ *(?:def|class) {part}\b", text, re.MULTILINE), name


def test_commands_in_docs_parse():
    group = typer.main.get_command(app)
    known = 0
    for document in DOCUMENTS:
        for inline in re.findall(r"`(drs-ray [a-z][^`]*)`", document.read_text()):
            name = inline.split()[1]
            assert name in group.commands, inline
            known += 1
        for words in _commands(document):
            if words[0] == "drs-ray":
                group.commands[words[1]].make_context(words[1], words[2:])
                known += 1
    assert known > 10


@pytest.mark.slow
@pytest.mark.s3
def test_readme_commands_and_snippets_run(tmp_path, moto_endpoint, monkeypatch):
    """In the order of the README, then of docs/commands.md, in a directory that holds what a user's would."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    boto3.client("s3").create_bucket(Bucket="my-bucket")
    monkeypatch.chdir(tmp_path)
    for name in ("rs", "drs"):
        certify(run_config(f"runs/demo/{name}", images=3))
    data = run_data("s3://my-bucket/cifar10-drs", images=3)
    data["classifiers"] = [
        {"architecture": "digits-cnn", "checkpoint": f"{side}.safetensors", "sigma": 0.36} for side in ("left", "right")
    ]
    write_config(tmp_path / "config.yaml", data | {"training": {"epochs": 1}})
    ran = set()
    for words in [*_commands(ROOT / "README.md"), *_commands(ROOT / "docs" / "commands.md")]:
        if words[0] != "drs-ray":
            continue  # making the environment is what `make` does
        done = drs_ray_here(words[1:])
        assert done.returncode == 0, (words, done.stderr)
        ran.add(words[1])
    group = typer.main.get_command(app)
    assert ran == set(group.commands) - {"demo", "submit"}  # which need Ray; tests of their own run them
    for document in DOCUMENTS:
        for number, snippet in enumerate(_blocks(document, "python")):
            if "import ray" in snippet:
                continue  # test_readers runs it, on a Ray that is ended
            if "robustbench" in snippet:
                continue  # a package that drs-ray does not install: test_robustbench has a factory like it
            place = f"{document.name}, snippet {number}"
            exec(compile(snippet, place, "exec"), {"__name__": place})


@pytest.mark.slow
def test_demo_prints_both_methods_and_writes_the_report(tmp_path, monkeypatch):
    def quickly(content, source):
        return parse_config(content | {"training": {"epochs": 4}}, source=source)

    monkeypatch.setattr(demo, "parse_config", quickly)
    arguments = ["demo", "--directory", str(tmp_path), "--images", "20", "--samples", "500", "--address", "inline"]
    done = drs_ray_here(arguments)
    assert done.returncode == 0, done.stderr
    assert "RS (K = 1)" in done.stdout
    assert "DRS (K = 2)" in done.stdout
    assert "drs, p_A Bonferroni" in done.stdout
    assert "a measured gain of" in done.stdout
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert not re.search(r'(src|href)="(?!#|data:)', page)  # nothing to fetch
    again = drs_ray_here(arguments)
    assert "train:" not in again.stderr  # classifiers and counts are kept
    assert again.stdout.replace(" ", "") == done.stdout.replace(" ", "")
