"""SIGTERM and SIGINT while a run trains: finish the step, save, then stop.

A scheduler that takes a machine back sends SIGTERM some time before it kills. The first signal is
noted and the run ends after the step it is in, with a checkpoint and the exit code 128 + signal
(143 and 130), which schedulers read as "ended by the signal, may be started again". A second one,
some seconds later, ends it at once: one that comes sooner is an echo of the first, which a terminal
sends to the processes and a launcher passes on to them.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from patchtrain.errors import PatchtrainError

_ECHO_SECONDS, _PASSED_ON_SECONDS = 2.0, 5.0


class StoppedBySignalError(PatchtrainError):
    """A signal ended the run after a step, and what it had is saved."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """Whether a signal has asked the run to stop, and which."""

    def __init__(self) -> None:
        self.signal = 0
        self._at = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals within the block, as far as this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.getsignal(number) or signal.SIG_DFL
            for number in (signal.SIGTERM, signal.SIGINT)
        }

        def note(number: int, frame: FrameType | None) -> None:
            echo = _PASSED_ON_SECONDS if "LOCAL_RANK" in os.environ else _ECHO_SECONDS
            if not self.signal:
                self.signal, self._at = number, time.monotonic()
            elif time.monotonic() - self._at > echo:  # now it does what it always did
                for each, handler in before.items():
                    signal.signal(each, handler)
                signal.raise_signal(number)

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
