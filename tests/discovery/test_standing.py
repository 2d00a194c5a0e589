"""What a discovery and its structures say of themselves."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from cases import CASES

import guyot
from guyot import Discovery, DiscoveryConfig
from guyot.core.errors import MisconfiguredError
from guyot.core.types import KeepPlan
from guyot.discovery.standing import by_block
from guyot.surgery import operate


def make(name: str = "nested", steps: int = 100) -> Discovery:
    torch.manual_seed(0)
    model = CASES[name].build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    config = DiscoveryConfig(round_to=1)
    inputs = CASES[name].inputs()
    return Discovery(model, inputs, optimizer, total_steps=steps, nu=0.5, config=config)


def train(discovery: Discovery, name: str, steps: int) -> None:
    optimizer = discovery._optimizers.each[0]
    for _ in range(steps):
        discovery.model(CASES[name].inputs()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        discovery.step()


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.mark.parametrize("name", ["mlp", "cifar", "nested"])
def test_the_rows_of_the_table_add_up(name: str) -> None:
    discovery = make(name)
    train(discovery, name, 100)
    assert discovery.removals
    *blocks, total = discovery.summary().rows
    assert number(total[2]) == discovery.macs == sum(number(row[2]) for row in blocks)
    assert number(total[4]) == discovery.params == sum(number(row[4]) for row in blocks)
    assert total[3] == f"{100 * discovery.macs / discovery.full_macs:.1f} %"


def test_a_block_that_is_gone_keeps_its_row() -> None:
    discovery = make()
    full = discovery.original
    left = operate(discovery.model, full, KeepPlan({}, frozenset([2]))).structures
    rows = {row[0]: row[1:] for row in by_block(discovery.standing, full, left).rows}
    assert rows["2"] == ("0 of 6", "0", "0.0 %", "0", "0.0 %")


def test_one_line() -> None:
    discovery = make("mlp")
    macs, params = f"{discovery.macs:,}", f"{discovery.params:,}"
    assert repr(discovery) == (
        f"<Discovery: warm-up, step 0 of 100, MACs {macs} (100.0 %), "
        f"parameters {params} (100.0 %), 0 undecided>"
    )
    train(discovery, "mlp", 11)
    found = repr(discovery)
    assert "discovery, step 11 of 100" in found and f"{discovery.undecided} undecided" in found
    assert discovery.undecided and "\n" not in found


def test_figures_for_a_logger() -> None:
    discovery = make("mlp")
    train(discovery, "mlp", 11)
    logged = discovery.log()
    assert all(type(value) is float for value in logged.values())
    assert logged["guyot/phase"] == 1 and logged["guyot/macs"] == discovery.macs
    assert logged["guyot/params"] == discovery.params and logged["guyot/nu"] == discovery.nu
    assert logged["guyot/undecided"] == discovery.undecided


def test_a_notebook_shows_a_table() -> None:
    discovery = make("mlp")
    page = discovery._repr_html_()
    assert page.count("<tr>") == len(discovery.summary().rows) + 1
    assert "warm-up, step 0 of 100" in page and "&" not in page


def test_structures_print_as_a_tree() -> None:
    lines = str(make().original).splitlines()
    assert lines[0] == "24 units in 4 groups, 3 layers"
    assert "├── layer 1" in lines and any(line.endswith("─ layer 1.inner") for line in lines)
    assert any(re.fullmatch(r"│   .   └── 1.inner.first: \d+ units", line) for line in lines)
    assert "│   ├── made by 0, 1.last, 2.last" in lines
    assert any(line.endswith("an output of the network") for line in lines)


def test_version() -> None:
    assert re.match(r"\d+\.\d+", guyot.__version__)


def test_the_plot_shows_every_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    from matplotlib.figure import Figure

    discovery = make()
    train(discovery, "nested", 30)
    axes = discovery.plot()
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [group.name for group in discovery.original.groups]
    expected = discovery.keep_probs[names[0]]
    widths = [bar.get_width() for bar in axes.containers[2]]
    assert widths[0] == pytest.approx(float(expected.mean()))
    mine = Figure().subplots()
    assert discovery.plot(mine) is mine


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    discovery = make()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MisconfiguredError, match=r"'matplotlib'.*pip install 'guyot\[report\]'"):
        discovery.plot()
