"""One notebook in a kernel of its own, through papermill: a line that moves while it runs, plain words when it stops."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class CellFailed(RuntimeError):
    """The cell and the cause, for one who has not seen the notebook."""


def execute(source: Path, target: Path, parameters: dict[str, Any], *, quiet: bool = False, echo: bool = False) -> int:
    """Run `source` into `target`; gives back the kernel's peak memory in bytes. `echo` hands on what its cells print."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import NBClientEngine, papermill_engines

    class Counting(NBClientEngine):
        """Papermill's own engine, telling the watch which cell it is at."""

        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, watch=None, **options):
            plain, watch.cells = nb_man.cell_start, len(nb_man.nb.cells)

            def cell_start(cell, cell_index=None, **more):
                watch.cell = cell_index
                return plain(cell, cell_index=cell_index, **more)

            nb_man.cell_start = cell_start
            super().execute_managed_notebook(nb_man, kernel_name, **options)

    papermill_engines.register("counting", Counting)
    target.parent.mkdir(parents=True, exist_ok=True)
    with Watch(source.stem, live=not quiet and not echo and someone_looks()) as watch, batch():
        try:
            done = papermill.execute_notebook(
                source,
                target,
                parameters,
                engine_name="counting",
                kernel_name="python3",
                cwd=source.parent,
                progress_bar=False,
                start_timeout=180,
                stdout_file=sys.stdout if echo else watch,
                stderr_file=watch,
                watch=watch,
                coalesce_streams=True,
                extra_arguments=["--log-level=CRITICAL"],
            )
        except papermill.PapermillExecutionError as error:
            line = next((x for x in error.source.splitlines() if x.strip() and not x.startswith("#")), "")
            raise CellFailed(f"cell {error.cell_index + 1} (`{line.strip()[:80]}`): {error.ename}: {error.evalue}") from None
        except DeadKernelError:
            raise CellFailed(f"cell {watch.cell + 1}: its kernel died; most often the machine ran out of memory") from None
    for index, cell in enumerate(done.cells):  # a cell that calls sys.exit(0) ends the kernel's work, and papermill is content
        if cell.cell_type == "code" and "".join(cell.source).strip() and cell.metadata["papermill"]["status"] != "completed":
            raise CellFailed(f"cell {index + 1}: it did not complete (the kernel was told to exit)")
    return watch.peak


@contextmanager
def batch() -> Iterator[None]:
    """Kernels started here are nobody's to look at: trainings in them print lines in place of a live plot."""
    before = os.environ.get("OASIS_BATCH")
    os.environ["OASIS_BATCH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OASIS_BATCH"]


def someone_looks() -> bool:
    """A terminal, or a kernel whose notebook somebody has open."""
    wanted = os.environ.get("OASIS_PROGRESS")
    kernel = "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None
    return wanted == "1" if wanted else kernel or sys.stdout.isatty()


class Watch(threading.Thread):
    """Beside a running notebook: its kernel's peak memory, and one line that moves. What cells print is written to it."""

    def __init__(self, name: str, *, live: bool, every: float = 1.0):
        super().__init__(daemon=True)
        self.label, self.live, self.every = name, live, every
        self.cell, self.cells, self.text, self.peak = 0, 1, "", 0
        self.begun, self.over = time.time(), threading.Event()

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()
        if self.live:
            sys.stdout.write("\r" + " " * 110 + "\r")

    def write(self, text: str) -> None:
        lines = [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*\w", "", text)) if line.strip()]
        self.text = lines[-1].strip() if lines else self.text

    def flush(self) -> None:
        """Part of being a file; nothing is held back."""

    def run(self) -> None:
        while not self.over.wait(self.every):
            self.peak = max(self.peak, _children_memory())
            if self.live:
                done = 20 * self.cell // self.cells
                line = f"{self.label:<14} [{'=' * done:<20}] {(time.time() - self.begun) / 60:4.1f} min  {self.text}"
                sys.stdout.write(f"\r{line[:109]:<110}")
                sys.stdout.flush()


def _children_memory() -> int:
    import psutil

    total = 0
    for child in psutil.Process().children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.Error:
            continue  # it ended while we looked
    return total
