"""Characters of English definitions, and a GPT-2 of transformers that reads them.

The text is timm's file of 21,770 definitions of nouns (WordNet), 1.5 million characters, shuffled
line by line with a fixed seed; 1,000 lines are test data, 1,000 are validation data, and all other
lines are for training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor, nn

TEXT = "data/_info/imagenet_synset_to_definition.txt"
"""Where timm keeps the definitions."""
CONTEXT = 64
"""Characters that the language model sees."""
VOCABULARY = 77
"""Different characters in the text."""


@dataclass(frozen=True)
class Characters:
    """Windows of ``CONTEXT`` characters and what follows each of them.

    ``text`` int64 (length,). In training ``steps`` batches an epoch begin anywhere, drawn by
    ``seed``; without ``steps`` an epoch is the whole text, window after window.
    """

    text: Tensor
    batch_size: int
    steps: int | None = None
    seed: int = 0

    def __len__(self) -> int:
        windows = (len(self.text) - 1) // CONTEXT
        return self.steps or -(-windows // self.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        everywhere = torch.arange(0, len(self.text) - CONTEXT, CONTEXT)
        for step in range(len(self)):
            if self.steps is None:
                starts = everywhere[step * self.batch_size : (step + 1) * self.batch_size]
            else:
                last = len(self.text) - CONTEXT
                starts = torch.randint(last, (self.batch_size,), generator=generator)
            window = self.text[starts[:, None] + torch.arange(CONTEXT + 1)]
            yield window[:, :-1], window[:, 1:]


@cache
def definitions() -> dict[str, Tensor]:
    """The parts of the text as character numbers, int64."""
    whole = files("timm").joinpath(TEXT).read_text(encoding="utf-8")
    lines = sorted({line.partition("\t")[2] for line in whole.splitlines()})
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0)).tolist()
    letters = {c: n for n, c in enumerate(sorted({"\n", *"".join(lines)}))}
    assert len(letters) == VOCABULARY
    cuts = {"test": order[:1000], "validation": order[1000:2000], "train": order[2000:]}
    return {
        name: torch.tensor([letters[c] for k in chosen for c in lines[k] + "\n"])
        for name, chosen in cuts.items()
    }


def gpt2(width: int, depth: int) -> nn.Module:
    """A GPT-2 with blocks of 4 heads; heads and MLPs are fixed shares of the width."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=width, n_layer=depth, n_head=4
    )
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(config, name, 0.0)
    config.use_cache, config.bos_token_id, config.eos_token_id = False, None, None
    return GPT2LMHeadModel(config)
