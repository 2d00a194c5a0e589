"""Rules of axis inference, one small file per family of operators."""

from guyot.structure.rules import (  # noqa: F401  (importing registers the rules)
    convolution,
    linear,
    normalisation,
    pointwise,
    pooling,
    shape,
)
from guyot.structure.rules.registry import SPACE, Dims, Rule, rule, rule_for

__all__ = ["SPACE", "Dims", "Rule", "rule", "rule_for"]
