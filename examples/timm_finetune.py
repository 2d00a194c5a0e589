"""Shrink a trained timm model while fine-tuning it: the weights come from a checkpoint.

    python examples/timm_finetune.py [--checkpoint FILE.safetensors] [--target 0.5] [--epochs 12]

Without a checkpoint one is made first by training the full model on half of the digits, so that
the example needs no download. With timm's own weights you would write
`timm.create_model(NAME, pretrained=True, num_classes=10)` instead of loading the file.

Needs guyot with the extras `data` and `timm`.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

import guyot

MODEL = "test_resnet"  # timm's smallest ResNet: stem, four stages, bottleneck and basic blocks
TEST = 360


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 3, 32, 32) in [0, 1] and labels (1797,), shuffled once."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    pixels = nn.functional.interpolate(pixels, scale_factor=4.0).expand(-1, 3, -1, -1)
    return pixels[order], torch.tensor(labels)[order]


def batches(data: tuple[Tensor, Tensor], size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled batches."""
    images, labels = data
    for index in torch.randperm(len(labels)).split(size):
        yield images[index], labels[index]


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """In evaluation mode."""
    model.eval()
    correct = (model(data[0]).argmax(1) == data[1]).float().mean()
    model.train()
    return float(correct)


def make_checkpoint(path: Path, data: tuple[Tensor, Tensor]) -> None:
    """Train the full model, as somebody else may have done long ago."""
    model = timm.create_model(MODEL, num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    for _ in range(8):
        for x, y in batches(data):
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    save_file(model.state_dict(), path)


def main() -> None:
    """Load the checkpoint; fine-tune and shrink at once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=None)
    parser.add_argument("--target", type=float, default=0.5, help="share of the MACs to keep")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()

    torch.manual_seed(0)
    images, labels = digits()
    test, train = (images[:TEST], labels[:TEST]), (images[TEST:], labels[TEST:])
    path = options.checkpoint or Path(tempfile.mkdtemp()) / "pretrained.safetensors"
    if options.checkpoint is None:
        half = len(train[1]) // 2
        make_checkpoint(path, (train[0][:half], train[1][:half]))

    model = timm.create_model(MODEL, num_classes=10)
    model.load_state_dict(load_file(path))
    print(f"loaded: test {100 * accuracy(model, test):.1f} %")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.02)
    steps = options.epochs * -(-len(train[1]) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    discovery = guyot.Discovery(
        model,
        (images[:2],),
        optimizer,
        total_steps=steps,
        target=options.target,
        config=guyot.DiscoveryConfig(trained=True),
    )
    for epoch in range(options.epochs):
        for x, y in batches(train):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            discovery.step(loss=lambda: nn.functional.cross_entropy(model(x), y))  # noqa: B023
        with discovery.evaluation([train[0][:256]]) as network:
            found = accuracy(network, test)
        print(
            f"epoch {epoch + 1:2}  {discovery.phase.value:11} loss {loss.item():.3f}  "
            f"test {100 * found:5.1f} %  MACs {discovery.macs / discovery.full_macs:.2f}"
        )
    model = discovery.finish()
    gone = [name for removal in discovery.removals for name in removal.layers]
    print(f"{discovery.full_macs:,} => {discovery.macs:,} MACs of one 3x32x32 image")
    print(f"{discovery.full_params:,} => {discovery.params:,} parameters")
    print(f"residual branches removed: {', '.join(gone) or 'none'}")


if __name__ == "__main__":
    main()
