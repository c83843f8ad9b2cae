"""run.json: how a run was made, and which of its stages still stand.

A stage runs again when its notebook's text, a setting or parameter that it or an earlier stage reads, or its cohort
changed, or when one of its files is gone. An edit of the library is only reported; `--overwrite` then reruns the stage.
`training/once.py` treats trained models alike, but replaces one of other settings with `--overwrite` alone.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from oasis_lib.paths import library_digest
from oasis_lib.storage import content_hash, read_json, write_json

FILE = "run.json"
SHARED = {FILE, "metrics.json", "captions.json", "seeds.json"}  # several stages write these


class Manifest:
    """Read once, written whole after each change, so that a kill at any moment leaves a good file."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.values: dict[str, Any] = {"stages": {}} | (read_json(folder / FILE) if (folder / FILE).is_file() else {})

    def describe(self, **values: Any) -> None:
        self.values |= values
        write_json(self.folder / FILE, self.values)

    def stage(self, name: str) -> dict[str, Any]:
        return self.values["stages"].get(name, {})

    def note(self, name: str, status: str, **values: Any) -> None:
        self.values["stages"][name] = self.stage(name) | {"status": status} | values
        self.describe()

    def finish(self, name: str, key: str, begun: float, **values: Any) -> None:
        """Note the stage's files: those that are new, and those of an earlier time that are still there."""
        own = [p for p in self.folder.rglob("[!.]*") if p.is_file() and p.name not in SHARED and p.suffix != ".html"]
        files = {str(path.relative_to(self.folder)) for path in own if path.stat().st_mtime >= begun - 1}
        files |= {file for file in self.stage(name).get("files", []) if (self.folder / file).is_file()}
        values |= {"key": key, "seconds": round(time.time() - begun, 1), "library": library_digest()}
        self.note(name, "finished", files=sorted(files), **values)

    def stands(self, name: str, key: str, cohort: str) -> bool:
        stage = self.stage(name)
        same = stage.get("status") == "finished" and cohort and (stage["key"], stage["cohort"]) == (key, cohort)
        return bool(same) and all((self.folder / file).is_file() for file in stage["files"])

    def is_stale(self, name: str) -> bool:
        """Whether another version of the library finished it."""
        return self.stage(name).get("library") != library_digest()


def digest(value: Any) -> str:
    return content_hash(json.dumps(value, sort_keys=True))[:24]
