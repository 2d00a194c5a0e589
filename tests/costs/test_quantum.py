import random
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

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
from guyot.costs.timing import Span


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


def doubtful(width_class: int, spread: float, middle: float = 0.8) -> list[dict[int, float]]:
    """Efficient widths but those of one class, whose efficiency scatters around a middle."""
    widths = CLASSES[width_class]
    rounds = []
    for number in range(5):
        table = blocks(1)
        for width in widths:
            table[width] /= middle + spread * (number - 2)
        rounds.append(table)
    return rounds


@pytest.mark.parametrize(
    ("width_class", "spread", "middle", "expected"),
    [
        (8, 0.02, 0.8, 8),  # unclear: neither coarser nor finer than what is usual
        (4, 0.02, 0.8, 8),
        (2, 0.02, 0.8, 4),
        (1, 0.02, 0.8, 2),
        (16, 0.02, 0.8, 1),  # nothing depends on it where 8 is good
        # of five values, two standard errors are 2 * 1.2533 * 1.4826 * spread / sqrt(5)
        (1, 0.02, 0.8 + 1.63 * 0.02, 2),
        (1, 0.02, 0.8 + 1.70 * 0.02, 1),
        (8, 0.02, 0.8 - 1.63 * 0.02, 8),
        (8, 0.02, 0.8 - 1.70 * 0.02, 16),
    ],
)
def test_a_class_counts_from_two_standard_errors_on(
    width_class: int, spread: float, middle: float, expected: int
) -> None:
    assert decide(doubtful(width_class, spread, middle)) == expected


def test_an_unclear_16_is_taken_where_8_is_bad() -> None:
    rounds = doubtful(16, 0.02)
    for table in rounds:
        for width in CLASSES[8]:
            table[width] *= 2
    assert decide(rounds) == 16


def one_round(seconds: float) -> Callable[..., Iterator[dict[int, Span]]]:
    """In the place of `rounds`: each step runs once, under autocast, and takes so long."""

    def rounds(
        steps: dict[int, Callable[[], None]], *_: object, **__: object
    ) -> Iterator[dict[int, Span]]:
        for step in steps.values():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                step()
        yield dict.fromkeys(steps, Span(wall=seconds, busy=seconds))

    return rounds


class Functions:
    """What a layer called, and with what."""

    relu_ = staticmethod(functional.relu_)

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []
        self.trained: list[bool] = []

    def conv2d(self, image: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
        self.images.append(image)
        out = functional.conv2d(image, weight, padding=padding)
        assert out.shape == image.shape and not torch.is_autocast_enabled("cpu")
        return out

    def batch_norm(
        self, x: torch.Tensor, *state: torch.Tensor | None, training: bool = False
    ) -> torch.Tensor:
        self.trained.append(training and x.grad_fn is not None)
        out = functional.batch_norm(x, *state, training=training)
        if training:
            assert float(out.detach().float().mean()) == pytest.approx(1, abs=0.01)  # the shift
        else:  # mean 0 and variance 1 are known
            torch.testing.assert_close(out, x, rtol=1e-2, atol=1e-2)
        return out


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [None, 3])
def test_layers_of_the_dtype_and_layout_asked_for_are_measured(
    monkeypatch: pytest.MonkeyPatch, batch: int | None, dtype: torch.dtype, channels_last: bool
) -> None:
    called = Functions()
    monkeypatch.setattr(quantum, "F", called)
    monkeypatch.setattr(quantum, "PIXELS", 2)

    monkeypatch.setattr(quantum, "rounds", one_round(1e-4))
    (times,) = timing_table(dtype, channels_last, 2.0, batch)
    assert times == dict.fromkeys(WIDTHS, 1e-4)
    images = called.images[-len(WIDTHS) :]
    assert [image.shape[1] for image in images] == [*WIDTHS]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert {image.dtype for image in called.images} == {dtype}
    assert all(image.is_contiguous(memory_format=layout) for image in called.images)
    assert {image.shape[0] for image in images} == {batch or 128}
    assert set(called.trained) == {batch is None}


@pytest.mark.parametrize(
    ("seconds", "batch"), [(0.0073, 128), (0.0074, 32), (0.0294, 32), (0.0295, 8), (9.0, 8)]
)
def test_the_batch_is_as_large_as_there_is_time_for(
    monkeypatch: pytest.MonkeyPatch, seconds: float, batch: int
) -> None:
    """So many seconds for the widest layer and 8 images; the others take half of it on average."""
    made: list[tuple[int, int]] = []

    def layer(width: int, images: int, *_: object, **__: object) -> Callable[[], None]:
        made.append((width, images))
        return lambda: None

    monkeypatch.setattr(quantum, "_layer", layer)
    monkeypatch.setattr(quantum, "rounds", one_round(seconds))
    timing_table(torch.float32, True, budget=7.0)
    assert made == [(64, 8), *((width, batch) for width in WIDTHS)]


def test_all_that_is_asked_for_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def table(*arguments: object) -> list[dict[int, float]]:
        asked.append(arguments)
        return [blocks(16)] * 5

    monkeypatch.setattr(quantum, "timing_table", table)
    budget = 9 + time.perf_counter() % 1
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            measure_quantum("cpu", torch.bfloat16, channels_last=False, budget=budget, batch=7)
            measure_quantum("cpu", torch.bfloat16, channels_last=False, budget=budget)
    finally:
        torch.set_num_threads(threads)
    expected = [(torch.bfloat16, False, budget, batch) for batch in (7, None)]
    assert asked == expected * 2
