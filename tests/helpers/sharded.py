"""What real processes do with a model under `fully_shard`: `tests/discovery/test_sharded.py`.

Every function of `SCENARIOS` runs in all processes at once; what it asserts, all must find true.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import CASES, random_plan
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from workers import fitted_by_lightning, main, same

from guyot import (
    Discovery,
    DiscoveryConfig,
    GuyotError,
    GuyotWarning,
    UnsupportedError,
    find_structures,
    rebuild,
    save,
)
from guyot.core.errors import StorageError
from guyot.core.parallel import gathered, get_ready, own_rows, reshaped, shards
from guyot.core.types import Structures
from guyot.discovery.checkpoint import Checkpointer
from guyot.gates.bank import Gates
from guyot.surgery import operate

STEPS = 100
EXAMPLE = (torch.ones(2, 7, dtype=torch.float64),)


class Block(nn.Module):
    """Norm, two linear layers, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(10), nn.Linear(10, 21), nn.Linear(21, 10)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 10), Block(), Block(), nn.Linear(10, 3)).double()


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def shard(model: nn.Module, over: DeviceMesh | None = None, **options: Any) -> nn.Module:
    """Shard every module that has children and a forward, innermost first."""
    over = over or mesh()
    for module in reversed([*model.modules()]):
        containers = nn.ModuleList | nn.ModuleDict
        if [*module.children()] and not isinstance(module, containers):
            fully_shard(module, mesh=over, **options)
    return model


def data(steps: int = 45) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches for all, of 16 samples; discovery is over before the last of them."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(steps, 16, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (steps, 16), generator=generator)
    yield from zip(x, labels, strict=True)


def share() -> slice:
    each = 16 // dist.get_world_size()
    return slice(each * dist.get_rank(), each * dist.get_rank() + each)


def discovery_of(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Discovery:
    config = DiscoveryConfig(**{"round_to": 1, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuyotWarning)  # a model may be alone on purpose
        return Discovery(model, EXAMPLE, optimizer, total_steps=STEPS, target=0.5, config=config)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    discovery: Discovery | None,
    batches: Iterator[tuple[Tensor, Tensor]],
    part: slice,
    *,
    exact: bool = False,
) -> None:
    for x, labels in batches:

        def loss(x: Tensor = x[part], labels: Tensor = labels[part]) -> Tensor:
            return nn.functional.cross_entropy(model(x).double(), labels)

        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if discovery is not None:
            discovery.step(loss=loss if exact else None)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: gathered(value) for name, value in model.state_dict().items()}


def assert_equal(
    model: nn.Module, optimizer: torch.optim.Optimizer, alone: nn.Module, other: Any, rtol: float
) -> None:
    """Weights, gradients and the optimiser's state are those of a model that is not sharded."""
    theirs = dict(alone.named_parameters())
    names = [name for name, _ in model.named_parameters()]
    assert names == [*theirs]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, mine in model.named_parameters():
        assert id(mine) in held
        rows = -(-len(theirs[name]) // dist.get_world_size())
        assert len(mine.to_local()) <= rows
        torch.testing.assert_close(gathered(mine), theirs[name].detach(), rtol=rtol, atol=1e-7)
        assert optimizer.state[mine].keys() == other.state[theirs[name]].keys()
        pairs = [
            (value, other.state[theirs[name]][k]) for k, value in optimizer.state[mine].items()
        ]
        if mine.grad is not None:
            pairs.append((mine.grad, theirs[name].grad))
        for here, there in pairs:
            torch.testing.assert_close(gathered(here), there, rtol=rtol, atol=1e-7)


def the_result_is_that_of_one_process() -> None:
    """Where all ranks sample alike: removals, weights, and the optimiser's state."""

    def run(model: nn.Module, part: slice) -> tuple[torch.optim.Optimizer, Discovery]:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        discovery = discovery_of(model, optimizer, estimator="two-sided")
        generator = torch.Generator().manual_seed(3)
        discovery._ranks.stream = lambda _: generator
        train(model, optimizer, discovery, data(), part)
        assert discovery.finish() is model
        return optimizer, discovery

    model, alone = shard(build()), build()
    optimizer, discovery = run(model, share())
    other, expected = run(alone, slice(None))
    assert discovery.removals == expected.removals
    assert len(discovery.removals) > 2 and discovery.macs < 0.6 * discovery.full_macs
    assert isinstance(model, FSDPModule)
    assert_equal(model, optimizer, alone, other, 1e-5)

    full = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=full)
    if dist.get_rank() == 0:
        network = rebuild(build(), EXAMPLE, discovery.structure)
        network.load_state_dict(state)
        torch.testing.assert_close(network(*EXAMPLE), alone(*EXAMPLE), rtol=1e-5, atol=1e-7)
        save(Path(tempfile.mkdtemp()) / "saved", network, EXAMPLE, discovery.structure)
    with pytest.raises(UnsupportedError, match=r"0\.weight is sharded .*: gather the weights"):
        save(Path(tempfile.mkdtemp()) / "saved", model, EXAMPLE, discovery.structure)


class Tied(nn.Module):
    """Two residual branches with the same weights, and a head with those of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(9, 12, bias=False), nn.Linear(12, 9, bias=False)
        self.first, self.second = (nn.Sequential(nn.Linear(12, 20), nn.ReLU()) for _ in range(2))
        self.back = nn.Linear(20, 12)
        self.second[0].weight = self.first[0].weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.out(x + self.back(self.first(x) + self.second(x)))


def case_surgery(case: str, seed: int) -> None:
    torch.manual_seed(0)  # every process begins with the same weights
    surgery(CASES[case].build(), CASES[case].inputs, seed)


def surgery(
    alone: nn.Module, inputs: Callable[[], Tensor], seed: int, shard: Callable[..., Any] = shard
) -> None:
    """A step, the same removal from a sharded and a whole model, and another step."""
    torch.manual_seed(0)
    alone = alone.double().train()
    model = shard(copy.deepcopy(alone))
    structures = find_structures(alone, (inputs().double(),))
    plans = (random_plan(structures, seed + more) for more in range(20))
    plan = next(plan for plan in plans if plan.removed_layers or not structures.layers)
    parts = [(m, torch.optim.AdamW(m.parameters(), 1e-2)) for m in (model, alone)]

    def step() -> None:
        x = inputs().double()
        for network, optimizer in parts:
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()

    step()
    (_, optimizer), (_, other) = parts
    with reshaped(model):
        operate(model, structures, plan, [optimizer])
    operate(alone, structures, plan, [other])
    assert_equal(model, optimizer, alone, other, 1e-9)
    with torch.no_grad():
        model(inputs().double())
    step()
    assert_equal(model, optimizer, alone, other, 1e-7)


def surgery_follows_in_blocks() -> None:
    case_surgery("tokens", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_LARGE", 10)  # so that rows come in pieces of their columns
        case_surgery("nested", 1)

    def together(model: nn.Module) -> nn.Module:
        return fully_shard(model, mesh=mesh())

    surgery(Tied(), lambda: torch.randn(4, 9), 0, together)


def surgery_follows_everywhere() -> None:
    for case in CASES:
        case_surgery(case, 2)


def what_certificates_need() -> None:
    """Norms of weights and gradients, and weights that are switched off."""
    model, alone = shard(build()), build()
    structures = find_structures(alone, EXAMPLE)
    found = []
    for network in (model, alone):
        get_ready(network)
        gates = Gates(structures, torch.device("cpu"))
        gates.attach(network)
        x, labels = next(data())
        nn.functional.cross_entropy(network(x), labels).backward()
        squares = gates.squares(network.parameters())
        gates.probable[::3] = 0
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        gates.zero_unused()
        gates.detach()
        found.append((*squares, gates.gradient, *whole_state(network).values()))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-12)


def policies(build: Callable[[], nn.Module] = build) -> None:
    """Weights in bfloat16, and activations that are computed again."""
    model = build()
    for number in (1, 2):
        model[number] = checkpoint_wrapper(model[number])
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    shard(model, mp_policy=policy)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    discovery = discovery_of(model, optimizer)
    torch.manual_seed(dist.get_rank())
    train(model, optimizer, discovery, data(), share(), exact=True)
    discovery.finish()
    assert discovery.macs < 0.6 * discovery.full_macs
    assert all(p.dtype is torch.float64 for p in model.parameters())
    network = rebuild(build(), EXAMPLE, {**discovery.structure, "units": plain(discovery)})
    names = {
        name.replace("_checkpoint_wrapped_module.", ""): v for name, v in whole_state(model).items()
    }
    network.load_state_dict(names)
    x, _ = next(data())
    torch.testing.assert_close(model(x).double(), network(x), rtol=0.1, atol=0.1)


def plain(discovery: Discovery) -> dict[str, Any]:
    units = discovery.structure["units"]
    return {name.replace("._checkpoint_wrapped_module", ""): kept for name, kept in units.items()}


def replicas_of_shards() -> None:
    """Parameters are sharded over half of the processes, twice (HSDP)."""
    ranks = dist.get_world_size()
    twice = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("replicas", "shards"))
    model = shard(build(), twice)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    discovery = discovery_of(model, optimizer)
    train(model, optimizer, discovery, data(), share(), exact=True)
    discovery.finish()
    assert len(discovery.removals) > 2 and discovery.macs < 0.6 * discovery.full_macs
    assert same(*whole_state(model).values())


class Shadow:
    """A part that is no module: it has a sharded tensor, and something of its own process."""

    def __init__(self, model: nn.Module) -> None:
        self.bias, self.rank = dict(model.named_parameters())["3.bias"].detach() + 1, -1

    def state_dict(self) -> dict[str, Any]:
        return {"biases": [self.bias], "rank": dist.get_rank()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bias.copy_(state["biases"][0])  # a whole tensor would not fit
        self.rank = state["rank"]


class Started:
    """Everything of a run, as for its first start."""

    def __init__(self, folder: Path, model: nn.Module, average: nn.Module) -> None:
        self.model, self.average, self.shadow = model, average, Shadow(model)
        self.optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        self.discovery = discovery_of(model, self.optimizer)
        self.discovery.follow(average)
        torch.manual_seed(dist.get_rank())
        parts: Any = {"average": average, "optimizer": self.optimizer, "shadow": self.shadow}
        self.checkpoints = Checkpointer(folder, model, self.discovery, **parts)

    @torch.no_grad()
    def train(self, batches: list[tuple[Tensor, Tensor]], part: slice) -> None:
        for batch in batches:
            with torch.enable_grad():
                pair = iter([batch])
                train(self.model, self.optimizer, self.discovery, pair, part, exact=True)
            theirs = self.model.state_dict()
            for name, mine in self.average.state_dict().items():
                mine.lerp_(theirs[name], 0.1)

    def train_on(self, batches: list[tuple[Tensor, Tensor]], part: slice) -> None:
        """Train after the discovery."""
        train(self.model, self.optimizer, None, iter(batches), part)

    def states(self) -> dict[str, Tensor]:
        """All tensors, gathered."""
        moments = [state["exp_avg_sq"] for state in self.optimizer.state.values()]
        numbered = {f"moment {n}": gathered(moment) for n, moment in enumerate(moments)}
        average = {f"average {name}": value for name, value in whole_state(self.average).items()}
        shadow = {"shadow": gathered(self.shadow.bias)}
        return whole_state(self.model) | numbered | average | shadow


def common_folder() -> Path:
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(folder)
    return Path(folder[0])


def assert_close(one: dict[str, Tensor], two: dict[str, Tensor], rtol: float = 0) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=rtol, atol=rtol / 100, msg=name)


def runs_resume() -> None:
    """With as many processes bit for bit; then with another number of them, and without shards."""
    folder, batches = common_folder(), [*data()]
    run = Started(folder, shard(build()), shard(build()))
    run.train(batches[:28], share())
    assert run.discovery.removals and run.discovery._gates is not None
    path = run.checkpoints.save(28, {"step": 28})
    saved = run.states()
    run.train(batches[28:], share())
    ended = run.states()
    ranks = dist.get_world_size()
    numbers = [f"{number:05}-of-{ranks:05}" for number in range(1, ranks + 1)]
    shards = [f"{name}-{part}.safetensors" for name in ("model", "state") for part in numbers]
    plain = ["SHA256SUMS", "index.json", "manifest.json", "state.json", "structure.json"]
    assert sorted(file.name for file in path.iterdir()) == sorted([*plain, *shards])
    mine = load_file(path / shards[dist.get_rank()])
    for name, value in run.model.named_parameters():
        assert len(mine[name]) == len(saved[name][own_rows(len(saved[name]), value)])

    again = Started(folder, shard(build()), shard(build()))
    assert again.checkpoints.resume() == {"step": 28}
    assert again.shadow.rank == dist.get_rank()
    assert_close(again.states(), saved)
    again.train(batches[28:], share())
    assert again.discovery.removals == run.discovery.removals
    assert_close(again.states(), ended)

    run.discovery.finish()
    later = run.checkpoints.save(45)
    saved_later = run.states()
    run.train_on(batches[:5], share())
    fewer = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("apart", "together"))
    group = fewer["together"]
    count = ranks // 2
    each = 16 // count
    part = slice(each * group.get_local_rank(), each * group.get_local_rank() + each)
    for over, its in ((group, part), (None, slice(None))):
        for there, expected in ((path, saved), (later, saved_later)):
            networks = [build() if over is None else shard(build(), over) for _ in range(2)]
            other = Started(folder, *networks)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".* processes wrote it", GuyotWarning)
                other.checkpoints.resume(there)
            assert_close(other.states(), expected)
        other.train_on(batches[:5], its)  # without gates there is no chance
        assert_close(other.states(), run.states(), rtol=1e-6)


def what_one_process_cannot_write_nobody_keeps() -> None:
    """The disk of the second process is full; then what it wrote is lost, or of another step."""
    folder, rank = common_folder(), dist.get_rank()
    run = Started(folder, shard(build()), shard(build()))
    first = run.checkpoints.save(1, {"at": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    said = "No space left" if rank == 1 else "another process could not write its part"
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr("guyot.core.storage.files.save_file", full)
        with pytest.raises(StorageError, match=said):
            run.checkpoints.save(2)
    dist.barrier()
    assert [*folder.iterdir()] == [first]

    def refused(match: str) -> None:
        dist.barrier()
        again = Started(folder, shard(build()), shard(build()))
        with pytest.raises(GuyotError, match=match):
            again.checkpoints.resume(first)
        dist.barrier()

    second = run.checkpoints.save(2, {"at": 2})
    name = f"state-00002-of-{dist.get_world_size():05}.safetensors"
    kept = (first / name).read_bytes()
    dist.barrier()
    elsewhere = "ends because another one could not begin"
    if rank == 0:
        (first / name).write_bytes((second / name).read_bytes())
    refused(rf"{name} is of step 2, and model-00001.* of step 1" if rank == 1 else elsewhere)
    if rank == 0:
        (first / name).write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    refused(f"{name} is damaged" if rank == 1 else elsewhere)
    if rank == 0:
        (first / name).unlink()
    refused(f"{name} is missing: this is no whole checkpoint")


def refused(model: nn.Module, match: str) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with pytest.raises(UnsupportedError, match=match):
        Discovery(model, EXAMPLE, optimizer, total_steps=STEPS, target=0.5)


def what_cannot_be_followed_is_refused() -> None:
    model = build()
    fully_shard(model[1], mesh=mesh())
    refused(model, r"0\.weight is whole while .* nobody averages its gradient: call fully_sh")
    model = build()
    fully_shard(model, mesh=mesh(), offload_policy=CPUOffloadPolicy(pin_memory=False))
    refused(model, r"0\.weight is offloaded to the CPU: leave out CPUOffloadPolicy")
    model = nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 4)).double()

    def columns(parameter: nn.Parameter) -> Shard:
        return Shard(parameter.dim() - 1 if len(parameter) == 4 else 0)

    fully_shard(model, mesh=mesh(), shard_placement_fn=columns)
    refused(model, r"2\.weight is placed as .* leave out shard_placement_fn")
    model = build()

    def rows(_: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        for key, value in module.named_parameters(recurse=False):
            module.register_parameter(
                key, nn.Parameter(distribute_tensor(value, device_mesh, [Shard(0)]))
            )

    distribute_module(model, mesh(), rows)
    refused(model, r"0\.weight is sharded over processes, and not by fully_shard \(FSDP2\)")

    model = build()
    with pytest.raises(
        UnsupportedError, match=r"0\.weight .*: find its structures before fully_sh"
    ):
        find_structures(shard(build()), EXAMPLE)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    discovery = discovery_of(model, optimizer)
    train(model, optimizer, discovery, data(2), share())
    shard(model)
    optimizer.step()
    with pytest.raises(UnsupportedError, match=r"must happen before the run begins; call fully_sh"):
        discovery.step()


def large_models_are_not_gathered() -> None:
    """A model of many numbers is verified on a twin; one process without a twin is enough."""
    expected = find_structures(build(), EXAMPLE)
    gathers: list[object] = []

    def counted(tensor: Tensor) -> Tensor:
        gathers.append(tensor)
        return gathered(tensor)

    def found() -> Structures:
        model = shard(build())
        return discovery_of(model, torch.optim.SGD(model.parameters(), 0.05)).original

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guyot.structures.trace.LARGE", 0)
        patch.setattr("guyot.core.parallel.sharding.gathered", counted)
        assert found() == expected
        assert not gathers
        if dist.get_rank() == 0:
            patch.setattr("guyot.structures.discover.narrow_twins", lambda *_: iter(()))
        assert found() == expected
        assert gathers


def lightning() -> None:
    """Lightning shards by `configure_model`; the callback finds a structure, but does not save."""
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.utils.data import DataLoader, TensorDataset

    from guyot.discovery.integrations.lightning import DiscoveryCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = build().float()

        def configure_model(self) -> None:
            assert self.device_mesh is not None
            shard(self.net, self.device_mesh["data_parallel"])

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-2)

    generator = torch.Generator().manual_seed(dist.get_rank())
    samples = TensorDataset(torch.randn(8 * STEPS, 7, generator=generator))

    inputs = (torch.ones(2, 7),)
    config = DiscoveryConfig(round_to=1)
    callback = DiscoveryCallback("net", inputs, target=0.5, config=config)
    module = Module()
    strategy = ModelParallelStrategy(dist.get_world_size(), 1)
    trainer = fitted_by_lightning(module, DataLoader(samples, 8), callback, strategy)
    discovery = callback.discovery
    assert discovery is not None and discovery.finished and discovery.standing.step == STEPS
    assert discovery.macs < 0.6 * discovery.full_macs
    assert isinstance(module.net, FSDPModule)
    network = rebuild(build().float(), inputs, discovery.structure)
    assert {name: p.shape for name, p in network.named_parameters()} == {
        name: p.shape for name, p in module.net.named_parameters()
    }
    with pytest.warns(GuyotWarning, match=r"of a sharded network .*cannot resume: give strategy="):
        callback.on_save_checkpoint(trainer, module, {})
    trainer.ckpt_path = "x"
    with pytest.raises(UnsupportedError, match=r"ckpt_path='x' with ModelParallelStrategy: a disc"):
        callback.on_fit_start(trainer, module)


SCENARIOS: dict[str, Callable[[], None]] = {
    scenario.__name__: scenario
    for scenario in (
        the_result_is_that_of_one_process,
        surgery_follows_in_blocks,
        what_certificates_need,
        large_models_are_not_gathered,
        what_cannot_be_followed_is_refused,
        runs_resume,
        what_one_process_cannot_write_nobody_keeps,
    )
}
THOROUGH: dict[str, Callable[[], None]] = SCENARIOS | {
    scenario.__name__: scenario
    for scenario in (
        surgery_follows_everywhere,
        policies,
        replicas_of_shards,
        lightning,
    )
}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or [*SCENARIOS], THOROUGH)
