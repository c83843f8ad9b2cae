"""Writing a prepared cohort: one file per item beside the target, then whole arrays. Items that exist are the resume.

`.NAME.part/` holds `lock`, `request.json`, `items/0.npz ...` and, at the end, `whole/`, which is renamed to NAME.
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


def write(plan: Plan, out: Path, request: dict, *, skip_bad: bool, progress: bool, processes: int) -> None:
    """Fill `out` from the plan; it appears whole or not at all. An interrupted run of the same request is continued."""
    part = out.with_name(f".{out.name}.part")
    items, whole = part / "items", part / "whole"
    with disk_errors(part, CohortError), only_one(part / "lock", f"preparing {out}"):
        if not out.exists():  # else another process finished it just now
            if not (part / "request.json").is_file() or read_json(part / "request.json") != request:
                shutil.rmtree(items, ignore_errors=True)
                write_json(part / "request.json", request)
            items.mkdir(exist_ok=True)
            _read_items(plan, items, skip_bad, progress, processes)
            shutil.rmtree(whole, ignore_errors=True)
            whole.mkdir()
            _assemble(plan, items, whole, request)
            os.replace(whole, out)
        shutil.rmtree(part)


def _read_items(plan: Plan, folder: Path, skip_bad: bool, progress: bool, processes: int) -> None:
    missing = [(i, item) for i, item in enumerate(plan.items) if not _is_whole(folder / f"{i}.npz")]
    total, left = (sum(len(item.slice_indices) for item in of) for of in (plan.items, [item for _, item in missing]))
    with tqdm(total=total, initial=total - left, unit=" slices", disable=not progress, mininterval=0.5) as bar:
        work = _each(partial(_store, plan.read, folder, skip_bad), missing, plan, processes)
        for (_, item), _ in zip(missing, work):
            bar.update(len(item.slice_indices))


def _store(read: Callable[[Item], Slices], folder: Path, skip_bad: bool, numbered: tuple[int, Item]) -> None:
    """Read one item and write its file."""
    number, item = numbered
    slices = read(item)
    if slices.left_out and not skip_bad:
        raise CohortError(f"{slices.left_out[0]}; or go on without it with skip_bad (--skip-bad)")
    with atomic(folder / f"{number}.npz") as beside, open(beside, "wb") as file:
        np.savez(file, **{name: value for name, value in vars(slices).items() if value is not None})


def _is_whole(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as members:
            return members.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _each(work: Callable, missing: list, plan: Plan, processes: int) -> Iterator[None]:
    """Does the work in order, in several processes where the plan says that it pays."""
    if not plan.parallel or min(processes, len(missing)) < 2:
        yield from map(work, missing)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
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
    rows, left_out, notes, kinds = [], [*plan.left_out], [*plan.warnings], {}
    for number, item in enumerate(plan.items):
        files = item.files if len(item.files) > 1 else item.files * len(item.slice_indices)
        with np.load(items / f"{number}.npz") as saved:
            rows += [(item.split, item.subject, item.session, item.slice_indices[k], files[k]) for k in saved["kept"]]
            left_out += saved["left_out"].tolist()
            notes += [note for note in saved["notes"].tolist() if note not in notes]
            kinds[item.split] = kinds.get(item.split, set(saved.files)) & set(saved.files)  # maps that all items have
    table = pd.DataFrame(rows, columns=["split", "subject", "session", "slice_index", "file"])
    counts = {name: int((table["split"] == name).sum()) for name in kinds}
    for name in [name for name, count in counts.items() if not count]:
        raise CohortError(f"{plan.info['source']}: nothing could be read for {name}; first: {left_out[0]}")
    subjects = plan.subjects[plan.subjects["subject"].isin(table["subject"])]
    subjects.to_csv(whole / "participants.tsv", sep="\t", index=False, lineterminator="\n")
    table = table if table["session"].any() else table.drop(columns="session")
    table.to_csv(whole / "slices.csv", index=False, lineterminator="\n")
    names = ["slices.csv", "participants.tsv"]
    for split, key in [(split, key) for split in counts for key in SUFFIXES if key in kinds[split]]:
        names.append(f"{split}{SUFFIXES[key]}.npy")
        mine = [items / f"{i}.npz" for i, item in enumerate(plan.items) if item.split == split]
        _write_array(whole / names[-1], (counts[split], request["size"], request["size"]), mine, key)
    files = {name: digests(whole / name, full=True) for name in names}
    cdrs = subjects[subjects["split"] == "train"].get("cdr", pd.Series(dtype=float)).dropna()
    info = {
        "hash": content_hash(json.dumps(files, sort_keys=True))[:16],
        "size": request["size"],
        "slice_indices": int(table["slice_index"].max()) + 1,
        **plan.info,
        "splits": list(counts),
        "counts": counts,
        "subjects": subjects["split"].value_counts().to_dict(),
        "cdrs": sorted(set(cdrs.astype(float))),
        "left_right": plan.info.get("left_right") or left_right(whole / "train.npy"),
        "warnings": notes,
        "left_out": left_out,
        "request": request,
        "files": files,
    }
    write_json(whole / "cohort.json", info)


def _write_array(path: Path, shape: tuple[int, int, int], items: list[Path], key: str) -> None:
    """One .npy file, item by item, so that memory stays flat."""
    with atomic(path) as beside, open(beside, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for item in items:
            with np.load(item) as saved:
                file.write(np.ascontiguousarray(saved[key], np.uint8))


def left_right(path: Path) -> str | None:
    """ "columns" where the mean slice is its own mirror image left for right: a flip gives a plausible brain."""
    images = np.load(path, mmap_mode="r")
    mean = images[:: max(1, len(images) // 100)].mean(0)
    across, along = (np.corrcoef(mean.ravel(), mean[flip].ravel())[0, 1] for flip in (np.s_[:, ::-1], np.s_[::-1]))
    return "columns" if across > 0.9 and across > along else None
