"""Reasons and errors: code asks for kinds and fields, never for words of a text."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from guyot import GuyotWarning, find_structures
from guyot.core.errors import TooFewStepsError
from guyot.core.reasons import Reason, ReasonKind
from guyot.planning.dynamics import Phases


class Odd(nn.Module):
    """Has a unit group of every kind of fate."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return self.three(torch.linalg.qr(x)[0])


def test_every_frozen_thing_has_a_kind() -> None:
    with pytest.warns(GuyotWarning, match="linalg_qr"):
        structures = find_structures(Odd(), (torch.randn(6, 4),), freeze="one")
    kinds = {frozen.name: frozen.kind for frozen in structures.frozen}
    assert kinds["one"] is ReasonKind.BY_USER
    assert kinds["two"] is ReasonKind.NO_RULE
    assert kinds["three"] is ReasonKind.NOT_UNITS
    assert all(type(frozen.reason) is str for frozen in structures.frozen)


def test_what_follows_from_a_reason_is_of_its_kind() -> None:
    reason = Reason(ReasonKind.NO_RULE, "nothing is known").because("it is tied")
    assert (reason.kind, str(reason)) == (ReasonKind.NO_RULE, "it is tied: nothing is known")


def test_the_error_of_a_short_run_says_what_is_enough() -> None:
    with pytest.raises(TooFewStepsError, match="total_steps=20 is too small") as error:
        Phases(20)
    assert error.value.total_steps == 20
    assert Phases(error.value.enough).total_steps == error.value.enough
