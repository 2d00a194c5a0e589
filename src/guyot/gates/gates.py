"""Gates on the user's modules: 0/1 variables that multiply the weights which read a structure.

A unit's gate multiplies the input slices of the weights that *read* it, a layer's gate the
parameters that *write* its branch (a property of the module does both without touching the user's
`forward`). So a masked network is the pruned network whatever stands between writer and reader,
and the derivative of the loss by every gate falls out of the backward pass of the training step.
Where a linear layer or convolution reads fewer numbers than its weight has, what it reads is
multiplied instead, which is the same sum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guyot.core.axis import groups_in, spread
from guyot.core.locate import first_names, raw_parameter, tensor_at
from guyot.core.torch_private import computes_as, convolve
from guyot.core.types import Axis, Structures, Units, Within
from guyot.gates.predictions import Predictions

Term = Callable[[bool], Tensor]
Place = tuple[slice, Callable[[Tensor], Tensor]]
Operator = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Of a module, what it reads and its weight."""

_WHOLE = "_gated_model"
"""The attribute of a gated module that leads to the model."""


class Gate:
    """What multiplies one weight: the product of the masks of its dims and layers.

    While the whole model trains these are sampled gates, which receive gradients, otherwise those
    of the most probable network. A module frozen by its own `eval()` does not decide.

    Args:
        terms: masks that broadcast over the weight.
        inputs: one more, over dim 1 alone: it can as well multiply what the weight reads.
    """

    def __init__(self, terms: Sequence[Term], inputs: Term | None = None) -> None:
        self._terms = tuple(terms)
        self.inputs = inputs

    def masked(self, weight: Tensor, training: bool, dtype: torch.dtype | None = None) -> Tensor:
        """The weight, as `dtype`, times the sampled gates (training) or the most probable ones."""
        terms = self._terms if self.inputs is None else (*self._terms, self.inputs)
        return _product(weight, terms, training, dtype)

    def between(
        self, read: Tensor, weight: Tensor, training: bool, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """What is read and the weight, with the gates of the inputs on the former."""
        assert self.inputs is not None
        read = _product(read, (self.inputs,), training, dtype)
        return read, _product(weight, self._terms, training, dtype)


def _product(
    tensor: Tensor, terms: Sequence[Term], training: bool, dtype: torch.dtype | None
) -> Tensor:
    if dtype is not None:
        tensor = tensor.to(dtype)
    for values in terms:
        mask = values(training)
        tensor = tensor * (mask if mask.dtype is tensor.dtype else mask.to(tensor.dtype))
    return tensor


class Whole:
    """The model whose mode decides for a gated module, also in copies.

    In a deep copy of the model it is the copy, and a part that is copied alone decides for itself.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> Whole:
        """`memo` knows the copy of the model if it is being made."""
        return Whole(memo.get(id(self._model)))

    def training(self, part: nn.Module) -> bool:
        """The mode that counts for a part of the model."""
        return (part if self._model is None else self._model).training


class Gated:
    """Marks the class of a module that has gates."""


def put_gate(module: nn.Module, key: str, gate: Gate, model: nn.Module) -> None:
    """Let the module's attribute `key` be its parameter times a gate.

    The module gets a subclass of its own with a property of that name. The parameter stays where
    it is, so `parameters()` and `state_dict()` are the same as without gates.

    Example:
        >>> linear = nn.Linear(2, 1)
        >>> put_gate(linear, "weight", Gate([lambda training: torch.zeros(1, 2)]), linear)
        >>> bool(linear.weight.any()), isinstance(linear, nn.Linear), [*linear.state_dict()]
        (False, True, ['weight', 'bias'])
    """

    def training(part: nn.Module) -> bool:
        return part.__dict__[_WHOLE].training(part)

    def gated(self: nn.Module) -> Tensor:
        weight = raw_parameter(self, key)
        return gate.masked(weight, training(self), _narrowed(weight) if operator else None)

    def forward(self: nn.Module, input: Tensor) -> Tensor:  # noqa: A002  (the name that is known)
        weight = raw_parameter(self, key)
        if not _fewer(input, weight):
            return plain.forward(self, input)
        assert operator is not None
        return operator(self, *gate.between(input, weight, training(self), _narrowed(weight)))

    plain = type(module)
    operator = _operator(plain)
    members: dict[str, Any] = {key: property(gated), "__module__": plain.__module__}
    if operator and gate.inputs and key == "weight" and getattr(module, "groups", 1) == 1:
        members["forward"] = forward
    module.__class__ = type(plain.__name__, (plain, Gated), members)
    module.__dict__[_WHOLE] = Whole(model)


def _linear(module: Any, read: Tensor, weight: Tensor) -> Tensor:
    return F.linear(read, weight, module.bias)


_OPERATORS: dict[type[nn.Module], Operator] = {
    nn.Linear: _linear,
    nn.Conv1d: convolve,
    nn.Conv2d: convolve,
    nn.Conv3d: convolve,
}


def _operator(kind: type[nn.Module]) -> Operator | None:
    """The operator that alone reads the parameters of a module, if that is one of those above."""
    own = next(base for base in kind.__mro__ if not issubclass(base, Gated))
    for known, operator in _OPERATORS.items():
        if computes_as(own, known):
            return operator
    return None


def _fewer(read: Tensor, weight: Tensor) -> bool:
    """Whether what is read, in a shape with a batch, has fewer entries than the weight."""
    batched = read.dim() == weight.dim() if weight.dim() > 2 else read.dim() > 1
    return batched and read.numel() < weight.numel()


def _narrowed(weight: Tensor) -> torch.dtype | None:
    """bfloat16 where autocast narrows a weight to that.

    A weight times 0 or 1 is the same before and after, and half of the bytes are moved.
    """
    device = weight.device.type
    narrow = (
        weight.dtype is torch.float32
        and torch.is_autocast_enabled(device)
        and torch.get_autocast_dtype(device) is torch.bfloat16
    )
    return torch.bfloat16 if narrow else None


class Norms(NamedTuple):
    """Euclidean norms of what each gate scales, float32, shape (gates,).

    Attributes:
        weight: ||w_j||.
        gradient: ||dC/d(xi_j w_j)|| of the last backward pass; 0 where xi_j was 0.
    """

    weight: Tensor
    gradient: Tensor


class Gates:
    """All gates of a network, in one flat vector of values.

    Args:
        structures: what there is to gate.
        device: where the gates live.

    Attributes:
        sampled: 0/1 values used in training mode, float32, shape (gates,).
        probable: 0/1 values used in evaluation mode, float32, shape (gates,).
    """

    def __init__(self, structures: Structures, device: torch.device) -> None:
        index = structures.index
        self.structures = structures
        self.sampled = torch.ones(index.total, device=device)
        self.probable = torch.ones(index.total, device=device)
        self._attached: dict[nn.Module, type[nn.Module]] = {}
        self._places: list[tuple[Tensor, Gate, list[Place]]] = []
        self._leaves: dict[tuple[int, tuple[int, ...]], tuple[slice, Tensor]] = {}
        self._predictions = Predictions()

    def _mask(self, where: slice, shape: tuple[int, ...]) -> Term:
        """Some gates in the shape in which they broadcast: an autograd leaf while training."""
        if (key := (where.start, shape)) not in self._leaves:
            leaf = self.sampled[where].view(shape).detach().requires_grad_()
            self._leaves[key] = where, leaf
        _, leaf = self._leaves[key]
        probable = self.probable[where].view(shape)
        return lambda training: leaf if training else probable

    @property
    def gradient(self) -> Tensor:
        """dC/dxi of the sampled gates, summed over backward passes since `zero_grad`.

        float32, shape (gates,).
        """
        total = torch.zeros_like(self.sampled)
        for where, leaf in self._leaves.values():
            if leaf.grad is not None:
                total[where].add_(leaf.grad.detach().flatten())
        return total

    @property
    def predictions(self) -> int:
        """Return how many predictions the model made in training since `zero_grad`, at least 1."""
        return max(1, self._predictions.count)

    def zero_grad(self) -> None:
        """Forget the gradients, and how many predictions they come from."""
        self._predictions.count = 0
        for _, leaf in self._leaves.values():
            leaf.grad = None

    def attach(self, model: nn.Module) -> None:
        """Put the gates on the modules of a model."""
        axes = {tensor.name: tensor.axes for tensor in self.structures.tensors}
        index = self.structures.index
        terms: dict[str, list[Term]] = defaultdict(list)
        inputs: dict[str, Term] = {}
        places: dict[str, list[Place]] = defaultdict(list)
        for slot in {s: None for group in self.structures.groups for s in group.readers}:
            own, dim = axes[slot.tensor], slot.dim
            if dim == 1 and not isinstance(own[dim], Within):
                inputs[slot.tensor] = self._over(own, dim)
            else:
                terms[slot.tensor].append(self._over(own, dim))
            for group in dict.fromkeys(groups_in(own[dim])):
                fold = self._fold(own, group, dim)
                places[slot.tensor].append((index.units(group), fold))
        for number, layer in enumerate(self.structures.layers):
            where = slice(index.layer(number), index.layer(number) + 1)
            for writer in layer.writers:
                terms[writer].append(self._mask(where, ()))
                places[writer].append((where, torch.sum))
        aliases: dict[str, dict[tuple[nn.Module, str], None]] = defaultdict(dict)
        for name, first in first_names(model).items():
            path, _, key = name.rpartition(".")
            aliases[first][model.get_submodule(path), key] = None
        for name in dict.fromkeys((*terms, *inputs)):
            gate = Gate(terms[name], inputs.get(name))
            self._places.append((tensor_at(model, name), gate, places[name]))
            for module, key in aliases[name]:
                self._attached.setdefault(module, type(module))
                put_gate(module, key, gate, model)
        self._predictions.attach(model)

    def detach(self) -> None:
        """Take the gates off; the modules are of their own classes again."""
        self._predictions.detach()
        for module, plain in self._attached.items():
            module.__class__ = plain
            del module.__dict__[_WHOLE]
        self._attached.clear()
        self._places.clear()

    @torch.no_grad()
    def bake(self) -> None:
        """Set the weights to 0 that the most probable network does not use."""
        for parameter, gate, _ in self._places:
            parameter.copy_(gate.masked(parameter, training=False))

    @torch.no_grad()
    def norms(self, active: Tensor, share: Tensor) -> Norms:
        """Measure weights and their `.grad`, before the optimiser uses it.

        A user may have clipped or rescaled the gradients. Those of the gates were not touched and
        equal sum w * dC/d(xi w), which tells the factor; it is taken out again.

        Args:
            active: xi dC/dxi, mean over the ranks, shape (gates,).
            share: of the ranks that sampled 1, the others' gradients being 0, shape (gates,).
        """
        active, share = active.to(self.sampled), share.to(self.sampled)
        weight, gradient, inner = (torch.zeros_like(self.sampled) for _ in range(3))
        for parameter, _, places in self._places:
            if parameter.grad is None:
                continue
            for where, fold in places:
                weight[where] += fold(parameter.square())
                gradient[where] += fold(parameter.grad.square())
                inner[where] += fold(parameter * parameter.grad)
        scale = inner.abs().sum() / active.abs().sum().clamp(min=1e-30)
        gradient = gradient.sqrt() / torch.where(share > 0, share, 1)
        return Norms(weight.sqrt(), gradient / scale.clamp(min=1e-30))

    def _over(self, axes: Sequence[Axis], dim: int) -> Term:
        """The mask over a dimension, differentiable in training mode."""
        index, axis = self.structures.index, axes[dim]
        if isinstance(axis, Units):
            shape = tuple(-1 if place == dim else 1 for place in range(len(axes)))
            return self._mask(index.units(axis.group), shape)
        device = self.sampled.device

        def mask(training: bool) -> Tensor:
            return spread(
                axes,
                dim,
                lambda group: self._mask(index.units(group), (-1,))(training),
                lambda size: torch.ones(size, device=device),
            )

        return mask

    def _fold(self, axes: Sequence[Axis], group: int, dim: int) -> Callable[[Tensor], Tensor]:
        """Sum a tensor over all dims but one, and that one over the entries of each unit."""
        if isinstance(axes[dim], Units):
            return lambda tensor: _sum_but(tensor, dim)

        def fold(tensor: Tensor) -> Tensor:
            def ones(size: int) -> Tensor:
                return torch.ones(size, device=tensor.device)

            def of(number: int) -> Tensor:
                return units if number == group else ones(self.structures.groups[number].size)

            with torch.enable_grad():
                units = ones(self.structures.groups[group].size).requires_grad_()
                over = spread(axes, dim, of, ones)
                (folded,) = torch.autograd.grad(over, units, tensor.sum_to_size(over.shape))
            return folded

        return fold


def _sum_but(tensor: Tensor, dim: int) -> Tensor:
    return tensor.sum([other for other in range(tensor.dim()) if other != dim])


def with_gradients(
    measure: Callable[[], None], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before an optimiser's step: measure gradients now, or after the closure that makes them.

    Args:
        measure: is called once gradients are there.
        args: of `step`, the optimiser first.
        kwargs: of `step`.

    Returns:
        Other arguments for `step`; None: the same.
    """
    optimizer, *rest = args
    closure = rest[0] if rest else kwargs.get("closure")
    if closure is None:
        measure()
        return None

    def measured() -> Any:
        loss = closure()
        measure()
        return loss

    return (optimizer,), {"closure": measured}
