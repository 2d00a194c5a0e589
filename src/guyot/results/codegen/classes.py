"""Classes from modules: what is equal up to numbers becomes one class with arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from guyot.results.codegen.calls import Scattered
from guyot.results.codegen.forward import Forward, forward_of
from guyot.results.codegen.layout import Kind, Layout
from guyot.results.codegen.leaves import written
from guyot.results.codegen.markup import filled, number, numbers, renamed, template
from guyot.results.codegen.text import is_name, quoted, remark, wrap_line

_TAKEN = {"nn", "F", "torch", "load", "OrderedDict", "Path"}


@dataclass(frozen=True)
class Draft:
    """One module that becomes a class, with marked numbers.

    Attributes:
        path: of the module.
        name: of its type.
        base: the class it derives from.
        init: statements of `__init__` after `super().__init__()`.
        forward: None when nobody calls it.
    """

    path: str
    name: str
    base: str
    init: tuple[str, ...]
    forward: Forward | None

    @property
    def text(self) -> str:
        """All of it."""
        body = "" if self.forward is None else self.forward.text
        return "\n".join((self.name, self.base, *self.init, "", body))


class Classes:
    """Writes the classes of a layout, from the inside to the outside.

    Args:
        layout: what becomes of every module.
        name: of the root's class.

    Attributes:
        sources: source code of every class, in an order in which they can be defined.
    """

    def __init__(self, layout: Layout, name: str) -> None:
        self._layout, self._root, self._ties = layout, name, layout.ties()
        self._names: set[str] = {*_TAKEN, name}
        self._made: dict[str, str] = {}
        self.sources: list[str] = []
        for paths in self._by_height():
            groups: dict[str, list[Draft]] = {}
            for path in paths:
                draft = self._draft(path)
                groups.setdefault(template(draft.text), []).append(draft)
            for drafts in groups.values():
                self._define(drafts)

    def _by_height(self) -> list[list[str]]:
        """Return paths of classes, grouped by how many classes can lie inside."""
        classes = [p for p, kind in self._layout.kinds.items() if kind is Kind.CLASS or not p]
        heights: dict[str, int] = {}
        for path in sorted(classes, key=len, reverse=True):
            inside = [p for p in heights if p.startswith(f"{path}." if path else "")]
            heights[path] = 1 + max((heights[p] for p in inside), default=-1)
        levels: list[list[str]] = [[] for _ in range(max(heights.values()) + 1)]
        for path in classes:
            levels[heights[path]].append(path)
        return levels

    # -- one module --------------------------------------------------------------------------

    def _draft(self, path: str) -> Draft:
        layout = self._layout
        if layout.kinds[path] is Kind.SEQUENTIAL:  # the root
            return Draft(path, self._root, "nn.Sequential", (self._children(path),), None)
        init = [self._declared(name) for name in layout.tensors if name.rpartition(".")[0] == path]
        for name in self._needed(path):
            child = f"{path}.{name}" if path else name
            made = renamed(self._expression(child), name)
            init.append(
                f"self.{name} = {made}"
                if is_name(name)
                else f"self.add_module({quoted(name)}, {made})"
            )
        forwards = [forward_of(layout.source, call, layout) for call in layout.calls.get(path, [])]
        for call, forward in zip(layout.calls.get(path, []), forwards, strict=True):
            if forward.text != forwards[0].text:
                raise Scattered(call.key)
        name = self._root if not path else _class_name(layout.modules[path])
        return Draft(path, name, "nn.Module", tuple(init), forwards[0] if forwards else None)

    def _needed(self, path: str) -> list[str]:
        prefix = f"{path}." if path else ""
        children = self._layout.modules[path].named_children()
        return [name for name, _ in children if f"{prefix}{name}" in self._layout.kinds]

    def _declared(self, name: str) -> str:
        """Declare a parameter or buffer that is all zeros until weights are loaded."""
        layout, (path, _, key) = self._layout, name.rpartition(".")
        tensor = layout.source.constants.get(name)
        if tensor is None:
            module = layout.modules[path]
            tensor = getattr(module, key)
        sizes = ", ".join(number(key, size) for size in tensor.shape) or "()"
        dtype = "" if tensor.dtype is torch.float32 else f", dtype={written(tensor.dtype)}"
        zeros = f"torch.zeros({sizes}{dtype})"
        if isinstance(tensor, nn.Parameter):
            frozen = "" if tensor.requires_grad else ", requires_grad=False"
            made = f"nn.Parameter({zeros}{frozen})"
            return (
                f"self.{key} = {made}"
                if is_name(key)
                else f"self.register_parameter({quoted(key)}, {made})"
            )
        return f"self.register_buffer({quoted(key)}, {zeros})"

    def _expression(self, path: str) -> str:
        """Write what makes the module."""
        match self._layout.kinds.get(path):
            case None:
                return "nn.Identity()"
            case Kind.LEAF:
                return self._layout.text(path)
            case Kind.CLASS:
                return self._made[path]
            case Kind.SEQUENTIAL:
                return f"nn.Sequential({self._children(path)})"
            case Kind.LIST:
                return f"nn.ModuleList([{self._children(path)}])"
            case Kind.DICT:
                return f"nn.ModuleDict({self._children(path, named=True)})"

    def _children(self, path: str, named: bool = False) -> str:
        """Return the modules of a container, without a number only when their names are needed."""
        names = [name for name, _ in self._layout.modules[path].named_children()]
        prefix = f"{path}." if path else ""
        texts = [renamed(self._expression(f"{prefix}{name}"), name) for name in names]
        if not named and names == [str(place) for place in range(len(names))]:
            return ", ".join(texts)
        items = ", ".join(
            f"{quoted(name)}: {text}" for name, text in zip(names, texts, strict=True)
        )
        return f"{{{items}}}" if named else f"OrderedDict({{{items}}})"

    # -- one class ---------------------------------------------------------------------------

    def _define(self, drafts: Sequence[Draft]) -> None:
        """Define one class for drafts that differ in numbers only."""
        first = drafts[0]
        columns = list(zip(*(numbers(draft.text) for draft in drafts), strict=True))
        names = {match for line in first.init for match in re.findall(r"self\.(\w+) =", line)}
        arguments: dict[tuple[str, ...], str] = {}
        for column in columns:
            values = tuple(each.text for each in column)
            if len({*values}) > 1 and values not in arguments:
                taken = {*names, *arguments.values()}
                arguments[values] = _argument(column[0].hint, taken)
        texts: list[str] = []
        for column in columns:
            values = tuple(each.text for each in column)
            texts.append(arguments.get(values) or column[0].text)
        name = self._class(first)
        for row, draft in enumerate(drafts):
            given = (number(text, int(values[row])) for values, text in arguments.items())
            self._made[draft.path] = f"{name}({', '.join(given)})"
        split = len(numbers("\n".join(first.init)))
        written_class = _written(first, name, drafts, list(arguments.values()), texts, split)
        self.sources.append(written_class if first.path else self._tied(written_class))

    def _tied(self, source: str) -> str:
        """Return the root's class, which makes one parameter of those that are the same."""
        if not self._ties:
            return source
        tie = [f"        {statement}" for statement in self._ties]
        method = [
            "",
            "    def tie_weights(self):",
            '        """Some parameters are the same."""',
            *tie,
        ]
        before, found, after = source.partition("\n\n    def forward(")
        return "\n".join((f"{before}\n        self.tie_weights()", *method)) + found + after

    def _class(self, draft: Draft) -> str:
        if not draft.path:
            return self._root
        names = (f"{draft.name}{count or ''}" for count in (0, *range(2, 1000)))
        name = next(name for name in names if name not in self._names)
        self._names.add(name)
        return name


def _written(
    draft: Draft,
    name: str,
    drafts: Sequence[Draft],
    arguments: Sequence[str],
    texts: Sequence[str],
    split: int,
) -> str:
    """Write the class statement; `split` numbers are those of `__init__`."""
    init = filled("\n".join(draft.init), texts[:split]).split("\n")
    signature = "".join(f", {argument}: int" for argument in arguments)
    if draft.base == "nn.Sequential":
        body = [f"        super().__init__({init[0]})", *(f"        {line}" for line in init[1:])]
    else:
        body = ["        super().__init__()", *(f"        {line}" for line in init if line)]
    forward: list[str] = []
    if draft.forward is not None:
        kept = [argument for argument in arguments if argument in texts[split:]]
        body[1:1] = [f"        self.{argument} = {argument}" for argument in kept]
        values = [f"self.{text}" if text in kept else text for text in texts[split:]]
        taken = "".join(f", {argument}: Tensor" for argument in draft.forward.arguments)
        lines = filled("\n".join(draft.forward.lines), values).split("\n")
        forward = [
            "",
            f"    def forward(self{taken}){_gives(draft.forward)}:",
            *(f"        {line}" for line in lines),
        ]
    head = [f"class {name}({draft.base}):", f'    """{remark(_where(drafts))}"""', ""]
    lines = [*head, f"    def __init__(self{signature}):", *body, *forward]
    return "\n".join(part for line in lines for part in wrap_line(line))


def _gives(forward: Forward) -> str:
    return " -> Tensor" if forward.single else ""


def _where(drafts: Sequence[Draft]) -> str:
    """Name the modules that a class stands for."""
    paths = [draft.path for draft in drafts if draft.path]
    if not paths:
        return "The whole network."
    shown = paths[:1]
    for path in paths[1:]:
        if len(", ".join([*shown, path])) > 72:
            return f"{', '.join(shown)} and {len(paths) - len(shown)} more."
        shown.append(path)
    return f"{', '.join(shown)}."


def _argument(hint: str, taken: set[str]) -> str:
    stem = re.sub(r"\W", "_", hint) or "size"
    stem = stem if is_name(stem) else f"n_{stem}"
    names = (f"{stem}{count or ''}" for count in (0, *range(2, 1000)))
    return next(name for name in names if name not in taken)


def _class_name(module: nn.Module) -> str:
    name = re.sub(r"\W", "_", type(module).__name__)
    return name if is_name(name) else f"Module{name}"
