"""Edits of a method's source: what an addition or a call that states lengths becomes."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guyot.core.errors import UnsupportedError
from guyot.core.types import Place
from guyot.surgery.edits import Drop, State, edit
from guyot.surgery.source import Method, method_of


class Net(nn.Module):
    """Every method is a case: `branch` goes, and lengths of 6 become others."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.kept = nn.Linear(6, 6), nn.Linear(6, 6)
        self.act = nn.ReLU(inplace=True)
        self.width, self.parts = 6, [4, 2]

    def operator(self, x: Tensor) -> Tensor:
        return x + self.branch(x)

    def swapped(self, x: Tensor) -> Tensor:
        return self.branch(x) + x

    def function(self, x: Tensor) -> Tensor:
        return torch.add(x, self.branch(x))

    def of_a_tensor(self, x: Tensor) -> Tensor:
        return x.add(self.branch(x))

    def scaled(self, x: Tensor) -> Tensor:
        return torch.add(x, self.branch(x), alpha=2)

    def augmented(self, x: Tensor) -> Tensor:
        y = x.clone()
        y += self.branch(x)
        return y

    def augmented_branch(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        y += x
        return y

    def on_its_own(self, x: Tensor) -> Tensor:
        y = x.clone()
        y.add_(self.branch(x))
        return y

    def overwritten_later(self, x: Tensor) -> Tensor:
        y = x + self.branch(x)
        y.mul_(2)
        y -= 1
        y = torch.relu_(y) if self.width else nn.functional.relu(y, inplace=True)
        return self.act(y.neg_())

    def used_twice(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return self.kept(x + y) * y

    def apart(self, x: Tensor) -> Tensor:
        return x.view(2, 6)

    def together(self, x: Tensor) -> Tensor:
        return x.reshape((2, 6))

    def of_a_function(self, x: Tensor) -> Tensor:
        return torch.reshape(x, (2, 6))

    def of_a_function_by_attribute(self, x: Tensor) -> Tensor:
        return torch.reshape(x, x.shape)

    def starred(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], 6)

    def starred_together(self, x: Tensor) -> Tensor:
        return x.view((*x.shape[:-1], 6))

    def of_an_axis(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (2, 3))

    def in_parts(self, x: Tensor) -> Any:
        return x.split(6, 1)

    def in_known_parts(self, x: Tensor) -> Any:
        return x.split(self.parts, 1)

    def in_parts_of_a_list(self, x: Tensor) -> Any:
        return x.split([*self.parts], 1)

    def in_unequal_parts(self, x: Tensor) -> Any:
        return torch.split(x, [4, 2], 1)

    def narrowed(self, x: Tensor) -> Tensor:
        return x.narrow(1, 0, 6)

    def by_name(self, x: Tensor) -> Tensor:
        return x.view(size=(2, 6))


def changed(name: str, kind: type, what: Any, more: Any = ()) -> tuple[Method, list[str]]:
    """Edit the first expression of a kind (addition or call) that can be edited."""
    method = method_of(Net, name)
    shaping = {"view", "reshape", "unflatten", "split", "narrow"}

    def fits(node: ast.AST) -> bool:
        called = getattr(getattr(node, "func", None), "attr", "")
        if kind is State:
            return called in shaping
        return isinstance(getattr(node, "op", None), ast.Add) or called in ("add", "add_")

    node: Any = next(node for node in ast.walk(method.definition) if fits(node))
    place = Place(
        name, __file__, (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
    )
    touched = edit(method, [kind(place, what, *more)], Net())
    return method, touched


def body(method: Method) -> list[str]:
    return [ast.unparse(statement) for statement in method.definition.body]


@pytest.mark.parametrize(
    ("name", "operand", "expected"),
    [
        ("operator", 1, ["return x"]),
        ("swapped", 0, ["return x"]),
        ("function", 1, ["return x"]),
        ("of_a_tensor", 1, ["return x"]),
        ("augmented", 1, ["y = x.clone()", "return y"]),
        ("augmented_branch", 0, ["y = x", "return y"]),
        ("on_its_own", 1, ["y = x.clone()", "y", "return y"]),
    ],
)
def test_an_addition_leaves_its_other_operand(name: str, operand: int, expected: list[str]) -> None:
    method, touched = changed(name, Drop, operand, [("branch",)])
    assert body(method) == expected and touched == []


def test_what_may_now_be_the_input_is_not_overwritten() -> None:
    method, touched = changed("overwritten_later", Drop, 1, [("branch",)])
    assert body(method) == [
        "y = x",
        "y = y.mul(2)",
        "y = y - 1",
        "y = torch.relu(y) if self.width else nn.functional.relu(y, inplace=False)",
        "return self.act(y.neg())",
    ]
    assert touched == ["act"]


def test_additions_that_cannot_go() -> None:
    with pytest.raises(UnsupportedError, match=r"alpha=2\) is more than an addition"):
        changed("scaled", Drop, 1, [("branch",)])
    with pytest.raises(UnsupportedError, match=r"Net.used_twice uses branch beyond its addition"):
        changed("used_twice", Drop, 1, [("branch",)])
    method = method_of(Net, "operator")
    with pytest.raises(UnsupportedError, match="says nothing that can be changed in line 7"):
        edit(method, [Drop(Place("operator", __file__, (7, 0, 7, 1)), 1, ("branch",))], Net())


MERGED = "tuple((old if new is None else new for old, new in zip({}, {}, strict=True)))"


@pytest.mark.parametrize(
    ("name", "sizes", "expected"),
    [
        ("apart", (None, 4), "x.view(2, 4)"),
        ("apart", (None, "width"), "x.view(2, self.width)"),
        ("together", (None, 4), "x.reshape((2, 4))"),
        ("of_a_function", (None, 4), "torch.reshape(x, (2, 4))"),
        (
            "of_a_function_by_attribute",
            (None, 4),
            f"torch.reshape(x, {MERGED.format('x.shape', '(None, 4)')})",
        ),
        (
            "starred",
            (None, None, 4),
            f"x.view({MERGED.format('(*x.shape[:-1], 6)', '(None, None, 4)')})",
        ),
        (
            "starred_together",
            (None, None, 4),
            f"x.view({MERGED.format('(*x.shape[:-1], 6)', '(None, None, 4)')})",
        ),
        ("of_an_axis", (2, 2), "x.unflatten(1, (2, 2))"),
        ("in_parts", (4,), "x.split(4, 1)"),
        ("in_known_parts", (2, 2), f"x.split({MERGED.format('self.parts', '(2, 2)')}, 1)"),
        ("in_parts_of_a_list", (2, 2), f"x.split({MERGED.format('[*self.parts]', '(2, 2)')}, 1)"),
        ("in_unequal_parts", (2, 2), "torch.split(x, [2, 2], 1)"),
        ("narrowed", (None, None, 4), "x.narrow(1, 0, 4)"),
    ],
)
def test_lengths_are_stated_where_the_author_stated_them(
    name: str, sizes: tuple[Any, ...], expected: str
) -> None:
    method, touched = changed(name, State, sizes)
    assert body(method) == [f"return {expected}"] and touched == []


def test_lengths_by_name_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"view\(size=\(2, 6\)\) states lengths by name"):
        changed("by_name", State, (None, 4))
