"""The table of what the files may hold that others may have written.

Settings (`config.json`) have a table of their own, from which options and their help are made:
`guyot.app.config`. States of optimisers and of other parts are compared with fresh ones.

| file | kind |
|---|---|
| structure.json of a network | `NETWORK` |
| structure.json of a run folder | `RUN` |
| structure.json of a checkpoint | equals that of the network that was restored |
| manifest.json | `MANIFEST` |
| index.json | `INDEX`, and fits the files of tensors |
| state.json, entry `discovery.removals` | a list of `REMOVAL` |
| state.json, entry `discovery.counters` | `COUNTERS` |
| state.json, entry `discovery.controller` | `CONTROLLER`, and equal shapes |
| state.json, entry `position` of a run | `POSITION` |
"""

from __future__ import annotations

from guyot.core.schema import FLAG, ByName, Each, Fields, Maybe, ModelInputs, integer, real, text

_UNITS = ByName(Each(integer(0, 2**31 - 1), least=1, once=True))
_LAYERS = Each(text(), once=True)

STRUCTURE = Fields({"units": _UNITS, "removed_layers": _LAYERS}, others=True)
"""What is left of a network."""

_OUTPUT = Fields({"shape": Each(integer(), most=32), "values": Each(Maybe(real()), most=256)})
FINGERPRINT = Fields({"device": text(40), "scale": real(0), "outputs": Each(_OUTPUT)})
"""What a network computes."""

_SAVED = {**STRUCTURE.required, "inputs": ModelInputs()}
NETWORK = Fields(_SAVED, {"fingerprint": Maybe(FINGERPRINT)}, others=True)

_SIZE = integer(1, 4096)
_STATISTICS = Each(real(), least=1, most=4096)
RUN = Fields(
    {
        "model": text(),
        "classes": integer(1, 10**6),
        "mean": _STATISTICS,
        "std": _STATISTICS,
        "inputs": Each(
            Fields({"tensor": Each(_SIZE, least=2, most=4), "dtype": text(40)}), least=1, most=1
        ),
    },
    {"class_names": Each(text(), most=10**6), "target": Maybe(Each(real(), least=2, most=2))},
    others=True,
)
"""What a run adds: one batch of samples, and what its outputs mean."""

MANIFEST = Fields(
    {"format": text(), "version": integer(), "step": integer(), "torch": text()}, others=True
)

_ROWS = ByName(integer())
INDEX = Fields({"shards": integer(1), "model": _ROWS, "state": _ROWS})
"""How many files hold the tensors of a checkpoint, and the rows of those that are split."""

REMOVAL = Fields(
    {"step": integer(), "units": ByName(Each(integer())), "layers": Each(text()), "macs": integer()}
)

CONTROLLER = Fields({"still": integer(), "skip": integer()}, others=True)

_SHARE = Maybe(real(0))
COUNTERS = Fields(
    {
        "step": integer(),
        "skipped": integer(),
        "settled": FLAG,
        "finished": FLAG,
        "attained": _SHARE,
        "polarised": _SHARE,
    }
)

POSITION = Fields(
    {"epoch": integer(), "lines": integer(), "seconds": real(0), "data": integer()}, others=True
)
