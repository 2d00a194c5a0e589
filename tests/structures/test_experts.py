"""Mixtures of experts: heads, layers, and the neurons that all experts have in common."""

from __future__ import annotations

import copy
import warnings
from math import prod

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from guyot import Discovery, DiscoveryConfig, find_structures
from guyot.core.axis import size_of
from guyot.core.types import KeepPlan
from guyot.costs.widths import quanta_of
from guyot.structures.verify.replay import reader_masks
from guyot.surgery import operate
from guyot.surgery.plan import masks_of


def mixture(experts: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=20,
        max_position_embeddings=16,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    model = MixtralForCausalLM(config)
    model.set_experts_implementation(experts)
    return model, {"input_ids": torch.randint(20, (2, 8))}


@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm"])
def test_heads_neurons_and_layers_of_a_mixture(experts: str) -> None:
    model, inputs = mixture(experts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        structures = find_structures(model, inputs)
    sizes = {group.name: group.size for group in structures.groups}
    assert sorted(sizes.values()) == [2, 2, 24] and len(structures.layers) == 2
    (number,) = [n for n, group in enumerate(structures.groups) if group.size == 24]
    full = structures.index.group_sizes
    macs = sum(
        prod(size_of(axis, full) for axis in operation.axes)
        for operation in structures.operations
        if "experts" in operation.name
    )
    assert macs == 2 * 8 * 3 * 24 * 32  # two experts for each of 8 tokens, three matrices each
    if experts == "grouped_mm":  # its kernel wants rows of 16 bytes, times some
        assert quanta_of(structures, 3)[number] == 24 and quanta_of(structures, 1)[number] == 8
    plan = KeepPlan({number: torch.arange(8) * 3 + 1})
    masked, cut = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in reader_masks(structures, masks_of(structures, plan)).items():
            masked.get_parameter(name).mul_(mask.float())
    operate(cut, structures, plan)
    assert cut.model.layers[0].mlp.experts.down_proj.shape == (3, 32, 8)
    torch.testing.assert_close(cut(**inputs).logits, masked(**inputs).logits)


@pytest.mark.slow
def test_a_mixture_loses_neurons_while_it_trains() -> None:
    model, inputs = mixture("grouped_mm")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    config = DiscoveryConfig(round_to=1, layers=False)
    discovery = Discovery(model, inputs, optimizer, total_steps=100, target=0.8, config=config)
    for _ in range(100):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        discovery.step()
    left = discovery.finish()
    assert left.model.layers[0].mlp.experts.down_proj.shape[2] % 8 == 0
    assert left.model.layers[0].mlp.experts.down_proj.shape[2] < 24
    assert left(**inputs).logits.isfinite().all()
