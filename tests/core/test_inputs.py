"""Models that are called with keywords, integers, nests of tensors; regions of another mode."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guyot import Discovery, DiscoveryConfig, MisconfiguredError, find_structures
from guyot.core.inputs import arguments, call_model
from guyot.results.rebuild import rebuild


class Text(nn.Module):
    """Tokens in, a mapping out; a region without gradients, one without autocast, a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.one, self.two, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(
        self, ids: Tensor, scale: Tensor | None = None, *, extra: Any = None, use_cache: bool = True
    ) -> dict[str, Any]:
        with torch.no_grad():
            positions = torch.arange(ids.shape[1]).cos()
            fading = (-positions).exp()
        with torch.autocast("cpu", enabled=False):
            x = self.embed(ids) * fading[:, None]
        x = self.two(torch.relu(self.one(x)))
        if scale is not None:
            x = x * scale[..., None]
        if extra is not None:
            x = x + extra["shift"][0][..., None]
        result: dict[str, Any] = {"logits": self.head(x)}
        return result | {"cache": object()} if use_cache else result


def ids() -> Tensor:
    return torch.randint(0, 11, (2, 5))


INPUTS: dict[str, Any] = {
    "one tensor": ids,
    "positional": lambda: (ids(), torch.rand(2, 5)),
    "by name": lambda: {"scale": torch.rand(2, 5), "ids": ids()},
    "nested": lambda: {"extra": {"shift": [torch.rand(2, 5)]}, "ids": ids()},
    "with constants": lambda: {"ids": ids(), "scale": None, "use_cache": False},
}


@pytest.mark.parametrize("name", INPUTS)
def test_ways_to_call(name: str) -> None:
    structures = find_structures(Text(), INPUTS[name]())
    assert {group.name: group.size for group in structures.groups} == {
        "embed:2": 6,
        "one": 8,
        "two": 6,
    }
    assert not any("has no rule" in frozen.reason for frozen in structures.frozen)


def test_a_cache_is_no_part_of_the_network() -> None:
    model, tokens = Text(), ids()
    assert set(call_model(model, (tokens,))) == {"logits"}
    assert set(call_model(model, {"ids": tokens, "use_cache": True})) == {"logits", "cache"}
    args, kwargs = arguments(model, {"extra": 1, "ids": 0, "unknown": 2})
    assert (args, list(kwargs)) == ((), ["ids", "extra", "use_cache", "unknown"])


def test_discovery_and_rebuild_with_keywords() -> None:
    torch.manual_seed(0)
    model = Text()
    fresh = copy.deepcopy(model)
    inputs = {"ids": ids(), "scale": torch.rand(2, 5)}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    config = DiscoveryConfig(round_to=1)
    discovery = Discovery(model, inputs, optimizer, total_steps=120, target=0.5, config=config)
    for _ in range(120):
        loss = call_model(model, inputs)["logits"].square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        discovery.step()
        with discovery.evaluation([inputs]):
            assert not model.training
    found = discovery.finish()
    assert discovery.removals
    smaller = rebuild(fresh, inputs, discovery.structure)
    smaller.load_state_dict(found.state_dict())
    torch.testing.assert_close(call_model(smaller, inputs), call_model(found, inputs))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"example_inputs=dict holds no tensor; .*keyword arguments"),
        ({"ids": torch.tensor(3)}, r"example input 0 is a scalar"),
        ({"nonsense": torch.ones(2, 5)}, r"does not run on example_inputs of shapes \[\(2, 5\)\]"),
    ],
)
def test_mistakes(inputs: Any, message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        find_structures(Text(), inputs)


class Wrapper(nn.Module):
    """Passes on what it does not know."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor, **kwargs: Any) -> Any:
        return self.inner(ids, **kwargs)


def test_a_model_in_a_wrapper_is_called_without_its_cache() -> None:
    assert arguments(Wrapper(Text()), (ids(),))[1] == {"use_cache": False}
    given = {"ids": ids(), "use_cache": True}
    assert arguments(Wrapper(Text()), given)[1] == given
    assert arguments(Wrapper(nn.Linear(2, 2)), (ids(),))[1] == {}
