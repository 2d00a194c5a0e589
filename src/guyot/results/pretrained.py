"""A finished language model of transformers, as `from_pretrained` of transformers loads it.

A configuration says how wide all layers are. If those of the network are equally wide, it is
enough, and the folder has no code. If not, `per_layer_config` says what is different in which
layer, and a short Python module that needs only torch and transformers builds the layers by it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guyot.core.errors import MisconfiguredError, UnsupportedError
from guyot.core.locate import unwrap
from guyot.core.packages import module_from
from guyot.gates.checks import check_model, check_whole
from guyot.results.delivery import Exported, largest_gap, staged
from guyot.results.pretrained_code import CODE, ClassNames, LostBranch, modeling_text

_MODULE = "guyot_pretrained"
_EXACT = 1e-5
_TOKENS = 8
_ATTENTION, _MLP = "attention", "mlp"
_BRANCHES = {_ATTENTION: ("q_proj", "k_proj"), _MLP: ("down_proj",)}
"""Name of a branch in `per_layer_config`, and the modules that tell its widths."""
_OF_LAYERS = ("layer_types", "_layers")
"""How settings end that are lists with an entry for each layer."""
_FORGOTTEN = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "model_type",
    "per_layer_config",
    "transformers_version",
)
"""What is not told to the new configuration, which finds it out or has its own."""


@dataclass(frozen=True)
class Pretrained(Exported):
    """What was written for `from_pretrained`.

    Attributes:
        remote_code: the layers differ, so the folder holds Python code and `from_pretrained`
            needs `trust_remote_code=True`.
    """

    remote_code: bool = False


def to_pretrained(model: nn.Module, folder: str | Path, *, code: bool = True) -> Pretrained:
    """Write a language model so that `AutoModelForCausalLM.from_pretrained` loads it.

    The process that loads it needs transformers and no guyot. Layers that lost both branches are
    left out, and those behind them move up. If the layers that stay are equally wide (see `tie` of
    `guyot.DiscoveryConfig`), the folder is as any other of transformers. If they are not, it has
    `modeling_pruned.py`, and loading needs `trust_remote_code=True`.

    Args:
        model: finished; a causal language model whose layers are built as Llama's: Llama, Mistral,
            Qwen2, Qwen3, Gemma and others. It is not changed.
        folder: does not exist.
        code: write Python code if the layers differ; False: refuse.

    Raises:
        MisconfiguredError: the folder exists, or it is no such model.
        UnsupportedError: transformers cannot express it, or only with code and `code` is False.
    """
    model = unwrap(model)
    check_model(model)
    check_whole(model)
    full = _Full.of(model)
    sizes = _sizes(full)
    with staged(folder) as scratch:
        scratch.mkdir()
        twin, remote = _twin(full, sizes, scratch, code)
        twin.load_state_dict(_renamed(full, sizes), assign=True)
        twin.tie_weights()
        twin.generation_config = full.model.generation_config
        twin.save_pretrained(scratch)
        gap = _compared(full, type(twin), scratch)
    made = Exported.of(folder, gap)
    return Pretrained(made.path, made.size, gap, remote_code=remote)


# -- what is left ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Full:
    """A network, and the one of transformers that it was made from.

    Attributes:
        model: the network.
        kind: its class in transformers.
        config: of the full network, without what is different in some layers.
        path: qualified name of the list of layers.
    """

    model: Any
    kind: Any
    config: Any
    path: str

    @classmethod
    def of(cls, model: Any) -> _Full:
        """Find the class of transformers that a model comes from.

        Raises:
            MisconfiguredError: there is none, or it is no causal language model.
        """
        kinds = [
            kind
            for kind in type(model).__mro__
            if kind.__module__.startswith("transformers.models.")
        ]
        name = type(model).__name__
        if not kinds or not kinds[0].__name__.endswith("ForCausalLM"):
            raise MisconfiguredError(
                f"{name} is no causal language model of transformers: write it with "
                "guyot.export.to_source, or keep it with guyot.save"
            )
        kind: Any = kinds[0]
        config = type(model.config)(**_told(model.config))
        paths = [
            path
            for path, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
        ]
        if len(paths) != 1:
            raise UnsupportedError(
                f"{name} has {len(paths)} lists of num_hidden_layers={config.num_hidden_layers} "
                "layers and not one: write it with guyot.export.to_source"
            )
        return cls(model, kind, config, paths[0])

    @property
    def layers(self) -> nn.ModuleList:
        """Return the layers that are left."""
        return self.model.get_submodule(self.path)

    @functools.cached_property
    def whole(self) -> nn.Module:
        """Return the first layer of the full network, without memory."""
        with torch.device("meta"):
            alone: nn.Module = self.kind(type(self.config)(**_told(self.config, (0,))))
        return alone.get_submodule(f"{self.path}.0")


def _told(config: Any, kept: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Return the settings of a configuration, for some of its layers.

    Args:
        config: of transformers.
        kept: numbers of these layers; None: all.
    """
    count = config.num_hidden_layers
    settings = {k: v for k, v in config.to_dict().items() if k not in _FORGOTTEN}
    if kept is None or kept == tuple(range(count)):
        return settings
    settings["num_hidden_layers"] = len(kept)
    for setting, value in settings.items():
        if setting.endswith(_OF_LAYERS) and isinstance(value, list) and len(value) == count:
            settings[setting] = [value[number] for number in kept]
    return settings


@dataclass(frozen=True)
class _Sizes:
    """How wide the layers are that are left.

    Attributes:
        kept: their numbers in the full network.
        common: settings that all of them share.
        own: for each of them, the settings in which it differs.
        attention: name of the attention in a layer.
        branches: those that some of them have lost.
    """

    kept: tuple[int, ...]
    common: Mapping[str, int]
    own: tuple[Mapping[str, Any], ...]
    attention: str
    branches: Mapping[str, LostBranch] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Say whether one configuration fits all layers."""
        return not any(self.own)


def _sizes(full: _Full) -> _Sizes:
    """Read from the modules how wide each layer is, and which branches it has lost.

    Raises:
        UnsupportedError: the layers are not built as Llama's.
    """
    names = _branch_names(full)
    given: list[dict[str, Any]] = []
    kept: list[int] = []
    branches: dict[str, LostBranch] = {}
    for number, layer in enumerate(full.layers):
        gone = _missing(full.whole, layer)
        skipped = [branch for branch in names if names[branch] in gone]
        if len(skipped) == len(names):
            continue
        if gone and not skipped:
            raise UnsupportedError(
                f"{full.path}.{number} has lost {sorted(gone)}, which is no branch of "
                f"{full.kind.__name__}: write it with guyot.export.to_source"
            )
        for branch in skipped:
            others = tuple(sorted(gone - {names[branch]}))
            branches.setdefault(branch, LostBranch(names[branch], others))
        kept.append(number)
        widths = _widths(layer, {b: names[b] for b in names if b not in skipped})
        given.append(widths | ({"skip": skipped} if skipped else {}))
    common = {
        setting: values.pop()
        for setting in _known(given)
        if len(values := {sizes[setting] for sizes in given if setting in sizes}) == 1
    }
    own = tuple(
        {
            setting: value
            for setting, value in sizes.items()
            if setting not in common and value != getattr(full.config, setting, None)
        }
        for sizes in given
    )
    return _Sizes(tuple(kept), common, own, names[_ATTENTION], branches)


def _known(given: list[dict[str, Any]]) -> list[str]:
    return sorted({setting for sizes in given for setting in sizes} - {"skip"})


def _branch_names(full: _Full) -> dict[str, str]:
    """Return the names of attention and multilayer perceptron in a layer.

    Raises:
        UnsupportedError: there are no such modules.
    """
    found: dict[str, str] = {}
    for branch, parts in _BRANCHES.items():
        children = [
            name
            for name, child in full.whole.named_children()
            if all(isinstance(getattr(child, part, None), nn.Linear) for part in parts)
        ]
        if len(children) != 1:
            raise UnsupportedError(
                f"a layer of {full.kind.__name__} has {len(children)} modules with "
                f"{' and '.join(parts)} and not one, so its widths are no settings of "
                "transformers: write it with guyot.export.to_source, or keep it with guyot.save"
            )
        found[branch] = children[0]
    return found


def _missing(whole: nn.Module, layer: nn.Module) -> set[str]:
    """Return the children of a whole layer whose weights are gone from one."""
    left = dict(layer.named_children())
    return {
        name
        for name, child in whole.named_children()
        if child.state_dict() and not (name in left and left[name].state_dict())
    }


def _widths(layer: nn.Module, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that give a layer its widths."""
    found: dict[str, Any] = {}
    if _ATTENTION in names:
        attention: Any = getattr(layer, names[_ATTENTION])
        size = attention.head_dim
        found["head_dim"] = size
        found["num_attention_heads"] = attention.q_proj.out_features // size
        found["num_key_value_heads"] = attention.k_proj.out_features // size
    if _MLP in names:
        found["intermediate_size"] = getattr(layer, names[_MLP]).down_proj.in_features
    return found


def _renamed(full: _Full, sizes: _Sizes) -> dict[str, Tensor]:
    """Return the tensors by the names that they have when empty layers are left out."""
    place = {f"{old}": f"{new}" for new, old in enumerate(sizes.kept)}
    renamed: dict[str, Tensor] = {}
    for name, tensor in full.model.state_dict().items():
        inside, found, key = name.partition(f"{full.path}.")
        number, _, rest = key.partition(".")
        if not found or inside:
            renamed[name] = tensor
        elif number in place:
            renamed[f"{full.path}.{place[number]}.{rest}"] = tensor
    return renamed


# -- a network of transformers with these sizes ------------------------------------------------


def _twin(full: _Full, sizes: _Sizes, scratch: Path, code: bool) -> tuple[Any, bool]:
    """Build the network as transformers does, without memory; say whether that needs code.

    Raises:
        UnsupportedError: transformers cannot express it.
    """
    settings = _settings(full, sizes)
    try:
        with torch.device("meta"):
            twin = full.kind(full.kind.config_class(**settings))
        if not (problem := _difference(twin, _renamed(full, sizes))):
            return twin, False
    except Exception as error:  # noqa: BLE001 - what it says is what the user has to know
        problem = " ".join(str(error).split())
    if not code:
        raise UnsupportedError(
            f"without code={code} transformers cannot express the widths of "
            f"{type(full.model).__name__} ({problem}): allow code, or let all layers lose the "
            "same, with tie and layers=False in DiscoveryConfig"
        )
    twin = _coded(full, sizes, settings, scratch)
    if problem := _difference(twin, _renamed(full, sizes)):
        raise UnsupportedError(
            f"no settings of {full.kind.config_class.__name__} give its widths: {problem}; write "
            "it with guyot.export.to_source, or freeze what lost them, with freeze in "
            "DiscoveryConfig"
        )
    return twin, True


def _settings(full: _Full, sizes: _Sizes) -> dict[str, Any]:
    """Return the settings of the network that is left."""
    settings = _told(full.config, sizes.kept) | dict(sizes.common)
    if not sizes.equal:
        settings["per_layer_config"] = {
            number: dict(own) for number, own in enumerate(sizes.own) if own
        }
    return settings


def _coded(full: _Full, sizes: _Sizes, settings: dict[str, Any], folder: Path) -> Any:
    """Write the module that builds the network, and build it.

    Raises:
        UnsupportedError: transformers is too old, or the module does not build it.
    """
    from transformers import PretrainedConfig, __version__

    if not hasattr(PretrainedConfig, "per_layer_config"):
        raise UnsupportedError(
            f"transformers {__version__} knows no per_layer_config, which says how the layers "
            "differ: install transformers 5.24 or newer"
        )
    file = folder / f"{CODE}.py"
    names = ClassNames(full.kind, type(full.whole))
    file.write_text(
        modeling_text(names, full.path, sizes.attention, sizes.branches), encoding="utf-8"
    )
    module = module_from(file, _MODULE, known=True)  # transformers looks for it by its name
    try:
        config = getattr(module, names.config)(**settings)
        config.auto_map = {
            "AutoConfig": f"{CODE}.{names.config}",
            "AutoModelForCausalLM": f"{CODE}.{names.model}",
        }
        with torch.device("meta"):
            return getattr(module, names.model)(config)
    except Exception as error:
        raise UnsupportedError(
            f"{names.model} cannot be built from its settings "
            f"({' '.join(str(error).split())}): write it with guyot.export.to_source"
        ) from error


def _difference(twin: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Return in which tensor two networks differ; nothing if in none."""
    built = {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(built.keys() | given.keys()):
        if built.get(name) != given.get(name):
            return (
                f"{name} would be {built.get(name, 'missing')} and is {given.get(name, 'missing')}"
            )
    return ""


def _compared(full: _Full, kind: Any, folder: Path) -> float:
    """Return the largest difference of the logits of what was written.

    Raises:
        UnsupportedError: it is too large.
    """
    model = full.model
    loaded = kind.from_pretrained(folder, dtype=model.dtype)
    tokens = torch.arange(_TOKENS, device=model.device).expand(2, -1) % model.config.vocab_size
    inputs = {"input_ids": tokens, "use_cache": False}
    return largest_gap(model, loaded.to(model.device).eval(), inputs, _EXACT, flat=False)
