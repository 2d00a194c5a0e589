"""Why something stays as it is: a kind for code to ask for, and a text for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ReasonKind(Enum):
    """The kinds of reasons why a dimension or a layer cannot be removed."""

    NOT_UNITS = "it never holds units, as the batch, pixels or classes"
    OPERATOR = "an operator of the network needs all of it"
    NO_RULE = "an operator that no rule covers touches it"
    NOT_LEARNED = "no weight reads it, or nothing that learns makes it"
    BRANCH = "the residual branch does not have a form that can be removed"
    VERIFICATION = "the network without it was not the masked network"
    BY_USER = "the user said so"


@dataclass(frozen=True)
class Reason:
    """One reason; `str()` of it is the text.

    Attributes:
        kind: what code distinguishes.
        text: what people read, without a full stop.

    Example:
        >>> print(Reason(ReasonKind.BY_USER, "frozen by the user"))
        frozen by the user
    """

    kind: ReasonKind
    text: str

    def __str__(self) -> str:
        return self.text

    def because(self, text: str) -> Reason:
        """Return a reason of the same kind that says first what follows from this one.

        Example:
            >>> print(Reason(ReasonKind.BY_USER, "frozen by the user").because("b is tied to a"))
            b is tied to a: frozen by the user
        """
        return Reason(self.kind, f"{text}: {self.text}")
