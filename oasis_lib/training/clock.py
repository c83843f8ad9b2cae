"""The time a training has taken."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Training time. Compilation, warm-up, validation and writing are not part of it: it starts late, and is paused."""

    def __init__(self, seconds: float):
        self.seconds, self.since = seconds, math.nan  # NaN until it starts

    def start(self) -> None:
        self.since = time.perf_counter()

    def read(self) -> float:
        if not math.isnan(self.since):
            before, self.since = self.since, time.perf_counter()
            self.seconds += self.since - before
        return self.seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.read()
        yield
        if not math.isnan(self.since):
            self.start()
