"""Recurrent layers: RNN, LSTM and GRU over a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structures.axes import SPACE, DimVars, concat, factor, freeze, unify
from guyot.structures.rules.registry import rule

if TYPE_CHECKING:
    from guyot.structures.axis_graph import AxisGraph

aten = torch.ops.aten

GATES = {
    aten.rnn_tanh.input: 1,
    aten.rnn_relu.input: 1,
    aten.gru.input: 3,
    aten.lstm.input: 4,
}
"""Operators over padded sequences -> rows of each weight that belong to one hidden unit."""


@rule(*GATES)
def recurrent(graph: AxisGraph, node: fx.Node) -> list[DimVars]:
    """Weights (gates x hidden, in) and (gates x hidden, hidden) of every layer and direction.

    A hidden unit is a row of every gate, and a column of the next step's weight. The states of all
    layers lie in one tensor, so all layers lose the same units. With projections nothing may go.
    """
    x, state, parameters = node.args[0], node.args[1], node.args[2]
    biases, layers = bool(node.args[3]), int(node.args[4])  # pyright: ignore[reportArgumentType]
    directions = 1 + bool(node.args[7])
    weights: list[fx.Node] = list(parameters)  # pyright: ignore[reportArgumentType,reportAssignmentType]
    each = 4 if biases else 2
    states: list[fx.Node] = list(state) if isinstance(state, (list, tuple)) else [state]  # pyright: ignore[reportAssignmentType]
    if len(weights) != each * layers * directions:  # with projections
        return graph.unknown(node)
    hidden = graph.dims[states[0]][-1]
    for other in states[1:]:
        unify(graph.dims[other][-1], hidden)
    for dims in (graph.dims[source] for source in states):
        freeze(dims[0], SPACE)
    sequence = graph.dims[x]  # pyright: ignore[reportArgumentType]
    read = sequence[-1]
    graph.attribute(node, weights[0], "input_size", read)
    for layer in range(layers):
        for direction in range(directions):
            first = each * (layer * directions + direction)
            inputs, steps = (graph.dims[weight] for weight in weights[first : first + 2])
            for rows in (graph.dims[weight][0] for weight in weights[first : first + each]):
                gate, unit = factor(rows, GATES[node.target])  # pyright: ignore[reportArgumentType]
                freeze(gate, SPACE)
                unify(unit, hidden)
            unify(inputs[1], read)
            unify(steps[1], hidden)
            for weight in weights[first : first + 2]:
                graph.contract(node, weight, dim=1)
            graph.attribute(node, weights[first], "hidden_size", hidden)
            tokens = graph.samples(sequence[:-1])
            graph.count(node, *inputs, *tokens)
            graph.count(node, *steps, *tokens)
        read = concat(*[hidden] * directions)
    return [(*sequence[:-1], read), *(graph.dims[source] for source in states)]
