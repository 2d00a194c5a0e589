"""Models of torchvision, timm and transformers pass, from discovery to a step after a removal."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from examine import a_third, problems_of, result_of
from others import OTHERS
from paths import HELPERS, ROOT
from torch import nn
from zoo import TIMM, TORCHVISION, ZOO

from guyot import find_structures
from guyot.surgery import operate

FAST = [
    "torchvision/resnet18",
    "torchvision/mobilenet_v2",
    "torchvision/squeezenet1_1",
    "torchvision/shufflenet_v2_x0_5",
    "timm/vit_tiny_patch16_224",
    "timm/convnext_atto",
    "timm/lcnet_050",
    "timm/efficientnet_b0",
    "transformers/bert",
    "transformers/gpt2",
    "transformers/llama",
]
"""One of each kind: plain, residual, squeezed, shuffled and depthwise convolutions, attention."""


def test_the_zoo_is_complete() -> None:
    torchvision = pytest.importorskip("torchvision")
    offered = torchvision.models.list_models(module=torchvision.models)
    assert sorted(TORCHVISION) == sorted(offered)
    assert len(TIMM) >= 40


def test_the_zoo_names_models_that_timm_has() -> None:
    timm = pytest.importorskip("timm")
    assert set(TIMM) <= set(timm.list_models())


@pytest.mark.parametrize("name", FAST)
def test_fast_models(name: str) -> None:
    pytest.importorskip(name.partition("/")[0])
    found = result_of("guyot", name)
    assert found["passed"], found["problems"]
    assert found["groups"] and found["prunable_macs"] > 0.1


@pytest.mark.parametrize("name", ["torch/gru"])
def test_fast_models_of_other_kinds(name: str) -> None:
    found = result_of("guyot", name)
    assert found["passed"], found["problems"]
    assert found["checks"].keys() >= {"copies", "hooks", "gradients", "other sizes"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in (*ZOO, *OTHERS) if name not in FAST])
def test_all_models(name: str) -> None:
    """The outcome is that which is recorded, with the same problems where there are some."""
    pytest.importorskip(name.partition("/")[0])
    recorded = ROOT / "benchmarks" / "results" / "coverage" / f"{name.replace('/', '-')}.json"
    if not recorded.exists():
        pytest.skip("no result is recorded: python benchmarks/covered.py")
    program = str(HELPERS / "examine.py")
    done = subprocess.run(
        [sys.executable, program, "guyot", name], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    expected = json.loads(recorded.read_text())["guyot"]
    assert found["problems"] == expected["problems"]
    assert found["passed"] == expected["passed"]


def test_a_failure_is_a_problem() -> None:
    found = result_of("guyot", "torchvision/no_such_model")
    assert not found["passed"] and "KeyError" in found["problems"][0]
    wrong = {"groups": 0, "layers": 0, "layers_expected": 2, "macs": 1, "macs_counted": 2}
    wrong |= {"macs_after": 1, "macs_after_counted": 1, "difference": 1e-3}
    assert len(problems_of(wrong)) == 4


def test_a_third_goes() -> None:
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))
    structures = find_structures(model, (torch.ones(2, 4),))
    operate(model, structures, a_third(structures))
    assert model[0].out_features == 6
