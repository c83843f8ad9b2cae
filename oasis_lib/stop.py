"""Requests to stop: Ctrl-C, a scheduler's SIGTERM, and the SIGUSR1 that SLURM sends before its time limit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
asked: list[int] = []  # signals that arrived during `after_the_step`


@contextmanager
def handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    """`handler(signal, frame)` answers every stop signal. Python allows handlers in the main thread alone."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in SIGNALS} if main else {}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def after_the_step() -> Iterator[None]:
    """The first signal is noted in `asked`, for a loop to see; a second one interrupts at once."""

    def note(number: int, _frame: object) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt

    asked.clear()
    with handled(note):
        yield
