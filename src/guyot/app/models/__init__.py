"""Networks: the CIFAR ResNets, a small ResNet for digits, and any network by its name."""

from guyot.app.models.cifar import (
    MODELS,
    count_macs,
    count_params,
    digits_resnet,
    resnet,
    resnet20,
)
from guyot.app.models.named import (
    build,
    build_with_inputs,
    example_of,
    image_shape,
    natural_classes,
    natural_shape,
)
from guyot.app.models.weights import load_fitting

__all__ = [
    "MODELS",
    "build",
    "build_with_inputs",
    "count_macs",
    "count_params",
    "digits_resnet",
    "example_of",
    "image_shape",
    "load_fitting",
    "natural_classes",
    "natural_shape",
    "resnet",
    "resnet20",
]
