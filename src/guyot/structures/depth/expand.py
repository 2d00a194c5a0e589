"""The graph of a network from that of the short one: inner blocks are repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from guyot.core.locate import named_tensors
from guyot.structures.depth.runs import Run, ShortNames
from guyot.structures.trace import Trace

Nodes = dict[fx.Node, fx.Node]


def expanded(
    short: Trace, model: nn.Module, runs: Sequence[Run], names: ShortNames
) -> Trace | None:
    """Return the graph of a network; None where blocks are no chain of equal graphs.

    Args:
        short: the graph of the network with three blocks of each run.
        model: the whole network.
        runs: its runs.
        names: of things in the short network.
    """
    if any(node.op == "get_attr" for node in short.graph.nodes):
        return None
    chains = [_Chain(short, run) for run in runs]
    if not all(chain.is_sound() for chain in chains):
        return None
    return _Expansion(short, model, names, chains).trace()


class _Chain:
    """The operators of the blocks of a run in the short graph.

    Attributes:
        run: the run.
        nodes: of its first, inner and last block.
        own: the tensors of the blocks.
    """

    def __init__(self, short: Trace, run: Run) -> None:
        self.run = run
        paths = {path: number for number, path in enumerate(run.kept)}
        self.nodes: list[list[fx.Node]] = [[] for _ in run.kept]
        self.own: dict[fx.Node, tuple[int, str]] = {}
        self.order: list[int] = []
        """Where in the graph they are, in the order of blocks."""
        for place, node in enumerate(short.graph.nodes):
            stack = node.meta.get("nn_module_stack") or {}
            block = next((paths[path] for path, _ in stack.values() if path in paths), None)
            if block is not None and node.op != "placeholder":
                self.nodes[block].append(node)
                self.order.append(place)
            name = short.tensors.get(node.name, "")
            for path, number in paths.items():
                if node.op == "placeholder" and name.startswith(f"{path}."):
                    self.own[node] = (number, name[len(path) :])
        self.place = {
            node: (block, place)
            for block, nodes in enumerate(self.nodes)
            for place, node in enumerate(nodes)
        }

    def is_sound(self) -> bool:
        """Say whether the blocks stand together, in order, and the last is like the inner one.

        And whether nothing else looks at what they make, but at what the last one makes.
        """
        first, inner, last = self.nodes
        places = range(self.order[0], self.order[0] + len(self.order)) if self.order else ()
        together = self.order == list(places)
        ordered = [self.place[node][0] for node in (*first, *inner, *last)]
        in_order = sorted(self.place) == [*first, *inner, *last] and ordered == sorted(ordered)
        if not (together and in_order and len(inner) == len(last) > 0):
            return False
        for block, nodes in enumerate(self.nodes[:2]):
            after = {*nodes, *self.nodes[block + 1]}
            if any(user not in after for node in nodes for user in node.users):
                return False
        if any(self.place.get(u, (-1,))[0] != b for n, (b, _) in self.own.items() for u in n.users):
            return False
        return all(map(self._alike, inner, last))

    def _alike(self, one: fx.Node, other: fx.Node) -> bool:
        """Say whether an operator of the inner block is like one of the last."""
        values = [_shapes(node.meta.get("val")) for node in (one, other)]
        mine, theirs = (
            fx.map_arg((n.args, n.kwargs), self._known(b)) for b, n in ((1, one), (2, other))
        )
        return one.target is other.target and values[0] == values[1] and mine == theirs

    def _known(self, block: int) -> Any:
        """Return what names an operand as its block sees it."""

        def known(node: fx.Node) -> Any:
            if node in self.own:
                number, name = self.own[node]
                return ("own", number - block, name)
            if node in self.place:
                number, place = self.place[node]
                return ("made", number - block, place)
            return node

        return known


def _shapes(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_shapes(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return (getattr(value, "shape", None), getattr(value, "dtype", None), type(value))


class _Expansion:
    """Writes the graph of the whole network."""

    def __init__(
        self, short: Trace, model: nn.Module, names: ShortNames, chains: Sequence[_Chain]
    ) -> None:
        self._short, self._model, self._names = short, model, names
        self._graph = fx.Graph()
        self._tensors: dict[str, str] = {}
        self._held: dict[str, fx.Node] = {}
        """First name of a tensor of the network -> its placeholder."""
        self._new: Nodes = {}
        self._begins = {nodes[0]: chain for chain in chains for nodes in chain.nodes[:1] if nodes}
        self._inside = {node for chain in chains for node in chain.place}

    def trace(self) -> Trace:
        """Return it, with the calls and events of the short network."""
        self._placeholders()
        for node in self._short.graph.nodes:
            if node in self._begins:
                self._unrolled(self._begins[node])
            elif node.op != "placeholder" and node not in self._inside:
                self._new[node] = self._graph.node_copy(node, self._new.__getitem__)
        inputs = [self._new[n].name for n in self._given if n.name in self._short.inputs]
        constants = {
            self._new[n].name: self._short.constants[n.name]
            for n in self._given
            if n.name in self._short.constants
        }
        return replace(
            self._short,
            graph=self._graph,
            tensors=self._tensors,
            constants=constants,
            inputs=tuple(inputs),
        )

    def _placeholders(self) -> None:
        """Add the tensors of the network in the order in which `torch.export` does."""
        olds = [node for node in self._short.graph.nodes if node.op == "placeholder"]
        by_name = {self._short.tensors.get(node.name): node for node in olds}
        self._given = [node for node in olds if node.name not in self._short.tensors]
        for name in named_tensors(self._model):
            old = by_name.get(self._names.short(name))
            if old is None:
                continue
            prefix = old.name.partition("_")[0]
            new = self._copied(old, f"{prefix}_{name.replace('.', '_')}")
            self._tensors[new.name], self._held[name] = name, new
            if self._names.block(name) is None:
                self._new[old] = new
        for old in self._given:
            self._new[old] = self._copied(old, old.name)

    def _copied(self, old: fx.Node, name: str) -> fx.Node:
        new = self._graph.placeholder(name)
        new.meta = dict(old.meta)
        return new

    def _unrolled(self, chain: _Chain) -> None:
        """Add all blocks of a run."""
        first, inner, last = range(3)
        blocks = chain.run.blocks
        before: list[fx.Node] = []
        for number, path in enumerate(blocks):
            kind = first if number == 0 else last if number == len(blocks) - 1 else inner
            before = self._block(chain, kind, path, before)
        self._new.update(zip(chain.nodes[last], before, strict=True))

    def _block(
        self, chain: _Chain, kind: int, path: str, before: Sequence[fx.Node]
    ) -> list[fx.Node]:
        """Add a block like the first, inner or last; return its operators."""
        made: list[fx.Node] = []

        def source(node: fx.Node) -> fx.Node:
            if node in chain.own:
                return self._held[path + chain.own[node][1]]
            if node in chain.place:
                block, place = chain.place[node]
                return (made if block == kind else before)[place]
            return self._new[node]

        old = chain.run.kept[kind]
        for node in chain.nodes[kind]:
            new = self._graph.node_copy(node, source)
            if path != old:
                new.meta["nn_module_stack"] = _moved(node.meta["nn_module_stack"], old, path)
            made.append(new)
        return made


def _moved(stack: Mapping[str, tuple[str, Any]], old: str, new: str) -> dict[str, tuple[str, Any]]:
    """Return the calls of modules as they are in another block."""
    return {
        key.replace(old, new, 1) if _within(path, old) else key: (
            new + path[len(old) :] if _within(path, old) else path,
            kind,
        )
        for key, (path, kind) in stack.items()
    }


def _within(path: str, block: str) -> bool:
    return path == block or path.startswith(f"{block}.")
