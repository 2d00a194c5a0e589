"""Reference models: the CIFAR ResNets and a small ResNet for digits."""

from guyot.models.cifar import (
    MODELS,
    build,
    count_macs,
    digits_resnet,
    resnet,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
    resnet110,
)

__all__ = [
    "MODELS",
    "build",
    "count_macs",
    "digits_resnet",
    "resnet",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
]
