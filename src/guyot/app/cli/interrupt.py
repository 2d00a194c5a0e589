"""Ctrl-C: the first one asks, the second one aborts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class Interruption:
    """Turns Ctrl-C into a question that a run asks after every step.

    Until it is armed Ctrl-C aborts at once, since there is nothing to save; so does a second one.

    Args:
        told: called at the first Ctrl-C once armed.
    """

    def __init__(self, told: Callable[[], None]) -> None:
        self.armed = False
        self.requested = False
        self._told = told
        self._main = threading.current_thread() is threading.main_thread()
        self._before: object = None

    def __enter__(self) -> Interruption:
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._main:
            before = self._before if callable(self._before) else signal.default_int_handler
            signal.signal(signal.SIGINT, before)

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.armed or self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._told()
