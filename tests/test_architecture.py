"""The house rules that a machine can check: floors, sizes, and what must never be used."""

import ast
from collections.abc import Iterator
from itertools import filterfalse
from pathlib import Path

import pytest
from paths import TESTS

import guyot

PACKAGE = Path(guyot.__file__).parent

# From the ground up. A folder imports only folders on lower floors.
HOUSE = (
    {"core"},
    {"gates", "surgery"},
    {"structures"},
    {"costs"},
    {"planning", "results"},
    {"discovery", "report"},
    {"app"},
    {"__init__", "__main__"},
)
FLOORS = {name: floor for floor, rooms in enumerate(HOUSE) for name in rooms}
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60

# Mathematics of tensors and frozen dataclasses; none of it ever sees a module.
PURE = {"planning", "costs/polynomial", "costs/complexity", "costs/latency", "costs/widths"}
PURE |= {"core/axis"}
# The only file with private names of PyTorch, but for those of nn.Module that everybody relies on.
PRIVATE = "core/torch_private.py"
RELIED_ON = {"_parameters", "_buffers", "_modules"}
# Private names that are not PyTorch's.
EXEMPT = {"discovery/integrations/lightning.py": {"_average_model"}}
# The only files that know torch.export.
EXPORTERS = {"structures/trace.py", "results/export.py"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "joblib"}
UNSAFE_CALLS = {"torch.save", "torch.load", "torch.serialization"}
# Arguments of other libraries' loaders, and the only value they may have.
SAFE_ARGUMENTS = {"weights_only": True, "allow_pickle": False}

OWN = {"self", "cls"}
# `DiscoveryCallback` is one for each of two frameworks; `aten` is short for `torch.ops.aten`.
SHARED_NAMES = {"DiscoveryCallback", "aten", "__all__"}

FILES = sorted(PACKAGE.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(path: Path) -> str:
    """`guyot/planning/dynamics.py` -> planning."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted_name(path: Path) -> str:
    """Return the name by which a file is imported: guyot/core/__init__.py is guyot.core."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def absolute(path: Path, node: ast.ImportFrom) -> str:
    """The module an import statement names, with leading dots resolved."""
    if node.level == 0:
        return node.module or ""
    package = ("guyot", *path.relative_to(PACKAGE).parent.parts)
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def imported_modules(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, also inside functions and `if` blocks.

    `from a import b` yields `a.b`: whether b is a module or a name in a is left to the reader.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, f"{absolute(path, node)}.{alias.name}"


def imported_rooms(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    seen = set()
    for line, name in imported_modules(path, tree):
        head, *rest = name.split(".")
        if head == "guyot":
            seen.add((line, rest[0] if rest and rest[0] in FLOORS else "__init__"))
    yield from sorted(seen)


def dotted(node: ast.expr) -> str:
    """`torch.save` for the expression torch.save; empty for what is not a dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{prefix}.{node.attr}" if (prefix := dotted(node.value)) else ""
    return ""


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def test_every_folder_has_a_floor() -> None:
    assert {room(path) for path in FILES} == set(FLOORS)
    assert len([name for name in FLOORS if not name.startswith("__")]) <= 10
    assert len(HOUSE) <= 8


def test_nothing_lies_at_the_top() -> None:
    found = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert found == {"__init__.py", "__main__.py", "py.typed"}


def test_tests_mirror_the_package() -> None:
    tests = {path.name for path in TESTS.iterdir() if [*path.glob("test_*.py")]}
    assert tests == {name for name in FLOORS if not name.startswith("__")}


def test_no_file_imports_itself_by_a_detour() -> None:
    """Circles count inside a folder, too, and when only type checkers see them."""
    modules = {dotted_name(path): path for path in FILES}
    imports = {
        name: {
            target if target in modules else target.rpartition(".")[0]
            for _, target in imported_modules(path, parse(path))
        }
        & set(modules) - {name}
        for name, path in modules.items()
    }
    while free := [name for name, targets in imports.items() if not targets & set(imports)]:
        for name in free:
            del imports[name]
    assert not imports, f"these import each other in circles: {sorted(imports)}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_what_is_private_stays_in_its_file(path: Path) -> None:
    wrong = [
        f"{relative(path)}:{line} imports {name}"
        for line, name in imported_modules(path, parse(path))
        if name.startswith("guyot.") and name.rpartition(".")[2].startswith("_")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_rooms_import_only_lower_floors(path: Path) -> None:
    here = room(path)
    wrong = [
        f"{relative(path)}:{line} imports {there} (floor {FLOORS[there]}) into floor {FLOORS[here]}"
        for line, there in imported_rooms(path, parse(path))
        if there != here and FLOORS[there] >= FLOORS[here]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    wrong = []
    if (lines := len(text.splitlines())) > MAX_FILE_LINES:
        wrong.append(f"{relative(path)} has {lines} lines; split it at {MAX_FILE_LINES}")
    wrong += [
        f"{relative(path)}:{function.lineno} {function.name} has {length(function)} lines; "
        f"at most {MAX_FUNCTION_LINES} without its docstring"
        for function in functions(ast.parse(text))
        if length(function) > MAX_FUNCTION_LINES
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_pickle(path: Path) -> None:
    """Loading a file must never be able to run code."""
    tree = parse(path)
    wrong = [
        f"{relative(path)}:{line} imports {name}"
        for line, name in imported_modules(path, tree)
        if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node) in UNSAFE_CALLS:
            wrong.append(f"{relative(path)}:{node.lineno} uses {dotted(node)}")
        if isinstance(node, ast.keyword) and node.arg in SAFE_ARGUMENTS:
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            if value is not SAFE_ARGUMENTS[node.arg]:
                wrong.append(f"{relative(path)}:{node.value.lineno} passes {node.arg}={value}")
    assert not wrong, "\n".join(wrong) + "\nuse safetensors and JSON"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_only_the_tracer_knows_torch_export(path: Path) -> None:
    if relative(path) in EXPORTERS:
        return
    tree = parse(path)
    wrong = [line for line, name in imported_modules(path, tree) if name.startswith("torch.export")]
    wrong += [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and dotted(node) == "torch.export"
    ]
    assert not wrong, f"{relative(path)} knows torch.export in lines {wrong}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if relative(p).startswith(tuple(PURE))], ids=relative
)
def test_mathematics_never_sees_a_module(path: Path) -> None:
    wrong = [
        node.lineno
        for node in ast.walk(parse(path))
        if (isinstance(node, ast.Attribute) and node.attr == "Module")
        or (isinstance(node, ast.alias) and node.name.split(".")[-1] == "Module")
    ]
    assert not wrong, f"{relative(path)} knows nn.Module in lines {wrong}"


def defined(tree: ast.Module) -> Iterator[str]:
    """Yield the names of a file's own classes, functions, constants and types."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield name
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def test_no_name_stands_for_two_things() -> None:
    """A public name of a file is defined once, but for commands and what they run."""
    places: dict[str, list[str]] = {}
    for path in FILES:
        if not relative(path).startswith("app/cli/"):
            for name in filterfalse(is_private, defined(parse(path))):
                places.setdefault(name, []).append(relative(path))
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert twice.keys() <= SHARED_NAMES, {n: f for n, f in twice.items() if n not in SHARED_NAMES}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_private_names_of_torch_are_in_one_file(path: Path) -> None:
    """Neither `x._name` nor `getattr(x, "_name")` but of self and of operators of aten."""
    if relative(path) == PRIVATE:
        return
    tree = parse(path)
    found = [
        (line, part)
        for line, name in imported_modules(path, tree)
        for part in name.split(".")
        if name.startswith("torch.") and is_private(part)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if dotted(node).split(".")[0] not in OWN and ".aten." not in f".{dotted(node)}":
                found.append((node.lineno, node.attr))
        elif isinstance(node, ast.Call) and dotted(node.func) in {"getattr", "setattr", "hasattr"}:
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if is_private(str(name)):
                found.append((node.lineno, str(name)))
    allowed = RELIED_ON | EXEMPT.get(relative(path), set())
    wrong = [
        f"{relative(path)}:{line} uses {name}: give it an accessor in {PRIVATE}"
        for line, name in found
        if name not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
