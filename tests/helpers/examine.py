"""Examine one model: what guyot finds in it, and whether it survives a removal.

    python tests/helpers/examine.py guyot torchvision/resnet18
    python tests/helpers/examine.py torch-pruning torchvision/resnet18

Prints one JSON object. `examine` is what tests call; a process of its own is for models that are
large, and for other libraries.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from cases import clamped
from compared import doubled, perturb
from others import OTHERS, Other
from thorough import checks_of, more_problems
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO, Entry

from guyot import GuyotWarning, find_structures
from guyot.core.axis import best
from guyot.core.inputs import Inputs, call_model, changed
from guyot.core.types import KeepPlan, Structures
from guyot.costs.complexity import Complexity
from guyot.surgery import operate

ENTRIES: dict[str, Entry] = ZOO | OTHERS
THIRD = 1 / 3
Json = dict[str, Any]


def tensors_in(output: Any) -> Iterator[Tensor]:
    """All floating point tensors of whatever a `forward` returns."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        yield from tensors_in(list(output.values()))
    elif isinstance(output, (list, tuple)):
        for item in output:
            yield from tensors_in(item)


def count_macs(model: nn.Module, inputs: Inputs) -> int | float:
    """MACs of one sample: half of what PyTorch's own counter of FLOPs says for a batch of one.

    The counter knows neither the fused attention of a CPU, nor its fused LSTM, nor its grouped
    products of experts, so those are switched off.
    """
    fused_lstm = any(isinstance(module, nn.LSTM) for module in model.modules())
    counter = FlopCounterMode(display=False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:  # the counter fails where a module is called with a parameter
        parameter.requires_grad_(False)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    experts = hasattr(model, "set_experts_implementation") and model.get_experts_implementation()
    if experts:
        model.set_experts_implementation("eager")
    plain = torch.backends.mkldnn.flags(enabled=not fused_lstm)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH), plain:
        call_model(model.eval(), changed(inputs, lambda x: x[:1].clone()))
    torch.backends.mha.set_fastpath_enabled(fused)
    if experts:
        model.set_experts_implementation(experts)
    for parameter in trainable:
        parameter.requires_grad_(True)
    macs = counter.get_total_flops() / 2
    return int(macs) if macs.is_integer() else macs


def a_third(structures: Structures, seed: int = 0) -> KeepPlan:
    """Two thirds of every group's units and of the layers stay, by chance."""
    generator = torch.Generator().manual_seed(seed)
    kept: dict[int, Tensor] = {}
    for number, group in enumerate(structures.groups):
        blocks = structures.blocks_of(group)
        count = blocks * max(1, round(group.size // blocks * (1 - THIRD)))
        kept[number] = best(torch.rand(group.size, generator=generator), count, blocks)
    order = torch.randperm(len(structures.layers), generator=generator)
    return KeepPlan(kept, frozenset(order[: round(len(order) * THIRD)].tolist()))


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """What the model says in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return [output.clone() for output in tensors_in(called(model, inputs))]


def called(model: nn.Module, inputs: Inputs) -> Any:
    """What a model returns; its inputs stay as they are."""
    return call_model(model, changed(inputs, Tensor.clone))


def masked_against_sliced(
    model: nn.Module,
    structures: Structures,
    plan: KeepPlan,
    inputs: Inputs,
    double: bool = True,
) -> tuple[float, Structures]:
    """Largest relative difference between the gated and the sliced model, both in float64.

    The model comes back sliced, in float32. One that has no float64 is compared in float32, and
    the difference is divided by 1000.
    """
    exact = inputs
    if double:
        model.double()
        exact = doubled(inputs)
    perturb(model)
    gates = clamped(model, structures, plan)
    masked = outputs_of(model, exact)
    gates.detach()
    left = operate(model, structures, plan).structures
    sliced = outputs_of(model, exact)
    model.float()
    return max(
        float((a - b).abs().max() / (1 + a.abs().max())) * (1 if double else 1e-3)
        if a.shape == b.shape
        else float("inf")
        for a, b in zip(masked, sliced, strict=True)
    ), left


def train_and_evaluate(model: nn.Module, inputs: Inputs) -> None:
    """One training step with momentum, then one evaluation; all that comes out is finite."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3, 0.9)
    model.train()
    loss = torch.stack([out.square().mean() for out in tensors_in(called(model, inputs))]).sum()
    loss.backward()
    optimizer.step()
    assert bool(loss.isfinite()), f"the loss is {float(loss)}"
    assert all(bool(out.isfinite().all()) for out in outputs_of(model, inputs))


def prunable(structures: Structures) -> tuple[float, float]:
    """Shares of MACs and parameters that the smallest network (width 1, no layers) lacks."""
    cost = Complexity(structures)
    ones = torch.ones(structures.index.total)
    least = torch.zeros(structures.index.total)
    for number, group in enumerate(structures.groups):
        blocks = structures.blocks_of(group)
        least[structures.index.units(number)][:: group.size // blocks] = 1
    return tuple(  # pyright: ignore[reportReturnType]
        1 - float(of(least)) / float(of(ones)) for of in (cost.macs, cost.params)
    )


def examine(name: str, found: Json) -> None:
    """All that the table says about one model.

    Args:
        name: of an entry.
        found: filled in step by step, so that it says how far a failure came:
            `groups`, `units`, `layers` found and `layers_expected`; `warnings` about what was
            excluded; `frozen`, reason -> names; shares that are prunable; MACs by polynomial and by
            PyTorch, full and after a third has gone; the largest difference between masked and
            sliced outputs; `seconds` (CPU) of discovery; `problems`; `trained` after all that;
            `checks` of other libraries' models, check -> differences.
    """
    entry = ENTRIES[name]
    found["trained"] = False
    model, inputs = entry.build(), entry.inputs()
    expected = entry.layers(model)
    macs = count_macs(model, inputs) + entry.between
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        structures = find_structures(model, inputs)
    seconds = time.process_time() - started
    excluded = [str(w.message) for w in caught if issubclass(w.category, GuyotWarning)]
    cost = Complexity(structures)
    found |= {
        "seconds": round(seconds, 2),
        "groups": len(structures.groups),
        "units": structures.index.offsets[-1],
        "layers": len(structures.layers),
        "layers_expected": expected,
        "warnings": excluded,
        "frozen": by_reason(structures),
        "macs": float(cost.macs(torch.ones(structures.index.total))),
        "macs_counted": macs,
        "params": sum(p.numel() for p in model.parameters()),
    }
    found["prunable_macs"], found["prunable_params"] = prunable(structures)
    plan = a_third(structures)
    found["difference"], left = masked_against_sliced(
        model, structures, plan, inputs, double=entry.double
    )
    found["macs_after"] = float(Complexity(left).macs(torch.ones(left.index.total)))
    found["macs_after_counted"] = count_macs(model, inputs) + entry.between
    found["problems"] = problems_of(found)
    if isinstance(entry, Other):
        found["checks"] = checks_of(entry, structures, plan)
        found["problems"] += more_problems(found["checks"])
    train_and_evaluate(model, inputs)
    found["trained"] = True


def by_reason(structures: Structures) -> dict[str, list[str]]:
    """What is frozen, by the reason."""
    result: dict[str, list[str]] = {}
    for frozen in structures.frozen:
        result.setdefault(frozen.reason, []).append(frozen.name)
    return result


def problems_of(found: Json) -> list[str]:
    """Why a model does not pass."""
    problems: list[str] = []
    if not found["groups"] and not found["layers"]:
        problems.append("nothing can go")
    if found["layers"] != found["layers_expected"]:
        problems.append(f"{found['layers']} layers of {found['layers_expected']}")
    for key, when in (("macs", "of the full"), ("macs_after", "of the smaller")):
        if found[key] != found[f"{key}_counted"]:
            problems.append(f"MACs {when} network: {found[key]} for {found[f'{key}_counted']}")
    if not found["difference"] < 1e-8:
        problems.append(f"masked and sliced differ by {found['difference']:.1e}")
    return problems


def torch_pruning(name: str, found: Json) -> None:
    """The same operation by torch-pruning: a third of the channels, a step, an evaluation."""
    import torch_pruning as tp

    entry = ENTRIES[name]
    model, inputs = entry.build(), entry.inputs()
    macs = count_macs(model, inputs)
    params = sum(p.numel() for p in model.parameters())
    classes = outputs_of(model, inputs)[0].shape[-1]
    ends = [m for m in model.modules() if getattr(m, "out_features", 0) == classes]
    ends += [m for m in model.modules() if getattr(m, "out_channels", 0) == classes]
    started = time.process_time()
    pruner = tp.pruner.BasePruner(
        model,
        inputs if len(inputs) > 1 else inputs[0],
        importance=tp.importance.RandomImportance(),
        pruning_ratio=THIRD,
        ignored_layers=ends,
        num_heads=heads_of(model),
        prune_num_heads=False,
        forward_fn=(lambda m, x: m(*x)) if len(inputs) > 1 else None,
        output_transform=lambda out: sum(t.sum() for t in tensors_in(out)),
    )
    pruner.step()
    follow_heads(model)
    found["seconds"] = round(time.process_time() - started, 2)
    found["macs"] = macs
    found["macs_after"] = count_macs(model, inputs)
    found["params"] = params
    found["params_after"] = sum(p.numel() for p in model.parameters())
    found["problems"] = ["nothing was pruned"] if found["macs_after"] >= macs else []
    train_and_evaluate(model, inputs)


QKV = "qkv q k v query key value q_proj k_proj v_proj q_lin k_lin v_lin".split()


def heads_of(model: nn.Module) -> dict[nn.Module, int]:
    """Projections to queries, keys and values and their number of heads, as its manual asks."""
    return {
        child: heads_in(module)
        for module in model.modules()
        for name, child in module.named_children()
        if name in QKV and isinstance(child, nn.Linear) and heads_in(module)
    }


def heads_in(module: nn.Module) -> int:
    """Attention heads of a module, 0 when it has none."""
    names = ("num_heads", "num_attention_heads", "n_heads")
    return next((n for name in names if isinstance(n := getattr(module, name, None), int)), 0)


def follow_heads(model: nn.Module) -> None:
    """Attributes of attention that its examples set by hand after pruning."""
    for module in model.modules():
        children = dict(module.named_children())
        child = next((children[name] for name in QKV if name in children), None)
        if heads_in(module) and isinstance(child, nn.Linear):
            width = child.out_features // (3 if "qkv" in children else 1)
            for name in ("head_dim", "attention_head_size"):
                if hasattr(module, name):
                    setattr(module, name, width // heads_in(module))
            for name in ("attn_dim", "all_head_size", "embed_dim"):
                if hasattr(module, name):
                    setattr(module, name, width)


METHODS: dict[str, Callable[[str, Json], None]] = {"guyot": examine, "torch-pruning": torch_pruning}


def result_of(method: str, name: str) -> Json:
    """What a method finds in a model; an exception is one more problem."""
    found: Json = {"problems": []}
    try:
        METHODS[method](name, found)
    except Exception as error:  # noqa: BLE001  (whatever goes wrong is the result)
        line = (str(error).strip().splitlines() or [""])[0]
        found["problems"].append(f"{type(error).__name__}: {line[:300]}")
    found["passed"] = not found["problems"]
    return found


def main() -> None:
    """Print the result for the method and model named on the command line."""
    method, name = sys.argv[1:]
    warnings.simplefilter("ignore")
    sys.stdout.write(json.dumps(result_of(method, name)))


if __name__ == "__main__":
    main()
