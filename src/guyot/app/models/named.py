"""Networks by name: guyot's own, those of torchvision and timm, and any of the user's.

    resnet20                 one of guyot's own, else of torchvision, else of timm
    torchvision:resnet50     of torchvision
    timm:resnet50            of timm
    package.module:factory   what a function of the user's returns; `path/to/file.py:factory` too

Weights are random and nothing is downloaded, unless trained ones are asked for.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guyot.app.factories import is_factory
from guyot.app.models.cifar import MODELS
from guyot.app.models.tables import mlp
from guyot.app.models.texts import Transformer
from guyot.app.models.weights import load_fitting
from guyot.app.user_code import accepted, function_of
from guyot.core.condition import did_you_mean
from guyot.core.errors import MisconfiguredError, first_line
from guyot.core.packages import needed

SampleShape = tuple[int, ...]
_OTHERS = ("mlp", "transformer")
"""Guyot's own networks for other samples than images."""


def build(
    name: str,
    num_classes: int = 10,
    image_shape: Sequence[int] | None = None,
    *,
    pretrained: bool = False,
) -> nn.Module:
    """A fresh network with random weights, or trained ones.

    Args:
        name: see the top of this file.
        num_classes: how many logits; a factory of the user's gets it if it has a parameter of that
            name.
        image_shape: (C, H, W) that the network will see; None: what it was made for. Only networks
            that have to know it are told (vision transformers).
        pretrained: with the weights that torchvision or timm download for it.

    Raises:
        MisconfiguredError: nobody knows the name, its package is missing, or it cannot be built.

    Example:
        >>> build("resnet20", num_classes=5).fc
        Linear(in_features=64, out_features=5, bias=True)
    """
    return build_with_inputs(name, num_classes, image_shape, pretrained)[0]


def build_with_inputs(
    name: str,
    num_classes: int = 10,
    image_shape: Sequence[int] | None = None,
    pretrained: bool = False,
) -> tuple[nn.Module, Any]:
    """As `build`, with the example inputs if a factory of the user's returns a pair, else None."""
    try:
        own = is_factory(name)
        source, key = ("", "") if own else _find(name)
        if pretrained and source in ("", "guyot"):
            raise MisconfiguredError(
                f"pretrained=True: only networks of torchvision and timm have trained weights, not "
                f"model={name!r}; give weights=FILE.safetensors"
            )
        if own:
            return _of_user(name, num_classes, image_shape)
        return _ZOOS[source].build(key, num_classes, image_shape, pretrained), None
    except MisconfiguredError:
        raise
    except Exception as error:
        kind = "images" if image_shape is not None and len(image_shape) == 3 else "samples"
        shape = "" if image_shape is None else f" and {kind} of {'x'.join(map(str, image_shape))}"
        raise MisconfiguredError(
            f"model={name!r} cannot be built with {num_classes} classes{shape}: "
            f"{type(error).__name__}: {first_line(error)}"
            + ("; without internet give weights=FILE.safetensors" if pretrained else "")
        ) from error


def natural_shape(name: str) -> SampleShape | None:
    """(C, H, W) that a network was made for; None for a factory of the user's.

    Raises:
        MisconfiguredError: nobody knows the name, or its package is missing.

    Example:
        >>> natural_shape("resnet20"), natural_shape("digits"), natural_shape("my.module:factory")
        ((3, 32, 32), (1, 8, 8), None)
    """
    if is_factory(name):
        return None
    source, key = _find(name)
    return _ZOOS[source].shape(key)


def image_shape(name: str, size: str | None = None) -> SampleShape | None:
    """(C, H, W) of the images that a network gets: of that size, else what it was made for.

    Args:
        name: of the network.
        size: pixels of a side, columns of a table, characters of a text, or all three numbers.

    Raises:
        MisconfiguredError: nobody knows the name, or the size is no size.

    Example:
        >>> image_shape("digits"), image_shape("digits", "16"), image_shape("my:net", "3x64x32")
        ((1, 8, 8), (1, 16, 16), (3, 64, 32))
        >>> image_shape("mlp", "13"), image_shape("transformer", "64")
        ((13,), (64,))
    """
    natural = natural_shape(name)
    if size is None:
        return natural
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*x[1-9]\d*)?", size):
        raise MisconfiguredError(f"input_size={size!r}: give pixels as 224 or 3x224x224")
    first, *others = map(int, size.split("x"))
    if natural is not None and len(natural) == 1 and not others:
        return (first,)
    if _is_transformer(name):
        raise MisconfiguredError(f"input_size={size!r}: give the characters of a text, as 64")
    if others:
        return first, others[0], others[1]
    return 3 if natural is None else natural[0], first, first


def example_of(name: str, shape: Sequence[int], count: int) -> Tensor:
    """Return samples of a shape for a network: characters for a transformer, else numbers.

    Example:
        >>> example_of("digits", (1, 8, 8), 2).shape, example_of("transformer", (16,), 2).dtype
        (torch.Size([2, 1, 8, 8]), torch.int64)
    """
    if _is_transformer(name):
        return torch.zeros(count, *shape, dtype=torch.int64)
    return torch.randn(count, *shape)


def _is_transformer(name: str) -> bool:
    return name in ("transformer", "guyot:transformer")


def natural_classes(name: str) -> int:
    """Return how many classes a network was made for: 1000 in torchvision and timm, else 10.

    Example:
        >>> natural_classes("resnet20"), natural_classes("torchvision:resnet50")
        (10, 1000)
    """
    if is_factory(name):
        return 10
    return 10 if _find(name)[0] == "guyot" else 1000


# -- where networks come from ------------------------------------------------------------------


class _Own:
    """The networks of this package."""

    def names(self) -> Iterable[str]:
        return (*MODELS, *_OTHERS)

    def build(
        self, name: str, num_classes: int, image_shape: Sequence[int] | None, pretrained: bool
    ) -> nn.Module:
        if name == "mlp":
            return mlp(self.shape(name) if image_shape is None else image_shape, num_classes)
        if name == "transformer":
            return Transformer(num_classes, (image_shape or self.shape(name))[0])
        return MODELS[name](num_classes)

    def shape(self, name: str) -> SampleShape:
        if name == "transformer":
            return (64,)
        if name == "mlp":
            return (64,)
        return (1, 8, 8) if name == "digits" else (3, 32, 32)


class _Torchvision:
    """The classification networks of torchvision."""

    def names(self) -> Iterable[str]:
        models = _package("torchvision").models
        return models.list_models(module=models)

    def build(
        self, name: str, num_classes: int, image_shape: Sequence[int] | None, pretrained: bool
    ) -> nn.Module:
        height, width = self.shape(name)[1:] if image_shape is None else image_shape[1:]
        more: dict[str, Any] = {}
        if name.startswith("vit_"):
            more["image_size"] = height
        elif name == "maxvit_t":
            more["input_size"] = (height, width)
        elif name in ("googlenet", "inception_v3"):
            more = {"aux_logits": False, "init_weights": True}  # one output in training mode too
        models = _package("torchvision").models
        network = models.get_model(name, weights=None, num_classes=num_classes, **more)
        if pretrained:
            weights = models.get_model_weights(name).DEFAULT
            load_fitting(network, weights.get_state_dict(progress=False), f"the weights of {name}")
        return network

    def shape(self, name: str) -> SampleShape:
        weights = list(_package("torchvision").models.get_model_weights(name))
        size = weights[0].transforms().crop_size[0] if weights else 224
        return (3, size, size)


class _Timm:
    """The networks of timm."""

    def names(self) -> Iterable[str]:
        return _package("timm").list_models()

    def build(
        self, name: str, num_classes: int, image_shape: Sequence[int] | None, pretrained: bool
    ) -> nn.Module:
        timm = _package("timm")
        more: dict[str, Any] = {}
        if image_shape is not None:
            made_for = self.shape(name)
            if image_shape[0] != made_for[0]:
                more["in_chans"] = image_shape[0]
            config = timm.get_pretrained_cfg(name, allow_unregistered=False)
            if config is not None and config.fixed_input_size:
                more["img_size"] = tuple(image_shape[1:])
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **more)

    def shape(self, name: str) -> SampleShape:
        config = _package("timm").get_pretrained_cfg(name, allow_unregistered=False)
        return (3, 224, 224) if config is None else tuple(config.input_size)


_ZOOS: Mapping[str, _Own | _Torchvision | _Timm] = {
    "guyot": _Own(),
    "torchvision": _Torchvision(),
    "timm": _Timm(),
}


def _package(name: str) -> Any:
    """torchvision or timm.

    Raises:
        MisconfiguredError: it is not installed.
    """
    extra = {"torchvision": "vision"}.get(name, name)
    with needed(f"the networks of {name} need", extra):
        return importlib.import_module(name)


def _find(name: str) -> tuple[str, str]:
    """Return which zoo has a network of that name, and its name there.

    Raises:
        MisconfiguredError: none has.
    """
    source, _, key = name.partition(":")
    zoos, key = ([source], key) if key else (list(_ZOOS), name)
    known: list[str] = []
    missing: list[str] = []
    for zoo in zoos:
        try:
            names = list(_ZOOS[zoo].names())
        except MisconfiguredError as error:
            missing.append(str(error))
            continue
        if key in names or (zoo == "timm" and key.partition(".")[0] in names):  # name.tag
            return zoo, key
        known += names
    raise MisconfiguredError(
        f"model={name!r} is unknown{did_you_mean(key, known)}; choose "
        f"{', '.join((*MODELS, *_OTHERS))}, a classification network of torchvision or timm, "
        "such as resnet18, or a function of your own as package.module:factory"
        + "".join(f"; {reason}" for reason in missing)
    )


# -- the user's own ----------------------------------------------------------------------------


def _of_user(
    name: str, num_classes: int, image_shape: Sequence[int] | None
) -> tuple[nn.Module, Any]:
    """Call the user's factory; whatever it raises is the user's to see."""
    factory = function_of(name, "model", "a network, or a network and its example inputs")
    offered = {"num_classes": num_classes, "image_shape": image_shape}
    made = factory(**accepted(factory, offered))
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise MisconfiguredError(
            f"model={name!r} returned {type(model).__name__}: it must return an nn.Module, or an "
            "nn.Module and its example inputs"
        )
    return model, inputs
