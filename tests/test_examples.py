"""The programs in examples/ run as their first lines say and end smaller."""

import re
from pathlib import Path

import pytest
from paths import ROOT
from warm import Started

EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str) -> str:
    code, said = Started(EXAMPLES / name, *arguments).ended()
    assert code == 0, said
    return said


def shares(output: str) -> tuple[float, float]:
    """MACs and parameters that are left, from the lines `full => now`."""
    found = re.findall(r"^([\d,]+) => ([\d,]+) (MACs|parameters)", output, re.MULTILINE)
    assert [kind for *_, kind in found] == ["MACs", "parameters"], output
    macs, params = (int(b.replace(",", "")) / int(a.replace(",", "")) for a, b, _ in found)
    return macs, params


def accuracy(output: str) -> float:
    """Of the last epoch, in percent."""
    return float(re.findall(r"test +([\d.]+) %", output)[-1])


def test_own_loop(tmp_path: Path) -> None:
    output = run("own_loop.py", "--epochs", "10", "--folder", str(tmp_path / "out"))
    macs, params = shares(output)
    assert macs == pytest.approx(0.4, abs=0.03) and params < 0.7
    assert accuracy(output) > 90
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.safetensors",
        "structure.json",
    }


@pytest.mark.slow
def test_timm_finetune() -> None:
    output = run("timm_finetune.py", "--epochs", "6")
    macs, params = shares(output)
    assert macs == pytest.approx(0.5, abs=0.03) and params < 0.8
    assert accuracy(output) > 90


@pytest.mark.slow
def test_transformer() -> None:
    output = run("transformer.py", "--steps", "150")
    macs, params = shares(output)
    assert macs == pytest.approx(0.5, abs=0.05) and params < 0.8
    (loss,) = re.findall(r"held out: ([\d.]+) nats", output)
    assert float(loss) < 3.0  # 94 letters at random: 4.5


@pytest.mark.slow
@pytest.mark.parametrize("equal", [False, True])
def test_language_model(equal: bool, tmp_path: Path) -> None:
    options = ["--equal"] if equal else []
    output = run("language_model.py", "--steps", "60", "--folder", str(tmp_path), *options)
    macs, params = shares(output)
    assert macs == pytest.approx(0.5, abs=0.05) and params < 0.8
    losses = re.findall(r"^(\w+): held out ([\d.]+) nats", output, re.MULTILINE)
    assert [name for name, _ in losses] == ["full", "pruned", "loaded"]
    assert losses[1][1] == losses[2][1] and float(losses[1][1]) < 6.2  # 512 pieces at random
    assert ("no code" in output) == equal


def test_accelerate_loop_resumes_bit_for_bit(tmp_path: Path) -> None:
    quick = ("--epochs", "6")
    output = run("accelerate_loop.py", *quick)
    macs, params = shares(output)
    assert macs == pytest.approx(0.4, abs=0.03) and params < 0.7
    assert accuracy(output) > 90
    folder = ("--folder", str(tmp_path))
    run("accelerate_loop.py", *quick, *folder, "--stop-after", "2")
    names = {path.name for path in (tmp_path / "epoch-2").iterdir()}
    assert {"guyot.json", "guyot.safetensors", "model.safetensors", "done"} <= names
    resumed = run("accelerate_loop.py", *quick, *folder)
    assert resumed.startswith("resumes after epoch 2\n")
    assert resumed.splitlines()[-4:] == output.splitlines()[-4:]
    third = run("accelerate_loop.py", *quick, *folder)  # resumes a network that is small
    assert third.startswith("resumes after epoch 6\n")
    assert third.splitlines()[-4:] == output.splitlines()[-4:]
