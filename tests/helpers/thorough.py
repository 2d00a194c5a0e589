"""More about a model that is cut: copies, hooks, gradients, a cache, inputs of other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from compared import close, differences, doubled, masked, outputs, perturb
from others import Other
from torch import nn

from guyot.core.inputs import changed, copied
from guyot.core.types import KeepPlan, Structures
from guyot.surgery import operate

CHECKS = {
    "outputs": ("outputs",),
    "copies": ("outputs of a ",),
    "hooks": ("attributes of ",),
    "gradients": ("training", "gradient of ", "which gradients ", "buffer ", "names"),
}
"""Check -> how a difference that it finds begins."""


def note_call(module: nn.Module, args: Any, output: Any) -> None:
    """A hook that says that its module was called."""
    module.seen = 1


def checks_of(entry: Other, structures: Structures, plan: KeepPlan) -> dict[str, list[str]]:
    """What differs between the cut and the masked network, for every check; [] where nothing."""
    model, inputs, elsewhere = entry.build(), entry.inputs(), entry.elsewhere()
    if entry.double:
        model, inputs, elsewhere = model.double(), doubled(inputs), doubled(elsewhere)
    perturb(model)
    for module in model.modules():
        module.register_forward_hook(note_call)
    wrong = differences(model, inputs, structures, plan)
    found = {check: [w for w in wrong if w.startswith(begins)] for check, begins in CHECKS.items()}
    found["outputs"] = [w for w in wrong if w == "outputs"]
    full, cut = masked(model, structures, plan), copied(model)
    operate(cut, structures, plan)
    with torch.no_grad():
        expected, got = (outputs(net, elsewhere, training=False) for net in (full, cut))
        same = len(got) == len(expected) and all(map(close, got, expected))
        found["other sizes"] = [] if same else ["outputs with another batch and size"]
        if entry.generates:
            assert isinstance(elsewhere, Mapping)
            before = _cache(model, elsewhere)
            found["cache"] = [wrong for wrong in _cache(cut, elsewhere) if wrong not in before]
    return found


def _cache(model: Any, given: Mapping[str, Any]) -> list[str]:
    """What differs with a cache, in text that is made and in text that is read in two parts."""
    model.eval()
    wrong: list[str] = []
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    made = [model.generate(**_cloned(given), **options, use_cache=c) for c in (True, False)]
    if not torch.equal(*made):
        wrong.append("text that is made with a cache")
    key = "decoder_input_ids" if "decoder_input_ids" in given else "input_ids"
    ids = given[key]
    whole = model(**_cloned(given), use_cache=False).logits
    first = model(**_cloned(given) | {key: ids[:, :3]}, use_cache=True)
    cache = getattr(first, "past_key_values", None)
    if cache is not None:
        rest = {key: ids[:, 3:], "past_key_values": cache, "use_cache": True}
        then = model(**_cloned(given) | rest).logits
        if not close(torch.cat([first.logits, then], dim=1), whole, rounded=True):
            wrong.append("text that is read in two parts with a cache")
    return wrong


def _cloned(given: Mapping[str, Any]) -> dict[str, Any]:
    return changed(given, torch.Tensor.clone)


def more_problems(found: dict[str, list[str]]) -> list[str]:
    """The first difference of every check."""
    return [
        f"{check}: {wrong[0]}" + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else "")
        for check, wrong in found.items()
        if wrong
    ]
