"""A GPT-2 that loses attention heads, neurons and whole branches while it learns characters.

    python examples/transformer.py [--target 0.5] [--steps 400]

The text is the source of some modules of Python's standard library; the last tenth is held out.
Needs guyot with the extra `transformers`.
"""

import argparse
import inspect
import textwrap

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import guyot

CONTEXT, BATCH = 64, 16


def text() -> tuple[Tensor, int]:
    """Character codes (length,) and how many different ones there are."""
    source = inspect.getsource(argparse) + inspect.getsource(textwrap) + inspect.getsource(inspect)
    letters = sorted(set(source))
    number = {letter: index for index, letter in enumerate(letters)}
    return torch.tensor([number[letter] for letter in source]), len(letters)


def windows(codes: Tensor, generator: torch.Generator) -> Tensor:
    """Random pieces (BATCH, CONTEXT) of the text."""
    starts = torch.randint(len(codes) - CONTEXT, (BATCH,), generator=generator)
    return torch.stack([codes[start : start + CONTEXT] for start in starts])


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, codes: Tensor) -> float:
    """Nats per character on the held-out text."""
    model.eval()
    pieces = codes[: len(codes) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    loss = model(input_ids=pieces, labels=pieces).loss
    model.train()
    return float(loss)


def main() -> None:
    """Train, watch it shrink."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=float, default=0.5, help="share of the MACs to keep")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()

    torch.manual_seed(0)
    codes, letters = text()
    train, held_out = codes[: len(codes) * 9 // 10], codes[len(codes) * 9 // 10 :]
    config = GPT2Config(
        vocab_size=letters,
        n_positions=CONTEXT,
        n_embd=64,
        n_layer=4,
        n_head=4,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    generator = torch.Generator().manual_seed(0)

    discovery = guyot.Discovery(
        model,
        {"input_ids": windows(train, generator)[:2]},
        optimizer,
        total_steps=options.steps,
        target=options.target,
    )
    for step in range(options.steps):
        batch = windows(train, generator)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        discovery.step()
        if (step + 1) % (options.steps // 10) == 0:
            print(
                f"step {step + 1:4}  {discovery.phase.value:11} loss {loss.item():.3f}  "
                f"MACs {discovery.macs / discovery.full_macs:.2f}"
            )
    model = discovery.finish()
    print(f"held out: {held_out_loss(model, held_out):.3f} nats per character")
    print(f"{discovery.full_macs:,} => {discovery.macs:,} MACs of {CONTEXT} characters")
    print(f"{discovery.full_params:,} => {discovery.params:,} parameters")
    gone = [name for removal in discovery.removals for name in removal.layers]
    print(f"branches removed: {', '.join(gone) or 'none'}")


if __name__ == "__main__":
    main()
