r"""Latency as a polynomial in the gates: what every operator was measured to take.

A forward pass of a batch of B samples is a sequence of kernels. The time of a kernel that computes
m MACs and moves e elements (reads and writes of activations and weights) is modelled as

    t = fixed + per_mac * m + per_element * e,        fixed, per_mac, per_element >= 0,

with three coefficients for every module, fitted to measurements at several widths by non-negative
least squares. m and e are products of axes, so t is a polynomial in the kept widths, multiplied by
the gates of the layers the kernel runs in; since no coefficient is negative every structure has a
price of at least 0, and a layer that goes takes the fixed costs of its kernels along [ours].

What the kernels of a whole network take is more than their sum: somebody has to call them. Where
whole networks were measured as well,

    T = scale * sum_k t_k + call * (number of kernels) + constant,      all >= 0,

is fitted to those times, and scale and call go into the coefficients. Units: milliseconds.
"""

from guyot.costs.latency.fit import (
    CrossValidation,
    Measurement,
    cross_validate,
    fit,
    nonnegative,
    work_of,
)
from guyot.costs.latency.table import LatencyTable, Rate, latency_of

__all__ = [
    "CrossValidation",
    "LatencyTable",
    "Measurement",
    "Rate",
    "cross_validate",
    "fit",
    "latency_of",
    "nonnegative",
    "work_of",
]
