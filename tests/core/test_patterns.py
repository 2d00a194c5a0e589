import pytest

from guyot.core.errors import MisconfiguredError
from guyot.core.patterns import chosen

NAMES = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "head.fc"]


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ("conv1", ["conv1"]),
        ("*conv1", ["conv1", "layer1.0.conv1", "layer1.1.conv1"]),
        (["head*", "layer1.?.conv2"], ["layer1.0.conv2", "head.fc"]),
        ("*", NAMES),
        ((), []),
    ],
)
def test_names_come_in_their_own_order(patterns: str | list[str], found: list[str]) -> None:
    assert chosen("ignore", patterns, [*NAMES, *NAMES], "module") == found


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layer1.0.cnov1", r"ignore='layer1.0.cnov1' matches no module; close are layer1.0.conv1"),
        ("Conv1", r"ignore='Conv1' matches no module; close .*conv1"),
        ("*.fc2", r"close is head.fc"),
        ("zzz*", r"there are conv1, layer1.0.conv1, .*head.fc$"),
        ("", r"ignore='' matches no module; there are conv1"),
    ],
)
def test_what_matches_nothing_is_an_error(pattern: str, message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        chosen("ignore", ["conv1", pattern], NAMES, "module")


def test_nothing_to_choose_from() -> None:
    with pytest.raises(MisconfiguredError, match="freeze='a' matches no group; there is none"):
        chosen("freeze", "a", [], "group")
