"""Random architectures that are cut at random: a cut network is the masked one in every respect."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
from architectures import architecture
from cases import random_plan
from compared import differences

from guyot import find_structures

QUICK, ALL, CUTS = 6, 300, 2


def examined(seed: int, found: Counter[str]) -> dict[int, list[str]]:
    """Cut the network of a seed some times; for every cut what went wrong."""
    model, inputs = architecture(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        structures = find_structures(model, inputs)
        found["nets"] += bool(structures.groups or structures.layers)
        found["groups"] += len(structures.groups)
        found["layers"] += len(structures.layers)
        plans = [random_plan(structures, seed=number) for number in range(CUTS)]
        found["cuts"] += len(plans)
        results = {n: differences(model, inputs, structures, p) for n, p in enumerate(plans)}
    return {number: wrong for number, wrong in results.items() if wrong}


DEAD = 249
"""In a trial of this network all ReLUs behind a wrong cut are 0, so outputs agree."""


@pytest.mark.parametrize("seed", [*range(QUICK), DEAD])
def test_cuts_of_a_random_architecture(seed: int) -> None:
    found: Counter[str] = Counter()
    assert not examined(seed, found)
    assert found["nets"]


@pytest.mark.slow
def test_cuts_of_many_random_architectures() -> None:
    """Not one mismatch, and nearly all have something that can go."""
    found: Counter[str] = Counter()
    wrong = {seed: bad for seed in range(ALL) if (bad := examined(seed, found))}
    assert not wrong
    assert found["nets"] >= 0.95 * ALL and found["groups"] > 2 * ALL and found["layers"] > ALL / 2
