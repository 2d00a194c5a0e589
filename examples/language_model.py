"""A Qwen3 from a checkpoint that gets smaller with distillation and is saved for `from_pretrained`.

    python examples/language_model.py [--target 0.5] [--steps 600] [--equal] [--folder DIR]

The text is 21,770 definitions of nouns (WordNet) that come with timm, in pieces of bytes that are
learnt from it; every twentieth line is held out. DIR/full is trained first, as somebody else may
have done long ago, then loaded, and DIR/pruned is what is left of it: without guyot,
`AutoModelForCausalLM.from_pretrained("DIR/pruned", trust_remote_code=True)` loads it. With
`--equal` all layers lose the same heads and neurons, and loading needs no trust.

Needs guyot with the extras `timm` and `transformers`.
"""

import argparse
import tempfile
from importlib.resources import files
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import guyot
from guyot import export

CONTEXT, BATCH, PIECES = 64, 16, 512
END = "<end>"


def text() -> tuple[list[str], list[str]]:
    """Lines for training, and those that are held out."""
    whole = files("timm").joinpath("data/_info/imagenet_synset_to_definition.txt")
    lines = sorted({line.partition("\t")[2] for line in whole.read_text("utf-8").splitlines()})
    return [line for n, line in enumerate(lines) if n % 20], lines[::20]


def tokenizer_of(lines: list[str]) -> PreTrainedTokenizerFast:
    """Byte pairs that are common in the lines."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    pieces.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token=END, pad_token=END)


def codes_of(lines: list[str], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Numbers of the pieces of all lines (length,), in a random order of lines."""
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0)).tolist()
    encoded = tokenizer([lines[n] + END for n in order])["input_ids"]
    return torch.tensor([code for line in encoded for code in line])


def windows(codes: Tensor, generator: torch.Generator) -> Tensor:
    """Random parts (BATCH, CONTEXT) of the text."""
    starts = torch.randint(len(codes) - CONTEXT, (BATCH,), generator=generator)
    return codes[starts[:, None] + torch.arange(CONTEXT)]


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, codes: Tensor) -> float:
    """Nats per piece on the held-out text."""
    model.eval()
    parts = codes[: len(codes) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    losses = [float(model(input_ids=part, labels=part).loss) for part in parts.split(50)]
    model.train()
    return sum(losses) / len(losses)


def make_checkpoint(folder: Path, codes: Tensor, steps: int) -> None:
    """Train the full model."""
    config = Qwen3Config(
        vocab_size=PIECES,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        batch = windows(codes, generator)
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.save_pretrained(folder)


def prune(
    model: torch.nn.Module, codes: Tensor, target: float, steps: int, equal: bool
) -> guyot.Discovery:
    """Remove heads by their group of keys and values, neurons, and whole branches."""
    tied = [["*.self_attn.q_proj"], ["*.self_attn.q_proj:2"], ["*.mlp.gate_proj"]]
    config = guyot.DiscoveryConfig(trained=True, layers=not equal, tie=tied if equal else ())
    distillation = guyot.Distillation(model)  # the full network teaches the one that gets smaller
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(2)
    discovery = guyot.Discovery(
        model,
        {"input_ids": windows(codes, generator)[:2]},
        optimizer,
        total_steps=steps,
        target=target,
        config=config,
    )
    for step in range(steps):
        batch = windows(codes, generator)
        output = model(input_ids=batch, labels=batch)
        loss = distillation(output.loss, output, input_ids=batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        discovery.step()
        if (step + 1) % (steps // 10) == 0:
            share = discovery.macs / discovery.full_macs
            print(
                f"step {step + 1:4}  {discovery.phase.value:11} loss {loss:.3f}  MACs {share:.2f}"
            )
    discovery.finish()
    return discovery


def main() -> None:
    """Make the checkpoint, prune it, write it, load it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=float, default=0.5, help="share of the MACs to keep")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--equal", action="store_true", help="layers of equal widths")
    parser.add_argument("--folder", type=Path, default=None, help="where the models go")
    options = parser.parse_args()

    torch.manual_seed(0)
    folder = options.folder or Path(tempfile.mkdtemp())
    train_lines, held_out_lines = text()
    tokenizer = tokenizer_of(train_lines)
    train, held_out = codes_of(train_lines, tokenizer), codes_of(held_out_lines, tokenizer)
    if not (folder / "full").exists():
        make_checkpoint(folder / "full", train, options.steps)

    model = AutoModelForCausalLM.from_pretrained(folder / "full")
    print(f"full: held out {held_out_loss(model, held_out):.3f} nats per piece")
    discovery = prune(model, train, options.target, options.steps, options.equal)
    gone = [name for removal in discovery.removals for name in removal.layers]
    print(f"pruned: held out {held_out_loss(model, held_out):.3f} nats per piece")
    print(f"{discovery.full_macs:,} => {discovery.macs:,} MACs of {CONTEXT} pieces")
    print(f"{discovery.full_params:,} => {discovery.params:,} parameters")
    print(f"branches removed: {', '.join(gone) or 'none'}")

    written = export.to_pretrained(model, folder / "pruned")
    tokenizer.save_pretrained(folder / "pruned")
    print(f"{written.path}: {'with' if written.remote_code else 'no'} code of its own")
    trust = {"trust_remote_code": written.remote_code}
    loaded = AutoModelForCausalLM.from_pretrained(folder / "pruned", **trust)
    print(f"loaded: held out {held_out_loss(loaded, held_out):.3f} nats per piece")
    words = AutoTokenizer.from_pretrained(folder / "pruned", **trust)
    start = words("a small", return_tensors="pt").input_ids
    said = loaded.eval().generate(start, max_new_tokens=20, do_sample=False)
    print(words.decode(said[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
