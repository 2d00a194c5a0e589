"""Readable source code of a network that needs only PyTorch."""

from __future__ import annotations

from guyot.results.codegen.calls import Scattered, Source, call_tree
from guyot.results.codegen.classes import Classes
from guyot.results.codegen.layout import Layout
from guyot.results.codegen.text import remark

__all__ = ["Source", "module_text"]

CLASS_NAME = "Network"
_LOAD = '''
def load(weights: str | Path | None = None) -> Network:
    """The network with trained weights, in evaluation mode.

    Args:
        weights: a safetensors file; by default the one beside this file.
    """
    from safetensors.torch import load_file

    network = Network()
    state = load_file(weights or Path(__file__).with_name("model.safetensors"))
    network.load_state_dict(state, assign=True)
    return network.eval()
'''


def module_text(source: Source) -> str:
    """Return a Python module with a class `Network` and a function `load`.

    Raises:
        UnsupportedError: an operator cannot be written as source code.
    """
    classes = _classes(source)
    code = "\n\n\n".join(classes)
    count = sum(p.numel() for p in source.model.parameters())
    shapes = ", ".join(
        f"{source.inputs[node.name]} {tuple(node.meta['val'].shape[1:])}"
        for node in source.graph.find_nodes(op="placeholder")
        if node.name in source.inputs
    )
    imports = [
        "from collections import OrderedDict" if "OrderedDict(" in code else "",
        "from pathlib import Path",
        "",
        "import torch" if "torch." in code else "",
        f"from torch import {'Tensor, ' if 'Tensor' in code else ''}nn",
        "from torch.nn import functional as F" if "F." in code else "",
    ]
    head = [
        f'"""{remark(type(source.model).__name__)} as guyot left it: {count:,} parameters.',
        "",
        f"Inputs, without the batch: {shapes}. Made from evaluation mode; needs PyTorch only, and",
        "safetensors to read the weights:",
        "",
        "    from model import load",
        "",
        "    network = load()",
        '"""',
        "",
    ]
    text = "\n".join([*head, *(line for n, line in enumerate(imports) if line or n == 2)])
    load = _LOAD
    if "def tie_weights" in code:
        load = load.replace("    return", "    network.tie_weights()\n    return")
    return f"{text}\n\n\n{code}\n\n{load}"


def _classes(source: Source) -> list[str]:
    """Return the classes of a network, in an order in which they can be defined.

    Modules of `torch.nn` are made again from their attributes, `nn.Sequential`, `nn.ModuleList`
    and `nn.ModuleDict` stay what they are, every other module becomes a class whose `forward` is
    written from the operators of its call. Modules that are equal up to numbers share a class,
    whose arguments those numbers are. Names of parameters and buffers stay.

    """
    flat: set[str] = set()
    while True:
        try:
            root = call_tree(source, flat)
            return Classes(Layout(source, root), CLASS_NAME).sources
        except Scattered as problem:
            flat.add(problem.key)
