"""Captured CUDA graphs: between two layouts, a training step reads and writes the same memory."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from captured import Captured, memory
from cases import CASES
from torch import Tensor, nn

from guyot import Discovery, DiscoveryConfig, GuyotWarning

STEPS = 100


class Run:
    """A network, and the forward and backward pass of a step with fixed places for a batch."""

    def __init__(self, name: str, mode: str | None = None, removals: int = 8) -> None:
        torch.manual_seed(0)
        self.case = CASES[name]
        self.model = self.case.build().train()
        self.called: Any = self.model
        if mode is not None:
            self.called = torch.compile(self.model, mode=mode)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, 0.9)
        self.inputs, self.labels = self.case.inputs(16), torch.zeros(16, dtype=torch.int64)
        config = DiscoveryConfig(round_to=1, removals=removals)
        self.discovery = Discovery(
            self.called,
            (self.case.inputs(),),
            self.optimizer,
            total_steps=STEPS,
            target=0.5,
            config=config,
        )

    def loss(self) -> Tensor:
        logits = self.called(self.inputs).flatten(1)[:, :3]
        return nn.functional.cross_entropy(logits, self.labels)

    def passes(self) -> None:
        self.loss().backward()

    def load(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        if self.inputs.is_floating_point():
            self.inputs.copy_(torch.randn(self.inputs.shape, generator=generator))
        self.labels.copy_(torch.randint(3, (16,), generator=generator))

    def capture(self) -> Captured:
        """As the documentation says: a pass that warms up, then the captured one."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self.passes()
        self.optimizer.zero_grad()
        graph = Captured(self.passes)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        self.discovery.zero_grad()
        return graph

    def places(self) -> list[int]:
        """Where everything is that a captured step reads or writes."""
        gates = self.discovery._gates
        own: list[Tensor] = [*self.model.parameters(), *self.model.buffers()]
        if gates is not None:
            own += [gates.sampled, gates.probable]
            for leaf, _ in gates._leaves.values():
                assert leaf.grad is not None
                own += [leaf, leaf.grad]
        return [memory(tensor) for tensor in own]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nothing was removed|target=.* was not met")
        yield


@pytest.mark.parametrize("name", ["cifar", "tokens"])
def test_replayed_steps_are_eager_steps(name: str) -> None:
    """Bit for bit, with decisions, measured layers and evaluations between the replays."""
    eager, replayed = Run(name), Run(name)
    layout, graph, places, captures = -1, None, [], 0
    for step in range(STEPS):
        eager.load(step), replayed.load(step)
        eager.optimizer.zero_grad()
        eager.passes()
        if graph is None or layout != replayed.discovery.layout:
            layout, graph = replayed.discovery.layout, replayed.capture()
            places, captures = replayed.places(), captures + 1
        graph.replay()
        assert replayed.places() == places
        for run in (eager, replayed):
            run.optimizer.step()
            run.discovery.step(loss=run.loss)
            if step % 7 == 0:
                with run.discovery.evaluation([run.case.inputs(8)]) as network:
                    network(run.case.inputs(4))
    removals = replayed.discovery.removals
    assert removals == eager.discovery.removals and len(removals) >= 2
    assert replayed.discovery.skipped == 0
    assert captures <= len(removals) + 3 < STEPS / 5
    for one, other in zip(eager.model.parameters(), replayed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_graph_that_is_too_old_is_told() -> None:
    """Nothing that it does reaches the new tensors, as if no pass was made."""
    run = Run("mlp")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", GuyotWarning)
        for step in range(60):
            run.load(step)
            if not run.discovery.removals:
                run.optimizer.zero_grad()
                run.passes()
            run.optimizer.step()
            run.discovery.step()
    assert run.discovery.removals
    first, *_ = [str(w.message) for w in found if "capture it again" in str(w.message)]
    assert "since its tensors were replaced" in first and "whenever discovery.layout" in first


def test_a_backward_pass_that_can_be_differentiated() -> None:
    """It replaces gradients, and they are the same."""
    found = []
    for again in (False, True):
        run = Run("mlp")
        while run.discovery._gates is None:
            run.passes()
            run.optimizer.step()
            run.discovery.step()
        gates = run.discovery._gates
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using backward.. with create_graph")
            run.loss().backward(create_graph=again)
        found.append(gates.gradient)
        places = run.places()
        gates.zero_grad()
        run.passes()
        assert run.places() == places and bool(gates.gradient.any())
    assert torch.equal(*found)


@pytest.mark.slow  # a C++ compiler works for each layout
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")
def test_training_under_reduce_overhead_ends_like_eager() -> None:
    torch.compiler.reset()
    eager, compiled = (Run("mlp", mode, removals=2) for mode in (None, "reduce-overhead"))
    for step in range(STEPS):
        for run in (eager, compiled):
            run.load(step)
            run.passes()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.discovery.step()
    torch.compiler.reset()
    assert compiled.discovery.removals == eager.discovery.removals
    assert eager.discovery.removals and compiled.discovery.skipped == 0
    for one, other in zip(eager.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
