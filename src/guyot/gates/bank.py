"""The bank of all gates: 0/1 variables in one flat vector, on the weights that read a structure.

A unit's gate multiplies the input slices of the weights that *read* it, a layer's gate the
parameters that *write* its branch. So a masked network is the pruned network with anything between
writer and reader, and the backward pass of the training step gives the derivative of the loss by
every gate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from guyot.core.axis import groups_in, spread
from guyot.core.locate import first_names, tensor_at
from guyot.core.parallel.shards import gathered, overwrite
from guyot.core.types import Axis, Structures, Units, Within
from guyot.gates.module import Gate, Host, Mask, put_gate, remove_gates
from guyot.gates.predictions import Predictions

Fold = Callable[[Tensor], Tensor]
"""Sum a tensor over all entries of each unit."""


class Norms(NamedTuple):
    """Hold the Euclidean norms of what each gate scales, float32, shape (gates,).

    Attributes:
        weight: ||w_j||.
        gradient: ||dC/d(xi_j w_j)|| of the last backward pass; 0 where xi_j was 0, and infinite
            where nobody knows it, since some of the weights are buffers or do not learn.
    """

    weight: Tensor
    gradient: Tensor


class Squares(NamedTuple):
    """Hold sums over the weights of one optimiser that each gate scales, float32, shape (gates,).

    Attributes:
        weight: ||w_j||^2.
        gradient: the squared norm of their `.grad`.
        inner: sum w * `.grad`.
    """

    weight: Tensor
    gradient: Tensor
    inner: Tensor


class Gates:
    """Put all gates of a network on its modules, and hold their values in one flat vector.

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
        self._places: list[tuple[Tensor, Gate, list[tuple[slice, Fold]]]] = []
        self._leaves: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor]] = {}
        self._gradients: list[Tensor] = []
        self._predictions = Predictions()
        self._host: Host | None = None

    def _mask(self, where: slice, shape: tuple[int, ...]) -> Mask:
        """Return some gates in a shape that broadcasts: an autograd leaf while training."""
        if (key := (where.start, shape)) not in self._leaves:
            leaf = self.sampled[where].view(shape).detach().requires_grad_()
            self._leaves[key] = leaf, self._home(where).view(shape)
            leaf.grad = self._leaves[key][1]
        leaf, _ = self._leaves[key]
        probable = self.probable[where].view(shape)
        return lambda training: leaf if training else probable

    def _home(self, where: slice) -> Tensor:
        """Return where the gradient of a leaf adds up: a place for each shape of the same gates.

        It stays there as long as the gates do, so that a captured CUDA graph may write to it.
        """
        shapes = sum(start == where.start for start, _ in self._leaves)
        if shapes == len(self._gradients):
            self._gradients.append(torch.zeros_like(self.sampled))
        return self._gradients[shapes][where]

    @property
    def gradient(self) -> Tensor:
        """Return dC/dxi of the sampled gates, summed over backward passes since `zero_grad`.

        float32, shape (gates,).
        """
        for leaf, home in self._leaves.values():
            if leaf.grad is not home:  # a backward pass that can be differentiated replaced it
                home.copy_(torch.zeros_like(home) if leaf.grad is None else leaf.grad.detach())
                leaf.grad = home
        if len(self._gradients) == 1:
            return self._gradients[0].clone()
        return torch.stack([torch.zeros_like(self.sampled), *self._gradients]).sum(0)

    @property
    def predictions(self) -> int:
        """Return how many predictions the model made in training since `zero_grad`, at least 1.

        If no call of the model was noticed, since a CUDA graph was replayed, then those of the last
        one.
        """
        return max(1, self._predictions.count or self._predictions.last)

    @property
    def called(self) -> bool:
        """Say whether the model was called in training since the gates are there."""
        return self._predictions.last > 0

    def zero_grad(self) -> None:
        """Forget the gradients, and how many predictions they come from."""
        self._predictions.count = 0
        for gradient in self._gradients:
            gradient.zero_()
        for leaf, home in self._leaves.values():
            leaf.grad = home

    def attach(self, model: nn.Module) -> None:
        """Put the gates on the modules of a model."""
        axes = {tensor.name: tensor.axes for tensor in self.structures.tensors}
        index = self.structures.index
        masks: dict[str, list[Mask]] = defaultdict(list)
        inputs: dict[str, Mask] = {}
        places: dict[str, list[tuple[slice, Fold]]] = defaultdict(list)
        for slot in {s: None for group in self.structures.groups for s in group.readers}:
            own, dim = axes[slot.tensor], slot.dim
            if dim == 1 and not isinstance(own[dim], Within):
                inputs[slot.tensor] = self._over(own, dim)
            else:
                masks[slot.tensor].append(self._over(own, dim))
            for group in dict.fromkeys(groups_in(own[dim])):
                fold = self._fold(own, group, dim)
                places[slot.tensor].append((index.units(group), fold))
        for number, layer in enumerate(self.structures.layers):
            where = slice(index.layer(number), index.layer(number) + 1)
            for writer in layer.writers:
                masks[writer].append(self._mask(where, ()))
                places[writer].append((where, torch.sum))
        aliases: dict[str, dict[tuple[nn.Module, str], None]] = defaultdict(dict)
        running: dict[nn.Module, None] = {}
        for name, first in first_names(model).items():
            path, _, key = name.rpartition(".")
            aliases[first][model.get_submodule(path), key] = None
            if first in masks or first in inputs:
                steps = path.split(".")
                paths = ("", *(".".join(steps[: n + 1]) for n in range(len(steps))))
                running |= {model.get_submodule(each): None for each in paths}
        self._host = host = Host(model)
        for name in dict.fromkeys((*masks, *inputs)):
            gate = Gate(masks[name], inputs.get(name))
            self._places.append((tensor_at(model, name), gate, places[name]))
            for module, key in aliases[name]:
                self._attached.setdefault(module, type(module))
                put_gate(module, key, gate, host)
        for module in running:
            host.watch(module)
        self._predictions.attach(model)

    def detach(self) -> None:
        """Take the gates off; the modules are of their own classes again."""
        self._predictions.detach()
        if self._host is not None:
            self._host.forget()
        for module, plain in self._attached.items():
            remove_gates(module, plain)
        self._attached.clear()
        self._places.clear()

    @torch.no_grad()
    def zero_unused(self) -> None:
        """Set weights to 0 that the most probable network does not use."""
        for parameter, gate, _ in self._places:
            overwrite(parameter, gate.masked(gathered(parameter), training=False))

    @torch.no_grad()
    def squares(self, parameters: Iterable[nn.Parameter]) -> Squares:
        """Measure some weights and their `.grad`, before their optimiser uses it.

        Args:
            parameters: of that optimiser.
        """
        held = {id(parameter) for parameter in parameters}
        weight, gradient, inner = (torch.zeros_like(self.sampled) for _ in range(3))
        for parameter, _, places in self._places:
            if parameter.grad is not None and parameter.requires_grad and id(parameter) in held:
                _add(weight, parameter.square(), places)
                _add(gradient, parameter.grad.square(), places)
                _add(inner, parameter * parameter.grad, places)
        return Squares(weight, gradient, inner)

    @torch.no_grad()
    def norms(self, squares: Sequence[Squares], active: Tensor, share: Tensor) -> Norms:
        """Return the norms of what each gate scales.

        A user may have clipped or rescaled the gradients of an optimiser. Those of the gates are as
        they were and equal sum w * dC/d(xi w). So the factor is known, and gradients are divided by
        it.

        Args:
            squares: of all optimisers.
            active: xi dC/dxi, mean over the ranks, shape (gates,).
            share: of the ranks that sampled 1, the others' gradients being 0, shape (gates,).
        """
        active, share = active.to(self.sampled), share.to(self.sampled)
        weight = torch.stack([part.weight for part in squares]).sum(0)
        known = torch.ones_like(self.sampled)
        for parameter, _, places in self._places:
            if not parameter.requires_grad:
                _add(weight, parameter.square(), places)
                for where, _ in places:
                    known[where] = 0
        scales = _scales(torch.stack([known * part.inner for part in squares]), known * active)
        parts = [p.gradient.sqrt() / s for p, s in zip(squares, scales, strict=True)]
        gradient = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        gradient = gradient / torch.where(share > 0, share, 1)
        return Norms(weight.sqrt(), torch.where(known > 0, gradient, torch.inf))

    def _over(self, axes: Sequence[Axis], dim: int) -> Mask:
        """Return the mask over a dimension, differentiable in training mode."""
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

    def _fold(self, axes: Sequence[Axis], group: int, dim: int) -> Fold:
        """Return how to sum a tensor over all dims but one, and that one unit by unit."""
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


def _add(sums: Tensor, values: Tensor, places: Sequence[tuple[slice, Fold]]) -> None:
    """Add up the values that each gate scales; collective if they are sharded."""
    values = gathered(values)
    for where, fold in places:
        sums[where] += fold(values)


def _sum_but(tensor: Tensor, dim: int) -> Tensor:
    return tensor.sum([other for other in range(tensor.dim()) if other != dim])


def _scales(inner: Tensor, active: Tensor) -> Tensor:
    """Return by what the gradients of each optimiser were multiplied, float32, shape (optimisers,).

    One factor is a ratio of sums. Several factors s solve sum_k inner_k / s_k = active by least
    squares. A factor that cannot be told is tiny, so that nothing is certified with its gradients.

    Args:
        inner: sum w * `.grad` over the weights of an optimiser, shape (optimisers, gates).
        active: xi dC/dxi, shape (gates,).
    """
    least = 1e-30
    if len(inner) == 1:
        return (inner.abs().sum(1) / active.abs().sum().clamp(min=least)).clamp(min=least)
    inverse = torch.linalg.pinv(inner.double().T) @ active.double()
    return torch.where(inverse > 0, 1 / inverse, least).clamp(min=least).float()
