"""Models of other libraries: structure discovery against dense and uniformly slimmer networks.

    python benchmarks/models.py --data-dir DIR [RUN ...]
    python benchmarks/models.py --list

Three networks as their libraries build them, with no line written for guyot: torchvision's
mobilenet_v2 and a small vision transformer of timm on CIFAR-10, and a GPT-2 of transformers on
characters. Each named run trains one network and writes
``benchmarks/results/models/<model>-<method>-s<seed>.json`` when it ends; runs that are already
there are skipped. Every run of a model has the same recipe and number of steps. The recipe was
chosen for the dense network, on the part of the training data that is held out for validation;
test data are read once, after the last step.

The text is timm's file of 21,770 definitions of nouns (WordNet), 1.5 million characters, shuffled
line by line with a fixed seed; 1,000 lines are test data, 1,000 are validation data, and all other
lines are for training.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.resources import files
from itertools import islice
from typing import Any, Protocol

import torch
from runs import ROOT, Json, arguments, carry_out, cifar10, select
from torch import Tensor, nn
from torch.nn import functional as F

from guyot import Discovery, DiscoveryConfig
from guyot.app.allocator import restart_with_fast_allocator
from guyot.app.data import Batches, Dataset
from guyot.app.models import count_macs
from guyot.app.training import Recipe, lr_factor, make_optimizer

RESULTS = ROOT / "results" / "models"
METHODS = ("dense", "guyot", "uniform", "shallow")
TARGET = 0.5
TEXT = "data/_info/imagenet_synset_to_definition.txt"
"""Where timm keeps the definitions."""
CONTEXT = 64
"""Characters that the language model sees."""
VOCABULARY = 77
"""Different characters in the text."""


class Source(Protocol):
    """Pairs of inputs and labels of one part of the data, in numbered epochs."""

    def __len__(self) -> int: ...
    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Data:
    """What one network is trained, chosen and tested on."""

    train: Source
    validation: Source
    test: Source
    note: str


@dataclass(frozen=True)
class Characters:
    """Windows of ``CONTEXT`` characters and what follows each of them.

    ``text`` int64 (length,). In training ``steps`` batches an epoch begin anywhere, drawn by
    ``seed``; without ``steps`` an epoch is the whole text, window after window.
    """

    text: Tensor
    batch_size: int
    steps: int | None = None
    seed: int = 0

    def __len__(self) -> int:
        windows = (len(self.text) - 1) // CONTEXT
        return self.steps or -(-windows // self.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        everywhere = torch.arange(0, len(self.text) - CONTEXT, CONTEXT)
        for step in range(len(self)):
            if self.steps is None:
                starts = everywhere[step * self.batch_size : (step + 1) * self.batch_size]
            else:
                last = len(self.text) - CONTEXT
                starts = torch.randint(last, (self.batch_size,), generator=generator)
            window = self.text[starts[:, None] + torch.arange(CONTEXT + 1)]
            yield window[:, :-1], window[:, 1:]


@cache
def definitions() -> tuple[dict[str, Tensor], str]:
    """The parts of the text as character numbers, and the whole text's SHA-256."""
    whole = files("timm").joinpath(TEXT).read_text(encoding="utf-8")
    lines = sorted({line.partition("\t")[2] for line in whole.splitlines()})
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0)).tolist()
    letters = {c: n for n, c in enumerate(sorted({"\n", *"".join(lines)}))}
    assert len(letters) == VOCABULARY
    cuts = {"test": order[:1000], "validation": order[1000:2000], "train": order[2000:]}
    parts = {
        name: torch.tensor([letters[c] for k in chosen for c in lines[k] + "\n"])
        for name, chosen in cuts.items()
    }
    return parts, hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Model:
    """One architecture: how it is built, fed and trained.

    ``build(width)`` gives it at a width, of which ``widths`` names the full one and then all that
    the uniform rival may have, ascending. ``shallow()`` gives the network with half of its blocks,
    for those that are stacks of equal blocks. ``steps`` per epoch are given for text only.
    """

    build: Callable[[float], nn.Module]
    full: float
    widths: tuple[float, ...]
    example: Callable[[], Tensor]
    recipe: Recipe
    optimizer: str
    steps: int | None = None
    shallow: Callable[[], nn.Module] | None = None


def mobilenet(width: float) -> nn.Module:
    """torchvision's mobilenet_v2, for ten classes; ``width`` is its ``width_mult``."""
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2(num_classes=10, width_mult=width)
    return model.to(memory_format=torch.channels_last)


def vit(width: float, depth: int = 6) -> nn.Module:
    """A vision transformer of timm: 16 patches of 8x8 pixels, blocks of 4 heads; ``width`` is
    ``embed_dim``, of which heads and MLPs are fixed shares."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32, patch_size=8, num_classes=10, embed_dim=int(width), depth=depth, num_heads=4
    )


def gpt2(width: float, depth: int = 4) -> nn.Module:
    """A GPT-2 of transformers with blocks of 4 heads; ``width`` is ``n_embd``, of which heads and
    MLPs are fixed shares."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=int(width), n_layer=depth, n_head=4
    )
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(config, name, 0.0)
    config.use_cache, config.bos_token_id, config.eos_token_id = False, None, None
    return GPT2LMHeadModel(config)


def image() -> Tensor:
    return torch.randn(2, 3, 32, 32)


def characters() -> Tensor:
    return torch.randint(VOCABULARY, (2, CONTEXT))


MODELS = {
    "gpt2": Model(
        gpt2,
        96,
        tuple(range(4, 96, 4)),
        characters,
        Recipe(epochs=6, batch_size=16, lr=1e-3, weight_decay=0.1, warmup_epochs=0.5),
        "AdamW",
        steps=200,
        shallow=lambda: gpt2(96, 2),
    ),
    "vit": Model(
        vit,
        64,
        tuple(range(4, 64, 4)),
        image,
        Recipe(epochs=2, batch_size=32, lr=1e-3, weight_decay=0.05, warmup_epochs=0.2, bf16=False),
        "AdamW",
        shallow=lambda: vit(64, 3),
    ),
    "mobilenet_v2": Model(
        mobilenet,
        1.0,
        tuple(step / 100 for step in range(10, 100)),
        image,
        Recipe(epochs=2, batch_size=64, lr=0.05, warmup_epochs=0.2, bf16=False),
        "SGD",
    ),
}


@dataclass(frozen=True)
class Run:
    """One cell of the table."""

    model: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Unique, and the stem of the result file."""
        return f"{self.model}-{self.method}-s{self.seed}"


def all_runs() -> list[Run]:
    """Every run of the comparison, in the order in which they are worth having."""
    return [
        Run(name, method, seed)
        for seed in range(3)
        for name, model in MODELS.items()
        for method in METHODS
        if method != "shallow" or model.shallow is not None
    ]


@cache
def uniform_width(name: str, target: float = TARGET) -> float:
    """The smallest width whose MACs are >= target * dense: the rival is never smaller."""
    model = MODELS[name]
    example = model.example()
    dense = count_macs(model.build(model.full), example)
    for width in model.widths:
        if count_macs(model.build(width), example) >= target * dense:
            return width
    return model.full


def network(run: Run) -> nn.Module:
    """The network of ``run`` with weights drawn from its seed."""
    if run.method not in METHODS:
        raise ValueError(f"method={run.method!r} is unknown; choose one of {METHODS}")
    model = MODELS[run.model]
    width = uniform_width(run.model) if run.method == "uniform" else model.full
    torch.manual_seed(run.seed)
    if run.method == "shallow":
        assert model.shallow is not None
        return model.shallow()
    return model.build(width)


def data_of(run: Run, images: Callable[[], Dataset]) -> Data:
    """The data of ``run``; ``images`` are asked for where the network sees images."""
    model = MODELS[run.model]
    size = model.recipe.batch_size
    if model.steps is None:
        dataset = images()
        assert dataset.validation is not None
        return Data(
            Batches(dataset, dataset.train, size, augment=True, seed=run.seed),
            Batches(dataset, dataset.validation, 500, augment=False),
            Batches(dataset, dataset.test, 500, augment=False),
            f"{dataset.name}, {len(dataset.train)} training images",
        )
    text, digest = definitions()
    return Data(
        Characters(text["train"], size, model.steps, run.seed),
        Characters(text["validation"], 100),
        Characters(text["test"], 100),
        f"timm's {TEXT}, sorted lines without identifiers have SHA-256 {digest}",
    )


def optimizer_of(model: nn.Module, name: str, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD as in the other benchmarks, or AdamW with the recipe's rate and decay."""
    if name == "SGD":
        return make_optimizer(model, recipe)
    return torch.optim.AdamW(
        model.parameters(), recipe.lr, weight_decay=recipe.weight_decay, foreach=True
    )


def loss_of(model: nn.Module, inputs: Tensor, labels: Tensor, bf16: bool) -> tuple[Tensor, Tensor]:
    """Mean cross entropy per label (nats) and the number of labels that were predicted."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(inputs)
    logits = getattr(output, "logits", output).float().flatten(0, -2)
    labels = labels.flatten()
    return F.cross_entropy(logits, labels), (logits.detach().argmax(1) == labels).sum()


@torch.no_grad()
def score(model: nn.Module, source: Source, bf16: bool) -> Json:
    """Accuracy and mean cross entropy (nats) in evaluation mode."""
    was_training = model.training
    model.eval()
    hits, loss, count = 0, 0.0, 0
    for inputs, labels in source.epoch(0):
        mean, right = loss_of(model, inputs, labels, bf16)
        hits, loss, count = (
            hits + int(right),
            loss + float(mean) * labels.numel(),
            count + labels.numel(),
        )
    model.train(was_training)
    return {"accuracy": hits / count, "loss": loss / count}


def progress(
    discovery: Discovery | None, data: Data, model: nn.Module, epoch: int, bf16: bool
) -> Json:
    """At the end of an epoch: validation, during discovery that of the most probable network."""
    if discovery is None:
        return {"validation": score(model, data.validation, bf16)}
    inputs = [inputs for inputs, _ in islice(data.train.epoch(epoch), 5)]
    with discovery.evaluation(inputs):
        found = score(model, data.validation, bf16)
    return {
        "validation": found,
        "phase": discovery.phase.value,
        "macs": discovery.macs,
        "expected": discovery.expected_complexity,
        "undecided": discovery.undecided,
        "nu": discovery.nu,
    }


def train(run: Run, data: Data) -> Json:
    """Train ``run`` to its end."""
    described = MODELS[run.model]
    recipe = described.recipe
    model = network(run)
    optimizer = optimizer_of(model, described.optimizer, recipe)
    total = recipe.epochs * len(data.train)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lr_factor(recipe, total, len(data.train))
    )
    discovery = None
    if run.method == "guyot":
        discovery = Discovery(
            model,
            (described.example(),),
            optimizer,
            total_steps=total,
            target=TARGET,
            config=DiscoveryConfig(seed=run.seed),
        )
    history: list[Json] = []

    def again(inputs: Tensor, labels: Tensor) -> Tensor:
        return loss_of(model, inputs, labels, recipe.bf16)[0]

    for epoch in range(recipe.epochs):
        model.train()
        losses, started = 0.0, time.process_time()
        for inputs, labels in data.train.epoch(epoch):
            loss, _ = loss_of(model, inputs, labels, recipe.bf16)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            if discovery is not None:
                discovery.step(loss=partial(again, inputs, labels))
            losses += loss.item()
        seconds = time.process_time() - started
        found = progress(discovery, data, model, epoch, recipe.bf16)
        history.append({"loss": losses / len(data.train), "cpu_seconds": seconds} | found)
        print(f"{run.name} epoch {epoch + 1}/{recipe.epochs} {history[-1]}", flush=True)
    return outcome(run, model, discovery, data, history)


def outcome(
    run: Run, model: nn.Module, discovery: Discovery | None, data: Data, history: list[Json]
) -> Json:
    """What is kept of a run that is over; the only place that reads test data."""
    described = MODELS[run.model]
    found: dict[str, Any] = {}
    if discovery is not None:
        discovery.finish()
        found = {
            "attained": discovery.attained,
            "polarised": discovery.polarised,
            "structure": discovery.structure,
        }
    tested = score(model, data.test, described.recipe.bf16)
    return {
        "run": asdict(run) | {"target": 1.0 if run.method == "dense" else TARGET},
        "recipe": asdict(described.recipe) | {"optimizer": described.optimizer},
        "width": uniform_width(run.model) if run.method == "uniform" else described.full,
        "steps": described.recipe.epochs * len(data.train),
        "data": data.note,
        "test_accuracy": tested["accuracy"],
        "test_loss": tested["loss"],
        "validation": history[-1]["validation"],
        "macs": count_macs(model, described.example()),
        "input_shape": list(described.example().shape[1:]),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": history,
        **found,
    }


def main() -> None:
    """Train the runs named on the command line (default: all) that have no result yet."""
    parser = arguments(__doc__)
    options = parser.parse_args()
    todo = select(all_runs(), RESULTS, parser, options)
    torch.set_num_threads(len(os.sched_getaffinity(0)))

    @cache
    def images() -> Dataset:
        dataset = cifar10(options)
        return replace(dataset, name="CIFAR-10" + ", JPEG re-encoded copy" * bool(options.data_dir))

    carry_out(todo, RESULTS, lambda run: train(run, data_of(run, images)))


if __name__ == "__main__":
    restart_with_fast_allocator()
    main()
