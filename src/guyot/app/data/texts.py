"""A file of text, for a network that predicts the next character.

The last tenth is test data, and before it stands the validation data, a tenth of what is left
unless another share is asked for. Each part is cut into windows of so many characters, which do not
overlap.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from guyot.app.data.arrays import AS_IT_IS, Dataset, Split
from guyot.core.errors import MisconfiguredError
from guyot.core.storage import regular

_TEST = 0.1
_MOST_CHARACTERS = 4096
_LONGEST = 2**30


def read_text(file: Path, context: int, validation: float) -> Dataset:
    """Read a text.

    Args:
        file: in UTF-8.
        context: characters of a window.
        validation: share of what is not test data that is held out.

    Raises:
        MisconfiguredError: it cannot be read, is too short, or has too many different characters.
    """
    try:
        if regular(file.resolve()) > _LONGEST:
            raise ValueError(f"it has more than {_LONGEST >> 20} MiB")
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MisconfiguredError(
            f"text:{file} cannot be read ({reason}): give a file of text in UTF-8"
        ) from error
    characters = sorted(set(text))
    if len(characters) > _MOST_CHARACTERS:
        raise MisconfiguredError(
            f"{file} has {len(characters)} different characters: give a text with at most "
            f"{_MOST_CHARACTERS}"
        )
    if len(characters) < 2:
        raise MisconfiguredError(
            f"{file} has {len(characters)} different characters: give a text to learn from"
        )
    number = {character: place for place, character in enumerate(characters)}
    codes = torch.tensor([number[character] for character in text])
    learnt = round((1 - _TEST) * len(codes))
    stop = round((1 - validation) * learnt)
    parts = [_windows(part, context) for part in codes.tensor_split([stop, learnt])]
    if not all(map(len, parts)):
        raise MisconfiguredError(
            f"{file} has {len(codes)} characters, too few for windows of {context} in its "
            "training, validation and test data: give a longer text, or a smaller context"
        )
    train, held, test = parts
    return Dataset(
        "text",
        train,
        test,
        tuple(characters),
        *AS_IT_IS,
        flip=False,
        pad=0,
        validation=held,
        task="text",
    )


def _windows(codes: Tensor, context: int) -> Split:
    """Return windows int64 (N, context), and the characters that follow each of theirs."""
    count = max(0, len(codes) - 1) // context
    whole = codes[: count * context + 1]
    return Split(whole[:-1].view(count, context), whole[1:].view(count, context))
