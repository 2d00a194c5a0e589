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

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from guyot.axis import expand
from guyot.types import Axis, Structures, Units

Term = tuple[Callable[[bool], Tensor], tuple[int, ...]]


class Gate(nn.Module):
    """The parametrisation of one weight: the product of the masks of its dims and layers.

    In training mode the sampled gates multiply it and receive gradients; in evaluation mode those
    of the most probable network do.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        super().__init__()
        self._terms = tuple(terms)

    def forward(self, weight: Tensor) -> Tensor:
        """Shape and dtype of `weight`."""
        for values, view in self._terms:
            weight = weight * values(self.training).view(view)
        return weight


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
        self._attached: list[tuple[nn.Module, str]] = []
        self._groups = [self._leaf(index.units(g)) for g in range(len(structures.groups))]
        self._layers = [self._leaf(index.layer(n)) for n in range(len(structures.layers))]

    def _leaf(self, where: slice | int) -> tuple[Tensor, Tensor]:
        """Views for training (an autograd leaf whose .grad is a view too) and evaluation."""
        leaf = self.sampled[where].detach().requires_grad_()
        leaf.grad = self.gradient[where]
        return leaf, self.probable[where]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.gradient.zero_()

    def attach(self, model: nn.Module) -> None:
        """Put the gates on the modules of a model."""
        axes = {tensor.name: tensor.axes for tensor in self.structures.tensors}
        terms: dict[str, list[Term]] = defaultdict(list)
        for slot in {s: None for group in self.structures.groups for s in group.readers}:
            view = [1] * len(axes[slot.tensor])
            view[slot.dim] = -1
            terms[slot.tensor].append((self._vector(axes[slot.tensor][slot.dim]), tuple(view)))
        for number, layer in enumerate(self.structures.layers):
            train, probable = self._layers[number]
            for writer in layer.writers:
                terms[writer].append((_choice(train, probable), ()))
        for name, found in terms.items():
            path, _, key = name.rpartition(".")
            module = model.get_submodule(path)
            gate = Gate(found)
            gate.training = module.training
            parametrize.register_parametrization(module, key, gate, unsafe=True)
            self._attached.append((module, key))

    def detach(self) -> None:
        """Take the gates off; parameters are the same objects with the same values as before."""
        for module, key in self._attached:
            parametrize.remove_parametrizations(module, key, leave_parametrized=False)
        self._attached.clear()

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


def _choice(train: Tensor, probable: Tensor) -> Callable[[bool], Tensor]:
    return lambda training: train if training else probable
