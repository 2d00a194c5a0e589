"""A training loop of your own that ends with a smaller network: digits, about half a minute.

    python examples/own_loop.py [--target 0.4] [--epochs 20] [--folder DIR]

Needs guyot with the extra `data` (for scikit-learn's digits).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import guyot

TEST = 360


class Net(nn.Module):
    """A plain convolutional network; nothing in it knows about guyot."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        )
        self.classify = nn.Sequential(nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU())
        self.last = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 8, 8) to logits (N, 10)."""
        return self.last(self.classify(self.features(images)))


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8) in [0, 1] and labels (1797,), shuffled once."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return pixels[order], torch.tensor(labels)[order]


def batches(images: Tensor, labels: Tensor, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled batches; an incomplete last one is dropped."""
    order = torch.randperm(len(labels))
    for start in range(0, len(labels) - size + 1, size):
        index = order[start : start + size]
        yield images[index], labels[index]


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In evaluation mode."""
    model.eval()
    with torch.no_grad():
        correct = (model(images).argmax(1) == labels).float().mean()
    model.train()
    return float(correct)


def main() -> None:
    """Train, watch it shrink, save it, load it again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=float, default=0.4, help="share of the MACs to keep")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=None, help="where to save the result")
    options = parser.parse_args()

    torch.manual_seed(0)
    images, labels = digits()
    train, test = (images[TEST:], labels[TEST:]), (images[:TEST], labels[:TEST])
    model = Net()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = options.epochs * (len(train[1]) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    discovery = guyot.Discovery(
        model, (images[:2],), optimizer, total_steps=steps, target=options.target
    )
    for epoch in range(options.epochs):
        for x, y in batches(*train):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            discovery.step(loss=lambda: nn.functional.cross_entropy(model(x), y))  # noqa: B023
        with discovery.evaluation([train[0][:256]]) as network:
            found = accuracy(network, *test)
        print(
            f"epoch {epoch + 1:2}  {discovery.phase.value:11} loss {loss.item():.3f}  "
            f"test {100 * found:5.1f} %  MACs {discovery.macs / discovery.full_macs:.2f}  "
            f"undecided {discovery.undecided}"
        )
    model = discovery.finish()

    print(f"{discovery.full_macs:,} => {discovery.macs:,} MACs of one 1x8x8 image")
    print(f"{discovery.full_params:,} => {discovery.params:,} parameters")
    print(model)
    if options.folder:
        guyot.save(options.folder, model, (images[:2],), discovery.structure)
        again = guyot.load(options.folder, Net)
        assert accuracy(again, *test) == accuracy(model, *test)
        print(f"saved to {options.folder}")


if __name__ == "__main__":
    main()
