"""One notebook in a kernel of its own, through papermill."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from oasis_lib import stop
from oasis_lib.storage import read_json


class StageFailed(RuntimeError):
    """What stopped a study: notebook, cell and cause."""

    def _render_traceback_(self) -> list[str]:  # in the driver's kernel the message says it all
        return [f"StageFailed: {self}"]


def execute(source: Path, target: Path, parameters: dict[str, Any], *, quiet: bool = False) -> None:
    """Run `source` into `target`. What its cells print is passed on, and so are stop signals."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    target.parent.mkdir(parents=True, exist_ok=True)
    options = {"kernel_name": "python3", "cwd": source.parent, "start_timeout": 180, "coalesce_streams": True}
    options |= {"progress_bar": False, "extra_arguments": ["--log-level=CRITICAL"]}
    options |= {"stdout_file": None if quiet else sys.stdout}
    asked: list[int] = []  # stop signals
    # OASIS_BATCH: no viewer, so trainings print lines in place of a live plot.
    with patch.dict(os.environ, OASIS_BATCH="1"), stop.handled(lambda number, _: _end_kernels(asked, number)):
        try:
            papermill.execute_notebook(source, target, parameters, **options)
        except papermill.PapermillExecutionError as found:
            if asked or found.ename == "KeyboardInterrupt":
                raise KeyboardInterrupt(found.evalue) from None
            line = next((x.strip() for x in found.source.splitlines() if x.strip() and x[0] != "#"), "")
            where = f"cell {found.cell_index + 1} (`{line[:80]}`)"
            raise StageFailed(f"{where}: {found.ename}: {found.evalue}") from None
        except DeadKernelError:
            if not asked:
                why = "its kernel died; most often the machine ran out of memory"
                raise StageFailed(f"cell {_last_cell(target)[0]}: {why}") from None
        except RuntimeError:
            if not asked:
                raise
    if asked:
        raise KeyboardInterrupt(f"stopped in {source.stem}; the same command goes on from this notebook")
    number, status = _last_cell(target)
    if status != "completed":
        raise StageFailed(f"cell {number}: it did not complete (the kernel was told to exit)")


def _last_cell(executed: Path) -> tuple[int, str]:
    """Number and status of the cell that was the last to start, as papermill notes them."""
    cells = [cell["metadata"]["papermill"] for cell in read_json(executed)["cells"]]
    return [(number, one["status"]) for number, one in enumerate(cells, start=1) if one["start_time"]][-1]


def _end_kernels(asked: list[int], number: int) -> None:
    """SIGTERM to the kernels: they are in sessions of their own, and ignore SIGINT between cells."""
    import psutil

    asked.append(number)
    for kernel in psutil.Process().children():
        kernel.terminate()
    if len(asked) > 1:
        raise KeyboardInterrupt
