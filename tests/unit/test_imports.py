"""Imports go one way (docs/architecture.md), and the heavy libraries are loaded only where they are needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "drs_ray"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "torchvision", "ray", "matplotlib", "mlflow"}

# What a folder may import: third-party libraries, and parts of drs_ray.
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "auditing": ({"flint", "pyarrow", "scipy"}, {"auditing", "errors", "results.schema", "results.store"}),
    "certificates": ({"numpy", "scipy"}, {"certificates"}),
    "smoothing": ({"numpy", "torch"}, {"arguments", "errors", "smoothing"}),
}
# What a folder may not import, of drs_ray or of others, not even inside a function.
FORBIDDEN: dict[str, set[str]] = {
    "results": {"torch", "torchvision", "ray", "drs_ray.smoothing", "drs_ray.models", "drs_ray.data", "drs_ray.engine"},
    "models": {"ray", "drs_ray.engine", "drs_ray.results.counts", "drs_ray.results.reduce"},  # the store is for all
    "data": {"ray", "drs_ray.engine", "drs_ray.models"},  # and of the results the store alone, which is for all
    "config.py": HEAVY | {"drs_ray.engine", "drs_ray.results", "drs_ray.smoothing", "drs_ray.models", "drs_ray.data"},
    "errors.py": HEAVY | {"drs_ray"},
    "certificates/rule.py": {"numpy", "scipy", "drs_ray"},  # the config reads rules
}


def imports(file: Path, top_level: bool = False) -> Iterator[str]:
    """Dotted names that a module imports: all, or those that importing it runs. Types alone do not count."""

    def visit(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from visit(node.orelse)
                continue
            yield node
            if top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for name in ("body", "orelse", "finalbody"):
                yield from visit(getattr(node, name, []))
            for handler in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
                yield from visit(handler.body)

    for node in visit(ast.parse(file.read_text(), str(file)).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "drs_ray")


def within(name: str, roots: set[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def files_of(place: str) -> list[Path]:
    path = PACKAGE / place
    return [path] if path.suffix else sorted(path.rglob("*.py"))


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 20
    assert all(files_of(place) for place in [*ALLOWED, *FORBIDDEN])


def test_the_reader_of_imports_sees_all_kinds(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(
        "import a.b, c\nfrom d.e import f\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import hidden\nelse:\n    import shown\n"
        "try:\n    import g\nexcept ImportError:\n    import h\n"
        "class C:\n    import i\n    def m(self):\n        with x:\n            import j\n"
        "def k():\n    if x:\n        for y in z:\n            import l\n"
        "match x:\n    case 1:\n        import n\n"
    )
    everything = {"a.b", "c", "d.e", "typing", "shown", "g", "h", "i", "j", "l", "n"}
    assert set(imports(file)) == everything
    assert set(imports(file, top_level=True)) == everything - {"j", "l"}


@pytest.mark.parametrize("place", sorted(ALLOWED))
def test_pure_parts_import_nothing_else(place: str) -> None:
    libraries, own = ALLOWED[place]
    roots = libraries | {f"drs_ray.{part}" for part in own}
    for file in files_of(place):
        for name in imports(file):
            assert within(name, roots) or name.partition(".")[0] in sys.stdlib_module_names, f"{file}: {name}"


@pytest.mark.parametrize("place", sorted(FORBIDDEN))
def test_no_way_back(place: str) -> None:
    for file in files_of(place):
        for name in imports(file):
            assert not within(name, FORBIDDEN[place]), f"{file}: {name}"


def test_data_uses_of_the_results_the_store_alone() -> None:
    used = {name for file in files_of("data") for name in imports(file) if within(name, {"drs_ray.results"})}
    assert used == {"drs_ray.results.store"}


def test_ray_is_imported_in_the_engine_alone() -> None:
    users = {file.relative_to(PACKAGE).parts[0] for file in MODULES if any(within(n, {"ray"}) for n in imports(file))}
    assert users <= {"engine"}


def test_nothing_but_the_command_line_imports_the_command_line() -> None:
    for file in MODULES:
        if file.name not in ("cli.py", "__main__.py"):
            assert not any(within(name, {"drs_ray.cli"}) for name in imports(file)), file


@pytest.mark.parametrize("name", ["cli.py", "config.py", "__init__.py", "errors.py"])
def test_light_modules_load_nothing_heavy(name: str) -> None:
    file = PACKAGE / name
    if not file.exists():
        pytest.skip(f"no {name} yet")
    assert not [found for found in imports(file, top_level=True) if within(found, HEAVY)]


@pytest.mark.parametrize(
    "module",
    [
        "drs_ray",
        "drs_ray.cli",
        "drs_ray.results.reduce",
        "drs_ray.results.report",
        "drs_ray.results.plots",
        "drs_ray.results.tracking",
        "drs_ray.engine.plan",
    ],
)
def test_importing_loads_neither_torch_nor_ray(module: str) -> None:
    if not (PACKAGE.parent / Path(*module.split("."))).with_suffix(".py").exists() and module != "drs_ray":
        pytest.skip(f"no {module} yet")
    script = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_auditor_shares_no_code_with_what_it_audits() -> None:
    """Not even by way of what it imports. The store, keys and errors come with it; and with the config the names of
    rules, which compute nothing.
    """
    script = "import sys, drs_ray.auditing.run, drs_ray.auditing.balls; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    loaded = {name for name in done.stdout.split() if within(name, {"drs_ray"})}
    assert "drs_ray.auditing.balls" in loaded, done.stderr
    loaded -= {"drs_ray.certificates", "drs_ray.certificates.rule"}
    assert not [name for name in loaded if within(name, {"drs_ray.certificates", "drs_ray.smoothing"})]
