"""How many predictions a training step's loss is the mean of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def predictions_of(output: Any, inputs: Any = None) -> int:
    """Return the number of predictions in a model's output.

    The first tensor with two dims or more decides: `(batch, classes)` is one prediction a sample,
    `(batch, tokens, vocabulary)` one a token. Maps of more dims count once a sample, since the
    pixels of an image say much the same. Without such a tensor the first one among output and
    inputs with any dim says how many samples there are.

    Args:
        output: what the model gave: a tensor, or sequences and mappings of tensors.
        inputs: what it was called with.

    Example:
        >>> predictions_of(torch.zeros(8, 10)), predictions_of({"logits": torch.zeros(8, 5, 77)})
        (8, 40)
        >>> predictions_of(torch.zeros(8, 3, 9, 9)), predictions_of(torch.zeros(()), torch.ones(4))
        (8, 4)
    """
    for tensor in _tensors(output):
        if tensor.dim() == 3:
            return tensor.shape[0] * tensor.shape[1]
        if tensor.dim() > 1:
            return tensor.shape[0]
    return next((t.shape[0] for t in _tensors((output, inputs)) if t.dim()), 1)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from _tensors(tuple(tree.values()))
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _tensors(item)


class Predictions:
    """Count what a model predicts in training mode, over the forward passes of a step.

    Attributes:
        count: so many since somebody set it to 0.
        last: so many in the last forward pass.
    """

    def __init__(self) -> None:
        self.count = self.last = 0
        self._handle: RemovableHandle | None = None

    def attach(self, model: nn.Module) -> None:
        """Count from now on."""
        hook: Any = self  # an object, so that copies of the model get one of their own
        self._handle = model.register_forward_hook(hook, with_kwargs=True)

    def detach(self) -> None:
        """Count no more."""
        if self._handle is not None:
            self._handle.remove()

    @torch.compiler.disable
    def __call__(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Count one forward pass."""
        if model.training and torch.is_grad_enabled():
            self.last = predictions_of(output, (args, kwargs))
            self.count += self.last

    def __deepcopy__(self, memo: dict[int, Any]) -> Predictions:
        """Return a counter for a copy of the model."""
        return Predictions()
