"""What is done about groups that fail verification: other ways first, then they stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from guyot.core.reasons import Reason, ReasonKind
from guyot.core.types import Fixed, Structures


@dataclass
class Remedies:
    """What inference has to heed.

    Attributes:
        excluded: name of a group -> reason why it must not shrink.
        kinds: name of a module that is called once, so that it can be rewritten -> its class.
        rewritten: names of modules that are rewritten when a length that they state changes.
        reasons: name of a group that failed -> why, before anything was rewritten for it.
        together: names of groups whose units go from every block of a convolution at once.
    """

    excluded: dict[str, Reason]
    kinds: Mapping[str, type[nn.Module]]
    rewritten: set[str] = field(default_factory=set[str])
    reasons: dict[str, str] = field(default_factory=dict[str, str])
    together: set[str] = field(default_factory=set[str])

    def retryable(
        self, structures: Structures, stating: Mapping[int, set[str]]
    ) -> Callable[[int], bool]:
        """Tell for a group (its number) whether modules that state its length may be rewritten."""
        return lambda number: (
            structures.groups[number].block == Fixed(1)
            and bool(self._rewritable(stating, number) - self.rewritten)
        )

    def after(
        self,
        structures: Structures,
        stating: Mapping[int, set[str]],
        failures: Mapping[int, str],
    ) -> None:
        """Choose for every group that failed (its number -> the reason) what to try next.

        All modules of a class state the same lengths, so they are rewritten together. A class
        that cannot follow a group which passed before is left as its author wrote it.
        """
        kinds: set[type[nn.Module]] = set()
        spoilt: set[type[nn.Module]] = set()
        for number, reason in failures.items():
            group = structures.groups[number]
            modules = self._rewritable(stating, number)
            if group.block != Fixed(1):
                self.together.add(group.name)
            elif group.name not in self.reasons and (stuck := _stuck(structures, number)):
                spoilt |= {self.kinds[module] for module in stuck if module in self.kinds}
            elif modules <= self.rewritten:
                why = self.reasons.get(group.name, reason)
                self.excluded[group.name] = Reason(ReasonKind.VERIFICATION, why)
            else:
                kinds |= {self.kinds[module] for module in modules}
                self.reasons[group.name] = reason
        every = set[str]().union(*stating.values())
        self.rewritten |= {module for module in every if self.kinds.get(module) in kinds}
        self.kinds = {module: kind for module, kind in self.kinds.items() if kind not in spoilt}
        self.rewritten &= self.kinds.keys()

    def _rewritable(self, stating: Mapping[int, set[str]], number: int) -> set[str]:
        return {module for module in stating.get(number, ()) if module in self.kinds}


def _stuck(structures: Structures, number: int) -> set[str]:
    """Return the rewritten modules that cannot follow a group."""
    return {
        spec.module
        for spec in structures.restated
        if any(group == number for group, _ in spec.stuck)
    }
