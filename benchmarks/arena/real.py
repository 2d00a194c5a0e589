"""Tasks with real data: CIFAR-10 at 16x16 pixels and characters of English definitions."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from runs import VALIDATION, smaller
from torch import nn

from arena.characters import CONTEXT, Characters, definitions, gpt2
from arena.task import Data, Recipe, Shape, Task
from guyot.app.data import Batches, Dataset, load_dataset
from guyot.app.models import resnet
from guyot.app.models.cifar import BasicBlock

PIXELS = 16
PLANES = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
"""Widths of VGG-16."""
POOLED = frozenset({1, 3, 6, 9})
"""Convolutions of VGG-16 that a pooling follows; 16 pixels allow four."""
WIDTHS = (16, 32, 64)


@dataclass(frozen=True)
class Folder:
    """Where CIFAR-10's parquet files are, and where decoded images are kept."""

    data_dir: str | None
    cache_dir: str | None


@cache
def images(folder: Folder) -> Dataset:
    """CIFAR-10 at 16x16 pixels with training images held out; read once in a process."""
    dataset = load_dataset("cifar10", folder.data_dir, cache_dir=folder.cache_dir)
    return smaller(dataset.hold_out(VALIDATION), PIXELS)


def cifar(folder: Folder, recipe: Recipe, seed: int) -> Data:
    """The images in the order and the crops of a seed."""
    dataset = images(folder)
    assert dataset.validation is not None
    return Data(
        Batches(dataset, dataset.train, recipe.batch_size, augment=True, seed=seed),
        Batches(dataset, dataset.validation, 500, augment=False),
        Batches(dataset, dataset.test, 500, augment=False),
    )


def text(recipe: Recipe, seed: int) -> Data:
    """Windows of characters, drawn by a seed."""
    parts = definitions()
    return Data(
        Characters(parts["train"], recipe.batch_size, recipe.epoch, seed),
        Characters(parts["validation"], 100),
        Characters(parts["test"], 100),
    )


def residual_network(depth: int, shape: Shape) -> nn.Module:
    """A ResNet of He et al.; shape: widths of the three streams, then of every branch's inside.

    A block whose branch has width 0 is left out; the first of a stage never is.
    """
    streams, hidden = shape[:3], shape[3:]
    model = resnet(depth, widths=streams)
    each = len(hidden) // 3
    for stage, blocks in enumerate(model.stages):
        insides = hidden[stage * each : (stage + 1) * each]
        kept: list[nn.Module] = []
        for block, width in zip(blocks, insides, strict=True):
            if width:
                first = block.conv1
                kept.append(BasicBlock(first.in_channels, width, streams[stage], first.stride[0]))
        model.stages[stage] = nn.Sequential(*kept)
    he(model)
    return model


def he(model: nn.Module) -> None:
    """Draw weights as the CIFAR networks do."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def vgg(shape: Shape) -> nn.Sequential:
    """VGG-16 with BatchNorm and one linear layer; shape: widths, 0 where a layer is left out."""
    layers: list[nn.Module] = []
    before = 3
    for place, width in enumerate(shape):
        if width:
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        if place in POOLED:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)]
    model = nn.Sequential(*layers)
    he(model)
    return model


IMAGES = Recipe(
    steps=24 * 351,
    epoch=351,
    batch_size=128,
    lr=0.1,
    fine_steps=8 * 351,
    fine_lr=0.02,
    weight_decay=5e-4,
    warmup=1 / 24,
)
"""The defaults of `guyot train`, on fewer pixels."""
SHORTER = replace(IMAGES, steps=12 * 351, fine_steps=4 * 351)
"""Half as many epochs, for networks whose steps cost several times more."""


def on_images(
    name: str,
    make: Callable[[Shape], nn.Module],
    folder: Folder,
    full: Shape,
    recipe: Recipe = IMAGES,
) -> Task:
    """A network on CIFAR-10."""
    return Task(
        name=name,
        full=full,
        make=make,
        example=partial(torch.zeros, 2, 3, PIXELS, PIXELS),
        stream=partial(cifar, folder),
        recipe=recipe,
        half=full,
        grid={},
        reset=he,
    )


def resnet_task(depth: int, folder: Folder) -> Task:
    """A CIFAR ResNet."""
    each = (depth - 2) // 6

    def cut(*blocks: int) -> Shape:
        hidden: list[int] = []
        for width, kept in zip(WIDTHS, blocks, strict=True):
            hidden += [width] * kept + [0] * (each - kept)
        return (*WIDTHS, *hidden)

    few, half = max(1, each // 3), (each + 1) // 2
    recipe = IMAGES if depth < 56 else SHORTER
    make = partial(residual_network, depth)
    task = on_images(f"resnet{depth}", make, folder, cut(*[each] * 3), recipe)
    grid = {
        "early": cut(each, half, few),
        "late": cut(few, half, each),
        "last-two": cut(few, each, each),
        "narrow-branches": (*WIDTHS, *(w // 2 for w in task.full[3:])),
    }
    return replace(task, half=cut(half, half, half), grid=grid)


def vgg_task(folder: Folder) -> Task:
    """VGG-16-BN."""
    task = on_images("vgg16", vgg, folder, PLANES, SHORTER)
    half = tuple(0 if place in (3, 5, 6, 8, 9, 11) else w for place, w in enumerate(PLANES))
    grid = {
        "narrow-late": PLANES[:7] + tuple(w // 4 for w in PLANES[7:]),
        "short-late": (*PLANES[:10], 0, 0, 0),
        "narrow-early": tuple(w // 2 for w in PLANES[:4]) + PLANES[4:],
    }
    return replace(task, half=half, grid=grid)


def keep_weights(_: nn.Module) -> None:
    """For networks whose weights are drawn alike at all widths: they are fresh as they are."""


def vit_task(folder: Folder) -> Task:
    """A small vision transformer of timm: 16 patches, 4 heads; shape: width and depth."""
    from timm.models.vision_transformer import VisionTransformer

    recipe = replace(
        IMAGES,
        steps=8 * 351,
        fine_steps=3 * 351,
        lr=1e-3,
        fine_lr=2e-4,
        weight_decay=0.05,
        optimizer="AdamW",
        warmup=0.1,
    )

    def make(shape: Shape) -> nn.Module:
        width, depth = shape
        return VisionTransformer(
            img_size=PIXELS, patch_size=4, num_classes=10, embed_dim=width, depth=depth, num_heads=4
        )

    task = on_images("vit", make, folder, (64, 6), recipe)
    return as_stack(task, "blocks", (1, 2, 4))


def as_stack(task: Task, stack: str, depths: tuple[int, ...]) -> Task:
    """A transformer whose shape is width and depth, with the depths to try by hand."""
    width, depth = task.full
    return replace(
        task,
        half=(width, depth // 2),
        grid={f"depth-{blocks}": (width, blocks) for blocks in depths},
        steady=frozenset({1}),
        stack=stack,
        unit=4,
        quanta={"*": 8, "*attn*": 1},
        reset=keep_weights,
    )


def gpt2_task() -> Task:
    """A GPT-2 of transformers on characters; shape: width and depth."""
    recipe = Recipe(
        steps=1_200,
        epoch=200,
        batch_size=16,
        lr=1e-3,
        fine_steps=400,
        fine_lr=2e-4,
        weight_decay=0.1,
        optimizer="AdamW",
        warmup=1 / 12,
    )
    task = Task(
        name="gpt2",
        full=(96, 4),
        make=lambda shape: gpt2(*shape),
        example=lambda: torch.zeros(2, CONTEXT, dtype=torch.int64),
        stream=text,
        recipe=recipe,
        half=(96, 2),
        grid={},
        cuttable=False,  # it has no rule for transformers' Conv1D
        meta=False,  # transformers reads values of the attention mask
    )
    return as_stack(task, "transformer.h", (1, 3))


MAKERS: dict[str, Callable[[Folder], Task]] = {
    "resnet20": partial(resnet_task, 20),
    "resnet56": partial(resnet_task, 56),
    "vgg16": vgg_task,
    "vit": vit_task,
    "gpt2": lambda _: gpt2_task(),
}
