"""The rooms of the package, as docs/architecture.md lists them: which imports which, and which libraries."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "drs_ray"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "torchvision", "ray", "matplotlib", "mlflow"}
LONGEST_FILE = 1000
LARGEST_ROOM = 0.15

# Files that may import less than their room: third-party libraries, and parts of drs_ray.
NARROWER: dict[str, tuple[set[str], set[str]]] = {
    "certificates/rule.py": (set(), set()),  # the config reads rules
    "audit/balls.py": ({"flint", "scipy"}, {"errors"}),
    "audit/radii.py": ({"flint", "pyarrow", "scipy"}, {"audit.balls", "errors", "counts.schema", "storage"}),
}


def rooms() -> dict[str, tuple[set[str], set[str]]]:
    """By room, lowest first: the libraries that it may import, and those of them only inside functions."""
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Rooms")[2].partition("## ")[0]
    found = {}
    for name, libraries in re.findall(r"^\| `([\w/]+(?:\.py)?)/?` \| .* \| ([^|]*) ?\|$", table, re.MULTILINE):
        always, _, inside = libraries.partition("in functions:")
        lists = [{word for word in re.split(r"[,; ]+", text) if word} for text in (always, inside)]
        found[name.rstrip("/")] = (lists[0] | lists[1], lists[1])
    return found


ROOMS = rooms()
ORDER = list(ROOMS)


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
            if node.module == "drs_ray":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def within(name: str, roots: set[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def room_of(file: Path) -> str:
    """The last room of the table that holds the file: `engine/ray` is a room in `engine`."""
    place = file.relative_to(PACKAGE).as_posix()
    holding = [room for room in ORDER if place == room or place.startswith(room + "/")]
    assert holding, f"{place} is in no room of docs/architecture.md"
    return max(holding, key=len)


def name_of(file: Path) -> str:
    return ".".join(("drs_ray", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


FILE_OF = {name_of(file): file for file in MODULES}


def modules_imported(file: Path) -> set[str]:
    """The modules of the package that a file imports, inside functions too."""
    found = set()
    for name in imports(file):
        while within(name, {"drs_ray"}) and name not in FILE_OF:  # a name in a module
            name = name.rpartition(".")[0]
        if name in FILE_OF:
            found.add(name)
    return found


def test_the_table_lists_what_is_there() -> None:
    there = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {room for room in ORDER if "/" not in room} == there
    assert len(MODULES) > 100
    loose = [room for room in ORDER if room.endswith(".py") and not room.startswith("__")]
    assert len(loose) <= 3


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


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_itself_and_those_above_it(room: str) -> None:
    allowed = set(ORDER[: ORDER.index(room) + 1])
    for file in MODULES:
        if room_of(file) == room:
            for name in modules_imported(file):
                below = room_of(FILE_OF[name])
                # A room in another is reached from it inside functions alone, in the one place that chooses.
                nested = below.startswith(room + "/") and file.name == "opening.py"
                assert below in allowed or nested, f"{file}: {name}"


def test_no_module_imports_itself_around_a_circle() -> None:
    graph = {name: modules_imported(file) - {name} for name, file in FILE_OF.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join((*path[path.index(name) :], name))}"
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("room", ORDER)
def test_a_room_uses_the_libraries_of_the_table(room: str) -> None:
    libraries, inside_functions = ROOMS[room]
    used: set[str] = set()
    for file in MODULES:
        if room_of(file) == room:
            own = {name.partition(".")[0] for name in imports(file)} - {"drs_ray"} - sys.stdlib_module_names
            assert own <= libraries, file
            at_once = {name.partition(".")[0] for name in imports(file, top_level=True)}
            assert not at_once & inside_functions, file
            used |= own
    assert used == libraries


@pytest.mark.parametrize("place", sorted(NARROWER))
def test_some_files_import_less_than_their_room(place: str) -> None:
    libraries, own = NARROWER[place]
    roots = libraries | {f"drs_ray.{part}" for part in own}
    for name in imports(PACKAGE / place):
        assert within(name, roots) or name.partition(".")[0] in sys.stdlib_module_names, name


def test_files_and_rooms_are_small() -> None:
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in MODULES}
    assert not {file.name: count for file, count in lines.items() if count > LONGEST_FILE}
    shares = Counter[str]()
    for file, count in lines.items():
        shares[room_of(file)] += count
    assert not {room: count for room, count in shares.items() if count > LARGEST_ROOM * sum(lines.values())}


@pytest.mark.parametrize(
    "module",
    [
        "drs_ray",
        "drs_ray.cli",
        "drs_ray.results.reduce",
        "drs_ray.report.page",
        "drs_ray.report.plots",
        "drs_ray.report.tracking",
        "drs_ray.counts.plan",
    ],
)
def test_importing_loads_neither_torch_nor_ray(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_auditor_shares_no_code_with_what_it_audits() -> None:
    """Not even by way of what it imports. The store, keys and errors come with it; and with the config the names of
    rules, which compute nothing.
    """
    script = "import sys, drs_ray.audit.radii, drs_ray.audit.balls; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    loaded = {name for name in done.stdout.split() if within(name, {"drs_ray"})}
    assert "drs_ray.audit.balls" in loaded, done.stderr
    loaded -= {"drs_ray.certificates", "drs_ray.certificates.rule"}
    assert not [name for name in loaded if within(name, {"drs_ray.certificates", "drs_ray.smoothing"})]
