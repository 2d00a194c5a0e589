"""Gates on the user's modules: 0/1 variables that multiply the weights which read a structure.

A unit's gate multiplies the input slices of the weights that *read* it, a layer's gate the
parameters that *write* its branch (`torch.nn.utils.parametrize` does both without touching
`forward`). So a masked network is the pruned network whatever stands between writer and reader,
the cost is O(weights), and the derivative of the loss by every gate falls out of the backward
pass of the training step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from guyot.axis import expand, groups_in
from guyot.surgery import first_names, tensor_at
from guyot.types import Axis, Structures, Units

Term = tuple[Callable[[bool], Tensor], tuple[int, ...]]
Place = tuple[slice, Callable[[Tensor], Tensor]]


class Gate(nn.Module):
    """The parametrisation of one weight: the product of the masks of its dims and layers.

    While the whole model trains the sampled gates multiply it and receive gradients, otherwise
    those of the most probable network do. A module frozen by its own `eval()` does not decide.
    """

    def __init__(self, terms: Sequence[Term], training: Callable[[], bool]) -> None:
        super().__init__()
        self._terms = tuple(terms)
        self._training = training

    def forward(self, weight: Tensor) -> Tensor:
        """Shape and dtype of `weight`."""
        for values, view in self._terms:
            weight = weight * values(self._training()).view(view).to(weight.dtype)
        return weight


@dataclass(frozen=True)
class Norms:
    """Euclidean norms of what each gate scales, float32, shape (gates,).

    Attributes:
        weight: ||w_j||.
        gradient: ||dC/d(xi_j w_j)|| of the last backward pass; 0 where xi_j was 0.
    """

    weight: Tensor
    gradient: Tensor


class Gates:
    """All gates of a network: one flat vector of values, one of gradients.

    Args:
        structures: what there is to gate.
        device: where the gates live.

    Attributes:
        sampled: 0/1 values used in training mode, float32, shape (gates,).
        probable: 0/1 values used in evaluation mode, float32, shape (gates,).
        gradient: dC/dxi of the sampled gates, summed over backward passes since `zero_grad`.
    """

    def __init__(self, structures: Structures, device: torch.device) -> None:
        index = structures.index
        self.structures = structures
        self.sampled = torch.ones(index.total, device=device)
        self.probable = torch.ones(index.total, device=device)
        self.gradient = torch.zeros(index.total, device=device)
        self._attached: list[tuple[nn.Module, str, list[str]]] = []
        self._places: list[tuple[Tensor, list[Place]]] = []
        self._groups = [self._leaf(index.units(g)) for g in range(len(structures.groups))]
        self._layers = [self._leaf(index.layer(n)) for n in range(len(structures.layers))]

    def _leaf(self, where: slice | int) -> tuple[Tensor, Tensor]:
        """Views for training (an autograd leaf whose .grad is a view too) and evaluation."""
        leaf = self.sampled[where].detach().requires_grad_()
        gradient = self.gradient[where]
        leaf.grad = gradient

        def rejoin(leaf: Tensor) -> None:
            """Where autograd made a new gradient (`create_graph=True`), go on with our view."""
            if leaf.grad is not None and leaf.grad.data_ptr() != gradient.data_ptr():
                gradient.copy_(leaf.grad.detach())
                leaf.grad = gradient

        leaf.register_post_accumulate_grad_hook(rejoin)
        return leaf, self.probable[where]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.gradient.zero_()

    def attach(self, model: nn.Module) -> None:
        """Put the gates on the modules of a model."""
        axes = {tensor.name: tensor.axes for tensor in self.structures.tensors}
        index = self.structures.index
        terms: dict[str, list[Term]] = defaultdict(list)
        places: dict[str, list[Place]] = defaultdict(list)
        for slot in {s: None for group in self.structures.groups for s in group.readers}:
            axis = axes[slot.tensor][slot.dim]
            view = [1] * len(axes[slot.tensor])
            view[slot.dim] = -1
            terms[slot.tensor].append((self._vector(axis), tuple(view)))
            for group in dict.fromkeys(groups_in(axis)):
                fold = self._fold(axis, group, slot.dim)
                places[slot.tensor].append((index.units(group), fold))
        for number, layer in enumerate(self.structures.layers):
            train, probable = self._layers[number]
            for writer in layer.writers:
                terms[writer].append((_choice(train, probable), ()))
                places[writer].append(
                    (slice(index.layer(number), index.layer(number) + 1), torch.sum)
                )
        aliases: dict[str, dict[tuple[nn.Module, str], None]] = defaultdict(dict)
        for name, first in first_names(model).items():
            path, _, key = name.rpartition(".")
            aliases[first][model.get_submodule(path), key] = None
        for name, found in terms.items():
            for module, key in aliases[name]:
                gate = Gate(found, lambda: model.training)
                self._attached.append(
                    (module, key, [name for name, _ in module.named_parameters(recurse=False)])
                )
                parametrize.register_parametrization(module, key, gate, unsafe=True)
        self._places = [(tensor_at(model, name), found) for name, found in places.items()]

    def detach(self) -> None:
        """Take the gates off; parameters are the same objects with the same values as before."""
        for module, key, order in reversed(self._attached):
            parametrize.remove_parametrizations(module, key, leave_parametrized=False)
            for name in order:
                parameter = module.get_parameter(name)
                delattr(module, name)
                module.register_parameter(name, parameter)
        self._attached.clear()

    @torch.no_grad()
    def norms(self) -> Norms:
        """Measure weights and their `.grad`, before the optimiser uses it.

        A user may have clipped or rescaled the gradients. Those of the gates were not touched and
        equal sum w * dC/d(xi w), which tells the factor; it is taken out again.
        """
        weight, gradient, inner = (torch.zeros_like(self.gradient) for _ in range(3))
        for parameter, places in self._places:
            if parameter.grad is None:
                continue
            for where, fold in places:
                weight[where] += fold(parameter.square())
                gradient[where] += fold(parameter.grad.square())
                inner[where] += fold(parameter * parameter.grad)
        scale = inner.abs().sum() / (self.gradient * self.sampled).abs().sum().clamp(min=1e-30)
        return Norms(weight.sqrt(), gradient.sqrt() / scale.clamp(min=1e-30))

    def _vector(self, axis: Axis) -> Callable[[bool], Tensor]:
        """The mask over a dimension, differentiable in training mode."""
        if isinstance(axis, Units):
            return _choice(*self._groups[axis.group])
        device = self.sampled.device

        def mask(training: bool) -> Tensor:
            return expand(
                axis,
                lambda group: self._groups[group][0 if training else 1],
                lambda size: torch.ones(size, device=device),
            )

        return mask

    def _fold(self, axis: Axis, group: int, dim: int) -> Callable[[Tensor], Tensor]:
        """Sum a tensor over all dims but one, and that one over the entries of each unit."""
        if isinstance(axis, Units):
            return lambda tensor: _sum_but(tensor, dim)

        def fold(tensor: Tensor) -> Tensor:
            size = self.structures.groups[group].size
            with torch.enable_grad():
                units = torch.ones(size, device=tensor.device, requires_grad=True)
                spread = expand(
                    axis,
                    lambda g: (
                        units
                        if g == group
                        else torch.ones(self.structures.groups[g].size, device=tensor.device)
                    ),
                    lambda n: torch.ones(n, device=tensor.device),
                )
                (folded,) = torch.autograd.grad(spread, units, _sum_but(tensor, dim))
            return folded

        return fold


def _sum_but(tensor: Tensor, dim: int) -> Tensor:
    return tensor.sum([other for other in range(tensor.dim()) if other != dim])


def _choice(train: Tensor, probable: Tensor) -> Callable[[bool], Tensor]:
    return lambda training: train if training else probable
