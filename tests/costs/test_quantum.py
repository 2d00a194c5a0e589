import random
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guyot.core.errors import MisconfiguredError
from guyot.costs import quantum
from guyot.costs.quantum import (
    CLASSES,
    DEFAULT_QUANTUM,
    POWERS,
    WIDTHS,
    decide,
    efficiency,
    measure_quantum,
    timing_table,
)


def blocks(size: int, exponent: float = 1.0) -> dict[int, float]:
    """Seconds on a machine that computes whole blocks of channels."""
    return {width: (-(-width // size) * size) ** exponent * 1e-4 for width in WIDTHS}


def noisy(table: dict[int, float], rounds: int, spread: float) -> list[dict[int, float]]:
    draw = random.Random(1)
    return [{w: t * (1 + draw.gauss(0, spread)) for w, t in table.items()} for _ in range(rounds)]


# Milliseconds of conv3x3 + BatchNorm + ReLU at 16x16 pixels, batch 128, bfloat16, channels_last,
# one thread of a processor with bfloat16 matrix units (9 and 21: interpolated).
MEASURED = dict(
    zip(
        WIDTHS,
        map(
            float,
            "2.65 2.77 2.89 3.33 3.75 4.36 3.41 6.12 6.6 7.05 6.49 8.34 7.08 10.77 12.21 15.21 "
            "15.88".split(),
        ),
        strict=True,
    )
)


def test_classes_hold_the_widths_that_their_quantum_adds() -> None:
    for size, widths in CLASSES.items():
        assert all(w % size == 0 and w % (2 * size) for w in widths)
        assert all(POWERS[0] < w < POWERS[-1] for w in widths)
    assert set(WIDTHS) == {*POWERS, *(w for widths in CLASSES.values() for w in widths)}


@given(st.floats(0.6, 2.0), st.floats(1e-6, 1.0))
def test_any_power_law_is_efficient_everywhere(exponent: float, unit: float) -> None:
    table = {width: unit * width**exponent for width in WIDTHS}
    for width in set(WIDTHS) - set(POWERS):
        assert efficiency(table, width) == pytest.approx(1.0)
    assert decide([table] * 5) == 1


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (2, 1), (4, 2), (8, 8), (16, 16), (32, 32)])
def test_blocks_are_found(size: int, expected: int) -> None:
    # Blocks of 4 cost little more than a fifth at width 9 and less from 10 on, hence 2.
    assert decide([blocks(size)] * 5) == expected
    assert decide(noisy(blocks(size), rounds=15, spread=0.01)) == expected


def test_blocks_are_found_whatever_the_growth() -> None:
    assert {decide([blocks(8, exponent)] * 5) for exponent in (0.8, 1.0, 1.5, 2.0)} == {8}


def test_the_measured_table_speaks_for_8() -> None:
    assert efficiency(MEASURED, 24) > 0.8 > efficiency(MEASURED, 20)
    assert decide([MEASURED] * 5) == 8


def test_a_slow_machine_during_whole_repetitions_changes_nothing() -> None:
    table = blocks(16)
    slowed = [{w: t * factor for w, t in table.items()} for factor in (1, 2, 5, 1, 3, 1)]
    assert decide(slowed) == 16


def test_rare_outliers_change_nothing() -> None:
    rounds = noisy(blocks(16), rounds=15, spread=0.01)
    for number, width in enumerate((24, 16, 40, 48)):
        rounds[number][width] *= 4
    assert decide(rounds) == 16


def test_noise_speaks_for_nothing() -> None:
    assert decide(noisy(blocks(16), rounds=6, spread=0.35)) == DEFAULT_QUANTUM
    assert decide(noisy(blocks(1), rounds=6, spread=0.35)) == DEFAULT_QUANTUM


def test_too_few_repetitions_speak_for_nothing() -> None:
    assert decide([]) == DEFAULT_QUANTUM
    assert decide([blocks(16)] * 4) == DEFAULT_QUANTUM


def test_times_of_overheads_speak_for_nothing() -> None:
    assert decide([dict.fromkeys(WIDTHS, 1e-4)] * 5) == DEFAULT_QUANTUM
    assert decide([dict.fromkeys(WIDTHS, 0.0)] * 5) == DEFAULT_QUANTUM


@given(st.lists(st.floats(0.5, 2.0), min_size=len(WIDTHS), max_size=len(WIDTHS)))
def test_the_answer_is_a_power_of_two_whatever_the_times(factors: list[float]) -> None:
    table = {w: w * factor for w, factor in zip(WIDTHS, factors, strict=True)}
    assert decide([table] * 5) in {1, 2, 4, 8, 16, 32}


def test_measuring_leaves_random_state_and_modes_alone() -> None:
    state = torch.get_rng_state()
    with torch.inference_mode():
        rounds = timing_table(torch.float32, channels_last=True, budget=0.3)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(state, torch.get_rng_state())
    assert all(set(times) == set(WIDTHS) and min(times.values()) > 0 for times in rounds)


def test_no_time_to_measure_gives_the_default() -> None:
    assert timing_table(torch.float32, channels_last=False, budget=0.0) == []
    assert measure_quantum("cpu", torch.float32, budget=0.0) == DEFAULT_QUANTUM


def test_measured_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def table(*_: object) -> list[dict[int, float]]:
        calls.append(1)
        return [blocks(16)] * 5

    monkeypatch.setattr(quantum, "timing_table", table)
    budget = 7 + time.perf_counter() % 1  # an answer of this process is kept
    assert [measure_quantum(budget=budget) for _ in range(3)] == [16] * 3
    assert len(calls) == 1


@pytest.mark.parametrize("device", ["cuda", "mps", "meta"])
def test_other_devices_are_not_measured(device: str) -> None:
    assert measure_quantum(device, torch.bfloat16) == DEFAULT_QUANTUM


def test_a_dtype_without_convolutions() -> None:
    with pytest.raises(MisconfiguredError, match=r"torch\.int8.*bfloat16"):
        measure_quantum("cpu", torch.int8)
