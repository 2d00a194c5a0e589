"""Cuts by torch-pruning that end at a number of MACs, and sparse training by it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arena.job import FromFull, Job, loss_of
from arena.task import EIGHT

MEASURED = 10
"""Training batches that gradients are measured on."""


def magnitude(p: int) -> Any:
    """Norms of grouped weights."""
    import torch_pruning as tp

    return tp.importance.GroupMagnitudeImportance(p=p)


def taylor(job: Job) -> Any:
    """First order: weight times gradient, gradients of `MEASURED` batches added up."""
    import torch_pruning as tp

    job.model.zero_grad()
    for inputs, labels in job.measuring(MEASURED):
        loss_of(job.model, inputs, labels)[0].backward()
    return tp.importance.GroupTaylorImportance()


def fisher(job: Job) -> Any:
    """Second order: squared weight times the mean squared gradient of single samples.

    torch-pruning 1.6.1 keeps the last sample only (`accumulate_grad` looks names up among
    tensors), so the mean is taken here and handed over where it looks for it.
    """
    import torch_pruning as tp

    parameters = dict(job.model.named_parameters())
    squares = {name: torch.zeros_like(value) for name, value in parameters.items()}
    count = 0
    job.model.eval()  # one sample has no batch statistics
    for inputs, labels in job.measuring(MEASURED):
        for one, label in zip(inputs[:64].split(1), labels[:64].split(1), strict=True):
            job.model.zero_grad()
            loss_of(job.model, one, label)[0].backward()
            for name, value in parameters.items():
                if value.grad is not None:
                    squares[name] += value.grad.square()
            count += 1
    job.model.train()
    for name, value in parameters.items():
        value.grad = squares[name] / count
    return tp.importance.GroupHessianImportance()


IMPORTANCES: dict[str, Callable[[Job], Any]] = {
    "l1": lambda _: magnitude(1),
    "l2": lambda _: magnitude(2),
    "taylor": taylor,
    "fisher": fisher,
}


def twin(model: nn.Module) -> nn.Module:
    """A copy that has the gradients as well."""
    other = copy.deepcopy(model)
    for mine, yours in zip(model.parameters(), other.parameters(), strict=True):
        yours.grad = None if mine.grad is None else mine.grad.clone()
    return other


@contextmanager
def _mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients on, as torch-pruning traces networks."""
    was = model.training
    model.eval()
    with torch.enable_grad():
        yield
    model.train(was)


def attention(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[nn.Module, ...], str]]:
    """Attention modules, the layers that give their heads, and the name of their number."""
    for module in model.modules():
        if hasattr(module, "query") and hasattr(module, "heads"):
            yield module, (module.query, module.key, module.value), "heads"
        elif hasattr(module, "qkv") and hasattr(module, "num_heads"):  # timm's
            yield module, (module.qkv,), "num_heads"


def _pruner(job: Job, model: nn.Module, importance: Any, scope: str, **ratios: Any) -> Any:
    import torch_pruning as tp

    heads = {
        layer: getattr(module, name)
        for module, layers, name in attention(model)
        for layer in layers
    }
    return tp.pruner.BasePruner(
        model,
        job.example,
        importance,
        global_pruning=scope != "uniform",
        isomorphic=scope == "isomorphic",
        round_to=EIGHT if job.run.rounded else None,
        ignored_layers=[last(model)],
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=False,
        max_pruning_ratio=0.98,
        **ratios,
    )


def last(model: nn.Module) -> nn.Module:
    """The layer that gives the logits."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def follow(model: nn.Module, pruner: Any) -> None:
    """Tell attention modules how many heads are left."""
    for module, layers, name in attention(model):
        setattr(module, name, pruner.num_heads[layers[0]])
        if hasattr(module, "attn_dim"):
            module.attn_dim = module.num_heads * module.head_dim


def cut_at(job: Job, importance: Any, scope: str, ratio: float) -> nn.Module:
    """A copy of the network without a share of the units.

    With the scope "uniform" exact widths are rounded at another point in each layer, as the
    narrower networks of a task are, so that nearly any number of MACs can be met.
    """
    model = twin(job.model)
    with _mode(model):
        ratios: dict[str, Any] = {"pruning_ratio": ratio, "head_pruning_ratio": ratio}
        if scope == "uniform" and not job.run.rounded:
            ratios["pruning_ratio_dict"] = shifted(model, ratio)
            ratios["head_pruning_ratio_dict"] = shifted_heads(model, ratio)
        pruner = _pruner(job, model, importance, scope, **ratios)
        pruner.step()
        follow(model, pruner)
    model.zero_grad()
    return model


def shifted(model: nn.Module, ratio: float) -> dict[nn.Module, float]:
    """The ratio of every layer, moved by less than a unit."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return {
        layer: moved(ratio, layer.weight.shape[0], (place + 0.5) / len(layers))
        for place, layer in enumerate(layers)
    }


def shifted_heads(model: nn.Module, ratio: float) -> dict[nn.Module, float]:
    """The ratio of heads of every attention, moved by less than a head."""
    found = list(attention(model))
    return {
        layer: moved(ratio, getattr(module, name), (place + 0.5) / len(found))
        for place, (module, layers, name) in enumerate(found)
        for layer in layers
    }


def moved(ratio: float, width: int, shift: float) -> float:
    """A ratio that leaves ``width * (1 - ratio) + shift`` units, rounded down, at least one."""
    kept = max(1, int(width * (1 - ratio) + shift))
    return max(1 - (kept + 0.01) / width, 0.0)


def fitted(job: Job, target: float, cut: Callable[[float], nn.Module]) -> nn.Module:
    """The cut by bisection whose MACs come closest to a share of the full network's."""
    wanted = target * job.task.full_macs
    low, high = 0.0, 1.0
    found: list[tuple[float, nn.Module]] = []
    for _ in range(11):
        middle = (low + high) / 2
        try:
            model = cut(middle)
            macs = job.task.macs(model)
        except RuntimeError:  # an attention without heads, which torch-pruning leaves behind
            high = middle
            continue
        found.append((abs(macs - wanted), model))
        low, high = (middle, high) if macs > wanted else (low, middle)
    return min(found, key=lambda pair: pair[0])[1]


@dataclass(frozen=True)
class Cut(FromFull):
    """Train the full network, cut it once, train on with a new optimiser.

    ``importance`` one of `IMPORTANCES`; ``scope`` "uniform" (the same ratio in all layers),
    "global" or "isomorphic" (one ranking for all layers, or for those of the same kind); ``at``
    the share of the steps after which the cut comes; ``sparse`` adds the penalty of DepGraph's
    group norms until then.
    """

    importance: str
    scope: str
    at: float
    sparse: bool = False

    def begin(self, job: Job) -> "CutInProgress":
        return CutInProgress(self, job)


class CutInProgress:
    """A `Cut` in one run."""

    def __init__(self, cut: Cut, job: Job) -> None:
        self.cut, self.job = cut, job
        self.when = round(cut.at * job.total)
        self.penalty: Any = None
        if not self.when:
            self._carry_out()
        elif cut.sparse:
            self.penalty = self._sparse()

    def _sparse(self) -> Any:
        import torch_pruning as tp

        model = self.job.model
        with _mode(model):
            return tp.pruner.GroupNormPruner(
                model,
                self.job.example,
                magnitude(2),
                reg=1e-4,
                global_pruning=self.cut.scope != "uniform",
                ignored_layers=[last(model)],
            )

    def before_optimizer(self) -> None:
        if self.penalty is not None:
            self.penalty.regularize(self.job.model)

    def after_step(self, loss: Callable[[], Tensor]) -> None:
        if self.job.step == self.when:
            self.penalty = None
            self._carry_out()

    def _carry_out(self) -> None:
        importance = IMPORTANCES[self.cut.importance](self.job)
        self.job.take(
            fitted(
                self.job,
                self.job.run.target,
                lambda ratio: cut_at(self.job, importance, self.cut.scope, ratio),
            )
        )

    def finish(self) -> dict[str, Any]:
        return {}
