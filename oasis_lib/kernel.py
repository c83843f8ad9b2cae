"""One notebook in a kernel of its own, through papermill; plain words when it stops."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from oasis_lib import stop
from oasis_lib.storage import read_json


class CellFailed(RuntimeError):
    """The cell and the cause, for a reader who has not seen the notebook."""


class StageFailed(RuntimeError):
    """What stopped a study, in words: notebook, cell and cause."""

    def _render_traceback_(self) -> list[str]:  # in the driver's kernel the message says it all
        return [f"StageFailed: {self}"]


def execute(source: Path, target: Path, parameters: dict[str, Any], *, quiet: bool = False) -> None:
    """Run `source` into `target`. What its cells print is handed on; a stop signal is too, so that trainings save their state."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    target.parent.mkdir(parents=True, exist_ok=True)
    options = {"kernel_name": "python3", "cwd": source.parent, "start_timeout": 180, "coalesce_streams": True}
    options |= {"progress_bar": False, "extra_arguments": ["--log-level=CRITICAL"]}
    asked: list[int] = []  # stop signals
    # In kernels without a viewer trainings print lines in place of a live plot.
    with patch.dict(os.environ, OASIS_BATCH="1"), stop.handled(lambda number, _: _end_kernels(asked, number)):
        try:
            papermill.execute_notebook(source, target, parameters, stdout_file=None if quiet else sys.stdout, **options)
        except papermill.PapermillExecutionError as error:
            if asked or error.ename == "KeyboardInterrupt":
                raise KeyboardInterrupt(error.evalue) from None
            line = next((x for x in error.source.splitlines() if x.strip() and not x.startswith("#")), "")
            raise CellFailed(f"cell {error.cell_index + 1} (`{line.strip()[:80]}`): {error.ename}: {error.evalue}") from None
        except RuntimeError as error:
            if isinstance(error, DeadKernelError) and not asked:
                words = "its kernel died; most often the machine ran out of memory"
                raise CellFailed(f"{_unfinished(target)}: {words}") from None
            if not asked:
                raise
        if asked:
            raise KeyboardInterrupt(f"stopped in {source.stem}; the same command goes on from this notebook")
    if where := _unfinished(target):  # papermill is content with a cell that calls sys.exit(0)
        raise CellFailed(f"{where}: it did not complete (the kernel was told to exit)")


def _unfinished(executed: Path) -> str:
    """The first code cell that did not complete, as papermill noted in the copy it saves after every cell."""
    for index, cell in enumerate(read_json(executed)["cells"]):
        code = cell["cell_type"] == "code" and "".join(cell["source"]).strip()
        if code and cell["metadata"]["papermill"]["status"] != "completed":
            return f"cell {index + 1}"
    return ""


def _end_kernels(asked: list[int], number: int) -> None:
    """A kernel is in a session of its own, and deaf to SIGINT between cells: SIGTERM ends it, after the step where it trains.

    A second signal ends the wait for it.
    """
    import psutil

    asked.append(number)
    for kernel in psutil.Process().children():
        kernel.terminate()
    if len(asked) > 1:
        raise KeyboardInterrupt
