"""Ctrl-C and SIGTERM: the first one asks a run to stop, the second one aborts it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(contextlib.ExitStack):
    """Turn the signals that end a program into a question that a run asks after every step.

    Until it is armed a signal aborts at once, since there is nothing to save; so does a second one.

    Args:
        told: called at the first signal once armed.

    Attributes:
        armed: whether a signal asks instead of aborting.
        status: exit status of the program, 128 + the number of the last signal.
    """

    def __init__(self, told: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.armed = False
        self.status = 128 + signal.SIGINT
        self._requested = False
        self._told = told

    def __enter__(self) -> Interruption:
        super().__enter__()
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.signal(number, self._handle) or signal.SIG_DFL
                self.callback(signal.signal, number, before)
        return self

    def __call__(self) -> bool:
        """Say whether to stop."""
        return self._requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.status = 128 + number
        if not self.armed or self._requested:
            raise KeyboardInterrupt
        self._requested = True
        self._told()
