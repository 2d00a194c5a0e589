"""What plain data may hold: each kind takes its own and says what is wrong with the rest."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guyot.core.contents import COUNTERS, NETWORK, POSITION, REMOVAL, RUN, STRUCTURE
from guyot.core.schema import (
    FLAG,
    ByName,
    Each,
    Fields,
    Maybe,
    ModelInputs,
    integer,
    misfit,
    real,
    text,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (integer(0, 9), [0, 9], [-1, 10, 1.0, 1.7, True, "1", None]),
        (integer(), [0, 2**53], [2**60, -1]),
        (real(0), [0, 0.5, 7], [-0.5, math.nan, math.inf, True, "1"]),
        (text(3), ["", "abc"], ["abcd", 3, None]),
        (FLAG, [True, False], [0, 1, "true", None]),
        (Maybe(integer()), [None, 3], [False, 0.5]),
        (
            Each(integer(), least=1, most=2, once=True),
            [[1], (1, 2)],
            [[], [1, 1], [1, 2, 3], 1, "12"],
        ),
        (ByName(FLAG), [{}, {"a": True}], [{"a": 1}, {1: True}, [True]]),
        (Fields({"a": FLAG}), [{"a": True}], [{}, {"a": 1}, {"a": True, "b": 1}, None]),
        (Fields({}, {"a": FLAG}, others=True), [{}, {"a": True}, {"b": 3}], [{"a": 3}, []]),
        (
            ModelInputs(largest=8),
            [[], {"x": {"tensor": [2, 4], "dtype": "float32"}}, [0.5, None, "mean", [True]]],
            [
                [{"tensor": [3, 3], "dtype": "float32"}],
                [{"tensor": [1.0], "dtype": "int64"}],
                object(),
            ],
        ),
    ],
)
def test_kinds(kind: Any, good: list[Any], bad: list[Any]) -> None:
    assert [misfit(value, kind) for value in good] == [None] * len(good)
    assert all(misfit(value, kind) for value in bad)


def test_a_misfit_says_where() -> None:
    kind = Fields({"a": Each(ByName(integer()))})
    assert misfit({"a": [{}, {"x": 1.5}]}, kind) == (
        "a[1].x is 1.5, expected a whole number of 0 or more"
    )
    assert misfit([], kind) == "it is a list of 0, expected a mapping"


@settings(max_examples=50)
@given(JSON)
def test_any_data_is_taken_or_refused_in_words(value: Any) -> None:
    for kind in (COUNTERS, NETWORK, POSITION, REMOVAL, RUN, STRUCTURE):
        found = misfit(value, kind)
        assert found is None or " " in found
