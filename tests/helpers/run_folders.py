"""What run folders hold, compared."""

import json
from pathlib import Path
from typing import Any

RESULTS = ("model.safetensors", "structure.json")


def lines(folder: Path) -> list[dict[str, Any]]:
    """What a run wrote down, without what clocks said."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def assert_same(folder: Path, other: Path) -> None:
    for name in RESULTS:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert lines(folder) == lines(other)
    results = [json.loads((path / "result.json").read_text()) for path in (folder, other)]
    for result in results:
        result.pop("seconds")
        result["before"].pop("latency")
        result["after"].pop("latency")
    assert results[0] == results[1]
