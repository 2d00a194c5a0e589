"""From the bytes of image files to arrays, and what is said of files that are no images."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from guyot.core.errors import MisconfiguredError, first_line
from guyot.core.warning import warn

if TYPE_CHECKING:
    from PIL.Image import Image

_NAMED = 5
"""How many images that cannot be read a warning names."""


def opened(read: Callable[[], bytes], where: str) -> Image | str:
    """Decode what ``read`` gives; ``where`` names it. Return what is wrong if that fails."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(read())).convert("RGB")
    except Exception as error:  # noqa: BLE001 - a decoder may stumble over anything
        unknown = isinstance(error, UnidentifiedImageError)  # Pillow's text names an address
        reason = "its format is not known" if unknown else first_line(error)
        return f"{where} is not a readable image ({reason})"


class Decoded:
    """Images that were read, their labels, and what could not be read.

    ``size`` is that of the square into which images are fitted; ``None`` leaves them as they are.
    """

    def __init__(self, size: int | None = None) -> None:
        self.images: list[np.ndarray] = []
        self.labels: list[int] = []
        self.corrupt: list[str] = []
        self._size = size

    def add(self, read: Callable[[], bytes], where: str, label: int) -> None:
        """Decode what ``read`` gives; ``where`` names it."""
        from PIL import Image, ImageOps

        image = opened(read, where)
        if isinstance(image, str):
            self.corrupt.append(image)
            return
        if self._size is not None:
            image = ImageOps.fit(image, (self._size, self._size), Image.Resampling.BILINEAR)
        self.images.append(np.asarray(image))
        self.labels.append(label)


def judge(corrupt: list[str], left: int, skip: bool) -> None:
    """Refuse images that cannot be read, or, with ``skip``, name those that are left out.

    Raises:
        MisconfiguredError: there are such images and they are not to be skipped, or nothing is
            ``left``.
    """
    if not corrupt:
        return
    if not skip or not left:
        more = f" (and {len(corrupt) - 1} more like it)" if len(corrupt) > 1 else ""
        remedy = "or skip such images (on_corrupt=skip)" if left else "none is left"
        raise MisconfiguredError(f"{corrupt[0]}{more}; remove or repair it, {remedy}")
    more = f"; and {len(corrupt) - _NAMED} more" if len(corrupt) > _NAMED else ""
    warn(
        f"{len(corrupt)} of {left + len(corrupt)} images are left out: "
        f"{'; '.join(corrupt[:_NAMED])}{more}",
    )
