"""The notebooks run cell by cell, show what they end with, and end smaller."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SLOW = ("timm_finetuning",)


def cells(file: Path) -> list[dict[str, Any]]:
    found = json.loads(file.read_text(encoding="utf-8"))
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    return [cell for cell in found["cells"] if cell["cell_type"] == "code"]


def execute(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; return the value of a last line that is an expression, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_there_are_three() -> None:
    assert [file.stem for file in NOTEBOOKS] == ["language_model", "own_loop", "timm_finetuning"]


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=file.stem, marks=[pytest.mark.slow] * (file.stem in SLOW))
        for file in NOTEBOOKS
    ],
)
def test_notebook(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, Any] = {}
    shown = []
    for cell in cells(file):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        shown.append(execute("".join(cell["source"]), names))
    discovery = names["discovery"]
    assert discovery.finished and discovery.macs < 0.7 * discovery.full_macs
    assert any("<table>" in value._repr_html_() for value in shown if hasattr(value, "_repr_html_"))
    (page,) = tmp_path.glob("*.html")
    assert "Over time" in page.read_text(encoding="utf-8")
