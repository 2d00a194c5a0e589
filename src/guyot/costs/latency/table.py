"""The latency table: coefficients by module, their JSON file, and the polynomial they make."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from guyot.core.errors import MisconfiguredError
from guyot.core.storage import read_json
from guyot.core.types import Structures
from guyot.costs.polynomial import Monomial, Polynomial, merge, monomials_of

TABLE_FORMAT = 1
"""Version of the JSON file."""


@dataclass(frozen=True)
class Rate:
    """What the kernels of a module take, each.

    Attributes:
        fixed: milliseconds per call.
        per_mac: milliseconds per multiply-accumulate.
        per_element: milliseconds per element read or written.
    """

    fixed: float = 0.0
    per_mac: float = 0.0
    per_element: float = 0.0


@dataclass(frozen=True)
class LatencyTable:
    """How long the operators of a network take on one device.

    Attributes:
        operators: by module, as `Structures.kernels` names them; a module that is not named takes
            no time (a runtime may have fused it with another).
        batch: samples per forward pass.
        full: milliseconds of a pass of the full network, by this table.
        constant: milliseconds of a pass that no structure can save.
        quantum: multiple of channels below which this device hardly gets faster.
        input_shapes: of the example inputs, with the batch.
        where: what was measured on, for people: device, threads, versions.

    Raises:
        MisconfiguredError: a coefficient that is negative or no number, or no coefficient at all.

    Example:
        >>> table = LatencyTable({"conv1": Rate(0.01, 2e-9)}, batch=1, full=0.05)
        >>> table.share(0.025)
        0.5
        >>> LatencyTable.from_dict(table.to_dict()) == table
        True
    """

    operators: Mapping[str, Rate]
    batch: int
    full: float
    constant: float = 0.0
    quantum: int = 1
    input_shapes: tuple[tuple[int, ...], ...] = ()
    where: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch < 1 or self.quantum < 1:
            raise MisconfiguredError(
                f"batch={self.batch} and quantum={self.quantum} of a latency table: give 1 or more"
            )
        named = {name: tuple(asdict(rate).values()) for name, rate in self.operators.items()}
        for name, values in (
            ("constant", (self.constant,)),
            ("full", (self.full,)),
            *named.items(),
        ):
            if not all(math.isfinite(value) and value >= 0 for value in values):
                raise MisconfiguredError(
                    f"the latency table gives {name} as {values}: every time must be a number of "
                    "milliseconds, 0 or more"
                )
        if not any(value > 0 for values in named.values() for value in values):
            raise MisconfiguredError(
                "every operator of the latency table takes no time: measure with `guyot profile`"
            )

    def share(self, milliseconds: float) -> float:
        """Return the share of the full network's latency that so many milliseconds are: a target.

        Raises:
            MisconfiguredError: not between 0 and the latency of the full network.
        """
        if not 0 < milliseconds < self.full:
            raise MisconfiguredError(
                f"milliseconds={milliseconds:g} is no target: the full network takes "
                f"{self.full:.4g} ms by this table, give less"
            )
        return milliseconds / self.full

    def check(self, structures: Structures) -> None:
        """Refuse a table of another network, before a run is built on it.

        Args:
            structures: of the full network.

        Raises:
            MisconfiguredError: names what does not fit.
        """
        names = {kernel.name for kernel in structures.kernels}
        if unknown := [name for name in self.operators if name not in names]:
            raise MisconfiguredError(
                f"the latency table times {', '.join(unknown[:3])}, which this network does not "
                "have: measure this network with `guyot profile`"
            )
        counted = {kernel.name for kernel in structures.kernels if kernel.macs}
        if missing := [name for name in counted if name not in self.operators]:
            raise MisconfiguredError(
                f"the latency table does not time {', '.join(sorted(missing)[:3])}, which has MACs:"
                " measure this network with `guyot profile`"
            )
        shapes = [shape[1:] for shape in self.input_shapes]
        found = [shape[1:] for shape in structures.input_shapes]
        if shapes and shapes != found:
            raise MisconfiguredError(
                f"the latency table was measured with inputs of {_shapes(shapes)} and the network "
                f"trains with {_shapes(found)}: measure with `guyot profile` at that size"
            )

    def milliseconds(self, structures: Structures) -> float:
        """Return the latency of the network that these structures describe, as it stands.

        Example:
            >>> from guyot.core.types import Fixed, Kernel
            >>> kernel = Kernel("fc", ((Fixed(10), Fixed(64)),), (), (), layers=())
            >>> table = LatencyTable({"fc": Rate(0.01, 1e-6)}, batch=2, full=0.01128)
            >>> table.milliseconds(Structures((), (), (), (), kernels=(kernel,)))
            0.01128
        """
        polynomial = Polynomial(latency_of(structures, self), structures.index)
        return float(polynomial.expected(torch.ones(structures.index.total)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"format": TABLE_FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatencyTable:
        """Read what `to_dict` gave.

        Raises:
            MisconfiguredError: not a table, or one of another format.
        """
        found = values.get("format") if isinstance(values, Mapping) else type(values).__name__
        if found != TABLE_FORMAT:
            raise MisconfiguredError(
                f"format={found!r} of a latency table is unknown, this version reads format "
                f"{TABLE_FORMAT}: measure again with `guyot profile`"
            )
        try:
            given = {name: value for name, value in values.items() if name != "format"}
            given["operators"] = {name: Rate(**rate) for name, rate in given["operators"].items()}
            given["input_shapes"] = tuple(tuple(s) for s in given.get("input_shapes", ()))
            return cls(**given)
        except (AttributeError, KeyError, TypeError) as error:
            raise MisconfiguredError(
                f"this is no latency table ({error}): write one with `guyot profile`"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write a JSON file."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read what `save` wrote.

        Raises:
            MisconfiguredError: it cannot be read.
        """
        try:
            values = read_json(Path(path), links=True)
        except MisconfiguredError as error:
            raise MisconfiguredError(
                f"the latency table {str(path)!r} cannot be read ({error.__cause__}): write one "
                "with `guyot profile`"
            ) from error
        return cls.from_dict(values)


def latency_of(structures: Structures, table: LatencyTable) -> tuple[Monomial, ...]:
    """Return milliseconds of one forward pass, as a polynomial in the gates."""
    axes = {tensor.name: tensor.axes for tensor in structures.tensors}
    monomials: list[Monomial] = [Monomial(table.constant, (), ())]
    for kernel in structures.kernels:
        rate = table.operators.get(kernel.name)
        if rate is None:
            continue
        shapes = [(rate.fixed, ())]
        shapes += [(rate.per_mac * table.batch, product) for product in kernel.macs]
        shapes += [(rate.per_element * table.batch, shape) for shape in kernel.activations]
        shapes += [(rate.per_element, axes[name]) for name in kernel.tensors]
        for coefficient, shape in shapes:
            for m in monomials_of(shape, kernel.layers):
                monomials.append(Monomial(coefficient * m.coefficient, m.groups, m.layers))
    return merge(monomials)


def _shapes(shapes: Iterable[Sequence[int]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)
