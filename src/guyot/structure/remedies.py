"""What is done about groups that fail verification: other ways first, then they stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guyot.types import Fixed

if TYPE_CHECKING:
    from guyot.structure.inference import Inference
    from guyot.structure.trace import Trace


@dataclass
class Remedies:
    """What inference has to heed.

    Attributes:
        excluded: name of a group -> reason why it must not shrink.
        anew: names of modules that are written anew when what they state changes.
        together: names of groups whose units go from every block of a convolution at once.
    """

    excluded: dict[str, str]
    anew: set[str] = field(default_factory=set[str])
    together: set[str] = field(default_factory=set[str])

    def after(self, inference: Inference, trace: Trace, failures: Mapping[int, str]) -> None:
        """Choose for every group that failed (its number -> the reason) what to try next."""
        before = set(self.anew)
        for number, reason in failures.items():
            group = inference.structures.groups[number]
            if group.block != Fixed(1):
                self.together.add(group.name)
                continue
            stating = {
                module
                for module in inference.stating.get(number, ())
                if module and len(trace.calls.get(module, ())) == 1
            }
            if stating <= before:
                self.excluded[group.name] = reason
            self.anew |= stating
