"""Writes the pages of docs/reference from the command line, the config's schema and the docstrings of the package.

python docs/make_reference.py
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

import drs_ray
from drs_ray.cli import app
from drs_ray.config import RunConfig

MADE = "<!-- made by docs/make_reference.py: do not edit -->"
TYPES = {str: "text", Path: "path", int: "whole number", float: "number", bool: "flag"}
JSON_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
}
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def cli() -> str:
    """Every command with its arguments and options."""
    parts = ["# Every command", MADE, "`drs-ray --version` prints the version, `drs-ray COMMAND --help` what is below."]
    for name, command in typer.main.get_command(app).commands.items():
        function = command.callback
        hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
        arguments = [one.metavar for one in command.params if one.param_type_name == "argument"]
        rows = "".join(_cli_row(one, *typing.get_args(hints[one.name])) for one in command.params)
        usage = " ".join(["drs-ray", name, *arguments, *(["[OPTIONS]"] if rows else [])])
        table = _table("argument or option", "type and rule") + rows if rows else ""
        parts += [f"## {name}", f"`{usage}`", inspect.cleandoc(function.__doc__), table, command.epilog]
    return _page(parts)


def _cli_row(parameter: Any, kind: Any, declared: Any) -> str:
    names = [parameter.metavar] if parameter.param_type_name == "argument" else list(parameter.opts)
    if parameter.param_type_name == "option" and parameter.metavar:
        names[-1] += f" {parameter.metavar}"
    inner = next(plain for plain in TYPES if plain.__name__ in re.findall(r"\w+", str(kind)))
    bounds = [f"{sign} {end}" for sign, end in ((">=", declared.min), ("<=", declared.max)) if end is not None]
    rule = f"{TYPES[inner]} {' and '.join(bounds)}".strip()
    default = "" if parameter.default in (None, False) else f"`{parameter.default}`"
    meaning = parameter.help.rstrip(".") + "."
    meaning += " May be given several times." if parameter.multiple else ""
    meaning += f" Also by the environment variable `{parameter.envvar}`." if parameter.envvar else ""
    names = ", ".join(f"`{one}`" for one in names)
    return _row(names, rule, "required" if parameter.required else default, meaning)


def config() -> str:
    """Every key of a config, section by section."""
    schema = RunConfig.model_json_schema()
    about = (
        "`drs-ray schema` prints the same as a JSON schema, for editors. A key that is not listed here is an error.\n"
        "Rules between keys are checked too, and the message says what to change."
    )
    return _page(["# Every key of a config", MADE, about, *_section("", schema, schema["$defs"])])


def _section(path: str, section: dict[str, Any], known: dict[str, Any]) -> Iterator[str]:
    """A table of the section's keys, then the sections within it."""
    if path:
        yield f"{'##' if '.' not in path else '###'} {path}"
        yield section["description"]
    inner, rows = [], []
    for key, value in section["properties"].items():
        meaning = value.get("description", "")
        for option in (value, value.get("items", {}), *value.get("anyOf", ())):
            if _is_section(option, known):
                name = f"{path}.{key}".lstrip(".") + ("[k]" if option is value.get("items") else "")
                inner.append((name, _named(option, known)))
                meaning = f"{meaning} See [below](#{re.sub('[^a-z_]', '', name)}).".strip()
        default = "required" if key in section.get("required", ()) else f"`{json.dumps(value.get('default', {}))}`"
        rows.append(_row(f"`{key}`", _kind(value, known), default, meaning))
    yield _table("key", "type and rule") + "".join(rows)
    for name, found in inner:
        yield from _section(name, found, known)


def _named(value: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    return known[value["$ref"].rpartition("/")[2]]


def _is_section(value: dict[str, Any], known: dict[str, Any]) -> bool:
    return "$ref" in value and "properties" in _named(value, known)


def _kind(value: dict[str, Any], known: dict[str, Any]) -> str:
    """A key's type and bounds in words."""
    kind = value.get("type")
    if _is_section(value, known):
        return "section"
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_kind(option, known) for option in value["anyOf"]))
    if "enum" in value or "const" in value:
        return ", ".join(f"`{one}`" for one in value.get("enum", [value.get("const")]))
    if "prefixItems" in value:
        return f"[{', '.join(_kind(one, known) for one in value['prefixItems'])}]"
    if kind == "object":
        inner = value.get("additionalProperties")
        return f"mapping of text to {_kind(inner, known)}" if isinstance(inner, dict) else "mapping"
    if kind == "array":
        one = _kind(value["items"], known)
        kind = f"list of {one}" + (f", {value['minItems']} or more" if "minItems" in value else "")
    elif isinstance(kind, list):
        kind = " or ".join(JSON_TYPES[one] for one in kind)
    else:
        kind = JSON_TYPES.get(kind, "any value")
    pattern = f" that matches `{value['pattern']}`" if "pattern" in value else ""
    bounds = [f"{sign} {value[name]}" for name, sign in BOUNDS.items() if name in value]
    return f"{kind}{pattern} {' and '.join(bounds)}".strip()


def api() -> str:
    """What the package exports, a line each; the site has the docstrings in full below it."""
    about = (
        "What `import drs_ray` offers. [python.md](../python.md) has examples. The site that `make docs` builds has\n"
        "the signatures and docstrings on this page; elsewhere `help(drs_ray.certify)` prints them."
    )
    names = [name for name in drs_ray.__all__ if not name.startswith("_")]
    first = {name: inspect.getdoc(getattr(drs_ray, name)).split("\n\n")[0] for name in names}
    rows = [_row(f"`{name}`", " ".join(text.split())) for name, text in first.items()]
    return _page(["# Python API", MADE, about, "| name | what it is |\n|---|---|\n" + "".join(rows)])


def _page(parts: Sequence[str]) -> str:
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _table(first: str, second: str) -> str:
    return f"| {first} | {second} | default | meaning |\n|---|---|---|---|\n"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


PAGES = {"cli.md": cli, "config.md": config, "api.md": api}
REFERENCE = Path(__file__).parent / "reference"

if __name__ == "__main__":
    for page, made in PAGES.items():
        (REFERENCE / page).write_text(made(), encoding="utf-8")
