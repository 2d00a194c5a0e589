"""The job of `guyot profile`: a named model, its latency table, and what to say of it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import torch

from guyot.app.models import build, example_of, image_shape
from guyot.app.running.setup import usable
from guyot.app.settings import AT_LEAST_1
from guyot.core.condition import require
from guyot.core.errors import MisconfiguredError
from guyot.core.storage import read_json
from guyot.costs.latency import Measurement
from guyot.costs.profiling import Profile, profile
from guyot.structures import find_structures

_SLOWEST = 8


def profile_model(  # noqa: PLR0913 - what the command asks
    model: str,
    input_size: str | None = None,
    *,
    classes: int = 10,
    batch: int = 1,
    device: str = "cpu",
    threads: int | None = None,
    seconds: float = 20.0,
    measurements: Path | None = None,
    output: Path,
) -> Profile:
    """Measure a model, or fit to measurements taken before, and write the table.

    Args:
        model: a name that `guyot.app.models.build` knows.
        input_size: of an image, "32" or "3x32x32"; None: what the model was made for.
        classes: of the classifier.
        batch: images per pass.
        device: where to measure.
        threads: of the CPU, set for the whole process; None: as they are.
        seconds: about how long.
        measurements: a JSON file `{"networks": [...]}` of `Measurement`s, instead of measuring.
        output: the file of the table.

    Raises:
        MisconfiguredError: names what cannot be used.
    """
    for name, value in (("classes", classes), ("batch", batch), ("threads", threads)):
        if value is not None:
            require(name, value, AT_LEAST_1)
    if not output.parent.is_dir():
        raise MisconfiguredError(f"output={str(output)!r}: its folder does not exist, make it")
    sizes = image_shape(model, input_size)
    if sizes is None:
        raise MisconfiguredError(
            f"model={model!r} does not say what it takes: give input_size, such as 3x224x224"
        )
    usable(device)
    if threads is not None:
        torch.set_num_threads(threads)
    network = build(model, classes, sizes).to(device).to(memory_format=torch.channels_last)
    images = example_of(model, sizes, batch).to(device)
    if images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    if measurements is None:
        found = profile(network, (images,), seconds=seconds)
    else:
        networks = _read(measurements)
        structures = find_structures(network, (images,))
        where = {"file": measurements.name}
        found = Profile.of(structures, networks, batch=batch, where=where)
    found.table.save(output)
    return found


def _read(path: Path) -> list[Measurement]:
    try:
        values = read_json(path, links=True)
        networks = list(values["networks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MisconfiguredError(
            f"measurements={str(path)!r} cannot be read ({error}): give a JSON file "
            '{"networks": [{"widths": {...}, "milliseconds": ...}, ...]}'
        ) from error
    return [Measurement.from_dict(network) for network in networks]


def profile_summary(found: Profile, output: Path) -> dict[str, Any]:
    """Return what came out, as plain data."""
    agreed = found.cross_validation
    return {
        "table": str(output),
        "milliseconds": found.measurements[0].milliseconds,
        "predicted": found.table.full,
        "quantum": found.table.quantum,
        "measured": [] if agreed is None else list(agreed.measured),
        "predictions": [] if agreed is None else list(agreed.predicted),
        "median_error": None if agreed is None else agreed.median_error,
        "correlation": None if agreed is None else agreed.correlation,
        "where": dict(found.table.where),
    }


def profile_lines(found: Profile, output: Path, width: int = 80) -> list[str]:
    """Return what came out, as lines of at most so many columns."""
    width = min(width, 80)
    table, agreed = found.table, found.cross_validation
    where = ", ".join(f"{name} {value}" for name, value in table.where.items())
    fixed = sum(
        table.operators[k.name].fixed for k in found.structures.kernels if k.name in table.operators
    )
    result = [
        f"full network, batch {table.batch}: {table.full:.3f} ms predicted"
        + ("" if (t := found.measurements[0].milliseconds) is None else f", {t:.3f} ms measured"),
        f"{fixed / table.full:.0%} of it goes with layers alone, whatever their widths",
    ]
    if agreed is not None:
        worst = max(agreed.errors, key=abs)
        result.append(
            f"{len(agreed.errors)} smaller networks, each predicted from the others: median error "
            f"{agreed.median_error:.1%},"
        )
        result.append(f"  largest {worst:+.1%}, correlation {agreed.correlation:.3f}")
    times = found.measurements[0].operators
    if times:
        result += ["", "slowest modules of the full network"]
        for name in sorted(times, key=lambda n: -times[n])[:_SLOWEST]:
            room = width - 16
            result.append(f"  {name[:room]:<{room}} {times[name]:>8.3f} ms")
    result += ["", f"widths worth keeping to: multiples of {table.quantum}", where]
    wrapped = [part for line in result for part in textwrap.wrap(line, width) or [""]]
    return [*wrapped, "", f"Written to {output}"]
