"""Writing a prepared cohort: one file per item beside the target, then whole arrays. Items that exist are the resume.

`.NAME.part/` holds `lock` (the process that writes), `request.json`, `items/0.npz ...` and, at the end, `whole/`, which
is renamed to NAME. Items are written beside and renamed, with checksums tested on resume: half a file is never read.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from oasis_lib.cohort.store import SUFFIXES, CohortError, Item, Plan, Slices, digests
from oasis_lib.storage import atomic, content_hash, disk_errors, only_one, read_json, write_json

COLUMNS = ["split", "subject", "session", "slice_index", "file"]


def write(plan: Plan, out: Path, request: dict, *, skip_bad: bool, progress: bool, processes: int) -> None:
    """Fill `out` from the plan; it appears whole or not at all. An interrupted run of the same request is continued."""
    part = out.with_name(f".{out.name}.part")
    with disk_errors(part, CohortError), only_one(part / "lock", f"preparing {out}"):
        if not out.exists():  # else another process finished it just now
            if not (part / "request.json").is_file() or read_json(part / "request.json") != request:
                shutil.rmtree(part / "items", ignore_errors=True)
                write_json(part / "request.json", request)
            (part / "items").mkdir(exist_ok=True)
            _check_room(plan, part, request["size"])
            _read_items(plan, part / "items", skip_bad, progress, processes)
            shutil.rmtree(part / "whole", ignore_errors=True)
            (part / "whole").mkdir()
            _assemble(plan, part / "items", part / "whole", request)
            os.replace(part / "whole", out)
        shutil.rmtree(part)


def _read_items(plan: Plan, folder: Path, skip_bad: bool, progress: bool, processes: int) -> None:
    missing = [(i, item) for i, item in enumerate(plan.items) if not _is_whole(folder / f"{i}.npz")]
    total, left = (sum(len(item.slice_indices) for item in items) for items in (plan.items, [item for _, item in missing]))
    every = 0.5 if sys.stderr.isatty() else 15  # seconds between lines
    with tqdm(total=total, initial=total - left, unit=" slices", disable=not progress, mininterval=every) as bar:
        results = _each(partial(_store, plan.read, folder, skip_bad), missing, plan, processes)
        for (_, item), problem in zip(missing, results):
            if problem:
                raise CohortError(f"{problem}; repair it, or go on without it with skip_bad (--skip-bad)")
            bar.update(len(item.slice_indices))


def _store(read: Callable[[Item], Slices], folder: Path, skip_bad: bool, numbered: tuple[int, Item]) -> str:
    """Read one item and write its file; the first problem where one must stop for it."""
    number, item = numbered
    slices = read(item)
    if slices.left_out and not skip_bad:
        return slices.left_out[0]
    with atomic(folder / f"{number}.npz") as beside, open(beside, "wb") as file:
        np.savez(file, **{name: value for name, value in vars(slices).items() if value is not None})
    return ""


def _is_whole(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as members:
            return members.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _each(work: Callable, missing: list, plan: Plan, processes: int) -> Iterator[str]:
    """The work's results in order, from several processes where the plan says that it pays."""
    if not plan.parallel or min(processes, len(missing)) < 2:
        yield from map(work, missing)
        return
    plan.warm()
    method = "fork" if sys.platform == "linux" else "spawn"  # spawn would ask every script for a __main__ guard
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(min(processes, len(missing)), context, initializer=_end_with_parent) as pool:
        try:
            yield from pool.map(work, missing)
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker of a killed prepare would otherwise wait for work forever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _assemble(plan: Plan, items: Path, whole: Path, request: dict) -> None:
    """Arrays, tables and cohort.json out of the items' files."""
    rows, left_out, notes = [], [*plan.left_out], [*plan.warnings]
    for number, item in enumerate(plan.items):
        files = item.files if len(item.files) > 1 else item.files * len(item.slice_indices)
        with np.load(items / f"{number}.npz") as saved:
            rows += [(item.split, item.subject, item.session, item.slice_indices[k], files[k]) for k in saved["kept"]]
            left_out += saved["left_out"].tolist()
            notes += [note for note in saved["notes"].tolist() if note not in notes]
    table = pd.DataFrame(rows, columns=COLUMNS)
    counts = {name: int((table["split"] == name).sum()) for name in dict.fromkeys(i.split for i in plan.items)}
    for name, count in counts.items():
        if not count:
            first = (left_out or ["no slices"])[0]
            raise CohortError(f"{plan.info['source']}: nothing could be read for {name}; first: {first}")
    subjects = plan.subjects[plan.subjects["subject"].isin(table["subject"])]
    subjects.to_csv(whole / "participants.tsv", sep="\t", index=False, lineterminator="\n")
    table = table if table["session"].any() else table.drop(columns="session")
    table.to_csv(whole / "slices.csv", index=False, lineterminator="\n")
    names = ["slices.csv", "participants.tsv"]
    for key, splits in (("images", counts), ("tissue", plan.tissue), ("lesion", plan.lesion)):
        for split in splits:
            names.append(f"{split}{SUFFIXES[key]}.npy")
            mine = [items / f"{i}.npz" for i, item in enumerate(plan.items) if item.split == split]
            _write_array(whole / names[-1], (counts[split], request["size"], request["size"]), mine, key)
    files = {name: digests(whole / name, full=True) for name in names}
    rated = subjects[subjects["split"] == "train"].get("cdr", pd.Series(dtype=float)).dropna()
    info = {
        "hash": content_hash(json.dumps(files, sort_keys=True))[:16],
        "size": request["size"],
        "slice_indices": int(table["slice_index"].max()) + 1,
        **plan.info,
        "splits": list(counts),
        "counts": counts,
        "subjects": subjects["split"].value_counts().to_dict(),
        "cdrs": sorted({float(r) for r in rated}),
        "left_right": plan.info.get("left_right") or left_right(whole / "train.npy"),
        "warnings": notes,
        "left_out": left_out,
        "request": request,
        "files": files,
    }
    write_json(whole / "cohort.json", info)


def _write_array(path: Path, shape: tuple[int, int, int], items: list[Path], key: str) -> None:
    """One .npy file, item by item: written, not mapped, so that memory stays flat."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for item in items:
            with np.load(item) as saved:
                file.write(np.ascontiguousarray(saved[key], np.uint8))
        file.flush()
        os.fsync(file.fileno())


def left_right(path: Path) -> str | None:
    """ "columns" where the mean slice is its own mirror image left for right: a flip gives a plausible brain."""
    images = np.load(path, mmap_mode="r")
    mean = np.zeros(images.shape[1:])
    for i in range(0, len(images), max(1, len(images) // 100)):
        mean += images[i]
    across, along = (np.corrcoef(mean.ravel(), mean[flip].ravel())[0, 1] for flip in (np.s_[:, ::-1], np.s_[::-1]))
    return "columns" if across > 0.9 and across > along else None


def _check_room(plan: Plan, part: Path, size: int) -> None:
    """Items and whole arrays stand side by side at the end: twice the cohort's size, less the items that exist."""
    slices = sum(len(i.slice_indices) * (1 + (i.split in plan.tissue) + (i.split in plan.lesion)) for i in plan.items)
    needed = 2 * slices * size * size - sum(f.stat().st_size for f in (part / "items").iterdir())
    free = shutil.disk_usage(part).free
    if needed > free:
        needs = f"needs {needed / 1e9:.2f} GB more on the disk of {part.parent}, which has {free / 1e9:.2f} GB free"
        raise CohortError(f"{part.parent}: the cohort {needs}; make room or choose another folder")
