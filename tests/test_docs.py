"""The pages say what is true, in words that everybody knows."""

import ast
import builtins
import csv
import re
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from paths import ROOT, TESTS
from torch import nn

import guyot

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
HELP = TESTS / "golden" / "help"

RETIRED = (
    r"condemned|hopeful|hopeless|anew|rest|elsewhere|whichever|whoever|whatever",
    r"go(es)? on|going on|gone on|went on",
    r"toss(es|ed)? (a |the )?coins?",
    r"the networks before",
)
"""Words and phrases that readers stumble over; as whole words, in any case."""

HIDDEN = re.compile(r"<!---.*?-->", re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """Return the code blocks that a reader sees."""
    shown = HIDDEN.sub("", path.read_text(encoding="utf-8"))
    return [code for kind, code in BLOCK.findall(shown) if kind == language]


def anchors(path: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    kept = (re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles)
    return {re.sub(r"\s", "-", title) for title in kept}


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_no_retired_words(path: Path) -> None:
    found = re.findall(rf"\b(?:{'|'.join(RETIRED)})\b", path.read_text(encoding="utf-8"), re.I)
    assert not found


def test_every_page_is_in_the_navigation() -> None:
    class Loader(yaml.SafeLoader):
        """Reads mkdocs.yml without its Python names."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)  # noqa: S506

    def paths(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        inside = entry.values() if isinstance(entry, dict) else entry
        return [path for part in inside for path in paths(part)]

    listed = paths(settings["nav"])
    assert sorted(listed) == [path.relative_to(DOCS).as_posix() for path in PAGES]


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = path if not file else (path.parent / file).resolve()
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_blocks_import_what_they_use(path: Path) -> None:
    """Readers see every import: nothing but data comes from blocks that are hidden."""
    every = re.findall(r"^(?:import|from .+ import) .+", path.read_text("utf-8"), re.MULTILINE)
    known, shown = imported(ast.parse("\n".join(every))), set[str]()
    for code in blocks(path, "python"):
        tree = ast.parse(code)
        shown |= imported(tree)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not (used & known) - shown, code


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_whole_programs_import_what_they_use(path: Path) -> None:
    """A block that begins with imports and makes all else itself is pasted alone."""
    every = re.findall(r"^(?:import|from .+ import) .+", path.read_text("utf-8"), re.MULTILINE)
    known = imported(ast.parse("\n".join(every)))
    for code in blocks(path, "python"):
        tree = ast.parse(code)
        if isinstance(tree.body[0], ast.Import | ast.ImportFrom):
            missing = borrowed(tree) - imported(tree)
            assert not missing or missing - known, code


def borrowed(tree: ast.Module) -> set[str]:
    """Return the names that a program uses and does not make."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    made = {node.id for node in names if not isinstance(node.ctx, ast.Load)} | set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        if isinstance(node, ast.arg):
            made.add(node.arg)
    return {node.id for node in names if isinstance(node.ctx, ast.Load)} - made


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_names_that_blocks_import_from_guyot_exist(path: Path) -> None:
    for code in blocks(path, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("guyot"):
                module = import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def imported(tree: ast.Module) -> set[str]:
    statements = (n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom))
    names = (alias for statement in statements for alias in statement.names)
    return {(alias.asname or alias.name).partition(".")[0] for alias in names}


def commands() -> list[tuple[str, str]]:
    found = (
        (name_of(path), line.removeprefix("$ "))
        for path in TEXTS
        for code in blocks(path, "console")
        for line in code.splitlines()
        if re.match(r"\$ guyot |\$ torchrun .* guyot ", line)
    )
    return list(found)


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_have_the_options_that_pages_give(page: str, line: str) -> None:
    words = re.split(r"(?:^|-m )guyot ", line.partition(" # ")[0])[1]
    command = next((word for word in words.split() if not word.startswith("-")), "guyot")
    help_page = HELP / f"{command}.txt"
    assert help_page.exists(), line
    known = set(re.findall(r"--[a-z][a-z-]*", help_page.read_text(encoding="utf-8")))
    general = set(re.findall(r"--[a-z][a-z-]*", (HELP / "guyot.txt").read_text(encoding="utf-8")))
    given = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", words))
    assert given <= known | general, line


def test_the_reference_shows_all_public_names() -> None:
    """Public names are imported when they are used; the reference reads them without running."""
    griffe = pytest.importorskip("griffe")
    package = griffe.load("guyot", search_paths=[ROOT / "src"])
    assert "\n::: guyot\n" in (DOCS / "reference.md").read_text(encoding="utf-8")
    for name in guyot.__all__:
        assert package[name].final_target.docstring.value.strip(), name


def definitions(path: Path) -> set[str]:
    """Return the names that a file defines, methods and aliases included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


def test_the_page_of_installing_names_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = re.findall(r"^\| (`.*?) \|", (DOCS / "install.md").read_text("utf-8"), re.MULTILINE)
    named = [name for row in table for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(extras["optional-dependencies"])


def test_the_tour_is_short_and_every_name_in_it_exists() -> None:
    path = DOCS / "tour.md"
    text = path.read_text(encoding="utf-8")
    assert len(re.sub(r"\]\([^)]*\)", "]", text).split()) < 600
    package = ROOT / "src" / "guyot"
    folders = {folder.name for folder in package.iterdir() if (folder / "__init__.py").exists()}
    linked: dict[str, set[str]] = {}
    for link in LINK.findall(text):
        file = (path.parent / link).resolve()
        linked[file.relative_to(package).as_posix()] = definitions(file)
    assert len(folders) == 10
    assert {file.partition("/")[0] for file in linked} == folders
    known = set.union(folders, *linked.values())
    names = re.findall(r"`([A-Za-z_.]+)`", text)
    assert len(names) > 30
    outside = {"src/guyot", "torch.export", "backward"}
    for name in {name for name in names if name not in outside}:
        assert set(name.split(".")) <= known, name


def test_the_format_of_checkpoints_is_the_one_that_is_written() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    discovery = guyot.Discovery(model, (torch.ones(2, 4),), optimizer, total_steps=100, target=0.5)
    state = discovery.state_dict()
    text = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    entries = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE))
    assert state.keys() <= entries.keys()
    assert entries["version"].startswith(f"{state['version']},")
    for part in ("counters", "controller"):
        assert set(re.findall(r"`(\w+)`", entries[part])) == state[part].keys()


def test_new_import_paths_exist() -> None:
    _, *rows = csv.reader((DOCS / "data" / "import_paths.csv").read_text("utf-8").splitlines())
    assert len(rows) > 15
    for old, new in rows:
        assert old != new
        assert find_spec(new) is not None, new


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    papers = [paper["url"].rpartition("/")[2] for paper in citation["references"]]
    assert papers[0] == "2411.09127"
    assert re.search(rf"^## \[{version}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=name_of)
def test_forms_for_issues(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        assert form == {"blank_issues_enabled": True}
        return
    assert form["name"] and form["description"]
    inputs = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in inputs}) == len(inputs) > 0
    assert all(part["attributes"]["label"] for part in inputs)
