"""Language models for `from_pretrained` are loaded where guyot cannot be imported."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guyot import export
from guyot.core.errors import MisconfiguredError, UnsupportedError
from guyot.core.types import KeepPlan, Structures
from guyot.structures import find_structures
from guyot.surgery import operate

hf = pytest.importorskip("transformers")
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "vocab_size": 20,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
TOKENS = torch.arange(2 * 9).view(2, 9) % 17 + 3
HEADS, RANKS, NEURONS = "self_attn.q_proj", "self_attn.q_proj:2", "mlp.gate_proj"
ATTENTION, MLP = "", ":2"
"""How guyot calls the groups and the branches of a layer."""


def llama() -> Any:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL | {"hidden_size": 18})).eval()


def mixed() -> Any:
    """Windows of 4 tokens in every other attention, and tied embeddings."""
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"] * 2
    window = {"sliding_window": 4, "use_sliding_window": True, "layer_types": kinds}
    config = hf.Qwen3Config(**SMALL, **window, tie_word_embeddings=True)
    return hf.Qwen3ForCausalLM(config).eval()


@functools.cache
def structures(make: Callable[[], Any]) -> Structures:
    return find_structures(make(), {"input_ids": TOKENS}, verify=False)


def cut(
    make: Callable[[], Any],
    widths: dict[tuple[int, str], list[int]],
    gone: list[tuple[int, str]],
) -> Any:
    """Keep these units of some groups, and lose some branches."""
    model, found = make(), structures(make)
    groups = {group.name: number for number, group in enumerate(found.groups)}
    layers = {layer.name: number for number, layer in enumerate(found.layers)}
    kept = {
        groups[f"model.layers.{n}.{name}"]: torch.tensor(units)
        for (n, name), units in widths.items()
    }
    plan = KeepPlan(kept, frozenset(layers[f"model.layers.{n}{name}"] for n, name in gone))
    operate(model, found, plan)
    return model


def unequal(make: Callable[[], Any]) -> Any:
    """A KV group, a query of each group, neurons, two branches, and a whole layer go.

    Of a width of 18 it is four heads that are left in layer 3, which do not divide it.
    """
    widths = {(2, RANKS): [0], (3, HEADS): [0, 2], (3, NEURONS): [0]}
    return cut(make, widths, [(0, ATTENTION), (1, ATTENTION), (1, MLP), (2, MLP)])


def equal() -> Any:
    """All layers lose the same KV group and neurons, and one goes."""
    widths = {(n, HEADS): [0, 2] for n in (0, 2, 3)} | {(n, NEURONS): [1, 5] for n in (0, 2, 3)}
    return cut(mixed, widths, [(1, ATTENTION), (1, MLP)])


MAKE = {
    "llama": lambda: unequal(llama),
    "mixed": lambda: unequal(mixed),
    "equal": equal,
    "branch": lambda: cut(mixed, {}, [(1, MLP)]),
}


@torch.no_grad()
def answers(model: Any) -> tuple[list[Any], list[Any]]:
    """The logits, and what the model writes with and without a cache."""
    made = [
        model.generate(TOKENS[:, :5], max_new_tokens=6, do_sample=False, **how).tolist()
        for how in ({}, {"use_cache": False}, {"cache_implementation": "static"})
    ]
    return model(TOKENS).logits.tolist(), made


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, export.Pretrained]:
    folder = tmp_path_factory.mktemp("written")
    return {name: export.to_pretrained(make(), folder / name) for name, make in MAKE.items()}


def load(folder: Path) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


PROGRAM = """
import json
import sys

class Refused:
    def find_spec(self, name, *rest):
        assert name.partition(".")[0] != "guyot", "guyot is imported"

sys.meta_path.insert(0, Refused())
import torch
import transformers as hf

given = torch.tensor(json.loads(sys.argv[2]))

@torch.no_grad()
def answers(folder, trusted):
    model = hf.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trusted)
    made = [
        model.generate(given[:, :5], max_new_tokens=6, do_sample=False, **how).tolist()
        for how in ({}, {"use_cache": False}, {"cache_implementation": "static"})
    ]
    model.save_pretrained(f"{folder}-again")  # as after further training
    return model(given).logits.tolist(), made

found = {}
for folder, trusted in json.loads(sys.argv[1]).items():
    try:
        found[folder] = answers(folder, trusted), answers(f"{folder}-again", trusted)
    except ValueError as error:
        found[folder] = str(error)
print(json.dumps(found))
"""


@pytest.mark.timeout(900)  # it starts a process that imports torch and transformers
def test_a_process_without_guyot_loads_what_was_written(
    written: dict[str, export.Pretrained], tmp_path: Path
) -> None:
    """What needs code is not loaded without trust, not even where only branches are gone.

    Their weights would be drawn at random by transformers.
    """
    trusted = {str(each.path): name in ("llama", "mixed") for name, each in written.items()}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(trusted), json.dumps(TOKENS.tolist())],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert "trust_remote_code=True" in found.pop(str(written["branch"].path))
    assert len(found) == 3
    for name in ("llama", "mixed", "equal"):
        logits, made = answers(MAKE[name]())
        assert made[0] == made[1] == made[2]
        for again in found[str(written[name].path)]:
            torch.testing.assert_close(Tensor(again[0]), Tensor(logits))
            assert again[1] == made


def test_only_layers_that_differ_need_code(written: dict[str, export.Pretrained]) -> None:
    for name, each in written.items():
        assert each.remote_code == (name != "equal")
        assert each.remote_code == (each.path / "modeling_pruned.py").exists()
        assert each.difference < 1e-6


def test_the_configuration_says_what_differs(written: dict[str, export.Pretrained]) -> None:
    config = json.loads((written["mixed"].path / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]
    assert config["per_layer_config"] == {
        "0": {"skip": ["attention"]},
        "1": {"num_attention_heads": 3, "skip": ["mlp"]},
        "2": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 1},
    }
    config = json.loads((written["equal"].path / "config.json").read_text())
    assert "auto_map" not in config and config["model_type"] == "qwen3"
    sizes = "num_hidden_layers num_attention_heads num_key_value_heads intermediate_size".split()
    assert [config[size] for size in sizes] == [3, 4, 2, 2]


def test_tied_groups_need_no_code(tmp_path: Path) -> None:
    model = mixed()
    tied = [[f"*.{name}"] for name in (HEADS, RANKS, NEURONS)]
    inputs = {"input_ids": TOKENS}
    found = find_structures(model, inputs, layers=False, tie=tied, verify=False)
    assert len(found.groups) == 3
    plan = {number: torch.arange(group.size - 1) for number, group in enumerate(found.groups)}
    operate(model, found, KeepPlan(plan, frozenset()))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert not export.to_pretrained(model, tmp_path / "net", code=False).remote_code
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_loaded_network_gets_smaller_again(
    written: dict[str, export.Pretrained], tmp_path: Path
) -> None:
    loaded = load(written["llama"].path)
    found = find_structures(loaded, {"input_ids": TOKENS}, verify=False)
    (heads,) = [n for n, g in enumerate(found.groups) if g.name == f"model.layers.2.{HEADS}"]
    (branch,) = [n for n, each in enumerate(found.layers) if each.name == "model.layers.0"]
    operate(loaded, found, KeepPlan({heads: torch.tensor([1])}, frozenset([branch])))
    second = export.to_pretrained(loaded, tmp_path / "second").path
    assert json.loads((second / "config.json").read_text())["num_hidden_layers"] == 2
    again = load(second)
    assert answers(again)[1] == answers(loaded)[1]
    torch.testing.assert_close(again(TOKENS).logits, loaded(TOKENS).logits)


@pytest.mark.parametrize("name", ["llama", "equal"])
def test_adapters_are_trained_merged_and_reloaded(
    name: str, written: dict[str, export.Pretrained], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    base = written[name].path
    settings = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(load(base), settings)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.5)
    for _ in range(2):
        adapted(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    adapted.eval()
    logits = adapted(TOKENS).logits.detach()
    assert not torch.allclose(logits, load(base)(TOKENS).logits, atol=1e-3)
    adapted.save_pretrained(tmp_path / "adapter")
    reloaded = peft.PeftModel.from_pretrained(load(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(reloaded(TOKENS).logits, logits)
    merged = export.to_pretrained(adapted.merge_and_unload(), tmp_path / "merged").path
    torch.testing.assert_close(load(merged)(TOKENS).logits, logits, rtol=1e-4, atol=1e-4)


def test_bfloat16_stays(tmp_path: Path) -> None:
    model = unequal(mixed).bfloat16()
    assert load(export.to_pretrained(model, tmp_path / "net").path).dtype is torch.bfloat16


def test_what_transformers_cannot_express_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    with pytest.raises(MisconfiguredError, match="Linear is no causal language model"):
        export.to_pretrained(nn.Linear(2, 2), folder)
    gpt2 = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20))
    with pytest.raises(MisconfiguredError, match="GPT2LMHeadModel is no causal"):
        export.to_pretrained(gpt2, folder)
    phi = hf.Phi3ForCausalLM(hf.Phi3Config(**SMALL))
    with pytest.raises(UnsupportedError, match="Phi3ForCausalLM has 0 modules with q_proj and"):
        export.to_pretrained(phi, folder)
    with pytest.raises(UnsupportedError, match=r"code=False.*tie and layers=False"):
        export.to_pretrained(unequal(mixed), folder, code=False)
    odd = llama()
    odd.model.layers[1].mlp.up_proj = nn.Linear(18, 13, bias=False)
    with pytest.raises(UnsupportedError, match=r"up_proj.weight would be \(12, 18\) and is \(13"):
        export.to_pretrained(odd, folder)
    less = llama()
    del less.model.layers[1].input_layernorm
    with pytest.raises(UnsupportedError, match=r"layers.1 has lost \['input_layernorm'\]"):
        export.to_pretrained(less, folder)
    other = llama()
    other.model.layers[1].mlp.act_fn = nn.Tanh()
    with pytest.raises(UnsupportedError, match="what was written differs from the model by"):
        export.to_pretrained(other, folder)
    assert not any(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="exists: give another"):
        export.to_pretrained(llama(), tmp_path)
