"""What two real processes do together: `tests/core/test_parallel.py` starts them by torchrun.

Every function of `SCENARIOS` runs in both processes at once; what it asserts, both must find true.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from cases import CASES, random_plan
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from guyot import Discovery, DiscoveryConfig, GuyotWarning, UnsupportedError, find_structures
from guyot.core.errors import ParallelError
from guyot.core.parallel import Ranks, resized
from guyot.core.types import KeepPlan, Structures
from guyot.planning.benefits import SideMeans, curvature
from guyot.planning.evidence import Evidence
from guyot.surgery import operate

CASE = CASES["cifar"]
STEPS = 100
EXAMPLE = torch.ones(2, 7, dtype=torch.float64)


def everywhere(values: Tensor) -> list[Tensor]:
    """A tensor as it is in every process."""
    found = [torch.zeros_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(found, values.contiguous())
    return found


def same(*tensors: Tensor) -> bool:
    first, *others = everywhere(torch.cat([t.detach().double().flatten() for t in tensors]))
    return all(torch.equal(first, other) for other in others)


def start(
    case: str = "cifar", config: DiscoveryConfig | None = None, **options: Any
) -> tuple[DistributedDataParallel, torch.optim.Optimizer, Discovery]:
    torch.manual_seed(0)
    model = DistributedDataParallel(CASES[case].build().train(), **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    discovery = Discovery(
        model,
        (CASES[case].inputs(),),
        optimizer,
        total_steps=STEPS,
        target=0.5,
        config=config or DiscoveryConfig(round_to=1, estimator="two-sided"),
    )
    torch.manual_seed(1 + dist.get_rank())  # every rank has data of its own
    return model, optimizer, discovery


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    discovery: Discovery,
    steps: int,
    inputs: Callable[[], Tensor] = CASE.inputs,
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs()).square().mean().backward()
        optimizer.step()
        discovery.step()


def one_network_comes_out(case: str = "cifar", **options: Any) -> None:
    model, optimizer, discovery = start(case, **options)
    average = AveragedModel(model.module)
    discovery.follow(average)
    with_gates = different = 0
    for _ in range(STEPS):
        train(model, optimizer, discovery, 1, CASES[case].inputs)
        average.update_parameters(model.module)
        if discovery._gates is not None:
            assert same(*discovery._controller.decisions)
            with_gates += 1
            different += not same(discovery._gates.sampled)
    assert different > with_gates / 2
    assert discovery.finish() is model.module
    assert len(discovery.removals) > 3
    assert abs(discovery.macs / discovery.full_macs - 0.5) < 0.02
    assert same(*model.parameters())
    assert same(*average.parameters())
    assert [p.shape for p in average.parameters()] == [p.shape for p in model.parameters()]
    assert same(*[entry["momentum_buffer"] for entry in optimizer.state.values()])


def static_graph() -> None:
    one_network_comes_out("mlp", static_graph=True)


def other_buckets() -> None:
    one_network_comes_out("mlp", find_unused_parameters=True, gradient_as_bucket_view=True)


class Aside(nn.Module):
    """A head that no loss reaches, of a width that shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(7, 32), nn.ReLU())
        self.head, self.aside = nn.Linear(32, 3), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.head(x), self.aside(x)


def unused_parameters() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(Aside(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    config = DiscoveryConfig(round_to=1, estimator="two-sided")
    discovery = Discovery(
        model, (torch.ones(2, 7),), optimizer, total_steps=STEPS, target=0.5, config=config
    )
    torch.manual_seed(1 + dist.get_rank())
    for step in range(STEPS):
        optimizer.zero_grad()
        head, aside = model(torch.randn(8, 7))
        # in a third of the steps, and then in one of the processes only, the other head has a loss
        used = step % 3 == 0 and dist.get_rank() == step % 2
        (head.square().mean() + (aside.square().mean() if used else 0)).backward()
        optimizer.step()
        discovery.step()
    left = discovery.finish()
    assert left.aside.in_features == left.head.in_features < 32
    assert same(*left.parameters())


def gates_that_are_off() -> None:
    """A layer and units with gate 0 on one rank get gradients of 0 there; none is unused."""
    model, optimizer, discovery = start()
    train(model, optimizer, discovery, 15)
    gates = discovery._gates
    assert gates is not None
    gates.sampled.fill_(1)
    if dist.get_rank() == 1:
        gates.sampled.zero_()
    optimizer.zero_grad()
    model(CASE.inputs()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    discovery.step()
    assert discovery.skipped == 0
    assert same(*model.parameters())


def few(structures: Structures, seed: int) -> KeepPlan:
    """Take a few units of every group."""
    generator = torch.Generator().manual_seed(seed)
    kept: dict[int, Tensor] = {}
    for number, group in enumerate(structures.groups):
        order = torch.randperm(group.size, generator=generator)
        kept[number] = order[group.size // 40 :].sort().values
    return KeepPlan(kept, frozenset())


def nothing_leaks() -> None:
    """After every surgery each gradient is sent once, by one hook, and old buckets are freed."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(16, 1500), nn.ReLU(), nn.Linear(1500, 1500), nn.ReLU(), nn.Linear(1500, 4)
    )
    model = DistributedDataParallel(network)
    sent: list[int] = []

    def counting(state, bucket):  # DDP reads annotations, and takes no strings for types
        state.append(bucket.buffer().numel())
        flat = bucket.buffer().div_(dist.get_world_size())
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        return work.get_future().then(lambda future: future.value()[0])

    model.register_comm_hook(sent, counting)
    structures = find_structures(network, (torch.ones(2, 16),))
    process, memory = psutil.Process(), []
    for seed in range(20):
        model.zero_grad()
        sent.clear()
        x = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))
        model(x).square().mean().backward()
        assert sum(sent) == sum(p.numel() for p in network.parameters())
        plan = few(structures, seed)
        with resized(model):
            structures = operate(network, structures, plan).structures
        memory.append(process.memory_info().rss)
    assert network[0].out_features < 1000
    bucket = 4 * 1500**2
    assert max(memory[5:]) < memory[4] + bucket, memory


def gradients_are_averaged_after_surgery() -> None:
    torch.manual_seed(0)
    network = CASES["mobile"].build().double().train()
    model = DistributedDataParallel(network)
    x = CASES["mobile"].inputs().double()
    structures = find_structures(network, (x,))
    model(x).square().mean().backward()
    with resized(model):
        operate(network, structures, random_plan(structures, seed=3))
    alone = copy.deepcopy(network)
    network.zero_grad()
    alone.zero_grad()
    x = x + dist.get_rank()
    model(x).square().mean().backward()
    alone(x).square().mean().backward()
    for mine, single in zip(network.parameters(), alone.parameters(), strict=True):
        assert single.grad is not None
        mean = torch.stack(everywhere(single.grad)).mean(0)
        torch.testing.assert_close(mine.grad, mean, rtol=1e-12, atol=1e-14)


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(STEPS, 16, 7, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (STEPS, 16), generator=generator)


def learn(model: nn.Module, discovery: Discovery | None, optimizer: Any, share: slice) -> None:
    x, labels = samples()
    for inputs, wanted in zip(x, labels, strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[share]), wanted[share]).backward()
        optimizer.step()
        if discovery is not None:
            discovery.step()


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 24), nn.ReLU(), nn.Linear(24, 3)).double()


def without_gates_it_is_plain_training() -> None:
    """nu = 0: two halves of a batch on two ranks and the whole batch on one give the same."""
    rank = dist.get_rank()
    model, alone = DistributedDataParallel(small()), small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    discovery = Discovery(model, (EXAMPLE,), optimizer, total_steps=STEPS, nu=0)
    learn(model, discovery, optimizer, slice(8 * rank, 8 * rank + 8))
    discovery.finish()
    learn(alone, None, torch.optim.SGD(alone.parameters(), 0.1, momentum=0.9), slice(None))
    for mine, single in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, single, rtol=1e-10, atol=1e-12)


def the_same_gates_give_the_same_run() -> None:
    """Where all ranks sample alike, two halves of a batch do to gates what the whole batch does."""
    rank = dist.get_rank()

    def discover(model: nn.Module) -> tuple[Any, Discovery]:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=1e-3)
        discovery = Discovery(
            model,
            (EXAMPLE,),
            optimizer,
            total_steps=STEPS,
            nu=0.5,
            config=DiscoveryConfig(round_to=1, estimator="two-sided"),
        )
        generators = torch.Generator().manual_seed(3)
        discovery._ranks.stream = lambda generator: generators
        return optimizer, discovery

    model, alone = DistributedDataParallel(small()), small()
    optimizer, discovery = discover(model)
    learn(model, discovery, optimizer, slice(8 * rank, 8 * rank + 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuyotWarning)  # this model is alone on purpose
        other_optimizer, other = discover(alone)
    learn(alone, other, other_optimizer, slice(None))
    assert discovery.removals == other.removals
    assert discovery.removals
    discovery.finish()
    other.finish()
    for mine, single in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, single, rtol=1e-4, atol=1e-6)


def sums_are_means_over_ranks() -> None:
    model, optimizer, discovery = start()
    train(model, optimizer, discovery, 20)
    gates = discovery._gates
    assert gates is not None
    model(CASE.inputs()).square().mean().backward()
    evidence = Evidence(len(gates.sampled), "cpu")
    evidence.add(gates.gradient, gates.sampled, gates.predictions, discovery._ranks.mean)
    sums = evidence.take().sums
    sampled = torch.stack(everywhere(gates.sampled))
    gradient = torch.stack(everywhere(gates.gradient))
    torch.testing.assert_close(sums.count_one, sampled.mean(0))
    torch.testing.assert_close(sums.count_zero, 1 - sampled.mean(0))
    torch.testing.assert_close(sums.sum_one, (gradient * sampled).mean(0))
    torch.testing.assert_close(sums.sum_zero, (gradient * (1 - sampled)).mean(0))


def norms_are_those_of_ranks_with_the_gate_on() -> None:
    """The certificate's gradient bound must not shrink because other ranks sampled 0."""
    model, optimizer, discovery = start("mlp")
    train(model, optimizer, discovery, 15, CASES["mlp"].inputs)
    gates = discovery._gates
    assert gates is not None
    torch.manual_seed(9)
    x = CASES["mlp"].inputs()
    norms = []
    for off in (None, 1):
        optimizer.zero_grad()
        gates.zero_grad()
        gates.sampled.fill_(1)
        if dist.get_rank() == off:
            gates.sampled[2] = 0
        model(x).square().mean().backward()
        evidence = Evidence(len(gates.sampled), "cpu")
        latest = evidence.add(
            gates.gradient, gates.sampled, gates.predictions, discovery._ranks.mean
        )
        norms.append(gates.norms([gates.squares(model.parameters())], latest.active, latest.share))
    both, one = norms
    assert float(both.gradient[2]) > 0
    torch.testing.assert_close(one.gradient[2], both.gradient[2], rtol=0.1, atol=0)
    torch.testing.assert_close(one.weight, both.weight)


def statistics_are_pooled() -> None:
    """Ranks with different numbers of batches evaluate with the statistics of all batches."""
    model, optimizer, discovery = start()
    train(model, optimizer, discovery, 20)
    rank = dist.get_rank()
    torch.manual_seed(9)
    every = [CASE.inputs(8) for _ in range(3)]
    mine = every[:2] if rank == 0 else every[2:]
    before = [buffer.clone() for buffer in model.buffers()]
    with discovery.evaluation(mine) as network:
        assert network is model.module
        pooled = [buffer.clone() for buffer in network.buffers() if buffer.is_floating_point()]
        assert same(*pooled)
        outputs = network(every[0])
    assert all(torch.equal(*pair) for pair in zip(before, model.buffers(), strict=True))
    single = Ranks()
    discovery._ranks, ranks = single, discovery._ranks
    with discovery.evaluation(every) as network:
        torch.testing.assert_close(network(every[0]), outputs, rtol=1e-3, atol=1e-5)
    discovery._ranks = ranks
    with discovery.evaluation([]):  # no rank has any: the running ones
        assert all(torch.equal(*pair) for pair in zip(before, model.buffers(), strict=True))
    if rank == 0:
        with discovery.evaluation() as network:  # nothing is sent
            network(every[0])
    train(model, optimizer, discovery, 2)


def ranks_that_differ_are_named() -> None:
    model, optimizer, discovery = start()
    train(model, optimizer, discovery, 15)
    if dist.get_rank() == 1:
        discovery._controller.state.theta[0] -= 1e-6
    found = r"rank 1 of 2 differs from rank 0 in the keep probabilities at step \d+: all processes"
    with pytest.raises(ParallelError, match=found):
        train(model, optimizer, discovery, 10)
    assert not discovery.removals


def other_settings_are_refused() -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(CASE.build())
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with pytest.raises(ParallelError, match="rank 1 of 2 differs from rank 0 in settings or model"):
        Discovery(
            model,
            (CASE.inputs(),),
            optimizer,
            total_steps=STEPS,
            target=0.5 + 0.1 * dist.get_rank(),
        )


def wrappers_that_cannot_follow_are_refused() -> None:
    def refused(model: nn.Module, match: str) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        with pytest.raises(UnsupportedError, match=match):
            Discovery(model, (CASE.inputs(),), optimizer, total_steps=STEPS, target=0.5)

    model = DistributedDataParallel(CASE.build())
    model.register_comm_hook(powerSGD_hook.PowerSGDState(None), powerSGD_hook.powerSGD_hook)
    refused(model, "powerSGD_hook keeps errors of the gradients' shapes: use another")
    model = DistributedDataParallel(CASE.build())
    model._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS)
    refused(model, "built-in communication hook .*FP16_COMPRESS would be lost")
    model = DistributedDataParallel(CASE.build())
    model.mixed_precision = object()
    refused(model, "with mixed_precision keeps copies of the parameters; use torch.autocast")


def a_bare_model_is_noticed() -> None:
    model = CASE.build()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with pytest.warns(GuyotWarning, match="2 processes, but .* each process discovers a structure"):
        Discovery(model, (CASE.inputs(),), optimizer, total_steps=STEPS, target=0.5)


def a_state_fits_any_number_of_ranks() -> None:
    """2 -> 1 -> 2: what one rank saved, one and two go on from."""
    model, optimizer, discovery = start()
    train(model, optimizer, discovery, 30)
    state = copy.deepcopy([part.state_dict() for part in (discovery, model.module, optimizer)])

    again, its_optimizer, resumed = start()
    for part, saved in zip((resumed, again.module, its_optimizer), state, strict=True):
        part.load_state_dict(saved)
    torch.manual_seed(7 + dist.get_rank())
    train(model, optimizer, discovery, 40)
    torch.manual_seed(7 + dist.get_rank())
    train(again, its_optimizer, resumed, 40)
    assert discovery.removals == resumed.removals
    for mine, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, other)

    alone = CASE.build().train()
    optimizer = torch.optim.SGD(alone.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuyotWarning)
        discovery = Discovery(
            alone,
            (CASE.inputs(),),
            optimizer,
            total_steps=STEPS,
            target=0.5,
            config=DiscoveryConfig(round_to=1, estimator="two-sided"),
        )
    for part, saved in zip((discovery, alone, optimizer), state, strict=True):
        part.load_state_dict(saved)
    train(alone, optimizer, discovery, 70)
    discovery.finish()
    assert abs(discovery.macs / discovery.full_macs - 0.5) < 0.02


def accelerate() -> None:
    from accelerate import Accelerator

    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    assert accelerator.num_processes == 2
    model, optimizer = CASE.build().train(), None
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    config = DiscoveryConfig(round_to=1, estimator="two-sided")
    discovery = Discovery(
        model, (CASE.inputs(),), optimizer, total_steps=STEPS, target=0.5, config=config
    )
    torch.manual_seed(1 + accelerator.process_index)
    for _ in range(2 * STEPS):
        with accelerator.accumulate(model):
            accelerator.backward(model(CASE.inputs()).square().mean())
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                discovery.step()
    left = discovery.finish()
    assert left is accelerator.unwrap_model(model)
    assert abs(discovery.macs / discovery.full_macs - 0.5) < 0.02
    assert same(*left.parameters())


def fisher_is_that_of_one_process() -> None:
    """Two halves of a batch tell of gates what the whole batch does: both orders of the benefit."""
    rank = dist.get_rank()
    x, labels = samples()

    def measured(model: nn.Module, share: slice) -> SideMeans:
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        config = DiscoveryConfig(round_to=1, estimator="fisher")
        discovery = Discovery(
            model, (EXAMPLE,), optimizer, total_steps=STEPS, nu=0.5, config=config
        )
        means = SideMeans.start(24)
        for step, (inputs, wanted) in enumerate(zip(x, labels, strict=True)):
            if discovery._gates is not None:
                discovery._gates.zero_grad()
            nn.functional.cross_entropy(model(inputs[share]), wanted[share]).backward()
            if discovery._gates is None:
                optimizer.step()
                discovery.step()
            else:
                assert step >= 10 and bool(discovery._gates.sampled.all())
                gates, evidence = discovery._gates, Evidence(24, "cpu")
                evidence.add(
                    gates.gradient, gates.sampled, gates.predictions, discovery._ranks.mean
                )
                means = means.updated(evidence.take().sums, decay=0.99)
        return means

    together = measured(DistributedDataParallel(small()), slice(8 * rank, 8 * rank + 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuyotWarning)  # this model is alone on purpose
        alone = measured(small(), slice(None))
    assert same(curvature(together), together.mean_one)
    torch.testing.assert_close(together.mean_one, alone.mean_one, rtol=1e-4, atol=1e-7)
    ratio = float(curvature(together).sum() / curvature(alone).sum())
    assert ratio == pytest.approx(1, abs=0.2)


def of_this_rank(count: int) -> Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(dist.get_rank()))


def fitted_by_lightning(module: Any, samples: Any, callback: Any, strategy: Any) -> Any:
    """Train for an epoch with the processes that are there; the trainer."""
    import lightning.pytorch as pl

    trainer = pl.Trainer(
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=strategy,
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of Lightning
        trainer.fit(module, samples)
    return trainer


def lightning() -> None:
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader, TensorDataset

    from guyot.discovery.integrations.lightning import DiscoveryCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            block = Branched(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12)))
            self.net = nn.Sequential(nn.Linear(7, 12), block, nn.ReLU(), nn.Linear(12, 3))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)

    config = DiscoveryConfig(round_to=1)
    callback = DiscoveryCallback("net", (torch.ones(2, 7),), target=0.5, config=config)
    module = Module()
    samples = DataLoader(TensorDataset(of_this_rank(8 * STEPS)), 8)
    trainer = fitted_by_lightning(module, samples, callback, "ddp")
    discovery = callback.discovery
    assert trainer.world_size == 2 and discovery is not None
    assert discovery.finished and discovery.standing.step == STEPS
    assert discovery.macs < 0.6 * discovery.full_macs and module.net[0].in_features == 7
    assert same(*module.parameters())
    with pytest.raises(UnsupportedError, match=r"on 2 devices with .*: give Trainer\(str"):
        trainer_without_wrapper(callback, module)


class Branched(nn.Module):
    """A residual branch."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def trainer_without_wrapper(callback: Any, module: nn.Module) -> None:
    """What the callback sees under a strategy that wraps in something else."""
    from types import SimpleNamespace

    callback.on_fit_start(SimpleNamespace(world_size=2, strategy=SimpleNamespace(model=module)), 0)


def trainer() -> None:
    import tempfile

    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

    from guyot.discovery.integrations.transformers import DiscoveryCallback

    class Net(PreTrainedModel):
        config_class = PretrainedConfig

        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            self.up, self.down = nn.Linear(7, 32), nn.Linear(32, 3)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.down(self.up(x).relu())
            if labels is None:
                return {"logits": logits}
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    data = [
        {"x": x, "labels": x.argmax() % 3}
        for x in torch.randn(16 * STEPS, 7, generator=torch.Generator().manual_seed(9))
    ]
    shared = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(shared)

    def fit(resume: str | None = None) -> tuple[nn.Module, Discovery]:
        torch.manual_seed(0)
        model = Net(PretrainedConfig())
        config = DiscoveryConfig(round_to=1)
        callback = DiscoveryCallback({"x": torch.ones(2, 7)}, target=0.5, config=config)
        arguments = TrainingArguments(
            shared[0],
            use_cpu=True,
            num_train_epochs=1,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            save_strategy="steps",
            save_steps=60,
            report_to=[],
            disable_tqdm=True,
        )
        assert arguments.world_size == 2
        found = Trainer(model, arguments, train_dataset=data, callbacks=[callback])
        found.train(resume_from_checkpoint=resume)
        assert callback.discovery is not None and callback.discovery.finished
        return model, callback.discovery

    model, discovery = fit()
    assert discovery.macs == pytest.approx(0.5 * discovery.full_macs, rel=0.05)
    assert discovery.standing.step == STEPS and same(*model.parameters())
    again, resumed = fit(f"{shared[0]}/checkpoint-60")
    assert resumed.removals == discovery.removals
    for mine, other in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def compiled() -> None:
    """`torch.compile` around the wrapper."""
    torch.manual_seed(0)
    wrapped = DistributedDataParallel(CASES["mlp"].build().train())
    model = torch.compile(wrapped, backend="eager")
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.05)
    config = DiscoveryConfig(round_to=1, estimator="two-sided")
    inputs = CASES["mlp"].inputs
    discovery = Discovery(model, (inputs(),), optimizer, total_steps=STEPS, nu=0.05, config=config)
    train(model, optimizer, discovery, STEPS, inputs)
    assert discovery.finish() is wrapped.module
    assert same(*wrapped.parameters())


SCENARIOS: dict[str, Callable[[], None]] = {
    scenario.__name__: scenario
    for scenario in (
        one_network_comes_out,
        static_graph,
        other_buckets,
        unused_parameters,
        gates_that_are_off,
        nothing_leaks,
        gradients_are_averaged_after_surgery,
        without_gates_it_is_plain_training,
        the_same_gates_give_the_same_run,
        sums_are_means_over_ranks,
        norms_are_those_of_ranks_with_the_gate_on,
        statistics_are_pooled,
        ranks_that_differ_are_named,
        other_settings_are_refused,
        wrappers_that_cannot_follow_are_refused,
        a_bare_model_is_noticed,
        a_state_fits_any_number_of_ranks,
        accelerate,
        fisher_is_that_of_one_process,
        lightning,
        trainer,
        compiled,
    )
}


def main(
    folder: Path, names: list[str], scenarios: dict[str, Callable[[], None]] = SCENARIOS
) -> None:
    """Run scenarios; write what failed to a file per rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    outcome: dict[str, str | None] = {}
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", GuyotWarning)
                for end in ("nothing was removed", "everything that could go", "target=0.5 was"):
                    warnings.filterwarnings("ignore", end, GuyotWarning)
                scenarios[name]()
            outcome[name] = None
        except BaseException:  # noqa: BLE001  (reported by the test of that name)
            outcome[name] = traceback.format_exc()
    file = folder / f"{dist.get_rank()}.json"
    file.write_text(json.dumps(outcome))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or [*SCENARIOS])
