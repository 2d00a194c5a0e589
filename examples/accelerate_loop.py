"""A loop with Hugging Face's Accelerate that ends with a smaller network and resumes after a kill.

    python examples/accelerate_loop.py [--target 0.4] [--epochs 12] [--folder DIR] [--stop-after N]
    torchrun --nproc-per-node 2 examples/accelerate_loop.py --epochs 24

With `--folder` it writes a checkpoint after every epoch and resumes from the latest; `--stop-after`
ends it early, as if it had been killed. Needs guyot with the extras `accelerate` and `data`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import guyot
from guyot.discovery.integrations.accelerate import register_discovery

TEST = 360


def network() -> nn.Module:
    """Images (N, 1, 8, 8) to logits (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8) in [0, 1] and labels (1797,), shuffled once."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return pixels[order], torch.tensor(labels)[order]


def checkpoints(folder: Path | None) -> list[Path]:
    """Finished ones, oldest epoch first."""
    found = [] if folder is None else folder.glob("epoch-*/done")
    return sorted((file.parent for file in found), key=lambda path: int(path.name[6:]))


def main() -> None:
    """Train with accumulated and clipped gradients, save after every epoch, resume."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=float, default=0.4, help="share of the MACs to keep")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=None, help="where the checkpoints go")
    parser.add_argument("--stop-after", type=int, default=None, help="epochs")
    options = parser.parse_args()

    order = DataLoaderConfiguration(use_seedable_sampler=True)  # depends on the epoch alone
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, dataloader_config=order)
    torch.manual_seed(0)
    images, labels = digits()
    loader: Any = DataLoader(
        TensorDataset(images[TEST:], labels[TEST:]), 32, shuffle=True, drop_last=True
    )
    model = network()
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps = options.epochs * -(-len(loader) // 2)  # of the optimiser
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer.optimizer, steps)
    accelerator.register_for_checkpointing(schedule)

    discovery = guyot.Discovery(
        model, (images[:2],), optimizer, total_steps=steps, target=options.target
    )
    register_discovery(accelerator, discovery)

    first = 0
    if there := checkpoints(options.folder):
        accelerator.load_state(str(there[-1]))
        first = int(there[-1].name[6:])
        accelerator.print(f"resumes after epoch {first}")
    for epoch in range(first, options.epochs):
        loader.set_epoch(epoch)
        model.train()
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(x), y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:  # the optimiser made a step
                schedule.step()
                discovery.step()
        share = discovery.macs / discovery.full_macs
        accelerator.print(f"epoch {epoch + 1:2}  {discovery.phase.value:11} MACs {share:.2f}")
        if options.folder is not None:
            accelerator.save_state(str(options.folder / f"epoch-{epoch + 1}"))
            accelerator.wait_for_everyone()
            (options.folder / f"epoch-{epoch + 1}" / "done").touch()
        if epoch + 1 == options.stop_after:
            return
    smaller = discovery.finish().eval()

    with torch.no_grad():
        found = (smaller(images[:TEST]).argmax(1) == labels[:TEST]).float().mean()
    accelerator.print(f"test {100 * float(found):5.1f} %")
    accelerator.print(f"{discovery.full_macs:,} => {discovery.macs:,} MACs of one 1x8x8 image")
    accelerator.print(f"{discovery.full_params:,} => {discovery.params:,} parameters")
    weights = sum(float(p.detach().double().abs().sum()) for p in smaller.parameters())
    accelerator.print(f"sum of all absolute weights {weights:.12f}")


if __name__ == "__main__":
    main()
