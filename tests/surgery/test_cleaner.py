"""What is taken out of a method once a branch is gone, and what its loops still need."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guyot.surgery.cleaner import Cleaner
from guyot.surgery.source import method_of


class Net(nn.Module):
    """Every method is a case: `spare`, `spares` and `pairs` go."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.kept = nn.Linear(3, 3), nn.Linear(3, 3)
        self.spares = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.parts = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.pairs = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.none = nn.ModuleList()
        self.count = 0
        self.notes = [id]

    def counted(self) -> range:
        self.count += 1
        return range(2)

    def dead(self, x: Tensor) -> Tensor:
        total = x
        for spare in self.spares:
            total = total + spare(x)
        return x

    def dead_of_two_lists(self, x: Tensor) -> Tensor:
        total = x
        for number, (one, other) in enumerate(zip(self.spares, self.pairs, strict=True)):
            total = total + one(x) * other(x) * number
        return x

    def one_list_stays(self, x: Tensor) -> Tensor:
        total = x
        for one, other in zip(self.spares, self.parts, strict=True):
            total = total + one(x) * other(x)
        return x

    def two_loops(self, x: Tensor) -> Tensor:
        total = x
        for one in self.spares:
            for other in self.pairs:
                total = total + other(one(x))
        return x

    def in_place_of_something(self, x: Tensor) -> Tensor:
        for part in self.parts:
            part(x)
            y = self.spare(x)  # noqa: F841
        return x

    def read_the_next_time(self, x: Tensor) -> Tensor:
        total = last = x
        for part in self.parts:
            total = total + last
            last = 2 * x
            spare = 2 * part(x)  # noqa: F841
        return total

    def read_in_two_turns(self, x: Tensor) -> Tensor:
        total = last = first = x
        for _ in range(3):
            total = total + last
            last = first
            first = 2 * x
        return total

    def always_set(self, x: Tensor) -> Tensor:
        y = 2 * x
        for part in self.parts:
            y = part(x)
        return y

    def perhaps_not_set(self, x: Tensor) -> Tensor:
        y = 2 * x
        for _ in range(self.count):
            y = self.kept(x)
        return y

    def never_set(self, x: Tensor) -> Tensor:
        y = 2 * x
        for part in self.none:
            y = part(x)
        return y

    def bound_by_the_loop(self, x: Tensor) -> Tensor:
        part = 2 * x
        for part in self.parts:
            x = part(x)
        return x

    def left_early(self, x: Tensor) -> Tensor:
        y = 2 * x
        for part in self.parts:
            y = part(x)
            if y.sum() > 0:
                break
        return x

    def read_the_next_time_in_a_choice(self, x: Tensor) -> Tensor:
        total = last = x
        for part in self.parts:
            total = total + last
            if part.training:
                last = 2 * x
                part(x)
        return total

    def calls_what_is_no_module(self, x: Tensor) -> Tensor:
        for note in self.notes:
            y = note(x)  # noqa: F841
        return x

    def counts(self, x: Tensor) -> Tensor:
        for _ in self.counted():
            y = 2 * x  # noqa: F841
        return x


TAKEN_OUT: dict[str, list[str]] = {
    "dead": ["total = x", "for spare in self.spares:", "    total = total + spare(x)"],
    "dead_of_two_lists": [
        "total = x",
        "for number, (one, other) in enumerate(zip(self.spares, self.pairs, strict=True)):",
        "    total = total + one(x) * other(x) * number",
    ],
    "one_list_stays": [],
    "two_loops": [
        "total = x",
        "for one in self.spares:",
        "    for other in self.pairs:",
        "        total = total + other(one(x))",
    ],
    "in_place_of_something": ["    y = self.spare(x)"],
    "read_the_next_time": [],
    "read_in_two_turns": [],
    "always_set": ["y = 2 * x"],
    "perhaps_not_set": [],
    "never_set": [],
    "bound_by_the_loop": ["part = 2 * x"],
    "left_early": [],
    "read_the_next_time_in_a_choice": [],
    "calls_what_is_no_module": [],
    "counts": ["    y = 2 * x"],
}


@pytest.mark.parametrize("name", TAKEN_OUT)
def test_only_what_nobody_reads_is_taken_out(name: str) -> None:
    method = method_of(Net, name)
    before = ast.unparse(method.definition).splitlines()
    cleaner = Cleaner(method, Net(), {"spare", "spares.0", "spares.1", "pairs.0", "pairs.1"})
    method.definition.body, _ = cleaner.cleaned(method.definition.body, set())
    after = ast.unparse(method.definition)
    taken_out = [line[4:] for line in before if line not in after.splitlines()]
    assert taken_out == TAKEN_OUT[name]
    scope: dict[str, Any] = {"Tensor": Tensor}
    exec(after, scope)
    net, x = Net(), torch.randn(2, 3)
    torch.testing.assert_close(scope[name](net, x), getattr(net, name)(x))
