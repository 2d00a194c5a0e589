"""Axis inference: which dimensions of a network shrink together.

Every dimension of every tensor is a *dimension variable* (`DimVar`, or dim for short). A dim is a
leaf with a size, an ordered *product* (outermost first: what `flatten` makes) or an ordered
*concatenation* (what `cat` makes). Rules for operators say that two dims are the same (`unify`),
that a dim has an outer factor (`factor`) or is a concatenation cut at some places (`split`).
Leaves are refined in place, as type variables are in unification, so the order in which operators
are visited does not matter.

Where two dims cannot be made equal the algebra does not guess: it *freezes* all leaves involved
and keeps the reason.

Example:
    >>> channels, flat = DimVar(8), DimVar(32)
    >>> outer, inner = factor(flat, 8)        # a flatten of 8 channels x 4 pixels
    >>> unify(outer, channels)
    >>> root_of(channels) is root_of(outer)
    True
    >>> freeze(flat, "an example")            # freezing the whole freezes its parts
    >>> print(root_of(channels).reason)
    an example
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from math import prod

from guyot.core.reasons import Reason, ReasonKind
from guyot.core.types import Axis, Concat, Fixed, Product, Units, Within

SPACE = Reason(ReasonKind.NOT_UNITS, "not a dimension of units")
"""The reason of a dim that never shrinks, such as pixels."""

PIECES = Reason(ReasonKind.OPERATOR, "numbers pieces laid end to end")
"""The reason of a dim whose entries are whole pieces of a concatenation."""


class DimVar:
    """A dimension variable: a union-find node that may be refined into parts."""

    __slots__ = ("kind", "link", "parts", "reason", "size")

    def __init__(self, size: int, reason: Reason | None = None) -> None:
        self.size = size
        self.reason = reason
        self.link: DimVar | None = None
        self.kind = "leaf"
        self.parts: tuple[DimVar, ...] = ()

    def __repr__(self) -> str:
        dim = root_of(self)
        return f"{dim.size}" if dim.kind == "leaf" else f"{dim.kind}{dim.parts!r}"


DimVars = tuple[DimVar, ...]
"""The dims of one tensor."""


def root_of(dim: DimVar) -> DimVar:
    """Return the representative of a dim (union-find with path halving)."""
    while (above := dim.link) is not None:
        dim.link = above.link or above
        dim = above
    return dim


Length = Callable[[DimVar], int]
"""Tells how long a dim is."""


def own_length(dim: DimVar) -> int:
    """Return how long a dim is in the network that was traced."""
    return root_of(dim).size


def length_with(leaf_sizes: Mapping[DimVar, int]) -> Length:
    """Return the lengths of dims where some leaves have other sizes.

    Example:
        >>> heads, width = DimVar(8), DimVar(64)
        >>> length_with({width: 5})(product(heads, width))
        40
    """

    def length(dim: DimVar) -> int:
        dim = root_of(dim)
        if dim.kind == "leaf":
            return leaf_sizes.get(dim, dim.size)
        parts = [length(part) for part in dim.parts]
        return prod(parts) if dim.kind == "product" else sum(parts)

    return length


def leaves(dim: DimVar) -> Iterator[DimVar]:
    """Yield all leaves below a dim, in order."""
    dim = root_of(dim)
    if dim.kind == "leaf":
        yield dim
    for part in dim.parts:
        yield from leaves(part)


def parts_of(dim: DimVar) -> tuple[DimVar, ...]:
    """Return a dim, its pieces and its factors, and so on."""
    dim = root_of(dim)
    return (dim, *(part for below in dim.parts for part in parts_of(below)))


def freeze(dim: DimVar, reason: Reason | str) -> None:
    """Forbid every leaf below to shrink; the first reason given is kept.

    Args:
        dim: any dim.
        reason: a text says what an operator does with the dim.
    """
    reason = Reason(ReasonKind.OPERATOR, reason) if isinstance(reason, str) else reason
    for leaf in leaves(dim):
        leaf.reason = leaf.reason or reason


def _compose(kind: str, parts: Sequence[DimVar]) -> DimVar:
    neutral = 1 if kind == "product" else 0
    flat: list[DimVar] = []
    for part in map(root_of, parts):
        if part.size != neutral:
            flat.extend(part.parts if part.kind == kind else (part,))
    if len(flat) == 1:
        return root_of(flat[0])
    sizes = [part.size for part in flat]
    dim = DimVar(prod(sizes) if kind == "product" else sum(sizes))
    if flat:
        dim.kind, dim.parts = kind, tuple(flat)
    return dim


def product(*parts: DimVar) -> DimVar:
    """Return the dim that flattens `parts`, outermost first."""
    return _compose("product", parts)


def concat(*parts: DimVar) -> DimVar:
    """Return the dim that lays `parts` end to end."""
    return _compose("concat", parts)


def _refine(leaf: DimVar, kind: str, sizes: Sequence[int]) -> tuple[DimVar, ...]:
    leaf.kind = kind
    leaf.parts = tuple(DimVar(size, leaf.reason) for size in sizes)
    return leaf.parts


def frozen_dims(sizes: Sequence[int], text: str, *dims: DimVar) -> tuple[DimVar, ...]:
    """Freeze some dims and return others in their place that are frozen for the same reason."""
    reason = Reason(ReasonKind.OPERATOR, text)
    for dim in dims:
        freeze(dim, reason)
    return tuple(DimVar(size, reason) for size in sizes)


def factor(dim: DimVar, outer: int) -> tuple[DimVar, DimVar]:
    """Split off an outer factor: `dim = outer x inner`."""
    dim = root_of(dim)
    inner = dim.size // outer
    if outer * inner != dim.size:
        first, second = frozen_dims((outer, inner), f"{outer} does not divide {dim.size}", dim)
        return first, second
    if outer == 1 or inner == 1:
        return (DimVar(1), dim) if outer == 1 else (dim, DimVar(1))
    if dim.kind == "leaf":
        first, second = _refine(dim, "product", (outer, inner))
        return first, second
    cut = take(dim.parts, outer) if dim.kind == "product" else _even(dim, outer)
    if cut is not None:
        return cut
    first, second = frozen_dims((outer, inner), f"{dim!r} has no outer factor of size {outer}", dim)
    return first, second


def _even(dim: DimVar, outer: int) -> tuple[DimVar, DimVar] | None:
    """Take a concatenation for `outer` pieces that are the same; None where none ends there.

    Example:
        >>> _even(concat(DimVar(4), DimVar(2), DimVar(2)), 2)
        (2, concat(2, 2))
    """
    inner = dim.size // outer
    ends = list(accumulate(root_of(part).size for part in dim.parts))
    if not set(range(inner, dim.size, inner)).issubset(ends):
        return None
    first, *others = split(dim, [inner] * outer)
    for other in others:
        unify(first, other)
    return DimVar(outer, PIECES), first


def take(factors: Sequence[DimVar], size: int) -> tuple[DimVar, DimVar] | None:
    """Cut a product, outermost factor first, where it reaches `size`; None where it does not.

    Example:
        >>> take([DimVar(2), DimVar(6)], 4)
        (product(2, 2), 3)
    """
    taken: list[DimVar] = []
    rest = list(factors)
    left = size
    while left > 1 and rest:
        head = root_of(rest.pop(0))
        if left % head.size == 0:
            taken.append(head)
            left //= head.size
        elif head.size % left == 0:
            first, second = factor(head, left)
            taken.append(first)
            rest.insert(0, second)
            left = 1
        else:
            return None
    return (product(*taken), product(*rest)) if left == 1 else None


def split(dim: DimVar, sizes: Sequence[int]) -> tuple[DimVar, ...]:
    """Cut a dim end to end into pieces of the given sizes."""
    dim = root_of(dim)
    if len(sizes) == 1:
        return (dim,)
    if dim.kind == "leaf":
        return _refine(dim, "concat", sizes)
    if dim.kind == "concat":
        pieces: list[DimVar] = []
        rest = list(dim.parts)
        for size in sizes:
            piece: list[DimVar] = []
            need = size
            while need and rest:
                head = root_of(rest.pop(0))
                if head.size > need:
                    first, second = split(head, (need, head.size - need))
                    rest.insert(0, second)
                    head = first
                piece.append(head)
                need -= head.size
            pieces.append(concat(*piece))
        return tuple(pieces)
    return frozen_dims(sizes, f"{dim!r} is cut into {tuple(sizes)}", dim)


def unify(a: DimVar, b: DimVar) -> None:
    """Make two dims the same; refine leaves as needed, freeze what does not fit."""
    a, b = root_of(a), root_of(b)
    if a is b:
        return
    if a.size != b.size:
        reason = f"sizes {a.size} and {b.size} meet"
        freeze(a, reason)
        freeze(b, reason)
    elif a.kind == "leaf" or b.kind == "leaf":
        leaf, other = (a, b) if a.kind == "leaf" else (b, a)
        if leaf.reason:
            freeze(other, leaf.reason)
        leaf.link = other
    elif a.kind == b.kind:
        _align(a, b)
    else:
        joined, multiplied = (a, b) if a.kind == "concat" else (b, a)
        even = _even(joined, root_of(multiplied.parts[0]).size)
        if even is not None:
            freeze(multiplied.parts[0], PIECES)
            unify(even[1], product(*multiplied.parts[1:]))
            return
        reason = f"the product {a!r} meets the concatenation {b!r}"
        freeze(a, reason)
        freeze(b, reason)


def _align(a: DimVar, b: DimVar) -> None:
    """Unify two products, or two concatenations, part by part."""
    left, right = list(a.parts), list(b.parts)
    while left and right:
        x, y = root_of(left.pop(0)), root_of(right.pop(0))
        if x.size != y.size:
            big, small = (x, y) if x.size > y.size else (y, x)
            if a.kind == "product":
                first, rest = factor(big, small.size) if big.size % small.size == 0 else (x, None)
            else:
                first, rest = split(big, (small.size, big.size - small.size))
            if rest is None:
                for dim in (a, b):
                    freeze(dim, f"{a!r} and {b!r} have no common factors")
                return
            (left if big is x else right).insert(0, rest)
            x, y = first, small
        unify(x, y)


def resolve_axis(
    dim: DimVar,
    group_of: Callable[[DimVar], int | None],
    block_of: Callable[[DimVar], DimVar | None] = lambda _: None,
    length: Length = own_length,
) -> Axis:
    """Return the immutable axis of a dim, once inference is over.

    Args:
        dim: any dim.
        group_of: leaf -> its group; None: it stays.
        block_of: leaf -> the leaf that numbers the blocks which have units of it of their own.
        length: of what stays.
    """
    dim = root_of(dim)
    if dim.kind == "leaf":
        group = group_of(dim)
        if group is None:
            return Fixed(length(dim))
        block = block_of(dim)
        if block is None:
            return Units(group)
        number = group_of(block)
        return Within(group, Fixed(length(block)) if number is None else Units(number))
    places = {root_of(part): place for place, part in enumerate(dim.parts)}
    parts: list[Axis] = []
    for place, part in enumerate(dim.parts):
        axis = resolve_axis(part, group_of, block_of, length)
        if isinstance(axis, Within):
            block = block_of(root_of(part))
            assert block is not None
            axis = replace(axis, offset=places[root_of(block)] - place)
        parts.append(axis)
    if all(isinstance(part, Fixed) for part in parts):
        return Fixed(length(dim))
    return Product(tuple(parts)) if dim.kind == "product" else Concat(tuple(parts))
