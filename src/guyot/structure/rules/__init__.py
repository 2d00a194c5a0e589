"""Rules of axis inference, one small file per family of operators."""

from importlib import import_module

from guyot.structure.rules.registry import SPACE, Dims, Rule, rule, rule_for

__all__ = ["SPACE", "Dims", "Rule", "rule", "rule_for"]

for _family in (
    "attention",
    "convolution",
    "embedding",
    "layout",
    "linear",
    "matmul",
    "normalisation",
    "pointwise",
    "pooling",
    "shape",
):
    import_module(f"{__name__}.{_family}")  # registers its rules
