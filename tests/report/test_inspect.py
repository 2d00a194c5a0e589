"""`guyot inspect` and what it tells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, counted
from terminal import run

from guyot import find_structures
from guyot.core.axis import best
from guyot.core.types import KeepPlan
from guyot.report import inspection_of
from guyot.surgery import operate


def inspected(*arguments: str) -> dict[str, Any]:
    result = run("inspect", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", sorted(CASES))
def test_prices_are_what_really_goes(name: str):
    case = CASES[name]
    inputs = case.inputs()
    structures = find_structures(case.build(), (inputs,))
    seen = inspection_of(structures)
    names = [group.name for group in structures.groups]
    layers = [layer.name for layer in structures.layers]

    def cost(plan: KeepPlan) -> tuple[int, int]:
        model = case.build()
        operate(model, structures, plan)
        return counted(model, inputs), sum(p.numel() for p in model.parameters())

    macs, params = cost(KeepPlan())
    assert (seen.full.macs, seen.full.params) == (macs, params)
    blocks = structures.index.blocks
    for entry in seen.groups:
        number = names.index(entry.group.name)
        count = blocks[number]
        kept = best(torch.zeros(entry.group.size), entry.group.size - count, count)
        left = cost(KeepPlan({number: kept}))
        prices = (count * entry.unit.macs, count * entry.unit.params)
        assert (macs - left[0], params - left[1]) == prices
    for entry in seen.layers:
        left = cost(KeepPlan({}, frozenset([layers.index(entry.name)])))
        assert (macs - left[0], params - left[1]) == (entry.price.macs, entry.price.params)
    all_gone = frozenset(range(len(layers)))
    sizes = structures.index.group_sizes
    ones = {n: best(torch.zeros(sizes[n]), blocks[n], blocks[n]) for n in range(len(names))}
    assert cost(KeepPlan(ones, all_gone)) == (seen.least.macs, seen.least.params)


def test_nested_layers_and_their_groups():
    case = CASES["nested"]
    seen = inspection_of(find_structures(case.build(), (case.inputs(),)))
    assert [(layer.name, layer.inside) for layer in seen.layers] == [
        ("1", None),
        ("1.inner", "1"),
        ("2", None),
    ]
    assert {g.group.name: g.layer for g in seen.groups} == {
        "0": None,
        "1.first": "1",
        "1.inner.first": "1.inner",
        "2.first": "2",
    }


def test_the_tree():
    result = run("inspect", "digits")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    text = result.stdout
    assert lines[0] == "digits, input 2x1x8x8"
    assert re.search(r"^  groups of units +\d+   \d+ units$", text, re.MULTILINE)
    assert re.search(r"^├── layer stages.0.0 +[\d.]+ [kM] +[\d.]+% +[\d.]+ k +[\d.]+%$", text, re.M)
    assert re.search(r"^│   └── stages.0.0.conv1 +16 +[\d.]+ k", text, re.MULTILINE)
    assert "made by stages.0.0.conv1, stages.0.0.bn1" in text
    assert re.search(r"made by conv1, bn1, .* and \d more", text)
    assert "  fc: an output of the network" in text
    everything = run("inspect", "digits", "--all").stdout
    assert " more" not in everything and len(everything) > len(text)
    assert run("inspect", "digits", "--quiet").stdout.splitlines() == lines[1:5]


def test_json_has_everything():
    values = inspected("digits")
    assert values["input_shapes"] == [[2, 1, 8, 8]] and values["verified"]
    group = next(g for g in values["groups"] if g["name"] == "stages.0.0.conv1")
    assert group["units"] == 16 and group["layer"] == "stages.0.0"
    assert group["readers"] == [{"tensor": "stages.0.0.conv2.weight", "dim": 1}]
    assert {"tensor": "stages.0.0.bn1.running_var", "dim": 0} in group["writers"]
    assert {"name": "fc", "reason": "an output of the network"} in values["frozen"]
    layer = next(layer for layer in values["layers"] if layer["name"] == "stages.0.0")
    assert layer["inside"] is None and 0 < layer["macs"] < values["macs"]


def test_wishes_and_sizes():
    values = inspected(
        "timm:test_resnet",
        "--input-size",
        "32",
        "--batch",
        "3",
        "--classes",
        "7",
        "--ignore",
        "layer4",
        "--freeze",
        "layer1.0",
        "--no-verify",
    )
    assert values["input_shapes"] == [[3, 3, 32, 32]] and not values["verified"]
    names = {layer["name"] for layer in values["layers"]}
    assert not any(name.startswith("layer4") for name in names) and "layer1.0" not in names
    reasons = {item["name"]: item["reason"] for item in values["frozen"]}
    assert reasons["layer1.0"] == "frozen by the user"
    tied = inspected("digits", "--tie", "stages.0.?.conv1")
    (group,) = (g for g in tied["groups"] if g["tied"])
    assert group["tied"] == ["stages.0.1.conv1"]


def test_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def words():\n"
        "    net = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))\n"
        "    return net, (torch.zeros(2, 4, dtype=torch.long),)\n"
        "def plain():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))\n"
    )
    assert inspected("mine.py:words")["input_shapes"] == [[2, 4]]
    assert inspected("mine.py:plain", "--input-size", "3x9x9")["input_shapes"] == [[2, 3, 9, 9]]


def test_what_a_norm_refuses_is_said_readably():
    text = run("inspect", "timm:test_vit", "--input-size", "32").stdout
    assert max(map(len, text.splitlines())) <= 80
    stays = " ".join(text.partition("\nstays\n")[2].split())
    assert "cls_token: the statistics of blocks.0.norm1 (LayerNorm) run over it" in stays
    assert re.search(r"blocks\.0\.attn\.qkv.*: the scores of blocks\.0\.attn sum over it", stays)
    assert re.search(r"layer blocks\.0 ", text) and re.search(r"blocks\.0\.mlp\.fc1 +192", text)


def test_networks_of_tables_and_texts():
    assert inspected("mlp", "--input-size", "13", "--no-verify")["input_shapes"] == [[2, 13]]
    text = inspected("transformer", "--input-size", "9", "--classes", "40", "--no-verify")
    assert text["input_shapes"] == [[2, 9]]


def test_a_run_is_no_network(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    result = run("inspect", str(tmp_path))
    assert result.exit_code == 2
    assert re.search(r"is the folder of a run: guyot report \S+ shows what was", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet21"], "model='resnet21' is unknown, did you mean"),
        (["digits", "--input-size", "8x8"], "--input-size='8x8': give pixels as 224 or 3x224x224"),
        (["transformer", "--input-size", "3x8x8"], "--input-size='3x8x8': give the characters"),
        (["digits", "--input-size", "0"], "--input-size='0': give pixels"),
        (["digits", "--batch", "0"], "--batch=0: give at least 1"),
        (["digits", "--freeze", "conv2"], "--freeze='conv2' matches no group and no layer"),
        (["guyot.app.models:digits_resnet"], "does not say what it takes: give --input-size"),
    ],
)
def test_bad_input(arguments: list[str], message: str):
    result = run("inspect", *arguments)
    assert result.exit_code == 2
    assert re.search(message, result.stderr)
    assert len(result.stderr.strip().splitlines()) == 1
