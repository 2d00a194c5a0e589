"""Fused attention: products of activations over heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structures.axes import DimVars, factor, freeze, unify
from guyot.structures.rules.registry import rule

if TYPE_CHECKING:
    from guyot.structures.axis_graph import AxisGraph

aten = torch.ops.aten


@rule(aten.scaled_dot_product_attention.default)
def attention(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Query (..., L, E), key (..., S, E), value (..., S, V): dims before the last two are the same.

    The scores sum over E, the output over S, and no weight reads either there. V is the size of a
    head too, which modules state in many ways: heads go as a whole. With grouped queries the heads
    of the query are those of the key times the queries of a group.
    """
    query, key, value = graph.operands(node, 0, 1, 2)
    scores = f"the scores of {graph.name(node)} sum over it"
    heads = len(query) - 3
    for one, two, three in zip(query[:-2], key[:-2], value[:-2], strict=True):
        unify(two, three)
        if one is query[heads] and one.size != two.size and node.kwargs.get("enable_gqa", False):
            one, queries = factor(one, two.size)
            graph.own_attribute(node, "num_key_value_groups", queries)
        if one.size == two.size:
            unify(one, two)
    unify(query[-1], key[-1])
    unify(key[-2], value[-2])
    freeze(query[-1], scores)
    freeze(key[-2], scores)
    freeze(value[-1], f"the size of a head is part of how {graph.name(node)} is written")
    if graph.has(node, 3, "attn_mask"):
        mask = graph.dims[graph.argument(node, 3, "attn_mask", None)]
        for dim, scored in zip(
            reversed(mask), (key[-2], query[-2], *reversed(query[:-2])), strict=False
        ):
            if dim.size == scored.size:
                unify(dim, scored)
    pairs = (*graph.samples(query[:-2]), query[-2], key[-2])
    graph.count(node, *pairs, query[-1])
    graph.count(node, *pairs, value[-1])
    return (*query[:-1], value[-1])
