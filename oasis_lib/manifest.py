"""run.json: how a run was made, and which of its stages still stand.

What reruns a stage: a setting or parameter that it or an earlier stage reads, its inputs (cohort, files of earlier
stages), a file of its own that was changed or lost, and the notebook's own text. An edit of the library does not: the
stage is kept, and reported as made by another version of the library; `--overwrite` reruns it. Trained models follow
the same rule (`training/once.py`), with one more: a finished model of other settings is replaced by `--overwrite` alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from oasis_lib.paths import library_digest, read_json, write_json

FILE = "run.json"
SHARED = {FILE, "metrics.json", "report.html", "captions.json"}  # several stages write these
COMPARED = {".safetensors", ".npy", ".npz"}  # of these the content counts, of other files that they are there


class Manifest:
    """Read once, written whole after each change, so that a kill at any moment leaves a good file."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / FILE
        self.values: dict[str, Any] = read_json(path) if path.is_file() else {}
        self.values.setdefault("stages", {})
        self.values.setdefault("files", {})

    def describe(self, **values: Any) -> None:
        self.values |= values
        self._write()

    def stage(self, name: str) -> dict[str, Any]:
        return self.values["stages"].get(name, {})

    def start(self, name: str, parameters: dict[str, Any]) -> None:
        self.values["stages"][name] = {"status": "running", "parameters": parameters, "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._write()

    def fail(self, name: str, cause: str) -> None:
        self.values["stages"][name] |= {"status": "failed", "cause": cause}
        self._write()

    def finish(self, name: str, key: str, begun: float, peak: int, cohort: str) -> None:
        """Note what the stage left. A file keeps its first writer: it is that stage which makes it again."""
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file() and p.name not in SHARED and p.suffix != ".html"):
            if path.stat().st_mtime >= begun - 1:
                known = self.values["files"].setdefault(str(path.relative_to(self.folder)), {"stage": name})
                known["content"] = _content(path)
        done = {
            "status": "finished",
            "key": key,
            "seconds": round(time.time() - begun, 1),
            "peak_memory_bytes": peak,
            "cohort": cohort,
            "library": library_digest(),
        }
        self.values["stages"][name] |= done
        self._write()

    def is_finished(self, name: str, key: str, cohort: str) -> bool:
        stage = self.stage(name)
        if stage.get("status") != "finished" or stage["key"] != key or not cohort or stage["cohort"] != cohort:
            return False
        files = {file: known for file, known in self.values["files"].items() if known["stage"] == name}
        return all(
            (self.folder / file).is_file() and _content(self.folder / file) == known["content"] for file, known in files.items()
        )

    def is_stale(self, name: str) -> bool:
        """Whether another version of the library finished it."""
        return self.stage(name).get("library") != library_digest()

    def _write(self) -> None:
        write_json(self.folder / FILE, self.values)


def digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()


def _content(path: Path) -> str:
    if path.suffix not in COMPARED:
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:24]
