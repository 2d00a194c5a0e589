"""Runs side by side: how sure an accuracy is, and against what it is held."""

from __future__ import annotations

import re
from typing import Any

import pytest

from guyot.report import compare, compare_lines, member_lines
from guyot.report.comparison import Hits
from guyot.report.history import History

CONFIG: dict[str, Any] = {
    "model": "digits", "data": "digits", "discovery": True, "target": 0.5, "seed": 0,
    "device": "cpu", "threads": 1,
}  # fmt: skip


def run(name: str, accuracy: float | None, macs: int = 100, **config: Any) -> History:
    network = {"macs": macs, "params": 7, "latency": {}, "test_accuracy": accuracy}
    before = {"macs": 200, "params": 14, "latency": {}, "test_accuracy": None}
    result = {
        "before": before, "after": network, "seconds": 3.0, "test_images": 200, "status": "finished"
    }  # fmt: skip
    return History(name, CONFIG | config, {"macs": 200, "params": 14}, [], result)


FULL = {"discovery": False, "target": None}
SLIM = {**FULL, "slim": 0.5}


@pytest.mark.parametrize("right", [0, 1, 100, 199, 200])
def test_bounds_of_wilson_are_where_the_test_of_the_share_turns(right: int) -> None:
    """At a bound the observed share is 1.96 deviations of the *true* share away."""
    score = Hits(right, 200)
    for bound in score.interval:
        if 1e-9 < bound < 1 - 1e-9:
            deviation = (bound * (1 - bound) / 200) ** 0.5
            assert abs(score.accuracy - bound) == pytest.approx(1.959964 * deviation)
    assert score.interval[0] <= score.accuracy <= score.interval[1]


def test_each_run_is_held_against_the_full_network_of_its_seed() -> None:
    runs = [run("a", 0.9), run("b", 0.8, seed=1), run("full b", 0.84, 200, seed=1, **FULL)]
    runs.append(run("full a", 0.95, 200, **FULL))
    first, second, third, fourth = compare(runs)
    assert first.above == pytest.approx(-0.05)
    assert second.above == pytest.approx(-0.04)
    assert first.between and first.between[0] < -0.05 < first.between[1]
    assert third.above is fourth.above is None
    assert first.share == 0.5 and third.share == 1.0


def test_without_a_full_network_the_first_run_is_the_measure() -> None:
    first, second = compare([run("a", 0.9), run("b", 0.92)])
    assert first.above is None and second.above == pytest.approx(0.02)
    assert "against a" in compare_lines([run("a", 0.9), run("b", 0.92)])[0]


def test_a_slimmer_network_is_no_full_one() -> None:
    slim, found = compare([run("slim", 0.9, **SLIM), run("found", 0.92)])
    assert slim.above is None and found.above is not None
    assert not run("slim", 0.9, **SLIM).full_network and run("full", 0.9, **FULL).full_network


def test_seeds_have_a_mean_and_a_spread() -> None:
    runs = [run(f"seed {n}: found", 0.9 + n / 100, seed=n) for n in range(3)]
    runs.append(run("other", 0.5, target=0.3))
    text = "\n".join(compare_lines(runs))
    assert re.search(r"^found +3 +91.00% +90.00% +92.00% +1.00 points$", text, re.MULTILINE)
    assert len(re.findall(r"\d points$", text, re.MULTILINE)) == 1


def test_a_run_without_a_test_has_no_interval() -> None:
    (found,) = compare([run("a", None)])
    assert found.score is None and found.to_dict()["interval"] is None
    assert compare_lines([run("a", None)])[1].split() == ["a", "-", "-", "-", "-"]


def test_notes_may_be_left_out() -> None:
    assert "Newcombe" in " ".join(compare_lines([run("a", 0.9)]))
    assert "Newcombe" not in " ".join(compare_lines([run("a", 0.9)], notes=False))


def test_wrong_predictions_are_counted() -> None:
    assert "20 of 200" in compare_lines([run("a", 0.9)])[1]


def test_a_member_that_is_worse_than_a_smaller_one_says_so() -> None:
    def member(target: float, accuracy: float) -> dict[str, Any]:
        result = run("", accuracy).result
        assert result is not None
        return {"target": target, "folder": f"{target:g}", **result}

    lines = member_lines([member(0.7, 0.8), member(0.5, 0.9), member(0.3, 0.7)])
    assert [line.endswith("0.7, worse than a smaller one") for line in lines] == [0, 1, 0, 0]
    assert [line.count("worse") for line in lines] == [0, 1, 0, 0]
