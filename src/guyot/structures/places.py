"""Match operators of the graph and expressions in the source of the modules that made them."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import fx

from guyot.core.types import Place
from guyot.structures.trace import Trace, module_of
from guyot.surgery import SHAPING

aten = torch.ops.aten

ADDITIONS = {aten.add.Tensor, aten.add_.Tensor}


def places_of(trace: Trace) -> dict[fx.Node, Place]:
    """The places of a graph's additions and of its operators that state lengths.

    They are matched in the order in which a module ran them. A module whose methods did something
    else than its part of the graph has none.
    """
    nodes: dict[tuple[str, bool], list[tuple[fx.Node, str]]] = defaultdict(list)
    for node in trace.graph.nodes:
        name = _named(node)
        if name is not None:
            nodes[module_of(node), name == "add"].append((node, name))
    found: dict[fx.Node, Place] = {}
    for (module, sums), own in nodes.items():
        ran = [event for event in trace.events.get(module, ()) if (event.name == "add") == sums]
        if [event.name for event in ran] == [name for _, name in own]:
            pairs = zip(own, ran, strict=True)
            found |= {node: event.place for (node, _), event in pairs if event.place}
    return found


def _named(node: fx.Node) -> str | None:
    if node.op != "call_function":
        return None
    if node.target in ADDITIONS:
        return "add" if len(node.all_input_nodes) == 2 else None
    name = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
    name = "split" if name == "split_with_sizes" else name
    return name if name in SHAPING else None
