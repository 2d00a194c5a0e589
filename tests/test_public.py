"""The public surface: names and signatures that users rely on."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import torch
from cases import CASES

import guyot
from guyot import DiscoveryConfig

NAMES = """
    Checkpointer Cost Discovery DiscoveryConfig Family GuyotError GuyotWarning MisconfiguredError
    Distillation Recorder Removal SequenceError UnsupportedError find_structures load rebuild save
    shrink
""".split()


def test_names() -> None:
    assert sorted(guyot.__all__) == sorted(NAMES)
    assert len(NAMES) <= 18
    for name in NAMES:
        assert inspect.getdoc(getattr(guyot, name)), f"{name} has no docstring"


def test_dials_of_discovery() -> None:
    parameters = inspect.signature(guyot.Discovery).parameters
    positional = "model example_inputs optimizer".split()
    keywords = "total_steps nu target alpha beta config".split()
    assert list(parameters) == positional + keywords
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in keywords)


def test_what_a_discovery_tells() -> None:
    """An instance has no public names but those of the class."""
    model = CASES["mlp"].build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    inputs = (CASES["mlp"].inputs(),)
    discovery = guyot.Discovery(model, inputs, optimizer, total_steps=100, nu=0.1)
    names = {name for name in dir(discovery) if not name.startswith("_")}
    assert names == set(
        """
        abandon attained benefits config dials evaluation expected_complexity finish finished follow
        full_macs full_params keep_probs layout listen load_state_dict log logical_macs macs model
        nu original params passed phase phases plot polarised prices removals settle skipped
        standing state_dict step steps_done structure structures summary undecided zero_grad
        """.split()
    )


def test_every_setting_is_described() -> None:
    described = inspect.getdoc(DiscoveryConfig) or ""
    for name in inspect.signature(DiscoveryConfig).parameters:
        assert re.search(rf"^\s+{name}: ", described, re.MULTILINE), name


def test_errors_are_one_family_and_of_a_builtin_kind() -> None:
    for error, kind in (
        (guyot.MisconfiguredError, ValueError),
        (guyot.UnsupportedError, NotImplementedError),
        (guyot.SequenceError, RuntimeError),
    ):
        assert issubclass(error, guyot.GuyotError)
        assert issubclass(error, kind)
    assert issubclass(guyot.GuyotWarning, UserWarning)


def test_typed() -> None:
    assert (Path(guyot.__file__).parent / "py.typed").is_file()
