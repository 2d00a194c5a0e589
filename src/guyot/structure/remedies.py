"""What is done about groups that fail verification: other ways first, then they stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guyot.types import Fixed

if TYPE_CHECKING:
    from torch import nn

    from guyot.structure.inference import Inference


@dataclass
class Remedies:
    """What inference has to heed.

    Attributes:
        excluded: name of a group -> reason why it must not shrink.
        kinds: name of a module that is called once, so that it can be written anew -> its class.
        anew: names of modules that are written anew when what they state changes.
        together: names of groups whose units go from every block of a convolution at once.
    """

    excluded: dict[str, str]
    kinds: Mapping[str, type[nn.Module]]
    anew: set[str] = field(default_factory=set[str])
    together: set[str] = field(default_factory=set[str])

    def hopeful(self, inference: Inference) -> Callable[[int], bool]:
        """Whether the modules that state a length with a group (its number) may be written anew."""
        return lambda number: (
            inference.structures.groups[number].block == Fixed(1)
            and bool(self._stating(inference, number) - self.anew)
        )

    def after(self, inference: Inference, failures: Mapping[int, str]) -> None:
        """Choose for every group that failed (its number -> the reason) what to try next.

        A length that one attention states is stated by all of its class, so they are written anew
        together.
        """
        kinds: set[type[nn.Module]] = set()
        for number, reason in failures.items():
            group = inference.structures.groups[number]
            stating = self._stating(inference, number)
            if group.block != Fixed(1):
                self.together.add(group.name)
            elif stating <= self.anew:
                self.excluded[group.name] = reason
            else:
                kinds |= {self.kinds[module] for module in stating}
        every = set[str]().union(*inference.stating.values())
        self.anew |= {module for module in every if self.kinds.get(module) in kinds}

    def _stating(self, inference: Inference, number: int) -> set[str]:
        return {module for module in inference.stating.get(number, ()) if module in self.kinds}
