"""The Python module beside a language model of transformers whose layers differ."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CODE = "modeling_pruned"
"""Name of the module in the folder of the model."""

_TEXT = '''"""{kind} with layers of different sizes, as `per_layer_config` in config.json says.

Written by guyot {version}; needs torch and transformers only. Load it with
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from {home} import {config_kind}
from {modeling} import {layer_kind}, {kind}


class Nothing(nn.Module):
    """Adds nothing to the residual stream."""

    def forward(self, hidden_states, *args, **kwargs):
        return torch.zeros_like(hidden_states)


class NoAttention(Nothing):
    """Adds nothing, and gives no attention weights."""

    def forward(self, hidden_states, *args, **kwargs):
        return torch.zeros_like(hidden_states), None


ATTENTION = {attention!r}
GONE = {gone}
"""What stands for the modules of a branch that `skip` names."""


@strict
class {config}({config_kind}):
    model_type = {model_type!r}

    def validate_architecture(self):
        """Heads of the size `head_dim` need not divide the width."""


class {model}({kind}):
    config_class = {config}

    def __init__(self, config):
        count, config.num_hidden_layers = config.num_hidden_layers, 0
        try:
            super().__init__(config)
        finally:
            config.num_hidden_layers = count
        self.{path}.extend(layers(config))
        self.post_init()


def layers(config):
    """Return the layers, each as wide as its own settings say."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    free = {{kind: [n for n, other in enumerate(kinds) if other == kind] for kind in kinds}}
    for number, kind in enumerate(kinds):
        own = config.per_layer_config[number]
        layer = {layer_kind}(own, number)
        for module in layer.modules():
            if "config" in vars(module):
                module.config = config
        skipped = getattr(own, "skip", None) or ()
        for branch in skipped:
            for name, stand_in in GONE[branch].items():
                setattr(layer, name, stand_in())
        if "attention" not in skipped:  # a cache takes its length from the first of its entries
            getattr(layer, ATTENTION).layer_idx = free[kind].pop(0)
        yield layer
'''


@dataclass(frozen=True)
class LostBranch:
    """A branch of a layer that some layers have lost.

    Attributes:
        module: what computes it.
        others: names of what else went with it, such as its norm.
    """

    module: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class ClassNames:
    """How the classes are called.

    Attributes:
        kind: of the full network, in transformers.
        layer: of its layers.
    """

    kind: Any
    layer: type

    @property
    def model(self) -> str:
        """Return the name of the class that is written."""
        return f"Pruned{self.kind.__name__}"

    @property
    def config(self) -> str:
        """Return the name of its configuration."""
        return f"Pruned{self.kind.config_class.__name__}"


def modeling_text(
    names: ClassNames, path: str, attention: str, branches: Mapping[str, LostBranch]
) -> str:
    """Return the source of the module.

    Args:
        names: of the classes.
        path: qualified name of the list of layers.
        attention: name of the attention in a layer.
        branches: those that some layers have lost, by their names in `per_layer_config`.
    """
    gone: list[str] = []
    for branch, parts in branches.items():
        nothing = "NoAttention" if parts.module == attention else "Nothing"
        others = "".join(f", {name!r}: nn.Identity" for name in parts.others)
        gone.append(f"    {branch!r}: {{{parts.module!r}: {nothing}{others}}},")
    config_kind = names.kind.config_class
    return _TEXT.format(
        attention=attention,
        config=names.config,
        config_kind=config_kind.__name__,
        gone="\n".join(["{", *gone, "}"]) if gone else "{}",
        home=config_kind.__module__,
        kind=names.kind.__name__,
        layer_kind=names.layer.__name__,
        model=names.model,
        model_type=f"pruned_{config_kind.model_type}",
        modeling=names.kind.__module__,
        path=path,
        version=importlib.metadata.version("guyot"),
    )
