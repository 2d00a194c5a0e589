"""Labels of planted tasks: a small teacher with random weights draws them from its softmax.

The network to train is of the teacher's kind, but wider and deeper, so that structure is what there
is to find. Training batches are fresh ones in every step. A seed draws another teacher of the same
structure, other batches and other initial weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from arena.task import Data, Recipe

HELD_OUT = 50_000
"""Samples of the validation and of the test set each."""
TEMPERATURE = 4.0
"""Standard deviation of the teacher's logits, over inputs."""
SHIFT = 1.0
"""Deviation of the shifts of the units of a teacher, whose own deviation is 1."""
_CHUNK = 50
"""Batches that are drawn at once."""


@dataclass(frozen=True)
class Labelled:
    """Inputs that ``draw`` gives and labels of a teacher.

    ``batches`` of ``size`` samples make an epoch; epochs differ in training only.
    """

    teacher: nn.Module
    draw: Callable[[int, torch.Generator], Tensor]
    size: int
    batches: int
    seed: int
    training: bool

    @torch.no_grad()
    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        part = number if self.training else -1
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + part) * 2 + 1)
        for first in range(0, self.batches, _CHUNK):
            count = min(_CHUNK, self.batches - first)
            inputs = self.draw(count * self.size, generator)
            chances = self.teacher(inputs).softmax(1)
            labels = torch.multinomial(chances, 1, generator=generator)[:, 0]
            yield from zip(inputs.split(self.size), labels.split(self.size), strict=True)


@torch.no_grad()
def standardise(teacher: nn.Module, inputs: Tensor, generator: torch.Generator) -> None:
    """Give every unit of a teacher mean about 0 and deviation 1, its logits `TEMPERATURE`.

    Layers with a bias, which have no normalisation of their own, are scaled in the order in which
    they run; BatchNorm layers take the statistics of ``inputs``.
    """
    layers = [m for m in teacher.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    norms = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]

    def scale(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        assert isinstance(module, nn.Linear)
        last = module is layers[-1]
        flat = output.flatten(0, -2)
        factor = (TEMPERATURE if last else 1.0) / (flat.std(0) + 1e-6)
        shift = 0.0 if last else SHIFT * torch.randn(flat.shape[1], generator=generator)
        module.weight.mul_(factor[:, None])
        module.bias.copy_((module.bias - flat.mean(0)) * factor + shift)
        return module.forward(*arguments)

    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
        nn.init.normal_(norm.bias, 0.0, 0.3, generator=generator)
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    teacher.train()
    teacher(inputs)
    teacher.eval()
    for hook in hooks:
        hook.remove()


def data_of(
    make: Callable[[], nn.Module],
    draw: Callable[[int, torch.Generator], Tensor],
    recipe: Recipe,
    seed: int,
) -> Data:
    """Streams of a teacher that ``make`` builds, all drawn by ``seed``."""
    state = torch.get_rng_state()
    torch.manual_seed(7_000_003 + seed)
    teacher = make().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    standardise(teacher, draw(4_000, generator), generator)
    torch.set_rng_state(state)
    part = partial(Labelled, teacher, draw)
    held_out = HELD_OUT // 500
    return Data(
        part(recipe.batch_size, recipe.epoch, 3 * seed, True),
        part(500, held_out, 3 * seed + 1, False),
        part(500, held_out, 3 * seed + 2, False),
    )
