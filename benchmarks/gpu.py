"""What guyot costs and pays back on a GPU.

`python benchmarks/gpu.py --minutes 6` measures one cell after another and writes each to
`benchmarks/results/gpu/`. It skips what has a result, and begins no cell after so many minutes.
Without a GPU it says so and ends. `python benchmarks/gpu.py table` prints what was found.

- *gates*: a training step during discovery against a plain one, at full width. The forward and
  backward passes of both run as they are, as a captured CUDA graph (*graph*), or under
  `torch.compile(mode="reduce-overhead")` (*reduced*).
- *run*: a whole run at target 0.5 against a dense one of as many steps; then the latency of both
  networks as they are and compiled. *Share of the promise* is the speed-up times the share of MACs.
- *widths*: which widths a convolution is fast at.

Inputs and labels are random, in bfloat16 autocast and channels_last where there are channels.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from costs import RESULTS as COSTS
from costs import Json, spread
from runs import machine
from torch import Tensor, nn
from torch.nn import functional as F

from guyot import Discovery, DiscoveryConfig
from guyot.app.models import build, count_macs
from guyot.costs.timing import clock_of, rounds

RESULTS = COSTS.parent / "gpu"
STEPS = 600
"""Of a whole run."""
WIDTHS = (*range(8, 72, 4), 30, 31, 33, 63, 96, 100, 112, 127, 128)
"""Of the convolutions."""


@dataclass(frozen=True)
class Workload:
    """A network and random batches for it.

    Attributes:
        make: builds the network, on the CPU.
        inputs: of one batch, on a device.
        batch: samples of a training batch.
        classes: what labels are drawn from.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int, torch.device], Tensor]
    batch: int
    classes: int = 1000

    def network(self, device: torch.device) -> nn.Module:
        """The network in training mode."""
        torch.manual_seed(0)
        model = self.make().to(device)
        if self.inputs(1, torch.device("cpu")).dim() == 4:
            model = model.to(memory_format=torch.channels_last)
        return model.train()

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy, nats."""
        with torch.autocast(inputs.device.type, torch.bfloat16):
            output = model(inputs)
        logits = getattr(output, "logits", output).float()
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def images(pixels: int) -> Callable[[int, torch.device], Tensor]:
    """Random images of a size."""

    def draw(count: int, device: torch.device) -> Tensor:
        found = torch.randn(count, 3, pixels, pixels, device=device)
        return found.to(memory_format=torch.channels_last)

    return draw


def tokens(length: int, vocabulary: int) -> Callable[[int, torch.device], Tensor]:
    """Random tokens."""
    return lambda count, device: torch.randint(vocabulary, (count, length), device=device)


def resnet50() -> nn.Module:
    """torchvision's."""
    import torchvision

    return torchvision.models.resnet50()


def vit() -> nn.Module:
    """A ViT-S of timm."""
    import timm

    return timm.create_model("vit_small_patch16_224")


def llama(width: int = 768, depth: int = 12, vocabulary: int = 32_000) -> nn.Module:
    """A Llama of about 134 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width * 2 // 3,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


WORKLOADS = {
    "resnet20": Workload(lambda: build("resnet20"), images(32), 128, 10),
    "resnet50": Workload(resnet50, images(224), 64),
    "vit-s": Workload(vit, images(224), 64),
    "llama": Workload(llama, tokens(512, 32_000), 8, 32_000),
}


MODES = ("eager", "graph", "reduced")
"""How the passes of a step run."""


class Arm:
    """A network in training, with a discovery or without."""

    def __init__(
        self,
        work: Workload,
        device: torch.device,
        config: Json | None,
        steps: int,
        mode: str = "eager",
    ):
        self.work, self.device, self.mode = work, device, mode
        self.model = work.network(device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), 0.01, 0.9, weight_decay=5e-4, foreach=True
        )
        self.example = work.inputs(2, device)
        self.inputs = work.inputs(work.batch, device)
        shape = self.inputs.shape if self.inputs.dim() == 2 else self.inputs.shape[:1]
        self.labels = torch.randint(work.classes, tuple(shape), device=device)
        self.called: Any = self.model
        if mode == "reduced":
            self.called = torch.compile(self.model, mode="reduce-overhead")
        self.discovery: Discovery | None = None
        if config is not None:
            self.discovery = Discovery(
                self.called,
                (self.example,),
                self.optimizer,
                total_steps=steps,
                target=0.5,
                config=DiscoveryConfig(**config),
            )
        self.captures = 0
        self._layout = -1
        self._replay: Callable[[], None] = self._passes

    def loss(self) -> Tensor:
        """Of the batch."""
        return self.work.loss(self.called, self.inputs, self.labels)

    def _passes(self) -> None:
        self.loss().backward()

    def step(self) -> None:
        """One step of training."""
        layout = 0 if self.discovery is None else self.discovery.layout
        if self.mode == "graph" and layout != self._layout:
            self._layout, self.captures = layout, self.captures + 1
            self.optimizer.zero_grad()
            self._replay = captured(self._passes, self.device)
            if self.discovery is not None:
                self.discovery.zero_grad()
        self._replay()
        self.optimizer.step()
        if self.mode != "graph" or self.device.type != "cuda":
            self.optimizer.zero_grad()  # a graph writes gradients to where they were
        if self.discovery is not None:
            self.discovery.step(loss=self.loss)


def captured(passes: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return what repeats passes: a CUDA graph; the passes themselves without a GPU."""
    if device.type != "cuda":
        return passes
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            passes()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        passes()
    return graph.replay


def memory(device: torch.device) -> int | None:
    """Most bytes that were in use since the last call, on a GPU."""
    if device.type != "cuda":
        return None
    found = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return found


def gates(work: Workload, mode: str, device: torch.device, seconds: float) -> Json:
    """A step with gates against a plain one; 20 steps of each in turn."""
    # The horizon of a million steps keeps every gate near its start: nothing is removed.
    config = {"warmup": 0.0, "patience": 1.0}
    plain = Arm(work, device, None, 10**6, mode)
    gated = Arm(work, device, config, 10**6, mode)

    def several(arm: Arm) -> Callable[[], None]:
        return lambda: [arm.step() for _ in range(20)] and None

    steps = {"plain": several(plain), "gated": several(gated)}
    times = list(rounds(steps, clock_of(device), seconds, warm_up=2))
    assert gated.discovery is not None and not gated.discovery.removals
    return {
        "plain_ms": spread([50 * each["plain"].wall for each in times]),
        "gated_ms": spread([50 * each["gated"].wall for each in times]),
        "ratio": spread([each["gated"].wall / each["plain"].wall for each in times]),
        "gates": gated.discovery.structures.index.total,
        "captures": gated.captures,
        "memory": memory(device),
    }


def whole(work: Workload, device: torch.device, seconds: float) -> Json:
    """A run at target 0.5 against a dense one, and the latency of both networks."""

    arms = {"dense": Arm(work, device, None, STEPS), "guyot": Arm(work, device, {}, STEPS)}
    macs = {name: count_macs(arm.model, arm.example) for name, arm in arms.items()}
    clock, took = clock_of(device), dict[str, float]()
    for name, arm in arms.items():
        arm.step()
        clock.wait()
        started = time.perf_counter()
        for _ in range(STEPS - 1):
            arm.step()
        if arm.discovery is not None:
            arm.discovery.finish()
        clock.wait()
        took[name] = time.perf_counter() - started
        macs[name] = count_macs(arm.model, arm.example)
    share = macs["guyot"] / macs["dense"]
    found: Json = {
        "seconds": took,
        "ratio": took["guyot"] / took["dense"],
        "macs": share,
        "memory": memory(device),
    }
    for batch in (1, 64):
        for mode in ("eager", "compiled"):
            times = latency({n: a.model for n, a in arms.items()}, work, device, batch, mode)
            ratios = [each["dense"].busy / each["guyot"].busy for each in times(seconds / 4)]
            found[f"batch {batch}, {mode}"] = {
                "speed_up": spread(ratios),
                "share_of_the_promise": median(ratios) * share,
            }
    return found


def latency(
    models: dict[str, nn.Module], work: Workload, device: torch.device, batch: int, mode: str
) -> Callable[[float], Iterator[Any]]:
    """What times the predictions of some networks in turn."""
    inputs = work.inputs(batch, device)
    ready = {
        name: torch.compile(model.eval()) if mode == "compiled" else model.eval()
        for name, model in models.items()
    }

    def step(model: Callable[[Tensor], Any]) -> Callable[[], None]:
        def predict() -> None:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
                model(inputs)

        return predict

    steps = {name: step(model) for name, model in ready.items()}
    return lambda seconds: rounds(steps, clock_of(device), seconds, warm_up=3)


def widths(device: torch.device, seconds: float) -> Json:
    """Milliseconds of a convolution with BatchNorm and ReLU, forward and backward, by width."""

    def layer(width: int) -> Callable[[], None]:
        block = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        ).to(device, memory_format=torch.channels_last)
        read = torch.randn(128, width, 32, 32, device=device)
        read = read.to(memory_format=torch.channels_last).requires_grad_()

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16):
                block(read).sum().backward()

        return step

    times = list(rounds({w: layer(w) for w in WIDTHS}, clock_of(device), seconds, warm_up=3))
    return {
        "ms": {str(width): 1e3 * median(each[width].busy for each in times) for width in WIDTHS}
    }


def cells() -> dict[str, Callable[[torch.device, float], Json]]:
    """What is measured, by name, in the order in which it is worth having."""
    found: dict[str, Callable[[torch.device, float], Json]] = {}
    for name, work in WORKLOADS.items():
        found[f"gates-{name}"] = functools.partial(gates, work, "eager")
    for name in ("resnet50", "vit-s", "resnet20", "llama"):
        work = WORKLOADS[name]
        found[f"run-{name}"] = functools.partial(whole, work)
    for mode in MODES[1:]:
        for name, work in WORKLOADS.items():
            found[f"{mode}-{name}"] = functools.partial(gates, work, mode)
    found["widths"] = widths
    return found


def measure(options: argparse.Namespace) -> None:
    """Measure the cells without a result, one after another."""
    device = torch.device(options.device)
    options.results.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * options.minutes
    for name, cell in cells().items():
        path = options.results / f"{name}.json"
        if path.exists() or (options.cells and name not in options.cells):
            continue
        if time.monotonic() > ends:
            print(f"{options.minutes:g} minutes are over before {name}")
            return
        try:
            found: Json = cell(device, options.seconds)
        except (RuntimeError, ImportError) as error:  # out of memory, or it cannot be captured
            found = {"error": (str(error).splitlines() or [type(error).__name__])[0]}
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        found |= {"device": where, "machine": machine()}
        path.write_text(json.dumps(found) + "\n")
        print(name, json.dumps(found), flush=True)


def table(results: Path) -> str:
    """The results as Markdown."""
    lines = ["| cell | ratio to plain or dense | MACs kept | shares of the promise | device |"]
    lines.append("|---|---|---|---|---|")
    for path in sorted(results.glob("*.json")):
        found = json.loads(path.read_text())
        ratio = found.get("ratio", "")
        if isinstance(ratio, dict):
            low, high = ratio["quartiles"]
            ratio = f"{ratio['median']:.3f} ({low:.3f} … {high:.3f})"
        elif ratio:
            ratio = f"{ratio:.3f}"
        shares = [
            f"{key}: {value['share_of_the_promise']:.2f}"
            for key, value in found.items()
            if key.startswith("batch")
        ]
        macs = f"{found['macs']:.3f}" if "macs" in found else ""
        cells = (path.stem, ratio or found.get("error", ""), macs, "; ".join(shares))
        lines.append("| " + " | ".join((*cells, found["device"])) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("measure", "table"), default="measure")
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--seconds", type=float, default=10, help="of one comparison")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cells", type=lambda text: text.split(","), default=[])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.what == "table":
        print(table(options.results))
    elif options.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here: nothing is measured")
    else:
        measure(options)


if __name__ == "__main__":
    main()
