"""Language models whose attentions went have the same logits with and without a cache."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guyot import find_structures
from guyot.core.types import KeepPlan
from guyot.surgery import operate
from guyot.surgery.caches import layer_numbers, renumber

hf = pytest.importorskip("transformers")
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "initializer_range": 0.5,
}
TOKENS = torch.arange(2 * 9).view(2, 9) % 17 + 3


def llama() -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)).eval()


def mixed() -> Any:
    """Windows of 4 tokens in every other attention."""
    kinds = ["sliding_attention", "full_attention"] * 2
    window = {"sliding_window": 4, "use_sliding_window": True, "layer_types": kinds}
    config = hf.Qwen2Config(**SMALL, **window, num_key_value_heads=2)
    return hf.Qwen2ForCausalLM(config).eval()


def without(model: Any, gone: set[str]) -> Any:
    structures = find_structures(model, {"input_ids": TOKENS}, units=False, verify=False)
    layers = {layer.name: number for number, layer in enumerate(structures.layers)}
    operate(model, structures, KeepPlan({}, frozenset(layers[name] for name in gone)))
    return model


def in_chunks(model: Any, sizes: list[int]) -> Tensor:
    found, cache = [], None
    for part in TOKENS.split(sizes, 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = model(part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found.append(out.logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize(("make", "gone"), [(llama, [0, 2]), (mixed, [0]), (mixed, [1])])
@torch.no_grad()
def test_logits_with_a_cache_are_those_without(make: Any, gone: list[int]) -> None:
    model = without(make(), {f"model.layers.{number}" for number in gone})
    whole = model(TOKENS, use_cache=False).logits
    for sizes in ([5, 1, 1, 1, 1], [4, 3, 2]):
        torch.testing.assert_close(in_chunks(model, sizes), whole, rtol=1e-3, atol=1e-4)
    ids = TOKENS[:, :5]
    given = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    cached, plain = (model.generate(ids, use_cache=use, **given) for use in (True, False))
    assert torch.equal(cached, plain)


class Mixer(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_idx = number

    def forward(self, x: Tensor, past: Any = None) -> Tensor:
        return x


class Counting(Mixer):
    """Has a number and takes no cache."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x


def test_only_what_takes_a_cache_moves_up_in_its_own_row() -> None:
    model = nn.ModuleDict(
        {
            "encoder": nn.ModuleList([Mixer(0), Mixer(1)]),
            "decoder": nn.ModuleList([nn.ModuleDict({"a": Mixer(n)}) for n in (0, 1, 2)]),
            "counting": nn.ModuleList([Counting(0), Counting(1)]),
            "shared": nn.ModuleList([Mixer(0), Mixer(0)]),
        }
    )
    before = layer_numbers(model)
    for name, number in (("decoder", 1), ("counting", 0), ("shared", 0)):
        model[name][number] = nn.Identity()
    del model["decoder"][1]
    renumber(model, before)
    assert [m.layer_idx for m in model["encoder"]] == [0, 1]
    assert model["counting"][1].layer_idx == 1 and model["shared"][1].layer_idx == 0
